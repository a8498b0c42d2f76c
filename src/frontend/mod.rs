//! A door of the sidecar, the public port or the control socket: one thread that holds every
//! connection to it, and asks the sidecar's own server for what they want.
//!
//! A client is read until its head is whole (`client`, [`crate::frontend::request`]), and the door's
//! [`Router`] decides what is served. The client then waits at the `desk` for that, whose one
//! request to the server is answered for all who wait there. No byte that came from the network
//! gets further than this thread, and nothing that the keeper of the public port knows can begin a
//! drain.
//!
//! Whoever takes long gives way when there are more than fit: first those who have not said what
//! they want, so a probe that sends its request at once is always answered.

mod admission;
mod connection;
pub mod listen;
pub mod request;
mod response;
mod upstream;

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::admission::{Admission, SourceKey, crowd, place};
use self::connection::{Connection, ReadOutcome, State};
use self::request::{Rejection, Request};
use self::response::{PLAIN, Response};
use self::upstream::{Reply, UpstreamRequest};
use crate::backend::RestartSignal;
use crate::coordinator::WaiterTracker;
use crate::observe::log::{RateLimit, Record};
use crate::observe::messages;
use crate::os::clock;
use crate::os::clock::Timestamp;
use crate::route::{Hold, PublicRoute, Router, Status, UpstreamTarget};

/// What the public port holds at most. Each connection costs the process some 100 bytes and the
/// kernel some 4 kB.
const MOST_PUBLIC: usize = 1024;
const FEWEST_PUBLIC: usize = 4;

/// What the control socket holds at most. The kubelet runs one hook, and that again when it was
/// restarted.
const MOST_PRIVATE: usize = 192;
const FEWEST_PRIVATE: usize = 6;

/// Descriptors that the public port must leave: half of them, at least what one drain takes, at most
/// what the control socket takes when it is full of those who wait for the same (each different
/// request under way takes three more).
const MOST_RESERVED: usize = 448;
const FEWEST_RESERVED: usize = 28;

/// Heads that are not whole, in bytes and all together.
const MOST_UNFINISHED: usize = 128 * 1024;

/// Clients whose last words are discarded.
const MOST_LINGERING: usize = 64;

/// Connections that are taken before those that are there have their turn.
const ACCEPTED_AT_ONCE: u64 = 64;

/// A door that is full takes this part of what it holds at once, before as many others are let go:
/// each time costs a look at everybody, and where that takes long, a burst fills the backlog, so
/// that the kernel drops whoever comes next, who tries again after a second.
const CROWD: usize = 16;

/// After an error of `accept`: too few descriptors, mostly.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Panics in a row.
const MOST_STARTS: u32 = 10;

/// Who has just come can be spared worse than anybody who can.
const NEWEST: u8 = 3;

/// How long a brief answer of the server's is waited for. A kubelet waits 1 s if not told
/// otherwise, and hangs up by itself.
const ANSWERED: Duration = Duration::from_secs(5);

/// How long Envoy's own hook may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a drain to begin: `--start-timeout`.
    pub start: Duration,
    /// In all: `--ready-timeout`.
    pub ready: Option<Duration>,
}

/// How many a door holds, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    clients: usize,
    waiting: usize,
    patience: Timeouts,
}

impl Limits {
    /// The rules of the public port of a process that may have so many descriptors.
    #[must_use]
    pub fn public(descriptors: usize, patience: Timeouts) -> Self {
        let left = descriptors.saturating_sub(reserved(descriptors));
        let clients = left.clamp(FEWEST_PUBLIC, MOST_PUBLIC);
        // The other half is for those who want something else.
        Self { clients, waiting: clients / 2, patience }
    }

    /// The rules of its control socket.
    #[must_use]
    pub fn private(descriptors: usize, patience: Timeouts) -> Self {
        // In proportion, between the fewest that are reserved and the most.
        let left = reserved(descriptors).saturating_sub(FEWEST_RESERVED);
        let clients = left * MOST_PRIVATE / (MOST_RESERVED - FEWEST_RESERVED);
        let clients = clients.clamp(FEWEST_PRIVATE, MOST_PRIVATE);
        // At most a third each for Envoy's hooks and for exec hooks, so that others get in.
        Self { clients, waiting: clients / 3, patience }
    }
}

fn reserved(descriptors: usize) -> usize {
    (descriptors / 2).clamp(FEWEST_RESERVED, MOST_RESERVED)
}

/// What a door listens at.
#[derive(Debug)]
pub enum Listener {
    /// The public port.
    Public(TcpListener),
    /// The control socket.
    Private(UnixListener),
}

