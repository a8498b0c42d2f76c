//! Envoy dies, restarts, freezes or is restored in a drain; the sidecar dies and is started again.

use std::env;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::prelude::*;

/// Three refused calls, a second apart, after at most the pause before the first.
const GONE_AFTER: Range<f32> = 2.0..3.5;

/// Asserts that the drain ended because Envoy is gone.
#[track_caller]
fn assert_gone(sidecar: &Sidecar, hook: &mut Hook, since: Instant) {
    assert_exits(hook, 0, "Envoy is gone: nothing listens at its admin address");
    let took = hook.wait().at - since;
    assert_took("gone", took, GONE_AFTER);
    wait_status(sidecar, |status| {
        status.phase() == ENDED && status.outcome() == Some("envoy_gone")
    });
    let expected = [logged(DRAIN_STARTED), logged(ENVOY_CALL_FAILED), outcome("envoy_gone")];
    assert_logged(sidecar, &expected);
}

#[test]
fn an_envoy_that_dies_in_the_check_delay_is_gone() {
    for builder in each_admin_kind() {
        let mut envoy = builder.http("http").start();
        let sidecar = Sidecar::builder().beside(&envoy).arg("--check-delay=1h").start();
        let waiter = sidecar.control().start_get("/shutdown");
        let mut hook = sidecar.hook(&[]);
        wait_phase(&sidecar, CHECK_DELAY);
        hook.assert_running();
        let since = Instant::now();
        envoy.kill();
        assert_gone(&sidecar, &mut hook, since);
        let response = waiter.response();
        assert!(
            response.status == 200 && response.body.starts_with("Envoy is gone"),
            "{response:?}"
        );
    }
}

#[test]
fn an_envoy_that_dies_while_connections_are_waited_for_is_gone() {
    for builder in each_admin_kind() {
        let mut envoy = builder.http("http").start();
        let sidecar = Sidecar::beside(&envoy);
        let _client = KeptAlive::open(envoy.port("http"));
        let mut hook = sidecar.hook(&[]);
        assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
        let since = Instant::now();
        envoy.kill();
        assert_gone(&sidecar, &mut hook, since);
    }
}

#[test]
fn an_envoy_that_is_dead_before_the_hook_is_gone() {
    for builder in each_admin_kind() {
        let mut envoy = builder.start();
        let sidecar = Sidecar::builder().beside(&envoy).arg("--check-delay=1h").start();
        envoy.kill();
        let since = Instant::now();
        assert_gone(&sidecar, &mut sidecar.hook(&[]), since);
    }
}

#[test]
fn an_envoy_that_comes_back_live_is_taken_out_of_service_again() {
    let mut envoy = Envoy::builder().http("http").start();
    let sidecar = Sidecar::builder().beside(&envoy).arg("--check-delay=1500ms").start();
    let first = KeptAlive::open(envoy.port("http"));
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    // So that it does not see Envoy before that is live and has a client.
    sidecar.signal(Signal::SIGSTOP);
    envoy.restart();
    let second = KeptAlive::open(envoy.port("http"));
    assert_eq!(envoy.ready(), "LIVE");
    sidecar.signal(Signal::SIGCONT);
    sidecar.wait_log(failing_again());
    wait_phase(&sidecar, CHECK_DELAY);
    hook.assert_running();
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    drop(first);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    drop(second);
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert_logged(
        &sidecar,
        &[
            logged(OUT_OF_SERVICE),
            counted(1),
            failing_again(),
            logged(OUT_OF_SERVICE),
            counted(0),
            outcome("drained"),
        ],
    );
}

#[test]
fn an_envoy_that_another_version_replaces_in_a_drain_is_taken_out_of_service_again() {
    let Some(other) = env::var_os("OLD_ENVOY").map(PathBuf::from) else {
        println!("SKIPPED: $OLD_ENVOY is no Envoy of another version");
        return;
    };
    for (before, after) in [(Some(&*other), None), (None, Some(&*other))] {
        let builder = Envoy::builder().http("http").tcp("tcp");
        let builder = before.into_iter().fold(builder, Builder::program);
        let mut envoy = builder.start();
        let version = |envoy: &Envoy| {
            let info = envoy.get("/server_info").body;
            info.lines().find(|line| line.contains("\"version\"")).map(str::to_owned)
        };
        let (sidecar, first) = (Sidecar::beside(&envoy), version(&envoy));
        let _client = Connection::open(envoy.port("tcp"));
        let mut hook = sidecar.hook(&[]);
        assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
        sidecar.signal(Signal::SIGSTOP);
        envoy.restart_as(after);
        let clients = (KeptAlive::open(envoy.port("http")), Connection::open(envoy.port("tcp")));
        assert!(clients.1.echoes());
        assert_ne!(first, version(&envoy), "it is the same one");
        sidecar.signal(Signal::SIGCONT);
        sidecar.wait_log(failing_again());
        assert_drain_waits(&sidecar, &mut hook, &envoy, 2);
        drop(clients);
        assert_exits(&mut hook, 0, NONE_OPEN);
    }
}

