//! Who waits for a drain, and when they are answered.

use super::{Change, HOOK_ANSWER_DELAY, WaitResult, Waiter, WaiterGuard, WaiterTracker};
use crate::drain::Phase;
use crate::os::clock::{self, Timestamp};
use crate::os::sync::Arc;
use crate::route::{PublicRoute, Route, Status};

impl WaiterTracker {
    /// A complete request of Envoy's hook has come, and waits for the drain of this number.
    pub fn envoy_hook(&self) -> (WaiterGuard, u64) {
        let mut state = self.0.lock();
        let awaited = state.machine.awaited_drain();
        state.envoy_hooks += 1;
        // Do not notify for every arrival: network clients could cause a wake-up storm.
        if state.machine.waiter_arrived(clock::now()) {
            self.0.request_step(state, Change::EnvoyHookArrived);
        }
        (WaiterGuard { shared: Arc::clone(&self.0), waiter: Waiter::EnvoyHook }, awaited)
    }

    /// An exec hook has come to wait for the end of its drain.
    pub fn exec_hook(&self) -> WaiterGuard {
        let mut state = self.0.lock();
        state.exec_hooks += 1;
        state.hooks_expected = state.hooks_expected.saturating_sub(1);
        WaiterGuard { shared: Arc::clone(&self.0), waiter: Waiter::ExecHook }
    }

    /// From when on a hook is to be answered: its drain has ended, which is logged, or none will come.
    pub fn answer_due(&self, hook: &Route) -> Option<Timestamp> {
        let state = self.0.lock();
        let others_wait = !hook.is_envoy_hook() && state.envoy_hooks > 0;
        state.wait_result(hook).map(|result| match result {
            WaitResult::Ended(_) if others_wait => state.ended_at + HOOK_ANSWER_DELAY,
            _ => Timestamp::ZERO,
        })
    }

    pub fn set_control_socket_lost(&self, lost: bool) {
        self.0.lock().control_socket_lost = lost;
    }

    /// When the drain in progress started.
    pub fn drain_start(&self) -> Option<Timestamp> {
        self.0.lock().machine.drain().map(|drain| drain.started)
    }

    /// Whether no drain is in progress or has just ended, so that a client that has waited for the
    /// start timeout is answered with 503.
    pub fn no_drain_active(&self) -> bool {
        self.0.lock().machine.phase() == Phase::Idle
    }

    /// Counts `times` responses of the public port; `route`: to what, where that could be known.
    pub fn count_responses(&self, route: Option<PublicRoute>, status: Status, times: u64) {
        self.0.lock().counters.count_responses(route, status, times);
    }

    /// Counts a connection to the public port that was evicted or not served, for want of a slot.
    pub fn count_rejected_connection(&self) {
        self.0.lock().counters.connections_rejected += 1;
    }
}

impl Drop for WaiterGuard {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        match self.waiter {
            Waiter::ExecHook => state.exec_hooks -= 1,
            Waiter::EnvoyHook => {
                state.envoy_hooks -= 1;
                if state.envoy_hooks > 0 {
                    return;
                }
                state.machine.last_waiter_left(clock::now());
                state.step_due = true;
            }
        }
        self.shared.notify(Change::WaiterLeft);
    }
}
