//! How often Envoy is called: no loop without a pause, nothing unseen for long.

use super::*;

#[test]
fn an_envoy_that_stays_live_is_failed_again_once_in_an_interval() {
    for (interval, pause) in [(ms(10), ms(10)), (s(1), s(1)), (s(3600), s(2))] {
        let mut machine = machine(true);
        let options = Options { check_interval: interval, check_delay: s(0), ..options() };
        machine.start(options, at(s(0)));
        let (mut now, mut fails, mut steps) = (s(0), Vec::new(), 0);
        let mut event = Event::Tick;
        while fails.len() < 10 {
            steps += 1;
            event = match step(&mut machine, &event, now) {
                Action::Call(call @ Call::FailHealthChecks) => {
                    fails.push(now);
                    Event::Reply { drain: 1, call, result: Ok(Reply::HealthChecksFailed) }
                }
                Action::Call(Call::CheckReady) => reply(1, Reply::Ready(Health::Live)),
                Action::Call(Call::CheckListeners) => {
                    reply(1, Reply::Listeners(HiddenStats::default()))
                }
                Action::Call(_) => reply(1, Reply::Stats(Poll::of(0, Health::Live))),
                Action::SleepUntil(time) => {
                    now = time.since_boot();
                    Event::Tick
                }
                other => panic!("{other:?}"),
            };
        }
        let pauses = fails.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(pauses.clone().all(|each| each == pause), "{interval:?}: {fails:?}");
        assert!(steps < 100, "{steps} steps for {} rounds", fails.len());
    }
}

#[test]
fn a_revert_and_envoys_end_are_seen_between_polls_that_are_far_apart() {
    let hourly = || Options { check_interval: s(3600), ..options() };
    let mut scenario = drain(1, hourly()).at(s(100), Envoy::Live(1));
    scenario.run_to(s(110));
    assert_eq!(scenario.times(Call::FailHealthChecks), [s(0), s(100)]);
    let mut scenario = drain(1, hourly()).at(ms(100_500), Envoy::Refuses);
    assert_eq!(scenario.ends(), (s(104), Outcome::envoy_gone(Some(1))));
    // Also where failing health checks is retried as seldom.
    let mut scenario = drain(1, hourly()).at(s(0), Envoy::Hangs).at(s(100), Envoy::Refuses);
    let (took, outcome) = scenario.ends();
    assert_eq!(outcome, Outcome::envoy_gone(None));
    assert!(took <= s(106), "{took:?}");
}

#[test]
fn polls_that_are_close_together_need_no_checks_between() {
    let mut scenario = drain(1, options());
    scenario.run_to(s(40));
    let checks = scenario.times(Call::CheckReady);
    assert!(checks.iter().all(|time| *time < s(10)), "in the check delay alone: {checks:?}");
}

#[test]
fn a_time_out_shorter_than_the_drain_delay_fails_health_checks_once() {
    for timeout in [s(0), ms(500)] {
        let short = Options { drain_delay: s(1), drain_timeout: Some(timeout), ..options() };
        let mut scenario = drain(3, short);
        assert_eq!(scenario.ends(), (timeout, Outcome::timed_out(None)));
        assert_eq!(scenario.times(Call::FailHealthChecks), [timeout]);
    }
}

#[test]
fn an_envoy_that_starts_for_minutes_is_restored_all_the_same() {
    let mut scenario = idle(Envoy::Starting, options()).at(s(500), Envoy::Draining(0));
    scenario.run_to(s(1000));
    let restored = scenario.times(Call::RestoreHealthChecks);
    assert_eq!(restored.len(), 1);
    assert!(restored[0] >= s(500) && restored[0] <= s(560), "{restored:?}: checked once a minute");
    let checks = scenario.times(Call::CheckReady);
    let late: Vec<_> = checks.iter().filter(|time| **time > s(60) && **time < s(500)).collect();
    assert!(late.windows(2).all(|pair| *pair[1] - *pair[0] == s(60)), "{late:?}");
    let reported = |event: &&DrainEvent| **event == DrainEvent::StillStarting;
    assert_eq!(scenario.events.iter().filter(reported).count(), 1);
}
