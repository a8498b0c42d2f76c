//! What survives a panic, with the frontend restarted as its supervisor does.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

const PANIC: &str = "GET /panic HTTP/1.1\r\n\r\n";

fn panicking_target(method: &str, target: &str) -> route::Routed {
    assert_ne!(target, "/panic", "the test wants this panic");
    route::public_target(method, target)
}

fn serve(mut frontend: Frontend) {
    // This thread serves until the test process exits.
    thread::spawn(move || while catch_unwind(AssertUnwindSafe(|| frontend.serve())).is_err() {});
}

fn accept(backend: &UnixListener) -> UnixStream {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        match backend.accept() {
            Ok((stream, _)) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "no backend request: {error}"),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn receive_all(mut client: &Socket) -> String {
    let mut text = String::new();
    client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    match client.read_to_string(&mut text) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => text,
    }
}

#[test]
fn only_waiting_connections_survive_a_panic() {
    let mut harness = Harness::control(LIMITS);
    harness.now = clock::now();
    harness.frontend.router = panicking_target;
    let waiting = harness.connect(SHUTDOWN);
    harness.assert_connections("1W");
    let incomplete = harness.connect("GET /healthz");
    harness.assert_connections("1W 2R");
    let panicking = harness.connect(PANIC);
    let Harness { frontend, backend, coordinator, folder: _folder, .. } = harness;
    serve(frontend);
    // The requests of the harness, and of the rounds before the panic.
    let _lost = [accept(&backend), accept(&backend)];
    let received = (receive_all(&panicking), receive_all(&incomplete));
    assert_eq!(received, (String::new(), String::new()), "responses after a panic");
    let mut request = accept(&backend);
    assert!(read_request(&mut request).starts_with("GET /shutdown?waiters "));
    assert_eq!(coordinator.observer().snapshot().envoy_hooks, 1);
    respond(&mut request, 200, "OK");
    assert!(receive_all(&waiting).ends_with("\r\n\r\nOK"), "the waiting client has no response");
}

#[test]
fn no_connection_survives_if_every_round_panics() {
    let mut harness = Harness::control(LIMITS);
    harness.now = clock::now();
    harness.frontend.router = panicking_target;
    let waiting = harness.connect(SHUTDOWN);
    harness.assert_connections("1W");
    let _panicking = harness.connect(PANIC);
    // One more start keeps the connection.
    harness.frontend.failed_starts = MAX_FAILED_STARTS - 1;
    serve(harness.frontend);
    assert_eq!(receive_all(&waiting), "", "the connection of the last panic was kept");
}

#[test]
fn panics_with_a_good_round_between_them_keep_the_waiting_connection_for_ever() {
    let mut harness = Harness::control(LIMITS);
    harness.now = clock::now();
    harness.frontend.router = panicking_target;
    let waiting = harness.connect(SHUTDOWN);
    harness.assert_connections("1W");
    let Harness { frontend, backend, coordinator, address, folder: _folder, .. } = harness;
    let connect = |text| {
        let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        client.connect(&address).unwrap();
        send(&client, text);
        client
    };
    serve(frontend);
    // Each start requests its response anew.
    let mut latest = None;
    for times in 1..=MAX_FAILED_STARTS + 1 {
        assert_eq!(receive_all(&connect(PANIC)), "", "a response after a panic");
        // The backend is asked at the end of a round.
        let probe = connect(HEALTHZ);
        loop {
            let mut request = accept(&backend);
            if read_request(&mut request).starts_with("GET /healthz ") {
                respond(&mut request, 200, "OK");
                break;
            }
            latest = Some(request);
        }
        assert!(receive_all(&probe).ends_with("OK"), "no response in a good round");
        let hooks = coordinator.observer().snapshot().envoy_hooks;
        assert_eq!(hooks, 1, "the waiting client was dropped at panic {times}, none in a row");
    }
    respond(&mut latest.unwrap(), 200, "OK");
    assert!(receive_all(&waiting).ends_with("\r\n\r\nOK"), "the waiting client has no response");
}
