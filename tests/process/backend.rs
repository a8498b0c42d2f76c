//! The backend, behind both listeners: when it ends, no client loses its response.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::prelude::*;

const HEALTHZ: &str = "GET /healthz HTTP/1.1\r\n\r\n";

/// Sets how many descriptors a process may have.
#[track_caller]
fn limit(sidecar: &Sidecar, descriptors: u64) {
    let set = Command::new("prlimit")
        .arg(format!("--pid={}", sidecar.pid()))
        .arg(format!("--nofile={descriptors}:"))
        .output();
    let output = set.expect("run prlimit");
    assert!(output.status.success(), "{output:?}");
}

/// The limit that leaves it this many more.
fn limit_for(sidecar: &Sidecar, more: usize) -> u64 {
    let names = fs::read_dir(format!("/proc/{}/fd", sidecar.pid())).expect("its descriptors");
    let used: Vec<u64> =
        names.filter_map(|name| name.expect("one").file_name().to_str()?.parse().ok()).collect();
    let free = (0..).filter(|number| !used.contains(number));
    free.take(more).last().map_or(0, |last| last + 1)
}

fn replaced(sidecar: &Sidecar) -> usize {
    sidecar.times_logged(BACKEND_ENDED)
}

/// Waits until no response is being sent, which takes descriptors.
#[track_caller]
fn wait_for_descriptors(sidecar: &Sidecar) {
    let mut last = 0;
    wait_until("the descriptors to stay the same", || {
        let before = std::mem::replace(&mut last, sidecar.fds());
        before == last
    });
}

#[test]
fn a_backend_that_has_ended_is_replaced_and_no_client_loses_its_response() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        println!("SKIPPED: no prlimit here");
        return;
    }
    let admin = FakeAdmin::unix();
    let mut sidecar = Sidecar::builder().beside(&admin).arg("--start-timeout=1h").start();
    let public = sidecar.public();
    sidecar.wait_log(ENVOY_RESPONDS);
    let waiters = [public.start_get("/shutdown"), public.at_host(2).start_get("/shutdown")];
    let inside = sidecar.control().start_get("/shutdown");
    wait_envoy_hooks(&sidecar, 3);
    // A probe takes one descriptor at the listener, one on the way to the backend and two behind it,
    // one of which the kernel reserved before: where it is refused depends on how many are left.
    let started = Instant::now();
    // Once more from the start where no backend has ended on the way up, which happens.
    for more in (1..=8).cycle() {
        assert!(started.elapsed() < 4 * PATIENCE, "no backend has ended");
        wait_for_descriptors(&sidecar);
        let before = replaced(&sidecar);
        limit(&sidecar, limit_for(&sidecar, more));
        let probe = public.send(HEALTHZ);
        // With too few for it to reach the backend nothing happens at all.
        let _happened = try_wait_for(Duration::from_secs(1), || {
            (replaced(&sidecar) > before || !probe.is_waiting()).then_some(())
        });
        limit(&sidecar, 1024);
        let lifted = Instant::now();
        assert_eq!(probe.only_response().body, "OK");
        let (took, ended) = (lifted.elapsed(), replaced(&sidecar) - before);
        println!("{more} left: replaced {ended} times; the response came after {took:?}");
        // A kubelet waits this long for a probe.
        assert_took("the response", took, 0.0..1.0);
        assert_eq!(public.send(HEALTHZ).only_response().body, "OK");
        assert_eq!(sidecar.control().get("/healthz").body, "OK");
        if ended == 0 && replaced(&sidecar) > 0 {
            break;
        }
    }
    sidecar.expects_panics();
    assert!(waiters.iter().all(Connection::is_waiting) && inside.is_waiting());
    let mut hook = start_drain(&sidecar, &admin);
    assert!(waiters.iter().all(Connection::is_waiting) && inside.is_waiting());
    finish_drain(&admin, &mut hook);
    assert!(waiters.iter().all(|waiter| waiter.only_response().body == "OK"));
    assert_eq!(inside.response().body, "OK");
    assert_eq!(admin.count(Route::Fail), 1);
}

#[test]
fn a_backend_whose_socket_was_removed_is_replaced() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let path = sidecar.control_socket().with_added_extension("server");
    fs::remove_file(&path).expect("remove");
    assert_eq!(sidecar.public().send(HEALTHZ).only_response().body, "OK");
    wait_value("another backend", || replaced(&sidecar), |n| *n == 1);
    assert_exits(&mut sidecar.hook(&[]), 0, "drained");
}
