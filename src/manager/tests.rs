use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;

use super::*;
use crate::drain::{Health, Outcome, Poll};
use crate::options::{DrainOption, Overrides};
use crate::supervisor::supervise;

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
            Call::Fail => Answer::Failed,
            Call::DrainListeners => Answer::ListenersDrain,
            Call::PutBack => Answer::PutBack,
            Call::Look => Answer::Seen(Health::Draining),
            Call::Poll => Answer::Polled(Poll {
                open: self.open,
                visible: Visible::Everything,
                health: Health::Draining,
            }),
        }
    }
}

fn manager() -> Manager {
    let options = Options { check_delay: Duration::ZERO, ..Options::default() };
    Manager::new(options, false)
}

/// A manager at work on an Envoy with `open` connections, and what is asked of that.
fn at_work(open: u64) -> (Manager, mpsc::Receiver<(Call, Options)>) {
    let manager = manager();
    let (asked, calls) = mpsc::channel();
    let worker = manager.clone();
    thread::spawn(move || worker.work(&mut Script { open, panics: Vec::new(), asked }));
    (manager, calls)
}

fn request(options: &[(DrainOption, &str)]) -> Request {
    let mut overrides = Overrides::default();
    for (option, text) in options {
        overrides.set(*option, text).unwrap();
    }
    Request { overrides, expires: None }
}

fn told(wait: impl FnOnce() -> Verdict + Send + 'static) -> mpsc::Receiver<Verdict> {
    let (sender, receiver) = mpsc::channel();
    // Whoever has seen enough has dropped the other end.
    thread::spawn(move || sender.send(wait()).unwrap_or_default());
    receiver
}

/// One that waits at a door and is told the end.
fn waiter(manager: &Manager) -> mpsc::Receiver<Verdict> {
    let (watch, waiting) = (manager.watch(), manager.register().waiter());
    told(move || {
        let verdict = watch.wait_for_waiters();
        drop(waiting);
        verdict
    })
}

fn hook(manager: &Manager) -> mpsc::Receiver<Verdict> {
    let (watch, waiting) = (manager.watch(), manager.register().hook());
    told(move || {
        let verdict = watch.wait_for_hooks(1);
        drop(waiting);
        verdict
    })
}

fn outcome(verdict: &Verdict) -> Outcome {
    match verdict {
        Verdict::Ended(ended) => ended.outcome,
        other => panic!("{other:?}"),
    }
}

/// Waits until the state is as the test needs it.
fn until(manager: &Manager, what: impl Fn(&State) -> bool) {
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
    assert_eq!(manager.watch().snapshot().waiters, 3);
    assert_eq!(manager.control().begin(&Request::default()), Ok(Begun::Started(1)));
    for waits in waiters.iter().chain([&hook(&manager)]) {
        let verdict = waits.recv_timeout(PATIENCE).unwrap();
        assert_eq!(outcome(&verdict), Outcome::Drained { open: 0 });
    }
    until(&manager, |state| state.waiters + state.hooks == 0);
}

#[test]
fn a_hook_is_told_after_everybody_else() {
    let (manager, _calls) = at_work(0);
    let waiting = manager.register().waiter();
    manager.control().begin(&Request::default()).unwrap();
    let hook = hook(&manager);
    until(&manager, |state| state.machine.phase() == Phase::Ended);
    assert_eq!(hook.recv_timeout(HOOK_GIVES_WAY / 10), Err(RecvTimeoutError::Timeout));
    drop(waiting);
    assert!(hook.recv_timeout(PATIENCE).is_ok());
}

#[test]
fn a_waiter_that_is_never_done_does_not_keep_the_hook() {
    let (manager, _calls) = at_work(0);
    let _waiting = manager.register().waiter();
    manager.control().begin(&Request::default()).unwrap();
    assert!(hook(&manager).recv_timeout(PATIENCE).is_ok());
}

#[test]
fn who_waits_for_those_at_the_doors_ends_with_them() {
    let manager = manager();
    let (first, second) = (manager.register().waiter(), manager.register().waiter());
    let watch = manager.watch();
    let waits = told(move || watch.wait_for_waiters());
    drop(first);
    assert_eq!(waits.recv_timeout(HOOK_GIVES_WAY / 10), Err(RecvTimeoutError::Timeout));
    drop(second);
    assert_eq!(waits.recv_timeout(PATIENCE), Ok(Verdict::Nobody));
}

#[test]
fn a_request_that_has_expired_or_comes_to_a_stopping_sidecar_begins_nothing() {
    let manager = manager();
    let control = manager.control();
    let expired = Request { expires: Some(Duration::from_nanos(1)), ..Request::default() };
    assert_eq!(control.begin(&expired), Err(Refusal::Expired));
    assert_eq!(manager.watch().snapshot().drain, 0);
    manager.stop();
    assert_eq!(control.begin(&Request::default()), Err(Refusal::Stopping));
    assert_eq!(manager.watch().snapshot().drain, 0);
}

#[test]
fn who_waits_for_nothing_is_told_so() {
    let manager = manager();
    assert_eq!(hook(&manager).recv_timeout(PATIENCE), Ok(Verdict::Unknown));
    let waits = waiter(&manager);
    manager.stop();
    assert_eq!(waits.recv_timeout(PATIENCE), Ok(Verdict::Stopping));
}

#[test]
fn a_stopped_manager_is_over_when_its_drain_has_ended_and_its_worker_has_told_it() {
    let (manager, _calls) = at_work(7);
    let timeout = request(&[(DrainOption::DrainTimeout, "300ms")]);
    manager.control().begin(&timeout).unwrap();
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
    manager.control().begin(&request(&given)).unwrap();
    until(&manager, |state| state.machine.phase() == Phase::Ended);
    let snapshot = manager.watch().snapshot();
    assert_eq!((snapshot.threshold, snapshot.admin_address.as_str()), (5, "/other/admin.sock"));
    for call in [Call::Fail, Call::Poll] {
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
        manager.control().begin(&request(given)).unwrap();
        until(&manager, |state| state.machine.phase() == Phase::Ended);
        assert_eq!(std::fs::read(path).ok(), is_there.then(Vec::new));
    }
}

#[test]
fn a_worker_that_panics_goes_on_where_it_was() {
    let manager = manager();
    let (asked, _calls) = mpsc::channel();
    let mut script = Script { open: 0, panics: vec![Call::Fail], asked };
    manager.control().begin(&Request::default()).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| manager.work(&mut script)));
    assert!(panicked.is_err());
    assert!(!manager.watch().is_working());
    manager.stop();
    manager.work(&mut script);
    let last = manager.watch().snapshot().last.unwrap();
    assert_eq!(last.outcome, Outcome::Drained { open: 0 });
}

#[test]
fn who_waits_is_told_the_end_of_a_drain_whose_worker_panics_in_every_call() {
    let manager = manager();
    let (asked, _calls) = mpsc::channel();
    let worker = manager.clone();
    let mut script = Script { open: 0, panics: vec![Call::Fail, Call::Poll], asked };
    let thread = supervise("worker", Box::new(move || worker.work(&mut script))).unwrap();
    let waiter = waiter(&manager);
    manager.control().begin(&Request::default()).unwrap();
    for told in [waiter, hook(&manager)] {
        let verdict = told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(outcome(&verdict), Outcome::Drained { open: 0 });
    }
    assert!(manager.watch().is_working());
    manager.stop();
    thread.join().unwrap();
}
