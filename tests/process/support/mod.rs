//! What the scenarios stand on: a real Envoy and its clients, a scripted admin interface, the
//! sidecar and its hooks as processes, and waiting for conditions rather than for a time.

#![allow(dead_code, reason = "a scenario takes what it needs")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a fixture that cannot do its part fails the test"
)]

pub mod admin;
pub mod caller;
pub mod clients;
pub mod elf;
pub mod envoy;
pub mod envoy_binary;
pub mod net;
pub mod pod;
pub mod rows;
pub mod scene;
pub mod sidecar;
pub mod tap;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a test waits for what must come; only a failing test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The build whose times and memory are promised.
pub const SHIPS: bool = cfg!(all(target_env = "musl", not(debug_assertions)));

/// Asserts that something took so many seconds. Any other build than the one that ships may take
/// four times as long, on a machine that may be doing anything else.
#[track_caller]
pub fn assert_took(what: &str, took: Duration, seconds: Range<f32>) {
    let most = if SHIPS { seconds.end } else { 4.0 * seconds.end };
    let took = took.as_secs_f32();
    assert!((seconds.start..most).contains(&took), "{what}: {took} s, not in {seconds:?}");
}

static TURN: RwLock<()> = RwLock::new(());

/// The turn of an ordinary test, which may run beside others of its kind. Take it once, first.
pub fn shared() -> RwLockReadGuard<'static, ()> {
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

/// The turn of a test that measures time or resources: no other test runs meanwhile.
pub fn quiet() -> RwLockWriteGuard<'static, ()> {
    TURN.write().unwrap_or_else(PoisonError::into_inner)
}

/// A temporary directory, which goes with the value.
pub fn temp_dir(name: &str) -> TempDir {
    let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir();
    dir.expect("make a temporary directory")
}

/// Locks even what a failed test has poisoned, so that one failure stays one failure.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks `probe` until it has something, or until `timeout`.
pub fn try_wait_for<T>(timeout: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    loop {
        // The clock is read first, so that the last look is never older than the deadline.
        let late = Instant::now() >= deadline;
        match probe() {
            None if !late => thread::sleep(Duration::from_millis(5)),
            answer => return answer,
        }
    }
}

/// Asks `probe` until it has something; panics with `what` at the deadline.
#[track_caller]
pub fn wait_for<T>(what: &str, timeout: Duration, probe: impl FnMut() -> Option<T>) -> T {
    match try_wait_for(timeout, probe) {
        Some(answer) => answer,
        None => panic!("waited {timeout:?} for {what}"),
    }
}

/// What happened and when: written by a fixture's threads, read by the test.
#[derive(Clone, Debug)]
pub struct Record<T>(Arc<Mutex<Vec<(Instant, T)>>>);

impl<T> Default for Record<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone> Record<T> {
    /// Adds what has happened just now.
    pub fn push(&self, entry: T) {
        let mut entries = lock(&self.0);
        entries.push((Instant::now(), entry));
    }

    /// Everything so far.
    pub fn all(&self) -> Vec<(Instant, T)> {
        lock(&self.0).clone()
    }

    /// When the `n`th entry that `wanted` accepts happened, once it has.
    pub fn nth(&self, n: usize, timeout: Duration, wanted: impl Fn(&T) -> bool) -> Option<Instant> {
        assert!(n > 0, "entries are counted from 1");
        try_wait_for(timeout, || {
            let entries = lock(&self.0);
            let mut found = entries.iter().filter(|(_, entry)| wanted(entry));
            found.nth(n - 1).map(|(at, _)| *at)
        })
    }
}
