//! Where untrusted input ends: one thread around `poll(2)` that holds every connection to the public
//! port and to the control socket, and requests from the backend what the clients want.
//!
//! ```text
//!  accept       connection                  admission            upstream
//!  a client --> reading a request head --> a client waits <--> one request to the backend at a time,
//!                 |                          |                 for all clients that want the same
//!                 | rejected                 | its response arrives, or a timeout passes
//!                 v                          v
//!               responding --> lingering, where the client sent more --> closed
//! ```
//!
//! A hook waits here until the coordinator wakes this thread with the end of its drain; then it is
//! requested from the backend like everything else. No byte from the network goes further than this
//! thread: a [`PublicRoute`](crate::route::PublicRoute) is a constant, and none can start a drain.
//!
//! When more connections come than fit, those without a request are closed first, so a probe that
//! sends its request at once always gets a response.

mod accept;
mod admission;
mod connection;
mod exchange;
mod limits;
pub mod listen;
mod reject;
pub mod request;
pub mod response;
mod upstream;
mod waiting;

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::admission::ConnectionId;
use self::connection::{Connection, ConnectionState};
pub use self::limits::{Limits, MIN_DESCRIPTORS, Timeouts};
pub use self::listen::Listener;
use self::listen::ListenerId;
pub use self::upstream::Connect;
use self::upstream::Upstream;
use crate::control_socket::SocketFile;
use crate::coordinator::WaiterTracker;
use crate::observe::log::{RateLimit, Record};
use crate::observe::messages;
use crate::os::clock::{self, Timestamp};
use crate::os::waker::Waker;
use crate::route::Route;

/// How long a client waits that is no hook, and so waits for the backend alone. A kubelet waits 1 s by
/// default, and then disconnects.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// After an error of `accept` or `poll`: mostly there are too few descriptors, or too little memory.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Panics in a row after which no connection is kept.
const MAX_FAILED_STARTS: u32 = 10;

/// What clients can cause very often, each logged once a minute.
#[derive(Default)]
struct Logs {
    backend: RateLimit,
    control_socket: RateLimit,
    rejections: RateLimit,
    lone_hook: RateLimit,
    start_timeout: RateLimit,
    ready_timeout: RateLimit,
}

/// A listener, and what it may hold.
struct Endpoint {
    listener: Listener,
    limits: Limits,
    accept_after: Timestamp,
    accept_log: RateLimit,
    limit_log: RateLimit,
}

pub struct Frontend {
    /// The control socket's file.
    file: Arc<SocketFile>,
    /// In the order of [`ListenerId::ALL`].
    endpoints: [Endpoint; 2],
    upstream: Upstream,
    /// Woken by the coordinator's changes.
    waker: Waker,
    tracker: WaiterTracker,
    timeouts: Timeouts,
    /// Oldest first, so by their ids.
    connections: Vec<Connection>,
    last_id: ConnectionId,
    /// For whose connection the latest request to the backend was.
    latest_issued: ListenerId,
    /// Calls of [`Frontend::serve`] since a whole round.
    failed_starts: u32,
    logs: Logs,
}

/// What poll(2) reported.
struct Ready {
    waker: bool,
    upstream: bool,
    listeners: [bool; 2],
    connections: Vec<ConnectionId>,
}

impl Frontend {
    /// `connect`: makes a stream to the backend; `waker`: what `tracker`'s coordinator wakes; `file`: the
    /// control socket's.
    pub fn new(
        file: Arc<SocketFile>,
        control: (Listener, Limits),
        public: (Listener, Limits),
        timeouts: Timeouts,
        connect: Connect,
        waker: Waker,
        tracker: WaiterTracker,
    ) -> Self {
        Self {
            file,
            endpoints: [control, public].map(|(listener, limits)| Endpoint {
                listener,
                limits,
                accept_after: Timestamp::ZERO,
                accept_log: RateLimit::default(),
                limit_log: RateLimit::default(),
            }),
            upstream: Upstream::new(connect),
            waker,
            tracker,
            timeouts,
            connections: Vec::new(),
            last_id: ConnectionId::default(),
            latest_issued: ListenerId::Public,
            failed_starts: 0,
            logs: Logs::default(),
        }
    }

    /// Serves until the process exits. After a panic it is called again.
    pub fn serve(&mut self) {
        self.start(clock::now());
        loop {
            let now = clock::now();
            let ready = self.wait_ready(now, self.next_deadline(now));
            self.dispatch(&ready, clock::now());
        }
    }

    /// What comes before the first round, and before the first after a panic.
    fn start(&mut self, now: Timestamp) {
        // What a panic has left behind is not trusted. Clients that wait are kept, since a kubelet's
        // hook does not reconnect; unless one of them makes every round panic, or has not its slot yet.
        let keeps = self.failed_starts < MAX_FAILED_STARTS;
        self.connections.retain(|connection| {
            let waits = |route: &Route| connection.waiter.is_some() || !route.is_hook();
            keeps && connection.awaited().is_some_and(waits)
        });
        self.failed_starts += 1;
        self.upstream_lost(true, now);
        self.on_change(now);
        self.issue(now);
    }

