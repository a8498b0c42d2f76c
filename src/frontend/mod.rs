//! Where untrusted input ends. Each listener, the public port and the control socket, has one
//! frontend: a thread around `poll(2)` that holds every connection, and requests from the backend
//! what the clients want.
//!
//! ```text
//!  accept       connection                  admission            upstream
//!  a client --> reading a request head --> a client waits <--> one request to the backend for
//!                 |                          |                  all clients that want the same
//!                 | rejected                 | its response arrives, or a timeout passes
//!                 v                          v
//!               responding --> lingering, where the client sent more --> closed
//! ```
//!
//! The listener's [`Router`] decides what is served. No byte from the network goes further than this
//! thread: a target of the public port is a constant, and none can start a drain. A target of the
//! control socket is passed on as sent.
//!
//! When more connections come than fit, those without a request are closed first, so a probe that
//! sends its request at once always gets a response.

mod accept;
mod admission;
mod connection;
mod limits;
pub mod listen;
pub mod request;
mod response;
mod upstream;

use std::io;
use std::mem;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::admission::{Admission, ConnectionId, Waiter};
use self::connection::{Connection, ConnectionState, ReadOutcome};
pub use self::limits::{Limits, MIN_DESCRIPTORS, Timeouts};
pub use self::listen::Listener;
use self::request::{Rejection, Request};
use self::response::{PLAIN_TEXT, Response};
use self::upstream::{UpstreamRequest, UpstreamResponse};
use crate::coordinator::WaiterTracker;
use crate::drain::HOOK_PAIRING_WINDOW;
use crate::observe::log::{RateLimit, Record};
use crate::observe::messages;
use crate::os::clock::{self, Timestamp};
use crate::route::{Hold, PublicRoute, Router, Status, UpstreamTarget};

/// How long a client waits for a response that the backend does not hold. A kubelet waits 1 s by
/// default, and then disconnects.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// After an error of `accept` or `poll`: mostly there are too few descriptors, or too little memory.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Panics in a row after which no connection is kept.
const MAX_FAILED_STARTS: u32 = 10;

const TOO_MANY_WAITERS: &str = "too many clients wait already\n";
const EXCESS_BYTES: &str = "nothing may follow this request\n";
const BACKEND_SILENT: &str = "the backend does not respond\n";
const NO_DRAIN: &str = "no drain started within the start timeout\n";
const NOT_READY: &str = "the drain has not ended within the ready timeout\n";

/// What clients can cause very often, each logged once a minute.
#[derive(Default)]
struct Logs {
    limit: RateLimit,
    accept: RateLimit,
    backend: RateLimit,
    rejections: RateLimit,
    start_timeout: RateLimit,
    ready_timeout: RateLimit,
}

/// Called with the kind of an error on the way to the backend.
pub type OnBackendError = Box<dyn Fn(io::ErrorKind) + Send>;

pub struct Frontend {
    listener: Listener,
    router: Router,
    backend: PathBuf,
    on_backend_error: OnBackendError,
    tracker: WaiterTracker,
    limits: Limits,
    /// Oldest first, so by their ids.
    connections: Vec<Connection>,
    upstream: Vec<UpstreamRequest>,
    last_id: ConnectionId,
    /// Calls of [`Frontend::serve`] since a whole round.
    failed_starts: u32,
    accept_after: Timestamp,
    logs: Logs,
}

/// What poll(2) reported.
struct Ready {
    listener: bool,
    upstream: Vec<bool>,
    connections: Vec<ConnectionId>,
}

impl Frontend {
    /// `backend`: the path of its socket.
    pub fn new(
        listener: Listener,
        router: Router,
        backend: PathBuf,
        on_backend_error: OnBackendError,
        tracker: WaiterTracker,
        limits: Limits,
    ) -> Self {
        Self {
            listener,
            router,
            backend,
            on_backend_error,
            tracker,
            limits,
            connections: Vec::new(),
            upstream: Vec::new(),
            last_id: ConnectionId::default(),
            failed_starts: 0,
            accept_after: Timestamp::ZERO,
            logs: Logs::default(),
        }
    }

    /// Serves until the process exits. After a panic it is called again.
    pub fn serve(&mut self) {
        // What a panic has left behind is not trusted. Clients that wait are kept, since a kubelet's
        // hook does not reconnect; unless one of them makes every round panic.
        let keeps = self.failed_starts < MAX_FAILED_STARTS;
        self.connections.retain(|connection| keeps && connection.awaited().is_some());
        self.upstream = Vec::new();
        self.failed_starts += 1;
        self.issue_requests(clock::now());
        loop {
            self.listener.renew();
            let now = clock::now();
            let ready = self.wait_ready(now, self.next_deadline(now));
            self.dispatch(&ready, clock::now());
            self.failed_starts = 0;
        }
    }