impl Listener {
    fn name(&self) -> &'static str {
        match self {
            Self::Public(_) => "public",
            Self::Private(_) => "control",
        }
    }

    fn accept(&self) -> io::Result<(OwnedFd, SourceKey)> {
        match self {
            Self::Public(port) => {
                port.accept().map(|(client, address)| (client.into(), address.ip().into()))
            }
            Self::Private(socket) => {
                socket.accept().map(|(client, _)| (client.into(), SourceKey::HERE))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Public(port) => port.as_fd(),
            Self::Private(socket) => socket.as_fd(),
        }
    }
}

/// A door.
#[derive(Debug)]
pub struct Frontend {
    listener: Listener,
    keeper: Router,
    server: PathBuf,
    bell: RestartSignal,
    register: WaiterTracker,
    rules: Limits,
    clients: Vec<Connection>,
    desks: Vec<UpstreamRequest>,
    /// How many clients there have been.
    number: u64,
    /// How often it has begun to serve without a whole round behind it.
    starts: u32,
    accept_at: Timestamp,
    full: RateLimit,
    not_accepted: RateLimit,
    not_answered: RateLimit,
    let_go: RateLimit,
    too_long: RateLimit,
}

/// Who has something to say.
struct Ready {
    listener: bool,
    desks: Vec<bool>,
    clients: Vec<bool>,
}

impl Frontend {
    /// A door at this listener, which does not block. `server`: the path of the socket of the
    /// sidecar's own server; `bell`: what is rung when nobody listens there.
    #[must_use]
    pub fn new(
        listener: Listener,
        keeper: Router,
        server: PathBuf,
        bell: RestartSignal,
        register: WaiterTracker,
        rules: Limits,
    ) -> Self {
        Self {
            listener,
            keeper,
            server,
            bell,
            register,
            rules,
            clients: Vec::new(),
            desks: Vec::new(),
            number: 0,
            starts: 0,
            accept_at: Timestamp::ZERO,
            full: RateLimit::default(),
            not_accepted: RateLimit::default(),
            not_answered: RateLimit::default(),
            let_go: RateLimit::default(),
            too_long: RateLimit::default(),
        }
    }

    /// Serves for as long as the process lives.
    pub fn serve(&mut self) {
        // What a panic has left behind is not trusted, but for those who wait: they have come once
        // and will not come again. Unless it is one of them who makes every round panic.
        let trusted = self.starts < MOST_STARTS;
        self.clients.retain(|client| trusted && matches!(client.state, State::WaiterGuard(..)));
        self.desks = Vec::new();
        self.starts += 1;
        self.ask(clock::now());
        loop {
            let now = clock::now();
            let ready = self.look(now, self.due(now));
            self.go_on(&ready, clock::now());
            self.starts = 0;
        }
    }

    /// When there is something to do though nobody has anything to say.
    fn due(&self, now: Timestamp) -> Timestamp {
        let accept = if now < self.accept_at { self.accept_at } else { Timestamp::MAX };
        let desks = self.desks.iter().filter(|desk| is_wanted(&self.clients, &desk.wanted));
        let due =
            desks.map(UpstreamRequest::due).chain(self.clients.iter().map(|client| client.until));
        due.fold(accept, Timestamp::min)
    }

    /// Sleeps until then, or until somebody has something to say.
    fn look(&self, now: Timestamp, until: Timestamp) -> Ready {
        let accepts = now >= self.accept_at && self.room() > 0;
        let mut fds = Vec::with_capacity(1 + self.desks.len() + self.clients.len());
        let listens = if accepts { PollFlags::POLLIN } else { PollFlags::empty() };
        fds.push(PollFd::new(self.listener.as_fd(), listens));
        let desks = self.desks.iter().filter_map(UpstreamRequest::fd);
        fds.extend(desks.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let clients = self.clients.iter();
        fds.extend(clients.map(|client| PollFd::new(client.fd(), client.interest())));
        // Rounded up, or the last millisecond would be a busy loop.
        let left = (until - now).as_micros().div_ceil(1000);
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                // The kernel has no memory for it.
                Record::error(messages::POLL_FAILED)
                    .with("listener", self.listener.name())
                    .with("error", io::Error::from(error).to_string())
                    .emit();
                thread::sleep(ACCEPT_AGAIN);
            }
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
        let listener = ready.next().unwrap_or_default();
        let desks = self.desks.iter().map(|desk| desk.fd().is_some() && ready.next() == Some(true));
        Ready { listener, desks: desks.collect(), clients: ready.collect() }
    }

