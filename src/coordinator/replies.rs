//! For the tests and for the model: what an Envoy out of service replies, and how the frontend waits.

use super::{Coordinator, WaitResult};
use crate::envoy::{Arrivals, Call, Health, HiddenStats, Poll, Reply};
use crate::route::Route;

/// Waits as the frontend does on behalf of a hook: looks again after each change.
pub fn wait(coordinator: &Coordinator, hook: &Route) -> WaitResult {
    let shared = &coordinator.0;
    let mut state = shared.lock();
    loop {
        if let Some(result) = state.wait_result(hook) {
            return result;
        }
        state = shared.wait(state, None);
    }
}

/// With this many connections open.
pub fn reply(call: Call, open: u64) -> Reply {
    match call {
        Call::FailHealthChecks => Reply::HealthChecksFailed,
        Call::DrainListeners => Reply::ListenersDraining,
        Call::RestoreHealthChecks => Reply::HealthChecksRestored,
        Call::CheckListeners => Reply::Listeners(HiddenStats::default()),
        Call::ReadAccepted => Reply::Accepted(Some(Arrivals { connections: open, requests: None })),
        Call::CheckReady | Call::ShowState => Reply::Ready(Health::Draining),
        Call::ReadStats => Reply::Stats(Poll::of(open, Health::Draining)),
    }
}
