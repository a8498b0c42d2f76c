//! The control socket: where it is, who finds it, what it serves, and what it withstands.

#![allow(clippy::expect_used, reason = "a step that fails is a test that fails")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::admin::{FakeAdmin, Route};
use crate::support::clients::Plain;
use crate::support::net::{self, Address, Response, read_before};
use crate::support::rows::{each, named};
use crate::support::scene::{
    Waiter, arguments, assert_ends, assert_told, before, freeze, leave_socket, may_unshare,
    wait_status,
};
use crate::support::sidecar::{Process, Sidecar, run, run_under};
use crate::support::{PATIENCE, assert_took, shared, temp_dir, wait_for};

const SERVING: &str = "\"phase\":\"serving\"";
const DRAINING: &str = "\"phase\":\"draining\"";

/// Every place that a sidecar or a hook knows by itself, besides the one beside the admin socket.
const SHM: &str = "/dev/shm/shutdown-manager.sock";

/// A namespace in which this script may do what it likes; then the program runs in its place.
fn in_namespace(script: &str, args: &[&str]) -> Process {
    let script = format!("set -e; {script}; exec \"$@\"");
    run_under(&["unshare", "--mount", "sh", "-c", &script, "sh"], args)
}

/// The program in the mount namespace of another process.
fn beside(process: &Process, args: &[&str]) -> Process {
    let namespace = format!("--mount=/proc/{}/ns/mnt", process.pid());
    run_under(&["nsenter", &namespace, "--"], args)
}

/// A file as a process in another mount namespace sees it.
fn seen_by(process: &Process, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", process.pid()))
}

/// Asks a sidecar that no fixture has started.
fn ask(socket: &Path, method: &str, path: &str) -> Option<Response> {
    net::request(&Address::Unix(socket.to_owned()), method, path, PATIENCE).ok()
}

#[track_caller]
fn wait_healthy(process: &mut Process, socket: &Path) {
    wait_for("an answer", PATIENCE, || {
        assert!(process.running(), "{:?}", process.try_wait());
        ask(socket, "GET", "/healthz").filter(|answer| answer.status == 200)
    });
}

/// Ends a sidecar that no fixture has started.
#[track_caller]
fn stop(process: &mut Process, socket: &Path) {
    process.signal(Signal::SIGTERM);
    let exit = process.wait(PATIENCE);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(!exit.output.contains("panicked"), "{exit:?}");
    assert!(!socket.exists(), "{} is left", socket.display());
}

/// Everything that comes back, to the end of the connection.
#[track_caller]
fn exchange(sidecar: &Sidecar, request: &str) -> String {
    let control = Address::Unix(sidecar.control_socket().to_owned());
    let mut socket = control.connect(PATIENCE).expect("connect");
    socket.write_all(request.as_bytes()).expect("send");
    let deadline = Instant::now() + PATIENCE;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match read_before(&socket, &mut buffer, deadline).expect("an answer") {
            0 => return String::from_utf8_lossy(&answer).into_owned(),
            n => answer.extend_from_slice(&buffer[..n]),
        }
    }
}

/// A connection to the control socket.
#[track_caller]
fn connect(sidecar: &Sidecar) -> Plain {
    Plain::open_at(&Address::Unix(sidecar.control_socket().to_owned()))
}

/// It answers, whoever else holds connections meanwhile.
#[track_caller]
fn assert_answers(sidecar: &Sidecar) {
    assert_eq!(sidecar.request("GET", "/healthz"), (200, "OK".to_owned()));
}

#[track_caller]
fn assert_nothing_began(sidecar: &Sidecar, admin: &FakeAdmin) {
    let status = sidecar.status();
    assert!(status.contains(SERVING) && status.contains("\"drain\":0,"), "{status}");
    let log = sidecar.log().join("\n");
    assert!(!log.contains("drain requested"), "{log}");
    assert_eq!(admin.count(Route::Fail), 0);
}

/// Starts a drain as a hook does, so that what was refused before was not refused for another
/// reason, and ends it.
#[track_caller]
fn assert_a_drain_can_begin(sidecar: &Sidecar, admin: &FakeAdmin) {
    admin.set_open(1);
    assert_eq!(sidecar.request("POST", "/drain"), (200, "started 1\n".to_owned()));
    wait_status(sidecar, &[DRAINING, "\"open_connections\":1,"]);
    assert_eq!(sidecar.request("POST", "/drain?check-delay=0s"), (200, "joined 1\n".to_owned()));
    admin.set_open(0);
    wait_status(sidecar, &["\"phase\":\"ended\"", "\"outcome\":\"drained\""]);
    assert_eq!(admin.count(Route::Fail), 1);
}

#[test]
fn only_its_owner_may_use_the_control_socket() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &[]);
    let file = fs::symlink_metadata(sidecar.control_socket()).expect("a file");
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o7777, 0o600);
}

