use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::replies::{reply, wait};
use super::*;
use crate::cli::drain_request::DrainRequest;
use crate::cli::options::{DrainOption, Overrides};
use crate::drain::{DrainStart, Outcome, OutcomeKind};
use crate::envoy::CallResult;
use crate::envoy::error::{AdminError, AdminErrorKind};
use crate::observe::counters::EnvoyState;
use crate::observe::messages;
use crate::os::supervisor::supervise;

/// Longer than anything takes; only a failing test waits for so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// An Envoy with this many connections open, which responds at once.
struct Script {
    open: u64,
    /// The calls in which it panics, each once.
    panics: Vec<Call>,
    calls: mpsc::Sender<(Call, Options)>,
}

impl Admin for Script {
    fn call(&mut self, call: Call, options: &Options, _: Option<Duration>) -> CallResult {
        // A test that does not look at the calls has dropped the other end.
        let _ = self.calls.send((call, options.clone()));
        if self.panics.first() == Some(&call) {
            self.panics.remove(0);
            panic!("as the test wants");
        }
        Ok(reply(call, self.open))
    }
}

fn coordinator() -> Coordinator {
    let options = Options { check_delay: Duration::ZERO, ..Options::default() };
    Coordinator::new(options, &Overrides::default(), false)
}

/// A coordinator at work on an Envoy with `open` connections, and what is asked of that Envoy.
fn at_work(open: u64) -> (Coordinator, mpsc::Receiver<(Call, Options)>) {
    let coordinator = coordinator();
    let (sender, calls) = mpsc::channel();
    let worker = coordinator.clone();
    thread::spawn(move || worker.work(&mut Script { open, panics: Vec::new(), calls: sender }));
    (coordinator, calls)
}

/// One that a signal has stopped while no client waited.
fn over() -> Coordinator {
    let (coordinator, _calls) = at_work(0);
    coordinator.stop();
    coordinator.wait_until_over();
    coordinator
}

fn request(options: &[(DrainOption, &str)]) -> DrainRequest {
    let mut overrides = Overrides::default();
    for (option, text) in options {
        overrides.set(*option, text).unwrap();
    }
    DrainRequest { overrides, expires: None }
}

/// A client that waits, until it has left with this.
fn waits(
    coordinator: &Coordinator,
    waiting: WaiterGuard,
    hook: Route,
) -> mpsc::Receiver<WaitResult> {
    let (coordinator, (sender, receiver)) = (coordinator.clone(), mpsc::channel());
    thread::spawn(move || {
        let result = wait(&coordinator, &hook);
        drop(waiting);
        // A test that has seen enough has dropped the other end.
        sender.send(result).unwrap_or_default();
    });
    receiver
}

/// A client that waits on `/shutdown` for the end.
fn waiter(coordinator: &Coordinator) -> mpsc::Receiver<WaitResult> {
    let (waiting, awaited) = coordinator.tracker().envoy_hook();
    waits(coordinator, waiting, Route::EnvoyHook(awaited))
}

fn hook(coordinator: &Coordinator) -> mpsc::Receiver<WaitResult> {
    waits(coordinator, coordinator.tracker().exec_hook(), Route::ExecHook(1))
}

fn outcome(result: &WaitResult) -> Outcome {
    match result {
        WaitResult::Ended(outcome) => *outcome,
        other => panic!("{other:?}"),
    }
}

/// Waits until this call is made.
fn until_called(calls: &mpsc::Receiver<(Call, Options)>, wanted: Call) {
    while calls.recv_timeout(PATIENCE).expect("a call").0 != wanted {}
}

/// Waits until the state is as the test needs it.
fn until(coordinator: &Coordinator, what: impl Fn(&State) -> bool) {
    let deadline = clock::now() + PATIENCE;
    let mut state = coordinator.0.lock();
    while !what(&state) {
        assert!(
            clock::now() < deadline,
            "the state that the test waits for does not come: {:?}",
            *state
        );
        // No thread is notified of a client that comes to wait.
        state = coordinator.0.wait(state, Some(clock::now() + Duration::from_millis(2)));
    }
}

