//! Tests of the support code: a real Envoy, the scripted one, the proxy and the waiting.

use std::fs;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use crate::support::Timeline;
use crate::support::http::find;
use crate::support::prelude::*;

const SHORT: Duration = Duration::from_millis(300);

fn get(admin: &Address, path: &str, timeout: Duration) -> io::Result<Response> {
    Client::from(admin.clone()).try_request("GET", path, timeout)
}

/// How a `GET /ready` fails.
#[track_caller]
fn failure(admin: &Address, timeout: Duration) -> ErrorKind {
    match get(admin, "/ready", timeout) {
        Ok(response) => panic!("{response:?}"),
        Err(error) => error.kind(),
    }
}

#[test]
fn envoy_has_each_kind_of_admin_address() {
    let mut kinds = vec![(Envoy::builder(), "/"), (Envoy::builder().admin_tcp_v4(), "127.0.0.1:")];
    if ipv6_available() {
        kinds.push((Envoy::builder().admin_tcp_v6(), "[::1]:"));
    }
    for (builder, start) in kinds {
        let mut envoy = builder.http("ingress_http").start();
        let address = envoy.admin_address();
        assert!(address.starts_with(start) && !address.ends_with(":0"), "{address}");
        assert_eq!(envoy.ready(), "LIVE");
        assert_eq!(envoy.stat("server.live"), Some(1));
        assert_eq!(envoy.post("/healthcheck/fail"), (200, "OK\n"));
        assert_eq!(envoy.get("/ready"), (503, "DRAINING\n"));
        assert_eq!(envoy.stat("server.live"), Some(0));
        envoy.restart();
        assert_eq!((envoy.ready(), envoy.admin_address()), ("LIVE".to_owned(), address));
        KeptAlive::open(envoy.port("ingress_http"));
    }
}

#[test]
fn each_client_is_seen_by_its_own_gauges() {
    let envoy = Envoy::builder()
        .http("ingress_http")
        .http("ingress_h2")
        .tcp("tcp")
        .tls_inspector("tls")
        .stats_listener()
        .start();
    let http = KeptAlive::open(envoy.port("ingress_http"));
    let http2 = Http2::open(envoy.port("ingress_h2"));
    let tcp = Connection::open(envoy.port("tcp"));
    assert!(tcp.echoes());
    let silent = Connection::open(envoy.port("tls"));
    let scrape = KeptAlive::open(envoy.port("stats"));
    let gauges = [
        ("listener.ingress_http.downstream_cx_active", 1),
        ("http.ingress_http.downstream_cx_http1_active", 1),
        ("listener.ingress_h2.downstream_cx_active", 1),
        ("http.ingress_h2.downstream_cx_http2_active", 1),
        ("listener.tcp.downstream_cx_active", 1),
        ("listener.tls.downstream_cx_active", 0),
        ("listener.tls.downstream_pre_cx_active", 1),
        ("listener.stats.downstream_cx_active", 1),
        ("http.stats.downstream_cx_active", 1),
    ];
    for (name, value) in gauges {
        envoy.wait_stat(name, value);
    }
    drop((http, http2, tcp, silent, scrape));
    for (name, _) in gauges {
        envoy.wait_stat(name, 0);
    }
}

#[test]
fn envoy_closes_its_connections_when_its_health_checks_fail() {
    let envoy = Envoy::builder().http("http").http_modify_only("stubborn").start();
    let http = KeptAlive::open(envoy.port("http"));
    let stubborn = KeptAlive::open(envoy.port("stubborn"));
    let mut http2 = Http2::open(envoy.port("http"));
    assert!(!http2.request());
    envoy.post("/healthcheck/fail");
    assert!(!http.peer_closed_within(SHORT), "idle, and closed all the same");
    assert_eq!(stubborn.request("/").header("connection"), None);
    assert_eq!(http.request("/").header("connection"), Some("close"));
    assert!(http.peer_closed_within(PATIENCE));
    assert!(http2.request(), "no GOAWAY");
}

