//! The output: lines that stay and, on a terminal, one line below them that is redrawn in place.

use std::env;
use std::io::{self, IsTerminal as _, Write as _};
use std::mem;
use std::time::Instant;

/// The width of the first two columns. No line should be wider than 79 columns.
const MARGIN: usize = 20;

const GREEN: &str = "32";
const DIM: &str = "2";
const BOLD: &str = "1";

#[derive(Debug)]
pub struct Screen {
    terminal: bool,
    colours: bool,
    /// Times are counted from this moment.
    zero: Option<Instant>,
    /// The text of the line that is redrawn.
    live: String,
    timeline: String,
}

impl Screen {
    pub fn new() -> Self {
        let able = env::var_os("TERM").is_some_and(|term| term != "dumb");
        let terminal = able && io::stdout().is_terminal();
        let colours = terminal && env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        Self { terminal, colours, zero: None, live: String::new(), timeline: String::new() }
    }

    /// Counts time from this moment.
    pub fn start_clock(&mut self, zero: Instant) {
        self.zero = Some(zero);
    }

    /// Prints text as it is.
    pub fn print(&self, text: &str) {
        self.put(&format!("{text}\n"));
    }

    /// Prints a line: when, who and what.
    pub fn line(&self, at: Instant, who: &str, what: &str) {
        self.put(&self.entry(at, who, what));
    }

    /// Adds a row to the timeline that is printed at the end.
    pub fn note(&mut self, at: Instant, who: &str, what: &str) {
        self.timeline += &self.entry(at, who, what);
    }

    /// Prints a line that also belongs to the timeline.
    pub fn event(&mut self, at: Instant, who: &str, what: &str) {
        self.line(at, who, what);
        self.note(at, who, what);
    }

    /// Shows the current state: in place on a terminal, else as a line when it has changed.
    pub fn live(&mut self, at: Instant, who: &str, what: &str) {
        let changed = mem::replace(&mut self.live, what.to_owned()) != what;
        let entry = self.entry(at, who, what);
        if self.terminal {
            self.put(entry.trim_end());
        } else if changed {
            self.put(&entry);
        }
    }

    /// Prints the timeline, and a summary below it.
    pub fn end(&self, summary: &str) {
        self.put(&self.paint(BOLD, &format!("\n{:>9}  {:<8} what\n", "when", "who")));
        self.put(&self.timeline);
        self.put(&self.paint(GREEN, &format!("\n{summary}\n")));
    }

    fn entry(&self, at: Instant, who: &str, what: &str) -> String {
        let time = self.zero.map(|zero| at.saturating_duration_since(zero).as_secs_f64());
        let time = time.map_or(String::new(), |seconds| format!("{seconds:.3} s"));
        let time = self.paint(DIM, &format!("{time:>9}"));
        let who = self.paint(BOLD, &format!("{who:<8}"));
        let what = what.replace('\n', &format!("\n{:MARGIN$}", ""));
        format!("{time}  {who} {what}\n")
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Writes in place of the redrawn line. If the output is no longer read, the demo continues.
    fn put(&self, text: &str) {
        let start = if self.terminal { "\r\x1b[K" } else { "" };
        let mut out = io::stdout();
        let _ = write!(out, "{start}{text}").and_then(|()| out.flush());
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.put("");
    }
}
