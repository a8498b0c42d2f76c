//! No drain ends on a guess: what makes an end, and whose end it is.

use super::*;
use crate::cli::options::{DrainOption, WaitFor};
use crate::envoy::ServerTotal;

/// A drain that has been polled for the first time: health checks are failed, listeners compared.
fn waiting(options: Options, hidden: HiddenStats) -> Machine {
    compared(options, &reply(1, Reply::Listeners(hidden)))
}

/// The same, when its listeners were compared with this result.
fn compared(options: Options, comparison: &Event) -> Machine {
    let mut machine = machine(true);
    machine.start(Options { check_delay: s(0), ..options }, at(s(0)));
    assert_eq!(step(&mut machine, &Event::Tick, s(0)), Action::Call(Call::FailHealthChecks));
    let failed = reply(1, Reply::HealthChecksFailed);
    assert_eq!(step(&mut machine, &failed, s(0)), Action::Call(Call::CheckListeners));
    assert_eq!(step(&mut machine, comparison, s(0)), Action::Call(Call::ReadStats));
    machine
}

fn polled(open: u64, subtracted: bool) -> Event {
    reply(1, Reply::Stats(Poll { subtracted, ..Poll::of(open, Health::Draining) }))
}

const POLL: Action = Action::Call(Call::ReadStats);

#[test]
fn a_count_from_which_something_was_subtracted_ends_nothing_alone() {
    let mut machine = waiting(options(), HiddenStats::default());
    let now = three_polls(&mut machine, &polled(0, true), s(0));
    assert_eq!(step(&mut machine, &polled(0, true), now), Action::Finish(DRAINED));
}

/// A poll that counts none, but this many where nothing may be subtracted.
fn unsubtracted(unsubtracted: u64) -> Poll {
    Poll { unsubtracted, subtracted: true, ..Poll::of(0, Health::Draining) }
}

#[test]
fn nothing_is_subtracted_where_a_listener_that_is_not_counted_has_no_gauges_or_may_have_none() {
    let uncounted = vec!["stats".to_owned()];
    let hidden = reply(1, Reply::Listeners(HiddenStats { uncounted, ..HiddenStats::default() }));
    let unknown = failure(1, Call::CheckListeners, AdminErrorKind::Status);
    for (wait_for, comparison) in [
        (WaitFor::Connections, &hidden),
        (WaitFor::Requests, &hidden),
        (WaitFor::Connections, &unknown),
        (WaitFor::Requests, &unknown),
    ] {
        let mut machine = compared(Options { wait_for, ..options() }, comparison);
        let poll = unsubtracted;
        let two = reply(1, Reply::Stats(poll(2)));
        assert!(matches!(step(&mut machine, &two, s(0)), Action::SleepUntil(_)), "{wait_for:?}");
        let last = machine.drain().and_then(|drain| drain.last_poll.clone()).unwrap();
        let kinds = &last.breakdown.kinds;
        assert_eq!((last.open, last.in_use, kinds.tcp), (2, 2, 2), "{wait_for:?}");
        assert_eq!(step(&mut machine, &Event::Tick, s(5)), POLL);
        let none = reply(1, Reply::Stats(poll(0)));
        let mut next = step(&mut machine, &none, s(5));
        // One that waits for requests polls again, a second later too.
        let mut now = s(5);
        while let Action::SleepUntil(at) = next {
            now = at.since_boot();
            assert_eq!(step(&mut machine, &Event::Tick, now), POLL);
            next = step(&mut machine, &none, now);
        }
        assert_eq!(next, Action::Finish(DRAINED), "{wait_for:?}");
        // What a later poll shows is no plain count either.
        step(&mut machine, &Event::Finished, now);
        assert_eq!(machine.start(options(), at(now)), DrainStart::Started(2));
        assert!(!machine.drain().is_some_and(Drain::confirms_outcome), "{wait_for:?}");
    }
}

#[test]
fn nothing_is_subtracted_where_a_listener_that_is_counted_has_no_gauges() {
    let hidden = HiddenStats { listeners: vec!["web".to_owned()], ..HiddenStats::default() };
    let mut machine = waiting(options(), hidden);
    let total = Some(ServerTotal { connections: 1, uptime: 9 });
    step(&mut machine, &reply(1, Reply::Stats(Poll { total, ..unsubtracted(2) })), s(0));
    assert_eq!(machine.drain().and_then(Drain::open), Some(2));
}

