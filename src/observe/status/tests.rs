use super::*;

fn serving() -> Snapshot {
    Snapshot {
        phase: Phase::Serving,
        drain: 0,
        open: None,
        threshold: 0,
        elapsed: None,
        last: None,
        last_error: None,
        visible: StatsCoverage::Everything,
        waiters: 0,
        counters: Counters::default(),
        admin_address: "/admin/admin.sock".to_owned(),
        working: true,
    }
}

fn draining() -> Snapshot {
    Snapshot {
        phase: Phase::Draining,
        drain: 2,
        open: Some(3),
        threshold: 1,
        elapsed: Some(Duration::from_millis(72_345)),
        last: Some(ended(Outcome::TimedOut { open: Some(9) })),
        last_error: Some("GET /stats on \"x\": no".to_owned()),
        visible: StatsCoverage::HttpOnly,
        waiters: 1,
        counters: Counters {
            polls: 7,
            poll_errors: [1, 2, 3, 4, 5, 6, 8],
            drains: [10, 11, 12, 13],
            requests: [
                [20, 0, 0, 21, 0, 0, 0, 0, 0, 22],
                [0; 10],
                [0; 10],
                [0, 0, 23, 0, 0, 0, 0, 0, 0, 0],
            ],
            refused: 30,
        },
        ..serving()
    }
}

fn ended(outcome: Outcome) -> Ended {
    Ended { number: 1, outcome, threshold: 0, took: Duration::from_millis(61_007) }
}

#[test]
fn json_has_null_for_what_is_not_known() {
    assert_eq!(
        serving().json(),
        format!(
            "{{\"version\":\"{VERSION}\",\"phase\":\"serving\",\"drain\":0,\"open_connections\":null,\
             \"threshold\":0,\"elapsed_seconds\":null,\"waiters\":0,\"last_error\":null,\
             \"not_counted\":null,\"outcome\":null,\"admin_address\":\"/admin/admin.sock\",\
             \"working\":true}}\n"
        )
    );
}

#[test]
fn json_shows_the_drain_and_the_last_outcome() {
    let json = draining().json();
    for part in [
        "\"phase\":\"draining\",\"drain\":2,\"open_connections\":3,\"threshold\":1,\"elapsed_seconds\":72.345,\"waiters\":1,",
        "\"last_error\":\"GET /stats on \\\"x\\\": no\",",
        "\"outcome\":{\"drain\":1,\"outcome\":\"timed_out\",\"explanation\":\"gave up at the drain timeout: 9 open at the last poll\",\"took_seconds\":61.007},",
        "stats_config",
    ] {
        assert!(json.contains(part), "{part} in {json}");
    }
}

#[test]
fn open_connections_are_those_of_the_end_once_it_has_come() {
    for (outcome, open) in [
        (Outcome::Drained { open: 2 }, Some(2)),
        (Outcome::TimedOut { open: Some(4) }, Some(4)),
        (Outcome::TimedOut { open: None }, None),
        (Outcome::EnvoyGone, Some(0)),
    ] {
        let snapshot = Snapshot { phase: Phase::Ended, last: Some(ended(outcome)), ..serving() };
        assert_eq!(snapshot.open_connections(), open, "{outcome:?}");
        let later = Snapshot { phase: Phase::Serving, ..snapshot };
        assert_eq!(later.open_connections(), None, "not known any more");
    }
}

#[test]
fn the_line_tells_a_waiting_hook_what_it_waits_for() {
    assert_eq!(
        draining().line(),
        "draining, 3 open, 1 may be, 1 waiting; GET /stats on \"x\": no\n"
    );
    let settling = Snapshot {
        phase: Phase::Settling,
        open: None,
        elapsed: Some(Duration::from_millis(250)),
        last_error: None,
        waiters: 0,
        ..draining()
    };
    assert_eq!(settling.line(), "settling, open connections not counted yet\n");
}

#[test]
fn the_page_is_short_where_nothing_happens() {
    assert_eq!(
        serving().page(),
        "phase:       serving (no drain)\nwaiting:     0\nenvoy:       /admin/admin.sock\n"
    );
    let page = draining().page();
    for row in [
        "phase:       draining (drain 2, for 1m12s)\n",
        "connections: 3 open, 1 may be\n",
        "waiting:     1\n",
        "last drain:  drain 1, 1m1s: gave up at the drain timeout: 9 open at the last poll\n",
        "last error:  GET /stats on \"x\": no\n",
        "not counted: Envoy's stats_config",
    ] {
        assert!(page.contains(row), "{row} in {page}");
    }
    let ended = Snapshot { phase: Phase::Ended, drain: 1, elapsed: None, ..draining() };
    assert!(ended.page().starts_with("phase:       ended (drain 1)\nconnections: 9 open"));
    let down = Snapshot { working: false, ..serving() };
    assert!(down.page().contains("worker:      down"));
}

