//! What happens in a schedule: the machine, its worker, and everything that it does not control.

use std::time::Duration;

use super::envoy::{Envoy, Mood};
use super::{Planted, Random};
use crate::cli::options::{DrainOption, Options, Overrides, WaitFor};
use crate::drain::stages::MAX_READY_INTERVAL;
use crate::drain::*;
use crate::envoy::error::AdminErrorKind;
use crate::envoy::stats::Kinds;
use crate::envoy::{Arrivals, Call, CallResult, Health, HiddenStats, Poll, Reply};
use crate::os::clock::Timestamp;

pub const ADDRESSES: [&str; 2] = ["/a/admin.sock", "/b/admin.sock"];

/// A client that waits as Envoy's own hook does.
pub struct Waiter {
    pub awaits: u64,
    pub answers: u32,
}

pub struct World {
    pub planted: Option<Planted>,
    pub random: Random,
    /// The sidecar was given an address: that of the first Envoy.
    pub given: bool,
    pub restore: bool,
    /// How long a call takes that has no response.
    pub call_time: Duration,
    pub now: Timestamp,
    pub machine: Machine,
    /// What goes into the machine next.
    event: Event,
    pub envoys: [Envoy; 2],
    /// When something outside happens next.
    outside: Timestamp,
    pub waiters: Vec<Waiter>,
    pub stopped: Option<Timestamp>,
    /// Calls since the clock was last waited for, in a second at most.
    calls_in_a_row: u32,
    row_began: Timestamp,
    pub drains: u64,
    /// The Envoy that this sidecar drains, once it is known.
    pub home: Option<usize>,
    /// It was found out that its listeners are hidden.
    pub knows_hidden: bool,
    /// A drain has gone further than to wait for Envoy's own hook.
    pub drained: bool,
    /// A client has had Envoy restored, and that is not done yet.
    pub restore_asked: bool,
    /// What the rules need to know of the latest drain.
    pub drain: Seen,
}

/// What the rules need to know of the latest drain.
#[derive(Default)]
pub struct Seen {
    pub options: Options,
    pub target: usize,
    pub began: Timestamp,
    /// It first confirms the end of the one before.
    pub confirms: Option<OutcomeKind>,
    pub began_confirming: bool,
    pub hurried: bool,
    /// Whether a client waited at its start, and when others came.
    pub awaited: bool,
    pub arrivals: Vec<Timestamp>,
    pub tried: bool,
    pub failed_at: Option<Timestamp>,
    /// It was tried to drain this Envoy's listeners.
    pub listeners: bool,
    pub last_poll: Option<Poll>,
    /// What really held the drain at the latest poll that did not lie.
    pub honest: Option<u64>,
    /// The latest reply was a valid poll.
    pub polled: bool,
    pub starting: bool,
    pub reverted: bool,
    /// A delay has ended early.
    pub quiet_before_failing: bool,
    pub quiet_since_failing: bool,
    pub released: bool,
    /// It was released when health checks were yet to be failed.
    pub owes_try: bool,
    pub refused: Vec<Timestamp>,
}

impl World {
    pub fn new(seed: u64, planted: Option<Planted>) -> Self {
        let mut random = Random(seed);
        let (given, restore) = (random.one_in(3), !random.one_in(4));
        let mut overrides = Overrides::default();
        if given {
            overrides.set(DrainOption::AdminAddress, ADDRESSES[0]).expect("an address");
        }
        let own = Options { admin_address: address(0), ..Options::default() };
        let own = Options { check_delay: Duration::from_secs(1), ..own };
        let envoys = [Envoy::new(&mut random), Envoy::new(&mut random)];
        Self {
            planted,
            given,
            restore,
            call_time: Duration::from_secs(if random.one_in(4) { 10 } else { 2 }),
            outside: Timestamp::ZERO + random.millis(6_000),
            random,
            now: Timestamp::ZERO,
            machine: Machine::new(own.clone(), &overrides, restore, Timestamp::ZERO),
            event: Event::Tick,
            envoys,
            waiters: Vec::new(),
            stopped: None,
            calls_in_a_row: 0,
            row_began: Timestamp::ZERO,
            drains: 0,
            home: given.then_some(0),
            knows_hidden: false,
            drained: false,
            restore_asked: false,
            drain: Seen { options: own, ..Seen::default() },
        }
    }

