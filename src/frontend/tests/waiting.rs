//! Clients that wait for a drain: their slots, and their timeouts.

use super::*;

#[test]
fn the_source_with_most_waiters_loses_its_newest() {
    let mut harness = Harness::public(Limits { max_connections: 8, ..LIMITS });
    let _first = harness.connect_from(1, SHUTDOWN);
    let second = harness.connect_from(1, SHUTDOWN.replace("GET", "HEAD"));
    let _probe = harness.connect_from(1, HEALTHZ);
    harness.assert_connections("1W 2W 3W");
    let third = harness.connect_from(1, SHUTDOWN);
    harness.assert_response(&third, "503", "too many clients wait already\n");
    harness.assert_connections("1W 2W 3W 4L");
    let _other = harness.connect_from(2, SHUTDOWN);
    harness.assert_response(&second, "503", "");
    harness.assert_connections("1W 2L 3W 4L 5W");
    let late = harness.connect_from(3, SHUTDOWN);
    harness.assert_response(&late, "503", "too many clients wait already\n");
    assert_eq!((harness.rejected_connections(), harness.envoy_hooks()), (3, 2));
    assert_eq!(harness.responses(), [(Some(PublicRoute::Shutdown), "503", 3)]);
}

#[test]
fn envoy_hooks_and_exec_hooks_have_their_own_slots() {
    let mut harness = Harness::control(Limits { max_connections: 8, ..LIMITS });
    let hook = |number: u32| format!("GET /shutdown?drain={number} HTTP/1.1\r\n\r\n");
    let clients: Vec<_> =
        [SHUTDOWN, &hook(1), SHUTDOWN, &hook(2)].map(|text| harness.connect(text)).into();
    harness.assert_connections("1W 2W 3W 4W");
    harness.assert_envoy_hooks(2);
    for text in [SHUTDOWN, &hook(3)] {
        let late = harness.connect(text);
        harness.assert_response(&late, "503", "too many clients wait already\n");
    }
    // Envoy's hooks time out here, too.
    harness.advance(TIMEOUTS.start);
    for client in [&clients[0], &clients[2]] {
        harness.assert_response(client, "503", "no drain started within the start timeout\n");
    }
    assert_eq!(harness.connections().matches('W').count(), 2, "exec hooks that wait");
    drop(clients);
    harness.assert_connections("");
}

#[test]
fn envoys_hook_gets_503_after_the_start_timeout_unless_a_drain_has_started() {
    let mut harness = Harness::public(LIMITS);
    let client = harness.connect(SHUTDOWN);
    harness.assert_connections("1W");
    // It is logged that no exec hook has come; at rest nothing is due.
    harness.assert_next_round(Some(HOOK_PAIRING_WINDOW));
    harness.advance(HOOK_PAIRING_WINDOW - NANO);
    harness.advance(NANO);
    harness.assert_next_round(Some(TIMEOUTS.start - HOOK_PAIRING_WINDOW));
    assert_eq!(harness.frontend.logs.lone_hook.happened(harness.now), None, "{NOT_LOGGED}");
    harness.advance(TIMEOUTS.start - HOOK_PAIRING_WINDOW - NANO);
    harness.assert_connections("1W");
    harness.assert_envoy_hooks(1);
    harness.advance(NANO);
    harness.assert_response(&client, "503", "no drain started within the start timeout\n");
    harness.run_until("0 of Envoy's hooks", |harness| harness.envoy_hooks() == 0);
    assert_eq!(harness.responses(), [(Some(PublicRoute::Shutdown), "503", 1)]);
    assert_eq!(harness.frontend.logs.start_timeout.happened(harness.now), None, "{NOT_LOGGED}");

    harness.frontend.logs.lone_hook = RateLimit::default();
    let client = harness.connect(SHUTDOWN);
    harness.assert_connections("1L 2W");
    harness.start_drain();
    harness.advance(TIMEOUTS.start);
    assert_eq!(harness.frontend.logs.lone_hook.happened(harness.now), Some(1), "it is not alone");
    harness.assert_connections("2W");
    harness.assert_next_round(Some(TIMEOUTS.start));
    harness.assert_no_backend_request();
    harness.start_worker();
    harness.backend_request("GET /shutdown?awaited=1");
    harness.respond(200, "drained");
    harness.assert_response(&client, "200", "drained");
    assert_eq!(harness.responses()[0], (Some(PublicRoute::Shutdown), "200", 1));
}

#[test]
fn envoys_hook_gets_500_after_the_ready_timeout_even_during_a_drain() {
    let mut harness = Harness::public(LIMITS);
    harness.frontend.timeouts.ready = Some(secs(20));
    let client = harness.connect(SHUTDOWN);
    harness.assert_connections("1W");
    harness.start_drain();
    harness.advance(TIMEOUTS.start);
    let _later = harness.connect(SHUTDOWN);
    harness.assert_connections("1W 2W");
    harness.assert_next_round(Some(HOOK_PAIRING_WINDOW));
    harness.advance(HOOK_PAIRING_WINDOW);
    harness.assert_next_round(Some(secs(5) - HOOK_PAIRING_WINDOW));
    harness.advance(secs(5) - HOOK_PAIRING_WINDOW - NANO);
    harness.assert_connections("1W 2W");
    harness.advance(NANO);
    harness.assert_response(&client, "500", "the drain has not ended within the ready timeout\n");
    assert_eq!(harness.responses(), [(Some(PublicRoute::Shutdown), "500", 1)]);
    assert_eq!(harness.frontend.logs.ready_timeout.happened(harness.now), None, "{NOT_LOGGED}");
    harness.run_until("1 of Envoy's hooks", |harness| harness.envoy_hooks() == 1);
    // Without a drain, too, if the ready timeout passes before the start timeout.
    let mut harness = Harness::public(LIMITS);
    harness.frontend.timeouts.ready = Some(secs(1));
    let client = harness.connect(SHUTDOWN);
    harness.assert_connections("1W");
    harness.advance(secs(1));
    harness.assert_response(&client, "500", "the drain has not ended within the ready timeout\n");
}

#[test]
fn an_exec_hook_waits_without_a_timeout() {
    let mut harness = Harness::control(LIMITS);
    harness.start_drain();
    let client = harness.connect("GET /shutdown?drain=01 HTTP/1.1\r\n\r\n");
    harness.assert_connections("1W");
    assert_eq!((harness.next_round(), harness.envoy_hooks()), (None, 0));
    harness.advance(secs(86_400));
    harness.assert_connections("1W");
    harness.assert_no_backend_request();
    harness.start_worker();
    harness.backend_request("GET /shutdown?drain=1");
    harness.respond(200, "drained\n");
    harness.assert_response(&client, "200", "drained\n");
}

#[test]
fn a_waiter_came_with_the_drain_if_its_request_did() {
    let mut harness = Harness::public(Limits { max_connections: 8, ..LIMITS });
    harness.start_drain();
    // By the real clock.
    harness.now = harness.coordinator.tracker().drain_start().expect("a drain");
    // It connects as the drain starts, and makes its request 4 s later.
    let late = harness.connect_from(1, "");
    let hook = harness.connect_from(1, SHUTDOWN);
    harness.assert_connections("1R 2W");
    harness.advance(secs(4));
    send(&late, SHUTDOWN);
    harness.assert_connections("1W 2W");
    let _other = harness.connect_from(2, SHUTDOWN);
    harness.run_until("3 connections", |harness| harness.frontend.connections.len() == 3);
    assert_eq!(harness.connections(), "1L 2W 3W", "the hook that came with the drain has to go");
    harness.assert_response(&late, "503", "too many clients wait already\n");
    drop(hook);
}