/// The samples and their values, after checking the format: a HELP and a TYPE before each family,
/// and no family twice.
fn samples(text: &str) -> Vec<(&str, f64)> {
    let mut samples = Vec::new();
    let (mut family, mut seen) = ("", Vec::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split(' ').next().unwrap();
            assert!(!seen.contains(&family), "{family} twice");
            seen.push(family);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, family);
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert_eq!(name.split('{').next(), Some(family));
            samples.push((name, value.parse().unwrap()));
        }
    }
    samples
}

#[test]
fn metrics_follow_the_format_and_say_what_is() {
    let text = draining().metrics();
    let samples = samples(&text);
    for (name, value) in [
        ("envoy_shutdown_phase{phase=\"draining\"}", 1.0),
        ("envoy_shutdown_phase{phase=\"serving\"}", 0.0),
        ("envoy_shutdown_open_connections", 3.0),
        ("envoy_shutdown_threshold_connections", 1.0),
        ("envoy_shutdown_drain_duration_seconds", 72.345),
        ("envoy_shutdown_polls_total", 7.0),
        ("envoy_shutdown_poll_errors_total{kind=\"refused\"}", 1.0),
        ("envoy_shutdown_poll_errors_total{kind=\"content\"}", 6.0),
        ("envoy_shutdown_poll_errors_total{kind=\"other\"}", 8.0),
        ("envoy_shutdown_drains_total{outcome=\"drained\"}", 10.0),
        ("envoy_shutdown_drains_total{outcome=\"envoy_gone\"}", 12.0),
        ("envoy_shutdown_drains_total{outcome=\"no_envoy_hook\"}", 13.0),
        ("envoy_shutdown_waiters", 1.0),
        ("envoy_shutdown_requests_total{route=\"healthz\",code=\"200\"}", 20.0),
        ("envoy_shutdown_requests_total{route=\"healthz\",code=\"405\"}", 21.0),
        ("envoy_shutdown_requests_total{route=\"healthz\",code=\"503\"}", 22.0),
        ("envoy_shutdown_requests_total{route=\"shutdown\",code=\"200\"}", 0.0),
        ("envoy_shutdown_requests_total{route=\"none\",code=\"404\"}", 23.0),
        ("envoy_shutdown_refused_total", 30.0),
    ] {
        assert!(samples.contains(&(name, value)), "{name} {value} in {text}");
    }
    let info = format!("envoy_shutdown_build_info{{version=\"{VERSION}\"}}");
    assert!(samples.contains(&(info.as_str(), 1.0)));
    let phases: f64 =
        samples.iter().filter(|(name, _)| name.contains("_phase{")).map(|s| s.1).sum();
    assert_eq!(phases, 1.0, "one phase at a time");
    let requests = samples.iter().filter(|(name, _)| name.contains("_requests_total{")).count();
    assert_eq!(requests, 6, "what there never was is left out");
}

#[test]
fn metrics_leave_out_what_is_not_known() {
    let text = serving().metrics();
    let samples = samples(&text);
    for name in ["open_connections", "drain_duration_seconds"] {
        let name = format!("envoy_shutdown_{name}");
        assert!(!samples.iter().any(|(sample, _)| *sample == name), "{name} in {text}");
    }
}

#[test]
fn every_route_and_status_has_its_place() {
    for (index, route) in PublicRoute::ALL.into_iter().enumerate() {
        assert_eq!(route as usize, index, "{}", route.name());
    }
    for (index, status) in Status::ALL.into_iter().enumerate() {
        assert_eq!(status as usize, index, "{}", status.code());
    }
}

#[test]
fn every_kind_of_fault_has_its_place() {
    for (index, kind) in AdminErrorKind::ALL.into_iter().enumerate() {
        assert_eq!(kind as usize, index, "{}", kind.name());
    }
}

#[test]
fn a_person_is_told_whole_seconds_or_else_milliseconds() {
    let told = [0, 999, 1000, 1999, 61_007].map(|millis| whole(Duration::from_millis(millis)));
    assert_eq!(told, ["0s", "999ms", "1s", "1s", "1m1s"]);
}
