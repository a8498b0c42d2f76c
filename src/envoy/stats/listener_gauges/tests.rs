use super::*;
use crate::envoy::stats::ReadLines as _;
use crate::envoy::stats::StatsParser;

const NOTHING: Exclusions<'static> = Exclusions { names: &[], ignored_suffixes: &[] };

/// Adds gauges `NAME cx VALUE` or `NAME pre VALUE` in this order.
fn added(gauges: &[&str]) -> (Vec<Listener>, bool) {
    let mut sums = ListenerGauges::new(NOTHING);
    for gauge in gauges {
        let [name, kind, value] = gauge.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{gauge}")
        };
        let value = value.parse().unwrap();
        match kind {
            "cx" => sums.add_cx(name.as_bytes(), value),
            _ => sums.add_pre_cx(name.as_bytes(), value),
        }
    }
    sums.finish()
}

/// Each listener as `NAME cx pre_cx of_threads`.
fn shown((listeners, is_unclear): (Vec<Listener>, bool)) -> (Vec<String>, bool) {
    let show = |listener: &Listener| {
        let number = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
        let name = String::from_utf8_lossy(&listener.name);
        let (cx, pre_cx) = (number(listener.cx), number(listener.pre_cx));
        format!("{name} {cx} {pre_cx} {}", listener.of_threads)
    };
    (listeners.iter().map(show).collect(), is_unclear)
}

#[test]
fn copies_are_told_from_listeners() {
    for (gauges, expected, is_unclear) in [
        (vec!["a cx 3", "a pre 1", "a.worker_0 cx 1", "a.worker_1 cx 2"], vec!["a 3 1 3"], false),
        (vec!["a cx 3", "a.main_thread cx 3"], vec!["a 3 - 3"], false),
        // Copies before their listener, and others between.
        (vec!["a.worker_0 cx 1", "a cx 1", "a pre 0"], vec!["a 1 0 1"], false),
        (vec!["a cx 1", "a.e cx 2", "a.worker_0 cx 1"], vec!["a 1 - 1", "a.e 2 - 0"], false),
        // A listener of this name, with copies of its own.
        (
            vec!["a cx 1", "a.worker_0 cx 2", "a.worker_0 pre 0", "a.worker_0.worker_1 cx 2"],
            vec!["a 1 - 0", "a.worker_0 2 0 2"],
            false,
        ),
        (vec!["a.worker_0 pre 0", "a.worker_0 cx 2"], vec!["a.worker_0 2 0 0"], false),
        // Copies, or listeners, without a listener of which they would be.
        (vec!["a.worker_0 cx 1", "a.worker_1 cx 2"], vec!["a - - 3"], false),
        (vec!["a.worker_0 cx 1", "b cx 1", "a.worker_1 cx 2"], vec!["a - - 3", "b 1 - 0"], false),
        // An order that is not Envoy's.
        (
            vec!["a cx 1", "a.worker_0 cx 2", "b cx 1", "a.worker_0 pre 4"],
            vec!["a 1 - 2", "a.worker_0 - 4 0", "b 1 - 0"],
            true,
        ),
        (
            vec!["a.worker_0 pre 4", "a cx 1", "a.worker_0 cx 2"],
            vec!["a 1 - 2", "a.worker_0 - 4 0"],
            true,
        ),
        // What is there twice.
        (
            vec!["a cx 1", "a pre 2", "b cx 4", "a cx 1", "a pre 2"],
            vec!["a 2 4 0", "b 4 - 0"],
            false,
        ),
        (vec!["a.worker_0 cx 1", "a.worker_0 cx 1", "a cx 1"], vec!["a 1 - 2"], false),
    ] {
        let expected: Vec<_> = expected.into_iter().map(str::to_owned).collect();
        assert_eq!(shown(added(&gauges)), (expected, is_unclear), "{gauges:?}");
    }
}

/// The lines of an Envoy with this many listeners, in Envoy's order.
fn lines(listeners: u64, workers: u64, each: u64) -> String {
    let mut lines = String::from("http.admin.downstream_cx_active: 1\n");
    for port in 10_000..10_000 + listeners {
        let name = format!("listener.0.0.0.0_{port}");
        lines += &format!(
            "{name}.downstream_cx_active: {}\n{name}.downstream_pre_cx_active: 1\n",
            workers * each
        );
        let mut copies: Vec<_> = (0..workers)
            .map(|n| format!("{name}.worker_{n}.downstream_cx_active: {each}\n"))
            .collect();
        copies.sort();
        lines.extend(copies);
    }
    lines + "listener.admin.downstream_cx_active: 1\nserver.live: 1\n"
}

#[test]
fn three_hundred_listeners_on_64_workers_are_counted_without_their_copies_names() {
    let lines = lines(300, 64, 2);
    assert!(lines.len() > 1_000_000, "{}", lines.len());
    let mut parser = StatsParser::new(NOTHING);
    let mut max = 0;
    for piece in lines.as_bytes().chunks(4096) {
        assert!(parser.push(piece));
        max = max.max(parser.listeners.listeners.len());
    }
    assert_eq!(max, 300);
    assert_eq!(parser.finish().unwrap().open, 300 * (64 * 2 + 1));
}

#[test]
fn names_in_falling_order_take_no_longer() {
    // One insertion each at the front of a sorted list took 1.7 s for 24,000.
    let lines: Vec<_> = (0..100_000).rev().map(|n| format!("{n:06} cx 1")).collect();
    let gauges: Vec<_> = lines.iter().map(String::as_str).collect();
    let (listeners, is_unclear) = added(&gauges);
    assert_eq!((listeners.len(), is_unclear), (100_000, false));
    assert!(listeners.is_sorted_by_key(|listener| listener.name.clone()));
}

#[test]
fn excluded_copies_are_summed_wherever_they_stand() {
    let names = ["a.worker_0".to_owned()];
    let mut sums = ListenerGauges::new(Exclusions { names: &names, ignored_suffixes: &[] });
    for (name, value) in [("a.worker_0", 1), ("b", 1), ("a.worker_0", 2)] {
        sums.add_cx(name.as_bytes(), value);
    }
    let (listeners, _) = sums.finish();
    let of_threads: Vec<_> =
        listeners.iter().map(|l| (l.of_threads, l.of_excluded_threads)).collect();
    assert_eq!(of_threads, [(3, 3), (0, 0)], "what is excluded would be waited for");
}
