//! Many clients at once: those that disconnect leave nothing behind, and those that stay share the
//! slots fairly.

use std::collections::VecDeque;
use std::fs;
use std::thread;
use std::time::Duration;

use envoy_shutdown_manager::os::descriptors::raise_descriptor_limit;

use super::start;
use crate::support::prelude::*;

/// A sidecar that may have this many descriptors.
#[track_caller]
fn limited(admin: &FakeAdmin, descriptors: u32) -> Sidecar {
    let script = format!("ulimit -n {descriptors}; exec \"$@\"");
    let builder = Sidecar::builder().beside(admin).arg(NO_START_TIMEOUT);
    builder.under(["sh", "-c", &script, "sh"]).start()
}

/// What a sidecar has that has answered once, and is at rest.
#[track_caller]
fn resources_after_a_request(sidecar: &Sidecar) -> (usize, usize) {
    drop(sidecar.public().start_get("/shutdown"));
    assert_healthy(&sidecar.public());
    sidecar.wait_log(ENVOY_RESPONDS);
    wait_envoy_hooks(sidecar, 0);
    resources_at_rest(sidecar)
}

/// How a client disconnects.
type Way = (&'static str, fn(Connection));

#[test]
fn a_disconnect_of_a_request_that_waits_is_seen_at_once() {
    let admin = FakeAdmin::unix();
    let sidecar = start(&admin);
    let rest = resources_after_a_request(&sidecar);
    let ways: [Way; 4] = [
        ("closes", drop),
        ("resets", Connection::reset),
        ("closes its half", |client| {
            client.half_close();
            assert_eq!(client.read_to_end().0, "");
        }),
        ("sends more", |client| {
            client.send("x");
            assert_eq!(client.read_to_end().0, "");
        }),
    ];
    for (way, disconnect) in ways {
        println!("it {way}");
        let heads = ["GET /shutdown", "GET /shutdown/ready?a", "HEAD /shutdown"];
        let heads = heads.into_iter().cycle().take(12);
        let waiters: Vec<_> =
            heads.map(|head| sidecar.public().send(format!("{head} HTTP/1.1\r\n\r\n"))).collect();
        wait_envoy_hooks(&sidecar, 12);
        assert!(sidecar.fds() >= rest.1 + 12 && waiters.iter().all(Connection::is_waiting));
        for (left, waiter) in (0..12).rev().zip(waiters) {
            disconnect(waiter);
            wait_envoy_hooks(&sidecar, left);
        }
        assert_resources_released(&sidecar, rest);
    }
    assert_drains(&sidecar, &admin);
}

#[test]
fn three_thousand_disconnects_leave_nothing_behind() {
    let admin = FakeAdmin::unix();
    let sidecar = start(&admin);
    let public = sidecar.public();
    let rest = resources_after_a_request(&sidecar);
    for n in 0..1000 {
        let waiter = public.start_get("/shutdown");
        if n % 4 > 0 {
            waiter.reset();
        }
    }
    wait_envoy_hooks(&sidecar, 0);
    for batch in 0..10 {
        let waiters: Vec<_> = (0..200).map(|_| public.start_get("/shutdown")).collect();
        wait_envoy_hooks(&sidecar, 200);
        assert!(resources(&sidecar).0 <= rest.0 + 20, "waiters have threads");
        for waiter in waiters {
            if batch % 5 > 0 {
                waiter.reset();
            }
        }
        wait_envoy_hooks(&sidecar, 0);
    }
    assert_resources_released(&sidecar, rest);
    assert_drains(&sidecar, &admin);
}

#[test]
fn a_client_with_many_connections_does_not_keep_others_from_waiting() {
    let admin = FakeAdmin::unix();
    // Half of them are for clients, and half of those for requests that wait.
    let sidecar = limited(&admin, 128);
    let public = sidecar.public();
    let mut many: Vec<_> = (0..32).map(|_| public.start_get("/shutdown")).collect();
    wait_envoy_hooks(&sidecar, 32);
    let assert_rejected = |client: &Connection| {
        assert_eq!(client.only_response(), (503, TOO_MANY_BODY));
    };
    for _ in 0..20 {
        assert_rejected(&public.start_get("/shutdown"));
    }
    assert!(many.iter().all(Connection::is_waiting), "one has lost its slot to the same client");
    let others = [2, 3].map(|host| {
        let other = public.at_host(host).start_get("/shutdown");
        assert_rejected(&many.pop().expect("the newest"));
        other
    });
    wait_envoy_hooks(&sidecar, 32);
    assert_healthy(&public);
    assert_eq!(sidecar.metric("connections_rejected_total"), 22);
    assert_eq!(sidecar.metric("envoy_hooks"), 32);
    sidecar.wait_log(CONNECTION_LIMIT_REACHED);
    let mut hook = start_drain(&sidecar, &admin);
    assert!(many.iter().chain(&others).all(Connection::is_waiting));
    finish_drain(&admin, &mut hook);
    for waiter in many.iter().chain(&others) {
        assert_eq!(waiter.only_response(), OK);
    }
}

#[test]
fn a_slow_client_keeps_its_connection_among_many() {
    let admin = FakeAdmin::unix();
    for descriptors in [128, 32] {
        println!("with {descriptors} descriptors");
        let sidecar = limited(&admin, descriptors);
        let public = sidecar.public();
        let slow = public.at_host(2).send("");
        let many = ["", "G", HEALTHZ, SHUTDOWN].iter().cycle().take(400);
        let _many: Vec<_> = many.map(|bytes| public.send(bytes)).collect();
        sidecar.wait_log(CONNECTION_LIMIT_REACHED);
        assert_healthy(&public);
        slow.send(HEALTHZ);
        assert_eq!(slow.only_response(), OK);
    }
}

#[test]
fn a_drain_needs_few_descriptors_however_many_connect() {
    let admin = FakeAdmin::unix();
    let sidecar = limited(&admin, 32);
    let public = sidecar.public();
    let waiter = public.at_host(2).start_get("/shutdown");
    wait_envoy_hooks(&sidecar, 1);
    let mut others = Vec::new();
    let mut connect = |n: usize| {
        for _ in 0..n {
            others.push(public.send(""));
            others.push(public.send("GET /healthz"));
            others.push(public.start_get("/shutdown"));
            assert_healthy(&public);
        }
    };
    connect(20);
    let mut hook = start_drain(&sidecar, &admin);
    connect(20);
    assert!(waiter.is_waiting());
    finish_drain(&admin, &mut hook);
    assert_eq!(waiter.only_response(), OK);
}

#[test]
fn a_probe_is_answered_among_many_clients_that_send_nothing() {
    if raise_descriptor_limit().expect("a limit") < 2000 {
        println!("SKIPPED: there are too few descriptors for many clients here");
        return;
    }
    let admin = FakeAdmin::unix();
    let sidecar = start(&admin);
    let public = sidecar.public();
    let waiter = public.start_get("/shutdown");
    wait_envoy_hooks(&sidecar, 1);
    let mut many: VecDeque<_> = (0..1100).map(|_| public.send("")).collect();
    sidecar.wait_log(CONNECTION_LIMIT_REACHED);
    for _ in 0..50 {
        // Fewer than are held, so that however slow the probe is, it is never the oldest.
        thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..100 {
                    many.pop_front().into_iter().for_each(Connection::reset);
                    many.push_back(public.send(if n % 4 == 0 { "GET /" } else { "" }));
                }
            });
            assert_healthy(&public);
        });
    }
    assert!(sidecar.fds() <= 1024 + 320, "{}", sidecar.fds());
    let mut hook = start_drain(&sidecar, &admin);
    assert!(waiter.is_waiting());
    finish_drain(&admin, &mut hook);
    assert_eq!(waiter.only_response(), OK);
}

