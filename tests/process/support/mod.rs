//! What the tests stand on: a real Envoy and its clients, a scripted admin interface, the sidecar
//! and its hooks as processes, and steps that wait for a condition rather than for a time.
//!
//! `example.rs` shows how a test uses them.

#![allow(dead_code, unused_imports, reason = "each test program uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a fixture that cannot do its part fails the test"
)]

pub mod admin_proxy;
pub mod balancer;
pub mod cases;
pub mod client;
pub mod elf;
pub mod envoy;
pub mod envoy_binary;
pub mod envoy_clients;
pub mod fake_admin;
pub mod http;
pub mod log;
pub mod net;
pub mod prelude;
pub mod pressure_file;
pub mod process;
pub mod requests;
pub mod sidecar;
pub mod status;
pub mod steps;
pub mod terminal;
pub mod words;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a test waits for a condition; only a failing test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The build whose times and memory are promised.
pub const SHIPS: bool = cfg!(all(target_env = "musl", not(debug_assertions)));

/// Asserts that something took this many seconds. Any other build than the one that ships may take
/// four times as long, on a machine that may be busy.
#[track_caller]
pub fn assert_took(what: &str, took: Duration, seconds: Range<f32>) {
    let max = if SHIPS { seconds.end } else { 4.0 * seconds.end };
    let took = took.as_secs_f32();
    assert!((seconds.start..max).contains(&took), "{what}: {took} s, not in {seconds:?}");
}

/// A temporary directory, removed when the value is dropped.
pub fn temp_dir(name: &str) -> TempDir {
    let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir();
    dir.expect("make a temporary directory")
}

/// Locks even a mutex that a failed test has poisoned, so that one failure stays one failure.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `probe` until it returns something, or until `timeout`.
pub fn try_wait_for<T>(timeout: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    loop {
        // The clock is read first, so that the last probe is never older than the deadline.
        let late = Instant::now() >= deadline;
        match probe() {
            None if !late => thread::sleep(Duration::from_millis(5)),
            result => return result,
        }
    }
}

/// Calls `probe` until it returns something; panics with `what` after [`PATIENCE`].
#[track_caller]
pub fn wait_for<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    match try_wait_for(PATIENCE, probe) {
        Some(result) => result,
        None => panic!("waited {PATIENCE:?} for {what}"),
    }
}

/// Observes until the value is `wanted`; panics with `what` and the last value after [`PATIENCE`].
#[track_caller]
pub fn wait_value<T: Debug>(
    what: &str,
    mut observe: impl FnMut() -> T,
    wanted: impl Fn(&T) -> bool,
) -> T {
    let mut last = None;
    let found = try_wait_for(PATIENCE, || {
        let value = observe();
        let (right, other) = if wanted(&value) { (Some(value), None) } else { (None, Some(value)) };
        last = other;
        right
    });
    found.unwrap_or_else(|| panic!("waited {PATIENCE:?} for {what}; last seen: {last:?}"))
}

/// Waits until a condition holds; panics with `what` after [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Events and when they happened: written by a fixture's threads, read by the test.
#[derive(Clone, Debug)]
pub struct Timeline<T>(Arc<Mutex<Vec<(Instant, T)>>>);

impl<T> Default for Timeline<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone> Timeline<T> {
    /// Adds an event that happened just now.
    pub fn push(&self, event: T) {
        let mut events = lock(&self.0);
        events.push((Instant::now(), event));
    }

    pub fn all(&self) -> Vec<(Instant, T)> {
        lock(&self.0).clone()
    }

    /// When the `n`th event that `wanted` accepts happened, once it has.
    pub fn nth(&self, n: usize, timeout: Duration, wanted: impl Fn(&T) -> bool) -> Option<Instant> {
        assert!(n > 0, "events are counted from 1");
        try_wait_for(timeout, || {
            let events = lock(&self.0);
            let mut found = events.iter().filter(|(_, event)| wanted(event));
            found.nth(n - 1).map(|(at, _)| *at)
        })
    }
}