    fn endpoint(&self, id: ListenerId) -> &Endpoint {
        &self.endpoints[id as usize]
    }

    fn endpoint_mut(&mut self, id: ListenerId) -> &mut Endpoint {
        &mut self.endpoints[id as usize]
    }

    /// When there is something to do even if no descriptor is ready.
    fn next_deadline(&self, now: Timestamp) -> Timestamp {
        let accept = self.endpoints.iter().map(|endpoint| endpoint.accept_after);
        let accept = accept.filter(|after| now < *after);
        let connections = self.connections.iter().map(|connection| connection.deadline);
        accept.chain(connections).fold(self.upstream.deadline(), Timestamp::min)
    }

    /// Sleeps until a descriptor is ready, or the deadline.
    fn wait_ready(&self, now: Timestamp, deadline: Timestamp) -> Ready {
        let mut fds = Vec::with_capacity(4 + self.connections.len());
        fds.push(PollFd::new(self.waker.as_fd(), PollFlags::POLLIN));
        for id in ListenerId::ALL {
            let endpoint = self.endpoint(id);
            let accepts = now >= endpoint.accept_after && self.acceptable(id) > 0;
            let interest = if accepts { PollFlags::POLLIN } else { PollFlags::empty() };
            fds.push(PollFd::new(endpoint.listener.as_fd(), interest));
        }
        fds.extend(self.connections.iter().map(|c| PollFd::new(c.fd(), c.interest())));
        fds.extend(self.upstream.fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // Rounded up, or the last millisecond would be a busy loop.
        let left = (deadline - now).as_micros().div_ceil(1000);
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                Record::error(messages::POLL_FAILED)
                    .with("error", io::Error::from(error).to_string())
                    .emit();
                thread::sleep(RETRY_DELAY);
            }
        }
        // In the order in which they were pushed.
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
        let mut next = || ready.next().unwrap_or_default();
        let waker = next();
        let listeners = ListenerId::ALL.map(|_| next());
        let connections = self.connections.iter().filter(|_| next());
        let connections = connections.map(|connection| connection.id).collect();
        let upstream = next();
        Ready { waker, upstream, listeners, connections }
    }

    /// One round: everything that is ready or due.
    fn dispatch(&mut self, ready: &Ready, now: Timestamp) {
        if ready.waker {
            self.waker.clear();
            self.on_change(now);
        }
        if ready.upstream {
            self.on_upstream_ready(now);
        } else if self.upstream.is_late(now) {
            self.upstream_failed(&io::ErrorKind::TimedOut.into(), now);
        }
        for id in &ready.connections {
            self.on_connection_ready(*id, now);
        }
        self.expire(now);
        ListenerId::ALL.into_iter().for_each(|id| self.bound(id));
        self.reap_closed();
        for id in ListenerId::ALL.into_iter().filter(|id| ready.listeners[*id as usize]) {
            self.accept(id, now);
            self.reap_closed();
        }
        // After what has come there is accepted.
        if ready.listeners[ListenerId::Public as usize] {
            self.check_control_socket(now);
        }
        self.issue(now);
        self.failed_starts = 0;
    }

    /// Binds the control socket again if its file was removed. A probe comes every few seconds, so this
    /// needs no timer.
    fn check_control_socket(&mut self, now: Timestamp) {
        let bound = self.file.bind_if_removed();
        self.tracker.set_control_socket_lost(bound.is_err());
        let path = || self.file.path.display().to_string();
        match bound {
            Ok(None) => {}
            Ok(Some(listener)) => {
                Record::warn(messages::CONTROL_SOCKET_REPLACED).with("path", path()).emit();
                self.endpoint_mut(ListenerId::Control).listener = Listener::Control(listener);
            }
            Err(error) => {
                self.logs.control_socket.emit(now, || {
                    Record::error(messages::CONTROL_SOCKET_LOST)
                        .with("path", path())
                        .with("error", error.to_string())
                });
            }
        }
    }

    fn on_connection_ready(&mut self, id: ConnectionId, now: Timestamp) {
        let Some(connection) = find(&mut self.connections, id) else { return };
        match connection.state {
            ConnectionState::Reading(_) => match connection.read() {
                Ok(None) => {}
                Ok(Some(request)) => self.admit(id, request, now),
                Err(rejection) => {
                    let log = &mut self.logs.rejections;
                    connection.reject_request(rejection, &self.tracker, log, now);
                }
            },
            // The client has disconnected, or sends more than it may.
            ConnectionState::Waiting(..) => connection.state = ConnectionState::Closed,
            ConnectionState::Responding { .. } => connection.write(now),
            ConnectionState::Lingering(_) => connection.discard(),
            ConnectionState::Closed => {}
        }
    }
}

fn find(connections: &mut [Connection], id: ConnectionId) -> Option<&mut Connection> {
    let index = connections.binary_search_by_key(&id, |connection| connection.id).ok()?;
    connections.get_mut(index)
}

#[cfg(test)]
mod tests;
