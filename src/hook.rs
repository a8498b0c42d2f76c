//! The commands `shutdown` and `status`: clients of the control socket.

use std::io::{self, IsTerminal, Write};
use std::path::{self, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::cli::address::AdminAddress;
use crate::cli::drain_request::DrainRequest;
use crate::cli::options::Overrides;
use crate::cli::{ShutdownArgs, StatusArgs};
use crate::control_socket;
use crate::drain::OutcomeKind;
use crate::envoy::transport::{Error, request};
use crate::observe::status::whole;
use crate::os::clock;
use crate::os::supervisor::spawn;
use crate::slot::Slot;

/// How a command ends; the value is its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Drained, or Envoy is gone.
    Done = 0,
    /// Gave up with connections open.
    GaveUp = 1,
    /// Wrong usage.
    Usage = 2,
    /// No sidecar could be reached.
    NoSidecar = 3,
}

/// A sidecar that is being restarted listens within milliseconds; this leaves room for a slow
/// machine.
const SIDECAR_COMES: Duration = Duration::from_secs(5);

/// Whoever lost its sidecar joins or starts a drain in the next one, but not for ever.
const MOST_LOSSES: u32 = 10;
const AFTER_LOSS: Duration = Duration::from_millis(200);

/// The sidecar answers a request to drain at once. One that is frozen must not keep the hook, nor
/// drain when it thaws: the request expires before anybody stops waiting for its answer, which at
/// the control socket is after 5 s.
const DRAIN_ANSWERED: Duration = Duration::from_secs(10);
const DRAIN_EXPIRES: Duration = Duration::from_secs(4);

/// How often the sidecar is asked how the drain goes.
const PROGRESS: Duration = Duration::from_secs(1);

/// The metrics, which are the longest answer of a sidecar, have a tenth of this.
const LONGEST_ANSWER: usize = 64 * 1024;

/// Starts a drain or joins one, waits for its end, and shows on stderr how it goes.
#[must_use]
pub fn shutdown(args: ShutdownArgs) -> Exit {
    for name in &args.ignored {
        say(&format!("--{name} is ignored, as Contour does; use --admin-address\n"));
    }
    let mut request = DrainRequest { overrides: absolute(args.overrides), expires: None };
    let told = args.control_socket.as_deref();
    let places = control_socket::hook_places(told, request.overrides.admin_address.as_ref());
    let mut progress = Progress::begin();
    let mut losses = 0;
    loop {
        let sidecar = match Sidecar::find(&places, told.is_none(), SIDECAR_COMES) {
            Ok(sidecar) => sidecar,
            Err(reason) => {
                progress.end(&format!("no sidecar could be reached: {reason}"));
                return Exit::NoSidecar;
            }
        };
        request.expires = Some(clock::now() + DRAIN_EXPIRES);
        match sidecar.drain(&request, &mut progress) {
            Ok(outcome) => {
                progress.end(&outcome.explanation);
                return if outcome.gave_up { Exit::GaveUp } else { Exit::Done };
            }
            Err(Trouble::Usage(sentence)) => {
                progress.end(&format!("the sidecar refused the drain's options: {sentence}"));
                return Exit::Usage;
            }
            Err(Trouble::Lost(reason)) if losses < MOST_LOSSES => {
                losses += 1;
                progress.show(&format!("the sidecar was lost ({reason}); looking for it again"));
                thread::sleep(AFTER_LOSS);
            }
            Err(Trouble::Lost(reason)) => {
                progress.end(&format!("the sidecar was lost too often: {reason}"));
                return Exit::NoSidecar;
            }
            Err(Trouble::Silent(reason)) => {
                progress.end(&reason);
                return Exit::NoSidecar;
            }
        }
    }
}

/// Shows where the drain stands.
#[must_use]
pub fn status(args: &StatusArgs) -> Exit {
    let told = args.control_socket.as_deref();
    let places = control_socket::hook_places(told, None);
    let path = if args.json { "/status" } else { "/status?as=page" };
    let redraw = args.watch && !args.json && io::stdout().is_terminal();
    let mut shown = String::new();
    loop {
        // A look changes nothing, so any sidecar may be looked at.
        let page = Sidecar::find(&places, false, Duration::ZERO)
            .and_then(|sidecar| sidecar.get(path, Some(DRAIN_ANSWERED)).map_err(|e| e.to_string()))
            .and_then(|(status, body)| match status {
                200 => Ok(body),
                _ => Err(format!("it answered {status} to {path}")),
            });
        let page = match page {
            Ok(page) => page,
            Err(reason) => {
                say(&format!("no sidecar could be reached: {reason}\n"));
                return Exit::NoSidecar;
            }
        };
        if page != shown {
            let home = if redraw { "\x1b[H\x1b[J" } else { "" };
            // Nobody reads any more: a pager was left, say.
            if write!(io::stdout(), "{home}{page}").and_then(|()| io::stdout().flush()).is_err() {
                return Exit::Done;
            }
            shown = page;
        }
        if !args.watch {
            return Exit::Done;
        }
        thread::sleep(PROGRESS);
    }
}

