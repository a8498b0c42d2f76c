//! The sidecar as a hook reaches it: HTTP over the control socket, without a shared connection.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::{ExitStatus, PROGRESS_INTERVAL};
use crate::cli::address::AdminAddress;
use crate::cli::drain_request::HookRequest;
use crate::cli::options::Options;
use crate::control_socket;
use crate::drain::OutcomeKind;
use crate::envoy::transport::{Error, PeerCheck, request};
use crate::observe::status::whole;

/// The sidecar responds to a request to drain at once. One that is frozen must not hold the hook.
pub const DRAIN_RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The metrics, which are the sidecar's longest response, have a tenth of this.
pub const MAX_RESPONSE: usize = 64 * 1024;

/// In bytes: longer than any sentence of a sidecar.
const MAX_SHOWN: usize = 1000;

pub enum SidecarError {
    /// The sidecar has gone; another may come.
    Lost(String),
    /// Another try would not help.
    Final(ExitStatus, String),
}

impl SidecarError {
    pub fn unreachable(reason: String) -> Self {
        Self::Final(ExitStatus::NoSidecar, format!("no sidecar could be reached: {reason}"))
    }
}

/// The status and body of a response.
type ResponseResult = Result<(u16, String), Error>;

#[derive(Clone)]
pub struct SidecarClient {
    path: PathBuf,
    check: PeerCheck,
}

