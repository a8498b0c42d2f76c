use super::*;
use crate::cli::options::{DrainOption, Options};
use crate::drain::{Action, Event, Outcome, Step};
use crate::envoy::error::AdminErrorKind;
use crate::envoy::{Arrivals, CallResult, Reply};
use crate::observe::counters::Counters;
use crate::observe::log::{Level, Value};

const fn at(time: Duration) -> Timestamp {
    Timestamp::from_boot(time)
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A machine whose log is collected.
struct Logged {
    machine: Machine,
    log: DrainLog,
    counters: Counters,
    now: Duration,
    records: Vec<Record>,
    /// What the machine has asked for.
    call: Option<Call>,
}

fn machine(restore: bool) -> Machine {
    Machine::new(Options::default(), &Overrides::default(), restore, Timestamp::ZERO)
}

impl Logged {
    fn record(&self, message: &str) -> &Record {
        self.records.iter().find(|record| record.message == message).expect(message)
    }

    fn new() -> Self {
        Self::with(machine(true))
    }

    fn with(machine: Machine) -> Self {
        let (log, counters) = (DrainLog::default(), Counters::default());
        Self { machine, log, counters, now: Duration::ZERO, records: Vec::new(), call: None }
    }

    fn draining(options: &[(DrainOption, &str)]) -> Self {
        let mut logged = Self::new();
        logged.start(options);
        logged.step(&Event::Tick);
        logged
    }

    fn start(&mut self, options: &[(DrainOption, &str)]) {
        let mut requested = Overrides::default();
        for (option, text) in options {
            requested.set(*option, text).unwrap();
        }
        let start = self.machine.start(Options::default().with(&requested), at(self.now));
        let records = self.log.drain_started(start, &requested, &self.machine, at(self.now));
        self.records.extend(records);
    }

    fn step(&mut self, event: &Event) -> Action {
        let Step { action, events } = self.machine.step(event, at(self.now));
        events.iter().for_each(|event| self.counters.record(event, at(self.now)));
        self.records.extend(self.log.record(&events, &self.machine, at(self.now)));
        if action == Action::Call(Call::ReadAccepted) {
            // This Envoy does not show how many connections it has accepted.
            return self.step(&Event::Reply {
                drain: self.machine.number(),
                call: Call::ReadAccepted,
                result: Ok(Reply::Accepted(None)),
            });
        }
        if let Action::Call(call) = action {
            self.call = Some(call);
        }
        action
    }

    fn replied(&mut self, result: CallResult) -> Action {
        let drain = self.machine.number();
        self.step(&Event::Reply { drain, call: self.call.unwrap(), result })
    }

    fn reply(&mut self, reply: Reply) -> Action {
        self.replied(Ok(reply))
    }

    /// Health checks are failed, and every listener is in the stats.
    fn out_of_service(&mut self) -> Action {
        assert_eq!(self.reply(Reply::HealthChecksFailed), Action::Call(Call::CheckListeners));
        self.reply(Reply::Listeners(HiddenStats::default()))
    }

    fn poll(&mut self, open: u64) -> Action {
        self.reply(polled(open, StatsCoverage::Everything, Health::Draining))
    }

    fn fail(&mut self, text: &str) -> Action {
        self.fail_with(AdminErrorKind::Timeout, text)
    }

    fn fail_with(&mut self, kind: AdminErrorKind, text: &str) -> Action {
        self.replied(Err(AdminError { kind, text: text.to_owned() }))
    }

    /// Calls are refused, this often, a second apart.
    fn refuse(&mut self, times: u32) -> Action {
        let mut action = Action::Sleep;
        for _ in 0..times {
            self.step(&Event::Tick);
            action = self.fail_with(AdminErrorKind::Refused, "refused");
            self.now += s(1);
        }
        action
    }

    /// It is over whether Envoy's own hook comes too.
    fn pairing_logged(&mut self) -> &mut Self {
        let now = self.now;
        self.at(s(3)).step(&Event::Tick);
        self.messages();
        self.at(now)
    }

    /// The messages since the last time.
    fn messages(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.records).into_iter().map(|record| record.message).collect()
    }

    #[track_caller]
    fn only(&mut self) -> Record {
        assert_eq!(self.records.len(), 1, "one record: {:?}", self.records);
        self.records.remove(0)
    }

    fn at(&mut self, now: Duration) -> &mut Self {
        self.now = now;
        self
    }

    /// When the next record is due that breaks a silence.
    #[track_caller]
    fn assert_reminder(&self, expected: Option<Timestamp>) {
        let due = self.log.reminder(&self.machine);
        let phase = self.machine.phase();
        assert_eq!(due, expected, "the next reminder, at {:?} in {phase:?}", self.now);
    }
}

