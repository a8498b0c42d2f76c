use super::super::counters::{CallError, EnvoyState, PollDurations};
use super::*;
use crate::drain::Outcome;
use crate::envoy::stats::{Kinds, StatsCoverage};
use crate::envoy::{Call, Health, HiddenStats};

/// The moment of each snapshot: 2023-11-14T22:13:20Z.
const NOW: Timestamp = Timestamp::from_boot(Duration::from_secs(100_000));
const WALL_NOW: Timestamp = Timestamp::from_boot(Duration::from_secs(1_700_000_000));

/// So many milliseconds before it.
pub fn ago(millis: u64) -> Timestamp {
    Timestamp::from_boot(NOW.since_boot() - Duration::from_millis(millis))
}

pub fn idle() -> Snapshot {
    Snapshot {
        now: NOW,
        wall_now: WALL_NOW,
        phase: Phase::Idle,
        phase_since: ago(5_000),
        drain: 0,
        requested: String::new(),
        progress: None,
        threshold: 0,
        wait_for: WaitFor::Connections,
        last: None,
        history: History::default(),
        envoy_hooks: 0,
        exec_hooks: 0,
        counters: Counters::default(),
        admin_address: "/admin/admin.sock".to_owned(),
        worker_running: true,
        injected: None,
    }
}

/// Three are open, of two listeners.
pub fn poll() -> Poll {
    let mut poll = Poll::of(3, Health::Draining);
    poll.breakdown.kinds = Kinds { http: 2, tcp: 1, ..Kinds::default() };
    for (listener, open) in [("0.0.0.0_8080", 1), ("0.0.0.0_8443", 2)] {
        poll.breakdown.listeners.add(listener.as_bytes(), open);
    }
    poll.breakdown.prefixes.add(b"ingress_\"http\"", 2);
    poll.breakdown.requests = Some(1);
    poll
}

pub fn progress() -> Progress {
    let mut accepted = Accepted::default();
    accepted.new = 4;
    (accepted.noticed, accepted.first) = (Some(ago(20_000)), Some(ago(60_000)));
    accepted.counted = Some(ago(2_500));
    Progress {
        started: ago(72_345),
        out_of_service_since: Some(ago(70_000)),
        last_poll: Some((poll(), ago(2_500))),
        accepted,
        quiet_since: None,
        next: Some((NextStep::Poll, NOW + Duration::from_millis(2_500))),
        gives_up_at: Some(NOW + Duration::from_millis(47_655)),
    }
}

pub fn draining() -> Snapshot {
    let mut history = History::of_drain(ago(72_345));
    for (open, at) in [(6, 60_000), (4, 30_000), (3, 2_500)] {
        history.add(open, ago(at));
    }
    Snapshot {
        phase: Phase::WaitingForConnections,
        phase_since: ago(60_000),
        drain: 2,
        requested: "check-delay=10s".to_owned(),
        progress: Some(progress()),
        threshold: 1,
        last: Some((ended(Outcome::timed_out(Some(9))), ago(600_000))),
        history,
        envoy_hooks: 1,
        exec_hooks: 2,
        counters: Counters {
            polls: 7,
            poll_errors: [1, 2, 3, 4, 5, 6, 8],
            drains: [10, 11, 14, 12, 13],
            requests: [
                [20, 0, 0, 21, 0, 0, 0, 0, 0, 0, 22],
                [0; 11],
                [0; 11],
                [0, 0, 23, 0, 0, 0, 0, 0, 0, 0, 0],
            ],
            connections_rejected: 30,
            error: Some(error("GET /stats on \"x\": no")),
            coverage: StatsCoverage::HttpOnly,
            hidden: HiddenStats::default(),
            envoy: EnvoyState::Draining,
            envoy_seen: Some(ago(1_500)),
            poll_bytes: Some(321),
            poll_durations: PollDurations {
                counts: [2, 1, 0, 2, 1],
                sum: Duration::from_millis(21_500),
            },
            new_connections: 44,
            new_noticed: Some(ago(20_000)),
        },
        ..idle()
    }
}

pub fn error(text: &str) -> CallError {
    CallError { call: Call::ReadStats, text: text.to_owned(), times: 3, at: ago(4_000) }
}

