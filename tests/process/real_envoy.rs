//! Whole drains of a real Envoy: what holds them and what ends them.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::clients::{Http2, KeptAlive, Plain};
use crate::support::envoy::Envoy;
use crate::support::scene::{
    Waiter, admin_kinds, assert_ends, assert_held, assert_told, beside, metric, wait_open,
    wait_status,
};
use crate::support::tap::Tap;
use crate::support::{PATIENCE, assert_took, scene, shared, temp_dir, wait_for};

/// Whatever a client is, dropping it closes its connection.
type Client = Box<dyn std::fmt::Debug>;

const KINDS: [&str; 4] = ["http", "http2", "tcp", "tls"];

fn with_each_listener() -> Envoy {
    let builder = Envoy::builder().http("http").http("http2").tcp("tcp").tls_inspector("tls");
    builder.stats_listener().start()
}

/// Opens a connection to the listener of that name, and waits until Envoy counts it.
fn open(envoy: &Envoy, kind: &str) -> Client {
    let port = envoy.port(kind);
    match kind {
        "http2" => Box::new(Http2::open(port)),
        "tcp" => {
            let client = Plain::open(port);
            assert!(client.echoes());
            Box::new(client)
        }
        "tls" => {
            let client = Plain::open(port);
            envoy.wait_stat("listener.tls.downstream_pre_cx_active", 1);
            Box::new(client)
        }
        _ => Box::new(KeptAlive::open(port)),
    }
}

#[test]
fn a_kept_alive_connection_holds_the_drain_at_each_kind_of_admin_address() {
    let _turn = shared();
    for builder in admin_kinds() {
        let envoy = builder.http("http").start();
        let sidecar = beside(&envoy, &["--check-delay=200ms"]);
        let client = KeptAlive::open(envoy.port("http"));
        let waiters = [(); 5].map(|()| Waiter::new(&sidecar));
        wait_status(&sidecar, &["\"phase\":\"serving\"", "\"waiters\":5,"]);
        assert_eq!(envoy.ready(), "LIVE");
        let mut hook = sidecar.hook(&[]);
        assert_held(&sidecar, &mut hook, &envoy, 1);
        assert!(!waiters.iter().any(Waiter::is_answered));
        drop(client);
        assert_ends(&mut hook, 0, "drained: no connection is open");
        assert!(waiters.iter().all(Waiter::is_answered), "the hook ended before a waiter's answer");
        for waiter in &waiters {
            assert_eq!(waiter.answer(), (200, "OK".to_owned()));
        }
        let course = [
            "msg=\"drain requested\" drain=1",
            "health checks failed: Envoy is out of service",
            "msg=\"open connections\" drain=1 open=1 threshold=0",
            "msg=\"open connections\" drain=1 open=0 threshold=0",
            "msg=\"drained: no connection is open\" drain=1 outcome=drained",
        ];
        assert_told(&sidecar, &course);
        assert_eq!(envoy.ready(), "DRAINING");
    }
}

#[test]
fn every_waiter_is_answered_before_any_hook() {
    let _turn = shared();
    let envoy = Envoy::builder().tcp("tcp").start();
    let sidecar = beside(&envoy, &["--check-interval=20ms"]);
    let client = open(&envoy, "tcp");
    assert_eq!(sidecar.request("POST", "/drain"), (200, "started 1\n".to_owned()));
    wait_open(&sidecar, 1);
    // The first to wait would be the first to wake.
    let hook = Waiter::at(&sidecar, "/shutdown?drain=1");
    let waiters: Vec<_> = (0..50).map(|_| Waiter::new(&sidecar)).collect();
    wait_status(&sidecar, &["\"waiters\":50,"]);
    assert!(!hook.is_answered());
    drop(client);
    let start = Instant::now();
    while !hook.is_answered() {
        assert!(start.elapsed() < PATIENCE, "the hook has no answer");
    }
    let late = waiters.iter().filter(|waiter| !waiter.is_answered()).count();
    assert_eq!(late, 0, "waiters without an answer when the hook had its own");
    let answer = (200, "drained\ndrained: no connection is open\n".to_owned());
    assert_eq!(hook.answer(), answer);
}

#[test]
fn each_kind_of_connection_holds_the_drain() {
    let _turn = shared();
    for kind in KINDS {
        let envoy = with_each_listener();
        let sidecar = beside(&envoy, &[]);
        let client = open(&envoy, kind);
        let mut hook = sidecar.hook(&[]);
        assert_held(&sidecar, &mut hook, &envoy, 1);
        drop(client);
        assert_ends(&mut hook, 0, "drained: no connection is open");
    }
}

#[test]
fn connections_of_all_kinds_add_up() {
    let _turn = shared();
    let envoy = with_each_listener();
    let sidecar = beside(&envoy, &[]);
    let silent = open(&envoy, "tls");
    let kinds = ["http", "http", "http2", "tcp", "tcp", "tcp"];
    let mut clients: Vec<_> = kinds.map(|kind| open(&envoy, kind)).into();
    clients.push(silent);
    let mut hook = sidecar.hook(&[]);
    let mut count = 7;
    while let Some(client) = clients.pop() {
        assert_held(&sidecar, &mut hook, &envoy, count);
        drop(client);
        count -= 1;
    }
    assert_ends(&mut hook, 0, "drained: no connection is open");
}

