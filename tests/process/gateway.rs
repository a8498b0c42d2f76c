//! The name `envoy-gateway`, the options that its manifests give, and listeners that drain.

use std::time::{Duration, Instant};

use crate::support::admin::{FakeAdmin, Fault, Route};
use crate::support::clients::{Http2, KeptAlive};
use crate::support::envoy::Envoy;
use crate::support::pod::{DRAINED, PATHS, ask, ok, wait_waiting};
use crate::support::scene::{Waiter, assert_ends, assert_told, wait_open, wait_status};
use crate::support::sidecar::Sidecar;
use crate::support::{PATIENCE, assert_took, shared, wait_for};

const NAMES: [&str; 2] = ["contour", "envoy-gateway"];

const QUICK: [&str; 3] = ["--check-interval=50ms", "--check-delay=0s", "--min-drain-duration=0s"];

const LISTENERS_DRAIN: &str = "msg=\"Envoy's listeners drain, which nothing but its restart";

/// A quick sidecar that is started by this name.
#[track_caller]
fn named(name: &str, admin: &str, args: &[&str]) -> Sidecar {
    let admin = format!("--admin-address={admin}");
    Sidecar::launch().named(name).args(&QUICK).args(&[&admin]).args(args).start()
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
    let _turn = shared();
    for (name, defaults) in [
        (
            NAMES[0],
            "check_interval=5s check_delay=1m min_drain_duration=0s min_open_connections=0 \
             drain_delay=0s health_check_failure_delay=0s drain_timeout=none drain_listeners=off \
             require_envoy_hook=off admin_address=/admin/admin.sock ready_file=none",
        ),
        (
            NAMES[1],
            "check_interval=1s check_delay=0s min_drain_duration=10s min_open_connections=0 \
             drain_delay=0s health_check_failure_delay=0s drain_timeout=1m drain_listeners=off \
             require_envoy_hook=off admin_address=localhost:19000 ready_file=none",
        ),
    ] {
        let sidecar = Sidecar::launch().named(name).start();
        sidecar.wait_log(defaults, PATIENCE);
        let patience = [("contour", "none"), ("envoy-gateway", "10m10s")];
        let (_, ready) = patience.into_iter().find(|(other, _)| *other == name).expect("a name");
        sidecar.wait_log(&format!(" ready-timeout={ready} "), PATIENCE);
    }
}

#[test]
fn listeners_that_take_no_notice_of_health_checks_drain_when_they_are_told_to() {
    let _turn = shared();
    for (name, args) in [
        (NAMES[0], &[][..]),
        (NAMES[0], &["--drain-listeners"]),
        (NAMES[1], &["--drain-listeners"]),
    ] {
        let builder = Envoy::builder().http("http").http_modify_only("stubborn");
        let envoy = builder.flag("--drain-strategy").flag("immediate").start();
        let sidecar = named(name, &envoy.admin_address(), args);
        let http = KeptAlive::open(envoy.port("http"));
        let mut stubborn = Http2::open(envoy.port("stubborn"));
        let waiter = Waiter::outside(sidecar.port(), PATHS[1]);
        wait_waiting(&sidecar, 1);
        let mut hook = sidecar.hook(&[]);
        wait_open(&sidecar, 2);
        assert_eq!(envoy.ready(), "DRAINING");
        assert_eq!(http.request("/").header("connection"), Some("close"), "{args:?}");
        assert!(http.peer_closed_within(PATIENCE));
        if args.is_empty() {
            wait_open(&sidecar, 1);
            for _ in 0..5 {
                assert!(!stubborn.request(), "it is told to leave, though nobody asked for that");
            }
            assert!(hook.running());
            drop(stubborn);
        } else {
            assert_told(&sidecar, &["health checks failed", LISTENERS_DRAIN]);
            wait_for("the client to be told to leave", PATIENCE, || {
                stubborn.request().then_some(())
            });
            assert!(stubborn.peer_closed_within(PATIENCE));
        }
        assert_ends(&mut hook, 0, DRAINED);
        assert_eq!(waiter.answer(), ok());
    }
}