fn polled(open: u64, coverage: StatsCoverage, health: Health) -> Reply {
    Reply::Stats(Poll { coverage, ..Poll::of(open, health) })
}

fn field<'a>(record: &'a Record, name: &str) -> Option<&'a Value> {
    record.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value)
}

#[track_caller]
fn assert_field(record: &Record, name: &str, expected: Option<&Value>) {
    assert_eq!(field(record, name), expected, "{name} of {record:?}");
}

#[test]
fn a_drain_is_logged_from_its_start_to_its_outcome() {
    let mut logged = Logged::draining(&[(DrainOption::CheckDelay, "10s")]);
    let requested = logged.only();
    assert_eq!(requested.message, messages::DRAIN_STARTED);
    assert_field(&requested, "requested", Some(&"check-delay=10s".into()));
    assert_field(&requested, "check-interval", Some(&"5s".into()));

    logged.out_of_service();
    let failed = logged.only();
    assert_eq!(failed.message, messages::OUT_OF_SERVICE);
    assert_field(&failed, "first_poll_in", Some(&"10s".into()));

    logged.pairing_logged().at(s(10)).step(&Event::Tick);
    assert_eq!(logged.messages(), [""; 0]);
    for (open, records) in [(3, 1), (3, 0), (2, 1), (3, 1), (3, 0)] {
        logged.poll(open);
        assert_eq!(logged.records.len(), records, "{open} open: {:?}", logged.records);
        if let Some(record) = logged.records.pop() {
            assert_field(&record, "open_connections", Some(&open.into()));
            assert_field(&record, "threshold_connections", Some(&0.into()));
        }
    }
    assert_eq!(logged.poll(0), Action::Finish(Outcome::drained(0)));
    logged.messages();
    logged.step(&Event::Finished);
    let outcome = logged.only();
    assert_eq!((outcome.level, outcome.message), (Level::Info, messages::DRAINED));
    assert_field(&outcome, "outcome", Some(&"drained".into()));
    assert_field(&outcome, "took_seconds", Some(&s(10).into()));
}

#[test]
fn whether_envoys_own_hook_came_is_logged_after_three_seconds() {
    for (comes, required, level, start) in [
        (true, false, Some(Level::Info), "Envoy's own hook waits too"),
        (true, true, Some(Level::Info), "Envoy's own hook waits too"),
        (false, false, Some(Level::Warn), "Envoy's own hook did not come"),
        (false, true, None, ""),
    ] {
        let switch = [(DrainOption::RequireEnvoyHook, "true")];
        let mut logged = Logged::draining(if required { &switch } else { &[] });
        if comes {
            logged.machine.waiter_arrived(at(s(2)));
        }
        logged.messages();
        logged.at(s(3)).step(&Event::Tick);
        let logged_level = logged.records.first().map(|record| record.level);
        let texts = logged.messages().concat();
        let row = format!("{texts:?} where the hook comes: {comes}, and is required: {required}");
        assert_eq!(logged_level, level, "{row}");
        assert!(texts.starts_with(start), "{row}");
        logged.at(s(4)).step(&Event::Tick);
        assert_eq!(logged.messages(), [""; 0], "and then no more");
    }
}

#[test]
fn it_is_logged_whether_listeners_drain() {
    let switch = [(DrainOption::DrainListeners, "true"), (DrainOption::MinDrainDuration, "1m30s")];
    let mut logged = Logged::draining(&switch);
    logged.machine.waiter_arrived(at(s(0)));
    logged.messages();
    assert_eq!(logged.reply(Reply::HealthChecksFailed), Action::Call(Call::DrainListeners));
    assert_field(&logged.only(), "first_poll_in", Some(&"1m30s".into()));
    logged.reply(Reply::ListenersDraining);
    assert_eq!(logged.only().message, messages::LISTENERS_DRAINING);
    logged.at(s(3)).step(&Event::Tick);
    assert_eq!(field(&logged.only(), "listeners"), None, "they do");

    let mut lone = Logged::draining(&switch);
    lone.reply(Reply::HealthChecksFailed);
    lone.messages();
    lone.at(s(3)).step(&Event::Tick);
    let left = "not drained, which could not be undone";
    assert_field(&lone.only(), "listeners", Some(&left.into()));

    // They are logged later, or never were to be.
    let mut early = Logged::draining(&[switch[0], (DrainOption::DrainDelay, "20s")]);
    early.machine.waiter_arrived(at(s(0)));
    for mut logged in [early, Logged::draining(&[])] {
        logged.messages();
        logged.at(s(3)).step(&Event::Tick);
        assert_field(&logged.only(), "listeners", None);
    }
}

