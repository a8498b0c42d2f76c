//! An Envoy that is gone, one that only seems so, and one that comes back.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Instant;

use super::{draining, each_over_both, last_error, leave, poll_errors, times_logged, ways_to_go};
use crate::support::prelude::*;

/// So long that no poll of a slow machine takes longer. Then Envoy's readiness is not checked between
/// two polls, and every refused call is a poll, which the metrics count.
const FEW_CHECKS: &str = "--check-interval=500ms";

#[test]
fn envoy_is_gone_in_any_phase_after_three_refusals_a_second_apart() {
    let phases = [
        (DRAIN_DELAY, "--drain-delay=60s"),
        (FAILING_HEALTH_CHECKS, "--check-delay=0s"),
        (CHECK_DELAY, "--check-delay=60s"),
        (WAITING_FOR_CONNECTIONS, "--check-delay=0s"),
    ];
    let rows = ways_to_go().into_iter().flat_map(|(name, start, how)| {
        phases.map(|(phase, option)| (format!("{name}, {phase}"), (start, how, phase, option)))
    });
    for_each_case(rows.collect(), |name, (start, how, phase, option)| {
        let mut admin = start();
        admin.set_open(1);
        let args = [option, FEW_CHECKS];
        let sidecar = Sidecar::builder().beside(&admin).args(args).start();
        let mut error = "";
        if phase == FAILING_HEALTH_CHECKS {
            error = leave(&mut admin, how);
        }
        let mut since = Instant::now();
        let mut hook = sidecar.hook(&[]);
        if phase != FAILING_HEALTH_CHECKS {
            wait_phase(&sidecar, phase);
            // The status does not show what the comparison of listeners meets, which comes first.
            if phase != DRAIN_DELAY {
                admin.wait_for(Route::AllGauges, 1);
            }
            if phase == WAITING_FOR_CONNECTIONS {
                wait_open_connections(&sidecar, 1);
                // The call behind the first poll, which may be refused as a poll is.
                admin.wait_for(Route::Accepted, 1);
            } else {
                admin.wait_for(Route::Ready, admin.count(Route::Ready) + 1);
            }
            since = Instant::now();
            // A call in progress may be cut off first, which is another error.
            error = leave(&mut admin, how);
        }
        wait_error(&sidecar, phase, error);
        assert!(hook.running(), "{name}: gone at once: {:?}", hook.try_wait());
        let error = last_error(&sidecar);
        let exit = hook.wait();
        let took = exit.at.duration_since(since);
        assert_eq!(exit.code, Some(0), "{name}: {exit:?}");
        assert!(exit.output.contains("Envoy is gone"), "{name}: {exit:?}");
        assert_took(name, took, 2.0..4.0);
        assert_eq!(times_logged(&sidecar, &error), 1, "{name}: {}", sidecar.report());
        assert_logged(&sidecar, &[logged(ENVOY_CALL_FAILED), outcome("envoy_gone")]);
        let status = sidecar.status();
        assert!(status.outcome() == Some("envoy_gone"), "{name}: {status:?}");
        if phase == WAITING_FOR_CONNECTIONS {
            assert_eq!(poll_errors(&sidecar, "refused"), 3, "{name}");
        }
    });
}

#[test]
fn two_refusals_are_not_gone() {
    let rows = ways_to_go().map(|(name, start, how)| (name, (start, how)));
    for_each_case(named(rows), |name, (start, how)| {
        let mut admin = start();
        let (sidecar, mut hook) = draining(&admin, &[FEW_CHECKS]);
        for refusals in [2, 4, 6] {
            leave(&mut admin, how);
            wait_value("two refusals", || poll_errors(&sidecar, "refused"), |n| *n >= refusals);
            admin.come_back();
            hook.assert_running();
            admin.wait_for(Route::Stats, admin.count(Route::Stats) + 2);
            assert_eq!(poll_errors(&sidecar, "refused"), refusals, "{name}");
            wait_open_connections(&sidecar, 1);
            wait_status(&sidecar, |status| status.last_error().is_none());
        }
        finish_drain(&admin, &mut hook);
    });
}

#[test]
fn an_envoy_that_is_restored_is_taken_out_of_service_again() {
    let rows = named([
        ("in the check delay", (CHECK_DELAY, "--check-delay=60s", false)),
        ("in the check delay, without server.live", (CHECK_DELAY, "--check-delay=60s", true)),
        ("while polling", (WAITING_FOR_CONNECTIONS, "--check-delay=0s", false)),
        ("while polling, without server.live", (WAITING_FOR_CONNECTIONS, "--check-delay=0s", true)),
    ]);
    each_over_both(rows, |name, admin, (phase, option, hidden)| {
        admin.set_open(1);
        if hidden {
            admin.hide_stats("server.");
        }
        let sidecar = Sidecar::builder().beside(&admin).arg(option).start();
        let mut hook = sidecar.hook(&[]);
        wait_phase(&sidecar, phase);
        for fails in 2..=3 {
            assert_eq!(admin.count(Route::Fail), fails - 1, "{name}");
            admin.set_state(State::Live);
            // No client is connected, which does not count while a balancer may still send one.
            admin.wait_for(Route::Fail, fails);
            wait_value(
                "it to be out of service",
                || admin.state(),
                |state| *state == State::Draining,
            );
            wait_phase(&sidecar, phase);
            hook.assert_running();
        }
        // The second comes too soon after the first for a record of its own.
        sidecar.assert_times_logged(ENVOY_LIVE_AGAIN, 1);
        if phase == WAITING_FOR_CONNECTIONS {
            finish_drain(&admin, &mut hook);
        }
    });
}

