//! The response to a poll of Envoy's stats, and the one that names all listeners. A line
//! `exclude NAME`, which is no gauge, is an option; one with `::` in it is a listener.
#![no_main]

use std::collections::BTreeMap;
use std::time::Duration;

use envoy_shutdown_manager::cli::options::{Options, WaitFor};
use envoy_shutdown_manager::envoy::listeners::GaugeNames;
use envoy_shutdown_manager::envoy::stats::{
    AcceptedParser, Exclusions, Observation, ReadLines as _, StatsCoverage, StatsError, StatsParser,
};
use envoy_shutdown_manager_fuzz::within;
use libfuzzer_sys::fuzz_target;

const EXCLUDED_PREFIXES: [&[u8]; 6] =
    [b"envoy-admin", b"stats", b"health", b"stats-health", b"eg-stats-http", b"eg-ready-http"];

/// Listeners whose names end like this are not counted.
const IGNORED_SUFFIX: &str = "_19001";

fuzz_target!(|input: &[u8]| {
    let lossy = String::from_utf8_lossy(input);
    let excluded = lossy.split('\n').filter_map(|line| line.strip_prefix("exclude "));
    let excluded: Vec<String> = excluded.map(str::to_owned).collect();
    // A line of 35 bytes makes an entry of 64, in a vector that is copied when it doubles. An error
    // quotes 200 bytes, each of which may become three.
    let bound = 2048 + 9 * input.len();
    let count = |body: &[u8], size| {
        within(bound, || {
            let exclusions = Exclusions { names: &excluded, ignored_suffixes: &[IGNORED_SUFFIX] };
            let mut parser = StatsParser::new(exclusions);
            assert!(body.chunks(size).all(|piece| parser.push(piece)), "a line is too long");
            parser.finish()
        })
    };
    let whole = count(input, usize::MAX);
    assert_eq!(count(input, 1 + input.len() % 61), whole, "in pieces");
    let lines: Vec<_> = input.split(|byte| *byte == b'\n').collect();
    let reversed: Vec<_> = lines.iter().rev().copied().collect();
    // Lines that belong together are apart.
    let apart: Vec<_> =
        lines.iter().step_by(2).chain(lines.iter().skip(1).step_by(2)).copied().collect();
    for lines in [reversed, apart] {
        match (&whole, count(&lines.join(&b'\n'), usize::MAX)) {
            (Ok(Observation { open, coverage, .. }), Ok(reordered)) => {
                assert_eq!(reordered.coverage, *coverage, "in another order");
                let (min, max) = bounds(input, &excluded);
                for open in [*open, reordered.open] {
                    assert!((min..=max).contains(&open), "{open} is not within {min} and {max}");
                }
                assert!(lossy.contains(match coverage {
                    StatsCoverage::HttpOnly => "http.admin.downstream_cx_active: ",
                    StatsCoverage::Everything | StatsCoverage::ListenersOnly =>
                        "listener.admin.downstream_cx_active: ",
                }));
            }
            (Err(StatsError::BadValue(_)), Err(StatsError::BadValue(_)))
            | (Err(StatsError::NothingVisible), Err(StatsError::NothingVisible))
            | (Err(StatsError::ParentUnknown), Err(StatsError::ParentUnknown)) => {}
            (whole, reordered) => panic!("{whole:?}, in another order {reordered:?}"),
        }
    }
    // What depends on most of the stats.
    let demanding = Options {
        quiet_period: Duration::from_secs(1),
        wait_for: WaitFor::Requests,
        ..Options::default()
    };
    let hidden = |size| {
        let exclusions = Exclusions { names: &excluded, ignored_suffixes: &[IGNORED_SUFFIX] };
        let mut gauges = GaugeNames::new(exclusions, &demanding);
        assert!(input.chunks(size).all(|piece| gauges.push(piece)), "a line is too long");
        gauges.hidden_of(input)
    };
    let arrived = |size| {
        let exclusions = Exclusions { names: &excluded, ignored_suffixes: &[IGNORED_SUFFIX] };
        let mut parser = AcceptedParser::new(exclusions);
        assert!(input.chunks(size).all(|piece| parser.push(piece)), "a line is too long");
        parser.finish()
    };
    assert_eq!(arrived(1 + input.len() % 61), arrived(usize::MAX), "in pieces");
    let hidden_whole = hidden(usize::MAX);
    assert_eq!(hidden(1 + input.len() % 61), hidden_whole, "in pieces");
    if let Ok(hidden) = hidden_whole {
        for name in &hidden.listeners {
            assert!(lossy.contains(&format!("{name}::")), "{name:?} is no listener");
        }
    }
});

