//! The public port: one thread that holds every connection, and asks the control socket for what
//! they want. Nothing that a client sends gets further than this thread, and none of the routes
//! that it knows can begin a drain.
//!
//! A client is read until its head is whole (`client`, [`crate::head`]). Then it waits at its
//! route's `desk`, whose one request to the control socket is answered for all who wait there.
//! Whoever takes long gives way when there are more than fit: first those who have not said what
//! they want, so a probe that sends its request at once is always answered.

mod answer;
mod client;
mod desk;
mod places;

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::answer::{Answer, PLAIN};
use self::client::{Client, Said, State};
use self::desk::{Desk, Reply};
use self::places::{Origin, Place, place};
use crate::clock;
use crate::drain::Time;
use crate::head::{Asked, Refused, Route, Status};
use crate::logger::{Line, Seldom};
use crate::manager::Door;
use crate::story;

/// What the public port holds at most. Each connection costs the process some 100 bytes and the
/// kernel some 4 kB.
const MOST_CLIENTS: usize = 1024;
const FEWEST_CLIENTS: usize = 4;

/// Descriptors that the rest of the process keeps: half of them, at most what all places at the
/// control socket take (128 waiters at two each, and this thread's three requests at three), and
/// at least what one drain takes.
const MOST_RESERVED: usize = 320;
const FEWEST_RESERVED: usize = 28;

/// Heads that are not whole, in bytes and all together.
const MOST_UNFINISHED: usize = 128 * 1024;

/// Clients whose last words are discarded.
const MOST_LINGERING: usize = 64;

/// Connections that are taken before those that are there have their turn.
const ACCEPTED_AT_ONCE: usize = 64;

/// After an error of `accept`: too few descriptors, mostly.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How long an answer from the control socket is waited for. A kubelet waits 1 s if not told
/// otherwise, and hangs up by itself.
const ANSWERED: Duration = Duration::from_secs(5);

/// What holds at the public port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    clients: usize,
    waiting: usize,
    start_timeout: Duration,
}

impl Rules {
    /// The rules of a process that may have so many descriptors.
    #[must_use]
    pub fn new(descriptors: usize, start_timeout: Duration) -> Self {
        let reserved = (descriptors / 2).clamp(FEWEST_RESERVED, MOST_RESERVED);
        let clients = descriptors.saturating_sub(reserved).clamp(FEWEST_CLIENTS, MOST_CLIENTS);
        // The other half is for those who want something else.
        Self { clients, waiting: clients / 2, start_timeout }
    }
}

/// The public port.
#[derive(Debug)]
pub struct Front {
    listener: TcpListener,
    control: Arc<PathBuf>,
    door: Door,
    rules: Rules,
    clients: Vec<Client>,
    desks: Vec<Desk>,
    /// How many clients there have been.
    number: u64,
    accept_at: Time,
    full: Seldom,
    not_accepted: Seldom,
    let_go: Seldom,
}

/// Who has something to say.
struct Ready {
    listener: bool,
    desks: Vec<bool>,
    clients: Vec<bool>,
}

impl Front {
    /// A front for this port, which asks at the control socket of this path.
    #[must_use]
    pub fn new(listener: TcpListener, control: PathBuf, door: Door, rules: Rules) -> Self {
        Self {
            listener,
            control: Arc::new(control),
            door,
            rules,
            clients: Vec::new(),
            desks: Vec::new(),
            number: 0,
            accept_at: Time::ZERO,
            full: Seldom::default(),
            not_accepted: Seldom::default(),
            let_go: Seldom::default(),
        }
    }

    /// Serves for as long as the process lives.
    pub fn serve(&mut self) {
        // What a panic has left behind is not trusted.
        self.clients = Vec::new();
        self.desks = Route::ALL.map(|route| Desk::new(route, Arc::clone(&self.control))).into();
        loop {
            let ready = self.look();
            let now = clock::now();
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
            for desk in &mut self.desks {
                if is_wanted(&self.clients, desk.route()) {
                    desk.want(now);
                }
            }
        }
    }