#[test]
fn the_umask_does_not_open_the_control_socket_and_is_what_it_was() {
    let _turn = shared();
    let dir = temp_dir("control");
    let (socket, admin) = (dir.path().join("s"), FakeAdmin::unix());
    let ready = dir.path().join("ready");
    let mut sidecar = run_under(
        &["sh", "-c", "umask 0; exec \"$@\"", "sh"],
        &[
            "shutdown-manager",
            "--check-delay=0",
            &format!("--control-socket={}", socket.display()),
            &format!("--admin-address={}", admin.address()),
            &format!("--ready-file={}", ready.display()),
        ],
    );
    wait_healthy(&mut sidecar, &socket);
    let mode = |path: &Path| fs::metadata(path).expect("a file").permissions().mode() & 0o7777;
    assert_eq!(mode(&socket), 0o600);
    let mut hook = run(&["shutdown", &format!("--control-socket={}", socket.display())]);
    assert_ends(&mut hook, 0, "drained");
    assert_eq!(mode(&ready), 0o666, "the umask was left changed");
    stop(&mut sidecar, &socket);
}

#[test]
fn a_socket_that_a_killed_sidecar_has_left_is_replaced() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let mut killed = before(&admin.address(), &[]);
    killed.kill();
    let path = killed.control_socket().to_owned();
    assert!(path.exists(), "nothing is left");
    let args = ["--check-delay=0", "--admin-address", &admin.address()];
    let sidecar = Sidecar::launch().args(&args).control_socket(&path).start();
    assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
    assert_ends(&mut sidecar.hook(&[]), 0, "drained");
}

#[test]
fn a_live_socket_is_left_to_its_owner() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let first = before(&admin.address(), &[]);
    let path = first.control_socket().to_str().expect("a path");
    for command in [&["shutdown-manager"][..], &["envoy", "shutdown-manager"]] {
        let args = [command, &["--control-socket", path, "--admin-address", &admin.address()]];
        let exit = run(&args.concat()).wait(PATIENCE);
        assert_eq!(exit.code, Some(1), "{exit:?}");
        assert_eq!(exit.output.lines().count(), 1, "{exit:?}");
        let sentence = format!("another shutdown-manager answers at {path}; ");
        assert!(exit.output.contains(&sentence) && exit.output.contains("level=error"), "{exit:?}");
    }
    // Nor is another place taken, where the sidecar has a choice.
    let beside = Path::new(path).with_file_name("admin.sock");
    let default = Path::new(path).with_file_name("shutdown-manager.sock");
    let other = Sidecar::launch()
        .args(&["--admin-address", beside.to_str().expect("a path")])
        .control_socket_found_at(&default)
        .start();
    let exit = run(&["shutdown-manager", "--admin-address", beside.to_str().expect("a path")])
        .wait(PATIENCE);
    assert_eq!(exit.code, Some(1), "{exit:?}");
    assert!(exit.output.contains(default.to_str().expect("a path")), "{exit:?}");
    drop(other);
    assert_eq!(first.request("GET", "/healthz"), (200, "OK".to_owned()));
    assert_ends(&mut first.hook(&[]), 0, "drained");
}

#[test]
fn of_sidecars_that_start_together_one_has_the_stale_socket() {
    let _turn = shared();
    let rounds = (0..50).map(|round| (format!("round {round}"), ()));
    each(rounds.collect(), |round, ()| {
        let dir = temp_dir("control");
        let path = dir.path().join("s");
        leave_socket(&path, 0o600);
        leave_socket(&path.with_added_extension("server"), 0o600);
        let control = format!("--control-socket={}", path.display());
        let mut sidecars: Vec<_> =
            (0..6).map(|_| run(&["shutdown-manager", &control, "--admin-address=/none"])).collect();
        let ended = |sidecars: &mut Vec<Process>| {
            sidecars.iter_mut().position(|sidecar| !sidecar.running())
        };
        for _ in 1..sidecars.len() {
            let loser = wait_for("all but one to end", PATIENCE, || ended(&mut sidecars));
            let exit = sidecars.swap_remove(loser).wait(PATIENCE);
            let sentence = format!("another shutdown-manager answers at {}", path.display());
            let is_told = exit.output.contains(&sentence);
            assert!(exit.code == Some(1) && is_told, "{round}: {exit:?}");
        }
        wait_healthy(&mut sidecars[0], &path);
        stop(&mut sidecars[0], &path);
    });
}