#[test]
fn a_drain_of_envoys_listeners_cannot_be_undone() {
    let builder = Envoy::builder().http("http").http_modify_only("stubborn");
    let envoy = builder.flag("--drain-strategy").flag("immediate").start();
    let says_close = |name| {
        let client = KeptAlive::open(envoy.port(name));
        client.request("/").header("connection") == Some("close")
    };
    envoy.post("/healthcheck/fail");
    assert!(!says_close("stubborn"));
    // A second request has the same response.
    for _ in 0..2 {
        assert_eq!(envoy.post("/drain_listeners?graceful&skip_exit"), (200, "OK\n"));
        assert_eq!(envoy.ready(), "DRAINING");
        assert!(says_close("http") && says_close("stubborn"));
    }
    envoy.post("/healthcheck/ok");
    assert_eq!(envoy.ready(), "LIVE");
    assert!(says_close("http") && says_close("stubborn"), "it was undone");
}

#[test]
fn a_request_is_held_in_flight_and_an_idle_client_is_not_kept() {
    let envoy = Envoy::builder().http_idle("http", Duration::from_secs(1)).start();
    let busy = KeptAlive::open(envoy.port("http"));
    busy.start("/hold");
    envoy.wait_stat("http.http.downstream_rq_active", 1);
    let idle = KeptAlive::open(envoy.port("http"));
    assert!(idle.peer_closed_within(PATIENCE));
    assert!(!busy.peer_closed_within(SHORT));
    drop(busy);
    envoy.wait_stat("http.http.downstream_rq_active", 0);
}

#[test]
fn a_held_request_gets_its_response_on_either_version_of_http() {
    let envoy = Envoy::builder().http("http").start();
    let (http1, mut http2) = (KeptAlive::open(envoy.port("http")), Http2::open(envoy.port("http")));
    http1.start("/hold");
    http2.start("/hold");
    envoy.wait_stat("http.http.downstream_rq_active", 2);
    envoy.respond(2, "done");
    assert_eq!(http1.response(), (200, "done"));
    http2.response();
    envoy.wait_stat("http.http.downstream_rq_active", 0);
}

#[test]
fn an_upgraded_connection_is_a_request_in_flight_too() {
    let envoy = Envoy::builder().http("http").start();
    for open in [web_socket, connect_tunnel] {
        let client = open(envoy.port("http"));
        for gauge in ["cx_active", "cx_upgrades_active", "rq_active"] {
            envoy.wait_stat(&format!("http.http.downstream_{gauge}"), 1);
        }
        drop(client);
        envoy.wait_stat("http.http.downstream_cx_active", 0);
    }
}

#[test]
fn a_listener_with_http_and_tcp_chains_shows_both() {
    let envoy = Envoy::builder().http_and_tcp("mixed").start();
    let mixed = envoy.port("mixed");
    let _http = (KeptAlive::open(mixed), Http2::open(mixed));
    let tcp = Connection::open(mixed);
    tcp.send(b"\0\r\n");
    assert_eq!(tcp.receive(3), b"\0\r\n");
    envoy.wait_stat("http.mixed.downstream_cx_active", 2);
    envoy.wait_stat("listener.mixed.downstream_cx_active", 3);
}

#[test]
fn a_response_without_a_reader_stays_in_envoys_buffer() {
    let envoy = Envoy::builder().http("http").small_send_buffer().start();
    let client = KeptAlive::open(envoy.port("http"));
    client.start("/hold");
    envoy.respond(1, &"x".repeat(900_000));
    envoy.wait_stat("http.http.downstream_rq_active", 0);
    let buffered = || envoy.stat("http.http.downstream_cx_tx_bytes_buffered");
    wait_value("bytes in the buffer", buffered, |now| now.is_some_and(|bytes| bytes > 100_000));
    assert_eq!(client.response().body.len(), 900_000);
    wait_value("none in the buffer", buffered, |now| *now == Some(0));
}