#[test]
fn every_waiter_learns_the_end() {
    let (coordinator, _calls) = at_work(0);
    let waiters: Vec<_> = (0..3).map(|_| waiter(&coordinator)).collect();
    assert_eq!(coordinator.observer().snapshot().envoy_hooks, 3);
    assert_eq!(coordinator.trigger().start(&DrainRequest::default()), Ok(DrainStart::Started(1)));
    for waits in waiters.iter().chain([&hook(&coordinator)]) {
        let result = waits.recv_timeout(PATIENCE).unwrap();
        assert_eq!(outcome(&result), Outcome::drained(0));
    }
    until(&coordinator, |state| state.envoy_hooks + state.exec_hooks == 0);
}

/// The messages that are yet to be written to the log.
fn unlogged(coordinator: &Coordinator) -> Vec<&'static str> {
    coordinator.0.lock().records.iter().map(|record| record.message).collect()
}

#[test]
fn the_log_has_the_order_in_which_things_happened_whichever_thread_writes_it() {
    let coordinator = coordinator();
    // Another thread is writing, and takes its time.
    let writing = coordinator.0.log_writer.lock().unwrap();
    let starts = {
        let coordinator = coordinator.clone();
        thread::spawn(move || coordinator.trigger().start(&DrainRequest::default()))
    };
    until(&coordinator, |state| state.machine.drain().is_some());
    let call = coordinator.0.advance(&Event::Tick);
    assert!(matches!(call.task, Task::Call { call: Call::FailHealthChecks, .. }));
    let result = Ok(reply(Call::FailHealthChecks, 0));
    coordinator.0.advance(&Event::Reply { drain: 1, call: Call::FailHealthChecks, result });
    let both = [messages::DRAIN_STARTED, messages::OUT_OF_SERVICE];
    assert_eq!(unlogged(&coordinator), both, "the second is what the worker brings");
    drop(writing);
    starts.join().unwrap().unwrap();
    assert!(unlogged(&coordinator).is_empty(), "{:?}", unlogged(&coordinator));
}

#[test]
fn a_hook_learns_an_end_no_earlier_than_the_log() {
    let coordinator = coordinator();
    coordinator.trigger().start(&DrainRequest::default()).unwrap();
    coordinator.0.lock().records.push(Record::info(messages::DRAINED));
    let writing = coordinator.0.log_writer.lock().unwrap();
    let (sender, learned) = mpsc::channel();
    let observer = coordinator.observer();
    thread::spawn(move || sender.send(observer.wait_result(&Route::ExecHook(1))).unwrap());
    let early = learned.recv_timeout(Duration::from_millis(100));
    assert_eq!(early, Err(RecvTimeoutError::Timeout), "a hook learns what is not logged");
    drop(writing);
    assert_eq!(learned.recv_timeout(PATIENCE), Ok(None));
    assert!(unlogged(&coordinator).is_empty(), "{:?}", unlogged(&coordinator));
}

