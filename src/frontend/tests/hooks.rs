//! Hooks that wait for the end of their drain, and their responses.

use super::*;

#[test]
fn nothing_is_requested_for_hooks_until_their_drain_has_ended() {
    let mut harness = Harness::public(LIMITS);
    let early = harness.connect(SHUTDOWN);
    harness.assert_connections("1W");
    harness.start_drain();
    let late = harness.connect_control(SHUTDOWN.replace("GET", "HEAD"));
    let exec = harness.connect_control(EXEC_HOOK);
    harness.assert_connections("1W 2W 3W");
    harness.assert_no_backend_request();
    harness.start_worker();
    harness.await_end(1);
    // The control socket's oldest is first, and Envoy's hooks share a request.
    harness.backend_request("GET /shutdown?awaited=1");
    harness.respond(200, "drained");
    harness.assert_response(&early, "200", "drained");
    harness.assert_response(&late, "200", "");
    harness.backend_request("GET /shutdown?drain=1");
    harness.respond(200, "drained\n");
    harness.assert_response(&exec, "200", "drained\n");
    harness.assert_no_backend_request();
    assert_eq!(harness.responses(), [(Some(PublicRoute::Shutdown), "200", 1)]);
}

#[test]
fn envoys_hook_waits_for_the_drain_that_the_frontend_knows_whatever_its_query() {
    for query in ["awaited=0", "awaited=9", "x"] {
        let mut harness = Harness::public(LIMITS);
        harness.start_drain();
        let text = format!("GET /shutdown?{query} HTTP/1.1\r\n\r\n");
        let clients = [harness.connect(&text), harness.connect_control(&text)];
        harness.run_until("2 hooks", |harness| harness.envoy_hooks() == 2);
        harness.assert_no_backend_request();
        harness.start_worker();
        harness.backend_request("GET /shutdown?awaited=1");
        harness.respond(200, "drained");
        for client in clients {
            harness.assert_response(&client, "200", "drained");
        }
    }
    // An exec hook has no business at the public port.
    let mut harness = Harness::public(LIMITS);
    let _client = harness.connect(EXEC_HOOK);
    harness.run_until("1 hook", |harness| harness.envoy_hooks() == 1);
    harness.assert_no_backend_request();
}

#[test]
fn hooks_get_their_response_when_the_sidecar_stops() {
    let mut harness = Harness::public(LIMITS);
    harness.coordinator.stop();
    harness.start_worker();
    harness.coordinator.wait_until_over();
    let client = harness.connect(SHUTDOWN);
    harness.backend_request("GET /shutdown?awaited=1");
    harness.respond(503, "the sidecar is stopping\n");
    harness.assert_response(&client, "503", "the sidecar is stopping\n");
}

#[test]
fn a_hook_that_waits_is_requested_once_a_signal_has_drained_envoy() {
    let mut harness = Harness::public(LIMITS);
    let client = harness.connect(SHUTDOWN);
    harness.assert_connections("1W");
    harness.assert_no_backend_request();
    harness.coordinator.stop();
    harness.start_worker();
    harness.backend_request("GET /shutdown?awaited=1");
    harness.respond(200, "drained");
    harness.assert_response(&client, "200", "drained");
}

#[test]
fn hooks_whose_wait_goes_on_are_requested_again_at_its_end() {
    let mut harness = Harness::public(LIMITS);
    harness.start_drain();
    harness.start_worker();
    harness.await_end(1);
    // What has ended is found to hold for these, until the next drain starts.
    let first = harness.connect(SHUTDOWN);
    harness.backend_request("GET /shutdown?awaited=2");
    let exec = harness.connect_control("GET /shutdown?drain=2 HTTP/1.1\r\n\r\n");
    harness.run_until("2 connections", |harness| harness.frontend.connections.len() == 2);
    let envoy = Arc::clone(&harness.envoy);
    let paused = envoy.lock().unwrap();
    harness.start_drain();
    harness.respond(202, "the drain goes on\n");
    harness.backend_request("GET /shutdown?drain=2");
    harness.respond(202, "the drain goes on\n");
    harness.assert_connections("1W 2W");
    harness.assert_no_backend_request();
    harness.assert_idle();
    let second = harness.connect(SHUTDOWN);
    harness.assert_connections("1W 2W 3W");
    // A change that is not the end.
    harness.start_drain();
    harness.assert_connections("1W 2W 3W");
    harness.assert_no_backend_request();
    drop(paused);
    harness.await_end(2);
    harness.backend_request("GET /shutdown?awaited=2");
    harness.respond(200, "drained");
    for client in [first, second] {
        harness.assert_response(&client, "200", "drained");
    }
    harness.backend_request("GET /shutdown?drain=2");
    harness.respond(200, "drained\n");
    harness.assert_response(&exec, "200", "drained\n");
    harness.assert_wires(1);
    assert_eq!(harness.responses(), [(Some(PublicRoute::Shutdown), "200", 2)]);
}

