//! The way to the backend: one stream that is kept, with one request at a time on it.

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::response::ResponseHead;
use crate::backend::Wire;
use crate::os::clock::Timestamp;
use crate::route::Route;

/// At least this long between two streams: each that ends leaves threads of `tiny_http` behind for
/// 5 s.
pub const CONNECT_INTERVAL: Duration = Duration::from_millis(500);

/// The backend responds within microseconds. Doubled with each failure: a machine that is slow does not
/// become faster by starting another server.
pub const MIN_RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);
const MAX_DOUBLINGS: u32 = 3;

/// A round is no later than this unless the process or the machine stood still.
const MAX_LATENESS: Duration = Duration::from_millis(100);

/// The metrics, which are the longest response, have a tenth of this.
const MAX_RESPONSE: usize = 64 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub struct UpstreamResponse {
    pub status: u16,
    pub content_type: String,
    pub body: Vec<u8>,
}

/// Makes a stream to a backend.
pub type Connect = Box<dyn FnMut() -> io::Result<Wire> + Send>;

pub struct Upstream {
    connect: Connect,
    wire: Option<Wire>,
    /// The request that is not yet responded to, and when to give it up.
    in_flight: Option<(Route, Timestamp)>,
    received: Vec<u8>,
    connect_after: Timestamp,
    /// In a row.
    failures: u32,
}

impl Upstream {
    /// One that is not connected yet.
    pub fn new(connect: Connect) -> Self {
        Self {
            connect,
            wire: None,
            in_flight: None,
            received: Vec::new(),
            connect_after: Timestamp::ZERO,
            failures: 0,
        }
    }

    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.wire.as_ref().map(|wire| wire.stream.as_fd())
    }

    /// When to connect, or to give a request up.
    pub fn deadline(&self) -> Timestamp {
        match (&self.wire, &self.in_flight) {
            (None, _) => self.connect_after,
            (Some(_), Some((_, deadline))) => *deadline,
            (Some(_), None) => Timestamp::MAX,
        }
    }

    /// Whether the response has not arrived in time. If this thread has not run meanwhile, nor may the
    /// backend's have, which has its time again.
    pub fn is_late(&mut self, now: Timestamp) -> bool {
        let Some((_, deadline)) = &mut self.in_flight else { return false };
        if now >= *deadline + MAX_LATENESS {
            *deadline = now + MIN_RESPONSE_TIMEOUT;
        }
        now >= *deadline
    }

    /// Whether a request can be sent.
    pub fn is_idle(&self) -> bool {
        self.wire.is_some() && self.in_flight.is_none()
    }

    /// Connects, if that is due.
    ///
    /// # Errors
    /// When no server can be started. It is then due again after [`CONNECT_INTERVAL`].
    pub fn connect(&mut self, now: Timestamp) -> io::Result<()> {
        if self.wire.is_none() && now >= self.connect_after {
            self.connect_after = now + CONNECT_INTERVAL;
            self.wire = Some((self.connect)()?);
        }
        Ok(())
    }

    /// Ends the stream, if there is one, and with it the request in flight.
    pub fn close(&mut self) {
        if self.wire.take().is_some() {
            self.failures = self.failures.saturating_add(1);
        }
        self.in_flight = None;
        self.received = Vec::new();
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When the stream has ended. It is then to be closed, as after each error below.
    pub fn send(&mut self, route: &Route, now: Timestamp) -> io::Result<()> {
        let Some(wire) = &self.wire else { return Err(ErrorKind::NotConnected.into()) };
        let (method, target) = route.request_line();
        let length = if route.is_post() { "Content-Length: 0\r\n" } else { "" };
        let request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n");
        // It fits into the socket's buffer, which is empty and by default has 208 kB.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if send(wire.stream.as_raw_fd(), request.as_bytes(), flags)? < request.len() {
            return Err(ErrorKind::WriteZero.into());
        }
        let timeout = MIN_RESPONSE_TIMEOUT * (1 << self.failures.min(MAX_DOUBLINGS));
        self.in_flight = Some((route.clone(), now + timeout));
        Ok(())
    }

    /// The response with what it responds to, once all of it has arrived.
    ///
    /// # Errors
    /// When the stream has ended, or has something else on it than a response.
    pub fn receive(&mut self) -> io::Result<Option<(Route, UpstreamResponse)>> {
        let Some(wire) = &self.wire else { return Ok(None) };
        let mut buffer = [0; 4096];
        // What does not fit is read in the next round.
        match recv(wire.stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => self.received.extend_from_slice(&buffer[..length]),
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // Half a response to nothing would be taken for the start of the next.
        if self.in_flight.is_none() || self.received.len() > MAX_RESPONSE {
            return Err(ErrorKind::InvalidData.into());
        }
        let Some((response, length)) = parse(&self.received)? else { return Ok(None) };
        if length < self.received.len() {
            return Err(ErrorKind::InvalidData.into());
        }
        // tiny_http's own, when the thread that handled the request has panicked. No client may take
        // that for the end of a drain.
        if response.status == 500 {
            return Err(io::Error::other("it panicked (500)"));
        }
        self.failures = 0;
        self.received.clear();
        Ok(self.in_flight.take().map(|(route, _)| (route, response)))
    }
}

/// Parses a response of `tiny_http`, which states the length of its body; returns it with its length.
fn parse(bytes: &[u8]) -> io::Result<Option<(UpstreamResponse, usize)>> {
    let Some(ResponseHead { status, content_type, body }) = ResponseHead::parse(bytes)? else {
        return Ok(None);
    };
    let Range { start, end } = body.ok_or(ErrorKind::InvalidData)?;
    let body = bytes.get(start..end).map(<[u8]>::to_vec);
    Ok(body.map(|body| (UpstreamResponse { status, content_type, body }, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_parsed_once_it_is_complete() {
        let text = "HTTP/1.1 503 Backend Unavailable\r\nServer: x\r\ncontent-type: text/x\r\n\
                    Content-Length: 4\r\n\r\ndown";
        let response = UpstreamResponse {
            status: 503,
            content_type: "text/x".to_owned(),
            body: b"down".to_vec(),
        };
        let more = text.to_owned() + "more";
        assert_eq!(parse(more.as_bytes()).unwrap(), Some((response, text.len())));
        for length in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..length]).unwrap(), None, "{length}");
        }
        for bad in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "garbage\r\n\r\n",
        ] {
            assert_eq!(parse(bad.as_bytes()).unwrap_err().kind(), ErrorKind::InvalidData, "{bad}");
        }
    }
}