impl SidecarClient {
    /// The first of the paths where a sidecar listens, which may take `timeout` to come up.
    /// Each of its connections is checked: another process may listen there later.
    pub fn find(paths: &[PathBuf], check: PeerCheck, timeout: Duration) -> Result<Self, String> {
        let deadline = Instant::now() + timeout;
        loop {
            match control_socket::find(paths, check) {
                Ok((path, _)) => return Ok(Self { path, check }),
                Err(reason) if Instant::now() >= deadline => return Err(reason),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Starts a drain or joins the one in progress, and returns its number, with a line about the drain
    /// that it has joined.
    pub fn start_drain(
        &self,
        request: &HookRequest,
    ) -> Result<(u64, Option<String>), SidecarError> {
        let path = format!("/drain?{}", request.to_query());
        let response = self.request("POST", &path, Some(DRAIN_RESPONSE_TIMEOUT));
        let (status, body) = response.map_err(|error| match error {
            Error::Timeout => SidecarError::Final(
                ExitStatus::NoSidecar,
                format!(
                    "the sidecar at {} did not respond within {}; it starts no drain when it wakes",
                    self.path.display(),
                    whole(DRAIN_RESPONSE_TIMEOUT)
                ),
            ),
            error => SidecarError::Lost(error.to_string()),
        })?;
        let mut lines = body.lines();
        let text = first_line(&body);
        let number = lines.next().and_then(|line| line.rsplit(' ').next()?.parse().ok());
        match (status, number) {
            (200, Some(number)) => Ok((number, lines.next().map(str::to_owned))),
            // No sidecar responds so, and Envoy's admin interface with a page of help.
            (404 | 405, _) => Err(SidecarError::unreachable(format!(
                "{} is another program's socket, which responded to the request to drain with \
                 {status}: {text}; check --control-socket",
                self.path.display()
            ))),
            // Another sidecar of the pod would have another control socket.
            (409, _) => Err(SidecarError::Final(
                ExitStatus::NoSidecar,
                format!(
                    "{text}, and this hook means the one at {}; give both the same --admin-address, \
                     or the hook the --control-socket of its own sidecar",
                    Options::default().with(&request.drain.overrides).admin_address
                ),
            )),
            (400, _) => Err(SidecarError::Final(
                ExitStatus::Usage,
                format!("the sidecar rejected the drain's options: {text}"),
            )),
            _ => Err(SidecarError::Lost(format!(
                "it responded to the request to drain with {status}: {text}"
            ))),
        }
    }

    /// Waits for the end of a drain. Returns the exit status and the explanation of the outcome.
    pub fn wait(&self, drain: u64) -> Result<(ExitStatus, String), SidecarError> {
        match self.get(&format!("/shutdown?drain={drain}"), None) {
            Ok((200, body)) => outcome(&body),
            Ok((status, body)) => Err(SidecarError::Lost(format!(
                "it responded with {status}: {}",
                first_line(&body)
            ))),
            Err(error) => Err(SidecarError::Lost(error.to_string())),
        }
    }

    /// How the drain goes, in a line. It is shown even where there is none: the drain is waited for
    /// in any case, since if the hook ended before it, the pod would be stopped.
    pub fn status_line(&self) -> String {
        match self.get("/status?as=line", Some(PROGRESS_INTERVAL)) {
            Ok((_, line)) => line.trim_end().to_owned(),
            Err(_) => "the sidecar does not respond at the moment".to_owned(),
        }
    }

    /// Ends the drain in progress. Returns its number.
    pub fn release(&self) -> Result<u64, SidecarError> {
        self.command("/release")
    }

    /// Restores Envoy to service. The number of the request is for [`Self::restored`].
    pub fn restore(&self) -> Result<u64, SidecarError> {
        self.command("/restore")
    }

    /// What came of the request to restore Envoy; none as long as nothing has.
    pub fn restored(&self, number: u64) -> Result<Option<Result<(), String>>, SidecarError> {
        let path = format!("/restore?request={number}");
        let response = self.get(&path, Some(DRAIN_RESPONSE_TIMEOUT));
        let (status, body) = response.map_err(|error| SidecarError::Lost(error.to_string()))?;
        let mut lines = body.lines();
        match (status, lines.next()) {
            (200, Some("requested")) => Ok(None),
            (200, Some("restored")) => Ok(Some(Ok(()))),
            (200, Some("failed")) => Ok(Some(Err(lines.next().unwrap_or_default().to_owned()))),
            _ => {
                Err(SidecarError::Lost(format!("it responded with {status}: {}", body.trim_end())))
            }
        }
    }

    /// Sends a command that is carried out or refused at once. Returns the number in the response.
    fn command(&self, path: &str) -> Result<u64, SidecarError> {
        let response = self.request("POST", path, Some(DRAIN_RESPONSE_TIMEOUT));
        let (status, body) = response.map_err(|error| SidecarError::Lost(error.to_string()))?;
        let text = body.trim_end();
        let number = text.rsplit(' ').next().and_then(|number| number.parse().ok());
        match (status, number) {
            (200, Some(number)) => Ok(number),
            (409, _) => Err(SidecarError::Final(ExitStatus::GaveUp, text.to_owned())),
            _ => Err(SidecarError::Lost(format!("it responded to {path} with {status}: {text}"))),
        }
    }

    fn get(&self, path: &str, timeout: Option<Duration>) -> ResponseResult {
        self.request("GET", path, timeout)
    }

    fn request(&self, method: &str, path: &str, timeout: Option<Duration>) -> ResponseResult {
        let address = AdminAddress::Unix(self.path.clone());
        let mut body = Vec::new();
        let status = request(&address, self.check, method, path, timeout, &mut |_, piece| {
            body.extend_from_slice(piece);
            body.len() < MAX_RESPONSE
        })?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// What is shown of a body that may be another program's.
fn first_line(body: &str) -> &str {
    let line = body.lines().next().unwrap_or_default();
    &line[..line.floor_char_boundary(MAX_SHOWN)]
}

/// Parses the outcome's name on a line, and its explanation on the next.
fn outcome(body: &str) -> Result<(ExitStatus, String), SidecarError> {
    let mut lines = body.lines();
    let outcome = lines.next().and_then(OutcomeKind::from_name);
    let shown = first_line(body);
    let unknown = || SidecarError::Lost(format!("it returned an unknown outcome: {shown:?}"));
    let (outcome, explanation) = outcome.zip(lines.next()).ok_or_else(unknown)?;
    let status = if outcome.gave_up() { ExitStatus::GaveUp } else { ExitStatus::Done };
    Ok((status, explanation.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn every_outcome_has_its_exit_status_and_another_is_an_error() {
        let statuses = OutcomeKind::ALL.map(OutcomeKind::name).map(|name| {
            match outcome(&format!("{name}\nwhy\n")) {
                Ok((status, explanation)) if explanation == "why" => (name, status),
                _ => panic!("{name} is unknown"),
            }
        });
        let gave_up = statuses.iter().filter(|(_, status)| *status == ExitStatus::GaveUp);
        assert_eq!(gave_up.map(|(name, _)| *name).collect::<Vec<_>>(), ["timed_out", "released"]);
        for body in ["", "\n", "drained", "ended\nwhy\n", "Drained\nwhy\n"] {
            let error = outcome(body);
            assert!(
                matches!(&error, Err(SidecarError::Lost(reason)) if reason.contains("an unknown outcome")),
                "{body:?}"
            );
        }
    }
}