#[test]
fn what_cannot_be_taken_back_is_done_only_while_envoys_own_hook_waits() {
    let _turn = shared();
    for name in NAMES {
        for (option, both) in [
            ("--drain-listeners", [FAIL, LISTENERS]),
            ("--health-check-failure-delay=300ms", [LISTENERS, FAIL]),
        ] {
            let admin = FakeAdmin::unix();
            let sidecar = named(name, &admin.address(), &[]);
            admin.set_open(1);
            let mut hook = sidecar.hook(&[option]);
            wait_open(&sidecar, 1);
            sidecar.wait_log("listeners=\"not told to drain, which could not be taken", PATIENCE);
            assert_eq!(posts(&admin), [FAIL], "{name} {option}");
            // It comes late, in the middle of the drain.
            let waiter = Waiter::outside(sidecar.port(), PATHS[0]);
            admin.wait_for(Route::Listeners, 1, PATIENCE);
            sidecar.wait_log(LISTENERS_DRAIN, PATIENCE);
            admin.set_open(0);
            assert_ends(&mut hook, 0, DRAINED);
            assert_eq!(waiter.answer(), ok());
            assert_eq!(posts(&admin), [FAIL, LISTENERS], "{name} {option}");

            let admin = FakeAdmin::unix();
            let sidecar = named(name, &admin.address(), &[option]);
            let waiter = Waiter::outside(sidecar.port(), PATHS[0]);
            wait_waiting(&sidecar, 1);
            let mut hook = sidecar.hook(&[]);
            assert_ends(&mut hook, 0, DRAINED);
            assert_eq!(waiter.answer(), ok());
            assert_eq!(posts(&admin), both, "{name} {option}");
            if both[1] == FAIL {
                // What is heard late makes the time behind it shorter.
                let (first, then) = (
                    admin.wait_for(Route::Listeners, 1, PATIENCE),
                    admin.wait_for(Route::Fail, 1, PATIENCE),
                );
                assert_took("the failure delay", then - first, 0.1..1.0);
            }
        }
    }
}

#[test]
fn an_envoy_whose_listeners_cannot_be_told_to_drain_is_drained_all_the_same() {
    let _turn = shared();
    for fault in [Fault::Status(404), Fault::Close, Fault::Silent] {
        let admin = FakeAdmin::unix();
        admin.fault(Route::Listeners, fault.clone());
        let sidecar = named(NAMES[0], &admin.address(), &["--drain-listeners"]);
        let waiter = Waiter::outside(sidecar.port(), PATHS[0]);
        wait_waiting(&sidecar, 1);
        let mut hook = sidecar.hook(&[]);
        assert_ends(&mut hook, 0, DRAINED);
        assert_eq!(waiter.answer(), ok());
        assert_told(&sidecar, &["POST /drain_listeners on ", "outcome=drained"]);
        let metrics = ask(sidecar.port(), "GET", "/metrics").1;
        let errors = metrics.lines().filter(|line| line.contains("poll_errors_total{"));
        assert!(errors.clone().all(|line| line.ends_with(" 0")), "{fault:?}: {metrics}");
    }
}

#[test]
fn a_drain_lasts_for_its_shortest_duration_and_envoys_hook_no_longer_than_it_may() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = named(NAMES[1], &admin.address(), &["--ready-timeout=400ms"]);
    let begun = Instant::now();
    let waiter = Waiter::outside(sidecar.port(), PATHS[1]);
    wait_waiting(&sidecar, 1);
    let mut hook = sidecar.hook(&["--min-drain-duration=1500ms", "--exit-at-connections=3"]);
    wait_status(&sidecar, &["\"phase\":\"settling\"", "\"threshold\":3,"]);
    admin.set_open(3);
    let late = (500, "the drain has not ended within the ready timeout\n".to_owned());
    assert_eq!(waiter.answer(), late);
    assert_took("Envoy's hook", begun.elapsed(), 0.4..1.4);
    assert!(hook.running(), "the drain goes on");
    sidecar.wait_log("has waited for the ready timeout and is let go", PATIENCE);
    assert_ends(&mut hook, 0, "drained: 3 open, within the threshold");
    assert_took("the drain", hook.wait(PATIENCE).took, 1.5..3.0);
    let polls = admin.requests().into_iter().filter(|(_, line)| line.starts_with("GET /stats"));
    let first = polls.map(|(at, _)| at).find(|at| *at > begun).expect("a poll");
    assert!(first - begun >= Duration::from_millis(1500));
}
