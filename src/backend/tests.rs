use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;

use tempfile::TempDir;

use super::*;
use crate::cli::options::{Options, Overrides};
use crate::control_socket::{self, NextListener, Sockets};
use crate::coordinator::Coordinator;
use crate::drain::{Ended, Outcome};
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

/// A backend that serves, and what it reports to.
struct Harness {
    folder: TempDir,
    coordinator: Coordinator,
    restart_signal: RestartSignal,
}

impl Harness {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let Sockets { control, backend, files } =
            control_socket::bind(&[folder.path().join("s")]).unwrap();
        let control = ControlSocket::new(&control, NextListener::default()).unwrap();
        let coordinator = Coordinator::new(Options::default(), &Overrides::default(), false);
        let (trigger, observer) = (coordinator.trigger(), coordinator.observer());
        let mut backend = Backend::new(backend, Arc::new(files), control, trigger, observer);
        let restart_signal = backend.restart_signal();
        // This thread serves until the test process exits.
        thread::spawn(move || backend.serve());
        Self { folder, coordinator, restart_signal }
    }

    /// The status, the content type and the body of the response.
    #[track_caller]
    fn request(&self, line: &str) -> (u16, String, String) {
        let mut stream = UnixStream::connect(self.folder.path().join("s.server")).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        let head = "Host: x\r\nContent-Length: 0\r\nConnection: close";
        write!(stream, "{line} HTTP/1.1\r\n{head}\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let content_type =
            head.lines().find_map(|line| line.strip_prefix("Content-Type: ")).unwrap();
        (head[9..12].parse().unwrap(), content_type.to_owned(), body.to_owned())
    }

    /// Lets nothing listen any more, and waits until another server does.
    #[track_caller]
    fn replace_server(&self) {
        let path = self.folder.path().join("s.server");
        fs::remove_file(&path).unwrap();
        let deadline = clock::now() + TEST_TIMEOUT;
        while UnixStream::connect(&path).is_err() {
            assert!(clock::now() < deadline, "no server in place of the one that ended");
            // It is lost while there is none.
            self.restart_signal.request_restart(ErrorKind::NotFound);
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[track_caller]
    fn assert_plain(&self, line: &str, status: u16, body: &str) {
        let content_type = "text/plain; charset=utf-8".to_owned();
        assert_eq!(self.request(line), (status, content_type, body.to_owned()), "{line}");
    }
}

#[test]
fn a_server_is_replaced_if_nothing_listens_and_only_then() {
    let harness = Harness::new();
    let path = harness.folder.path().join("s.server");
    let inode = || fs::metadata(&path).map(|file| file.ino()).ok();
    harness.request("GET /healthz");
    let first = inode();
    harness.restart_signal.request_restart(ErrorKind::NotFound);
    // It handles this request only after it has checked.
    harness.request("GET /healthz");
    assert_eq!(inode(), first, "the server listened, so it must not be replaced");
    fs::remove_file(&path).unwrap();
    harness.restart_signal.request_restart(ErrorKind::TimedOut);
    harness.restart_signal.request_restart(ErrorKind::NotFound);
    let deadline = clock::now() + TEST_TIMEOUT;
    while UnixStream::connect(&path).is_err() {
        assert!(clock::now() < deadline, "no server was started in place of the one that ended");
        thread::sleep(Duration::from_millis(1));
    }
    let (status, _, body) = harness.request("GET /healthz");
    assert_eq!((status, body.as_str()), (503, "the worker is down\n"));
}

#[test]
fn a_request_that_the_server_before_was_reading_is_handled() {
    let harness = Harness::new();
    let mut early = UnixStream::connect(harness.folder.path().join("s.server")).unwrap();
    early.write_all(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n").unwrap();
    harness.replace_server();
    early.write_all(b"Connection: close\r\n\r\n").unwrap();
    early.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    let deadline = clock::now() + TEST_TIMEOUT;
    let mut first = [0; 13];
    // It is handled behind a request to the new server.
    while early.read_exact(&mut first).is_err() {
        assert!(
            clock::now() < deadline,
            "the server before is forgotten, with what it was reading"
        );
        harness.request("GET /healthz");
    }
    assert_eq!(first, *b"HTTP/1.1 404 ");
}

#[test]
fn servers_that_end_again_and_again_start_a_pause_apart() {
    let start = clock::now();
    let harness = Harness::new();
    harness.replace_server();
    harness.replace_server();
    let took = clock::now() - start;
    let least = 2 * MIN_START_INTERVAL;
    assert!(took >= least, "three servers started within {took:?}; each leaves threads for 5 s");
}

#[test]
fn every_route_has_its_response() {
    let harness = Harness::new();
    for (line, content_type, start) in [
        ("GET /status", "application/json", "{\"version\":"),
        ("GET /status?as=line", "text/plain; charset=utf-8", "idle, "),
        ("GET /status?as=page", "text/plain; charset=utf-8", "phase:"),
        ("GET /metrics", "text/plain; version=0.0.4", "# HELP envoy_shutdown_"),
    ] {
        let (status, found, body) = harness.request(line);
        assert_eq!((status, found.as_str()), (200, content_type), "{line}");
        assert!(body.starts_with(start), "{line}: {body}");
    }
    harness.assert_plain("GET /nowhere", 404, "not found\n");
    harness.assert_plain("GET /drain", 405, "method not allowed\n");
    harness.assert_plain("GET /shutdown?drain=0", 400, "drain= takes the number of a drain\n");
}

#[test]
fn the_sidecar_is_healthy_while_its_worker_runs() {
    let harness = Harness::new();
    harness.assert_plain("GET /healthz", 503, "the worker is down\n");
    let worker = harness.coordinator.clone();
    let worker = thread::spawn(move || worker.work(&mut UnreachableEnvoy));
    let observer = harness.coordinator.observer();
    while !observer.is_worker_running() {
        assert!(!worker.is_finished(), "the worker ended before it was stopped");
        thread::yield_now();
    }
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
    harness.assert_plain("POST /drain?error=x", 200, "joined 1\n");
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
    harness.assert_plain("POST /drain?admin-address=unix:/a.sock", 200, "joined 1\n");
}

#[test]
fn a_wait_for_nothing_ends_at_once() {
    let harness = Harness::new();
    harness.assert_plain("GET /shutdown?waiters", 410, "no client waits any more\n");
    harness.assert_plain("GET /shutdown?drain=1", 410, "there is no such drain\n");
}

#[test]
fn envoys_hook_gets_ok_or_the_explanation_and_the_exec_hook_the_outcome_and_the_explanation() {
    let drained = "drained: no connection is open";
    let gave_up = "gave up at the drain timeout: 3 open at the last poll";
    for (outcome, to_envoy_hook, to_exec_hook) in [
        (Outcome::drained(0), "OK".to_owned(), format!("drained\n{drained}\n")),
        (Outcome::timed_out(Some(3)), format!("{gave_up}\n"), format!("timed_out\n{gave_up}\n")),
    ] {
        let ended =
            Ended { number: 1, outcome, threshold: 0, envoy_hook: true, took: Duration::ZERO };
        let result = WaitResult::Ended(ended);
        let (envoy_hook, exec_hook) =
            (hook_response(&result, envoy_hook_text), hook_response(&result, exec_hook_text));
        assert_eq!((envoy_hook.status, envoy_hook.body), (200, to_envoy_hook));
        assert_eq!((exec_hook.status, exec_hook.body), (200, to_exec_hook));
    }
    let stopping = WaitResult::Stopping;
    for response in
        [hook_response(&stopping, envoy_hook_text), hook_response(&stopping, exec_hook_text)]
    {
        assert_eq!((response.status, response.body.as_str()), (503, "the sidecar is stopping\n"));
    }
}
