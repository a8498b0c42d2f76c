//! Delays that a quiet period ends: once no new connection has come for so long. `tests/alone/balancer.rs`
//! has the same behind a balancer at full size.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::balancer::{Balancer, Repeated, Stops, Traffic, WEB, connect_checks, failure};
use crate::support::prelude::*;

const HOUR: &str = "--check-delay=1h";
const TOTAL: &str = "listener.0.0.0.0_8080.downstream_cx_total";

/// An admin interface that counts connections, 7 up to now.
fn counting_admin() -> FakeAdmin {
    let admin = FakeAdmin::unix();
    admin.set_stat("listener.admin.downstream_cx_total", 1);
    admin.set_stat("http.admin.downstream_rq_total", 1);
    admin.set_stat(TOTAL, 7);
    admin
}

fn sidecar<S: AsRef<str>>(
    admin: &FakeAdmin,
    options: impl IntoIterator<Item = S>,
) -> (Sidecar, Hook) {
    let sidecar = Sidecar::builder().beside(admin).args(options).start();
    let hook = sidecar.hook(&[]);
    (sidecar, hook)
}

fn quiet(delay: &str) -> Expected {
    logged(QUIET).with("delay", delay)
}

/// How long no new connection has come in this delay, once it is at least so long.
#[track_caller]
fn wait_quiet(sidecar: &Sidecar, phase: &str, seconds: f64) -> Status {
    wait_status(sidecar, |status| {
        let quiet = status.get("quiet_seconds").as_f64();
        status.phase() == phase && quiet.is_some_and(|quiet| quiet >= seconds)
    })
}

/// Asserts that the drain ends by itself, and no sooner than this long after `since`.
#[track_caller]
fn assert_ends_after(sidecar: &Sidecar, hook: &mut Hook, since: Instant, time: Duration) {
    assert_exits(hook, 0, NONE_OPEN);
    let took = hook.wait().at - since;
    assert!(took >= time, "{took:?}, sooner than {time:?}; {}", sidecar.report());
}

#[test]
fn no_request_fails_where_the_quiet_period_exceeds_the_balancers_lag() {
    let mut drained = Envoy::builder().health_listener().http(WEB).start();
    let other = Envoy::builder().health_listener().http(WEB).start();
    let lag = Duration::from_millis(200);
    let balancer = Balancer::start(&[&drained, &other], lag, Stops::AfterFailedChecks);
    let traffic = Traffic::start(&balancer, Duration::from_millis(10));
    // A look that meets a health check may count it, so that there are few.
    let options = [HOUR, "--quiet-period=1s", "--check-interval=1s"];
    let sidecar = Sidecar::builder().beside(&drained).args(options).start();
    let mut hook = sidecar.hook(&[]);
    assert_exits(&mut hook, 0, NONE_OPEN);
    drained.terminate();
    assert_eq!(failure(&balancer.client()), None);
    traffic.assert_none_failed();
    assert!(balancer.connections_to(1) > 0, "the balancer has not taken it out");
    // Neither the balancer's own checks nor scrapes count, which come at listeners of their own.
    sidecar.wait_log(quiet(CHECK_DELAY));
}

#[test]
fn requests_fail_where_the_balancer_still_sends_to_an_envoy_that_was_stopped() {
    let mut drained = Envoy::builder().health_listener().http(WEB).start();
    let other = Envoy::builder().health_listener().http(WEB).start();
    let lag = Duration::from_secs(3600);
    let balancer = Balancer::start(&[&drained, &other], lag, Stops::AfterFailedChecks);
    assert_eq!(failure(&balancer.client()), None);
    let sidecar = Sidecar::builder().beside(&drained).args([HOUR, "--quiet-period=500ms"]).start();
    assert_exits(&mut sidecar.hook(&[]), 0, NONE_OPEN);
    drained.terminate();
    assert!(failure(&balancer.client()).is_some());
}

