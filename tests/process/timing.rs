//! Times, memory and size of the static build that ships.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::clients::{KeptAlive, Plain};
use crate::support::envoy::Envoy;
use crate::support::scene::{assert_held, before, beside, wait_open};
use crate::support::tap::Tap;
use crate::support::{PATIENCE, quiet, wait_for};

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
    let mut times: Vec<_> = (0..15)
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
    times.sort();
    println!("from the hook's start to /healthcheck/fail: {times:?}");
    let median = times[times.len() / 2];
    assert!(median <= Duration::from_millis(5), "{times:?}");
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
    assert_eq!(sidecar.request("GET", "/healthz"), (200, "OK".to_owned()));
    assert!(sidecar.context_switches() > settled.0, "switches are not seen");
}

/// The types of the segments of a 64-bit little-endian ELF file.
fn segments(elf: &[u8]) -> Vec<usize> {
    let number = |at: usize, size: usize| {
        elf[at..at + size].iter().rev().fold(0, |sum, byte| (sum << 8) | usize::from(*byte))
    };
    assert_eq!(&elf[..6], b"\x7fELF\x02\x01");
    let (table, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    (0..count).map(|n| number(table + n * size, 4)).collect()
}

#[test]
fn the_program_is_static_and_small() {
    const PT_LOAD: usize = 1;
    const PT_INTERP: usize = 3;
    let elf = fs::read(env!("CARGO_BIN_EXE_envoy-shutdown-manager")).expect("read the program");
    let kinds = segments(&elf);
    assert!(kinds.contains(&PT_LOAD), "{kinds:?}");
    assert!(!kinds.contains(&PT_INTERP), "it wants a dynamic linker");
    println!("{} bytes", elf.len());
    assert!(elf.len() <= 960_000, "{} bytes", elf.len());
}
