//! Whole drains of a real Envoy: what holds them and what ends them.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::prelude::*;

/// A client of any kind, whose connection closes when it is dropped.
type AnyClient = Box<dyn std::fmt::Debug>;

const KINDS: [&str; 4] = ["http", "http2", "tcp", "tls"];

fn with_each_listener() -> Envoy {
    let builder = Envoy::builder().http("http").http("http2").tcp("tcp").tls_inspector("tls");
    builder.stats_listener().start()
}

/// Opens a connection to the listener of that name, and waits until Envoy counts it.
fn open(envoy: &Envoy, kind: &str) -> AnyClient {
    let port = envoy.port(kind);
    match kind {
        "http2" => Box::new(Http2::open(port)),
        "tcp" => {
            let client = Connection::open(port);
            assert!(client.echoes());
            Box::new(client)
        }
        "tls" => {
            let client = Connection::open(port);
            envoy.wait_stat("listener.tls.downstream_pre_cx_active", 1);
            Box::new(client)
        }
        _ => Box::new(KeptAlive::open(port)),
    }
}

#[test]
fn the_drain_waits_for_a_kept_alive_connection_at_each_kind_of_admin_address() {
    for builder in each_admin_kind() {
        let envoy = builder.http("http").start();
        let sidecar = Sidecar::builder().beside(&envoy).arg("--check-delay=200ms").start();
        let client = KeptAlive::open(envoy.port("http"));
        let waiters = [(); 5].map(|()| sidecar.control().start_get("/shutdown"));
        wait_status(&sidecar, |status| status.phase() == IDLE && status.envoy_hooks() == 5);
        assert_eq!(envoy.ready(), "LIVE");
        let mut hook = sidecar.hook(&[]);
        assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
        assert!(waiters.iter().all(Connection::is_waiting));
        drop(client);
        assert_exits(&mut hook, 0, NONE_OPEN);
        assert!(
            waiters.iter().all(Connection::is_answered),
            "the hook ended before a waiter's response"
        );
        for waiter in &waiters {
            assert_eq!(waiter.response(), OK);
        }
        let counted = |open| counted(open).with("drain", 1).with("threshold_connections", 0);
        let expected = [
            logged(DRAIN_STARTED).with("drain", 1),
            logged(OUT_OF_SERVICE).with("drain", 1),
            counted(1),
            counted(0),
            outcome("drained").with("drain", 1),
        ];
        assert_logged(&sidecar, &expected);
        assert_eq!(envoy.ready(), "DRAINING");
    }
}

#[test]
fn every_waiter_is_answered_before_any_hook() {
    let envoy = Envoy::builder().tcp("tcp").start();
    let sidecar = Sidecar::beside(&envoy);
    let client = open(&envoy, "tcp");
    assert_eq!(sidecar.control().request("POST", "/drain"), (200, "started 1\n"));
    wait_open_connections(&sidecar, 1);
    // The first to wait would be the first to wake.
    let hook = sidecar.control().start_get("/shutdown?drain=1");
    let waiters: Vec<_> = (0..50).map(|_| sidecar.control().start_get("/shutdown")).collect();
    wait_envoy_hooks(&sidecar, 50);
    assert!(hook.is_waiting());
    drop(client);
    let start = Instant::now();
    while hook.is_waiting() {
        assert!(start.elapsed() < PATIENCE, "the hook has no response");
    }
    let late = waiters.iter().filter(|waiter| !waiter.is_answered()).count();
    assert_eq!(late, 0, "waiters without a response when the hook had its own");
    assert_eq!(hook.response(), (200, format!("drained\n{NONE_OPEN}\n")));
}

#[test]
fn the_drain_waits_for_each_kind_of_connection() {
    for kind in KINDS {
        let envoy = with_each_listener();
        let sidecar = Sidecar::beside(&envoy);
        let client = open(&envoy, kind);
        let mut hook = sidecar.hook(&[]);
        assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
        drop(client);
        assert_exits(&mut hook, 0, NONE_OPEN);
    }
}

#[test]
fn connections_of_all_kinds_add_up() {
    let envoy = with_each_listener();
    let sidecar = Sidecar::beside(&envoy);
    let silent = open(&envoy, "tls");
    let kinds = ["http", "http", "http2", "tcp", "tcp", "tcp"];
    let mut clients: Vec<_> = kinds.map(|kind| open(&envoy, kind)).into();
    clients.push(silent);
    let mut hook = sidecar.hook(&[]);
    let mut count = 7;
    while let Some(client) = clients.pop() {
        assert_drain_waits(&sidecar, &mut hook, &envoy, count);
        drop(client);
        count -= 1;
    }
    assert_exits(&mut hook, 0, NONE_OPEN);
}

