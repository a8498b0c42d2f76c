//! A client of the sidecar's status that keeps its connection.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use rustix::stdio::{stdin, stdout};

use super::response;
use crate::control_socket;
use crate::envoy::transport::any_peer;
use crate::os::clock::{self, Timestamp};
use crate::os::terminal::Terminal;
use crate::route::Route;

/// The sidecar responds at once, unless it is frozen, or its container throttled.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Client {
    pub paths: Vec<PathBuf>,
    /// The connection of the latest response.
    pub kept: Option<OwnedFd>,
    /// The terminal that the status is shown on in place.
    pub terminal: Option<Terminal>,
}

impl Client {
    /// One page of the status, over the connection of the page before if that is still open.
    ///
    /// # Errors
    /// `Interrupted` when the command is to end; else why there is no complete response.
    pub fn get(&mut self, route: &Route) -> io::Result<String> {
        let stream = match self.kept.take().filter(is_open) {
            Some(stream) => stream,
            // It changes nothing, so the sidecar may be one in another container, of another user.
            None => control_socket::find(&self.paths, any_peer).map_err(io::Error::other)?.1,
        };
        let (_, target) = route.request_line();
        let fields = "Host: localhost\r\nConnection: keep-alive\r\n";
        let request = format!("GET {target} HTTP/1.1\r\n{fields}\r\n");
        // It fits into the socket's buffer, which is empty and by default has 208 kB.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(stream.as_raw_fd(), request.as_bytes(), flags)?;
        let deadline = clock::now() + RESPONSE_TIMEOUT;
        let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            if !self.wait(Some(stream.as_fd()), deadline)? && clock::now() >= deadline {
                return Err(ErrorKind::TimedOut.into());
            }
            match recv(stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => received.extend_from_slice(&buffer[..length]),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if let Some((page, is_all)) = response::parse(&received)? {
                self.kept = is_all.then_some(stream);
                return Ok(page);
            }
        }
    }

    /// Waits until the user or the terminal has something new, until then, or until there is something to
    /// read on the stream; returns whether there is.
    ///
    /// # Errors
    /// `Interrupted` when the command is to end: its user or a signal says so, or its reader or terminal has
    /// gone.
    pub fn wait(&self, stream: Option<BorrowedFd<'_>>, until: Timestamp) -> io::Result<bool> {
        let (input, none) = (PollFlags::POLLIN, PollFlags::empty());
        // Polled for nothing, a pipe without a reader and a terminal that has gone are reported.
        let mut fds = [(); 4].map(|()| PollFd::new(stdout(), none));
        if let Some(terminal) = &self.terminal {
            fds[1] = PollFd::new(terminal.signals(), input);
            fds[2] = PollFd::new(stdin(), if terminal.has_keys() { input } else { none });
        }
        if let Some(stream) = stream {
            fds[3] = PollFd::new(stream, input);
        }
        // Rounded up, or the last millisecond would be a busy loop.
        let left = (until - clock::now()).as_millis() + 1;
        // An error is that of a signal that has stopped the process, and one that continues it.
        let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        let [gone, signaled, typed, readable] = fds.map(|fd| fd.any().unwrap_or(true));
        let ends = |terminal: &Terminal| (signaled || typed) && terminal.is_left(typed);
        if gone || self.terminal.as_ref().is_some_and(ends) {
            return Err(ErrorKind::Interrupted.into());
        }
        Ok(readable)
    }
}

/// Whether the connection is open and nothing is unread on it.
fn is_open(stream: &OwnedFd) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(stream.as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
}
