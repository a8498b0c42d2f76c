//! Many clients at once: who leaves takes everything along, and who stays has a fair place.

use std::collections::VecDeque;
use std::mem;
use std::thread;
use std::time::{Duration, Instant};

use envoy_shutdown_manager::os::limits::raise_descriptor_limit;

use super::{
    HEALTHZ, SHUTDOWN, assert_drains, assert_healthy, begin_drain, beside, end_drain, under,
    wait_waiters,
};
use crate::support::admin::FakeAdmin;
use crate::support::caller::Client;
use crate::support::scene::metric;
use crate::support::sidecar::Sidecar;
use crate::support::{PATIENCE, shared, try_wait_for, wait_for};

/// A sidecar that may have so many descriptors.
#[track_caller]
fn limited(admin: &FakeAdmin, descriptors: u32) -> Sidecar {
    let script = format!("ulimit -n {descriptors}; exec \"$@\"");
    under(&["sh", "-c", &script, "sh"], admin)
}

/// Threads and descriptors.
pub fn resources(sidecar: &Sidecar) -> (usize, usize) {
    (sidecar.threads(), sidecar.fds())
}

/// What a sidecar has that was asked once, and has nothing to do.
#[track_caller]
fn resources_at_rest(sidecar: &Sidecar) -> (usize, usize) {
    drop(Client::new(sidecar.port(), SHUTDOWN));
    assert_healthy(sidecar.port());
    sidecar.wait_log("Envoy answers", PATIENCE);
    wait_waiters(sidecar, 0);
    calm(sidecar)
}

/// The same when it has come to rest.
#[track_caller]
pub fn calm(sidecar: &Sidecar) -> (usize, usize) {
    let (mut last, mut since) = (resources(sidecar), Instant::now());
    wait_for("a calm", PATIENCE, || {
        let now = resources(sidecar);
        if mem::replace(&mut last, now) != now {
            since = Instant::now();
        }
        (since.elapsed() > Duration::from_millis(100)).then_some(now)
    })
}

#[track_caller]
pub fn assert_nothing_is_left(sidecar: &Sidecar, rest: (usize, usize)) {
    let mut last = rest;
    let calm = try_wait_for(PATIENCE, || {
        last = resources(sidecar);
        (last.0 <= rest.0 && last.1 <= rest.1).then_some(())
    });
    assert!(calm.is_some(), "threads and descriptors: {rest:?} before, {last:?} now");
}

/// How one leaves.
type Way = (&'static str, fn(Client));

#[test]
fn a_waiter_that_leaves_is_missed_at_once() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = beside(&admin);
    let rest = resources_at_rest(&sidecar);
    let ways: [Way; 4] = [
        ("closes", drop),
        ("resets", Client::reset),
        ("closes its half", |client| {
            client.half_close();
            assert_eq!(client.hear().0, "");
        }),
        ("says more", |client| {
            client.say("x");
            assert_eq!(client.hear().0, "");
        }),
    ];
    for (way, leave) in ways {
        println!("it {way}");
        let heads = ["GET /shutdown", "GET /shutdown/ready?a", "HEAD /shutdown"];
        let heads = heads.into_iter().cycle().take(12);
        let waiters: Vec<_> = heads
            .map(|head| Client::new(sidecar.port(), format!("{head} HTTP/1.1\r\n\r\n")))
            .collect();
        wait_waiters(&sidecar, 12);
        assert!(sidecar.fds() >= rest.1 + 12 && !waiters.iter().any(Client::is_answered));
        for (left, waiter) in (0..12).rev().zip(waiters) {
            leave(waiter);
            wait_waiters(&sidecar, left);
        }
        assert_nothing_is_left(&sidecar, rest);
    }
    assert_drains(&sidecar, &admin);
}

#[test]
fn three_thousand_waiters_that_leave_take_everything_with_them() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = beside(&admin);
    let port = sidecar.port();
    let rest = resources_at_rest(&sidecar);
    for n in 0..1000 {
        let waiter = Client::new(port, SHUTDOWN);
        if n % 4 > 0 {
            waiter.reset();
        }
    }
    wait_waiters(&sidecar, 0);
    for batch in 0..10 {
        let waiters: Vec<_> = (0..200).map(|_| Client::new(port, SHUTDOWN)).collect();
        wait_waiters(&sidecar, 200);
        assert!(resources(&sidecar).0 <= rest.0 + 20, "waiters have threads");
        for waiter in waiters {
            if batch % 5 > 0 {
                waiter.reset();
            }
        }
        wait_waiters(&sidecar, 0);
    }
    assert_nothing_is_left(&sidecar, rest);
    assert_drains(&sidecar, &admin);
}

