//! What survives a panic, with the frontend started again as its supervisor does.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

/// A round that panics, after a loss of the wire, and the start after it.
#[track_caller]
fn panic_and_start(harness: &mut Harness) {
    *harness.connects.lock().unwrap() = Connects::Panic;
    harness.wire().shutdown(Shutdown::Both).unwrap();
    harness.now = harness.now + ms(500);
    let panicked = catch_unwind(AssertUnwindSafe(|| harness.round()));
    assert!(panicked.is_err(), "the round did not panic; {}", harness.state());
    harness.frontend.start(harness.now);
}

/// A round in which a client has its response.
#[track_caller]
fn good_round(harness: &mut Harness) {
    harness.advance(ms(500));
    let probe = harness.connect(HEALTHZ);
    harness.backend_request("GET /healthz");
    harness.respond(200, "OK");
    harness.assert_response(&probe, "200", "OK");
}

#[test]
fn only_waiting_connections_survive_a_panic() {
    let mut harness = Harness::control(Limits { max_connections: 8, ..LIMITS });
    harness.start_drain();
    let waiting = [SHUTDOWN, EXEC_HOOK, HEALTHZ].map(|text| harness.connect(text));
    harness.backend_request("GET /healthz");
    let incomplete = harness.connect("GET /healthz");
    harness.assert_connections("1W 2W 3W 4R");
    let rejected = harness.connect(BAD_METHOD);
    harness.assert_connections("1W 2W 3W 4R 5L");
    panic_and_start(&mut harness);
    harness.assert_connections("1W 2W 3W");
    harness.assert_envoy_hooks(1);
    assert_eq!(harness.receive_all(&incomplete), "", "a response after a panic");
    assert!(harness.receive_all(&rejected).starts_with("HTTP/1.1 404 "));
    harness.advance(ms(500));
    harness.backend_request("GET /healthz");
    harness.respond(200, "OK");
    harness.assert_response(&waiting[2], "200", "OK");
    // What the drain's end changes is seen after a panic, too.
    panic_and_start(&mut harness);
    harness.start_worker();
    harness.await_end(1);
    harness.advance(ms(500));
    harness.backend_request("GET /shutdown?awaited=1");
    harness.respond(200, "drained");
    harness.assert_response(&waiting[0], "200", "drained");
    harness.backend_request("GET /shutdown?drain=1");
    harness.respond(200, "drained\n");
    harness.assert_response(&waiting[1], "200", "drained\n");
}

#[test]
fn what_changed_in_a_round_that_panicked_is_seen_at_the_next_start() {
    let mut harness = Harness::control(LIMITS);
    harness.start_drain();
    let hook = harness.connect(SHUTDOWN);
    harness.assert_connections("1W");
    harness.start_worker();
    harness.await_end(1);
    // As far as the round came.
    harness.frontend.waker.clear();
    harness.frontend.start(harness.now);
    let due = harness.frontend.connections[0].due();
    assert_eq!(
        due,
        Some((&Route::EnvoyHook(1), Timestamp::ZERO)),
        "the end of the drain was not seen"
    );
    harness.advance(ms(500));
    harness.backend_request("GET /shutdown?awaited=1");
    harness.respond(200, "drained");
    harness.assert_response(&hook, "200", "drained");
}

#[test]
fn a_response_that_a_panic_has_swallowed_is_requested_again() {
    let mut harness = Harness::control(LIMITS);
    let hook = harness.connect(EXEC_HOOK);
    harness.backend_request("GET /shutdown?drain=1");
    harness.respond(200, "drained\n");
    // As far as the round came.
    assert!(harness.frontend.upstream.receive().unwrap().is_some());
    harness.frontend.start(harness.now);
    harness.assert_connections("1W");
    harness.advance(ms(500));
    harness.backend_request("GET /shutdown?drain=1");
    harness.assert_wires(2);
    harness.respond(200, "drained\n");
    harness.assert_response(&hook, "200", "drained\n");
}