#[test]
fn an_idle_envoy_is_drained_once_the_quiet_period_has_passed() {
    for_each_case_with_envoy(named([("connections", ()), ("requests", ())]), |name, ()| {
        let envoy = Envoy::builder().stats_listener().http(WEB).start();
        let options = ["--check-delay=1m", "--check-interval=1s", "--quiet-period=1s"];
        let sidecar = Sidecar::builder().beside(&envoy).args(options).start();
        // Scrapes are none of the connections and requests that a balancer sends.
        let stats = envoy.port("stats");
        let _scrapes = Repeated::start(Duration::from_millis(500), move || {
            drop(KeptAlive::open(stats));
        });
        let mut hook = sidecar.hook(&[&format!("--wait-for={name}")]);
        assert_exits(&mut hook, 0, NONE_OPEN);
        assert_took(name, hook.wait().took, 1.0..2.0);
        sidecar.wait_log(quiet(CHECK_DELAY));
    });
}

#[test]
fn a_new_connection_starts_the_quiet_period_again() {
    let admin = counting_admin();
    let (sidecar, mut hook) = sidecar(&admin, [HOUR, "--quiet-period=3s"]);
    let status = wait_quiet(&sidecar, CHECK_DELAY, 1.0);
    assert_eq!(status.get("new_connections"), 0);
    let came = Instant::now();
    admin.set_stat(TOTAL, 9);
    let status = wait_status(&sidecar, |status| status.get("new_connections") == 2);
    let seconds = |key: &str| status.get(key).as_f64().unwrap_or(f64::NAN);
    assert!(seconds("quiet_seconds") < 1.0, "{status:?}");
    assert!(seconds("new_connection_noticed_seconds_ago") < 1.0, "{status:?}");
    assert!(seconds("new_connections_per_second") > 0.0, "{status:?}");
    assert_ends_after(&sidecar, &mut hook, came, Duration::from_secs(3));
    sidecar.wait_log(quiet(CHECK_DELAY).with("new_connections", 2));
}

#[test]
fn a_connection_between_two_looks_at_the_counters_is_not_as_old_as_the_first_look() {
    let admin = counting_admin();
    // A look each 1.5 s.
    let options = [HOUR, "--quiet-period=3s", "--check-interval=1500ms"];
    let (sidecar, mut hook) = sidecar(&admin, options);
    admin.wait_for(Route::Accepted, 1);
    // Half of that: how far from the looks is what is tested.
    thread::sleep(Duration::from_millis(750));
    let came = Instant::now();
    admin.set_stat(TOTAL, 8);
    assert_ends_after(&sidecar, &mut hook, came, Duration::from_secs(3));
}

#[test]
fn a_look_shortly_before_the_end_of_the_quiet_period_is_followed_by_one_at_its_end() {
    let admin = counting_admin();
    // The period counts from the first response, so that the third look is a little too early, and its
    // response comes after the period's end.
    let late = |millis| admin.fault(Route::Accepted, Fault::Late(Duration::from_millis(millis)));
    late(50);
    let options = [HOUR, "--quiet-period=8s", "--check-interval=4s"];
    let (sidecar, mut hook) = sidecar(&admin, options);
    let failed = admin.wait_for(Route::Fail, 1);
    admin.wait_for(Route::Accepted, 1);
    late(300);
    assert_ends_after(&sidecar, &mut hook, failed, Duration::from_secs(8));
    // Another interval later it would have taken 12 s.
    let took = hook.wait().at - failed;
    assert!(took < Duration::from_secs(11), "{took:?}; {}", sidecar.report());
}

#[test]
fn each_delay_is_shortened_by_a_quiet_period_of_its_own() {
    let admin = counting_admin();
    let start = Instant::now();
    let (sidecar, mut hook) = sidecar(&admin, ["--drain-delay=1h", HOUR, "--quiet-period=1s"]);
    let failed = admin.wait_for(Route::Fail, 1);
    assert!(failed - start >= Duration::from_secs(1), "{:?}", failed - start);
    assert_ends_after(&sidecar, &mut hook, failed, Duration::from_secs(1));
    assert_logged(&sidecar, &[quiet(DRAIN_DELAY), logged(OUT_OF_SERVICE), quiet(CHECK_DELAY)]);
}

