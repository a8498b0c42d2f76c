//! Whose end it is: hooks that come late, and hooks of another Envoy.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::prelude::*;

#[test]
fn late_hooks_get_a_drain_of_their_own_when_the_end_no_longer_holds() {
    let envoy = envoy_with_tcp();
    let sidecar = Sidecar::beside(&envoy);
    assert_exits(&mut sidecar.hook(&[]), 0, NONE_OPEN);
    // A drain by hand, after which an operator restores Envoy and a client connects.
    restore(&envoy);
    let client = connect(&envoy);
    let hooks = PreStopHooks::start(&sidecar, false, Duration::ZERO);
    wait_status(&sidecar, |status| status.drain() == 2 && status.open_connections() == Some(1));
    hooks.assert_wait_for(&sidecar, &envoy, client);
    // Also where Envoy was left out of service, and a client has connected since.
    let client = connect(&envoy);
    let hooks = PreStopHooks::start(&sidecar, true, Duration::ZERO);
    hooks.assert_wait_for(&sidecar, &envoy, client);
}

#[test]
fn an_envoy_that_was_gone_and_is_back_is_drained() {
    let mut envoy = envoy_with_tcp();
    let sidecar = Sidecar::beside(&envoy);
    // Where nothing has ever responded, nothing that refuses is Envoy's end.
    sidecar.wait_log(ENVOY_RESPONDS);
    envoy.kill();
    assert_exits(&mut sidecar.hook(&[]), 0, ENVOY_IS_GONE);
    // Still gone: at once.
    let mut again = sidecar.hook(&[]);
    assert_exits(&mut again, 0, ENVOY_IS_GONE);
    assert_took("the second", again.wait().took, 0.0..1.0);
    envoy.restart();
    assert_pod_drains(&sidecar, &envoy);
}

#[test]
fn a_drain_that_gave_up_ends_no_later_one() {
    let envoy = envoy_with_tcp();
    let client = connect(&envoy);
    let sidecar = Sidecar::builder().beside(&envoy).start();
    assert_exits(&mut sidecar.hook(&["--drain-timeout=200ms"]), 1, "gave up");
    // The hooks of the deletion.
    let hooks = PreStopHooks::start(&sidecar, false, Duration::ZERO);
    hooks.assert_wait_for(&sidecar, &envoy, client);
}

#[test]
fn a_hook_for_another_envoy_is_refused_and_its_envoy_left_alone() {
    let (own, other) = (FakeAdmin::unix(), FakeAdmin::unix());
    let sidecar = Sidecar::beside(&own);
    let other_address = format!("--admin-address={}", other.admin_address());
    let refused = |sidecar: &Sidecar| {
        let mut hook = sidecar.hook(&[&other_address]);
        assert_exits(&mut hook, 3, &own.admin_address());
    };
    refused(&sidecar);
    sidecar.wait_log(
        logged(DRAIN_OF_OTHER_ENVOY_REFUSED)
            .with("level", "warn")
            .with("admin_address", own.admin_address()),
    );
    // Nor does it join the drain of the right one.
    let mut hook = start_drain(&sidecar, &own);
    refused(&sidecar);
    finish_drain(&own, &mut hook);
    let (asked, failed) = (other.requests().len(), own.count(Route::Fail));
    assert_eq!((asked, failed), (0, 1), "requests to the other Envoy, and drains of its own");
}

#[test]
fn envoys_hook_that_comes_late_is_answered_only_while_no_client_is_connected() {
    let envoy = envoy_with_tcp();
    // Longer than the 2 s between two checks of an outcome, or the check and the timeout would race.
    let sidecar = Sidecar::builder().beside(&envoy).arg("--start-timeout=3s").start();
    let public = sidecar.public();
    assert_exits(&mut sidecar.hook(&[]), 0, NONE_OPEN);
    let sent = Instant::now();
    assert_eq!(public.get(HOOK_PATHS[0]), OK, "the outcome holds, since none is connected");
    assert_took("while none is", sent.elapsed(), 0.0..1.0);
    // Envoy still takes connections, and this client would be cut.
    let client = connect(&envoy);
    let sent = Instant::now();
    let refused = (503, NO_DRAIN_BODY);
    assert_eq!(public.get(HOOK_PATHS[0]), refused, "a client is connected and would be cut");
    assert_took("while one is", sent.elapsed(), 3.0..5.0);
    assert!(client.echoes(), "the client was cut");
    assert_eq!((envoy.ready().as_str(), sidecar.status().drain()), ("DRAINING", 1));
}

