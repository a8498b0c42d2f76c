//! What clients of the control socket ask for beside a drain: its end, Envoy's restoring, a fresh look.

use super::*;

fn ended(scenario: &Scenario) -> Option<Outcome> {
    scenario.machine.last().map(|ended| ended.outcome)
}

#[test]
fn a_release_ends_a_drain_in_any_phase_with_what_was_open() {
    for (when, open) in [(ms(500), None), (s(1), None), (s(8), Some(3)), (s(15), Some(3))] {
        let mut scenario = drain(3, Options { drain_delay: s(1), ..options() });
        scenario.run_to(when);
        assert_eq!(scenario.machine.release(), Some(1));
        scenario.run_to(when);
        assert!(matches!(scenario.envoy, Envoy::Draining(3)), "in service, after {when:?}");
        assert_eq!(ended(&scenario), Some(Outcome::released(open)), "after {when:?}");
        assert_eq!(scenario.machine.phase(), Phase::Ended);
        assert_eq!(scenario.machine.release(), None, "it has ended");
        scenario.machine.waiter_arrived(at(when));
        assert_eq!(scenario.machine.answer_to(2), None, "one that gave up answers no other hook");
    }
}

#[test]
fn a_release_in_a_call_holds_whatever_the_call_brings() {
    for result in [
        Ok(Reply::HealthChecksFailed),
        Err(error(AdminErrorKind::Refused)),
        Err(error(AdminErrorKind::Timeout)),
    ] {
        let mut machine = machine(true);
        machine.start(options(), at(s(0)));
        assert_eq!(step(&mut machine, &Event::Tick, s(0)), Action::Call(Call::FailHealthChecks));
        machine.release();
        let event = Event::Reply { drain: 1, call: Call::FailHealthChecks, result };
        let action = step(&mut machine, &event, s(1));
        assert_eq!(action, Action::Finish(Outcome::released(None)), "{event:?}");
    }
    let mut machine = machine(true);
    machine.start(Options { check_delay: s(0), ..options() }, at(s(0)));
    for failed in [Reply::HealthChecksFailed, Reply::Listeners(HiddenStats::default())] {
        step(&mut machine, &Event::Tick, s(0));
        step(&mut machine, &reply(1, failed), s(0));
    }
    machine.release();
    let poll = Reply::Stats(Poll::of(7, Health::Draining));
    let action = step(&mut machine, &reply(1, poll), s(1));
    assert_eq!(action, Action::Finish(Outcome::released(Some(7))), "the latest count");
}

#[test]
fn a_release_is_owed_one_try_to_fail_health_checks_and_no_more() {
    let mut machine = machine(true);
    machine.start(Options { drain_delay: s(60), ..options() }, at(s(0)));
    step(&mut machine, &Event::Tick, s(0));
    assert_eq!(machine.release(), Some(1));
    assert_eq!(step(&mut machine, &Event::Tick, s(1)), Action::Call(Call::FailHealthChecks));
    let failed = failure(1, Call::FailHealthChecks, AdminErrorKind::Timeout);
    assert_eq!(step(&mut machine, &failed, s(3)), Action::Finish(Outcome::released(None)));
}

#[test]
fn a_release_of_a_drain_that_confirms_the_one_before_fails_health_checks_if_that_does_not_hold() {
    for require_envoy_hook in [false, true] {
        let mut scenario = drain(0, options());
        scenario.run_to(s(15));
        let machine = &mut scenario.machine;
        machine.start(Options { require_envoy_hook, ..options() }, at(s(16)));
        assert_eq!(step(machine, &Event::Tick, s(16)), Action::Call(Call::ReadStats));
        assert_eq!(machine.release(), Some(2));
        let back = reply(2, Reply::Stats(Poll::of(4, Health::Live)));
        let released = Action::Finish(Outcome::released(Some(4)));
        if require_envoy_hook {
            assert_eq!(step(machine, &back, s(17)), released, "Envoy is in service, and stays so");
            continue;
        }
        assert_eq!(step(machine, &back, s(17)), Action::Call(Call::FailHealthChecks));
        assert_eq!(step(machine, &reply(2, Reply::HealthChecksFailed), s(17)), released);
    }
}

