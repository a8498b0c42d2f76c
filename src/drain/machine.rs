//! The state of the sidecar: idle, in a drain, or with the outcome of one.

use std::time::Duration;

use super::confirmation::{Confirmation, StillHolds, still_holds};
use super::event::{Action, DrainEvent, Event, Events, Step};
use super::outcome::{Ended, OutcomeKind, Phase};
use super::stages::{Drain, HURRIED_INTERVAL, MAX_READY_INTERVAL, Stage};
use super::startup_check::{CheckReason, RESTORE_DELAY, StartupCheck};
use crate::cli::address::AdminAddress;
use crate::cli::options::{DrainOption, Options, Overrides, WaitFor};
use crate::envoy::error::AdminError;
use crate::envoy::{Call, CallResult, Health, HiddenStats, Reply};
use crate::os::clock::Timestamp;

/// An ended drain answers late waiters and repeated hooks for this long, if it still holds: a kubelet
/// that restarts in the middle runs both hooks again.
pub const OUTCOME_RETENTION: Duration = Duration::from_secs(30);

/// A signal and Envoy's own hook belong to one deletion if the hook comes no later than this after
/// the signal: the kubelet does both within 80 ms (measured).
// In the model of the coordinator time stands still.
pub const STOP_DELAY: Duration = Duration::from_millis(if cfg!(loom) { 0 } else { 300 });

/// Whether a request to drain started one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainStart {
    /// It started the drain of this number.
    Started(u64),
    /// The drain of this number was in progress.
    Joined(u64),
}

impl DrainStart {
    pub const fn number(self) -> u64 {
        match self {
            Self::Started(number) | Self::Joined(number) => number,
        }
    }
}

/// The state of the sidecar.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The sidecar's own options, which a hook's override.
    own: Options,
    /// The address of the Envoy that this sidecar drains: the one that the sidecar was given, else the
    /// first where Envoy has responded. Another's hook is refused.
    envoy: Option<AdminAddress>,
    /// Whether Envoy has responded there.
    responded: bool,
    /// Its listeners that have no gauges, as last found out.
    hidden: HiddenStats,
    state: State,
    /// The number of the latest drain; 0 before the first.
    number: u64,
    last: Option<Ended>,
    /// The options of the latest drain, for as long as they matter.
    last_options: Option<Options>,
    /// Whether a client waits for a drain as Envoy's own hook does; and whether those who do are
    /// just being answered with the end of one that left Envoy in service.
    awaited: bool,
    left_alone: bool,
    /// When a signal stopped the sidecar, and whether it has nothing left to do.
    stopping: Option<Timestamp>,
    over: bool,
    /// The startup check that was still to be done when the drain started.
    suspended_check: Option<StartupCheck>,
    /// What clients have asked for while no drain is in progress, and whether the latest call is made to
    /// restore Envoy for them.
    refresh: bool,
    restore: bool,
    restoring: bool,
    /// Whether Envoy's listeners drain, which only its restart undoes.
    listeners_draining: bool,
}

#[derive(Clone, Debug)]
enum State {
    Idle(Option<StartupCheck>),
    Draining(Box<Drain>),
    Ended(Retained),
}

/// A drain that has ended, for as long as it may answer hooks that come late.
#[derive(Clone, Debug)]
struct Retained {
    until: Timestamp,
    /// Whether those who wait as Envoy's own hook does are answered with its outcome: they waited at
    /// its end, or it was found to hold since.
    answers: bool,
    /// Whether a check can find that it still holds. One that gave up answers no other client.
    may_hold: bool,
    /// When it may be checked again: no network client can have Envoy polled more often.
    check_due: Timestamp,
    confirmation: Confirmation,
}

impl Machine {
    /// A sidecar that has just started and will check Envoy once. `own`: the sidecar's options, of
    /// which `given` were on its command line. `restore`: whether an Envoy that is then out of service
    /// is restored.
    pub fn new(own: Options, given: &Overrides, restore: bool, now: Timestamp) -> Self {
        let check = StartupCheck::new(CheckReason::Startup { restore }, now + RESTORE_DELAY);
        Self {
            envoy: given.has(DrainOption::AdminAddress).then(|| own.admin_address.clone()),
            own,
            responded: false,
            hidden: HiddenStats::default(),
            state: State::Idle(Some(check)),
            number: 0,
            last: None,
            last_options: None,
            awaited: false,
            left_alone: false,
            stopping: None,
            over: false,
            suspended_check: None,
            refresh: false,
            restore: false,
            restoring: false,
            listeners_draining: false,
        }
    }

