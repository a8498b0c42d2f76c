//! Connections on which a client of the status sends its next request.

use super::*;

const STATUS: &str = "GET /status?as=line HTTP/1.1\r\nConnection: keep-alive\r\n\r\n";
const STATUS_ONCE: &str = "GET /status?as=line HTTP/1.1\r\n\r\n";
const STATUS_LINE: &str = "GET /status?as=line";

#[test]
fn a_client_that_shows_the_status_again_and_again_has_one_connection() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(STATUS);
    for body in ["first", "second", "third"] {
        harness.backend_request(STATUS_LINE);
        harness.respond(200, body);
        harness.assert_kept_response(&client, body);
        harness.assert_connections("1R");
        harness.advance(secs(1));
        harness.assert_no_backend_request();
        send(&client, STATUS);
    }
    // Who does not ask for it again has had the last response.
    harness.backend_request(STATUS_LINE);
    harness.respond(200, "fourth");
    harness.assert_kept_response(&client, "fourth");
    send(&client, STATUS_ONCE);
    harness.backend_request(STATUS_LINE);
    harness.respond(200, "fifth");
    harness.assert_response(&client, "200", "fifth");
    harness.assert_connections("");
}

#[test]
fn every_other_connection_is_closed_after_its_response() {
    let keep_alive = "Connection: keep-alive\r\n";
    for (listener, line, fields) in [
        (ListenerId::Control, "GET /status", ""),
        (ListenerId::Control, "GET /status", "Connection: close\r\n"),
        (ListenerId::Control, "GET /status", "Connection: keep-alive\r\nConnection: close\r\n"),
        (ListenerId::Control, "GET /status", "Connection: upgrade\r\n"),
        (ListenerId::Control, "GET /healthz", keep_alive),
        (ListenerId::Control, "GET /metrics", keep_alive),
        (ListenerId::Control, "POST /drain?", keep_alive),
        (ListenerId::Public, "GET /healthz", keep_alive),
        (ListenerId::Public, "GET /metrics", keep_alive),
    ] {
        let mut harness = Harness::control(LIMITS);
        let request = format!("{line} HTTP/1.1\r\n{fields}\r\n");
        let client = harness.connect_at(listener, 1, &request);
        harness.backend_request(line);
        harness.respond(200, "OK");
        let text = harness.receive_all(&client);
        assert!(text.ends_with("\r\nConnection: close\r\n\r\nOK"), "{request:?}: {text}");
        harness.assert_connections("");
    }
    for (listener, line) in [
        (ListenerId::Control, "GET /nowhere"),
        (ListenerId::Control, "PUT /status"),
        (ListenerId::Public, "GET /status"),
        (ListenerId::Public, "PUT /healthz"),
    ] {
        let mut harness = Harness::control(LIMITS);
        let request = format!("{line} HTTP/1.1\r\n{keep_alive}\r\n");
        let client = harness.connect_at(listener, 1, &request);
        let text = harness.receive_all(&client);
        assert!(text.contains("\r\nConnection: close\r\n\r\n"), "{request:?}: {text}");
    }
}

#[test]
fn clients_that_share_a_response_differ_in_what_becomes_of_their_connections() {
    let mut harness = Harness::control(LIMITS);
    let clients = [STATUS, STATUS_ONCE, STATUS].map(|text| harness.connect(text));
    harness.assert_connections("1W 2W 3W");
    harness.backend_request(STATUS_LINE);
    harness.respond(200, "shared");
    let text = harness.receive_all(&clients[1]);
    assert!(text.ends_with("\r\nConnection: close\r\n\r\nshared"), "{text}");
    harness.assert_kept_response(&clients[0], "shared");
    harness.assert_kept_response(&clients[2], "shared");
    harness.assert_connections("1R 3R");
    harness.assert_no_backend_request();
}

#[test]
fn bytes_behind_a_request_end_a_connection_that_would_be_kept() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(STATUS);
    harness.backend_request(STATUS_LINE);
    harness.respond(200, "OK");
    harness.assert_kept_response(&client, "OK");
    // The second is not served.
    send(&client, STATUS.to_owned() + STATUS);
    harness.backend_request(STATUS_LINE);
    harness.respond(200, "OK");
    let text = harness.receive_all(&client);
    assert!(text.ends_with("\r\nConnection: close\r\n\r\nOK"), "{text}");
    assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
    harness.assert_no_backend_request();
}

#[test]
fn a_request_that_comes_before_the_response_to_the_one_before_has_its_turn() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(STATUS);
    harness.backend_request(STATUS_LINE);
    send(&client, STATUS_ONCE);
    harness.assert_connections("1W");
    harness.respond(200, "first");
    harness.backend_request(STATUS_LINE);
    harness.respond(200, "second");
    let text = harness.receive_all(&client);
    assert!(text.ends_with("second") && text.matches("HTTP/1.1 200 ").count() == 2, "{text}");
}

#[test]
fn a_connection_that_is_kept_ends_five_seconds_after_its_response() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(STATUS);
    harness.advance(secs(2));
    harness.backend_request(STATUS_LINE);
    harness.respond(200, "OK");
    harness.assert_kept_response(&client, "OK");
    harness.assert_next_round(Some(secs(5)));
    harness.advance(secs(5) - NANO);
    harness.assert_connections("1R");
    harness.advance(NANO);
    assert_eq!(harness.receive_all(&client), "", "no request was sent");
    harness.assert_connections("");
    // A request that has begun by then is not whole in time.
    let client = harness.connect(STATUS);
    harness.backend_request(STATUS_LINE);
    harness.respond(200, "OK");
    harness.assert_kept_response(&client, "OK");
    send(&client, "GET /status");
    harness.round();
    harness.advance(secs(5));
    harness.assert_response(&client, "408", "408 Request Timeout\n");
}

#[test]
fn a_connection_that_is_kept_is_evicted_as_any_other_without_a_request() {
    let mut harness = Harness::control(Limits { max_connections: 3, ..LIMITS });
    let clients = [STATUS, "", STATUS].map(|text| harness.connect(text));
    harness.assert_connections("1W 2R 3W");
    harness.backend_request(STATUS_LINE);
    harness.advance(ms(100));
    harness.respond(200, "OK");
    harness.assert_kept_response(&clients[0], "OK");
    harness.assert_kept_response(&clients[2], "OK");
    harness.assert_connections("1R 2R 3R");
    // It is the oldest, though it has had its response a moment ago.
    let _newcomer = harness.connect("");
    harness.assert_connections("2R 3R 4R");
    let _hook = harness.connect(DRAIN);
    harness.assert_connections("3R 4R 5W");
    let _hook = harness.connect(EXEC_HOOK);
    harness.assert_connections("4R 5W 6W");
}

#[test]
fn a_slow_client_keeps_its_connection_once_it_has_its_response() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(STATUS);
    harness.backend_request(STATUS_LINE);
    harness.shrink_send_buffer(0);
    let body = "0123456789".repeat(5000);
    harness.respond(200, &body);
    harness.assert_connections("1S");
    harness.advance(secs(4));
    harness.assert_kept_response(&client, &body);
    harness.assert_connections("1R");
    harness.assert_next_round(Some(secs(5)));
}