#[test]
fn a_panic_while_the_start_of_a_drain_is_in_flight_does_not_repeat_it() {
    let mut harness = Harness::control(LIMITS);
    let client = harness.connect(DRAIN);
    harness.backend_request("POST /drain?");
    harness.frontend.start(harness.now);
    harness.assert_response(&client, "503", "the backend does not respond\n");
    harness.advance(ms(500));
    harness.assert_wires(2);
    harness.assert_no_backend_request();
}

#[test]
fn no_connection_survives_if_every_round_panics() {
    let mut harness = Harness::control(LIMITS);
    let waiting = harness.connect(SHUTDOWN);
    harness.assert_connections("1W");
    for times in 1..=MAX_FAILED_STARTS {
        panic_and_start(&mut harness);
        assert_eq!(harness.connections(), "1W", "after {times} panics in a row");
    }
    panic_and_start(&mut harness);
    assert_eq!(harness.connections(), "", "after one panic more");
    assert_eq!(harness.receive_all(&waiting), "");
}

#[test]
fn panics_with_a_good_round_between_them_keep_the_waiting_connection_for_ever() {
    let mut harness = Harness::control(LIMITS);
    harness.start_drain();
    let waiting = harness.connect(SHUTDOWN);
    harness.assert_connections("1W");
    for times in 1..=2 * MAX_FAILED_STARTS {
        panic_and_start(&mut harness);
        good_round(&mut harness);
        let hooks = harness.envoy_hooks();
        assert_eq!(hooks, 1, "the waiting client was dropped at panic {times}, none in a row");
    }
    harness.start_worker();
    harness.backend_request("GET /shutdown?awaited=1");
    harness.respond(200, "drained");
    harness.assert_response(&waiting, "200", "drained");
}

#[test]
fn the_thread_that_serves_goes_on_after_a_panic() {
    // The former wire is old enough by the clock that the thread reads.
    let past = Timestamp::from_boot(clock::now().since_boot() - secs(1));
    let mut harness = Harness::new(ListenerId::Public, LIMITS, past);
    harness.start_drain();
    let hook = harness.connect(SHUTDOWN);
    harness.assert_connections("1W");
    *harness.connects.lock().unwrap() = Connects::Panic;
    harness.wire().shutdown(Shutdown::Both).unwrap();
    harness.start_worker();
    let Harness { mut frontend, made, connects, folder: _folder, .. } = harness;
    // This thread serves until the test process exits.
    thread::spawn(move || while catch_unwind(AssertUnwindSafe(|| frontend.serve())).is_err() {});
    let mut wire = made.recv_timeout(TEST_TIMEOUT).expect("the next wire");
    assert!(matches!(*connects.lock().unwrap(), Connects::Wire), "nothing has panicked");
    wire.set_nonblocking(false).unwrap();
    wire.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while !text.ends_with("\r\n\r\n") {
        let length = wire.read(&mut buffer).unwrap();
        assert!(length > 0, "no whole request: {text}");
        text += &String::from_utf8_lossy(&buffer[..length]);
    }
    assert!(text.starts_with("GET /shutdown?awaited=1 "), "{text}");
    wire.write_all(response(200, "drained").as_bytes()).unwrap();
    let mut text = String::new();
    hook.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    (&hook).read_to_string(&mut text).unwrap();
    assert!(text.ends_with("\r\n\r\ndrained"), "{text}");
}

#[test]
fn a_hook_that_has_no_slot_yet_does_not_survive_a_panic() {
    let mut harness = Harness::public(LIMITS);
    harness.start_drain();
    harness.start_worker();
    harness.await_end(1);
    let hook = harness.connect("GET /shutdown HTTP/1.1\r\n");
    harness.assert_connections("1R");
    // As far as the round came: which drain it waits for is not known.
    let request = request_for(Route::EnvoyHook(0));
    harness.frontend.connections[0].wait(request, harness.now + RESPONSE_TIMEOUT);
    harness.frontend.start(harness.now);
    assert_eq!(harness.receive_all(&hook), "", "it could have the outcome of an old drain");
    harness.assert_no_backend_request();
}
