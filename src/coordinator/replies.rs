//! What an Envoy out of service replies, for the tests and for the model.

use crate::envoy::stats::StatsCoverage;
use crate::envoy::{Call, Health, Poll, Reply};

/// With this many connections open.
pub fn reply(call: Call, open: u64) -> Reply {
    match call {
        Call::FailHealthChecks => Reply::HealthChecksFailed,
        Call::DrainListeners => Reply::ListenersDraining,
        Call::RestoreHealthChecks => Reply::HealthChecksRestored,
        Call::CheckReady => Reply::Ready(Health::Draining),
        Call::ReadStats => {
            let coverage = StatsCoverage::Everything;
            Reply::Stats(Poll { open, coverage, health: Health::Draining })
        }
    }
}
