//! Requests to the backend, and what becomes of those whose wire is lost.

use super::*;
use crate::frontend::request::MAX_CONTROL_HEAD;

#[test]
fn one_request_at_a_time_is_in_flight_for_both_listeners_in_turn_the_oldest_first() {
    let mut harness = Harness::public(LIMITS);
    let first = harness.connect(METRICS);
    harness.backend_request("GET /metrics");
    let second = harness.connect(HEALTHZ);
    harness.assert_connections("1W 2W");
    let third = harness.connect_control("GET /status HTTP/1.1\r\n\r\n");
    harness.assert_connections("1W 2W 3W");
    let fourth = harness.connect_control(DRAIN);
    harness.assert_connections("1W 2W 3W 4W");
    harness.assert_no_backend_request();
    harness.respond(200, "1");
    harness.assert_response(&first, "200", "1");
    for (line, client) in
        [("GET /status", third), ("GET /healthz", second), ("POST /drain?", fourth)]
    {
        harness.backend_request(line);
        harness.assert_no_backend_request();
        harness.respond(200, line);
        harness.assert_response(&client, "200", line);
    }
    harness.assert_wires(1);
    harness.assert_idle();
}

#[test]
fn the_start_of_a_drain_is_for_its_client_alone() {
    let mut harness = Harness::control(LIMITS);
    let clients = [DRAIN; 2].map(|text| harness.connect(text));
    harness.assert_connections("1W 2W");
    harness.backend_request("POST /drain?");
    harness.assert_no_backend_request();
    harness.respond(200, "started 1\n");
    harness.assert_response(&clients[0], "200", "started 1\n");
    harness.assert_connections("2W");
    harness.backend_request("POST /drain?");
    harness.respond(200, "joined 1\n");
    harness.assert_response(&clients[1], "200", "joined 1\n");
    // The status of an error is passed on.
    let expired = harness.connect("POST /drain?expires=1 HTTP/1.1\r\n\r\n");
    harness.backend_request("POST /drain?expires=1");
    harness.respond(410, "the request has expired\n");
    harness.assert_response(&expired, "410", "the request has expired\n");
    harness.assert_idle();
}

#[test]
fn the_start_of_a_drain_is_not_requested_again_when_the_wire_is_lost() {
    type Loss = fn(&mut Harness);
    let losses: [(&str, Loss); 4] = [
        ("it ends", |harness| harness.end_wire()),
        ("the response is late", |harness| harness.advance(ms(500))),
        ("the backend panics", |harness| harness.respond(500, "")),
        ("there is too much", |harness| harness.backend_sends(response(200, "started 1\n") + "x")),
    ];
    for (how, lose) in losses {
        let mut harness = Harness::control(LIMITS);
        let client = harness.connect(DRAIN);
        harness.backend_request("POST /drain?");
        // Due next, and not lost with it.
        let other = harness.connect("POST /drain?a HTTP/1.1\r\n\r\n");
        harness.assert_connections("1W 2W");
        lose(&mut harness);
        harness.assert_response(&client, "503", "the backend does not respond\n");
        harness.advance(ms(500));
        harness.backend_request("POST /drain?a");
        harness.assert_wires(2);
        harness.respond(200, "started 1\n");
        harness.assert_response(&other, "200", "started 1\n");
        harness.assert_no_backend_request();
        assert!(harness.frontend.upstream.is_idle(), "when {how}: {}", harness.state());
        assert_eq!(harness.frontend.logs.backend.happened(harness.now), None, "{NOT_LOGGED}");
    }
}

#[test]
fn the_start_of_a_drain_waits_for_a_wire() {
    let mut harness = Harness::control(LIMITS);
    harness.end_wire();
    let client = harness.connect(DRAIN);
    harness.assert_connections("1W");
    harness.advance(ms(500));
    harness.backend_request("POST /drain?");
    harness.respond(200, "started 1\n");
    harness.assert_response(&client, "200", "started 1\n");
}

