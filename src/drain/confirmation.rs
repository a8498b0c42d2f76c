//! Whether a poll ends a drain. A wrong end cuts connections, so a count that may be too low must be
//! confirmed: see [`crate::envoy::stats`] for why it may be.

use std::time::Duration;

use super::outcome::OutcomeKind;
use crate::cli::options::WaitFor;
use crate::envoy::{CallResult, Health, Poll, Reply};

/// The pauses between polls that must agree, in a row, where connections were subtracted. Of single
/// polls 2 to 3 % are wrong at 3,400 probes a second (`just race`), and those just behind a wrong one
/// more often: as long as a thread of Envoy is kept from the processor between two changes of gauges,
/// or where probes come as regularly as the polls. Without pauses four were wrong once in 5,840 polls
/// beside a busy processor. Together they leave the last poll its time within 50 ms.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(2), Duration::from_millis(8), Duration::from_millis(25)];

/// The pause before the last of those polls where requests are waited for: one that comes between two
/// polls is seen by the second.
const REQUEST_PAUSE: Duration = Duration::from_secs(1);

/// What the latest polls have shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Confirmation {
    /// Polls in a row that were at the threshold, less than are needed.
    agreeing: usize,
    /// The age of Envoy's second count when the first one came to the threshold.
    uptime: Option<u64>,
}

/// What follows from a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// More are open than may be.
    Above,
    /// The same, right behind polls that were at the threshold. A poll may also count one too many, 3 to
    /// 5 % at 3,400 probes a second (measured), so the next one is due after this pause: at a whole
    /// interval later, up to 9 of 100 ends were late.
    Contradicted(Duration),
    /// At the threshold, but connections were subtracted: the next poll is due after this pause.
    PollAgain(Duration),
    /// At the threshold, but listeners are hidden, and Envoy's second count is older than this poll.
    AwaitTotal,
    AtThreshold,
}

impl Confirmation {
    /// `hidden`: whether listeners are, so that Envoy's second count must agree as well. One that
    /// Envoy does not show never agrees.
    pub fn judge(
        &mut self,
        poll: &Poll,
        wait_for: WaitFor,
        threshold: u64,
        hidden: bool,
    ) -> Verdict {
        if poll.holding(wait_for) > threshold {
            let contradicts = std::mem::take(self).agreeing > 0;
            return if contradicts { Verdict::Contradicted(PAUSES[2]) } else { Verdict::Above };
        }
        // Idle HTTP connections were subtracted.
        let idle = wait_for == WaitFor::Requests && poll.http() > 0;
        let pause = match PAUSES.get(self.agreeing) {
            Some(pause) => Some(*pause).filter(|_| idle || poll.subtracted),
            None => Some(REQUEST_PAUSE).filter(|_| idle && self.agreeing == PAUSES.len()),
        };
        if let Some(pause) = pause {
            self.agreeing += 1;
            return Verdict::PollAgain(pause);
        }
        self.agreeing = 0;
        if !hidden {
            return Verdict::AtThreshold;
        }
        let Some(total) = poll.total else { return Verdict::AwaitTotal };
        let first = *self.uptime.get_or_insert(total.uptime);
        if first == total.uptime {
            return Verdict::AwaitTotal;
        }
        self.uptime = Some(total.uptime);
        if total.connections <= threshold { Verdict::AtThreshold } else { Verdict::AwaitTotal }
    }
}

/// Whether the outcome of a drain that has ended still holds, so that it may answer a hook that comes
/// late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StillHolds {
    Yes,
    No,
    /// The next poll is due after this pause.
    PollAgain(Duration),
    /// The reply does not tell.
    Unknown,
}

