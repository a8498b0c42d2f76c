//! Requests to the backend, and what becomes of those that fail.

use std::sync::mpsc;

use super::*;
use crate::frontend::request::MAX_CONTROL_HEAD;

#[test]
fn a_410_for_clients_that_have_left_is_not_passed_on() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(SHUTDOWN);
    drop(harness.backend_request("GET /shutdown?waiters"));
    harness.assert_connections("1W");
    harness.advance(ms(25));
    respond(
        &mut harness.backend_request("GET /shutdown?waiters"),
        410,
        "no client waits any more\n",
    );
    let again = harness.backend_request("GET /shutdown?waiters");
    harness.assert_connections("1W");
    drop(again);
    harness.assert_connections("1W");
    assert_eq!(harness.next_round(), Some(ms(25)), "the response did not reset the delay");
    harness.advance(ms(25));
    respond(
        &mut harness.backend_request("GET /shutdown?waiters"),
        503,
        "the sidecar is stopping\n",
    );
    harness.assert_response(&client, "503", "the sidecar is stopping\n");
    let expired = harness.connect("POST /drain?expires=1 HTTP/1.1\r\n\r\n");
    respond(
        &mut harness.backend_request("POST /drain?expires=1"),
        410,
        "the request has expired\n",
    );
    harness.assert_response(&expired, "410", "the request has expired\n");
}

#[test]
fn a_long_request_is_passed_on_by_the_control_socket_alone() {
    let mut harness = Harness::control(LIMITS);
    let line = format!("POST /drain?exclude={}", "a".repeat(MAX_CONTROL_HEAD - 50));
    let client = harness.connect(format!("{line} HTTP/1.1\r\n\r\n"));
    respond(&mut harness.backend_request(&line), 200, "started 1\n");
    harness.assert_response(&client, "200", "started 1\n");
    let too_long = format!("{line}{} HTTP/1.1\r\n\r\n", "a".repeat(50));
    let client = harness.connect(too_long);
    harness.assert_response(&client, "431", "431 Request Header Fields Too Large\n");
    assert_eq!(harness.frontend.logs.rejections.happened(harness.now), None, "{NOT_LOGGED}");

    let mut harness = Harness::public(LIMITS);
    let client = harness.connect(format!("GET /healthz?{} HTTP/1.1\r\n\r\n", "a".repeat(4096)));
    harness.assert_response(&client, "431", "431 Request Header Fields Too Large\n");
    assert_eq!(harness.frontend.logs.rejections.happened(harness.now), Some(1), "it was logged");
}

#[test]
fn a_request_head_that_comes_too_late_is_logged_at_the_control_socket() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect("POST /drain");
    harness.assert_connections("1R");
    harness.advance(secs(5));
    harness.assert_response(&client, "408", "408 Request Timeout\n");
    assert_eq!(harness.frontend.logs.rejections.happened(harness.now), None, "{NOT_LOGGED}");
}

#[test]
fn a_failed_backend_request_is_retried_after_growing_delays() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(SHUTDOWN);
    type Failure = fn(UnixStream);
    let failures: [(u64, Failure); 6] = [
        (25, drop),
        (50, |mut request| respond(&mut request, 500, "")),
        (100, |mut request| request.write_all(b"nonsense\r\n\r\n").unwrap()),
        (200, |mut request| request.write_all(b"HTTP/1.1 200 OK\r\n\r\nOK").unwrap()),
        (200, |mut request| {
            request.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nO").unwrap()
        }),
        (200, |request| request.shutdown(Shutdown::Both).unwrap()),
    ];
    for (delay, fail) in failures {
        fail(harness.backend_request("GET /shutdown?waiters"));
        harness.assert_connections("1W");
        harness.assert_next_round(Some(ms(delay)));
        harness.advance(ms(delay) - NANO);
        harness.assert_no_backend_request();
        harness.advance(NANO);
    }
    assert_eq!(harness.frontend.logs.backend.happened(harness.now), None, "{NOT_LOGGED}");
    respond(&mut harness.backend_request("GET /shutdown?waiters"), 200, "OK");
    harness.assert_response(&client, "200", "OK");
}

