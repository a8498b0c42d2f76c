//! Where a door asks for what its clients want: at the sidecar's own server, with a request of its
//! own words, and with at most one in flight for all who want the same.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use crate::envoy::transport::connect_unix;
use crate::os::clock::Timestamp;
use crate::route::{Hold, UpstreamTarget};

/// The server answers within microseconds; only a full backlog takes longer.
const CONNECT: Duration = Duration::from_millis(20);

/// After a failure it is asked again after this, and then after twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const FIRST_PATIENCE: Duration = Duration::from_millis(500);
const MOST_DOUBLINGS: u32 = 3;

/// The metrics, which are the longest answer, have a tenth of this.
const LONGEST_REPLY: usize = 64 * 1024;

/// An answer of the server's.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// Its status code.
    pub status: u16,
    /// The media type of its body.
    pub kind: String,
    /// Its body.
    pub body: Vec<u8>,
}

/// The place where one thing is asked for.
#[derive(Debug)]
pub struct UpstreamRequest {
    /// What.
    pub wanted: UpstreamTarget,
    ask: Option<Ask>,
    /// When something is to be done if nothing is heard.
    due: Timestamp,
    failures: u32,
}

#[derive(Debug)]
struct Ask {
    stream: OwnedFd,
    received: Vec<u8>,
}

impl UpstreamRequest {
    /// A desk at which nothing has been asked for yet.
    #[must_use]
    pub fn new(wanted: UpstreamTarget) -> Self {
        Self { wanted, ask: None, due: Timestamp::ZERO, failures: 0 }
    }

    /// What can be read when there is something to be heard, while the server is being asked.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.ask.as_ref().map(|ask| ask.stream.as_fd())
    }

    /// Whether the server may still be about to answer, whoever wants that.
    #[must_use]
    pub fn is_asked(&self, now: Timestamp) -> bool {
        self.ask.is_some() && now < self.due()
    }

    /// When [`UpstreamRequest::want`] has something to do, if nothing is heard before.
    #[must_use]
    pub fn due(&self) -> Timestamp {
        let waits = self.ask.is_some() && self.wanted.waits != Hold::None;
        if waits { Timestamp::MAX } else { self.due }
    }

    /// Somebody wants an answer: asks, where that is not yet done or was in vain.
    ///
    /// # Errors
    /// When there is no server, or it has not answered in time; it is asked again, later.
    pub fn want(&mut self, server: &Path, now: Timestamp) -> io::Result<()> {
        if now < self.due() {
            return Ok(());
        }
        let late = self.ask.take().map(|_| io::Error::from(ErrorKind::TimedOut));
        if late.is_some() {
            self.failures += 1;
        }
        let asked = Ask::begin(server, &self.wanted);
        self.note(asked.is_ok(), now);
        self.ask = Some(asked?);
        self.due = now + doubled(FIRST_PATIENCE, self.failures);
        late.map_or(Ok(()), Err)
    }

    /// The answer, if it has come whole.
    ///
    /// # Errors
    /// When it will not; it is asked for again, later.
    pub fn hear(&mut self, now: Timestamp) -> io::Result<Option<Reply>> {
        let Some(ask) = &mut self.ask else { return Ok(None) };
        let heard = ask.read();
        if !matches!(heard, Ok(None)) {
            self.ask = None;
            self.due = now;
        }
        if matches!(heard, Ok(Some(_))) {
            self.failures = 0;
        }
        self.note(heard.is_ok(), now);
        heard
    }

    fn note(&mut self, well: bool, now: Timestamp) {
        if !well {
            self.due = now + doubled(FIRST_PAUSE, self.failures);
            self.failures = self.failures.saturating_add(1);
        }
    }
}

fn doubled(time: Duration, times: u32) -> Duration {
    time * (1 << times.min(MOST_DOUBLINGS))
}

impl Ask {
    fn begin(server: &Path, wanted: &UpstreamTarget) -> io::Result<Self> {
        let stream = connect_unix(server, CONNECT)?;
        let (method, length) =
            if wanted.post { ("POST", "Content-Length: 0\r\n") } else { ("GET", "") };
        let request = format!(
            "{method} {} HTTP/1.1\r\nHost: localhost\r\n{length}Connection: close\r\n\r\n",
            wanted.target
        );
        // It fits into the socket's buffer, which is empty.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(stream.as_raw_fd(), request.as_bytes(), flags)?;
        Ok(Self { stream, received: Vec::new() })
    }

    /// The reply, once it is whole.
    fn read(&mut self) -> io::Result<Option<Reply>> {
        let mut piece = [0; 4096];
        loop {
            match recv(self.stream.as_raw_fd(), &mut piece, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.received.extend_from_slice(&piece[..length]),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            match parse(&self.received)? {
                // Not the server's own words: it had no thread, or that has panicked. Nobody is to
                // be told that a drain has ended.
                Some(Reply { status: 500, .. }) => {
                    return Err(io::Error::other("it could not wait for the answer"));
                }
                Some(reply) => return Ok(Some(reply)),
                None => {}
            }
            if self.received.len() > LONGEST_REPLY {
                return Err(ErrorKind::InvalidData.into());
            }
        }
    }
}

/// Reads an answer of tiny_http's, which says how long its body is.
fn parse(bytes: &[u8]) -> io::Result<Option<Reply>> {
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
    Ok(bytes.get(start..end).map(|body| Reply {
        status: response.code.unwrap_or_default(),
        kind: field("Content-Type").unwrap_or_default().to_owned(),
        body: body.to_vec(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_whole_or_not_there() {
        let text = "HTTP/1.1 503 Backend Unavailable\r\nServer: x\r\ncontent-type: text/x\r\n\
                    Content-Length: 4\r\n\r\ndown";
        let reply = Reply { status: 503, kind: "text/x".to_owned(), body: b"down".to_vec() };
        assert_eq!(parse(text.as_bytes()).unwrap(), Some(reply));
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
    fn pauses_grow_to_a_limit() {
        let pauses = [0, 1, 3, 4, u32::MAX].map(|times| doubled(FIRST_PAUSE, times).as_millis());
        assert_eq!(pauses, [25, 50, 200, 200, 200]);
    }
}