#[test]
fn a_poll_that_fails_starts_the_quiet_period_again() {
    let admin = counting_admin();
    let (sidecar, mut hook) = sidecar(&admin, [HOUR, "--quiet-period=3s"]);
    wait_quiet(&sidecar, CHECK_DELAY, 1.0);
    let failed = Instant::now();
    admin.fault_times(Route::Accepted, 1, Fault::Status(500));
    wait_status(&sidecar, |status| {
        status.get("quiet_seconds").as_f64().is_some_and(|quiet| quiet < 1.0)
    });
    assert_ends_after(&sidecar, &mut hook, failed, Duration::from_secs(3));
    sidecar.wait_log(quiet(CHECK_DELAY).with("new_connections", 0));
}

#[test]
fn counters_that_begin_anew_start_the_quiet_period_again() {
    let admin = counting_admin();
    let (sidecar, mut hook) = sidecar(&admin, [HOUR, "--quiet-period=3s"]);
    wait_quiet(&sidecar, CHECK_DELAY, 1.0);
    let restarted = Instant::now();
    admin.set_stat(TOTAL, 3);
    assert_ends_after(&sidecar, &mut hook, restarted, Duration::from_secs(3));
}

#[test]
fn an_envoy_that_restarts_in_the_check_delay_starts_the_quiet_period_again() {
    let mut envoy = Envoy::builder().http(WEB).start();
    let sidecar = Sidecar::builder().beside(&envoy).args([HOUR, "--quiet-period=3s"]).start();
    let mut hook = sidecar.hook(&[]);
    wait_quiet(&sidecar, CHECK_DELAY, 0.5);
    // So that it does not see Envoy before that is live.
    sidecar.signal(Signal::SIGSTOP);
    envoy.restart();
    let restarted = Instant::now();
    sidecar.signal(Signal::SIGCONT);
    sidecar.wait_log(failing_again());
    assert_ends_after(&sidecar, &mut hook, restarted, Duration::from_secs(3));
    assert_logged(&sidecar, &[failing_again(), logged(OUT_OF_SERVICE), quiet(CHECK_DELAY)]);
}

/// Asserts that the check delay of 2 s runs its whole length, and that the log says this once.
#[track_caller]
fn assert_whole_length(envoy: &impl AsRef<Address>, options: &[&str], said: impl Into<Expected>) {
    let delays = ["--check-delay=2s", "--quiet-period=1s"];
    let sidecar = Sidecar::builder().beside(envoy).args(delays).start();
    let mut hook = sidecar.hook(options);
    sidecar.wait_log(OUT_OF_SERVICE);
    assert_exits(&mut hook, 0, NONE_OPEN);
    let took = hook.wait().took;
    assert!(took >= Duration::from_secs(2), "{took:?}; {}", sidecar.report());
    sidecar.assert_times_logged(said, 1);
    sidecar.assert_not_logged(QUIET);
}

#[test]
fn a_delay_runs_its_whole_length_where_envoy_hides_what_it_counts() {
    let none = || {
        let config = r#"stats_matcher: { exclusion_list: { patterns: [
            { suffix: downstream_cx_total }] } }"#;
        Envoy::builder().http(WEB).stats_config(config)
    };
    let one = || {
        let builder = Envoy::builder().bootstrap("stats_flush_interval: 0.5s");
        builder.http("shown").http(WEB).hidden()
    };
    let counter = || {
        let config = format!(
            "stats_matcher: {{ exclusion_list: {{ patterns: [{{ exact: listener.{WEB}.downstream_cx_total }}] }} }}"
        );
        Envoy::builder().http("shown").http(WEB).stats_config(&config)
    };
    let rows = named([
        ("all", none as fn() -> Builder),
        ("one listener's", one),
        ("one listener's counter", counter),
    ]);
    for_each_case_with_envoy(rows, |_, builder| {
        assert_whole_length(&builder().start(), &[], ARRIVALS_HIDDEN);
    });
}

