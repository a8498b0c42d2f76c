use std::os::fd::{AsFd as _, AsRawFd as _};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::cli::duration;
use crate::cli::options::{Options, Overrides};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, getpeername, recv, send, socket,
};

use crate::coordinator::Coordinator;
use crate::drain::Outcome;
use crate::envoy::admin::Admin;
use crate::envoy::error::{AdminError, AdminErrorKind};
use crate::envoy::{Call, CallResult};

/// Longer than any step takes; only a failing test waits this long.
const TEST_TIMEOUT: Duration = Duration::from_secs(10);

struct UnreachableEnvoy;

impl Admin for UnreachableEnvoy {
    fn call(&mut self, _: Call, _: &Options, _: Option<Duration>) -> CallResult {
        Err(AdminError { kind: AdminErrorKind::Other, text: String::new() })
    }
}

/// A backend with a wire to it, and what it reports to.
struct Harness {
    backend: Arc<Backend>,
    wire: Wire,
    coordinator: Coordinator,
}

impl Harness {
    fn new() -> Self {
        let coordinator = Coordinator::new(Options::default(), &Overrides::default(), false);
        let backend = Arc::new(Backend::new(coordinator.trigger(), coordinator.observer()));
        let wire = backend.connect().unwrap();
        Self { backend, wire, coordinator }
    }

    /// The status, the content type and the body of the response.
    #[track_caller]
    fn request(&self, line: &str) -> (u16, String, String) {
        request(&self.wire, line)
    }

    #[track_caller]
    fn assert_plain(&self, line: &str, status: u16, body: &str) {
        let content_type = "text/plain; charset=utf-8".to_owned();
        assert_eq!(self.request(line), (status, content_type, body.to_owned()), "{line}");
    }
}

