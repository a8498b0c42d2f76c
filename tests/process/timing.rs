//! Times, memory and size of the static build that ships.

#![allow(clippy::expect_used, reason = "a step that fails is a test that fails")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::admin::FakeAdmin;
use crate::support::clients::{KeptAlive, Plain};
use crate::support::elf::Elf;
use crate::support::envoy::Envoy;
use crate::support::net::{self, Address};
use crate::support::scene::{assert_ends, assert_held, before, beside, wait_open, wait_status};
use crate::support::sidecar::run;
use crate::support::tap::Tap;
use crate::support::{PATIENCE, quiet, temp_dir, wait_for};

#[test]
fn the_hook_ends_within_a_check_interval_of_the_last_connection() {
    let _turn = quiet();
    const INTERVAL: Duration = Duration::from_millis(200);
    let mut times = Vec::new();
    for round in 0..10 {
        let envoy = Envoy::builder().http("http").tcp("tcp").start();
        let sidecar = beside(&envoy, &["--check-interval=200ms"]);
        let port = |name| envoy.port(name);
        let (http, tcp) = (KeptAlive::open(port("http")), Plain::open(port("tcp")));
        assert!(tcp.echoes());
        let mut hook = sidecar.hook(&[]);
        assert_held(&sidecar, &mut hook, &envoy, 2);
        drop(http);
        wait_open(&sidecar, 1);
        // Another moment between two polls each time.
        thread::sleep(INTERVAL / 10 * round);
        assert!(hook.running());
        let closed = Instant::now();
        drop(tcp);
        let exit = hook.wait(PATIENCE);
        assert_eq!(exit.code, Some(0), "{exit:?}");
        times.push(exit.at - closed);
    }
    println!("from the last close to the hook's exit: {times:?}");
    let limit = INTERVAL + Duration::from_millis(50);
    assert!(times.iter().all(|time| *time <= limit), "{times:?}");
}

#[test]
fn envoy_hears_of_the_hook_within_five_milliseconds() {
    let _turn = quiet();
    let times = (0..15)
        .map(|_| {
            let envoy = Envoy::builder().start();
            let tap = Tap::unix(envoy.admin());
            let sidecar = before(&tap.address(), &[]);
            let spawned = Instant::now();
            let mut hook = sidecar.hook(&[]);
            let fails = |line: &str| line.starts_with("POST /healthcheck/fail ");
            let heard = tap.wait_for(fails, PATIENCE);
            assert_eq!(hook.wait(PATIENCE).code, Some(0));
            assert_eq!(envoy.ready(), "DRAINING");
            heard - spawned
        })
        .collect();
    let median = median("from the hook's start to /healthcheck/fail", times);
    assert!(median <= Duration::from_millis(5), "{median:?}");
}

/// A loopback address and a port of it that nobody else uses.
fn unused_address() -> SocketAddr {
    let address = Ipv4Addr::new(127, 83, 71, 9);
    TcpListener::bind((address, 0)).and_then(|taken| taken.local_addr()).expect("a port")
}

fn healthz(port: &Address) -> Option<u16> {
    net::request(port, "GET", "/healthz", PATIENCE).ok().map(|answer| answer.status)
}

#[track_caller]
fn median(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let (least, median, most) = (times[0], times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: {median:?}, of {} from {least:?} to {most:?}", times.len());
    median
}

#[test]
fn the_public_port_answers_within_three_milliseconds_of_the_start() {
    let _turn = quiet();
    let admin = FakeAdmin::unix();
    let dir = temp_dir("start");
    let control = format!("--control-socket={}", dir.path().join("s").display());
    let times = (0..15).map(|_| {
        let address = unused_address();
        let args = [
            "shutdown-manager",
            &control,
            &format!("--admin-address={}", admin.address()),
            &format!("--serve-address={}", address.ip()),
            &format!("--serve-port={}", address.port()),
        ];
        let start = Instant::now();
        let mut sidecar = run(&args);
        let port = Address::Tcp(address);
        while healthz(&port) != Some(200) {
            assert!(sidecar.running() && start.elapsed() < PATIENCE, "{:?}", sidecar.log());
            thread::yield_now();
        }
        let took = start.elapsed();
        sidecar.signal(Signal::SIGTERM);
        assert_eq!(sidecar.wait(PATIENCE).code, Some(0));
        took
    });
    let median = median("from the start to the first 200", times.collect());
    assert!(median <= Duration::from_millis(3), "{median:?}");
}

#[test]
fn a_probe_of_a_sidecar_at_rest_costs_a_millisecond_and_a_half() {
    let _turn = quiet();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &[]);
    let port = Address::port(sidecar.port());
    sidecar.wait_log("msg=\"Envoy answers\"", PATIENCE);
    let times = (0..101).map(|_| {
        let start = Instant::now();
        assert_eq!(healthz(&port), Some(200));
        start.elapsed()
    });
    let median = median("a probe", times.collect());
    assert!(median <= Duration::from_micros(1500), "{median:?}");
}

