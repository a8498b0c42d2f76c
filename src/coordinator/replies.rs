//! What an Envoy out of service replies, for the tests and for the model.

use crate::envoy::{Call, Health, HiddenListeners, Poll, Reply};

/// With this many connections open.
pub fn reply(call: Call, open: u64) -> Reply {
    match call {
        Call::FailHealthChecks => Reply::HealthChecksFailed,
        Call::DrainListeners => Reply::ListenersDraining,
        Call::RestoreHealthChecks => Reply::HealthChecksRestored,
        Call::CheckListeners => Reply::Listeners(HiddenListeners::default()),
        Call::CheckReady => Reply::Ready(Health::Draining),
        Call::ReadStats => Reply::Stats(Poll::of(open, Health::Draining)),
    }
}
