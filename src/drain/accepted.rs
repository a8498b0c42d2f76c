//! New connections that Envoy has accepted in a drain: while there are some, a balancer or a client
//! still sends to it. This is shown, and ends no drain; [`super::delays`] has what may end a delay.

use std::time::Duration;

use crate::os::clock::Timestamp;

/// The call costs Envoy as much as a poll. One that takes longer than this comes with every twelfth
/// poll, so that the polls of a drain cost a tenth more at most.
const CHEAP: Duration = Duration::from_millis(10);
const EXPENSIVE_EVERY: u32 = 12;

/// An Envoy whose polls take longer than this is left in peace.
const TOO_SLOW: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// When they are to be counted.
    pub(super) due: Option<Timestamp>,
    /// Envoy's count of all since its start, as last seen.
    total: Option<u64>,
    /// Polls to come without another count; `u32::MAX`: all of them, since Envoy does not show it.
    polls_between: u32,
    /// The next count is the first of those below.
    starts_over: bool,
    /// How many have come since the drain's first count; once health checks were failed, since then.
    pub new: u64,
    /// When the latest of these was noticed: it came since the count before.
    pub noticed: Option<Timestamp>,
    /// When these were first and last counted.
    pub first: Option<Timestamp>,
    pub counted: Option<Timestamp>,
}

impl Accepted {
    /// A poll has succeeded, which took this long.
    pub(super) fn polled(&mut self, took: Duration, now: Timestamp) {
        match self.polls_between {
            _ if took > TOO_SLOW => {}
            0 => self.due = Some(now),
            u32::MAX => {}
            _ => self.polls_between -= 1,
        }
    }

    /// Health checks were failed: from now on those that come count that should come no more.
    pub(super) fn out_of_service(&mut self, now: Timestamp) {
        self.due = Some(now);
        self.starts_over = true;
    }

    /// The next poll is followed by a count, whatever that costs.
    pub(super) fn count_soon(&mut self) {
        self.polls_between = 0;
    }

    /// There was no reply, which may take as long each time.
    pub(super) fn failed(&mut self) {
        self.polls_between = EXPENSIVE_EVERY - 1;
    }

    /// The reply, which took this long; none where Envoy does not show it. Returns how many have come since
    /// the one before.
    pub(super) fn replied(&mut self, total: Option<u64>, took: Duration, now: Timestamp) -> u64 {
        let Some(total) = total else {
            self.polls_between = u32::MAX;
            return 0;
        };
        self.polls_between = if took > CHEAP { EXPENSIVE_EVERY - 1 } else { 0 };
        // An Envoy that has restarted counts anew.
        let new = self.total.replace(total).map_or(0, |before| total.saturating_sub(before));
        if std::mem::take(&mut self.starts_over) {
            (self.new, self.noticed, self.first) = (0, None, None);
        } else if new > 0 {
            self.new = self.new.saturating_add(new);
            self.noticed = Some(now);
        }
        self.first = self.first.or(Some(now));
        self.counted = Some(now);
        new
    }

    /// New connections in 1000 s, over the time in which they were counted; none before that.
    pub fn rate(&self) -> Option<u64> {
        rate(self.new, self.counted? - self.first?)
    }
}

/// So many over this time, as their number in 1000 s.
pub(super) fn rate(count: u64, over: Duration) -> Option<u64> {
    let rate = (u128::from(count) * 1_000_000).checked_div(over.as_millis())?;
    Some(u64::try_from(rate).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn one_that_failed_is_repeated_with_the_twelfth_poll_and_one_that_is_hidden_is_not() {
        let mut accepted = Accepted::default();
        accepted.replied(Some(3), Duration::ZERO, s(0));
        accepted.failed();
        for poll in 1..=12 {
            accepted.polled(CHEAP, s(poll));
            assert_eq!(accepted.due, (poll == 12).then(|| s(12)), "at poll {poll}");
        }
        assert_eq!(accepted.replied(Some(10), Duration::ZERO, s(12)), 7, "what came meanwhile");
        accepted.due = None;
        accepted.replied(None, Duration::ZERO, s(13));
        (14..100).for_each(|poll| accepted.polled(CHEAP, s(poll)));
        assert_eq!(accepted.due, None);
    }

    #[test]
    fn a_counter_that_leaps_twice_is_no_panic() {
        let mut accepted = Accepted::default();
        for (at, total) in [0, u64::MAX, 0, u64::MAX].into_iter().enumerate() {
            accepted.replied(Some(total), Duration::ZERO, s(at as u64));
        }
        assert_eq!((accepted.new, accepted.rate()), (u64::MAX, Some(u64::MAX)));
    }

    #[test]
    fn new_connections_are_those_since_the_first_count() {
        let mut accepted = Accepted::default();
        for (total, at, expected) in [
            (Some(100), 1, (0, None)),
            (Some(100), 2, (0, None)),
            (Some(103), 3, (3, Some(s(3)))),
            (None, 4, (3, Some(s(3)))),
            (Some(103), 5, (3, Some(s(3)))),
            // A restart.
            (Some(2), 6, (3, Some(s(3)))),
            (Some(4), 7, (5, Some(s(7)))),
        ] {
            accepted.replied(total, Duration::ZERO, s(at));
            assert_eq!((accepted.new, accepted.noticed), expected, "at {at} s");
        }
        assert_eq!((accepted.first, accepted.counted), (Some(s(1)), Some(s(7))));
        assert_eq!(accepted.rate(), Some(833));
    }

    #[test]
    fn once_health_checks_are_failed_those_count_that_come_since() {
        let mut accepted = Accepted::default();
        for (total, at) in [(100, 1), (103, 2)] {
            accepted.replied(Some(total), Duration::ZERO, s(at));
        }
        accepted.out_of_service(s(3));
        assert_eq!(
            accepted.due,
            Some(s(3)),
            "they are counted now, and not at the first poll alone"
        );
        let came = accepted.replied(Some(110), Duration::ZERO, s(3));
        assert_eq!((came, accepted.new, accepted.noticed), (7, 0, None));
        assert_eq!(accepted.rate(), None);
        let came = accepted.replied(Some(111), Duration::ZERO, s(5));
        assert_eq!((came, accepted.new, accepted.noticed), (1, 1, Some(s(5))));
        assert_eq!(accepted.rate(), Some(500));
    }

    #[test]
    fn an_expensive_count_comes_with_every_twelfth_poll() {
        let mut accepted = Accepted::default();
        let mut counts = Vec::new();
        for poll in 0..30 {
            accepted.polled(TOO_SLOW, s(poll));
            if accepted.due == Some(s(poll)) {
                counts.push(poll);
                accepted.due = None;
                accepted.replied(Some(1), CHEAP + Duration::from_millis(1), s(poll));
            }
        }
        assert_eq!(counts, [0, 12, 24]);
        accepted.count_soon();
        accepted.polled(CHEAP, s(30));
        assert_eq!(accepted.due.take(), Some(s(30)));
        accepted.replied(Some(1), CHEAP, s(30));
        accepted.polled(CHEAP, s(31));
        assert_eq!(accepted.due.take(), Some(s(31)), "a cheap one with each");
        accepted.polled(TOO_SLOW + CHEAP, s(32));
        assert_eq!(accepted.due, None, "a slow Envoy is left in peace");
    }
}
