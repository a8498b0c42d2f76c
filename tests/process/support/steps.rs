//! Steps that tests share, in the order of a drain: a pod, its deletion, what the sidecar shows
//! meanwhile, and its end.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::mem;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use envoy_shutdown_manager::observe::messages::{
    DRAINED, ENVOY_GONE, ENVOY_LIVE_AGAIN, ENVOY_RESTARTED, NO_ENVOY_HOOK, OPEN_CONNECTIONS,
    RELEASED, STOP_REQUESTED, TIMED_OUT,
};
use nix::sys::signal::Signal;

use super::client::{Client, Connection};
use super::envoy::{Builder, Envoy};
use super::fake_admin::{FakeAdmin, Route};
use super::log::{Expected, logged};
use super::net::ipv6_available;
use super::process::{Hook, Process, run_under};
use super::sidecar::Sidecar;
use super::status::Status;
use super::words::{NONE_OPEN, WAITING_FOR_CONNECTIONS};
use super::{PATIENCE, assert_took, try_wait_for, wait_for, wait_until, wait_value};

/// The response to a probe, and to Envoy's hook after a drain that drained.
pub const OK: (u16, &str) = (200, "OK");

/// No request is answered by the start timeout, however slow this machine is.
pub const NO_START_TIMEOUT: &str = "--start-timeout=1h";

/// Where Envoy's own hook may wait.
pub const HOOK_PATHS: [&str; 2] = ["/shutdown", "/shutdown/ready"];

// A pod.

/// An Envoy at each kind of admin address that this machine has.
pub fn each_admin_kind() -> Vec<Builder> {
    let mut kinds = vec![Envoy::builder(), Envoy::builder().admin_tcp_v4()];
    if ipv6_available() {
        kinds.push(Envoy::builder().admin_tcp_v6());
    }
    kinds
}

/// An Envoy with a TCP listener.
pub fn envoy_with_tcp() -> Envoy {
    Envoy::builder().tcp("tcp").start()
}

/// A client that is connected to that listener.
#[track_caller]
pub fn connect(envoy: &Envoy) -> Connection {
    let client = Connection::open(envoy.port("tcp"));
    assert!(client.echoes());
    client
}

/// An Envoy, a sidecar, and a client that is connected to Envoy.
#[track_caller]
pub fn pod() -> (Envoy, Sidecar, Connection) {
    let envoy = envoy_with_tcp();
    let (sidecar, client) = (Sidecar::beside(&envoy), connect(&envoy));
    (envoy, sidecar, client)
}

/// Restores Envoy to service.
#[track_caller]
pub fn restore(envoy: &Envoy) {
    assert_eq!(envoy.post("/healthcheck/ok").status, 200);
    assert_eq!(envoy.ready(), "LIVE");
}

#[track_caller]
pub fn wait_live(envoy: &Envoy) {
    wait_value("Envoy to be LIVE", || envoy.ready(), |state| state == "LIVE");
}

/// Requests a drain as a hook does, which has to join drain 1.
#[track_caller]
pub fn assert_joins(sidecar: &Sidecar, path: &str) {
    let response = sidecar.control().post(path);
    assert!(response.status == 200 && response.body.starts_with("joined 1\n"), "{response:?}");
}

/// Asserts that the public port responds to a probe.
#[track_caller]
pub fn assert_healthy(public: &Client) {
    assert_eq!(public.start_get("/healthz").only_response(), OK);
}

// What the sidecar shows.

/// Waits until the status is as wanted, and returns it.
#[track_caller]
pub fn wait_status(sidecar: &Sidecar, wanted: impl Fn(&Status) -> bool) -> Status {
    let mut last = None;
    let found = try_wait_for(PATIENCE, || {
        let status = last.insert(sidecar.status());
        wanted(status).then(|| status.clone())
    });
    match found {
        Some(status) => status,
        None => panic!("the status stays {last:?}; {}", sidecar.report()),
    }
}

#[track_caller]
pub fn wait_phase(sidecar: &Sidecar, phase: &str) -> Status {
    wait_status(sidecar, |status| status.phase() == phase)
}

/// Waits until the latest error in this phase contains this.
#[track_caller]
pub fn wait_error(sidecar: &Sidecar, phase: &str, error: &str) {
    wait_status(sidecar, |status| status.phase() == phase && status.error_contains(error));
}

/// Waits until the drain counts exactly this many open connections.
#[track_caller]
pub fn wait_open_connections(sidecar: &Sidecar, open: u64) {
    wait_status(sidecar, |status| {
        status.phase() == WAITING_FOR_CONNECTIONS && status.open_connections() == Some(open)
    });
}

