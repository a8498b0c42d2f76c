//! An Envoy of the simulation, and how it responds.

use std::time::Duration;

use super::Random;
use crate::cli::options::WaitFor;
use crate::envoy::error::{AdminError, AdminErrorKind};
use crate::envoy::{Arrivals, Call, CallResult, Health, HiddenStats, Poll, Reply, ServerTotal};
use crate::os::clock::Timestamp;

/// Envoy refreshes its second count this often.
const FLUSH: Duration = Duration::from_secs(5);

/// How Envoy responds at the moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mood {
    Well,
    /// Responds, but with something else.
    Odd,
    Hangs,
    Refuses,
}

#[derive(Debug)]
pub struct Envoy {
    /// Nothing ever listens at its address.
    pub absent: bool,
    pub mood: Mood,
    /// Health checks are failed.
    pub failed: bool,
    pub starting_until: Timestamp,
    /// Connections that its gauges show: those in use, and idle HTTP connections; and those of a listener
    /// that has none.
    pub open: u64,
    pub idle: u64,
    pub hidden_open: u64,
    pub hides: bool,
    pub shows_total: bool,
    /// `/listeners` is forbidden, so what is hidden stays unknown.
    forbids_listing: bool,
    /// Scrapes come and go, so that a poll may lie, but never four in a row, unless what scrapes is hidden
    /// and that stays unknown.
    scraped: bool,
    lies: u32,
    /// Whether the latest poll did not lie of what is open, and of what is in use.
    honest_open: bool,
    honest_in_use: bool,
    pub total: ServerTotal,
    /// New connections so far, as its counter shows them, and when the latest came; some that a listener
    /// hides among them.
    pub arrived: u64,
    pub arrived_at: Option<Timestamp>,
    hides_arrivals: bool,
    /// Something has responded here.
    pub responded: bool,
}

impl Envoy {
    pub fn new(random: &mut Random) -> Self {
        let hides = random.one_in(6);
        Self {
            absent: random.one_in(8),
            mood: Mood::Well,
            failed: random.one_in(3),
            starting_until: Timestamp::ZERO,
            open: random.below(4),
            idle: random.pick(&[0, 0, 2]),
            hidden_open: 0,
            hides,
            shows_total: !random.one_in(6),
            forbids_listing: random.one_in(8),
            scraped: random.one_in(3),
            lies: 0,
            honest_open: true,
            honest_in_use: true,
            total: ServerTotal { connections: 0, uptime: 0 },
            arrived: random.below(3),
            arrived_at: None,
            hides_arrivals: random.one_in(8),
            responded: false,
        }
    }

    /// Before anything changes: the flush at the latest multiple of its interval.
    pub fn flush(&mut self, now: Timestamp) {
        let uptime = now.since_boot().as_secs() / FLUSH.as_secs() * FLUSH.as_secs();
        if uptime > self.total.uptime {
            self.total =
                ServerTotal { connections: self.open + self.idle + self.hidden_open, uptime };
        }
    }

    /// Something outside happens to it.
    pub fn change(&mut self, random: &mut Random, now: Timestamp) {
        self.flush(now);
        match random.below(8) {
            0 => self.mood = random.pick(&[Mood::Odd, Mood::Hangs, Mood::Refuses]),
            1 => {
                self.failed = false;
                self.starting_until = now + random.millis(4_000);
                (self.open, self.idle, self.hidden_open) = (0, 0, 0);
                // Not a count that it had before: the delay would end then, and the poll behind it finds
                // Envoy LIVE.
                (self.arrived, self.arrived_at) = (random.next() >> 8, None);
            }
            2 => self.failed = false,
            _ => self.mood = Mood::Well,
        }
        let least = if self.failed { 0 } else { self.open.saturating_sub(1) };
        self.open = least + random.below(3);
        self.idle = random.pick(&[self.idle, self.idle, 0, 1]);
        if self.open > least && random.one_in(2) {
            self.arrived += 1;
            self.arrived_at = Some(now);
        }
        if self.hides {
            self.hidden_open = random.pick(&[0, 0, 1]);
            if self.hidden_open > 0 {
                self.arrived_at = Some(now);
            }
        }
    }

