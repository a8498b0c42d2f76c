//! Signals to the sidecar.

use std::fs;
use std::process::Command;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::admin::{FakeAdmin, Fault, Route, State};
use crate::support::clients::Plain;
use crate::support::envoy::Envoy;
use crate::support::rows::each;
use crate::support::scene::{
    Waiter, assert_ends, assert_held, assert_told, before, beside, wait_open, wait_status,
};
use crate::support::sidecar::run_under;
use crate::support::tap::Tap;
use crate::support::{PATIENCE, assert_took, shared, temp_dir, wait_for};

#[test]
fn a_signal_ends_a_sidecar_at_rest() {
    let _turn = shared();
    let envoy = Envoy::builder().start();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut sidecar = beside(&envoy, &[]);
        let sent = Instant::now();
        sidecar.signal(signal);
        let exit = sidecar.wait_exit(PATIENCE);
        assert_eq!(exit.code, Some(0), "{exit:?}");
        assert_took("its end", exit.at - sent, 0.0..0.5);
        let stopping = format!("when no drain goes on\" signal={signal} phase=serving");
        assert_told(&sidecar, &[&stopping, "msg=\"stopped\""]);
        assert!(!sidecar.control_socket().exists());
        assert_eq!(envoy.ready(), "LIVE");
    }
}

#[test]
fn a_signal_ends_a_sidecar_whose_look_at_envoy_hangs() {
    let _turn = shared();
    let envoy = Envoy::builder().start();
    let tap = Tap::unix(envoy.admin());
    envoy.pause();
    let mut sidecar = before(&tap.address(), &[]);
    tap.wait_for(|line| line.starts_with("GET /ready "), PATIENCE);
    let sent = Instant::now();
    sidecar.signal(Signal::SIGTERM);
    let exit = sidecar.wait_exit(PATIENCE);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert_took("its end", exit.at - sent, 0.0..0.5);
}

#[test]
fn a_signal_in_a_drain_waits_for_its_end() {
    let _turn = shared();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let envoy = Envoy::builder().tcp("tcp").start();
        let mut sidecar = beside(&envoy, &[]);
        let client = Plain::open(envoy.port("tcp"));
        assert!(client.echoes());
        let waiters = [(); 5].map(|()| Waiter::new(&sidecar));
        let mut hook = sidecar.hook(&[]);
        assert_held(&sidecar, &mut hook, &envoy, 1);
        sidecar.signal(signal);
        sidecar.wait_log(&format!("signal={signal} phase=draining"), PATIENCE);
        // A stopping sidecar still takes a hook that is run again, and waiters.
        let mut again = sidecar.hook(&[]);
        sidecar.wait_log("a hook has joined the drain", PATIENCE);
        again.wait_log("draining, 1 open, 0 may be", PATIENCE);
        let late = Waiter::new(&sidecar);
        wait_status(&sidecar, &["\"waiters\":6,"]);
        assert_held(&sidecar, &mut hook, &envoy, 1);
        assert!(!late.is_answered() && again.running());
        drop(client);
        for hook in [&mut hook, &mut again] {
            assert_ends(hook, 0, "drained: no connection is open");
        }
        for waiter in waiters.iter().chain([&late]) {
            assert_eq!(waiter.answer(), (200, "OK".to_owned()));
        }
        assert_eq!(sidecar.wait_exit(PATIENCE).code, Some(0));
        assert_told(&sidecar, &["phase=draining", "open=0", "outcome=drained", "msg=\"stopped\""]);
    }
}

#[test]
fn a_signal_lets_a_drain_end_whatever_its_phase_and_a_second_one_does_not() {
    let _turn = shared();
    let alone = "Envoy is left alone";
    let rows = [
        ("delaying", "--drain-delay=2s", "drained"),
        ("delaying", "--require-envoy-hook", alone),
        ("failing", "--check-delay=0s", "drained"),
        ("settling", "--check-delay=2s", "drained"),
        ("draining", "--check-delay=0s", "drained"),
    ];
    let rows = rows.into_iter().flat_map(|row| {
        [false, true].map(|twice| (format!("{}, {}, twice: {twice}", row.0, row.1), (row, twice)))
    });
    each(rows.collect(), |name, ((phase, option, outcome), twice)| {
        let admin = FakeAdmin::unix();
        admin.set_open(1);
        if phase == "failing" {
            admin.fault(Route::Fail, Fault::Status(500));
        }
        let mut sidecar = before(&admin.address(), &[option]);
        let waiter = (outcome != alone).then(|| Waiter::new(&sidecar));
        let mut hook = sidecar.hook(&[]);
        wait_status(&sidecar, &[&format!("\"phase\":\"{phase}\"")]);
        sidecar.signal(Signal::SIGTERM);
        sidecar.wait_log(&format!("signal=SIGTERM phase={phase}"), PATIENCE);
        assert!(hook.running(), "{name}: {:?}", hook.try_wait());
        assert!(!waiter.as_ref().is_some_and(Waiter::is_answered), "{name}");
        if twice {
            sidecar.signal(Signal::SIGTERM);
            assert_eq!(sidecar.wait_exit(PATIENCE).code, Some(143), "{name}");
            hook.kill();
        } else {
            admin.clear(Route::Fail);
            admin.set_open(0);
            assert_ends(&mut hook, 0, outcome);
            if let Some(waiter) = waiter {
                assert_eq!(waiter.answer(), (200, "OK".to_owned()), "{name}");
            }
            assert_eq!(sidecar.wait_exit(PATIENCE).code, Some(0), "{name}");
            let state = if outcome == alone { State::Live } else { State::Draining };
            assert_eq!(admin.state(), state, "{name}");
        }
        assert_eq!(admin.count(Route::Ok), 0, "{name}");
    });
}