#[test]
fn idle_connections_hold_a_drain_where_a_prefix_does_not_show_what_is_still_to_be_sent() {
    let hidden = HiddenStats { unsent: Some("web".to_owned()), ..HiddenStats::default() };
    for wait_for in [WaitFor::Requests, WaitFor::Connections] {
        let mut machine = waiting(Options { wait_for, ..options() }, hidden.clone());
        let mut idle = Poll { in_use: 0, ..Poll::of(3, Health::Draining) };
        idle.breakdown.kinds.http = 3;
        let next = step(&mut machine, &reply(1, Reply::Stats(idle)), s(0));
        assert!(matches!(next, Action::SleepUntil(_)), "{next:?}");
        let poll = machine.drain().and_then(|drain| drain.last_poll.clone()).unwrap();
        let shown = poll.breakdown.requests_hidden.as_deref();
        assert_eq!((poll.in_use, shown), (3, Some("web")), "{wait_for:?}");
    }
}

/// Three that must be confirmed, and the time of the fourth. The pauses between them differ, as what
/// makes a count wrong may come at equal distances.
#[track_caller]
fn three_polls(machine: &mut Machine, polled: &Event, mut now: Duration) -> Duration {
    for pause in [2, 8, 25].map(Duration::from_millis) {
        let next = step(machine, polled, now);
        now += pause;
        assert_eq!(next, Action::SleepUntil(at(now)));
        assert_eq!(step(machine, &Event::Tick, now), POLL);
    }
    now
}

#[test]
fn a_poll_that_disagrees_is_the_count_that_holds() {
    let mut machine = waiting(options(), HiddenStats::default());
    let now = three_polls(&mut machine, &polled(0, true), s(0));
    let soon = now + Duration::from_millis(25);
    assert_eq!(step(&mut machine, &polled(1, true), now), Action::SleepUntil(at(soon)));
    assert_eq!(machine.drain().and_then(Drain::open), Some(1));
    // A failed poll breaks the row too.
    assert_eq!(step(&mut machine, &Event::Tick, s(2)), POLL);
    let now = three_polls(&mut machine, &polled(0, true), s(2));
    step(&mut machine, &failure(1, Call::ReadStats, AdminErrorKind::Content), now);
    assert_eq!(step(&mut machine, &Event::Tick, s(4)), POLL);
    three_polls(&mut machine, &polled(0, true), s(4));
}

#[test]
fn a_failed_poll_breaks_the_row_whether_it_was_refused_or_not() {
    for kind in [AdminErrorKind::Content, AdminErrorKind::Timeout, AdminErrorKind::Refused] {
        let mut machine = waiting(options(), HiddenStats::default());
        let now = three_polls(&mut machine, &polled(0, true), s(0));
        step(&mut machine, &failure(1, Call::ReadStats, kind), now);
        let next = step(&mut machine, &Event::Tick, s(2));
        assert_eq!(next, POLL, "{kind:?}");
        let next = step(&mut machine, &polled(0, true), s(2));
        let again = Action::SleepUntil(at(ms(2_002)));
        assert_eq!(next, again, "{kind:?}: polls before the failed one still count");
    }
}

fn hidden() -> HiddenStats {
    HiddenStats { listeners: vec!["web".to_owned()], certain: true, ..HiddenStats::default() }
}

#[test]
fn a_drain_with_a_hidden_listener_waits_for_envoys_second_count() {
    let total = |connections, uptime| {
        let total = Some(ServerTotal { connections, uptime });
        reply(1, Reply::Stats(Poll { total, ..Poll::of(0, Health::Draining) }))
    };
    let mut machine = waiting(options(), hidden());
    let mut at_second = |second: u64, event: &Event| {
        let next = step(&mut machine, event, s(second));
        let open = machine.drain().and_then(Drain::open);
        step(&mut machine, &Event::Tick, s(second + 1));
        (next, open)
    };
    let later = |second| Action::SleepUntil(at(s(second)));
    assert_eq!(at_second(0, &polled(0, false)), (later(1), Some(0)), "Envoy does not show it");
    assert_eq!(at_second(1, &total(2, 10)), (later(2), Some(2)), "the larger count holds");
    assert_eq!(at_second(2, &total(0, 15)), (later(3), Some(0)), "it may be older than the poll");
    assert_eq!(at_second(3, &total(0, 15)), (later(4), Some(0)));
    assert_eq!(at_second(4, &total(0, 20)).0, Action::Finish(DRAINED));
}

