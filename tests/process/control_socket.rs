//! The control socket: its path, its responses, its robustness, and the hooks that use it.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::cases::{for_each_case, named};
use crate::support::client::{Client, Connection};
use crate::support::fake_admin::{FakeAdmin, Route};
use crate::support::http::Response;
use crate::support::log::logged;
use crate::support::net::Address;
use crate::support::process::{Process, run, run_under};
use crate::support::sidecar::Sidecar;
use crate::support::status::Status;
use crate::support::steps::{
    OK, assert_exits, assert_resources_released, can_unshare, finish_drain, freeze,
    leave_stale_socket, resources, resources_at_rest, start_drain, thaw, wait_envoy_hooks,
    wait_open_connections, wait_status,
};
use crate::support::words::{ENDED, IDLE, TOO_MANY_BODY, WAITING_FOR_CONNECTIONS};
use crate::support::{PATIENCE, assert_took, temp_dir, wait_for, wait_until};
use envoy_shutdown_manager::observe::messages::{
    DRAIN_JOINED, DRAIN_REQUEST_EXPIRED, DRAIN_STARTED, ENVOY_RESPONDS, OPEN_CONNECTIONS, STARTED,
};

/// The default path of a control socket, besides the one beside the admin socket.
const SHM: &str = "/dev/shm/shutdown-manager.sock";

/// The program in a mount namespace of its own, after this script.
fn in_namespace(script: &str, args: &[&str]) -> Process {
    let script = format!("set -e; {script}; exec \"$@\"");
    run_under(&["unshare", "--mount", "sh", "-c", &script, "sh"], args)
}

/// The program in the mount namespace of another process.
fn in_namespace_of(process: &Process, args: &[&str]) -> Process {
    let namespace = format!("--mount=/proc/{}/ns/mnt", process.pid());
    run_under(&["nsenter", &namespace, "--"], args)
}

/// A file as a process in another mount namespace sees it.
fn seen_by(process: &Process, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", process.pid()))
}

/// A GET to a sidecar that runs without a fixture.
fn try_get(socket: &Path, path: &str) -> Option<Response> {
    Client::from(Address::Unix(socket.to_owned())).try_request("GET", path, PATIENCE).ok()
}

#[track_caller]
fn wait_healthy(process: &mut Process, socket: &Path) {
    wait_for("a response", || {
        process.assert_running();
        try_get(socket, "/healthz").filter(|response| response.status == 200)
    });
}

/// Stops a sidecar that runs without a fixture.
#[track_caller]
fn stop(process: &mut Process, socket: &Path) {
    process.signal(Signal::SIGTERM);
    let exit = process.wait();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(!exit.output.contains("panicked"), "{exit:?}");
    assert!(!socket.exists(), "{} is left", socket.display());
}

/// Asserts that it responds, whatever other clients hold connections.
#[track_caller]
fn assert_responds(sidecar: &Sidecar) {
    assert_eq!(sidecar.control().get("/healthz"), OK);
}

#[track_caller]
fn assert_no_drain_started(sidecar: &Sidecar, admin: &FakeAdmin) {
    let status = sidecar.status();
    assert!(status.is_before_the_first_drain(), "{status:?}");
    sidecar.assert_not_logged(DRAIN_STARTED);
    assert_eq!(admin.count(Route::Fail), 0);
}

/// Starts a drain as a hook does, and ends it: what was rejected before was not rejected for another
/// reason.
#[track_caller]
fn assert_drain_can_start(sidecar: &Sidecar, admin: &FakeAdmin) {
    admin.set_open(1);
    assert_eq!(sidecar.control().post("/drain"), (200, "started 1\n"));
    wait_open_connections(sidecar, 1);
    assert_eq!(sidecar.control().post("/drain?check-delay=0s"), (200, "joined 1\n"));
    admin.set_open(0);
    wait_status(sidecar, |status| status.phase() == ENDED && status.outcome() == Some("drained"));
    assert_eq!(admin.count(Route::Fail), 1);
}

#[test]
fn only_its_owner_may_use_the_control_socket() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let file = fs::symlink_metadata(sidecar.control_socket()).expect("a file");
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o7777, 0o600);
}

