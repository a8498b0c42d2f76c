//! Random schedules: a drain, an Envoy that restarts, hangs, refuses and is restored by others,
//! hooks and waiters that come at any time, and a clock that jumps to the next thing to happen.
//! `SEED=n cargo test --lib simulation` runs one schedule alone, `SCHEDULES=n` so many, from the
//! seed `BASE` on; `just simulate` runs a million new ones.

use std::time::{Duration, Instant};

use super::progress::MAX_READY_INTERVAL;
use super::*;
use crate::cli::options::Options;
use crate::envoy::error::{AdminError, AdminErrorKind};
use crate::envoy::{Call, CallResult, Health, HiddenListeners, Poll, Reply};
use crate::os::clock::Timestamp;

/// SplitMix64: a few lines that give the same schedules everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn millis(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }
}

/// How Envoy responds at the moment.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Well,
    /// Responds, but with something else.
    Odd,
    Hangs,
    Refuses,
}

struct Envoy {
    mood: Mood,
    /// Health checks are failed.
    failed: bool,
    starting_until: Timestamp,
    open: u64,
}

struct Waiter {
    awaits: u64,
    answers: u32,
}

/// One call gives up after this long.
const CALL: Duration = Duration::from_secs(2);

/// A bug of the machine, planted from outside: what goes into it is not what happened.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Planted {
    CheckDelayNotRestarted,
    FailedPollIsZero,
    TwoRefusalsAreGone,
    ListenersDrainedUnawaited,
}

struct World {
    planted: Option<Planted>,
    random: Random,
    restore: bool,
    now: Timestamp,
    machine: Machine,
    /// What goes into the machine next.
    event: Event,
    envoy: Envoy,
    /// When something outside happens next.
    outside: Timestamp,
    waiters: Vec<Waiter>,
    drains: u64,
    // What the invariants need to know.
    options: Options,
    began: Timestamp,
    /// When each waiter came.
    arrivals: Vec<Timestamp>,
    /// A drain has gone further than to wait for Envoy's own hook.
    drained: bool,
    tried: bool,
    failed_at: Option<Timestamp>,
    /// It was tried to drain this Envoy's listeners.
    listeners: bool,
    last_poll: Option<Poll>,
    /// The latest reply was a valid poll.
    polled: bool,
    starting: bool,
    reverted: bool,
    refused: Vec<Timestamp>,
}

impl World {
    fn new(seed: u64, planted: Option<Planted>) -> Self {
        let mut random = Random(seed);
        let restore = !random.one_in(4);
        let envoy = Envoy {
            mood: Mood::Well,
            failed: random.one_in(3),
            starting_until: Timestamp::ZERO,
            open: random.below(4),
        };
        Self {
            planted,
            outside: Timestamp::ZERO + random.millis(6_000),
            random,
            restore,
            now: Timestamp::ZERO,
            machine: Machine::new(Timestamp::ZERO, restore),
            event: Event::Tick,
            envoy,
            waiters: Vec::new(),
            drains: 0,
            options: Options::default(),
            began: Timestamp::ZERO,
            arrivals: Vec::new(),
            drained: false,
            tried: false,
            failed_at: None,
            listeners: false,
            last_poll: None,
            polled: false,
            starting: false,
            reverted: false,
            refused: Vec::new(),
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
            require_envoy_hook: random.one_in(4),
            ..Options::default()
        }
    }

    /// Something that the machine does not control.
    fn happen(&mut self) {
        match self.random.below(12) {
            0 => self.hook(),
            1 | 2 => {
                let next = self.machine.phase() == Phase::Idle;
                let awaits = self.drains + u64::from(next);
                assert_eq!(self.machine.awaited_drain(), awaits);
                self.waiters.push(Waiter { awaits, answers: 0 });
                self.machine.waiter_arrived(self.now);
                self.arrivals.push(self.now);
            }
            3 => self.envoy.mood = self.random.pick(&[Mood::Odd, Mood::Hangs, Mood::Refuses]),
            4 => {
                self.envoy.failed = false;
                self.envoy.starting_until = self.now + self.random.millis(4_000);
                self.envoy.open = 0;
            }
            5 => self.envoy.failed = false,
            _ => self.envoy.mood = Mood::Well,
        }
        let least = if self.envoy.failed { 0 } else { self.envoy.open.saturating_sub(1) };
        self.envoy.open = least + self.random.below(3);
        self.outside = self.now + self.random.millis(9_000);
    }

