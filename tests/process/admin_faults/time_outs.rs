//! Calls that take too long, and when they are retried.

use std::time::Duration;

use super::{chunks_without_end, draining, each_over_both, poll_errors};
use crate::support::prelude::*;

#[test]
fn a_call_times_out_and_the_next_one_comes_after_as_long_with_twice_the_time() {
    let faults = [
        ("silence", Some(Fault::Silent)),
        ("a byte now and then", Some(Fault::Slow { every: Duration::from_millis(50) })),
        ("a slow byte", Some(Fault::Slow { every: Duration::from_millis(1500) })),
    ];
    let rows = named(faults).into_iter().flat_map(|(name, fault)| {
        [("50ms", 2.0), ("3s", 3.0)]
            .map(|interval| (format!("{name}, {}", interval.0), (fault.clone(), interval)))
    });
    each_over_both(rows.collect(), |name, admin, (fault, (interval, time))| {
        let interval = format!("--check-interval={interval}");
        let sidecar = Sidecar::builder().beside(&admin).arg(&interval).start();
        admin.set_open(1);
        admin.fault(Route::Stats, fault.expect("a fault"));
        let mut hook = sidecar.hook(&[]);
        let (mut sent, mut took) = (Vec::new(), Vec::new());
        for n in 1..=2 {
            sent.push(admin.wait_for(Route::Stats, n));
            wait_value("its end", || poll_errors(&sidecar, "timeout"), |seen| *seen >= n as u64);
            took.push(sent[n - 1].elapsed().as_secs_f32());
        }
        // On a busy machine what is seen late looks longer, or shorter by as much.
        let late = if SHIPS { 1.5 } else { 6.0 };
        for (took, time) in [(took[0], time), (took[1], 2.0 * time)] {
            assert!(took > time - 0.5 && took < time + late, "{name}: {took} s for {time} s");
        }
        // A slow Envoy is not polled again for as long as the call took.
        let gap = (sent[1] - sent[0]).as_secs_f32();
        assert!(gap > 2.0 * time - 0.5 && gap < 2.0 * time + late, "{name}: {gap} s");
        hook.assert_running();
        admin.set_open(0);
        admin.clear(Route::Stats);
        assert_exits(&mut hook, 0, "drained");
    });
}

#[test]
fn failing_health_checks_is_retried_after_a_fifth_of_a_second_one_five_and_each_interval() {
    let admin = FakeAdmin::unix();
    admin.fault(Route::Fail, Fault::Status(500));
    let sidecar = Sidecar::builder().beside(&admin).arg("--check-interval=700ms").start();
    let mut hook = sidecar.hook(&[]);
    let times: Vec<_> = (1..=6).map(|n| admin.wait_for(Route::Fail, n)).collect();
    for (n, pause) in [0.2, 1.0, 5.0, 0.7, 0.7].into_iter().enumerate() {
        // A request that is seen late makes the pause after it shorter.
        assert_took("the pause", times[n + 1] - times[n], 0.5 * pause..pause + 0.5);
    }
    hook.assert_running();
    wait_phase(&sidecar, FAILING_HEALTH_CHECKS);
    admin.clear(Route::Fail);
    assert_exits(&mut hook, 0, "drained");
    // A later reversal starts with the shortest pause again: see the unit tests of the machine.
    assert_eq!(admin.state(), State::Draining);
}

#[test]
fn a_drain_timeout_ends_a_drain_whose_envoy_does_not_respond() {
    let rows = named([
        ("failing health checks", (Some(Route::Fail), FAILING_HEALTH_CHECKS, "--check-delay=0s")),
        ("check delay", (Some(Route::Ready), CHECK_DELAY, "--check-delay=60s")),
        ("drain delay", (Some(Route::Ready), DRAIN_DELAY, "--drain-delay=60s")),
        ("polling", (Some(Route::Stats), WAITING_FOR_CONNECTIONS, "--check-delay=0s")),
        ("a full backlog", (None, FAILING_HEALTH_CHECKS, "--check-delay=0s")),
    ]);
    each_over_both(rows, |name, mut admin, (route, phase, option)| {
        match route {
            Some(route) => admin.fault(route, Fault::Silent),
            None => admin.full_backlog(),
        }
        let options = ["--drain-timeout=1s", option];
        let sidecar = Sidecar::builder().beside(&admin).args(options).start();
        let mut hook = sidecar.hook(&[]);
        wait_phase(&sidecar, phase);
        hook.assert_running();
        let exit = hook.wait();
        assert_eq!(exit.code, Some(1), "{name}: {exit:?}");
        assert!(exit.output.contains("gave up at the drain timeout"), "{name}: {exit:?}");
        assert_took(name, exit.took, 1.0..4.0);
        sidecar.wait_log(outcome("timed_out"));
        assert_eq!(sidecar.metric("drains_total{outcome=\"timed_out\"}"), 1, "{name}");
    });
}

#[test]
fn responses_without_end_take_no_memory() {
    if is_emulated() {
        return println!("SKIPPED: the memory is the emulator's");
    }
    let rows = named([
        ("a body", (Fault::Endless, 20)),
        ("a head", (Fault::EndlessHead, 20)),
        // Each of these is 16 MiB to read, which takes another build than the one that ships a second.
        ("gauges", (chunks_without_end("http.x.downstream_cx_active: 0\n"), 3)),
        ("a line", (chunks_without_end("listener."), 3)),
    ]);
    each_over_both(rows, |name, admin, (fault, times)| {
        let (sidecar, mut hook) = draining(&admin, &[]);
        let rss = sidecar.rss_bytes();
        admin.fault(Route::Stats, fault);
        let errors = || poll_errors(&sidecar, "too_long") + poll_errors(&sidecar, "protocol");
        let max = wait_for("endless responses", || {
            let now = sidecar.rss_bytes();
            (errors() >= times).then_some(now)
        });
        let max = max.max(sidecar.rss_bytes());
        hook.assert_running();
        let (kib, before) = (max >> 10, rss >> 10);
        println!("{name}: {before} KiB before, {kib} KiB after");
        assert!(max < rss + (3 << 20), "{name}: from {before} KiB to {kib} KiB");
        assert!(max < 8 << 20, "{name}: {kib} KiB");
        admin.clear(Route::Stats);
        finish_drain(&admin, &mut hook);
    });
}