    /// Does what is to be done.
    fn go_on(&mut self, ready: &Ready, now: Timestamp) {
        self.hear(&ready.desks, now);
        for (index, _) in ready.clients.iter().enumerate().filter(|(_, ready)| **ready) {
            self.attend(index, now);
        }
        self.give_up(now);
        self.part();
        if ready.listener {
            self.accept(now);
            self.part();
        }
        self.ask(now);
    }

    /// Passes on what the server has answered.
    fn hear(&mut self, ready: &[bool], now: Timestamp) {
        for (index, _) in ready.iter().enumerate().filter(|(_, ready)| **ready) {
            match self.desks[index].hear(now) {
                Ok(Some(reply)) => self.deliver(index, &reply, now),
                Ok(None) => {}
                Err(error) => self.not_answered(index, &error, now),
            }
        }
    }

    fn deliver(&mut self, desk: usize, reply: &Reply, now: Timestamp) {
        let wanted = &self.desks[desk].wanted;
        let status = Status::of(reply.status);
        if status == Status::Gone && wanted.waits == Hold::EnvoyHook {
            // Those whom this is for have left; who has come since is asked for anew.
            return;
        }
        let answer = self.answer(status, &reply.kind, &reply.body);
        let mut answered = 0;
        for client in &mut self.clients {
            if let State::WaiterGuard(Request { wanted: own, head_only, more }, _) = &client.state
                && own == wanted
            {
                let (head_only, more) = (*head_only, *more);
                answered += 1;
                client.answer(Arc::clone(&answer), head_only, more, now);
            }
        }
        self.count(wanted.route, status, answered);
    }

    /// Has the server asked for what clients wait for.
    fn ask(&mut self, now: Timestamp) {
        let clients = &self.clients;
        // A request that nobody wants an answer to any more still costs the server descriptors, so
        // it keeps its desk: else whoever asks and hangs up could have any number under way.
        self.desks.retain(|desk| desk.is_asked(now) || is_wanted(clients, &desk.wanted));
        for wanted in clients.iter().filter_map(Connection::wants) {
            let has_room = self.desks.len() < self.rules.clients;
            if has_room && !self.desks.iter().any(|desk| desk.wanted == *wanted) {
                self.desks.push(UpstreamRequest::new(wanted.clone()));
            }
        }
        for index in 0..self.desks.len() {
            if is_wanted(&self.clients, &self.desks[index].wanted)
                && let Err(error) = self.desks[index].want(&self.server, now)
            {
                self.not_answered(index, &error, now);
            }
        }
    }

    fn not_answered(&mut self, desk: usize, error: &io::Error, now: Timestamp) {
        self.bell.ring(error.kind());
        if let Some(times) = self.not_answered.happened(now) {
            Record::warn(messages::BACKEND_NOT_RESPONDING)
                .with("request", self.desks[desk].wanted.target.as_ref())
                .with("error", error.to_string())
                .with("times", times)
                .emit();
        }
    }

    /// Hears what a client has to say, or goes on with what it is told.
    fn attend(&mut self, index: usize, now: Timestamp) {
        let client = &mut self.clients[index];
        match client.state {
            State::Reading(_) => match client.read(self.keeper) {
                ReadOutcome::Nothing if client.unfinished() == 0 => {}
                ReadOutcome::Nothing => self.bound_unfinished(),
                ReadOutcome::Request(asked) => self.asked(index, asked, now),
                ReadOutcome::Rejection(refused) => self.refuse(index, refused, "", now),
            },
            // It has hung up, or says more than it may.
            State::WaiterGuard(..) => client.state = State::Gone,
            State::Answering { .. } => client.write(now),
            State::Lingering(_) => client.discard(),
            State::Gone => {}
        }
    }

