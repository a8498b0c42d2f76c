//! Hints for an operator, once each in a drain: what holds it, where the polls alone can tell.

use std::time::Duration;

use super::json::Value;
use super::log::Record;
use super::messages;
use super::status::whole;
use crate::cli::options::WaitFor;
use crate::drain::Drain;
use crate::envoy::Poll;
use crate::os::clock::Timestamp;

/// What stands unchanged for this long holds the drain.
const STEADY: Duration = Duration::from_secs(15);

/// What the names of listeners and HTTP stat prefixes have in them that serve probes and scrapes.
const PROBES: [&str; 7] = ["health", "ready", "metric", "prometheus", "stats", "probe", "monitor"];

/// What of a drain has been hinted at, and since when it stands unchanged.
#[derive(Debug, Default)]
pub struct Hints {
    open: u64,
    steady_since: Option<Timestamp>,
    /// Since when no poll has found a request in flight.
    idle_since: Option<Timestamp>,
    idle_hinted: bool,
    probes_hinted: bool,
    slow_hinted: bool,
    pressure_hinted: bool,
}

impl Hints {
    /// A poll that waits for connections, and took this long.
    pub fn polled(&mut self, poll: &Poll, drain: &Drain, now: Timestamp) -> Vec<Record> {
        let mut records = Vec::new();
        let interval = drain.options.check_interval;
        let took = drain.poll_took;
        if took * 10 > interval && !std::mem::replace(&mut self.slow_hinted, true) {
            records.push(
                Record::info(messages::HINT_SLOW_POLL)
                    .with("took", whole(took))
                    .with("check_interval", whole(interval)),
            );
        }
        let all = &poll.breakdown;
        if drain.holding(poll) <= drain.options.min_open_connections {
            (self.steady_since, self.idle_since) = (None, None);
            return records;
        }
        let path = drain.options.injected_resource.as_ref();
        let was_read = all.pressure.is_some_and(|percent| percent > 0);
        if let Some(path) = path.filter(|_| !was_read && drain.pressure_was_due(now))
            && !std::mem::replace(&mut self.pressure_hinted, true)
        {
            let path = path.display().to_string();
            records.push(Record::warn(messages::HINT_PRESSURE_NOT_READ).with("path", path));
        }
        let is_same = std::mem::replace(&mut self.open, poll.open) == poll.open;
        self.steady_since = self.steady_since.filter(|_| is_same).or(Some(now));
        let is_idle = all.requests == Some(0) && all.kinds.http > 0;
        self.idle_since = self.idle_since.filter(|_| is_idle).or(is_idle.then_some(now));
        let stands = |since: Option<Timestamp>| since.is_some_and(|since| now >= since + STEADY);
        if !stands(self.steady_since) {
            return records;
        }
        let holds = drain.options.wait_for == WaitFor::Connections;
        if holds && stands(self.idle_since) && !std::mem::replace(&mut self.idle_hinted, true) {
            let message = if path.is_some() && was_read {
                messages::HINT_IDLE_UNDER_PRESSURE
            } else {
                messages::HINT_IDLE_CONNECTIONS
            };
            records.push(Record::info(message).with("idle", all.kinds.http));
        }
        let names = all.listeners.named.iter().chain(&all.prefixes.named);
        let probes = names.map(|(name, _)| name).find(|name| {
            let name = name.to_ascii_lowercase();
            PROBES.iter().any(|word| name.contains(word))
        });
        if let Some(name) = probes
            && !std::mem::replace(&mut self.probes_hinted, true)
        {
            let option = Value::Text(format!("--exclude={name}"));
            records.push(Record::info(messages::HINT_PROBES).with("option", option));
        }
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::options::{Options, Overrides};
    use crate::drain::{Event, Machine};
    use crate::envoy::stats::Kinds;
    use crate::envoy::{Call, Health, Reply};

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_boot(Duration::from_secs(seconds))
    }

    fn drain(took: Duration) -> Drain {
        let own = Options::default();
        let mut machine = Machine::new(own.clone(), &Overrides::default(), true, at(0));
        machine.start(own, at(0));
        let mut drain = machine.drain().expect("a drain").clone();
        drain.poll_took = took;
        drain
    }

    fn poll(open: u64, requests: Option<u64>, prefix: &str) -> Poll {
        let mut poll = Poll::of(open, Health::Draining);
        poll.breakdown.kinds = Kinds { http: open, ..Kinds::default() };
        poll.breakdown.requests = requests;
        poll.breakdown.prefixes.add(prefix.as_bytes(), open);
        poll
    }