    fn hook(&mut self) {
        let options = self.random_options();
        let was_serving = self.machine.phase() == Phase::Idle;
        let start = self.machine.start(options.clone(), self.now);
        assert_eq!(
            start,
            if was_serving {
                self.drains += 1;
                self.options = options;
                self.began = self.now;
                self.tried = false;
                self.failed_at = None;
                self.listeners = false;
                self.last_poll = None;
                self.polled = false;
                self.starting = false;
                self.reverted = false;
                self.refused.clear();
                DrainStart::Started(self.drains)
            } else {
                DrainStart::Joined(self.drains)
            }
        );
    }

    fn call(&mut self, call: Call) -> CallResult {
        let asked = self.now;
        let in_drain = self.machine.drain().is_some();
        match call {
            Call::FailHealthChecks => {
                assert!(in_drain, "health checks failed outside a drain");
                assert!(!self.options.require_envoy_hook || self.envoys_hook_came());
                assert!(asked >= self.began + self.options.delay(), "failed too early");
                self.tried = true;
            }
            Call::DrainListeners => {
                assert!(in_drain && self.options.drains_listeners(), "unasked");
                assert!(self.is_awaited(), "what cannot be undone, while no client waits");
                let early = !self.options.health_check_failure_delay.is_zero();
                assert!(early || self.failed_at.is_some(), "before health checks were failed");
                assert!(asked >= self.began + self.options.drain_delay, "within the drain delay");
                self.listeners = true;
            }
            Call::ReadStats if in_drain => {
                self.assert_settled(asked);
                let unasked = !self.options.drains_listeners() || !self.is_awaited();
                assert!(unasked || self.listeners, "polled before the listeners drain");
            }
            Call::RestoreHealthChecks => {
                assert!(
                    self.restore && !self.drained && asked >= Timestamp::ZERO + RESTORE_DELAY,
                    "restored"
                );
                assert!(!self.is_awaited(), "restored while a client waits");
            }
            Call::CheckReady | Call::ReadStats | Call::CheckListeners => {}
        }
        if in_drain && self.reverted {
            assert_eq!(call, Call::FailHealthChecks, "failed again after every revert");
        }
        self.now = self.now
            + match self.envoy.mood {
                Mood::Hangs => CALL,
                _ if self.random.one_in(4) => self.random.millis(1_999),
                _ => Duration::from_micros(300),
            };
        // Things happen while a call is under way, too.
        if self.outside <= self.now {
            self.happen();
        }
        let error = |kind| Err(AdminError { kind, text: String::new() });
        let result = match self.envoy.mood {
            Mood::Hangs => error(AdminErrorKind::Timeout),
            Mood::Refuses => error(AdminErrorKind::Refused),
            Mood::Odd => error(self.random.pick(&[
                AdminErrorKind::Status,
                AdminErrorKind::Protocol,
                AdminErrorKind::Content,
            ])),
            Mood::Well => Ok(self.well(call)),
        };
        if in_drain {
            self.note(asked, &result);
        }
        result
    }

    fn is_awaited(&self) -> bool {
        self.waiters.iter().any(|waiter| waiter.answers == 0)
    }

    fn well(&mut self, call: Call) -> Reply {
        let health = if self.now < self.envoy.starting_until {
            Health::Starting
        } else if self.envoy.failed {
            Health::Draining
        } else {
            Health::Live
        };
        match call {
            Call::FailHealthChecks => {
                self.envoy.failed = true;
                Reply::HealthChecksFailed
            }
            Call::DrainListeners => Reply::ListenersDraining,
            Call::RestoreHealthChecks => {
                self.envoy.failed = false;
                Reply::HealthChecksRestored
            }
            Call::CheckReady => Reply::Ready(health),
            Call::CheckListeners => Reply::Listeners(HiddenListeners::default()),
            Call::ReadStats => {
                let health = if self.envoy.failed { Health::Draining } else { Health::Live };
                Reply::Stats(Poll::of(self.envoy.open, health))
            }
        }
    }

