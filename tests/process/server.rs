//! The sidecar's own server, behind its two doors: its end costs nobody an answer.

#![allow(clippy::expect_used, reason = "a step that fails is a test that fails")]

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::admin::{FakeAdmin, Route};
use crate::support::caller::Client;
use crate::support::scene::{Waiter, assert_ends, before, wait_status};
use crate::support::sidecar::Sidecar;
use crate::support::{PATIENCE, assert_took, shared, try_wait_for, wait_for};

const HEALTHZ: &str = "GET /healthz HTTP/1.1\r\n\r\n";
const SHUTDOWN: &str = "GET /shutdown HTTP/1.1\r\n\r\n";
const REPLACED: &str = "the sidecar's own server has ended; starting another";

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

/// The limit with which it may have just so many more.
fn limit_for(sidecar: &Sidecar, more: usize) -> u64 {
    let names = fs::read_dir(format!("/proc/{}/fd", sidecar.pid())).expect("its descriptors");
    let used: Vec<u64> =
        names.filter_map(|name| name.expect("one").file_name().to_str()?.parse().ok()).collect();
    let free = (0..).filter(|number| !used.contains(number));
    free.take(more).last().map_or(0, |last| last + 1)
}

fn replaced(sidecar: &Sidecar) -> usize {
    sidecar.log().iter().filter(|line| line.contains(REPLACED)).count()
}

/// Waits until its descriptors are no longer those of somebody who is just being answered.
#[track_caller]
fn wait_calm(sidecar: &Sidecar) {
    let mut last = 0;
    wait_for("a calm", PATIENCE, || {
        let before = std::mem::replace(&mut last, sidecar.fds());
        (before == last).then_some(())
    });
}

#[test]
fn a_server_that_has_ended_is_replaced_and_costs_nobody_an_answer() {
    let _turn = shared();
    if Command::new("prlimit").arg("--version").output().is_err() {
        println!("SKIPPED: no prlimit here");
        return;
    }
    let admin = FakeAdmin::unix();
    let mut sidecar = before(&admin.address(), &["--start-timeout=1h"]);
    let port = sidecar.port();
    sidecar.wait_log("Envoy answers", PATIENCE);
    let waiters = [Client::new(port, SHUTDOWN), Client::from(2, port, SHUTDOWN)];
    let inside = Waiter::new(&sidecar);
    wait_status(&sidecar, &["\"waiters\":3,"]);
    // A probe takes one at the door, one on the way to the server and two behind it, of which the
    // kernel has reserved one before: where it is refused differs with what is left.
    let begun = Instant::now();
    // Once more from the beginning where none has died on the way up, which happens.
    for more in (1..=8).cycle() {
        assert!(begun.elapsed() < 4 * PATIENCE, "no server has died");
        wait_calm(&sidecar);
        let died = replaced(&sidecar);
        limit(&sidecar, limit_for(&sidecar, more));
        let probe = Client::new(port, HEALTHZ);
        // With too few for it to reach the server nothing happens at all.
        let _happened = try_wait_for(Duration::from_secs(1), || {
            (replaced(&sidecar) > died || probe.is_answered()).then_some(())
        });
        limit(&sidecar, 1024);
        let mended = Instant::now();
        assert_eq!(probe.answer().body, "OK");
        let (took, died) = (mended.elapsed(), replaced(&sidecar) - died);
        println!("{more} left: replaced {died} times; the answer came after {took:?}");
        // A kubelet waits so long for a probe.
        assert_took("the answer", took, 0.0..1.0);
        assert_eq!(Client::new(port, HEALTHZ).answer().body, "OK");
        assert_eq!(sidecar.request("GET", "/healthz").1, "OK");
        if died == 0 && replaced(&sidecar) > 0 {
            break;
        }
    }
    sidecar.expects_panics();
    assert!(!waiters.iter().any(Client::is_answered) && !inside.is_answered());
    admin.set_open(1);
    let mut hook = sidecar.hook(&[]);
    wait_status(&sidecar, &["\"phase\":\"draining\"", "\"open_connections\":1,"]);
    assert!(!waiters.iter().any(Client::is_answered) && !inside.is_answered());
    admin.set_open(0);
    assert_ends(&mut hook, 0, "drained");
    assert!(waiters.iter().all(|waiter| waiter.answer().body == "OK"));
    assert_eq!(inside.answer().1, "OK");
    assert_eq!(admin.count(Route::Fail), 1);
}

#[test]
fn a_server_whose_socket_was_removed_is_replaced() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &[]);
    let place = sidecar.control_socket().with_added_extension("server");
    fs::remove_file(&place).expect("remove");
    assert_eq!(Client::new(sidecar.port(), HEALTHZ).answer().body, "OK");
    assert!(try_wait_for(PATIENCE, || (replaced(&sidecar) == 1).then_some(())).is_some());
    assert_ends(&mut sidecar.hook(&[]), 0, "drained");
}