#[test]
fn the_umask_does_not_open_the_control_socket_and_stays_as_it_was() {
    let dir = temp_dir("control");
    let (ready, admin) = (dir.path().join("ready"), FakeAdmin::unix());
    let sidecar = Sidecar::builder()
        .beside(&admin)
        .arg(format!("--ready-file={}", ready.display()))
        .under(["sh", "-c", "umask 0; exec \"$@\"", "sh"])
        .start();
    let mode = |path: &Path| fs::metadata(path).expect("a file").permissions().mode() & 0o7777;
    assert_eq!(mode(sidecar.control_socket()), 0o600);
    assert_exits(&mut sidecar.hook(&[]), 0, "drained");
    assert_eq!(mode(&ready), 0o666, "the umask was left changed");
}

#[test]
fn a_socket_that_a_killed_sidecar_has_left_is_replaced() {
    let admin = FakeAdmin::unix();
    let mut killed = Sidecar::beside(&admin);
    killed.kill();
    let path = killed.control_socket().to_owned();
    assert!(path.exists(), "nothing is left");
    let sidecar = Sidecar::builder().beside(&admin).control_socket(&path).start();
    assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
    assert_exits(&mut sidecar.hook(&[]), 0, "drained");
}

#[test]
fn a_live_socket_is_left_to_its_owner() {
    let admin = FakeAdmin::unix();
    let first = Sidecar::beside(&admin);
    let path = first.control_socket().to_str().expect("a path");
    for command in [&["shutdown-manager"][..], &["envoy", "shutdown-manager"]] {
        let args =
            [command, &["--control-socket", path, "--admin-address", &admin.admin_address()]];
        let exit = run(&args.concat()).wait();
        assert_eq!(exit.code, Some(1), "{exit:?}");
        assert_eq!(exit.output.lines().count(), 1, "{exit:?}");
        let sentence = format!("another shutdown-manager answers at {path}; ");
        assert!(exit.output.contains(&sentence) && exit.output.contains("level=error"), "{exit:?}");
    }
    // Nor is another path used, where the sidecar could choose one.
    let beside = Path::new(path).with_file_name("admin.sock");
    let default = Path::new(path).with_file_name("shutdown-manager.sock");
    let other =
        Sidecar::builder().admin(beside.display()).finds_control_socket_at(&default).start();
    let exit =
        run(&["shutdown-manager", "--admin-address", beside.to_str().expect("a path")]).wait();
    assert_eq!(exit.code, Some(1), "{exit:?}");
    assert!(exit.output.contains(default.to_str().expect("a path")), "{exit:?}");
    drop(other);
    assert_eq!(first.control().get("/healthz"), OK);
    assert_exits(&mut first.hook(&[]), 0, "drained");
}

#[test]
fn of_sidecars_that_start_together_one_has_the_stale_socket() {
    let rounds = (0..50).map(|round| (format!("round {round}"), ()));
    for_each_case(rounds.collect(), |round, ()| {
        let dir = temp_dir("control");
        let path = dir.path().join("s");
        leave_stale_socket(&path, 0o600);
        leave_stale_socket(&path.with_added_extension("server"), 0o600);
        let control = format!("--control-socket={}", path.display());
        let mut sidecars: Vec<_> =
            (0..6).map(|_| run(&["shutdown-manager", &control, "--admin-address=/none"])).collect();
        let ended = |sidecars: &mut Vec<Process>| {
            sidecars.iter_mut().position(|sidecar| !sidecar.running())
        };
        for _ in 1..sidecars.len() {
            let loser = wait_for("all but one to end", || ended(&mut sidecars));
            let exit = sidecars.swap_remove(loser).wait();
            let sentence = format!("another shutdown-manager answers at {}", path.display());
            let explains = exit.output.contains(&sentence);
            assert!(exit.code == Some(1) && explains, "{round}: {exit:?}");
        }
        wait_healthy(&mut sidecars[0], &path);
        stop(&mut sidecars[0], &path);
    });
}

