//! The client of Envoy's admin interface.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::error::{AdminError, AdminErrorKind};
use super::stats::{self, Exclusions, Observation, StatsParser};
use super::transport::{Error, request};
use super::{Call, CallResult, Health, Poll, Reply};
use crate::cli::address::AdminAddress;
use crate::cli::duration;
use crate::cli::options::Options;

/// Calls Envoy for the worker.
pub trait Admin: Send {
    /// Returns within the time that [`call_timeout`] gives.
    ///
    /// # Errors
    /// When there is no whole response in that time, or it is not one of success. An error never
    /// stands for "no connections".
    fn call(&mut self, call: Call, options: &Options) -> CallResult;
}

/// The longest that a call takes: the check interval, but at least 2 s and at most 10 s.
pub fn call_timeout(options: &Options) -> Duration {
    options.check_interval.clamp(Duration::from_secs(2), Duration::from_secs(10))
}

/// Connects anew for each call, to the address that the options name.
pub struct AdminClient;

impl Admin for AdminClient {
    fn call(&mut self, call: Call, options: &Options) -> CallResult {
        let timeout = call_timeout(options);
        let deadline = Instant::now() + timeout;
        let call_to = AdminCall { address: &options.admin_address, timeout, deadline };
        match call {
            Call::FailHealthChecks => {
                call_to.post("/healthcheck/fail").map(|()| Reply::HealthChecksFailed)
            }
            Call::DrainListeners => call_to
                .post("/drain_listeners?graceful&skip_exit")
                .map(|()| Reply::ListenersDraining),
            Call::CheckReady => call_to.check_ready().map(Reply::Ready),
            Call::ReadStats => {
                let exclusions = Exclusions {
                    names: &options.exclude,
                    ignored_suffixes: options.flavor.ignored_listener_suffixes(),
                };
                call_to.read_stats(StatsParser::new(exclusions)).map(Reply::Stats)
            }
            Call::CheckListeners => Ok(Reply::Listeners(super::HiddenListeners::default())),
            Call::RestoreHealthChecks => {
                call_to.post("/healthcheck/ok").map(|()| Reply::HealthChecksRestored)
            }
        }
    }
}

/// One call: a request, or two where a poll has to ask for `/ready` as well.
struct AdminCall<'a> {
    address: &'a AdminAddress,
    timeout: Duration,
    deadline: Instant,
}

impl AdminCall<'_> {
    fn post(&self, path: &str) -> Result<(), AdminError> {
        match self.send("POST", path, &mut |_, _| true)? {
            200 => Ok(()),
            status => Err(self.unexpected("POST", path, status)),
        }
    }

    fn check_ready(&self) -> Result<Health, AdminError> {
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
                let what = format!("responded {shown:?}, which is not a state of Envoy");
                Err(self.error(AdminErrorKind::Content, "GET", PATH, &what))
            }
        }
    }

    fn read_stats(&self, mut parser: StatsParser<'_>) -> Result<Poll, AdminError> {
        const PATH: &str = "/stats";
        let mut length = 0;
        let status = self.send("GET", stats::REQUEST, &mut |status, piece| {
            length += piece.len();
            length <= stats::MAX_BODY && (status != 200 || parser.push(piece))
        })?;
        if status != 200 {
            return Err(self.unexpected("GET", PATH, status));
        }
        let observed = parser.finish().map_err(|reason| {
            self.error(AdminErrorKind::Content, "GET", PATH, &reason.to_string())
        })?;
        let health = match observed.live {
            Some(true) => Health::Live,
            Some(false) => Health::Draining,
            // stats_config may hide it; the poll's time holds for this too.
            None => self.check_ready()?,
        };
        let Observation { open, subtracted, coverage, total, .. } = observed;
        Ok(Poll { open, subtracted, coverage, health, total })
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        on_body: &mut dyn FnMut(u16, &[u8]) -> bool,
    ) -> Result<u16, AdminError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let left = Some(left.max(Duration::from_millis(1)));
        request(self.address, method, path, left, on_body).map_err(|error| {
            let (kind, what) = explain(&error, self.timeout);
            self.error(kind, method, path, &what)
        })
    }

    fn unexpected(&self, method: &str, path: &str, status: u16) -> AdminError {
        let what = format!("responded with status {status}");
        self.error(AdminErrorKind::Status, method, path, &what)
    }

    fn error(&self, kind: AdminErrorKind, method: &str, path: &str, what: &str) -> AdminError {
        let path = path.split('?').next().unwrap_or(path);
        AdminError { kind, text: format!("{method} {path} on {}: {what}", self.address) }
    }
}

fn explain(error: &Error, timeout: Duration) -> (AdminErrorKind, String) {
    let (kind, text) = match error {
        Error::Timeout => {
            let within = duration::format(timeout);
            return (AdminErrorKind::Timeout, format!("no whole response within {within}"));
        }
        Error::Protocol(_) => return (AdminErrorKind::Protocol, error.to_string()),
        Error::TooLong => (AdminErrorKind::TooLong, "the response is longer than Envoy's ever is"),
        Error::Io(error) => match error.kind() {
            ErrorKind::ConnectionRefused => (AdminErrorKind::Refused, "connection refused"),
            ErrorKind::NotFound => (AdminErrorKind::Refused, "there is no such socket"),
            ErrorKind::PermissionDenied => (
                AdminErrorKind::Other,
                "permission denied; the sidecar must run as the user that owns the socket",
            ),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => (
                AdminErrorKind::Protocol,
                "the connection was closed before the response was whole",
            ),
            _ => return (AdminErrorKind::Other, error.to_string()),
        },
    };
    (kind, text.to_owned())
}