    /// Sleeps until somebody has something to say, or something has been waited for long enough.
    fn look(&self) -> Ready {
        let now = clock::now();
        let accepts = now >= self.accept_at && self.has_room();
        let mut fds = Vec::with_capacity(1 + self.desks.len() + self.clients.len());
        let mut until = if now < self.accept_at { self.accept_at } else { Time::MAX };
        let listens = if accepts { PollFlags::POLLIN } else { PollFlags::empty() };
        fds.push(PollFd::new(self.listener.as_fd(), listens));
        for desk in &self.desks {
            if is_wanted(&self.clients, desk.route()) {
                until = until.min(desk.due());
            }
            fds.extend(desk.fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        }
        for client in &self.clients {
            until = until.min(client.until);
            fds.push(PollFd::new(client.fd(), client.interest()));
        }
        let timeout = if until == Time::MAX {
            PollTimeout::NONE
        } else {
            // Rounded up, or the last millisecond would be a busy loop.
            let left = until.saturating_sub(now).as_micros().div_ceil(1000);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                // The kernel has no memory for it.
                Line::error("the public port cannot be watched; trying again")
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

    /// Passes on what the control socket has answered.
    fn hear(&mut self, ready: &[bool], now: Time) {
        for (index, _) in ready.iter().enumerate().filter(|(_, ready)| **ready) {
            let desk = &mut self.desks[index];
            let route = desk.route();
            if let Some(reply) = desk.hear(now) {
                self.deliver(route, &reply, now);
            }
        }
    }

    fn deliver(&mut self, route: Route, reply: &Reply, now: Time) {
        let status = match reply.status {
            200 => Status::Ok,
            // Those whom this is for have left; who has come since is asked for anew.
            410 => return,
            _ => Status::Unavailable,
        };
        let answer = answer(status, &reply.kind, &reply.body);
        for client in self.clients.iter_mut().filter(|client| client.waits_for(route)) {
            reply_to(client, route, &answer, &self.door, now);
        }
    }

    /// Hears what a client has to say, or goes on with what it is told.
    fn attend(&mut self, index: usize, now: Time) {
        let client = &mut self.clients[index];
        match client.state {
            State::Reading(_) => match client.read() {
                Said::Nothing => self.bound_unfinished(),
                Said::Asked(asked) => self.asked(index, asked, now),
                Said::Refused(refused) => self.refuse(index, refused, "", now),
            },
            // It has hung up, or says more than it may.
            State::Waiting(..) => client.state = State::Gone,
            State::Answering { .. } => client.write(now),
            State::Lingering(_) => client.discard(),
            State::Gone => {}
        }
    }

    fn asked(&mut self, index: usize, asked: Asked, now: Time) {
        let Asked { route, head_only, more } = asked;
        if route != Route::Shutdown {
            return self.clients[index].wait(asked, None, now + ANSWERED);
        }
        if more {
            let refused = Refused { route: Some(route), status: Status::BadRequest, head_only };
            return self.refuse(index, refused, "nothing may follow this request\n", now);
        }
        let waiting = self.clients.iter().filter(|client| client.waits_for(route));
        let waiting = waiting.map(|client| client.origin);
        match place(waiting, self.clients[index].origin, self.rules.waiting) {
            Place::Free => {}
            Place::InsteadOf(origin) => {
                let newest = (0..self.clients.len())
                    .filter(|index| {
                        let client = &self.clients[*index];
                        client.waits_for(route) && client.origin == origin
                    })
                    .max_by_key(|index| self.clients[*index].number);
                if let Some(newest) = newest
                    && let State::Waiting(Asked { head_only, .. }, _) = self.clients[newest].state
                {
                    self.turn_away(newest, head_only, now);
                }
            }
            Place::Taken => return self.turn_away(index, head_only, now),
        }
        let let_go = now + self.rules.start_timeout;
        self.clients[index].wait(asked, Some(self.door.wait()), let_go);
    }

    fn turn_away(&mut self, index: usize, head_only: bool, now: Time) {
        self.gives_way(now);
        let refused =
            Refused { route: Some(Route::Shutdown), status: Status::Unavailable, head_only };
        self.refuse(index, refused, "too many wait already\n", now);
    }

    fn refuse(&mut self, index: usize, refused: Refused, why: &str, now: Time) {
        let Refused { route, status, head_only } = refused;
        let why = if why.is_empty() { status.line().to_owned() + "\n" } else { why.to_owned() };
        self.door.answered(route, status);
        self.clients[index].answer(answer(status, PLAIN, why.as_bytes()), head_only, true, now);
    }

    /// Ends what has taken too long.
    fn give_up(&mut self, now: Time) {
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            if now < client.until {
                continue;
            }
            let (route, head_only) = match &client.state {
                State::Reading(head) if !head.is_empty() => (None, false),
                State::Waiting(asked, _) => (Some(asked.route), asked.head_only),
                _ => {
                    client.state = State::Gone;
                    continue;
                }
            };
            let (status, why) = match route {
                None => (Status::RequestTimeout, ""),
                Some(Route::Shutdown) if !self.door.lets_go() => {
                    // A drain has begun; that ends.
                    client.until = Time::MAX;
                    continue;
                }
                Some(Route::Shutdown) => {
                    if let Some(requests) = self.let_go.happened(now) {
                        story::let_go(requests).emit();
                    }
                    (Status::Unavailable, story::NO_DRAIN)
                }
                Some(_) => (Status::Unavailable, "the control socket does not answer\n"),
            };
            self.refuse(index, Refused { route, status, head_only }, why, now);
        }
        let lingering = |client: &Client| matches!(client.state, State::Lingering(_));
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
    fn accept(&mut self, now: Time) {
        for _ in 0..ACCEPTED_AT_ONCE {
            if !self.has_room() {
                return;
            }
            let (socket, address) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    // The client's own fault.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => continue,
                    _ => {
                        self.accept_at = now + ACCEPT_AGAIN;
                        if let Some(times) = self.not_accepted.happened(now) {
                            Line::warn(
                                "a connection to the public port cannot be taken; trying again",
                            )
                            .with("error", error.to_string())
                            .with("times", times)
                            .emit();
                        }
                        return;
                    }
                },
            };
            if self.is_full() {
                self.make_room(now);
            }
            if socket.set_nonblocking(true).is_err() {
                continue;
            }
            self.number += 1;
            let index = self.clients.len();
            let origin = Origin::from(address.ip());
            self.clients.push(Client::new(socket, origin, self.number, now));
            // Most have sent their request by now.
            self.attend(index, now);
        }
    }

    fn is_full(&self) -> bool {
        self.clients.len() >= self.rules.clients
    }

    /// Whether one more fits, or can take the place of somebody who can be spared. Where everybody
    /// waits, which most do for less than a millisecond, those who come do so in the backlog.
    fn has_room(&self) -> bool {
        !self.is_full() || self.clients.iter().any(|client| client.worth().is_some())
    }

    /// Lets one go: of those who can best be spared, the oldest.
    fn make_room(&mut self, now: Time) {
        self.gives_way(now);
        loop {
            let clients = self.clients.iter().enumerate();
            let spared =
                clients.filter_map(|(index, client)| Some((client.worth()?, client.number, index)));
            let Some((worth, _, index)) = spared.min() else { return };
            // Where few fit, many have sent their request and not been read yet.
            self.attend(index, now);
            if self.clients[index].worth().is_some_and(|now| now <= worth) {
                self.clients.swap_remove(index);
                return;
            }
        }
    }

    /// Keeps heads that are not whole within their bound.
    fn bound_unfinished(&mut self) {
        while self.clients.iter().map(Client::unfinished).sum::<usize>() > MOST_UNFINISHED
            && let Some(oldest) = self.oldest(&|client| client.unfinished() > 0)
        {
            self.clients[oldest].state = State::Gone;
        }
    }

    fn oldest(&self, of: &dyn Fn(&Client) -> bool) -> Option<usize> {
        let clients = self.clients.iter().enumerate().filter(|(_, client)| of(client));
        clients.min_by_key(|(_, client)| client.number).map(|(index, _)| index)
    }

    fn gives_way(&mut self, now: Time) {
        self.door.refused();
        if let Some(times) = self.full.happened(now) {
            Line::warn(
                "the public port is full: a connection gives way to a new one, or is refused",
            )
            .with("connections", self.clients.len() as u64)
            .with("may-be", self.rules.clients as u64)
            .with("may-wait", self.rules.waiting as u64)
            .with("times", times)
            .emit();
        }
    }
}

fn is_wanted(clients: &[Client], route: Route) -> bool {
    clients.iter().any(|client| client.waits_for(route))
}

fn reply_to(client: &mut Client, route: Route, answer: &Arc<Answer>, door: &Door, now: Time) {
    if let State::Waiting(asked, _) = client.state {
        door.answered(Some(route), answer.status);
        client.answer(Arc::clone(answer), asked.head_only, asked.more, now);
    }
}

fn answer(status: Status, kind: &str, body: &[u8]) -> Arc<Answer> {
    Arc::new(Answer::new(status, kind, body, &httpdate::fmt_http_date(SystemTime::now())))
}
