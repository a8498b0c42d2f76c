//! The check of Envoy while no drain is in progress: after the sidecar's start, and after a drain
//! in a pod that lives on.

use std::time::Duration;

use super::event::DrainEvent;
use crate::envoy::error::AdminError;
use crate::envoy::{Call, Health, Reply};
use crate::os::clock::Timestamp;

/// Nothing is restored before this, since hooks begin up to 355 ms after a sidecar that was being
/// restarted when its pod was deleted (measured).
pub const RESTORE_DELAY: Duration = Duration::from_secs(2);

/// Envoy may start after the sidecar: it is checked this often, this far apart.
const STARTUP_CHECKS: u32 = 12;
const STARTUP_CHECK_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(super) struct StartupCheck {
    pub call: Call,
    pub due: Timestamp,
    tries_left: u32,
    reason: CheckReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CheckReason {
    /// The sidecar has just started: what can be counted, and, where this is allowed, an Envoy
    /// that is out of service is restored.
    Startup { restore: bool },
    /// A drain has ended, and the pod lives on.
    AfterDrain,
}

impl StartupCheck {
    pub fn at_startup(now: Timestamp, restore: bool) -> Self {
        let reason = CheckReason::Startup { restore };
        Self {
            call: Call::CheckReady,
            due: now + RESTORE_DELAY,
            tries_left: STARTUP_CHECKS,
            reason,
        }
    }

    pub fn after_drain(now: Timestamp) -> Self {
        Self { call: Call::CheckReady, due: now, tries_left: 1, reason: CheckReason::AfterDrain }
    }

    /// Whether an Envoy that is found out of service is restored.
    pub fn restores(&self) -> bool {
        self.reason == CheckReason::Startup { restore: true }
    }

    pub fn is_after_drain(&self) -> bool {
        self.reason == CheckReason::AfterDrain
    }

    /// Begins again: hooks may be coming.
    pub fn postpone(&mut self, now: Timestamp) {
        self.due = self.due.max(now + RESTORE_DELAY);
        self.call = Call::CheckReady;
    }

    /// What remains to be checked.
    pub fn replied(
        mut self,
        result: &Result<Reply, AdminError>,
        now: Timestamp,
        events: &mut Vec<DrainEvent>,
    ) -> Option<Self> {
        self.due = now;
        match result {
            Ok(Reply::Ready(Health::Draining)) if self.restores() => {
                self.call = Call::RestoreHealthChecks;
            }
            Ok(Reply::Ready(Health::Draining)) if self.is_after_drain() => {
                events.push(DrainEvent::StillOutOfService);
                return None;
            }
            Ok(Reply::Ready(Health::Draining)) => {
                events.push(DrainEvent::NotRestored);
                self.call = Call::ReadStats;
            }
            Ok(Reply::HealthChecksRestored) => {
                events.push(DrainEvent::Restored);
                self.call = Call::ReadStats;
            }
            Ok(Reply::Ready(Health::Live)) if !self.is_after_drain() => {
                self.call = Call::ReadStats;
            }
            Ok(Reply::Stats(poll)) => {
                events.push(DrainEvent::EnvoyResponds(*poll));
                return None;
            }
            // It may have been taken out of service before it had started.
            Ok(Reply::Ready(Health::Starting)) => self.retry(now),
            Err(error) if error.is_refusal() => {
                // This Envoy is younger than the sidecar, so no previous run of the sidecar has
                // taken it out of service.
                if let CheckReason::Startup { restore } = &mut self.reason {
                    *restore = false;
                }
                self.retry(now);
            }
            Err(_) if self.call != Call::ReadStats => self.retry(now),
            _ => return None,
        }
        if self.tries_left == 0 {
            if !self.is_after_drain() {
                events.push(DrainEvent::NeverReady);
            }
            return None;
        }
        Some(self)
    }

    fn retry(&mut self, now: Timestamp) {
        self.tries_left -= 1;
        self.call = Call::CheckReady;
        self.due = now + STARTUP_CHECK_INTERVAL;
    }
}