    /// When there is something to do even if no descriptor is ready.
    fn next_deadline(&self, now: Timestamp) -> Timestamp {
        let accept = if now < self.accept_after { self.accept_after } else { Timestamp::MAX };
        let awaited = self.upstream.iter().filter(|request| self.is_awaited(&request.target));
        let connections = self.connections.iter().map(|connection| connection.deadline);
        awaited.map(UpstreamRequest::due).chain(connections).fold(accept, Timestamp::min)
    }

    /// Sleeps until a descriptor is ready, or the deadline.
    fn wait_ready(&self, now: Timestamp, deadline: Timestamp) -> Ready {
        let accepts = now >= self.accept_after && self.acceptable() > 0;
        let mut fds = Vec::with_capacity(1 + self.upstream.len() + self.connections.len());
        let listens = if accepts { PollFlags::POLLIN } else { PollFlags::empty() };
        fds.push(PollFd::new(self.listener.as_fd(), listens));
        let upstream = self.upstream.iter().filter_map(UpstreamRequest::fd);
        fds.extend(upstream.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        fds.extend(self.connections.iter().map(|c| PollFd::new(c.fd(), c.interest())));
        // Rounded up, or the last millisecond would be a busy loop.
        let left = (deadline - now).as_micros().div_ceil(1000);
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                Record::error(messages::POLL_FAILED)
                    .with("listener", self.listener.name())
                    .with("error", io::Error::from(error).to_string())
                    .emit();
                thread::sleep(RETRY_DELAY);
            }
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
        let listener = ready.next().unwrap_or_default();
        let upstream = self.upstream.iter();
        let upstream =
            upstream.map(|request| request.fd().is_some() && ready.next() == Some(true)).collect();
        let connections = self.connections.iter().zip(ready).filter(|(_, ready)| *ready);
        let connections = connections.map(|(connection, _)| connection.id).collect();
        Ready { listener, upstream, connections }
    }

    /// One round: everything that is ready or due.
    fn dispatch(&mut self, ready: &Ready, now: Timestamp) {
        self.on_upstream_ready(&ready.upstream, now);
        for id in &ready.connections {
            self.on_connection_ready(*id, now);
        }
        self.expire(now);
        self.bound_lingering();
        self.reap_closed();
        if ready.listener {
            self.accept(now);
            self.reap_closed();
        }
        self.issue_requests(now);
    }

    fn on_upstream_ready(&mut self, ready: &[bool], now: Timestamp) {
        let mut requests = mem::take(&mut self.upstream);
        for (request, _) in requests.iter_mut().zip(ready).filter(|(_, ready)| **ready) {
            match request.receive(now) {
                Ok(Some(response)) => self.complete(&request.target, &response, now),
                Ok(None) => {}
                Err(error) => self.backend_failed(&request.target, &error, now),
            }
        }
        self.upstream = requests;
    }

    /// Responds to every client that waits for this target.
    fn complete(&mut self, target: &UpstreamTarget, response: &UpstreamResponse, now: Timestamp) {
        let status = Status::from_code(response.status);
        if status == Status::Gone && target.hold == Hold::EnvoyHook {
            // Its clients had left; a new request is issued for those that came since.
            return;
        }
        let response = self.response(status, &response.content_type, &response.body);
        let mut responses = 0;
        for connection in &mut self.connections {
            if let ConnectionState::Waiting(request) = &connection.state
                && request.target == *target
            {
                let Request { head_only, has_excess, .. } = *request;
                connection.respond(Arc::clone(&response), head_only, has_excess, now);
                responses += 1;
            }
        }
        self.count_responses(target.route, status, responses);
    }

    /// Sends a request to the backend for each target that clients wait for, where one is due.
    fn issue_requests(&mut self, now: Timestamp) {
        let mut requests = mem::take(&mut self.upstream);
        // A request that no client waits for any more still costs the backend descriptors, so it
        // counts until its response: else a client that requests and disconnects, again and again,
        // could have any number in flight.
        requests.retain(|request| request.is_in_flight(now) || self.is_awaited(&request.target));
        for target in self.connections.iter().filter_map(Connection::awaited) {
            let has_room = requests.len() < self.limits.max_connections;
            if has_room && !requests.iter().any(|request| request.target == *target) {
                requests.push(UpstreamRequest::new(target.clone()));
            }
        }
        for request in &mut requests {
            if self.is_awaited(&request.target)
                && let Err(error) = request.issue(&self.backend, now)
            {
                self.backend_failed(&request.target, &error, now);
            }
        }
        self.upstream = requests;
    }