    /// What the invariants need to know of a reply in a drain.
    fn note(&mut self, asked: Timestamp, result: &CallResult) {
        if result.as_ref().is_err_and(AdminError::is_refusal) {
            self.refused.push(asked);
            self.listeners = false;
        } else {
            self.refused.clear();
        }
        match result {
            Ok(Reply::HealthChecksFailed) => {
                self.failed_at = Some(self.now);
                self.reverted = false;
            }
            Ok(Reply::Ready(health)) => self.saw(*health),
            Ok(Reply::Stats(poll)) => {
                self.last_poll = Some(*poll);
                self.saw(poll.health);
            }
            _ => {}
        }
        self.polled = matches!(result, Ok(Reply::Stats(_)));
    }

    /// One that is starting was restarted, which counts once.
    fn saw(&mut self, health: Health) {
        let was_starting = std::mem::replace(&mut self.starting, health == Health::Starting);
        let restarted = self.starting && !was_starting;
        self.reverted = (health == Health::Live || restarted) && self.failed_at.is_some();
        self.listeners &= !self.reverted;
    }

    fn assert_settled(&self, now: Timestamp) {
        let failed_at = self.failed_at.expect("health checks were failed");
        assert!(now >= failed_at + self.options.check_delay, "polled unsettled");
        assert!(now >= self.began + self.options.min_drain_duration, "polled too early");
    }

    fn envoys_hook_came(&self) -> bool {
        self.arrivals
            .iter()
            .any(|arrival| (*arrival - self.began).max(self.began - *arrival) < HOOK_PAIRING_WINDOW)
    }

    fn ended(&mut self, outcome: Outcome) {
        self.drained |= outcome != Outcome::NO_ENVOY_HOOK;
        let timeout = self.options.drain_timeout;
        match outcome.kind {
            OutcomeKind::Drained => {
                let open = outcome.open.expect("a number of open connections");
                let poll = self.last_poll.expect("drained without a valid poll");
                assert_eq!(poll.open, open, "open at the last valid poll");
                assert!(open <= self.options.min_open_connections, "drained above the threshold");
                assert_eq!(poll.health, Health::Draining, "drained in service");
                assert!(self.polled, "drained by something else than a valid poll");
                self.assert_settled(self.now);
            }
            OutcomeKind::TimedOut => {
                let open = outcome.open;
                let timeout = timeout.expect("timed out without a timeout");
                assert!(self.now >= self.began + timeout, "timed out too early");
                assert_eq!(open, self.last_poll.map(|p| p.open), "open at the last valid poll");
                // What is due first is done first, however late it is.
                let delay = self.options.delay();
                assert!(self.tried || timeout < delay, "timed out before health checks failed");
            }
            OutcomeKind::EnvoyGone => {
                assert_eq!(self.refused.len(), 3, "refusals in a row");
                for pair in self.refused.windows(2) {
                    assert!(pair[1] >= pair[0] + Duration::from_secs(1), "refusals too close");
                }
            }
            OutcomeKind::NoEnvoyHook => {
                assert!(self.options.require_envoy_hook && !self.envoys_hook_came());
                assert!(self.now >= self.began + HOOK_PAIRING_WINDOW, "left alone too early");
                assert_eq!(self.failed_at, None, "left alone out of service");
            }
        }
        if let Some(timeout) = timeout {
            // Where Envoy's own hook is required, that is waited for first, with a check of Envoy
            // under way when it comes, and then it is tried to fail health checks.
            let end = match self.options.require_envoy_hook {
                true => timeout.max(HOOK_PAIRING_WINDOW + CALL) + CALL,
                false => timeout + CALL,
            };
            assert!(self.now <= self.began + end, "later than one call after its timeout");
        }
    }

    fn answer_waiters(&mut self) {
        for waiter in self.waiters.iter_mut().filter(|waiter| waiter.answers == 0) {
            if let Some(ended) = self.machine.end_of(waiter.awaits) {
                assert_eq!(ended.number, waiter.awaits, "the end of another drain");
                waiter.answers += 1;
            }
        }
        if self.waiters.iter().all(|waiter| waiter.answers > 0) {
            self.machine.last_waiter_left(self.now);
        }
    }