pub fn ended(outcome: Outcome) -> Ended {
    Ended {
        number: 1,
        outcome,
        threshold: 0,
        envoy_hook: true,
        took: Duration::from_millis(61_007),
        last_poll: outcome
            .open
            .map(|open| (Poll::of(open, Health::Draining), Duration::from_millis(1_000))),
        accepted: Accepted::default(),
    }
}

fn parsed(snapshot: &Snapshot) -> serde_json::Value {
    serde_json::from_str(&snapshot.json()).unwrap()
}

#[test]
fn json_has_null_for_what_is_not_known() {
    let json = parsed(&idle());
    let null = [
        "elapsed_seconds",
        "open_connections",
        "open_connections_age_seconds",
        "connections_by_kind",
        "listeners",
        "other_listeners",
        "http_prefixes",
        "holding",
        "quiet_seconds",
        "injected_pressure",
        "new_connections",
        "new_connections_per_second",
        "new_connection_noticed_seconds_ago",
        "next_step",
        "next_step_in_seconds",
        "gives_up_in_seconds",
        "envoy_state_age_seconds",
        "last_error",
        "last_error_age_seconds",
        "stats_hidden",
        "last_drain",
    ];
    for key in null {
        assert!(json.get(key).is_some_and(serde_json::Value::is_null), "{key} in {json}");
    }
    let given = [
        ("version", VERSION.into()),
        ("phase", "idle".into()),
        ("phase_seconds", 5.0.into()),
        ("drain", 0.into()),
        ("threshold_connections", 0.into()),
        ("wait_for", "connections".into()),
        ("envoy_state", "never_seen".into()),
        ("envoy_hooks", 0.into()),
        ("admin_address", "/admin/admin.sock".into()),
        ("worker_running", true.into()),
        ("time_seconds", 1_700_000_000.0.into()),
    ];
    for (key, value) in given {
        let value: serde_json::Value = value;
        assert_eq!(json[key], value, "{key} in {json}");
    }
}

#[test]
fn no_time_elapses_where_no_drain_is_in_progress_also_after_one() {
    for (phase, last) in [
        (Phase::Idle, None),
        (Phase::Idle, Some(ended(Outcome::drained(0)))),
        (Phase::Ended, Some(ended(Outcome::drained(0)))),
        (Phase::Ended, Some(ended(Outcome::timed_out(Some(4))))),
    ] {
        let last = last.map(|ended| (ended, ago(1_000)));
        let snapshot = Snapshot { phase, last, ..idle() };
        let json = parsed(&snapshot);
        let elapsed = &json["elapsed_seconds"];
        assert!(elapsed.is_null(), "{elapsed} elapse in {phase:?}, where {}", json["last_drain"]);
        assert!(json["gives_up_in_seconds"].is_null() && json["next_step"].is_null());
    }
}

#[test]
fn json_shows_the_drain_with_the_age_of_each_figure() {
    let json = parsed(&draining());
    let expected = serde_json::json!({
        "phase": "waiting_for_connections", "phase_seconds": 60.0, "drain": 2,
        "requested": "check-delay=10s", "elapsed_seconds": 72.345,
        "open_connections": 3, "open_connections_age_seconds": 2.5, "threshold_connections": 1,
        "connections_by_kind": {"http": 2, "upgraded": 0, "tcp": 1, "silent": 0, "parent": 0},
        "listeners": [
            {"listener": "0.0.0.0_8443", "open_connections": 2},
            {"listener": "0.0.0.0_8080", "open_connections": 1},
        ],
        "other_listeners": 0, "other_listeners_open_connections": 0,
        "http_prefixes": [{"prefix": "ingress_\"http\"", "open_connections": 2}],
        "requests_in_flight": 1, "udp_sessions": 0,
        "new_connections": 4, "new_connection_noticed_seconds_ago": 20.0,
        "next_step": "poll", "next_step_in_seconds": 2.5, "gives_up_in_seconds": 47.655,
        "envoy_state": "draining", "envoy_state_age_seconds": 1.5,
        "envoy_hooks": 1, "exec_hooks": 2,
        "last_error": "GET /stats on \"x\": no", "last_error_age_seconds": 4.0,
        "last_error_times": 3,
        "last_drain": {
            "drain": 1, "outcome": "timed_out", "open_connections": 9,
            "explanation": "gave up at the drain timeout: 9 open at the last poll",
            "took_seconds": 61.007, "ended_seconds_ago": 600.0,
        },
        "stats_hidden": messages::LISTENERS_HIDDEN,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&json[key], value, "{key}");
    }
}