#[test]
fn a_sidecar_waits_for_its_turn_but_not_for_ever() {
    let _turn = shared();
    let rows = named([("a moment", true), ("for ever", false)]);
    each(rows, |name, ends| {
        let dir = temp_dir("control");
        let path = dir.path().join("s");
        let held = fs::File::open(dir.path()).expect("open the directory");
        held.lock().expect("lock the directory");
        let start = Instant::now();
        let control = format!("--control-socket={}", path.display());
        let mut sidecar = run(&["shutdown-manager", &control, "--admin-address=/none"]);
        wait_for("the sidecar to look", PATIENCE, || {
            (sidecar.context_switches() > 20).then_some(())
        });
        assert!(sidecar.running() && !path.exists(), "{name}");
        if ends {
            drop(held);
        }
        wait_healthy(&mut sidecar, &path);
        assert_took(name, start.elapsed(), if ends { 0.0..1.5 } else { 2.0..4.0 });
        stop(&mut sidecar, &path);
    });
}

#[test]
fn what_is_no_socket_is_neither_removed_nor_replaced() {
    let _turn = shared();
    let dir = temp_dir("control");
    let (file, folder) = (dir.path().join("file"), dir.path().join("folder"));
    fs::write(&file, "precious").expect("write");
    fs::create_dir(&folder).expect("make a directory");
    for path in [&file, &folder] {
        let path = path.to_str().expect("a path");
        let exit = run(&["shutdown-manager", "--control-socket", path]).wait(PATIENCE);
        assert_eq!(exit.code, Some(1), "{exit:?}");
        assert_eq!(exit.output.lines().count(), 1, "{exit:?}");
        let words = [path, "there is a file that is not a socket", "set --control-socket"];
        assert!(words.iter().all(|word| exit.output.contains(word)), "{exit:?}");
    }
    assert_eq!(fs::read(&file).expect("the file"), b"precious");
    assert!(folder.is_dir());
}

#[test]
fn hook_and_sidecar_meet_beside_the_admin_socket_without_a_word() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let address = admin.address();
    let place = Path::new(&address).with_file_name("shutdown-manager.sock");
    let args = ["--check-interval=50ms", "--check-delay=0", "--admin-address", &address];
    let sidecar = Sidecar::launch().args(&args).control_socket_found_at(&place).start();
    assert_eq!(fs::metadata(&place).expect("a file").permissions().mode() & 0o777, 0o600);
    sidecar.wait_log(&format!("control-socket={} ", place.display()), PATIENCE);
    admin.set_open(1);
    let mut hook = sidecar.hook(&["--admin-address", &address]);
    wait_status(&sidecar, &[DRAINING, "\"open_connections\":1,"]);
    assert!(hook.running(), "{:?}", hook.try_wait());
    admin.set_open(0);
    assert_ends(&mut hook, 0, "drained");
}

#[test]
fn the_admin_address_of_a_hook_travels_with_its_drain() {
    let _turn = shared();
    let (right, wrong) = (FakeAdmin::unix(), FakeAdmin::unix());
    let sidecar = before(&wrong.address(), &["--check-interval=50ms"]);
    right.set_open(1);
    let mut hook = sidecar.hook(&["--admin-address", &right.address()]);
    wait_status(&sidecar, &[DRAINING, "\"open_connections\":1,", &right.address()]);
    assert!(hook.running(), "{:?}", hook.try_wait());
    right.set_open(0);
    assert_ends(&mut hook, 0, "drained");
    assert_eq!((right.count(Route::Fail), wrong.count(Route::Fail)), (1, 0));
}

#[test]
fn hook_and_sidecar_meet_in_shared_memory_where_there_is_no_admin_socket() {
    let _turn = shared();
    if !may_unshare("--mount") {
        return;
    }
    let tmpfs = "mount -t tmpfs tmpfs /dev/shm";
    let admin = FakeAdmin::tcp();
    let args = ["envoy", "shutdown-manager", "--check-delay=0", "--check-interval=50ms"];
    let address = ["--admin-address", &admin.address()];
    let mut sidecar = in_namespace(tmpfs, &[&args[..], &address].concat());
    let socket = seen_by(&sidecar, SHM);
    wait_healthy(&mut sidecar, &socket);
    sidecar.wait_log(&format!("control-socket={SHM} "), PATIENCE);
    assert_eq!(fs::metadata(&socket).expect("a file").permissions().mode() & 0o777, 0o600);
    admin.set_open(1);
    // As Contour's, whose hook is told nothing, and one that is.
    let mut hooks = [
        beside(&sidecar, &["envoy", "shutdown"]),
        beside(&sidecar, &[&["envoy", "shutdown"][..], &address].concat()),
    ];
    sidecar.wait_log("a hook has joined the drain", PATIENCE);
    sidecar.wait_log("msg=\"open connections\"", PATIENCE);
    for hook in &mut hooks {
        assert!(hook.running(), "{:?}", hook.try_wait());
    }
    let exit = beside(&sidecar, &["status"]).wait(PATIENCE);
    assert!(exit.code == Some(0) && exit.output.contains("draining"), "{exit:?}");
    admin.set_open(0);
    for hook in &mut hooks {
        assert_ends(hook, 0, "drained");
    }
    assert_eq!(admin.count(Route::Fail), 1);
    stop(&mut sidecar, &socket);
}

