//! Single clients, from their request to the end of their connection.

use super::admission::SourceKey;
use super::*;

#[test]
fn clients_that_request_the_same_share_one_backend_request_at_both_listeners() {
    let mut harness = Harness::public(LIMITS);
    let get = harness.connect(HEALTHZ);
    harness.backend_request("GET /healthz");
    // While it is in flight.
    let head = harness.connect(HEALTHZ.replace("GET", "HEAD"));
    let other = harness.connect(METRICS);
    let control = harness.connect_control(HEALTHZ);
    harness.run_until("4 connections", |harness| harness.frontend.connections.len() == 4);
    harness.assert_no_backend_request();
    // The response arrives in pieces.
    harness.backend_sends("HTTP/1.1 200 OK\r\n");
    harness.run_until("4 connections", |harness| harness.connections().matches('W').count() == 4);
    harness.backend_sends("Content-Type: a/b\r\nContent-Length: 2\r\n\r\nO");
    harness.assert_no_backend_request();
    harness.backend_sends("K");
    let text = harness.receive_all(&get);
    assert!(text.starts_with("HTTP/1.1 200 OK\r\nDate: "), "{text}");
    assert!(text.contains("\r\nContent-Type: a/b\r\nContent-Length: 2\r\n"), "{text}");
    assert!(text.ends_with("\r\n\r\nOK"), "{text}");
    harness.assert_response(&head, "200", "");
    harness.assert_response(&control, "200", "OK");
    assert_eq!(harness.responses(), [(Some(PublicRoute::Healthz), "200", 2)]);
    harness.backend_request("GET /metrics");
    harness.respond(503, "down");
    harness.assert_response(&other, "503", "down");
    assert_eq!(harness.responses()[1], (Some(PublicRoute::Metrics), "503", 1));
    // Those that come before it is sent share it, too.
    let waits = harness.connect(METRICS);
    harness.backend_request("GET /metrics");
    let due = [harness.connect(HEALTHZ), harness.connect_control(HEALTHZ)];
    harness.run_until("3 connections", |harness| harness.frontend.connections.len() == 3);
    harness.respond(200, "numbers");
    harness.assert_response(&waits, "200", "numbers");
    harness.backend_request("GET /healthz");
    harness.respond(200, "OK");
    for client in due {
        harness.assert_response(&client, "200", "OK");
    }
    harness.assert_connections("");
    harness.assert_no_backend_request();
    harness.assert_idle();
    harness.assert_wires(1);
    assert_eq!((harness.rejected_connections(), harness.next_round()), (0, None));
}

#[test]
fn rejections_are_counted_at_the_public_port_alone_and_logged_at_the_control_socket_alone() {
    let mut harness = Harness::public(LIMITS);
    for (start, status) in [("GET /nowhere", "404"), ("POST /metrics", "405"), ("GET", "400")] {
        let client = harness.connect(format!("{start} HTTP/1.1\r\n\r\n"));
        let text = harness.receive_all(&client);
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
        assert_eq!(text.contains("\r\nAllow: GET, HEAD\r\n"), status == "405", "{text}");
        assert!(text.ends_with(&format!("\r\n\r\n{}\n", &text[9..text.find('\r').unwrap()])));
    }
    let expected = [(Some(PublicRoute::Metrics), "405", 1), (None, "400", 1), (None, "404", 1)];
    assert_eq!(harness.responses(), expected);
    let logged = harness.frontend.logs.rejections.happened(harness.now);
    assert_eq!(logged, Some(1), "it was logged at the public port");
    // The control socket has more paths, and decides about them itself as well.
    for (start, status) in [
        ("PUT /drain", "405"),
        ("GET /drain", "405"),
        ("POST /status", "405"),
        ("GET /nowhere", "404"),
        ("GET /shutdown?drain=0", "400"),
        ("GET /shutdown?drain=x", "400"),
    ] {
        harness.frontend.logs = Logs::default();
        let client = harness.connect_control(format!("{start} HTTP/1.1\r\n\r\n"));
        let text = harness.receive_all(&client);
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{start}: {text}");
        assert!(!text.contains("\r\nAllow: "), "{start}: {text}");
        assert!(text.ends_with(&format!("\r\n\r\n{}\n", &text[9..text.find('\r').unwrap()])));
        let logged = harness.frontend.logs.rejections.happened(harness.now);
        assert_eq!(logged, None, "{NOT_LOGGED}: {start}");
    }
    assert_eq!(harness.responses(), expected, "counted at the control socket");
    harness.assert_no_backend_request();
}

