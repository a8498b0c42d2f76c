//! What is counted before a drain ends as drained.

use std::path::Path;
use std::time::Instant;

use super::waiting_for_one;
use crate::support::prelude::*;

/// The name in the stats of the scripted scrape listener.
const SCRAPES: &str = "listener.0.0.0.0_8002.downstream_cx_active";
const SCRAPES_HTTP: &str = "http.stats.downstream_cx_active";

/// A poll in which a scrape was counted, closed, and then not added: it hides the one connection.
fn lying_poll() -> Fault {
    let gauges = [
        (SCRAPES_HTTP, 1),
        ("http.admin.downstream_cx_active", 1),
        (SCRAPES, 0),
        (OPEN, 1),
        ("listener.admin.downstream_cx_active", 1),
        ("server.live", 0),
    ];
    Fault::Body(gauges.map(|(name, value)| format!("{name}: {value}\n")).concat())
}

#[test]
fn a_poll_that_lies_ends_no_drain() {
    let admin = FakeAdmin::unix();
    let (sidecar, mut hook) = waiting_for_one(&admin);
    for lies in [1, 2, 3] {
        let polls = admin.count(Route::Stats);
        admin.fault_times(Route::Stats, lies, lying_poll());
        admin.wait_for(Route::Stats, polls + lies + 3);
        hook.assert_running();
    }
    assert_eq!(sidecar.status().open_connections(), Some(1));
    sidecar.assert_times_logged(counted(0), 0);
    finish_drain(&admin, &mut hook);
}

#[test]
fn four_polls_with_pauses_between_end_a_drain_while_scrapes_are_open() {
    let admin = FakeAdmin::unix();
    admin.set_open(1);
    admin.set_stat(SCRAPES, 1);
    admin.set_stat(SCRAPES_HTTP, 1);
    let sidecar = Sidecar::builder().beside(&admin).arg("--check-interval=2s").start();
    let mut hook = sidecar.hook(&[]);
    wait_open_connections(&sidecar, 1);
    let polls = admin.count(Route::Stats);
    admin.set_open(0);
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert_eq!(admin.count(Route::Stats) - polls, 4);
    let first = admin.wait_for(Route::Stats, polls + 1);
    // The pauses take 35 ms.
    assert_took("the confirmation", hook.wait().at - first, 0.035..1.0);
}

#[test]
fn a_hidden_listener_is_named_and_its_connections_are_waited_for() {
    let http = || Envoy::builder().http("web").hidden();
    let tcp = || Envoy::builder().tcp("web").hidden();
    let rows = named([("HTTP", http as fn() -> Builder), ("TCP", tcp)]);
    for_each_case_with_envoy(rows, |name, builder| {
        let envoy = builder().bootstrap("stats_flush_interval: 0.5s").start();
        let sidecar = Sidecar::beside(&envoy);
        let client = Connection::open(envoy.port("web"));
        if name == "HTTP" {
            client.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
            assert_eq!(client.response().status, 200);
        } else {
            assert!(client.echoes());
        }
        let mut hook = sidecar.hook(&[]);
        // Envoy's gauges alone would have ended it here.
        sidecar.wait_log(logged(LISTENERS_WITHOUT_GAUGES).with("listeners", "web"));
        wait_open_connections(&sidecar, 1);
        hook.assert_running();
        drop(client);
        let closed = Instant::now();
        assert_exits(&mut hook, 0, NONE_OPEN);
        assert_took(name, hook.wait().at - closed, 0.0..4.0);
        sidecar.wait_log(outcome("drained").with("listeners_without_gauges", "web"));
    });
}

#[test]
fn a_scrape_of_an_excluded_listener_that_is_hidden_takes_no_other_connection_off() {
    // Its HTTP gauges show. It has its address for a name, and any port.
    let config =
        "stats_matcher: { exclusion_list: { patterns: [{ prefix: listener.127.0.0.1_0. }] } }";
    let rows = named([("connections", ()), ("requests", ())]);
    for_each_case_with_envoy(rows, |wait_for, ()| {
        let envoy = Envoy::builder().tcp("web").http_at("stats", 0).stats_config(config);
        let envoy = envoy.bootstrap("stats_flush_interval: 0.5s").start();
        let excluded = format!("--exclude=127.0.0.1_{}", envoy.port("stats"));
        let options = [excluded, format!("--wait-for={wait_for}")];
        let sidecar = Sidecar::builder().beside(&envoy).args(options).start();
        let (client, scrape) = (connect_to(&envoy, "web"), KeptAlive::open(envoy.port("stats")));
        envoy.wait_stat("http.stats.downstream_cx_active", 1);
        let mut hook = sidecar.hook(&[]);
        sidecar.wait_log(logged(UNCOUNTED_WITHOUT_GAUGES).with("listeners", "stats"));
        let polls = sidecar.metric("polls_total");
        wait_until("ten polls more", || {
            hook.assert_running();
            sidecar.metric("polls_total") >= polls + 10
        });
        assert!(client.echoes());
        drop((client, scrape));
        assert_exits(&mut hook, 0, "drained");
    });
}