#[test]
fn an_envoy_that_is_left_in_service_is_logged_with_the_reason() {
    let mut logged = Logged::draining(&[(DrainOption::RequireEnvoyHook, "true")]);
    logged.at(s(3)).step(&Event::Tick);
    logged.messages();
    logged.step(&Event::Finished);
    let record = logged.only();
    assert_eq!(
        (record.level, field(&record, "outcome")),
        (Level::Info, Some(&"no_envoy_hook".into()))
    );
}

#[test]
fn giving_up_is_a_warning() {
    let mut logged = Logged::draining(&[(DrainOption::DrainTimeout, "70s")]);
    logged.reply(Reply::HealthChecksFailed);
    logged.at(s(70)).step(&Event::Tick);
    logged.messages();
    logged.step(&Event::Finished);
    assert_eq!(logged.only().level, Level::Warn);
}

#[test]
fn a_timeout_that_leaves_no_time_to_wait_is_warned_of() {
    for (timeout, warning) in [
        ("0s", messages::TIMEOUT_BEFORE_DRAIN_DELAY),
        ("10s", messages::TIMEOUT_BEFORE_FIRST_POLL),
        ("11s", messages::TIMEOUT_BEFORE_FIRST_POLL),
        ("70s", messages::TIMEOUT_BEFORE_FIRST_POLL),
    ] {
        let options = [(DrainOption::DrainTimeout, timeout), (DrainOption::DrainDelay, "10s")];
        let texts = Logged::draining(&options).messages();
        assert_eq!(texts, [messages::DRAIN_STARTED, warning], "a drain timeout of {timeout}");
    }
    let options = [(DrainOption::DrainTimeout, "71s"), (DrainOption::DrainDelay, "10s")];
    assert_eq!(Logged::draining(&options).messages(), [messages::DRAIN_STARTED]);
    for (timeout, texts) in [
        ("80s", &[messages::DRAIN_STARTED, messages::TIMEOUT_BEFORE_FIRST_POLL][..]),
        ("81s", &[messages::DRAIN_STARTED]),
    ] {
        let options =
            [(DrainOption::DrainTimeout, timeout), (DrainOption::MinDrainDuration, "80s")];
        assert_eq!(Logged::draining(&options).messages(), texts, "a drain timeout of {timeout}");
    }
}

#[test]
fn an_error_is_logged_once_and_then_counted() {
    let mut logged = Logged::draining(&[(DrainOption::CheckDelay, "0")]);
    logged.out_of_service();
    logged.messages();
    for _ in 0..5 {
        logged.fail("it is slow");
    }
    let record = logged.only();
    assert_eq!((record.level, field(&record, "error")), (Level::Warn, Some(&"it is slow".into())));
    logged.fail("it is odd");
    let record = logged.only();
    assert_field(&record, "error", Some(&"it is odd".into()));
    assert_field(&record, "repeated", Some(&4.into()));
    logged.fail("it is slow");
    assert_field(&logged.only(), "repeated", None);
    logged.poll(7);
    let again = logged.records.remove(0);
    assert_eq!(again.message, messages::ENVOY_RESPONDS_AGAIN);
    assert_field(&again, "previous_error", Some(&"it is slow".into()));
    assert_field(&again, "repeated", None);
    assert_eq!(logged.messages(), [messages::OPEN_CONNECTIONS]);
    for _ in 0..3 {
        logged.fail("it is slow");
    }
    logged.poll(7);
    assert_field(&logged.records[1], "repeated", Some(&2.into()));
}

#[test]
fn one_success_ends_all_errors_that_it_disproves() {
    let mut logged = Logged::draining(&[(DrainOption::CheckDelay, "0")]);
    logged.out_of_service();
    logged.messages();
    for (call, text) in [(Call::CheckReady, "it is odd"), (Call::ReadStats, "it is slow")] {
        let error = AdminError { kind: AdminErrorKind::Timeout, text: text.to_owned() };
        logged.step(&Event::Reply { drain: 1, call, result: Err(error) });
    }
    assert_eq!(logged.messages(), [messages::ENVOY_CALL_FAILED; 2]);
    for expected in [&[messages::ENVOY_RESPONDS_AGAIN, messages::OPEN_CONNECTIONS][..], &[], &[]] {
        let stats = polled(7, StatsCoverage::Everything, Health::Draining);
        logged.step(&Event::Reply { drain: 1, call: Call::ReadStats, result: Ok(stats) });
        assert_eq!(logged.messages(), expected, "once, for the check and the poll together");
    }
}