#[test]
fn hooks_outlive_the_loss_of_their_wire() {
    let mut harness = Harness::public(LIMITS);
    harness.start_drain();
    let hook = harness.connect(SHUTDOWN);
    harness.assert_connections("1W");
    let exec = harness.connect_control(EXEC_HOOK);
    harness.assert_connections("1W 2W");
    // While they wait for the drain,
    harness.end_wire();
    harness.start_worker();
    harness.await_end(1);
    harness.assert_connections("1W 2W");
    harness.advance(ms(500));
    harness.assert_wires(2);
    // while one was requested and the other waits for that one's response,
    harness.backend_request("GET /shutdown?awaited=1");
    harness.end_wire();
    harness.assert_connections("1W 2W");
    harness.advance(ms(500));
    harness.backend_request("GET /shutdown?awaited=1");
    harness.respond(200, "drained");
    harness.assert_response(&hook, "200", "drained");
    // and while the other was requested.
    harness.backend_request("GET /shutdown?drain=1");
    harness.end_wire();
    harness.assert_connections("2W");
    harness.advance(ms(500));
    harness.assert_wires(4);
    harness.backend_request("GET /shutdown?drain=1");
    harness.respond(200, "drained\n");
    harness.assert_response(&exec, "200", "drained\n");
    harness.assert_no_backend_request();
}

/// A drain has ended, for an exec hook and for an Envoy's hook, which is requested now.
fn ended(at: ListenerId) -> (Harness, Socket, Socket) {
    let mut harness = Harness::new(at, LIMITS, clock::now());
    harness.start_drain();
    let exec = harness.connect_control(EXEC_HOOK);
    harness.assert_connections("1W");
    let hook = harness.connect(SHUTDOWN);
    harness.assert_connections("1W 2W");
    harness.start_worker();
    harness.await_end(1);
    // The coordinator has the clock's time of the end.
    harness.now = clock::now();
    harness.backend_request("GET /shutdown?awaited=1");
    harness.assert_connections("1W 2W");
    (harness, exec, hook)
}

/// The same, and Envoy's hook takes its response slowly.
fn ended_slowly() -> (Harness, Socket, Socket, String) {
    let (mut harness, exec, hook) = ended(ListenerId::Control);
    let body = "x".repeat(60_000);
    harness.shrink_send_buffer(1);
    harness.respond(200, &body);
    harness.assert_connections("1W 2S");
    harness.assert_envoy_hooks(1);
    harness.assert_no_backend_request();
    (harness, exec, hook, body)
}

#[test]
fn an_exec_hook_has_its_response_after_envoys_hooks() {
    let (mut harness, exec, hook, body) = ended_slowly();
    harness.assert_response(&hook, "200", &body);
    harness.backend_request("GET /shutdown?drain=1");
    harness.respond(200, "drained\n");
    harness.assert_response(&exec, "200", "drained\n");
    harness.assert_connections("");
    harness.assert_no_backend_request();
}

#[test]
fn an_exec_hook_has_its_response_when_envoys_last_hook_has_left() {
    for at in ListenerId::ALL {
        let (mut harness, exec, hook) = ended(at);
        drop(hook);
        harness.assert_connections("1W");
        harness.respond(200, "drained");
        harness.backend_request("GET /shutdown?drain=1");
        harness.respond(200, "drained\n");
        harness.assert_response(&exec, "200", "drained\n");
    }
}

#[test]
fn exec_hooks_have_their_response_a_second_after_the_end_at_most() {
    let (mut harness, exec, hook, body) = ended_slowly();
    let due = harness.coordinator.tracker().answer_due(&Route::ExecHook(1)).unwrap();
    let left = due - harness.now;
    assert!(left > ms(500) && left <= secs(1), "the end was just now: {left:?}");
    harness.assert_next_round(Some(left));
    harness.advance(ms(400));
    let other = harness.connect_control(EXEC_HOOK.replace("GET", "HEAD"));
    harness.assert_connections("1W 2S 3W");
    harness.advance(left - ms(400) - NANO);
    harness.assert_no_backend_request();
    harness.advance(NANO);
    harness.backend_request("GET /shutdown?drain=1");
    // Not at once: they have no deadline any more.
    harness.assert_next_round(Some(ms(500)));
    harness.respond(200, "drained\n");
    harness.assert_response(&exec, "200", "drained\n");
    harness.assert_response(&other, "200", "");
    harness.assert_response(&hook, "200", &body);
}

#[test]
fn an_exec_hook_without_a_drain_has_its_response_at_once() {
    let mut harness = Harness::control(LIMITS);
    let _hook = harness.connect(SHUTDOWN);
    harness.assert_connections("1W");
    let exec = harness.connect(EXEC_HOOK);
    harness.backend_request("GET /shutdown?drain=1");
    harness.respond(410, "there is no such drain\n");
    harness.assert_response(&exec, "410", "there is no such drain\n");
    harness.assert_envoy_hooks(1);
}

#[test]
fn an_exec_hook_is_not_held_where_no_envoy_hook_waits() {
    let mut harness = Harness::control(LIMITS);
    let exec = harness.connect(EXEC_HOOK.replace("GET", "HEAD"));
    harness.backend_request("GET /shutdown?drain=1");
    harness.respond(200, "drained\n");
    harness.assert_response(&exec, "200", "");
    harness.assert_idle();
}
