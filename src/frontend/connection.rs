//! One connection of a client, from its accept to its close.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, Shutdown, getsockopt, recv, send, shutdown, sockopt};

use self::ConnectionState::{Closed, Lingering, Reading, Responding, Waiting};
use super::admission::{ConnectionId, EvictionRank, SourceKey};
use super::listen::ListenerId;
use super::request::{self, After, Rejection, Request};
use super::response::Response;
use crate::coordinator::WaiterGuard;
use crate::os::clock::Timestamp;
use crate::route::Route;

/// For a client to send a whole request head, also the next one on a connection that is kept, and for
/// it to take the response.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Between a client's connect and its request, other processes may run and other clients connect.
/// In that time one of 3,900 probes was evicted in favour of a client that had its response, by a
/// frontend of four connections.
const ACCEPT_GRACE: Duration = Duration::from_millis(100);

/// After a response to a client that sends more than its request, that is read for this long and
/// up to this many bytes: closed at once, the connection would be reset and the response lost.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_LINGER_BYTES: usize = 4 * 1024 * 1024;

#[derive(Debug)]
pub struct Connection {
    pub id: ConnectionId,
    pub listener: ListenerId,
    pub source: SourceKey,
    pub state: ConnectionState,
    /// When the state times out.
    pub deadline: Timestamp,
    /// When it was accepted, or began to wait for a drain.
    pub admitted: Timestamp,
    /// Counts the client as a waiter until its response is sent. Until then the exec hook's response
    /// is delayed, since the kubelet stops the sidecar after it.
    pub waiter: Option<WaiterGuard>,
    socket: OwnedFd,
}

#[derive(Debug)]
pub enum ConnectionState {
    /// The request head is incomplete; this is what has arrived of it.
    Reading(Vec<u8>),
    /// The client waits for a response.
    Waiting(Request, Wait),
    Responding {
        response: Arc<Response>,
        head_only: bool,
        sent: usize,
        after: After,
    },
    /// The response is sent; up to this many more bytes are read and discarded.
    Lingering(usize),
    /// To be dropped, which closes the socket.
    Closed,
}

/// What a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A hook, for the end of its drain.
    Drain,
    /// To be requested from the backend; until then after all others, where it was requested and no
    /// response came, since it may be what makes the backend fail.
    Turn(Timestamp),
    /// For the backend's response.
    Response,
}

impl Connection {
    pub fn new(
        socket: OwnedFd,
        listener: ListenerId,
        source: SourceKey,
        id: ConnectionId,
        now: Timestamp,
    ) -> Self {
        Self {
            id,
            listener,
            source,
            state: Reading(Vec::new()),
            deadline: now + CLIENT_TIMEOUT,
            admitted: now,
            waiter: None,
            socket,
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The process at the other end, for the log. Its PID is 0 where it is in another PID namespace.
    pub fn peer(&self) -> String {
        match getsockopt(&self.socket, sockopt::PeerCredentials) {
            Ok(peer) => format!("uid:{},pid:{}", peer.uid(), peer.pid()),
            Err(_) => "unknown".to_owned(),
        }
    }

    /// What to poll for. Input is not polled for while the response comes at once: a client that
    /// has closed its half of the connection may still want the response.
    pub fn interest(&self) -> PollFlags {
        match &self.state {
            Reading(_) | Lingering(_) => PollFlags::POLLIN,
            Waiting(request, _) if request.route.is_hook() => PollFlags::POLLIN,
            Responding { .. } => PollFlags::POLLOUT,
            Waiting(..) | Closed => PollFlags::empty(),
        }
    }

    /// What the client has requested and waits for.
    pub fn awaited(&self) -> Option<&Route> {
        if let Waiting(request, _) = &self.state { Some(&request.route) } else { None }
    }

    /// Whether a client waits briefly, for the backend and not for a drain.
    pub fn waits_briefly(&self) -> bool {
        self.awaited().is_some_and(|route| !route.is_hook())
    }

    /// What is to be requested from the backend for it, and until when that comes after all others.
    pub fn due(&self) -> Option<(&Route, Timestamp)> {
        match &self.state {
            Waiting(request, Wait::Turn(last_until)) => Some((&request.route, *last_until)),
            _ => None,
        }
    }

    /// Whether the response of the backend is awaited that was requested for it.
    pub fn is_requested(&self) -> bool {
        matches!(self.state, Waiting(_, Wait::Response))
    }

    pub fn set_wait(&mut self, next: Wait) {
        if let Waiting(_, wait) = &mut self.state {
            *wait = next;
        }
    }

    pub fn rank(&self, now: Timestamp) -> EvictionRank {
        let just_accepted = now < self.admitted + ACCEPT_GRACE;
        match &self.state {
            Reading(_) if just_accepted => EvictionRank::InProgress,
            Reading(_) | Closed => EvictionRank::NoRequest,
            Lingering(_) => EvictionRank::Responded,
            Responding { .. } => EvictionRank::InProgress,
            Waiting(..) => EvictionRank::Waiting,
        }
    }

    /// The bytes held of an incomplete request head.
    pub fn unfinished(&self) -> usize {
        if let Reading(head) = &self.state { head.len() } else { 0 }
    }

    /// Reads more of the request head. The end of input closes the connection.
    ///
    /// # Errors
    /// When the request is not served.
    pub fn read(&mut self) -> Result<Option<Request>, Rejection> {
        let Reading(head) = &mut self.state else { return Ok(None) };
        let mut buffer = [0; request::MAX_PUBLIC_HEAD];
        match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length @ 1..) => {
                head.extend_from_slice(&buffer[..length]);
                return self.listener.parse(head);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(0) | Err(_) => self.state = Closed,
        }
        Ok(None)
    }

    pub fn wait(&mut self, request: Request, deadline: Timestamp) {
        self.state = Waiting(request, Wait::Turn(Timestamp::ZERO));
        self.deadline = deadline;
    }

    /// Starts to send a response.
    pub fn respond(
        &mut self,
        response: Arc<Response>,
        head_only: bool,
        after: After,
        now: Timestamp,
    ) {
        self.state = Responding { response, head_only, sent: 0, after };
        self.deadline = now + CLIENT_TIMEOUT;
        self.write(now);
    }

    /// Sends as much of the response as the client takes.
    pub fn write(&mut self, now: Timestamp) {
        let Responding { response, head_only, sent, after } = &mut self.state else { return };
        let bytes = response.bytes(*head_only);
        while *sent < bytes.len() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.socket.as_raw_fd(), &bytes[*sent..], flags) {
                Ok(length @ 1..) => *sent += length,
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => {
                    self.state = Closed;
                    return;
                }
            }
        }
        drop(self.waiter.take());
        self.state = match after {
            After::Keep => {
                self.deadline = now + CLIENT_TIMEOUT;
                Reading(Vec::new())
            }
            After::Linger if shutdown(self.socket.as_raw_fd(), Shutdown::Write).is_ok() => {
                self.deadline = now + LINGER_TIMEOUT;
                Lingering(MAX_LINGER_BYTES)
            }
            After::Linger | After::Close => Closed,
        };
    }

    /// Reads and discards what follows the request.
    pub fn discard(&mut self) {
        let Lingering(left) = &mut self.state else { return };
        let mut buffer = [0; 4096];
        match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) if length > 0 && length < *left => *left -= length,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            _ => self.state = Closed,
        }
    }
}
