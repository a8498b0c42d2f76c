//! What the operating system gives: a clock, descriptors, threads and locks.

pub mod clock;
pub mod labels;
pub mod limits;
pub mod supervisor;
pub mod sync;
