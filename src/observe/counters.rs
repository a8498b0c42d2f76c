//! What status and metrics keep of what has happened since the sidecar's start.

use crate::drain::{DrainEvent, OutcomeKind};
use crate::envoy::error::AdminErrorKind;
use crate::envoy::stats::StatsCoverage;
use crate::envoy::{Call, HiddenListeners};
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
    /// The call to Envoy that failed last, and why, until it succeeds.
    pub error: Option<(Call, String)>,
    /// What the latest poll could count.
    pub coverage: StatsCoverage,
    /// What the latest comparison of listeners and gauges has shown.
    pub hidden: HiddenListeners,
}

impl Counters {
    pub fn record(&mut self, event: &DrainEvent) {
        match event {
            DrainEvent::CallSucceeded(call) => {
                self.error.take_if(|(failed, _)| call.ends_error_of(*failed));
                self.polls += u64::from(*call == Call::ReadStats);
            }
            DrainEvent::CallFailed { call: Call::CheckListeners, error } if !error.is_refusal() => {
            }
            DrainEvent::CallFailed { call, error } => {
                // Any call may be the one that finds Envoy gone, and any that succeeds finds it back.
                let call = if *call == Call::CheckListeners { &Call::CheckReady } else { call };
                // What a check meets says less than what the drain waits for.
                let stands = self.error.as_ref().is_some_and(|(failed, _)| *failed != *call);
                if *call != Call::CheckReady || !stands {
                    self.error = Some((*call, error.text.clone()));
                }
                if *call == Call::ReadStats {
                    self.polls += 1;
                    self.poll_errors[error.kind as usize] += 1;
                }
            }
            DrainEvent::Polled(poll) | DrainEvent::StartupCheckPassed(poll) => {
                self.coverage = poll.coverage;
            }
            DrainEvent::ListenersCompared(hidden) => self.hidden = hidden.clone(),
            DrainEvent::Ended(ended) => self.drains[ended.outcome.kind as usize] += 1,
            _ => {}
        }
    }

    /// Why a call to Envoy failed, if none has succeeded since.
    pub fn last_error(&self) -> Option<&str> {
        self.error.as_ref().map(|(_, text)| text.as_str())
    }

    /// Counts `times` responses of the public port; `route`: to what, where that could be known.
    pub fn count_responses(&mut self, route: Option<PublicRoute>, status: Status, times: u64) {
        let row = route.map_or(PublicRoute::ALL.len(), |route| route as usize);
        self.requests[row][status as usize] += times;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::error::AdminError;

    #[test]
    fn a_refusal_is_shown_whichever_call_meets_it_until_one_succeeds() {
        for call in [Call::CheckListeners, Call::CheckReady] {
            for ends in [Call::CheckListeners, Call::CheckReady, Call::ReadStats] {
                let mut counters = Counters::default();
                let failed = |kind| {
                    let error = AdminError { kind, text: "why".to_owned() };
                    DrainEvent::CallFailed { call, error }
                };
                counters.record(&failed(AdminErrorKind::Refused));
                assert_eq!(counters.last_error(), Some("why"));
                counters.record(&DrainEvent::CallSucceeded(ends));
                assert_eq!(counters.last_error(), None);
            }
        }
    }

    #[test]
    fn what_the_startup_check_can_count_is_shown_before_any_drain() {
        use crate::envoy::{Health, Poll};
        let mut counters = Counters::default();
        let coverage = StatsCoverage::HttpOnly;
        let poll = Poll { coverage, ..Poll::of(0, Health::Live) };
        counters.record(&DrainEvent::StartupCheckPassed(poll));
        assert_eq!(counters.coverage, coverage, "the status says that everything can be counted");
    }

    #[test]
    fn an_error_of_a_check_does_not_hide_what_the_drain_waits_for() {
        let mut counters = Counters::default();
        let failed = |call, text: &str| {
            let error = AdminError { kind: AdminErrorKind::Timeout, text: text.to_owned() };
            DrainEvent::CallFailed { call, error }
        };
        counters.record(&failed(Call::CheckReady, "an earlier check"));
        counters.record(&failed(Call::ReadStats, "a poll"));
        counters.record(&failed(Call::CheckReady, "a check"));
        assert_eq!(counters.last_error(), Some("a poll"));
        counters.record(&DrainEvent::CallSucceeded(Call::CheckReady));
        assert_eq!(counters.last_error(), Some("a poll"), "polls still fail");
        counters.record(&failed(Call::FailHealthChecks, "another"));
        assert_eq!(counters.last_error(), Some("another"), "the latest that is no check");
    }
}