#[test]
fn a_sidecar_waits_for_its_turn_but_not_for_ever() {
    let rows = named([("a moment", true), ("for ever", false)]);
    for_each_case(rows, |name, ends| {
        let dir = temp_dir("control");
        let path = dir.path().join("s");
        let held = fs::File::open(dir.path()).expect("open the directory");
        held.lock().expect("lock the directory");
        let start = Instant::now();
        let control = format!("--control-socket={}", path.display());
        let mut sidecar = run(&["shutdown-manager", &control, "--admin-address=/none"]);
        wait_until("the sidecar to try", || sidecar.context_switches() > 20);
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
fn a_file_that_is_not_a_socket_is_neither_removed_nor_replaced() {
    let dir = temp_dir("control");
    let (file, folder) = (dir.path().join("file"), dir.path().join("folder"));
    fs::write(&file, "precious").expect("write");
    fs::create_dir(&folder).expect("make a directory");
    for path in [&file, &folder] {
        let path = path.to_str().expect("a path");
        let exit = run(&["shutdown-manager", "--control-socket", path]).wait();
        assert_eq!(exit.code, Some(1), "{exit:?}");
        assert_eq!(exit.output.lines().count(), 1, "{exit:?}");
        let words = [path, "there is a file that is not a socket", "set --control-socket"];
        assert!(words.iter().all(|word| exit.output.contains(word)), "{exit:?}");
    }
    assert_eq!(fs::read(&file).expect("the file"), b"precious");
    assert!(folder.is_dir());
}

#[test]
fn hook_and_sidecar_find_the_control_socket_beside_the_admin_socket() {
    let admin = FakeAdmin::unix();
    let address = admin.admin_address();
    let place = Path::new(&address).with_file_name("shutdown-manager.sock");
    let sidecar = Sidecar::builder().beside(&admin).finds_control_socket_at(&place).start();
    assert_eq!(fs::metadata(&place).expect("a file").permissions().mode() & 0o777, 0o600);
    sidecar.wait_log(logged(STARTED).with("control_socket", place.display()));
    admin.set_open(1);
    let mut hook = sidecar.hook(&["--admin-address", &address]);
    wait_open_connections(&sidecar, 1);
    hook.assert_running();
    finish_drain(&admin, &mut hook);
}

#[test]
fn the_admin_address_of_a_hook_applies_to_its_drain() {
    let (right, wrong) = (FakeAdmin::unix(), FakeAdmin::unix());
    let sidecar = Sidecar::beside(&wrong);
    right.set_open(1);
    let mut hook = sidecar.hook(&["--admin-address", &right.admin_address()]);
    wait_open_connections(&sidecar, 1);
    assert_eq!(sidecar.status().admin_address(), right.admin_address());
    hook.assert_running();
    right.set_open(0);
    assert_exits(&mut hook, 0, "drained");
    assert_eq!((right.count(Route::Fail), wrong.count(Route::Fail)), (1, 0));
}

#[test]
fn hook_and_sidecar_use_shared_memory_where_there_is_no_admin_socket() {
    if !can_unshare("--mount") {
        return;
    }
    let tmpfs = "mount -t tmpfs tmpfs /dev/shm";
    let admin = FakeAdmin::tcp();
    let args = ["envoy", "shutdown-manager", "--check-delay=0", "--check-interval=50ms"];
    let address = ["--admin-address", &admin.admin_address()];
    let mut sidecar = in_namespace(tmpfs, &[&args[..], &address].concat());
    let socket = seen_by(&sidecar, SHM);
    wait_healthy(&mut sidecar, &socket);
    sidecar.wait_log(logged(STARTED).with("control_socket", SHM));
    assert_eq!(fs::metadata(&socket).expect("a file").permissions().mode() & 0o777, 0o600);
    admin.set_open(1);
    // Contour's hook, which has no option, and one with an admin address.
    let mut hooks = [
        in_namespace_of(&sidecar, &["envoy", "shutdown"]),
        in_namespace_of(&sidecar, &[&["envoy", "shutdown"][..], &address].concat()),
    ];
    sidecar.wait_log(DRAIN_JOINED);
    sidecar.wait_log(OPEN_CONNECTIONS);
    for hook in &mut hooks {
        hook.assert_running();
    }
    let exit = in_namespace_of(&sidecar, &["status"]).wait();
    assert!(exit.code == Some(0) && exit.output.contains(WAITING_FOR_CONNECTIONS), "{exit:?}");
    admin.set_open(0);
    for hook in &mut hooks {
        assert_exits(hook, 0, "drained");
    }
    assert_eq!(admin.count(Route::Fail), 1);
    stop(&mut sidecar, &socket);
}

#[test]
fn the_next_default_path_is_used_where_one_cannot_be_written() {
    if !can_unshare("--mount") {
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
    for_each_case(named(rows), |name, (script, admin)| {
        let address = format!("{dir}/{admin}");
        let args = ["shutdown-manager", "--check-delay=0", "--admin-address", &address];
        let mut sidecar = in_namespace(&script, &args);
        let socket = seen_by(&sidecar, SHM);
        wait_healthy(&mut sidecar, &socket);
        let inside = fs::read_dir(seen_by(&sidecar, dir)).expect("read the directory");
        assert_eq!(inside.count(), 0, "{name}: something is left");
        // No Envoy listens at the admin address, which the sidecar that the hook has found reports.
        let mut hook = in_namespace_of(&sidecar, &["shutdown", "--admin-address", &address]);
        assert_exits(&mut hook, 0, "Envoy is gone");
        stop(&mut sidecar, &socket);
    });
}

#[test]
fn an_error_names_the_option_to_set_where_no_control_socket_can_be_made() {
    let exit = run(&["shutdown-manager", "--control-socket=/nowhere/at/all.sock"]).wait();
    assert_eq!((exit.code, exit.output.lines().count()), (Some(1), 1), "{exit:?}");
    let words = [
        "there is no place for the control socket",
        "/nowhere/at/all.sock",
        "set --control-socket",
    ];
    assert!(words.iter().all(|word| exit.output.contains(word)), "{exit:?}");
    if !can_unshare("--mount") {
        return;
    }
    let read_only = "mount -t tmpfs -o ro tmpfs /dev/shm";
    for (address, tries) in
        [("/nowhere/at/all.sock", "/nowhere/at/shutdown-manager.sock"), ("localhost:1", SHM)]
    {
        let exit =
            in_namespace(read_only, &["shutdown-manager", "--admin-address", address]).wait();
        assert_eq!((exit.code, exit.output.lines().count()), (Some(1), 1), "{exit:?}");
        let words =
            ["there is no place for the control socket", tries, SHM, "set --control-socket"];
        assert!(words.iter().all(|word| exit.output.contains(word)), "{exit:?}");
    }
}

#[test]
fn a_hook_does_not_drain_by_default_through_a_sidecar_in_another_pid_namespace() {
    if !can_unshare("--pid") {
        return;
    }
    let admin = FakeAdmin::unix();
    let address = admin.admin_address();
    let place = Path::new(&address).with_file_name("shutdown-manager.sock");
    let place = place.to_str().expect("a path");
    let apart = ["unshare", "--pid", "--fork", "--kill-child"];
    let args = ["shutdown-manager", "--check-delay=0", "--admin-address", &address];
    let mut sidecar = run_under(&apart, &args);
    wait_healthy(&mut sidecar, Path::new(place));

    let hook = ["shutdown", "--admin-address", &address];
    let exit = run_under(&apart, &hook).wait();
    assert_eq!((exit.code, exit.output.lines().count()), (Some(3), 1), "{exit:?}");
    let words =
        ["no sidecar could be reached", "another container or pod", place, "--control-socket"];
    assert!(words.iter().all(|word| exit.output.contains(word)), "{exit:?}");
    let response = try_get(Path::new(place), "/status").expect("a response");
    let status = Status::parse(&response.body);
    assert!(status.is_before_the_first_drain(), "{status:?}");
    assert_eq!(admin.count(Route::Fail), 0);

    let exit = run_under(&apart, &[&hook[..], &["--control-socket", place]].concat()).wait();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert_eq!(admin.count(Route::Fail), 1);
    sidecar.kill();
}

#[test]
fn each_route_has_its_response() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    for (method, path, status, body) in [
        ("GET", "/healthz", 200, "OK"),
        ("GET", "/healthz?verbose", 200, "OK"),
        ("GET", "/status", 200, "{\"version\":"),
        ("GET", "/status?as=line", 200, IDLE),
        ("GET", "/status?as=page", 200, &format!("{IDLE} (no drain)")),
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
        ("POST", "/drain?drain-timeout=1h&drain-timeout=1h", 400, "drain-timeout: is given twice"),
        ("POST", "/drain?admin-address=localhost", 400, "admin-address: "),
        ("POST", "/drain?force=1", 400, "no option \"force\""),
        ("POST", "/drain?check-delay", 400, "\"check-delay\" is not NAME=VALUE"),
        ("POST", "/drain?expires=soon", 400, "expires=soon is no time"),
    ] {
        let response = sidecar.control().request(method, path);
        let matches = response.body.to_lowercase().contains(&body.to_lowercase());
        assert!(response.status == status && matches, "{method} {path}: {response:?}");
    }
    assert_no_drain_started(&sidecar, &admin);
    assert_drain_can_start(&sidecar, &admin);
}

#[test]
fn responses_have_a_type_and_a_length() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let kind = |path: &str| sidecar.control().get(path).header("content-type").map(str::to_owned);
    assert_eq!(kind("/status").as_deref(), Some("application/json"));
    assert_eq!(kind("/metrics").as_deref(), Some("text/plain; version=0.0.4"));
    assert_eq!(kind("/healthz").as_deref(), Some("text/plain; charset=utf-8"));
    let head = |path: &str| format!("HEAD {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    for (path, length) in [("/healthz", Some("2")), ("/metrics", None), ("/none", Some("10"))] {
        let response = sidecar.control().send(head(path)).only_response();
        assert_eq!(response.body, "", "HEAD {path}: {response:?}");
        let announced = response.header("content-length");
        assert!(length.is_none() || announced == length, "HEAD {path}: {response:?}");
    }
    assert_eq!(sidecar.control().send(head("/drain")).only_response().status, 405);
    assert_no_drain_started(&sidecar, &admin);
}

#[test]
fn an_expired_drain_request_starts_nothing() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    assert_eq!(sidecar.control().post("/drain?expires=1").status, 410);
    sidecar.wait_log(DRAIN_REQUEST_EXPIRED);
    assert_no_drain_started(&sidecar, &admin);
    let late = "18446744073709551615";
    admin.set_open(1);
    let response = sidecar.control().post(&format!("/drain?expires={late}"));
    assert_eq!(response, (200, "started 1\n"));
    wait_open_connections(&sidecar, 1);
    // Nor does it join.
    assert_eq!(sidecar.control().post("/drain?expires=1").status, 410);
    admin.set_open(0);
    wait_status(&sidecar, |status| status.outcome() == Some("drained"));
}

#[test]
fn a_drain_request_with_a_body_starts_nothing() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let mut clients = Vec::new();
    let mut post = |headers: &str, body: &str| {
        let request = format!("POST /drain HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n{body}");
        clients.push(sidecar.control().send(request));
        assert_responds(&sidecar);
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
        assert_eq!(client.response().status, 413, "of number {n}");
    }
    assert_no_drain_started(&sidecar, &admin);
    assert_drain_can_start(&sidecar, &admin);
    assert_eq!(clients.len(), 10);
}

