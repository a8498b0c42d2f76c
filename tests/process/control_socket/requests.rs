//! Requests at the control socket: their responses, and mistakes that do no harm.

use super::{assert_drain_can_start, assert_no_drain_started};
use crate::support::prelude::*;

/// Asserts that it responds, whatever other clients hold connections.
#[track_caller]
fn assert_responds(sidecar: &Sidecar) {
    assert_eq!(sidecar.control().get("/healthz"), OK);
}

#[test]
fn each_route_has_its_response() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    for (method, path, status, body) in [
        ("GET", "/healthz", 200, "OK"),
        ("GET", "/healthz?verbose", 200, "OK"),
        ("GET", "/status", 200, "{\"version\":"),
        ("GET", "/status?as=line", 200, IDLE),
        ("GET", "/status?as=page", 200, &format!("{IDLE} (no drain)")),
        ("GET", "/metrics", 200, "# HELP envoy_shutdown_"),
        ("GET", "/shutdown?drain=7", 410, "no such drain"),
        ("GET", "/shutdown?drain=x", 400, "bad request"),
        ("GET", "/", 404, "not found"),
        ("GET", "/healthz/", 404, "not found"),
        ("GET", "/HEALTHZ", 404, "not found"),
        ("POST", "/drain/", 404, "not found"),
        ("POST", "/healthcheck/fail", 404, "not found"),
        ("GET", "/drain", 405, "method not allowed"),
        ("PUT", "/drain", 405, "method not allowed"),
        ("DELETE", "/drain", 405, "method not allowed"),
        ("GET", "/drain?check-delay=0s", 405, "method not allowed"),
        ("POST", "/healthz", 405, "method not allowed"),
        ("POST", "/shutdown", 405, "method not allowed"),
        ("POST", "/status", 405, "method not allowed"),
        ("POST", "/drain?check-delay=2%20days", 400, "check-delay: "),
        ("POST", "/drain?check-interval=0s", 400, "check-interval: "),
        ("POST", "/drain?min-open-connections=-1", 400, "min-open-connections: "),
        (
            "POST",
            "/drain?drain-timeout=1&drain-timeout=1h",
            400,
            "drain-timeout: \"1\" is without a unit",
        ),
        ("POST", "/drain?admin-address=localhost", 400, "admin-address: "),
        ("POST", "/drain?force=1", 400, "no option \"force\""),
        ("POST", "/drain?check-delay", 400, "\"check-delay\" is not NAME=VALUE"),
        ("POST", "/drain?expires=soon", 400, "expires=soon is not a time"),
    ] {
        let response = sidecar.control().request(method, path);
        let matches = response.body.to_lowercase().contains(&body.to_lowercase());
        assert!(response.status == status && matches, "{method} {path}: {response:?}");
    }
    assert_no_drain_started(&sidecar, &admin);
    assert_drain_can_start(&sidecar, &admin);
}

#[test]
fn what_is_rejected_is_logged_with_its_reason() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    assert_eq!(sidecar.control().post("/drain?check-delay=1&error=odd").status, 400);
    let options = logged(DRAIN_REQUEST_REJECTED).with("level", "warn");
    sidecar.wait_log(options.containing("error", "check-delay: \"1\" is without a unit"));
    let too_long = format!("/drain?exclude={}", "a".repeat(16 * 1024));
    for _ in 0..3 {
        assert_eq!(sidecar.control().post(&too_long).status, 431);
    }
    let too_long = logged(CONTROL_REQUEST_REJECTED).with("level", "warn").with("times", 1);
    sidecar.wait_log(too_long.with("status", "431 Request Header Fields Too Large"));
    assert_eq!(sidecar.times_logged(CONTROL_REQUEST_REJECTED), 1, "once a minute");
    sidecar.assert_not_logged(HOOK_CALLED_WRONGLY);
    assert_no_drain_started(&sidecar, &admin);
    assert_drain_can_start(&sidecar, &admin);
}

#[test]
fn a_drain_request_may_have_15_kilobytes() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let name = |n| format!("listener_{n:03}.{}", "%2D".repeat(40));
    let excludes: Vec<_> = (0..110).map(|n| format!("exclude={}", name(n))).collect();
    let query = excludes.join("&");
    assert!((15_000..16_000).contains(&query.len()), "{}", query.len());
    assert_eq!(sidecar.control().post(&format!("/drain?{query}")), (200, "started 1\n"));
    let last = name(109).replace("%2D", "-");
    sidecar.wait_log(logged(DRAIN_STARTED).with("exclude", last));
    wait_status(&sidecar, |status| status.outcome() == Some("drained"));
    assert_eq!(sidecar.public().get(&format!("/healthz?{}", "a".repeat(4096))).status, 431);
}

