//! The commands `restore` and `release`, on a real Envoy.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::id;

use crate::support::prelude::*;

#[test]
fn an_envoy_that_no_drain_holds_is_back_in_service_after_restore() {
    let envoy = envoy_with_tcp();
    let sidecar = Sidecar::builder().beside(&envoy).arg("--no-restore").start();
    assert_exits(&mut sidecar.hook(&[]), 0, NONE_OPEN);
    assert_eq!(envoy.get("/ready"), (503, "DRAINING\n"));
    // After a drain by hand, within the time for which its outcome is kept.
    wait_phase(&sidecar, ENDED);
    assert_exits(&mut sidecar.run(&["restore"]), 0, "Envoy is back in service");
    assert_eq!(envoy.get("/ready"), (200, "LIVE\n"));
    assert_eq!(sidecar.status().phase(), IDLE);
    let requested = logged(RESTORE_REQUESTED).containing("by", "uid:");
    assert_logged(&sidecar, &[requested, logged(ENVOY_RESTORED_BY_REQUEST)]);
    // And one that another client took out of service.
    assert_eq!(envoy.post("/healthcheck/fail").status, 200);
    assert_exits(&mut sidecar.run(&["restore"]), 0, "Envoy is back in service");
    assert_eq!(envoy.get("/ready"), (200, "LIVE\n"));
    // The next drain is not affected.
    let client = connect(&envoy);
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
}

#[test]
fn restore_is_refused_in_a_drain_which_goes_on() {
    let (envoy, sidecar, client) = pod();
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    let sentence =
        "a drain is in progress (waiting_for_connections), which takes Envoy out of service";
    assert_exits(&mut sidecar.run(&["restore"]), 1, sentence);
    assert_eq!(envoy.get("/ready"), (503, "DRAINING\n"));
    sidecar.assert_not_logged(RESTORE_REQUESTED);
    hook.assert_running();
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
}

#[test]
fn restore_says_why_envoy_was_not_restored() {
    let mut admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    sidecar.wait_log(ENVOY_RESPONDS);
    admin.vanish();
    let mut restore = sidecar.run(&["restore"]);
    assert_exits(&mut restore, 1, "Envoy was not restored to service: POST /healthcheck/ok on ");
    sidecar.wait_log(logged(ENVOY_NOT_RESTORED_BY_REQUEST).containing("error", "no such socket"));
}

#[test]
fn restore_says_that_listeners_still_drain() {
    let (_envoy, sidecar, _client) = pod();
    let waiter = sidecar.control().start_get("/shutdown");
    let mut hook = sidecar.hook(&["--drain-listeners", "--min-open-connections=1"]);
    sidecar.wait_log(LISTENERS_DRAINING);
    assert_exits(&mut hook, 0, "drained");
    drop(waiter);
    assert_exits(&mut sidecar.run(&["restore"]), 0, "Envoy is back in service");
    let restored = logged(ENVOY_RESTORED_BY_REQUEST).with("hint", HINT_LISTENERS_STILL_DRAIN);
    sidecar.wait_log(restored);
}

#[test]
fn release_ends_a_drain_as_its_timeout_would() {
    let (envoy, sidecar, client) = pod();
    let mut hooks = PreStopHooks::start_and_wait(&sidecar, &envoy);
    let mut release = sidecar.run(&["release"]);
    assert_exits(&mut release, 0, "drain 1: released by an operator: 1 open at the last poll");
    assert_exits(&mut hooks.exec, 1, "released by an operator: 1 open");
    let response = hooks.envoy.response();
    assert!(response.status == 200 && response.body.starts_with("released"), "{response:?}");
    assert_eq!(sidecar.metric("drains_total{outcome=\"released\"}"), 1);
    let requested = logged(RELEASE_REQUESTED).containing("by", "uid:");
    let released = outcome("released").with("open_connections", 1).with("kinds", "1 tcp");
    assert_logged(&sidecar, &[requested, released]);
    assert!(client.echoes(), "nothing is cut by the sidecar itself");
    assert_exits(&mut sidecar.run(&["release"]), 1, "no drain is in progress");
}

#[test]
fn the_log_says_which_process_asked() {
    let (_envoy, sidecar, _client) = pod();
    let client = sidecar.control();
    // Whatever it says of itself.
    assert_eq!(client.post("/restore?by=uid:7,pid:7").status, 200);
    let user = fs::metadata("/proc/self").expect("this process").uid();
    let by = format!("uid:{user},pid:{}", id());
    sidecar.wait_log(logged(RESTORE_REQUESTED).with("by", by));
}

#[test]
fn neither_command_can_be_given_at_the_public_port() {
    let (envoy, sidecar, _client) = pod();
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    for path in ["/release", "/restore", "/release?by=x"] {
        let response = sidecar.public().post(path);
        assert_eq!(response.status, 404, "{path}: {response:?}");
    }
    hook.assert_running();
    assert_eq!(envoy.get("/ready"), (503, "DRAINING\n"));
}

#[test]
fn without_a_sidecar_both_say_so() {
    for command in ["restore", "release"] {
        let path = "/nonexistent/control.sock";
        let exit = run(&[command, "--control-socket", path]).wait();
        let sentence = format!("no sidecar could be reached: {path}: no such socket");
        assert_eq!((exit.code, exit.output.as_str()), (Some(3), sentence.as_str()));
    }
}
