//! What Envoy's overload manager is to read of a drain (`--injected-resource`): how much of its time has
//! passed, once Envoy is out of service.

use std::time::Duration;

use super::stages::{Drain, Stage};
use crate::os::clock::Timestamp;

/// Envoy reads a new value within a second, unless its `refresh_interval` is longer.
const PRESSURE_READ: Duration = Duration::from_secs(10);

/// All of the timeout has passed, in hundredths.
const MAX_PRESSURE: u8 = 100;

impl Drain {
    /// What the file of `--injected-resource` is to hold, in hundredths: how much of the timeout has
    /// passed, once Envoy is out of service. None: what it holds.
    pub(super) fn pressure(&self, now: Timestamp) -> Option<u8> {
        if matches!(self.stage, Stage::ConfirmingOutcome(_) | Stage::Ending(_)) {
            return None;
        }
        if self.failed_at.is_none() {
            return Some(0);
        }
        let Some(timeout) = self.options.drain_timeout else { return Some(MAX_PRESSURE) };
        let passed = (now - self.started).as_nanos() * u128::from(MAX_PRESSURE);
        let passed = passed
            .checked_div(timeout.as_nanos())
            .map_or(MAX_PRESSURE, |passed| u8::try_from(passed).unwrap_or(MAX_PRESSURE));
        Some(passed.clamp(1, MAX_PRESSURE))
    }

    /// When that is more than so much, if it grows.
    pub fn pressure_grows(&self, hundredths: u8) -> Option<Timestamp> {
        let timeout = self.options.drain_timeout.filter(|_| self.failed_at.is_some())?;
        let more = (hundredths < MAX_PRESSURE).then(|| u32::from(hundredths) + 1)?;
        // A fraction of a nanosecond later than it could be.
        Some(self.started + timeout / u32::from(MAX_PRESSURE) * more + Duration::from_nanos(100))
    }

    /// Whether Envoy should have read that by now.
    pub fn pressure_was_due(&self, now: Timestamp) -> bool {
        self.failed_at.is_some_and(|failed| failed + PRESSURE_READ <= now)
    }
}
