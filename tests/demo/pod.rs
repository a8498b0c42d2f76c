//! A pod that is being deleted, and what the kubelet does: it runs both preStop hooks at once, and
//! sends SIGTERM to each container as soon as that container's own hook has returned.

use std::io::{ErrorKind, Write as _};
use std::mem::MaybeUninit;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::Socket;

use crate::support::PATIENCE;
use crate::support::client::read_response;
use crate::support::envoy::Envoy;
use crate::support::net::Address;
use crate::support::process::{Exit, Hook};
use crate::support::sidecar::Sidecar;

/// How long one check waits for the response to Envoy's hook.
const CHECK_TIMEOUT: Duration = Duration::from_millis(10);

/// Fields are dropped in this order: the hooks before the processes that they wait for.
#[derive(Debug)]
pub struct Pod {
    exec_hook: Hook,
    envoy_hook: Socket,
    pub sidecar: Sidecar,
    pub envoy: Envoy,
    pub deleted: Instant,
    /// When Envoy's hook was answered, and Envoy got SIGTERM.
    pub answered: Option<Instant>,
    /// How the exec hook ended, and when the sidecar got SIGTERM.
    pub hook_ended: Option<(Exit, Instant)>,
}

/// The state of the drain, from the sidecar's `/status`.
#[derive(Debug)]
pub struct Status {
    pub phase: String,
    /// `None` before the first poll.
    pub open: Option<u64>,
}

impl Pod {
    /// Starts both hooks.
    pub fn delete(envoy: Envoy, sidecar: Sidecar) -> Result<Self, String> {
        let public = Address::port(sidecar.port());
        let deleted = Instant::now();
        let exec_hook = sidecar.hook(&[]);
        let socket = public.connect(PATIENCE).and_then(|mut socket| {
            socket.set_read_timeout(Some(CHECK_TIMEOUT))?;
            socket.write_all(b"GET /shutdown HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
            Ok(socket)
        });
        let envoy_hook = socket.map_err(|error| format!("GET /shutdown at {public}: {error}"))?;
        let (answered, hook_ended) = (None, None);
        Ok(Self { exec_hook, envoy_hook, sidecar, envoy, deleted, answered, hook_ended })
    }

    /// Waits a moment for a hook to return, and then does what the kubelet does. Returns when, and
    /// what. An error if a hook returns as it should not.
    pub fn check_hooks(&mut self) -> Result<Option<(Instant, &'static str)>, String> {
        // The exec hook is checked first: if both have returned, Envoy's hook is then found to be
        // answered as well.
        let exit = self.exec_hook.try_wait();
        if self.answered.is_none() {
            let Some(status) = self.envoy_hook_status()? else {
                let early = "the exec hook has exited before Envoy's hook was answered";
                return if exit.is_none() { Ok(None) } else { Err(early.to_owned()) };
            };
            let at = Instant::now();
            self.envoy.signal(Signal::SIGTERM);
            self.answered = Some(at);
            return match status {
                200 => Ok(Some((at, "Envoy's hook is answered with 200: SIGTERM to Envoy"))),
                other => Err(format!("Envoy's hook is answered with {other}")),
            };
        }
        // std has no wait with a timeout for a process's exit, so it is checked every millisecond.
        thread::sleep(Duration::from_millis(1));
        let Some(exit) = exit.filter(|_| self.hook_ended.is_none()) else { return Ok(None) };
        self.sidecar.signal(Signal::SIGTERM);
        let (at, code) = (exit.at, exit.code);
        self.hook_ended = Some((exit, Instant::now()));
        match code {
            Some(0) => Ok(Some((at, "the exec hook exits with 0: SIGTERM to the sidecar"))),
            other => Err(format!("the exec hook's exit code is {other:?}")),
        }
    }

    /// The status of the response to Envoy's hook, if that has arrived.
    fn envoy_hook_status(&self) -> Result<Option<u16>, String> {
        let unanswered = [ErrorKind::WouldBlock, ErrorKind::Interrupted];
        match self.envoy_hook.peek(&mut [MaybeUninit::uninit()]) {
            Err(error) if unanswered.contains(&error.kind()) => return Ok(None),
            _ => {}
        }
        let response = read_response(&self.envoy_hook, PATIENCE);
        let response =
            response.map_err(|error| format!("Envoy's hook got no response: {}", error.kind()))?;
        Ok(Some(response.status))
    }

    /// Which hooks wait for the end of the drain.
    pub fn waiting(&self) -> &'static str {
        match (self.answered, &self.hook_ended) {
            (None, _) => "both hooks wait",
            (_, None) => "the exec hook waits",
            _ => "no hook waits",
        }
    }

    /// `None` if the sidecar does not respond.
    pub fn status(&self) -> Option<Status> {
        let json = self.sidecar.control().try_request("GET", "/status", PATIENCE).ok()?.body;
        let status: Value = serde_json::from_str(&json).ok()?;
        let open = status["open_connections"].as_u64();
        Some(Status { phase: status["phase"].as_str()?.to_owned(), open })
    }
}
