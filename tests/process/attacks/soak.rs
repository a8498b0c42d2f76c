//! Everything at once for as long as is wanted: probes, waiters, drains and whoever means harm.

use std::collections::hash_map::RandomState;
use std::env;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::ALL;
use super::hostile::Target;
use super::probe::Prober;
use super::watched::{LATEST, Peak, step_back};
use crate::port::crowds::{assert_nothing_is_left, calm};
use crate::port::{SHUTDOWN, assert_healthy, begin_drain, end_drain};
use crate::support::admin::{FakeAdmin, Route, State};
use crate::support::caller::Client;
use crate::support::scene::before;
use crate::support::sidecar::Sidecar;
use crate::support::{SHIPS, quiet, wait_for};

fn random(below: usize) -> usize {
    RandomState::new().build_hasher().finish() as usize % below
}

/// Nothing is waited for: what happens next is to happen at any time.
fn pause(most: Duration) {
    thread::sleep(most.mul_f32(random(100) as f32 / 100.0));
}

/// A whole drain, with Envoy's hooks at addresses of their own; how many those were.
#[track_caller]
fn drain(sidecar: &Sidecar, admin: &FakeAdmin) -> usize {
    // It is told for 30 s that the one before has ended.
    wait_for("the next drain to be possible", Duration::from_secs(60), || {
        // Seldom: each look is a request more.
        thread::sleep(Duration::from_millis(200));
        sidecar.status().contains("\"phase\":\"serving\"").then_some(())
    });
    admin.set_state(State::Live);
    let waiters = |hosts: std::ops::Range<u8>| {
        hosts.map(|host| Client::from(host, sidecar.port(), SHUTDOWN)).collect::<Vec<_>>()
    };
    let mut all = waiters(10..15);
    let mut hook = begin_drain(sidecar, admin);
    all.extend(waiters(15..20));
    pause(Duration::from_secs(8));
    assert!(!all.iter().any(Client::is_answered), "a hook is let go in mid-drain");
    end_drain(admin, &mut hook);
    for waiter in &all {
        assert_eq!(waiter.answer().body, "OK");
    }
    all.len()
}

#[test]
#[ignore = "ten minutes; `just soak` runs it"]
fn a_soak() {
    let _turn = quiet();
    let seconds = env::var("SOAK").map_or(600, |seconds| seconds.parse().expect("seconds"));
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &[]);
    assert_healthy(sidecar.port());
    let rest = calm(&sidecar);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (over, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let target = Target { port: sidecar.port(), full: false, made: &made };
    let harm = || {
        step_back();
        while Instant::now() < end && !over.load(Ordering::Relaxed) {
            ALL[random(ALL.len())](target);
            pause(Duration::from_secs(1));
        }
    };
    let mut peak = Peak::default();
    let prober = Prober::start(sidecar.port());
    let (drains, answered) = thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(harm);
        }
        let drains = scope.spawn(|| {
            let mut answered = Vec::new();
            while Instant::now() < end {
                answered.push(drain(&sidecar, &admin));
            }
            (answered.len(), answered.iter().sum::<usize>())
        });
        while !drains.is_finished() {
            peak.look(&sidecar);
            // Between two looks.
            thread::sleep(Duration::from_millis(50));
        }
        over.store(true, Ordering::Relaxed);
        drains.join().expect("drains")
    });
    let probes = prober.end();
    assert_nothing_is_left(&sidecar, rest);
    println!("soaked for   {seconds} s");
    println!("probes       {probes}");
    println!("drains       {drains}, {answered} hooks answered at their ends");
    println!("hostile      {} connections", made.into_inner());
    println!("peak         {peak}");
    println!("at rest      {rest:?} threads and descriptors, {:?} afterwards", calm(&sidecar));
    assert_eq!((probes.failed, admin.count(Route::Fail)), (0, drains));
    assert!(!SHIPS || probes.slowest <= LATEST, "{probes}");
    peak.assert_bounded(rest.0);
    drain(&sidecar, &admin);
}