#[test]
fn whether_listeners_are_hidden_is_asked_thrice_and_never_holds_a_drain_for_good() {
    for (kind, tries) in [
        (AdminErrorKind::Timeout, vec![s(0), s(1), s(2)]),
        (AdminErrorKind::Protocol, vec![s(0), s(1), s(2)]),
        (AdminErrorKind::Status, vec![s(0)]),
    ] {
        let mut machine = machine(true);
        machine.start(Options { check_delay: s(0), ..options() }, at(s(0)));
        step(&mut machine, &Event::Tick, s(0));
        let mut next = step(&mut machine, &reply(1, Reply::HealthChecksFailed), s(0));
        let mut now = s(0);
        let mut tried = Vec::new();
        while now < s(9) {
            let event = match next {
                Action::Call(Call::CheckListeners) => {
                    tried.push(now);
                    failure(1, Call::CheckListeners, kind)
                }
                Action::Call(_) => polled(0, false),
                Action::SleepUntil(time) => {
                    now = time.since_boot();
                    Event::Tick
                }
                _ => break,
            };
            next = step(&mut machine, &event, now);
        }
        assert_eq!((next, tried), (Action::Finish(DRAINED), tries), "{kind:?}");
    }
}

#[test]
fn listeners_of_an_envoy_that_was_starting_are_compared_again() {
    let mut scenario = drain(1, options())
        .at(s(4), Envoy::Starting)
        .at(s(8), Envoy::Draining(1))
        .at(s(30), Envoy::Draining(0));
    assert_eq!(scenario.ends().1, DRAINED);
    assert_eq!(scenario.times(Call::CheckListeners), [s(0), s(4), s(8)]);
    // And one that polls meanwhile is not failed again for every look that finds it starting.
    let slow = Options { check_interval: s(5), check_delay: s(0), ..options() };
    let mut scenario = drain(1, slow).at(s(4), Envoy::Starting);
    scenario.run_to(s(60));
    assert_eq!(scenario.times(Call::FailHealthChecks).len(), 2);
}

#[test]
fn an_address_where_nothing_has_ever_responded_is_wrong_while_envoys_own_hook_waits() {
    let mut scenario = idle(Envoy::Refuses, options()).at(s(60), Envoy::Live(0));
    scenario.machine.waiter_arrived(at(s(0)));
    scenario.start();
    scenario.run_to(s(50));
    assert!(scenario.machine.last().is_none(), "Envoy's hook runs only while Envoy does");
    let warned = |event: &&DrainEvent| **event == DrainEvent::NeverResponded;
    assert_eq!(scenario.events.iter().filter(warned).count(), 1, "said once");
    let times = scenario.times(Call::FailHealthChecks);
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] == s(1)), "no loop without a pause");
    // It drains once something responds.
    assert_eq!(scenario.ends().1, DRAINED);

    // Nor is it when the hook has left, or something has responded before.
    let mut alone = idle(Envoy::Refuses, options());
    alone.machine.waiter_arrived(at(s(0)));
    alone.start();
    alone.run_to(s(50));
    alone.machine.last_waiter_left(at(s(50)));
    assert_eq!(alone.ends().1, Outcome::envoy_gone(None));
    let mut seen = idle(Envoy::Live(0), options()).at(s(20), Envoy::Refuses);
    seen.run_to(s(10));
    seen.now = s(20);
    seen.machine.waiter_arrived(at(s(20)));
    seen.start();
    assert_eq!(seen.ends(), (s(2), Outcome::envoy_gone(None)));
}