#[test]
fn a_scrape_does_not_hold_the_drain() {
    let _turn = shared();
    let envoy = with_each_listener();
    let sidecar = beside(&envoy, &[]);
    let scrape = KeptAlive::open(envoy.port("stats"));
    let client = open(&envoy, "http");
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, &envoy, 1);
    drop(client);
    assert_ends(&mut hook, 0, "drained: no connection is open");
    assert_eq!(envoy.stat("http.stats.downstream_cx_active"), Some(1));
    assert!(!scrape.peer_closed_within(Duration::ZERO));
}

#[test]
fn an_excluded_listener_does_not_hold_the_drain_and_any_other_does() {
    let _turn = shared();
    for name in ["tcp", "http2"] {
        for is_excluded in [true, false] {
            let envoy = with_each_listener();
            let sidecar = beside(&envoy, &[]);
            let (client, other) = (open(&envoy, "http"), open(&envoy, name));
            let exclude = format!("--exclude={}", if is_excluded { name } else { "other" });
            let mut hook = sidecar.hook(&[&exclude]);
            assert_held(&sidecar, &mut hook, &envoy, if is_excluded { 1 } else { 2 });
            drop(client);
            if is_excluded {
                assert_ends(&mut hook, 0, "drained: no connection is open");
                let gauge = format!("listener.{name}.downstream_cx_active");
                assert_eq!(envoy.stat(&gauge), Some(1));
            } else {
                assert_held(&sidecar, &mut hook, &envoy, 1);
                drop(other);
                assert_ends(&mut hook, 0, "drained: no connection is open");
            }
        }
    }
}

#[test]
fn the_hooks_threshold_is_in_force_rather_than_the_sidecars() {
    let _turn = shared();
    let envoy = with_each_listener();
    let sidecar = beside(&envoy, &["--min-open-connections=5"]);
    let mut clients = ["http", "tcp", "http2"].map(|kind| Some(open(&envoy, kind)));
    let mut hook = sidecar.hook(&["--min-open-connections=2"]);
    assert_held(&sidecar, &mut hook, &envoy, 3);
    wait_status(&sidecar, &["\"threshold\":2,"]);
    clients[0] = None;
    assert_ends(&mut hook, 0, "drained: 2 open, within the threshold");
    assert_told(&sidecar, &["given=\"min-open-connections=2\"", "outcome=drained"]);
    wait_status(&sidecar, &["\"phase\":\"ended\"", "\"open_connections\":2,"]);
}

#[test]
fn envoy_stays_in_service_for_the_drain_delay() {
    let _turn = shared();
    let envoy = Envoy::builder().start();
    let tap = Tap::unix(envoy.admin());
    let sidecar = scene::before(&tap.address(), &[]);
    let start = Instant::now();
    let mut hook = sidecar.hook(&["--drain-delay=1s"]);
    wait_status(&sidecar, &["\"phase\":\"delaying\""]);
    assert_eq!(envoy.ready(), "LIVE");
    assert!(sidecar.status().contains("\"phase\":\"delaying\""), "it was LIVE too late");
    assert!(hook.running());
    assert_ends(&mut hook, 0, "drained: no connection is open");
    let failed = tap.wait_for(|line| line.starts_with("POST /healthcheck/fail "), PATIENCE);
    assert!(failed - start >= Duration::from_secs(1), "{:?}", failed - start);
    assert_eq!(envoy.ready(), "DRAINING");
}

#[test]
fn nothing_is_counted_before_the_check_delay_has_passed() {
    let _turn = shared();
    let envoy = Envoy::builder().start();
    let tap = Tap::unix(envoy.admin());
    let sidecar = scene::before(&tap.address(), &["--check-delay=1h"]);
    let mut hook = sidecar.hook(&["--check-delay=1s"]);
    wait_status(&sidecar, &["\"phase\":\"settling\"", "\"open_connections\":null,"]);
    assert_eq!(envoy.ready(), "DRAINING");
    assert!(hook.running());
    assert_ends(&mut hook, 0, "drained: no connection is open");
    let requests = tap.requests();
    let (failed, _) = requests.iter().find(|(_, line)| line.contains("/fail ")).expect("a fail");
    let poll = requests.iter().find(|(at, line)| at > failed && line.contains(" /stats?"));
    let (polled, _) = poll.expect("a poll");
    assert!(*polled - *failed >= Duration::from_secs(1), "{:?}", *polled - *failed);
}

