//! The monotonic clock, which the hook and the sidecar read alike: it counts from boot, in
//! every container of a pod.

use std::ops::{Add, Sub};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A reading of the monotonic clock. Two of them have a distance and no sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(Duration);

impl Timestamp {
    /// Boot.
    pub const ZERO: Self = Self(Duration::ZERO);
    /// Never.
    pub const MAX: Self = Self(Duration::MAX);

    /// This long after boot.
    pub const fn from_boot(time: Duration) -> Self {
        Self(time)
    }

    /// The time since boot.
    pub const fn since_boot(self) -> Duration {
        self.0
    }
}

/// Saturates: a time too far away is [`Timestamp::MAX`].
impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

/// Saturates: there is no negative time.
impl Sub for Timestamp {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// The reading of the clock now.
pub fn now() -> Timestamp {
    if cfg!(loom) {
        return Timestamp(Duration::from_secs(1_000)); // In the model time stands still.
    }
    // It fails on a clock that the kernel does not have, and this one it always has.
    let reading = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    Timestamp(reading.unwrap_or_default())
}