    /// A hook's request: starts a drain with the sidecar's options and the hook's in their place, or
    /// joins the one in progress, whose options then hold.
    ///
    /// # Errors
    /// With the address of this sidecar's Envoy, when the hook means another one: two sidecars of one
    /// pod may find each other's control socket.
    pub fn request(
        &mut self,
        overrides: &Overrides,
        now: Timestamp,
    ) -> Result<DrainStart, AdminAddress> {
        let mut options = self.own.with(overrides);
        let in_progress = self.drain().map(|drain| &drain.options.admin_address);
        if let Some(envoy) = self.envoy.as_ref().or(in_progress) {
            if !overrides.has(DrainOption::AdminAddress) {
                options.admin_address = envoy.clone();
            } else if !envoy.is_same(&options.admin_address) {
                return Err(envoy.clone());
            }
        }
        Ok(self.start(options, now))
    }

    /// Starts a drain with these options, or joins the one in progress.
    pub(crate) fn start(&mut self, options: Options, now: Timestamp) -> DrainStart {
        let (check, may_hold) = match &mut self.state {
            State::Draining(_) => return DrainStart::Joined(self.number),
            State::Idle(check) => (check.take(), false),
            State::Ended(retained) => {
                (Some(StartupCheck::new(CheckReason::AfterDrain, now)), retained.may_hold)
            }
        };
        self.suspended_check = check;
        (self.refresh, self.restore, self.restoring) = (false, false, false);
        // What the drain before did not count, this one may.
        let counts_alike = self.last_options.as_ref().is_some_and(|last| {
            last.exclude == options.exclude && last.wait_for == options.wait_for
        });
        let ended = self.last.as_ref().map(|ended| ended.outcome.kind);
        let ended = ended.filter(|_| may_hold && counts_alike);
        self.number += 1;
        // A hook that waits now is together with this one, however early it came: on a busy node the
        // exec hook was 1.4 s late (measured).
        let drain = Drain::new(options, self.awaited, self.hidden.clone(), ended, now);
        self.state = State::Draining(Box::new(drain));
        DrainStart::Started(self.number)
    }

    /// Ends the drain in progress as its timeout would. Returns its number.
    pub fn release(&mut self) -> Option<u64> {
        match &mut self.state {
            State::Draining(drain) => drain.release().then_some(self.number),
            State::Idle(_) | State::Ended(_) => None,
        }
    }

    /// Restores Envoy to service. Returns false, and does nothing, while a drain is in progress, and
    /// when the sidecar stops.
    pub fn restore(&mut self) -> bool {
        self.restore |= self.drain().is_none() && self.stopping.is_none();
        self.restore
    }

    /// A client wants to see how things stand now: Envoy's state, and in a delay its connections.
    /// Returns whether a step is due.
    pub fn refresh(&mut self) -> bool {
        match &mut self.state {
            State::Draining(drain) => drain.watch(),
            State::Idle(_) | State::Ended(_) => !std::mem::replace(&mut self.refresh, true),
        }
    }

    /// Whether Envoy's listeners drain, which only its restart undoes.
    pub fn listeners_draining(&self) -> bool {
        self.listeners_draining
    }

    /// A signal: no drain starts any more but for an Envoy whose own hook waits, and the sidecar ends
    /// when none is in progress.
    pub fn stop(&mut self, now: Timestamp) {
        self.stopping.get_or_insert(now);
        if let State::Draining(drain) = &mut self.state {
            drain.hurry(now);
        }
    }

