//! How a drain ended, and where it stands until then.

use std::time::Duration;

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// At most the threshold of connections is open.
    Drained { open: u64 },
    /// The drain timeout passed first. `open`: at the last valid poll, if there was one.
    TimedOut { open: Option<u64> },
    /// Nothing listens at the admin address any more.
    EnvoyGone,
    /// Envoy's own hook did not come, so Envoy was left in service.
    NoEnvoyHook,
}

impl Outcome {
    #[must_use]
    pub const fn kind(self) -> OutcomeKind {
        match self {
            Self::Drained { .. } => OutcomeKind::Drained,
            Self::TimedOut { .. } => OutcomeKind::TimedOut,
            Self::EnvoyGone => OutcomeKind::EnvoyGone,
            Self::NoEnvoyHook => OutcomeKind::NoEnvoyHook,
        }
    }

    #[must_use]
    pub const fn name(self) -> &'static str {
        self.kind().name()
    }

    /// Connections open at the end, where that is known.
    #[must_use]
    pub const fn open(self) -> Option<u64> {
        match self {
            Self::Drained { open } => Some(open),
            Self::TimedOut { open } => open,
            Self::EnvoyGone => Some(0),
            Self::NoEnvoyHook => None,
        }
    }

    /// The outcome as a clause for an operator.
    #[must_use]
    pub fn explain(self) -> String {
        match self {
            Self::Drained { open: 0 } => "drained: no connection is open".to_owned(),
            Self::Drained { open } => format!("drained: {open} open, within the threshold"),
            Self::TimedOut { open: Some(open) } => {
                format!("gave up at the drain timeout: {open} open at the last poll")
            }
            Self::TimedOut { open: None } => {
                "gave up at the drain timeout, before the open connections could be counted"
                    .to_owned()
            }
            Self::EnvoyGone => {
                "Envoy is gone: nothing listens at its admin address, so nothing is left to drain"
                    .to_owned()
            }
            Self::NoEnvoyHook => {
                "Envoy left in service: its own hook did not come to /shutdown within 3s, so only \
                 the sidecar is being restarted"
                    .to_owned()
            }
        }
    }
}

/// An [`Outcome`] in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutcomeKind {
    Drained,
    TimedOut,
    EnvoyGone,
    NoEnvoyHook,
}

impl OutcomeKind {
    /// All of them, for a series each.
    pub const ALL: [Self; 4] = [Self::Drained, Self::TimedOut, Self::EnvoyGone, Self::NoEnvoyHook];

    /// As log, metrics, JSON and the control socket have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::TimedOut => "timed_out",
            Self::EnvoyGone => "envoy_gone",
            Self::NoEnvoyHook => "no_envoy_hook",
        }
    }

    /// The outcome of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether connections may have been open at the end.
    #[must_use]
    pub const fn gave_up(self) -> bool {
        matches!(self, Self::TimedOut)
    }

    /// Whether nothing is left that the drain would have waited for.
    #[must_use]
    pub const fn is_drained(self) -> bool {
        matches!(self, Self::Drained | Self::EnvoyGone)
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
    pub took: Duration,
}

/// Where the sidecar stands, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Idle,
    /// Envoy's own hook is required and has not come yet.
    AwaitingEnvoyHook,
    /// `--drain-delay`, and `--health-check-failure-delay` behind it.
    DrainDelay,
    FailingHealthChecks,
    /// `--check-delay`, and what is left of `--min-drain-duration`.
    CheckDelay,
    WaitingForConnections,
    /// Ended less than 30 s ago.
    Ended,
}

impl Phase {
    /// All phases, for a series each.
    pub const ALL: [Self; 7] = [
        Self::Idle,
        Self::AwaitingEnvoyHook,
        Self::DrainDelay,
        Self::FailingHealthChecks,
        Self::CheckDelay,
        Self::WaitingForConnections,
        Self::Ended,
    ];

    /// As log, metrics and JSON have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::AwaitingEnvoyHook => "awaiting_envoy_hook",
            Self::DrainDelay => "drain_delay",
            Self::FailingHealthChecks => "failing_health_checks",
            Self::CheckDelay => "check_delay",
            Self::WaitingForConnections => "waiting_for_connections",
            Self::Ended => "ended",
        }
    }
}
