//! Drains with `--wait-for=requests`: an HTTP connection without a request in flight does not hold them.

use std::ops::RangeInclusive;

use crate::support::prelude::*;

const WAITS_FOR_REQUESTS: &str = "--wait-for=requests";

fn beside(envoy: &impl AsRef<Address>) -> Sidecar {
    Sidecar::builder().beside(envoy).arg(WAITS_FOR_REQUESTS).start()
}

/// Asserts that the hook waits for so many of the open connections and requests.
#[track_caller]
fn assert_held(sidecar: &Sidecar, hook: &mut Hook, open: u64, holding: u64) {
    wait_status(sidecar, |status| {
        status.phase() == WAITING_FOR_CONNECTIONS
            && (status.open_connections(), status.holding()) == (Some(open), Some(holding))
    });
    hook.assert_running();
}

/// Asserts that the hook ends while so many connections are open, and so many of them hold the drain.
#[track_caller]
fn assert_ends(sidecar: &Sidecar, hook: &mut Hook, open: RangeInclusive<u64>, holding: u64) {
    let exit = hook.wait();
    assert!(exit.code == Some(0) && exit.output.contains("drained"), "{exit:?}");
    let status = sidecar.status();
    assert_eq!(status.outcome(), Some("drained"));
    assert_eq!(status.holding(), Some(holding));
    assert!(status.open_connections().is_some_and(|now| open.contains(&now)), "{status:?}");
}

/// Asserts that the drain goes on for many more polls than confirm its end.
#[track_caller]
fn assert_goes_on(sidecar: &Sidecar, hook: &mut Hook) {
    let polls = sidecar.metric("polls_total");
    wait_until("fifty polls more", || {
        hook.assert_running();
        sidecar.metric("polls_total") >= polls + 50
    });
}

#[test]
fn idle_connections_do_not_hold_a_drain_and_stay_open() {
    let envoy = Envoy::builder().http("web").start();
    let sidecar = Sidecar::beside(&envoy);
    let web = envoy.port("web");
    let idle = [KeptAlive::open(web), KeptAlive::open(web)];
    let _http2 = [Http2::open(web), Http2::open(web)];
    // As long as no option says otherwise, each of them holds it.
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, 4, 4);
    assert_eq!(sidecar.status().get("wait_for"), "connections");
    assert_exits(&mut sidecar.run(&["release"]), 0, "released");
    hook.wait();
    restore(&envoy);
    let sidecar = Sidecar::beside(&envoy);
    let mut hook = sidecar.hook(&[WAITS_FOR_REQUESTS]);
    assert_ends(&sidecar, &mut hook, 4..=4, 0);
    assert_eq!(sidecar.status().get("wait_for"), "requests");
    assert!(idle.iter().all(|client| client.is_waiting()), "Envoy has closed one");
    assert_eq!(envoy.stat("http.web.downstream_cx_active"), Some(4));
}

#[test]
fn a_request_in_flight_holds_a_drain_until_its_response() {
    let envoy = Envoy::builder().http("web").start();
    let sidecar = beside(&envoy);
    let web = envoy.port("web");
    let _idle = (KeptAlive::open(web), Http2::open(web));
    let (http1, mut http2) = (KeptAlive::open(web), Http2::open(web));
    http1.start("/hold");
    http2.start("/hold");
    http2.start("/hold");
    // Envoy counts a request from its first byte on.
    let half = KeptAlive::open(web);
    half.send("GET / HT");
    envoy.wait_stat("http.web.downstream_rq_active", 4);
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, 5, 4);
    half.send("TP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(half.response().status, 200);
    drop(half);
    assert_held(&sidecar, &mut hook, 4, 3);
    envoy.respond(3, "done");
    assert_eq!(http1.response(), (200, "done"));
    http2.response();
    http2.response();
    // Envoy closes each some time after its last response.
    assert_ends(&sidecar, &mut hook, 2..=4, 0);
}