#[test]
fn the_drain_does_not_wait_for_a_scrape() {
    let envoy = with_each_listener();
    let sidecar = Sidecar::beside(&envoy);
    let scrape = KeptAlive::open(envoy.port("stats"));
    let client = open(&envoy, "http");
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert_eq!(envoy.stat("http.stats.downstream_cx_active"), Some(1));
    assert!(!scrape.peer_closed_within(Duration::ZERO));
}

#[test]
fn the_drain_waits_for_no_excluded_listener_and_for_any_other() {
    for name in ["tcp", "http2"] {
        for is_excluded in [true, false] {
            let envoy = with_each_listener();
            let sidecar = Sidecar::beside(&envoy);
            let (client, other) = (open(&envoy, "http"), open(&envoy, name));
            let exclude = format!("--exclude={}", if is_excluded { name } else { "other" });
            let mut hook = sidecar.hook(&[&exclude]);
            assert_drain_waits(&sidecar, &mut hook, &envoy, if is_excluded { 1 } else { 2 });
            drop(client);
            if is_excluded {
                assert_exits(&mut hook, 0, NONE_OPEN);
                let gauge = format!("listener.{name}.downstream_cx_active");
                assert_eq!(envoy.stat(&gauge), Some(1));
            } else {
                assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
                drop(other);
                assert_exits(&mut hook, 0, NONE_OPEN);
            }
        }
    }
}

#[test]
fn the_hooks_threshold_replaces_the_sidecars() {
    let envoy = with_each_listener();
    let sidecar = Sidecar::builder().beside(&envoy).arg("--min-open-connections=5").start();
    let mut clients = ["http", "tcp", "http2"].map(|kind| Some(open(&envoy, kind)));
    let mut hook = sidecar.hook(&["--min-open-connections=2"]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 3);
    wait_status(&sidecar, |status| status.threshold_connections() == 2);
    clients[0] = None;
    assert_exits(&mut hook, 0, "drained: 2 open, within the threshold");
    let started = logged(DRAIN_STARTED).with("requested", "min-open-connections=2");
    assert_logged(&sidecar, &[started, outcome("drained")]);
    wait_status(&sidecar, |status| status.phase() == ENDED && status.open_connections() == Some(2));
}

#[test]
fn envoy_stays_in_service_for_the_drain_delay() {
    let envoy = Envoy::builder().start();
    let proxy = AdminProxy::unix(envoy.admin());
    let sidecar = Sidecar::beside(&proxy);
    let start = Instant::now();
    let mut hook = sidecar.hook(&["--drain-delay=1s"]);
    wait_phase(&sidecar, DRAIN_DELAY);
    assert_eq!(envoy.ready(), "LIVE");
    assert_eq!(sidecar.status().phase(), DRAIN_DELAY, "it was LIVE too late");
    hook.assert_running();
    assert_exits(&mut hook, 0, NONE_OPEN);
    let failed = proxy.wait_for("POST /healthcheck/fail ");
    assert!(failed - start >= Duration::from_secs(1), "{:?}", failed - start);
    assert_eq!(envoy.ready(), "DRAINING");
}

#[test]
fn a_count_in_the_check_delay_ends_no_drain() {
    let envoy = Envoy::builder().start();
    let sidecar = Sidecar::builder().beside(&envoy).arg("--check-delay=1h").start();
    let mut hook = sidecar.hook(&["--check-delay=1s"]);
    wait_status(&sidecar, |status| {
        status.phase() == CHECK_DELAY && status.open_connections() == Some(0)
    });
    assert_eq!(envoy.ready(), "DRAINING");
    hook.assert_running();
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert_took("the drain", hook.wait().took, 1.0..3.0);
}

#[test]
fn of_an_envoy_that_ends_in_the_check_delay_the_outcome_says_what_was_cut() {
    let mut admin = FakeAdmin::unix();
    admin.set_open(2);
    let sidecar = Sidecar::builder().beside(&admin).arg("--check-delay=1h").start();
    let mut hook = sidecar.hook(&[]);
    wait_status(&sidecar, |status| {
        status.phase() == CHECK_DELAY && status.open_connections() == Some(2)
    });
    admin.refuse();
    assert_exits(&mut hook, 0, "Envoy is gone");
    let gone = outcome("envoy_gone").with("level", "warn").with("open_connections", 2);
    sidecar.wait_log(gone);
}

