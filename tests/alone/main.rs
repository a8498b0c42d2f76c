//! Tests that need the machine for themselves: timing, memory, containers, attacks. They run one at
//! a time, and cargo runs no other test program meanwhile.

#![allow(clippy::expect_used, reason = "a step that fails is a test that fails")]

mod attacks;
mod balancer;
#[cfg(all(target_env = "musl", not(debug_assertions)))]
mod container;
mod idle;
mod race;
mod requests;
#[path = "../process/support/mod.rs"]
mod support;
#[cfg(all(target_env = "musl", not(debug_assertions)))]
mod timing;

use std::sync::{Mutex, MutexGuard};

static TURN: Mutex<()> = Mutex::new(());

/// The turn of a test. Take it once, first.
fn take_turn() -> MutexGuard<'static, ()> {
    support::lock(&TURN)
}