#[test]
fn the_limit_of_descriptors_is_raised_to_the_hard_one() {
    let admin = FakeAdmin::unix();
    let script = "ulimit -Sn 64 && ulimit -Hn 1024 && exec \"$@\"";
    let sidecar = Sidecar::builder().beside(&admin).under(["sh", "-c", script, "sh"]).start();
    let limits = fs::read_to_string(format!("/proc/{}/limits", sidecar.pid())).expect("its limits");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let words: Vec<_> = line.expect("a line").split_whitespace().collect();
    assert_eq!(words[..2], ["1024", "1024"], "the soft limit and the hard one");
    // They are also there to be used: with 64 there are 16 slots.
    let waiters: Vec<_> = (0..40).map(|_| sidecar.public().start_get("/shutdown")).collect();
    wait_envoy_hooks(&sidecar, 40);
    assert!(waiters.iter().all(Connection::is_waiting));
    sidecar.assert_not_logged(CONNECTION_LIMIT_REACHED);
}

#[test]
fn incomplete_request_heads_are_kept_within_their_bound() {
    let admin = FakeAdmin::unix();
    let sidecar = start(&admin);
    let public = sidecar.public();
    // Those that have sent least are the oldest, and make least room when they are evicted.
    let small: Vec<_> = (0..200).map(|_| public.send("G")).collect();
    let start = format!("GET /healthz HTTP/1.1\r\na: {}", "b".repeat(4000 - 26));
    let large: Vec<_> = (0..100).map(|_| public.send(&start)).collect();
    // All earlier bytes have been read by then.
    assert_healthy(&public);
    let held = large.iter().filter(|client| {
        client.try_send(b"\r\n\r\n");
        client.read_to_end().0.starts_with("HTTP/1.1 200 OK\r\n")
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

#[test]
fn a_sidecar_that_may_have_too_few_descriptors_for_a_drain_does_not_start() {
    let dir = temp_dir("few");
    let socket = format!("--control-socket={}", dir.path().join("s").display());
    let args = ["shutdown-manager", "--serve-port=0", &socket];
    let exit = run_under(&["sh", "-c", "ulimit -n 31; exec \"$@\"", "sh"], &args).wait();
    assert_eq!(exit.code, Some(1), "{}", exit.output);
    let sentence = "31 file descriptors are too few for a drain; let the process have 32 or more";
    assert!(exit.output.contains(sentence), "{}", exit.output);
}

#[test]
fn a_hook_that_came_with_the_drain_keeps_its_slot_among_others_of_its_address() {
    let admin = FakeAdmin::unix();
    // Sixteen may wait.
    let sidecar = limited(&admin, 64);
    let public = sidecar.public();
    let early: Vec<_> = (0..15).map(|_| public.at_host(3).start_get("/shutdown")).collect();
    wait_envoy_hooks(&sidecar, 15);
    // The time itself: what came 3 s before a drain did not come with it.
    thread::sleep(Duration::from_millis(3_100));
    let hook = public.at_host(3).start_get("/shutdown");
    wait_envoy_hooks(&sidecar, 16);
    let mut exec_hook = start_drain(&sidecar, &admin);
    let others: Vec<_> = (0..6).map(|_| public.at_host(4).start_get("/shutdown")).collect();
    let evicted = || early.iter().filter(|client| !client.is_waiting()).count();
    wait_value("six of the first to be evicted", evicted, |n| *n == 6);
    assert!(hook.is_waiting(), "the hook was evicted: {}", hook.read_to_end().0);
    assert!(others.iter().all(Connection::is_waiting));
    finish_drain(&admin, &mut exec_hook);
    assert_eq!(hook.only_response(), OK);
}