    fn run(&mut self, end: Timestamp) {
        while self.now < end {
            let number = self.machine.number();
            let event = std::mem::replace(&mut self.event, Event::Tick);
            let event = self.plant(event);
            let action = self.machine.step(&event, self.now).action;
            match action {
                Action::Sleep | Action::SleepUntil(_) => {
                    let wake = match action {
                        Action::SleepUntil(time) => {
                            assert!(time > self.now, "a wake-up in the past");
                            let unseen = time - self.now;
                            let settling = self.machine.phase() == Phase::CheckDelay;
                            assert!(
                                !settling || unseen <= MAX_READY_INTERVAL,
                                "a revert stays unseen"
                            );
                            time
                        }
                        _ => {
                            assert!(self.machine.drain().is_none(), "a drain that sleeps for good");
                            end
                        }
                    };
                    self.now = wake.min(self.outside).min(end);
                    if self.outside <= self.now {
                        self.happen();
                    }
                }
                Action::Call(call) => {
                    self.event = Event::Reply { drain: number, call, result: self.call(call) };
                }
                Action::Finish(outcome) => {
                    self.ended(outcome);
                    self.event = Event::Finished;
                }
            }
            self.answer_waiters();
        }
    }

    fn plant(&mut self, event: Event) -> Event {
        match (self.planted, event) {
            (Some(Planted::CheckDelayNotRestarted), event) => {
                if self.last_poll.is_some()
                    && let Some(drain) = self.machine.drain_mut()
                {
                    drain.options.check_delay = Duration::ZERO;
                }
                event
            }
            (
                Some(Planted::FailedPollIsZero),
                Event::Reply { drain, call: call @ Call::ReadStats, result: Err(error) },
            ) if !error.is_refusal() => {
                let poll = Poll::of(0, Health::Draining);
                Event::Reply { drain, call, result: Ok(Reply::Stats(poll)) }
            }
            (Some(Planted::TwoRefusalsAreGone), event @ Event::Reply { .. }) => {
                if self.refused.len() == 2 {
                    self.machine.step(&event, self.now);
                }
                event
            }
            (Some(Planted::ListenersDrainedUnawaited), event) => {
                if self.failed_at.is_some() {
                    self.machine.waiter_arrived(self.now);
                }
                event
            }
            (_, event) => event,
        }
    }

    /// From now on Envoy is well and its connections close, so every drain must end.
    fn settle(&mut self) {
        self.outside = Timestamp::MAX;
        self.envoy.mood = Mood::Well;
        self.envoy.open = 0;
        if self.machine.phase() == Phase::Idle {
            self.hook();
        }
        self.run(self.now + Duration::from_secs(300));
        assert!(self.machine.drain().is_none(), "a drain that does not end");
        for waiter in &self.waiters {
            assert_eq!(waiter.answers, 1, "a waiter for drain {}", waiter.awaits);
        }
    }
}

fn schedule(seed: u64, planted: Option<Planted>) {
    let mut world = World::new(seed, planted);
    let length = Duration::from_secs(5 + world.random.below(200));
    world.run(Timestamp::ZERO + length);
    world.settle();
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

#[test]
fn no_schedule_breaks_an_invariant() {
    if let Some(seed) = number("SEED") {
        return schedule(seed, None);
    }
    let (base, schedules) = (number("BASE").unwrap_or(0), number("SCHEDULES").unwrap_or(100_000));
    let start = Instant::now();
    println!("{schedules} schedules, the first of them BASE={base}");
    for i in 0..schedules {
        let seed = base.wrapping_add(i);
        if std::panic::catch_unwind(|| schedule(seed, None)).is_err() {
            let took = start.elapsed().as_secs_f32();
            panic!("{took:.3}s; to repeat it: SEED={seed} cargo test --lib simulation");
        }
    }
}

#[test]
fn planted_bugs_are_found() {
    for (planted, words) in [
        (Planted::CheckDelayNotRestarted, "polled unsettled"),
        (Planted::FailedPollIsZero, "valid poll"),
        (Planted::TwoRefusalsAreGone, "refusals in a row"),
        (Planted::ListenersDrainedUnawaited, "what cannot be undone, while no client waits"),
    ] {
        let find = |seed| std::panic::catch_unwind(|| schedule(seed, Some(planted))).err();
        let found = (0..10_000).find_map(find).unwrap_or_else(|| panic!("{planted:?}: not found"));
        let found = match found.downcast::<String>() {
            Ok(text) => *text,
            Err(other) => (*other.downcast::<&str>().expect("a message")).to_owned(),
        };
        assert!(found.contains(words), "{planted:?} was found otherwise: {found}");
    }
}
