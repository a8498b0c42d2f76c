use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;

use tempfile::TempDir;

use super::*;
use crate::cli::options::Options;
use crate::control_socket::{self, Sockets};
use crate::coordinator::Coordinator;
use crate::drain::{Ended, Outcome};
use crate::envoy::admin::Admin;
use crate::envoy::error::{AdminError, AdminErrorKind};
use crate::envoy::{Call, Reply};

/// Longer than anything takes; only a failing test waits for so long.
const PATIENCE: Duration = Duration::from_secs(10);

struct Nobody;

impl Admin for Nobody {
    fn call(&mut self, _: Call, _: &Options) -> Result<Reply, AdminError> {
        Err(AdminError { kind: AdminErrorKind::Other, text: String::new() })
    }
}

/// A server, and what it holds.
struct Scene {
    folder: TempDir,
    manager: Coordinator,
    bell: RestartSignal,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let Sockets { server, files, .. } =
            control_socket::bind(&[folder.path().join("s")]).unwrap();
        let manager = Coordinator::new(Options::default(), false);
        let files = Arc::new(files);
        let mut service = Backend::new(server, files, manager.trigger(), manager.observer());
        let bell = service.bell();
        // It has no end.
        thread::spawn(move || service.serve());
        Self { folder, manager, bell }
    }

    /// The status, the media type and the body that are answered.
    #[track_caller]
    fn ask(&self, line: &str) -> (u16, String, String) {
        let mut stream = UnixStream::connect(self.folder.path().join("s.server")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = "Host: x\r\nContent-Length: 0\r\nConnection: close";
        write!(stream, "{line} HTTP/1.1\r\n{head}\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let kind = head.lines().find_map(|line| line.strip_prefix("Content-Type: ")).unwrap();
        (head[9..12].parse().unwrap(), kind.to_owned(), body.to_owned())
    }

    #[track_caller]
    fn assert_text(&self, line: &str, status: u16, body: &str) {
        let kind = "text/plain; charset=utf-8".to_owned();
        assert_eq!(self.ask(line), (status, kind, body.to_owned()), "{line}");
    }
}

#[test]
fn a_server_is_replaced_when_nobody_listens_and_only_then() {
    let scene = Scene::new();
    let place = scene.folder.path().join("s.server");
    let inode = || fs::metadata(&place).map(|file| file.ino()).ok();
    scene.ask("GET /healthz");
    let first = inode();
    scene.bell.ring(ErrorKind::NotFound);
    // It is asked only after it has heard the bell.
    scene.ask("GET /healthz");
    assert_eq!(inode(), first);
    fs::remove_file(&place).unwrap();
    scene.bell.ring(ErrorKind::TimedOut);
    scene.bell.ring(ErrorKind::NotFound);
    let deadline = clock::now() + PATIENCE;
    while UnixStream::connect(&place).is_err() {
        assert!(clock::now() < deadline, "nobody listens");
        thread::sleep(Duration::from_millis(1));
    }
    let (status, _, body) = scene.ask("GET /healthz");
    assert_eq!((status, body.as_str()), (503, "the worker is down\n"));
}

#[test]
fn what_is_asked_is_answered() {
    let scene = Scene::new();
    for (line, kind, start) in [
        ("GET /status", "application/json", "{\"version\":"),
        ("GET /status?as=line", "text/plain; charset=utf-8", "idle, "),
        ("GET /status?as=page", "text/plain; charset=utf-8", "phase:"),
        ("GET /metrics", "text/plain; version=0.0.4", "# HELP envoy_shutdown_"),
    ] {
        let (status, told, body) = scene.ask(line);
        assert_eq!((status, told.as_str()), (200, kind), "{line}");
        assert!(body.starts_with(start), "{line}: {body}");
    }
    scene.assert_text("GET /nowhere", 404, "not found\n");
    scene.assert_text("GET /drain", 405, "method not allowed\n");
}

#[test]
fn it_is_healthy_while_its_worker_is() {
    let scene = Scene::new();
    scene.assert_text("GET /healthz", 503, "the worker is down\n");
    let worker = scene.manager.clone();
    let worker = thread::spawn(move || worker.work(&mut Nobody));
    let watch = scene.manager.observer();
    while !watch.is_worker_running() {
        assert!(!worker.is_finished());
        thread::yield_now();
    }
    scene.assert_text("GET /healthz", 200, "OK");
    scene.manager.stop();
    worker.join().unwrap();
}

#[test]
fn a_drain_is_begun_or_joined_or_refused_with_the_reason() {
    let scene = Scene::new();
    let reason = "check-delay: \"1\" is without a unit (ns, us, ms, s, m, h)\n";
    scene.assert_text("POST /drain?check-delay=1", 400, reason);
    scene.assert_text("POST /drain?expires=1", 410, "the request has expired\n");
    assert_eq!(scene.manager.observer().snapshot().drain, 0);
    scene.assert_text("POST /drain?check-delay=1s", 200, "started 1\n");
    scene.assert_text("POST /drain", 200, "joined 1\n");
    let stopped = Scene::new();
    stopped.manager.stop();
    stopped.assert_text("POST /drain", 503, "the sidecar stops\n");
}

#[test]
fn who_waits_for_nothing_is_told_so() {
    let scene = Scene::new();
    scene.assert_text("GET /shutdown?waiters", 410, "nobody waits any more\n");
    scene.assert_text("GET /shutdown?drain=1", 410, "there is no such drain\n");
}

#[test]
fn envoys_hook_is_told_ok_or_the_outcome_and_the_exec_hook_both() {
    let drained = "drained: no connection is open";
    let gave_up = "gave up at the drain timeout: 3 open at the last poll";
    for (outcome, envoy, hook) in [
        (Outcome::drained(0), "OK".to_owned(), format!("drained\n{drained}\n")),
        (Outcome::timed_out(Some(3)), format!("{gave_up}\n"), format!("timed_out\n{gave_up}\n")),
    ] {
        let ended = Ended { number: 1, outcome, threshold: 0, took: Duration::ZERO };
        let verdict = WaitResult::Ended(ended);
        assert_eq!(for_envoy(&verdict).body, envoy);
        assert_eq!(for_the_hook(&verdict).body, hook);
        assert_eq!((for_envoy(&verdict).status, for_the_hook(&verdict).status), (200, 200));
    }
    for reply in [for_envoy(&WaitResult::Stopping), for_the_hook(&WaitResult::Stopping)] {
        assert_eq!((reply.status, reply.body.as_str()), (503, "the sidecar stops\n"));
    }
}

#[test]
fn paths_and_methods_lead_to_their_routes() {
    for (method, url, expected) in [
        (Method::Get, "/healthz", Route::Healthz),
        (Method::Head, "/healthz?x", Route::Healthz),
        (Method::Get, "/shutdown?drain=12", Route::Hook(12)),
        (Method::Get, "/shutdown?waiters", Route::Waiters),
        (Method::Get, "/status", Route::StatusJson),
        (Method::Get, "/status?as=line", Route::StatusLine),
        (Method::Get, "/status?as=page", Route::StatusPage),
        (Method::Get, "/metrics", Route::Metrics),
        (Method::Post, "/drain", Route::Drain(String::new())),
        (Method::Post, "/drain?a=1?b", Route::Drain("a=1?b".to_owned())),
    ] {
        assert_eq!(route(&method, url).ok(), Some(expected), "{method} {url}");
    }
    for (method, url, status) in [
        (Method::Get, "/drain", 405),
        (Method::Head, "/drain", 405),
        (Method::Put, "/drain", 405),
        (Method::Post, "/status", 405),
        (Method::Delete, "/healthz", 405),
        (Method::Post, "/", 404),
        (Method::Post, "/drain/", 404),
        (Method::Post, "//drain", 404),
        (Method::Post, "/DRAIN", 404),
        (Method::Post, "http://x/drain", 404),
        (Method::Get, "/shutdown?drain=", 400),
        (Method::Get, "/shutdown?drain=0", 400),
        (Method::Get, "/shutdown?drain=-1", 400),
    ] {
        let status_found = route(&method, url).err().map(|reply| reply.status);
        assert_eq!(status_found, Some(status), "{method} {url}");
    }
}
