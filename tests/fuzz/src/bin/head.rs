//! The first bytes of a connection, at both doors, whole and cut off.
#![no_main]

use envoy_shutdown_manager::control::private;
use envoy_shutdown_manager::head::{Asked, Head, Keeper, LONGEST, Route, Status, public, read};
use envoy_shutdown_manager_fuzz::within;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [outside, inside] = [public as Keeper, private].map(|keeper| {
        let whole = within(64 + LONGEST.min(input.len()), || read(input, keeper));
        assert!(whole != Head::Partial || input.len() < LONGEST);
        let cuts = (0..input.len()).step_by(1 + input.len() / 16).chain([LONGEST]);
        for cut in cuts.filter(|cut| *cut < input.len()) {
            agrees(cut, read(&input[..cut], keeper), &whole);
        }
        whole
    });
    if let Head::Whole(Asked { wanted, .. }) = &outside {
        assert!(!wanted.post && Route::ALL.iter().any(|route| route.wanted() == *wanted));
    }
    // What is passed on is one line of one request, whatever was asked for.
    if let Head::Whole(Asked { wanted, head_only, .. }) = &inside {
        assert!(wanted.target.bytes().all(|byte| byte.is_ascii_graphic()), "{wanted:?}");
        assert!(!(wanted.post && (*head_only || wanted.target.starts_with("/shutdown?"))));
    }
    match (outside, inside) {
        (Head::Whole(outside), Head::Whole(inside)) => {
            assert_eq!((outside.head_only, outside.more), (inside.head_only, inside.more));
        }
        // For a query that is not ASCII.
        (Head::Whole(_), Head::Refused(refused)) => assert_eq!(refused.status, Status::BadRequest),
        (outside, inside) => assert_eq!(outside == Head::Partial, inside == Head::Partial),
    }
});

/// A head that is cut off is waited for, for so long, or is known for what it is.
fn agrees(cut: usize, begun: Head, whole: &Head) {
    match (begun, whole) {
        (Head::Partial, _) => assert!(cut < LONGEST),
        (Head::Whole(begun), Head::Whole(whole)) => {
            assert_eq!(Asked { more: true, ..begun }, *whole, "after {cut} bytes");
        }
        // Which of its faults is told depends on how much of it was read.
        (Head::Refused(_), Head::Refused(_)) if cut >= LONGEST => {}
        (begun, whole) => assert_eq!(begun, *whole, "after {cut} bytes"),
    }
}