#[test]
fn the_next_place_is_taken_where_one_cannot_be_written() {
    let _turn = shared();
    if !may_unshare("--mount") {
        return;
    }
    let dir = temp_dir("admin");
    let dir = dir.path().to_str().expect("a path");
    let mount = |options: &str| {
        format!("mount -t tmpfs tmpfs /dev/shm; mount -t tmpfs {options} tmpfs {dir}")
    };
    // The mount's own inode is the first: there is room for no socket, and for one of the two.
    let rows = [
        ("read-only", (mount("-o ro"), "admin.sock")),
        ("full", (mount("-o nr_inodes=1"), "admin.sock")),
        ("full then", (mount("-o nr_inodes=2"), "admin.sock")),
        ("missing", (mount(""), "none/admin.sock")),
    ];
    each(named(rows), |name, (script, admin)| {
        let address = format!("{dir}/{admin}");
        let args = ["shutdown-manager", "--check-delay=0", "--admin-address", &address];
        let mut sidecar = in_namespace(&script, &args);
        let socket = seen_by(&sidecar, SHM);
        wait_healthy(&mut sidecar, &socket);
        let inside = fs::read_dir(seen_by(&sidecar, dir)).expect("look into the directory");
        assert_eq!(inside.count(), 0, "{name}: something is left");
        // Nobody is at the admin address, which is what the hook is told by whom it has found.
        let mut hook = beside(&sidecar, &["shutdown", "--admin-address", &address]);
        assert_ends(&mut hook, 0, "Envoy is gone");
        stop(&mut sidecar, &socket);
    });
}

#[test]
fn no_place_for_the_control_socket_is_an_error_that_says_what_to_set() {
    let _turn = shared();
    let exit = run(&["shutdown-manager", "--control-socket=/nowhere/at/all.sock"]).wait(PATIENCE);
    assert_eq!((exit.code, exit.output.lines().count()), (Some(1), 1), "{exit:?}");
    let words = [
        "there is no place for the control socket",
        "/nowhere/at/all.sock",
        "set --control-socket",
    ];
    assert!(words.iter().all(|word| exit.output.contains(word)), "{exit:?}");
    if !may_unshare("--mount") {
        return;
    }
    let read_only = "mount -t tmpfs -o ro tmpfs /dev/shm";
    for (address, tries) in
        [("/nowhere/at/all.sock", "/nowhere/at/shutdown-manager.sock"), ("localhost:1", SHM)]
    {
        let exit = in_namespace(read_only, &["shutdown-manager", "--admin-address", address])
            .wait(PATIENCE);
        assert_eq!((exit.code, exit.output.lines().count()), (Some(1), 1), "{exit:?}");
        let words =
            ["there is no place for the control socket", tries, SHM, "set --control-socket"];
        assert!(words.iter().all(|word| exit.output.contains(word)), "{exit:?}");
    }
}

#[test]
fn a_hook_that_is_not_told_drains_no_sidecar_that_it_cannot_see() {
    let _turn = shared();
    if !may_unshare("--pid") {
        return;
    }
    let admin = FakeAdmin::unix();
    let address = admin.address();
    let place = Path::new(&address).with_file_name("shutdown-manager.sock");
    let place = place.to_str().expect("a path");
    let apart = ["unshare", "--pid", "--fork", "--kill-child"];
    let args = ["shutdown-manager", "--check-delay=0", "--admin-address", &address];
    let mut sidecar = run_under(&apart, &args);
    wait_healthy(&mut sidecar, Path::new(place));

    let hook = ["shutdown", "--admin-address", &address];
    let exit = run_under(&apart, &hook).wait(PATIENCE);
    assert_eq!((exit.code, exit.output.lines().count()), (Some(3), 1), "{exit:?}");
    let words =
        ["no sidecar could be reached", "another container or pod", place, "--control-socket"];
    assert!(words.iter().all(|word| exit.output.contains(word)), "{exit:?}");
    let status = ask(Path::new(place), "GET", "/status").expect("an answer").body;
    assert!(status.contains(SERVING) && status.contains("\"drain\":0,"), "{status}");
    assert_eq!(admin.count(Route::Fail), 0);

    let exit =
        run_under(&apart, &[&hook[..], &["--control-socket", place]].concat()).wait(PATIENCE);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert_eq!(admin.count(Route::Fail), 1);
    sidecar.kill();
}