    fn asked(&mut self, index: usize, asked: Request, now: Timestamp) {
        let UpstreamTarget { route, waits, .. } = asked.wanted;
        if waits == Hold::None {
            return self.clients[index].wait(asked, None, now + ANSWERED);
        }
        let status = |status| Rejection { route, status, head_only: asked.head_only };
        if asked.more {
            let why = "nothing may follow this request\n";
            return self.refuse(index, status(Status::BadRequest), why, now);
        }
        let waits_so =
            |client: &Connection| client.wants().is_some_and(|wanted| wanted.waits == waits);
        let waiting = self.clients.iter().filter(|client| waits_so(client));
        let waiting = waiting.map(|client| client.origin);
        match place(waiting, self.clients[index].origin, self.rules.waiting) {
            Admission::Free => {}
            Admission::InsteadOf(origin) => {
                let clients = self.clients.iter().enumerate();
                let theirs = clients.filter(|(_, other)| waits_so(other) && other.origin == origin);
                let newest = theirs.max_by_key(|(_, other)| other.number).map(|(index, _)| index);
                if let Some(newest) = newest
                    && let State::WaiterGuard(Request { head_only, .. }, _) =
                        self.clients[newest].state
                {
                    let refused = Rejection { head_only, ..status(Status::Unavailable) };
                    self.turn_away(newest, refused, now);
                }
            }
            Admission::Taken => return self.turn_away(index, status(Status::Unavailable), now),
        }
        let Timeouts { start, ready } = self.rules.patience;
        let (waiting, until) = if waits == Hold::EnvoyHook {
            let latest = ready.map_or(Timestamp::MAX, |ready| now + ready);
            self.clients[index].latest = latest;
            (self.register.envoy_hook(), latest.min(now + start))
        } else {
            (self.register.exec_hook(), Timestamp::MAX)
        };
        self.clients[index].wait(asked, Some(waiting), until);
    }

    fn turn_away(&mut self, index: usize, refused: Rejection, now: Timestamp) {
        self.gives_way(now);
        self.refuse(index, refused, "too many wait already\n", now);
    }

    fn refuse(&mut self, index: usize, refused: Rejection, why: &str, now: Timestamp) {
        let Rejection { route, status, head_only } = refused;
        let why = if why.is_empty() { status.line().to_owned() + "\n" } else { why.to_owned() };
        self.count(route, status, 1);
        let answer = self.answer(status, PLAIN, why.as_bytes());
        self.clients[index].answer(answer, head_only, true, now);
    }