#[test]
fn a_hook_is_answered_when_its_drain_has_ended() {
    let (coordinator, _calls) = at_work(0);
    let (tracker, observer) = (coordinator.tracker(), coordinator.observer());
    let (waiting, awaited) = tracker.envoy_hook();
    assert_eq!(awaited, 1, "the drain that comes next");
    let hooks = [Route::EnvoyHook(awaited), Route::ExecHook(1)];
    assert_eq!(tracker.answer_due(&hooks[0]), None, "no drain has started");
    coordinator.trigger().start(&DrainRequest::default()).unwrap();
    until(&coordinator, |state| state.machine.phase() == Phase::Ended);
    for hook in &hooks {
        assert!(observer.wait_result(hook).is_some(), "{hook:?} waits on");
    }
    assert_eq!(observer.wait_result(&Route::EnvoyHook(2)), observer.wait_result(&hooks[1]));
    let now = clock::now();
    let [of_envoy, of_exec] = hooks.each_ref().map(|hook| tracker.answer_due(hook).unwrap());
    assert!(of_envoy <= now, "Envoy's hook waits for another");
    assert!(
        of_exec > now && of_exec <= now + HOOK_ANSWER_DELAY,
        "the exec hook does not wait for Envoy's"
    );
    drop(waiting);
    let now = clock::now();
    assert!(tracker.answer_due(&hooks[1]) <= Some(now), "no other hook waits any more");
    assert_eq!(observer.wait_result(&Route::ExecHook(2)), Some(WaitResult::UnknownDrain));
}

#[test]
fn each_change_wakes_the_frontend() {
    let (coordinator, _calls) = at_work(0);
    let waker = Waker::new().unwrap();
    coordinator.set_waker(waker.clone());
    // Until poll(2) says that it is readable, which a lost wake would never be.
    let woken = || {
        let mut fds = [PollFd::new(waker.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::try_from(PATIENCE).unwrap()).unwrap();
        assert_eq!(ready, 1, "the frontend sleeps on");
        waker.clear();
    };
    coordinator.trigger().start(&DrainRequest::default()).unwrap();
    while coordinator.tracker().answer_due(&Route::ExecHook(1)).is_none() {
        woken();
    }
    drop(coordinator.tracker().envoy_hook());
    woken();
    coordinator.stop();
    woken();
}

#[test]
fn a_request_that_has_expired_or_comes_after_the_end_starts_nothing() {
    let coordinator = coordinator();
    let control = coordinator.trigger();
    let expired = DrainRequest {
        expires: Some(Timestamp::from_boot(Duration::from_nanos(1))),
        ..DrainRequest::default()
    };
    assert_eq!(control.start(&expired), Err(StartError::Expired));
    assert_eq!(coordinator.observer().snapshot().drain, 0);
    let stopped = over();
    let start = stopped.trigger().start(&DrainRequest::default());
    assert_eq!(start, Err(StartError::Stopping));
    assert_eq!(stopped.observer().snapshot().drain, 0);
}

#[test]
fn a_wait_for_no_drain_ends_at_once() {
    let coordinator = coordinator();
    assert_eq!(hook(&coordinator).recv_timeout(PATIENCE), Ok(WaitResult::UnknownDrain));
    assert_eq!(waiter(&over()).recv_timeout(PATIENCE), Ok(WaitResult::Stopping));
}

#[test]
fn a_signal_starts_a_drain_for_envoys_hook_that_waits_or_comes_at_once() {
    for waits_before in [true, false] {
        let (coordinator, calls) = at_work(0);
        let early = waits_before.then(|| waiter(&coordinator));
        coordinator.stop();
        let hook = early.unwrap_or_else(|| waiter(&coordinator));
        let result = hook.recv_timeout(PATIENCE).unwrap();
        assert_eq!(outcome(&result), Outcome::drained(0), "waits before: {waits_before}");
        assert_eq!(calls.recv_timeout(PATIENCE).unwrap().0, Call::FailHealthChecks);
        coordinator.wait_until_over();
    }
}

#[test]
fn the_drain_that_a_signal_starts_removes_a_stale_ready_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ready");
    std::fs::write(&path, "stale").unwrap();
    let options = Options {
        ready_file: Some(path.clone()),
        drain_timeout: Some(Duration::ZERO),
        ..Options::default()
    };
    let coordinator = Coordinator::new(options, &Overrides::default(), false);
    let waiter = waiter(&coordinator);
    coordinator.stop();
    let (calls, _receiver) = mpsc::channel();
    coordinator.work(&mut Script { open: 0, panics: Vec::new(), calls });
    assert_eq!(outcome(&waiter.recv_timeout(PATIENCE).unwrap()), Outcome::timed_out(None));
    assert!(!path.exists(), "a drain that gave up has none");
}