    fn is_awaited(&self, target: &UpstreamTarget) -> bool {
        self.connections.iter().any(|connection| connection.awaited() == Some(target))
    }

    fn backend_failed(&mut self, target: &UpstreamTarget, error: &io::Error, now: Timestamp) {
        (self.on_backend_error)(error.kind());
        if let Some(times) = self.logs.backend.happened(now) {
            Record::warn(messages::BACKEND_NOT_RESPONDING)
                .with("request", target.path_and_query.as_ref())
                .with("error", error.to_string())
                .with("times", times)
                .emit();
        }
    }

    fn on_connection_ready(&mut self, id: ConnectionId, now: Timestamp) {
        let Some(connection) = find(&mut self.connections, id) else { return };
        match connection.state {
            ConnectionState::Reading(_) => {
                match connection.read(self.listener.max_head(), self.router) {
                    ReadOutcome::Incomplete if connection.unfinished() == 0 => {}
                    ReadOutcome::Incomplete => self.bound_unfinished(),
                    ReadOutcome::Request(request) => self.admit(id, request, now),
                    ReadOutcome::Rejected(rejection) => {
                        self.log_rejected_request(rejection.status, now);
                        self.reject_with(id, rejection, "", now);
                    }
                }
            }
            // The client has disconnected, or sends more than it may.
            ConnectionState::Waiting(_) => connection.state = ConnectionState::Closed,
            ConnectionState::Responding { .. } => connection.write(now),
            ConnectionState::Lingering(_) => connection.discard(),
            ConnectionState::Closed => {}
        }
    }

    /// Lets a client wait for the response to its request, if there is a slot.
    fn admit(&mut self, id: ConnectionId, request: Request, now: Timestamp) {
        let Request { target: UpstreamTarget { hold, .. }, has_excess, .. } = request;
        let Some(connection) = find(&mut self.connections, id) else { return };
        let source = connection.source;
        connection.wait(request, now + RESPONSE_TIMEOUT);
        if hold == Hold::None {
            return;
        }
        if has_excess {
            return self.reject(id, Status::BadRequest, EXCESS_BYTES, now);
        }
        let waits = |c: &&Connection| c.awaited().is_some_and(|target| target.hold == hold);
        let others = self.connections.iter().filter(waits).filter(|c| c.id != id);
        let others: Vec<_> = others.collect();
        // It takes the state lock, so it is looked up only where a waiter may have to go.
        let matters = hold == Hold::EnvoyHook && others.len() >= self.limits.max_waiting;
        let started = matters.then(|| self.tracker.drain_started()).flatten();
        let is_paired = |admitted: Timestamp| {
            started.is_some_and(|started| {
                admitted.max(started) - admitted.min(started) <= HOOK_PAIRING_WINDOW
            })
        };
        let others = others.iter().map(|c| Waiter {
            id: c.id,
            source: c.source,
            is_paired: is_paired(c.admitted),
        });
        let others: Vec<_> = others.collect();
        match admission::admit(&others, source, self.limits.max_waiting) {
            Admission::Admit => {}
            Admission::Evict(other) => self.turn_away(other, now),
            Admission::Reject => return self.turn_away(id, now),
        }
        let Some(connection) = find(&mut self.connections, id) else { return };
        connection.admitted = now;
        if hold == Hold::EnvoyHook {
            let Timeouts { start, ready } = self.limits.timeouts;
            connection.ready_deadline = ready.map_or(Timestamp::MAX, |ready| now + ready);
            connection.deadline = connection.ready_deadline.min(now + start);
            connection.waiter = Some(self.tracker.envoy_hook());
        } else {
            connection.deadline = Timestamp::MAX;
            connection.waiter = Some(self.tracker.exec_hook());
        }
    }

    fn turn_away(&mut self, id: ConnectionId, now: Timestamp) {
        self.log_rejected_connection(now);
        self.reject(id, Status::Unavailable, TOO_MANY_WAITERS, now);
    }