    /// Whether the sidecar was stopped and has nothing left to do. It stays so.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Finds out whether the sidecar is over. Returns when time alone may have made it so.
    pub fn update_over(&mut self, now: Timestamp) -> Option<Timestamp> {
        let stopped = self.stopping?;
        let until = stopped + STOP_DELAY;
        // The signal behind a deletion's drain comes when both hooks have been answered.
        let both_came = self.last.as_ref().is_some_and(|last| last.envoy_hook);
        self.over |= match &self.state {
            State::Draining(_) => false,
            State::Ended(retained) if self.awaited => retained.answers,
            State::Ended(_) if both_came => true,
            State::Idle(_) if self.awaited && !self.left_alone => false,
            State::Idle(_) | State::Ended(_) if now < until => return Some(until),
            State::Idle(_) | State::Ended(_) => true,
        };
        None
    }

    /// A client has come to wait for a drain, as Envoy's own hook does. Returns whether a step is
    /// due.
    pub fn waiter_arrived(&mut self, now: Timestamp) -> bool {
        let is_first = !std::mem::replace(&mut self.awaited, true);
        match &mut self.state {
            State::Draining(drain) => drain.waiter_arrived(is_first, now),
            State::Ended(retained) if is_first => {
                // What was polled for others, some time ago, confirms nothing for this one.
                retained.confirmation = Confirmation::default();
                !retained.answers || self.stopping.is_some()
            }
            State::Ended(_) => false,
            State::Idle(_) => {
                // This one is not among those who are just being answered.
                let is_first = std::mem::take(&mut self.left_alone) || is_first;
                is_first && self.stopping.is_some()
            }
        }
    }

    /// No client waits as Envoy's own hook does any more.
    pub fn last_waiter_left(&mut self, now: Timestamp) {
        match &mut self.state {
            State::Idle(Some(check)) if self.awaited => check.postpone(now),
            State::Ended(retained) => retained.answers = false,
            State::Idle(_) | State::Draining(_) => {}
        }
        self.awaited = false;
        self.left_alone = false;
    }

    /// Feeds in an event; returns what to do next and what happened.
    pub fn step(&mut self, event: &Event, now: Timestamp) -> Step {
        let mut events = Vec::new();
        match event {
            Event::Reply { drain, call, result } if *drain == self.number => {
                self.replied(*call, result, now, &mut events);
            }
            // The reply to a call that an earlier drain, or none, had asked for.
            Event::Reply { .. } | Event::Tick => {}
            Event::Finished => self.finished(now, &mut events),
        }
        let action = self.next(now, &mut events);
        Step { action, events }
    }

    fn replied(&mut self, call: Call, result: &CallResult, now: Timestamp, events: &mut Events) {
        let restoring = std::mem::take(&mut self.restoring);
        let is_for_show = match self.drain() {
            Some(drain) => {
                let is_refused = result.as_ref().is_err_and(AdminError::is_refusal);
                (drain.watching || call == Call::ReadAccepted) && !is_refused
            }
            None => restoring || call == Call::ShowState,
        };
        match result {
            // No drain needs it, so it is no news of the log.
            _ if is_for_show && result.is_err() => {}
            Ok(_) if is_for_show && self.drain().is_some() => {}
            Ok(_) => events.push(DrainEvent::CallSucceeded(call)),
            Err(error) => events.push(DrainEvent::CallFailed { call, error: error.clone() }),
        }
        let responded_before = self.responded;
        // An error may come from something else than an Envoy, unless that is where it should be.
        if result.is_ok() && self.envoy.is_none() {
            self.envoy = Some(self.in_force().admin_address.clone());
        }
        let responds = result.as_ref().map_or_else(|error| error.is_response(), |_| true);
        self.responded |= responds && self.envoy.is_some();
        if let Ok(Reply::Listeners(hidden)) = result {
            self.hidden = hidden.clone();
        }
        match result {
            Ok(Reply::ListenersDraining) => self.listeners_draining = true,
            Ok(Reply::Ready(Health::Starting)) => self.listeners_draining = false,
            Err(error) if error.is_refusal() => self.listeners_draining = false,
            _ => {}
        }
        if restoring {
            return self.restored(result, now, events);
        }
        if call == Call::ShowState {
            return;
        }
        match &mut self.state {
            State::Draining(drain) => {
                drain.replied(call, result, responded_before, self.awaited, now, events);
            }
            State::Idle(check) => {
                *check = check.take().and_then(|check| check.replied(result, now, events));
            }
            State::Ended(_) => self.outcome_checked(result, now, events),
        }
    }