#[test]
fn a_long_request_is_passed_on_by_the_control_socket_alone() {
    let mut harness = Harness::control(LIMITS);
    let line = format!("POST /drain?exclude={}", "a".repeat(MAX_CONTROL_HEAD - 50));
    let client = harness.connect(format!("{line} HTTP/1.1\r\n\r\n"));
    harness.backend_request(&line);
    harness.respond(200, "started 1\n");
    harness.assert_response(&client, "200", "started 1\n");
    let public =
        harness.connect_public(format!("GET /healthz?{} HTTP/1.1\r\n\r\n", "a".repeat(4096)));
    harness.assert_response(&public, "431", "431 Request Header Fields Too Large\n");
    assert_eq!(harness.frontend.logs.rejections.happened(harness.now), Some(1), "it was logged");

    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(format!("{line}{} HTTP/1.1\r\n\r\n", "a".repeat(50)));
    harness.assert_response(&client, "431", "431 Request Header Fields Too Large\n");
    assert_eq!(harness.frontend.logs.rejections.happened(harness.now), None, "{NOT_LOGGED}");
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
fn what_is_no_response_ends_the_wire_and_is_requested_again_over_the_next() {
    type Failure = fn(&mut Harness);
    let failures: [(&str, Failure); 7] = [
        ("an end", |harness| harness.end_wire()),
        ("a 500", |harness| harness.respond(500, "")),
        ("nonsense", |harness| harness.backend_sends("nonsense\r\n\r\n")),
        ("no length", |harness| harness.backend_sends("HTTP/1.1 200 OK\r\n\r\nOK")),
        ("half a response", |harness| {
            harness.backend_sends("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nO");
            harness.end_wire();
        }),
        ("one byte more", |harness| harness.backend_sends(response(200, "lost") + "x")),
        ("two responses", |harness| {
            harness.backend_sends(response(200, "lost") + &response(200, "lost"));
        }),
    ];
    for (what, fail) in failures {
        let mut harness = Harness::control(LIMITS);
        let client = harness.connect(HEALTHZ);
        harness.backend_request("GET /healthz");
        fail(&mut harness);
        harness.run_until(what, |harness| harness.frontend.upstream.fd().is_none());
        harness.assert_connections("1W");
        harness.assert_next_round(Some(ms(500)));
        harness.advance(ms(500) - NANO);
        harness.assert_wires(1);
        harness.advance(NANO);
        harness.backend_request("GET /healthz");
        harness.assert_wires(2);
        let log = &mut harness.frontend.logs.backend;
        assert_eq!(log.happened(harness.now), None, "{NOT_LOGGED}: {what}");
        harness.respond(200, "OK");
        harness.assert_response(&client, "200", "OK");
    }
}

#[test]
fn a_request_that_cannot_be_sent_is_sent_over_the_next_wire() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(HEALTHZ);
    // The wire ends after a round has looked at it.
    harness.wire().shutdown(Shutdown::Both).unwrap();
    harness.frontend.accept(ListenerId::Control, harness.now);
    harness.frontend.issue(harness.now);
    assert!(harness.frontend.upstream.fd().is_none(), "{}", harness.state());
    harness.assert_connections("1W");
    harness.advance(ms(500));
    harness.backend_request("GET /healthz");
    harness.respond(200, "OK");
    harness.assert_response(&client, "200", "OK");
}

#[test]
fn bytes_that_nothing_was_requested_for_end_the_wire() {
    for bytes in [&response(200, "OK"), "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nO", "H"] {
        let mut harness = Harness::control(LIMITS);
        harness.backend_sends(bytes);
        harness.run_until_lost(1);
        // They are not taken for a response to the next request.
        let client = harness.connect(HEALTHZ);
        harness.assert_connections("1W");
        harness.advance(ms(500));
        harness.backend_request("GET /healthz");
        harness.assert_wires(2);
        harness.respond(200, "own");
        harness.assert_response(&client, "200", "own");
    }
    // Those that follow a response later do the same; the response counts.
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(HEALTHZ);
    harness.backend_request("GET /healthz");
    harness.respond(200, "OK");
    harness.assert_response(&client, "200", "OK");
    harness.backend_sends("x");
    harness.run_until_lost(1);
}

