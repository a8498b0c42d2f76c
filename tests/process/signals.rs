//! Signals to the sidecar.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::support::prelude::*;

/// Asserts that a signal ends it at once, with this code.
#[track_caller]
fn assert_ends_by(sidecar: &mut Sidecar, signal: Signal, code: i32) {
    let sent = Instant::now();
    sidecar.signal(signal);
    let exit = sidecar.wait();
    assert_eq!(exit.code, Some(code), "{exit:?}");
    assert_took("its end", exit.at - sent, 0.0..0.5);
}

#[test]
fn a_signal_ends_a_sidecar_at_rest() {
    let envoy = Envoy::builder().start();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut sidecar = Sidecar::beside(&envoy);
        assert_ends_by(&mut sidecar, signal, 0);
        assert_logged(&sidecar, &[stop_requested(signal, IDLE), logged(STOPPED)]);
        assert!(!sidecar.control_socket().exists(), "the control socket is left");
        assert_eq!(envoy.ready(), "LIVE");
    }
}

#[test]
fn a_signal_ends_a_sidecar_whose_startup_check_hangs() {
    let envoy = Envoy::builder().start();
    let proxy = AdminProxy::unix(envoy.admin());
    envoy.pause();
    let mut sidecar = Sidecar::beside(&proxy);
    proxy.wait_for("GET /ready ");
    assert_ends_by(&mut sidecar, Signal::SIGTERM, 0);
}

#[test]
fn a_signal_in_a_drain_stops_the_sidecar_after_the_drain() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (envoy, mut sidecar, client) = pod();
        let waiters = [(); 5].map(|()| sidecar.control().start_get("/shutdown"));
        let mut hook = sidecar.hook(&[]);
        assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
        sidecar.signal(signal);
        sidecar.wait_log(stop_requested(signal, WAITING_FOR_CONNECTIONS));
        // A stopping sidecar still takes a hook that is run again, and waiters.
        let mut again = sidecar.hook(&[]);
        sidecar.wait_log(DRAIN_JOINED);
        again.wait_line(&format!("{WAITING_FOR_CONNECTIONS}, 1 open, threshold 0"));
        let late = sidecar.control().start_get("/shutdown");
        wait_envoy_hooks(&sidecar, 6);
        assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
        assert!(late.is_waiting() && again.running());
        drop(client);
        for hook in [&mut hook, &mut again] {
            assert_exits(hook, 0, NONE_OPEN);
        }
        for waiter in waiters.iter().chain([&late]) {
            assert_eq!(waiter.response(), OK);
        }
        assert_eq!(sidecar.wait().code, Some(0));
        let requested = stop_requested(signal, WAITING_FOR_CONNECTIONS);
        let stopped = logged(STOPPED);
        assert_logged(&sidecar, &[requested, counted(0), outcome("drained"), stopped]);
    }
}

#[test]
fn in_every_phase_a_drain_ends_after_one_signal_and_not_after_two() {
    let alone = LEFT_IN_SERVICE;
    let rows = [
        (DRAIN_DELAY, "--drain-delay=2s", "drained"),
        (AWAITING_ENVOY_HOOK, "--require-envoy-hook", alone),
        (FAILING_HEALTH_CHECKS, "--check-delay=0s", "drained"),
        (CHECK_DELAY, "--check-delay=2s", "drained"),
        (WAITING_FOR_CONNECTIONS, "--check-delay=0s", "drained"),
    ];
    let rows = rows.into_iter().flat_map(|row| {
        [false, true].map(|twice| (format!("{}, {}, twice: {twice}", row.0, row.1), (row, twice)))
    });
    for_each_case(rows.collect(), |name, ((phase, option, outcome), twice)| {
        let admin = FakeAdmin::unix();
        admin.set_open(1);
        if phase == FAILING_HEALTH_CHECKS {
            admin.fault(Route::Fail, Fault::Status(500));
        }
        let mut sidecar = Sidecar::builder().beside(&admin).arg(option).start();
        let waiter = (outcome != alone).then(|| sidecar.control().start_get("/shutdown"));
        let mut hook = sidecar.hook(&[]);
        wait_phase(&sidecar, phase);
        sidecar.signal(Signal::SIGTERM);
        sidecar.wait_log(stop_requested(Signal::SIGTERM, phase));
        hook.assert_running();
        assert!(waiter.as_ref().is_none_or(Connection::is_waiting), "{name}");
        if twice {
            sidecar.signal(Signal::SIGTERM);
            assert_eq!(sidecar.wait().code, Some(143), "{name}");
            hook.kill();
        } else {
            admin.clear(Route::Fail);
            admin.set_open(0);
            assert_exits(&mut hook, 0, outcome);
            if let Some(waiter) = waiter {
                assert_eq!(waiter.response(), OK, "{name}");
            }
            assert_eq!(sidecar.wait().code, Some(0), "{name}");
            let state = if outcome == alone { State::Live } else { State::Draining };
            assert_eq!(admin.state(), state, "{name}");
        }
        assert_eq!(admin.count(Route::Ok), 0, "{name}");
    });
}

