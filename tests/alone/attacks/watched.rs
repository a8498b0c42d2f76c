//! What surrounds an attack: a prober, a hook that waits, and what the process uses meanwhile.

use std::process::Command;
use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use envoy_shutdown_manager::os::descriptors::raise_descriptor_limit;

use super::hostile::Target;
use super::probe::Prober;
use crate::support::prelude::*;
use crate::take_turn;

const MAX_MEMORY: u64 = 3 << 19;

/// Within this, what is no longer used is released: a connection lingers for a second.
const RELEASED_WITHIN: Duration = Duration::from_secs(3);

/// A hook's request waits no longer for those of the network.
const MAX_HOOK_DELAY: Duration = Duration::from_millis(200);

/// The maximum of what a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peak {
    pub memory: u64,
    pub threads: usize,
    pub descriptors: usize,
}

impl Peak {
    pub fn update(&mut self, sidecar: &Sidecar) {
        let (threads, descriptors) = resources(sidecar);
        self.memory = self.memory.max(sidecar.rss_bytes());
        self.threads = self.threads.max(threads);
        self.descriptors = self.descriptors.max(descriptors);
    }

    /// Asserts what every build must keep to, and what the one that ships must.
    #[track_caller]
    pub fn assert_bounded(&self, threads_at_rest: usize) {
        assert!(self.threads <= threads_at_rest, "{self}, from {threads_at_rest} threads");
        assert!(!SHIPS || self.memory <= MAX_MEMORY, "{self}");
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

/// Lowers the priority of this thread, and of all threads that it starts, below that of all others. A real attacker has processors of its own; this one shares a few with the sidecar, the
/// prober and the kernel, and would show how Linux shares them.
pub fn step_back() {
    let thread = fs::read_link("/proc/thread-self").expect("a thread");
    let id = thread.file_name().expect("its id");
    let output = Command::new("chrt").args(["--idle", "--pid", "0"]).arg(id).output();
    if !output.as_ref().is_ok_and(|output| output.status.success()) {
        println!("the attackers keep their priority, so probes may be late: {output:?}");
    }
}

/// Attacks a sidecar behind this wrapper, and asserts that neither the prober nor the hook noticed.
#[track_caller]
pub fn watch(name: &str, wrapper: &[&str], attack: impl Fn(Target<'_>) + Sync) {
    let _turn = take_turn();
    let limit = raise_descriptor_limit().expect("a limit");
    if limit < 8_000 {
        println!("SKIPPED: {limit} descriptors are too few for many clients");
        return;
    }
    let full = is_full() && limit >= 16_000;
    if full != is_full() {
        println!("SKIPPED: the full size, for which {limit} descriptors are too few");
    }
    let admin = FakeAdmin::unix();
    let builder = Sidecar::builder().beside(&admin).arg(NO_START_TIMEOUT);
    let sidecar = builder.under(wrapper).start();
    let (port, public) = (sidecar.port(), sidecar.public());
    let waiter = public.at_host(3).start_get("/shutdown");
    wait_envoy_hooks(&sidecar, 1);
    let rest = resources_at_rest(&sidecar);
    let prober = Prober::start(port);
    let made = AtomicUsize::new(0);
    let target = Target { port, full, made: &made };
    let (mut peak, mut hook_delay) = (Peak::default(), Duration::ZERO);
    thread::scope(|scope| {
        let attack = scope.spawn(|| {
            step_back();
            let end = target.lasts(10.0, 0.5);
            while {
                attack(target);
                Instant::now() < end
            } {}
        });
        while !attack.is_finished() {
            peak.update(&sidecar);
            assert!(waiter.is_waiting(), "the hook is answered: {}", waiter.read_to_end().0);
            let asked = Instant::now();
            assert_eq!(sidecar.control().get("/healthz"), OK);
            hook_delay = hook_delay.max(asked.elapsed());
            // Between two samples.
            thread::sleep(Duration::from_millis(10));
        }
        attack.join().expect("an attack");
    });
    let figures = prober.end();
    let over = Instant::now();
    let released = try_wait_for(RELEASED_WITHIN, || {
        let now = resources(&sidecar);
        (now.0 <= rest.0 && now.1 <= rest.1).then(|| over.elapsed())
    });
    let made = made.into_inner();
    println!(
        "{name}: {made} connections; {figures}; a hook {hook_delay:?} at most; {peak}; {rest:?} at \
         rest, released in {released:?}"
    );
    assert!(!SHIPS || hook_delay <= MAX_HOOK_DELAY, "{hook_delay:?} at the control socket");
    assert!(made > 0);
    figures.assert_none_failed_or_was_late();
    peak.assert_bounded(rest.0);
    assert!(
        released.is_some(),
        "threads and descriptors: {rest:?} before, {:?} now",
        resources(&sidecar)
    );
    let status = sidecar.status();
    assert!(status.is_before_the_first_drain(), "{status:?}");
    assert_eq!(admin.count(Route::Fail), 0);
    let mut hook = start_drain(&sidecar, &admin);
    assert!(waiter.is_waiting());
    finish_drain(&admin, &mut hook);
    assert_eq!(waiter.only_response(), OK);
    assert_eq!(admin.count(Route::Fail), 1);
}