    fn random_options(&mut self) -> Options {
        let random = &mut self.random;
        let seconds = Duration::from_secs;
        Options {
            check_interval: random.pick(&[
                Duration::from_millis(10),
                seconds(1),
                seconds(5),
                seconds(30),
                seconds(3600),
            ]),
            check_delay: random.pick(&[Duration::ZERO, seconds(1), seconds(10), seconds(60)]),
            drain_delay: random.pick(&[Duration::ZERO, Duration::ZERO, seconds(1), seconds(20)]),
            health_check_failure_delay: random.pick(&[Duration::ZERO, Duration::ZERO, seconds(2)]),
            min_drain_duration: random.pick(&[Duration::ZERO, seconds(12)]),
            drain_listeners: random.one_in(3),
            drain_timeout: random.pick(&[
                None,
                Some(Duration::ZERO),
                Some(seconds(15)),
                Some(seconds(90)),
            ]),
            min_open_connections: random.pick(&[0, 0, 1, 5]),
            wait_for: random.pick(&WaitFor::ALL),
            quiet_period: random.pick(&[Duration::ZERO, seconds(3), seconds(30)]),
            require_envoy_hook: random.one_in(4),
            ..Options::default()
        }
    }

    /// Something that the machine does not control.
    fn happen(&mut self) {
        match self.random.below(16) {
            0 | 1 => self.hook(),
            2 | 3 => self.waiter(),
            4 if self.random.one_in(4) => self.signal(),
            6 if self.random.one_in(8) => {
                let phase = self.machine.phase();
                if self.machine.release().is_some() {
                    self.drain.released = true;
                    self.drain.owes_try |=
                        matches!(phase, Phase::DrainDelay | Phase::FailingHealthChecks);
                }
            }
            7 if self.random.one_in(4) => self.restore_asked |= self.machine.restore(),
            8 => {
                self.machine.refresh();
            }
            5 => self.envoys[1].change(&mut self.random, self.now),
            _ => self.envoys[0].change(&mut self.random, self.now),
        }
        self.outside = self.now + self.random.millis(9_000);
    }

    fn waiter(&mut self) {
        let awaited = self.machine.phase() == Phase::AwaitingEnvoyHook;
        // It still is while it is found out whether Envoy has ended.
        self.drain.awaited |= awaited && !self.drain.refused.is_empty();
        self.machine.waiter_arrived(self.now);
        let awaits = self.machine.awaited_drain();
        let started = u64::from(self.machine.drain().is_none());
        assert!(awaits == self.drains + started || self.machine.phase() == Phase::Ended);
        self.waiters.push(Waiter { awaits, answers: 0 });
        self.drain.arrivals.push(self.now);
    }

    fn signal(&mut self) {
        self.stopped.get_or_insert(self.now);
        let in_drain = self.machine.drain().is_some();
        self.drain.hurried |= in_drain;
        match self.planted {
            Some(Planted::SignalInDrainIgnored) if in_drain => {}
            Some(Planted::SignalAtRestIgnored) if !in_drain => {}
            _ => self.machine.stop(self.now),
        }
    }