#[test]
fn an_envoy_that_ends_with_connections_open_is_gone_with_their_number() {
    let mut scenario = drain(7, options()).at(s(12), Envoy::Refuses);
    assert_eq!(scenario.ends(), (s(14), Outcome::envoy_gone(Some(7))));
    assert!(Outcome::envoy_gone(Some(7)).explain().contains("7 open at the last poll"));
    let ended = scenario.machine.last().map(|ended| ended.envoy_hook);
    assert_eq!(ended, Some(false), "and its own hook had not come");
}

#[test]
fn an_envoy_that_ends_while_its_hook_is_awaited_is_gone_and_not_left_in_service() {
    for refused_at in [s(0), ms(1_500)] {
        let mut scenario = drain(0, required()).at(refused_at, Envoy::Refuses);
        assert_eq!(scenario.ends().1, Outcome::envoy_gone(None), "refused at {refused_at:?}");
    }
    // One that responds after all is left in service.
    let mut scenario =
        drain(0, required()).at(ms(1_500), Envoy::Refuses).at(ms(3_500), Envoy::Live(0));
    scenario.run_to(s(10));
    assert_eq!(scenario.machine.last().map(|ended| ended.outcome), Some(Outcome::NO_ENVOY_HOOK));
}

#[test]
fn a_late_hook_has_the_end_for_an_answer_only_while_it_holds() {
    let changes = [
        (Envoy::Draining(0), true, "nothing has changed"),
        (Envoy::Draining(1), false, "a client has connected"),
        (Envoy::Live(0), false, "Envoy was restored"),
        (Envoy::Hangs, false, "it is not known"),
    ];
    for (envoy, holds, why) in changes {
        let mut scenario = drain(0, options()).at(s(11), envoy).at(s(20), Envoy::Draining(0));
        scenario.run_to(s(15));
        assert_eq!(scenario.machine.phase(), Phase::Ended);
        assert_eq!(scenario.start(), DrainStart::Started(2), "a hook has its own drain");
        assert!(scenario.machine.drain().is_some_and(Drain::confirms_outcome));
        let (took, outcome) = scenario.ends();
        assert_eq!(outcome, DRAINED);
        assert_eq!(took == s(0), holds, "{why}: {took:?}");
        let fails = scenario.times(Call::FailHealthChecks).len();
        assert_eq!(fails == 1, holds, "{why}");
        let outdated = scenario.events.contains(&DrainEvent::OutcomeOutdated);
        assert_eq!(outdated, !holds, "{why}");
    }
}

#[test]
fn a_late_hook_finds_an_envoy_that_is_still_gone_or_back() {
    let gone = || drain(0, options()).at(s(1), Envoy::Refuses);
    let mut scenario = gone();
    scenario.run_to(s(10));
    scenario.start();
    assert_eq!(scenario.ends(), (s(0), Outcome::envoy_gone(None)));
    let mut scenario = gone().at(s(9), Envoy::Live(0));
    scenario.run_to(s(10));
    scenario.start();
    assert_eq!(scenario.ends(), (s(10), DRAINED));
}

#[test]
fn a_late_end_is_confirmed_like_any_other() {
    let mut scenario = drain(0, options());
    scenario.run_to(s(15));
    let machine = &mut scenario.machine;
    machine.start(options(), at(s(15)));
    assert_eq!(step(machine, &Event::Tick, s(15)), POLL);
    let subtracted = |open| {
        let poll = Poll { subtracted: true, ..Poll::of(open, Health::Draining) };
        reply(2, Reply::Stats(poll))
    };
    let now = three_polls(machine, &subtracted(0), s(15));
    assert_eq!(step(machine, &subtracted(0), now), Action::Finish(DRAINED));
}

#[test]
fn polls_that_should_have_confirmed_an_end_count_for_no_other() {
    let mut scenario = drain(0, options());
    scenario.run_to(s(15));
    let machine = &mut scenario.machine;
    machine.start(Options { check_delay: s(0), ..options() }, at(s(15)));
    assert_eq!(step(machine, &Event::Tick, s(15)), POLL);
    let subtracted =
        |open, health| reply(2, Reply::Stats(Poll { subtracted: true, ..Poll::of(open, health) }));
    let now = three_polls(machine, &subtracted(0, Health::Draining), s(15));
    let next = step(machine, &subtracted(3, Health::Live), now);
    assert_eq!(next, Action::Call(Call::FailHealthChecks), "Envoy was restored");
    let open = machine.drain().and_then(Drain::open);
    assert_eq!(open, Some(3), "what was counted is not shown");
    let next = step(machine, &reply(2, Reply::HealthChecksFailed), now);
    assert_eq!(next, Action::Call(Call::CheckListeners));
    let compared = reply(2, Reply::Listeners(HiddenStats::default()));
    assert_eq!(step(machine, &compared, now), POLL);
    three_polls(machine, &subtracted(0, Health::Draining), now);
}