#[test]
fn bytes_after_a_request_are_discarded_for_a_second() {
    let mut harness = Harness::public(LIMITS);
    let probe = harness.connect(HEALTHZ.to_owned() + "x");
    harness.backend_request("GET /healthz");
    harness.respond(200, "OK");
    harness.assert_response(&probe, "200", "OK");
    let hook = harness.connect(SHUTDOWN.to_owned() + "x");
    harness.assert_response(&hook, "400", "nothing may follow this request\n");
    assert_eq!(harness.responses()[1], (Some(PublicRoute::Shutdown), "400", 1));
    harness.assert_connections("1L 2L");
    send(&probe, "more");
    harness.assert_connections("1L 2L");
    drop(probe);
    harness.assert_connections("2L");
    harness.assert_next_round(Some(secs(1)));
    harness.advance(secs(1) - NANO);
    harness.assert_connections("2L");
    harness.advance(NANO);
    harness.assert_connections("");
    harness.assert_no_backend_request();
}

#[test]
fn bytes_after_a_response_are_discarded_up_to_a_bound() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let (id, start) = (ConnectionId(1), Timestamp::ZERO);
    let mut client = Connection::new(near.into(), ListenerId::Public, SourceKey::LOCAL, id, start);
    let response = Arc::new(Response::new(Status::Ok, PLAIN_TEXT, b"OK", "", false));
    client.respond(response, false, After::Linger, Timestamp::ZERO);
    assert!(matches!(client.state, ConnectionState::Lingering(4_194_304)));
    client.state = ConnectionState::Lingering(10);
    client.discard();
    assert!(matches!(client.state, ConnectionState::Lingering(10)), "nothing was sent");
    for (text, left) in [("1234", 6), ("56789", 1)] {
        far.write_all(text.as_bytes()).unwrap();
        client.discard();
        assert!(matches!(client.state, ConnectionState::Lingering(n) if n == left), "{client:?}");
    }
    far.write_all(b"0").unwrap();
    client.discard();
    assert!(matches!(client.state, ConnectionState::Closed), "{client:?}");
}

#[test]
fn a_request_head_must_arrive_within_five_seconds() {
    let mut harness = Harness::public(LIMITS);
    let silent = harness.connect("");
    let incomplete = harness.connect("GET /");
    harness.assert_connections("1R 2R");
    harness.advance(secs(5) - NANO);
    harness.assert_connections("1R 2R");
    harness.assert_next_round(Some(NANO));
    harness.advance(NANO);
    assert_eq!(harness.receive_all(&silent), "", "a client without a single byte got a response");
    harness.assert_response(&incomplete, "408", "408 Request Timeout\n");
    assert_eq!(harness.responses(), [(None, "408", 1)]);
}

#[test]
fn a_request_head_may_arrive_in_pieces() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect("");
    for (number, piece) in SHUTDOWN.as_bytes().chunks(1).enumerate() {
        harness.assert_connections("1R");
        assert_eq!(harness.frontend.connections[0].unfinished(), number);
        send(&client, piece);
    }
    harness.assert_connections("1W");
}

#[test]
fn a_half_closed_client_gets_its_response_unless_it_waits_for_a_drain() {
    let mut harness = Harness::public(LIMITS);
    let clients = [HEALTHZ, SHUTDOWN, "GET /", SHUTDOWN].map(|text| {
        let client = harness.connect(text);
        client.shutdown(Shutdown::Write).unwrap();
        client
    });
    harness.assert_connections("1W");
    send(&harness.connect(SHUTDOWN), "x");
    harness.assert_connections("1W");
    harness.assert_envoy_hooks(0);
    for client in &clients[1..] {
        assert_eq!(harness.receive_all(client), "");
    }
    harness.backend_request("GET /healthz");
    harness.respond(200, "OK");
    harness.assert_response(&clients[0], "200", "OK");
}

#[test]
fn a_slow_client_counts_as_a_waiter_until_it_has_its_response_or_five_seconds_pass() {
    let mut harness = Harness::control(LIMITS);
    let body: String = (0..10_000).map(|n| format!("{n:05} ")).collect();
    harness.start_drain();
    // What the first has waited for is found to hold for the second.
    for number in 1..=2 {
        let client = harness.connect(SHUTDOWN);
        harness.assert_connections(&format!("{number}W"));
        if number == 1 {
            harness.start_worker();
        }
        harness.backend_request(&format!("GET /shutdown?awaited={number}"));
        harness.assert_envoy_hooks(1);
        harness.shrink_send_buffer(0);
        harness.respond(200, &body);
        harness.assert_connections(&format!("{number}S"));
        harness.assert_envoy_hooks(1);
        harness.assert_next_round(Some(secs(5)));
        harness.advance(secs(5) - NANO);
        harness.assert_connections(&format!("{number}S"));
        if number == 1 {
            harness.assert_response(&client, "200", &body);
        } else {
            harness.advance(NANO);
            assert!(harness.receive_all(&client).len() < body.len());
        }
        harness.assert_connections("");
        harness.assert_envoy_hooks(0);
    }
}
