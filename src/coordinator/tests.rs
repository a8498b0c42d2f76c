use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;

use super::*;
use crate::cli::options::{DrainOption, Overrides};
use crate::drain::{Health, Outcome, Poll};
use crate::os::supervisor::supervise;

/// Longer than anything takes; only a failing test waits for so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// An Envoy with this many connections open, which answers at once.
struct Script {
    open: u64,
    /// The calls in which it panics, each once.
    panics: Vec<Call>,
    asked: mpsc::Sender<(Call, Options)>,
}

impl Admin for Script {
    fn call(&mut self, call: Call, options: &Options) -> Answer {
        // Whoever does not look at the calls has dropped the other end.
        let _ = self.asked.send((call, options.clone()));
        if self.panics.first() == Some(&call) {
            self.panics.remove(0);
            panic!("as the test wants");
        }
        match call {
            Call::FailHealthChecks => Answer::Failed,
            Call::DrainListeners => Answer::ListenersDrain,
            Call::RestoreHealthChecks => Answer::PutBack,
            Call::CheckReady => Answer::Seen(Health::Draining),
            Call::ReadStats => Answer::Polled(Poll {
                open: self.open,
                visible: StatsCoverage::Everything,
                health: Health::Draining,
            }),
        }
    }
}

fn manager() -> Coordinator {
    let options = Options { check_delay: Duration::ZERO, ..Options::default() };
    Coordinator::new(options, false)
}

/// A manager at work on an Envoy with `open` connections, and what is asked of that.
fn at_work(open: u64) -> (Coordinator, mpsc::Receiver<(Call, Options)>) {
    let manager = manager();
    let (asked, calls) = mpsc::channel();
    let worker = manager.clone();
    thread::spawn(move || worker.work(&mut Script { open, panics: Vec::new(), asked }));
    (manager, calls)
}

fn request(options: &[(DrainOption, &str)]) -> DrainRequest {
    let mut overrides = Overrides::default();
    for (option, text) in options {
        overrides.set(*option, text).unwrap();
    }
    DrainRequest { overrides, expires: None }
}

fn told(wait: impl FnOnce() -> WaitResult + Send + 'static) -> mpsc::Receiver<WaitResult> {
    let (sender, receiver) = mpsc::channel();
    // Whoever has seen enough has dropped the other end.
    thread::spawn(move || sender.send(wait()).unwrap_or_default());
    receiver
}

/// One that waits at a door and is told the end.
fn waiter(manager: &Coordinator) -> mpsc::Receiver<WaitResult> {
    let (watch, waiting) = (manager.observer(), manager.tracker().envoy_hook());
    told(move || {
        let verdict = watch.wait_for_envoy_hooks();
        drop(waiting);
        verdict
    })
}

fn hook(manager: &Coordinator) -> mpsc::Receiver<WaitResult> {
    let (watch, waiting) = (manager.observer(), manager.tracker().exec_hook());
    told(move || {
        let verdict = watch.wait_for_exec_hooks(1);
        drop(waiting);
        verdict
    })
}

fn outcome(verdict: &WaitResult) -> Outcome {
    match verdict {
        WaitResult::Ended(ended) => ended.outcome,
        other => panic!("{other:?}"),
    }
}

/// Waits until the state is as the test needs it.
fn until(manager: &Coordinator, what: impl Fn(&State) -> bool) {
    let deadline = clock::now() + PATIENCE;
    let mut state = manager.0.lock();
    while !what(&state) {
        assert!(clock::now() < deadline, "it does not come");
        // Who comes to wait is not notified of.
        state = manager.0.wait(state, Some(clock::now() + Duration::from_millis(2)));
    }
}

#[test]
fn everybody_who_waits_is_told_the_end() {
    let (manager, _calls) = at_work(0);
    let waiters: Vec<_> = (0..3).map(|_| waiter(&manager)).collect();
    assert_eq!(manager.observer().snapshot().waiters, 3);
    assert_eq!(manager.trigger().start(&DrainRequest::default()), Ok(DrainStart::Started(1)));
    for waits in waiters.iter().chain([&hook(&manager)]) {
        let verdict = waits.recv_timeout(PATIENCE).unwrap();
        assert_eq!(outcome(&verdict), Outcome::Drained { open: 0 });
    }
    until(&manager, |state| state.waiters + state.hooks == 0);
}

#[test]
fn a_hook_is_told_after_everybody_else() {
    let (manager, _calls) = at_work(0);
    let waiting = manager.tracker().envoy_hook();
    manager.trigger().start(&DrainRequest::default()).unwrap();
    let hook = hook(&manager);
    until(&manager, |state| state.machine.phase() == Phase::Ended);
    assert_eq!(hook.recv_timeout(HOOK_ANSWER_DELAY / 10), Err(RecvTimeoutError::Timeout));
    drop(waiting);
    assert!(hook.recv_timeout(PATIENCE).is_ok());
}

#[test]
fn a_waiter_that_is_never_done_does_not_keep_the_hook() {
    let (manager, _calls) = at_work(0);
    let _waiting = manager.tracker().envoy_hook();
    manager.trigger().start(&DrainRequest::default()).unwrap();
    assert!(hook(&manager).recv_timeout(PATIENCE).is_ok());
}