#[test]
fn each_route_has_its_answer() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &[]);
    for (method, path, status, body) in [
        ("GET", "/healthz", 200, "OK"),
        ("GET", "/healthz?verbose", 200, "OK"),
        ("GET", "/status", 200, "{\"version\":"),
        ("GET", "/status?as=line", 200, "serving"),
        ("GET", "/status?as=page", 200, "serving (no drain)"),
        ("GET", "/metrics", 200, "# HELP envoy_shutdown_"),
        ("GET", "/shutdown?drain=7", 410, "no such drain"),
        ("GET", "/shutdown?drain=x", 400, "drain="),
        ("GET", "/", 404, "not found"),
        ("GET", "/healthz/", 404, "not found"),
        ("GET", "/HEALTHZ", 404, "not found"),
        ("POST", "/drain/", 404, "not found"),
        ("POST", "/healthcheck/fail", 404, "not found"),
        ("GET", "/drain", 405, "method not allowed"),
        ("PUT", "/drain", 405, "method not allowed"),
        ("DELETE", "/drain", 405, "method not allowed"),
        ("GET", "/drain?check-delay=0s", 405, "method not allowed"),
        ("POST", "/healthz", 405, "method not allowed"),
        ("POST", "/shutdown", 405, "method not allowed"),
        ("POST", "/status", 405, "method not allowed"),
        ("POST", "/drain?check-delay=2%20days", 400, "check-delay: "),
        ("POST", "/drain?check-interval=0s", 400, "check-interval: "),
        ("POST", "/drain?min-open-connections=-1", 400, "min-open-connections: "),
        (
            "POST",
            "/drain?drain-timeout=1&drain-timeout=1h",
            400,
            "drain-timeout: \"1\" is without a unit",
        ),
        ("POST", "/drain?admin-address=localhost", 400, "admin-address: "),
        ("POST", "/drain?force=1", 400, "no option \"force\""),
        ("POST", "/drain?check-delay", 400, "\"check-delay\" is not NAME=VALUE"),
        ("POST", "/drain?expires=soon", 400, "expires=soon is no time"),
    ] {
        let (got, text) = sidecar.request(method, path);
        assert_eq!(got, status, "{method} {path}: {text}");
        assert!(text.to_lowercase().contains(&body.to_lowercase()), "{method} {path}: {text}");
    }
    assert_nothing_began(&sidecar, &admin);
    assert_a_drain_can_begin(&sidecar, &admin);
}

#[test]
fn answers_say_what_they_are() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &[]);
    let kind = |path: &str| {
        let answer = sidecar.try_request("GET", path, PATIENCE).expect("an answer");
        answer.header("content-type").map(str::to_owned)
    };
    assert_eq!(kind("/status").as_deref(), Some("application/json"));
    assert_eq!(kind("/metrics").as_deref(), Some("text/plain; version=0.0.4"));
    assert_eq!(kind("/healthz").as_deref(), Some("text/plain; charset=utf-8"));
    for (path, length) in [("/healthz", Some(2)), ("/metrics", None), ("/none", Some(10))] {
        let head = "host: x\r\nconnection: close";
        let answer = exchange(&sidecar, &format!("HEAD {path} HTTP/1.1\r\n{head}\r\n\r\n"));
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 "), "{head}");
        assert_eq!(body, "", "HEAD {path}: {head}");
        let wanted = length.map(|length: usize| format!("content-length: {length}"));
        let head = head.to_ascii_lowercase();
        assert!(wanted.is_none_or(|length| head.contains(&length)), "HEAD {path}: {head}");
    }
    let head = "HEAD /drain HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    assert!(exchange(&sidecar, head).starts_with("HTTP/1.1 405 "));
    assert_nothing_began(&sidecar, &admin);
}

#[test]
fn a_request_to_drain_that_has_expired_begins_nothing() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &["--check-interval=50ms"]);
    let (status, body) = sidecar.request("POST", "/drain?expires=1");
    assert_eq!(status, 410, "{body}");
    assert_told(&sidecar, &["came too late"]);
    assert_nothing_began(&sidecar, &admin);
    let late = "18446744073709551615";
    admin.set_open(1);
    let answer = sidecar.request("POST", &format!("/drain?expires={late}"));
    assert_eq!(answer, (200, "started 1\n".to_owned()));
    wait_status(&sidecar, &[DRAINING, "\"open_connections\":1,"]);
    // Nor does it join.
    assert_eq!(sidecar.request("POST", "/drain?expires=1").0, 410);
    admin.set_open(0);
    wait_status(&sidecar, &["\"outcome\":\"drained\""]);
}

#[test]
fn a_request_with_a_body_begins_nothing() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &["--check-interval=50ms"]);
    let mut clients = Vec::new();
    let mut post = |headers: &str, body: &str| {
        let client = connect(&sidecar);
        client
            .send(format!("POST /drain HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n{body}").as_bytes());
        assert_answers(&sidecar);
        clients.push(client);
    };
    for (headers, body) in [
        ("content-length: 5", "he"),
        ("content-length: 5", "hello"),
        ("content-length: 1024", ""),
        ("content-length: 1000000", "hello"),
        // A server that would take a body of this length would end.
        ("content-length: 99999999999999", ""),
        ("content-length: 18446744073709551615", "hello"),
        ("content-length: 5000\r\nexpect: 100-continue", ""),
        ("transfer-encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked", "5\r\nhe"),
        ("transfer-encoding: chunked", ""),
    ] {
        post(headers, body);
    }
    for (n, client) in clients.iter().enumerate() {
        assert_eq!(client.receive_response().status, 413, "of number {n}");
    }
    assert_nothing_began(&sidecar, &admin);
    assert_a_drain_can_begin(&sidecar, &admin);
    assert_eq!(clients.len(), 10);
}

