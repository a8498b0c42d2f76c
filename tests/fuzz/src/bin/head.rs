//! The first bytes of a connection, at both listeners, whole and cut off.
#![no_main]

use envoy_shutdown_manager::frontend::listen::public_route;
use envoy_shutdown_manager::frontend::request::{
    After, MAX_CONTROL_HEAD, MAX_PUBLIC_HEAD, Rejection, Request, Router, parse,
};
use envoy_shutdown_manager::route::{Route, Status};
use envoy_shutdown_manager_fuzz::within;
use libfuzzer_sys::fuzz_target;

type Parsed = Result<Option<Request>, Rejection>;

fuzz_target!(|input: &[u8]| {
    for max_head in [MAX_PUBLIC_HEAD, MAX_CONTROL_HEAD] {
        try_head(input, max_head);
    }
});

fn try_head(input: &[u8], max_head: usize) {
    let [public, private] = [public_route, Route::parse].map(|router: Router| {
        let whole = within(64 + max_head.min(input.len()), || parse(input, max_head, router));
        assert!(whole != Ok(None) || input.len() < max_head);
        let cuts = (0..input.len()).step_by(1 + input.len() / 16).chain([max_head]);
        for cut in cuts.filter(|cut| *cut < input.len()) {
            assert_agrees(cut, max_head, parse(&input[..cut], max_head, router), &whole);
        }
        whole
    });
    if let Ok(Some(Request { route, .. })) = &public {
        assert!(
            matches!(route, Route::Healthz | Route::Metrics | Route::EnvoyHook(0)),
            "{route:?}"
        );
    }
    // What is passed on is one line of one request, whatever the client sent, and means the same.
    if let Ok(Some(Request { route, head_only, .. })) = &private {
        let (method, target) = route.request_line();
        assert!(target.bytes().all(|byte| byte.is_ascii_graphic()), "{target:?}");
        assert_eq!(Route::parse(method, &target).as_ref(), Ok(route), "{target:?}");
        assert!(!route.is_post() || !*head_only);
    }
    match (public, private) {
        (Ok(Some(public)), Ok(Some(private))) => {
            let of = |request: Request| (request.head_only, request.after == After::Linger);
            assert_eq!(of(public), of(private));
        }
        // For a query that is not ASCII, or has no drain's number.
        (Ok(Some(_)), Err(rejection)) => {
            assert_eq!(rejection.status, Status::BadRequest)
        }
        (public, private) => {
            assert_eq!(public == Ok(None), private == Ok(None))
        }
    }
}

/// A request head that is cut off is partial, up to its bound, or parsed as the whole one.
fn assert_agrees(cut: usize, max_head: usize, start: Parsed, whole: &Parsed) {
    match (start, whole) {
        (Ok(None), _) => assert!(cut < max_head),
        (Ok(Some(start)), Ok(Some(whole))) => {
            assert_eq!(Request { after: After::Linger, ..start }, *whole, "after {cut} bytes");
        }
        // Which of its errors is reported depends on how much of it was read.
        (Err(_), Err(_)) if cut >= max_head => {}
        (start, whole) => assert_eq!(start, *whole, "after {cut} bytes"),
    }
}
