//! What the frontend responds itself, in place of the backend.

use std::sync::Arc;

use super::admission::ConnectionId;
use super::connection::{After, ConnectionState};
use super::listen::ListenerId;
use super::request::Rejection;
use super::response::{PLAIN_TEXT, Response};
use super::{Endpoint, Frontend, find};
use crate::observe::log::Record;
use crate::observe::messages;
use crate::os::clock::Timestamp;
use crate::route::Status;

impl Frontend {
    /// Rejects what the client waits for, or its incomplete request.
    pub(super) fn reject(&mut self, id: ConnectionId, status: Status, body: &str, now: Timestamp) {
        let Some(connection) = find(&mut self.connections, id) else { return };
        let (route, head_only) = match &connection.state {
            ConnectionState::Waiting(request, _) => (request.route.public(), request.head_only),
            _ => (None, false),
        };
        self.reject_with(id, Rejection { route, status, head_only }, body, now);
    }

    /// Responds in place of the backend; `body` is the status line if empty.
    pub(super) fn reject_with(
        &mut self,
        id: ConnectionId,
        rejection: Rejection,
        body: &str,
        now: Timestamp,
    ) {
        let Rejection { route, status, head_only } = rejection;
        let line = status.name().to_owned() + "\n";
        let body = if body.is_empty() { line.as_str() } else { body };
        let Some(connection) = find(&mut self.connections, id) else { return };
        let is_public = connection.listener == ListenerId::Public;
        // At the control socket the methods depend on the path.
        let allow = if is_public { "GET, HEAD" } else { "" };
        let response = Response::new(status, PLAIN_TEXT, body.as_bytes(), allow, false);
        connection.respond(Arc::new(response), head_only, After::Linger, now);
        self.tracker.count_responses(route, status, is_public.into());
    }

    /// At the control socket it may have been a hook's: its drain does not start, and its own output
    /// is lost.
    pub(super) fn log_rejected_request(
        &mut self,
        listener: ListenerId,
        status: Status,
        now: Timestamp,
    ) {
        if listener == ListenerId::Control {
            self.logs.rejections.emit(now, || {
                Record::warn(messages::CONTROL_REQUEST_REJECTED).with("status", status.name())
            });
        }
    }

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