#[test]
fn a_release_that_leaves_envoy_in_service_leaves_the_startup_check_to_be_done() {
    let mut scenario = idle(Envoy::Draining(0), options());
    scenario.machine.start(Options { require_envoy_hook: true, ..options() }, at(s(0)));
    scenario.run_to(ms(500));
    assert_eq!(scenario.machine.phase(), Phase::AwaitingEnvoyHook);
    assert_eq!(scenario.machine.release(), Some(1));
    scenario.run_to(s(60));
    assert_eq!(ended(&scenario), Some(Outcome::released(None)));
    assert!(!scenario.times(Call::RestoreHealthChecks).is_empty(), "a run before left it so");
    assert!(matches!(scenario.envoy, Envoy::Live(0)), "{:?}", scenario.envoy);
}

#[test]
fn what_a_poll_brings_to_a_drain_that_was_released_counts_as_every_other() {
    let mut machine = machine(true);
    machine.start(Options { check_delay: s(0), ..options() }, at(s(0)));
    let uncounted = vec!["stats".to_owned()];
    let hidden = HiddenStats { uncounted, ..HiddenStats::default() };
    for failed in [Reply::HealthChecksFailed, Reply::Listeners(hidden)] {
        step(&mut machine, &Event::Tick, s(0));
        step(&mut machine, &reply(1, failed), s(0));
    }
    machine.release();
    let poll = Poll { unsubtracted: 2, ..Poll::of(0, Health::Draining) };
    let action = step(&mut machine, &reply(1, Reply::Stats(poll)), s(1));
    assert_eq!(action, Action::Finish(Outcome::released(Some(2))));
}

#[test]
fn nothing_is_released_where_no_drain_is_in_progress() {
    let mut scenario = idle(Envoy::Live(0), options());
    assert_eq!(scenario.machine.release(), None);
    scenario.run_to(s(10));
    assert_eq!(ended(&scenario), None);
}

#[test]
fn envoy_is_restored_for_a_client_after_a_drain_and_at_rest_and_never_in_a_drain() {
    let mut scenario = drain(0, options());
    scenario.run_to(s(5));
    assert!(!scenario.machine.restore(), "a drain is in progress");
    scenario.run_to(s(11));
    assert_eq!(scenario.machine.phase(), Phase::Ended);
    assert_eq!(scenario.times(Call::RestoreHealthChecks), []);
    assert!(scenario.machine.restore());
    scenario.run_to(s(12));
    assert_eq!(scenario.times(Call::RestoreHealthChecks), [s(11)]);
    assert!(scenario.events.contains(&DrainEvent::RestoreReplied(None)));
    assert_eq!(scenario.machine.phase(), Phase::Idle, "the outcome no longer holds");
    scenario.run_to(s(100));
    assert!(!scenario.events.contains(&DrainEvent::StillOutOfService));
    // A client of a pod that was taken out of service by hand.
    scenario.envoy = Envoy::Draining(0);
    assert!(scenario.machine.restore());
    scenario.run_to(s(100));
    assert_eq!(scenario.times(Call::RestoreHealthChecks), [s(11), s(100)]);
}

#[test]
fn a_restoring_that_fails_is_reported_and_not_repeated() {
    let mut scenario = idle(Envoy::Hangs, options());
    assert!(scenario.machine.restore());
    scenario.run_to(s(100));
    let failed = DrainEvent::RestoreReplied(Some(error(AdminErrorKind::Timeout)));
    assert_eq!(scenario.events.iter().filter(|event| **event == failed).count(), 1);
    assert_eq!(scenario.times(Call::RestoreHealthChecks), [s(0)]);
}

#[test]
fn a_drain_that_starts_first_keeps_envoy_from_being_restored() {
    let mut scenario = idle(Envoy::Live(0), options());
    scenario.run_to(s(5));
    assert!(scenario.machine.restore());
    scenario.start();
    scenario.run_to(s(60));
    assert_eq!(scenario.times(Call::RestoreHealthChecks), []);
    let mut stopping = idle(Envoy::Live(0), options());
    stopping.machine.stop(at(s(0)));
    assert!(!stopping.machine.restore(), "a sidecar that stops restores nothing");
}

