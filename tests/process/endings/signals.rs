//! Signals that start a drain, and that come in one.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::prelude::*;

#[test]
fn a_signal_while_envoys_hook_waits_starts_a_drain() {
    for (option, signal) in [
        ("--check-delay=0s", Signal::SIGTERM),
        ("--require-envoy-hook", Signal::SIGTERM),
        ("--check-delay=0s", Signal::SIGINT),
    ] {
        let envoy = envoy_with_tcp();
        let mut sidecar = Sidecar::builder().beside(&envoy).arg(option).start();
        let client = connect(&envoy);
        // No exec hook comes: it is missing in the manifest.
        let waiter = sidecar.public().start_get(HOOK_PATHS[0]);
        wait_envoy_hooks(&sidecar, 1);
        sidecar.signal(signal);
        wait_open_connections(&sidecar, 1);
        assert!(waiter.is_waiting());
        assert_eq!(envoy.ready(), "DRAINING");
        sidecar.wait_log(logged(STARTED_BY_SIGNAL).with("level", "warn"));
        drop(client);
        assert_eq!(waiter.response(), OK);
        assert_eq!(sidecar.wait().code, Some(0));
        assert_logged(
            &sidecar,
            &[logged(STARTED_BY_SIGNAL), logged(DRAIN_STARTED), outcome("drained")],
        );
    }
}

#[test]
fn a_second_signal_ends_the_drain_that_the_first_one_started() {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let (_envoy, mut sidecar, _client) = pod();
        let _waiter = sidecar.public().start_get(HOOK_PATHS[0]);
        wait_envoy_hooks(&sidecar, 1);
        sidecar.signal(signal);
        wait_open_connections(&sidecar, 1);
        sidecar.signal(signal);
        assert_eq!(sidecar.wait().code, Some(code));
    }
}

#[test]
fn envoys_hook_that_comes_a_moment_after_the_signal_is_drained_too() {
    let envoy = envoy_with_tcp();
    let mut sidecar = Sidecar::beside(&envoy);
    let (public, client) = (sidecar.public(), connect(&envoy));
    sidecar.signal(Signal::SIGTERM);
    // As far behind the signal as the kubelet's hooks may be apart, which is the time that is tested.
    thread::sleep(Duration::from_millis(80));
    let waiter = public.start_get(HOOK_PATHS[0]);
    wait_open_connections(&sidecar, 1);
    drop(client);
    assert_eq!(waiter.response(), OK);
    assert_eq!(sidecar.wait().code, Some(0));
}

#[test]
fn a_drain_goes_on_after_a_signal_while_envoy_runs() {
    let (envoy, mut sidecar, client) = pod();
    let mut hooks = PreStopHooks::start_and_wait(&sidecar, &envoy);
    hooks.exec.kill();
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_log(stop_requested(Signal::SIGTERM, WAITING_FOR_CONNECTIONS));
    wait_open_connections(&sidecar, 1);
    assert!(hooks.envoy.is_waiting());
    drop(client);
    assert_eq!(hooks.envoy.response(), OK);
    assert_eq!(sidecar.wait().code, Some(0));
}

#[test]
fn the_exec_hook_that_comes_a_moment_after_the_signal_is_drained_too() {
    let (envoy, mut sidecar, client) = pod();
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_log(stop_requested(Signal::SIGTERM, IDLE));
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    // Envoy's own hook waits for the same end.
    let waiter = sidecar.control().start_get("/shutdown");
    wait_envoy_hooks(&sidecar, 1);
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert_eq!(waiter.response(), OK);
    assert_eq!(sidecar.wait().code, Some(0));
    sidecar.assert_not_logged(STARTED_BY_SIGNAL);
}

#[test]
fn nothing_from_the_network_starts_a_drain_that_a_signal_would() {
    let envoy = envoy_with_tcp();
    let proxy = AdminProxy::unix(envoy.admin());
    let mut sidecar = Sidecar::builder().beside(&proxy).arg(NO_START_TIMEOUT).start();
    sidecar.wait_log(ENVOY_RESPONDS);
    let (public, client) = (sidecar.public(), connect(&envoy));
    let waiters: Vec<_> = (0..40).map(|n| public.start_get(HOOK_PATHS[n % 2])).collect();
    wait_envoy_hooks(&sidecar, 40);
    for round in 0..5 {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "SIGTERM"] {
            for path in PATHS.into_iter().chain(["/", "/shutdown/ready?drain=1", "/signal/15"]) {
                let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
                let request = public.send(request);
                request.half_close();
                assert!(request.peer_closed_within(PATIENCE), "{round}: {method} {path}");
            }
        }
    }
    assert!(waiters.iter().all(Connection::is_waiting));
    assert!(sidecar.status().is_before_the_first_drain());
    let posts = || proxy.requests().iter().filter(|(_, line)| !line.starts_with("GET ")).count();
    assert_eq!((posts(), envoy.ready().as_str()), (0, "LIVE"));
    // When they have left, the signal finds nothing to do.
    drop(waiters);
    wait_envoy_hooks(&sidecar, 0);
    assert_stops(&mut sidecar);
    assert!(client.echoes());
    assert_eq!((posts(), envoy.ready().as_str()), (0, "LIVE"));
}
