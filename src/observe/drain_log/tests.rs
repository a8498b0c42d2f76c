use super::*;
use crate::cli::options::{DrainOption, Options};
use crate::drain::{Action, Outcome};
use crate::envoy::error::AdminErrorKind;
use crate::observe::log::{Level, Value};

const fn at(time: Duration) -> Timestamp {
    Timestamp::from_start(time)
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A machine whose log is collected.
struct Told {
    machine: Machine,
    story: DrainLog,
    now: Duration,
    lines: Vec<Record>,
}

impl Told {
    fn new() -> Self {
        Self {
            machine: Machine::new(Timestamp::ZERO, true),
            story: DrainLog::default(),
            now: Duration::ZERO,
            lines: Vec::new(),
        }
    }

    fn draining(options: &[(DrainOption, &str)]) -> Self {
        let mut told = Self::new();
        told.begin(options);
        told.step(Event::Tick);
        told
    }

    fn begin(&mut self, options: &[(DrainOption, &str)]) {
        let mut given = Overrides::default();
        for (option, text) in options {
            given.set(*option, text).unwrap();
        }
        let begun = self.machine.begin(Options::default().with(&given), at(self.now));
        self.lines.extend(self.story.begun(begun, &given, &self.machine, at(self.now)));
    }

    fn step(&mut self, event: Event) -> Action {
        let before = self.machine.outline();
        let action = self.machine.step(&event, at(self.now));
        self.lines.extend(self.story.heard(before, &event, &self.machine, at(self.now)));
        action
    }

    /// Nothing is said of Envoy's own hook any more.
    fn hook_told(&mut self) -> &mut Self {
        self.story.hook_told = true;
        self
    }

    fn answer(&mut self, answer: Answer) -> Action {
        self.step(Event::Answer { drain: self.machine.number(), answer })
    }

    fn poll(&mut self, open: u64) -> Action {
        self.answer(Answer::Polled(Poll {
            open,
            visible: StatsCoverage::Everything,
            health: Health::Draining,
        }))
    }

    fn fault(&mut self, text: &str) -> Action {
        self.answer(Answer::AdminError(AdminError {
            kind: AdminErrorKind::Timeout,
            text: text.to_owned(),
        }))
    }

    /// The lines since the last time this was asked.
    fn texts(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines).into_iter().map(|line| line.text.clone()).collect()
    }

    fn only(&mut self) -> Record {
        assert_eq!(self.lines.len(), 1, "{:?}", self.lines);
        self.lines.remove(0)
    }

    fn at(&mut self, now: Duration) -> &mut Self {
        self.now = now;
        self
    }
}

fn field<'a>(line: &'a Record, name: &str) -> Option<&'a Value> {
    line.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value)
}

#[test]
fn a_drain_is_told_from_its_request_to_its_outcome() {
    let mut told = Told::draining(&[(DrainOption::CheckDelay, "10s")]);
    let requested = told.only();
    assert_eq!(requested.text, "drain requested");
    assert_eq!(field(&requested, "given"), Some(&"check-delay=10s".into()));
    assert_eq!(field(&requested, "check_interval"), Some(&"5s".into()), "what is in force, too");

    told.answer(Answer::Failed);
    let failed = told.only();
    assert!(failed.text.starts_with("health checks failed"), "{failed:?}");
    assert_eq!(field(&failed, "first-poll-in"), Some(&"10s".into()));

    told.hook_told().at(s(10)).step(Event::Tick);
    assert_eq!(told.texts(), [""; 0]);
    for (open, lines) in [(3, 1), (3, 0), (2, 1), (3, 1), (3, 0)] {
        told.poll(open);
        assert_eq!(told.lines.len(), lines, "at {open}");
        if let Some(line) = told.lines.pop() {
            assert_eq!(field(&line, "open"), Some(&open.into()));
            assert_eq!(field(&line, "threshold"), Some(&0.into()));
        }
    }
    assert_eq!(told.poll(0), Action::Finish(Outcome::Drained { open: 0 }));
    told.texts();
    told.step(Event::Finished);
    let outcome = told.only();
    assert_eq!(outcome.level, Level::Info);
    assert_eq!(field(&outcome, "outcome"), Some(&"drained".into()));
    assert_eq!(field(&outcome, "took"), Some(&"10s".into()));
}