#[test]
fn a_drain_with_a_hidden_listener_that_nothing_counts_does_not_end_as_drained() {
    let config = r#"stats_matcher: { inclusion_list: { patterns: [
        { prefix: "listener.admin." }, { prefix: "http." }] } }"#;
    let envoy = Envoy::builder().tcp("web").stats_config(config).start();
    let sidecar = Sidecar::builder().beside(&envoy).arg("--drain-timeout=1s").start();
    let mut hook = sidecar.hook(&[]);
    assert_exits(&mut hook, 1, "gave up at the drain timeout");
    sidecar.wait_log(logged(LISTENERS_WITHOUT_GAUGES).with("listeners", "web"));
}

#[test]
fn listeners_that_no_client_has_used_are_not_reported_as_hidden() {
    let envoy = Envoy::builder().http("a").tcp("b").tls_inspector("c").start();
    let sidecar = Sidecar::beside(&envoy);
    let client = connect_to(&envoy, "b");
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    for message in
        [LISTENERS_WITHOUT_GAUGES, LISTENERS_PERHAPS_WITHOUT_GAUGES, LISTENERS_NOT_COMPARED]
    {
        sidecar.assert_not_logged(message);
    }
}

fn connect_to(envoy: &Envoy, listener: &str) -> Connection {
    let client = Connection::open(envoy.port(listener));
    assert!(client.echoes());
    client
}

#[test]
fn an_admin_interface_that_does_not_list_its_listeners_holds_no_drain_and_is_reported() {
    let admin = FakeAdmin::unix();
    admin.fault(Route::Listing, Fault::Status(403));
    // A scrape of a listener that has no gauges, so that it is in no sum.
    admin.set_stat(SCRAPES_HTTP, 1);
    let (sidecar, mut hook) = waiting_for_one(&admin);
    sidecar.wait_log(logged(LISTENERS_NOT_COMPARED).with("level", "warn"));
    let polls = admin.count(Route::Stats);
    admin.wait_for(Route::Stats, polls + 5);
    hook.assert_running();
    admin.set_stat(SCRAPES_HTTP, 0);
    finish_drain(&admin, &mut hook);
}

#[test]
fn during_a_hot_restart_the_old_processs_connections_are_waited_for() {
    if !Path::new("/dev/shm").is_dir() {
        return println!("SKIPPED: no shared memory here");
    }
    let listeners =
        || Envoy::builder().http("http").tcp("tcp").bootstrap("stats_flush_interval: 0.5s");
    let old = listeners().hot_restartable().start();
    let (http, tcp) = (KeptAlive::open(old.port("http")), connect(&old));
    let new = old.hot_restart(listeners());
    let sidecar = Sidecar::beside(&new);
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &new, 2);
    drop(http);
    assert_drain_waits(&sidecar, &mut hook, &new, 1);
    assert!(tcp.echoes());
    drop(tcp);
    let closed = Instant::now();
    assert_exits(&mut hook, 0, NONE_OPEN);
    // The count is one flush old at most.
    assert_took("the end", hook.wait().at - closed, 0.0..2.0);
}

#[test]
fn the_gauges_of_300_listeners_on_64_workers_are_all_counted() {
    let admin = FakeAdmin::unix();
    let (sidecar, mut hook) = waiting_for_one(&admin);
    let before = sidecar.rss_bytes();
    let gauge = |listener: usize, of: &str| {
        format!("listener.10.244.103.217_{}.{of}downstream_cx_active", 10_000 + listener)
    };
    for listener in 0..300 {
        admin.set_stat(&gauge(listener, ""), 0);
        for worker in 0..64 {
            admin.set_stat(&gauge(listener, &format!("worker_{worker}.")), 0);
        }
    }
    // The last of all lines, and one in the middle whose sum alone is there.
    let last = gauge(299, "worker_9.");
    let middle = gauge(150, "");
    admin.set_stat(&last, 1);
    admin.set_stat(&middle, 1);
    wait_open_connections(&sidecar, 3);
    for (gauge, open) in [(OPEN, 2), (&middle, 1)] {
        admin.set_stat(gauge, 0);
        wait_open_connections(&sidecar, open);
        let polls = admin.count(Route::Stats);
        admin.wait_for(Route::Stats, polls + 3);
        hook.assert_running();
    }
    let after = sidecar.rss_bytes();
    if !is_emulated() {
        assert!(after < before + (1 << 20), "from {before} to {after} bytes");
    }
    admin.set_stat(&last, 0);
    assert_exits(&mut hook, 0, NONE_OPEN);
}
