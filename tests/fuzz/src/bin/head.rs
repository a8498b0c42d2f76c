//! The first bytes of a connection, at both listeners, whole and cut off.
#![no_main]

use envoy_shutdown_manager::frontend::listen::ListenerId;
use envoy_shutdown_manager::frontend::request::{
    MAX_CONTROL_HEAD, MAX_PUBLIC_HEAD, ParsedHead, Request, parse,
};
use envoy_shutdown_manager::route::{Route, Status};
use envoy_shutdown_manager_fuzz::within;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    for max_head in [MAX_PUBLIC_HEAD, MAX_CONTROL_HEAD] {
        try_head(input, max_head);
    }
});

fn try_head(input: &[u8], max_head: usize) {
    let [public, private] = [ListenerId::Public, ListenerId::Control].map(|listener| {
        let router = listener.router();
        let whole = within(64 + max_head.min(input.len()), || parse(input, max_head, router));
        assert!(whole != ParsedHead::Partial || input.len() < max_head);
        let cuts = (0..input.len()).step_by(1 + input.len() / 16).chain([max_head]);
        for cut in cuts.filter(|cut| *cut < input.len()) {
            assert_agrees(cut, max_head, parse(&input[..cut], max_head, router), &whole);
        }
        whole
    });
    if let ParsedHead::Complete(Request { route, .. }) = &public {
        assert!(
            matches!(route, Route::Healthz | Route::Metrics | Route::EnvoyHook(0)),
            "{route:?}"
        );
    }
    // What is passed on is one line of one request, whatever the client sent, and means the same.
    if let ParsedHead::Complete(Request { route, head_only, .. }) = &private {
        let (method, target) = route.request_line();
        assert!(target.bytes().all(|byte| byte.is_ascii_graphic()), "{target:?}");
        assert_eq!(Route::parse(method, &target).as_ref(), Ok(route), "{target:?}");
        assert!(!route.is_post() || !*head_only);
    }
    match (public, private) {
        (ParsedHead::Complete(public), ParsedHead::Complete(private)) => {
            let of = |request: Request| (request.head_only, request.has_excess);
            assert_eq!(of(public), of(private));
        }
        // For a query that is not ASCII, or has no drain's number.
        (ParsedHead::Complete(_), ParsedHead::Rejected(rejection)) => {
            assert_eq!(rejection.status, Status::BadRequest)
        }
        (public, private) => {
            assert_eq!(public == ParsedHead::Partial, private == ParsedHead::Partial)
        }
    }
}

/// A request head that is cut off is partial, up to its bound, or parsed as the whole one.
fn assert_agrees(cut: usize, max_head: usize, start: ParsedHead, whole: &ParsedHead) {
    match (start, whole) {
        (ParsedHead::Partial, _) => assert!(cut < max_head),
        (ParsedHead::Complete(start), ParsedHead::Complete(whole)) => {
            assert_eq!(Request { has_excess: true, ..start }, *whole, "after {cut} bytes");
        }
        // Which of its errors is reported depends on how much of it was read.
        (ParsedHead::Rejected(_), ParsedHead::Rejected(_)) if cut >= max_head => {}
        (start, whole) => assert_eq!(start, *whole, "after {cut} bytes"),
    }
}