#[test]
fn a_stopped_coordinator_is_over_when_its_drain_has_ended_and_is_logged() {
    let (coordinator, _calls) = at_work(7);
    let timeout = request(&[(DrainOption::DrainTimeout, "300ms")]);
    coordinator.trigger().start(&timeout).unwrap();
    let hook = hook(&coordinator);
    coordinator.stop();
    coordinator.wait_until_over();
    assert!(unlogged(&coordinator).is_empty(), "{:?}", unlogged(&coordinator));
    let result = hook.recv_timeout(PATIENCE).unwrap();
    assert_eq!(outcome(&result), Outcome::timed_out(Some(7)));
}

/// Whether it is over, as the process that would then exit learns it.
fn over_in_time(coordinator: &Coordinator) -> mpsc::Receiver<()> {
    let (coordinator, (sender, receiver)) = (coordinator.clone(), mpsc::channel());
    thread::spawn(move || {
        coordinator.wait_until_over();
        // A test that has seen enough has dropped the other end.
        sender.send(()).unwrap_or_default();
    });
    receiver
}

#[test]
fn a_stopped_coordinator_is_over_only_when_the_last_end_is_written() {
    let coordinator = coordinator();
    coordinator.stop();
    coordinator.wait_until_over();
    coordinator.0.lock().unwritten = true;
    let over = over_in_time(&coordinator);
    let early = over.recv_timeout(Duration::from_millis(100));
    assert_eq!(early, Err(RecvTimeoutError::Timeout), "the process exits before the last word");
    coordinator.0.lock().unwritten = false;
    coordinator.0.notify(Change::WorkerStepped);
    assert_eq!(over.recv_timeout(PATIENCE), Ok(()));
}

#[test]
fn what_is_not_logged_yet_is_logged_before_the_process_ends() {
    let coordinator = coordinator();
    coordinator.stop();
    // As a worker that has not come to it.
    coordinator.0.lock().records.push(Record::info(messages::DRAINED));
    coordinator.wait_until_over();
    assert!(unlogged(&coordinator).is_empty(), "{:?}", unlogged(&coordinator));
}

#[test]
fn an_exec_hook_that_has_started_or_joined_a_drain_has_a_second_to_come_and_wait() {
    let (coordinator, _calls) = at_work(0);
    coordinator.trigger().start(&DrainRequest::default()).unwrap();
    // The time itself is what is tested.
    thread::sleep(HOOK_RETURN_WINDOW / 2);
    let joined = clock::now();
    coordinator.trigger().start(&DrainRequest::default()).unwrap();
    coordinator.stop();
    coordinator.wait_until_over();
    let took = clock::now() - joined;
    assert!(took >= HOOK_RETURN_WINDOW, "{took:?}: the hook that came last would be cut off");
    assert!(took < FINAL_ANSWERS_TIMEOUT, "{took:?}: it waits for a hook that was none");
}

#[test]
fn a_hook_that_has_come_to_wait_is_expected_no_more() {
    let (coordinator, _calls) = at_work(0);
    coordinator.trigger().start(&DrainRequest::default()).unwrap();
    assert_eq!(coordinator.0.lock().hooks_expected, 1);
    assert!(hook(&coordinator).recv_timeout(PATIENCE).is_ok());
    let expected = coordinator.0.lock().hooks_expected;
    assert_eq!(expected, 0, "the process would wait a second for a hook that was answered");
}