    /// A hook that names an Envoy, or none.
    fn hook(&mut self) {
        let names = self.random.pick(&[None, None, Some(0), Some(1)]);
        let options = self.random_options();
        let mut overrides = overrides(&options);
        let meant = if let Some(index) = names {
            overrides.set(DrainOption::AdminAddress, ADDRESSES[index]).expect("an address");
            index
        } else {
            self.home.or(self.in_progress()).unwrap_or(0)
        };
        if self.planted == Some(Planted::OtherEnvoysHookTaken) {
            overrides = self::overrides(&options);
        }
        let phase = self.machine.phase();
        if self.planted == Some(Planted::EarlyWaiterDoesNotCount) && phase == Phase::Idle {
            self.machine.last_waiter_left(self.now);
        }
        let refused = self.home.or(self.in_progress()).is_some_and(|own| own != meant);
        let start = self.machine.request(&overrides, self.now);
        assert_eq!(start.is_err(), refused, "the hook of another Envoy: {start:?}");
        match start {
            Ok(DrainStart::Started(number)) => {
                assert!(self.in_progress_was_none(number));
                let address = address(meant);
                self.started(Options { admin_address: address, ..options }, meant);
            }
            Ok(DrainStart::Joined(number)) => assert_eq!(number, self.drains),
            Err(_) => {}
        }
    }

    fn in_progress_was_none(&self, number: u64) -> bool {
        number == self.drains + 1
    }

    /// The Envoy of the drain in progress.
    fn in_progress(&self) -> Option<usize> {
        self.machine.drain().map(|_| self.drain.target)
    }

    fn started(&mut self, options: Options, target: usize) {
        self.drains += 1;
        self.restore_asked = false;
        let confirms = self.machine.drain().is_some_and(Drain::confirms_outcome);
        self.drain = Seen {
            options,
            target,
            began: self.now,
            awaited: self.is_awaited(),
            began_confirming: confirms,
            confirms: self.machine.last().map(|last| last.outcome.kind).filter(|_| confirms),
            ..Seen::default()
        };
    }

    pub fn is_awaited(&self) -> bool {
        self.waiters.iter().any(|waiter| waiter.answers == 0)
    }

    fn call(&mut self, call: Call) -> CallResult {
        if self.now >= self.row_began + Duration::from_secs(1) {
            (self.row_began, self.calls_in_a_row) = (self.now, 0);
        }
        self.calls_in_a_row += 1;
        assert!(
            self.calls_in_a_row < 20,
            "{} calls within an interval, without a pause",
            self.calls_in_a_row
        );
        let asked = self.now;
        let (in_drain, number) = (self.machine.drain().is_some(), self.machine.number());
        self.check_call(call, in_drain);
        let idle = self.home.unwrap_or(0);
        let after = self.machine.options().is_some();
        // As the coordinator does it: the options of the drain, else the sidecar's own.
        let target = if in_drain || after { self.drain.target } else { 0 };
        assert!(in_drain || after || idle == 0 || !self.given);
        let limit = self.machine.drain().and_then(|drain| drain.time_left(asked));
        let longest = limit
            .map_or(self.call_time, |left| self.call_time.min(left.max(Duration::from_secs(2))));
        self.now = self.now
            + match self.envoys[target].mood {
                Mood::Hangs => longest,
                _ if self.random.one_in(4) => self.random.millis(1_999),
                _ => Duration::from_micros(300),
            };
        // Things happen while a call is under way, too.
        if self.outside <= self.now {
            self.happen();
        }
        let result = self.envoys[target].call(call, &mut self.random, self.now);
        // A drain that began meanwhile drops the reply.
        if result.is_ok() && self.machine.number() == number {
            self.home.get_or_insert(target);
        }
        if let Ok(Reply::Listeners(hidden)) = &result
            && self.machine.number() == number
        {
            self.knows_hidden = !hidden.listeners.is_empty();
        }
        if in_drain {
            self.note(asked, call, &result);
        } else if self.machine.phase() == Phase::Ended {
            self.note_late(&result);
        }
        result
    }

    fn answer_waiters(&mut self) {
        let mut answered = Vec::new();
        for (index, waiter) in self.waiters.iter().enumerate() {
            if waiter.answers == 0 && self.machine.answer_to(waiter.awaits).is_some() {
                answered.push(index);
            }
        }
        for index in answered {
            self.check_answer(index);
            self.waiters[index].answers += 1;
        }
        if !self.is_awaited() {
            self.machine.last_waiter_left(self.now);
        }
    }

    pub fn run_for_a_while(&mut self) {
        let length = Duration::from_secs(5 + self.random.below(200));
        self.run(Timestamp::ZERO + length);
    }