#[test]
fn a_silent_minute_of_a_drain_is_broken() {
    let mut logged = Logged::draining(&[(DrainOption::CheckDelay, "0")]);
    logged.out_of_service();
    logged.poll(7);
    logged.messages();
    logged.pairing_logged().at(s(62)).poll(7);
    assert_eq!(logged.messages(), [""; 0]);
    logged.assert_reminder(Some(at(s(63))));
    logged.at(s(63)).step(&Event::Tick);
    let record = logged.only();
    assert_eq!(record.message, messages::STILL_WAITING);
    assert_field(&record, "open_connections", Some(&7.into()));
    assert_field(&record, "elapsed_seconds", Some(&s(63).into()));
    logged.assert_reminder(Some(at(s(123))));
    logged.at(s(100)).fail("it is slow");
    logged.messages();
    logged.at(s(160)).fail("it is slow");
    assert_field(&logged.only(), "repeated", Some(&1.into()));
    assert_eq!(Logged::new().log.reminder(&Logged::new().machine), None, "no drain, no wake-up");
    let mut logged = Logged::new();
    logged.at(s(100)).start(&[]);
    logged.assert_reminder(Some(at(s(160))));
}

#[test]
fn a_revert_is_logged_with_what_follows() {
    let mut logged = Logged::draining(&[]);
    logged.out_of_service();
    logged.messages();
    logged.reply(Reply::Ready(Health::Draining));
    assert_eq!(logged.messages(), [""; 0]);
    for (seconds, reply, message) in [
        (10, Reply::Ready(Health::Live), messages::ENVOY_LIVE_AGAIN),
        (20, Reply::Ready(Health::Starting), messages::ENVOY_RESTARTED),
        (30, polled(0, StatsCoverage::Everything, Health::Live), messages::ENVOY_LIVE_AGAIN),
    ] {
        logged.pairing_logged().at(s(seconds)).step(&Event::Tick);
        logged.reply(reply);
        assert_eq!(logged.records[0].message, message);
        assert_eq!(field(&logged.records[0], "times"), None, "it was the first, or long ago");
        logged.messages();
        logged.out_of_service();
        assert_eq!(logged.messages(), [messages::OUT_OF_SERVICE]);
    }
}

#[test]
fn an_envoy_that_comes_back_again_and_again_is_logged_once_in_ten_seconds() {
    let mut logged = Logged::draining(&[]);
    logged.out_of_service();
    logged.pairing_logged();
    let mut found = Vec::new();
    for seconds in (4..=24).step_by(2) {
        logged.at(s(seconds)).step(&Event::Tick);
        logged.reply(Reply::Ready(Health::Live));
        logged.out_of_service();
        for record in logged.records.drain(..) {
            found.push((seconds, record.message, field(&record, "times").map(Value::json)));
        }
    }
    let (live, out) = (messages::ENVOY_LIVE_AGAIN, messages::OUT_OF_SERVICE);
    let times = Some("5".to_owned());
    assert_eq!(
        found,
        [
            (4, live, None),
            (4, out, None),
            (14, live, times.clone()),
            (14, out, None),
            (24, live, times),
            (24, out, None)
        ]
    );
}

#[test]
fn what_cannot_be_seen_is_logged_once_and_with_the_outcome() {
    let mut logged = Logged::draining(&[(DrainOption::CheckDelay, "0")]);
    logged.out_of_service();
    logged.messages();
    let poll = |open, coverage| polled(open, coverage, Health::Draining);
    logged.reply(poll(1, StatsCoverage::HttpOnly));
    assert_eq!(logged.messages()[0], messages::LISTENERS_HIDDEN);
    logged.reply(poll(1, StatsCoverage::HttpOnly));
    logged.reply(poll(0, StatsCoverage::HttpOnly));
    logged.messages();
    logged.step(&Event::Finished);
    assert!(field(&logged.only(), "not_counted").is_some());
}

#[test]
fn a_reply_to_a_call_before_the_drain_is_not_logged() {
    let mut logged = Logged::draining(&[]);
    logged.messages();
    let (call, result) = (Call::FailHealthChecks, Ok(Reply::HealthChecksFailed));
    logged.step(&Event::Reply { drain: 0, call, result });
    assert_eq!(logged.messages(), [""; 0]);
}