#[test]
fn a_wire_that_ends_at_rest_is_replaced_without_a_client_and_500_ms_after_it_was_made() {
    let mut harness = Harness::public(LIMITS);
    assert_eq!(harness.next_round(), None);
    harness.advance(ms(300));
    harness.end_wire();
    harness.frontend.logs = Logs::default();
    harness.assert_next_round(Some(ms(200)));
    harness.advance(ms(200) - NANO);
    harness.assert_wires(1);
    harness.advance(NANO);
    harness.assert_wires(2);
    let logged = harness.frontend.logs.backend.happened(harness.now);
    assert_eq!(logged, Some(1), "a new wire was logged as a failure");
    harness.advance(ms(500));
    // This one is old enough.
    harness.end_wire();
    harness.assert_wires(3);
    assert_eq!(harness.next_round(), None);
    harness.end_wire();
    harness.assert_wires(3);
    harness.assert_next_round(Some(ms(500)));
    harness.advance(ms(500));
    harness.assert_wires(4);
    harness.assert_no_backend_request();
}

#[test]
fn a_connect_that_fails_is_tried_again_every_500_ms() {
    let mut harness = Harness::control(LIMITS);
    *harness.connects.lock().unwrap() = Connects::Error;
    harness.end_wire();
    harness.frontend.logs = Logs::default();
    let client = harness.connect(HEALTHZ);
    for _ in 0..5 {
        harness.assert_connections("1W");
        harness.assert_next_round(Some(ms(500)));
        harness.advance(ms(500) - NANO);
        harness.assert_next_round(Some(NANO));
        harness.advance(NANO);
    }
    let logged = harness.frontend.logs.backend.happened(harness.now);
    assert_eq!(logged, None, "{NOT_LOGGED}");
    *harness.connects.lock().unwrap() = Connects::Wire;
    harness.advance(ms(500) - NANO);
    harness.assert_wires(1);
    harness.advance(NANO);
    harness.backend_request("GET /healthz");
    harness.assert_wires(2);
    harness.respond(200, "OK");
    harness.assert_response(&client, "200", "OK");
}

#[test]
fn a_late_response_ends_the_wire_and_the_timeout_doubles_until_one_comes() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(EXEC_HOOK);
    for (number, timeout) in [500, 1000, 2000, 4000, 4000].into_iter().enumerate() {
        harness.backend_request("GET /shutdown?drain=1");
        harness.assert_wires(number + 1);
        // As far as it came, it is of no use.
        harness.backend_sends("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nla");
        harness.assert_connections("1W");
        harness.assert_next_round(Some(ms(timeout)));
        harness.advance(ms(timeout) - NANO);
        harness.assert_no_backend_request();
        harness.assert_wires(number + 1);
        let mut late = harness.wire().try_clone().unwrap();
        harness.advance(NANO);
        let sent = late.write_all(b"te");
        assert!(sent.is_err(), "the wire of a late response is not closed");
    }
    assert_eq!(harness.frontend.logs.backend.happened(harness.now), None, "{NOT_LOGGED}");
    harness.backend_request("GET /shutdown?drain=1");
    harness.assert_wires(6);
    harness.respond(200, "drained\n");
    harness.assert_response(&client, "200", "drained\n");
    let _next = harness.connect(HEALTHZ);
    harness.backend_request("GET /healthz");
    harness.assert_next_round(Some(ms(500)));
}

#[test]
fn each_loss_of_a_wire_doubles_the_timeout() {
    let mut harness = Harness::control(LIMITS);
    let _client = harness.connect(EXEC_HOOK);
    for timeout in [500, 1000, 2000, 4000, 4000] {
        harness.backend_request("GET /shutdown?drain=1");
        harness.assert_next_round(Some(ms(timeout)));
        harness.end_wire();
        harness.advance(ms(500));
    }
}