    /// The reply to the call that restores Envoy for a client.
    fn restored(&mut self, result: &CallResult, now: Timestamp, events: &mut Events) {
        events.push(DrainEvent::RestoreReplied(result.as_ref().err().cloned()));
        // Envoy is in service, so the outcome does not hold.
        if result.is_ok() && matches!(self.state, State::Ended(_)) {
            self.forget_outcome(now, events);
        }
    }

    /// The call that a client has asked for.
    fn asked_call(&mut self) -> Option<Call> {
        self.restoring = std::mem::take(&mut self.restore);
        if self.restoring {
            return Some(Call::RestoreHealthChecks);
        }
        std::mem::take(&mut self.refresh).then_some(Call::ShowState)
    }

    /// The reply to the poll that tells whether the ended drain may answer a hook that came late.
    fn outcome_checked(&mut self, result: &CallResult, now: Timestamp, events: &mut Events) {
        let (State::Ended(retained), Some(last)) = (&mut self.state, &self.last) else { return };
        let kind = last.outcome.kind;
        let wait_for = self.last_options.as_ref().map_or(WaitFor::Connections, |o| o.wait_for);
        match still_holds(kind, wait_for, last.threshold, &mut retained.confirmation, result) {
            StillHolds::Yes => {
                retained.answers = self.awaited;
                retained.check_due = now + MAX_READY_INTERVAL;
            }
            StillHolds::PollAgain(pause) => {
                let longest = self.stopping.map_or(pause, |_| HURRIED_INTERVAL);
                retained.check_due = now + pause.min(longest);
            }
            StillHolds::Unknown if self.stopping.is_none() => {
                retained.check_due = now + MAX_READY_INTERVAL;
            }
            // A sidecar that stops has no time to ask again: it starts a drain.
            StillHolds::Unknown | StillHolds::No => self.forget_outcome(now, events),
        }
    }

    fn forget_outcome(&mut self, now: Timestamp, events: &mut Events) {
        events.push(DrainEvent::ReadyForNextDrain);
        self.state = State::Idle(Some(StartupCheck::new(CheckReason::AfterDrain, now)));
    }

    fn finished(&mut self, now: Timestamp, events: &mut Events) {
        let State::Draining(drain) = &self.state else { return };
        let Stage::Ending(outcome) = drain.stage else { return };
        let ended = Ended {
            number: self.number,
            outcome,
            threshold: drain.options.min_open_connections,
            envoy_hook: drain.envoy_hook_seen,
            took: now - drain.started,
            last_poll: drain.last_poll.clone().map(|poll| (poll, now - drain.polled_at)),
            accepted: drain.accepted.clone(),
        };
        events.push(DrainEvent::Ended(ended.clone()));
        let left_in_service = drain.left_in_service(outcome.kind);
        self.left_alone = self.awaited && left_in_service;
        self.last = Some(ended);
        self.last_options = Some(drain.options.clone());
        // An address where nothing has ever responded may be wrong.
        let may_hold = self.responded && outcome.kind.nothing_left() && drain.counts_plainly();
        self.state = if left_in_service {
            // Nothing has been done that a later hook could join.
            State::Idle(self.suspended_check.take().map(|mut check| {
                check.postpone(now);
                check
            }))
        } else {
            State::Ended(Retained {
                until: now + OUTCOME_RETENTION,
                answers: self.awaited,
                may_hold,
                check_due: now,
                confirmation: Confirmation::default(),
            })
        };
    }