#[test]
fn an_envoy_that_restarts_under_the_sidecars_eyes_is_taken_out_of_service_again() {
    let mut envoy = Envoy::builder().tcp("tcp").start();
    let sidecar = Sidecar::builder().beside(&envoy).arg("--check-delay=3s").start();
    let _first = Connection::open(envoy.port("tcp"));
    envoy.wait_stat("listener.tcp.downstream_cx_active", 1);
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    envoy.kill();
    sidecar.wait_log(ENVOY_CALL_FAILED);
    envoy.start_again();
    sidecar.wait_log(failing_again());
    wait_phase(&sidecar, CHECK_DELAY);
    wait_for("Envoy to be out of service", || {
        // It may have no port for its listener yet.
        let response = envoy.request("GET", "/ready").ok()?;
        (response.body == "DRAINING\n").then_some(())
    });
    let second = Connection::open(envoy.port("tcp"));
    assert!(second.echoes());
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    drop(second);
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert_logged(
        &sidecar,
        &[
            logged(ENVOY_CALL_FAILED),
            logged(ENVOY_RESPONDS_AGAIN),
            failing_again(),
            outcome("drained"),
        ],
    );
}

#[test]
fn an_envoy_that_is_restored_in_a_drain_is_taken_out_of_service_again() {
    for phase in [CHECK_DELAY, WAITING_FOR_CONNECTIONS] {
        let envoy = Envoy::builder().http("http").start();
        let sidecar = Sidecar::builder().beside(&envoy).arg("--check-delay=1s").start();
        let client = KeptAlive::open(envoy.port("http"));
        let mut hook = sidecar.hook(&[]);
        wait_phase(&sidecar, phase);
        assert_eq!(envoy.post("/healthcheck/ok").status, 200);
        sidecar.wait_log(failing_again());
        wait_phase(&sidecar, CHECK_DELAY);
        assert_eq!(envoy.ready(), "DRAINING");
        assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
        drop(client);
        assert_exits(&mut hook, 0, NONE_OPEN);
        let failed = || logged(OUT_OF_SERVICE);
        assert_logged(&sidecar, &[failed(), failing_again(), failed(), outcome("drained")]);
    }
}

/// Freezes an Envoy in a drain, for longer than three calls take.
fn assert_survives_a_freeze(builder: Builder) {
    let envoy = builder.http("http").start();
    let sidecar = Sidecar::beside(&envoy);
    let client = KeptAlive::open(envoy.port("http"));
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    envoy.pause();
    let error = "no whole response within ";
    let failed = || logged(ENVOY_CALL_FAILED).containing("error", error);
    sidecar.wait_log(failed());
    // With the check of its readiness between them as many as would be enough for an Envoy that is
    // gone. A third poll would have 8 s.
    let time_outs = || sidecar.metric("poll_errors_total{kind=\"timeout\"}");
    wait_value("two polls without a response", time_outs, |n| *n >= 2);
    wait_status(&sidecar, |status| {
        let counted = status.open_connections() == Some(1);
        status.phase() == WAITING_FOR_CONNECTIONS && counted && status.error_contains(error)
    });
    hook.assert_running();
    envoy.resume();
    sidecar.wait_log(ENVOY_RESPONDS_AGAIN);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert_logged(&sidecar, &[failed(), logged(ENVOY_RESPONDS_AGAIN), outcome("drained")]);
}

#[test]
fn a_frozen_envoy_is_neither_gone_nor_drained() {
    thread::scope(|scope| {
        for builder in each_admin_kind() {
            scope.spawn(|| assert_survives_a_freeze(builder));
        }
    });
}

/// An Envoy that was left out of service.
fn stranded() -> Envoy {
    let envoy = Envoy::builder().http("http").start();
    assert_eq!(envoy.post("/healthcheck/fail").status, 200);
    assert_eq!(envoy.ready(), "DRAINING");
    envoy
}

/// Envoy was seen in service, with this many connections open.
fn responds(open: u64) -> Expected {
    logged(ENVOY_RESPONDS).with("state", "LIVE").with("open_connections", open)
}