#[test]
fn whether_envoys_own_hook_came_is_told_after_three_seconds() {
    for (comes, required, level, start) in [
        (true, false, Some(Level::Info), "Envoy's own hook waits too"),
        (true, true, Some(Level::Info), "Envoy's own hook waits too"),
        (false, false, Some(Level::Warn), "Envoy's own hook did not come"),
        (false, true, None, ""),
    ] {
        let switch = [(DrainOption::RequireEnvoyHook, "on")];
        let mut told = Told::draining(if required { &switch } else { &[] });
        if comes {
            told.machine.arrived(at(s(2)));
        }
        told.texts();
        assert_eq!(told.story.reminder(&told.machine), Some(at(s(3))));
        told.at(s(3)).step(Event::Tick);
        let told_level = told.lines.first().map(|line| line.level);
        assert_eq!(told_level, level, "{comes} {required}");
        assert!(told.texts().concat().starts_with(start));
        told.at(s(4)).step(Event::Tick);
        assert_eq!(told.texts(), [""; 0], "and then no more");
    }
}

#[test]
fn it_is_told_whether_listeners_drain() {
    let switch = [(DrainOption::DrainListeners, "on"), (DrainOption::MinDrainDuration, "1m30s")];
    let mut told = Told::draining(&switch);
    told.machine.arrived(at(s(0)));
    told.texts();
    assert_eq!(told.answer(Answer::Failed), Action::Call(crate::drain::Call::DrainListeners));
    assert_eq!(field(&told.only(), "first-poll-in"), Some(&"1m30s".into()));
    told.answer(Answer::ListenersDrain);
    assert!(told.only().text.starts_with("Envoy's listeners drain"));
    told.at(s(3)).step(Event::Tick);
    assert_eq!(field(&told.only(), "listeners"), None, "they do");

    let mut lone = Told::draining(&switch);
    lone.answer(Answer::Failed);
    lone.texts();
    lone.at(s(3)).step(Event::Tick);
    let left = "not told to drain, which could not be taken back";
    assert_eq!(field(&lone.only(), "listeners"), Some(&left.into()));

    // They are told later, or never were to be.
    let mut early = Told::draining(&[switch[0], (DrainOption::DrainDelay, "20s")]);
    early.machine.arrived(at(s(0)));
    for mut told in [early, Told::draining(&[])] {
        told.texts();
        told.at(s(3)).step(Event::Tick);
        assert_eq!(field(&told.only(), "listeners"), None);
    }
}

#[test]
fn an_envoy_that_is_left_alone_is_told_with_the_reason() {
    let mut told = Told::draining(&[(DrainOption::RequireEnvoyHook, "on")]);
    told.at(s(3)).step(Event::Tick);
    told.texts();
    told.step(Event::Finished);
    let line = told.only();
    assert_eq!((line.level, field(&line, "outcome")), (Level::Info, Some(&"no_envoy_hook".into())));
}

#[test]
fn giving_up_is_a_warning() {
    let mut told = Told::draining(&[(DrainOption::DrainTimeout, "70s")]);
    told.answer(Answer::Failed);
    told.at(s(70)).step(Event::Tick);
    told.texts();
    told.step(Event::Finished);
    assert_eq!(told.only().level, Level::Warn);
}

