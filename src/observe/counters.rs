//! What status and metrics keep of what has happened since the sidecar's start.

use std::time::Duration;

use crate::drain::{DrainEvent, OutcomeKind};
use crate::envoy::error::AdminErrorKind;
use crate::envoy::stats::StatsCoverage;
use crate::envoy::{Call, CallResult, Health, HiddenStats, Reply};
use crate::labels;
use crate::os::clock::Timestamp;
use crate::route::{PublicRoute, Status};

labels! {
    /// Envoy's state, as last seen.
    #[derive(Default)]
    pub enum EnvoyState {
        Live = "live",
        /// Its health checks are failed.
        Draining = "draining",
        Starting = "starting",
        NotResponding = "not_responding",
        /// It has not responded since the sidecar's start.
        #[default]
        NeverSeen = "never_seen",
    }
}

impl From<Health> for EnvoyState {
    fn from(health: Health) -> Self {
        match health {
            Health::Live => Self::Live,
            Health::Draining => Self::Draining,
            Health::Starting => Self::Starting,
        }
    }
}

/// Upper bounds of the buckets of poll durations: in seconds, as the metric has them, and in
/// milliseconds.
pub const POLL_BUCKETS: [(&str, u64); 4] =
    [("0.01", 10), ("0.1", 100), ("1", 1_000), ("10", 10_000)];

/// How long polls have taken, failed ones included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PollDurations {
    /// By bucket; the last is for longer ones.
    pub counts: [u64; POLL_BUCKETS.len() + 1],
    pub sum: Duration,
}

impl PollDurations {
    fn add(&mut self, took: Duration) {
        let fits = |(_, bound): &(&str, u64)| took <= Duration::from_millis(*bound);
        let bucket = POLL_BUCKETS.iter().position(fits).unwrap_or(POLL_BUCKETS.len());
        self.counts[bucket] += 1;
        self.sum += took;
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Polls of Envoy's stats, failed ones included.
    pub polls: u64,
    /// Failed polls, by [`AdminErrorKind`].
    pub poll_errors: [u64; AdminErrorKind::ALL.len()],
    /// Ended drains, by [`OutcomeKind`].
    pub drains: [u64; OutcomeKind::ALL.len()],
    /// Responses of the public port, by [`PublicRoute`] (the last row is for no route) and
    /// [`Status`].
    pub requests: [[u64; Status::ALL.len()]; PublicRoute::ALL.len() + 1],
    /// Connections to the public port that were evicted or not served, for want of a slot.
    pub connections_rejected: u64,
    /// The call to Envoy that failed last, until it succeeds.
    pub error: Option<CallError>,
    /// Envoy's state, and when it was seen; none before the first reply to a call.
    pub envoy: EnvoyState,
    pub envoy_seen: Option<Timestamp>,
    pub poll_durations: PollDurations,
    /// The length of the latest poll, in bytes.
    pub poll_bytes: Option<u64>,
    /// New connections that Envoy has accepted in drains, and when the latest were noticed.
    pub new_connections: u64,
    pub new_noticed: Option<Timestamp>,
    /// What the latest poll could count.
    pub coverage: StatsCoverage,
    /// What the latest comparison of listeners and gauges has shown.
    pub hidden: HiddenStats,
}

/// A call to Envoy that has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    pub call: Call,
    pub text: String,
    /// How often in a row.
    pub times: u64,
    /// When it failed last.
    pub at: Timestamp,
}

impl Counters {
    /// The reply to a call that took this long, whichever drain it was made for.
    pub fn replied(&mut self, call: Call, result: &CallResult, took: Duration, now: Timestamp) {
        if call == Call::ReadStats {
            self.poll_durations.add(took);
        }
        self.envoy = match result {
            Ok(Reply::HealthChecksFailed) => EnvoyState::Draining,
            Ok(Reply::HealthChecksRestored) => EnvoyState::Live,
            Ok(Reply::Ready(health)) => (*health).into(),
            Ok(Reply::Stats(poll)) => {
                self.poll_bytes = Some(poll.breakdown.bytes);
                poll.health.into()
            }
            // They do not show it.
            Ok(Reply::ListenersDraining | Reply::Listeners(_) | Reply::Accepted(_)) => return,
            Err(_) if call.is_optional() && call != Call::ShowState => return,
            Err(_) if self.envoy == EnvoyState::NeverSeen => EnvoyState::NeverSeen,
            Err(_) => EnvoyState::NotResponding,
        };
        self.envoy_seen = Some(now);
    }

