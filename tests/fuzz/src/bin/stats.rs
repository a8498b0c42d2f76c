//! The response to a poll of Envoy's stats. A line `exclude NAME`, which is no gauge, is an option.
#![no_main]

use envoy_shutdown_manager::envoy::stats::{Observation, StatsCoverage, StatsError, StatsParser};
use envoy_shutdown_manager_fuzz::within;
use libfuzzer_sys::fuzz_target;

/// Listeners whose names end like this are not counted.
const IGNORED_SUFFIX: &str = "_19001";

fuzz_target!(|input: &[u8]| {
    let lossy = String::from_utf8_lossy(input);
    let excluded = lossy.split('\n').filter_map(|line| line.strip_prefix("exclude "));
    let excluded: Vec<String> = excluded.map(str::to_owned).collect();
    // A line of 35 bytes makes an entry of 48, in a vector that is copied when it doubles. An error
    // quotes 200 bytes, each of which may become three.
    let bound = 2048 + 5 * input.len();
    let count = |body: &[u8], size| {
        within(bound, || {
            let mut parser = StatsParser::new(&excluded, &[IGNORED_SUFFIX]);
            body.chunks(size).for_each(|piece| parser.push(piece));
            parser.finish()
        })
    };
    let whole = count(input, usize::MAX);
    assert_eq!(count(input, 1 + input.len() % 61), whole, "in pieces");
    let lines: Vec<_> = input.split(|byte| *byte == b'\n').rev().collect();
    match (whole, count(&lines.join(&b'\n'), usize::MAX)) {
        (Ok(Observation { open, coverage, .. }), Ok(reordered)) => {
            assert_eq!((reordered.open, reordered.coverage), (open, coverage), "in another order");
            let (min, max) = bounds(&lossy, &excluded);
            assert!((min..=max).contains(&open), "{open} is not within {min} and {max}");
            assert!(lossy.contains(match coverage {
                StatsCoverage::HttpOnly => "http.admin.downstream_cx_active: ",
                StatsCoverage::Everything | StatsCoverage::ListenersOnly =>
                    "listener.admin.downstream_cx_active: ",
            }));
        }
        (Err(StatsError::BadValue(_)), Err(StatsError::BadValue(_)))
        | (Err(StatsError::NothingVisible), Err(StatsError::NothingVisible)) => {}
        (whole, reordered) => panic!("{whole:?}, in another order {reordered:?}"),
    }
});

/// A lower bound of the count, which subtracts all that may be subtracted, and an upper bound.
fn bounds(body: &str, excluded: &[String]) -> (u64, u64) {
    let (mut min, mut excluded_sum, mut max) = (0_u64, 0_u64, 0_u64);
    for (gauge, value) in body.split('\n').filter_map(|line| line.rsplit_once(": ")) {
        let Ok(value) = value.trim_end().parse::<u64>() else { continue };
        max = max.saturating_add(value);
        let name = |family| gauge.strip_prefix(family)?.strip_suffix(".downstream_cx_active");
        if let Some(name) = name("http.") {
            let own = ["envoy-admin", "stats", "health", "stats-health"];
            if own.contains(&name)
                || ["eg-stats-http", "eg-ready-http"].contains(&name)
                || excluded.iter().any(|excluded| excluded == name)
            {
                excluded_sum = excluded_sum.saturating_add(value);
            }
        } else if let Some(name) = name("listener.")
            && !name.is_empty()
            && name != "admin"
            && !name.starts_with("envoy_internal_")
            && !name.contains(".worker_")
            && !name.ends_with(".main_thread")
            && !name.ends_with(IGNORED_SUFFIX)
            && !excluded.iter().any(|excluded| excluded == name)
        {
            min = min.saturating_add(value);
        }
    }
    (min.saturating_sub(excluded_sum), max)
}