#[test]
fn a_hook_that_joins_is_logged() {
    let mut logged = Logged::draining(&[]);
    logged.messages();
    logged.start(&[(DrainOption::CheckDelay, "1s")]);
    let record = logged.only();
    assert_eq!(record.message, messages::DRAIN_JOINED);
    assert_field(&record, "ignored", Some(&"check-delay=1s (drain: 1m)".into()));
    // As the kubelet runs a hook again: what it has is in force.
    logged.start(&[]);
    assert_field(&logged.only(), "ignored", None);
}

#[test]
fn what_a_hooks_options_override_is_logged_where_it_differs_from_the_sidecars() {
    let mut logged = Logged::draining(&[(DrainOption::CheckDelay, "1m")]);
    let record = logged.only();
    assert_field(&record, "requested", Some(&"check-delay=1m".into()));
    assert_field(&record, "overrides", None);
    let mut logged = Logged::draining(&[(DrainOption::CheckDelay, "1s")]);
    assert_field(&logged.only(), "overrides", Some(&"check-delay=1s (sidecar: 1m)".into()));
}

#[test]
fn a_join_is_a_record_after_which_the_log_may_be_silent_for_a_minute() {
    let mut logged = Logged::draining(&[(DrainOption::CheckDelay, "0")]);
    logged.out_of_service();
    logged.poll(7);
    logged.pairing_logged().messages();
    logged.assert_reminder(Some(at(s(63))));
    logged.at(s(50)).start(&[]);
    assert_eq!(logged.messages(), [messages::DRAIN_JOINED]);
    let reminder = logged.log.reminder(&logged.machine);
    assert_eq!(reminder, Some(at(s(110))), "the reminder is not counted from the latest record");
    logged.at(s(109)).step(&Event::Tick);
    assert_eq!(logged.messages(), [""; 0]);
    logged.at(s(110)).step(&Event::Tick);
    assert_eq!(logged.messages(), [messages::STILL_WAITING]);
}

#[test]
fn the_startup_check_is_logged() {
    let mut logged = Logged::new();
    logged.at(s(2)).step(&Event::Tick);
    logged.reply(Reply::Ready(Health::Live));
    logged.reply(polled(2, StatsCoverage::ListenersOnly, Health::Live));
    assert_field(&logged.records[0], "state", Some(&"LIVE".into()));
    let texts = logged.messages();
    assert_eq!(texts[0], messages::ENVOY_RESPONDS);
    assert_eq!(texts[1], messages::HTTP_HIDDEN);
    assert_eq!(texts.len(), 2);

    let mut logged = Logged::new();
    logged.at(s(2)).step(&Event::Tick);
    logged.reply(Reply::Ready(Health::Draining));
    assert_eq!(logged.messages(), [""; 0]);
    logged.reply(Reply::HealthChecksRestored);
    assert_eq!(logged.only().message, messages::ENVOY_RESTORED);

    let mut logged = Logged::new();
    logged.machine = machine(false);
    logged.at(s(2)).step(&Event::Tick);
    logged.reply(Reply::Ready(Health::Draining));
    assert_eq!(logged.only().message, messages::ENVOY_NOT_RESTORED);
}

#[test]
fn an_envoy_that_never_starts_is_logged_at_the_first_check_and_at_the_last() {
    let mut logged = Logged::new();
    for look in 0..12 {
        logged.at(s(2 + 5 * look)).step(&Event::Tick);
        logged.fail("refused");
    }
    let records = std::mem::take(&mut logged.records);
    assert_eq!(records.len(), 2, "{records:?}");
    assert_eq!(records[0].message, messages::ENVOY_NOT_RESPONDING_YET);
    assert_eq!(records[1].message, messages::ENVOY_NEVER_READY);
}

#[test]
fn an_envoy_whose_connections_cannot_be_counted_is_logged_before_a_drain_needs_it() {
    let mut logged = Logged::new();
    logged.at(s(2)).step(&Event::Tick);
    logged.reply(Reply::Ready(Health::Live));
    logged.fail("nothing is visible");
    let record = logged.only();
    assert_eq!(record.message, messages::ENVOY_NOT_COUNTABLE);
    assert_eq!(record.level, Level::Warn);
}