#[test]
fn a_late_hook_that_counts_otherwise_has_a_drain_from_the_beginning() {
    let mut scenario = drain(0, Options { exclude: vec!["web".to_owned()], ..options() });
    scenario.run_to(s(15));
    scenario.options.exclude.clear();
    scenario.start();
    let confirms = scenario.machine.drain().is_some_and(Drain::confirms_outcome);
    assert!(!confirms, "connections that the drain before did not count would not be waited for");
    assert_eq!(scenario.ends(), (s(10), DRAINED));
}

#[test]
fn a_drain_that_gave_up_answers_no_later_hook() {
    let timeout = Options { drain_timeout: Some(s(12)), ..options() };
    let mut scenario = drain(1, timeout).at(s(16), Envoy::Draining(0));
    scenario.run_to(s(14));
    assert_eq!(
        scenario.machine.last().map(|ended| ended.outcome.kind),
        Some(OutcomeKind::TimedOut)
    );
    let awaited = scenario.machine.awaited_drain();
    assert_eq!(awaited, 2, "one who comes now waits for the next");
    assert!(scenario.machine.waiter_arrived(at(s(14))));
    scenario.run_to(s(15));
    assert_eq!(scenario.machine.answer_to(awaited), None);
    scenario.start();
    assert!(!scenario.machine.drain().is_some_and(Drain::confirms_outcome));
    let (took, outcome) = scenario.ends();
    assert_eq!((took, outcome), (s(10), DRAINED), "a drain of its own, from the beginning");
}

#[test]
fn envoys_hook_is_answered_late_only_after_a_look_that_agrees() {
    for (envoy, holds) in
        [(Envoy::Draining(0), true), (Envoy::Draining(1), false), (Envoy::Live(0), false)]
    {
        let mut scenario = drain(0, options()).at(s(11), envoy).at(s(60), Envoy::Draining(0));
        scenario.run_to(s(15));
        let awaited = scenario.machine.awaited_drain();
        assert_eq!(awaited, 2);
        assert!(scenario.machine.waiter_arrived(at(s(15))), "the worker is woken");
        assert_eq!(scenario.machine.answer_to(awaited), None, "not without a look");
        scenario.run_to(s(15));
        let answered = scenario.machine.answer_to(awaited).map(|ended| ended.number);
        assert_eq!(answered, holds.then_some(1), "{envoy:?}");
        // The next drain answers it else.
        scenario.start();
        scenario.run_to(s(200));
        assert!(scenario.machine.answer_to(awaited).is_some());
    }
}

#[test]
fn late_hooks_have_envoy_polled_at_most_every_two_seconds() {
    let mut scenario = drain(0, options());
    scenario.run_to(s(15));
    let polls = scenario.times(Call::ReadStats).len();
    for millis in (15_000..19_000).step_by(10) {
        scenario.now = ms(millis);
        scenario.machine.waiter_arrived(at(ms(millis)));
        scenario.run_to(ms(millis));
        scenario.machine.last_waiter_left(at(ms(millis)));
    }
    assert_eq!(scenario.times(Call::ReadStats)[polls..], [s(15), s(17)]);
}

#[test]
fn a_client_that_waits_at_the_end_is_answered_with_that_end() {
    let mut scenario = drain(0, options());
    scenario.machine.waiter_arrived(at(s(0)));
    let awaited = scenario.machine.awaited_drain();
    scenario.run_to(s(10));
    assert_eq!(scenario.machine.answer_to(awaited).map(|ended| ended.number), Some(1));
    assert_eq!(scenario.machine.awaited_drain(), 1, "also one whose request is still on its way");
    scenario.machine.last_waiter_left(at(s(10)));
    assert_eq!(scenario.machine.awaited_drain(), 2);
}