#[test]
fn idle_clients_are_closed_under_pressure_and_no_others() {
    let dir = temp_dir("pressure");
    let (file, other) = (dir.path().join("pressure"), dir.path().join("new"));
    let envoy = Envoy::builder().injected_resource(&file).http("http").tcp("tcp").start();
    let http = envoy.port("http");
    let (http1, http2) = (KeptAlive::open(http), Http2::open(http));
    let (in_flight, tcp) = (KeptAlive::open(http), connect(&envoy));
    in_flight.start("/hold");
    // Envoy takes no notice of a file that is written in place.
    fs::write(&other, "0.01").expect("write");
    fs::rename(&other, &file).expect("rename");
    assert_eq!([http2.last_stream(), http2.last_stream()], [ANY_STREAM, 1]);
    assert!(http2.ends_within(PATIENCE) && http1.ends_within(PATIENCE));
    assert!(in_flight.is_waiting() && tcp.echoes());
    envoy.respond(1, "done");
    assert_eq!(in_flight.response(), (200, "done"));
    assert!(in_flight.ends_within(PATIENCE));
}

#[test]
fn envoy_hides_stats_that_its_stats_config_does_not_include() {
    let list = "stats_matcher: { inclusion_list: { patterns: [{ prefix: http. }] } }";
    let envoy = Envoy::builder().http("http").stats_config(list).start();
    let _client = KeptAlive::open(envoy.port("http"));
    envoy.wait_stat("http.http.downstream_cx_active", 1);
    assert_eq!(envoy.stat("listener.http.downstream_cx_active"), None);
}

#[test]
fn envoy_can_be_frozen_and_killed() {
    let mut envoy = Envoy::builder().admin_tcp_v4().start();
    envoy.pause();
    assert_eq!(failure(envoy.admin(), SHORT), ErrorKind::TimedOut);
    envoy.resume();
    assert_eq!(envoy.ready(), "LIVE");
    envoy.kill();
    assert_eq!(failure(envoy.admin(), PATIENCE), ErrorKind::ConnectionRefused);
}

#[test]
fn the_scripted_admin_interface_responds_as_envoy_does() {
    let envoy = Envoy::builder().start();
    for fake in [FakeAdmin::unix(), FakeAdmin::tcp()] {
        fake.hide_stats("listener.0.0.0.0_8080");
        let stats = "/stats?type=Gauges&usedonly&filter=downstream_(pre_)?cx_active|server.live";
        for (method, path) in [
            ("GET", "/ready"),
            ("GET", stats),
            ("GET", "/healthcheck/fail"),
            ("POST", "/healthcheck/fail"),
            ("GET", "/ready"),
            ("GET", stats),
            ("POST", "/healthcheck/ok"),
            ("GET", "/drain_listeners?graceful&skip_exit"),
            ("POST", "/drain_listeners?graceful&skip_exit"),
            ("GET", "/ready"),
        ] {
            let responses = [envoy.admin(), fake.admin()].map(|admin| {
                let response = Client::from(admin.clone()).request(method, path);
                let head = response.head.lines().filter(|line| !line.starts_with("date:"));
                let mut head: Vec<_> = head.map(str::to_owned).collect();
                head.sort();
                (response.status, head, response.body)
            });
            assert_eq!(responses[0], responses[1], "{method} {path}");
        }
    }
}