#[test]
fn a_timeout_that_leaves_no_time_to_wait_is_warned_of() {
    for (timeout, warning) in [
        ("0s", "connections will not be waited for"),
        ("10s", "health checks will not be failed"),
        ("11s", "connections will not be waited for"),
        ("70s", "connections will not be waited for"),
    ] {
        let options = [(DrainOption::DrainTimeout, timeout), (DrainOption::DrainDelay, "10s")];
        let texts = Told::draining(&options).texts();
        assert!(texts[1].contains(warning), "{timeout}: {texts:?}");
    }
    let options = [(DrainOption::DrainTimeout, "71s"), (DrainOption::DrainDelay, "10s")];
    assert_eq!(Told::draining(&options).texts().len(), 1);
}

#[test]
fn an_error_is_told_once_and_then_counted() {
    let mut told = Told::draining(&[(DrainOption::CheckDelay, "0")]);
    told.answer(Answer::Failed);
    told.texts();
    for _ in 0..5 {
        told.fault("it is slow");
    }
    let line = told.only();
    assert_eq!((line.level, field(&line, "error")), (Level::Warn, Some(&"it is slow".into())));
    told.fault("it is odd");
    let line = told.only();
    assert_eq!(field(&line, "error"), Some(&"it is odd".into()));
    assert_eq!(field(&line, "repeated"), Some(&4.into()));
    told.fault("it is slow");
    assert_eq!(field(&told.only(), "repeated"), None);
    told.poll(7);
    let again = told.lines.remove(0);
    assert_eq!(again.text, "Envoy answers again");
    assert_eq!(field(&again, "after"), Some(&"it is slow".into()));
    assert_eq!(field(&again, "repeated"), None);
    assert_eq!(told.texts(), ["open connections"]);
    for _ in 0..3 {
        told.fault("it is slow");
    }
    told.poll(7);
    assert_eq!(field(&told.lines[1], "repeated"), Some(&2.into()));
}

#[test]
fn a_silent_minute_of_a_drain_is_broken() {
    let mut told = Told::draining(&[(DrainOption::CheckDelay, "0")]);
    told.answer(Answer::Failed);
    told.poll(7);
    told.texts();
    told.hook_told().at(s(59)).poll(7);
    assert_eq!(told.texts(), [""; 0]);
    assert_eq!(told.story.reminder(&told.machine), Some(at(s(60))));
    told.at(s(60)).step(Event::Tick);
    let line = told.only();
    assert_eq!(line.text, "still waiting");
    assert_eq!(field(&line, "open"), Some(&7.into()));
    assert_eq!(field(&line, "elapsed"), Some(&"1m".into()));
    assert_eq!(told.story.reminder(&told.machine), Some(at(s(120))));
    told.at(s(100)).fault("it is slow");
    told.texts();
    told.at(s(160)).fault("it is slow");
    assert_eq!(field(&told.only(), "repeated"), Some(&1.into()));
    assert_eq!(Told::new().story.reminder(&Told::new().machine), None, "no drain, no wake-up");
    let mut told = Told::new();
    told.at(s(100)).begin(&[]);
    assert_eq!(told.story.reminder(&told.machine), Some(at(s(103))));
    told.hook_told();
    assert_eq!(told.story.reminder(&told.machine), Some(at(s(160))));
}

#[test]
fn a_revert_is_told_with_what_follows() {
    let mut told = Told::draining(&[]);
    told.answer(Answer::Failed);
    told.texts();
    told.answer(Answer::Seen(Health::Draining));
    assert_eq!(told.texts(), [""; 0]);
    told.answer(Answer::Seen(Health::Live));
    assert!(told.only().text.starts_with("Envoy is LIVE again"));
    told.answer(Answer::Failed);
    told.texts();
    told.answer(Answer::Seen(Health::Starting));
    assert!(told.only().text.starts_with("Envoy has restarted"));
    told.answer(Answer::Failed);
    told.at(s(60)).step(Event::Tick);
    told.texts();
    told.answer(Answer::Polled(Poll {
        open: 0,
        visible: StatsCoverage::Everything,
        health: Health::Live,
    }));
    assert!(told.texts()[0].starts_with("Envoy is LIVE again"));
}

