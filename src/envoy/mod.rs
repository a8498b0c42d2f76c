//! Envoy's admin interface: the calls, and the replies to them.

pub mod admin;
pub mod error;
pub mod listeners;
pub mod stats;
pub mod transport;

use self::error::AdminError;
use self::stats::{Breakdown, StatsCoverage};
use crate::cli::options::WaitFor;
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
    /// `GET /ready`, for show: a call that takes long would keep a drain from starting.
    ShowState,
    /// `GET /stats`
    ReadStats,
    /// `GET /listeners`, compared with all listeners' gauges: finds those that have none. Of an Envoy
    /// that is starting it brings [`Reply::Ready`], since none of them listens yet.
    CheckListeners,
    /// `GET /stats`, of counters: how many connections and requests have come since Envoy's start. A
    /// quiet period needs it; else it is for show.
    ReadAccepted,
    /// `POST /healthcheck/ok`: restores Envoy to service.
    RestoreHealthChecks,
}

impl Call {
    /// Whether a drain goes on without it.
    pub const fn is_optional(self) -> bool {
        matches!(self, Self::CheckListeners | Self::ReadAccepted | Self::ShowState)
    }

    /// Whether its success ends an error of the call `failed`. Checks of readiness come between all
    /// others: a call that fails at each try is not well because one of these succeeds.
    pub fn ends_error_of(self, failed: Self) -> bool {
        self == failed || failed == Self::CheckReady
    }
}

/// How many kinds of [`Call`] there are.
const CALLS: usize = Call::RestoreHealthChecks as usize + 1;

/// What a successful [`Call`] brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    HealthChecksFailed,
    ListenersDraining,
    Ready(Health),
    Stats(Poll),
    Listeners(HiddenStats),
    /// None where Envoy's stats do not show it.
    Accepted(Option<Arrivals>),
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poll {
    /// Open downstream connections.
    pub open: u64,
    /// The same where nothing may be subtracted.
    pub unsubtracted: u64,
    /// What holds a drain that waits for requests.
    pub in_use: u64,
    /// Whether connections were subtracted for it, which may be wrong in a single poll.
    pub subtracted: bool,
    /// Which connections can be seen at all.
    pub coverage: StatsCoverage,
    pub health: Health,
    /// The second count, where Envoy shows it.
    pub total: Option<ServerTotal>,
    pub breakdown: Box<Breakdown>,
}

/// What has come to Envoy's listeners since its start, as its counters have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrivals {
    pub connections: u64,
    /// HTTP requests; none where Envoy's stats do not show them.
    pub requests: Option<u64>,
}

impl Poll {
    /// What holds a drain that waits for these.
    pub const fn holding(&self, wait_for: WaitFor) -> u64 {
        match wait_for {
            WaitFor::Connections => self.open,
            WaitFor::Requests => self.in_use,
        }
    }

    /// The same poll where nothing may be subtracted.
    pub fn without_subtraction(mut self) -> Self {
        let kinds = &mut self.breakdown.kinds;
        kinds.tcp = kinds.tcp.saturating_add(self.unsubtracted.saturating_sub(self.open));
        (self.open, self.in_use) = (self.unsubtracted, self.unsubtracted);
        self.subtracted = false;
        self
    }

    /// HTTP connections, upgraded ones included.
    pub const fn http(&self) -> u64 {
        self.breakdown.kinds.http.saturating_add(self.breakdown.kinds.upgraded)
    }
}

/// All connections of all workers, hidden ones included, as Envoy counted them at its last flush of
/// stats: by default up to 5 s ago, at most 5 minutes. At Envoy's start it is 0 until the first flush.
/// During a hot restart it may be too large, until the old process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerTotal {
    /// `server.total_connections`
    pub connections: u64,
    /// `server.uptime`, in seconds, which Envoy writes in the same moment: if it has changed, the
    /// count is new. It may be new without that, if flushes are less than a second apart.
    pub uptime: u64,
}

/// What Envoy's stats do not show of single listeners and HTTP stat prefixes, though a drain depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HiddenStats {
    /// Listeners that have no gauges, by name.
    pub listeners: Vec<String>,
    /// Whether all of these are hidden; else some are, or share another's `stat_prefix`.
    pub certain: bool,
    /// Those that are not counted, excluded or internal ones: which connections are theirs is unknown.
    pub uncounted: Vec<String>,
    /// An HTTP stat prefix that does not show what is still to be sent, for a drain that waits for requests.
    pub unsent: Option<String>,
    /// Whether counters are hidden by which a quiet period sees new connections, or requests.
    pub arrivals: bool,
}

#[cfg(test)]
impl Poll {
    /// Of an Envoy of which everything can be seen.
    pub fn of(open: u64, health: Health) -> Self {
        let coverage = StatsCoverage::Everything;
        let breakdown = Box::default();
        Self {
            open,
            unsubtracted: open,
            in_use: open,
            subtracted: false,
            coverage,
            health,
            total: None,
            breakdown,
        }
    }
}
