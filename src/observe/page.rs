//! The status page, for people: at most as wide as their terminal, a row for each fact that there is.

use std::iter;
use std::time::Duration;

use super::counters::EnvoyState;
use super::json::{seen, thousandths};
use super::status::{Count, Snapshot, VERSION, whole};
use crate::cli::options::WaitFor;
use crate::drain::{NextStep, Phase};
use crate::os::clock::Timestamp;
use crate::route::PageStyle;

/// The columns of a row's name.
const NAME: usize = 12;
/// The longest bar, in columns; and the height of the plot, in lines.
const MAX_BAR: usize = 40;
const PLOT_HEIGHT: u64 = 4;

/// Colours, as SGR parameters (ECMA-48, 8.3.117).
const BOLD: &str = "1";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

impl Snapshot {
    /// The status for people.
    pub fn page(&self, style: PageStyle) -> String {
        let mut page = Page { style, text: String::new() };
        let version = format!("envoy-shutdown-manager {VERSION}");
        page.line(&format!("{}  {version}", self.date(self.now)), BOLD);
        let (state, colour) = self.envoy_state();
        page.row("Envoy", &state, colour);
        page.row("phase", &self.phase_text(), BOLD);
        if self.phase != Phase::Idle {
            self.drain_rows(&mut page);
        }
        page.row("waiting", &self.hooks(), "");
        if let Some(error) = &self.counters.error {
            let (age, times) = (whole(self.ago(error.at)), error.times);
            page.row("last error", &format!("{} ({age} ago, {times} in a row)", error.text), RED);
        }
        if let Some(hidden) = self.stats_hidden() {
            page.row("not seen", &hidden, YELLOW);
        }
        if let Some((ended, at)) = &self.last {
            let (took, ago) = (whole(ended.took), whole(self.ago(*at)));
            let text = format!("drain {}: {}", ended.number, ended.outcome.explain());
            let colour = if ended.outcome.kind.gave_up() { YELLOW } else { "" };
            page.row("last drain", &format!("{text}; took {took}, ended {ago} ago"), colour);
        }
        if !self.worker_running {
            page.row("worker", "down; it is being restarted", RED);
        }
        page.text
    }

    fn envoy_state(&self) -> (String, &'static str) {
        let (state, colour) = match self.counters.envoy {
            EnvoyState::Live => ("LIVE", GREEN),
            EnvoyState::Draining => ("DRAINING", YELLOW),
            EnvoyState::Starting => ("INITIALIZING", YELLOW),
            EnvoyState::NotResponding => ("does not respond", RED),
            EnvoyState::NeverSeen => ("has not responded yet", RED),
        };
        let age = self
            .counters
            .envoy_seen
            .map_or(String::new(), |seen| format!(", {} ago", whole(self.ago(seen))));
        let stranded = self.counters.envoy == EnvoyState::Draining && self.phase == Phase::Idle;
        let stranded = if stranded { ": out of service with no drain; see restore" } else { "" };
        (format!("{state}{stranded} (at {}{age})", self.admin_address), colour)
    }

    fn phase_text(&self) -> String {
        let since = format!("since {}", self.time(self.phase_since));
        match self.elapsed() {
            Some(elapsed) => format!(
                "{}, {since}; drain {}, for {}",
                self.phase.name(),
                self.drain,
                whole(elapsed)
            ),
            None if self.phase == Phase::Idle => format!("idle (no drain), {since}"),
            None => format!("{}, {since}", self.phase.name()),
        }
    }