    pub fn record(&mut self, event: &DrainEvent, now: Timestamp) {
        match event {
            DrainEvent::CallSucceeded(call) => {
                self.error.take_if(|error| call.ends_error_of(error.call));
                self.polls += u64::from(*call == Call::ReadStats);
            }
            DrainEvent::CallFailed { call, error } if call.is_optional() && !error.is_refusal() => {
            }
            DrainEvent::CallFailed { call, error } => {
                // Any call may be the one that finds Envoy gone, and any that succeeds finds it back.
                let call = if call.is_optional() { Call::CheckReady } else { *call };
                // What a check meets says less than what the drain waits for.
                let known = self.error.as_ref();
                if call != Call::CheckReady || known.is_none_or(|known| known.call == call) {
                    let times = known.filter(|known| known.call == call).map_or(0, |e| e.times);
                    let text = error.text.clone();
                    self.error = Some(CallError { call, text, times: times + 1, at: now });
                }
                if call == Call::ReadStats {
                    self.polls += 1;
                    self.poll_errors[error.kind as usize] += 1;
                }
            }
            DrainEvent::NewConnections(new) => {
                self.new_connections = self.new_connections.saturating_add(*new);
                self.new_noticed = Some(now);
            }
            DrainEvent::Polled(poll) | DrainEvent::StartupCheckPassed(poll) => {
                self.coverage = poll.coverage;
            }
            DrainEvent::ListenersCompared(hidden) => self.hidden = hidden.clone(),
            DrainEvent::Ended(ended) => self.drains[ended.outcome.kind as usize] += 1,
            _ => {}
        }
    }

    /// Why a call to Envoy failed, if none has succeeded since.
    pub fn last_error(&self) -> Option<&str> {
        self.error.as_ref().map(|error| error.text.as_str())
    }