#[test]
fn an_envoy_left_out_of_service_after_a_drain_is_logged() {
    let mut logged = Logged::draining(&[(DrainOption::CheckDelay, "0")]);
    logged.out_of_service();
    assert_eq!(logged.poll(0), Action::Finish(Outcome::drained(0)));
    logged.step(&Event::Finished);
    logged.messages();
    logged.at(s(30)).step(&Event::Tick);
    assert_eq!(logged.only().message, messages::READY_FOR_NEXT_DRAIN);
    logged.reply(Reply::Ready(Health::Draining));
    assert_eq!(logged.only().message, messages::ENVOY_STILL_OUT_OF_SERVICE);
}

#[test]
fn the_end_of_an_envoy_is_a_warning_where_its_hook_or_connections_were_cut() {
    let (stopped, cut) = (messages::HINT_ENVOY_STOPPED, messages::HINT_CONNECTIONS_CUT);
    for (hook_came, open, hint) in [
        (false, None, Some(stopped)),
        (false, Some(2), Some(stopped)),
        (true, Some(2), Some(cut)),
        (true, Some(0), None),
        (true, None, None),
    ] {
        let mut logged = Logged::draining(&[(DrainOption::CheckDelay, "0")]);
        if hook_came {
            logged.machine.waiter_arrived(at(s(0)));
        }
        logged.reply(Reply::HealthChecksFailed);
        if let Some(open) = open {
            // It does not end the drain, since it is not known whether listeners are hidden.
            logged.poll(open);
        }
        logged.at(s(5));
        assert_eq!(logged.refuse(3), Action::Finish(Outcome::envoy_gone(open)));
        logged.messages();
        logged.step(&Event::Finished);
        let record = logged.only();
        let level = if hint.is_some() { Level::Warn } else { Level::Info };
        assert_eq!(
            (record.level, record.message),
            (level, messages::ENVOY_GONE),
            "{hook_came} {open:?}"
        );
        assert_field(&record, "hint", hint.map(Value::from).as_ref());
        assert_field(&record, "open_connections", open.map(Value::from).as_ref());
    }
}

#[test]
fn an_address_where_nothing_has_ever_responded_is_named_once() {
    let mut logged = Logged::draining(&[(DrainOption::AdminAddress, "/other/admin.sock")]);
    logged.machine.waiter_arrived(at(s(0)));
    logged.messages();
    logged.refuse(3);
    let never = logged.records.remove(1);
    assert_eq!((never.level, never.message), (Level::Warn, messages::ENVOY_NEVER_RESPONDED));
    assert_field(&never, "admin_address", Some(&"/other/admin.sock".into()));
    assert_field(&never, "drain", Some(&1.into()));
    assert_eq!(logged.messages(), [messages::ENVOY_CALL_FAILED]);
    logged.pairing_logged().refuse(20);
    assert_eq!(logged.messages(), [""; 0]);
}

#[test]
fn listeners_without_gauges_are_named_once_and_with_the_outcome() {
    let hidden = |names: &[&str], certain| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Reply::Listeners(HiddenStats {
            listeners: names,
            certain,
            uncounted: Vec::new(),
            ..HiddenStats::default()
        })
    };
    let with = |names: &[&str], others: HiddenStats| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Reply::Listeners(HiddenStats { listeners: names, certain: false, ..others })
    };
    let mut logged = Logged::draining(&[(DrainOption::DrainTimeout, "100s")]);
    for (reply, logs) in [
        (hidden(&["web", "tls"], true), Some((messages::LISTENERS_WITHOUT_GAUGES, "web, tls"))),
        (hidden(&["web", "tls"], true), None),
        (hidden(&[], true), None),
        (hidden(&["web"], false), Some((messages::LISTENERS_PERHAPS_WITHOUT_GAUGES, "web"))),
        (hidden(&["web"], false), None),
        // What else is hidden depends on the options.
        (with(&["web"], HiddenStats { arrivals: true, ..Default::default() }), None),
        (
            with(&["web"], HiddenStats { uncounted: vec!["ready".into()], ..Default::default() }),
            Some((messages::UNCOUNTED_WITHOUT_GAUGES, "ready")),
        ),
    ] {
        logged.reply(Reply::HealthChecksFailed);
        logged.messages();
        logged.reply(reply);
        let record = logged.records.pop();
        let names = record.as_ref().and_then(|record| field(record, "listeners"));
        assert_eq!(names, logs.map(|(_, names)| names.into()).as_ref());
        assert_eq!(
            record.map(|record| (record.level, record.message)),
            logs.map(|(message, _)| (Level::Warn, message))
        );
        logged.now += s(10);
        logged.step(&Event::Tick);
        logged.reply(Reply::Ready(Health::Live));
    }
    assert_eq!(logged.counters.hidden.listeners, ["web"]);
    logged.reply(Reply::HealthChecksFailed);
    logged.reply(hidden(&["web"], false));
    logged.at(s(100)).step(&Event::Tick);
    logged.messages();
    logged.step(&Event::Finished);
    assert_field(&logged.only(), "listeners_without_gauges", Some(&"web".into()));

    // In the next drain they are not news.
    logged.start(&[]);
    logged.step(&Event::Tick);
    logged.reply(Reply::HealthChecksFailed);
    logged.messages();
    logged.reply(hidden(&["web"], false));
    assert_eq!(logged.messages(), [""; 0]);
}