/// Waits until exactly this many requests wait as Envoy's hook does.
#[track_caller]
pub fn wait_envoy_hooks(sidecar: &Sidecar, count: u64) {
    wait_status(sidecar, |status| status.envoy_hooks() == count);
}

/// Waits until the last of these is logged, and asserts that each is, in this order.
#[track_caller]
pub fn assert_logged(sidecar: &Process, expected: &[Expected]) {
    if let Some(last) = expected.last() {
        sidecar.wait_log(last.clone());
    }
    let log = sidecar.log();
    let mut records = log.iter();
    for expected in expected {
        let found = records.any(|record| expected.matches(record));
        assert!(found, "not logged in this order: {expected:?}; {}", sidecar.report());
    }
}

/// The record of a drain that ended with this outcome.
#[track_caller]
pub fn outcome(name: &str) -> Expected {
    let message = match name {
        "drained" => DRAINED,
        "timed_out" => TIMED_OUT,
        "released" => RELEASED,
        "envoy_gone" => ENVOY_GONE,
        "no_envoy_hook" => NO_ENVOY_HOOK,
        other => panic!("there is no outcome {other}"),
    };
    logged(message).with("outcome", name)
}

/// The record of a signal that came in this phase.
pub fn stop_requested(signal: Signal, phase: &str) -> Expected {
    logged(STOP_REQUESTED).with("signal", signal).with("phase", phase)
}

/// Envoy was LIVE again in a drain, whether it restarted or was restored.
pub fn failing_again() -> Expected {
    let either = ENVOY_RESTARTED.split(':').next_back().unwrap_or_default();
    assert!(ENVOY_LIVE_AGAIN.ends_with(either), "they differ in {either:?}");
    Expected::default().containing("msg", either).with("drain", 1)
}

/// The record of a poll that counted this many open connections.
pub fn counted(open: u64) -> Expected {
    logged(OPEN_CONNECTIONS).with("open_connections", open)
}

// A drain beside an Envoy.

/// Asserts that the hook waits while Envoy is out of service and this many connections are open.
#[track_caller]
pub fn assert_drain_waits(sidecar: &Sidecar, hook: &mut Hook, envoy: &Envoy, open: u64) {
    wait_open_connections(sidecar, open);
    assert_eq!(envoy.get("/ready"), (503, "DRAINING\n"));
    assert!(hook.running(), "the hook ended with {open} open: {:?}", hook.try_wait());
}

/// Waits for a process to exit, and asserts with which code, and with what in its output.
#[track_caller]
pub fn assert_exits(process: &mut Process, code: i32, part: &str) {
    let exit = process.wait();
    assert!(exit.code == Some(code) && exit.output.contains(part), "no {code}, {part:?}: {exit:?}");
}

/// The preStop hooks of a pod that is deleted. Dropping them disconnects and kills.
#[derive(Debug)]
pub struct PreStopHooks {
    /// The exec hook in the sidecar.
    pub exec: Hook,
    /// Envoy's own, at the public port.
    pub envoy: Connection,
}

impl PreStopHooks {
    /// Starts one, and the other this much later, which is the time that is tested.
    #[track_caller]
    pub fn start(sidecar: &Sidecar, exec_first: bool, gap: Duration) -> Self {
        let public = sidecar.public();
        let (exec, envoy) = if exec_first {
            let exec = sidecar.hook(&[]);
            thread::sleep(gap);
            (exec, public.start_get(HOOK_PATHS[0]))
        } else {
            let envoy = public.start_get(HOOK_PATHS[0]);
            thread::sleep(gap);
            (sidecar.hook(&[]), envoy)
        };
        Self { exec, envoy }
    }

    /// Starts both together, and waits until both wait for the one connection to close.
    #[track_caller]
    pub fn start_and_wait(sidecar: &Sidecar, envoy: &Envoy) -> Self {
        let mut hooks = Self::start(sidecar, false, Duration::ZERO);
        wait_envoy_hooks(sidecar, 1);
        assert_drain_waits(sidecar, &mut hooks.exec, envoy, 1);
        hooks
    }

    /// Asserts that neither ends before the connection closes, and that then Envoy's ends first.
    #[track_caller]
    pub fn assert_wait_for(mut self, sidecar: &Sidecar, envoy: &Envoy, client: Connection) {
        wait_envoy_hooks(sidecar, 1);
        assert_drain_waits(sidecar, &mut self.exec, envoy, 1);
        assert!(self.envoy.is_waiting());
        drop(client);
        assert_exits(&mut self.exec, 0, NONE_OPEN);
        assert_eq!(self.envoy.arrived_response(), OK);
    }
}