#[test]
fn the_scripted_admin_interface_follows_its_script() {
    let fake = FakeAdmin::unix();
    fake.set_open(3);
    let stats = |fake: &FakeAdmin| get(fake.admin(), "/stats", PATIENCE).expect("stats").body;
    assert!(stats(&fake).contains("listener.0.0.0.0_8080.downstream_cx_active: 3\n"));
    fake.set_state(State::Draining);
    assert!(stats(&fake).contains("server.live: 0\n"));
    fake.hide_stats("server.");
    fake.set_state(State::Live);
    assert!(!stats(&fake).contains("server.live"));

    fake.fault_times(Route::Ready, 2, Fault::Status(500));
    let statuses = [(); 3].map(|()| get(fake.admin(), "/ready", PATIENCE).expect("ready").status);
    assert_eq!(statuses, [500, 500, 200]);
    fake.fault(Route::Fail, Fault::Status(500));
    Client::from(fake.admin().clone()).post("/healthcheck/fail");
    assert_eq!(fake.state(), State::Live);

    assert_eq!((fake.count(Route::Ready), fake.count(Route::Fail)), (3, 1));
    assert!(fake.wait_for(Route::Ready, 2) < fake.wait_for(Route::Ready, 3));
    assert_eq!(fake.requests()[3].1, "GET /ready HTTP/1.1");
}

#[test]
fn the_scripted_admin_interface_keeps_a_connection_alive() {
    let fake = FakeAdmin::tcp();
    let client = Client::from(fake.admin().clone()).connect();
    for _ in 0..2 {
        client.send(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (200, None));
    }
}

#[test]
fn each_fault_is_what_its_name_says() {
    for fake in [FakeAdmin::unix(), FakeAdmin::tcp()] {
        let meets = |fault: Fault| {
            fake.fault(Route::Ready, fault);
            get(fake.admin(), "/ready", PATIENCE).expect("a response")
        };
        let kind = |fault: Fault| {
            fake.fault(Route::Ready, fault);
            failure(fake.admin(), SHORT)
        };
        assert_eq!(kind(Fault::Silent), ErrorKind::TimedOut);
        assert_eq!(kind(Fault::Close), ErrorKind::UnexpectedEof);
        assert_eq!(kind(Fault::ResetMidBody), ErrorKind::ConnectionReset);
        assert_eq!(kind(Fault::Garbage), ErrorKind::UnexpectedEof);
        assert_eq!(kind(Fault::NotHttp), ErrorKind::UnexpectedEof);
        assert_eq!(kind(Fault::Truncated), ErrorKind::UnexpectedEof);
        assert_eq!(kind(Fault::TruncatedChunk), ErrorKind::UnexpectedEof);
        assert_eq!(kind(Fault::Raw(b"HTTP/1.1 OK\r\n\r\n".to_vec())), ErrorKind::InvalidData);
        let every = Duration::from_millis(20);
        assert_eq!(kind(Fault::Late(PATIENCE)), ErrorKind::TimedOut);
        assert_eq!(meets(Fault::Late(every)).status, 200);
        assert_eq!(kind(Fault::Slow { every }), ErrorKind::TimedOut);
        let client = Client::from(fake.admin().clone()).connect();
        let start = Instant::now();
        client.send(b"GET /ready HTTP/1.1\r\n\r\n");
        assert_eq!(client.receive(9), b"HTTP/1.1 ");
        assert!(start.elapsed() > 7 * every);
        let redirect = meets(Fault::Redirect);
        assert_eq!((redirect.status, redirect.header("location")), (302, Some("/elsewhere")));
        assert_eq!(meets(Fault::Body("other".to_owned())).body, "other");
        for (endless, head) in [(Fault::Endless, true), (Fault::EndlessHead, false)] {
            fake.fault(Route::Ready, endless);
            let client = Client::from(fake.admin().clone()).connect();
            client.send(b"GET /ready HTTP/1.1\r\n\r\n");
            let bytes = client.receive(256 << 10);
            assert_eq!(find(&bytes, b"\r\n\r\n").is_some(), head);
        }
        fake.clear(Route::Ready);
        assert_eq!(get(fake.admin(), "/ready", PATIENCE).expect("ready").status, 200);
    }
}

