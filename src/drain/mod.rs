//! The drain as a state machine, without I/O and without a clock of its own.
//!
//! ```text
//!            begin          drain-delay         200          check-delay         at the threshold
//!   Serving ------> Delaying ----------> Failing --> Settling ----------> Draining ----------> Ended
//!      ^                                  ^  ^          |                    |                   |
//!      |                                  |  +--- LIVE -+                    |                   |
//!      |                                  +------------- LIVE ---------------+                   |
//!      +----------------------------------- 30 s -----------------------------------------------+
//! ```
//!
//! Where Envoy's listeners are told to drain, that is a call more: after the drain delay, or behind
//! Failing, and only while Envoy's own hook waits, for it cannot be taken back.
//!
//! From Delaying on, three refused calls in a row end the drain (Envoy is gone), and so does its
//! time-out. Where Envoy's own hook is required, Delaying lasts until that has come, and ends the
//! drain when it has not within 3 s. Somebody else performs what [`Machine::step`] asks for, one call at a time, and
//! feeds back what came of it; an answer that belongs to an earlier drain is dropped.
//!
//! While Serving the machine asks for nothing, but for one look at Envoy after the start, which
//! finds an Envoy that an earlier life of this sidecar left out of service.

use std::time::Duration;

use crate::cli::options::Options;
use crate::envoy::error::{AdminError, AdminErrorKind};
use crate::envoy::stats::StatsCoverage;
use crate::os::clock::Timestamp;

/// An ended drain answers late waiters and repeated hooks for this long: a kubelet that restarts
/// in the middle runs both hooks again.
pub const OUTCOME_RETENTION: Duration = Duration::from_secs(30);

/// The kubelet starts both hooks within 80 ms (measured); on a busy node they may be further apart.
pub const HOOK_PAIRING_WINDOW: Duration = Duration::from_secs(3);

/// Nothing is put back in service before this, since hooks begin up to 355 ms after a sidecar
/// that was being restarted when its pod was deleted.
pub const RESTORE_DELAY: Duration = Duration::from_secs(2);

/// Refused calls in a row that make Envoy gone, and the time between them.
const REFUSALS: u32 = 3;
const REFUSED_RETRY: Duration = Duration::from_secs(1);

/// The pauses after the first failures to fail health checks; later ones are a check interval.
const FAIL_BACKOFF: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];

/// A revert must not stay unseen for longer than this between two polls.
const LONGEST_LOOK: Duration = Duration::from_secs(2);

/// At the start Envoy may come up after its sidecar: it is looked for this often, this far apart.
const STARTUP_CHECKS: u32 = 12;
const STARTUP_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// What Envoy says of itself on `/ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// `LIVE`
    Live,
    /// `DRAINING`: its health checks are failed.
    Draining,
    /// `PRE_INITIALIZING` or `INITIALIZING`, whether its health checks are failed or not.
    Starting,
}

/// A valid poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poll {
    /// Open downstream connections.
    pub open: u64,
    /// Which connections can be seen at all.
    pub visible: StatsCoverage,
    /// Whether health checks are still failed.
    pub health: Health,
}

/// What is to be asked of Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `POST /healthcheck/fail`
    FailHealthChecks,
    /// `POST /drain_listeners?graceful&skip_exit`
    DrainListeners,
    /// `GET /ready`
    CheckReady,
    /// `GET /stats`
    ReadStats,
    /// `POST /healthcheck/ok`
    RestoreHealthChecks,
}

/// What came of a [`Call`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `POST /healthcheck/fail` succeeded.
    Failed,
    /// `POST /drain_listeners` succeeded.
    ListenersDrain,
    /// `GET /ready` was understood.
    Seen(Health),
    /// `GET /stats` was understood.
    Polled(Poll),
    /// `POST /healthcheck/ok` succeeded.
    PutBack,
    /// The call failed.
    AdminError(AdminError),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time has passed, or something outside has changed.
    Tick,
    /// The call that drain number `drain` (0: none yet) asked for was answered.
    Answer {
        /// The number of the drain.
        drain: u64,
        /// What came of the call.
        answer: Answer,
    },
    /// What [`Action::Finish`] asked for is done.
    Finished,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing, until something outside changes.
    Sleep,
    /// Nothing, until then.
    SleepUntil(Timestamp),
    /// Ask Envoy.
    Call(Call),
    /// Do what belongs to the end of a drain, before anybody is told of it.
    Finish(Outcome),
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// At most the threshold of connections is open.
    Drained {
        /// Connections still open.
        open: u64,
    },
    /// The drain time-out passed first.
    TimedOut {
        /// Connections open at the last valid poll, if there was one.
        open: Option<u64>,
    },
    /// Nobody listens at the admin address any more.
    EnvoyGone,
    /// Envoy's own hook did not come, so Envoy was left alone.
    NoEnvoyHook,
}