#[test]
fn the_drain_gives_up_at_its_timeout() {
    let (envoy, files) = (with_each_listener(), temp_dir("ready"));
    let ready = files.path().join("ready");
    let sidecar =
        Sidecar::builder().beside(&envoy).arg(format!("--ready-file={}", ready.display())).start();
    let clients = ["http", "tcp"].map(|kind| open(&envoy, kind));
    let waiter = sidecar.control().start_get("/shutdown");
    let mut hook = sidecar.hook(&["--drain-timeout=1500ms"]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 2);
    let sentence = "gave up at the drain timeout: 2 open at the last poll";
    assert_exits(&mut hook, 1, sentence);
    let took = hook.wait().took;
    assert_took("the hook", took, 1.5..4.0);
    assert_eq!(waiter.response(), (200, format!("{sentence}\n")));
    sidecar.wait_log(outcome("timed_out").with("level", "warn"));
    wait_status(&sidecar, |status| {
        status.phase() == ENDED && status.outcome() == Some("timed_out")
    });
    assert!(!ready.exists(), "it is not ready");
    drop(clients);
}

#[test]
fn the_ready_file_is_there_when_the_drain_has_ended_and_not_before() {
    let (envoy, files) = (with_each_listener(), temp_dir("ready"));
    let ready = files.path().join("ready");
    fs::write(&ready, "stale").expect("write");
    let sidecar =
        Sidecar::builder().beside(&envoy).arg(format!("--ready-file={}", ready.display())).start();
    wait_until("the stale file to go", || !ready.exists());
    let client = open(&envoy, "http");
    fs::write(&ready, "stale").expect("write");
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    assert!(!ready.exists(), "ready with a connection open");
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert_eq!(fs::read(&ready).expect("the ready file"), b"");
}

#[test]
fn a_second_hook_joins_the_drain_of_the_first() {
    let envoy = with_each_listener();
    let sidecar = Sidecar::beside(&envoy);
    let client = open(&envoy, "http");
    let mut first = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut first, &envoy, 1);
    let mut second = sidecar.hook(&["--min-open-connections=9"]);
    // As the kubelet runs a hook again.
    let same = sidecar.hook(&[]);
    let joined = logged(DRAIN_JOINED).with("drain", 1).with("phase", WAITING_FOR_CONNECTIONS);
    let ignored = "min-open-connections=9 (drain: 0)";
    sidecar.wait_log(joined.with("ignored", ignored));
    second.wait_line("joined drain 1, in progress for ");
    second.wait_line(&format!(", phase {WAITING_FOR_CONNECTIONS}; ignored options: {ignored}"));
    same.wait_line(", phase waiting_for_connections; ignored options: none");
    assert!(!first.report().contains("joined"), "{}", first.report());
    let before = sidecar.metric("polls_total");
    wait_value("another poll", || sidecar.metric("polls_total"), |n| *n > before);
    for hook in [&mut first, &mut second] {
        assert_drain_waits(&sidecar, hook, &envoy, 1);
    }
    drop(client);
    for hook in [&mut first, &mut second] {
        assert_exits(hook, 0, NONE_OPEN);
    }
    let (first, second) = (first.wait().at, second.wait().at);
    let apart = first.max(second) - first.min(second);
    assert_took("one after the other", apart, 0.0..0.5);
}

#[test]
fn a_drain_continues_when_its_hook_is_killed_and_another_hook_joins_it() {
    let envoy = with_each_listener();
    let sidecar = Sidecar::beside(&envoy);
    let client = open(&envoy, "http");
    let mut killed = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut killed, &envoy, 1);
    killed.kill();
    let polls = || sidecar.metric("polls_total");
    let before = polls();
    wait_value("two polls more", polls, |n| *n >= before + 2);
    let mut hook = sidecar.hook(&[]);
    sidecar.wait_log(DRAIN_JOINED);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    wait_status(&sidecar, |status| status.phase() == ENDED && status.drain() == 1);
}

#[test]
fn a_hook_after_the_end_returns_the_outcome_at_once_while_that_holds() {
    let envoy = with_each_listener();
    // A drain from the beginning would take an hour.
    let sidecar = Sidecar::builder().beside(&envoy).start();
    assert_exits(&mut sidecar.hook(&[]), 0, NONE_OPEN);
    let mut late = sidecar.hook(&["--check-delay=1h"]);
    assert_exits(&mut late, 0, NONE_OPEN);
    assert_took("the hook", late.wait().took, 0.0..1.0);
    sidecar.assert_times_logged(outcome("drained"), 2);
    sidecar.assert_times_logged(OUT_OF_SERVICE, 1);
    wait_status(&sidecar, |status| status.phase() == ENDED && status.drain() == 2);
}