#[test]
fn the_scripted_admin_interface_goes_and_comes_back() {
    for (mut fake, gone, full) in [
        (FakeAdmin::unix(), ErrorKind::NotFound, ErrorKind::WouldBlock),
        (FakeAdmin::tcp(), ErrorKind::ConnectionRefused, ErrorKind::TimedOut),
    ] {
        let address = fake.admin_address();
        let client = Client::from(fake.admin().clone()).connect();
        fake.refuse();
        assert!(client.peer_closed_within(PATIENCE));
        assert_eq!(failure(fake.admin(), SHORT), ErrorKind::ConnectionRefused);
        fake.vanish();
        assert_eq!(failure(fake.admin(), SHORT), gone);
        fake.come_back();
        assert_eq!(get(fake.admin(), "/ready", PATIENCE).expect("ready").status, 200);
        fake.full_backlog();
        assert_eq!(failure(fake.admin(), SHORT), full);
        fake.come_back();
        assert_eq!(get(fake.admin(), "/ready", PATIENCE).expect("ready").status, 200);
        assert_eq!(fake.admin_address(), address);
    }
}

#[test]
fn the_scripted_admin_interface_ends_while_clients_wait_on_its_faults() {
    for fault in
        [Fault::Silent, Fault::Endless, Fault::Late(PATIENCE), Fault::Slow { every: PATIENCE }]
    {
        let fake = FakeAdmin::unix();
        fake.fault(Route::Ready, fault);
        let client = Client::from(fake.admin().clone()).connect();
        client.send(b"GET /ready HTTP/1.1\r\n\r\n");
        fake.wait_for(Route::Ready, 1);
        let start = Instant::now();
        drop(fake);
        assert!(start.elapsed() < PATIENCE / 2);
        assert!(client.peer_closed_within(PATIENCE));
    }
}

#[test]
fn a_proxy_records_when_a_request_was_complete() {
    for kind in [AdminProxy::unix, AdminProxy::tcp] {
        let fake = FakeAdmin::tcp();
        let proxy = kind(fake.admin());
        let client = Client::from(proxy.admin().clone()).connect();
        client.send(b"GET /ready HTTP/1.1\r\nhost: x\r\n");
        assert!(!client.peer_closed_within(SHORT));
        assert_eq!(proxy.requests(), []);
        let before = Instant::now();
        client.send(b"\r\nPOST /healthcheck/fail HTTP/1.1\r\n\r\n");
        let at = proxy.wait_for("POST ");
        assert!(before < at && at <= fake.wait_for(Route::Fail, 1));
        let lines: Vec<_> = proxy.requests().into_iter().map(|(_, line)| line).collect();
        assert_eq!(lines, ["GET /ready HTTP/1.1", "POST /healthcheck/fail HTTP/1.1"]);
    }
}

#[test]
fn a_proxy_before_a_frozen_envoy_ends() {
    let envoy = Envoy::builder().start();
    let proxy = AdminProxy::tcp(envoy.admin());
    assert_eq!(get(proxy.admin(), "/ready", PATIENCE).expect("ready").body, "LIVE\n");
    envoy.pause();
    assert_eq!(failure(proxy.admin(), SHORT), ErrorKind::TimedOut);
    let client = Client::from(proxy.admin().clone()).connect();
    drop(proxy);
    assert!(client.peer_closed_within(PATIENCE));
}

#[test]
fn a_run_of_the_program_is_seen_to_end() {
    let mut run = run(&["--version"]);
    let exit = run.wait();
    assert_eq!(exit.code, Some(0), "{}", exit.output);
    assert!(!run.running() && exit.at <= Instant::now() && exit.took < PATIENCE);
}

#[test]
fn waiting_ends_at_the_condition_or_the_deadline() {
    let mut probes = 0;
    let third = wait_for("the third probe", || {
        probes += 1;
        (probes == 3).then_some(probes)
    });
    assert_eq!(third, 3);
    let timeline = Timeline::default();
    timeline.push("a");
    timeline.push("b");
    let entries = timeline.all();
    assert_eq!(timeline.nth(1, SHORT, |&entry| entry == "b"), Some(entries[1].0));
    assert_eq!(timeline.nth(2, SHORT, |&entry| entry == "b"), None);
}
