//! What the operating system gives: a clock, descriptors, threads and locks.

pub mod clock;
pub mod descriptors;
pub mod labels;
pub mod output;
pub mod signals;
pub mod supervisor;
pub mod sync;
pub mod terminal;
pub mod waker;