    #[test]
    fn a_pressure_that_envoy_does_not_read_is_hinted_at_once_and_not_before_it_can_have() {
        for (path, pressure, expected) in [
            (Some("/admin/drain"), None, vec![20]),
            (Some("/admin/drain"), Some(0), vec![20]),
            (Some("/admin/drain"), Some(1), vec![]),
            (None, None, vec![]),
        ] {
            let own = Options { injected_resource: path.map(Into::into), ..Options::default() };
            let mut machine = Machine::new(own.clone(), &Overrides::default(), true, at(0));
            machine.start(own, at(0));
            machine.step(&Event::Tick, at(10));
            let failed = Event::Reply {
                drain: 1,
                call: Call::FailHealthChecks,
                result: Ok(Reply::HealthChecksFailed),
            };
            machine.step(&failed, at(10));
            let drain = machine.drain().expect("a drain");
            let mut poll = poll(1, Some(1), "web");
            poll.breakdown.pressure = pressure;
            let mut hints = Hints::default();
            let found = (15..40).filter(|second| {
                let records = hints.polled(&poll, drain, at(*second));
                records.iter().any(|record| record.message == messages::HINT_PRESSURE_NOT_READ)
            });
            assert_eq!(found.collect::<Vec<_>>(), expected, "{path:?}, {pressure:?}");
        }
    }

    #[test]
    fn idle_connections_are_hinted_at_by_what_the_drain_does_about_them() {
        for (wait_for, path, pressure, expected) in [
            (WaitFor::Connections, None, None, Some(messages::HINT_IDLE_CONNECTIONS)),
            (WaitFor::Connections, Some("/r"), Some(0), Some(messages::HINT_IDLE_CONNECTIONS)),
            (WaitFor::Connections, Some("/r"), Some(9), Some(messages::HINT_IDLE_UNDER_PRESSURE)),
            (WaitFor::Requests, None, None, None),
        ] {
            let injected_resource = path.map(Into::into);
            let own = Options { wait_for, injected_resource, ..Options::default() };
            let mut machine = Machine::new(own.clone(), &Overrides::default(), true, at(0));
            machine.start(own, at(0));
            let drain = machine.drain().expect("a drain");
            let (mut hints, mut found) = (Hints::default(), Vec::new());
            for second in 0..40 {
                let mut poll = poll(2, Some(0), "web");
                poll.breakdown.pressure = pressure;
                let records = hints.polled(&poll, drain, at(second)).into_iter();
                found.extend(records.map(|record| record.message));
            }
            assert_eq!(
                found,
                expected.into_iter().collect::<Vec<_>>(),
                "{wait_for:?} {pressure:?}"
            );
        }
    }

    /// The messages of polls a second apart.
    fn hints(polls: impl IntoIterator<Item = Poll>) -> Vec<(u64, &'static str)> {
        let (mut hints, drain) = (Hints::default(), drain(Duration::from_millis(3)));
        let records = polls.into_iter().zip(100..).flat_map(|(poll, second)| {
            let records = hints.polled(&poll, &drain, at(second));
            records.into_iter().map(move |record| (second - 100, record.message))
        });
        records.collect()
    }

    #[test]
    fn connections_without_a_request_for_fifteen_seconds_are_said_to_be_idle_once() {
        let idle = || poll(2, Some(0), "web");
        let found = hints((0..60).map(|_| idle()));
        assert_eq!(found, [(15, messages::HINT_IDLE_CONNECTIONS)]);
        let one_request = (0..25).map(|second| poll(2, Some(u64::from(second == 10)), "web"));
        assert_eq!(hints(one_request), [], "a request was in flight 10 s ago");
        let falling = (0..40).map(|second| poll(100 - second, Some(0), "web"));
        assert_eq!(hints(falling), [], "they do end");
        assert_eq!(hints((0..40).map(|_| poll(2, None, "web"))), [], "Envoy hides its requests");
        assert_eq!(hints((0..40).map(|_| poll(0, Some(0), "web"))), [], "none holds the drain");
    }

    #[test]
    fn a_prefix_of_probes_that_holds_the_drain_is_named_with_the_option() {
        let (mut hints, drain) = (Hints::default(), drain(Duration::ZERO));
        let mut found = Vec::new();
        for second in 0..40 {
            let poll = poll(1, Some(1), "My-Metrics_listener");
            found.extend(hints.polled(&poll, &drain, at(second)));
        }
        let [record] = &found[..] else { panic!("{found:?}") };
        assert_eq!(record.message, messages::HINT_PROBES);
        let option = Value::Text("--exclude=My-Metrics_listener".to_owned());
        assert_eq!(record.fields, [("option", option)]);
    }

    #[test]
    fn a_poll_of_more_than_a_tenth_of_its_interval_is_said_to_be_slow_once() {
        for (millis, times) in [(500, 0), (501, 1)] {
            let (mut hints, drain) = (Hints::default(), drain(Duration::from_millis(millis)));
            let polls =
                (0..5).map(|second| hints.polled(&poll(0, Some(0), "web"), &drain, at(second)));
            let found: Vec<_> = polls.flatten().collect();
            assert_eq!(found.len(), times, "{millis} ms: {found:?}");
            assert!(found.iter().all(|record| record.message == messages::HINT_SLOW_POLL));
        }
    }
}