#[test]
fn a_client_that_looks_at_rest_has_envoy_checked_once_and_nothing_else() {
    let mut scenario = idle(Envoy::Live(0), options());
    scenario.run_to(s(60));
    let calls = scenario.calls.len();
    assert!(scenario.machine.refresh());
    assert!(!scenario.machine.refresh(), "it is on its way");
    scenario.run_to(s(61));
    assert_eq!(scenario.calls[calls..], [(s(60), Call::ShowState)]);
    // The ended drain is not affected, nor its outcome.
    let mut scenario = drain(0, options());
    scenario.run_to(s(12));
    let calls = scenario.calls.len();
    scenario.envoy = Envoy::Refuses;
    assert!(scenario.machine.refresh());
    scenario.run_to(s(13));
    assert_eq!(scenario.calls[calls..], [(s(12), Call::ShowState)]);
    assert_eq!((scenario.machine.phase(), ended(&scenario)), (Phase::Ended, Some(DRAINED)));
    let failed = |event: &DrainEvent| matches!(event, DrainEvent::CallFailed { .. });
    assert!(!scenario.events.iter().any(failed), "the log is about what a drain needs");
}

#[test]
fn a_client_that_looks_at_a_delay_has_connections_counted_and_envoy_in_peace_between() {
    let mut scenario = drain(4, Options { drain_delay: s(20), ..options() });
    scenario.takes = ms(200);
    scenario.run_to(ms(2_900));
    // The delay's own, for the number alone.
    assert_eq!(scenario.times(Call::ReadStats), [s(1)]);
    for second in 3..20 {
        scenario.machine.refresh();
        scenario.run_to(s(second) + ms(900));
    }
    let polls = scenario.times(Call::ReadStats);
    // A poll of 0.2 s, and nine times as long without one; none in the last 2 s.
    for pair in polls[1..].windows(2) {
        assert!(pair[1] - pair[0] >= s(2), "{polls:?}");
    }
    assert!(polls.len() >= 6 && polls.last() < Some(&ms(18_100)), "{polls:?}");
    assert_eq!(scenario.machine.drain().and_then(Drain::open), Some(4));
    assert_eq!(scenario.machine.phase(), Phase::DrainDelay);
    // Where nothing is delayed the drain has its own pace.
    scenario.run_to(s(35));
    let before = scenario.times(Call::ReadStats).len();
    for _ in 0..10 {
        scenario.machine.refresh();
    }
    scenario.run_to(ms(35_900));
    assert!(scenario.times(Call::ReadStats).len() <= before + 1);
}

#[test]
fn new_connections_are_counted_behind_polls_and_put_no_poll_off() {
    let mut scenario = drain(3, Options { check_delay: s(10), ..options() });
    scenario.run_to(s(20));
    let (polls, counts) = (scenario.times(Call::ReadStats), scenario.times(Call::ReadAccepted));
    // This Envoy does not show them: once as health checks are failed, and once behind the first poll
    // after the delay.
    assert_eq!(counts, [s(0), s(10)], "polls {polls:?}");
    assert_eq!(polls[1..4], [s(10), s(11), s(12)]);
}

#[test]
fn what_comes_next_and_the_deadline_are_known_from_the_start() {
    let options = Options { drain_delay: s(2), drain_timeout: Some(s(40)), ..options() };
    let mut scenario = drain(1, options);
    for (now, next, when) in [
        (0, NextStep::FailHealthChecks, 2),
        (2, NextStep::FirstPoll, 12),
        (12, NextStep::Poll, 13),
        (39, NextStep::Poll, 40),
    ] {
        scenario.run_to(s(now));
        let drain = scenario.machine.drain().expect("it is in progress");
        assert_eq!(drain.next_step(), Some((next, at(s(when)))), "at {now} s");
        assert_eq!(drain.gives_up_at(), Some(at(s(40))), "at {now} s");
    }
    scenario.run_to(s(40));
    assert_eq!(ended(&scenario), Some(Outcome::timed_out(Some(1))));
    let unlimited = drain(1, super::options());
    assert_eq!(unlimited.machine.drain().and_then(Drain::gives_up_at), None);
}