/// What programs say that have taken the control socket for something else.
fn mistakes() -> Vec<Vec<u8>> {
    let browser = format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nCookie: {}\r\n\r\n",
        "a=b; ".repeat(1000)
    );
    let upload = "PUT /drain HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n".to_owned();
    let chunked = "POST /drain HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let scraper = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n";
    let texts = [
        browser,
        upload + &"x".repeat(3_000_000),
        chunked.to_owned() + "1000\r\n" + &"x".repeat(0x1000),
        scraper.repeat(3),
        "GET /drain HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "POST /healthcheck/fail HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "POST /drain?no-such-option=1 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "POST /drain HTTP/0.9\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "*1\r\n$4\r\nPING\r\n".to_owned(),
        "envoy shutdown\n".repeat(100_000),
    ];
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20);
    texts.into_iter().map(String::into_bytes).chain([tls, vec![0; 1 << 20]]).collect()
}

#[test]
fn what_a_neighbour_sends_by_mistake_does_no_harm() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &["--check-interval=50ms"]);
    let control = Address::Unix(sidecar.control_socket().to_owned());
    let blunder = || {
        for mistake in mistakes() {
            // Some of them are refused before they are whole.
            let _cut_short = control.connect(PATIENCE).expect("connect").write_all(&mistake);
            assert_answers(&sidecar);
        }
    };
    blunder();
    assert_nothing_began(&sidecar, &admin);
    admin.set_open(1);
    let mut hook = sidecar.hook(&[]);
    wait_status(&sidecar, &[DRAINING, "\"open_connections\":1,"]);
    blunder();
    assert!(hook.running(), "{:?}", hook.try_wait());
    wait_status(&sidecar, &[DRAINING, "\"drain\":1,"]);
    admin.set_open(0);
    assert_ends(&mut hook, 0, "drained");
}

#[test]
fn clients_that_say_nothing_or_half_of_it_are_in_nobodys_way() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &["--check-interval=50ms"]);
    let halves = ["", "P", "POST /drain HTTP/1.1\r\nhost", "GET /healthz HTTP/1.1\r\n"];
    let mut clients = Vec::new();
    // More than it holds.
    for n in 0..250 {
        let client = connect(&sidecar);
        client.send(halves[n % halves.len()].as_bytes());
        clients.push(client);
        assert_answers(&sidecar);
    }
    assert_nothing_began(&sidecar, &admin);
    admin.set_open(1);
    let mut hook = sidecar.hook(&[]);
    wait_status(&sidecar, &[DRAINING, "\"open_connections\":1,"]);
    assert!(hook.running(), "{:?}", hook.try_wait());
    admin.set_open(0);
    assert_ends(&mut hook, 0, "drained");
    assert_eq!(clients.len(), 250);
}

#[test]
fn a_request_behind_one_that_waits_stops_nobody() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &["--check-interval=50ms"]);
    let healthz = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let shutdown = healthz.replace("/healthz", "/shutdown");
    let (first, later) = (connect(&sidecar), connect(&sidecar));
    first.send((shutdown.clone() + healthz).as_bytes());
    assert_eq!(first.receive_response().status, 400);
    later.send(shutdown.as_bytes());
    wait_status(&sidecar, &["\"waiters\":1,"]);
    later.send(healthz.as_bytes());
    assert!(later.peer_closed_within(PATIENCE), "it waits on");
    wait_status(&sidecar, &["\"waiters\":0,"]);
    assert_answers(&sidecar);
    assert_a_drain_can_begin(&sidecar, &admin);
}

#[test]
fn a_hook_right_behind_a_waiter_drains() {
    let _turn = shared();
    for before_it in 0..8 {
        let admin = FakeAdmin::unix();
        let sidecar = before(&admin.address(), &[]);
        let waiters: Vec<_> = (0..before_it).map(|_| Waiter::new(&sidecar)).collect();
        wait_status(&sidecar, &[&format!("\"waiters\":{before_it},")]);
        let last = Waiter::new(&sidecar);
        assert_ends(&mut sidecar.hook(&[]), 0, "drained");
        for waiter in waiters.iter().chain([&last]) {
            assert_eq!(waiter.answer(), (200, "OK".to_owned()));
        }
    }
}