#[test]
fn whoever_comes_often_cannot_keep_others_from_waiting() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    // Half of them are for clients, and half of those for who waits.
    let sidecar = limited(&admin, 128);
    let port = sidecar.port();
    let mut many: Vec<_> = (0..32).map(|_| Client::new(port, SHUTDOWN)).collect();
    wait_waiters(&sidecar, 32);
    let turned_away = |client: &Client| {
        let answer = client.answer();
        assert_eq!((answer.code(), answer.body.as_str()), ("503", "too many wait already\n"));
    };
    for _ in 0..20 {
        turned_away(&Client::new(port, SHUTDOWN));
    }
    assert!(!many.iter().any(Client::is_answered), "one has lost its place to its own kind");
    let others = [2, 3].map(|host| {
        let other = Client::from(host, port, SHUTDOWN);
        turned_away(&many.pop().expect("the newest"));
        other
    });
    wait_waiters(&sidecar, 32);
    assert_healthy(port);
    let metrics = sidecar.request("GET", "/metrics").1;
    assert_eq!(metric(&metrics, "refused_total"), 22);
    assert_eq!(metric(&metrics, "waiters"), 32);
    sidecar.wait_log("msg=\"the public port is full", PATIENCE);
    let mut hook = begin_drain(&sidecar, &admin);
    assert!(!many.iter().chain(&others).any(Client::is_answered));
    end_drain(&admin, &mut hook);
    for waiter in many.iter().chain(&others) {
        assert_eq!(waiter.answer().status, "200 OK");
    }
}

#[test]
fn whoever_takes_its_time_to_ask_is_not_crowded_out() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    for descriptors in [128, 32] {
        println!("with {descriptors} descriptors");
        let sidecar = limited(&admin, descriptors);
        let port = sidecar.port();
        let slow = Client::from(2, port, "");
        let crowd = ["", "G", HEALTHZ, SHUTDOWN].iter().cycle().take(400);
        let _crowd: Vec<_> = crowd.map(|words| Client::new(port, words)).collect();
        sidecar.wait_log("msg=\"the public port is full", PATIENCE);
        assert_healthy(port);
        slow.say(HEALTHZ);
        assert_eq!(slow.answer().status, "200 OK");
    }
}

#[test]
fn a_drain_needs_few_descriptors_however_many_connect() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = limited(&admin, 32);
    let port = sidecar.port();
    let waiter = Client::from(2, port, SHUTDOWN);
    wait_waiters(&sidecar, 1);
    let mut others = Vec::new();
    let mut connect = |n: usize| {
        for _ in 0..n {
            others.push(Client::new(port, ""));
            others.push(Client::new(port, "GET /healthz"));
            others.push(Client::new(port, SHUTDOWN));
            assert_healthy(port);
        }
    };
    connect(20);
    let mut hook = begin_drain(&sidecar, &admin);
    connect(20);
    assert!(!waiter.is_answered());
    end_drain(&admin, &mut hook);
    assert_eq!(waiter.answer().status, "200 OK");
}

#[test]
fn a_probe_gets_through_a_crowd_that_says_nothing() {
    let _turn = shared();
    if raise_descriptor_limit().expect("a limit") < 2000 {
        println!("SKIPPED: there are too few descriptors for a crowd here");
        return;
    }
    let admin = FakeAdmin::unix();
    let sidecar = beside(&admin);
    let port = sidecar.port();
    let waiter = Client::new(port, SHUTDOWN);
    wait_waiters(&sidecar, 1);
    let mut crowd: VecDeque<_> = (0..1100).map(|_| Client::new(port, "")).collect();
    sidecar.wait_log("msg=\"the public port is full", PATIENCE);
    for _ in 0..50 {
        // Fewer than are held, so that however slow the probe is, it is never the oldest.
        thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..100 {
                    crowd.pop_front().into_iter().for_each(Client::reset);
                    crowd.push_back(Client::new(port, if n % 4 == 0 { "GET /" } else { "" }));
                }
            });
            assert_healthy(port);
        });
    }
    assert!(sidecar.fds() <= 1024 + 320, "{}", sidecar.fds());
    let mut hook = begin_drain(&sidecar, &admin);
    assert!(!waiter.is_answered());
    end_drain(&admin, &mut hook);
    assert_eq!(waiter.answer().status, "200 OK");
}

#[test]
fn unfinished_heads_are_kept_within_their_bound() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = beside(&admin);
    let port = sidecar.port();
    // Those that have said least are the oldest, and make least room when they go.
    let small: Vec<_> = (0..200).map(|_| Client::new(port, "G")).collect();
    let start = format!("GET /healthz HTTP/1.1\r\na: {}", "b".repeat(4000 - 26));
    let large: Vec<_> = (0..100).map(|_| Client::new(port, &start)).collect();
    // Whoever has come before has been heard by then.
    assert_healthy(port);
    let held = large.iter().filter(|client| {
        client.say_what_is_taken(b"\r\n\r\n");
        client.hear().0.starts_with("HTTP/1.1 200 OK\r\n")
    });
    let held = held.count();
    assert!(
        held * start.len() <= 128 * 1024,
        "{held} of them are held, {} bytes each",
        start.len()
    );
    assert_drains(&sidecar, &admin);
    drop(small);
}
