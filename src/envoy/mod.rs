//! Envoy's admin interface: the calls, and the replies to them.

pub mod admin;
pub mod error;
pub mod stats;
pub mod transport;

use self::error::AdminError;
use self::stats::StatsCoverage;
use crate::labels;

/// What the drain calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `POST /healthcheck/fail`: takes Envoy out of service.
    FailHealthChecks,
    /// `POST /drain_listeners?graceful&skip_exit`
    DrainListeners,
    /// `GET /ready`
    CheckReady,
    /// `GET /stats`
    ReadStats,
    /// `POST /healthcheck/ok`: restores Envoy to service.
    RestoreHealthChecks,
}

/// What a successful [`Call`] brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    HealthChecksFailed,
    ListenersDraining,
    Ready(Health),
    Stats(Poll),
    HealthChecksRestored,
}

labels! {
    /// Envoy's state, as `/ready` has it.
    pub enum Health {
        Live = "LIVE",
        /// Its health checks are failed.
        Draining = "DRAINING",
        /// `PRE_INITIALIZING` or this, which says nothing about failed health checks.
        Starting = "INITIALIZING",
    }
}

/// What comes of a [`Call`].
pub type CallResult = Result<Reply, AdminError>;

/// A valid poll of Envoy's stats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poll {
    /// Open downstream connections.
    pub open: u64,
    /// Which connections can be seen at all.
    pub coverage: StatsCoverage,
    pub health: Health,
}
