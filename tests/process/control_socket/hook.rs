//! The hook as a client of the control socket.

use std::thread;
use std::time::{Duration, Instant};

use super::{assert_drain_can_start, assert_no_drain_started};
use crate::support::prelude::*;

#[test]
fn the_admin_address_of_a_hook_applies_to_its_drain() {
    let (right, wrong) = (FakeAdmin::unix(), FakeAdmin::unix());
    let sidecar = Sidecar::beside(&wrong);
    right.set_open(1);
    let mut hook = sidecar.hook(&["--admin-address", &right.admin_address()]);
    wait_open_connections(&sidecar, 1);
    assert_eq!(sidecar.status().admin_address(), right.admin_address());
    hook.assert_running();
    right.set_open(0);
    assert_exits(&mut hook, 0, "drained");
    assert_eq!((right.count(Route::Fail), wrong.count(Route::Fail)), (1, 0));
}

#[test]
fn a_hook_right_after_a_request_that_waits_drains() {
    for count in 0..8 {
        let admin = FakeAdmin::unix();
        let sidecar = Sidecar::beside(&admin);
        let waiters: Vec<_> =
            (0..count).map(|_| sidecar.control().start_get("/shutdown")).collect();
        wait_envoy_hooks(&sidecar, count);
        let last = sidecar.control().start_get("/shutdown");
        assert_exits(&mut sidecar.hook(&[]), 0, "drained");
        for waiter in waiters.iter().chain([&last]) {
            assert_eq!(waiter.response(), OK);
        }
    }
}

#[test]
fn a_hook_gives_up_on_a_frozen_sidecar_which_does_not_drain_when_it_thaws() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    freeze(&sidecar);
    let exit = sidecar.hook(&[]).wait();
    assert_eq!(exit.code, Some(3), "{exit:?}");
    assert_took("the hook", exit.took, 9.9..13.0);
    let sentence = "did not respond within 10s; it starts no drain when it wakes";
    assert!(exit.output.lines().count() == 1 && exit.output.contains(sentence), "{exit:?}");
    thaw(&sidecar);
    sidecar.wait_log(DRAIN_REQUEST_EXPIRED);
    assert_no_drain_started(&sidecar, &admin);
    assert_drain_can_start(&sidecar, &admin);
}

#[test]
fn a_hook_gives_up_on_a_frozen_sidecar_whose_backlog_is_full() {
    let small = "echo 8 > /proc/sys/net/core/somaxconn && exec \"$@\"";
    let small = ["unshare", "--net", "sh", "-c", small, "sh"];
    let tried = run_under(&small, &["--version"]).wait();
    if tried.code != Some(0) {
        println!("SKIPPED: no backlog can be made small here: {}", tried.output);
        return;
    }
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::builder().beside(&admin).under(small).start();
    freeze(&sidecar);
    let mut backlog = Vec::new();
    while let Ok(connection) = sidecar.control().try_connect() {
        backlog.push(connection);
        assert!(backlog.len() < 100, "the backlog does not get full");
    }
    let mut another = sidecar.run(&["shutdown-manager", "--admin-address=/none"]);
    let exit = sidecar.hook(&[]).wait();
    assert_eq!(exit.code, Some(3), "{exit:?}");
    assert_took("the hook", exit.took, 4.9..10.0);
    assert!(exit.output.starts_with("no sidecar could be reached: "), "{exit:?}");
    assert_exits(&mut another, 1, "another shutdown-manager listens at ");
    thaw(&sidecar);
    drop(backlog);
    let healthz = || sidecar.control().try_request("GET", "/healthz", PATIENCE).ok();
    wait_for("all of them to be accepted", healthz);
    assert_no_drain_started(&sidecar, &admin);
    assert_drain_can_start(&sidecar, &admin);
}

#[test]
fn a_sidecar_that_thaws_while_its_hook_still_waits_drains_once() {
    // Before and after the request has expired, which the hook then repeats.
    let rows = named([("soon", (1, false)), ("late", (5, true))]);
    for_each_case(rows, |name, (seconds, repeats)| {
        let admin = FakeAdmin::unix();
        admin.set_open(1);
        let sidecar = Sidecar::beside(&admin);
        freeze(&sidecar);
        let (start, mut hook) = (Instant::now(), sidecar.hook(&[]));
        // The time itself is what is tested.
        thread::sleep(Duration::from_secs(seconds));
        hook.assert_running();
        thaw(&sidecar);
        wait_open_connections(&sidecar, 1);
        assert_eq!(sidecar.status().drain(), 1);
        let seconds = seconds as f32;
        assert_took(name, start.elapsed(), seconds..seconds + 3.0);
        let expired = sidecar.times_logged(DRAIN_REQUEST_EXPIRED) > 0;
        assert_eq!(expired, repeats, "{name}: {}", sidecar.report());
        hook.assert_running();
        finish_drain(&admin, &mut hook);
        assert_eq!(admin.count(Route::Fail), 1, "{name}");
    });
}

#[test]
fn a_hook_that_comes_before_its_sidecar_waits_for_it() {
    let admin = FakeAdmin::unix();
    let dir = temp_dir("control");
    let path = dir.path().join("s");
    let mut hook = run(&["envoy", "shutdown", "--control-socket", path.to_str().expect("a path")]);
    // It tries every few milliseconds.
    wait_until("the hook to try", || hook.context_switches() > 5);
    hook.assert_running();
    admin.set_open(1);
    let sidecar = Sidecar::builder().beside(&admin).control_socket(&path).start();
    wait_open_connections(&sidecar, 1);
    hook.assert_running();
    finish_drain(&admin, &mut hook);
}

#[test]
fn without_a_sidecar_a_hook_ends_with_one_sentence() {
    let dir = temp_dir("control");
    let stale = dir.path().join("stale");
    leave_stale_socket(&stale, 0o600);
    let mut hooks =
        [("none", "no such socket"), ("stale", "nothing listens")].map(|(name, why)| {
            let path = dir.path().join(name).to_str().expect("a path").to_owned();
            let [hook, status] = ["shutdown", "status"]
                .map(|command| run(&[command, "--control-socket", path.as_str()]));
            (hook, status, format!("{path}: {why}"))
        });
    for (hook, status, why) in &mut hooks {
        for (process, expected) in [(hook, 4.9..8.0), (status, 0.0..3.0)] {
            let exit = process.wait();
            assert_eq!((exit.code, exit.output.lines().count()), (Some(3), 1), "{exit:?}");
            assert!(exit.output.starts_with("no sidecar could be reached: "), "{exit:?}");
            assert!(exit.output.contains(why.as_str()), "{exit:?}");
            assert_took(why, exit.took, expected);
        }
    }
    assert!(stale.exists(), "a hook removes nothing");
}
