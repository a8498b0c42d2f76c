//! Accepting connections, and closing others for them as [`admission`] decides.

use std::io;

use super::admission::{self, ConnectionId, Entry};
use super::connection::{Connection, ConnectionState};
use super::{Frontend, RETRY_DELAY, find};
use crate::observe::{log::Record, messages};
use crate::os::clock::Timestamp;
use crate::route::Hold;

/// Accepted per round before held connections are served.
const MAX_ACCEPTED: u64 = 64;

/// Bytes of incomplete request heads, in all.
const MAX_UNFINISHED: usize = 128 * 1024;

const MAX_LINGERING: usize = 64;

impl Frontend {
    /// Accepts new connections, and evicts others for them.
    pub(super) fn accept(&mut self, now: Timestamp) {
        let end = self.last_id.0 + MAX_ACCEPTED;
        let mut more = true;
        while more && self.last_id.0 < end {
            let last = self.last_id;
            let count = self.acceptable().min(end - last.0);
            more = count > 0 && self.accept_batch(count, now);
            self.evict(last, now);
        }
    }

    pub(super) fn acceptable(&self) -> u64 {
        let awaited = || self.connections.iter().filter_map(Connection::awaited);
        let brief = awaited().any(|target| target.hold == Hold::None);
        let held = self.connections.len();
        let evictable = held - awaited().count();
        admission::acceptable(held, evictable, brief, self.limits.max_connections) as u64
    }

    /// Accepts up to `count` connections; returns whether there may be more.
    fn accept_batch(&mut self, count: u64, now: Timestamp) -> bool {
        for _ in 0..count {
            let (socket, source) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return false,
                    // The client's own doing.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => continue,
                    _ => {
                        self.accept_after = now + RETRY_DELAY;
                        if let Some(times) = self.logs.accept.happened(now) {
                            Record::warn(messages::ACCEPT_FAILED)
                                .with("listener", self.listener.name())
                                .with("error", error.to_string())
                                .with("times", times)
                                .emit();
                        }
                        return false;
                    }
                },
            };
            self.last_id.0 += 1;
            let id = self.last_id;
            self.connections.push(Connection::new(socket, source, id, now));
            // Most clients have sent their request by now.
            self.on_connection_ready(id, now);
        }
        true
    }

    /// Closes connections until the rest fits; those accepted after `last` come last.
    fn evict(&mut self, last: ConnectionId, now: Timestamp) {
        while self.connections.len() > self.limits.max_connections {
            let excess = self.connections.len() - self.limits.max_connections;
            let entry = |c: &Connection| Entry { id: c.id, source: c.source, rank: c.rank(now) };
            let entries = self.connections.iter().map(entry).collect();
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
                    self.log_rejected_connection(now);
                    left -= 1;
                }
            }
            self.reap_closed();
        }
    }

    pub(super) fn reap_closed(&mut self) {
        self.connections.retain(|c| !matches!(c.state, ConnectionState::Closed));
    }

    /// Keeps incomplete request heads within their bound.
    pub(super) fn bound_unfinished(&mut self) {
        self.close_oldest(Connection::unfinished, MAX_UNFINISHED);
    }

    /// Keeps the number of lingering connections within its bound.
    pub(super) fn bound_lingering(&mut self) {
        let is_lingering = |c: &Connection| matches!(c.state, ConnectionState::Lingering(_)).into();
        self.close_oldest(is_lingering, MAX_LINGERING);
    }

    /// Closes the oldest connections that have a `size`, until the sum of the others fits `max`.
    fn close_oldest(&mut self, size: fn(&Connection) -> usize, max: usize) {
        let mut sizes = self.connections.iter().rev().map(|c| (c.id, size(c)));
        let newest = admission::newest_excess(&mut sizes, max);
        for connection in &mut self.connections {
            if Some(connection.id) <= newest && size(connection) > 0 {
                connection.state = ConnectionState::Closed;
            }
        }
    }
}