/// What is open whichever of the excluded connections the others are, and an upper bound: all
/// numbers.
fn bounds(body: &[u8], excluded: &[String]) -> (u64, u64) {
    let is_excluded = |name: &[u8]| excluded.iter().any(|excluded| excluded.as_bytes() == name);
    let (mut http, mut scraped, mut parent, mut max) = (0_u64, BTreeMap::new(), 0, 0_u64);
    // The gauges of each: their sum, the least, and that of silent clients.
    let mut listeners = BTreeMap::<&[u8], (u64, Option<u64>, Option<u64>)>::new();
    for line in body.split(|byte| *byte == b'\n') {
        let Some(colon) = line.windows(2).rposition(|pair| pair == b": ") else { continue };
        let (gauge, value) = (&line[..colon], line[colon + 2..].trim_ascii_end());
        let Ok(Ok(value)) = std::str::from_utf8(value).map(str::parse::<u64>) else { continue };
        max = max.saturating_add(value);
        let of = |family: &[u8], suffix: &[u8]| {
            let name = gauge.strip_prefix(family)?.strip_suffix(suffix)?;
            (!name.is_empty() && name != b"admin").then_some(name)
        };
        if gauge == b"server.parent_connections" {
            parent = value.max(parent);
        } else if let Some(name) = of(b"http.", b".downstream_cx_active") {
            if EXCLUDED_PREFIXES.contains(&name) || is_excluded(name) {
                scraped.entry(name).and_modify(|least| *least = value.min(*least)).or_insert(value);
            } else {
                http = http.saturating_add(value);
            }
        } else if let Some(name) = of(b"listener.", b".downstream_cx_active") {
            let (sum, least, _) = listeners.entry(name).or_default();
            *sum = sum.saturating_add(value);
            *least = Some(least.map_or(value, |least| value.min(least)));
        } else if let Some(name) = of(b"listener.", b".downstream_pre_cx_active") {
            let (_, _, pre_cx) = listeners.entry(name).or_default();
            *pre_cx = Some(pre_cx.unwrap_or(0).saturating_add(value));
        }
    }
    let scraped = scraped.into_values().fold(0, u64::saturating_add);
    let (mut sum, mut not_counted) = (0_u64, 0_u64);
    for (name, (cx, least, pre_cx)) in listeners {
        let is_copy =
            name.ends_with(b".main_thread") || name.windows(8).any(|part| part == b".worker_");
        let is_internal = name.starts_with(b"envoy_internal_");
        let is_own = is_internal || name.ends_with(IGNORED_SUFFIX.as_bytes()) || is_excluded(name);
        if is_own || is_copy {
            not_counted = not_counted.saturating_add(cx);
        }
        // A copy that has a pre_cx is a listener, of which one gauge must not be lost.
        if !is_own && name != b"admin.main_thread" && (!is_copy || pre_cx.is_some()) {
            let cx = if is_copy { least.unwrap_or(0) } else { cx };
            sum = sum.saturating_add(cx).saturating_add(pre_cx.unwrap_or(0));
        }
    }
    let min = sum.saturating_sub(scraped).max(http.saturating_sub(not_counted));
    (min.saturating_add(parent), max)
}
