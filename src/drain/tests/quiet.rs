//! Delays that end early, once no new connection has come for the quiet period.

use super::*;

/// A check delay of 60 s that a quiet period of 4 s may end, and an Envoy at which clients arrive at these
/// times.
fn arrivals(options: Options, arrivals: impl IntoIterator<Item = Duration>) -> Scenario {
    let quiet = Options { check_delay: s(60), quiet_period: s(4), ..options };
    let mut scenario = drain(0, quiet);
    scenario.arrivals = Some(arrivals.into_iter().collect());
    scenario
}

fn quiet_events(scenario: &Scenario) -> Vec<(Delay, Duration, u64)> {
    let quiet = |event: &DrainEvent| match event {
        DrainEvent::Quiet { delay, took, new, .. } => Some((*delay, *took, *new)),
        _ => None,
    };
    scenario.events.iter().filter_map(quiet).collect()
}

fn not_quiet(scenario: &Scenario) -> Vec<QuietPeriod> {
    let not_quiet = |event: &DrainEvent| match event {
        DrainEvent::NotQuiet { quiet, .. } => Some(quiet.clone()),
        _ => None,
    };
    scenario.events.iter().filter_map(not_quiet).collect()
}

#[test]
fn an_idle_envoy_is_drained_after_the_quiet_period() {
    let mut scenario = arrivals(options(), []);
    assert_eq!(scenario.ends(), (s(4), DRAINED));
    assert_eq!(quiet_events(&scenario), [(Delay::CheckDelay, s(4), 0)]);
    // At the start, each check interval, and at the end of the period.
    assert_eq!(scenario.times(Call::ReadAccepted), [0, 1, 2, 3, 4].map(s));
}

#[test]
fn new_connections_are_counted_each_half_period_where_that_is_shorter_than_the_interval() {
    let mut scenario = arrivals(Options { check_interval: s(30), ..options() }, []);
    assert_eq!(scenario.ends(), (s(4), DRAINED));
    assert_eq!(scenario.times(Call::ReadAccepted), [0, 2, 4].map(s));
}

#[test]
fn the_period_counts_from_the_latest_new_connection() {
    let mut scenario = arrivals(options(), [ms(500), ms(3_400), ms(7_100)]);
    let (took, outcome) = scenario.ends();
    // Noticed at 8 s, so that it is quiet at 12 s.
    assert_eq!((took, outcome), (s(12), DRAINED));
    assert_eq!(quiet_events(&scenario), [(Delay::CheckDelay, s(12), 3)]);
}

#[test]
fn the_delay_is_the_upper_bound_and_the_log_learns_why() {
    let mut scenario = arrivals(options(), (0..200).map(|second| s(3 * second) + ms(100)));
    assert_eq!(scenario.ends(), (s(60), DRAINED));
    let [quiet] = &not_quiet(&scenario)[..] else { panic!("{:?}", scenario.events) };
    assert_eq!(quiet.new, 20);
    assert!(quiet.looks_like_checks(s(1)), "{quiet:?}");
    assert_eq!(quiet_events(&scenario), []);
}

#[test]
fn what_comes_irregularly_or_densely_does_not_look_like_health_checks() {
    let irregular = [1, 2, 5, 8, 8, 8, 11, 12, 15, 16, 19, 22, 22, 25, 28, 30, 33, 34, 37, 40];
    let irregular = irregular.into_iter().chain([41, 44, 45, 48, 51, 51, 54, 55, 58, 59]).map(s);
    let mut scenario = arrivals(options(), irregular);
    assert_eq!(scenario.ends().0, s(60));
    assert!(!not_quiet(&scenario)[0].looks_like_checks(s(1)));
    let mut scenario = arrivals(options(), (0..6_000).map(|tenth| ms(10 * tenth)));
    assert_eq!(scenario.ends().0, s(60));
    assert!(!not_quiet(&scenario)[0].looks_like_checks(s(1)));
}

