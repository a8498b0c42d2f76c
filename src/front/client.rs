//! One client, from its connect to its end.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use super::answer::Answer;
use super::places::Origin;
use crate::drain::Time;
use crate::head::{self, Asked, Head, Keeper, Refused, Waits, Wanted};
use crate::manager;

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
pub struct Client {
    socket: OwnedFd,
    /// Where it comes from.
    pub origin: Origin,
    /// Older clients have smaller numbers.
    pub number: u64,
    /// What is known of it.
    pub state: State,
    /// When that is not waited for any longer.
    pub until: Time,
    /// When it is not kept waiting any longer, whatever goes on.
    pub latest: Time,
}

/// What is known of a client.
#[derive(Debug)]
pub enum State {
    /// It has yet to say what it wants; this much it has said.
    Reading(Vec<u8>),
    /// It waits for an answer.
    Waiting(Asked, Option<manager::Waiting>),
    /// It is being answered; so much is sent.
    Answering {
        answer: Arc<Answer>,
        head_only: bool,
        sent: usize,
        lingers: bool,
        _out: Option<manager::Waiting>,
    },
    /// It was answered; so much more may it say.
    Lingering(usize),
    /// Its connection is to be closed.
    Gone,
}

/// What a client has said.
#[derive(Debug)]
pub enum Said {
    /// Nothing that matters yet.
    Nothing,
    /// A request.
    Asked(Asked),
    /// Something that is refused.
    Refused(Refused),
}

impl Client {
    /// A client that has just connected.
    #[must_use]
    pub fn new(socket: OwnedFd, origin: Origin, number: u64, now: Time) -> Self {
        let (state, until) = (State::Reading(Vec::new()), now + PATIENCE);
        Self { socket, origin, number, state, until, latest: Time::MAX }
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
            State::Waiting(asked, _) if asked.wanted.waits != Waits::Briefly => PollFlags::POLLIN,
            State::Answering { .. } => PollFlags::POLLOUT,
            State::Waiting(..) | State::Gone => PollFlags::empty(),
        }
    }

    /// What it waits for.
    #[must_use]
    pub fn wants(&self) -> Option<&Wanted> {
        match &self.state {
            State::Waiting(asked, _) => Some(&asked.wanted),
            _ => None,
        }
    }

    /// How ill it can be spared when others come: not at all while it waits; less when it has yet
    /// to be told all of its answer than when it has been, and best before it has asked, unless it
    /// has just come.
    #[must_use]
    pub fn worth(&self, now: Time) -> Option<u8> {
        match &self.state {
            State::Reading(_) if now + PATIENCE < self.until + JUST_CAME => Some(2),
            State::Reading(_) | State::Gone => Some(0),
            State::Lingering(_) => Some(1),
            State::Answering { .. } => Some(2),
            State::Waiting(..) => None,
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
    pub fn read(&mut self, keeper: Keeper) -> Said {
        let State::Reading(head) = &mut self.state else { return Said::Nothing };
        let mut piece = [0; head::LONGEST];
        let length = match recv(self.socket.as_raw_fd(), &mut piece, MsgFlags::MSG_DONTWAIT) {
            Ok(length @ 1..) => length,
            Err(Errno::EAGAIN | Errno::EINTR) => return Said::Nothing,
            Ok(0) | Err(_) => {
                self.state = State::Gone;
                return Said::Nothing;
            }
        };
        let piece = &piece[..length];
        let said = if head.is_empty() {
            // As nearly always; then nothing is kept of it.
            head::read(piece, keeper)
        } else {
            head.extend_from_slice(piece);
            head::read(head, keeper)
        };
        match said {
            Head::Whole(asked) => Said::Asked(asked),
            Head::Refused(refused) => Said::Refused(refused),
            Head::Partial => {
                if head.is_empty() {
                    head.extend_from_slice(piece);
                }
                Said::Nothing
            }
        }
    }

    /// Lets it wait.
    pub fn wait(&mut self, asked: Asked, outside: Option<manager::Waiting>, until: Time) {
        self.state = State::Waiting(asked, outside);
        self.until = until;
    }

    /// Answers it. `lingers`: it has, or may have, more to say.
    pub fn answer(&mut self, answer: Arc<Answer>, head_only: bool, lingers: bool, now: Time) {
        // Whoever is answered waits until it has its answer.
        let _out = match std::mem::replace(&mut self.state, State::Gone) {
            State::Waiting(_, outside) => outside,
            _ => None,
        };
        self.state = State::Answering { answer, head_only, sent: 0, lingers, _out };
        self.until = now + PATIENCE;
        self.write(now);
    }

    /// Sends as much of the answer as it takes.
    pub fn write(&mut self, now: Time) {
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
