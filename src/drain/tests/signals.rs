//! What a signal starts, ends, and speeds up.

use super::*;

#[test]
fn a_signal_starts_a_drain_while_envoys_own_hook_waits() {
    let mut scenario = idle(Envoy::Live(1), Options { require_envoy_hook: true, ..options() })
        .at(s(20), Envoy::Draining(0));
    scenario.machine = Machine::new(required(), &Overrides::default(), true, Timestamp::ZERO);
    scenario.run_to(s(4));
    scenario.machine.waiter_arrived(at(s(4)));
    scenario.now = s(5);
    scenario.machine.stop(at(s(5)));
    scenario.run_to(s(19));
    assert!(scenario.events.contains(&DrainEvent::StartedBySignal));
    assert!(!scenario.machine.is_over());
    // With the sidecar's options, and at their pace: the grace period has just begun.
    assert_eq!(scenario.times(Call::FailHealthChecks), [s(5)]);
    assert_eq!(scenario.times(Call::ReadStats)[1..3], [s(6), s(15)]);
    scenario.run_to(s(30));
    assert_eq!(scenario.machine.last().map(|ended| ended.outcome), Some(DRAINED));
    assert!(scenario.machine.is_over(), "and then nothing is left to do");
}

#[test]
fn envoys_hook_may_come_a_moment_after_the_signal() {
    for (after, starts) in [(ms(0), true), (ms(299), true), (ms(301), false)] {
        let mut scenario = idle(Envoy::Live(0), options());
        scenario.run_to(s(5));
        scenario.now = s(5);
        scenario.machine.stop(at(s(5)));
        scenario.run_to(s(5) + after);
        assert_eq!(scenario.machine.is_over(), !starts, "{after:?}");
        scenario.machine.waiter_arrived(at(s(5) + after));
        scenario.run_to(s(40));
        assert_eq!(scenario.machine.last().is_some(), starts, "{after:?}");
        assert!(scenario.machine.is_over(), "{after:?}");
    }
}

#[test]
fn nothing_is_checked_while_the_sidecar_stops() {
    let mut scenario = idle(Envoy::Draining(0), options());
    scenario.run_to(ms(1_900));
    scenario.machine.stop(at(ms(1_900)));
    scenario.run_to(s(10));
    assert_eq!(scenario.calls, [], "no Envoy is restored by a sidecar that leaves");
    assert!(scenario.machine.is_over());
}

#[test]
fn a_signal_behind_a_drain_ends_the_sidecar_at_once() {
    let mut scenario = drain(0, options());
    scenario.machine.waiter_arrived(at(s(0)));
    scenario.run_to(s(11));
    scenario.machine.last_waiter_left(at(s(11)));
    scenario.machine.stop(at(s(11)));
    assert_eq!(step(&mut scenario.machine, &Event::Tick, s(11)), Action::Sleep);
    assert!(scenario.machine.is_over());
}

#[test]
fn a_signal_behind_a_drain_by_hand_waits_a_moment_for_envoys_hook() {
    let mut scenario = drain(0, options()).at(s(11), Envoy::Live(3)).at(s(40), Envoy::Draining(0));
    scenario.run_to(s(20));
    scenario.now = s(20);
    scenario.machine.stop(at(s(20)));
    let until = at(s(20) + STOP_DELAY);
    assert_eq!(step(&mut scenario.machine, &Event::Tick, s(20)), Action::SleepUntil(until));
    scenario.now = s(20) + ms(80);
    scenario.machine.waiter_arrived(at(s(20) + ms(80)));
    assert_eq!(scenario.ends().1, DRAINED);
    assert_eq!(scenario.machine.number(), 2, "a drain of its own, for Envoy was restored");
    assert!(scenario.machine.is_over());
}

#[test]
fn a_hook_that_waits_behind_a_drain_that_gave_up_is_drained_at_the_signal() {
    let timeout = Options { drain_timeout: Some(s(12)), ..options() };
    let mut scenario = drain(1, timeout);
    scenario.run_to(s(13));
    scenario.machine.waiter_arrived(at(s(13)));
    scenario.machine.stop(at(s(13)));
    scenario.run_to(s(14));
    assert_eq!((scenario.machine.number(), scenario.machine.is_over()), (2, false));
}

#[test]
fn a_signal_in_a_drain_makes_haste_and_ends_nothing() {
    let mut scenario = drain(3, Options { check_interval: s(60), ..options() })
        .at(ms(40_250), Envoy::Draining(2))
        .at(ms(41_100), Envoy::Refuses);
    scenario.run_to(s(40));
    let before = scenario.times(Call::ReadStats).len();
    scenario.now = s(40);
    scenario.machine.stop(at(s(40)));
    assert_eq!(scenario.ends().1, Outcome::envoy_gone(Some(2)), "with how many were cut");
    let polls = scenario.times(Call::ReadStats).split_off(before);
    assert_eq!(
        polls,
        [40_000, 40_200, 40_400, 40_600, 40_800, 41_000, 41_200, 41_300, 41_400].map(ms),
        "each 0.2 s, and refusals 0.1 s apart"
    );
    assert!(scenario.machine.is_over());

    // In the check delay it polls for the number alone.
    let mut settling = drain(3, options());
    settling.run_to(s(4));
    settling.now = s(4);
    settling.machine.stop(at(s(4)));
    settling.run_to(s(5));
    assert_eq!(settling.machine.phase(), Phase::CheckDelay);
    assert_eq!(settling.machine.drain().and_then(Drain::open), Some(3));
}

#[test]
fn a_signal_brings_the_next_try_to_fail_health_checks_forward() {
    let fail = Action::Call(Call::FailHealthChecks);
    let mut machine = machine(true);
    machine.start(options(), at(s(0)));
    assert_eq!(step(&mut machine, &Event::Tick, s(0)), fail);
    let failed = failure(1, Call::FailHealthChecks, AdminErrorKind::Timeout);
    for second in [0, 2, 4] {
        step(&mut machine, &failed, s(second));
        step(&mut machine, &Event::Tick, s(second + 1));
    }
    assert_ne!(step(&mut machine, &Event::Tick, s(5)), fail, "the third pause is 5 s");
    machine.stop(at(s(6)));
    assert_eq!(step(&mut machine, &Event::Tick, s(6)), fail);
}

#[test]
fn a_hook_that_comes_late_in_a_slow_call_is_not_left_alone_at_a_signal() {
    let options = Options { require_envoy_hook: true, ..options() };
    let mut machine = machine(true);
    machine.start(options, at(s(0)));
    assert_eq!(step(&mut machine, &Event::Tick, s(0)), Action::Call(Call::CheckReady));
    assert!(!machine.waiter_arrived(at(s(4))), "3 s are over");
    machine.stop(at(s(4)));
    let slow = failure(1, Call::CheckReady, AdminErrorKind::Timeout);
    assert_eq!(step(&mut machine, &slow, s(5)), Action::Call(Call::FailHealthChecks));
}