#[test]
fn what_a_hook_was_given_holds_until_nothing_of_its_drain_is_left() {
    let (coordinator, calls) = at_work(3);
    let given =
        [(DrainOption::MinOpenConnections, "5"), (DrainOption::AdminAddress, "/other/admin.sock")];
    coordinator.trigger().start(&request(&given)).unwrap();
    until(&coordinator, |state| state.machine.phase() == Phase::Ended);
    let snapshot = coordinator.observer().snapshot();
    assert_eq!((snapshot.threshold, snapshot.admin_address.as_str()), (5, "/other/admin.sock"));
    for call in [Call::FailHealthChecks, Call::CheckListeners, Call::ReadStats] {
        let (called, options) = calls.recv_timeout(PATIENCE).unwrap();
        assert_eq!(
            (called, options.admin_address.to_string().as_str()),
            (call, "/other/admin.sock")
        );
    }
}

#[test]
fn a_ready_file_is_created_when_nothing_is_left_to_wait_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ready");
    let path = path.to_str().unwrap();
    let given = [(DrainOption::ReadyFile, path), (DrainOption::DrainTimeout, "0")];
    for (given, is_there) in [(&given[..1], true), (&given, false)] {
        let (coordinator, _calls) = at_work(0);
        std::fs::write(path, "stale").unwrap();
        coordinator.trigger().start(&request(given)).unwrap();
        until(&coordinator, |state| state.machine.phase() == Phase::Ended);
        assert_eq!(std::fs::read(path).ok(), is_there.then(Vec::new));
    }
}

/// An Envoy that looks at a file in every call.
struct WatchesFile {
    path: PathBuf,
    open: Arc<AtomicU64>,
    seen: mpsc::Sender<(Call, bool)>,
}

impl Admin for WatchesFile {
    fn call(&mut self, call: Call, _: &Options, _: Option<Duration>) -> CallResult {
        self.seen.send((call, self.path.exists())).unwrap_or_default();
        Ok(reply(call, self.open.load(Ordering::SeqCst)))
    }
}

#[test]
fn a_late_drain_keeps_the_ready_file_while_the_outcome_before_may_hold() {
    // What is open as the late hook comes, and the calls of its drain with whether the file is there.
    let holds = &[(Call::ReadStats, true)][..];
    let outdated = &[(Call::ReadStats, true), (Call::FailHealthChecks, false)];
    for (open, expected) in [(0, holds), (3, outdated)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ready");
        let (coordinator, (seen, calls)) = (coordinator(), mpsc::channel());
        let now_open = Arc::new(AtomicU64::new(0));
        let mut envoy = WatchesFile { path: path.clone(), open: Arc::clone(&now_open), seen };
        let worker = coordinator.clone();
        thread::spawn(move || worker.work(&mut envoy));
        let request = request(&[(DrainOption::ReadyFile, path.to_str().unwrap())]);
        assert_eq!(coordinator.trigger().start(&request), Ok(DrainStart::Started(1)));
        until(&coordinator, |state| state.machine.phase() == Phase::Ended);
        assert!(path.exists(), "the first drain has created no file");
        while calls.try_recv().is_ok() {}
        now_open.store(open, Ordering::SeqCst);
        assert_eq!(coordinator.trigger().start(&request), Ok(DrainStart::Started(2)));
        for expected in expected {
            let seen = calls.recv_timeout(PATIENCE).unwrap();
            assert_eq!(seen, *expected, "{open} open: the call, and whether the file is there");
        }
        if open == 0 {
            until(&coordinator, |state| state.machine.phase() == Phase::Ended);
            assert!(path.exists(), "the end was confirmed, and its file is gone");
        }
    }
}

#[test]
fn a_drain_starts_without_the_error_of_an_earlier_time() {
    let error = AdminError { kind: AdminErrorKind::Other, text: "long ago".to_owned() };
    let failed = DrainEvent::CallFailed { call: Call::CheckReady, error };
    for by_signal in [false, true] {
        let coordinator = coordinator();
        coordinator.0.lock().counters.record(&failed, clock::now());
        let last_error =
            || coordinator.observer().snapshot().counters.last_error().map(str::to_owned);
        assert_eq!(last_error().as_deref(), Some("long ago"));
        let _waiting = coordinator.tracker().envoy_hook();
        if by_signal {
            coordinator.stop();
            let _call = coordinator.0.advance(&Event::Tick);
        } else {
            coordinator.trigger().start(&DrainRequest::default()).unwrap();
        }
        assert_eq!(coordinator.observer().snapshot().drain, 1);
        assert_eq!(last_error(), None, "kept as a drain starts (by a signal: {by_signal})");
    }
}

