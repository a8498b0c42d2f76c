//! The monotonic clock, which the hook and the sidecar read alike: it counts from the start of
//! the machine, in every container of a pod.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The reading of the clock now.
#[must_use]
pub fn now() -> Duration {
    if cfg!(loom) {
        return Duration::from_secs(1_000); // In the model time stands still.
    }
    // It fails on a clock that the kernel does not have, and this one it always has.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}
