//! A scene around an attack: a probe, a hook that waits, and what the process takes meanwhile.

use std::process::Command;
use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use envoy_shutdown_manager::os::limits::raise_descriptor_limit;

use super::hostile::Target;
use super::probe::Prober;
use crate::port::crowds::{calm, resources};
use crate::port::{SHUTDOWN, assert_healthy, begin_drain, end_drain, under, wait_waiters};
use crate::support::admin::{FakeAdmin, Route};
use crate::support::caller::Client;
use crate::support::sidecar::Sidecar;
use crate::support::{SHIPS, quiet, try_wait_for};

/// No probe may take longer.
pub const LATEST: Duration = Duration::from_millis(500);
const MOST_MEMORY: u64 = 3 << 19;

/// For what is no longer used.
const BACK: Duration = Duration::from_secs(5);

/// The most that a process has had.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peak {
    pub memory: u64,
    pub threads: usize,
    pub descriptors: usize,
}

impl Peak {
    pub fn look(&mut self, sidecar: &Sidecar) {
        let (threads, descriptors) = resources(sidecar);
        self.memory = self.memory.max(sidecar.rss_bytes());
        self.threads = self.threads.max(threads);
        self.descriptors = self.descriptors.max(descriptors);
    }

    /// Asserts what every build must keep to, and what the one that ships must.
    #[track_caller]
    pub fn assert_bounded(&self, threads_at_rest: usize) {
        assert!(self.threads <= threads_at_rest + 4, "{self}, from {threads_at_rest}");
        assert!(!SHIPS || self.memory <= MOST_MEMORY, "{self}");
    }
}

impl fmt::Display for Peak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory, threads, descriptors } = self;
        write!(f, "{memory} bytes, {threads} threads, {descriptors} descriptors")
    }
}

/// Whether there is time for attacks at full size.
pub fn is_full() -> bool {
    std::env::var("ATTACK").is_ok_and(|size| size == "full")
}

/// Lets whoever else has something to do go first, from here on and in all threads that this one
/// starts. A real attacker has processors of its own; this one shares a few with the sidecar, the
/// prober and the kernel, and would show how Linux shares them.
pub fn step_back() {
    let thread = fs::read_link("/proc/thread-self").expect("a thread");
    let id = thread.file_name().expect("its id");
    let output = Command::new("chrt").args(["--idle", "--pid", "0"]).arg(id).output();
    if !output.as_ref().is_ok_and(|output| output.status.success()) {
        println!("the attackers do not step back, so probes may be late: {output:?}");
    }
}

/// Attacks a sidecar behind this wrapper, and asserts that nobody who means well has suffered.
#[track_caller]
pub fn watch(name: &str, wrapper: &[&str], attack: impl Fn(Target<'_>) + Sync) {
    let _turn = quiet();
    let limit = raise_descriptor_limit().expect("a limit");
    if limit < 8_000 {
        println!("SKIPPED: {limit} descriptors are too few for a crowd");
        return;
    }
    let full = is_full() && limit >= 16_000;
    if full != is_full() {
        println!("SKIPPED: the full size, for which {limit} descriptors are too few");
    }
    let admin = FakeAdmin::unix();
    let sidecar = under(wrapper, &admin);
    let port = sidecar.port();
    let waiter = Client::from(3, port, SHUTDOWN);
    wait_waiters(&sidecar, 1);
    // A waiter has a thread, at the latest when who comes later is answered.
    assert_healthy(port);
    let rest = calm(&sidecar);
    let prober = Prober::start(port);
    let made = AtomicUsize::new(0);
    let target = Target { port, full, made: &made };
    let mut peak = Peak::default();
    thread::scope(|scope| {
        let attack = scope.spawn(|| {
            step_back();
            let least = target.lasts(10.0, 0.5);
            while {
                attack(target);
                Instant::now() < least
            } {}
        });
        while !attack.is_finished() {
            peak.look(&sidecar);
            assert!(!waiter.is_answered(), "the hook is let go: {}", waiter.hear().0);
            // Between two looks.
            thread::sleep(Duration::from_millis(10));
        }
        attack.join().expect("an attack");
    });
    let figures = prober.end();
    let over = Instant::now();
    let back = try_wait_for(BACK, || {
        let now = resources(&sidecar);
        (now.0 <= rest.0 && now.1 <= rest.1).then(|| over.elapsed())
    });
    let made = made.into_inner();
    println!("{name}: {made} connections; {figures}; {peak}; {rest:?} at rest, back in {back:?}");
    assert!(made > 0);
    assert_eq!(figures.failed, 0, "probes have failed");
    assert!(!SHIPS || figures.slowest <= LATEST, "{figures}");
    peak.assert_bounded(rest.0);
    assert!(
        back.is_some(),
        "threads and descriptors: {rest:?} before, {:?} now",
        resources(&sidecar)
    );
    let status = sidecar.status();
    assert!(
        status.contains("\"phase\":\"serving\"") && status.contains("\"drain\":0,"),
        "{status}"
    );
    assert_eq!(admin.count(Route::Fail), 0);
    let mut hook = begin_drain(&sidecar, &admin);
    assert!(!waiter.is_answered());
    end_drain(&admin, &mut hook);
    assert_eq!(waiter.answer().body, "OK");
    assert_eq!(admin.count(Route::Fail), 1);
}