impl Outcome {
    /// The names of all outcomes, for a series each.
    pub const NAMES: [&'static str; 4] = ["drained", "timed_out", "envoy_gone", "no_envoy_hook"];

    /// The outcome's position in [`Outcome::NAMES`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Drained { .. } => 0,
            Self::TimedOut { .. } => 1,
            Self::EnvoyGone => 2,
            Self::NoEnvoyHook => 3,
        }
    }

    /// The outcome in one word, as metrics and JSON have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }

    /// Whether connections may have been open when it ended.
    #[must_use]
    pub const fn gave_up(self) -> bool {
        matches!(self, Self::TimedOut { .. })
    }

    /// Whether nothing is left that the drain would have waited for.
    #[must_use]
    pub const fn is_drained(self) -> bool {
        matches!(self, Self::Drained { .. } | Self::EnvoyGone)
    }

    /// The outcome as a clause for an operator.
    #[must_use]
    pub fn explain(self) -> String {
        match self {
            Self::Drained { open: 0 } => "drained: no connection is open".to_owned(),
            Self::Drained { open } => format!("drained: {open} open, within the threshold"),
            Self::TimedOut { open: Some(open) } => {
                format!("gave up at the drain timeout: {open} open at the last poll")
            }
            Self::TimedOut { open: None } => {
                "gave up at the drain timeout, before the open connections could be counted"
                    .to_owned()
            }
            Self::EnvoyGone => {
                "Envoy is gone: nobody listens at its admin address, so nothing is left to drain"
                    .to_owned()
            }
            Self::NoEnvoyHook => {
                "Envoy is left alone: its own hook did not come to /shutdown within \
                 3s, so only the sidecar is being restarted"
                    .to_owned()
            }
        }
    }
}

/// A drain that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its number; the first one is 1.
    pub number: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Connections that were allowed to be open.
    pub threshold: u64,
    /// Time from its start to its end.
    pub took: Duration,
}

/// Where the machine stands, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No drain.
    Serving,
    /// Waiting for the drain delay to pass.
    Delaying,
    /// Telling Envoy to fail its health checks.
    Failing,
    /// Waiting for the check delay to pass.
    Settling,
    /// Polling for open connections.
    Draining,
    /// Ended a moment ago.
    Ended,
}

impl Phase {
    /// All phases, for a series each.
    pub const ALL: [Self; 6] =
        [Self::Serving, Self::Delaying, Self::Failing, Self::Settling, Self::Draining, Self::Ended];

    /// The phase in one word, as metrics and JSON have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Delaying => "delaying",
            Self::Failing => "failing",
            Self::Settling => "settling",
            Self::Draining => "draining",
            Self::Ended => "ended",
        }
    }
}

/// Whether a request to drain began one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainStart {
    /// It began the drain of this number.
    Started(u64),
    /// The drain of this number was going on, or had ended just before.
    Joined(u64),
}

impl DrainStart {
    /// The drain's number.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::Started(number) | Self::Joined(number) => number,
        }
    }
}

/// The state of the sidecar.
#[derive(Clone, Debug)]
pub struct Machine {
    state: State,
    /// The number of the latest drain; 0 before the first.
    number: u64,
    last: Option<Ended>,
    /// What the latest drain was told, for as long as it matters.
    last_options: Option<Options>,
    /// Whether somebody waits for a drain, and when the latest of them came.
    awaited: bool,
    arrived: Option<Timestamp>,
    /// The look that was still to be done when the drain began.
    put_off: Option<StartupCheck>,
}

/// The outline of a machine's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    /// The number of the latest drain; 0 before the first.
    pub number: u64,
    /// Where the machine stands.
    pub phase: Phase,
    /// A look at Envoy is still to be done, outside a drain.
    pub looks: bool,
    /// That look will put an Envoy that it finds out of service back.
    pub puts_back: bool,
    /// The call that is due or under way is a poll.
    pub polls: bool,
}