#[test]
fn a_delay_runs_its_whole_length_where_new_connections_come() {
    let (admin, total) = (Arc::new(counting_admin()), AtomicU64::new(7));
    let counting = Arc::clone(&admin);
    let _clients = Repeated::start(Duration::from_millis(20), move || {
        counting.set_stat(TOTAL, total.fetch_add(1, Ordering::Relaxed));
    });
    assert_whole_length(&*admin, &[], NOT_QUIET);
}

#[test]
fn checks_that_only_connect_count_without_a_tls_inspector_and_are_named_in_the_log() {
    let plain = || Envoy::builder().http(WEB);
    let inspected = || Envoy::builder().tls_inspector(WEB);
    let rows = named([("plain", plain as fn() -> Builder), ("inspected", inspected)]);
    for_each_case_with_envoy(rows, |name, builder| {
        let envoy = builder().start();
        let _checks = connect_checks(&envoy, Duration::from_secs(1));
        let options = ["--check-delay=9s", "--quiet-period=3s", "--check-interval=400ms"];
        let sidecar = Sidecar::builder().beside(&envoy).args(options).start();
        let mut hook = sidecar.hook(&[]);
        if name == "plain" {
            sidecar.wait_log(OUT_OF_SERVICE);
            // What a balancer still sends at the start does not make the checks less regular.
            for _ in 0..3 {
                let before = sidecar.status().get("new_connections").as_u64();
                drop(KeptAlive::open(envoy.port(WEB)));
                wait_status(&sidecar, |status| status.get("new_connections").as_u64() > before);
            }
        }
        assert_exits(&mut hook, 0, NONE_OPEN);
        if name == "plain" {
            sidecar.wait_log(logged(NOT_QUIET).containing("hint", "health checks"));
        } else {
            // Envoy counts a connection once the inspector has read from it.
            sidecar.wait_log(quiet(CHECK_DELAY).with("new_connections", 0));
        }
    });
}

#[test]
fn a_quiet_period_that_is_off_or_longer_than_the_delay_changes_nothing() {
    for period in ["0s", "1h"] {
        let admin = counting_admin();
        let sidecar = Sidecar::builder().beside(&admin).arg("--quiet-period=10ms").start();
        let period = format!("--quiet-period={period}");
        let mut hook = sidecar.hook(&["--check-delay=1s", &period]);
        let failed = admin.wait_for(Route::Fail, 1);
        assert_ends_after(&sidecar, &mut hook, failed, Duration::from_secs(1));
        for message in [QUIET, NOT_QUIET, ARRIVALS_HIDDEN] {
            sidecar.assert_not_logged(message);
        }
    }
}

#[test]
fn a_delay_runs_its_whole_length_where_requests_are_waited_for_and_envoy_hides_them() {
    let one = format!("exact: http.{WEB}.downstream_rq_total");
    for hidden in ["suffix: downstream_rq_total", &one] {
        let config =
            format!("stats_matcher: {{ exclusion_list: {{ patterns: [{{ {hidden} }}] }} }}");
        let envoy = Envoy::builder().http(WEB).stats_config(&config).start();
        assert_whole_length(&envoy, &["--wait-for=requests"], ARRIVALS_HIDDEN);
    }
}

#[test]
fn requests_on_open_connections_count_where_requests_are_waited_for() {
    for_each_case(named([("connections", QUIET), ("requests", NOT_QUIET)]), |name, said| {
        let (admin, total) = (Arc::new(counting_admin()), AtomicU64::new(1));
        let counting = Arc::clone(&admin);
        let _clients = Repeated::start(Duration::from_millis(20), move || {
            let total = total.fetch_add(1, Ordering::Relaxed);
            counting.set_stat("http.web.downstream_rq_total", total);
        });
        let wait_for = format!("--wait-for={name}");
        let options = ["--drain-delay=2s", "--quiet-period=1s", &wait_for];
        let sidecar = Sidecar::builder().beside(&*admin).args(options).start();
        let _hook = sidecar.hook(&[]);
        let said = if said == QUIET { quiet(DRAIN_DELAY) } else { logged(said) };
        assert_logged(&sidecar, &[said, logged(OUT_OF_SERVICE)]);
    });
}
