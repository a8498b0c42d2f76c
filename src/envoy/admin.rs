//! The client of Envoy's admin interface.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::error::{AdminError, AdminErrorKind};
use super::listeners::{self, GaugeNames};
use super::stats::{
    self, ACCEPTED, AcceptedParser, Exclusions, Observation, ReadLines as _, StatsParser,
};
use super::transport::{Error, any_peer, request};
use super::{CALLS, Call, CallResult, Health, Poll, Reply};
use crate::cli::address::AdminAddress;
use crate::cli::duration;
use crate::cli::options::Options;

/// Calls Envoy for the worker.
pub trait Admin: Send {
    /// Returns within 10 s ([`Call::ShowState`] within 0.5 s), and within `limit` if that is more than the shortest time of a call: the
    /// check interval, but at least 2 s and at most 10 s.
    ///
    /// # Errors
    /// When there is no whole response in that time, or it is not one of success. An error never
    /// stands for "no connections".
    fn call(&mut self, call: Call, options: &Options, limit: Option<Duration>) -> CallResult;
}

const MIN_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a call that is made for show.
const SHOW_TIMEOUT: Duration = Duration::from_millis(500);

/// Connects anew for each call, to the address that the options name.
#[derive(Default)]
pub struct AdminClient {
    /// Where the calls went until now, which the time-outs are for.
    address: Option<AdminAddress>,
    timeouts: Timeouts,
}

impl Admin for AdminClient {
    fn call(&mut self, call: Call, options: &Options, limit: Option<Duration>) -> CallResult {
        if self.address.as_ref() != Some(&options.admin_address) {
            self.address = Some(options.admin_address.clone());
            self.timeouts = Timeouts::default();
        }
        let timeout = self.timeouts.of(call, options.check_interval, limit);
        let next = self.timeouts.after_timeout(call, timeout);
        let started = Instant::now();
        let deadline = started + timeout;
        let call_to = AdminCall { address: &options.admin_address, timeout, next, deadline };
        let result = call_to.make(call, options);
        match &result {
            Ok(_) => self.timeouts.0[call as usize] = MAX_TIMEOUT.min(2 * started.elapsed()),
            Err(error) if error.kind == AdminErrorKind::Timeout => {
                self.timeouts.0[call as usize] = next;
            }
            Err(_) => {}
        }
        result
    }
}

/// The least time that the next call of each kind has: an Envoy that is slow must be heard at all.
#[derive(Default)]
struct Timeouts([Duration; CALLS]);

impl Timeouts {
    fn of(&self, call: Call, interval: Duration, limit: Option<Duration>) -> Duration {
        let base = interval.clamp(MIN_TIMEOUT, MAX_TIMEOUT);
        if call == Call::ShowState {
            return SHOW_TIMEOUT;
        }
        // One that comes between all others must not put off what a drain has to do.
        let grown = if is_between(call) { base } else { base.max(self.0[call as usize]) };
        limit.map_or(grown, |limit| grown.min(base.max(limit)))
    }

    /// What the next call has after one that had this long and got no response.
    fn after_timeout(&self, call: Call, timeout: Duration) -> Duration {
        let longer = MAX_TIMEOUT.min(2 * timeout).max(self.0[call as usize]);
        if is_between(call) { timeout } else { longer }
    }
}

/// Whether the call comes between those that a drain needs, which it must not put off.
fn is_between(call: Call) -> bool {
    matches!(call, Call::CheckReady | Call::ReadAccepted | Call::ShowState)
}

/// One call: a request, or two that share its time.
struct AdminCall<'a> {
    address: &'a AdminAddress,
    timeout: Duration,
    /// What the next call of its kind has if this one takes longer.
    next: Duration,
    deadline: Instant,
}

