//! A request to the backend on behalf of clients: written by the frontend, and at most one in flight
//! for all clients that want the same.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use crate::envoy::transport::connect_unix;
use crate::os::clock::Timestamp;
use crate::route::{Hold, UpstreamTarget};

/// The backend responds within microseconds; only a full backlog takes longer.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(20);

/// After the first failure; both double with each further one.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(25);
const MIN_RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);
const MAX_DOUBLINGS: u32 = 3;

/// The metrics, which are the longest response, have a tenth of this.
const MAX_RESPONSE: usize = 64 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub struct UpstreamResponse {
    pub status: u16,
    pub content_type: String,
    pub body: Vec<u8>,
}

/// What is requested for one target, until no client waits for it.
pub struct UpstreamRequest {
    pub target: UpstreamTarget,
    exchange: Option<Exchange>,
    /// When to send the request again if no response arrives.
    due: Timestamp,
    failures: u32,
}

struct Exchange {
    stream: OwnedFd,
    received: Vec<u8>,
}

impl UpstreamRequest {
    /// A request that is not sent yet.
    pub fn new(target: UpstreamTarget) -> Self {
        Self { target, exchange: None, due: Timestamp::ZERO, failures: 0 }
    }

    /// The connection to the backend, while a request is in flight.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.exchange.as_ref().map(|exchange| exchange.stream.as_fd())
    }

    /// Whether the backend may still be handling the request.
    pub fn is_in_flight(&self, now: Timestamp) -> bool {
        self.exchange.is_some() && now < self.due()
    }

    /// When to call [`UpstreamRequest::issue`] if no response arrives before.
    pub fn due(&self) -> Timestamp {
        let held = self.exchange.is_some() && self.target.hold != Hold::None;
        if held { Timestamp::MAX } else { self.due }
    }

    /// Sends the request if it is due: at first, or again after a failure.
    ///
    /// # Errors
    /// When the backend cannot be reached, or has not responded in time. The request stays due.
    pub fn issue(&mut self, backend: &Path, now: Timestamp) -> io::Result<()> {
        if now < self.due() {
            return Ok(());
        }
        let late = self.exchange.take().map(|_| io::Error::from(ErrorKind::TimedOut));
        if late.is_some() {
            self.failures = self.failures.saturating_add(1);
        }
        let started = Exchange::start(backend, &self.target);
        self.delay_after_failure(started.is_err(), now);
        self.exchange = Some(started?);
        self.due = now + doubled(MIN_RESPONSE_TIMEOUT, self.failures);
        late.map_or(Ok(()), Err)
    }

    /// The response, once all of it has arrived.
    ///
    /// # Errors
    /// When it will not arrive. The request is then due again.
    pub fn receive(&mut self, now: Timestamp) -> io::Result<Option<UpstreamResponse>> {
        let Some(exchange) = &mut self.exchange else { return Ok(None) };
        let received = exchange.receive();
        if !matches!(received, Ok(None)) {
            self.exchange = None;
            self.due = now;
        }
        if matches!(received, Ok(Some(_))) {
            self.failures = 0;
        }
        self.delay_after_failure(received.is_err(), now);
        received
    }

    fn delay_after_failure(&mut self, failed: bool, now: Timestamp) {
        if failed {
            self.due = now + doubled(MIN_RETRY_DELAY, self.failures);
            self.failures = self.failures.saturating_add(1);
        }
    }
}

fn doubled(time: Duration, times: u32) -> Duration {
    time * (1 << times.min(MAX_DOUBLINGS))
}

impl Exchange {
    fn start(backend: &Path, target: &UpstreamTarget) -> io::Result<Self> {
        let stream = connect_unix(backend, CONNECT_TIMEOUT)?;
        let (method, length) =
            if target.post { ("POST", "Content-Length: 0\r\n") } else { ("GET", "") };
        let request = format!(
            "{method} {} HTTP/1.1\r\nHost: localhost\r\n{length}Connection: close\r\n\r\n",
            target.path_and_query
        );
        // It fits into the socket's buffer, which is empty and by default has 208 kB.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if send(stream.as_raw_fd(), request.as_bytes(), flags)? < request.len() {
            return Err(ErrorKind::WriteZero.into());
        }
        Ok(Self { stream, received: Vec::new() })
    }

    fn receive(&mut self) -> io::Result<Option<UpstreamResponse>> {
        let mut buffer = [0; 4096];
        loop {
            match recv(self.stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            match parse(&self.received)? {
                // tiny_http's own: the thread for the request could not be started, or panicked.
                // No client may take that for the end of a drain.
                Some(UpstreamResponse { status: 500, .. }) => {
                    return Err(io::Error::other("its thread failed (500)"));
                }
                Some(response) => return Ok(Some(response)),
                None => {}
            }
            if self.received.len() > MAX_RESPONSE {
                return Err(ErrorKind::InvalidData.into());
            }
        }
    }
}

/// Parses a response of `tiny_http`, which states the length of its body.
fn parse(bytes: &[u8]) -> io::Result<Option<UpstreamResponse>> {
    let invalid = || io::Error::from(ErrorKind::InvalidData);
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut fields);
    let start = match response.parse(bytes).map_err(|_| invalid())? {
        httparse::Status::Complete(start) => start,
        httparse::Status::Partial => return Ok(None),
    };
    let field = |name: &str| {
        let field = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(field.value).ok()
    };
    let length = field("Content-Length").and_then(|length| length.parse::<usize>().ok());
    let end = start.saturating_add(length.ok_or_else(invalid)?);
    Ok(bytes.get(start..end).map(|body| UpstreamResponse {
        status: response.code.unwrap_or_default(),
        content_type: field("Content-Type").unwrap_or_default().to_owned(),
        body: body.to_vec(),
    }))
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
        assert_eq!(parse(text.as_bytes()).unwrap(), Some(response));
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

    #[test]
    fn retry_delays_grow_to_a_limit() {
        let delays =
            [0, 1, 3, 4, u32::MAX].map(|times| doubled(MIN_RETRY_DELAY, times).as_millis());
        assert_eq!(delays, [25, 50, 200, 200, 200]);
    }
}
