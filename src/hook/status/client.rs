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
use crate::os::terminal::{Terminal, Wish};
use crate::route::Route;

/// The sidecar responds at once, unless it is frozen.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is nothing to show.
pub enum Failure {
    /// The command is to end: its user or a signal says so, or its reader or terminal has gone.
    Ended,
    /// No sidecar has responded, for this reason.
    Lost(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

/// What has ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    Due,
    Readable,
    Redraw,
}

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
    /// When the command is to end, or there is no complete response, which is a clause then.
    pub fn get(&mut self, route: &Route) -> Result<String, Failure> {
        let stream = match self.kept.take().filter(is_open) {
            Some(stream) => stream,
            // It changes nothing, so the sidecar may be one in another container, of another user.
            None => control_socket::find(&self.paths, any_peer).map_err(Failure::Lost)?.1,
        };
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n",
            route.request_line().1
        );
        // It fits into the socket's buffer, which is empty and by default has 208 kB.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(stream.as_raw_fd(), request.as_bytes(), flags).map_err(io::Error::from)?;
        let deadline = clock::now() + RESPONSE_TIMEOUT;
        let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            if self.wait(Some(stream.as_fd()), deadline)? == Woken::Due {
                return Err(io::Error::from(ErrorKind::TimedOut).into());
            }
            match recv(stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(length) => received.extend_from_slice(&buffer[..length]),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
            if let Some((page, is_all)) = response::parse(&received).map_err(Failure::Lost)? {
                self.kept = is_all.then_some(stream);
                return Ok(page);
            }
        }
    }

    /// Waits until there is something to read on the stream, or until then.
    ///
    /// # Errors
    /// When the command is to end.
    pub fn wait(&self, stream: Option<BorrowedFd<'_>>, until: Timestamp) -> Result<Woken, Failure> {
        loop {
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
            let left = (until - clock::now()).as_micros().div_ceil(1000);
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(0) => return Ok(Woken::Due),
                // As a signal that stops the process and one that continues it do.
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
            let [gone, signaled, typed, readable] = fds.map(|fd| fd.any().unwrap_or(true));
            let wish = match &self.terminal {
                _ if gone => Wish::Leave,
                Some(terminal) if signaled || typed => terminal.wish(typed),
                _ => Wish::None,
            };
            match wish {
                Wish::Leave => return Err(Failure::Ended),
                Wish::Redraw => return Ok(Woken::Redraw),
                Wish::None if readable => return Ok(Woken::Readable),
                Wish::None => {}
            }
        }
    }
}

/// Whether the connection is open and nothing is unread on it.
fn is_open(stream: &OwnedFd) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(stream.as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
}