#[test]
fn upgraded_connections_and_those_of_a_tcp_proxy_hold_a_drain() {
    let envoy = Envoy::builder().http("web").tcp("tcp").tls_inspector("tls").start();
    let sidecar = beside(&envoy);
    let web = envoy.port("web");
    let _idle = KeptAlive::open(web);
    let (web_socket, tunnel, tcp) = (web_socket(web), connect_tunnel(web), connect(&envoy));
    let silent = Connection::open(envoy.port("tls"));
    envoy.wait_stat("listener.tls.downstream_pre_cx_active", 1);
    let mut hook = sidecar.hook(&[]);
    // Envoy counts an upgraded connection as a request too, which must not count twice.
    assert_held(&sidecar, &mut hook, 5, 4);
    drop(web_socket);
    assert_held(&sidecar, &mut hook, 4, 3);
    drop(silent);
    assert_held(&sidecar, &mut hook, 3, 2);
    drop(tcp);
    assert_held(&sidecar, &mut hook, 2, 1);
    assert!(tunnel.echoes());
    drop(tunnel);
    assert_ends(&sidecar, &mut hook, 1..=1, 0);
}

#[test]
fn a_listener_with_http_and_tcp_chains_holds_a_drain_by_its_tcp_connections() {
    let envoy = Envoy::builder().http_and_tcp("mixed").start();
    let sidecar = beside(&envoy);
    let mixed = envoy.port("mixed");
    let _idle = (KeptAlive::open(mixed), Http2::open(mixed));
    let tcp = Connection::open(mixed);
    // No beginning of a request, as the inspector finds it.
    tcp.send(b"\0\0\r\n");
    assert_eq!(tcp.receive(4), b"\0\0\r\n");
    let in_flight = KeptAlive::open(mixed);
    in_flight.start("/hold");
    envoy.wait_stat("http.mixed.downstream_rq_active", 1);
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, 4, 2);
    drop(in_flight);
    assert_held(&sidecar, &mut hook, 3, 1);
    drop(tcp);
    assert_ends(&sidecar, &mut hook, 2..=2, 0);
}

#[test]
fn a_response_that_its_client_has_not_read_holds_a_drain_until_envoy_has_sent_it() {
    // More than the kernel takes from Envoy, and less than Envoy takes from the upstream server at once.
    const LENGTH: usize = 900_000;
    let envoy = Envoy::builder().http("web").small_send_buffer().start();
    let sidecar = beside(&envoy);
    let client = KeptAlive::open(envoy.port("web"));
    client.start("/hold");
    envoy.respond(1, &"x".repeat(LENGTH));
    // To Envoy a request has ended when the last byte of its response is in Envoy's own buffer.
    envoy.wait_stat("http.web.downstream_rq_active", 0);
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, 1, 1);
    assert_goes_on(&sidecar, &mut hook);
    assert_eq!(client.response().body.len(), LENGTH);
    assert_ends(&sidecar, &mut hook, 0..=1, 0);
}

#[test]
fn requests_that_envoys_stats_hide_are_replaced_by_the_connections() {
    let rows = named([
        ("all", "{ suffix: downstream_rq_active }"),
        // The admin interface's own shows, and says nothing about the others.
        ("those of one prefix", "{ prefix: http.web.downstream_rq }"),
        ("what is still to be sent", "{ suffix: tx_bytes_buffered }"),
    ]);
    for_each_case_with_envoy(rows, |_, pattern| {
        let config = format!("stats_matcher: {{ exclusion_list: {{ patterns: [{pattern}] }} }}");
        let envoy = Envoy::builder().http("web").stats_config(&config).start();
        let sidecar = beside(&envoy);
        let (idle, in_flight) =
            (KeptAlive::open(envoy.port("web")), KeptAlive::open(envoy.port("web")));
        in_flight.start("/hold");
        let mut hook = sidecar.hook(&[]);
        sidecar.wait_log(REQUESTS_HIDDEN);
        assert_held(&sidecar, &mut hook, 2, 2);
        drop(in_flight);
        assert_held(&sidecar, &mut hook, 1, 1);
        drop(idle);
        assert_ends(&sidecar, &mut hook, 0..=0, 0);
        sidecar.assert_times_logged(REQUESTS_HIDDEN, 1);
    });
}