#[test]
fn there_are_sixty_four_places_to_wait_and_all_are_answered() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &["--check-interval=50ms"]);
    let waiters: Vec<_> = (0..64).map(|_| Waiter::new(&sidecar)).collect();
    wait_status(&sidecar, &[SERVING, "\"waiters\":64,"]);
    for path in ["/shutdown", "/shutdown/ready", "/shutdown"] {
        let (status, body) = Waiter::at(&sidecar, path).answer();
        assert_eq!(status, 503, "{body}");
        assert!(body.contains("too many wait already"), "{body}");
    }
    // A hook has a place of its own.
    assert_eq!(Waiter::at(&sidecar, "/shutdown?drain=1").answer().0, 410);
    assert_eq!(sidecar.request("GET", "/healthz"), (200, "OK".to_owned()));
    admin.set_open(1);
    assert_eq!(sidecar.request("POST", "/drain"), (200, "started 1\n".to_owned()));
    wait_status(&sidecar, &[DRAINING, "\"open_connections\":1,", "\"waiters\":64,"]);
    assert!(!waiters.iter().any(Waiter::is_answered), "one was answered before the end");
    admin.set_open(0);
    for waiter in &waiters {
        assert_eq!(waiter.answer(), (200, "OK".to_owned()));
    }
    wait_status(&sidecar, &["\"phase\":\"ended\"", "\"waiters\":0,"]);
    assert_eq!(Waiter::new(&sidecar).answer(), (200, "OK".to_owned()), "the places are free");
}

#[test]
fn a_frozen_sidecar_neither_keeps_its_hook_nor_drains_when_it_thaws() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &["--check-interval=50ms"]);
    freeze(&sidecar);
    let mut hook = sidecar.hook(&[]);
    let exit = hook.wait(PATIENCE);
    assert_eq!(exit.code, Some(3), "{exit:?}");
    assert_took("the hook", exit.took, 9.9..13.0);
    let sentence = "did not respond within 10s; it starts no drain when it wakes";
    assert!(exit.output.lines().count() == 1 && exit.output.contains(sentence), "{exit:?}");
    sidecar.signal(Signal::SIGCONT);
    sidecar.wait_log("a request to drain came too late", PATIENCE);
    assert_nothing_began(&sidecar, &admin);
    assert_a_drain_can_begin(&sidecar, &admin);
}

#[test]
fn a_frozen_sidecar_whose_backlog_is_full_keeps_no_hook_and_gives_up_no_place() {
    let _turn = shared();
    let small = "echo 8 > /proc/sys/net/core/somaxconn && exec \"$@\"";
    let small = ["unshare", "--net", "sh", "-c", small, "sh"];
    let tried = run_under(&small, &["--version"]).wait(PATIENCE);
    if tried.code != Some(0) {
        println!("SKIPPED: no backlog can be made small here: {}", tried.output);
        return;
    }
    let admin = FakeAdmin::unix();
    let args = arguments(&admin.address(), &["--check-interval=50ms"]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let sidecar = Sidecar::launch().args(&args).under(&small).start();
    freeze(&sidecar);
    let control = Address::Unix(sidecar.control_socket().to_owned());
    let mut crowd = Vec::new();
    while let Ok(socket) = control.connect(PATIENCE) {
        crowd.push(socket);
        assert!(crowd.len() < 100, "the backlog does not get full");
    }
    let another = format!("--control-socket={control}");
    let mut another = run(&["shutdown-manager", &another, "--admin-address=/none"]);
    let exit = sidecar.hook(&[]).wait(PATIENCE);
    assert_eq!(exit.code, Some(3), "{exit:?}");
    assert_took("the hook", exit.took, 4.9..10.0);
    assert!(exit.output.starts_with("no sidecar could be reached: "), "{exit:?}");
    assert_ends(&mut another, 1, "another shutdown-manager answers at ");
    sidecar.signal(Signal::SIGCONT);
    drop(crowd);
    let healthz = || sidecar.try_request("GET", "/healthz", PATIENCE).ok();
    wait_for("it to take them all", PATIENCE, healthz);
    assert_nothing_began(&sidecar, &admin);
    assert_a_drain_can_begin(&sidecar, &admin);
}

#[test]
fn a_sidecar_that_thaws_while_its_hook_still_waits_drains_once() {
    let _turn = shared();
    // Before and after the request has expired, which the hook then repeats.
    let rows = named([("soon", (1, false)), ("late", (5, true))]);
    each(rows, |name, (seconds, repeats)| {
        let admin = FakeAdmin::unix();
        admin.set_open(1);
        let sidecar = before(&admin.address(), &["--check-interval=50ms"]);
        freeze(&sidecar);
        let (start, mut hook) = (Instant::now(), sidecar.hook(&[]));
        // The time itself is what matters here.
        thread::sleep(Duration::from_secs(seconds));
        assert!(hook.running(), "{name}: {:?}", hook.try_wait());
        sidecar.signal(Signal::SIGCONT);
        wait_status(&sidecar, &[DRAINING, "\"open_connections\":1,", "\"drain\":1,"]);
        let seconds = seconds as f32;
        assert_took(name, start.elapsed(), seconds..seconds + 3.0);
        let log = sidecar.log().join("\n");
        assert_eq!(log.contains("came too late"), repeats, "{name}: {log}");
        assert!(hook.running(), "{name}: {:?}", hook.try_wait());
        admin.set_open(0);
        assert_ends(&mut hook, 0, "drained");
        assert_eq!(admin.count(Route::Fail), 1, "{name}");
    });
}

#[test]
fn a_hook_that_comes_before_its_sidecar_waits_for_it() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let dir = temp_dir("control");
    let path = dir.path().join("s");
    let mut hook = run(&["envoy", "shutdown", "--control-socket", path.to_str().expect("a path")]);
    // It looks every few milliseconds.
    wait_for("the hook to look", PATIENCE, || (hook.context_switches() > 5).then_some(()));
    assert!(hook.running(), "{:?}", hook.try_wait());
    admin.set_open(1);
    let args = ["--check-interval=50ms", "--check-delay=0", "--admin-address", &admin.address()];
    let sidecar = Sidecar::launch().args(&args).control_socket(&path).start();
    wait_status(&sidecar, &[DRAINING, "\"open_connections\":1,"]);
    assert!(hook.running(), "{:?}", hook.try_wait());
    admin.set_open(0);
    assert_ends(&mut hook, 0, "drained");
}

