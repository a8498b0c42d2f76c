//! The client of Envoy's admin interface.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use crate::cli::address::AdminAddress;
use crate::cli::duration;
use crate::cli::options::Options;
use crate::drain::{Answer, Call, Health, Poll};
use crate::envoy::error::{AdminError, AdminErrorKind};
use crate::envoy::stats::{self, StatsParser};
use crate::envoy::transport::{Error, request};

/// Whoever can ask Envoy, for the worker.
pub trait Admin: Send {
    /// Asks, and answers within the time that [`call_timeout`] gives.
    fn call(&mut self, call: Call, options: &Options) -> Answer;
}

/// The longest that a call takes: the check interval, but at least 2 s and at most 10 s.
#[must_use]
pub fn call_timeout(options: &Options) -> Duration {
    options.check_interval.clamp(Duration::from_secs(2), Duration::from_secs(10))
}

/// Connects anew for each call, to whichever address the options name.
#[derive(Debug, Default)]
pub struct AdminClient;

impl Admin for AdminClient {
    fn call(&mut self, call: Call, options: &Options) -> Answer {
        let request = Request {
            address: &options.admin_address,
            timeout: call_timeout(options),
            deadline: Instant::now() + call_timeout(options),
        };
        let answer = match call {
            Call::FailHealthChecks => request.post("/healthcheck/fail").map(|()| Answer::Failed),
            Call::RestoreHealthChecks => request.post("/healthcheck/ok").map(|()| Answer::PutBack),
            Call::CheckReady => request.look().map(Answer::Seen),
            Call::DrainListeners => {
                request.post("/drain_listeners?graceful&skip_exit").map(|()| Answer::ListenersDrain)
            }
            Call::ReadStats => {
                let tally =
                    StatsParser::new(&options.exclude, options.flavor.ignored_listener_suffixes());
                request.poll(tally).map(Answer::Polled)
            }
        };
        answer.unwrap_or_else(Answer::AdminError)
    }
}

struct Request<'a> {
    address: &'a AdminAddress,
    timeout: Duration,
    deadline: Instant,
}

impl Request<'_> {
    fn post(&self, path: &str) -> Result<(), AdminError> {
        match self.send("POST", path, &mut |_, _| true)? {
            200 => Ok(()),
            status => Err(self.unexpected("POST", path, status)),
        }
    }

    fn look(&self) -> Result<Health, AdminError> {
        const PATH: &str = "/ready";
        let mut text = Vec::new();
        let status = self.send("GET", PATH, &mut |_, piece| {
            text.extend_from_slice(piece);
            text.len() <= 1024
        })?;
        if status != 200 && status != 503 {
            return Err(self.unexpected("GET", PATH, status));
        }
        match text.trim_ascii() {
            b"LIVE" => Ok(Health::Live),
            b"DRAINING" => Ok(Health::Draining),
            b"PRE_INITIALIZING" | b"INITIALIZING" => Ok(Health::Starting),
            other => {
                let shown = String::from_utf8_lossy(&other[..other.len().min(80)]);
                let what = format!("answered {shown:?}, which is no state of Envoy's");
                Err(self.fault(AdminErrorKind::Content, "GET", PATH, &what))
            }
        }
    }

    fn poll(&self, mut tally: StatsParser<'_>) -> Result<Poll, AdminError> {
        const PATH: &str = "/stats";
        let mut length = 0;
        let status = self.send("GET", stats::POLL, &mut |status, piece| {
            length += piece.len();
            if status == 200 {
                tally.push(piece);
            }
            length <= stats::MAX_BODY
        })?;
        if status != 200 {
            return Err(self.unexpected("GET", PATH, status));
        }
        let seen = tally.finish().map_err(|reason| {
            self.fault(AdminErrorKind::Content, "GET", PATH, &reason.to_string())
        })?;
        let health = match seen.live {
            Some(true) => Health::Live,
            Some(false) => Health::Draining,
            // stats_config may hide it; the poll's time holds for this too.
            None => self.look()?,
        };
        Ok(Poll { open: seen.open, visible: seen.visible, health })
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        take: &mut dyn FnMut(u16, &[u8]) -> bool,
    ) -> Result<u16, AdminError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        request(self.address, method, path, Some(left.max(Duration::from_millis(1))), take).map_err(
            |error| {
                let (kind, what) = explain(&error, self.timeout);
                self.fault(kind, method, path, &what)
            },
        )
    }

    fn unexpected(&self, method: &str, path: &str, status: u16) -> AdminError {
        self.fault(AdminErrorKind::Status, method, path, &format!("answered with status {status}"))
    }

    fn fault(&self, kind: AdminErrorKind, method: &str, path: &str, what: &str) -> AdminError {
        let path = path.split('?').next().unwrap_or(path);
        AdminError { kind, text: format!("{method} {path} on {}: {what}", self.address) }
    }
}

fn explain(error: &Error, timeout: Duration) -> (AdminErrorKind, String) {
    let said = |kind, text: &str| (kind, text.to_owned());
    match error {
        Error::Timeout => (
            AdminErrorKind::Timeout,
            format!("no whole answer within {}", duration::format(timeout)),
        ),
        Error::Io(error) => match error.kind() {
            ErrorKind::ConnectionRefused => said(AdminErrorKind::Refused, "connection refused"),
            ErrorKind::NotFound => said(AdminErrorKind::Refused, "there is no such socket"),
            ErrorKind::PermissionDenied => said(
                AdminErrorKind::Other,
                "permission denied; the sidecar must run as the user that owns the socket",
            ),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => said(
                AdminErrorKind::Protocol,
                "the connection was closed before the answer was whole",
            ),
            _ => (AdminErrorKind::Other, error.to_string()),
        },
        Error::Protocol(_) => (AdminErrorKind::Protocol, error.to_string()),
        Error::TooLong => said(AdminErrorKind::TooLong, "answered with more than Envoy ever does"),
    }
}