    /// From now on it is well, and no client is connected.
    pub fn settle(&mut self, now: Timestamp) {
        self.flush(now);
        self.mood = Mood::Well;
        (self.open, self.idle, self.hidden_open) = (0, 0, 0);
    }

    /// What really holds a drain that waits for these.
    pub fn holding(&self, wait_for: WaitFor) -> u64 {
        match wait_for {
            WaitFor::Connections => self.open + self.idle,
            WaitFor::Requests => self.open,
        }
    }

    /// The same of the latest poll, unless that lied.
    pub fn honest(&self, wait_for: WaitFor) -> Option<u64> {
        let is_honest = match wait_for {
            WaitFor::Connections => self.honest_open,
            WaitFor::Requests => self.honest_in_use,
        };
        is_honest.then(|| self.holding(wait_for))
    }

    pub fn call(&mut self, call: Call, random: &mut Random, now: Timestamp) -> CallResult {
        let error = |kind| Err(AdminError { kind, text: String::new() });
        let kinds = [AdminErrorKind::Status, AdminErrorKind::Protocol, AdminErrorKind::Content];
        let result = match self.mood {
            _ if self.absent => error(AdminErrorKind::Refused),
            Mood::Hangs => error(AdminErrorKind::Timeout),
            Mood::Refuses => error(AdminErrorKind::Refused),
            Mood::Odd => error(random.pick(&kinds)),
            Mood::Well if call == Call::CheckListeners && self.forbids_listing => {
                error(AdminErrorKind::Status)
            }
            Mood::Well => Ok(self.reply(call, random, now)),
        };
        self.responded |= result.as_ref().map_or_else(AdminError::is_response, |_| true);
        result
    }

    fn reply(&mut self, call: Call, random: &mut Random, now: Timestamp) -> Reply {
        let starting = now < self.starting_until;
        match call {
            Call::FailHealthChecks => {
                self.failed = true;
                Reply::HealthChecksFailed
            }
            Call::DrainListeners => Reply::ListenersDraining,
            Call::RestoreHealthChecks => {
                self.failed = false;
                Reply::HealthChecksRestored
            }
            Call::CheckReady | Call::ShowState if starting => Reply::Ready(Health::Starting),
            Call::CheckReady | Call::ShowState => Reply::Ready(self.health()),
            Call::CheckListeners if starting => Reply::Ready(Health::Starting),
            Call::CheckListeners => {
                let names = vec!["web".to_owned(); usize::from(self.hides)];
                Reply::Listeners(HiddenStats {
                    listeners: names,
                    certain: true,
                    uncounted: Vec::new(),
                    ..HiddenStats::default()
                })
            }
            Call::ReadStats => Reply::Stats(self.poll(random, now)),
            Call::ReadAccepted => {
                let arrived = Arrivals { connections: self.arrived, requests: None };
                Reply::Accepted(Some(arrived).filter(|_| !self.hides_arrivals))
            }
        }
    }

    fn health(&self) -> Health {
        if self.failed { Health::Draining } else { Health::Live }
    }

    fn poll(&mut self, random: &mut Random, now: Timestamp) -> Poll {
        self.flush(now);
        let subtracted = self.scraped && !random.one_in(3);
        let may_lie = self.lies < 3 || self.forbids_listing;
        self.honest_open = !(subtracted && may_lie && random.one_in(3));
        // Other connections show in the difference to those of HTTP alone.
        let http_closes = self.idle > 0 && may_lie && random.one_in(3);
        self.honest_in_use = self.honest_open && !http_closes;
        self.lies = if self.honest_in_use { 0 } else { self.lies + 1 };
        let open = self.idle + if self.honest_open { self.open } else { 0 };
        let in_use = if self.honest_in_use { self.open } else { 0 };
        let total = Some(self.total).filter(|_| self.shows_total);
        let unsubtracted = self.idle + self.open;
        let mut poll =
            Poll { in_use, unsubtracted, subtracted, total, ..Poll::of(open, self.health()) };
        poll.breakdown.kinds.http = self.idle;
        poll
    }
}
