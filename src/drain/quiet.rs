//! What has come in a delay, and since when nothing has.

use std::time::Duration;

use super::accepted::rate;
use crate::envoy::Arrivals;
use crate::labels;
use crate::os::clock::Timestamp;

/// Gaps between arrivals that are compared: fewer say nothing.
const RECENT: usize = 4;

/// Health checks do not come more often than this, all checkers together; clients may.
const MIN_CHECK_GAP: Duration = Duration::from_millis(500);

labels! {
    /// What can end early.
    pub enum Delay {
        /// `--drain-delay`, and `--health-check-failure-delay` behind it.
        DrainDelay = "drain_delay",
        /// `--check-delay`, and what is left of `--min-drain-duration`.
        CheckDelay = "check_delay",
    }
}

/// What has come in a delay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuietPeriod {
    /// When the delay began.
    pub began: Timestamp,
    /// Envoy's counters as last seen, and since when they stand still.
    seen: Option<Arrivals>,
    pub since: Option<Timestamp>,
    /// New connections and requests in this delay, and when the latest of these connections were
    /// noticed.
    pub new: u64,
    pub new_requests: u64,
    pub noticed: Option<Timestamp>,
    /// The time for each new connection, between two counts that noticed some: the latest of these. A
    /// balancer's health checks go on after all else has stopped.
    gaps: [Option<Duration>; RECENT],
    /// How often the period began again because a count was not to be had, or Envoy was starting.
    pub restarts: u32,
}

impl QuietPeriod {
    pub fn new(began: Timestamp) -> Self {
        let (seen, since, noticed, gaps) = (None, None, None, [None; RECENT]);
        Self { began, seen, since, new: 0, new_requests: 0, noticed, gaps, restarts: 0 }
    }

    /// A count was not to be had, or Envoy has restarted: what came meanwhile is unknown.
    pub fn restart(&mut self) {
        (self.seen, self.since) = (None, None);
        self.restarts += 1;
    }

    pub(super) fn counted(&mut self, arrivals: Arrivals, now: Timestamp) {
        let Some(before) = self.seen.replace(arrivals) else {
            self.since = Some(now);
            return;
        };
        if before != arrivals {
            self.since = Some(now);
        }
        // An Envoy that has restarted counts anew.
        let requests = arrivals.requests.zip(before.requests);
        let new = requests.map_or(0, |(now, before)| now.saturating_sub(before));
        self.new_requests = self.new_requests.saturating_add(new);
        let new = arrivals.connections.saturating_sub(before.connections);
        if new == 0 {
            return;
        }
        self.new = self.new.saturating_add(new);
        if let Some(last) = self.noticed.replace(now) {
            let gap = (now - last) / u32::try_from(new).unwrap_or(u32::MAX);
            self.gaps.rotate_left(1);
            self.gaps[RECENT - 1] = Some(gap);
        }
    }

    /// Whether new connections come as regularly as a balancer's health checks, as far as counts that
    /// are `interval` apart can tell.
    pub fn looks_like_checks(&self, interval: Duration) -> bool {
        let (least, most) = (self.gaps.iter().min(), self.gaps.iter().max());
        let both = least.copied().flatten().zip(most.copied().flatten());
        both.is_some_and(|(least, most)| {
            // Each is noticed up to one interval late, so that two gaps differ by up to two.
            let tolerance = (2 * interval + interval / 4).min(most / 2);
            least >= MIN_CHECK_GAP && most - least <= tolerance
        })
    }

    /// New connections in 1000 s.
    pub fn rate(&self, now: Timestamp) -> Option<u64> {
        rate(self.new, now - self.began)
    }

    /// How long no new connection had come when that was last asked for.
    pub(super) fn stood_still(&self, asked: Timestamp) -> Option<Duration> {
        self.since.map(|since| asked - since)
    }
}
