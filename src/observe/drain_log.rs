//! What the log says of a step: told from the states before and after it, so that the machine
//! itself need not know of a log.

use std::time::Duration;

use crate::cli::duration;
use crate::cli::options::Overrides;
use crate::drain::{
    Answer, Drain, DrainStart, Event, HOOK_PAIRING_WINDOW, Health, Machine, Outline, Phase, Poll,
};
use crate::envoy::error::AdminError;
use crate::envoy::stats::StatsCoverage;
use crate::observe::log::Record;
use crate::os::clock::Timestamp;

/// While a drain goes on, the log is not silent for longer than this.
const REMINDER: Duration = Duration::from_secs(60);

/// What has been told already, so that nothing is told twice.
#[derive(Debug, Default)]
pub struct DrainLog {
    error: Option<AdminError>,
    /// How often the error has come again since it was told.
    repeats: u64,
    open: Option<u64>,
    visible: StatsCoverage,
    spoke: Timestamp,
    /// Envoy's own hook was told of, or its absence.
    hook_told: bool,
}

impl DrainLog {
    /// The request to drain: what was asked for, and what is in force.
    pub fn begun(
        &mut self,
        begun: DrainStart,
        given: &Overrides,
        machine: &Machine,
        now: Timestamp,
    ) -> Vec<Record> {
        let given: Vec<String> =
            given.pairs().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let given = given.join(" ");
        self.spoke = now;
        let (DrainStart::Started(number), Some(drain)) = (begun, machine.drain()) else {
            let line = Record::info("a hook has joined the drain, whose options hold")
                .with("drain", begun.number())
                .with("phase", machine.phase().name());
            return vec![if given.is_empty() { line } else { line.with("ignored", given) }];
        };
        *self = Self { spoke: now, ..Self::default() };
        let mut line = Record::info("drain requested").with("drain", number).with("given", given);
        for (name, value) in drain.options().settings() {
            line = line.with(name, value);
        }
        let mut lines = vec![line];
        let options = drain.options();
        let polls = options.delay().saturating_add(options.check_delay);
        let polls = polls.max(options.min_drain_duration);
        let warning = match options.drain_timeout {
            Some(timeout) if timeout <= options.delay() && !timeout.is_zero() => {
                "the drain timeout is over before the drain delay: health checks will not be failed"
            }
            Some(timeout) if timeout <= polls => {
                "the drain timeout is over before the first poll, which comes after the drain \
                 delay and the check delay, or after the shortest drain: connections will not be \
                 waited for"
            }
            _ => return lines,
        };
        lines.push(Record::warn(warning).with("drain", number));
        lines
    }

    /// What one event has changed.
    pub fn heard(
        &mut self,
        before: Outline,
        event: &Event,
        after: &Machine,
        now: Timestamp,
    ) -> Vec<Record> {
        let mut lines = Vec::new();
        match event {
            Event::Answer { drain, answer } if *drain == before.number => {
                self.answered(before, answer, after, now, &mut lines);
            }
            Event::Answer { .. } | Event::Tick => {}
            Event::Finished => self.finished(after, &mut lines),
        }
        if before.phase == Phase::Ended && after.phase() == Phase::Serving {
            lines.push(
                Record::info("the drain is over and the pod lives on: the next one can begin")
                    .with("drain", after.number()),
            );
        }
        if let Some(drain) = after.drain()
            && !self.hook_told
            && now >= drain.started() + HOOK_PAIRING_WINDOW
        {
            self.hook_told = true;
            lines.extend(envoys_hook(drain, after.number()));
        }
        if lines.is_empty() && after.drain().is_some() && now >= self.spoke + REMINDER {
            lines.push(self.remind(after, now));
        }
        if !lines.is_empty() {
            self.spoke = now;
        }
        lines
    }

    /// When the log wants to speak next, if nothing happens before.
    #[must_use]
    pub fn reminder(&self, machine: &Machine) -> Option<Timestamp> {
        machine.drain().map(|drain| {
            let reminder = self.spoke + REMINDER;
            let hook = drain.started() + HOOK_PAIRING_WINDOW;
            if self.hook_told { reminder } else { reminder.min(hook) }
        })
    }

    fn answered(
        &mut self,
        before: Outline,
        answer: &Answer,
        after: &Machine,
        now: Timestamp,
        lines: &mut Vec<Record>,
    ) {
        let number = after.number();
        if let Answer::AdminError(fault) = answer {
            self.fault(before, fault, after, lines);
        } else if let Some(fault) = self.error.take() {
            let line = Record::info("Envoy answers again").with("after", fault.text);
            let repeats = std::mem::take(&mut self.repeats);
            lines.push(if repeats > 0 { line.with("repeated", repeats) } else { line });
        }
        let in_drain = after.drain().is_some();
        match answer {
            Answer::AdminError(_) => {}
            Answer::Failed => {
                let line = Record::info("health checks failed: Envoy is out of service");
                let poll = after.drain().and_then(Drain::settles).unwrap_or(now);
                let delay = duration::format(to_millis(poll - now));
                lines.push(line.with("drain", number).with("first-poll-in", delay));
            }
            Answer::ListenersDrain => lines.push(
                Record::info("Envoy's listeners drain, which nothing but its restart takes back")
                    .with("drain", number),
            ),
            Answer::Seen(health) if in_drain => {
                if before.phase != Phase::Failing && after.phase() == Phase::Failing {
                    lines.push(reverted(*health, number));
                }
            }
            Answer::Polled(poll) => {
                if in_drain {
                    self.polled(before, poll, after, lines);
                } else {
                    let health = if poll.health == Health::Live { "LIVE" } else { "not LIVE" };
                    lines.push(
                        Record::info("Envoy answers").with("state", health).with("open", poll.open),
                    );
                    self.blind(poll.visible, lines);
                }
            }
            Answer::PutBack => lines.push(Record::warn(
                "Envoy was out of service though no drain goes on, left so by an earlier life of \
                 this sidecar: put back in service",
            )),
            // Told when it is done.
            Answer::Seen(Health::Draining) if before.puts_back => {}
            Answer::Seen(Health::Draining) if number > 0 => lines.push(Record::warn(
                "Envoy is still out of service; a restart of this sidecar puts it back, and so \
                 does POST /healthcheck/ok on its admin interface",
            )),
            Answer::Seen(Health::Draining) => lines.push(Record::warn(
                "Envoy is out of service though no drain goes on, and is left so; POST \
                 /healthcheck/ok on its admin interface puts it back",
            )),
            Answer::Seen(_) => {}
        }
        let gave_up_looking = before.looks && !after.outline().looks && !before.polls;
        if gave_up_looking && number == 0 {
            lines.push(Record::warn(
                "Envoy was not seen in service; that is looked for no more, and a drain will try \
                 again. Is --admin-address right?",
            ));
        }
    }