#[test]
fn an_unreachable_backend_is_retried() {
    let mut harness = Harness::control(LIMITS);
    let (errors, reported) = mpsc::channel();
    harness.frontend.on_backend_error = Box::new(move |error| errors.send(error).unwrap());
    std::fs::remove_file(harness.folder.path().join("backend")).unwrap();
    let client = harness.connect(HEALTHZ);
    for delay in [25, 50, 100, 200, 200] {
        harness.assert_connections("1W");
        harness.assert_next_round(Some(ms(delay)));
        harness.advance(ms(delay));
    }
    assert_eq!(reported.try_iter().collect::<Vec<_>>(), [ErrorKind::NotFound; 6]);
    harness.backend = bind_backend(&harness.folder);
    harness.advance(ms(200));
    respond(&mut harness.backend_request("GET /healthz"), 200, "OK");
    harness.assert_response(&client, "200", "OK");
}

#[test]
fn a_late_response_is_requested_again_and_given_up_after_five_seconds() {
    let mut harness = Harness::public(LIMITS);
    let start = harness.now;
    let client = harness.connect(HEALTHZ);
    let mut requests = Vec::new();
    for timeout in [500, 1000, 2000] {
        requests.push(harness.backend_request("GET /healthz"));
        harness.assert_next_round(Some(ms(timeout)));
        harness.advance(ms(timeout) - NANO);
        harness.assert_no_backend_request();
        harness.advance(NANO);
    }
    assert_eq!(harness.frontend.logs.backend.happened(harness.now), None, "{NOT_LOGGED}");
    requests.push(harness.backend_request("GET /healthz"));
    harness.advance(start + (secs(5) - NANO) - harness.now);
    harness.assert_connections("1W");
    harness.advance(NANO);
    harness.assert_response(&client, "503", "the backend does not respond\n");
    assert_eq!(harness.responses(), [(Some(PublicRoute::Healthz), "503", 1)]);
}

#[test]
fn a_response_that_is_too_long_is_a_failure() {
    let mut harness = Harness::control(LIMITS);
    let _client = harness.connect(SHUTDOWN);
    let mut request = harness.backend_request("GET /shutdown?waiters");
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n";
    let longest = head.to_owned() + &"x".repeat(64 * 1024 - head.len());
    request.write_all(longest.as_bytes()).unwrap();
    harness.assert_connections("1W");
    harness.assert_next_round(Some(TIMEOUTS.start));
    request.write_all(b"x").unwrap();
    harness.assert_connections("1W");
    harness.assert_next_round(Some(ms(25)));
}

#[test]
fn a_backend_request_without_clients_counts_until_its_response() {
    let mut harness = Harness::control(Limits { max_connections: 2, ..LIMITS });
    let mut requests = Vec::new();
    for number in 1..=2 {
        drop(harness.connect(format!("GET /shutdown?drain={number} HTTP/1.1\r\n\r\n")));
        requests.push(harness.backend_request(&format!("GET /shutdown?drain={number}")));
        harness.assert_connections("");
    }
    let third = harness.connect("GET /shutdown?drain=3 HTTP/1.1\r\n\r\n");
    harness.assert_connections("3W");
    harness.assert_no_backend_request();
    respond(&mut requests[0], 200, "drained\n");
    respond(&mut harness.backend_request("GET /shutdown?drain=3"), 200, "drained\n");
    harness.assert_response(&third, "200", "drained\n");
    drop(requests);
    harness.run_until("no request in flight", |harness| harness.frontend.upstream.is_empty());

    drop(harness.connect(HEALTHZ));
    let _request = harness.backend_request("GET /healthz");
    harness.assert_connections("");
    assert_eq!(harness.next_round(), None, "a request without clients wakes the frontend");
    harness.advance(ms(500) - NANO);
    harness.assert_upstream(1);
    harness.advance(NANO);
    harness.assert_upstream(0);
    harness.assert_no_backend_request();
}
