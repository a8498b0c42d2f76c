//! More connections than fit.

use std::mem;

use super::*;

#[test]
fn at_most_64_connections_linger() {
    let mut harness = Harness::control(Limits { max_connections: 100, ..LIMITS });
    let silent = harness.connect("");
    let clients: Vec<_> = (0..65).map(|_| harness.connect(BAD_METHOD)).collect();
    let last = (3..=66).map(|number| format!(" {number}L")).collect::<String>();
    harness.assert_connections(&format!("1R{last}"));
    drop((silent, clients));
    harness.assert_connections("");
}

#[test]
fn the_oldest_connection_without_a_request_is_evicted() {
    let mut harness = Harness::public(Limits { max_connections: 3, ..LIMITS });
    let first = [(); 3].map(|()| harness.connect(""));
    harness.assert_connections("1R 2R 3R");
    let fourth = harness.connect("");
    harness.assert_connections("2R 3R 4R");
    assert_eq!(harness.receive_all(&first[0]), "");
    let _fifth = harness.connect("");
    harness.assert_connections("3R 4R 5R");
    send(&first[2], HEALTHZ);
    harness.assert_connections("3W 4R 5R");
    let _sixth = harness.connect("");
    harness.assert_connections("3W 5R 6R");
    assert_eq!(harness.receive_all(&fourth), "");
    harness.assert_rejected(3);
    let endpoint = harness.frontend.endpoint_mut(ListenerId::Public);
    assert_eq!(endpoint.limit_log.happened(harness.now), None, "{NOT_LOGGED}");
}

#[test]
fn a_response_in_progress_outlives_a_sent_one_and_a_waiting_client_is_never_evicted() {
    let mut harness = Harness::control(Limits { max_connections: 3, ..LIMITS });
    let _slow = harness.connect(HEALTHZ);
    harness.assert_connections("1W");
    harness.shrink_send_buffer(0);
    harness.backend_request("GET /healthz");
    harness.respond(200, &"x".repeat(60_000));
    let _rejected = harness.connect(BAD_METHOD);
    let _silent = harness.connect("");
    harness.assert_connections("1S 2L 3R");
    harness.advance(ms(100));
    let fourth = harness.connect("");
    harness.assert_connections("1S 2L 4R");
    send(&fourth, HEALTHZ);
    harness.assert_connections("1S 2L 4W");
    let _fifth = harness.connect(HEALTHZ);
    harness.assert_connections("1S 4W 5W");
    // The last evictable connection is kept while another client waits, but only briefly.
    let newcomer = harness.connect(HEALTHZ);
    harness.assert_connections("1S 4W 5W");
    let ready = harness.frontend.wait_ready(harness.now, harness.now);
    assert_eq!(ready.listeners, [false; 2], "a listener is polled that must not accept");
    harness.backend_request("GET /healthz");
    harness.respond(200, "OK");
    harness.assert_response(&fourth, "200", "OK");
    harness.assert_connections("1S 6W");
    harness.backend_request("GET /healthz");
    harness.respond(200, "OK");
    harness.assert_response(&newcomer, "200", "OK");
    assert_eq!(harness.rejected_connections(), 0, "counted at the control socket");
}

#[test]
fn a_connection_just_accepted_outlives_one_whose_response_is_sent() {
    let mut harness = Harness::public(Limits { max_connections: 2, ..LIMITS });
    let responded = harness.connect(BAD_METHOD);
    let slow = harness.connect_from(2, "");
    harness.assert_connections("1L 2R");
    harness.advance(ms(100) - NANO);
    let _third = harness.connect_from(3, "");
    harness.assert_connections("2R 3R");
    harness.advance(NANO);
    let _fourth = harness.connect_from(4, BAD_METHOD);
    harness.assert_connections("3R 4L");
    assert!(harness.receive_all(&responded).starts_with("HTTP/1.1 404 "));
    assert_eq!(harness.receive_all(&slow), "");
}

#[test]
fn a_connection_whose_request_has_arrived_is_not_evicted() {
    let mut harness = Harness::control(Limits { max_connections: 2, ..LIMITS });
    let first = harness.connect("");
    let _second = harness.connect("");
    harness.assert_connections("1R 2R");
    send(&first, HEALTHZ);
    let _third = harness.connect("");
    // The first has not been polled since its request arrived.
    harness.frontend.accept(ListenerId::Control, harness.now);
    assert_eq!(harness.connections(), "1W 3R");
}