#[test]
fn a_release_ends_the_drain_and_what_waits_for_it() {
    let (coordinator, calls) = at_work(3);
    let trigger = coordinator.trigger();
    assert_eq!(trigger.release("uid:0,pid:1"), None, "no drain is in progress");
    trigger.start(&DrainRequest::default()).unwrap();
    let waiting = waits(&coordinator, coordinator.tracker().exec_hook(), Route::ExecHook(1));
    until_called(&calls, Call::ReadStats);
    assert_eq!(trigger.release("uid:0,pid:1"), Some(1));
    let result = waiting.recv_timeout(PATIENCE).expect("an end");
    assert_eq!(outcome(&result).kind, OutcomeKind::Released);
    let snapshot = coordinator.observer().snapshot();
    assert_eq!(snapshot.counters.drains[OutcomeKind::Released as usize], 1);
}

#[test]
fn what_came_of_a_restoring_is_known_by_the_number_of_its_request() {
    let (coordinator, calls) = at_work(0);
    let trigger = coordinator.trigger();
    assert!(trigger.restored(1).is_some_and(|result| result.is_err()), "there was no request");
    let first = trigger.restore("uid:0,pid:1").unwrap();
    until_called(&calls, Call::RestoreHealthChecks);
    until(&coordinator, |state| state.restore.1.is_some());
    assert_eq!(trigger.restored(first), Some(Ok(())));
    let snapshot = coordinator.observer().snapshot();
    assert_eq!(snapshot.counters.envoy, EnvoyState::Live);
    let second = trigger.restore("uid:0,pid:1").unwrap();
    assert_eq!(second, first + 1);
    until(&coordinator, |state| state.restore.1.is_some());
    trigger.start(&request(&[(DrainOption::CheckDelay, "1h")])).unwrap();
    let refused = trigger.restore("uid:0,pid:1").unwrap_err();
    assert!(![Phase::Idle, Phase::Ended].contains(&refused), "{refused:?}");
}

#[test]
fn a_drain_that_starts_first_answers_the_request_to_restore() {
    // No worker runs, so the request waits.
    let coordinator = coordinator();
    let trigger = coordinator.trigger();
    let number = trigger.restore("uid:0,pid:1").unwrap();
    assert_eq!(trigger.restore("uid:0,pid:2"), Ok(number), "the same work");
    assert_eq!(trigger.restored(number), None);
    trigger.start(&DrainRequest::default()).unwrap();
    assert_eq!(trigger.restored(number), Some(Err("a drain has started".to_owned())));
}

#[test]
fn a_look_at_the_status_has_envoy_checked_if_what_is_known_is_old() {
    let coordinator = coordinator();
    let observer = coordinator.observer();
    coordinator.0.lock().counters.envoy_seen = Some(clock::now());
    observer.refresh(true);
    assert!(!coordinator.0.lock().step_due, "it was seen just now");
    coordinator.0.lock().counters.envoy_seen = None;
    observer.refresh(false);
    assert!(coordinator.0.lock().step_due);
    coordinator.0.lock().step_due = false;
    observer.refresh(false);
    assert!(!coordinator.0.lock().step_due, "one check is on its way");
    coordinator.trigger().start(&request(&[(DrainOption::DrainDelay, "1h")])).unwrap();
    coordinator.0.lock().step_due = false;
    observer.refresh(false);
    assert!(!coordinator.0.lock().step_due, "a drain has its own pace");
    observer.refresh(true);
    assert!(coordinator.0.lock().step_due, "unless a client of the control socket looks");
}