#[derive(Clone, Debug)]
enum State {
    Serving(Option<StartupCheck>),
    Drain(Box<Drain>),
    Ended { until: Timestamp },
}

/// The look at Envoy while no drain goes on.
#[derive(Clone, Debug)]
struct StartupCheck {
    next: Timestamp,
    call: Call,
    tries: u32,
    purpose: CheckReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CheckReason {
    /// The sidecar has just started: what can be counted, and, where this is allowed, an Envoy
    /// that is out of service is put back.
    Arrival { put_back: bool },
    /// A drain has ended, and the pod lives on.
    Aftermath,
}

impl Machine {
    /// A sidecar that has just started and will look at Envoy once. `put_back`: whether an Envoy
    /// that is then out of service is put back in service.
    #[must_use]
    pub fn new(now: Timestamp, put_back: bool) -> Self {
        let purpose = CheckReason::Arrival { put_back };
        let look = StartupCheck {
            next: now + RESTORE_DELAY,
            call: Call::CheckReady,
            tries: STARTUP_CHECKS,
            purpose,
        };
        Self {
            state: State::Serving(Some(look)),
            number: 0,
            last: None,
            last_options: None,
            awaited: false,
            arrived: None,
            put_off: None,
        }
    }

    /// Begins a drain, or joins the one that goes on or has just ended (its options then hold).
    pub fn begin(&mut self, options: Options, now: Timestamp) -> DrainStart {
        if let State::Serving(look) = &mut self.state {
            self.number += 1;
            self.put_off = look.take();
            let together = self.arrived.is_some_and(|arrived| now < arrived + HOOK_PAIRING_WINDOW);
            self.state = State::Drain(Box::new(Drain::new(options, together, now)));
            DrainStart::Started(self.number)
        } else {
            DrainStart::Joined(self.number)
        }
    }

    /// Somebody has come to wait for a drain, as Envoy's own hook does. Whether a step is due.
    pub fn arrived(&mut self, now: Timestamp) -> bool {
        let was_awaited = std::mem::replace(&mut self.awaited, true);
        self.arrived = Some(now);
        let State::Drain(drain) = &mut self.state else { return false };
        let comes_together = !drain.envoy_hook && now < drain.started + HOOK_PAIRING_WINDOW;
        drain.envoy_hook |= comes_together;
        comes_together || (!was_awaited && drain.has_listeners_to_drain())
    }

    /// Nobody waits for a drain any more.
    pub fn all_left(&mut self, now: Timestamp) {
        if let State::Serving(Some(look)) = &mut self.state
            && self.awaited
        {
            look.next = look.next.max(now + RESTORE_DELAY);
            look.call = Call::CheckReady;
        }
        self.awaited = false;
    }

    /// Takes what happened and says what to do next.
    pub fn step(&mut self, event: &Event, now: Timestamp) -> Action {
        match event {
            Event::Answer { drain, answer } if *drain == self.number => self.answered(answer, now),
            // The answer to a call that an earlier drain, or none, had asked for.
            Event::Answer { .. } | Event::Tick => {}
            Event::Finished => self.finished(now),
        }
        self.next(now)
    }

    fn answered(&mut self, answer: &Answer, now: Timestamp) {
        match &mut self.state {
            State::Drain(drain) => drain.answered(answer, now),
            State::Serving(look) => {
                *look = look.take().and_then(|look| look.answered(answer, now));
            }
            State::Ended { .. } => {}
        }
    }

    fn finished(&mut self, now: Timestamp) {
        if let State::Drain(drain) = &self.state
            && let Stage::Ending(outcome) = drain.stage
        {
            self.last = Some(Ended {
                number: self.number,
                outcome,
                threshold: drain.options.min_open_connections,
                took: now - drain.started,
            });
            self.last_options = Some(drain.options.clone());
            self.state = match outcome {
                // Nothing has been done that a later hook could join.
                Outcome::NoEnvoyHook => {
                    State::Serving(self.put_off.take().map(|look| StartupCheck {
                        next: look.next.max(now + RESTORE_DELAY),
                        call: Call::CheckReady,
                        ..look
                    }))
                }
                _ => State::Ended { until: now + OUTCOME_RETENTION },
            };
        }
    }