#[test]
fn envoys_hook_is_answered_within_ten_milliseconds_of_the_last_poll() {
    let _turn = quiet();
    let times = (0..10).map(|_| {
        let envoy = Envoy::builder().tcp("tcp").start();
        let tap = Tap::unix(envoy.admin());
        let sidecar = before(&tap.address(), &["--check-interval=200ms"]);
        let client = Plain::open(envoy.port("tcp"));
        assert!(client.echoes());
        let envoys_hook = Plain::open(sidecar.port());
        envoys_hook.send(b"GET /shutdown HTTP/1.1\r\nhost: x\r\n\r\n");
        wait_status(&sidecar, &["\"waiters\":1,"]);
        let mut hook = sidecar.hook(&[]);
        assert_held(&sidecar, &mut hook, &envoy, 1);
        drop(client);
        assert_eq!(envoys_hook.receive_response().status, 200);
        let answered = Instant::now();
        assert_eq!(hook.wait(PATIENCE).code, Some(0));
        let polls = tap.requests().into_iter().rev();
        let last =
            polls.map(|(at, line)| (at, line.starts_with("GET /stats?"))).find(|poll| poll.1);
        answered - last.expect("a poll").0
    });
    let times: Vec<_> = times.collect();
    println!("from the last poll to the answer of Envoy's hook: {times:?}");
    assert!(times.iter().all(|time| *time <= Duration::from_millis(10)), "{times:?}");
}

#[test]
fn four_thousand_idle_connections_cost_little_and_keep_no_probe_waiting() {
    let _turn = quiet();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &[]);
    let port = Address::port(sidecar.port());
    let at_rest = (sidecar.rss_bytes(), sidecar.fds());
    let (mut most, mut slowest) = ((0, 0), Duration::ZERO);
    let mut probe = || {
        let start = Instant::now();
        assert_eq!(healthz(&port), Some(200));
        slowest = slowest.max(start.elapsed());
        most = (most.0.max(sidecar.rss_bytes()), most.1.max(sidecar.fds()));
    };
    let mut idle = Vec::new();
    for number in 0..4000 {
        idle.push(Plain::open_at(&port));
        if number % 40 == 0 {
            probe();
        }
    }
    for _ in 0..100 {
        probe();
    }
    println!(
        "at rest {at_rest:?} bytes and descriptors, at most {most:?}; slowest probe {slowest:?}"
    );
    assert!(most.0 <= 3 << 19, "{} bytes resident", most.0);
    assert!(most.1 > at_rest.1 + 1000, "{} descriptors: who holds these connections?", most.1);
    assert!(slowest <= Duration::from_millis(500), "{slowest:?}");
    drop(idle);
    wait_for("the descriptors to be given back", PATIENCE, || {
        (sidecar.fds() <= at_rest.1).then_some(())
    });
    assert_ends(&mut sidecar.hook(&[]), 0, "drained: no connection is open");
}

#[test]
fn a_sidecar_at_rest_is_small_and_never_wakes() {
    let _turn = quiet();
    let envoy = Envoy::builder().http("http").start();
    let sidecar = beside(&envoy, &[]);
    sidecar.wait_log("msg=\"Envoy answers\"", PATIENCE);
    // tiny_http lets the threads go that it no longer needs.
    let second = Duration::from_secs(1);
    let settled = wait_for("a second without a context switch", PATIENCE, || {
        let before = (sidecar.context_switches(), sidecar.threads());
        thread::sleep(second);
        let after = (sidecar.context_switches(), sidecar.threads());
        (before == after).then_some(after)
    });
    // The time itself is what is measured here.
    thread::sleep(10 * second);
    assert_eq!((sidecar.context_switches(), sidecar.threads()), settled, "it woke");
    let rss = sidecar.rss_bytes();
    println!("at rest: {rss} bytes resident, {} threads, {} descriptors", settled.1, sidecar.fds());
    assert!(rss > 0 && rss <= 1 << 20, "{rss} bytes resident");
    // And it is alive.
    assert_eq!(healthz(&Address::port(sidecar.port())), Some(200));
    assert!(sidecar.context_switches() > settled.0, "switches are not seen");
}

#[test]
fn the_program_is_static_and_small() {
    const PT_LOAD: usize = 1;
    const PT_INTERP: usize = 3;
    let elf = Elf::of_the_program();
    let kinds = elf.segments();
    assert!(kinds.contains(&PT_LOAD), "{kinds:?}");
    assert!(!kinds.contains(&PT_INTERP), "it wants a dynamic linker");
    println!("{} bytes", elf.bytes());
    assert!(elf.bytes() <= 970_000, "{} bytes", elf.bytes());
}
