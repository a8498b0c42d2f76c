//! One client of the public port, from its connect to its end.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::PollFlags;

use super::answer::Answer;
use super::places::Origin;
use crate::drain::Time;
use crate::head::{self, Asked, Head, Refused, Route};
use crate::manager::Outside;

/// For a whole head, and for taking the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// After an answer to somebody who had more to say, that is read for so long and so far: closed at
/// once, the connection would be reset, and the answer lost.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// A client.
#[derive(Debug)]
pub struct Client {
    socket: TcpStream,
    /// Where it comes from.
    pub origin: Origin,
    /// Older clients have smaller numbers.
    pub number: u64,
    /// What is known of it.
    pub state: State,
    /// When that is not waited for any longer.
    pub until: Time,
}

/// What is known of a client.
#[derive(Debug)]
pub enum State {
    /// It has yet to say what it wants; this much it has said.
    Reading(Vec<u8>),
    /// It waits for an answer.
    Waiting(Asked, Option<Outside>),
    /// It is being answered; so much is sent.
    Answering {
        answer: Arc<Answer>,
        head_only: bool,
        sent: usize,
        lingers: bool,
        _out: Option<Outside>,
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
    pub fn new(socket: TcpStream, origin: Origin, number: u64, now: Time) -> Self {
        Self { socket, origin, number, state: State::Reading(Vec::new()), until: now + PATIENCE }
    }

    /// Its socket.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What is to be watched for. While the control socket is asked for something short, its input
    /// is not: a client that has closed its half of the connection may still want its answer.
    #[must_use]
    pub fn interest(&self) -> PollFlags {
        match &self.state {
            State::Reading(_) | State::Lingering(_) => PollFlags::POLLIN,
            State::Waiting(asked, _) if asked.route == Route::Shutdown => PollFlags::POLLIN,
            State::Answering { .. } => PollFlags::POLLOUT,
            State::Waiting(..) | State::Gone => PollFlags::empty(),
        }
    }

    /// Whether it waits for this.
    #[must_use]
    pub fn waits_for(&self, route: Route) -> bool {
        matches!(&self.state, State::Waiting(asked, _) if asked.route == route)
    }

    /// How ill it can be spared when others come: not at all while it waits; less when it has yet
    /// to be told all of its answer than when it has been, and best before it has asked.
    #[must_use]
    pub fn worth(&self) -> Option<u8> {
        match &self.state {
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
    pub fn read(&mut self) -> Said {
        let State::Reading(head) = &mut self.state else { return Said::Nothing };
        let mut piece = [0; head::LONGEST];
        let length = match self.socket.read(&mut piece) {
            Ok(length @ 1..) => length,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Said::Nothing;
            }
            Ok(0) | Err(_) => {
                self.state = State::Gone;
                return Said::Nothing;
            }
        };
        let piece = &piece[..length];
        let said = if head.is_empty() {
            // As nearly always; then nothing is kept of it.
            head::read(piece)
        } else {
            head.extend_from_slice(piece);
            head::read(head)
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
    pub fn wait(&mut self, asked: Asked, outside: Option<Outside>, until: Time) {
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
            match self.socket.write(&bytes[*sent..]) {
                Ok(length @ 1..) => *sent += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    self.state = State::Gone;
                    return;
                }
            }
        }
        self.state = if *lingers && self.socket.shutdown(Shutdown::Write).is_ok() {
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
        match self.socket.read(&mut piece) {
            Ok(length) if length > 0 && length < *left => *left -= length,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            _ => self.state = State::Gone,
        }
    }
}