    /// Ends what has taken too long.
    fn give_up(&mut self, now: Timestamp) {
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            if now < client.until {
                continue;
            }
            let (route, waits, head_only) = match &client.state {
                State::Reading(head) if !head.is_empty() => (None, None, false),
                State::WaiterGuard(Request { wanted, head_only, .. }, _) => {
                    (wanted.route, Some(wanted.waits), *head_only)
                }
                _ => {
                    client.state = State::Gone;
                    continue;
                }
            };
            let (status, why) = match waits {
                None => (Status::RequestTimeout, ""),
                Some(Hold::None) => (Status::Unavailable, "the sidecar does not answer itself\n"),
                Some(_) if now >= client.latest => {
                    if let Some(requests) = self.too_long.happened(now) {
                        Record::warn(messages::READY_TIMEOUT_PASSED)
                            .with("requests", requests)
                            .emit();
                    }
                    (Status::TookTooLong, NOT_READY)
                }
                Some(_) if !self.register.no_drain_active() => {
                    // A drain has begun; that ends.
                    client.until = client.latest.min(now + self.rules.patience.start);
                    continue;
                }
                Some(_) => {
                    if let Some(requests) = self.let_go.happened(now) {
                        Record::warn(messages::START_TIMEOUT_PASSED)
                            .with("requests", requests)
                            .emit();
                    }
                    (Status::Unavailable, NO_DRAIN)
                }
            };
            self.refuse(index, Rejection { route, status, head_only }, why, now);
        }
        let lingering = |client: &Connection| matches!(client.state, State::Lingering(_));
        for _ in MOST_LINGERING..self.clients.iter().filter(|client| lingering(client)).count() {
            if let Some(oldest) = self.oldest(&lingering) {
                self.clients[oldest].state = State::Gone;
            }
        }
    }

    /// Closes the connections of those who are gone.
    fn part(&mut self) {
        self.clients.retain(|client| !matches!(client.state, State::Gone));
    }

    /// Takes new connections in, and lets others go for them.
    fn accept(&mut self, now: Timestamp) {
        let most = self.number + ACCEPTED_AT_ONCE;
        let mut more = true;
        while more && self.number < most {
            let (room, last) = (self.room().min(most - self.number), self.number);
            more = room > 0 && self.take_in(room, now);
            self.make_room(last, now);
        }
    }

    /// Takes so many in, if they are there; whether more may be.
    fn take_in(&mut self, most: u64, now: Timestamp) -> bool {
        for _ in 0..most {
            let (socket, origin) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return false,
                    // The client's own fault.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => continue,
                    _ => {
                        self.accept_at = now + ACCEPT_AGAIN;
                        if let Some(times) = self.not_accepted.happened(now) {
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
            self.number += 1;
            let index = self.clients.len();
            self.clients.push(Connection::new(socket, origin, self.number, now));
            // Most have sent their request by now.
            self.attend(index, now);
        }
        true
    }

    fn answer(&self, status: Status, kind: &str, body: &[u8]) -> Arc<Response> {
        // At the control socket this depends on the path.
        let allow = if self.is_public() { "GET, HEAD" } else { "" };
        let date = httpdate::fmt_http_date(SystemTime::now());
        Arc::new(Response::new(status, kind, body, &date, allow))
    }

    fn is_public(&self) -> bool {
        matches!(self.listener, Listener::Public(_))
    }

    fn count(&self, route: Option<PublicRoute>, status: Status, times: u64) {
        if self.is_public() {
            self.register.count_response(route, status, times);
        }
    }

    /// How many may be taken in at once: as many as fit, and some in the place of those who can be
    /// spared. Where everybody waits, which most do for less than a millisecond, those who come do
    /// so in the backlog; and rather than the last who could be spared goes, one of those who wait
    /// so briefly.
    fn room(&self) -> u64 {
        let (held, most) = (self.clients.len(), self.rules.clients);
        let crowd = (most / CROWD).max(1);
        let brief = |client: &Connection| client.wants().is_some_and(|w| w.waits == Hold::None);
        let spared = self.clients.iter().filter(|client| client.wants().is_none()).count();
        let spared = spared - spared.min(usize::from(self.clients.iter().any(brief)));
        let room = most.saturating_sub(held) + spared.min(crowd);
        room.min((most + crowd).saturating_sub(held)) as u64
    }

    /// Lets go of those who are too many: of those who can be spared, some of the origin that has
    /// most of them, and of these who can best be spared, the oldest; and whoever has come after
    /// number `last` after all others. So a client may take its time between its connect and its
    /// request, however often others come.
    fn make_room(&mut self, last: u64, now: Timestamp) {
        while self.clients.len() > self.rules.clients {
            let is_spared = |client: &&Connection| client.wants().is_none();
            let counted = self.clients.iter().filter(|c| c.number > last || is_spared(c));
            let crowd = crowd(counted.map(|client| client.origin));
            let spared = self.clients.iter().filter(is_spared);
            let crowd = crowd.filter(|crowd| spared.map(|c| c.origin).any(|own| own == *crowd));
            let worth = |client: &Connection| {
                let worth = client.worth(now)?;
                let worth = if client.number > last { worth + NEWEST } else { worth };
                crowd.is_none_or(|crowd| client.origin == crowd).then_some(worth)
            };
            let worths = self.clients.iter().filter_map(worth);
            let Some(least) = worths.clone().min() else { return };
            // Who is left is looked at again: another origin may have most by then.
            let some = worths.filter(|worth| *worth == least).count().div_ceil(2);
            let mut left = (self.clients.len() - self.rules.clients).min(some);
            for index in 0..self.clients.len() {
                if left > 0 && worth(&self.clients[index]) == Some(least) {
                    // Where few fit, many have sent their request and not been read yet.
                    self.attend(index, now);
                    if worth(&self.clients[index]).is_some_and(|now| now <= least) {
                        self.clients[index].state = State::Gone;
                        self.gives_way(now);
                        left -= 1;
                    }
                }
            }
            self.part();
        }
    }

    /// Keeps heads that are not whole within their bound.
    fn bound_unfinished(&mut self) {
        while self.clients.iter().map(Connection::unfinished).sum::<usize>() > MOST_UNFINISHED
            && let Some(oldest) = self.oldest(&|client| client.unfinished() > 0)
        {
            self.clients[oldest].state = State::Gone;
        }
    }

    fn oldest(&self, of: &dyn Fn(&Connection) -> bool) -> Option<usize> {
        let clients = self.clients.iter().enumerate().filter(|(_, client)| of(client));
        clients.min_by_key(|(_, client)| client.number).map(|(index, _)| index)
    }

    fn gives_way(&mut self, now: Timestamp) {
        if self.is_public() {
            self.register.count_rejected_connection();
        }
        if let Some(times) = self.full.happened(now) {
            Record::warn(messages::CONNECTION_LIMIT_REACHED)
                .with("listener", self.listener.name())
                .with("connections", self.clients.len() as u64)
                .with("max_connections", self.rules.clients as u64)
                .with("max_waiting", self.rules.waiting as u64)
                .with("times", times)
                .emit();
        }
    }
}

const NO_DRAIN: &str = "no drain started within the start timeout\n";
const NOT_READY: &str = "the drain has not ended within the ready timeout\n";

fn is_wanted(clients: &[Connection], wanted: &UpstreamTarget) -> bool {
    clients.iter().any(|client| client.wants() == Some(wanted))
}

#[cfg(test)]
mod tests;