    fn next(&mut self, now: Timestamp) -> Action {
        if let State::Ended { until } = self.state {
            if now < until {
                return Action::SleepUntil(until);
            }
            // One look, to say so if Envoy is still out of service.
            let look = StartupCheck {
                next: now,
                call: Call::CheckReady,
                tries: 1,
                purpose: CheckReason::Aftermath,
            };
            self.state = State::Serving(Some(look));
        }
        match &mut self.state {
            State::Drain(drain) => drain.next(self.awaited, now),
            State::Serving(Some(look)) if look.puts_back() && self.awaited => Action::Sleep,
            State::Serving(Some(look)) if now < look.next => Action::SleepUntil(look.next),
            State::Serving(Some(look)) => Action::Call(look.call),
            State::Serving(None) | State::Ended { .. } => Action::Sleep,
        }
    }

    /// Where the machine stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Serving(_) => Phase::Serving,
            State::Ended { .. } => Phase::Ended,
            State::Drain(drain) => match drain.stage {
                Stage::Delaying => Phase::Delaying,
                Stage::Failing => Phase::Failing,
                Stage::Settling { .. } => Phase::Settling,
                Stage::Draining | Stage::Ending(_) => Phase::Draining,
            },
        }
    }

    /// The drain that goes on.
    #[must_use]
    pub fn drain(&self) -> Option<&Drain> {
        match &self.state {
            State::Drain(drain) => Some(drain),
            State::Serving(_) | State::Ended { .. } => None,
        }
    }

    /// The outline of the state, to be compared with a later one.
    #[must_use]
    pub fn outline(&self) -> Outline {
        let look = match &self.state {
            State::Serving(look) => look.as_ref(),
            State::Drain(_) | State::Ended { .. } => None,
        };
        let drain_polls = self.drain().is_some_and(|drain| {
            drain.stage == Stage::Draining && drain.call != Call::DrainListeners
        });
        Outline {
            number: self.number,
            phase: self.phase(),
            looks: look.is_some(),
            puts_back: look.is_some_and(StartupCheck::puts_back),
            polls: drain_polls || look.is_some_and(|look| look.call == Call::ReadStats),
        }
    }

    /// The number of the latest drain; 0 before the first.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The latest drain that has ended.
    #[must_use]
    pub fn last(&self) -> Option<&Ended> {
        self.last.as_ref()
    }

    /// What holds for the drain that goes on or was the latest one, until nothing of it is left to
    /// be done.
    #[must_use]
    pub fn options(&self) -> Option<&Options> {
        match &self.state {
            State::Drain(drain) => Some(&drain.options),
            State::Ended { .. } => self.last_options.as_ref(),
            State::Serving(Some(StartupCheck { purpose: CheckReason::Aftermath, .. })) => {
                self.last_options.as_ref()
            }
            State::Serving(_) => None,
        }
    }

    /// The number of the drain whose end somebody awaits who begins to wait now: the one that
    /// goes on or has just ended, else the next.
    #[must_use]
    pub fn awaits(&self) -> u64 {
        match self.state {
            State::Serving(_) => self.number + 1,
            State::Drain(_) | State::Ended { .. } => self.number,
        }
    }

    /// How the drain of this number ended, if it has; a later one's end stands in for it.
    #[must_use]
    pub fn end_of(&self, number: u64) -> Option<&Ended> {
        self.last.as_ref().filter(|ended| ended.number >= number)
    }
}

impl StartupCheck {
    fn puts_back(&self) -> bool {
        self.purpose == CheckReason::Arrival { put_back: true }
    }

    /// The look that remains to be done.
    fn answered(mut self, answer: &Answer, now: Timestamp) -> Option<Self> {
        self.next = now;
        match answer {
            Answer::Seen(Health::Draining) if self.puts_back() => {
                self.call = Call::RestoreHealthChecks
            }
            Answer::Seen(Health::Draining | Health::Live) | Answer::PutBack
                if self.purpose != CheckReason::Aftermath =>
            {
                self.call = Call::ReadStats;
            }
            // It may have been put out of service before it had started.
            Answer::Seen(Health::Starting) => self.again(now),
            Answer::AdminError(AdminError { kind: AdminErrorKind::Refused, .. }) => {
                self.comes_later(now)
            }
            Answer::AdminError(_) if self.call != Call::ReadStats => self.again(now),
            _ => return None,
        }
        (self.tries > 0).then_some(self)
    }

    /// This Envoy is younger than the sidecar, so no earlier life of the sidecar has put it out
    /// of service.
    fn comes_later(&mut self, now: Timestamp) {
        if let CheckReason::Arrival { put_back } = &mut self.purpose {
            *put_back = false;
        }
        self.again(now);
    }