    /// Ends what has timed out.
    fn expire(&mut self, now: Timestamp) {
        let due = self.connections.iter().filter(|connection| now >= connection.deadline);
        let due: Vec<_> = due.map(|connection| connection.id).collect();
        for id in due {
            let Some(connection) = find(&mut self.connections, id) else { continue };
            let (status, body) = match connection.awaited().map(|target| target.hold) {
                None if connection.unfinished() > 0 => {
                    self.log_rejected_request(Status::RequestTimeout, now);
                    (Status::RequestTimeout, "")
                }
                None => {
                    connection.state = ConnectionState::Closed;
                    continue;
                }
                Some(Hold::None) => (Status::Unavailable, BACKEND_SILENT),
                Some(_) if now >= connection.ready_deadline => {
                    log_timeout(&mut self.logs.ready_timeout, messages::READY_TIMEOUT_PASSED, now);
                    (Status::InternalServerError, NOT_READY)
                }
                Some(_) if self.tracker.no_drain_active() => {
                    log_timeout(&mut self.logs.start_timeout, messages::START_TIMEOUT_PASSED, now);
                    (Status::Unavailable, NO_DRAIN)
                }
                Some(_) => {
                    // A drain has started, and will end.
                    let deadline = now + self.limits.timeouts.start;
                    connection.deadline = connection.ready_deadline.min(deadline);
                    continue;
                }
            };
            self.reject(id, status, body, now);
        }
    }

    /// Rejects what the client waits for, or its incomplete request.
    fn reject(&mut self, id: ConnectionId, status: Status, body: &str, now: Timestamp) {
        let Some(connection) = find(&mut self.connections, id) else { return };
        let (route, head_only) = match &connection.state {
            ConnectionState::Waiting(request) => (request.target.route, request.head_only),
            _ => (None, false),
        };
        self.reject_with(id, Rejection { route, status, head_only }, body, now);
    }

    /// Responds in place of the backend; `body` is the status line if empty.
    fn reject_with(&mut self, id: ConnectionId, rejection: Rejection, body: &str, now: Timestamp) {
        let Rejection { route, status, head_only } = rejection;
        let line = status.name().to_owned() + "\n";
        let body = if body.is_empty() { line.as_str() } else { body };
        self.count_responses(route, status, 1);
        let response = self.response(status, PLAIN_TEXT, body.as_bytes());
        if let Some(connection) = find(&mut self.connections, id) {
            connection.respond(response, head_only, true, now);
        }
    }

    fn response(&self, status: Status, content_type: &str, body: &[u8]) -> Arc<Response> {
        // At the control socket the methods depend on the path.
        let allow = if self.is_public() { "GET, HEAD" } else { "" };
        let date = httpdate::fmt_http_date(SystemTime::now());
        Arc::new(Response::new(status, content_type, body, &date, allow))
    }

    fn is_public(&self) -> bool {
        matches!(self.listener, Listener::Public(_))
    }

    fn count_responses(&self, route: Option<PublicRoute>, status: Status, times: u64) {
        if self.is_public() {
            self.tracker.count_responses(route, status, times);
        }
    }

    /// At the control socket it may have been a hook's: its drain does not start, and its own output
    /// is lost.
    fn log_rejected_request(&mut self, status: Status, now: Timestamp) {
        if !self.is_public()
            && let Some(times) = self.logs.rejections.happened(now)
        {
            Record::warn(messages::CONTROL_REQUEST_REJECTED)
                .with("status", status.name())
                .with("times", times)
                .emit();
        }
    }

    /// A connection was closed, or a client rejected, in favour of others.
    fn log_rejected_connection(&mut self, now: Timestamp) {
        if self.is_public() {
            self.tracker.count_rejected_connection();
        }
        if let Some(times) = self.logs.limit.happened(now) {
            Record::warn(messages::CONNECTION_LIMIT_REACHED)
                .with("listener", self.listener.name())
                .with("connections", self.connections.len() as u64)
                .with("max_connections", self.limits.max_connections as u64)
                .with("max_waiting", self.limits.max_waiting as u64)
                .with("times", times)
                .emit();
        }
    }
}

fn find(connections: &mut [Connection], id: ConnectionId) -> Option<&mut Connection> {
    let index = connections.binary_search_by_key(&id, |connection| connection.id).ok()?;
    connections.get_mut(index)
}

fn log_timeout(limit: &mut RateLimit, message: &'static str, now: Timestamp) {
    if let Some(requests) = limit.happened(now) {
        Record::warn(message).with("requests", requests).emit();
    }
}

#[cfg(test)]
mod tests;