/// What programs send that take the control socket for something else.
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
fn requests_by_mistake_do_no_harm() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let send_mistakes = || {
        for mistake in mistakes() {
            // Some of them are rejected before they are whole.
            sidecar.control().connect().try_send(&mistake);
            assert_responds(&sidecar);
        }
    };
    send_mistakes();
    assert_no_drain_started(&sidecar, &admin);
    let mut hook = start_drain(&sidecar, &admin);
    send_mistakes();
    hook.assert_running();
    let status = sidecar.status();
    assert_eq!((status.phase(), status.drain()), (WAITING_FOR_CONNECTIONS, 1));
    finish_drain(&admin, &mut hook);
}

#[test]
fn incomplete_requests_do_not_delay_others() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let halves = ["", "P", "POST /drain HTTP/1.1\r\nhost", "GET /healthz HTTP/1.1\r\n"];
    let mut clients = Vec::new();
    // More than the sidecar keeps.
    for n in 0..250 {
        clients.push(sidecar.control().send(halves[n % halves.len()]));
        assert_responds(&sidecar);
    }
    assert_no_drain_started(&sidecar, &admin);
    let mut hook = start_drain(&sidecar, &admin);
    finish_drain(&admin, &mut hook);
    assert_eq!(clients.len(), 250);
}

