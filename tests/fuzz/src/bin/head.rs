//! The first bytes of a connection, at both doors, whole and cut off.
#![no_main]

use envoy_shutdown_manager::frontend::request::{LONGEST, ParsedHead, Request, read};
use envoy_shutdown_manager::route::{PublicRoute, Router, Status, private, public};
use envoy_shutdown_manager_fuzz::within;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [outside, inside] = [public as Router, private].map(|keeper| {
        let whole = within(64 + LONGEST.min(input.len()), || read(input, keeper));
        assert!(whole != ParsedHead::Partial || input.len() < LONGEST);
        let cuts = (0..input.len()).step_by(1 + input.len() / 16).chain([LONGEST]);
        for cut in cuts.filter(|cut| *cut < input.len()) {
            agrees(cut, read(&input[..cut], keeper), &whole);
        }
        whole
    });
    if let ParsedHead::Whole(Request { wanted, .. }) = &outside {
        assert!(!wanted.post && PublicRoute::ALL.iter().any(|route| route.target() == *wanted));
    }
    // What is passed on is one line of one request, whatever was asked for.
    if let ParsedHead::Whole(Request { wanted, head_only, .. }) = &inside {
        assert!(wanted.target.bytes().all(|byte| byte.is_ascii_graphic()), "{wanted:?}");
        assert!(!(wanted.post && (*head_only || wanted.target.starts_with("/shutdown?"))));
    }
    match (outside, inside) {
        (ParsedHead::Whole(outside), ParsedHead::Whole(inside)) => {
            assert_eq!((outside.head_only, outside.more), (inside.head_only, inside.more));
        }
        // For a query that is not ASCII.
        (ParsedHead::Whole(_), ParsedHead::Rejection(refused)) => {
            assert_eq!(refused.status, Status::BadRequest)
        }
        (outside, inside) => {
            assert_eq!(outside == ParsedHead::Partial, inside == ParsedHead::Partial)
        }
    }
});

/// A head that is cut off is waited for, for so long, or is known for what it is.
fn agrees(cut: usize, begun: ParsedHead, whole: &ParsedHead) {
    match (begun, whole) {
        (ParsedHead::Partial, _) => assert!(cut < LONGEST),
        (ParsedHead::Whole(begun), ParsedHead::Whole(whole)) => {
            assert_eq!(Request { more: true, ..begun }, *whole, "after {cut} bytes");
        }
        // Which of its faults is told depends on how much of it was read.
        (ParsedHead::Rejection(_), ParsedHead::Rejection(_)) if cut >= LONGEST => {}
        (begun, whole) => assert_eq!(begun, *whole, "after {cut} bytes"),
    }
}
