//! What the log says of a step: told from the states before and after it, so that the machine
//! itself need not know of a log.

use std::time::Duration;

use crate::count::Visible;
use crate::drain::{
    Answer, Begun, Drain, Event, Health, Machine, Outline, Phase, Poll, TOGETHER, Time,
};
use crate::duration;
use crate::fault::Fault;
use crate::logger::Line;
use crate::options::Overrides;

/// While a drain goes on, the log is not silent for longer than this.
const REMINDER: Duration = Duration::from_secs(60);

/// What has been told already, so that nothing is told twice.
#[derive(Debug, Default)]
pub struct Story {
    error: Option<Fault>,
    /// How often the error has come again since it was told.
    repeats: u64,
    open: Option<u64>,
    visible: Visible,
    spoke: Time,
    /// Envoy's own hook was told of, or its absence.
    hook_told: bool,
}

impl Story {
    /// The request to drain: what was asked for, and what is in force.
    pub fn begun(
        &mut self,
        begun: Begun,
        given: &Overrides,
        machine: &Machine,
        now: Time,
    ) -> Vec<Line> {
        let given: Vec<String> =
            given.pairs().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let given = given.join(" ");
        self.spoke = now;
        let (Begun::Started(number), Some(drain)) = (begun, machine.drain()) else {
            let line = Line::info("a hook has joined the drain, whose options hold")
                .with("drain", begun.number())
                .with("phase", machine.phase().name());
            return vec![if given.is_empty() { line } else { line.with("ignored", given) }];
        };
        *self = Self { spoke: now, ..Self::default() };
        let mut line = Line::info("drain requested").with("drain", number).with("given", given);
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
        lines.push(Line::warn(warning).with("drain", number));
        lines
    }