#[test]
fn bytes_after_a_request_that_waits_end_that_request() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let healthz = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let shutdown = healthz.replace("/healthz", "/shutdown");
    let (first, later) = (sidecar.control().connect(), sidecar.control().connect());
    first.send(shutdown.clone() + healthz);
    assert_eq!(first.response().status, 400);
    later.send(shutdown);
    wait_envoy_hooks(&sidecar, 1);
    later.send(healthz);
    assert!(later.peer_closed_within(PATIENCE), "it continues to wait");
    wait_envoy_hooks(&sidecar, 0);
    assert_responds(&sidecar);
    assert_drain_can_start(&sidecar, &admin);
}

#[test]
fn a_hook_right_after_a_request_that_waits_drains() {
    for count in 0..8 {
        let admin = FakeAdmin::unix();
        let sidecar = Sidecar::beside(&admin);
        let waiters: Vec<_> =
            (0..count).map(|_| sidecar.control().start_get("/shutdown")).collect();
        wait_envoy_hooks(&sidecar, count);
        let last = sidecar.control().start_get("/shutdown");
        assert_exits(&mut sidecar.hook(&[]), 0, "drained");
        for waiter in waiters.iter().chain([&last]) {
            assert_eq!(waiter.response(), OK);
        }
    }
}

#[test]
fn there_are_sixty_four_waiting_slots_and_all_are_answered() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let waiters: Vec<_> = (0..64).map(|_| sidecar.control().start_get("/shutdown")).collect();
    wait_status(&sidecar, |status| status.phase() == IDLE && status.envoy_hooks() == 64);
    for path in ["/shutdown", "/shutdown/ready", "/shutdown"] {
        assert_eq!(sidecar.control().get(path), (503, TOO_MANY_BODY));
    }
    // A hook has a slot of its own.
    assert_eq!(sidecar.control().get("/shutdown?drain=1").status, 410);
    assert_eq!(sidecar.control().get("/healthz"), OK);
    admin.set_open(1);
    assert_eq!(sidecar.control().post("/drain"), (200, "started 1\n"));
    wait_open_connections(&sidecar, 1);
    wait_envoy_hooks(&sidecar, 64);
    assert!(waiters.iter().all(Connection::is_waiting), "one was answered before the end");
    admin.set_open(0);
    for waiter in &waiters {
        assert_eq!(waiter.response(), OK);
    }
    wait_status(&sidecar, |status| status.phase() == ENDED && status.envoy_hooks() == 0);
    assert_eq!(sidecar.control().get("/shutdown"), OK, "the slots are free");
}