#[test]
fn a_signal_after_the_end_of_a_drain_ends_the_sidecar() {
    let admin = FakeAdmin::unix();
    let mut sidecar = Sidecar::beside(&admin);
    assert_exits(&mut sidecar.hook(&[]), 0, "drained");
    assert_ends_by(&mut sidecar, Signal::SIGTERM, 0);
    let requested = stop_requested(Signal::SIGTERM, ENDED);
    assert_logged(&sidecar, &[outcome("drained"), requested, logged(STOPPED)]);
}

#[test]
fn a_hook_that_has_joined_a_stopping_sidecar_learns_the_outcome() {
    let (_envoy, mut sidecar, client) = pod();
    assert_eq!(sidecar.control().request("POST", "/drain"), (200, "started 1\n"));
    wait_open_connections(&sidecar, 1);
    let waiter = sidecar.control().start_get("/shutdown");
    wait_envoy_hooks(&sidecar, 1);
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_log(stop_requested(Signal::SIGTERM, WAITING_FOR_CONNECTIONS));
    // The hook's two requests, with the end of the drain between them.
    assert_joins(&sidecar, "/drain");
    drop(client);
    assert_eq!(waiter.response(), OK);
    let response = sidecar.control().get("/shutdown?drain=1");
    assert_eq!(response, (200, format!("drained\n{NONE_OPEN}\n")));
    assert_eq!(sidecar.wait().code, Some(0));
}

#[test]
fn a_second_signal_ends_the_sidecar_at_once() {
    let (envoy, mut sidecar, _client) = pod();
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_log(stop_requested(Signal::SIGTERM, WAITING_FOR_CONNECTIONS));
    wait_open_connections(&sidecar, 1);
    assert!(sidecar.control_socket().exists() && hook.running());
    assert_ends_by(&mut sidecar, Signal::SIGTERM, 143);
    assert!(!sidecar.control_socket().exists(), "the control socket is left");
    sidecar.wait_log(logged(STOPPED_BY_SECOND_SIGNAL).with("signal", Signal::SIGTERM));
    assert_exits(&mut hook, 3, "no sidecar could be reached");
}

/// The only child of a process.
fn child_of(pid: u32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// A sidecar that is process 1 of its namespace.
struct Process1 {
    /// Its parent outside, which ends as it does.
    unshare: Process,
    pid: Pid,
    control: PathBuf,
    _dir: TempDir,
}

impl Process1 {
    /// Nothing where there are no such namespaces.
    fn start(admin_address: &str) -> Option<Self> {
        let namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
        let tried = Command::new(namespace[0]).args(&namespace[1..]).arg("true").output();
        if !tried.is_ok_and(|output| output.status.success()) {
            println!("SKIPPED: unshare cannot make a PID namespace here");
            return None;
        }
        let dir = temp_dir("init");
        let control = dir.path().join("control.sock");
        let args = [
            "shutdown-manager",
            "--check-interval=50ms",
            "--check-delay=0s",
            &format!("--admin-address={admin_address}"),
            &format!("--control-socket={}", control.display()),
        ];
        let unshare = run_under(&namespace, &args);
        unshare.wait_log(STARTED);
        let pid = wait_for("process 1", || child_of(unshare.pid()));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("NSpid");
        assert_eq!(inside.split_whitespace().last(), Some("1"), "{inside}");
        Some(Self { unshare, pid: Pid::from_raw(pid), control, _dir: dir })
    }

    fn control(&self) -> Client {
        Address::Unix(self.control.clone()).into()
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("signal process 1");
    }

    fn wait_status(&self, wanted: impl Fn(&Status) -> bool) {
        let status = || Status::parse(&self.control().get("/status").body);
        wait_value("its status", status, |status| wanted(status));
    }
}

#[test]
fn a_signal_ends_a_sidecar_that_is_process_1() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let Some(mut sidecar) = Process1::start("/nonexistent/admin.sock") else { return };
        let sent = Instant::now();
        sidecar.signal(signal);
        let exit = sidecar.unshare.wait();
        assert_eq!(exit.code, Some(0), "{exit:?}");
        assert_took("its end", exit.at - sent, 0.0..0.5);
        assert_eq!(sidecar.unshare.times_logged(stop_requested(signal, IDLE)), 1, "{exit:?}");
        assert!(!sidecar.control.exists(), "the control socket is left");
    }
}

