//! An answer to the poll of Envoy's stats. A line `exclude NAME`, which is no gauge, is an option.
#![no_main]

use envoy_shutdown_manager::envoy::stats::{Observation, StatsCoverage, StatsError, StatsParser};
use envoy_shutdown_manager_fuzz::within;
use libfuzzer_sys::fuzz_target;

/// How the names of listeners end that are not counted.
const OWN: &str = "_19001";

fuzz_target!(|input: &[u8]| {
    let lossy = String::from_utf8_lossy(input);
    let excluded = lossy.split('\n').filter_map(|line| line.strip_prefix("exclude "));
    let excluded: Vec<String> = excluded.map(str::to_owned).collect();
    // Of 35 bytes, a line makes 48, in a vector that is copied when it doubles. A fault quotes 200
    // bytes, of which each may become three.
    let bound = 2048 + 5 * input.len();
    let count = |body: &[u8], size| {
        within(bound, || {
            let mut tally = StatsParser::new(&excluded, &[OWN]);
            body.chunks(size).for_each(|piece| tally.push(piece));
            tally.finish()
        })
    };
    let whole = count(input, usize::MAX);
    assert_eq!(count(input, 1 + input.len() % 61), whole, "it comes in pieces");
    let lines: Vec<_> = input.split(|byte| *byte == b'\n').rev().collect();
    match (whole, count(&lines.join(&b'\n'), usize::MAX)) {
        (Ok(Observation { open, coverage, .. }), Ok(turned)) => {
            assert_eq!(
                (turned.open, turned.coverage),
                (open, coverage),
                "it comes in another order"
            );
            let (least, most) = bounds(&lossy, &excluded);
            assert!((least..=most).contains(&open), "{open} is not within {least} and {most}");
            assert!(lossy.contains(match coverage {
                StatsCoverage::HttpOnly => "http.admin.downstream_cx_active: ",
                StatsCoverage::Everything | StatsCoverage::ListenersOnly =>
                    "listener.admin.downstream_cx_active: ",
            }));
        }
        (Err(StatsError::BadValue(_)), Err(StatsError::BadValue(_)))
        | (Err(StatsError::NothingVisible), Err(StatsError::NothingVisible)) => {}
        (whole, turned) => panic!("{whole:?}, in another order {turned:?}"),
    }
});

/// A count that is too low, since it takes off whatever may be taken off, and one that is too high.
fn bounds(body: &str, excluded: &[String]) -> (u64, u64) {
    let (mut least, mut off, mut most) = (0_u64, 0_u64, 0_u64);
    for (gauge, value) in body.split('\n').filter_map(|line| line.rsplit_once(": ")) {
        let Ok(value) = value.trim_end().parse::<u64>() else { continue };
        most = most.saturating_add(value);
        let name = |family| gauge.strip_prefix(family)?.strip_suffix(".downstream_cx_active");
        if let Some(name) = name("http.") {
            let own = ["envoy-admin", "stats", "health", "stats-health"];
            if own.contains(&name)
                || ["eg-stats-http", "eg-ready-http"].contains(&name)
                || excluded.iter().any(|excluded| excluded == name)
            {
                off = off.saturating_add(value);
            }
        } else if let Some(name) = name("listener.")
            && !name.is_empty()
            && name != "admin"
            && !name.starts_with("envoy_internal_")
            && !name.contains(".worker_")
            && !name.ends_with(".main_thread")
            && !name.ends_with(OWN)
            && !excluded.iter().any(|excluded| excluded == name)
        {
            least = least.saturating_add(value);
        }
    }
    (least.saturating_sub(off), most)
}