    fn again(&mut self, now: Timestamp) {
        self.tries -= 1;
        self.call = Call::CheckReady;
        self.next = now + STARTUP_CHECK_INTERVAL;
    }
}

/// A drain that goes on.
#[derive(Clone, Debug)]
pub struct Drain {
    options: Options,
    started: Timestamp,
    stage: Stage,
    /// When the next call is due.
    next: Timestamp,
    /// The latest call, and when it was asked for.
    call: Call,
    asked: Timestamp,
    /// Whether Envoy's listeners drain, or when they are told to again.
    listeners_drain: bool,
    listeners_next: Timestamp,
    /// Whether Envoy's own hook came at about the same time.
    envoy_hook: bool,
    /// Whether it was tried to fail health checks.
    tried: bool,
    /// Failures in a row to do so.
    failures: usize,
    refusals: u32,
    /// Whether Envoy was last seen starting, which says nothing about its health checks.
    starting: bool,
    last_poll: Option<Poll>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Delaying,
    Failing,
    Settling { until: Timestamp },
    Draining,
    Ending(Outcome),
}

impl Drain {
    fn new(options: Options, envoy_hook: bool, now: Timestamp) -> Self {
        Self {
            next: now + look_interval(&options),
            options,
            started: now,
            stage: Stage::Delaying,
            call: Call::CheckReady,
            asked: now,
            listeners_drain: false,
            listeners_next: Timestamp::ZERO,
            envoy_hook,
            tried: false,
            failures: 0,
            refusals: 0,
            starting: false,
            last_poll: None,
        }
    }

    fn next(&mut self, awaited: bool, now: Timestamp) -> Action {
        let deadline = self.options.drain_timeout.map(|timeout| self.started + timeout);
        let over = deadline.is_some_and(|deadline| now >= deadline);
        let held = self.options.require_envoy_hook && !self.envoy_hook;
        match self.stage {
            Stage::Delaying if held && now >= self.started + HOOK_PAIRING_WINDOW => {
                self.stage = Stage::Ending(Outcome::NoEnvoyHook);
            }
            Stage::Delaying if held => {}
            // These first, however late it is.
            Stage::Delaying
                if awaited && !over && self.listeners_due().is_some_and(|due| now >= due) => {}
            Stage::Delaying if now >= self.started + self.options.delay() => self.fail(now),
            Stage::Settling { until } if now >= until => {
                self.stage = Stage::Draining;
                self.call_at(now);
            }
            _ => {}
        }
        // Once the drain delay is over, it is tried at least once to fail health checks.
        let may_end = self.tried || (self.stage == Stage::Delaying && !held);
        if over && may_end && !self.is_ending() {
            let open = self.last_poll.map(|poll| poll.open);
            self.stage = Stage::Ending(Outcome::TimedOut { open });
        }
        let call = match self.stage {
            Stage::Ending(outcome) => return Action::Finish(outcome),
            Stage::Failing => Call::FailHealthChecks,
            Stage::Draining => Call::ReadStats,
            Stage::Delaying | Stage::Settling { .. } => Call::CheckReady,
        };
        let listeners = self.listeners_due().filter(|_| awaited && !held && !over);
        let call = if listeners.is_some_and(|due| now >= due) {
            Some(Call::DrainListeners)
        } else {
            Some(call).filter(|_| now >= self.next)
        };
        if let Some(call) = call {
            (self.call, self.asked) = (call, now);
            return Action::Call(call);
        }
        let end_of_stage = match self.stage {
            Stage::Delaying if held => Some(self.started + HOOK_PAIRING_WINDOW),
            Stage::Delaying => Some(self.started + self.options.delay()),
            Stage::Settling { until } => Some(until),
            Stage::Failing | Stage::Draining | Stage::Ending(_) => None,
        };
        let deadline = deadline.filter(|deadline| *deadline > now);
        let wakes = [end_of_stage, deadline, listeners];
        Action::SleepUntil(wakes.into_iter().flatten().fold(self.next, Timestamp::min))
    }

    /// When Envoy's listeners are told to drain, in this stage.
    fn listeners_due(&self) -> Option<Timestamp> {
        let due = match self.stage {
            Stage::Delaying if self.options.health_check_failure_delay.is_zero() => return None,
            Stage::Delaying => self.started + self.options.drain_delay,
            Stage::Settling { .. } | Stage::Draining => Timestamp::ZERO,
            Stage::Failing | Stage::Ending(_) => return None,
        };
        self.has_listeners_to_drain().then(|| due.max(self.listeners_next))
    }