    fn run(&mut self, end: Timestamp) {
        while self.now < end && !self.machine.is_over() {
            let number = self.machine.number();
            let event = std::mem::replace(&mut self.event, Event::Tick);
            let event = self.plant(event);
            let was_awaited = self.is_awaited();
            let step = self.machine.step(&event, self.now);
            if step.events.contains(&DrainEvent::StartedBySignal) {
                assert!(
                    self.stopped.is_some() && was_awaited,
                    "a drain that no hook and no signal started"
                );
                let target = self.home.unwrap_or(0);
                let own = Options { admin_address: address(target), ..Options::default() };
                self.started(Options { check_delay: Duration::from_secs(1), ..own }, target);
            }
            assert_eq!(
                self.machine.number(),
                self.drains,
                "a drain that no hook and no signal started"
            );
            step.events.iter().for_each(|event| self.check_event(event));
            self.check_step(step.action);
            match step.action {
                action @ (Action::Sleep | Action::SleepUntil(_)) => self.sleep(action, end),
                Action::Call(call) => {
                    let number = self.machine.number().max(number);
                    self.event = Event::Reply { drain: number, call, result: self.call(call) };
                }
                Action::Finish(outcome) => {
                    self.check_end(outcome);
                    self.event = Event::Finished;
                }
            }
            self.answer_waiters();
        }
    }

    fn sleep(&mut self, action: Action, end: Timestamp) {
        self.calls_in_a_row = 0;
        let wake = match action {
            Action::SleepUntil(time) => {
                assert!(time > self.now, "a wake-up in the past");
                self.check_sleep(time - self.now);
                time
            }
            _ => {
                assert!(self.machine.drain().is_none(), "a drain that sleeps for good");
                end
            }
        };
        // The coordinator's main thread looks as well, for the worker may be in a call.
        let over = self.machine.update_over(self.now).unwrap_or(Timestamp::MAX);
        self.now = wake.min(self.outside).min(end).min(over);
        self.machine.update_over(self.now);
        if self.outside <= self.now && !self.machine.is_over() {
            self.happen();
        }
    }

    fn plant(&mut self, event: Event) -> Event {
        let Some(planted) = self.planted else { return event };
        let draining = |open| Poll::of(open, Health::Draining);
        let in_drain = self.machine.drain().is_some();
        match planted {
            Planted::CheckDelayNotRestarted if self.drain.last_poll.is_some() => {
                if let Some(drain) = self.machine.drain_mut() {
                    drain.options.check_delay = Duration::ZERO;
                }
            }
            Planted::IntervalIgnored => {
                if let Some(drain) = self.machine.drain_mut() {
                    drain.options.check_interval = Duration::from_micros(10);
                }
            }
            Planted::TwoRefusalsAreGone if self.drain.refused.len() == 2 => {
                if matches!(event, Event::Reply { .. }) {
                    self.machine.step(&event, self.now);
                }
            }
            Planted::ListenersDrainedUnawaited if self.machine.phase() == Phase::CheckDelay => {
                self.machine.waiter_arrived(self.now);
            }
            _ => {}
        }
        let Event::Reply { drain, call, mut result } = event else { return event };
        match (planted, &mut result) {
            (Planted::FailedPollIsZero, Err(error))
                if call == Call::ReadStats && !error.is_refusal() =>
            {
                result = Ok(Reply::Stats(draining(0)));
            }
            (Planted::OnePollIsEnough, Ok(Reply::Stats(poll))) => poll.subtracted = false,
            (Planted::OnePollWithoutRequests, Ok(Reply::Stats(poll))) => {
                poll.breakdown.kinds = Kinds::default();
            }
            (Planted::HiddenListenersIgnored, Ok(Reply::Listeners(hidden))) => {
                *hidden = HiddenStats::default();
            }
            (Planted::UnknownListenersIgnored, Err(error))
                if call == Call::CheckListeners && error.kind == AdminErrorKind::Status =>
            {
                result = Ok(Reply::Listeners(HiddenStats::default()));
            }
            (Planted::OldTotalBelieved, Ok(Reply::Stats(Poll { total: Some(total), .. }))) => {
                total.uptime = self.now.since_boot().as_micros() as u64;
            }
            (Planted::ArrivalsIgnored, Ok(Reply::Accepted(Some(arrivals)))) => {
                *arrivals = Arrivals::default();
            }
            (Planted::TotalIgnored, Ok(Reply::Stats(Poll { total: Some(total), .. }))) => {
                total.connections = 0;
            }
            (Planted::GoneWhereNothingWas, Err(error)) if error.is_refusal() && in_drain => {
                let responds = Ok(Reply::Ready(Health::Draining));
                let event = Event::Reply { drain, call: Call::CheckReady, result: responds };
                if self.drain.refused.len() == 1 {
                    self.home.get_or_insert(self.drain.target);
                    self.machine.step(&event, self.now);
                }
            }
            (Planted::LateWaiterNotChecked, Ok(_)) if self.machine.phase() == Phase::Ended => {
                result = Ok(Reply::Stats(draining(0)));
            }
            (Planted::LateHookNotChecked, _)
                if self.machine.drain().is_some_and(Drain::confirms_outcome) =>
            {
                result = Ok(Reply::Stats(draining(0)));
            }
            (Planted::RevertIgnored, Ok(Reply::Ready(health))) if in_drain => {
                *health = Health::Draining;
            }
            _ => {}
        }
        Event::Reply { drain, call, result }
    }