#[test]
fn listeners_that_cannot_be_compared_are_a_warning_and_an_envoy_that_ends_is_not() {
    let mut startup = Logged::new();
    startup.at(s(2)).step(&Event::Tick);
    startup.reply(Reply::Ready(Health::Live));
    startup.poll(0);
    for mut logged in [startup, Logged::draining(&[])] {
        if logged.call == Some(Call::FailHealthChecks) {
            logged.reply(Reply::HealthChecksFailed);
        }
        logged.messages();
        assert_eq!(logged.call, Some(Call::CheckListeners));
        let mut refused = Logged { log: DrainLog::default(), records: Vec::new(), ..logged };
        refused.fail_with(AdminErrorKind::Status, "GET /listeners responded with status 403");
        let record = refused.only();
        assert_eq!((record.level, record.message), (Level::Warn, messages::LISTENERS_NOT_COMPARED));
        let error = "GET /listeners responded with status 403";
        assert_field(&record, "error", Some(&error.into()));
    }
    let mut ended = Logged::draining(&[]);
    ended.reply(Reply::HealthChecksFailed);
    ended.messages();
    ended.refuse(1);
    assert_eq!(ended.messages(), [messages::ENVOY_CALL_FAILED]);
}

#[test]
fn a_drain_that_a_signal_starts_is_logged_with_its_options() {
    let mut logged = Logged::new();
    logged.machine.waiter_arrived(at(s(1)));
    logged.at(s(1)).machine.stop(at(s(1)));
    assert_eq!(logged.step(&Event::Tick), Action::Call(Call::FailHealthChecks));
    assert_eq!(logged.records.len(), 2, "{:?}", logged.records);
    let (signal, started) = (&logged.records[0], &logged.records[1]);
    assert_eq!((signal.level, signal.message), (Level::Warn, messages::STARTED_BY_SIGNAL));
    assert_eq!(started.message, messages::DRAIN_STARTED);
    for record in [signal, started] {
        assert_eq!(field(record, "drain"), Some(&1.into()));
    }
    assert_eq!(field(started, "requested"), Some(&"".into()));
    assert_eq!(field(started, "check-interval"), Some(&"5s".into()));
}

#[test]
fn a_poll_that_must_be_confirmed_is_counted_and_not_logged() {
    let mut logged = Logged::draining(&[(DrainOption::CheckDelay, "0")]);
    logged.out_of_service();
    logged.poll(1);
    logged.messages();
    logged.at(s(5)).step(&Event::Tick);
    let doubtful = Poll { subtracted: true, ..Poll::of(0, Health::Draining) };
    for second in 6..9 {
        logged.reply(Reply::Stats(doubtful.clone()));
        assert_eq!(logged.at(s(second)).step(&Event::Tick), Action::Call(Call::ReadStats));
    }
    logged.pairing_logged();
    logged.poll(1);
    assert_eq!(logged.messages(), [""; 0], "no count was other than 1");
    assert_eq!(logged.counters.polls, 5);
}

#[test]
fn a_drain_that_starts_over_says_that_the_one_before_no_longer_holds() {
    let mut logged = Logged::draining(&[(DrainOption::CheckDelay, "0")]);
    logged.out_of_service();
    logged.poll(0);
    logged.step(&Event::Finished);
    logged.at(s(10)).start(&[]);
    logged.messages();
    assert_eq!(logged.step(&Event::Tick), Action::Call(Call::ReadStats));
    logged.poll(3);
    assert_eq!(logged.only().message, messages::OUTCOME_OUTDATED);
}

#[test]
fn a_reminder_has_the_latest_error() {
    let mut logged = Logged::draining(&[(DrainOption::CheckDelay, "0")]);
    logged.out_of_service();
    logged.pairing_logged();
    for (call, text) in [(Call::CheckReady, "it is odd"), (Call::ReadStats, "it is slow")] {
        let error = AdminError { kind: AdminErrorKind::Timeout, text: text.to_owned() };
        logged.step(&Event::Reply { drain: 1, call, result: Err(error) });
    }
    logged.messages();
    logged.at(s(70)).step(&Event::Tick);
    let record = logged.only();
    assert_eq!(record.message, messages::STILL_WAITING);
    assert_eq!(field(&record, "error"), Some(&"it is slow".into()), "not what it waits for");
}