#[test]
fn without_a_sidecar_a_hook_says_so_in_one_sentence() {
    let _turn = shared();
    let dir = temp_dir("control");
    let stale = dir.path().join("stale");
    leave_socket(&stale, 0o600);
    let mut hooks = [("none", "no such socket"), ("stale", "nobody listens")].map(|(name, why)| {
        let path = dir.path().join(name).to_str().expect("a path").to_owned();
        let [hook, status] = ["shutdown", "status"]
            .map(|command| run(&[command, "--control-socket", path.as_str()]));
        (hook, status, format!("{path}: {why}"))
    });
    for (hook, status, why) in &mut hooks {
        for (process, expected) in [(hook, 4.9..8.0), (status, 0.0..3.0)] {
            let exit = process.wait(PATIENCE);
            assert_eq!((exit.code, exit.output.lines().count()), (Some(3), 1), "{exit:?}");
            assert!(exit.output.starts_with("no sidecar could be reached: "), "{exit:?}");
            assert!(exit.output.contains(why.as_str()), "{exit:?}");
            assert_took(why, exit.took, expected);
        }
    }
    assert!(stale.exists(), "a hook removes nothing");
}

#[test]
fn requests_and_waiters_leave_no_threads_and_no_descriptors_behind() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &["--check-interval=50ms"]);
    assert_eq!(sidecar.request("GET", "/healthz").0, 200);
    // The start's look at Envoy is over, and so is that request.
    sidecar.wait_log("Envoy answers", PATIENCE);
    let least = || (sidecar.threads(), sidecar.fds());
    let mut before = least();
    wait_for("a calm", PATIENCE, || {
        let now = least();
        std::mem::replace(&mut before, now).eq(&now).then_some(())
    });
    admin.set_open(1);
    for n in 0..100 {
        let (method, path) = [("GET", "/healthz"), ("GET", "/metrics"), ("POST", "/none")][n % 3];
        sidecar.request(method, path);
    }
    let waiters: Vec<_> = (0..20).map(|_| Waiter::new(&sidecar)).collect();
    wait_status(&sidecar, &["\"waiters\":20,"]);
    // Some leave in the middle, which is seen at once.
    let stays = waiters.into_iter().skip(5).collect::<Vec<_>>();
    wait_status(&sidecar, &["\"waiters\":15,"]);
    let during = least();
    // None has a thread of its own; a look at the status may have one.
    assert!(during.0 <= before.0 + 3 && during.1 >= before.1 + 15, "{before:?}, {during:?}");
    let mut hook = sidecar.hook(&[]);
    wait_status(&sidecar, &[DRAINING, "\"open_connections\":1,"]);
    assert!(hook.running(), "{:?}", hook.try_wait());
    admin.set_open(0);
    assert_ends(&mut hook, 0, "drained");
    for waiter in &stays {
        assert_eq!(waiter.answer().0, 200);
    }
    drop(stays);
    let mut last = during;
    let calm = crate::support::try_wait_for(PATIENCE, || {
        last = least();
        (last.0 <= before.0 && last.1 <= before.1).then_some(())
    });
    println!("threads and descriptors: {before:?}, then {during:?}, then {last:?}");
    assert!(calm.is_some(), "threads and descriptors: {before:?}, {during:?}, {last:?}");
}
