//! The way to the backend, behind both listeners: it needs no descriptor for a request, is reached by no
//! other process, and what it loses comes again.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

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

#[test]
fn a_request_to_the_backend_takes_no_descriptor() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        println!("SKIPPED: no prlimit here");
        return;
    }
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let public = sidecar.public();
    sidecar.wait_log(ENVOY_RESPONDS);
    resources_at_rest(&sidecar);
    // One for the client's connection, one to find out that no other client is there, and none more.
    limit(&sidecar, limit_for(&sidecar, 2));
    for _ in 0..100 {
        assert_eq!(public.send(HEALTHZ).only_response().body, "OK");
    }
    limit(&sidecar, 1024);
    sidecar.assert_not_logged(ACCEPT_FAILED);
    sidecar.assert_not_logged(BACKEND_NOT_RESPONDING);
}

#[test]
fn nothing_is_on_disk_but_the_control_socket() {
    let admin = FakeAdmin::unix();
    let mut sidecar = Sidecar::beside(&admin);
    let folder = sidecar.control_socket().parent().expect("a folder").to_owned();
    let names = || {
        let entries = fs::read_dir(&folder).expect("read the folder");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        names.map(|name| name.into_string().expect("UTF-8")).collect::<Vec<_>>()
    };
    let own = sidecar.control_socket().file_name().expect("a name").to_string_lossy().into_owned();
    assert_eq!(sidecar.public().get("/healthz").body, "OK");
    assert_eq!(names().iter().filter(|name| name.starts_with(&own)).count(), 1, "{:?}", names());
    assert_stops(&mut sidecar);
    assert!(!names().iter().any(|name| name.starts_with(&own)), "{:?}", names());
}

#[test]
fn a_sidecar_that_was_frozen_responds_when_it_thaws() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let waiter = sidecar.public().start_get("/shutdown");
    wait_envoy_hooks(&sidecar, 1);
    // Longer than the backend may take for a response. The freeze itself is what is tested.
    for _ in 0..3 {
        let probes: Vec<_> = (0..20).map(|_| sidecar.public().send(HEALTHZ)).collect();
        sidecar.signal(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(600));
        sidecar.signal(Signal::SIGCONT);
        assert!(probes.iter().all(|probe| probe.only_response().body == "OK"));
    }
    assert!(waiter.is_waiting());
    let mut hook = start_drain(&sidecar, &admin);
    finish_drain(&admin, &mut hook);
    assert_eq!(waiter.only_response().body, "OK");
}

#[test]
fn clients_that_wait_take_no_thread() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    sidecar.wait_log(ENVOY_RESPONDS);
    let (threads, _) = resources_at_rest(&sidecar);
    let waiters: Vec<_> = (0..20).map(|_| sidecar.public().start_get("/shutdown")).collect();
    wait_envoy_hooks(&sidecar, 20);
    let mut hooks = [start_drain(&sidecar, &admin), sidecar.hook(&[])];
    sidecar.wait_log(DRAIN_JOINED);
    let now = sidecar.threads();
    assert!(now <= threads, "{now} threads with 20 waiters and two hooks, {threads} before");
    finish_drain(&admin, &mut hooks[0]);
    assert_exits(&mut hooks[1], 0, NONE_OPEN);
    assert!(waiters.iter().all(|waiter| waiter.only_response().body == "OK"));
}