    /// Whether Envoy's listeners are yet to be told to drain.
    #[must_use]
    pub fn has_listeners_to_drain(&self) -> bool {
        self.options.drains_listeners() && !self.listeners_drain
    }

    fn answered(&mut self, answer: &Answer, now: Timestamp) {
        self.tried |= self.stage == Stage::Failing;
        if let Answer::AdminError(AdminError { kind: AdminErrorKind::Refused, .. }) = answer {
            self.refusals += 1;
            self.next = now + REFUSED_RETRY;
            // The next one that answers may be another Envoy.
            (self.listeners_drain, self.listeners_next) = (false, self.next);
            if self.refusals == REFUSALS {
                self.stage = Stage::Ending(Outcome::EnvoyGone);
            }
            return;
        }
        self.refusals = 0;
        match answer {
            Answer::Failed => {
                self.failures = 0;
                let until = now + self.options.check_delay;
                let until = until.max(self.started + self.options.min_drain_duration);
                self.stage = Stage::Settling { until };
                self.next = now + look_interval(&self.options);
            }
            Answer::Seen(health) => {
                self.next = now + look_interval(&self.options);
                self.check(*health, now);
            }
            Answer::Polled(poll) => {
                self.last_poll = Some(*poll);
                self.next = self.next_poll(now);
                if !self.check(poll.health, now) && poll.open <= self.options.min_open_connections {
                    self.stage = Stage::Ending(Outcome::Drained { open: poll.open });
                }
            }
            Answer::ListenersDrain => self.listeners_drain = true,
            // It holds nothing up: who is not reached is counted.
            Answer::AdminError(_) if self.call == Call::DrainListeners => {
                self.listeners_next = now + look_interval(&self.options);
            }
            Answer::AdminError(_) => {
                self.next = match self.stage {
                    Stage::Failing => {
                        let pause = FAIL_BACKOFF.get(self.failures).copied();
                        self.failures += 1;
                        now + pause.unwrap_or(self.options.check_interval)
                    }
                    Stage::Draining => self.next_poll(now),
                    _ => now + look_interval(&self.options),
                };
            }
            Answer::PutBack => {}
        }
    }

    /// Fails health checks again if they no longer are, and says so.
    fn check(&mut self, health: Health, now: Timestamp) -> bool {
        let was_starting = std::mem::replace(&mut self.starting, health == Health::Starting);
        // An Envoy that is starting has restarted. Failed once more it comes up DRAINING
        // (measured), and until then /ready goes on saying that it is starting.
        let reverted = match health {
            Health::Live => true,
            Health::Starting => !was_starting,
            Health::Draining => false,
        };
        let reverted = reverted && self.stage != Stage::Delaying;
        if reverted {
            (self.listeners_drain, self.listeners_next) = (false, now);
            self.fail(now);
        }
        reverted
    }

    fn fail(&mut self, now: Timestamp) {
        self.stage = Stage::Failing;
        self.failures = 0;
        self.call_at(now);
    }

    /// A new stage calls at once, unless a refused call has its pause.
    fn call_at(&mut self, now: Timestamp) {
        if self.refusals == 0 {
            self.next = now;
        }
    }

    fn is_ending(&self) -> bool {
        matches!(self.stage, Stage::Ending(_))
    }

    /// A slow poll keeps Envoy's main thread busy: the next one leaves it as long in peace.
    fn next_poll(&self, now: Timestamp) -> Timestamp {
        let took = now - self.asked;
        (self.asked + self.options.check_interval).max(now + took)
    }

    /// What the drain was told.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether Envoy's own hook came at about the same time.
    #[must_use]
    pub fn envoy_hook(&self) -> bool {
        self.envoy_hook
    }

    /// When the settling ends, while it lasts.
    #[must_use]
    pub fn settles(&self) -> Option<Timestamp> {
        match self.stage {
            Stage::Settling { until } => Some(until),
            _ => None,
        }
    }

    /// When it began.
    #[must_use]
    pub fn started(&self) -> Timestamp {
        self.started
    }

    /// The latest valid poll.
    #[must_use]
    pub fn last_poll(&self) -> Option<&Poll> {
        self.last_poll.as_ref()
    }
}

fn look_interval(options: &Options) -> Duration {
    options.check_interval.min(LONGEST_LOOK)
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
