//! How a drain ended, and where it stands until then.

use std::time::Duration;

use super::accepted::Accepted;
use crate::cli::options::WaitFor;
use crate::envoy::Poll;
use crate::labels;

labels! {
    /// How a drain ended.
    pub enum OutcomeKind {
        /// At most the threshold of connections is open.
        Drained = "drained",
        /// The drain timeout passed first.
        TimedOut = "timed_out",
        /// An operator ended it first.
        Released = "released",
        /// Nothing listens at the admin address any more.
        EnvoyGone = "envoy_gone",
        /// Envoy's own hook did not come, so Envoy was left in service.
        NoEnvoyHook = "no_envoy_hook",
    }
}

impl OutcomeKind {
    /// Whether it ended though connections may be open: at its timeout, or as one released.
    pub const fn gave_up(self) -> bool {
        matches!(self, Self::TimedOut | Self::Released)
    }

    /// Whether nothing is left that the drain would have waited for.
    pub const fn nothing_left(self) -> bool {
        matches!(self, Self::Drained | Self::EnvoyGone)
    }
}

/// How a drain ended, and how many connections were open then, where that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub kind: OutcomeKind,
    pub open: Option<u64>,
    /// How many of them, or of requests in flight, held the drain: all, unless it waited for requests.
    pub holding: Option<u64>,
}

impl Outcome {
    pub const NO_ENVOY_HOOK: Self = Self::of(OutcomeKind::NoEnvoyHook, None, WaitFor::Connections);

    /// `poll`: the last valid one, if there was one.
    pub const fn of(kind: OutcomeKind, poll: Option<&Poll>, wait_for: WaitFor) -> Self {
        let (open, holding) = match poll {
            Some(poll) => (Some(poll.open), Some(poll.holding(wait_for))),
            None => (None, None),
        };
        Self { kind, open, holding }
    }

    #[cfg(test)]
    pub const fn drained(open: u64) -> Self {
        Self { kind: OutcomeKind::Drained, open: Some(open), holding: Some(open) }
    }

    #[cfg(test)]
    pub const fn timed_out(open: Option<u64>) -> Self {
        Self { kind: OutcomeKind::TimedOut, open, holding: open }
    }

    #[cfg(test)]
    pub const fn released(open: Option<u64>) -> Self {
        Self { kind: OutcomeKind::Released, open, holding: open }
    }

    #[cfg(test)]
    pub const fn envoy_gone(open: Option<u64>) -> Self {
        Self { kind: OutcomeKind::EnvoyGone, open, holding: open }
    }

    /// The outcome as a clause for an operator.
    pub fn explain(self) -> String {
        let text = self.explain_open();
        match self.holding.filter(|holding| Some(*holding) != self.open) {
            Some(0) => format!("{text}; none of them has a request in flight, or is not HTTP"),
            Some(holding) => {
                format!("{text}; {holding} requests in flight and connections other than HTTP")
            }
            None => text,
        }
    }

    fn explain_open(self) -> String {
        let text = match (self.kind, self.open) {
            (OutcomeKind::Drained, Some(open @ 1..)) if self.holding != self.open => {
                return format!("drained: {open} open");
            }
            (OutcomeKind::Drained, Some(open @ 1..)) => {
                return format!("drained: {open} open, within the threshold");
            }
            (OutcomeKind::Drained, _) => "drained: no connection is open",
            (OutcomeKind::TimedOut, Some(open)) => {
                return format!("gave up at the drain timeout: {open} open at the last poll");
            }
            (OutcomeKind::TimedOut, None) => {
                "gave up at the drain timeout, before the open connections could be counted"
            }
            (OutcomeKind::Released, Some(open)) => {
                return format!("released by an operator: {open} open at the last poll");
            }
            (OutcomeKind::Released, None) => {
                "released by an operator, before the open connections could be counted"
            }
            (OutcomeKind::EnvoyGone, Some(open @ 1..)) => {
                return format!(
                    "Envoy is gone: nothing listens at its admin address; {open} open at the last poll"
                );
            }
            (OutcomeKind::EnvoyGone, Some(0)) => {
                "Envoy is gone: nothing listens at its admin address, so nothing is left to drain"
            }
            (OutcomeKind::EnvoyGone, None) => {
                "Envoy is gone: nothing listens at its admin address; its open connections were not \
                 counted"
            }
            (OutcomeKind::NoEnvoyHook, _) => {
                "Envoy left in service: its own hook did not come to /shutdown within 3s, as it would \
                 if the pod were being deleted; to drain by hand add --require-envoy-hook=false"
            }
        };
        text.to_owned()
    }
}

/// A drain that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The first drain is number 1.
    pub number: u64,
    pub outcome: Outcome,
    /// Connections that were allowed to be open.
    pub threshold: u64,
    /// Whether Envoy's own hook came.
    pub envoy_hook: bool,
    pub took: Duration,
    /// The last valid poll, and how old it was at the end.
    pub last_poll: Option<(Poll, Duration)>,
    pub accepted: Accepted,
}

labels! {
    /// Where the sidecar stands.
    pub enum Phase {
        Idle = "idle",
        /// Envoy's own hook is required and has not come yet.
        AwaitingEnvoyHook = "awaiting_envoy_hook",
        /// `--drain-delay`, and `--health-check-failure-delay` behind it.
        DrainDelay = "drain_delay",
        FailingHealthChecks = "failing_health_checks",
        /// `--check-delay`, and what is left of `--min-drain-duration`.
        CheckDelay = "check_delay",
        WaitingForConnections = "waiting_for_connections",
        /// Ended less than 30 s ago.
        Ended = "ended",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::Health;

    #[test]
    fn an_outcome_says_what_was_open_and_what_of_it_held_the_drain() {
        for (kind, open, in_use, text) in [
            (OutcomeKind::Drained, 0, 0, "drained: no connection is open"),
            (OutcomeKind::Drained, 2, 2, "drained: 2 open, within the threshold"),
            (
                OutcomeKind::Drained,
                5,
                0,
                "drained: 5 open; none of them has a request in flight, or is not HTTP",
            ),
            (
                OutcomeKind::Drained,
                5,
                2,
                "drained: 5 open; 2 requests in flight and connections other than HTTP",
            ),
            (
                OutcomeKind::TimedOut,
                1,
                10,
                "gave up at the drain timeout: 1 open at the last poll; 10 requests in flight and \
                 connections other than HTTP",
            ),
        ] {
            let poll = Poll { in_use, ..Poll::of(open, Health::Draining) };
            let outcome = Outcome::of(kind, Some(&poll), WaitFor::Requests);
            assert_eq!(outcome.explain(), text);
        }
    }
}