#[test]
fn each_delay_has_a_period_of_its_own() {
    // Quiet before health checks are failed says nothing about what a balancer does that sees it.
    let mut scenario = arrivals(Options { drain_delay: s(30), ..options() }, []);
    assert_eq!(scenario.ends(), (s(8), DRAINED));
    assert_eq!(scenario.times(Call::FailHealthChecks), [s(4)]);
    let both = [(Delay::DrainDelay, s(4), 0), (Delay::CheckDelay, s(4), 0)];
    assert_eq!(quiet_events(&scenario), both);
}

#[test]
fn it_ends_what_is_left_of_the_shortest_drain_too() {
    let gateway = Options { check_delay: s(0), min_drain_duration: s(30), ..options() };
    let mut scenario = drain(0, Options { quiet_period: s(4), ..gateway });
    scenario.arrivals = Some(Vec::new());
    assert_eq!(scenario.ends(), (s(4), DRAINED));
}

#[test]
fn a_failed_count_starts_the_period_again() {
    let mut scenario =
        arrivals(options(), []).at(ms(2_500), Envoy::Hangs).at(ms(5_500), Envoy::Draining(0));
    // The last that hangs does so from 5 s to 7 s, and leaves Envoy in peace as long.
    assert_eq!(scenario.ends(), (s(9) + s(4), DRAINED));
}

#[test]
fn a_refused_call_starts_the_period_again() {
    let mut scenario =
        arrivals(options(), []).at(ms(2_500), Envoy::Refuses).at(ms(4_200), Envoy::Draining(0));
    let (took, outcome) = scenario.ends();
    assert_eq!(outcome, DRAINED);
    assert!(took >= ms(8_200) && took <= s(11), "{took:?}");
}

#[test]
fn a_revert_starts_the_delay_and_the_period_again() {
    let mut scenario = arrivals(options(), []).at(ms(2_500), Envoy::Live(0));
    let (took, outcome) = scenario.ends();
    assert_eq!(outcome, DRAINED);
    let failed = scenario.times(Call::FailHealthChecks);
    assert_eq!(failed.len(), 2);
    assert_eq!(took, failed[1] + s(4));
}

#[test]
fn an_envoy_that_restarts_within_a_drain_delay_starts_the_period_again() {
    let mut scenario = arrivals(Options { drain_delay: s(30), ..options() }, [])
        .at(ms(1_500), Envoy::Starting)
        .at(ms(3_500), Envoy::Live(0));
    scenario.run_to(s(7));
    assert_eq!(quiet_events(&scenario), []);
    assert_eq!(scenario.ends().1, DRAINED);
}

#[test]
fn where_new_connections_cannot_be_seen_the_delay_has_its_whole_length() {
    let mut scenario = arrivals(options(), []);
    scenario.arrivals = None;
    assert_eq!(scenario.ends(), (s(60), DRAINED));
    let hidden = |event: &&DrainEvent| **event == DrainEvent::ArrivalsHidden;
    assert_eq!(scenario.events.iter().filter(hidden).count(), 1);
    let calls = scenario.times(Call::ReadAccepted).len();
    assert!(calls <= 3, "{calls} counts of what is hidden");
}

#[test]
fn where_a_listener_or_its_counter_is_hidden_the_delay_has_its_whole_length() {
    let names = vec!["web".to_owned()];
    whole_length(&HiddenStats { listeners: names, certain: true, ..HiddenStats::default() });
    whole_length(&HiddenStats { arrivals: true, ..HiddenStats::default() });
}