#[test]
fn what_cannot_be_seen_is_told_once_and_with_the_outcome() {
    let mut told = Told::draining(&[(DrainOption::CheckDelay, "0")]);
    told.answer(Answer::Failed);
    told.texts();
    let poll = |open, visible| Answer::Polled(Poll { open, visible, health: Health::Draining });
    told.answer(poll(1, StatsCoverage::HttpOnly));
    assert!(told.texts()[0].contains("stats_config"));
    told.answer(poll(1, StatsCoverage::HttpOnly));
    told.answer(poll(0, StatsCoverage::HttpOnly));
    told.texts();
    told.step(Event::Finished);
    assert!(field(&told.only(), "not-counted").is_some());
}

#[test]
fn what_was_asked_before_the_drain_is_not_told_in_it() {
    let mut told = Told::draining(&[]);
    told.texts();
    told.step(Event::Answer { drain: 0, answer: Answer::Failed });
    assert_eq!(told.texts(), [""; 0]);
}

#[test]
fn a_hook_that_joins_is_told() {
    let mut told = Told::draining(&[]);
    told.texts();
    told.begin(&[(DrainOption::CheckDelay, "1s")]);
    let line = told.only();
    assert!(line.text.contains("joined"));
    assert_eq!(field(&line, "ignored"), Some(&"check-delay=1s".into()));
}

#[test]
fn the_first_look_is_told() {
    let mut told = Told::new();
    told.at(s(2)).step(Event::Tick);
    told.answer(Answer::Seen(Health::Live));
    told.answer(Answer::Polled(Poll {
        open: 2,
        visible: StatsCoverage::ListenersOnly,
        health: Health::Live,
    }));
    assert_eq!(field(&told.lines[0], "state"), Some(&"LIVE".into()));
    let texts = told.texts();
    assert_eq!(texts[0], "Envoy answers");
    assert!(texts[1].contains("hold a drain"));
    assert_eq!(texts.len(), 2);

    let mut told = Told::new();
    told.at(s(2)).step(Event::Tick);
    told.answer(Answer::Seen(Health::Draining));
    assert_eq!(told.texts(), [""; 0]);
    told.answer(Answer::PutBack);
    assert!(told.only().text.ends_with("put back in service"));

    let mut told = Told::new();
    told.machine = Machine::new(Timestamp::ZERO, false);
    told.at(s(2)).step(Event::Tick);
    told.answer(Answer::Seen(Health::Draining));
    assert!(told.only().text.contains("is left so"));
}

#[test]
fn an_envoy_that_does_not_come_is_told_at_the_first_look_and_at_the_last() {
    let mut told = Told::new();
    for look in 0..12 {
        told.at(s(2 + 5 * look)).step(Event::Tick);
        told.fault("refused");
    }
    let lines = std::mem::take(&mut told.lines);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0].text, "Envoy does not answer yet");
    assert!(lines[1].text.contains("--admin-address"), "{lines:?}");
}

#[test]
fn an_envoy_whose_connections_cannot_be_counted_is_told_before_a_drain_needs_it() {
    let mut told = Told::new();
    told.at(s(2)).step(Event::Tick);
    told.answer(Answer::Seen(Health::Live));
    told.fault("nothing is visible");
    let line = told.only();
    assert!(line.text.contains("cannot be counted"), "{line:?}");
    assert_eq!(line.level, Level::Warn);
}

#[test]
fn an_envoy_left_out_of_service_after_a_drain_is_told() {
    let mut told = Told::draining(&[(DrainOption::CheckDelay, "0")]);
    told.answer(Answer::Failed);
    told.poll(0);
    told.step(Event::Finished);
    told.texts();
    told.at(s(30)).step(Event::Tick);
    assert!(told.only().text.contains("the pod lives on"));
    told.answer(Answer::Seen(Health::Draining));
    assert!(told.only().text.contains("still out of service"));
}
