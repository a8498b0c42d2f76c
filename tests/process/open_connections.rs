//! What a drain of a real Envoy waits for: by kind, listener and prefix, in status, metrics and log; and
//! Envoy's own state beside it.

use std::time::Duration;

use serde_json::json;

use crate::support::prelude::*;

#[test]
fn a_drain_names_what_it_waits_for_and_what_was_open_at_its_end() {
    let envoy = Envoy::builder().http("web").tcp("tcp").tls_inspector("tls").start();
    let sidecar = Sidecar::builder().beside(&envoy).arg("--drain-timeout=1h").start();
    sidecar.wait_log(ENVOY_RESPONDS);
    let web = envoy.port("web");
    let _http = [KeptAlive::open(web), KeptAlive::open(web)];
    let _upgraded = connect_tunnel(web);
    let _tcp = connect(&envoy);
    let _silent = Connection::open(envoy.port("tls"));
    envoy.wait_stat("listener.tls.downstream_pre_cx_active", 1);
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 5);
    // One that comes while Envoy is out of service.
    wait_status(&sidecar, |status| status.get("new_connections") == &json!(0));
    let _late = connect(&envoy);
    let status = wait_status(&sidecar, |status| {
        status.open_connections() == Some(6) && status.get("new_connections") == &json!(1)
    });
    let kinds = json!({"http": 2, "upgraded": 1, "tcp": 2, "silent": 1, "parent": 0});
    assert_eq!(status.get("connections_by_kind"), &kinds);
    let listeners = json!([
        {"listener": "web", "open_connections": 3},
        {"listener": "tcp", "open_connections": 2},
        {"listener": "tls", "open_connections": 1},
    ]);
    assert_eq!(status.get("listeners"), &listeners);
    assert_eq!(status.get("http_prefixes"), &json!([{"prefix": "web", "open_connections": 3}]));
    assert_eq!(status.get("requests_in_flight"), &json!(1), "the stream of the upgraded one");
    assert_eq!(status.get("next_step"), &json!("poll"));
    let left = status.get("gives_up_in_seconds").as_f64().expect("a time");
    assert!((0.0..=3600.0).contains(&left), "{left}");
    assert!(status.get("new_connection_noticed_seconds_ago").is_number());
    assert_eq!(sidecar.metric("listener_open_connections{listener=\"web\"}"), 3);
    assert_eq!(sidecar.metric("kind_open_connections{kind=\"silent\"}"), 1);
    assert_exits(&mut sidecar.run(&["release"]), 0, "released by an operator: 6 open");
    assert_exits(&mut hook, 1, "released by an operator: 6 open");
    let open = outcome("released")
        .with("kinds", "2 http, 1 upgraded, 2 tcp, 1 silent")
        .with("listeners", "web 3, tcp 2, tls 1")
        .with("http_prefixes", "web 3")
        .with("new_connections", 1);
    assert_logged(&sidecar, &[counted(5).with("listeners", "web 3, tcp 1, tls 1"), open]);
}

#[test]
fn envoys_own_state_is_shown_as_it_is_when_someone_looks() {
    let mut envoy = Envoy::builder().http("web").start();
    let sidecar = Sidecar::beside(&envoy);
    sidecar.wait_log(ENVOY_RESPONDS);
    let shows = |state: &str| {
        let status = wait_status(&sidecar, |status| status.envoy().0 == state);
        let (_, age) = status.envoy();
        assert!(age.is_some_and(|age| age < 60.0), "{age:?}");
        assert_eq!(sidecar.metric(&format!("envoy_state{{state=\"{state}\"}}")), 1);
    };
    shows("live");
    assert_eq!(envoy.post("/healthcheck/fail").status, 200);
    shows("draining");
    let exit = sidecar.run(&["status"]).wait();
    assert!(
        exit.output.contains("DRAINING: out of service with no drain; see restore"),
        "{exit:?}"
    );
    envoy.kill();
    shows("not_responding");
    let exit = sidecar.run(&["status"]).wait();
    assert!(exit.output.contains("does not respond (at "), "{exit:?}");
    envoy.restart();
    shows("live");
}

