//! The monotonic clock, which counts from boot; and the wall clock, which hook and sidecar read alike.

use std::ops::{Add, Sub};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A reading of a clock. Two of one clock have a distance and no sum.
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
    read(ClockId::CLOCK_MONOTONIC)
}

/// That of the wall clock, for what another process reads: a time namespace may set its other clocks
/// apart, and not this one (time_namespaces(7)).
pub fn wall_now() -> Timestamp {
    read(ClockId::CLOCK_REALTIME)
}

fn read(clock: ClockId) -> Timestamp {
    if cfg!(loom) {
        return Timestamp(Duration::from_secs(1_000)); // In the model time stands still.
    }
    // It fails on a clock that the kernel does not have, and these it always has.
    Timestamp(clock_gettime(clock).map(Duration::from).unwrap_or_default())
}