#[test]
fn a_snapshot_shows_the_drain_from_its_start() {
    let (coordinator, calls) = at_work(3);
    coordinator.trigger().start(&request(&[(DrainOption::DrainTimeout, "1h")])).unwrap();
    until_called(&calls, Call::ReadAccepted);
    until(&coordinator, |state| {
        state.machine.drain().is_some_and(|drain| drain.accepted.first.is_some())
    });
    let snapshot = coordinator.observer().snapshot();
    let progress = snapshot.progress.expect("a drain in progress");
    assert_eq!(snapshot.requested, "drain-timeout=1h");
    assert_eq!(progress.gives_up_at, Some(progress.started + Duration::from_secs(3600)));
    assert_eq!(progress.last_poll.map(|(poll, _)| poll.open), Some(3));
    assert!(progress.out_of_service_since >= Some(progress.started));
    assert_eq!(snapshot.history.max(), 3);
    assert_eq!(snapshot.phase, Phase::WaitingForConnections);
    assert!(snapshot.phase_since >= progress.started && snapshot.phase_since <= snapshot.now);
    assert!(snapshot.counters.poll_durations.counts.iter().sum::<u64>() > 0);
}

#[test]
fn no_time_elapses_after_the_end() {
    let (coordinator, _calls) = at_work(0);
    assert!(coordinator.observer().snapshot().progress.is_none());
    coordinator.trigger().start(&DrainRequest::default()).unwrap();
    until(&coordinator, |state| state.machine.phase() == Phase::Ended);
    let snapshot = coordinator.observer().snapshot();
    assert!(snapshot.progress.is_none(), "no drain is in progress");
}

#[test]
fn a_worker_that_panics_goes_on_where_it_was() {
    let coordinator = coordinator();
    let (calls, _receiver) = mpsc::channel();
    let mut script = Script { open: 0, panics: vec![Call::FailHealthChecks], calls };
    coordinator.trigger().start(&DrainRequest::default()).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| coordinator.work(&mut script)));
    assert!(panicked.is_err());
    assert_eq!(coordinator.observer().health(), Err("the worker is down\n"));
    coordinator.stop();
    coordinator.work(&mut script);
    let (last, _) = coordinator.observer().snapshot().last.unwrap();
    assert_eq!(last.outcome, Outcome::drained(0));
}

#[test]
fn waiters_learn_the_end_of_a_drain_whose_worker_panics_in_every_call() {
    let coordinator = coordinator();
    let (calls, _receiver) = mpsc::channel();
    let worker = coordinator.clone();
    let mut script =
        Script { open: 0, panics: vec![Call::FailHealthChecks, Call::ReadStats], calls };
    let thread = supervise("worker", Box::new(move || worker.work(&mut script)), |_| {}).unwrap();
    let waiter = waiter(&coordinator);
    coordinator.trigger().start(&DrainRequest::default()).unwrap();
    for waits in [waiter, hook(&coordinator)] {
        let result = waits.recv_timeout(PATIENCE).unwrap();
        assert_eq!(outcome(&result), Outcome::drained(0));
    }
    assert_eq!(coordinator.observer().health(), Ok(()));
    coordinator.stop();
    thread.join().unwrap().unwrap();
}

#[test]
fn a_worker_that_dies_while_it_writes_leaves_nothing_to_be_waited_for() {
    let coordinator = coordinator();
    let running = RunningWorker::new(&coordinator.0);
    coordinator.0.lock().unwritten = true;
    drop(running);
    let unwritten = coordinator.0.lock().unwritten;
    assert!(!unwritten, "a process that ends would wait 2 s for a message that does not come");
}

