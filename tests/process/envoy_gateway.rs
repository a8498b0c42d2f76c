//! The name `envoy-gateway`, the options that its manifests give, and listeners that drain.

use std::time::Instant;

use crate::support::prelude::*;

const NAMES: [&str; 2] = ["contour", "envoy-gateway"];

/// A sidecar that is started by this name.
#[track_caller]
fn start_as(name: &str, envoy: &impl AsRef<Address>, args: &[&str]) -> Sidecar {
    Sidecar::builder().named(name).beside(envoy).args(args).start()
}

/// The requests that change something, in their order.
fn posts(admin: &FakeAdmin) -> Vec<String> {
    let requests = admin.requests().into_iter().map(|(_, line)| line);
    let posts = requests.filter(|line| line.starts_with("POST "));
    posts.map(|line| line.split(' ').nth(1).unwrap_or_default().to_owned()).collect()
}

const FAIL: &str = "/healthcheck/fail";
const LISTENERS: &str = "/drain_listeners?graceful&skip_exit";

#[test]
fn each_name_has_its_defaults() {
    for (name, defaults, ready_timeout) in [
        (
            NAMES[0],
            "check_interval=5s check_delay=1m min_drain_duration=0s min_open_connections=0 \
             drain_delay=0s health_check_failure_delay=0s drain_timeout=none drain_listeners=false \
             require_envoy_hook=false admin_address=/admin/admin.sock ready_file=none",
            "none",
        ),
        (
            NAMES[1],
            "check_interval=1s check_delay=0s min_drain_duration=10s min_open_connections=0 \
             drain_delay=0s health_check_failure_delay=0s drain_timeout=1m drain_listeners=false \
             require_envoy_hook=false admin_address=localhost:19000 ready_file=none",
            "10m10s",
        ),
    ] {
        let sidecar = Sidecar::builder().named(name).with_own_defaults().start();
        let options = defaults.split(' ').map(|option| option.split_once('=').expect("a value"));
        let started = logged(STARTED).with("ready_timeout", ready_timeout);
        let started = options.fold(started, |record, (name, value)| record.with(name, value));
        sidecar.wait_log(started);
    }
}

#[test]
fn listeners_that_ignore_health_checks_drain_with_drain_listeners() {
    for (name, args) in [
        (NAMES[0], &[][..]),
        (NAMES[0], &["--drain-listeners"]),
        (NAMES[1], &["--drain-listeners"]),
    ] {
        let builder = Envoy::builder().http("http").http_modify_only("stubborn");
        let envoy = builder.flag("--drain-strategy").flag("immediate").start();
        let sidecar = start_as(name, &envoy, args);
        let http = KeptAlive::open(envoy.port("http"));
        let mut stubborn = Http2::open(envoy.port("stubborn"));
        let waiter = sidecar.public().start_get(HOOK_PATHS[1]);
        wait_envoy_hooks(&sidecar, 1);
        let mut hook = sidecar.hook(&[]);
        wait_open_connections(&sidecar, 2);
        assert_eq!(envoy.ready(), "DRAINING");
        assert_eq!(http.request("/").header("connection"), Some("close"), "{args:?}");
        assert!(http.peer_closed_within(PATIENCE));
        if args.is_empty() {
            wait_open_connections(&sidecar, 1);
            for _ in 0..5 {
                assert!(!stubborn.request(), "it got a GOAWAY without --drain-listeners");
            }
            hook.assert_running();
            drop(stubborn);
        } else {
            assert_logged(&sidecar, &[logged(OUT_OF_SERVICE), logged(LISTENERS_DRAINING)]);
            wait_until("a GOAWAY", || stubborn.request());
            assert!(stubborn.peer_closed_within(PATIENCE));
        }
        assert_exits(&mut hook, 0, NONE_OPEN);
        assert_eq!(waiter.response(), OK);
    }
}