    /// From now on Envoy is well and its connections close, so every drain must end.
    pub fn settle(&mut self) {
        self.outside = Timestamp::MAX;
        for envoy in &mut self.envoys {
            envoy.settle(self.now);
        }
        if self.machine.is_over() {
            return;
        }
        if self.machine.drain().is_none() && self.stopped.is_none() {
            let start = self.machine.request(&Overrides::default(), self.now).expect("its Envoy");
            assert_eq!(start, DrainStart::Started(self.drains + 1));
            let target = self.home.unwrap_or(0);
            let own = Options { admin_address: address(target), ..Options::default() };
            self.started(Options { check_delay: Duration::from_secs(1), ..own }, target);
        }
        let polls = 3 * self.drain.options.check_interval;
        self.run(self.now + Duration::from_secs(400) + polls);
        if self.machine.is_over() {
            return assert!(!self.is_awaited(), "over while a client waits");
        }
        assert!(self.may_go_on() || self.machine.drain().is_none(), "a drain that does not end");
        if self.machine.drain().is_none() {
            for waiter in &self.waiters {
                assert_eq!(waiter.answers, 1, "a waiter for drain {}", waiter.awaits);
            }
        }
    }

    /// Whether a drain may wait for ever: for an Envoy that is nowhere while its own hook waits, or
    /// whose hidden connections nothing counts.
    fn may_go_on(&self) -> bool {
        let envoy = &self.envoys[self.drain.target];
        let nowhere = envoy.absent && self.is_awaited();
        nowhere || self.knows_hidden && !envoy.shows_total
    }

    pub fn check_sleep(&self, unseen: Duration) {
        if self.machine.drain().is_none() {
            return;
        }
        assert!(unseen <= MAX_READY_INTERVAL, "a revert or an end stays unseen for {unseen:?}");
        let haste = Duration::from_millis(200);
        assert!(!self.drain.hurried || unseen <= haste, "no haste after a signal: {unseen:?}");
    }
}

fn address(index: usize) -> crate::cli::address::AdminAddress {
    crate::cli::address::AdminAddress::parse(ADDRESSES[index]).expect("an address")
}

/// What a hook says that was given these options.
fn overrides(options: &Options) -> Overrides {
    let mut overrides = Overrides::default();
    for option in DrainOption::ALL.into_iter().filter(|o| *o != DrainOption::AdminAddress) {
        for value in options.get(option) {
            overrides.set(option, &value).expect("a value");
        }
    }
    overrides
}