    /// What one event has changed.
    pub fn heard(
        &mut self,
        before: Outline,
        event: &Event,
        after: &Machine,
        now: Time,
    ) -> Vec<Line> {
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
                Line::info("the drain is over and the pod lives on: the next one can begin")
                    .with("drain", after.number()),
            );
        }
        if let Some(drain) = after.drain()
            && !self.hook_told
            && now >= drain.started() + TOGETHER
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
    pub fn reminder(&self, machine: &Machine) -> Option<Time> {
        machine.drain().map(|drain| {
            let reminder = self.spoke + REMINDER;
            let hook = drain.started() + TOGETHER;
            if self.hook_told { reminder } else { reminder.min(hook) }
        })
    }

    fn answered(
        &mut self,
        before: Outline,
        answer: &Answer,
        after: &Machine,
        now: Time,
        lines: &mut Vec<Line>,
    ) {
        let number = after.number();
        if let Answer::Fault(fault) = answer {
            self.fault(before, fault, after, lines);
        } else if let Some(fault) = self.error.take() {
            let line = Line::info("Envoy answers again").with("after", fault.text);
            let repeats = std::mem::take(&mut self.repeats);
            lines.push(if repeats > 0 { line.with("repeated", repeats) } else { line });
        }
        let in_drain = after.drain().is_some();
        match answer {
            Answer::Fault(_) => {}
            Answer::Failed => {
                let line = Line::info("health checks failed: Envoy is out of service");
                let poll = after.drain().and_then(Drain::settles).unwrap_or(now);
                let delay = duration::format(to_millis(poll.saturating_sub(now)));
                lines.push(line.with("drain", number).with("first-poll-in", delay));
            }
            Answer::ListenersDrain => lines.push(
                Line::info("Envoy's listeners drain, which nothing but its restart takes back")
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
                        Line::info("Envoy answers").with("state", health).with("open", poll.open),
                    );
                    self.blind(poll.visible, lines);
                }
            }
            Answer::PutBack => lines.push(Line::warn(
                "Envoy was out of service though no drain goes on, left so by an earlier life of \
                 this sidecar: put back in service",
            )),
            // Told when it is done.
            Answer::Seen(Health::Draining) if before.puts_back => {}
            Answer::Seen(Health::Draining) if number > 0 => lines.push(Line::warn(
                "Envoy is still out of service; a restart of this sidecar puts it back, and so \
                 does POST /healthcheck/ok on its admin interface",
            )),
            Answer::Seen(Health::Draining) => lines.push(Line::warn(
                "Envoy is out of service though no drain goes on, and is left so; POST \
                 /healthcheck/ok on its admin interface puts it back",
            )),
            Answer::Seen(_) => {}
        }
        let gave_up_looking = before.looks && !after.outline().looks && !before.polls;
        if gave_up_looking && number == 0 {
            lines.push(Line::warn(
                "Envoy was not seen in service; that is looked for no more, and a drain will try \
                 again. Is --admin-address right?",
            ));
        }
    }

    fn fault(&mut self, before: Outline, fault: &Fault, after: &Machine, lines: &mut Vec<Line>) {
        if self.error.as_ref() == Some(fault) {
            self.repeats += 1;
            return;
        }
        let mut line = match after.drain() {
            Some(_) => Line::warn("Envoy did not answer as it should; trying again")
                .with("drain", after.number()),
            None if before.polls => {
                Line::warn("Envoy's open connections cannot be counted, so no drain would end")
            }
            None => Line::info("Envoy does not answer yet"),
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

    fn polled(&mut self, before: Outline, poll: &Poll, after: &Machine, lines: &mut Vec<Line>) {
        let number = after.number();
        if before.phase != Phase::Failing && after.phase() == Phase::Failing {
            lines.push(reverted(poll.health, number));
        }
        self.blind(poll.visible, lines);
        if self.open.replace(poll.open) != Some(poll.open) {
            let threshold = after.drain().map(|drain| drain.options().min_open_connections);
            lines.push(
                Line::info("open connections")
                    .with("drain", number)
                    .with("open", poll.open)
                    .with("threshold", threshold.unwrap_or_default()),
            );
        }
    }

    /// Says once what cannot be seen.
    fn blind(&mut self, visible: Visible, lines: &mut Vec<Line>) {
        if std::mem::replace(&mut self.visible, visible) != visible
            && let Some(text) = visible.explain()
        {
            lines.push(Line::warn(text));
        }
    }

    fn finished(&self, after: &Machine, lines: &mut Vec<Line>) {
        let Some(ended) = after.last() else { return };
        let explained = ended.outcome.explain();
        let line =
            if ended.outcome.gave_up() { Line::warn(explained) } else { Line::info(explained) };
        let mut line = line
            .with("drain", ended.number)
            .with("outcome", ended.outcome.name())
            .with("took", duration::format(to_millis(ended.took)))
            .with("threshold", ended.threshold);
        if self.visible == Visible::HttpOnly {
            line = line.with("not-counted", "connections that are not HTTP");
        }
        lines.push(line);
    }

    fn remind(&mut self, machine: &Machine, now: Time) -> Line {
        let mut line = Line::info("still waiting")
            .with("drain", machine.number())
            .with("phase", machine.phase().name());
        if let Some(drain) = machine.drain() {
            if let Some(poll) = drain.last_poll() {
                line = line.with("open", poll.open);
            }
            line = line
                .with("threshold", drain.options().min_open_connections)
                .with("elapsed", duration::format(to_millis(now.saturating_sub(drain.started()))));
        }
        if let Some(fault) = &self.error {
            line = line.with("error", fault.text.as_str()).with("repeated", self.repeats);
        }
        line
    }
}

/// Whether this looks like the end of a pod, of which the sidecar itself is not told.
fn envoys_hook(drain: &Drain, number: u64) -> Option<Line> {
    let line = if drain.envoy_hook() {
        Line::info("Envoy's own hook waits too: the pod is being deleted")
    } else if drain.options().require_envoy_hook {
        // Told as the outcome.
        return None;
    } else {
        Line::warn(
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

/// What Envoy's own hook is told when it is let go.
pub const NO_DRAIN: &str = "no drain has begun within the start timeout\n";

/// Envoy's own hook has waited for the start timeout, and no drain has begun.
#[must_use]
pub fn let_go(waiters: u64) -> Line {
    Line::warn(
        "no drain has begun within the start timeout of a request for /shutdown, which is let go: \
         only Envoy is being restarted, or the sidecar has no preStop hook",
    )
    .with("requests", waiters)
}

/// What Envoy's own hook is told when it has waited for the ready timeout.
pub const NOT_READY: &str = "the drain has not ended within the ready timeout\n";

/// Envoy's own hook has waited for the ready timeout.
#[must_use]
pub fn too_long(waiters: u64) -> Line {
    Line::warn(
        "a request for /shutdown has waited for the ready timeout and is let go: Kubernetes may \
         end Envoy before the drain does",
    )
    .with("requests", waiters)
}

fn reverted(health: Health, number: u64) -> Line {
    let text = match health {
        Health::Starting => {
            "Envoy has restarted: failing its health checks again, and the check delay begins anew"
        }
        Health::Live | Health::Draining => {
            "Envoy is LIVE again, restarted or put back by somebody: failing its health checks \
             again, and the check delay begins anew"
        }
    };
    Line::warn(text).with("drain", number)
}

/// Nobody reads the nanoseconds of a drain.
fn to_millis(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
