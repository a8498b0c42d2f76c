//! What is shown, and whether it is fresh.

use std::time::Duration;

use super::{Change, DrainObserver, WaitResult};
use crate::cli::options::Overrides;
use crate::observe::status::{Progress, Snapshot, whole};
use crate::os::clock::{self, Timestamp};
use crate::route::Route;

/// Envoy's state is shown as it is when it is no older than this; else it is checked.
const MAX_STATE_AGE: Duration = Duration::from_secs(1);

impl DrainObserver {
    /// How things stand.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.0.lock();
        let machine = &state.machine;
        let options = machine.in_force();
        Snapshot {
            now: clock::now(),
            wall_now: clock::wall_now(),
            phase: machine.phase(),
            phase_since: state.phase_since,
            drain: machine.number(),
            requested: state.requested.clone(),
            progress: machine.drain().map(Progress::of),
            threshold: options.min_open_connections,
            wait_for: options.wait_for,
            last: machine.last().cloned().map(|ended| (ended, state.ended_at)),
            history: state.history.clone(),
            envoy_hooks: state.envoy_hooks,
            exec_hooks: state.exec_hooks,
            counters: state.counters.clone(),
            admin_address: options.admin_address.to_string(),
            worker_running: state.worker_running,
            injected: state.injected.hundredths(),
        }
    }

    /// Has the worker check Envoy, where what is known is older than a second: a later snapshot shows
    /// it. `in_drain`: has it count connections in a delay, too, where a drain does not of itself.
    pub fn refresh(&self, in_drain: bool) {
        let mut state = self.0.lock();
        let is_old = |at: Timestamp| at + MAX_STATE_AGE <= clock::now();
        let wanted = match state.machine.drain() {
            Some(_) => in_drain,
            None => state.counters.envoy_seen.is_none_or(is_old),
        };
        if wanted && state.machine.refresh() {
            self.0.request_step(state, Change::Requested);
        }
    }

    /// # Errors
    /// A sentence, when no drain would go on or start.
    pub fn health(&self) -> Result<(), &'static str> {
        let state = self.0.lock();
        match state.worker_running {
            _ if state.control_socket_lost => Err("no hook finds the control socket\n"),
            false => Err("the worker is down\n"),
            true => Ok(()),
        }
    }

    /// A line for a hook with these options that has joined the drain in progress; empty if that has just
    /// ended.
    pub fn explain_join(&self, overrides: &Overrides) -> String {
        let state = self.0.lock();
        let Some(drain) = state.machine.drain() else { return String::new() };
        let ignored = drain.options.changes(overrides, "drain");
        format!(
            "joined drain {}, in progress for {}, phase {}; ignored options: {}\n",
            state.machine.number(),
            whole(clock::now() - drain.started),
            state.machine.phase().name(),
            if ignored.is_empty() { "none" } else { &ignored }
        )
    }

    /// How the wait of a hook ends, once it does; the log says so before the hook learns it.
    pub fn wait_result(&self, hook: &Route) -> Option<WaitResult> {
        let result = self.0.lock().wait_result(hook);
        self.0.write_log();
        result
    }
}