    fn fault(
        &mut self,
        before: Outline,
        fault: &AdminError,
        after: &Machine,
        lines: &mut Vec<Record>,
    ) {
        if self.error.as_ref() == Some(fault) {
            self.repeats += 1;
            return;
        }
        let mut line = match after.drain() {
            Some(_) => Record::warn("Envoy did not answer as it should; trying again")
                .with("drain", after.number()),
            None if before.polls => {
                Record::warn("Envoy's open connections cannot be counted, so no drain would end")
            }
            None => Record::info("Envoy does not answer yet"),
        };
        line = line.with("error", fault.text.as_str());
        if let Some(other) = self.error.replace(fault.clone())
            && self.repeats > 0
        {
            line = line.with("before", other.text).with("repeated", self.repeats);
        }
        self.repeats = 0;
        lines.push(line);
    }

    fn polled(&mut self, before: Outline, poll: &Poll, after: &Machine, lines: &mut Vec<Record>) {
        let number = after.number();
        if before.phase != Phase::Failing && after.phase() == Phase::Failing {
            lines.push(reverted(poll.health, number));
        }
        self.blind(poll.visible, lines);
        if self.open.replace(poll.open) != Some(poll.open) {
            let threshold = after.drain().map(|drain| drain.options().min_open_connections);
            lines.push(
                Record::info("open connections")
                    .with("drain", number)
                    .with("open", poll.open)
                    .with("threshold", threshold.unwrap_or_default()),
            );
        }
    }

    /// Says once what cannot be seen.
    fn blind(&mut self, visible: StatsCoverage, lines: &mut Vec<Record>) {
        if std::mem::replace(&mut self.visible, visible) != visible
            && let Some(text) = visible.explain()
        {
            lines.push(Record::warn(text));
        }
    }

    fn finished(&self, after: &Machine, lines: &mut Vec<Record>) {
        let Some(ended) = after.last() else { return };
        let explained = ended.outcome.explain();
        let line =
            if ended.outcome.gave_up() { Record::warn(explained) } else { Record::info(explained) };
        let mut line = line
            .with("drain", ended.number)
            .with("outcome", ended.outcome.name())
            .with("took", duration::format(to_millis(ended.took)))
            .with("threshold", ended.threshold);
        if self.visible == StatsCoverage::HttpOnly {
            line = line.with("not-counted", "connections that are not HTTP");
        }
        lines.push(line);
    }

    fn remind(&mut self, machine: &Machine, now: Timestamp) -> Record {
        let mut line = Record::info("still waiting")
            .with("drain", machine.number())
            .with("phase", machine.phase().name());
        if let Some(drain) = machine.drain() {
            if let Some(poll) = drain.last_poll() {
                line = line.with("open", poll.open);
            }
            line = line
                .with("threshold", drain.options().min_open_connections)
                .with("elapsed", duration::format(to_millis(now - drain.started())));
        }
        if let Some(fault) = &self.error {
            line = line.with("error", fault.text.as_str()).with("repeated", self.repeats);
        }
        line
    }
}

/// Whether this looks like the end of a pod, of which the sidecar itself is not told.
fn envoys_hook(drain: &Drain, number: u64) -> Option<Record> {
    let line = if drain.envoy_hook() {
        Record::info("Envoy's own hook waits too: the pod is being deleted")
    } else if drain.options().require_envoy_hook {
        // Told as the outcome.
        return None;
    } else {
        Record::warn(
            "Envoy's own hook did not come to /shutdown within 3s: only the sidecar is being \
             restarted, or Envoy's container has no such hook. The drain goes on; with \
             --require-envoy-hook Envoy would be left alone",
        )
    };
    let line = line.with("drain", number);
    Some(if drain.has_listeners_to_drain() && !drain.envoy_hook() {
        line.with("listeners", "not told to drain, which could not be taken back")
    } else {
        line
    })
}

fn reverted(health: Health, number: u64) -> Record {
    let text = match health {
        Health::Starting => {
            "Envoy has restarted: failing its health checks again, and the check delay begins anew"
        }
        Health::Live | Health::Draining => {
            "Envoy is LIVE again, restarted or put back by somebody: failing its health checks \
             again, and the check delay begins anew"
        }
    };
    Record::warn(text).with("drain", number)
}

/// Nobody reads the nanoseconds of a drain.
fn to_millis(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
