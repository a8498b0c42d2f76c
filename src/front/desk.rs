//! Where the front asks for what its clients want: at the control socket, with a request of its
//! own words, and with at most one in flight for each route.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::drain::Time;
use crate::head::Route;
use crate::logger::{Line, Seldom};
use crate::transport::connect_unix;

/// The control socket answers within microseconds; only a full backlog takes longer.
const CONNECT: Duration = Duration::from_millis(1);

/// After a failure it is asked again after this, and then after twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
/// An answer that is later than this is asked for over another connection, since tiny_http may
/// queue one behind another that says nothing until the next comes.
const FIRST_PATIENCE: Duration = Duration::from_millis(250);
const MOST_DOUBLINGS: u32 = 3;

/// The metrics, which are the longest answer, have a tenth of this.
const LONGEST_REPLY: usize = 64 * 1024;

/// An answer from the control socket.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// Its status code.
    pub status: u16,
    /// The media type of its body.
    pub kind: String,
    /// Its body.
    pub body: Vec<u8>,
}

/// The place where a route is asked for.
#[derive(Debug)]
pub struct Desk {
    route: Route,
    control: Arc<PathBuf>,
    ask: Option<Ask>,
    /// When something is to be done if nothing is heard.
    due: Time,
    failures: u32,
    told: Seldom,
}

#[derive(Debug)]
struct Ask {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Desk {
    /// A desk that asks at this control socket.
    #[must_use]
    pub fn new(route: Route, control: Arc<PathBuf>) -> Self {
        Self { route, control, ask: None, due: Time::ZERO, failures: 0, told: Seldom::default() }
    }

    /// What is asked for here.
    #[must_use]
    pub fn route(&self) -> Route {
        self.route
    }

    /// What can be read when there is something to be heard.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.ask.as_ref().map(|ask| ask.stream.as_fd())
    }

    /// When [`Desk::want`] has something to do, if nothing is heard before.
    #[must_use]
    pub fn due(&self) -> Time {
        match self.ask {
            // The end of a drain is waited for without a limit.
            Some(_) if self.route == Route::Shutdown => Time::MAX,
            _ => self.due,
        }
    }

    /// Somebody wants an answer: asks, where that is not yet done or was in vain.
    pub fn want(&mut self, now: Time) {
        if now < self.due() {
            return;
        }
        if self.ask.take().is_some() {
            self.failed(now, &ErrorKind::TimedOut.into());
        }
        match Ask::begin(&self.control, self.route) {
            Ok(ask) => {
                self.ask = Some(ask);
                self.due = now + doubled(FIRST_PATIENCE, self.failures);
            }
            Err(error) => self.failed(now, &error),
        }
    }

    /// The answer, if it has come whole.
    pub fn hear(&mut self, now: Time) -> Option<Reply> {
        let heard = self.ask.as_mut()?.read().transpose()?;
        self.ask = None;
        match heard {
            Ok(reply) => {
                self.failures = 0;
                self.due = now;
                Some(reply)
            }
            Err(error) => {
                self.failed(now, &error);
                None
            }
        }
    }

    fn failed(&mut self, now: Time, error: &io::Error) {
        self.due = now + doubled(FIRST_PAUSE, self.failures);
        self.failures = self.failures.saturating_add(1);
        if let Some(times) = self.told.happened(now) {
            Line::warn("the control socket does not answer the public port; trying again")
                .with("route", self.route.name())
                .with("error", error.to_string())
                .with("times", times)
                .emit();
        }
    }
}

fn doubled(time: Duration, times: u32) -> Duration {
    time * (1 << times.min(MOST_DOUBLINGS))
}

impl Ask {
    fn begin(control: &Path, route: Route) -> io::Result<Self> {
        let path = match route {
            Route::Healthz => "/healthz",
            Route::Shutdown => "/shutdown?outside",
            Route::Metrics => "/metrics",
        };
        let mut stream = UnixStream::from(connect_unix(control, CONNECT)?);
        stream.set_nonblocking(true)?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        // It fits into the socket's buffer, which is empty.
        stream.write_all(request.as_bytes())?;
        Ok(Self { stream, received: Vec::new() })
    }

    /// The reply, once it is whole.
    fn read(&mut self) -> io::Result<Option<Reply>> {
        let mut piece = [0; 4096];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.received.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if let Some(reply) = parse(&self.received)? {
                return Ok(Some(reply));
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
        let text = "HTTP/1.1 503 Service Unavailable\r\nServer: x\r\ncontent-type: text/x\r\n\
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
