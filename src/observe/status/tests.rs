use super::*;
use crate::drain::Outcome;
use crate::envoy::Call;
use crate::envoy::HiddenListeners;
use crate::envoy::stats::StatsCoverage;

pub fn idle() -> Snapshot {
    Snapshot {
        phase: Phase::Idle,
        drain: 0,
        open: None,
        threshold: 0,
        elapsed: None,
        last: None,
        envoy_hooks: 0,
        counters: Counters::default(),
        admin_address: "/admin/admin.sock".to_owned(),
        worker_running: true,
    }
}

pub fn draining() -> Snapshot {
    Snapshot {
        phase: Phase::WaitingForConnections,
        drain: 2,
        open: Some(3),
        threshold: 1,
        elapsed: Some(Duration::from_millis(72_345)),
        last: Some(ended(Outcome::timed_out(Some(9)))),
        envoy_hooks: 1,
        counters: Counters {
            polls: 7,
            poll_errors: [1, 2, 3, 4, 5, 6, 8],
            drains: [10, 11, 12, 13],
            requests: [
                [20, 0, 0, 21, 0, 0, 0, 0, 0, 0, 22],
                [0; 11],
                [0; 11],
                [0, 0, 23, 0, 0, 0, 0, 0, 0, 0, 0],
            ],
            connections_rejected: 30,
            error: Some((Call::ReadStats, "GET /stats on \"x\": no".to_owned())),
            coverage: StatsCoverage::HttpOnly,
            hidden: HiddenListeners::default(),
        },
        ..idle()
    }
}

fn ended(outcome: Outcome) -> Ended {
    Ended {
        number: 1,
        outcome,
        threshold: 0,
        envoy_hook: true,
        took: Duration::from_millis(61_007),
    }
}

#[test]
fn json_has_null_for_what_is_not_known() {
    assert_eq!(
        idle().json(),
        format!(
            "{{\"version\":\"{VERSION}\",\"phase\":\"idle\",\"drain\":0,\"open_connections\":null,\
             \"threshold_connections\":0,\"elapsed_seconds\":null,\"envoy_hooks\":0,\"last_error\":null,\
             \"stats_hidden\":null,\"last_drain\":null,\"admin_address\":\"/admin/admin.sock\",\
             \"worker_running\":true}}\n"
        )
    );
}

#[test]
fn no_time_elapses_where_no_drain_is_in_progress_also_after_one() {
    for (phase, last) in [
        (Phase::Idle, None),
        (Phase::Idle, Some(ended(Outcome::drained(0)))),
        (Phase::Ended, Some(ended(Outcome::drained(0)))),
        (Phase::Ended, Some(ended(Outcome::timed_out(Some(4))))),
    ] {
        let snapshot = Snapshot { phase, last, ..idle() };
        let json: serde_json::Value = serde_json::from_str(&snapshot.json()).unwrap();
        let elapsed = &json["elapsed_seconds"];
        assert!(elapsed.is_null(), "{elapsed} elapse in {phase:?}, where {}", json["last_drain"]);
        assert!(
            !snapshot.page(PageStyle::default()).contains(", for "),
            "{}",
            snapshot.page(PageStyle::default())
        );
    }
}

#[test]
fn json_shows_the_drain_and_the_last_outcome() {
    let json = draining().json();
    for part in [
        "\"phase\":\"waiting_for_connections\",\"drain\":2,\"open_connections\":3,\"threshold_connections\":1,\"elapsed_seconds\":72.345,\"envoy_hooks\":1,",
        "\"last_error\":\"GET /stats on \\\"x\\\": no\",",
        "\"last_drain\":{\"drain\":1,\"outcome\":\"timed_out\",\"explanation\":\"gave up at the drain timeout: 9 open at the last poll\",\"took_seconds\":61.007},",
        "stats_config",
    ] {
        assert!(json.contains(part), "{part} in {json}");
    }
}

#[test]
fn open_connections_are_those_of_the_end_once_it_has_come() {
    for (outcome, open) in [
        (Outcome::drained(2), Some(2)),
        (Outcome::timed_out(Some(4)), Some(4)),
        (Outcome::timed_out(None), None),
        (Outcome::envoy_gone(Some(2)), Some(2)),
    ] {
        let snapshot = Snapshot { phase: Phase::Ended, last: Some(ended(outcome)), ..idle() };
        assert_eq!(snapshot.open_connections(), open, "{outcome:?}");
        let later = Snapshot { phase: Phase::Idle, ..snapshot };
        assert_eq!(later.open_connections(), None, "not known any more");
    }
}

#[test]
fn the_line_shows_a_waiting_hook_what_it_waits_for() {
    assert_eq!(
        draining().line(),
        "waiting_for_connections, 3 open, threshold 1, 1 waiting on /shutdown; GET /stats on \"x\": no\n"
    );
    let delayed = Snapshot {
        phase: Phase::CheckDelay,
        open: None,
        elapsed: Some(Duration::from_millis(250)),
        envoy_hooks: 0,
        counters: Counters::default(),
        ..draining()
    };
    assert_eq!(delayed.line(), "check_delay, open connections not counted yet\n");
}

#[test]
fn the_page_is_short_while_idle() {
    assert_eq!(
        idle().page(PageStyle::default()),
        "phase:       idle (no drain)\nenvoy hooks: 0\nenvoy:       /admin/admin.sock\n"
    );
    let page = draining().page(PageStyle::default());
    for row in [
        "phase:       waiting_for_connections (drain 2, for 1m12s)\n",
        "connections: 3 open, threshold 1\n",
        "envoy hooks: 1\n",
        "last drain:  drain 1, 1m1s: gave up at the drain timeout: 9 open at the last poll\n",
        "last error:  GET /stats on \"x\": no\n",
        "stats hidden: Envoy's stats_config",
    ] {
        assert!(page.contains(row), "{row} in {page}");
    }
    let ended = Snapshot { phase: Phase::Ended, drain: 1, elapsed: None, ..draining() };
    assert!(
        ended
            .page(PageStyle::default())
            .starts_with("phase:       ended (drain 1)\nconnections: 9 open")
    );
    let down = Snapshot { worker_running: false, ..idle() };
    assert!(down.page(PageStyle::default()).contains("worker:      down"));
}

#[test]
fn listeners_that_cannot_be_seen_are_named() {
    let mut snapshot = idle();
    snapshot.counters.hidden =
        HiddenListeners { names: vec!["web".to_owned(), "tls \"x\"".to_owned()], certain: true };
    let text = format!("web, tls \"x\": {}", messages::LISTENERS_WITHOUT_GAUGES);
    assert_eq!(snapshot.stats_hidden().as_ref(), Some(&text));
    assert!(snapshot.page(PageStyle::default()).contains(&format!("stats hidden: {text}\n")));
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

#[test]
fn what_cannot_be_seen_is_escaped_for_people_too() {
    let mut snapshot = draining();
    snapshot.admin_address = "/a\u{202e}b\nphase: x".to_owned();
    snapshot.counters.error = Some((Call::ReadStats, "a\u{1b}[2J\u{2028}b".to_owned()));
    let (page, line) = (snapshot.page(PageStyle::default()), snapshot.line());
    assert!(page.contains("/a\\u202eb\\nphase: x\n"), "{page:?}");
    assert!(page.contains("a\\u001b[2J\\u2028b\n"), "{page:?}");
    assert!(line.ends_with("a\\u001b[2J\\u2028b\n"), "{line:?}");
}
