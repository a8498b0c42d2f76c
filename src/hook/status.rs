//! The command `status`: shows the state of the drain, once or again and again.

mod client;
mod frame;
mod response;

use std::env;
use std::io::{self, ErrorKind};
use std::time::{Duration, SystemTime};

use rustix::stdio::stdout;
use rustix::termios::isatty;

use self::client::Client;
use self::frame::Frame;
use super::{ExitStatus, PROGRESS_INTERVAL, control_paths, print_stderr};
use crate::cli::Args;
use crate::os::clock;
use crate::os::output::show;
use crate::os::terminal::{self, Terminal};
use crate::route::{PageStyle, Route};

/// Shows the state of the drain; with `--watch` again and again, until its user, its reader or a signal
/// ends it.
pub fn status(args: &Args) -> ExitStatus {
    let mut view = View {
        client: Client { paths: control_paths(args), kept: None, terminal: None },
        mode: match (args.watch, args.json) {
            (false, _) => Mode::Once,
            (true, false) if is_screen() => Mode::InPlace,
            (true, _) => Mode::Changes,
        },
        json: args.json,
        page: String::new(),
        line: String::new(),
        attempts: 0,
        since: String::new(),
        reason: String::new(),
        frame: Frame::default(),
    };
    let end = view.run();
    if view.client.terminal.take().is_some() {
        show(view.frame.end(), true);
    }
    match end {
        Err(error) if error.kind() != ErrorKind::Interrupted => {
            print_stderr(&format!("no sidecar could be reached: {error}\n"));
            ExitStatus::NoSidecar
        }
        _ => ExitStatus::Done,
    }
}

/// The check of Envoy for a status has 0.5 s.
const REFRESH_TIMEOUT: Duration = Duration::from_millis(700);
const REFRESH_INTERVAL: Duration = Duration::from_millis(20);

/// Whether stdout is a terminal that can show a page in place.
fn is_screen() -> bool {
    isatty(stdout()) && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Once,
    /// Each page replaces the one before, on a terminal.
    InPlace,
    /// Each page is shown below the one before, whenever something has changed.
    Changes,
}

struct View {
    client: Client,
    mode: Mode,
    json: bool,
    /// The latest page.
    page: String,
    /// The line that has changed since the page before.
    line: String,
    /// Requests in vain since the sidecar was lost.
    attempts: u32,
    /// When it was lost, and why the latest request was in vain.
    since: String,
    reason: String,
    frame: Frame,
}

impl View {
    fn run(&mut self) -> io::Result<()> {
        if self.mode == Mode::Once {
            self.refresh()?;
        }
        loop {
            let due = clock::now() + PROGRESS_INTERVAL;
            match self.update() {
                Err(error) if !self.page.is_empty() && error.kind() != ErrorKind::Interrupted => {
                    self.attempts += 1;
                    self.reason = error.to_string();
                    if self.attempts == 1 {
                        self.since =
                            humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
                        self.say(&self.top());
                    }
                }
                Ok(()) if self.attempts > 0 => {
                    self.attempts = 0;
                    self.say("the sidecar is back\n");
                }
                other => other?,
            }
            match self.mode {
                Mode::Once => return Ok(()),
                Mode::Changes => {}
                Mode::InPlace => self.draw()?,
            }
            self.client.wait(None, due)?;
        }
    }

    /// Waits until the sidecar has seen Envoy's state a moment ago, which the first request makes it do, or
    /// has had the time for it.
    fn refresh(&mut self) -> io::Result<()> {
        let until = clock::now() + REFRESH_TIMEOUT;
        while !is_fresh(&self.client.get(&Route::StatusJson)?) && clock::now() < until {
            self.client.wait(None, clock::now() + REFRESH_INTERVAL)?;
        }
        Ok(())
    }

    /// Gets the next page, and shows it unless that is done in place.
    fn update(&mut self) -> io::Result<()> {
        let mut line = String::new();
        if self.mode == Mode::Changes {
            line = self.client.get(&Route::StatusLine)?;
            if line == self.line {
                return Ok(());
            }
        }
        let route = if self.json { Route::StatusJson } else { Route::StatusPage(self.style()) };
        self.page = self.client.get(&route)?;
        self.line = line;
        let shown = match self.mode {
            Mode::InPlace => true,
            // The page begins with the time.
            Mode::Changes if !self.json => show(&format!("{}\n", self.page), false),
            _ => show(&self.page, false),
        };
        // The reader has gone: a pager that was left, say.
        if shown { Ok(()) } else { Err(ErrorKind::Interrupted.into()) }
    }

    fn say(&self, text: &str) {
        if self.mode == Mode::Changes {
            print_stderr(text);
        }
    }

    /// Shows the page in place.
    fn draw(&mut self) -> io::Result<()> {
        if self.client.terminal.is_none() {
            self.client.terminal = Some(Terminal::take()?);
        }
        let size = terminal::size().unwrap_or((80, 24));
        let frame = self.frame.next(&self.top(), &self.page, size);
        show(&frame, true);
        Ok(())
    }

    /// What stands above a page that is not the sidecar's latest.
    fn top(&self) -> String {
        if self.attempts == 0 {
            return String::new();
        }
        let Self { attempts, since, reason, .. } = self;
        format!("sidecar lost: attempt {attempts}, since {since}\n{reason}\n")
    }

    /// The style that stdout shows best.
    fn style(&self) -> PageStyle {
        let columns = terminal::size().map_or(PageStyle::default().columns, |size| size.0);
        // https://no-color.org
        let no_colour = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        PageStyle { columns, colour: is_screen() && !no_colour, plot: self.mode == Mode::InPlace }
    }
}

/// Whether the status shows Envoy as it was a second ago at most.
fn is_fresh(json: &str) -> bool {
    let age = json.split_once("\"envoy_state_age_seconds\":").map(|(_, rest)| rest);
    age.is_some_and(|age| age.starts_with("0."))
}