#[track_caller]
fn whole_length(hidden: &HiddenStats) {
    let mut machine = machine(true);
    machine.start(Options { check_delay: s(60), quiet_period: s(4), ..options() }, Timestamp::ZERO);
    let mut event = Event::Tick;
    let (mut now, mut events, mut counts) = (Duration::ZERO, Vec::new(), 0);
    while machine.phase() != Phase::WaitingForConnections {
        let step = machine.step(&event, at(now));
        events.extend(step.events);
        event = Event::Tick;
        match step.action {
            Action::SleepUntil(time) => now = time.since_boot(),
            Action::Call(call) => {
                counts += u32::from(call == Call::ReadAccepted);
                event = reply(
                    1,
                    match call {
                        Call::FailHealthChecks => Reply::HealthChecksFailed,
                        Call::CheckListeners => Reply::Listeners(hidden.clone()),
                        Call::ReadAccepted => Reply::Accepted(Some(Arrivals::default())),
                        Call::ReadStats => Reply::Stats(Poll::of(0, Health::Draining)),
                        _ => Reply::Ready(Health::Draining),
                    },
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(now, s(60));
    assert!(events.contains(&DrainEvent::ArrivalsHidden));
    assert!(counts <= 3, "{counts} counts for nothing");
    assert_eq!(machine.drain().and_then(Drain::quiet_since), None);
}

#[test]
fn where_listeners_cannot_be_compared_a_drain_waits_for_connections_whatever_it_was_given() {
    // A hidden listener's idle HTTP connection would hide a TCP connection in the difference.
    let mut machine = machine(true);
    let wait_for = crate::cli::options::WaitFor::Requests;
    machine.start(Options { check_delay: s(0), wait_for, ..options() }, Timestamp::ZERO);
    let (mut event, mut now) = (Event::Tick, Duration::ZERO);
    while now < s(10) {
        let step = machine.step(&event, at(now));
        event = Event::Tick;
        match step.action {
            Action::SleepUntil(time) => now = time.since_boot(),
            Action::Call(call) => {
                let mut poll = Poll { in_use: 0, ..Poll::of(1, Health::Draining) };
                poll.breakdown.kinds.http = 1;
                let result = match call {
                    Call::FailHealthChecks => Ok(Reply::HealthChecksFailed),
                    Call::CheckListeners => Err(error(AdminErrorKind::Status)),
                    Call::ReadAccepted => Ok(Reply::Accepted(None)),
                    Call::ReadStats => Ok(Reply::Stats(poll)),
                    _ => Ok(Reply::Ready(Health::Draining)),
                };
                event = Event::Reply { drain: 1, call, result };
            }
            other => panic!("{other:?} at {now:?}"),
        }
    }
    assert_eq!(machine.phase(), Phase::WaitingForConnections);
}

#[test]
fn a_signal_ends_the_wait_for_quiet_and_not_the_delay() {
    let mut scenario = arrivals(options(), []);
    scenario.run_to(s(1));
    scenario.machine.stop(at(s(1)));
    let counts = scenario.times(Call::ReadAccepted).len();
    scenario.run_to(s(50));
    assert_eq!(scenario.machine.phase(), Phase::CheckDelay);
    assert_eq!(scenario.times(Call::ReadAccepted).len(), counts);
}

#[test]
fn new_requests_are_no_quiet_where_requests_are_waited_for() {
    for (wait_for, expected) in [
        (crate::cli::options::WaitFor::Connections, 1),
        (crate::cli::options::WaitFor::Requests, 0),
    ] {
        let mut scenario = arrivals(Options { wait_for, ..options() }, []);
        scenario.machine.step(&Event::Tick, Timestamp::ZERO);
        let mut quiet = 0;
        for second in 0..20 {
            let arrivals = Arrivals { connections: 7, requests: Some(second) };
            let mut now = s(second);
            let mut event = Event::Tick;
            loop {
                let step = scenario.machine.step(&event, at(now));
                let is_quiet = |event: &&DrainEvent| matches!(event, DrainEvent::Quiet { .. });
                quiet += step.events.iter().filter(is_quiet).count();
                event = match step.action {
                    Action::Call(Call::ReadAccepted) => reply(1, Reply::Accepted(Some(arrivals))),
                    Action::Call(call) => {
                        Event::Reply { drain: 1, call, result: scenario.call(call) }
                    }
                    Action::Finish(_) => Event::Finished,
                    _ => break,
                };
                now += ms(1);
            }
        }
        assert_eq!(quiet, expected, "{wait_for:?}");
    }
}
