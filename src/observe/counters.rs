//! What status and metrics keep of what has happened since the sidecar's start.

use crate::drain::{DrainEvent, OutcomeKind};
use crate::envoy::Call;
use crate::envoy::error::AdminErrorKind;
use crate::envoy::stats::StatsCoverage;
use crate::route::{PublicRoute, Status};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Polls of Envoy's stats, failed ones included.
    pub polls: u64,
    /// Failed polls, by [`AdminErrorKind`].
    pub poll_errors: [u64; AdminErrorKind::ALL.len()],
    /// Ended drains, by [`OutcomeKind`].
    pub drains: [u64; OutcomeKind::ALL.len()],
    /// Responses of the public port, by [`PublicRoute`] (the last row is for no route) and
    /// [`Status`].
    pub requests: [[u64; Status::ALL.len()]; PublicRoute::ALL.len() + 1],
    /// Connections to the public port that were evicted or not served, for want of a slot.
    pub connections_rejected: u64,
    /// Why the latest call to Envoy failed, if it did.
    pub last_error: Option<String>,
    /// What the latest poll could count.
    pub coverage: StatsCoverage,
}

impl Counters {
    pub fn record(&mut self, event: &DrainEvent) {
        match event {
            DrainEvent::CallSucceeded => self.last_error = None,
            DrainEvent::CallFailed { call, error } => {
                self.last_error = Some(error.text.clone());
                if *call == Call::ReadStats {
                    self.polls += 1;
                    self.poll_errors[error.kind as usize] += 1;
                }
            }
            DrainEvent::Polled(poll) | DrainEvent::StartupCheckPassed(poll) => {
                self.polls += 1;
                self.coverage = poll.coverage;
            }
            DrainEvent::Ended(ended) => self.drains[ended.outcome.kind as usize] += 1,
            _ => {}
        }
    }

    /// Counts `times` responses of the public port; `route`: to what, where that could be known.
    pub fn count_responses(&mut self, route: Option<PublicRoute>, status: Status, times: u64) {
        let row = route.map_or(PublicRoute::ALL.len(), |route| route as usize);
        self.requests[row][status as usize] += times;
    }
}