#[test]
fn idle_connections_of_a_hidden_listener_do_not_hide_those_of_a_tcp_proxy() {
    // Its HTTP gauges show, so that one connection is HTTP and one is a listener's: it is another one.
    let config = "stats_matcher: { exclusion_list: { patterns: [{ prefix: listener.web. }] } }";
    let envoy = Envoy::builder()
        .tcp("tcp")
        .http("web")
        .stats_config(config)
        .bootstrap("stats_flush_interval: 0.5s")
        .start();
    let idle = KeptAlive::open(envoy.port("web"));
    let tcp = connect(&envoy);
    let sidecar = beside(&envoy);
    let mut hook = sidecar.hook(&[]);
    sidecar.wait_log(LISTENERS_PERHAPS_WITHOUT_GAUGES);
    // Which of a hidden listener's connections are idle is not known.
    assert_held(&sidecar, &mut hook, 2, 2);
    assert_goes_on(&sidecar, &mut hook);
    drop((tcp, idle));
    assert_exits(&mut hook, 0, "drained");
}

#[test]
fn the_threshold_is_for_what_holds_a_drain() {
    let envoy = Envoy::builder().http("web").tcp("tcp").start();
    let threshold = "--min-open-connections=1";
    let sidecar = Sidecar::builder().beside(&envoy).args([WAITS_FOR_REQUESTS, threshold]).start();
    let web = envoy.port("web");
    let _idle = [KeptAlive::open(web), KeptAlive::open(web)];
    let (first, _second) = (connect(&envoy), web_socket(web));
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, 4, 2);
    drop(first);
    assert_ends(&sidecar, &mut hook, 3..=3, 1);
}

#[test]
fn scrapes_do_not_hold_a_drain_by_requests() {
    let envoy = Envoy::builder().http("web").stats_listener().start();
    let sidecar = beside(&envoy);
    let scrape = KeptAlive::open(envoy.port("stats"));
    scrape.start("/hold");
    let _idle = KeptAlive::open(envoy.port("web"));
    envoy.wait_stat("http.stats.downstream_rq_active", 1);
    let mut hook = sidecar.hook(&[]);
    assert_ends(&sidecar, &mut hook, 1..=1, 0);
    assert!(scrape.is_waiting());
}

/// The stats of an Envoy with an HTTP connection and so many requests in flight on it.
fn stats(requests: u64) -> [(&'static str, u64); 8] {
    [
        ("http.admin.downstream_cx_active", 1),
        ("http.admin.downstream_rq_active", 1),
        ("http.web.downstream_cx_active", 1),
        ("http.web.downstream_cx_tx_bytes_buffered", 0),
        ("http.web.downstream_rq_active", requests),
        (OPEN, 1),
        ("listener.admin.downstream_cx_active", 1),
        ("server.live", 0),
    ]
}

#[test]
fn one_poll_without_a_request_in_flight_ends_no_drain() {
    let admin = FakeAdmin::unix();
    for (name, value) in &stats(1)[..6] {
        admin.set_stat(name, *value);
    }
    let sidecar = beside(&admin);
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, 1, 1);
    let none: String = stats(0).iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    let polls = admin.count(Route::Stats);
    admin.fault_times(Route::Stats, 1, Fault::Body(none));
    admin.wait_for(Route::Stats, polls + 4);
    assert_held(&sidecar, &mut hook, 1, 1);
    admin.set_stat("http.web.downstream_rq_active", 0);
    assert_ends(&sidecar, &mut hook, 1..=1, 0);
}