#[test]
fn who_waits_for_those_at_the_doors_ends_with_them() {
    let manager = manager();
    let (first, second) = (manager.tracker().envoy_hook(), manager.tracker().envoy_hook());
    let watch = manager.observer();
    let waits = told(move || watch.wait_for_envoy_hooks());
    drop(first);
    assert_eq!(waits.recv_timeout(HOOK_ANSWER_DELAY / 10), Err(RecvTimeoutError::Timeout));
    drop(second);
    assert_eq!(waits.recv_timeout(PATIENCE), Ok(WaitResult::NoWaiter));
}

#[test]
fn a_request_that_has_expired_or_comes_to_a_stopping_sidecar_begins_nothing() {
    let manager = manager();
    let control = manager.trigger();
    let expired = DrainRequest {
        expires: Some(Timestamp::from_start(Duration::from_nanos(1))),
        ..DrainRequest::default()
    };
    assert_eq!(control.start(&expired), Err(StartError::Expired));
    assert_eq!(manager.observer().snapshot().drain, 0);
    manager.stop();
    assert_eq!(control.start(&DrainRequest::default()), Err(StartError::Stopping));
    assert_eq!(manager.observer().snapshot().drain, 0);
}

#[test]
fn who_waits_for_nothing_is_told_so() {
    let manager = manager();
    assert_eq!(hook(&manager).recv_timeout(PATIENCE), Ok(WaitResult::UnknownDrain));
    let waits = waiter(&manager);
    manager.stop();
    assert_eq!(waits.recv_timeout(PATIENCE), Ok(WaitResult::Stopping));
}

#[test]
fn a_stopped_manager_is_over_when_its_drain_has_ended_and_its_worker_has_told_it() {
    let (manager, _calls) = at_work(7);
    let timeout = request(&[(DrainOption::DrainTimeout, "300ms")]);
    manager.trigger().start(&timeout).unwrap();
    let hook = hook(&manager);
    manager.stop();
    manager.wait_until_over();
    assert!(!manager.0.lock().telling);
    let verdict = hook.recv_timeout(PATIENCE).unwrap();
    assert_eq!(outcome(&verdict), Outcome::TimedOut { open: Some(7) });
}

#[test]
fn what_a_hook_was_given_holds_until_nothing_of_its_drain_is_left() {
    let (manager, calls) = at_work(3);
    let given =
        [(DrainOption::MinOpenConnections, "5"), (DrainOption::AdminAddress, "/other/admin.sock")];
    manager.trigger().start(&request(&given)).unwrap();
    until(&manager, |state| state.machine.phase() == Phase::Ended);
    let snapshot = manager.observer().snapshot();
    assert_eq!((snapshot.threshold, snapshot.admin_address.as_str()), (5, "/other/admin.sock"));
    for call in [Call::FailHealthChecks, Call::ReadStats] {
        let (asked, options) = calls.recv_timeout(PATIENCE).unwrap();
        assert_eq!(
            (asked, options.admin_address.to_string().as_str()),
            (call, "/other/admin.sock")
        );
    }
}

#[test]
fn a_ready_file_is_made_when_nothing_is_left_to_wait_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ready");
    let path = path.to_str().unwrap();
    let given = [(DrainOption::ReadyFile, path), (DrainOption::DrainTimeout, "0")];
    for (given, is_there) in [(&given[..1], true), (&given, false)] {
        let (manager, _calls) = at_work(0);
        std::fs::write(path, "stale").unwrap();
        manager.trigger().start(&request(given)).unwrap();
        until(&manager, |state| state.machine.phase() == Phase::Ended);
        assert_eq!(std::fs::read(path).ok(), is_there.then(Vec::new));
    }
}

#[test]
fn a_worker_that_panics_goes_on_where_it_was() {
    let manager = manager();
    let (asked, _calls) = mpsc::channel();
    let mut script = Script { open: 0, panics: vec![Call::FailHealthChecks], asked };
    manager.trigger().start(&DrainRequest::default()).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| manager.work(&mut script)));
    assert!(panicked.is_err());
    assert!(!manager.observer().is_worker_running());
    manager.stop();
    manager.work(&mut script);
    let last = manager.observer().snapshot().last.unwrap();
    assert_eq!(last.outcome, Outcome::Drained { open: 0 });
}

#[test]
fn who_waits_is_told_the_end_of_a_drain_whose_worker_panics_in_every_call() {
    let manager = manager();
    let (asked, _calls) = mpsc::channel();
    let worker = manager.clone();
    let mut script =
        Script { open: 0, panics: vec![Call::FailHealthChecks, Call::ReadStats], asked };
    let thread = supervise("worker", Box::new(move || worker.work(&mut script))).unwrap();
    let waiter = waiter(&manager);
    manager.trigger().start(&DrainRequest::default()).unwrap();
    for told in [waiter, hook(&manager)] {
        let verdict = told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(outcome(&verdict), Outcome::Drained { open: 0 });
    }
    assert!(manager.observer().is_worker_running());
    manager.stop();
    thread.join().unwrap();
}
