//! The sidecar's first check of Envoy, 2 s after its start.

use std::time::Instant;

use super::{draining, each_over_both, leave, ways_to_go};
use crate::support::prelude::*;

#[test]
fn a_sidecar_checks_envoy_after_its_start() {
    let (none, no_restore): (&[&str], &[&str]) = (&[], &["--no-restore"]);
    // Envoy's state, the options, how often it is restored, what is logged and what is not.
    let rows = named([
        ("LIVE", (State::Live, none, 0, ENVOY_RESPONDS, ENVOY_RESTORED)),
        ("DRAINING", (State::Draining, none, 1, ENVOY_RESTORED, ENVOY_NOT_RESTORED)),
        ("DRAINING, --no-restore", {
            (State::Draining, no_restore, 0, ENVOY_NOT_RESTORED, ENVOY_RESTORED)
        }),
        ("LIVE, --no-restore", (State::Live, no_restore, 0, ENVOY_RESPONDS, ENVOY_NOT_RESTORED)),
    ]);
    each_over_both(rows, |name, admin, (state, args, times, message, other)| {
        admin.set_state(state);
        let started = Instant::now();
        let sidecar = Sidecar::builder().beside(&admin).args(args).start();
        sidecar.wait_log(ENVOY_RESPONDS);
        assert!(sidecar.times_logged(message) > 0, "{name}: {}", sidecar.report());
        sidecar.assert_not_logged(other);
        let live = sidecar.times_logged(logged(ENVOY_RESPONDS).with("state", "LIVE")) > 0;
        assert_eq!(live, state == State::Live || times == 1, "{name}: {}", sidecar.report());
        let first = admin.wait_for(Route::Ready, 1) - started;
        assert_took(name, first, 2.0..4.0);
        if times == 1 {
            let line = admin.requests().into_iter().find(|(_, line)| line.contains("/ok"));
            let line = line.expect("a request").1;
            assert_eq!(line, "POST /healthcheck/ok HTTP/1.1", "{name}");
        }
        // Neither now nor in a drain and after it.
        assert_eq!(admin.count(Route::Ok), times, "{name}");
        assert_exits(&mut sidecar.hook(&[]), 0, "drained");
        assert_eq!(admin.count(Route::Ok), times, "{name}");
        assert_eq!(admin.state(), State::Draining, "{name}");
    });
}

#[test]
fn an_envoy_that_starts_after_its_sidecar_is_logged_once_and_never_restored() {
    let rows = ways_to_go().into_iter().flat_map(|(name, start, how)| {
        [State::Live, State::Draining]
            .map(|state| (format!("{name}, {state:?}"), (start, how, state)))
    });
    for_each_case(rows.collect(), |name, (start, how, state)| {
        let mut admin = start();
        admin.set_state(state);
        let error = leave(&mut admin, how);
        let sidecar = Sidecar::beside(&admin);
        sidecar.wait_log(ENVOY_NOT_RESPONDING_YET);
        let status = sidecar.status();
        assert!(status.phase() == IDLE && status.error_contains(error), "{status:?}");
        assert!(status.outcome().is_none(), "{name}: {status:?}");
        admin.come_back();
        sidecar.wait_log(ENVOY_RESPONDS);
        let (times, report) = (|expected| sidecar.times_logged(expected), sidecar.report());
        assert_eq!(times(logged(ENVOY_NOT_RESPONDING_YET)), 1, "{name}: {report}");
        let shown = if state == State::Live { "LIVE" } else { "DRAINING" };
        let responds = logged(ENVOY_RESPONDS).with("state", shown);
        assert_eq!(times(responds), 1, "{name}: {report}");
        let left = times(logged(ENVOY_NOT_RESTORED)) > 0;
        assert_eq!(left, state == State::Draining, "{name}: {report}");
        assert_eq!((admin.count(Route::Ok), admin.count(Route::Fail)), (0, 0), "{name}");
        assert_eq!(admin.state(), state, "{name}");
    });
}

#[test]
fn an_envoy_that_fails_the_first_checks_is_logged_once_and_then_restored() {
    let faults = [("status 500", Fault::Status(500)), ("an end at once", Fault::Close)];
    each_over_both(named(faults), |name, admin, fault| {
        admin.set_state(State::Draining);
        admin.fault(Route::Ready, fault);
        let sidecar = Sidecar::beside(&admin);
        admin.wait_for(Route::Ready, 2);
        assert_eq!(admin.count(Route::Ok), 0, "{name}");
        admin.clear(Route::Ready);
        sidecar.wait_log(ENVOY_RESPONDS);
        let times = sidecar.times_logged(ENVOY_NOT_RESPONDING_YET);
        assert_eq!(times, 1, "{name}: {}", sidecar.report());
        assert_eq!((admin.count(Route::Ok), admin.state()), (1, State::Live), "{name}");
    });
}

#[test]
fn an_envoy_that_is_being_drained_is_not_restored() {
    let admin = FakeAdmin::unix();
    admin.set_state(State::Draining);
    let (sidecar, mut hook) = draining(&admin, &[]);
    // The startup check would have been at two seconds.
    wait_for("three seconds of the drain", || {
        let status = sidecar.status();
        (status.elapsed_seconds()? >= 3.0).then_some(())
    });
    hook.assert_running();
    assert_eq!((admin.count(Route::Ok), admin.state()), (0, State::Draining));
    finish_drain(&admin, &mut hook);
    assert_eq!((admin.count(Route::Ok), admin.state()), (0, State::Draining));
}
