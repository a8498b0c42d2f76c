//! What starts and ends a drain, and restores Envoy: the control socket's commands.

use super::{Change, DrainTrigger, StartError, State};
use crate::cli::drain_request::DrainRequest;
use crate::drain::{DrainStart, Phase};
use crate::observe::log::Record;
use crate::observe::messages;
use crate::os::clock;

impl DrainTrigger {
    /// Starts a drain with the sidecar's options and the request's in their place, or joins the
    /// one in progress.
    ///
    /// # Errors
    /// When the request has expired, or the sidecar stops.
    pub fn start(&self, request: &DrainRequest) -> Result<DrainStart, StartError> {
        if request.expires.is_some_and(|expires| clock::wall_now() > expires) {
            return Err(StartError::Expired);
        }
        let mut state = self.0.lock();
        let now = clock::now();
        if state.machine.is_over() {
            return Err(StartError::Stopping);
        }
        let start = state.machine.request(&request.overrides, now);
        let start = start.map_err(StartError::OtherEnvoy)?;
        if let DrainStart::Started(_) = start {
            state.drain_started(request.overrides.list(), now);
        }
        state.hooks_expected += 1;
        state.hook_expected_at = now;
        let State { machine, log, records, .. } = &mut *state;
        records.extend(log.drain_started(start, &request.overrides, machine, now));
        self.0.request_step(state, Change::DrainStarted);
        Ok(start)
    }

    /// Ends the drain in progress as its timeout would. Returns its number; none where there is no drain.
    /// `by`: who asks, for the log.
    pub fn release(&self, by: &str) -> Option<u64> {
        let mut state = self.0.lock();
        let number = state.machine.release()?;
        let record = Record::warn(messages::RELEASE_REQUESTED);
        state.records.push(record.with("drain", number).with("by", by));
        self.0.request_step(state, Change::Requested);
        Some(number)
    }

    /// Has the worker restore Envoy to service. Returns the number of the request, for
    /// [`Self::restored`]. `by`: who asks, for the log.
    ///
    /// # Errors
    /// While a drain is in progress, which would only take Envoy out of service again, and when the
    /// sidecar stops: the phase.
    pub fn restore(&self, by: &str) -> Result<u64, Phase> {
        let mut state = self.0.lock();
        let phase = state.machine.phase();
        if state.machine.is_over() || !state.machine.restore() {
            return Err(phase);
        }
        if state.restore.1.is_some() || state.restore.0 == 0 {
            state.restore = (state.restore.0 + 1, None);
        }
        let number = state.restore.0;
        state.records.push(Record::info(messages::RESTORE_REQUESTED).with("by", by));
        self.0.request_step(state, Change::Requested);
        Ok(number)
    }

    /// What came of the request to restore Envoy of this number, or of a later one; none as long as
    /// nothing has.
    pub fn restored(&self, number: u64) -> Option<Result<(), String>> {
        let state = self.0.lock();
        if number > state.restore.0 {
            return Some(Err("there was no such request".to_owned()));
        }
        state.restore.1.clone()
    }
}