fn named(address: &str) -> Overrides {
    let mut overrides = Overrides::default();
    overrides.set(DrainOption::AdminAddress, address).unwrap();
    overrides
}

#[test]
fn a_hook_that_means_another_envoy_is_refused() {
    let request = |machine: &mut Machine, overrides: &Overrides| {
        machine.request(overrides, at(s(3))).map_err(|own| own.to_string())
    };
    let refused = |own: &str| Err(own.to_owned());
    let new = |given: &Overrides| {
        let own = options().with(given);
        Machine::new(own, given, true, Timestamp::ZERO)
    };
    // A sidecar that was given an address drains the Envoy there alone.
    let mut given = new(&named("/a/admin.sock"));
    assert_eq!(request(&mut given, &named("/b/admin.sock")), refused("/a/admin.sock"));
    assert_eq!(given.phase(), Phase::Idle);
    assert_eq!(request(&mut given, &named("/a/admin.sock")), Ok(DrainStart::Started(1)));
    assert_eq!(request(&mut given, &Overrides::default()), Ok(DrainStart::Joined(1)));

    // One that was not takes the hook's, since people set one of the two.
    let mut free = new(&Overrides::default());
    assert_eq!(request(&mut free, &named("/b/admin.sock")), Ok(DrainStart::Started(1)));
    assert_eq!(
        request(&mut free, &named("/c/admin.sock")),
        refused("/b/admin.sock"),
        "in its drain"
    );

    // Unless an Envoy has responded at its own.
    let mut seen = new(&Overrides::default());
    assert_eq!(step(&mut seen, &Event::Tick, s(2)), Action::Call(Call::CheckReady));
    step(&mut seen, &reply(0, Reply::Ready(Health::Live)), s(2));
    assert_eq!(request(&mut seen, &named("/b/admin.sock")), refused("/admin/admin.sock"));
}

#[test]
fn a_hook_without_an_address_means_the_envoy_that_this_sidecar_has_drained() {
    let mut machine = machine(true);
    machine.request(&named("/b/admin.sock"), at(s(3))).unwrap();
    assert_eq!(step(&mut machine, &Event::Tick, s(3)), Action::Call(Call::FailHealthChecks));
    step(&mut machine, &reply(1, Reply::HealthChecksFailed), s(3));
    for second in 4..7 {
        let refused = failure(1, Call::CheckReady, AdminErrorKind::Refused);
        step(&mut machine, &refused, s(second));
    }
    step(&mut machine, &Event::Finished, s(6));
    assert_eq!(machine.request(&Overrides::default(), at(s(60))), Ok(DrainStart::Started(2)));
    let drained = machine.options().map(|options| options.admin_address.to_string());
    assert_eq!(drained.as_deref(), Some("/b/admin.sock"));
}

#[test]
fn envoys_hook_that_comes_while_a_refusal_is_cleared_up_is_together_with_the_exec_hook() {
    let mut scenario =
        drain(0, required()).at(ms(1_500), Envoy::Refuses).at(ms(3_500), Envoy::Live(0));
    scenario.run_to(ms(3_200));
    assert_eq!(scenario.machine.phase(), Phase::AwaitingEnvoyHook);
    scenario.now = ms(3_300);
    assert!(scenario.machine.waiter_arrived(at(ms(3_300))));
    assert_eq!(scenario.ends().1, DRAINED);
}

#[test]
fn listeners_of_an_envoy_that_is_starting_at_the_comparison_are_compared_again() {
    let mut machine = machine(true);
    machine.start(Options { check_delay: s(5), ..options() }, at(s(0)));
    step(&mut machine, &Event::Tick, s(0));
    let next = step(&mut machine, &reply(1, Reply::HealthChecksFailed), s(0));
    assert_eq!(next, Action::Call(Call::CheckListeners));
    let starting = Ok(Reply::Ready(Health::Starting));
    let starting = Event::Reply { drain: 1, call: Call::CheckListeners, result: starting };
    assert_eq!(step(&mut machine, &starting, s(0)), Action::SleepUntil(at(s(1))));
    assert_eq!(step(&mut machine, &Event::Tick, s(1)), Action::Call(Call::ReadStats));
    let starting = reply(1, Reply::Stats(Poll::of(0, Health::Draining)));
    assert_eq!(step(&mut machine, &starting, s(1)), Action::SleepUntil(at(s(2))));
    assert_eq!(step(&mut machine, &Event::Tick, s(2)), Action::Call(Call::CheckReady));
    let ready = reply(1, Reply::Ready(Health::Draining));
    assert_eq!(step(&mut machine, &ready, s(2)), Action::Call(Call::CheckListeners));
}