/// Two Envoys and their sidecars in a pod whose containers share their processes and `/dev/shm`.
#[test]
fn a_hook_whose_own_sidecar_is_down_drains_no_other_envoy_of_the_pod() {
    if !can_unshare("--mount") {
        return;
    }
    let (own, other) = (Envoy::builder().admin_tcp_v4().tcp("tcp").start(), FakeAdmin::tcp());
    let proxy = AdminProxy::tcp(own.admin());
    let shm = "mount -t tmpfs tmpfs /dev/shm && exec \"$@\"";
    let others = format!("--admin-address={}", other.admin_address());
    let sidecar = run_under(
        &["unshare", "--mount", "sh", "-c", shm, "sh"],
        &["shutdown-manager", "--check-interval=50ms", "--check-delay=0s", &others],
    );
    sidecar.wait_log(STARTED);
    let namespace = format!("--mount=/proc/{}/ns/mnt", sidecar.pid());
    let beside = |args: &[&str]| run_under(&["nsenter", &namespace, "--"], args);
    // The second one cannot have the same socket. Its hook finds the first one's.
    let address = format!("--admin-address={}", proxy.admin_address());
    let exit = beside(&["shutdown-manager", &address]).wait();
    assert_eq!(exit.code, Some(1), "{exit:?}");
    let started = proxy.requests().len();
    let exit = beside(&["shutdown", &address]).wait();
    assert_eq!((exit.code, exit.output.lines().count()), (Some(3), 1), "{exit:?}");
    for words in [other.admin_address(), proxy.admin_address(), "--control-socket".to_owned()] {
        assert!(exit.output.contains(&words), "no {words:?} in {exit:?}");
    }
    sidecar.wait_log(logged(DRAIN_OF_OTHER_ENVOY_REFUSED).with("level", "warn"));
    assert_eq!((proxy.requests().len(), own.ready().as_str()), (started, "LIVE"));
    let drained = (other.count(Route::Fail), other.state());
    assert_eq!(drained, (0, State::Live), "the other sidecar's Envoy was drained");
    // The hook of the first one is served, however its Envoy is spelled.
    assert_exits(&mut beside(&["shutdown", &others]), 0, NONE_OPEN);
    assert_eq!((other.count(Route::Fail), own.ready().as_str()), (1, "LIVE"));
}

/// As Contour's sidecar is started: its Envoy is the one at the default address.
#[test]
fn a_sidecar_that_was_told_no_address_and_has_seen_its_envoy_drains_no_other() {
    if !can_unshare("--mount") {
        return;
    }
    let (own, other, root) = (FakeAdmin::unix(), FakeAdmin::unix(), temp_dir("root"));
    let folder = own.admin_address();
    let folder = Path::new(&folder).parent().expect("a folder").display().to_string();
    // The machine's own folders, and `/admin` besides.
    let script = format!(
        "set -e; cd '{}'; mount -t tmpfs tmpfs .; cd \"$PWD\"
         for folder in /*; do
             if [ -d \"$folder\" ] && [ ! -L \"$folder\" ]; then
                 mkdir \".$folder\"; mount --rbind \"$folder\" \".$folder\"
             elif [ -L \"$folder\" ]; then
                 cp -P \"$folder\" .
             fi
         done
         mkdir -p admin; mount --bind '{folder}' admin
         exec chroot . \"$@\"",
        root.path().display()
    );
    let sidecar =
        Sidecar::builder().under(["unshare", "--mount", "sh", "-c", &script, "sh"]).start();
    let address = "/admin/admin.sock";
    sidecar.wait_log(ENVOY_RESPONDS);
    let refused = sidecar.hook(&[&format!("--admin-address={}", other.admin_address())]).wait();
    assert!(refused.code == Some(3) && refused.output.contains(address), "{refused:?}");
    let (asked, failed) = (other.requests().len(), own.count(Route::Fail));
    assert_eq!((asked, failed), (0, 0), "requests to the other Envoy, and drains of its own");
    assert_exits(&mut sidecar.hook(&[]), 0, NONE_OPEN);
    let (asked, failed) = (other.requests().len(), own.count(Route::Fail));
    assert_eq!((asked, failed), (0, 1), "requests to the other Envoy, and drains of its own");
}