/// Asserts that both hooks wait for a connection to close when the pod is deleted.
#[track_caller]
pub fn assert_pod_drains(sidecar: &Sidecar, envoy: &Envoy) {
    let client = connect(envoy);
    let hooks = PreStopHooks::start(sidecar, true, Duration::ZERO);
    hooks.assert_wait_for(sidecar, envoy, client);
}

// A drain beside a scripted admin interface.

/// Starts a drain that waits for one connection.
#[track_caller]
pub fn start_drain(sidecar: &Sidecar, admin: &FakeAdmin) -> Hook {
    admin.set_open(1);
    let mut hook = sidecar.hook(&[]);
    wait_open_connections(sidecar, 1);
    // The call behind the first poll, which is no poll itself. There is one, as it shows nothing.
    admin.wait_for(Route::Accepted, 1);
    hook.assert_running();
    hook
}

/// Closes the last connection, and asserts that the hook has waited for that.
#[track_caller]
pub fn finish_drain(admin: &FakeAdmin, hook: &mut Hook) {
    hook.assert_running();
    admin.set_open(0);
    assert_exits(hook, 0, NONE_OPEN);
}

/// Asserts that the exec hook drains, and that a request at the public port waits for the end.
#[track_caller]
pub fn assert_drains(sidecar: &Sidecar, admin: &FakeAdmin) {
    let waiter = sidecar.public().start_get("/shutdown");
    wait_envoy_hooks(sidecar, 1);
    let mut hook = start_drain(sidecar, admin);
    assert!(waiter.is_waiting());
    finish_drain(admin, &mut hook);
    assert_eq!(waiter.only_response(), OK);
    assert_eq!(admin.count(Route::Fail), 1);
}

// The end of a sidecar, and other things that happen to one.

/// Asserts that SIGTERM stops it without delay, as when no drain is in progress.
#[track_caller]
pub fn assert_stops(sidecar: &mut Sidecar) {
    let sent = Instant::now();
    sidecar.signal(Signal::SIGTERM);
    let exit = sidecar.wait();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert_took("its end", exit.at - sent, 0.0..1.0);
}

/// Stops a process by SIGSTOP, and waits until each of its threads has stopped: the first one to take
/// the signal stops the others.
#[track_caller]
pub fn freeze(process: &Process) {
    process.signal(Signal::SIGSTOP);
    wait_until("all threads to stop", || {
        let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).expect("its threads");
        let stopped = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"))
        };
        tasks.map(|task| task.expect("a thread")).all(stopped)
    });
}

#[track_caller]
pub fn thaw(process: &Process) {
    process.signal(Signal::SIGCONT);
}

/// Leaves a socket behind, as a process does that was killed.
#[track_caller]
pub fn leave_stale_socket(path: &Path, mode: u32) {
    drop(UnixListener::bind(path).expect("listen"));
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("set a mode");
    // Another test may be starting a process, which has a copy of it for a moment.
    wait_until("no process to listen", || {
        let error = UnixStream::connect(path).err();
        error.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
}

/// Whether this machine permits namespaces of this kind; prints if not.
pub fn can_unshare(kind: &str) -> bool {
    let exit = run_under(&["unshare", kind, "--fork"], &["--version"]).wait();
    if exit.code != Some(0) {
        println!("SKIPPED: no unshare {kind} here: {}", exit.output);
    }
    exit.code == Some(0)
}

/// Its threads and descriptors.
pub fn resources(sidecar: &Sidecar) -> (usize, usize) {
    (sidecar.threads(), sidecar.fds())
}

/// The same, once they have not changed for a while.
#[track_caller]
pub fn resources_at_rest(sidecar: &Sidecar) -> (usize, usize) {
    let (mut last, mut since) = (resources(sidecar), Instant::now());
    wait_for("threads and descriptors to stay the same", || {
        let now = resources(sidecar);
        if mem::replace(&mut last, now) != now {
            since = Instant::now();
        }
        (since.elapsed() > Duration::from_millis(100)).then_some(now)
    })
}

/// Waits until it has no more threads and descriptors than it had at rest.
#[track_caller]
pub fn assert_resources_released(sidecar: &Sidecar, rest: (usize, usize)) {
    let mut last = rest;
    let released = try_wait_for(PATIENCE, || {
        last = resources(sidecar);
        (last.0 <= rest.0 && last.1 <= rest.1).then_some(())
    });
    assert!(released.is_some(), "threads and descriptors: {rest:?} before, {last:?} now");
}