#[test]
fn a_stranded_envoy_is_restored_after_two_seconds() {
    let envoy = stranded();
    let start = Instant::now();
    let sidecar = Sidecar::beside(&envoy);
    wait_live(&envoy);
    assert_took("restored", start.elapsed(), 2.0..4.0);
    let started = logged(STARTED).with("restore", "true");
    assert_logged(&sidecar, &[started, logged(ENVOY_RESTORED), responds(0)]);
    let mut hook = sidecar.hook(&[]);
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert_eq!(envoy.ready(), "DRAINING");
}

#[test]
fn a_stranded_envoy_is_not_restored_with_no_restore() {
    let envoy = stranded();
    let sidecar = Sidecar::builder().beside(&envoy).arg("--no-restore").start();
    let started = logged(STARTED).with("restore", "false");
    assert_logged(&sidecar, &[started, logged(ENVOY_NOT_RESTORED)]);
    sidecar.wait_log(logged(ENVOY_RESPONDS).with("state", "DRAINING"));
    assert_eq!(envoy.ready(), "DRAINING");
}

#[test]
fn the_sidecar_after_one_that_was_killed_in_a_drain_restores_envoy() {
    let envoy = Envoy::builder().http("http").start();
    let mut first = Sidecar::beside(&envoy);
    let client = KeptAlive::open(envoy.port("http"));
    let mut hook = first.hook(&[]);
    assert_drain_waits(&first, &mut hook, &envoy, 1);
    // They are in one container.
    hook.kill();
    first.kill();
    assert!(first.control_socket().exists(), "a killed sidecar removes nothing");
    let second = Sidecar::builder().beside(&envoy).replacing(&first).start();
    assert_eq!(envoy.ready(), "DRAINING");
    wait_live(&envoy);
    assert_logged(&second, &[logged(ENVOY_RESTORED), responds(1)]);
    let mut hook = second.hook(&[]);
    assert_drain_waits(&second, &mut hook, &envoy, 1);
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
}

#[test]
fn a_hook_whose_sidecar_was_killed_drains_with_the_next_one() {
    let envoy = Envoy::builder().http("http").start();
    let mut first = Sidecar::beside(&envoy);
    let client = KeptAlive::open(envoy.port("http"));
    let mut hook = first.hook(&[]);
    assert_drain_waits(&first, &mut hook, &envoy, 1);
    first.kill();
    hook.wait_line("the sidecar was lost");
    let second = Sidecar::builder().beside(&envoy).replacing(&first).start();
    assert_drain_waits(&second, &mut hook, &envoy, 1);
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    second.assert_not_logged(ENVOY_RESTORED);
}

#[test]
fn no_envoy_is_restored_while_its_hook_waits() {
    let (held, other) = (stranded(), stranded());
    let sidecar = Sidecar::beside(&held);
    let waiter = sidecar.control().start_get("/shutdown");
    wait_envoy_hooks(&sidecar, 1);
    // Started later: once its Envoy is restored, the held one would be, too.
    let later = Sidecar::beside(&other);
    wait_live(&other);
    later.wait_log(ENVOY_RESTORED);
    assert_eq!(held.ready(), "DRAINING");
    assert!(waiter.is_waiting());
    assert_exits(&mut sidecar.hook(&[]), 0, NONE_OPEN);
    assert_eq!(waiter.response(), OK);
    sidecar.assert_not_logged(ENVOY_RESTORED);
    assert_eq!(held.ready(), "DRAINING");
}

#[test]
fn a_drain_in_the_first_two_seconds_never_shows_envoy_live() {
    let envoy = stranded();
    let client = KeptAlive::open(envoy.port("http"));
    drop(client);
    let sidecar = Sidecar::beside(&envoy);
    let states = thread::scope(|scope| {
        // Its end, or a panic, ends the checks.
        let (drain, over) = mpsc::channel::<()>();
        let envoy = &envoy;
        let checks = scope.spawn(move || {
            let mut states = Vec::new();
            while over.try_recv() == Err(TryRecvError::Empty) {
                states.push(envoy.ready());
            }
            states
        });
        // Longer than the time after which a stranded Envoy is restored.
        let mut hook = sidecar.hook(&["--check-delay=2500ms"]);
        wait_phase(&sidecar, CHECK_DELAY);
        let exit = hook.wait();
        assert_eq!(exit.code, Some(0), "{exit:?}");
        assert!(exit.took >= Duration::from_millis(2500), "{exit:?}");
        drop(drain);
        checks.join().expect("the thread that checks")
    });
    assert!(states.len() > 100, "{} checks are few", states.len());
    let other = states.iter().position(|state| state != "DRAINING");
    assert_eq!(other.map(|n| (n, &states[n])), None, "of {} checks", states.len());
    sidecar.assert_not_logged(ENVOY_RESTORED);
}