#[test]
fn an_envoy_that_is_restored_without_a_client_does_not_count_as_drained() {
    each_over_both(named([("server.live", false), ("/ready", true)]), |name, admin, hidden| {
        if hidden {
            admin.hide_stats("server.");
        }
        let (sidecar, mut hook) = draining(&admin, &[]);
        // From here on a success at failing changes nothing: it stays LIVE.
        admin.fault(Route::Fail, Fault::Body("OK\n".to_owned()));
        admin.set_state(State::Live);
        admin.wait_for(Route::Fail, 2);
        admin.set_open(0);
        admin.wait_for(Route::Fail, admin.count(Route::Fail) + 3);
        hook.assert_running();
        let status = sidecar.status();
        assert!(status.outcome().is_none(), "{name}: {status:?}");
        admin.clear(Route::Fail);
        assert_exits(&mut hook, 0, NONE_OPEN);
        assert_eq!(admin.state(), State::Draining, "{name}");
    });
}

#[test]
fn localhost_is_an_admin_address() {
    let admin = FakeAdmin::tcp();
    let address = admin.admin_address().replace("127.0.0.1", "localhost");
    assert!(address.starts_with("localhost:"), "{address}");
    admin.set_open(1);
    let sidecar = Sidecar::builder().admin(&address).start();
    let mut hook = sidecar.hook(&[]);
    wait_open_connections(&sidecar, 1);
    assert_eq!(sidecar.status().admin_address(), address);
    finish_drain(&admin, &mut hook);
}

#[test]
fn an_unknown_host_name_is_an_error_and_not_gone() {
    let builder = Sidecar::builder().admin("no-such-host.invalid:1");
    let sidecar = builder.arg("--drain-timeout=9s").start();
    let threads = sidecar.threads();
    let mut hook = sidecar.hook(&[]);
    wait_error(&sidecar, FAILING_HEALTH_CHECKS, "");
    let error = last_error(&sidecar);
    let expected = "the name no-such-host.invalid cannot be resolved";
    let others = ["no whole response within 2s", "an earlier look-up"];
    let is_other = others.iter().any(|other| error.contains(other));
    assert!(error.contains(expected) || is_other, "{error}");
    // By then it was tried four times or more, whichever of the two it was.
    let exit = wait_for("seven seconds of the drain", || {
        let status = sidecar.status();
        assert!(status.phase() == FAILING_HEALTH_CHECKS, "{status:?}");
        assert!(sidecar.threads() <= threads + 12, "{} threads", sidecar.threads());
        (status.elapsed_seconds()? >= 7.0).then(|| hook.try_wait())
    });
    assert!(exit.is_none(), "it is not gone: {exit:?}");
    let exit = hook.wait();
    assert_eq!(exit.code, Some(1), "{exit:?}");
    assert_took("the hook", exit.took, 9.0..12.0);
    wait_value("the look-ups' threads to end", || sidecar.threads(), |n| *n <= threads + 4);
}

#[test]
fn a_name_server_that_is_silent_holds_one_thread() {
    if !can_unshare("--mount") {
        return;
    }
    let [.., high, low] = std::process::id().to_be_bytes();
    let server = Ipv4Addr::new(127, 83, high, low);
    let _silent = match UdpSocket::bind((server, 53)) {
        Ok(socket) => socket,
        Err(error) => return println!("SKIPPED: no name server can be at {server}:53: {error}"),
    };
    let dir = temp_dir("resolver");
    let config = dir.path().join("resolv.conf");
    let text = format!("nameserver {server}\noptions timeout:60 attempts:10\n");
    std::fs::write(&config, text).expect("write a file");
    let script = format!("mount --bind {} /etc/resolv.conf; exec \"$@\"", config.display());
    let sidecar = Sidecar::builder()
        .admin("envoy.example.invalid:1")
        .under(["unshare", "--mount", "sh", "-c", &script, "sh"])
        .start();
    let mut hook = sidecar.hook(&[]);
    wait_error(&sidecar, FAILING_HEALTH_CHECKS, "an earlier look-up");
    let threads = sidecar.threads();
    // The tries come 0.2, 1 and 5 s after one another.
    wait_until("two tries more", || {
        let now = sidecar.threads();
        assert!(now <= threads, "{now} threads, {threads} before: a look-up more");
        sidecar.status().elapsed_seconds().is_some_and(|seconds| seconds >= 9.0)
    });
    hook.assert_running();
}