#[test]
fn held_connections_have_their_turn_after_64_are_accepted() {
    let mut harness = Harness::control(Limits { max_connections: 100, ..LIMITS });
    let _clients: Vec<_> = (0..65).map(|_| harness.connect("")).collect();
    harness.frontend.last_id = ConnectionId(10);
    harness.round();
    let held = harness.frontend.connections.len();
    assert_eq!(held, 64, "accepted in one round");
    harness.round();
    let held = harness.frontend.connections.len();
    assert_eq!(held, 65, "accepted in two rounds");
}

#[test]
fn a_full_frontend_accepts_a_sixteenth_of_its_limit_at_once() {
    let mut harness = Harness::control(Limits { max_connections: 100, ..LIMITS });
    let _clients: Vec<_> = (0..100).map(|_| harness.connect("")).collect();
    harness.run_until("100 connections", |harness| harness.frontend.connections.len() == 100);
    assert_eq!(harness.frontend.acceptable(ListenerId::Control), 6, "a sixteenth of 100");
    for connection in &mut harness.frontend.connections[3..] {
        connection.wait(request_for(Route::EnvoyHook(1)), Timestamp::MAX);
    }
    assert_eq!(harness.frontend.acceptable(ListenerId::Control), 3, "three are evictable");
}

#[test]
fn newcomers_count_toward_their_source() {
    for (hosts, evicted) in [
        // Of these, host 3 had most before, and host 2 has as many now.
        ([(3, ""), (3, ""), (3, ""), (2, ""), (3, HEALTHZ), (2, HEALTHZ), (2, HEALTHZ)], 30),
        // Host 1 has most, and none that is evictable.
        ([(1, HEALTHZ), (1, HEALTHZ), (2, ""), (3, ""), (4, ""), (1, HEALTHZ), (1, HEALTHZ)], 29),
    ] {
        let mut harness = Harness::public(Limits { max_connections: 32, ..LIMITS });
        let mut clients: Vec<_> = (1..=26).map(|_| harness.connect(HEALTHZ)).collect();
        for (host, text) in &hosts[..5] {
            clients.push(harness.connect_from(*host, text));
        }
        harness.run_until("31 connections", |harness| harness.frontend.connections.len() == 31);
        // Two more at once, and room for one.
        clients.extend(hosts[5..].iter().map(|(host, text)| harness.connect_from(*host, text)));
        let sent = |number: usize| hosts.get(number - 27).map_or(HEALTHZ, |(_, text)| text);
        let letter = |number| if number < 27 || sent(number) == HEALTHZ { 'W' } else { 'R' };
        let held = (1..=33).filter(|number| *number != evicted);
        let held: Vec<_> = held.map(|number| format!("{number}{}", letter(number))).collect();
        harness.assert_connections(&held.join(" "));
    }
}

#[test]
fn incomplete_request_heads_are_kept_within_their_bound() {
    let mut harness = Harness::control(Limits { max_connections: 100, ..LIMITS });
    let start =
        |length: usize| "GET /healthz HTTP/1.1\r\na: ".to_owned() + &"b".repeat(length - 26);
    let silent = [(); 2].map(|()| harness.connect(""));
    let clients = [&[4095; 32][..], &[32]].concat().into_iter();
    let clients: Vec<_> = clients.map(|length| harness.connect(start(length))).collect();
    let held = |first: usize| {
        let all = (first..=35).map(|number| format!(" {number}R"));
        "1R 2R".to_owned() + &all.collect::<String>()
    };
    harness.assert_connections(&held(3));
    send(clients.last().unwrap(), "b");
    harness.assert_connections(&held(4));
    assert_eq!(harness.receive_all(&clients[0]), "");
    drop(silent);
}

#[test]
fn a_failed_accept_is_retried_after_a_tenth_of_a_second() {
    let mut harness = Harness::control(LIMITS);
    // Not a listening socket.
    let broken = OwnedFd::from(Socket::new(Domain::UNIX, Type::STREAM, None).unwrap());
    let broken = Listener::Control(broken.into());
    let endpoint = harness.frontend.endpoint_mut(ListenerId::Control);
    let listener = mem::replace(&mut endpoint.listener, broken);
    harness.frontend.accept(ListenerId::Control, harness.now);
    let endpoint = harness.frontend.endpoint_mut(ListenerId::Control);
    assert_eq!(endpoint.accept_log.happened(harness.now), None, "{NOT_LOGGED}");
    endpoint.listener = listener;
    let _client = harness.connect("");
    harness.assert_next_round(Some(ms(100)));
    harness.advance(ms(100) - NANO);
    harness.assert_connections("");
    // The other listener is not affected.
    let _other = harness.connect_public("");
    harness.assert_connections("1R");
    harness.now = harness.now + NANO;
    harness.assert_next_round(Some(secs(5) - NANO));
    harness.assert_connections("1R 2R");
}