#[test]
fn the_drain_is_given_up_at_its_timeout() {
    let _turn = shared();
    let (envoy, files) = (with_each_listener(), temp_dir("ready"));
    let ready = files.path().join("ready");
    let sidecar = beside(&envoy, &[&format!("--ready-file={}", ready.display())]);
    let clients = ["http", "tcp"].map(|kind| open(&envoy, kind));
    let waiter = Waiter::new(&sidecar);
    let mut hook = sidecar.hook(&["--drain-timeout=1500ms"]);
    assert_held(&sidecar, &mut hook, &envoy, 2);
    let sentence = "gave up at the drain timeout: 2 open at the last poll";
    assert_ends(&mut hook, 1, sentence);
    let took = hook.wait(PATIENCE).took;
    assert_took("the hook", took, 1.5..4.0);
    assert_eq!(waiter.answer(), (200, format!("{sentence}\n")));
    assert_told(&sidecar, &["level=warn msg=\"gave up at the drain timeout"]);
    wait_status(&sidecar, &["\"phase\":\"ended\"", "\"outcome\":\"timed_out\""]);
    assert!(!ready.exists(), "it is not ready");
    drop(clients);
}

#[test]
fn the_ready_file_is_there_when_the_drain_has_ended_and_not_before() {
    let _turn = shared();
    let (envoy, files) = (with_each_listener(), temp_dir("ready"));
    let ready = files.path().join("ready");
    fs::write(&ready, "stale").expect("write");
    let sidecar = beside(&envoy, &[&format!("--ready-file={}", ready.display())]);
    wait_for("the stale file to go", PATIENCE, || (!ready.exists()).then_some(()));
    let client = open(&envoy, "http");
    fs::write(&ready, "stale").expect("write");
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, &envoy, 1);
    assert!(!ready.exists(), "ready with a connection open");
    drop(client);
    assert_ends(&mut hook, 0, "drained: no connection is open");
    assert_eq!(fs::read(&ready).expect("the ready file"), b"");
}

#[test]
fn a_second_hook_joins_the_drain_of_the_first() {
    let _turn = shared();
    let envoy = with_each_listener();
    let sidecar = beside(&envoy, &[]);
    let client = open(&envoy, "http");
    let mut first = sidecar.hook(&[]);
    assert_held(&sidecar, &mut first, &envoy, 1);
    let mut second = sidecar.hook(&["--min-open-connections=9"]);
    let joined = "msg=\"a hook has joined the drain, whose options hold\" drain=1 phase=draining \
                  ignored=\"min-open-connections=9\"";
    sidecar.wait_log(joined, PATIENCE);
    let polls = || sidecar.request("GET", "/metrics").1;
    let before = metric(&polls(), "polls_total");
    wait_for("another poll", PATIENCE, || (metric(&polls(), "polls_total") > before).then_some(()));
    for hook in [&mut first, &mut second] {
        assert_held(&sidecar, hook, &envoy, 1);
    }
    drop(client);
    for hook in [&mut first, &mut second] {
        assert_ends(hook, 0, "drained: no connection is open");
    }
    let (first, second) = (first.wait(PATIENCE).at, second.wait(PATIENCE).at);
    let apart = first.max(second) - first.min(second);
    assert_took("one after the other", apart, 0.0..0.5);
}

#[test]
fn a_killed_hooks_drain_goes_on_and_another_hook_joins_it() {
    let _turn = shared();
    let envoy = with_each_listener();
    let sidecar = beside(&envoy, &[]);
    let client = open(&envoy, "http");
    let mut killed = sidecar.hook(&[]);
    assert_held(&sidecar, &mut killed, &envoy, 1);
    killed.kill();
    let polls = || metric(&sidecar.request("GET", "/metrics").1, "polls_total");
    let before = polls();
    wait_for("two polls more", PATIENCE, || (polls() >= before + 2).then_some(()));
    let mut hook = sidecar.hook(&[]);
    sidecar.wait_log("a hook has joined the drain", PATIENCE);
    assert_held(&sidecar, &mut hook, &envoy, 1);
    drop(client);
    assert_ends(&mut hook, 0, "drained: no connection is open");
    wait_status(&sidecar, &["\"phase\":\"ended\",\"drain\":1,"]);
}

#[test]
fn whoever_asks_after_the_end_is_told_of_it_at_once() {
    let _turn = shared();
    let envoy = with_each_listener();
    let sidecar = beside(&envoy, &[]);
    assert_ends(&mut sidecar.hook(&[]), 0, "drained: no connection is open");
    // With a connection open, a drain of its own would not end.
    envoy.post("/healthcheck/ok");
    let _client = open(&envoy, "http");
    let mut late = sidecar.hook(&[]);
    assert_ends(&mut late, 0, "drained: no connection is open");
    let took = late.wait(PATIENCE).took;
    assert_took("the hook", took, 0.0..1.0);
    assert_eq!(Waiter::new(&sidecar).answer(), (200, "OK".to_owned()));
    assert_told(&sidecar, &["outcome=drained", "joined the drain, whose options hold\" drain=1"]);
    wait_status(&sidecar, &["\"phase\":\"ended\",\"drain\":1,"]);
    assert_eq!(envoy.ready(), "LIVE", "nothing was asked of it again");
}