#[test]
fn a_poll_that_confirms_an_end_has_no_more_time_than_its_drain() {
    let mut scenario = drain(0, options());
    scenario.run_to(s(15));
    scenario.options.drain_timeout = Some(s(3));
    scenario.start();
    let drain = scenario.machine.drain().expect("a drain");
    assert!(drain.confirms_outcome());
    let left = drain.time_left(at(s(16)));
    assert_eq!(left, Some(s(2)), "an Envoy that is silent would hold the drain past its timeout");
}

#[test]
fn polls_for_one_late_waiter_confirm_nothing_for_the_next() {
    let mut scenario = drain(0, options());
    scenario.run_to(s(15));
    let machine = &mut scenario.machine;
    assert!(machine.waiter_arrived(at(s(15))));
    assert_eq!(step(machine, &Event::Tick, s(15)), POLL);
    let now = three_polls(machine, &polled(0, true), s(15));
    machine.last_waiter_left(at(now));
    assert!(machine.waiter_arrived(at(now)));
    let now = three_polls(machine, &polled(0, true), now);
    let awaited = machine.awaited_drain();
    assert_eq!(machine.answer_to(awaited), None, "answered by three polls of its own");
    step(machine, &polled(0, true), now);
    assert_eq!(machine.answer_to(awaited).map(|ended| ended.number), Some(1));
}

#[test]
fn a_poll_for_a_late_waiter_that_has_left_answers_no_other() {
    let mut scenario = drain(0, options());
    scenario.run_to(s(15));
    let machine = &mut scenario.machine;
    assert!(machine.waiter_arrived(at(s(15))));
    assert_eq!(step(machine, &Event::Tick, s(15)), POLL);
    machine.last_waiter_left(at(s(15)));
    step(machine, &polled(0, false), s(15));
    let awaited = machine.awaited_drain();
    assert_eq!(awaited, 2, "one who comes now waits for the next drain");
    machine.waiter_arrived(at(s(20)));
    assert_eq!(machine.answer_to(awaited), None, "what was counted 5 s ago may hold no more");
}

#[test]
fn an_error_at_an_address_that_was_not_given_is_no_sign_of_an_envoy() {
    let mut machine = machine(true);
    assert_eq!(step(&mut machine, &Event::Tick, s(2)), Action::Call(Call::CheckReady));
    step(&mut machine, &failure(0, Call::CheckReady, AdminErrorKind::Status), s(2));
    machine.waiter_arrived(at(s(3)));
    machine.start(options(), at(s(3)));
    for second in 3..8 {
        let fail = step(&mut machine, &Event::Tick, s(second));
        assert_eq!(fail, Action::Call(Call::FailHealthChecks), "given up after {second} s");
        step(&mut machine, &failure(1, Call::FailHealthChecks, AdminErrorKind::Refused), s(second));
    }
    assert_eq!(machine.last(), None, "Envoy's hook runs only while Envoy does");
}

#[test]
fn a_time_out_breaks_a_row_of_refusals() {
    let mut machine = waiting(options(), HiddenStats::default());
    let kinds = [AdminErrorKind::Refused, AdminErrorKind::Refused, AdminErrorKind::Timeout];
    for (kind, second) in kinds.into_iter().zip([0, 1, 4]) {
        step(&mut machine, &failure(1, Call::ReadStats, kind), s(second));
        step(&mut machine, &Event::Tick, s(second + 1));
    }
    let next = step(&mut machine, &failure(1, Call::ReadStats, AdminErrorKind::Refused), s(9));
    assert_eq!(next, Action::SleepUntil(at(s(10))), "an Envoy that listened 5 s ago is not gone");
}
