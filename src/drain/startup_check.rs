//! The check of Envoy while no drain is in progress: after the sidecar's start, and after a drain
//! in a pod that lives on.

use std::time::Duration;

use super::event::{DrainEvent, Events};
use crate::envoy::{Call, CallResult, Health, Reply};
use crate::os::clock::Timestamp;

/// Nothing is restored before this, since hooks begin up to 355 ms after a sidecar that was being
/// restarted when its pod was deleted (measured).
pub const RESTORE_DELAY: Duration = Duration::from_secs(2);

/// Check readiness up to 12 times, 5 s apart: Envoy may start later.
const STARTUP_CHECKS: u32 = 12;
const STARTUP_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// One that is still starting then may have been left out of service, and takes as long as its
/// control plane does: it is checked for as long as that takes.
const STARTING_CHECK_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub(super) struct StartupCheck {
    pub call: Call,
    pub due: Timestamp,
    tries_left: u32,
    /// How often Envoy was found starting.
    starting: u32,
    pub reason: CheckReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckReason {
    /// The sidecar has just started: check that Envoy can be counted; restore it if it is out of
    /// service and `restore` allows that.
    Startup { restore: bool },
    /// A drain has ended, and the pod lives on.
    AfterDrain,
}

impl StartupCheck {
    pub fn new(reason: CheckReason, due: Timestamp) -> Self {
        let tries_left = if reason == CheckReason::AfterDrain { 1 } else { STARTUP_CHECKS };
        Self { call: Call::CheckReady, due, tries_left, starting: 0, reason }
    }

    /// Whether an Envoy that is found out of service is restored.
    pub fn restores(&self) -> bool {
        self.reason == CheckReason::Startup { restore: true }
    }

    /// Starts over, at least [`RESTORE_DELAY`] from now: hooks may be on their way.
    pub fn postpone(&mut self, now: Timestamp) {
        self.due = self.due.max(now + RESTORE_DELAY);
        self.call = Call::CheckReady;
    }

    /// What remains to be checked.
    pub fn replied(
        mut self,
        result: &CallResult,
        now: Timestamp,
        events: &mut Events,
    ) -> Option<Self> {
        let after_drain = self.reason == CheckReason::AfterDrain;
        // Hooks came and left while the call was under way.
        let was_postponed = self.due > now;
        self.due = self.due.max(now);
        match result {
            Ok(Reply::Ready(Health::Draining)) if self.restores() && was_postponed => {}
            Ok(Reply::Ready(Health::Draining)) if self.restores() => {
                self.call = Call::RestoreHealthChecks;
            }
            Ok(Reply::Ready(Health::Draining)) if after_drain => {
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
            Ok(Reply::Ready(Health::Live)) if !after_drain => {
                self.call = Call::ReadStats;
            }
            Ok(Reply::Stats(poll)) => {
                events.push(DrainEvent::StartupCheckPassed(poll.clone()));
                self.call = Call::CheckListeners;
            }
            Ok(Reply::Listeners(hidden)) => {
                events.push(DrainEvent::ListenersCompared(hidden.clone()));
                return None;
            }
            // It may have been taken out of service before it had started.
            Ok(Reply::Ready(Health::Starting)) if !after_drain => {
                // It costs no try.
                self.call = Call::CheckReady;
                self.starting += 1;
                let slow = self.starting >= STARTUP_CHECKS;
                self.due =
                    now + if slow { STARTING_CHECK_INTERVAL } else { STARTUP_CHECK_INTERVAL };
                if self.starting == STARTUP_CHECKS {
                    events.push(DrainEvent::StillStarting);
                }
            }
            Err(error) if error.is_refusal() => {
                // This Envoy is younger than the sidecar, so no previous run of the sidecar has
                // taken it out of service.
                if let CheckReason::Startup { restore } = &mut self.reason {
                    *restore = false;
                }
                self.retry(now);
            }
            Err(error) if self.call == Call::CheckListeners => {
                events.push(DrainEvent::ListenersNotCompared(error.clone()));
                return None;
            }
            Err(_) if self.call != Call::ReadStats => self.retry(now),
            _ => return None,
        }
        if self.tries_left == 0 && !after_drain {
            events.push(DrainEvent::NeverReady);
        }
        Some(self).filter(|check| check.tries_left > 0)
    }

    fn retry(&mut self, now: Timestamp) {
        self.tries_left -= 1;
        self.call = Call::CheckReady;
        self.due = now + STARTUP_CHECK_INTERVAL;
    }
}