#[test]
fn a_signal_to_process_1_while_envoys_hook_waits_starts_a_drain() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let envoy = envoy_with_tcp();
        let Some(mut sidecar) = Process1::start(&envoy.admin_address()) else { return };
        let client = connect(&envoy);
        let log = sidecar.unshare.log();
        let serving = log.iter().find_map(|record| record.get("serving")).expect("its port");
        let port = serving.rsplit(':').next().expect("a port").parse().expect("a port");
        let waiter = Client::of_port(port).start_get(HOOK_PATHS[0]);
        sidecar.wait_status(|status| status.envoy_hooks() == 1);
        sidecar.signal(signal);
        sidecar.wait_status(|status| {
            status.phase() == WAITING_FOR_CONNECTIONS && status.open_connections() == Some(1)
        });
        assert!(waiter.is_waiting());
        assert_eq!(envoy.ready(), "DRAINING");
        drop(client);
        assert_eq!(waiter.response(), OK);
        assert_eq!(sidecar.unshare.wait().code, Some(0));
        assert_logged(
            &sidecar.unshare,
            &[stop_requested(signal, IDLE), logged(STARTED_BY_SIGNAL), outcome("drained")],
        );
    }
}

#[test]
fn no_other_signal_ends_the_sidecar() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let mut hook = start_drain(&sidecar, &admin);
    let others = [
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGALRM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGPIPE,
        Signal::SIGCHLD,
    ];
    for signal in others {
        sidecar.signal(signal);
        if !matches!(signal, Signal::SIGPIPE | Signal::SIGCHLD) {
            sidecar.wait_log(logged(SIGNAL_IGNORED).with("signal", signal));
        }
    }
    finish_drain(&admin, &mut hook);
}

#[test]
fn signals_are_blocked_before_anything_else_is_done() {
    if is_emulated() {
        println!("SKIPPED: the emulator's own start comes first");
        return;
    }
    // What comes as process 1 before that is lost. So many options take long to parse.
    let options = vec!["--check-delay=1s"; 50_000];
    let proc = |sidecar: &Process, name: &str| {
        fs::read_to_string(format!("/proc/{}/{name}", sidecar.pid())).expect("read /proc")
    };
    let cpu_time = |sidecar: &Process| {
        let text = proc(sidecar, "schedstat");
        Duration::from_nanos(text.split(' ').next().expect("a number").parse().expect("a number"))
    };
    let blocks_sigterm = |sidecar: &Process| {
        let status = proc(sidecar, "status");
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).expect("a mask");
        let mask = u64::from_str_radix(mask, 16).expect("a mask");
        (mask & 1 << (Signal::SIGTERM as u32 - 1) != 0).then(|| cpu_time(sidecar))
    };
    let once = || {
        let dir = temp_dir("blocked");
        let socket = format!("--control-socket={}", dir.path().join("socket").display());
        let sidecar = run(&[&["shutdown-manager", &socket][..], &options].concat());
        let deadline = Instant::now() + PATIENCE;
        let blocked = loop {
            assert!(Instant::now() < deadline, "SIGTERM is never blocked: {}", sidecar.report());
            if let Some(time) = blocks_sigterm(&sidecar) {
                break time;
            }
        };
        sidecar.wait_log(logged(STARTED));
        let started = cpu_time(&sidecar);
        (blocked, started)
    };
    // A test that is itself kept waiting sees the mask late.
    wait_value("SIGTERM to be blocked early", once, |(blocked, started)| *blocked < *started / 2);
}

#[test]
fn children_that_end_are_removed() {
    let dir = temp_dir("children");
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("make a FIFO");
    // As PID 1 it gets the orphans of its namespace: one from before its start, one from later.
    let script = format!("true & cat {} & exec \"$@\"", fifo.display());
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::builder().beside(&admin).under(["sh", "-c", &script, "sh"]).start();
    let pid = sidecar.pid();
    let children = || {
        let path = format!("/proc/{pid}/task/{pid}/children");
        fs::read_to_string(path).expect("its children").split_whitespace().count()
    };
    // Where this fails the other child ends with this end of the FIFO, and with it the output.
    let end = fs::OpenOptions::new().write(true).open(&fifo).expect("open a FIFO");
    wait_value("one child to be left", children, |n| *n == 1);
    drop(end);
    wait_value("no child to be left", children, |n| *n == 0);
}

#[test]
fn children_that_end_together_are_all_removed() {
    let dir = temp_dir("children");
    let fifos = ["1", "2", "3"].map(|name| dir.path().join(name));
    for fifo in &fifos {
        nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU).expect("make a FIFO");
    }
    let script = format!("for n in 1 2 3; do cat {}/$n & done; exec \"$@\"", dir.path().display());
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::builder().beside(&admin).under(["sh", "-c", &script, "sh"]).start();
    let pid = sidecar.pid();
    let children = || {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = fs::read_to_string(path).expect("its children");
        children.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let has_ended = |child: &String| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"))
    };
    // Each waits until its child has the other end, which then reads until this one is closed.
    let ends =
        fifos.map(|fifo| fs::OpenOptions::new().write(true).open(fifo).expect("open a FIFO"));
    assert_eq!(children().len(), 3, "not one child a FIFO");
    // Equal signals that are pending become one.
    freeze(&sidecar);
    drop(ends);
    wait_value("all children to end", children, |all| all.iter().all(has_ended));
    assert_eq!(children().len(), 3, "they were removed while it was frozen");
    thaw(&sidecar);
    wait_value("the children that ended together to be removed", children, Vec::is_empty);
}
