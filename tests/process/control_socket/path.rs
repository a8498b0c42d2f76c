//! Where the control socket is, who may use it, and how a hook finds it.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::support::prelude::*;

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
        let sentence = format!("another shutdown-manager listens at {path}; ");
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
            let sentence = format!("another shutdown-manager listens at {}", path.display());
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
        wait_value("the sidecar to try", || sidecar.context_switches(), |n| *n > 20);
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
        let words = [path, ", a file of user ", "that is not a socket", "set --control-socket"];
        assert!(words.iter().all(|word| exit.output.contains(word)), "{exit:?}");
    }
    assert_eq!(fs::read(&file).expect("the file"), b"precious");
    assert!(folder.is_dir());
}

#[test]
fn hook_and_sidecar_find_the_control_socket_beside_the_admin_socket() {
    let admin = FakeAdmin::unix();
    let address = admin.admin_address();
    let path = Path::new(&address).with_file_name("shutdown-manager.sock");
    let sidecar = Sidecar::builder().beside(&admin).finds_control_socket_at(&path).start();
    assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
    sidecar.wait_log(logged(STARTED).with("control_socket", path.display()));
    admin.set_open(1);
    let mut hook = sidecar.hook(&["--admin-address", &address]);
    wait_open_connections(&sidecar, 1);
    hook.assert_running();
    finish_drain(&admin, &mut hook);
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
    // The mount's own inode is the first: there is room for no socket.
    let rows = [
        ("read-only", (mount("-o ro"), "admin.sock")),
        ("full", (mount("-o nr_inodes=1"), "admin.sock")),
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
fn the_umask_stays_as_it_was_where_the_first_path_cannot_be_written() {
    if !can_unshare("--mount") {
        return;
    }
    let dir = temp_dir("ready");
    let ready = dir.path().join("ready");
    let ready_file = format!("--ready-file={}", ready.display());
    let args = ["shutdown-manager", "--check-delay=0", &ready_file];
    let args = [&args[..], &["--admin-address=/nowhere/admin.sock"]].concat();
    let mut sidecar = in_namespace("mount -t tmpfs tmpfs /dev/shm; umask 027", &args);
    let socket = seen_by(&sidecar, SHM);
    wait_healthy(&mut sidecar, &socket);
    sidecar.wait_log(logged(STARTED).with("control_socket", SHM));
    let mode = |path: &Path| fs::metadata(path).expect("a file").permissions().mode() & 0o7777;
    assert_eq!(mode(&socket), 0o600);
    assert_exits(&mut in_namespace_of(&sidecar, &["shutdown"]), 0, "Envoy is gone");
    let mode = mode(&ready);
    assert!(mode == 0o640, "{mode:o}: the path that failed has left the umask 027 changed");
    stop(&mut sidecar, &socket);
}

#[test]
fn an_error_names_the_option_to_set_where_no_control_socket_can_be_made() {
    let exit = run(&["shutdown-manager", "--control-socket=/nowhere/at/all.sock"]).wait();
    assert_eq!((exit.code, exit.output.lines().count()), (Some(1), 1), "{exit:?}");
    let words = ["cannot bind the control socket", "/nowhere/at/all.sock", "set --control-socket"];
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
        let words = ["cannot bind the control socket", tries, SHM, "set --control-socket"];
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
    let path = Path::new(&address).with_file_name("shutdown-manager.sock");
    let path = path.to_str().expect("a path");
    let apart = ["unshare", "--pid", "--fork", "--kill-child"];
    let args = ["shutdown-manager", "--check-delay=0", "--admin-address", &address];
    let mut sidecar = run_under(&apart, &args);
    wait_healthy(&mut sidecar, Path::new(path));

    let hook = ["shutdown", "--admin-address", &address];
    let exit = run_under(&apart, &hook).wait();
    assert_eq!((exit.code, exit.output.lines().count()), (Some(3), 1), "{exit:?}");
    let words =
        ["no sidecar could be reached", "another container or pod", path, "--control-socket"];
    assert!(words.iter().all(|word| exit.output.contains(word)), "{exit:?}");
    let response = try_get(Path::new(path), "/status").expect("a response");
    let status = Status::parse(&response.body);
    assert!(status.is_before_the_first_drain(), "{status:?}");
    assert_eq!(admin.count(Route::Fail), 0);

    let exit = run_under(&apart, &[&hook[..], &["--control-socket", path]].concat()).wait();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert_eq!(admin.count(Route::Fail), 1);
    sidecar.kill();
}

#[test]
fn a_control_socket_that_was_removed_is_bound_again() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let socket = sidecar.control_socket();
    let mut early = start_drain(&sidecar, &admin);
    fs::remove_file(socket).expect("remove the control socket");
    assert_healthy(&sidecar.public());
    sidecar.wait_log(logged(CONTROL_SOCKET_REPLACED).with("path", socket.display()));
    let mode = fs::metadata(socket).expect("the control socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut late = sidecar.hook(&[]);
    sidecar.wait_log(DRAIN_JOINED);
    early.assert_running();
    finish_drain(&admin, &mut early);
    assert_exits(&mut late, 0, NONE_OPEN);
    sidecar.assert_times_logged(CONTROL_SOCKET_REPLACED, 1);
}

#[test]
fn a_sidecar_that_no_hook_can_find_is_not_healthy() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let socket = sidecar.control_socket();
    fs::remove_file(socket).expect("remove the control socket");
    fs::create_dir(socket).expect("make a folder in its place");
    let response = sidecar.public().get("/healthz");
    let unhealthy = (503, "no hook finds the control socket\n");
    assert_eq!(response, unhealthy, "the kubelet does not restart it, and no drain starts");
    let lost = logged(CONTROL_SOCKET_LOST).with("level", "error");
    sidecar.wait_log(lost.containing("error", "not a socket"));
    fs::remove_dir(socket).expect("remove the folder");
    assert_healthy(&sidecar.public());
    assert_exits(&mut sidecar.hook(&[]), 0, "drained");
}