#[test]
fn only_an_end_with_nothing_left_has_a_ready_file() {
    let coordinator = coordinator();
    coordinator.trigger().start(&request(&[(DrainOption::ReadyFile, "/ready")])).unwrap();
    let mut state = coordinator.0.lock();
    for (outcome, has_file) in [
        (Outcome::drained(0), true),
        (Outcome::envoy_gone(Some(2)), true),
        (Outcome::timed_out(Some(2)), false),
        (Outcome::released(Some(0)), false),
        (Outcome::NO_ENVOY_HOOK, false),
    ] {
        let task = state.task(Action::Finish(outcome), clock::now());
        let Task::Finish(file) = task else { panic!("no end of a drain: {outcome:?}") };
        assert_eq!(file.is_some(), has_file, "{file:?} after {outcome:?}");
    }
}

#[test]
fn the_start_timeout_is_for_clients_that_wait_while_no_drain_is_active() {
    let (coordinator, _calls) = at_work(0);
    let tracker = coordinator.tracker();
    assert!(tracker.no_drain_active());
    coordinator.trigger().start(&DrainRequest::default()).unwrap();
    assert!(!tracker.no_drain_active());
    until(&coordinator, |state| state.machine.phase() == Phase::Ended);
    let active = !tracker.no_drain_active();
    assert!(active, "a client that the end is to answer would get 503, as without a drain");
}

/// An Envoy that notes how long each call may take.
struct NotesLimits(mpsc::Sender<(Call, Option<Duration>)>);

impl Admin for NotesLimits {
    fn call(&mut self, call: Call, _: &Options, limit: Option<Duration>) -> CallResult {
        self.0.send((call, limit)).unwrap_or_default();
        Ok(reply(call, 0))
    }
}

#[test]
fn a_call_in_a_drain_has_what_is_left_of_its_timeout() {
    let (coordinator, (sender, limits)) = (coordinator(), mpsc::channel());
    let worker = coordinator.clone();
    thread::spawn(move || worker.work(&mut NotesLimits(sender)));
    coordinator.trigger().start(&request(&[(DrainOption::DrainTimeout, "1m")])).unwrap();
    until(&coordinator, |state| state.machine.phase() == Phase::Ended);
    let timeout = Duration::from_secs(60);
    let polls = limits.try_iter().filter(|(call, _)| *call == Call::ReadStats);
    let limits: Vec<_> = polls.map(|(_, limit)| limit).collect();
    let is_bounded = |limit: &Option<Duration>| limit.is_some_and(|limit| limit <= timeout);
    assert!(!limits.is_empty() && limits.iter().all(is_bounded), "more than 60 s: {limits:?}");
}

/// An Envoy without connections, each poll of which waits for the test.
struct PolledInTurn(mpsc::Receiver<()>);

impl Admin for PolledInTurn {
    fn call(&mut self, call: Call, _: &Options, _: Option<Duration>) -> CallResult {
        if call == Call::ReadStats {
            // A test that has seen enough has dropped the other end.
            self.0.recv().unwrap_or_default();
        }
        Ok(reply(call, 0))
    }
}

#[test]
fn a_late_waiter_is_woken_by_the_poll_that_confirms_the_end() {
    let (coordinator, (poll, polls)) = (coordinator(), mpsc::channel());
    let worker = coordinator.clone();
    thread::spawn(move || worker.work(&mut PolledInTurn(polls)));
    coordinator.trigger().start(&DrainRequest::default()).unwrap();
    poll.send(()).unwrap();
    until(&coordinator, |state| state.machine.phase() == Phase::Ended);
    let late = waiter(&coordinator);
    let early = late.recv_timeout(HOOK_ANSWER_DELAY / 10);
    assert_eq!(early, Err(RecvTimeoutError::Timeout), "answered before Envoy was polled");
    poll.send(()).unwrap();
    let result = late.recv_timeout(PATIENCE);
    let result = result.expect("an answer: nothing is logged of this poll, and it ends the wait");
    assert_eq!(outcome(&result), Outcome::drained(0));
}