    fn drain_rows(&self, page: &mut Page) {
        match self.count() {
            Some(count) => self.connection_rows(page, &count),
            None => page.row("open", "not counted yet", ""),
        }
        if let Some(accepted) = self.accepted() {
            let text = match accepted.noticed {
                None => "none were accepted".to_owned(),
                Some(at) => format!(
                    "{} accepted ({} a second), the latest noticed {} ago: clients or a balancer \
                     still send",
                    accepted.new,
                    thousandths(accepted.rate().unwrap_or(0)),
                    whole(self.ago(at))
                ),
            };
            let since = accepted.first.map_or(Timestamp::ZERO, |first| first);
            page.row("new", &format!("{text}; counted since {}", self.time(since)), "");
        }
        if let Some(quiet) = self.quiet() {
            let text = format!("for {}: the delay ends after the quiet period", whole(quiet));
            page.row("quiet", &text, "");
        }
        if let Some(hundredths) = self.injected {
            let written = thousandths(u64::from(hundredths) * 10);
            let read = self.count().map(|count| match count.breakdown.pressure {
                Some(percent) => {
                    let read = thousandths(percent.saturating_mul(10));
                    format!("; Envoy had read {read} at the latest poll")
                }
                None => "; the latest poll shows none".to_owned(),
            });
            page.row("pressure", &(written + &read.unwrap_or_default()), "");
        }
        if let Some(progress) = &self.progress {
            let mut next = String::new();
            if let Some((step, at)) = progress.next {
                let what = match step {
                    NextStep::LeaveInService => "Envoy left in service unless its own hook comes",
                    NextStep::FailHealthChecks => "Envoy's health checks are failed",
                    NextStep::FirstPoll => "first poll that can end the drain",
                    NextStep::Poll => "poll",
                };
                next = format!("{what} in {}; ", whole(at - self.now));
            }
            next += &progress.gives_up_at.map_or_else(
                || "waits without a timeout".to_owned(),
                |at| format!("gives up in {}, at {}", whole(at - self.now), self.time(at)),
            );
            page.row("next", &next, "");
        }
        let Some((started, length)) = self.course() else { return };
        let mut history = format!("requested {}", self.time(started));
        if !self.requested.is_empty() {
            history += &format!(" with {}", self.requested);
        }
        let failed = self.progress.as_ref().and_then(|progress| progress.out_of_service_since);
        history +=
            &failed.map_or(String::new(), |at| format!("; out of service {}", self.time(at)));
        let polls = &self.counters;
        let failed: u64 = polls.poll_errors.iter().sum();
        history += &format!("; polls so far {}, failed {failed}", polls.polls);
        page.row("history", &history, "");
        if page.style.plot {
            self.plot(page, length);
        }
    }

    /// When the drain in progress, or the one that has just ended, started, and how long it has taken.
    fn course(&self) -> Option<(Timestamp, Duration)> {
        match (&self.progress, &self.last) {
            (Some(progress), _) => Some((progress.started, self.ago(progress.started))),
            (None, Some((ended, at))) => {
                let started = at.since_boot().saturating_sub(ended.took);
                Some((Timestamp::from_boot(started), ended.took))
            }
            (None, None) => None,
        }
    }

    fn connection_rows(&self, page: &mut Page, count: &Count<'_>) {
        let Count { open, holding, breakdown, at } = count;
        let most = self.history.max().max(*open);
        let threshold = match self.wait_for {
            WaitFor::Connections => format!(", threshold {}", self.threshold),
            WaitFor::Requests => String::new(),
        };
        let text = format!("{open}{threshold} ({} ago, at most {most})", whole(self.ago(*at)));
        let bar = page.bar(*open, most, text.len());
        page.row("open", &format!("{text}{bar}"), BOLD);
        if self.wait_for == WaitFor::Requests {
            let what = "requests in flight, and connections other than HTTP";
            page.row("holding", &format!("{holding}, threshold {}: {what}", self.threshold), BOLD);
        }
        let kinds = breakdown.kinds;
        for (kind, open, ends) in [
            ("HTTP", kinds.http, "each ends with its next response, or by Envoy's idle timeout"),
            ("upgraded", kinds.upgraded, "WebSocket, CONNECT: each ends when a side closes it"),
            ("TCP", kinds.tcp, "each ends when a side closes it: no protocol asks it to leave"),
            ("silent", kinds.silent, "sent nothing yet: each ends by a listener filter's timeout"),
            ("parent", kinds.parent, "of the old process of a hot restart"),
        ] {
            if open > 0 {
                page.row("", &format!("{open} {kind}: {ends}"), "");
            }
        }
        if let Some(requests) = breakdown.requests.filter(|_| kinds.http + kinds.upgraded > 0) {
            page.row("", &format!("requests in flight: {requests}"), "");
        }
        for (name, largest) in [("listeners", &breakdown.listeners), ("HTTP", &breakdown.prefixes)]
        {
            let mut name = name;
            for (listener, open) in &largest.named {
                let text = format!("{open:>6}  {listener}");
                page.row(std::mem::take(&mut name), &text, "");
            }
            if largest.others > 0 {
                page.row(
                    "",
                    &format!("{:>6}  in {} others", largest.others_open, largest.others),
                    "",
                );
            }
        }
        if breakdown.udp_sessions > 0 {
            let text = format!("{} sessions, which are not waited for", breakdown.udp_sessions);
            page.row("UDP", &text, "");
        }
    }