/// A drain whose check delay a quiet period may end, and an Envoy that shows what has come to it.
fn quiet(arrivals: impl Fn(u64) -> Reply) -> Logged {
    let mut logged = Logged::draining(&[
        (DrainOption::CheckInterval, "1s"),
        (DrainOption::CheckDelay, "20s"),
        (DrainOption::QuietPeriod, "5s"),
    ]);
    let mut now = 0;
    let mut event = None;
    logged.reply(Reply::HealthChecksFailed);
    while logged.machine.phase() != Phase::WaitingForConnections {
        let next = event.take().unwrap_or(Event::Tick);
        let Step { action, events } = logged.machine.step(&next, at(s(now)));
        logged.records.extend(logged.log.record(&events, &logged.machine, at(s(now))));
        match action {
            Action::Call(call) => {
                let reply = match call {
                    Call::ReadAccepted => arrivals(now),
                    Call::CheckListeners => Reply::Listeners(HiddenStats::default()),
                    Call::ReadStats => polled(0, StatsCoverage::Everything, Health::Draining),
                    _ => Reply::Ready(Health::Draining),
                };
                event = Some(Event::Reply { drain: 1, call, result: Ok(reply) });
            }
            _ => now += 1,
        }
    }
    logged
}

fn accepted(connections: u64) -> Reply {
    Reply::Accepted(Some(Arrivals { connections, requests: Some(0) }))
}

#[test]
fn a_delay_that_ends_early_is_logged_with_what_is_left_of_it() {
    let logged = quiet(|now| accepted(now.min(3)));
    let record = logged.record(messages::QUIET);
    assert_eq!(record.level, Level::Info);
    for (name, value) in [
        ("delay", Value::Text("check_delay".to_owned())),
        ("new_connections", Value::Number(3)),
        ("took_seconds", Value::Time(s(8))),
        ("left_seconds", Value::Time(s(12))),
    ] {
        assert!(record.fields.contains(&(name, value)), "{name} in {record:?}");
    }
}

#[test]
fn a_delay_that_was_never_quiet_is_logged_with_what_came_and_whether_it_looks_like_checks() {
    let logged = quiet(|now| accepted(now / 2));
    let record = logged.record(messages::NOT_QUIET);
    for (name, value) in [
        ("new_connections", Value::Number(9)),
        ("new_connections_per_second", Value::Thousandths(450)),
        ("took_seconds", Value::Time(s(20))),
        ("hint", Value::Text(messages::HINT_HEALTH_CHECKS.to_owned())),
    ] {
        assert!(record.fields.contains(&(name, value)), "{name} in {record:?}");
    }
    let logged = quiet(|now| accepted(now * now));
    let record = logged.record(messages::NOT_QUIET);
    assert!(!record.fields.iter().any(|(name, _)| *name == "hint"), "{record:?}");
}

#[test]
fn where_nothing_of_it_can_be_seen_that_is_a_warning_once() {
    let logged = quiet(|_| Reply::Accepted(None));
    assert_eq!(logged.record(messages::ARRIVALS_HIDDEN).level, Level::Warn);
    let times = logged.records.iter().filter(|r| r.message == messages::ARRIVALS_HIDDEN).count();
    assert_eq!(times, 1);
}

#[test]
fn connections_that_hold_because_their_requests_are_hidden_are_a_warning_once() {
    for (wait_for, expected) in [("requests", 1), ("connections", 0)] {
        let mut logged =
            Logged::draining(&[(DrainOption::CheckDelay, "0"), (DrainOption::WaitFor, wait_for)]);
        logged.out_of_service();
        for _ in 0..3 {
            let Reply::Stats(mut poll) = polled(2, StatsCoverage::Everything, Health::Draining)
            else {
                unreachable!("a poll")
            };
            poll.breakdown.requests_hidden = Some("web".to_owned());
            logged.reply(Reply::Stats(poll));
            logged.now += s(5);
            logged.step(&Event::Tick);
        }
        let found: Vec<_> =
            logged.records.iter().filter(|r| r.message == messages::REQUESTS_HIDDEN).collect();
        assert_eq!(found.len(), expected, "{wait_for}");
        assert!(found.iter().all(|r| r.fields.contains(&("http_prefix", "web".into()))));
    }
}