#[test]
fn a_hook_gives_up_on_a_frozen_sidecar_which_does_not_drain_when_it_thaws() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    freeze(&sidecar);
    let exit = sidecar.hook(&[]).wait();
    assert_eq!(exit.code, Some(3), "{exit:?}");
    assert_took("the hook", exit.took, 9.9..13.0);
    let sentence = "did not answer within 10s; it starts no drain when it wakes";
    assert!(exit.output.lines().count() == 1 && exit.output.contains(sentence), "{exit:?}");
    thaw(&sidecar);
    sidecar.wait_log(DRAIN_REQUEST_EXPIRED);
    assert_no_drain_started(&sidecar, &admin);
    assert_drain_can_start(&sidecar, &admin);
}

#[test]
fn a_hook_gives_up_on_a_frozen_sidecar_whose_backlog_is_full() {
    let small = "echo 8 > /proc/sys/net/core/somaxconn && exec \"$@\"";
    let small = ["unshare", "--net", "sh", "-c", small, "sh"];
    let tried = run_under(&small, &["--version"]).wait();
    if tried.code != Some(0) {
        println!("SKIPPED: no backlog can be made small here: {}", tried.output);
        return;
    }
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::builder().beside(&admin).under(small).start();
    freeze(&sidecar);
    let mut backlog = Vec::new();
    while let Ok(connection) = sidecar.control().try_connect() {
        backlog.push(connection);
        assert!(backlog.len() < 100, "the backlog does not get full");
    }
    let mut another = sidecar.run(&["shutdown-manager", "--admin-address=/none"]);
    let exit = sidecar.hook(&[]).wait();
    assert_eq!(exit.code, Some(3), "{exit:?}");
    assert_took("the hook", exit.took, 4.9..10.0);
    assert!(exit.output.starts_with("no sidecar could be reached: "), "{exit:?}");
    assert_exits(&mut another, 1, "another shutdown-manager answers at ");
    thaw(&sidecar);
    drop(backlog);
    let healthz = || sidecar.control().try_request("GET", "/healthz", PATIENCE).ok();
    wait_for("all of them to be accepted", healthz);
    assert_no_drain_started(&sidecar, &admin);
    assert_drain_can_start(&sidecar, &admin);
}