#[test]
fn listeners_are_drained_only_while_envoys_own_hook_waits() {
    for name in NAMES {
        for (option, both) in [
            ("--drain-listeners", [FAIL, LISTENERS]),
            ("--health-check-failure-delay=300ms", [LISTENERS, FAIL]),
        ] {
            let admin = FakeAdmin::unix();
            let sidecar = start_as(name, &admin, &[]);
            admin.set_open(1);
            let mut hook = sidecar.hook(&[option]);
            wait_open_connections(&sidecar, 1);
            sidecar.wait_log(
                logged(ENVOY_HOOK_MISSING)
                    .with("listeners", "not drained, which could not be undone"),
            );
            assert_eq!(posts(&admin), [FAIL], "{name} {option}");
            // It comes late, in the middle of the drain.
            let waiter = sidecar.public().start_get(HOOK_PATHS[0]);
            admin.wait_for(Route::Listeners, 1);
            sidecar.wait_log(LISTENERS_DRAINING);
            admin.set_open(0);
            assert_exits(&mut hook, 0, NONE_OPEN);
            assert_eq!(waiter.response(), OK);
            assert_eq!(posts(&admin), [FAIL, LISTENERS], "{name} {option}");

            let admin = FakeAdmin::unix();
            let sidecar = start_as(name, &admin, &[option]);
            let waiter = sidecar.public().start_get(HOOK_PATHS[0]);
            wait_envoy_hooks(&sidecar, 1);
            let mut hook = sidecar.hook(&[]);
            assert_exits(&mut hook, 0, NONE_OPEN);
            assert_eq!(waiter.response(), OK);
            assert_eq!(posts(&admin), both, "{name} {option}");
            if both[1] == FAIL {
                // A request that is seen late makes the time after it shorter.
                let first = admin.wait_for(Route::Listeners, 1);
                let then = admin.wait_for(Route::Fail, 1);
                assert_took("the failure delay", then - first, 0.1..1.0);
            }
        }
    }
}

#[test]
fn an_envoy_whose_listeners_cannot_be_drained_is_drained_nevertheless() {
    for fault in [Fault::Status(404), Fault::Close, Fault::Silent] {
        let admin = FakeAdmin::unix();
        admin.fault(Route::Listeners, fault.clone());
        let sidecar = start_as(NAMES[0], &admin, &["--drain-listeners"]);
        let waiter = sidecar.public().start_get(HOOK_PATHS[0]);
        wait_envoy_hooks(&sidecar, 1);
        let mut hook = sidecar.hook(&[]);
        assert_exits(&mut hook, 0, NONE_OPEN);
        assert_eq!(waiter.response(), OK);
        let failed = logged(ENVOY_CALL_FAILED).containing("error", "POST /drain_listeners on ");
        assert_logged(&sidecar, &[failed, outcome("drained")]);
        let metrics = sidecar.public().get("/metrics").body;
        let errors = metrics.lines().filter(|line| line.contains("poll_errors_total{"));
        assert!(errors.clone().all(|line| line.ends_with(" 0")), "{fault:?}: {metrics}");
    }
}

#[test]
fn a_drain_takes_its_minimum_duration_and_envoys_hook_at_most_the_ready_timeout() {
    let admin = FakeAdmin::unix();
    let sidecar = start_as(NAMES[1], &admin, &["--ready-timeout=1s"]);
    let started = Instant::now();
    let waiter = sidecar.public().start_get(HOOK_PATHS[1]);
    wait_envoy_hooks(&sidecar, 1);
    let mut hook = sidecar.hook(&["--min-drain-duration=2500ms", "--exit-at-connections=3"]);
    wait_status(&sidecar, |status| {
        status.phase() == CHECK_DELAY && status.threshold_connections() == 3
    });
    admin.set_open(3);
    assert_eq!(waiter.response(), (500, NOT_READY_BODY));
    assert_took("Envoy's hook", started.elapsed(), 1.0..2.0);
    assert!(hook.running(), "the drain continues");
    sidecar.wait_log(READY_TIMEOUT_PASSED);
    assert_exits(&mut hook, 0, "drained: 3 open, within the threshold");
    assert_took("the drain", hook.wait().took, 2.5..4.0);
}

#[test]
fn a_hook_whose_drain_gives_up_exits_as_that_of_its_name_does() {
    for (name, code) in [(NAMES[0], 1), (NAMES[1], 0)] {
        let admin = FakeAdmin::unix();
        admin.set_open(1);
        let sidecar = start_as(name, &admin, &["--min-drain-duration=0s", "--drain-timeout=1s"]);
        assert_exits(&mut sidecar.hook(&[]), code, "gave up at the drain timeout");
    }
}
