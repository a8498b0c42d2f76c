//! What one listener's clients do to the other's: nothing.

use super::*;

fn each_with_its_other() -> [(ListenerId, ListenerId); 2] {
    [(ListenerId::Control, ListenerId::Public), (ListenerId::Public, ListenerId::Control)]
}

#[test]
fn a_full_listener_takes_no_connection_of_the_other() {
    for (listener, other) in each_with_its_other() {
        let limits = Limits { max_connections: 2, max_waiting: 1 };
        let mut harness = Harness::new(listener, limits, START);
        // It has more, and older ones.
        harness.frontend.endpoint_mut(other).limits.max_connections = 5;
        let _others = [(); 5].map(|()| harness.connect_at(other, 1, ""));
        harness.assert_connections("1R 2R 3R 4R 5R");
        let _own = [(); 2].map(|()| harness.connect(""));
        harness.assert_connections("1R 2R 3R 4R 5R 6R 7R");
        let _newcomer = harness.connect("");
        harness.assert_connections("1R 2R 3R 4R 5R 7R 8R");
        let _newcomer = harness.connect_at(other, 1, "");
        harness.assert_connections("2R 3R 4R 5R 7R 8R 9R");
        // Where all wait, the other is still polled.
        for connection in harness.frontend.connections.iter_mut() {
            if connection.listener == listener {
                connection.wait(request_for(Route::EnvoyHook(1)), Timestamp::MAX);
                connection.set_wait(Wait::Drain);
            }
        }
        let _waits = [listener, other].map(|listener| harness.connect_at(listener, 1, ""));
        let ready = harness.frontend.wait_ready(harness.now, harness.now + secs(10));
        assert!(ready.listeners[other as usize], "the {} one is not polled", other.name());
        assert!(!ready.listeners[listener as usize], "the {} one is polled", listener.name());
        harness.assert_connections("3R 4R 5R 7W 8W 9R 10R");
        // Only the public port counts.
        harness.assert_rejected(if listener == ListenerId::Public { 1 } else { 2 });
        for id in ListenerId::ALL {
            let endpoint = harness.frontend.endpoint_mut(id);
            assert_eq!(endpoint.limit_log.happened(harness.now), None, "{NOT_LOGGED}");
        }
    }
    assert_eq!(ListenerId::ALL.map(ListenerId::name), ["control", "public"]);
}

#[test]
fn a_client_that_waits_briefly_delays_none_of_the_other_listener() {
    for (listener, other) in each_with_its_other() {
        let mut harness =
            Harness::new(listener, Limits { max_connections: 1, max_waiting: 1 }, START);
        let _brief = harness.connect_at(other, 1, HEALTHZ);
        harness.assert_connections("1W");
        let _silent = harness.connect("");
        harness.assert_connections("1W 2R");
        let _newcomer = harness.connect("");
        harness.assert_connections("1W 3R");
    }
}

#[test]
fn each_listener_has_its_own_limits_and_slots_for_hooks() {
    let mut harness = Harness::public(Limits { max_connections: 8, max_waiting: 1 });
    harness.frontend.endpoint_mut(ListenerId::Control).limits.max_waiting = 2;
    let _control = [(); 2].map(|()| harness.connect_control(SHUTDOWN));
    harness.assert_connections("1W 2W");
    let _public = harness.connect(SHUTDOWN);
    harness.assert_connections("1W 2W 3W");
    harness.assert_envoy_hooks(3);
    let late = harness.connect(SHUTDOWN);
    harness.assert_response(&late, "503", "too many clients wait already\n");
    let late = harness.connect_control(SHUTDOWN);
    harness.assert_response(&late, "503", "too many clients wait already\n");
    harness.assert_rejected(1);
    harness.assert_envoy_hooks(3);
}

#[test]
fn each_listener_has_its_own_bound_of_lingering_connections() {
    let mut harness = Harness::public(Limits { max_connections: 100, ..LIMITS });
    let _control: Vec<_> = (0..64).map(|_| harness.connect_control(BAD_METHOD)).collect();
    let mut held: Vec<_> = (1..=64).map(|number| format!("{number}L")).collect();
    harness.assert_connections(&held.join(" "));
    let _public: Vec<_> = (0..65).map(|_| harness.connect(BAD_METHOD)).collect();
    held.extend((66..=129).map(|number| format!("{number}L")));
    harness.assert_connections(&held.join(" "));
    let _last = harness.connect_control(BAD_METHOD);
    held.remove(0);
    held.push("130L".to_owned());
    harness.assert_connections(&held.join(" "));
}

#[test]
fn each_listener_has_its_own_bound_of_incomplete_request_heads() {
    let mut harness = Harness::public(Limits { max_connections: 100, ..LIMITS });
    let start = "GET /healthz HTTP/1.1\r\na: ".to_owned() + &"b".repeat(4000 - 26);
    let all = |first: usize, last| (first..=last).map(|number| format!("{number}R"));
    // 32 times 4000 bytes fit.
    let _control: Vec<_> = (0..32).map(|_| harness.connect_control(&start)).collect();
    harness.assert_connections(&all(1, 32).collect::<Vec<_>>().join(" "));
    let _public: Vec<_> = (0..32).map(|_| harness.connect(&start)).collect();
    harness.assert_connections(&all(1, 64).collect::<Vec<_>>().join(" "));
    let _public = harness.connect(&start);
    let held: Vec<_> = all(1, 32).chain(all(34, 65)).collect();
    harness.assert_connections(&held.join(" "));
    let _control = harness.connect_control(&start);
    let held: Vec<_> = all(2, 32).chain(all(34, 66)).collect();
    harness.assert_connections(&held.join(" "));
}

#[test]
fn a_control_socket_that_was_removed_is_bound_again_with_the_next_probe() {
    let mut harness = Harness::control(LIMITS);
    let path = harness.folder.path().join("control");
    std::fs::remove_file(&path).unwrap();
    let probe = harness.connect_public(HEALTHZ);
    harness.backend_request("GET /healthz");
    harness.respond(200, "OK");
    harness.assert_response(&probe, "200", "OK");
    assert!(path.exists(), "no hook finds the control socket");
    let client = harness.connect(METRICS);
    harness.backend_request("GET /metrics");
    harness.respond(200, "");
    harness.assert_response(&client, "200", "");
}

#[test]
fn a_control_socket_that_cannot_be_bound_again_is_known_to_the_backend_until_it_can() {
    let mut harness = Harness::control(LIMITS);
    harness.start_worker();
    let path = harness.folder.path().join("control");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let lost = |harness: &Harness| {
        harness.coordinator.observer().health() == Err("no hook finds the control socket\n")
    };
    assert!(!lost(&harness), "before a probe has come");
    let _probe = harness.connect_public(HEALTHZ);
    harness.run_until("the loss", |harness| lost(harness));
    let log = &mut harness.frontend.logs.control_socket;
    assert_eq!(log.happened(harness.now), None, "{NOT_LOGGED}");
    std::fs::remove_dir(&path).unwrap();
    let _probe = harness.connect_public(HEALTHZ);
    harness.run_until("the socket", |harness| !lost(harness));
    assert!(path.exists(), "no hook finds the control socket");
}
