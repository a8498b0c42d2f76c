//! Clients that wait: for a slot, for their drain, and no longer than they may.

use super::admission::{self, Admission, ConnectionId, Waiter};
use super::connection::{Connection, ConnectionState, Wait};
use super::request::Request;
use super::{Frontend, RESPONSE_TIMEOUT, Timeouts, find};
use crate::coordinator::WaiterTracker;
use crate::drain::HOOK_PAIRING_WINDOW;
use crate::observe::log::Record;
use crate::observe::messages;
use crate::os::clock::Timestamp;
use crate::route::{Route, Status};

const TOO_MANY_WAITERS: &str = "too many clients wait already\n";
const EXCESS_BYTES: &str = "nothing may follow this request\n";
pub const BACKEND_SILENT: &str = "the backend does not respond\n";
const NO_DRAIN: &str = "no drain started within the start timeout\n";
const NOT_READY: &str = "the drain has not ended within the ready timeout\n";

impl Frontend {
    /// Lets hooks have their response whose drain has ended.
    pub(super) fn on_change(&mut self, now: Timestamp) {
        for connection in &mut self.connections {
            wait_for_drain(connection, &self.tracker, now);
        }
    }

    /// Lets a client wait for the response to its request, if there is a slot.
    pub(super) fn admit(&mut self, id: ConnectionId, mut request: Request, now: Timestamp) {
        let Some(connection) = find(&mut self.connections, id) else { return };
        request.route = request.route.asked_by(|| connection.peer());
        let (route, has_excess) = (request.route.clone(), request.has_excess);
        let (source, listener) = (connection.source, connection.listener);
        connection.wait(request, now + RESPONSE_TIMEOUT);
        if !route.is_hook() {
            return;
        }
        if has_excess {
            return self.reject(id, Status::BadRequest, EXCESS_BYTES, now);
        }
        let max_waiting = self.endpoint(listener).limits.max_waiting;
        let is_alike =
            |other: &Route| other.is_hook() && other.is_envoy_hook() == route.is_envoy_hook();
        let others =
            self.held(listener).filter(|c| c.id != id && c.awaited().is_some_and(is_alike));
        let started = self.tracker.drain_started();
        let is_paired = |admitted: Timestamp| {
            started.is_some_and(|started| {
                admitted.max(started) - admitted.min(started) <= HOOK_PAIRING_WINDOW
            })
        };
        let others: Vec<_> = others
            .map(|c| Waiter { id: c.id, source: c.source, is_paired: is_paired(c.admitted) })
            .collect();
        match admission::admit(&others, source, max_waiting) {
            Admission::Admit => {}
            Admission::Evict(other) => self.turn_away(other, now),
            Admission::Reject => return self.turn_away(id, now),
        }
        let Some(connection) = find(&mut self.connections, id) else { return };
        let ConnectionState::Waiting(request, wait) = &mut connection.state else { return };
        connection.admitted = now;
        if route.is_envoy_hook() {
            let Timeouts { start, ready } = self.timeouts;
            connection.ready_deadline = ready.map_or(Timestamp::MAX, |ready| now + ready);
            let due = now + start.min(HOOK_PAIRING_WINDOW);
            connection.deadline = connection.ready_deadline.min(due);
            let (waiter, awaited) = self.tracker.envoy_hook();
            connection.waiter = Some(waiter);
            request.route = Route::EnvoyHook(awaited);
        } else {
            connection.deadline = Timestamp::MAX;
            connection.waiter = Some(self.tracker.exec_hook());
        }
        *wait = Wait::Drain;
        wait_for_drain(connection, &self.tracker, now);
    }

    pub(super) fn turn_away(&mut self, id: ConnectionId, now: Timestamp) {
        if let Some(connection) = find(&mut self.connections, id) {
            let listener = connection.listener;
            self.log_rejected_connection(listener, now);
        }
        self.reject(id, Status::Unavailable, TOO_MANY_WAITERS, now);
    }

    /// Ends what has timed out.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let due = self.connections.iter().filter(|connection| now >= connection.deadline);
        let due: Vec<_> = due.map(|connection| connection.id).collect();
        for id in due {
            let Some(connection) = find(&mut self.connections, id) else { continue };
            let listener = connection.listener;
            let (status, body) = match &mut connection.state {
                ConnectionState::Waiting(Request { route: Route::ExecHook(_), .. }, wait) => {
                    *wait = Wait::Turn(Timestamp::ZERO);
                    connection.deadline = Timestamp::MAX;
                    continue;
                }
                ConnectionState::Waiting(request, _) if !request.route.is_hook() => {
                    (Status::Unavailable, BACKEND_SILENT)
                }
                ConnectionState::Waiting(..) if now >= connection.ready_deadline => {
                    self.logs
                        .ready_timeout
                        .emit(now, || Record::warn(messages::READY_TIMEOUT_PASSED));
                    (Status::InternalServerError, NOT_READY)
                }
                ConnectionState::Waiting(_, Wait::Drain) if self.tracker.no_drain_active() => {
                    let end = connection.admitted + self.timeouts.start;
                    if now < end {
                        self.logs.lone_hook.emit(now, || Record::warn(messages::ENVOY_HOOK_ALONE));
                        connection.deadline = connection.ready_deadline.min(end);
                        continue;
                    }
                    self.logs
                        .start_timeout
                        .emit(now, || Record::warn(messages::START_TIMEOUT_PASSED));
                    (Status::Unavailable, NO_DRAIN)
                }
                ConnectionState::Waiting(..) => {
                    // A drain has started, and will end, or has ended.
                    let deadline = now + self.timeouts.start;
                    connection.deadline = connection.ready_deadline.min(deadline);
                    continue;
                }
                ConnectionState::Reading(head) if !head.is_empty() => {
                    self.log_rejected_request(listener, Status::RequestTimeout, now);
                    (Status::RequestTimeout, "")
                }
                state => {
                    *state = ConnectionState::Closed;
                    continue;
                }
            };
            self.reject(id, status, body, now);
        }
    }
}

/// Lets a hook have its response if its drain has ended.
fn wait_for_drain(connection: &mut Connection, tracker: &WaiterTracker, now: Timestamp) {
    if let ConnectionState::Waiting(request, wait @ Wait::Drain) = &mut connection.state
        && let Some(due) = tracker.answer_due(&request.route)
    {
        let is_envoy_hook = request.route.is_envoy_hook();
        if now >= due {
            *wait = Wait::Turn(Timestamp::ZERO);
        }
        // An exec hook has no other.
        if !is_envoy_hook {
            connection.deadline = if now >= due { Timestamp::MAX } else { due };
        }
    }
}
