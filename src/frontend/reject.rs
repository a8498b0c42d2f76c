//! What the frontend responds itself, in place of the backend.

use std::sync::Arc;

use super::connection::{Connection, ConnectionState};
use super::listen::ListenerId;
use super::request::{After, Rejection};
use super::response::{PLAIN_TEXT, Response};
use super::{Endpoint, Frontend};
use crate::coordinator::WaiterTracker;
use crate::observe::log::{RateLimit, Record};
use crate::observe::messages;
use crate::os::clock::Timestamp;
use crate::route::Status;

impl Connection {
    /// Rejects what the client waits for.
    pub fn reject(&mut self, status: Status, body: &str, tracker: &WaiterTracker, now: Timestamp) {
        if let ConnectionState::Waiting(request, _) = &self.state {
            let (route, head_only) = (request.route.public(), request.head_only);
            self.refuse(Rejection { route, status, head_only }, body, tracker, now);
        }
    }

    /// Rejects what is not served. At the control socket it may have been a hook's: its drain does not
    /// start, and its own output is lost.
    pub fn reject_request(
        &mut self,
        rejection: Rejection,
        tracker: &WaiterTracker,
        log: &mut RateLimit,
        now: Timestamp,
    ) {
        let status = rejection.status.name();
        if self.listener == ListenerId::Control {
            log.emit(now, || {
                Record::warn(messages::CONTROL_REQUEST_REJECTED).with("status", status)
            });
        }
        self.refuse(rejection, &format!("{status}\n"), tracker, now);
    }

    fn refuse(&mut self, of: Rejection, body: &str, tracker: &WaiterTracker, now: Timestamp) {
        let is_public = self.listener == ListenerId::Public;
        // At the control socket the methods depend on the path.
        let allow = if is_public { "GET, HEAD" } else { "" };
        let response = Response::new(of.status, PLAIN_TEXT, body.as_bytes(), allow, false);
        self.respond(Arc::new(response), of.head_only, After::Linger, now);
        tracker.count_responses(of.route, of.status, is_public.into());
    }
}

impl Frontend {
    /// A connection was closed, or a client rejected, in favour of others.
    pub(super) fn log_rejected_connection(&mut self, listener: ListenerId, now: Timestamp) {
        if listener == ListenerId::Public {
            self.tracker.count_rejected_connection();
        }
        let Endpoint { limit_log, limits, .. } = &mut self.endpoints[listener as usize];
        limit_log.emit(now, || {
            let held = self.connections.iter().filter(|c| c.listener == listener).count();
            Record::warn(messages::CONNECTION_LIMIT_REACHED)
                .with("listener", listener.name())
                .with("connections", held as u64)
                .with("max_connections", limits.max_connections as u64)
                .with("max_waiting", limits.max_waiting as u64)
        });
    }
}
