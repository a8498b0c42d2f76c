//! The locks of the coordinator's state: the standard library's, or those of the model that tries
//! them in every order (`src/coordinator/model.rs`).

#[cfg(loom)]
pub use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