#[test]
fn a_client_is_given_up_five_seconds_after_its_request() {
    let mut harness = Harness::public(LIMITS);
    let start = harness.now;
    let client = harness.connect(HEALTHZ);
    for timeout in [500, 1000, 2000] {
        harness.backend_request("GET /healthz");
        harness.advance(ms(timeout));
    }
    harness.backend_request("GET /healthz");
    harness.advance(start + (secs(5) - NANO) - harness.now);
    harness.assert_connections("1W");
    harness.advance(NANO);
    harness.assert_response(&client, "503", "the backend does not respond\n");
    assert_eq!(harness.responses(), [(Some(PublicRoute::Healthz), "503", 1)]);
    // Its request has no client any more, and is not sent again.
    harness.advance(ms(2500));
    harness.assert_wires(5);
    harness.assert_no_backend_request();
    harness.assert_idle();
}

#[test]
fn a_client_whose_turn_does_not_come_is_given_up_after_five_seconds() {
    let mut harness = Harness::control(LIMITS);
    *harness.connects.lock().unwrap() = Connects::Error;
    harness.end_wire();
    let clients = [DRAIN, HEALTHZ].map(|text| harness.connect(text));
    harness.assert_connections("1W 2W");
    harness.advance(secs(5) - NANO);
    harness.assert_connections("1W 2W");
    harness.advance(NANO);
    for client in clients {
        harness.assert_response(&client, "503", "the backend does not respond\n");
    }
    *harness.connects.lock().unwrap() = Connects::Wire;
    harness.advance(ms(500));
    harness.assert_wires(2);
    harness.assert_no_backend_request();
}

#[test]
fn a_response_that_is_too_long_is_a_failure() {
    let mut harness = Harness::control(LIMITS);
    let _client = harness.connect(HEALTHZ);
    harness.backend_request("GET /healthz");
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n";
    harness.backend_sends(head.to_owned() + &"x".repeat(64 * 1024 - head.len()));
    harness.assert_connections("1W");
    harness.assert_no_backend_request();
    assert!(harness.frontend.upstream.fd().is_some(), "64 KiB are not too long");
    harness.backend_sends("x");
    harness.run_until_lost(1);
    harness.assert_connections("1W");
}

#[test]
fn a_request_whose_client_has_left_keeps_its_turn_until_its_response() {
    let mut harness = Harness::control(LIMITS);
    for line in ["GET /metrics", "POST /drain?"] {
        let client = harness.connect(format!("{line} HTTP/1.1\r\n\r\n"));
        harness.backend_request(line);
        drop(client);
        harness.assert_connections("");
        let next = harness.connect(HEALTHZ);
        harness.run_until("a client", |harness| harness.frontend.connections.len() == 1);
        harness.assert_no_backend_request();
        harness.respond(200, "for a client that has left");
        harness.backend_request("GET /healthz");
        harness.respond(200, "OK");
        harness.assert_response(&next, "200", "OK");
    }
    // A client that leaves before its turn has nothing requested.
    let _first = harness.connect(HEALTHZ);
    harness.backend_request("GET /healthz");
    let second = harness.connect(DRAIN);
    harness.run_until("two clients", |harness| harness.frontend.connections.len() == 2);
    drop(second);
    harness.run_until("one client", |harness| harness.frontend.connections.len() == 1);
    harness.respond(200, "OK");
    harness.assert_connections("");
    harness.assert_no_backend_request();
    harness.assert_wires(1);
}

#[test]
fn what_the_wire_was_lost_with_is_requested_again_after_all_others() {
    let mut harness = Harness::public(LIMITS);
    let metrics = harness.connect_control(METRICS);
    harness.backend_request("GET /metrics");
    let probe = harness.connect(HEALTHZ);
    harness.assert_connections("1W 2W");
    harness.end_wire();
    harness.advance(ms(500));
    // A route that the backend fails of does not keep a probe.
    harness.backend_request("GET /healthz");
    harness.respond(200, "OK");
    harness.assert_response(&probe, "200", "OK");
    harness.backend_request("GET /metrics");
    harness.respond(200, "");
    harness.assert_response(&metrics, "200", "");
}

#[test]
fn a_response_with_which_the_wire_ends_is_a_response() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(DRAIN);
    harness.backend_request("POST /drain?");
    harness.respond(200, "started 1\n");
    harness.wire().shutdown(Shutdown::Both).unwrap();
    harness.assert_response(&client, "200", "started 1\n");
    harness.run_until_lost(1);
}

