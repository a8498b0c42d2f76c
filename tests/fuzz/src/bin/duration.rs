//! A text, as a duration.
#![no_main]

use envoy_shutdown_manager::cli::duration::{format, parse};
use envoy_shutdown_manager_fuzz::{text, within};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some(text) = text(input) else { return };
    let parsed = within(0, || parse(text));
    if let Ok(duration) = parsed {
        assert!(duration.as_nanos() <= i64::MAX as u128);
        let written = within(64, || format(duration));
        assert_eq!(parse(&written), parsed, "written as {written}");
    }
    // What is a sum of two is parsed as the sum of both.
    for (cut, _) in text.char_indices() {
        let (first, second) = text.split_at(cut);
        if text.starts_with('-') || second.starts_with(['-', '+']) || second == "0" {
            continue;
        }
        if let (Ok(first), Ok(second)) = (parse(first), parse(second)) {
            let sum = first + second;
            match parsed {
                Ok(parsed) => assert_eq!(parsed, sum),
                Err(_) => assert!(sum.as_nanos() > i64::MAX as u128),
            }
        }
    }
});
