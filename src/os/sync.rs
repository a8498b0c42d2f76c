//! The locks around the coordinator's state: the standard library's, or loom's in
//! `coordinator/model.rs`, which tries every interleaving.

#[cfg(loom)]
pub use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
