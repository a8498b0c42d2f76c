//! The locks that the manager's state is behind: the standard library's, or those of the model
//! that tries them in every order (`src/manager/model.rs`).

#[cfg(loom)]
pub use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