    fn hooks(&self) -> String {
        match (self.exec_hooks, self.envoy_hooks) {
            (0, 0) => "no hook".to_owned(),
            (exec, envoy) => format!("exec hooks: {exec}, Envoy's (/shutdown): {envoy}"),
        }
    }

    /// Open connections over a drain of this length, the latest at the right.
    fn plot(&self, page: &mut Page, length: Duration) {
        let most = self.history.max();
        if most == 0 {
            return;
        }
        let width = page.width().saturating_sub(NAME);
        let columns = self.history.columns(width, length);
        let glyphs = page.glyphs();
        let steps = glyphs.len() as u64 - 1;
        for row in (0..PLOT_HEIGHT).rev() {
            let cell = |open: &Option<u64>| {
                // In 128 bits: a gauge may have any value of 64.
                let height = u128::from(open.unwrap_or(0)) * u128::from(PLOT_HEIGHT * steps);
                let height = height.div_ceil(most.into()) as u64;
                glyphs[height.saturating_sub(row * steps).min(steps) as usize]
            };
            let line: String = columns.iter().map(cell).collect();
            let name = if row == PLOT_HEIGHT - 1 { most.to_string() } else { String::new() };
            page.line(&format!("{name:>11} {}", line.trim_end()), "");
        }
    }

    /// The time of day, UTC.
    fn time(&self, at: Timestamp) -> String {
        let seconds = self.wall(at).since_boot().as_secs() % 86_400;
        format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    }

    fn date(&self, at: Timestamp) -> String {
        let time =
            std::time::UNIX_EPOCH + Duration::from_secs(self.wall(at).since_boot().as_secs());
        humantime::format_rfc3339_seconds(time).to_string()
    }
}

struct Page {
    style: PageStyle,
    text: String,
}

impl Page {
    fn width(&self) -> usize {
        self.style.columns.into()
    }

    /// From empty to full. A terminal that shows colours shows blocks too.
    fn glyphs(&self) -> &'static [char] {
        if self.style.colour {
            &[' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
        } else {
            &[' ', '#']
        }
    }

    /// A bar behind a text of this length, as long as there is room.
    fn bar(&self, part: u64, whole: u64, text: usize) -> String {
        let room = self.width().saturating_sub(NAME + text + 4).min(MAX_BAR);
        if room < 10 || whole == 0 {
            return String::new();
        }
        let full = (u128::from(part) * room as u128).div_ceil(whole.into()) as usize;
        let [on, off] = if self.style.colour { ['█', '░'] } else { ['#', '.'] };
        let bar = iter::repeat_n(on, full).chain(iter::repeat_n(off, room - full));
        format!("  {}", bar.collect::<String>())
    }

    /// A name and a text, which goes on below where it is too long.
    fn row(&mut self, name: &str, text: &str, colour: &str) {
        let room = self.width().saturating_sub(NAME).max(1);
        let mut name = name;
        for line in wrap(&seen(text), room) {
            let indented = format!("{name:<NAME$}");
            self.styled(&indented, &line, colour);
            name = "";
        }
    }

    fn line(&mut self, text: &str, colour: &str) {
        let cut = wrap(text, self.width()).swap_remove(0);
        self.styled("", &cut, colour);
    }

    fn styled(&mut self, before: &str, text: &str, colour: &str) {
        let (start, end) = match colour {
            "" => (String::new(), ""),
            _ if !self.style.colour => (String::new(), ""),
            colour => (format!("\x1b[{colour}m"), "\x1b[0m"),
        };
        let text = format!("{before}{start}{text}{end}");
        self.text += text.trim_end();
        self.text.push('\n');
    }
}

/// The columns of a character: at most two, and none of ours has more than one.
fn columns(c: char) -> usize {
    if c.is_ascii() || ('\u{2580}'..='\u{259f}').contains(&c) { 1 } else { 2 }
}

/// The lines of a text, each no wider than `room`, broken between words where there are some.
fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let (mut width, mut space) = (0, None);
    for c in text.chars() {
        if width + columns(c) > room {
            let last = lines.len() - 1;
            let rest = match space.filter(|space| *space > 0) {
                Some(space) => lines[last].split_off(space).trim_start().to_owned(),
                None => String::new(),
            };
            width = rest.chars().map(columns).sum();
            space = None;
            lines.push(rest);
        }
        let last = lines.len() - 1;
        if c == ' ' && (width > 0 || last == 0) {
            space = Some(lines[last].len());
        }
        if c != ' ' || width > 0 || last == 0 {
            lines[last].push(c);
            width += columns(c);
        }
    }
    lines
}

#[cfg(test)]
mod tests;
