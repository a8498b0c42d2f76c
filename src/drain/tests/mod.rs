//! Whole drains on a virtual clock, against an Envoy that is a script.

mod endings;
mod pace;
mod quiet;
mod requests;
mod signals;

use std::time::Duration;

use super::*;
use crate::cli::options::{Options, Overrides};
use crate::envoy::error::{AdminError, AdminErrorKind};
use crate::envoy::{Arrivals, Call, CallResult, Health, HiddenStats, Poll, Reply};
use crate::os::clock::Timestamp;

const fn at(time: Duration) -> Timestamp {
    Timestamp::from_boot(time)
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// How Envoy responds from a moment on.
#[derive(Clone, Copy, Debug)]
enum Envoy {
    Live(u64),
    Draining(u64),
    Starting,
    Refuses,
    Hangs,
}

/// A machine, its clock, and an Envoy whose state changes at set times.
struct Scenario {
    options: Options,
    script: Vec<(Duration, Envoy)>,
    envoy: Envoy,
    machine: Machine,
    now: Duration,
    calls: Vec<(Duration, Call)>,
    events: Vec<DrainEvent>,
    /// How long Envoy takes to respond; when it hangs, the call gives up after 2 s.
    takes: Duration,
    /// When clients connect; none where Envoy does not show it.
    arrivals: Option<Vec<Duration>>,
}

/// Defaults, but small: 1 s between polls, a check delay of 10 s.
fn options() -> Options {
    Options { check_interval: s(1), check_delay: s(10), ..Options::default() }
}

/// Starts a drain at 0 s of an Envoy that is LIVE with `open` connections.
fn drain(open: u64, options: Options) -> Scenario {
    let mut scenario = idle(Envoy::Live(open), options);
    assert_eq!(scenario.start(), DrainStart::Started(1));
    scenario
}

fn machine(restore: bool) -> Machine {
    Machine::new(options(), &Overrides::default(), restore, Timestamp::ZERO)
}

fn idle(envoy: Envoy, options: Options) -> Scenario {
    Scenario {
        options,
        script: Vec::new(),
        envoy,
        machine: machine(true),
        now: Duration::ZERO,
        calls: Vec::new(),
        events: Vec::new(),
        takes: Duration::ZERO,
        arrivals: None,
    }
}

impl Scenario {
    fn at(mut self, time: Duration, envoy: Envoy) -> Self {
        self.script.push((time, envoy));
        self
    }

    fn start(&mut self) -> DrainStart {
        self.machine.start(self.options.clone(), at(self.now))
    }

    fn call(&mut self, call: Call) -> CallResult {
        while let Some((time, envoy)) = self.script.first().copied()
            && time <= self.now
        {
            self.envoy = envoy;
            self.script.remove(0);
        }
        let (health, open) = match self.envoy {
            Envoy::Live(open) => (Health::Live, open),
            Envoy::Draining(open) => (Health::Draining, open),
            Envoy::Starting => (Health::Starting, 0),
            Envoy::Refuses => return Err(error(AdminErrorKind::Refused)),
            Envoy::Hangs => {
                self.now += s(2);
                return Err(error(AdminErrorKind::Timeout));
            }
        };
        self.now += self.takes;
        Ok(match call {
            Call::FailHealthChecks => {
                if let Envoy::Live(open) = self.envoy {
                    self.envoy = Envoy::Draining(open);
                }
                Reply::HealthChecksFailed
            }
            Call::DrainListeners => Reply::ListenersDraining,
            Call::RestoreHealthChecks => {
                if let Envoy::Draining(open) = self.envoy {
                    self.envoy = Envoy::Live(open);
                }
                Reply::HealthChecksRestored
            }
            Call::CheckReady | Call::ShowState => Reply::Ready(health),
            Call::ReadStats => Reply::Stats(Poll::of(open, health)),
            Call::CheckListeners => Reply::Listeners(HiddenStats::default()),
            Call::ReadAccepted => Reply::Accepted(self.arrivals.as_ref().map(|arrivals| {
                let connections = arrivals.iter().filter(|at| **at <= self.now).count() as u64;
                Arrivals { connections, requests: Some(0) }
            })),
        })
    }

    /// Runs until the time, or until the machine has nothing to do any more.
    fn run_to(&mut self, end: Duration) -> &mut Self {
        let mut event = Event::Tick;
        while self.now <= end {
            let step = self.machine.step(&event, at(self.now));
            event = Event::Tick;
            self.events.extend(step.events);
            match step.action {
                Action::Sleep => break,
                Action::SleepUntil(time) => {
                    let time = time.since_boot();
                    assert!(time > self.now, "a wake-up in the past");
                    if time > end {
                        break;
                    }
                    self.now = time;
                }
                Action::Call(call) => {
                    self.calls.push((self.now, call));
                    let drain = self.machine.number();
                    event = Event::Reply { drain, call, result: self.call(call) };
                }
                Action::Finish(_) => event = Event::Finished,
            }
        }
        self.now = self.now.max(end);
        self
    }

    /// Runs the drain to its end.
    fn ends(&mut self) -> (Duration, Outcome) {
        self.run_to(s(1000));
        let ended = self.machine.last().expect("it did not end");
        (ended.took, ended.outcome)
    }

    fn times(&self, wanted: Call) -> Vec<Duration> {
        self.calls.iter().filter(|(_, call)| *call == wanted).map(|(time, _)| *time).collect()
    }
}

fn error(kind: AdminErrorKind) -> AdminError {
    AdminError { kind, text: String::new() }
}

/// A reply to the call that it is one to.
fn reply(drain: u64, reply: Reply) -> Event {
    let call = match reply {
        Reply::HealthChecksFailed => Call::FailHealthChecks,
        Reply::ListenersDraining => Call::DrainListeners,
        Reply::Ready(_) => Call::CheckReady,
        Reply::Stats(_) => Call::ReadStats,
        Reply::Listeners(_) => Call::CheckListeners,
        Reply::Accepted(_) => Call::ReadAccepted,
        Reply::HealthChecksRestored => Call::RestoreHealthChecks,
    };
    Event::Reply { drain, call, result: Ok(reply) }
}

fn failure(drain: u64, call: Call, kind: AdminErrorKind) -> Event {
    Event::Reply { drain, call, result: Err(error(kind)) }
}

/// What the machine does next, but for the count of new connections, which this Envoy does not show.
fn step(machine: &mut Machine, event: &Event, now: Duration) -> Action {
    let action = machine.step(event, at(now)).action;
    if action != Action::Call(Call::ReadAccepted) {
        return action;
    }
    let unknown = reply(machine.number(), Reply::Accepted(None));
    machine.step(&unknown, at(now)).action
}

const DRAINED: Outcome = Outcome::drained(0);

#[test]
fn health_checks_are_failed_at_once_and_connections_polled_after_the_check_delay() {
    let mut scenario = drain(2, options()).at(s(13), Envoy::Draining(0));
    assert_eq!(scenario.ends(), (s(13), DRAINED));
    assert_eq!(scenario.times(Call::FailHealthChecks), [s(0)]);
    let polls = [s(1), s(10), s(11), s(12), s(13)];
    assert_eq!(scenario.times(Call::ReadStats), polls, "the first for the number alone");
    let checks: Vec<Duration> = (2..10).map(s).collect();
    assert_eq!(
        scenario.times(Call::CheckReady)[..8],
        checks,
        "Envoy is checked in the check delay"
    );
}

#[test]
fn the_drain_delay_comes_before_failing_and_the_check_delay_counts_from_there() {
    let mut scenario = drain(0, Options { drain_delay: s(20), ..options() });
    scenario.takes = ms(300);
    let (took, outcome) = scenario.ends();
    let failed = scenario.times(Call::FailHealthChecks);
    assert_eq!(outcome, DRAINED);
    assert_eq!(failed.len(), 1);
    assert!(failed[0] >= s(20) && failed[0] < s(21), "{failed:?}");
    // The first for the number alone; then from the reply, not from the call.
    assert_eq!(scenario.times(Call::ReadStats), [s(1), failed[0] + ms(300) + s(10)]);
    assert_eq!(took, failed[0] + s(10) + ms(600));
}

#[test]
fn the_phases_follow_each_other() {
    let mut scenario =
        drain(1, Options { drain_delay: s(5), ..options() }).at(s(20), Envoy::Draining(0));
    for (time, phase) in [
        (s(0), Phase::DrainDelay),
        (s(4), Phase::DrainDelay),
        (s(5), Phase::CheckDelay),
        (s(14), Phase::CheckDelay),
        (s(15), Phase::WaitingForConnections),
        (s(19), Phase::WaitingForConnections),
        (s(20), Phase::Ended),
        (s(49), Phase::Ended),
        (s(50), Phase::Idle),
    ] {
        assert_eq!(scenario.run_to(time).machine.phase(), phase, "at {time:?}");
    }
    let mut failing = drain(1, options()).at(s(0), Envoy::Hangs);
    assert_eq!(failing.run_to(s(1)).machine.phase(), Phase::FailingHealthChecks);
}

#[test]
fn a_failed_call_is_reported_with_what_was_asked() {
    let mut scenario = drain(1, options()).at(s(5), Envoy::Hangs).at(s(11), Envoy::Draining(0));
    scenario.ends();
    let failed = |event: &DrainEvent| match event {
        DrainEvent::CallFailed { call, .. } => Some(*call),
        _ => None,
    };
    let failed: Vec<Call> = scenario.events.iter().filter_map(failed).collect();
    assert_eq!(failed, [Call::CheckReady, Call::CheckReady, Call::ReadStats]);
}

#[test]
fn the_threshold_is_what_may_be_open() {
    let options = Options { min_open_connections: 3, ..options() };
    let mut scenario = drain(4, options).at(s(12), Envoy::Draining(3));
    assert_eq!(scenario.ends(), (s(12), Outcome::drained(3)));
    assert_eq!(scenario.machine.last().map(|ended| ended.threshold), Some(3));
}

#[test]
fn no_delays_mean_a_poll_right_behind_the_failing() {
    let mut scenario = drain(0, Options { check_delay: s(0), ..options() });
    assert_eq!(scenario.ends(), (s(0), DRAINED));
    let calls = [Call::FailHealthChecks, Call::CheckListeners, Call::ReadStats];
    assert_eq!(scenario.calls[..3], calls.map(|call| (s(0), call)));
}

#[test]
fn an_error_is_never_zero() {
    let mut scenario = drain(1, options())
        .at(s(11), Envoy::Hangs)
        .at(s(100), Envoy::Draining(1))
        .at(s(200), Envoy::Draining(0));
    let (took, outcome) = scenario.ends();
    assert_eq!(outcome, DRAINED);
    assert!(took >= s(200) && took <= s(201), "{took:?}");
}

#[test]
fn after_an_error_the_next_check_and_the_next_poll_keep_their_intervals() {
    let options = Options { check_interval: s(30), ..options() };
    let mut scenario = drain(1, options).at(ms(1), Envoy::Hangs);
    scenario.run_to(s(110));
    // Each call hangs for 2 s. A check comes 2 s after the reply, a poll 30 s after the poll.
    assert_eq!(scenario.times(Call::CheckReady)[..4], [s(6), s(14), s(18), s(22)]);
    // The first for the number alone, once.
    assert_eq!(scenario.times(Call::ReadStats), [s(2), s(10), s(40), s(70), s(100)]);
}

#[test]
fn failing_is_retried_ever_more_slowly_until_it_succeeds() {
    let options = Options { check_interval: s(7), ..options() };
    let mut scenario = drain(0, options).at(s(0), Envoy::Hangs).at(s(40), Envoy::Live(0));
    scenario.run_to(s(50));
    // Each call hangs for 2 s; then the pause, in which Envoy is checked.
    let expected = [s(0), ms(2_200), ms(5_200), ms(12_200), ms(22_200), ms(32_200), ms(41_200)];
    assert_eq!(scenario.times(Call::FailHealthChecks), expected);
    assert_eq!(scenario.machine.phase(), Phase::CheckDelay);
}

#[test]
fn the_check_delay_starts_over_after_a_revert() {
    let mut scenario = drain(0, options()).at(s(6), Envoy::Live(0));
    let (took, outcome) = scenario.ends();
    assert_eq!(outcome, DRAINED);
    assert_eq!(scenario.times(Call::FailHealthChecks), [s(0), s(6)]);
    assert_eq!(took, s(16));
}

#[test]
fn a_revert_that_a_poll_sees_starts_the_check_delay_over() {
    // Nothing open, but LIVE: no end.
    let mut scenario = drain(5, options()).at(s(13), Envoy::Live(0));
    assert_eq!(scenario.ends(), (s(23), DRAINED));
    assert_eq!(scenario.times(Call::FailHealthChecks), [s(0), s(13)]);
}

#[test]
fn a_long_check_interval_does_not_hide_a_revert_in_the_check_delay() {
    let options = Options { check_interval: s(60), check_delay: s(30), ..Options::default() };
    let mut scenario = drain(0, options).at(s(5), Envoy::Live(0));
    scenario.run_to(s(8));
    assert_eq!(scenario.times(Call::FailHealthChecks), [s(0), s(6)]);
}

#[test]
fn an_envoy_that_restarts_is_failed_again_once_while_it_starts() {
    let mut scenario = drain(0, options()).at(s(4), Envoy::Starting).at(s(12), Envoy::Draining(0));
    let (took, outcome) = scenario.ends();
    assert_eq!(outcome, DRAINED);
    assert_eq!(scenario.times(Call::FailHealthChecks), [s(0), s(4)]);
    assert_eq!(took, s(14));
    // And again if it comes up LIVE all the same.
    let mut scenario = drain(0, options()).at(s(4), Envoy::Starting).at(s(12), Envoy::Live(0));
    assert_eq!(scenario.ends(), (s(22), DRAINED));
    assert_eq!(scenario.times(Call::FailHealthChecks), [s(0), s(4), s(12)]);
}

#[test]
fn an_envoy_that_never_finishes_starting_does_not_hold_the_drain() {
    let mut scenario = drain(0, options()).at(s(4), Envoy::Starting);
    assert_eq!(scenario.ends(), (s(14), DRAINED));
}

#[test]
fn envoy_is_gone_after_three_refusals_a_second_apart() {
    for (refused_at, open) in [(s(0), None), (s(5), Some(1)), (s(15), Some(1))] {
        let mut scenario = drain(1, options()).at(refused_at, Envoy::Refuses);
        let (took, outcome) = scenario.ends();
        assert_eq!(outcome, Outcome::envoy_gone(open));
        assert_eq!(took, refused_at + s(2), "refused at {refused_at:?}");
    }
    let delayed = Options { drain_delay: s(60), ..options() };
    let mut scenario = drain(1, delayed).at(s(20), Envoy::Refuses);
    assert_eq!(scenario.ends(), (s(22), Outcome::envoy_gone(Some(1))), "in the drain delay");
}

#[test]
fn two_refusals_are_not_gone_and_any_other_reply_breaks_the_row() {
    for between in [Envoy::Draining(1), Envoy::Hangs, Envoy::Starting] {
        let mut scenario = drain(1, options())
            .at(s(12), Envoy::Refuses)
            .at(ms(13_500), between)
            .at(ms(14_500), Envoy::Refuses)
            .at(ms(16_500), Envoy::Draining(1));
        scenario.run_to(s(19));
        assert!(scenario.machine.last().is_none(), "{between:?}");
    }
}

#[test]
fn refusals_keep_their_distance_when_a_stage_starts_between_them() {
    let options = Options { drain_delay: ms(2_500), check_interval: s(2), ..options() };
    let mut scenario = drain(1, options).at(s(0), Envoy::Refuses);
    assert_eq!(scenario.ends(), (s(4), Outcome::envoy_gone(None)));
    let times: Vec<Duration> = scenario.calls.iter().map(|(time, _)| *time).take(3).collect();
    assert_eq!(times, [s(2), s(3), s(4)]);
}

#[test]
fn a_hung_or_slow_envoy_is_never_gone() {
    let mut scenario = drain(1, options()).at(s(0), Envoy::Hangs);
    scenario.run_to(s(900));
    assert!(scenario.machine.last().is_none());
}

#[test]
fn the_drain_timeout_counts_from_the_start() {
    let options = |drain_timeout| Options { drain_timeout: Some(drain_timeout), ..options() };
    for (timeout, open) in [(ms(12_300), Some(7)), (s(5), Some(7)), (ms(900), None)] {
        let mut scenario = drain(7, options(timeout));
        assert_eq!(scenario.ends(), (timeout, Outcome::timed_out(open)));
    }
    let mut hangs = drain(7, options(s(5))).at(s(0), Envoy::Hangs);
    let (took, _) = hangs.ends();
    assert!(took >= s(5) && took <= s(7), "{took:?}: no longer than one call");
    let mut delaying = drain(7, Options { drain_delay: s(60), ..options(s(5)) });
    assert_eq!(delaying.ends(), (s(5), Outcome::timed_out(Some(7))));
}

#[test]
fn a_drain_that_is_over_at_its_deadline_has_drained() {
    let options = Options { drain_timeout: Some(s(10)), ..options() };
    let mut scenario = drain(0, options);
    scenario.takes = ms(1);
    let (_, outcome) = scenario.ends();
    assert_eq!(outcome, Outcome::timed_out(Some(0)), "the check delay ended too late by 1 ms");
    let options = Options { drain_timeout: Some(ms(10_002)), ..scenario.options };
    let mut scenario = drain(0, options);
    scenario.takes = ms(1);
    assert_eq!(scenario.ends(), (ms(10_002), DRAINED));
}

#[test]
fn no_time_at_all_is_enough_to_fail_health_checks_once() {
    for envoy in [Envoy::Live(3), Envoy::Hangs] {
        let options = Options { drain_timeout: Some(s(0)), ..options() };
        let mut scenario = drain(3, options).at(s(0), envoy);
        let (took, outcome) = scenario.ends();
        assert_eq!(outcome, Outcome::timed_out(None));
        assert_eq!(scenario.calls[..1], [(s(0), Call::FailHealthChecks)]);
        assert_eq!(scenario.times(Call::FailHealthChecks).len(), 1);
        assert!(took <= s(2));
    }
}

#[test]
fn a_slow_poll_is_followed_by_as_long_a_pause() {
    let mut scenario = drain(1, options());
    scenario.takes = ms(2_600);
    scenario.run_to(s(30));
    let polls = scenario.times(Call::ReadStats);
    // A check between them takes as long here, and comes a second after the poll.
    assert_eq!(polls[2] - polls[1], ms(6_200));
    let mut scenario = drain(1, options());
    scenario.takes = ms(300);
    scenario.run_to(s(30));
    let polls = scenario.times(Call::ReadStats);
    assert_eq!(polls[2] - polls[1], s(1), "the interval is from call to call");
}

#[test]
fn a_second_hook_joins() {
    let mut scenario = drain(1, options());
    scenario.run_to(s(5));
    assert_eq!(scenario.start(), DrainStart::Joined(1));
    scenario.run_to(s(6));
    assert_eq!(scenario.machine.phase(), Phase::CheckDelay, "and disturbs nothing");
    assert_eq!(scenario.times(Call::FailHealthChecks), [s(0)]);
}

#[test]
fn an_ended_drain_is_kept_for_half_a_minute_and_then_envoy_is_checked() {
    let mut scenario = drain(0, options());
    assert_eq!(scenario.run_to(s(39)).machine.phase(), Phase::Ended);
    assert_eq!(scenario.run_to(s(40)).machine.phase(), Phase::Idle);
    assert_eq!(
        scenario.times(Call::CheckReady).last(),
        Some(&s(40)),
        "one check of what it left behind"
    );
    assert_eq!(scenario.times(Call::RestoreHealthChecks), [], "which changes nothing");
    let start = scenario.start();
    assert_eq!((start, start.number()), (DrainStart::Started(2), 2));
    let (took, outcome) = scenario.ends();
    assert_eq!((took, outcome), (s(10), DRAINED));
    assert_eq!(scenario.machine.last().map(|ended| ended.number), Some(2));
}

#[test]
fn a_waiter_awaits_this_drain_or_the_next() {
    let mut scenario = idle(Envoy::Live(0), options());
    assert_eq!(scenario.machine.awaited_drain(), 1);
    scenario.start();
    assert_eq!(scenario.machine.awaited_drain(), 1);
    scenario.run_to(s(9));
    assert_eq!(scenario.machine.end_of(1), None);
    scenario.run_to(s(10));
    assert_eq!(scenario.machine.awaited_drain(), 2, "it has ended");
    assert_eq!(scenario.machine.end_of(1).map(|ended| ended.outcome), Some(DRAINED));
    assert_eq!(scenario.machine.end_of(2), None);
    scenario.run_to(s(41));
    assert_eq!(scenario.machine.awaited_drain(), 2);
    assert!(scenario.machine.end_of(1).is_some(), "a slow waiter still finds its end");
}

#[test]
fn a_reply_to_an_earlier_call_is_dropped() {
    let mut machine = machine(true);
    assert_eq!(step(&mut machine, &Event::Tick, s(2)), Action::Call(Call::CheckReady));
    machine.start(options(), at(s(2)));
    let stale = reply(0, Reply::Ready(Health::Draining));
    assert_eq!(step(&mut machine, &stale, s(2)), Action::Call(Call::FailHealthChecks));
    let stale = reply(0, Reply::HealthChecksFailed);
    step(&mut machine, &stale, s(2));
    assert_eq!(machine.phase(), Phase::FailingHealthChecks);
}

#[test]
fn a_stranded_envoy_is_restored_after_two_quiet_seconds() {
    let mut scenario = idle(Envoy::Draining(4), options());
    scenario.run_to(s(100));
    assert_eq!(
        scenario.calls,
        [Call::CheckReady, Call::RestoreHealthChecks, Call::ReadStats, Call::CheckListeners]
            .map(|call| (s(2), call)),
        "and then there is nothing to do"
    );
    assert_eq!(step(&mut scenario.machine, &Event::Tick, s(101)), Action::Sleep);
}

#[test]
fn an_envoy_is_checked_again_if_hooks_came_and_left_in_the_middle_of_its_check() {
    let mut machine = machine(true);
    assert_eq!(step(&mut machine, &Event::Tick, s(2)), Action::Call(Call::CheckReady));
    machine.waiter_arrived(at(ms(2_100)));
    machine.last_waiter_left(at(ms(2_200)));
    let draining = reply(0, Reply::Ready(Health::Draining));
    let next = step(&mut machine, &draining, ms(2_300));
    assert_eq!(next, Action::SleepUntil(at(ms(4_200))), "more hooks may be on their way");
    let next = step(&mut machine, &Event::Tick, ms(4_200));
    assert_eq!(next, Action::Call(Call::CheckReady), "what was found before them is outdated");
    let next = step(&mut machine, &draining, ms(4_200));
    assert_eq!(next, Action::Call(Call::RestoreHealthChecks));
}

#[test]
fn an_envoy_in_service_is_only_checked() {
    let mut scenario = idle(Envoy::Live(4), options());
    scenario.run_to(s(100));
    let calls = [Call::CheckReady, Call::ReadStats, Call::CheckListeners];
    assert_eq!(scenario.calls, calls.map(|call| (s(2), call)));
}

#[test]
fn nothing_is_restored_when_that_is_turned_off() {
    let mut scenario = idle(Envoy::Draining(4), options());
    scenario.machine = machine(false);
    scenario.run_to(s(100));
    let calls = [Call::CheckReady, Call::ReadStats, Call::CheckListeners];
    assert_eq!(scenario.calls, calls.map(|call| (s(2), call)));
}

#[test]
fn nothing_is_restored_while_a_client_waits_or_soon_after() {
    let mut scenario = idle(Envoy::Draining(4), options());
    scenario.run_to(s(1)).machine.waiter_arrived(at(s(1)));
    scenario.run_to(s(30));
    assert_eq!(scenario.calls, []);
    scenario.machine.last_waiter_left(at(s(30)));
    scenario.run_to(s(100));
    assert_eq!(scenario.times(Call::RestoreHealthChecks), [s(32)]);

    // A client comes between the check and what follows from it.
    let mut machine = machine(true);
    assert_eq!(step(&mut machine, &Event::Tick, s(2)), Action::Call(Call::CheckReady));
    machine.waiter_arrived(at(s(2)));
    let answer = reply(0, Reply::Ready(Health::Draining));
    assert_eq!(step(&mut machine, &answer, s(2)), Action::Sleep);
    machine.last_waiter_left(at(s(9)));
    assert_eq!(step(&mut machine, &Event::Tick, s(9)), Action::SleepUntil(at(s(11))));
    assert_eq!(
        step(&mut machine, &Event::Tick, s(11)),
        Action::Call(Call::CheckReady),
        "it checks anew"
    );
}

#[test]
fn nothing_is_restored_once_a_drain_has_started() {
    let mut scenario = idle(Envoy::Draining(0), options());
    scenario.run_to(ms(1_999));
    scenario.start();
    scenario.run_to(s(200));
    assert_eq!(scenario.times(Call::RestoreHealthChecks), []);
}

fn required() -> Options {
    Options { require_envoy_hook: true, ..options() }
}

#[test]
fn where_envoys_hook_is_required_a_lone_drain_leaves_envoy_in_service() {
    let mut scenario = drain(0, required());
    scenario.run_to(ms(2_999));
    assert_eq!(scenario.machine.phase(), Phase::AwaitingEnvoyHook);
    scenario.run_to(s(100));
    let ended = scenario.machine.last().map(|ended| (ended.outcome, ended.took));
    assert_eq!(ended, Some((Outcome::NO_ENVOY_HOOK, s(3))));
    assert_eq!(scenario.times(Call::FailHealthChecks), []);
    assert_eq!(scenario.machine.phase(), Phase::Idle, "there is nothing to join");
}

#[test]
fn envoys_hook_waits_at_the_start_or_comes_within_three_seconds() {
    for (waits_since, after, came) in [
        (Some(ms(0)), None, true),
        // However early it came.
        (Some(ms(3_300)), None, true),
        (None, Some(ms(0)), true),
        (None, Some(ms(2_999)), true),
        (None, Some(s(3)), false),
    ] {
        let mut scenario = idle(Envoy::Live(0), required());
        scenario.now = s(10);
        if let Some(before) = waits_since {
            scenario.machine.waiter_arrived(at(s(10) - before));
        }
        scenario.start();
        if let Some(after) = after {
            scenario.run_to(s(10) + after - ms(1));
            scenario.now = s(10) + after;
            assert_eq!(scenario.machine.waiter_arrived(at(scenario.now)), came);
        }
        scenario.run_to(s(100));
        let fails = if came { vec![s(10) + after.unwrap_or_default()] } else { vec![] };
        assert_eq!(scenario.times(Call::FailHealthChecks), fails, "{waits_since:?} {after:?}");
    }
}

#[test]
fn envoys_hook_that_has_left_again_does_not_count() {
    let mut scenario = idle(Envoy::Live(0), required());
    scenario.machine.waiter_arrived(at(s(0)));
    scenario.machine.last_waiter_left(at(s(0)));
    scenario.start();
    scenario.run_to(s(100));
    assert_eq!(scenario.times(Call::FailHealthChecks), []);
}

#[test]
fn the_drain_delay_runs_while_envoys_hook_is_awaited() {
    let mut scenario = drain(0, Options { drain_delay: s(5), ..required() });
    scenario.run_to(s(2));
    assert!(scenario.machine.waiter_arrived(at(s(2))));
    assert!(!scenario.machine.waiter_arrived(at(s(2))), "once is enough");
    scenario.run_to(s(20));
    assert_eq!(scenario.times(Call::FailHealthChecks), [s(5)]);
}

#[test]
fn a_short_timeout_waits_for_envoys_hook_that_is_required() {
    let mut scenario = drain(4, Options { drain_timeout: Some(Duration::ZERO), ..required() });
    scenario.run_to(ms(79));
    assert_eq!(step(&mut scenario.machine, &Event::Tick, ms(79)), Action::SleepUntil(at(s(1))));
    scenario.now = ms(80);
    scenario.machine.waiter_arrived(at(ms(80)));
    scenario.run_to(s(2));
    assert_eq!(scenario.times(Call::FailHealthChecks), [ms(80)], "failed, and then given up");
    let last = scenario.machine.last().map(|ended| ended.outcome);
    assert_eq!(last, Some(Outcome::timed_out(None)));

    let mut alone = drain(4, Options { drain_timeout: Some(Duration::ZERO), ..required() });
    alone.run_to(s(4));
    assert_eq!(alone.machine.last().map(|ended| ended.outcome), Some(Outcome::NO_ENVOY_HOOK));
}

#[test]
fn a_timeout_that_must_wait_for_a_refused_call_wakes_no_thread() {
    let mut machine = machine(true);
    let timeout = Some(ms(5_500));
    machine.start(Options { drain_delay: s(5), drain_timeout: timeout, ..options() }, at(s(0)));
    assert_eq!(step(&mut machine, &Event::Tick, ms(4_900)), Action::Call(Call::ReadStats));
    let refused = failure(1, Call::ReadStats, AdminErrorKind::Refused);
    assert_eq!(step(&mut machine, &refused, ms(4_900)), Action::SleepUntil(at(s(5))));
    assert_eq!(step(&mut machine, &Event::Tick, ms(5_600)), Action::SleepUntil(at(ms(5_900))));
}

#[test]
fn before_it_is_restored_after_such_a_drain_envoy_is_checked_again() {
    let mut machine = machine(true);
    assert_eq!(step(&mut machine, &Event::Tick, s(2)), Action::Call(Call::CheckReady));
    let seen = reply(0, Reply::Ready(Health::Draining));
    assert_eq!(step(&mut machine, &seen, s(2)), Action::Call(Call::RestoreHealthChecks));
    machine.start(required(), at(s(2)));
    assert_eq!(step(&mut machine, &Event::Tick, s(5)), Action::Finish(Outcome::NO_ENVOY_HOOK));
    assert_eq!(step(&mut machine, &Event::Finished, s(5)), Action::SleepUntil(at(s(7))));
    assert_eq!(step(&mut machine, &Event::Tick, s(7)), Action::Call(Call::CheckReady));
}

#[test]
fn a_drain_that_left_envoy_in_service_keeps_nothing_from_being_restored() {
    let mut scenario = idle(Envoy::Draining(0), required());
    scenario.run_to(s(1));
    scenario.now = s(1);
    scenario.start();
    scenario.run_to(s(100));
    assert_eq!(scenario.times(Call::RestoreHealthChecks), [s(6)], "3 s for the hook, and 2 s more");
}

#[test]
fn an_envoy_that_starts_later_is_not_restored() {
    let mut scenario = idle(Envoy::Refuses, options()).at(s(5), Envoy::Draining(0));
    scenario.run_to(s(100));
    assert_eq!(scenario.times(Call::RestoreHealthChecks), []);
    assert_eq!(scenario.times(Call::ReadStats), [s(7)]);
    // One that hangs or is still starting may be stranded.
    for (first, restored_at) in [(Envoy::Hangs, s(9)), (Envoy::Starting, s(7))] {
        let mut scenario = idle(first, options()).at(s(5), Envoy::Draining(0));
        scenario.run_to(s(100));
        assert_eq!(scenario.times(Call::RestoreHealthChecks), [restored_at], "{first:?}");
    }
}

#[test]
fn an_envoy_that_never_starts_is_checked_for_a_minute() {
    for never in [Envoy::Refuses, Envoy::Hangs] {
        let mut scenario = idle(never, options());
        scenario.run_to(s(1000));
        assert_eq!(scenario.calls.len(), 12, "{never:?}");
        assert_eq!(step(&mut scenario.machine, &Event::Tick, s(1000)), Action::Sleep);
    }
}

#[test]
fn restoring_is_retried_when_it_fails() {
    let mut machine = machine(true);
    step(&mut machine, &Event::Tick, s(2));
    assert_eq!(
        step(&mut machine, &reply(0, Reply::Ready(Health::Draining)), s(2)),
        Action::Call(Call::RestoreHealthChecks)
    );
    assert_eq!(
        step(&mut machine, &failure(0, Call::RestoreHealthChecks, AdminErrorKind::Timeout), s(4)),
        Action::SleepUntil(at(s(9)))
    );
    assert_eq!(step(&mut machine, &Event::Tick, s(9)), Action::Call(Call::CheckReady));
    step(&mut machine, &reply(0, Reply::Ready(Health::Draining)), s(9));
    assert_eq!(
        step(&mut machine, &reply(0, Reply::HealthChecksRestored), s(9)),
        Action::Call(Call::ReadStats)
    );
    assert_eq!(
        step(&mut machine, &failure(0, Call::ReadStats, AdminErrorKind::Timeout), s(9)),
        Action::Sleep
    );
}

#[test]
fn outcomes_explain_themselves() {
    for (outcome, name, words) in [
        (DRAINED, "drained", "no connection is open"),
        (Outcome::drained(2), "drained", "2 open, within the threshold"),
        (Outcome::timed_out(Some(3)), "timed_out", "3 open at the last poll"),
        (Outcome::timed_out(None), "timed_out", "before the open connections"),
        (Outcome::envoy_gone(None), "envoy_gone", "were not counted"),
        (Outcome::envoy_gone(Some(2)), "envoy_gone", "2 open at the last poll"),
    ] {
        assert_eq!(outcome.kind.name(), name);
        assert!(outcome.explain().contains(words), "{}", outcome.explain());
        assert_eq!(outcome.kind.gave_up(), name == "timed_out");
    }
}

fn listeners() -> Options {
    Options { drain_listeners: true, ..options() }
}

#[test]
fn listeners_are_drained_behind_the_health_checks_while_envoys_own_hook_waits() {
    let mut scenario = drain(1, listeners()).at(s(12), Envoy::Draining(0));
    assert!(scenario.machine.waiter_arrived(at(s(0))));
    assert_eq!(scenario.ends(), (s(12), DRAINED));
    let first: Vec<Call> = scenario.calls.iter().take(2).map(|(_, call)| *call).collect();
    assert_eq!(first, [Call::FailHealthChecks, Call::DrainListeners]);
    assert_eq!(scenario.times(Call::DrainListeners), [s(0)], "once");
    assert_eq!(scenario.times(Call::ReadStats)[1..], [s(10), s(11), s(12)]);
    // Without the option they are not.
    let mut scenario = drain(0, options());
    scenario.machine.waiter_arrived(at(s(0)));
    scenario.ends();
    assert_eq!(scenario.times(Call::DrainListeners), []);
}

#[test]
fn listeners_are_drained_only_while_a_client_waits() {
    let mut scenario = drain(1, listeners()).at(s(30), Envoy::Draining(0));
    scenario.machine.waiter_arrived(at(s(0)));
    scenario.machine.last_waiter_left(at(s(0)));
    scenario.run_to(ms(5_500));
    assert_eq!(scenario.times(Call::DrainListeners), []);
    assert!(scenario.machine.waiter_arrived(at(ms(5_500))), "the worker is woken");
    assert!(!scenario.machine.waiter_arrived(at(ms(5_500))), "once");
    scenario.run_to(s(6));
    assert_eq!(scenario.times(Call::DrainListeners), [ms(5_500)]);
    scenario.machine.last_waiter_left(at(s(7)));
    assert!(!scenario.machine.waiter_arrived(at(s(8))), "there is nothing to be done for it");
    // A lone hook drains all the same.
    let mut alone = drain(0, listeners());
    assert_eq!(alone.ends(), (s(10), DRAINED));
    assert_eq!(alone.times(Call::DrainListeners), []);
}

#[test]
fn listeners_that_cannot_be_drained_hold_nothing_up() {
    let mut machine = machine(true);
    machine.start(Options { check_delay: s(3), ..listeners() }, at(s(0)));
    machine.waiter_arrived(at(s(0)));
    assert_eq!(step(&mut machine, &Event::Tick, s(0)), Action::Call(Call::FailHealthChecks));
    let failed = |call| failure(1, call, AdminErrorKind::Status);
    assert_eq!(
        step(&mut machine, &reply(1, Reply::HealthChecksFailed), s(0)),
        Action::Call(Call::DrainListeners)
    );
    let next = step(&mut machine, &failed(Call::DrainListeners), s(0));
    assert_eq!(next, Action::Call(Call::CheckListeners));
    let next = step(&mut machine, &reply(1, Reply::Listeners(HiddenStats::default())), s(0));
    assert_eq!((next, machine.phase()), (Action::SleepUntil(at(s(1))), Phase::CheckDelay));
    let poll = Poll::of(0, Health::Draining);
    for (time, call) in [(s(1), Call::DrainListeners), (s(3), Call::DrainListeners)] {
        assert_eq!(step(&mut machine, &Event::Tick, time), Action::Call(call));
        // A check or a poll is due as well, and is not put off.
        let next = step(&mut machine, &failed(Call::DrainListeners), time);
        assert_eq!(next, Action::Call(Call::ReadStats));
        if time == s(1) {
            step(&mut machine, &reply(1, Reply::Stats(poll.clone())), time);
        }
    }
    assert_eq!(step(&mut machine, &reply(1, Reply::Stats(poll)), s(3)), Action::Finish(DRAINED));
}

#[test]
fn the_listeners_of_an_envoy_that_has_restarted_are_drained_again() {
    let mut scenario = drain(1, listeners())
        .at(ms(4_500), Envoy::Live(1))
        .at(s(20), Envoy::Refuses)
        .at(s(21), Envoy::Draining(0));
    scenario.machine.waiter_arrived(at(s(0)));
    assert_eq!(scenario.ends().1, DRAINED);
    assert_eq!(scenario.times(Call::FailHealthChecks), [s(0), s(5)]);
    assert_eq!(scenario.times(Call::DrainListeners), [s(0), s(5), s(21)]);
}

#[test]
fn listeners_may_be_drained_before_health_checks_are_failed() {
    let early = Options { drain_delay: s(2), health_check_failure_delay: s(5), ..options() };
    let mut scenario = drain(0, early.clone());
    scenario.machine.waiter_arrived(at(s(0)));
    assert_eq!(scenario.ends(), (s(17), DRAINED));
    assert_eq!(scenario.times(Call::DrainListeners), [s(2)]);
    assert_eq!(scenario.times(Call::FailHealthChecks), [s(7)]);
    // However late it is.
    let mut late = drain(0, early.clone());
    late.machine.waiter_arrived(at(s(0)));
    late.now = s(9);
    late.ends();
    let first: Vec<Call> = late.calls.iter().take(2).map(|(_, call)| *call).collect();
    assert_eq!(first, [Call::DrainListeners, Call::FailHealthChecks]);
    // The delay is kept where no client waits.
    let mut alone = drain(0, early.clone());
    assert_eq!(alone.ends(), (s(17), DRAINED));
    assert_eq!(alone.times(Call::DrainListeners), []);
    assert_eq!(alone.times(Call::FailHealthChecks), [s(7)]);
    // Nothing is done before Envoy's own hook has come where that is required.
    let mut held = drain(0, Options { require_envoy_hook: true, drain_delay: s(0), ..early });
    held.run_to(ms(1_500));
    assert!(held.machine.waiter_arrived(at(ms(1_500))));
    held.ends();
    assert_eq!(held.times(Call::DrainListeners), [ms(1_500)]);
}

#[test]
fn nothing_is_polled_before_the_shortest_drain_is_over() {
    let shortest = Options { min_drain_duration: s(12), ..options() };
    let mut scenario = drain(0, Options { drain_delay: s(1), ..shortest.clone() });
    assert_eq!(scenario.ends(), (s(12), DRAINED));
    assert_eq!(scenario.times(Call::ReadStats), [s(2), s(12)], "the first for the number alone");
    let mut longer = drain(0, Options { drain_delay: s(4), ..shortest });
    assert_eq!(longer.ends(), (s(14), DRAINED), "the check delay counts from failing");
}

#[test]
fn whether_envoys_hook_came_is_an_event_three_seconds_after_the_start() {
    let of_pairing = |event: &DrainEvent| {
        matches!(event, DrainEvent::EnvoyHookWaits | DrainEvent::EnvoyHookMissing { .. })
    };
    for (comes, expected) in [
        (true, DrainEvent::EnvoyHookWaits),
        (false, DrainEvent::EnvoyHookMissing { listeners_not_drained: false }),
    ] {
        let mut scenario = drain(1, Options { check_interval: s(60), ..options() });
        if comes {
            scenario.machine.waiter_arrived(at(s(0)));
        }
        scenario.run_to(ms(2_999));
        let early = scenario.events.iter().find(|event| of_pairing(event));
        assert_eq!(early, None, "too early: {comes}");
        scenario.run_to(s(3));
        let events: Vec<_> = scenario.events.iter().filter(|event| of_pairing(event)).collect();
        assert_eq!(events, [&expected], "{comes}");
    }
}

#[test]
fn a_client_that_comes_and_leaves_brings_no_check_forward() {
    let mut scenario = idle(Envoy::Refuses, options()).at(s(5), Envoy::Live(0));
    scenario.run_to(s(3));
    scenario.machine.waiter_arrived(at(s(3)));
    scenario.machine.last_waiter_left(at(s(3)));
    scenario.run_to(s(100));
    assert_eq!(scenario.times(Call::CheckReady), [s(2), s(7)], "5 s apart");
}

#[test]
fn a_check_after_a_drain_that_fails_is_the_only_one() {
    let mut scenario = drain(0, options()).at(s(11), Envoy::Hangs);
    scenario.run_to(s(200));
    assert_eq!(scenario.times(Call::CheckReady).last(), Some(&s(40)), "30 s after the end");
    let never = scenario.events.contains(&DrainEvent::NeverReady);
    assert!(!never, "an Envoy that was drained is said to have never been ready");
}
