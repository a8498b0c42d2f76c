//! How often Envoy is asked, and for how long.

use std::time::{Duration, Instant};

use super::waiting_for_one;
use crate::support::prelude::*;

#[test]
fn an_envoy_whose_stats_take_longer_than_a_call_is_counted() {
    let admin = FakeAdmin::unix();
    let (sidecar, mut hook) = waiting_for_one(&admin);
    admin.fault(Route::Stats, Fault::Late(Duration::from_secs(3)));
    wait_error(&sidecar, WAITING_FOR_CONNECTIONS, "no whole response within 2s");
    finish_drain(&admin, &mut hook);
}

#[test]
fn an_envoy_that_stays_live_is_failed_again_at_the_interval_and_logged_now_and_then() {
    let admin = FakeAdmin::unix();
    admin.fault(Route::Fail, Fault::Body("OK\n".to_owned()));
    let sidecar = Sidecar::builder().beside(&admin).arg("--check-interval=100ms").start();
    let started = Instant::now();
    let hook = sidecar.hook(&[]);
    let at = admin.wait_for(Route::Fail, 12);
    assert!(at - started >= Duration::from_millis(1_100), "too fast: {:?}", at - started);
    sidecar.assert_times_logged(ENVOY_LIVE_AGAIN, 1);
    sidecar.assert_times_logged(OUT_OF_SERVICE, 2);
    drop(hook);
}

#[test]
fn a_revert_and_an_end_are_seen_soon_whatever_the_interval() {
    let mut admin = FakeAdmin::unix();
    admin.set_open(1);
    let sidecar = Sidecar::builder().beside(&admin).arg("--check-interval=1h").start();
    let mut hook = sidecar.hook(&[]);
    wait_open_connections(&sidecar, 1);
    let since = Instant::now();
    admin.set_state(State::Live);
    assert_took("the revert", admin.wait_for(Route::Fail, 2) - since, 0.0..4.0);
    wait_open_connections(&sidecar, 1);
    let since = Instant::now();
    admin.refuse();
    assert_exits(&mut hook, 0, ENVOY_IS_GONE_WITH_ONE_OPEN);
    assert_took("the end", hook.wait().at - since, 2.0..6.0);
}

#[test]
fn a_time_out_within_the_drain_delay_fails_health_checks_once() {
    let admin = FakeAdmin::unix();
    admin.set_open(1);
    let args = ["--drain-delay=1h", "--drain-timeout=0s"];
    let sidecar = Sidecar::builder().beside(&admin).args(args).start();
    // Before a drain shows it.
    sidecar.wait_log(logged(TIMEOUT_BEFORE_DRAIN_DELAY).with("level", "warn"));
    let of_drain = logged(TIMEOUT_BEFORE_DRAIN_DELAY).with("drain", 1);
    sidecar.assert_not_logged(of_drain.clone());
    assert_exits(&mut sidecar.hook(&[]), 1, "gave up at the drain timeout");
    assert_eq!((admin.count(Route::Fail), admin.state()), (1, State::Draining));
    sidecar.assert_times_logged(of_drain, 1);
    sidecar.assert_times_logged(TIMEOUT_BEFORE_DRAIN_DELAY, 2);
}

#[test]
fn an_envoy_that_is_starting_for_over_a_minute_is_restored_all_the_same() {
    if !SHIPS {
        return println!("SKIPPED: two minutes, which the build that ships is given");
    }
    let admin = FakeAdmin::unix();
    admin.set_state(State::Initializing);
    let sidecar = Sidecar::builder().beside(&admin).start();
    let wait = |what: &str, condition: &dyn Fn() -> bool| {
        let met = try_wait_for(4 * PATIENCE, || condition().then_some(()));
        assert!(met.is_some(), "{what}: {}", sidecar.report());
    };
    // So many it gets that does not respond, each 5 s; then one a minute is enough.
    wait("twelve checks", &|| admin.count(Route::Ready) >= 12);
    admin.set_state(State::Draining);
    wait("the thirteenth", &|| sidecar.times_logged(ENVOY_RESTORED) == 1);
    assert_eq!((admin.count(Route::Ready), admin.state()), (13, State::Live));
}