    /// Counts `times` responses of the public port; `route`: to what, where that could be known.
    pub fn count_responses(&mut self, route: Option<PublicRoute>, status: Status, times: u64) {
        let row = route.map_or(PublicRoute::ALL.len(), |route| route as usize);
        self.requests[row][status as usize] += times;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::error::AdminError;

    const NOW: Timestamp = Timestamp::ZERO;

    #[test]
    fn a_refusal_is_shown_whichever_call_meets_it_until_one_succeeds() {
        for call in [Call::CheckListeners, Call::CheckReady] {
            for ends in [Call::CheckListeners, Call::CheckReady, Call::ReadStats] {
                let mut counters = Counters::default();
                let failed = |kind| {
                    let error = AdminError { kind, text: "why".to_owned() };
                    DrainEvent::CallFailed { call, error }
                };
                counters.record(&failed(AdminErrorKind::Refused), NOW);
                assert_eq!(counters.last_error(), Some("why"));
                counters.record(&DrainEvent::CallSucceeded(ends), NOW);
                assert_eq!(counters.last_error(), None);
            }
        }
    }

    #[test]
    fn an_error_has_its_age_and_how_often_it_came_in_a_row() {
        let mut counters = Counters::default();
        let failed = |call| {
            let error = AdminError { kind: AdminErrorKind::Timeout, text: "why".to_owned() };
            DrainEvent::CallFailed { call, error }
        };
        let at = |seconds| NOW + Duration::from_secs(seconds);
        for second in 1..=3 {
            counters.record(&failed(Call::ReadStats), at(second));
        }
        counters.record(&failed(Call::CheckReady), at(4));
        let error = counters.error.clone().expect("the polls'");
        assert_eq!((error.call, error.times, error.at), (Call::ReadStats, 3, at(3)));
        counters.record(&failed(Call::FailHealthChecks), at(5));
        assert_eq!(counters.error.map(|error| (error.times, error.at)), Some((1, at(5))));
    }

    #[test]
    fn each_reply_shows_envoys_state_or_leaves_it() {
        let mut counters = Counters::default();
        let error = |kind| Err(AdminError { kind, text: String::new() });
        let at = |seconds| NOW + Duration::from_secs(seconds);
        let poll = crate::envoy::Poll::of(1, Health::Live);
        for (call, result, state) in [
            (Call::CheckReady, error(AdminErrorKind::Refused), EnvoyState::NeverSeen),
            (Call::CheckReady, Ok(Reply::Ready(Health::Starting)), EnvoyState::Starting),
            (Call::ReadStats, Ok(Reply::Stats(poll)), EnvoyState::Live),
            (Call::FailHealthChecks, Ok(Reply::HealthChecksFailed), EnvoyState::Draining),
            (Call::ReadStats, error(AdminErrorKind::Timeout), EnvoyState::NotResponding),
            (Call::RestoreHealthChecks, Ok(Reply::HealthChecksRestored), EnvoyState::Live),
        ] {
            let seconds = counters.envoy_seen.map_or(1, |seen| (seen - NOW).as_secs() + 1);
            counters.replied(call, &result, Duration::ZERO, at(seconds));
            assert_eq!((counters.envoy, counters.envoy_seen), (state, Some(at(seconds))));
        }
        let seen = counters.envoy_seen;
        for (call, result) in [
            (Call::ReadAccepted, Ok(Reply::Accepted(None))),
            (Call::ReadAccepted, error(AdminErrorKind::Timeout)),
            (Call::CheckListeners, error(AdminErrorKind::Content)),
        ] {
            counters.replied(call, &result, Duration::ZERO, at(100));
            assert_eq!((counters.envoy, counters.envoy_seen), (EnvoyState::Live, seen), "{call:?}");
        }
    }

    #[test]
    fn new_connections_are_counted_over_all_drains_with_the_time_of_the_latest() {
        let mut counters = Counters::default();
        for (new, seconds) in [(3, 1), (4, 5)] {
            let at = NOW + Duration::from_secs(seconds);
            counters.record(&DrainEvent::NewConnections(new), at);
            assert_eq!(counters.new_noticed, Some(at));
        }
        assert_eq!(counters.new_connections, 7);
    }

    #[test]
    fn a_poll_is_in_the_bucket_of_its_duration() {
        let mut durations = PollDurations::default();
        for millis in [0, 10, 11, 100, 101, 10_000, 10_001] {
            durations.add(Duration::from_millis(millis));
        }
        assert_eq!(durations.counts, [2, 2, 1, 1, 1]);
        assert_eq!(durations.sum, Duration::from_millis(20_223));
    }

    #[test]
    fn what_the_startup_check_can_count_is_shown_before_any_drain() {
        use crate::envoy::{Health, Poll};
        let mut counters = Counters::default();
        let coverage = StatsCoverage::HttpOnly;
        let poll = Poll { coverage, ..Poll::of(0, Health::Live) };
        counters.record(&DrainEvent::StartupCheckPassed(poll), NOW);
        assert_eq!(counters.coverage, coverage, "the status says that everything can be counted");
    }

    #[test]
    fn an_error_of_a_check_does_not_hide_what_the_drain_waits_for() {
        let mut counters = Counters::default();
        let failed = |call, text: &str| {
            let error = AdminError { kind: AdminErrorKind::Timeout, text: text.to_owned() };
            DrainEvent::CallFailed { call, error }
        };
        counters.record(&failed(Call::CheckReady, "an earlier check"), NOW);
        counters.record(&failed(Call::ReadStats, "a poll"), NOW);
        counters.record(&failed(Call::CheckReady, "a check"), NOW);
        assert_eq!(counters.last_error(), Some("a poll"));
        counters.record(&DrainEvent::CallSucceeded(Call::CheckReady), NOW);
        assert_eq!(counters.last_error(), Some("a poll"), "polls still fail");
        counters.record(&failed(Call::FailHealthChecks, "another"), NOW);
        assert_eq!(counters.last_error(), Some("another"), "the latest that is no check");
    }
}
