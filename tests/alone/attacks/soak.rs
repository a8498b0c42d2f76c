//! Everything at once, for as long as is set: probes, requests that wait, drains and attacks.

use std::collections::hash_map::RandomState;
use std::env;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::ALL;
use super::hostile::Target;
use super::probe::Prober;
use super::watched::{Peak, step_back};
use crate::support::prelude::*;
use crate::take_turn;

fn random(below: usize) -> usize {
    RandomState::new().build_hasher().finish() as usize % below
}

/// No condition is waited for: the next step may come at any time.
fn pause(max: Duration) {
    thread::sleep(max.mul_f32(random(100) as f32 / 100.0));
}

/// A whole drain, with Envoy's hooks at addresses of their own; returns how many those were.
#[track_caller]
fn drain(sidecar: &Sidecar, admin: &FakeAdmin) -> usize {
    // The outcome of the one before is kept for 30 s.
    let idle = try_wait_for(Duration::from_secs(60), || {
        // Seldom, for each check is one more request.
        thread::sleep(Duration::from_millis(200));
        (sidecar.status().phase() == IDLE).then_some(())
    });
    assert!(idle.is_some(), "the next drain is not possible: {:?}", sidecar.status());
    admin.set_state(State::Live);
    let waiters = |hosts: std::ops::Range<u8>| {
        let public = sidecar.public();
        hosts.map(|host| public.at_host(host).start_get("/shutdown")).collect::<Vec<_>>()
    };
    let mut all = waiters(10..15);
    let mut hook = start_drain(sidecar, admin);
    all.extend(waiters(15..20));
    pause(Duration::from_secs(8));
    assert!(all.iter().all(Connection::is_waiting), "a hook is answered in mid-drain");
    finish_drain(admin, &mut hook);
    for waiter in &all {
        assert_eq!(waiter.only_response(), OK);
    }
    all.len()
}

#[test]
#[ignore = "ten minutes; `just soak` runs it"]
fn a_soak() {
    let _turn = take_turn();
    let seconds = env::var("SOAK").map_or(600, |seconds| seconds.parse().expect("seconds"));
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    assert_healthy(&sidecar.public());
    let rest = resources_at_rest(&sidecar);
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
            peak.update(&sidecar);
            // Between two samples.
            thread::sleep(Duration::from_millis(50));
        }
        over.store(true, Ordering::Relaxed);
        drains.join().expect("drains")
    });
    let probes = prober.end();
    assert_resources_released(&sidecar, rest);
    println!("soaked for   {seconds} s");
    println!("probes       {probes}");
    println!("drains       {drains}, {answered} hooks answered at their ends");
    println!("hostile      {} connections", made.into_inner());
    println!("peak         {peak}");
    println!(
        "at rest      {rest:?} threads and descriptors, {:?} afterwards",
        resources_at_rest(&sidecar)
    );
    probes.assert_none_failed_or_was_late();
    assert_eq!(admin.count(Route::Fail), drains);
    peak.assert_bounded(rest.0);
    drain(&sidecar, &admin);
}
