//! Accepting connections, and closing others for them as [`admission`] decides.

use std::io;

use super::admission::{self, ConnectionId, Entry};
use super::connection::{Connection, ConnectionState};
use super::listen::ListenerId;
use super::{Frontend, RETRY_DELAY, find};
use crate::observe::{log::Record, messages};
use crate::os::clock::Timestamp;

/// Accepted per round before held connections are served.
const MAX_ACCEPTED: u64 = 64;

/// Bytes of incomplete request heads, in all.
const MAX_UNFINISHED: usize = 128 * 1024;

const MAX_LINGERING: usize = 64;

impl Frontend {
    /// Accepts new connections, and evicts others of the same listener for them.
    pub(super) fn accept(&mut self, listener: ListenerId, now: Timestamp) {
        let end = self.last_id.0 + MAX_ACCEPTED;
        let mut more = true;
        while more && self.last_id.0 < end {
            let last = self.last_id;
            let count = self.acceptable(listener).min(end - last.0);
            more = count > 0 && self.accept_batch(listener, count, now);
            self.evict(listener, last, now);
        }
    }

    pub(super) fn acceptable(&self, listener: ListenerId) -> u64 {
        let brief = self.held(listener).any(Connection::waits_briefly);
        let held = self.held(listener).count();
        let evictable = self.held(listener).filter(|c| c.awaited().is_none()).count();
        let max = self.endpoint(listener).limits.max_connections;
        admission::acceptable(held, evictable, brief, max) as u64
    }

    /// The connections of a listener, oldest first.
    pub(super) fn held(&self, listener: ListenerId) -> impl Iterator<Item = &Connection> {
        self.connections.iter().filter(move |connection| connection.listener == listener)
    }

    /// Accepts up to `count` connections; returns whether there may be more.
    fn accept_batch(&mut self, id: ListenerId, count: u64, now: Timestamp) -> bool {
        for _ in 0..count {
            let endpoint = self.endpoint_mut(id);
            let (socket, source) = match endpoint.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return false,
                    // The client's own doing.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => continue,
                    _ => {
                        endpoint.accept_after = now + RETRY_DELAY;
                        endpoint.accept_log.emit(now, || {
                            Record::warn(messages::ACCEPT_FAILED)
                                .with("listener", id.name())
                                .with("error", error.to_string())
                        });
                        return false;
                    }
                },
            };
            self.last_id.0 += 1;
            let new = Connection::new(socket, id, source, self.last_id, now);
            self.connections.push(new);
            // Most clients have sent their request by now.
            self.on_connection_ready(self.last_id, now);
        }
        true
    }

    /// Closes connections until the rest fits; those accepted after `last` come last.
    fn evict(&mut self, listener: ListenerId, last: ConnectionId, now: Timestamp) {
        let max = self.endpoint(listener).limits.max_connections;
        loop {
            let excess = self.held(listener).count().saturating_sub(max);
            if excess == 0 {
                return;
            }
            let entry = |c: &Connection| Entry { id: c.id, source: c.source, rank: c.rank(now) };
            let entries = self.held(listener).map(entry).collect();
            let (candidates, mut left) = admission::next_evictions(entries, last, excess);
            if left == 0 {
                return;
            }
            for Entry { id, rank, .. } in candidates {
                if left == 0 {
                    break;
                }
                // Where few fit, many have sent their request and not been read yet.
                self.on_connection_ready(id, now);
                if let Some(connection) = find(&mut self.connections, id)
                    && connection.rank(now) <= rank
                {
                    connection.state = ConnectionState::Closed;
                    self.log_rejected_connection(listener, now);
                    left -= 1;
                }
            }
            self.reap_closed();
        }
    }

    pub(super) fn reap_closed(&mut self) {
        self.connections.retain(|c| !matches!(c.state, ConnectionState::Closed));
    }

    /// Keeps incomplete request heads and lingering connections within their bounds.
    pub(super) fn bound(&mut self, listener: ListenerId) {
        let is_lingering = |c: &Connection| matches!(c.state, ConnectionState::Lingering(_)).into();
        self.close_oldest(listener, Connection::unfinished, MAX_UNFINISHED);
        self.close_oldest(listener, is_lingering, MAX_LINGERING);
    }

    /// Closes the oldest connections that have a `size`, until the sum of the others fits `max`.
    fn close_oldest(&mut self, listener: ListenerId, size: fn(&Connection) -> usize, max: usize) {
        let mut sum = 0;
        for connection in self.connections.iter_mut().rev().filter(|c| c.listener == listener) {
            let size = size(connection);
            sum += size;
            if sum > max && size > 0 {
                connection.state = ConnectionState::Closed;
            }
        }
    }
}