#[test]
fn the_start_of_a_drain_that_was_not_sent_is_sent_on_the_next_wire() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(DRAIN);
    // The round that accepts it finds the wire ended only as it sends.
    harness.wire().shutdown(Shutdown::Both).unwrap();
    let ready =
        Ready { waker: false, upstream: false, listeners: [true, false], connections: Vec::new() };
    harness.frontend.dispatch(&ready, harness.now);
    harness.assert_connections("1W");
    harness.advance(ms(500));
    harness.assert_wires(2);
    harness.backend_request("POST /drain?");
    harness.respond(200, "started 1\n");
    harness.assert_response(&client, "200", "started 1\n");
}

#[test]
fn neither_listener_keeps_the_other_waiting() {
    let flooded = Limits { max_connections: 64, max_waiting: 8 };
    let mut harness = Harness::public(flooded);
    let mut flood: Vec<_> = (0..3).map(|_| harness.connect_control(DRAIN)).collect();
    harness.backend_request("POST /drain?");
    let probe = harness.connect(HEALTHZ);
    harness.assert_connections("1W 2W 3W 4W");
    flood.push(harness.connect_control(DRAIN));
    harness.respond(200, "joined 1\n");
    harness.backend_request("GET /healthz");
    harness.respond(200, "OK");
    harness.assert_response(&probe, "200", "OK");
    harness.backend_request("POST /drain?");
}

#[test]
fn what_the_wire_was_lost_with_comes_last_for_a_second_only() {
    let mut harness = Harness::control(Limits { max_connections: 64, max_waiting: 8 });
    let hook = harness.connect(EXEC_HOOK);
    harness.backend_request("GET /shutdown?drain=1");
    harness.end_wire();
    let mut clients = vec![harness.connect_public(HEALTHZ)];
    harness.advance(ms(500));
    // There is always another that is due.
    for (line, next) in [("GET /healthz", METRICS), ("GET /metrics", HEALTHZ)] {
        harness.backend_request(line);
        clients.push(harness.connect_public(next));
        harness.run_until("another", |harness| harness.frontend.connections.len() == 3);
        harness.respond(200, "");
        harness.run_until("a response", |harness| harness.frontend.connections.len() == 2);
    }
    harness.backend_request("GET /healthz");
    clients.push(harness.connect_public(METRICS));
    harness.run_until("another", |harness| harness.frontend.connections.len() == 3);
    harness.now = harness.now + ms(400);
    harness.respond(200, "");
    harness.run_until("a response", |harness| harness.frontend.connections.len() == 2);
    harness.backend_request("GET /metrics");
    clients.push(harness.connect_public(HEALTHZ));
    harness.run_until("another", |harness| harness.frontend.connections.len() == 3);
    harness.now = harness.now + ms(100);
    harness.respond(200, "");
    harness.backend_request("GET /shutdown?drain=1");
    harness.respond(200, "drained\n");
    harness.assert_response(&hook, "200", "drained\n");
}

#[test]
fn the_start_of_a_drain_that_was_not_read_is_sent_on_the_next_wire() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(DRAIN);
    let in_flight = |harness: &mut Harness| !harness.frontend.upstream.is_idle();
    harness.run_until("the request", in_flight);
    // As a server whose threads cannot be started: the kernel resets what was not read.
    harness.wires();
    drop(harness.wires.pop());
    harness.run_until("the loss", |harness| harness.frontend.upstream.fd().is_none());
    harness.assert_connections("1W");
    harness.advance(ms(500));
    harness.assert_wires(1);
    harness.backend_request("POST /drain?");
    harness.respond(200, "started 1\n");
    harness.assert_response(&client, "200", "started 1\n");
}

#[test]
fn a_process_that_stood_still_waits_for_the_response_anew() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(DRAIN);
    harness.backend_request("POST /drain?");
    harness.advance(ms(600));
    harness.assert_next_round(Some(ms(500)));
    harness.assert_wires(1);
    harness.respond(200, "started 1\n");
    harness.assert_response(&client, "200", "started 1\n");
}