#[test]
fn an_envoy_that_was_never_seen_is_said_to_be() {
    let sidecar = Sidecar::builder().admin("/nonexistent/admin.sock").start();
    let status = wait_status(&sidecar, |status| status.envoy().1.is_some());
    assert_eq!(status.envoy().0, "never_seen");
    assert_eq!(sidecar.metric("envoy_state{state=\"never_seen\"}"), 1);
}

#[test]
fn a_count_has_its_age_after_envoy_has_died_with_a_connection() {
    let mut envoy = envoy_with_tcp();
    let sidecar = Sidecar::beside(&envoy);
    let _client = connect(&envoy);
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    envoy.kill();
    assert_exits(&mut hook, 0, "1 open at the last poll");
    let status = sidecar.status();
    assert_eq!((status.phase(), status.open_connections()), (ENDED, Some(1)));
    let age = status.get("open_connections_age_seconds").as_f64().expect("an age");
    assert!(age >= 2.0, "three refusals, a second apart: {age}");
}

#[test]
fn idle_connections_and_those_of_probes_are_hinted_at_once() {
    let envoy = Envoy::builder().http("my_health").start();
    let sidecar = Sidecar::builder().beside(&envoy).arg("--check-interval=1s").start();
    let client = KeptAlive::open(envoy.port("my_health"));
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    sidecar.wait_log(logged(HINT_IDLE_CONNECTIONS).with("idle", 1));
    sidecar.wait_log(logged(HINT_PROBES).with("option", "--exclude=my_health"));
    // Where a poll took no longer than a tenth of the interval.
    if sidecar.metric("poll_duration_seconds_bucket{le=\"0.1\"}") == sidecar.metric("polls_total") {
        sidecar.assert_not_logged(HINT_SLOW_POLL);
    }
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    let took = hook.wait().took;
    assert!(took >= Duration::from_secs(15), "{took:?}");
}

#[test]
fn an_admin_interface_that_is_read_only_is_hinted_at() {
    let envoy = Envoy::builder().tcp("tcp").read_only_admin().start();
    let sidecar = Sidecar::beside(&envoy);
    sidecar.wait_log(ENVOY_RESPONDS);
    let mut hook = sidecar.hook(&[]);
    sidecar.wait_log(logged(ENVOY_CALL_FAILED).with("hint", HINT_READ_ONLY));
    hook.assert_running();
    assert_eq!(envoy.ready(), "LIVE");
}

#[test]
fn an_envoy_whose_polls_take_long_is_hinted_at_once() {
    // On a fast machine a poll of it takes some 10 ms, a fifth of the check interval of tests.
    let envoy = Envoy::builder().clusters(4_000).tcp("tcp").start();
    let sidecar = Sidecar::beside(&envoy);
    let client = connect(&envoy);
    let mut hook = sidecar.hook(&[]);
    sidecar.wait_log(logged(HINT_SLOW_POLL).with("check_interval", "50ms"));
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert_eq!(sidecar.times_logged(HINT_SLOW_POLL), 1);
}

#[test]
fn a_status_in_a_delay_shows_what_is_open() {
    let envoy = envoy_with_tcp();
    let sidecar = Sidecar::builder().beside(&envoy).arg("--check-delay=1h").start();
    let first = connect(&envoy);
    let mut hook = sidecar.hook(&[]);
    let status = wait_status(&sidecar, |status| status.open_connections() == Some(1));
    assert_eq!(status.phase(), CHECK_DELAY);
    assert_eq!(status.get("next_step"), &json!("first_poll"));
    let second = connect(&envoy);
    wait_status(&sidecar, |status| status.open_connections() == Some(2));
    drop((first, second));
    wait_status(&sidecar, |status| status.open_connections() == Some(0));
    hook.assert_running();
    assert_exits(&mut sidecar.run(&["release"]), 0, "released by an operator: 0 open");
    assert_exits(&mut hook, 1, "released");
}