impl AdminCall<'_> {
    fn make(&self, call: Call, options: &Options) -> CallResult {
        let exclusions = Exclusions {
            names: &options.exclude,
            ignored_suffixes: options.flavor.ignored_listener_suffixes(),
        };
        Ok(match call {
            Call::FailHealthChecks => {
                self.post("/healthcheck/fail")?;
                Reply::HealthChecksFailed
            }
            Call::DrainListeners => {
                self.post("/drain_listeners?graceful&skip_exit")?;
                Reply::ListenersDraining
            }
            Call::CheckReady | Call::ShowState => Reply::Ready(self.check_ready()?),
            Call::ReadStats => Reply::Stats(self.read_stats(StatsParser::new(exclusions))?),
            Call::CheckListeners => self.check_listeners(GaugeNames::new(exclusions, options))?,
            Call::ReadAccepted => {
                let mut parser = AcceptedParser::new(exclusions);
                self.send("GET", ACCEPTED, &[200], &mut |piece| parser.push(piece))?;
                Reply::Accepted(parser.finish())
            }
            Call::RestoreHealthChecks => {
                self.post("/healthcheck/ok")?;
                Reply::HealthChecksRestored
            }
        })
    }

    fn post(&self, path: &str) -> Result<(), AdminError> {
        self.send("POST", path, &[200], &mut |_| true)
    }

    fn check_ready(&self) -> Result<Health, AdminError> {
        const PATH: &str = "/ready";
        let mut text = Vec::new();
        self.send("GET", PATH, &[200, 503], &mut |piece| {
            text.extend_from_slice(piece);
            text.len() <= 1024
        })?;
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
        self.send("GET", stats::REQUEST, &[200], &mut |piece| parser.push(piece))?;
        let Observation {
            open,
            unsubtracted,
            in_use,
            subtracted,
            live,
            coverage,
            total,
            breakdown,
        } = parser.finish().map_err(|reason| {
            self.error(AdminErrorKind::Content, "GET", stats::REQUEST, &reason.to_string())
        })?;
        let health = match live {
            Some(true) => Health::Live,
            Some(false) => Health::Draining,
            // stats_config may hide it.
            None => self.check_ready()?,
        };
        let breakdown = Box::new(breakdown);
        Ok(Poll { open, unsubtracted, in_use, subtracted, coverage, health, total, breakdown })
    }

    /// Listeners first: one that is added in between has a gauge then, and does not look hidden.
    fn check_listeners(&self, mut gauges: GaugeNames<'_>) -> CallResult {
        let mut body = Vec::new();
        self.send("GET", listeners::LISTENERS, &[200], &mut |piece| {
            body.extend_from_slice(piece);
            true
        })?;
        self.send("GET", gauges.path(), &[200], &mut |piece| gauges.push(piece))?;
        if gauges.is_starting() {
            return Ok(Reply::Ready(Health::Starting));
        }
        gauges.hidden_of(&body).map(Reply::Listeners).map_err(|reason| {
            self.error(AdminErrorKind::Content, "GET", listeners::LISTENERS, reason)
        })
    }

    /// Passes each piece of the body to `on_body`, until that returns false.
    fn send(
        &self,
        method: &str,
        path: &str,
        expected: &[u16],
        on_body: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), AdminError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let left = Some(left.max(Duration::from_millis(1)));
        let (mut length, mut message) = (0, Vec::new());
        let result = request(self.address, any_peer, method, path, left, &mut |status, piece| {
            length += piece.len();
            let room = MAX_MESSAGE - message.len();
            length <= stats::MAX_BODY
                && if expected.contains(&status) {
                    on_body(piece)
                } else {
                    message.extend_from_slice(&piece[..piece.len().min(room)]);
                    true
                }
        });
        match result {
            Ok(status) if expected.contains(&status) => Ok(()),
            Ok(status) => {
                let mut what = format!("responded with status {status}");
                let line = message.split(|byte| *byte == b'\n').next().unwrap_or_default();
                if !line.is_empty() {
                    what += &format!(": {:?}", String::from_utf8_lossy(line));
                }
                Err(self.error(AdminErrorKind::Status, method, path, &what))
            }
            Err(error) => {
                let (kind, what) = explain(&error, self.timeout, self.next);
                Err(self.error(kind, method, path, &what))
            }
        }
    }

    fn error(&self, kind: AdminErrorKind, method: &str, path: &str, what: &str) -> AdminError {
        let path = path.split('?').next().unwrap_or(path);
        AdminError { kind, text: format!("{method} {path} on {}: {what}", self.address) }
    }
}

/// Of the body of an unexpected status so much is quoted, in bytes.
const MAX_MESSAGE: usize = 120;

fn explain(error: &Error, timeout: Duration, next: Duration) -> (AdminErrorKind, String) {
    let (kind, text) = match error {
        Error::Timeout => {
            let within = duration::format(timeout);
            let next = if next > timeout {
                format!("; the next call has {}", duration::format(next))
            } else {
                ", which is the longest that a call may take".to_owned()
            };
            return (AdminErrorKind::Timeout, format!("no whole response within {within}{next}"));
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

#[cfg(test)]
mod tests;