/// `result`: of a poll that was made for this.
pub(super) fn still_holds(
    kind: OutcomeKind,
    wait_for: WaitFor,
    threshold: u64,
    confirmation: &mut Confirmation,
    result: &CallResult,
) -> StillHolds {
    match (kind, result) {
        (OutcomeKind::Drained, Ok(Reply::Stats(poll))) if poll.health == Health::Draining => {
            match confirmation.judge(poll, wait_for, threshold, false) {
                Verdict::AtThreshold => StillHolds::Yes,
                Verdict::PollAgain(pause) => StillHolds::PollAgain(pause),
                Verdict::Above | Verdict::Contradicted(_) | Verdict::AwaitTotal => StillHolds::No,
            }
        }
        (OutcomeKind::EnvoyGone, Err(error)) if error.is_refusal() => StillHolds::Yes,
        (OutcomeKind::Drained, Err(_)) => {
            *confirmation = Confirmation::default();
            StillHolds::Unknown
        }
        _ => StillHolds::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::{Health, ServerTotal};

    const CONNECTIONS: WaitFor = WaitFor::Connections;

    fn poll(open: u64, subtracted: bool) -> Poll {
        Poll { subtracted, ..Poll::of(open, Health::Draining) }
    }

    fn with_total(connections: u64, uptime: u64) -> Poll {
        Poll { total: Some(ServerTotal { connections, uptime }), ..poll(0, false) }
    }

    #[test]
    fn one_poll_is_enough_where_nothing_was_subtracted() {
        let mut confirmation = Confirmation::default();
        assert_eq!(confirmation.judge(&poll(2, false), CONNECTIONS, 1, false), Verdict::Above);
        assert_eq!(
            confirmation.judge(&poll(1, false), CONNECTIONS, 1, false),
            Verdict::AtThreshold
        );
    }

    #[test]
    fn four_polls_in_a_row_must_agree_where_connections_were_subtracted() {
        let mut confirmation = Confirmation::default();
        let mut judge = |poll: Poll| confirmation.judge(&poll, CONNECTIONS, 0, false);
        for pause in PAUSES {
            assert_eq!(judge(poll(0, true)), Verdict::PollAgain(pause));
        }
        let contradicted = Verdict::Contradicted(PAUSES[2]);
        assert_eq!(judge(poll(1, true)), contradicted, "the one that disagrees holds");
        assert_eq!(judge(poll(1, true)), Verdict::Above);
        for pause in PAUSES {
            assert_eq!(judge(poll(0, true)), Verdict::PollAgain(pause), "and the row starts over");
        }
        assert_eq!(judge(poll(0, true)), Verdict::AtThreshold);
        assert_eq!(judge(poll(0, true)), Verdict::PollAgain(PAUSES[0]));
        assert_eq!(judge(poll(0, false)), Verdict::AtThreshold, "one without doubt is enough");
    }

    /// With so many idle HTTP connections, and so much in use.
    fn in_use(idle: u64, in_use: u64) -> Poll {
        let mut poll = Poll { in_use, ..poll(idle + in_use, false) };
        poll.breakdown.kinds.http = idle;
        poll
    }

    #[test]
    fn without_a_request_in_flight_a_poll_a_second_later_must_agree_too() {
        let mut confirmation = Confirmation::default();
        let mut judge = |poll: Poll| confirmation.judge(&poll, WaitFor::Requests, 0, false);
        for _ in 0..2 {
            for pause in PAUSES.into_iter().chain([REQUEST_PAUSE]) {
                assert_eq!(judge(in_use(3, 0)), Verdict::PollAgain(pause));
            }
            assert_eq!(judge(in_use(3, 0)), Verdict::AtThreshold);
        }
        for pause in PAUSES.into_iter().chain([REQUEST_PAUSE]) {
            assert_eq!(judge(in_use(3, 0)), Verdict::PollAgain(pause));
        }
        assert_eq!(judge(in_use(3, 1)), Verdict::Contradicted(PAUSES[2]));
        assert_eq!(judge(in_use(3, 0)), Verdict::PollAgain(PAUSES[0]), "and the row starts over");
        let mut judge = |poll: Poll| confirmation.judge(&poll, WaitFor::Requests, 0, false);
        assert_eq!(judge(in_use(0, 1)), Verdict::Contradicted(PAUSES[2]));
        assert_eq!(judge(in_use(0, 0)), Verdict::AtThreshold, "nothing was subtracted");
    }

    #[test]
    fn where_listeners_are_hidden_a_second_count_that_is_younger_must_agree() {
        let mut confirmation = Confirmation::default();
        let mut judge = |poll: Poll| confirmation.judge(&poll, CONNECTIONS, 0, true);
        assert_eq!(judge(poll(0, false)), Verdict::AwaitTotal, "Envoy does not show one");
        assert_eq!(judge(with_total(0, 10)), Verdict::AwaitTotal, "it may be older than the poll");
        assert_eq!(judge(with_total(0, 10)), Verdict::AwaitTotal);
        assert_eq!(judge(with_total(1, 15)), Verdict::AwaitTotal, "it disagrees");
        assert_eq!(judge(with_total(1, 15)), Verdict::AwaitTotal);
        let why = "it is no younger than the one that disagreed";
        assert_eq!(judge(with_total(0, 15)), Verdict::AwaitTotal, "{why}");
        assert_eq!(judge(with_total(0, 20)), Verdict::AtThreshold);
        assert_eq!(judge(Poll { open: 1, ..with_total(0, 20) }), Verdict::Above);
        assert_eq!(judge(with_total(0, 25)), Verdict::AwaitTotal, "and all starts over");
        // An Envoy that has restarted counts its time anew.
        assert_eq!(judge(with_total(0, 5)), Verdict::AtThreshold);
    }

    #[test]
    fn an_error_breaks_the_row_of_polls_that_confirm_an_end() {
        use crate::envoy::error::{AdminError, AdminErrorKind};
        let mut confirmation = Confirmation::default();
        let mut holds =
            |result| still_holds(OutcomeKind::Drained, CONNECTIONS, 0, &mut confirmation, &result);
        let agrees = || Ok(Reply::Stats(poll(0, true)));
        for pause in PAUSES {
            assert_eq!(holds(agrees()), StillHolds::PollAgain(pause));
        }
        let error = AdminError { kind: AdminErrorKind::Timeout, text: String::new() };
        assert_eq!(holds(Err(error)), StillHolds::Unknown);
        assert_eq!(holds(agrees()), StillHolds::PollAgain(PAUSES[0]), "the row goes on");
    }
}