#[test]
fn a_sidecar_that_thaws_while_its_hook_still_waits_drains_once() {
    // Before and after the request has expired, which the hook then repeats.
    let rows = named([("soon", (1, false)), ("late", (5, true))]);
    for_each_case(rows, |name, (seconds, repeats)| {
        let admin = FakeAdmin::unix();
        admin.set_open(1);
        let sidecar = Sidecar::beside(&admin);
        freeze(&sidecar);
        let (start, mut hook) = (Instant::now(), sidecar.hook(&[]));
        // The time itself is what is tested.
        thread::sleep(Duration::from_secs(seconds));
        hook.assert_running();
        thaw(&sidecar);
        wait_open_connections(&sidecar, 1);
        assert_eq!(sidecar.status().drain(), 1);
        let seconds = seconds as f32;
        assert_took(name, start.elapsed(), seconds..seconds + 3.0);
        let expired = sidecar.times_logged(DRAIN_REQUEST_EXPIRED) > 0;
        assert_eq!(expired, repeats, "{name}: {}", sidecar.report());
        hook.assert_running();
        finish_drain(&admin, &mut hook);
        assert_eq!(admin.count(Route::Fail), 1, "{name}");
    });
}

#[test]
fn a_hook_that_comes_before_its_sidecar_waits_for_it() {
    let admin = FakeAdmin::unix();
    let dir = temp_dir("control");
    let path = dir.path().join("s");
    let mut hook = run(&["envoy", "shutdown", "--control-socket", path.to_str().expect("a path")]);
    // It tries every few milliseconds.
    wait_until("the hook to try", || hook.context_switches() > 5);
    hook.assert_running();
    admin.set_open(1);
    let sidecar = Sidecar::builder().beside(&admin).control_socket(&path).start();
    wait_open_connections(&sidecar, 1);
    hook.assert_running();
    finish_drain(&admin, &mut hook);
}

#[test]
fn without_a_sidecar_a_hook_ends_with_one_sentence() {
    let dir = temp_dir("control");
    let stale = dir.path().join("stale");
    leave_stale_socket(&stale, 0o600);
    let mut hooks = [("none", "no such socket"), ("stale", "nobody listens")].map(|(name, why)| {
        let path = dir.path().join(name).to_str().expect("a path").to_owned();
        let [hook, status] = ["shutdown", "status"]
            .map(|command| run(&[command, "--control-socket", path.as_str()]));
        (hook, status, format!("{path}: {why}"))
    });
    for (hook, status, why) in &mut hooks {
        for (process, expected) in [(hook, 4.9..8.0), (status, 0.0..3.0)] {
            let exit = process.wait();
            assert_eq!((exit.code, exit.output.lines().count()), (Some(3), 1), "{exit:?}");
            assert!(exit.output.starts_with("no sidecar could be reached: "), "{exit:?}");
            assert!(exit.output.contains(why.as_str()), "{exit:?}");
            assert_took(why, exit.took, expected);
        }
    }
    assert!(stale.exists(), "a hook removes nothing");
}

#[test]
fn requests_leave_no_threads_and_no_descriptors_behind() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    assert_eq!(sidecar.control().get("/healthz").status, 200);
    // The startup check is over, and so is that request.
    sidecar.wait_log(ENVOY_RESPONDS);
    let before = resources_at_rest(&sidecar);
    admin.set_open(1);
    for n in 0..100 {
        let (method, path) = [("GET", "/healthz"), ("GET", "/metrics"), ("POST", "/none")][n % 3];
        sidecar.control().request(method, path);
    }
    let waiters: Vec<_> = (0..20).map(|_| sidecar.control().start_get("/shutdown")).collect();
    wait_envoy_hooks(&sidecar, 20);
    // Some disconnect early, which is seen at once.
    let stays = waiters.into_iter().skip(5).collect::<Vec<_>>();
    wait_envoy_hooks(&sidecar, 15);
    let during = resources(&sidecar);
    // None has a thread of its own; a request for the status may have one.
    assert!(during.0 <= before.0 + 3 && during.1 >= before.1 + 15, "{before:?}, {during:?}");
    let mut hook = sidecar.hook(&[]);
    wait_open_connections(&sidecar, 1);
    hook.assert_running();
    finish_drain(&admin, &mut hook);
    for waiter in &stays {
        assert_eq!(waiter.response().status, 200);
    }
    drop(stays);
    println!("threads and descriptors: {before:?}, then {during:?}");
    assert_resources_released(&sidecar, before);
}