#[test]
fn responses_have_a_type_and_a_length() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let kind = |path: &str| sidecar.control().get(path).header("content-type").map(str::to_owned);
    assert_eq!(kind("/status").as_deref(), Some("application/json"));
    assert_eq!(kind("/metrics").as_deref(), Some("text/plain; version=0.0.4"));
    assert_eq!(kind("/healthz").as_deref(), Some("text/plain; charset=utf-8"));
    let head = |path: &str| format!("HEAD {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    for (path, length) in [("/healthz", Some("2")), ("/metrics", None), ("/none", Some("14"))] {
        let response = sidecar.control().send(head(path)).only_response();
        assert_eq!(response.body, "", "HEAD {path}: {response:?}");
        let announced = response.header("content-length");
        assert!(length.is_none() || announced == length, "HEAD {path}: {response:?}");
    }
    assert_eq!(sidecar.control().send(head("/drain")).only_response().status, 405);
    assert_no_drain_started(&sidecar, &admin);
}

#[test]
fn an_expired_drain_request_starts_nothing() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    assert_eq!(sidecar.control().post("/drain?expires=1").status, 410);
    sidecar.wait_log(DRAIN_REQUEST_EXPIRED);
    assert_no_drain_started(&sidecar, &admin);
    let late = "18446744073709551615";
    admin.set_open(1);
    let response = sidecar.control().post(&format!("/drain?expires={late}"));
    assert_eq!(response, (200, "started 1\n"));
    wait_open_connections(&sidecar, 1);
    // Nor does it join.
    assert_eq!(sidecar.control().post("/drain?expires=1").status, 410);
    admin.set_open(0);
    wait_status(&sidecar, |status| status.outcome() == Some("drained"));
}

#[test]
fn a_drain_request_with_a_body_starts_nothing() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let mut clients = Vec::new();
    let mut post = |headers: &str, body: &str| {
        let request = format!("POST /drain HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n{body}");
        clients.push((sidecar.control().send(&request), request));
        assert_responds(&sidecar);
    };
    for (headers, body) in [
        ("content-length: 5", "he"),
        ("content-length: 5", "hello"),
        ("content-length: 1024", ""),
        ("content-length: 1000000", "hello"),
        // A server that would take a body of this length would end.
        ("content-length: 99999999999999", ""),
        ("content-length: 18446744073709551615", "hello"),
        ("content-length: 5000\r\nexpect: 100-continue", ""),
        ("transfer-encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked", "5\r\nhe"),
        ("transfer-encoding: chunked", ""),
    ] {
        post(headers, body);
    }
    for (client, request) in &clients {
        assert_eq!(client.response().status, 413, "{request:?} may not start a drain");
    }
    assert_no_drain_started(&sidecar, &admin);
    assert_drain_can_start(&sidecar, &admin);
    assert_eq!(clients.len(), 10);
}

/// What programs send that take the control socket for something else.
fn mistakes() -> Vec<Vec<u8>> {
    let browser = format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nCookie: {}\r\n\r\n",
        "a=b; ".repeat(1000)
    );
    let upload = "PUT /drain HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n".to_owned();
    let chunked = "POST /drain HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let scraper = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n";
    let texts = [
        browser,
        upload + &"x".repeat(3_000_000),
        chunked.to_owned() + "1000\r\n" + &"x".repeat(0x1000),
        scraper.repeat(3),
        "GET /drain HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "POST /healthcheck/fail HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "POST /drain?no-such-option=1 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "POST /drain HTTP/0.9\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "*1\r\n$4\r\nPING\r\n".to_owned(),
        "envoy shutdown\n".repeat(100_000),
    ];
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20);
    texts.into_iter().map(String::into_bytes).chain([tls, vec![0; 1 << 20]]).collect()
}