/// The response on a wire, which has to be whole within the length that it states.
#[track_caller]
fn request(wire: &Wire, line: &str) -> (u16, String, String) {
    let fd = wire.stream.as_raw_fd();
    let text = format!("{line} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    send(fd, text.as_bytes(), MsgFlags::MSG_NOSIGNAL).unwrap();
    let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let mut fds = [PollFd::new(wire.stream.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::try_from(TEST_TIMEOUT).unwrap()).unwrap();
        let text = String::from_utf8_lossy(&received).into_owned();
        assert_eq!(ready, 1, "no whole response to {line} within {TEST_TIMEOUT:?}: {text:?}");
        let length = recv(fd, &mut buffer, MsgFlags::empty()).unwrap();
        assert!(length > 0, "the wire has ended in the response to {line}: {text:?}");
        received.extend_from_slice(&buffer[..length]);
        let text = String::from_utf8_lossy(&received).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let field = |name: &str| {
            let field = head.lines().find_map(|line| line.strip_prefix(name));
            field.unwrap_or_else(|| panic!("no {name} in {head}")).to_owned()
        };
        let stated: usize = field("Content-Length: ").parse().unwrap();
        assert!(body.len() <= stated, "more than the response to {line}: {text:?}");
        if body.len() == stated {
            return (head[9..12].parse().unwrap(), field("Content-Type: "), body.to_owned());
        }
    }
}

#[test]
fn a_wire_serves_many_requests_and_no_other_process_can_connect() {
    let harness = Harness::new();
    for _ in 0..100 {
        assert_eq!(harness.request("GET /healthz").0, 503);
    }
    let peer = getpeername::<UnixAddr>(harness.wire.stream.as_raw_fd()).unwrap();
    let flags = SockFlag::SOCK_NONBLOCK;
    let other = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    assert!(peer.as_abstract().is_some(), "its socket has a file: {peer}");
    let refused = connect(other.as_raw_fd(), &peer);
    assert_eq!(refused, Err(Errno::ECONNREFUSED), "another client reaches tiny_http at {peer}");
    assert_eq!(harness.request("GET /healthz").0, 503);
}

#[test]
fn what_serves_a_wire_ends_with_it() {
    let mut harness = Harness::new();
    harness.wire = harness.backend.connect().unwrap();
    let deadline = Instant::now() + TEST_TIMEOUT;
    // The harness has one, and each thread that serves a wire.
    while Arc::strong_count(&harness.backend) > 2 {
        assert!(Instant::now() < deadline, "the thread of the wire before does not end");
        thread::yield_now();
    }
    assert_eq!(harness.request("GET /healthz").0, 503, "on the next wire");
}

#[test]
fn what_comes_late_from_a_wire_that_was_dropped_does_not_stay_in_the_queue() {
    let harness = Harness::new();
    let stream = harness.wire.stream.try_clone().unwrap();
    let Harness { wire, coordinator, backend } = harness;
    drop(wire);
    let late = Wire::from(stream);
    // Answered by tiny_http itself, as everything that is dropped: no drain starts.
    let text = b"POST /drain HTTP/1.1\r\nContent-Length: 0\r\n\r\n";
    send(late.stream.as_raw_fd(), text, MsgFlags::MSG_NOSIGNAL).unwrap();
    let mut fds = [PollFd::new(late.stream.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut fds, PollTimeout::try_from(TEST_TIMEOUT).unwrap());
    assert_eq!(ready, Ok(1), "it stays, with a descriptor");
    assert_eq!(coordinator.observer().snapshot().drain, 0, "a drain for which no hook waits");
    drop(backend);
}

#[test]
fn a_panic_ends_the_thread_and_responds_with_500() {
    let (wire, server) = Wire::open().unwrap();
    let thread = supervisor::spawn(
        "test",
        Box::new(|| {
            loop {
                if let Ok(_request) = server.recv() {
                    panic!("as a bug would");
                }
            }
        }),
    );
    send(wire.stream.as_raw_fd(), b"GET /healthz HTTP/1.1\r\n\r\n", MsgFlags::MSG_NOSIGNAL)
        .unwrap();
    let mut fds = [PollFd::new(wire.stream.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::try_from(TEST_TIMEOUT).unwrap()), Ok(1), "no response");
    let mut start = [0; 13];
    recv(wire.stream.as_raw_fd(), &mut start, MsgFlags::MSG_PEEK).unwrap();
    assert_eq!(&start, b"HTTP/1.1 500 ");
    assert!(thread.unwrap().join().is_err(), "it panicked");
}

#[test]
fn every_route_has_its_response() {
    let harness = Harness::new();
    for (line, content_type, start) in [
        ("GET /status", "application/json", "{\"version\":"),
        ("GET /status?as=line", "text/plain; charset=utf-8", "idle, "),
        ("GET /status?as=page", "text/plain; charset=utf-8", "2"),
        ("GET /metrics", "text/plain; version=0.0.4", "# HELP envoy_shutdown_"),
    ] {
        let (status, found, body) = harness.request(line);
        assert_eq!((status, found.as_str()), (200, content_type), "{line}");
        assert!(body.starts_with(start), "{line}: {body}");
    }
    harness.assert_plain(
        "POST /release?by=x",
        409,
        "no drain is in progress, so there is none to release\n",
    );
    harness.assert_plain("POST /restore?by=x", 200, "requested 1\n");
    // No worker runs here.
    harness.assert_plain("GET /restore?request=1", 200, "requested\n");
    harness.assert_plain("GET /restore?request=2", 200, "failed\nthere was no such request\n");
    // The frontend lets none of these through.
    harness.assert_plain("GET /nowhere", 404, "404 Not Found");
    harness.assert_plain("GET /drain", 405, "405 Method Not Allowed");
    harness.assert_plain("GET /shutdown?drain=0", 400, "400 Bad Request");
}

#[test]
fn the_sidecar_is_healthy_while_its_worker_runs_and_hooks_find_it() {
    let harness = Harness::new();
    harness.assert_plain("GET /healthz", 503, "the worker is down\n");
    let worker = harness.coordinator.clone();
    let worker = thread::spawn(move || worker.work(&mut UnreachableEnvoy));
    let observer = harness.coordinator.observer();
    while observer.health().is_err() {
        assert!(!worker.is_finished(), "the worker ended before it was stopped");
        thread::yield_now();
    }
    harness.assert_plain("GET /healthz", 200, "OK");
    harness.coordinator.tracker().set_control_socket_lost(true);
    harness.assert_plain("GET /healthz", 503, "no hook finds the control socket\n");
    harness.coordinator.tracker().set_control_socket_lost(false);
    harness.assert_plain("GET /healthz", 200, "OK");
    harness.coordinator.stop();
    worker.join().unwrap();
}

#[test]
fn a_drain_is_started_or_joined_or_rejected_with_the_reason() {
    let harness = Harness::new();
    let reason = "check-delay: \"1\" is without a unit (ns, us, ms, s, m, h)\n";
    harness.assert_plain("POST /drain?check-delay=1", 400, reason);
    harness.assert_plain("POST /drain?expires=1&error=x", 410, "the request has expired\n");
    let drain = harness.coordinator.observer().snapshot().drain;
    assert_eq!(drain, 0, "a rejected request has started a drain");
    harness.assert_plain("POST /drain?check-delay=1s", 200, "started 1\n");
    let (status, _, body) = harness.request("POST /drain?error=x&check-delay=2s&drain-delay=0s");
    let (number, line) = body.split_once('\n').unwrap();
    assert_eq!((status, number), (200, "joined 1"));
    let (start, end) = ("joined drain 1, in progress for ", ", phase drain_delay; ");
    let line = line.strip_prefix(start).unwrap_or_else(|| panic!("{line:?}"));
    let (elapsed, line) = line.split_once(end).unwrap_or_else(|| panic!("{line:?}"));
    assert!(duration::parse(elapsed).unwrap() < TEST_TIMEOUT, "{elapsed}");
    assert_eq!(line, "ignored options: check-delay=2s (drain: 1s)\n");
    let stopped = Harness::new();
    stopped.coordinator.stop();
    stopped.coordinator.work(&mut UnreachableEnvoy);
    stopped.assert_plain("POST /drain", 503, "the sidecar is stopping\n");
}

#[test]
fn a_hook_that_means_another_envoy_is_refused() {
    let harness = Harness::new();
    harness.assert_plain("POST /drain?admin-address=/a.sock", 200, "started 1\n");
    let refusal = "this sidecar drains the Envoy at /a.sock alone\n";
    harness.assert_plain("POST /drain?admin-address=/b.sock", 409, refusal);
    let (status, _, body) = harness.request("POST /drain?admin-address=unix:/a.sock");
    assert!(status == 200 && body.starts_with("joined 1\n"), "{status} {body:?}");
    assert!(body.ends_with("; ignored options: none\n"), "the drain has the same: {body:?}");
}

#[test]
fn a_wait_that_is_not_over_is_accepted_and_one_for_no_drain_is_gone() {
    let harness = Harness::new();
    harness.assert_plain("GET /shutdown?awaited=1", ACCEPTED, "the drain goes on\n");
    harness.assert_plain("GET /shutdown?drain=1", 410, "there is no such drain\n");
    harness.assert_plain("POST /drain", 200, "started 1\n");
    harness.assert_plain("GET /shutdown?drain=1", ACCEPTED, "the drain goes on\n");
}

#[test]
fn envoys_hook_gets_ok_or_the_explanation_and_the_exec_hook_the_outcome_and_the_explanation() {
    let drained = "drained: no connection is open";
    let gave_up = "gave up at the drain timeout: 3 open at the last poll";
    for (outcome, to_envoy_hook, to_exec_hook) in [
        (Outcome::drained(0), "OK".to_owned(), format!("drained\n{drained}\n")),
        (Outcome::timed_out(Some(3)), format!("{gave_up}\n"), format!("timed_out\n{gave_up}\n")),
    ] {
        for (hook, text) in
            [(Route::EnvoyHook(1), to_envoy_hook), (Route::ExecHook(1), to_exec_hook)]
        {
            let response = hook_response(&hook, Some(WaitResult::Ended(outcome)));
            assert_eq!((response.status, response.body), (200, text), "{hook:?}");
        }
    }
    let response = hook_response(&Route::EnvoyHook(1), Some(WaitResult::Stopping));
    assert_eq!((response.status, response.body.as_str()), (503, "the sidecar is stopping\n"));
}