/// Paths mean the same to the sidecar, whatever its working directory is.
fn absolute(mut overrides: Overrides) -> Overrides {
    let admin = match &mut overrides.admin_address {
        Some(AdminAddress::Unix(path)) => Some(path),
        _ => None,
    };
    for path in [admin, overrides.ready_file.as_mut()].into_iter().flatten() {
        if let Ok(whole) = path::absolute(&path) {
            *path = whole;
        }
    }
    overrides
}

struct Ended {
    explanation: String,
    gave_up: bool,
}

enum Trouble {
    /// The sidecar does not take the options.
    Usage(String),
    /// The sidecar has gone; another may come.
    Lost(String),
    /// The sidecar is there, and does not answer, or not as it should.
    Silent(String),
}

/// The sidecar, as a hook reaches it.
struct Sidecar {
    path: PathBuf,
}

impl Sidecar {
    fn find(places: &[PathBuf], only_seen: bool, patience: Duration) -> Result<Self, String> {
        let deadline = Instant::now() + patience;
        loop {
            match control_socket::find(places, only_seen) {
                Ok(path) => return Ok(Self { path }),
                Err(reason) if Instant::now() >= deadline => return Err(reason),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn drain(&self, request: &DrainRequest, progress: &mut Progress) -> Result<Ended, Trouble> {
        let number = self.begin(request)?;
        let end = Slot::new();
        let (waiting, its_end) = (Self { path: self.path.clone() }, end.clone());
        let wait = move || its_end.put(waiting.get(&format!("/shutdown?drain={number}"), None));
        spawn("waiter", Box::new(wait))
            .map_err(|error| Trouble::Silent(format!("no thread can be started: {error}")))?;
        loop {
            match end.take_within(PROGRESS) {
                Some(Ok((200, body))) => return ended(&body),
                Some(Ok((status, body))) => {
                    return Err(Trouble::Lost(format!(
                        "it answered {status}: {}",
                        body.trim_end()
                    )));
                }
                Some(Err(error)) => return Err(Trouble::Lost(error.to_string())),
                None => {}
            }
            // The drain is waited for in any case: to end before it would have the pod stopped.
            match self.get("/status?as=line", Some(PROGRESS)) {
                Ok((_, line)) => progress.show(line.trim_end()),
                Err(_) => progress.show("the sidecar does not answer at the moment"),
            }
        }
    }

    /// The number of the drain that was started or joined.
    fn begin(&self, request: &DrainRequest) -> Result<u64, Trouble> {
        let path = format!("/drain?{}", request.to_query());
        let (status, body) = match self.request("POST", &path, Some(DRAIN_ANSWERED)) {
            Ok(answer) => answer,
            Err(Error::Timeout) => {
                return Err(Trouble::Silent(format!(
                    "the sidecar at {} did not answer within {}; it starts no drain when it wakes",
                    self.path.display(),
                    whole(DRAIN_ANSWERED)
                )));
            }
            Err(error) => return Err(Trouble::Lost(error.to_string())),
        };
        let text = body.trim_end();
        let number = text.rsplit(' ').next().and_then(|number| number.parse().ok());
        match (status, number) {
            (200, Some(number)) => Ok(number),
            (400, _) => Err(Trouble::Usage(text.to_owned())),
            _ => {
                Err(Trouble::Lost(format!("it answered {status} to the request to drain: {text}")))
            }
        }
    }

    fn get(&self, path: &str, timeout: Option<Duration>) -> Result<(u16, String), Error> {
        self.request("GET", path, timeout)
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        timeout: Option<Duration>,
    ) -> Result<(u16, String), Error> {
        let address = AdminAddress::Unix(self.path.clone());
        let mut body = Vec::new();
        let status = request(&address, method, path, timeout, &mut |_, piece| {
            body.extend_from_slice(piece);
            body.len() < LONGEST_ANSWER
        })?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// The outcome's name on a line, and its explanation on the next.
fn ended(body: &str) -> Result<Ended, Trouble> {
    let mut lines = body.lines();
    match (lines.next(), lines.next()) {
        (Some(name), Some(explanation)) if OutcomeKind::from_name(name).is_some() => {
            Ok(Ended { explanation: explanation.to_owned(), gave_up: name == "timed_out" })
        }
        _ => Err(Trouble::Lost(format!("it told an outcome that is not known here: {body:?}"))),
    }
}

/// Says something on stderr. The hook's work does not depend on who reads it.
pub fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// How the drain goes: one line in place on a terminal, else a line a change.
struct Progress {
    began: Instant,
    shown: String,
    in_place: bool,
}

impl Progress {
    /// Lines that are overwritten must not wrap.
    const COLUMNS: usize = 79;

    fn begin() -> Self {
        let in_place = io::stderr().is_terminal();
        Self { began: Instant::now(), shown: String::new(), in_place }
    }

    fn show(&mut self, text: &str) {
        if self.in_place {
            let line = format!("{} {text}", whole(self.began.elapsed()));
            let line: String = line.chars().take(Self::COLUMNS).collect();
            say(&format!("\r\x1b[K{line}"));
        } else if text != self.shown {
            say(&format!("{} {text}\n", whole(self.began.elapsed())));
        }
        text.clone_into(&mut self.shown);
    }

    fn end(&mut self, text: &str) {
        let start = if self.in_place && !self.shown.is_empty() { "\r\x1b[K" } else { "" };
        say(&format!("{start}{text} (after {})\n", whole(self.began.elapsed())));
    }
}
