//! One client, from its connect to its end.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use super::admission::SourceKey;
use super::request::{self, ParsedHead, Rejection, Request};
use super::response::Response;
use crate::coordinator::WaiterGuard;
use crate::os::clock::Timestamp;
use crate::route::{Hold, Router, UpstreamTarget};

/// For a whole head, and for taking the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between a client's connect and its request others may run, and come. In that time one of 3,900
/// probes gave way to a client that had its answer, at a door of four places.
const JUST_CAME: Duration = Duration::from_millis(100);

/// After an answer to somebody who had more to say, that is read for so long and so far: closed at
/// once, the connection would be reset, and the answer lost.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// A client.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    /// Where it comes from.
    pub origin: SourceKey,
    /// Older clients have smaller numbers.
    pub number: u64,
    /// What is known of it.
    pub state: State,
    /// When that is not waited for any longer.
    pub until: Timestamp,
    /// When it is not kept waiting any longer, whatever goes on.
    pub latest: Timestamp,
}

/// What is known of a client.
#[derive(Debug)]
pub enum State {
    /// It has yet to say what it wants; this much it has said.
    Reading(Vec<u8>),
    /// It waits for an answer.
    WaiterGuard(Request, Option<WaiterGuard>),
    /// It is being answered; so much is sent.
    Answering {
        answer: Arc<Response>,
        head_only: bool,
        sent: usize,
        lingers: bool,
        _out: Option<WaiterGuard>,
    },
    /// It was answered; so much more may it say.
    Lingering(usize),
    /// Its connection is to be closed.
    Gone,
}

/// What a client has said.
#[derive(Debug)]
pub enum ReadOutcome {
    /// Nothing that matters yet.
    Nothing,
    /// A request.
    Request(Request),
    /// Something that is refused.
    Rejection(Rejection),
}

impl Connection {
    /// A client that has just connected.
    #[must_use]
    pub fn new(socket: OwnedFd, origin: SourceKey, number: u64, now: Timestamp) -> Self {
        let (state, until) = (State::Reading(Vec::new()), now + PATIENCE);
        Self { socket, origin, number, state, until, latest: Timestamp::MAX }
    }

    /// Its socket.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What is to be watched for. While it waits only briefly, its input is not: a client that has
    /// closed its half of the connection may still want its answer.
    #[must_use]
    pub fn interest(&self) -> PollFlags {
        match &self.state {
            State::Reading(_) | State::Lingering(_) => PollFlags::POLLIN,
            State::WaiterGuard(asked, _) if asked.wanted.waits != Hold::None => PollFlags::POLLIN,
            State::Answering { .. } => PollFlags::POLLOUT,
            State::WaiterGuard(..) | State::Gone => PollFlags::empty(),
        }
    }

    /// What it waits for.
    #[must_use]
    pub fn wants(&self) -> Option<&UpstreamTarget> {
        match &self.state {
            State::WaiterGuard(asked, _) => Some(&asked.wanted),
            _ => None,
        }
    }

    /// How ill it can be spared when others come: not at all while it waits; less when it has yet
    /// to be told all of its answer than when it has been, and best before it has asked, unless it
    /// has just come.
    #[must_use]
    pub fn worth(&self, now: Timestamp) -> Option<u8> {
        match &self.state {
            State::Reading(_) if now + PATIENCE < self.until + JUST_CAME => Some(2),
            State::Reading(_) | State::Gone => Some(0),
            State::Lingering(_) => Some(1),
            State::Answering { .. } => Some(2),
            State::WaiterGuard(..) => None,
        }
    }

    /// How much of an unfinished head it has sent.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        match &self.state {
            State::Reading(head) => head.len(),
            _ => 0,
        }
    }

    /// Reads what it has sent, as far as that is a head. The end of its input is its own end.
    pub fn read(&mut self, keeper: Router) -> ReadOutcome {
        let State::Reading(head) = &mut self.state else { return ReadOutcome::Nothing };
        let mut piece = [0; request::LONGEST];
        let length = match recv(self.socket.as_raw_fd(), &mut piece, MsgFlags::MSG_DONTWAIT) {
            Ok(length @ 1..) => length,
            Err(Errno::EAGAIN | Errno::EINTR) => return ReadOutcome::Nothing,
            Ok(0) | Err(_) => {
                self.state = State::Gone;
                return ReadOutcome::Nothing;
            }
        };
        let piece = &piece[..length];
        let said = if head.is_empty() {
            // As nearly always; then nothing is kept of it.
            request::read(piece, keeper)
        } else {
            head.extend_from_slice(piece);
            request::read(head, keeper)
        };
        match said {
            ParsedHead::Whole(asked) => ReadOutcome::Request(asked),
            ParsedHead::Rejection(refused) => ReadOutcome::Rejection(refused),
            ParsedHead::Partial => {
                if head.is_empty() {
                    head.extend_from_slice(piece);
                }
                ReadOutcome::Nothing
            }
        }
    }

    /// Lets it wait.
    pub fn wait(&mut self, asked: Request, outside: Option<WaiterGuard>, until: Timestamp) {
        self.state = State::WaiterGuard(asked, outside);
        self.until = until;
    }

    /// Answers it. `lingers`: it has, or may have, more to say.
    pub fn answer(
        &mut self,
        answer: Arc<Response>,
        head_only: bool,
        lingers: bool,
        now: Timestamp,
    ) {
        // Whoever is answered waits until it has its answer.
        let _out = match std::mem::replace(&mut self.state, State::Gone) {
            State::WaiterGuard(_, outside) => outside,
            _ => None,
        };
        self.state = State::Answering { answer, head_only, sent: 0, lingers, _out };
        self.until = now + PATIENCE;
        self.write(now);
    }

    /// Sends as much of the answer as it takes.
    pub fn write(&mut self, now: Timestamp) {
        let State::Answering { answer, head_only, sent, lingers, .. } = &mut self.state else {
            return;
        };
        let bytes = answer.part(*head_only);
        while *sent < bytes.len() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.socket.as_raw_fd(), &bytes[*sent..], flags) {
                Ok(length @ 1..) => *sent += length,
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => {
                    self.state = State::Gone;
                    return;
                }
            }
        }
        self.state = if *lingers && shutdown(self.socket.as_raw_fd(), Shutdown::Write).is_ok() {
            self.until = now + LINGER;
            State::Lingering(LINGER_BYTES)
        } else {
            State::Gone
        };
    }

    /// Reads what it has left to say, and forgets it.
    pub fn discard(&mut self) {
        let State::Lingering(left) = &mut self.state else { return };
        let mut piece = [0; 4096];
        match recv(self.socket.as_raw_fd(), &mut piece, MsgFlags::MSG_DONTWAIT) {
            Ok(length) if length > 0 && length < *left => *left -= length,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            _ => self.state = State::Gone,
        }
    }
}