#[test]
fn json_shows_what_shortens_a_drain() {
    let mut snapshot = Snapshot { wait_for: WaitFor::Requests, injected: Some(7), ..draining() };
    let progress = snapshot.progress.as_mut().unwrap();
    progress.last_poll.as_mut().unwrap().0.in_use = 2;
    progress.quiet_since = Some(ago(1_250));
    let json = parsed(&snapshot);
    for (key, value) in [
        ("open_connections", 3.0),
        ("holding", 2.0),
        ("quiet_seconds", 1.25),
        ("injected_pressure", 0.07),
        ("new_connections_per_second", 0.069),
    ] {
        assert_eq!(json[key].as_f64(), Some(value), "{key} in {json}");
    }
    assert_eq!(json["wait_for"], "requests");
    let line = "waiting_for_connections, 3 open, 2 requests in flight or not HTTP, threshold 1";
    assert!(snapshot.line().starts_with(line), "{}", snapshot.line());
}

#[test]
fn a_count_is_as_old_as_its_poll_also_after_the_end() {
    let last = Some((ended(Outcome::envoy_gone(Some(1))), ago(3_000)));
    let snapshot = Snapshot { phase: Phase::Ended, last, ..idle() };
    let json = parsed(&snapshot);
    assert_eq!(json["open_connections"], 1);
    assert_eq!(json["open_connections_age_seconds"], 4.0, "1 s at the end, 3 s ago");
}

#[test]
fn open_connections_are_those_of_the_end_once_it_has_come() {
    for (outcome, open) in [
        (Outcome::drained(2), Some(2)),
        (Outcome::timed_out(Some(4)), Some(4)),
        (Outcome::timed_out(None), None),
        (Outcome::envoy_gone(Some(2)), Some(2)),
    ] {
        let snapshot =
            Snapshot { phase: Phase::Ended, last: Some((ended(outcome), NOW)), ..idle() };
        assert_eq!(snapshot.count().map(|count| count.open), open, "{outcome:?}");
        let later = Snapshot { phase: Phase::Idle, ..snapshot };
        assert_eq!(later.count().map(|count| count.open), None, "not known any more");
    }
}

#[test]
fn the_line_shows_a_waiting_hook_what_it_waits_for() {
    assert_eq!(
        draining().line(),
        "waiting_for_connections, 3 open, threshold 1, 1 waiting on /shutdown; GET /stats on \"x\": no\n"
    );
    let progress = Some(Progress { last_poll: None, ..progress() });
    let delayed = Snapshot {
        phase: Phase::CheckDelay,
        progress,
        envoy_hooks: 0,
        counters: Counters::default(),
        ..draining()
    };
    assert_eq!(delayed.line(), "check_delay, open connections not counted yet\n");
}

#[test]
fn listeners_that_cannot_be_seen_are_named() {
    let mut snapshot = idle();
    snapshot.counters.hidden = HiddenStats {
        listeners: vec!["web".to_owned(), "tls \"x\"".to_owned()],
        certain: true,
        uncounted: Vec::new(),
        ..HiddenStats::default()
    };
    let text = format!("web, tls \"x\": {}", messages::LISTENERS_WITHOUT_GAUGES);
    assert_eq!(snapshot.stats_hidden().as_ref(), Some(&text));
    let json: serde_json::Value = serde_json::from_str(&snapshot.json()).unwrap();
    assert_eq!(json["stats_hidden"], text);

    snapshot.counters.hidden.certain = false;
    snapshot.counters.coverage = StatsCoverage::ListenersOnly;
    let (http, perhaps) = (messages::HTTP_HIDDEN, messages::LISTENERS_PERHAPS_WITHOUT_GAUGES);
    assert_eq!(snapshot.stats_hidden(), Some(format!("{http}; web, tls \"x\": {perhaps}")));
}

#[test]
fn a_person_reads_whole_seconds_or_else_milliseconds() {
    let texts = [0, 999, 1000, 1999, 61_007].map(|millis| whole(Duration::from_millis(millis)));
    assert_eq!(texts, ["0s", "999ms", "1s", "1s", "1m1s"]);
}