    fn next(&mut self, now: Timestamp, events: &mut Events) -> Action {
        if self.over {
            return Action::Sleep;
        }
        match &self.state {
            State::Ended(retained) if now >= retained.until => self.forget_outcome(now, events),
            State::Ended(retained) if self.awaited && !retained.answers => {
                if retained.may_hold {
                    let due = retained.check_due;
                    if now >= due {
                        return Action::Call(Call::ReadStats);
                    }
                    return Action::SleepUntil(due.min(retained.until));
                }
                // Those who come now wait for the next drain.
                self.forget_outcome(now, events);
            }
            _ => {}
        }
        if self.stopping.is_some() && self.drain().is_none() {
            let until = self.update_over(now);
            if self.over || !self.awaited || self.left_alone {
                return until.map_or(Action::Sleep, Action::SleepUntil);
            }
            events.push(DrainEvent::StartedBySignal);
            let envoy = self.envoy.clone().unwrap_or_else(|| self.own.admin_address.clone());
            self.start(Options { admin_address: envoy, ..self.own.clone() }, now);
        }
        if self.drain().is_none()
            && let Some(call) = self.asked_call()
        {
            return Action::Call(call);
        }
        match &mut self.state {
            State::Draining(drain) => drain.next(self.awaited, now, events),
            State::Ended(retained) => Action::SleepUntil(retained.until),
            // A deletion may be under way.
            State::Idle(Some(check)) if check.restores() && self.awaited => Action::Sleep,
            State::Idle(Some(check)) if now < check.due => Action::SleepUntil(check.due),
            State::Idle(Some(check)) => Action::Call(check.call),
            State::Idle(None) => Action::Sleep,
        }
    }

    /// What the file of `--injected-resource` is to hold, in hundredths. None: what it holds.
    pub fn pressure(&self, now: Timestamp) -> Option<u8> {
        match &self.state {
            State::Draining(drain) => drain.pressure(now),
            State::Ended(_) => {
                // Else Envoy still is out of service.
                let kind = self.last.as_ref().map(|last| last.outcome.kind);
                (kind == Some(OutcomeKind::EnvoyGone)).then_some(0)
            }
            State::Idle(_) => Some(0),
        }
    }

    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Idle(_) => Phase::Idle,
            State::Ended(_) => Phase::Ended,
            State::Draining(drain) => drain.phase(),
        }
    }

    /// The drain in progress.
    pub fn drain(&self) -> Option<&Drain> {
        match &self.state {
            State::Draining(drain) => Some(drain),
            State::Idle(_) | State::Ended(_) => None,
        }
    }

    /// The drain in progress, for the simulation to plant a bug in.
    #[cfg(test)]
    pub(super) fn drain_mut(&mut self) -> Option<&mut Drain> {
        match &mut self.state {
            State::Draining(drain) => Some(drain),
            State::Idle(_) | State::Ended(_) => None,
        }
    }

    /// The sidecar's own options, which a hook's override.
    pub fn own(&self) -> &Options {
        &self.own
    }

    /// The number of the latest drain; 0 before the first.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The latest drain that has ended.
    pub fn last(&self) -> Option<&Ended> {
        self.last.as_ref()
    }

    /// What holds for the drain in progress or the latest one, until nothing of it is left to be
    /// done.
    pub fn options(&self) -> Option<&Options> {
        match &self.state {
            State::Draining(drain) => Some(&drain.options),
            State::Ended(_)
            | State::Idle(Some(StartupCheck { reason: CheckReason::AfterDrain, .. })) => {
                self.last_options.as_ref()
            }
            State::Idle(_) => None,
        }
    }

    /// The same, and the sidecar's own while nothing is.
    pub fn in_force(&self) -> &Options {
        self.options().unwrap_or(&self.own)
    }

    /// The drain that a new waiter waits for: the current one, or the one that has just ended if that
    /// answers, else the next.
    pub fn awaited_drain(&self) -> u64 {
        match &self.state {
            State::Draining(_) => self.number,
            State::Ended(retained) if retained.answers => self.number,
            State::Idle(_) | State::Ended(_) => self.number + 1,
        }
    }

    /// How the drain of this number ended, if it has; a later one's end stands in for it.
    pub fn end_of(&self, number: u64) -> Option<&Ended> {
        self.last.as_ref().filter(|ended| ended.number >= number)
    }

    /// The end that answers one who has come to wait for the drain of this number as Envoy's own hook
    /// does: of that drain, or of the one before if that was found to hold.
    pub fn answer_to(&self, awaited: u64) -> Option<&Ended> {
        let holds = matches!(&self.state, State::Ended(retained) if retained.answers);
        self.end_of(awaited).or_else(|| self.last.as_ref().filter(|_| holds))
    }
}
