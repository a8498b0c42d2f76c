//! An Envoy that is gone, or only seems so.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::prelude::*;

#[test]
fn nothing_is_gone_at_an_address_where_nothing_was_while_envoys_hook_waits() {
    let (envoy, folder) = (envoy_with_tcp(), temp_dir("moved"));
    let wrong = folder.path().join("admin.sock").display().to_string();
    let start = || Sidecar::builder().arg(format!("--admin-address={wrong}")).start();
    let (sidecar, alone) = (start(), start());
    let mut hooks = PreStopHooks::start(&sidecar, false, Duration::ZERO);
    // Without Envoy's hook it is as if Envoy had ended, which is a warning too.
    assert_exits(&mut alone.hook(&[]), 0, ENVOY_IS_GONE);
    alone.wait_log(outcome("envoy_gone").with("level", "warn").containing("hint", "never came"));
    let warned = logged(ENVOY_NEVER_RESPONDED).with("level", "warn");
    sidecar.wait_log(warned.clone().with("admin_address", &wrong));
    wait_error(&sidecar, FAILING_HEALTH_CHECKS, "no such socket");
    assert!(hooks.exec.running() && hooks.envoy.is_waiting());
    // When the address is right after all, it drains.
    std::os::unix::fs::symlink(envoy.admin_address(), &wrong).expect("a link");
    assert_exits(&mut hooks.exec, 0, NONE_OPEN);
    assert_eq!(hooks.envoy.arrived_response(), OK);
    sidecar.assert_times_logged(warned, 1);
}

#[test]
fn an_envoy_that_ends_before_it_was_drained_is_a_warning_with_what_was_cut() {
    for (hook_waits, option, hint) in [
        (true, "--check-delay=0s", HINT_CONNECTIONS_CUT),
        (false, "--check-delay=0s", HINT_ENVOY_STOPPED),
        (false, "--require-envoy-hook", HINT_ENVOY_STOPPED),
    ] {
        let mut envoy = envoy_with_tcp();
        let sidecar = Sidecar::builder().beside(&envoy).arg(option).start();
        let _client = connect(&envoy);
        let waiter = hook_waits.then(|| sidecar.public().start_get(HOOK_PATHS[0]));
        let mut hook = sidecar.hook(&[]);
        let open = if option == "--require-envoy-hook" {
            wait_phase(&sidecar, AWAITING_ENVOY_HOOK);
            None
        } else {
            wait_open_connections(&sidecar, 1);
            Some(1)
        };
        envoy.kill();
        let sentence = if open.is_some() { ENVOY_IS_GONE_WITH_ONE_OPEN } else { ENVOY_IS_GONE };
        assert_exits(&mut hook, 0, sentence);
        let mut record = outcome("envoy_gone").with("level", "warn").with("hint", hint);
        if let Some(open) = open {
            record = record.with("open_connections", open);
        }
        sidecar.wait_log(record);
        for opposite in [NO_ENVOY_HOOK, DRAINED] {
            sidecar.assert_not_logged(opposite);
        }
        drop(waiter);
    }
}

#[test]
fn the_end_of_the_grace_period_is_logged_with_what_was_cut() {
    let (mut envoy, mut sidecar, _client) = pod();
    let hooks = PreStopHooks::start_and_wait(&sidecar, &envoy);
    // The kubelet signals all containers, and kills what is left after 2 s.
    sidecar.signal(Signal::SIGTERM);
    envoy.signal(Signal::SIGTERM);
    let sent = Instant::now();
    let exit = sidecar.wait();
    assert_eq!(exit.code, Some(0));
    assert_took("its end", exit.at - sent, 0.0..2.0);
    let sentence = format!("{ENVOY_IS_GONE_WITH_ONE_OPEN}\n");
    assert_eq!(hooks.envoy.arrived_response(), (200, sentence));
    let record = outcome("envoy_gone").with("level", "warn").with("open_connections", 1);
    sidecar.wait_log(record.with("hint", HINT_CONNECTIONS_CUT));
    envoy.kill();
}