#[test]
fn a_signal_behind_the_end_of_a_drain_ends_the_sidecar() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let mut sidecar = before(&admin.address(), &[]);
    assert_ends(&mut sidecar.hook(&[]), 0, "drained");
    let sent = Instant::now();
    sidecar.signal(Signal::SIGTERM);
    let exit = sidecar.wait_exit(PATIENCE);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert_took("its end", exit.at - sent, 0.0..0.5);
    assert_told(&sidecar, &["outcome=drained", "signal=SIGTERM phase=ended", "msg=\"stopped\""]);
}

#[test]
fn a_hook_that_has_joined_a_stopping_sidecar_is_told_the_end() {
    let _turn = shared();
    let envoy = Envoy::builder().tcp("tcp").start();
    let mut sidecar = beside(&envoy, &[]);
    let client = Plain::open(envoy.port("tcp"));
    assert!(client.echoes());
    assert_eq!(sidecar.request("POST", "/drain"), (200, "started 1\n".to_owned()));
    wait_open(&sidecar, 1);
    let waiter = Waiter::new(&sidecar);
    wait_status(&sidecar, &["\"waiters\":1,"]);
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_log("signal=SIGTERM phase=draining", PATIENCE);
    // The hook's two requests, with the end of the drain between them.
    assert_eq!(sidecar.request("POST", "/drain"), (200, "joined 1\n".to_owned()));
    drop(client);
    assert_eq!(waiter.answer(), (200, "OK".to_owned()));
    let answer = sidecar.try_request("GET", "/shutdown?drain=1", PATIENCE);
    let answer = answer.map(|answer| (answer.status, answer.body)).map_err(|e| e.to_string());
    assert_eq!(answer, Ok((200, "drained\ndrained: no connection is open\n".to_owned())));
    assert_eq!(sidecar.wait_exit(PATIENCE).code, Some(0));
}

#[test]
fn a_second_signal_ends_the_sidecar_at_once() {
    let _turn = shared();
    let envoy = Envoy::builder().tcp("tcp").start();
    let mut sidecar = beside(&envoy, &[]);
    let client = Plain::open(envoy.port("tcp"));
    assert!(client.echoes());
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, &envoy, 1);
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_log("signal=SIGTERM phase=draining", PATIENCE);
    wait_open(&sidecar, 1);
    assert!(sidecar.control_socket().exists() && hook.running());
    let sent = Instant::now();
    sidecar.signal(Signal::SIGTERM);
    let exit = sidecar.wait_exit(PATIENCE);
    assert_eq!(exit.code, Some(143), "{exit:?}");
    assert_took("its end", exit.at - sent, 0.0..0.5);
    assert!(!sidecar.control_socket().exists());
    assert_told(&sidecar, &["stopped at once, by a second signal\" signal=SIGTERM"]);
    assert_ends(&mut hook, 3, "no sidecar could be reached");
}

#[test]
fn who_waits_for_a_drain_is_let_go_by_a_signal_when_there_is_none() {
    let _turn = shared();
    let envoy = Envoy::builder().start();
    let mut sidecar = beside(&envoy, &[]);
    let waiters = [(); 3].map(|()| Waiter::new(&sidecar));
    wait_status(&sidecar, &["\"phase\":\"serving\"", "\"waiters\":3,"]);
    assert!(!waiters.iter().any(Waiter::is_answered));
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.wait_exit(PATIENCE).code, Some(0));
    for waiter in &waiters {
        assert_eq!(waiter.answer(), (503, "the sidecar stops\n".to_owned()));
    }
    assert_eq!(envoy.ready(), "LIVE");
}

/// The only child of a process.
fn child_of(pid: u32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

#[test]
fn a_signal_ends_a_sidecar_that_is_process_1() {
    let _turn = shared();
    let namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let tried = Command::new(namespace[0]).args(&namespace[1..]).arg("true").output();
    if !tried.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: unshare cannot make a PID namespace here");
        return;
    }
    let dir = temp_dir("init");
    let control = dir.path().join("control.sock");
    let control_socket = format!("--control-socket={}", control.display());
    let args = ["shutdown-manager", "--admin-address=/nonexistent/admin.sock", &control_socket];
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut unshare = run_under(&namespace, &args);
        unshare.wait_log("msg=\"started\"", PATIENCE);
        let pid = wait_for("process 1", PATIENCE, || child_of(unshare.pid()));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("NSpid");
        assert_eq!(inside.split_whitespace().last(), Some("1"), "{inside}");
        kill(Pid::from_raw(pid), signal).expect("signal process 1");
        let exit = unshare.wait(PATIENCE);
        assert_eq!(exit.code, Some(0), "{exit:?}");
        assert!(exit.output.contains(&format!("signal={signal} phase=serving")), "{exit:?}");
        assert!(!control.exists());
    }
}
