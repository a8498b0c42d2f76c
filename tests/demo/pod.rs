//! A pod in its deletion, and the kubelet's part in it: both preStop hooks run at once, and each
//! container gets SIGTERM as soon as its own hook has returned.

use std::io::{ErrorKind, Write as _};
use std::mem::MaybeUninit;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use socket2::Socket;

use crate::support::PATIENCE;
use crate::support::client::read_response;
use crate::support::envoy::Envoy;
use crate::support::net::Address;
use crate::support::process::{Exit, Hook};
use crate::support::sidecar::Sidecar;

/// How long Envoy's hook is listened to before there is a look at the rest.
const LOOK: Duration = Duration::from_millis(10);

/// Dropped in this order: who waits before who is waited for.
#[derive(Debug)]
pub struct Pod {
    exec_hook: Hook,
    envoys_hook: Socket,
    pub sidecar: Sidecar,
    pub envoy: Envoy,
    pub deleted: Instant,
    /// When Envoy's hook was answered, and Envoy got SIGTERM.
    pub answered: Option<Instant>,
    /// How the exec hook ended, and when the sidecar got SIGTERM.
    pub hook_ended: Option<(Exit, Instant)>,
}

/// Where the drain stands, as the sidecar says.
#[derive(Debug)]
pub struct Status {
    pub phase: String,
    /// `None` before the first count.
    pub open: Option<usize>,
}

impl Pod {
    /// Both hooks begin.
    pub fn delete(envoy: Envoy, sidecar: Sidecar) -> Result<Self, String> {
        let public = Address::port(sidecar.port());
        let deleted = Instant::now();
        let exec_hook = sidecar.hook(&[]);
        let asked = public.connect(PATIENCE).and_then(|mut socket| {
            socket.set_read_timeout(Some(LOOK))?;
            socket.write_all(b"GET /shutdown HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
            Ok(socket)
        });
        let envoys_hook = asked.map_err(|error| format!("GET /shutdown at {public}: {error}"))?;
        let (answered, hook_ended) = (None, None);
        Ok(Self { exec_hook, envoys_hook, sidecar, envoy, deleted, answered, hook_ended })
    }

    /// Waits a moment for a hook that returns, and does what the kubelet then does; says when, and
    /// what. An error if a hook returns otherwise than it should.
    pub fn look(&mut self) -> Result<Option<(Instant, &'static str)>, String> {
        // This look comes first: if both hooks have returned, both are seen to have.
        let exit = self.exec_hook.try_wait();
        if self.answered.is_none() {
            let Some(status) = self.answer()? else {
                let early = "the exec hook has ended, and Envoy's hook is not answered";
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
        thread::sleep(Duration::from_millis(1));
        let Some(exit) = exit.filter(|_| self.hook_ended.is_none()) else { return Ok(None) };
        self.sidecar.signal(Signal::SIGTERM);
        let (at, code) = (exit.at, exit.code);
        self.hook_ended = Some((exit, Instant::now()));
        match code {
            Some(0) => Ok(Some((at, "exec hook ends, exit code 0: SIGTERM to the sidecar"))),
            other => Err(format!("the exec hook's exit code is {other:?}")),
        }
    }

    /// The status with which Envoy's hook is answered, if that is now.
    fn answer(&self) -> Result<Option<u16>, String> {
        let unanswered = [ErrorKind::WouldBlock, ErrorKind::Interrupted];
        match self.envoys_hook.peek(&mut [MaybeUninit::uninit()]) {
            Err(error) if unanswered.contains(&error.kind()) => return Ok(None),
            _ => {}
        }
        let answer = read_response(&self.envoys_hook, PATIENCE);
        let answer =
            answer.map_err(|error| format!("Envoy's hook got no answer: {}", error.kind()))?;
        Ok(Some(answer.status))
    }

    /// Who waits for the drain's end.
    pub fn waiting(&self) -> &'static str {
        match (self.answered, &self.hook_ended) {
            (None, _) => "Envoy's hook, exec hook",
            (_, None) => "exec hook",
            _ => "nobody",
        }
    }

    /// `None` if the sidecar does not say.
    pub fn status(&self) -> Option<Status> {
        let json = self.sidecar.control().try_request("GET", "/status", PATIENCE).ok()?.body;
        let value = |name: &str| {
            let (_, rest) = json.split_once(&format!("\"{name}\":"))?;
            Some(rest.split([',', '}']).next()?.trim_matches('"'))
        };
        let open = value("open_connections")?.parse().ok();
        Some(Status { phase: value("phase")?.to_owned(), open })
    }
}
