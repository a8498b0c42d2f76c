//! What is requested from the backend for the clients, and what becomes of it.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use super::connection::{Connection, ConnectionState, Wait};
use super::listen::ListenerId;
use super::request::{After, Request};
use super::response::Response;
use super::upstream::UpstreamResponse;
use super::{Frontend, waiting::BACKEND_SILENT};
use crate::backend::ACCEPTED;
use crate::observe::log::Record;
use crate::observe::messages;
use crate::os::clock::Timestamp;
use crate::route::{Route, Status};

/// What was requested when the wire was lost comes after all others for this long.
const LAST_FOR: Duration = Duration::from_secs(1);

impl Frontend {
    pub(super) fn on_upstream_ready(&mut self, now: Timestamp) {
        match self.upstream.receive() {
            Ok(None) => {}
            // The wait goes on after all: since it was found to be over, the next drain has started.
            Ok(Some((_, response))) if response.status == ACCEPTED => {
                for connection in self.connections.iter_mut().filter(|c| c.is_requested()) {
                    connection.set_wait(Wait::Drain);
                }
                self.on_change(now);
            }
            Ok(Some((route, response))) => self.complete(&route, &response, now),
            Err(error) => self.upstream_failed(&error, now),
        }
    }

    /// Responds to every client that waits for this route; one that starts a drain is for one client
    /// alone.
    pub(super) fn complete(&mut self, route: &Route, made: &UpstreamResponse, now: Timestamp) {
        let status = Status::from_code(made.status);
        let is_for = |connection: &&mut Connection| {
            connection.awaited() == Some(route) && (connection.is_requested() || !route.is_post())
        };
        let mut responses = [None, None];
        let mut public = 0;
        for connection in self.connections.iter_mut().filter(is_for) {
            if let ConnectionState::Waiting(request, _) = &connection.state {
                let Request { head_only, after, .. } = *request;
                public += u64::from(connection.listener == ListenerId::Public);
                let kept = after == After::Keep;
                let response = responses[usize::from(kept)].get_or_insert_with(|| {
                    Arc::new(Response::new(status, &made.content_type, &made.body, "", kept))
                });
                connection.respond(Arc::clone(response), head_only, after, now);
            }
        }
        self.tracker.count_responses(route.public(), status, public);
    }

    /// Requests from the backend what is due, one at a time: for both listeners in turn, so that neither
    /// keeps the other waiting, the oldest connection first.
    pub(super) fn issue(&mut self, now: Timestamp) {
        if let Err(error) = self.upstream.connect(now) {
            return self.upstream_failed(&error, now);
        }
        if !self.upstream.is_idle() {
            return;
        }
        let latest = self.latest_issued;
        let due = self.connections.iter().filter_map(|c| c.due().map(|due| (c, due)));
        let first =
            due.min_by_key(|(c, (_, last_until))| (now < *last_until, c.listener == latest, c.id));
        let Some((first, (route, _))) = first else { return };
        let (id, route) = (first.id, route.clone());
        self.latest_issued = first.listener;
        // Before it is sent: what a panic leaves behind must not be sent again.
        for connection in &mut self.connections {
            let shares = connection.id == id || !route.is_post();
            if shares && connection.due().is_some_and(|(due, _)| *due == route) {
                connection.set_wait(Wait::Response);
            }
        }
        if let Err(error) = self.upstream.send(&route, now) {
            self.upstream_failed(&error, now);
        }
    }

    pub(super) fn upstream_failed(&mut self, error: &io::Error, now: Timestamp) {
        self.logs.backend.emit(now, || {
            Record::warn(messages::BACKEND_NOT_RESPONDING).with("error", error.to_string())
        });
        // The peer has ended without having read the request, or it was never whole.
        let is_unread = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::WriteZero];
        self.upstream_lost(!is_unread.contains(&error.kind()), now);
    }

    /// What was requested is requested again; but not the start of a drain, if that `may_have_happened`.
    pub(super) fn upstream_lost(&mut self, may_have_happened: bool, now: Timestamp) {
        self.upstream.close();
        for connection in self.connections.iter_mut().filter(|c| c.is_requested()) {
            if may_have_happened && connection.awaited().is_some_and(Route::is_post) {
                connection.reject(Status::Unavailable, BACKEND_SILENT, &self.tracker, now);
            } else {
                connection.set_wait(Wait::Turn(now + LAST_FOR));
            }
        }
    }
}