#[test]
fn requests_by_mistake_do_no_harm() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let send_mistakes = || {
        for mistake in mistakes() {
            // Some of them are rejected before they are whole.
            sidecar.control().connect().try_send(&mistake);
            assert_responds(&sidecar);
        }
    };
    send_mistakes();
    assert_no_drain_started(&sidecar, &admin);
    let mut hook = start_drain(&sidecar, &admin);
    send_mistakes();
    hook.assert_running();
    let status = sidecar.status();
    assert_eq!((status.phase(), status.drain()), (WAITING_FOR_CONNECTIONS, 1));
    finish_drain(&admin, &mut hook);
}

#[test]
fn incomplete_requests_do_not_delay_others() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let halves = ["", "P", "POST /drain HTTP/1.1\r\nhost", "GET /healthz HTTP/1.1\r\n"];
    let mut clients = Vec::new();
    // More than the sidecar keeps.
    for n in 0..250 {
        clients.push(sidecar.control().send(halves[n % halves.len()]));
        assert_responds(&sidecar);
    }
    assert_no_drain_started(&sidecar, &admin);
    let mut hook = start_drain(&sidecar, &admin);
    finish_drain(&admin, &mut hook);
    assert_eq!(clients.len(), 250);
}

#[test]
fn bytes_after_a_request_that_waits_end_that_request() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let healthz = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let shutdown = healthz.replace("/healthz", "/shutdown");
    let (first, later) = (sidecar.control().connect(), sidecar.control().connect());
    first.send(shutdown.clone() + healthz);
    assert_eq!(first.response().status, 400);
    later.send(shutdown);
    wait_envoy_hooks(&sidecar, 1);
    later.send(healthz);
    assert!(later.peer_closed_within(PATIENCE), "it continues to wait");
    wait_envoy_hooks(&sidecar, 0);
    assert_responds(&sidecar);
    assert_drain_can_start(&sidecar, &admin);
}

#[test]
fn there_are_sixty_four_waiting_slots_and_all_are_answered() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let waiters: Vec<_> = (0..64).map(|_| sidecar.control().start_get("/shutdown")).collect();
    wait_status(&sidecar, |status| status.phase() == IDLE && status.envoy_hooks() == 64);
    for path in ["/shutdown", "/shutdown/ready", "/shutdown"] {
        assert_eq!(sidecar.control().get(path), (503, TOO_MANY_BODY));
    }
    // A hook has a slot of its own.
    assert_eq!(sidecar.control().get("/shutdown?drain=1").status, 410);
    assert_eq!(sidecar.control().get("/healthz"), OK);
    admin.set_open(1);
    assert_eq!(sidecar.control().post("/drain"), (200, "started 1\n"));
    wait_open_connections(&sidecar, 1);
    wait_envoy_hooks(&sidecar, 64);
    assert!(waiters.iter().all(Connection::is_waiting), "one was answered before the end");
    admin.set_open(0);
    for waiter in &waiters {
        assert_eq!(waiter.response(), OK);
    }
    wait_status(&sidecar, |status| status.phase() == ENDED && status.envoy_hooks() == 0);
    assert_eq!(sidecar.control().get("/shutdown"), OK, "the slots are free");
}

#[test]
fn requests_leave_no_threads_and_no_descriptors_behind() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    assert_eq!(sidecar.control().get("/healthz").status, 200);
    // The startup check is over, and so is that request.
    sidecar.wait_log(ENVOY_RESPONDS);
    let before = resources_at_rest(&sidecar);
    admin.set_open(1);
    for n in 0..100 {
        let (method, path) = [("GET", "/healthz"), ("GET", "/metrics"), ("POST", "/none")][n % 3];
        sidecar.control().request(method, path);
    }
    let waiters: Vec<_> = (0..20).map(|_| sidecar.control().start_get("/shutdown")).collect();
    wait_envoy_hooks(&sidecar, 20);
    // Some disconnect early, which is seen at once.
    let stays = waiters.into_iter().skip(5).collect::<Vec<_>>();
    wait_envoy_hooks(&sidecar, 15);
    let during = resources(&sidecar);
    // None has a thread of its own; a request for the status may have one.
    assert!(during.0 <= before.0 + 3 && during.1 >= before.1 + 15, "{before:?}, {during:?}");
    let mut hook = sidecar.hook(&[]);
    wait_open_connections(&sidecar, 1);
    hook.assert_running();
    finish_drain(&admin, &mut hook);
    for waiter in &stays {
        assert_eq!(waiter.response().status, 200);
    }
    drop(stays);
    println!("threads and descriptors: {before:?}, then {during:?}");
    assert_resources_released(&sidecar, before);
}
