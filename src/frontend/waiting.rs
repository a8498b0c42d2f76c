//! Clients that wait: for a slot, for their drain, and no longer than they may.

use std::mem::discriminant;
use std::time::Duration;

use super::admission::{self, Admission, ConnectionId, Waiter};
use super::connection::{Connection, ConnectionState, Wait};
use super::listen::ListenerId;
use super::request::{After, Rejection, Request};
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

    /// Lets a client wait for the response to its request; a hook only if there is a slot.
    pub(super) fn admit(&mut self, id: ConnectionId, mut request: Request, now: Timestamp) {
        let Some(connection) = find(&mut self.connections, id) else { return };
        request.route = request.route.asked_by(|| connection.peer());
        let (route, after) = (request.route.clone(), request.after);
        let (source, listener) = (connection.source, connection.listener);
        connection.wait(request, now + RESPONSE_TIMEOUT);
        if !route.is_hook() {
            return;
        }
        if after == After::Linger {
            return connection.reject(Status::BadRequest, EXCESS_BYTES, &self.tracker, now);
        }
        let max_waiting = self.endpoint(listener).limits.max_waiting;
        let is_alike = |other: &Route| discriminant(other) == discriminant(&route);
        let others =
            self.held(listener).filter(|c| c.id != id && c.awaited().is_some_and(is_alike));
        let started = self.tracker.drain_start();
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
            Admission::Evict(other) => self.turn_away(other, listener, now),
            Admission::Reject => return self.turn_away(id, listener, now),
        }
        let Some(connection) = find(&mut self.connections, id) else { return };
        let ConnectionState::Waiting(request, wait) = &mut connection.state else { return };
        connection.admitted = now;
        if route.is_envoy_hook() {
            let Timeouts { start, ready } = self.timeouts;
            let ready = ready.unwrap_or(Duration::MAX);
            connection.deadline = now + start.min(HOOK_PAIRING_WINDOW).min(ready);
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

    fn turn_away(&mut self, id: ConnectionId, listener: ListenerId, now: Timestamp) {
        self.log_rejected_connection(listener, now);
        if let Some(connection) = find(&mut self.connections, id) {
            connection.reject(Status::Unavailable, TOO_MANY_WAITERS, &self.tracker, now);
        }
    }

    /// Ends what has timed out.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let Self { connections, tracker, timeouts, logs, .. } = self;
        for connection in connections.iter_mut().filter(|connection| now >= connection.deadline) {
            let start = connection.admitted + timeouts.start;
            let ready = connection.admitted + timeouts.ready.unwrap_or(Duration::MAX);
            match &connection.state {
                ConnectionState::Waiting(request, _) if !request.route.is_hook() => {
                    connection.reject(Status::Unavailable, BACKEND_SILENT, tracker, now);
                }
                ConnectionState::Waiting(Request { route: Route::ExecHook(_), .. }, _) => {
                    connection.deadline = Timestamp::MAX;
                    wait_for_drain(connection, tracker, now);
                }
                ConnectionState::Waiting(..) if now >= ready => {
                    logs.ready_timeout.emit(now, || Record::warn(messages::READY_TIMEOUT_PASSED));
                    connection.reject(Status::InternalServerError, NOT_READY, tracker, now);
                }
                ConnectionState::Waiting(_, Wait::Drain) if tracker.no_drain_active() => {
                    if now < start {
                        logs.lone_hook.emit(now, || Record::warn(messages::ENVOY_HOOK_ALONE));
                        connection.deadline = ready.min(start);
                        continue;
                    }
                    logs.start_timeout.emit(now, || Record::warn(messages::START_TIMEOUT_PASSED));
                    connection.reject(Status::Unavailable, NO_DRAIN, tracker, now);
                }
                // A drain has started, and will end, or has ended.
                ConnectionState::Waiting(..) => {
                    connection.deadline = ready.min(now + timeouts.start);
                }
                ConnectionState::Reading(head) if !head.is_empty() => {
                    let rejection = Rejection::unread(Status::RequestTimeout);
                    connection.reject_request(rejection, tracker, &mut logs.rejections, now);
                }
                _ => connection.state = ConnectionState::Closed,
            }
        }
    }
}

/// Lets a hook have its response if its drain has ended.
fn wait_for_drain(connection: &mut Connection, tracker: &WaiterTracker, now: Timestamp) {
    if let ConnectionState::Waiting(request, wait @ Wait::Drain) = &mut connection.state
        && let Some(due) = tracker.answer_due(&request.route)
    {
        if now >= due {
            *wait = Wait::Turn(Timestamp::ZERO);
        } else {
            // An exec hook, which lets Envoy's have theirs first.
            connection.deadline = due;
        }
    }
}
