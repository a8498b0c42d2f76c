//! The coordinator between threads that are interleaved in every way, up to so many preemptions.
//! Time stands still and no timeout ever passes: whatever happens comes of a notification.
//!
//! `just model` runs it. Not modelled: timeouts, wake-ups without a reason, poisoned locks.

use std::collections::BTreeSet;
use std::env;
use std::sync::{LazyLock, Mutex as Seen};

use loom::model::Builder;
use loom::thread::{self, JoinHandle};

use super::replies::{reply, wait};
use super::*;
use crate::cli::drain_request::DrainRequest;
use crate::cli::options::{DrainOption, ON, Overrides};
use crate::drain::{Outcome, OutcomeKind};
use crate::envoy::CallResult;

/// In the place of [`Shared::notify`]: one waiting thread is notified of the change that `$PLANTED`
/// names, in the place of all. `tests/planted` demands that a test then fails.
pub(super) fn notify(changed: &Condvar, change: Change) {
    static PLANTED: LazyLock<Option<String>> = LazyLock::new(|| env::var("PLANTED").ok());
    if *PLANTED == Some(format!("{change:?}")) {
        changed.notify_one();
    } else {
        changed.notify_all();
    }
}

/// An Envoy that no client is connected to.
struct Idle;

impl Admin for Idle {
    fn call(&mut self, call: Call, _: &Options, _: Option<Duration>) -> CallResult {
        Ok(reply(call, 0))
    }
}

/// Runs the scenario in every interleaving with at most so many preemptions. What it returns must
/// have been each of `results` in some of them, and nothing else in any.
fn explore<R>(preemptions: usize, results: &[R], scenario: fn(&Coordinator) -> R)
where
    R: Clone + Ord + std::fmt::Debug + Send + 'static,
{
    let seen = std::sync::Arc::new(Seen::new((0_u64, BTreeSet::new())));
    let sees = std::sync::Arc::clone(&seen);
    let mut builder = Builder::new();
    let bound = *builder.preemption_bound.get_or_insert(preemptions);
    builder.check(move || {
        let options = Options { check_delay: Duration::ZERO, ..Options::default() };
        let result = scenario(&Coordinator::new(options, &Overrides::default(), false));
        let mut sees = sees.lock().unwrap();
        sees.0 += 1;
        sees.1.insert(result);
    });
    let (times, seen) = &*seen.lock().unwrap();
    println!("{times} interleavings with at most {bound} preemptions: {seen:?}");
    assert_eq!(*seen, results.iter().cloned().collect());
}

fn spawn<T: 'static>(
    coordinator: &Coordinator,
    role: impl FnOnce(&Coordinator) -> T + 'static,
) -> JoinHandle<T> {
    let coordinator = coordinator.clone();
    thread::spawn(move || role(&coordinator))
}

fn work(coordinator: &Coordinator) {
    coordinator.work(&mut Idle);
}

/// What a waiter has heard, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Heard {
    Drained,
    Stopping,
}
use Heard::{Drained, Stopping};

fn heard(result: &WaitResult) -> Heard {
    match result {
        WaitResult::Ended(outcome) => {
            assert_eq!(*outcome, Outcome::drained(0));
            Drained
        }
        WaitResult::Stopping => Stopping,
        WaitResult::UnknownDrain => panic!("a drain that is not known"),
    }
}

/// Whether a client came before the sidecar was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Came {
    BeforeTheEnd,
    Perhaps,
}

/// An exec hook, from its beginning to its answer.
fn hook(coordinator: &Coordinator) -> Heard {
    hook_with(coordinator, Overrides::default())
}

fn hook_with(coordinator: &Coordinator, overrides: Overrides) -> Heard {
    let request = DrainRequest { overrides, expires: None };
    let Ok(start) = coordinator.trigger().start(&request) else { return Stopping };
    let waiting = coordinator.tracker().exec_hook();
    let result = wait(coordinator, &Route::ExecHook(start.number()));
    // The frontend holds its response until Envoy's hooks have theirs.
    let mut state = coordinator.0.lock();
    while state.envoy_hooks > 0 {
        state = coordinator.0.wait(state, None);
    }
    drop(state);
    drop(waiting);
    heard(&result)
}

/// Envoy's own hook, from its beginning to its answer.
fn waiter(coordinator: &Coordinator) -> Heard {
    let (waiting, awaited) = coordinator.tracker().envoy_hook();
    let result = wait(coordinator, &Route::EnvoyHook(awaited));
    drop(waiting);
    heard(&result)
}

/// The life of the process after its signal.
fn stop(coordinator: &Coordinator) {
    coordinator.stop();
    coordinator.wait_until_over();
    let state = coordinator.0.lock();
    assert_eq!((state.exec_hooks, state.hooks_expected), (0, 0));
    assert!(!state.unwritten);
}

/// The same, when a client that waits at the signal hears of a drain before its end.
fn stop_and_answer(coordinator: &Coordinator) {
    let waited = coordinator.observer().snapshot().envoy_hooks;
    stop(coordinator);
    let after = coordinator.observer().snapshot();
    assert!(waited == 0 || after.envoy_hooks == 0 && after.drain > 0);
}

/// The worker has ended, and every waiter has been answered and has left.
fn assert_over(coordinator: &Coordinator) {
    let state = coordinator.0.lock();
    assert_eq!((state.envoy_hooks, state.exec_hooks, state.hooks_expected), (0, 0, 0));
    assert!(state.machine.is_over() && !state.worker_running);
    assert_eq!(state.counters.drains, [state.machine.number(), 0, 0, 0, 0]);
}

/// The worker, an exec hook and Envoy's own, and a signal.
fn pod(
    coordinator: &Coordinator,
    work: impl FnOnce(&Coordinator) + 'static,
    hook: impl FnOnce(&Coordinator) -> Heard + 'static,
    stop: fn(&Coordinator),
) -> (Heard, Heard) {
    let worker = spawn(coordinator, work);
    let (hook, waiter) = (spawn(coordinator, hook), spawn(coordinator, waiter));
    stop(coordinator);
    let all = (hook.join().unwrap(), waiter.join().unwrap());
    worker.join().unwrap();
    assert_over(coordinator);
    all
}

/// The same, without a signal before both hooks are answered.
fn deletion(
    coordinator: &Coordinator,
    work: impl FnOnce(&Coordinator) + 'static,
    hook: impl FnOnce(&Coordinator) -> Heard,
) -> (Heard, Heard) {
    let worker = spawn(coordinator, work);
    let waiter = spawn(coordinator, waiter);
    let all = (hook(coordinator), waiter.join().unwrap());
    stop(coordinator);
    worker.join().unwrap();
    assert_over(coordinator);
    all
}

/// What two hooks may hear: of a drain, or, if they come after the end, of the stop.
const ANYTHING: [(Heard, Heard); 4] =
    [(Drained, Drained), (Drained, Stopping), (Stopping, Drained), (Stopping, Stopping)];

#[test]
fn both_hooks_hear_of_an_end_however_early_the_sidecar_is_stopped() {
    explore(2, &ANYTHING, |coordinator| pod(coordinator, work, hook, stop_and_answer));
}

#[test]
fn both_hooks_hear_the_end_though_nothing_stops_the_sidecar() {
    explore(2, &[(Drained, Drained)], |coordinator| deletion(coordinator, work, hook));
}

fn hook_that_requires_the_other(coordinator: &Coordinator) -> Heard {
    let mut requires = Overrides::default();
    requires.set(DrainOption::RequireEnvoyHook, ON).unwrap();
    hook_with(coordinator, requires)
}

#[test]
fn a_drain_that_requires_envoys_hook_goes_on_when_that_comes() {
    explore(2, &[(Drained, Drained)], |coordinator| {
        deletion(coordinator, work, hook_that_requires_the_other)
    });
    // The exec hook hears of a drain only together with Envoy's.
    let results = [(Drained, Drained), (Stopping, Drained), (Stopping, Stopping)];
    explore(1, &results, |coordinator| pod(coordinator, work, hook_that_requires_the_other, stop));
}

/// [`work`], but the worker dies at that task, and is restarted.
fn work_again<const TASK: u32>(coordinator: &Coordinator) {
    die_at(coordinator, TASK);
    work(coordinator);
}

fn explore_death<const TASK: u32>() {
    explore(2, &[(Drained, Drained)], |coordinator| {
        deletion(coordinator, work_again::<TASK>, hook)
    });
    // Both come before the signal only where two threads are preempted, as above.
    let one_too_late = [(Drained, Stopping), (Stopping, Drained), (Stopping, Stopping)];
    explore(1, &one_too_late, |coordinator| pod(coordinator, work_again::<TASK>, hook, stop));
    explore(2, &[Drained, Stopping], |coordinator| {
        let worker = spawn(coordinator, work_again::<TASK>);
        let waiter = spawn(coordinator, waiter);
        stop(coordinator);
        let heard = waiter.join().unwrap();
        worker.join().unwrap();
        assert_over(coordinator);
        heard
    });
}

#[test]
fn a_worker_that_dies_in_a_drain_and_is_restarted_finishes_it() {
    explore_death::<1>();
    explore_death::<2>();
    explore_death::<3>();
    explore_death::<4>();
    explore_death::<5>();
    explore_death::<6>();
}

/// [`Coordinator::work`] to that task, which is not done. Nothing is unwound, since all threads of
/// the model are one to the standard library, which would take all of them to panic.
fn die_at(coordinator: &Coordinator, task: u32) {
    let shared = &coordinator.0;
    let _running = RunningWorker::new(shared);
    let mut event = Event::Tick;
    let mut left = task;
    loop {
        let WorkerStep { has_changed, task, .. } = shared.advance(&event);
        left -= u32::from(!matches!(task, Task::Wait(_)));
        if left == 0 {
            return;
        }
        if has_changed {
            shared.notify(Change::WorkerStepped);
        }
        event = match task {
            Task::Wait(until) => shared.wait_for_step(until),
            Task::Call { call, drain, options, limit } => {
                Event::Reply { drain, call, result: Idle.call(call, &options, limit) }
            }
            Task::Finish(_) => Event::Finished,
            Task::RemoveReadyFile(_) | Task::Stop => return,
        };
    }
}

#[test]
fn a_drain_starts_before_the_stop_or_not_at_all() {
    explore(3, &[Drained, Stopping], |coordinator| {
        let worker = spawn(coordinator, work);
        let hook = spawn(coordinator, hook);
        stop(coordinator);
        let heard = hook.join().unwrap();
        worker.join().unwrap();
        assert_over(coordinator);
        heard
    });
}

#[test]
fn a_signal_ends_the_sidecar_but_not_before_a_client_that_waits_hears_of_a_drain() {
    // Not one that had come before the end, and heard of the stop.
    let results =
        [(Came::BeforeTheEnd, Drained), (Came::Perhaps, Drained), (Came::Perhaps, Stopping)];
    explore(2, &results, |coordinator| {
        let worker = spawn(coordinator, work);
        let waiter = spawn(coordinator, |coordinator| {
            let (waiting, awaited) = coordinator.tracker().envoy_hook();
            let is_over = coordinator.0.lock().machine.is_over();
            let result = wait(coordinator, &Route::EnvoyHook(awaited));
            drop(waiting);
            (if is_over { Came::Perhaps } else { Came::BeforeTheEnd }, heard(&result))
        });
        let signal = spawn(coordinator, Coordinator::stop);
        coordinator.wait_until_over();
        signal.join().unwrap();
        worker.join().unwrap();
        let heard = waiter.join().unwrap();
        assert_over(coordinator);
        heard
    });
}

#[test]
fn two_hooks_hear_of_a_drain() {
    explore(2, &ANYTHING, |coordinator| {
        let worker = spawn(coordinator, work);
        let hooks = (spawn(coordinator, hook), spawn(coordinator, hook));
        stop(coordinator);
        let all = (hooks.0.join().unwrap(), hooks.1.join().unwrap());
        worker.join().unwrap();
        assert_over(coordinator);
        all
    });
}

/// A waiter leaves while another comes.
fn relay(coordinator: &Coordinator, worker: fn(&Coordinator)) -> Heard {
    let (leaves, _) = coordinator.tracker().envoy_hook();
    let leaves = spawn(coordinator, |_| drop(leaves));
    let comes = spawn(coordinator, waiter);
    let worker = spawn(coordinator, worker);
    leaves.join().unwrap();
    let heard = comes.join().unwrap();
    stop(coordinator);
    worker.join().unwrap();
    assert_over(coordinator);
    heard
}

#[test]
fn a_waiter_that_comes_while_the_last_one_leaves_hears_the_end() {
    explore(2, &[Drained], |coordinator| {
        coordinator.trigger().start(&DrainRequest::default()).unwrap();
        drop(coordinator.tracker().exec_hook());
        relay(coordinator, work)
    });
}

#[test]
fn a_waiter_that_comes_while_the_last_one_leaves_hears_of_the_stop() {
    explore(2, &[Drained, Stopping], |coordinator| {
        relay(coordinator, |coordinator| {
            coordinator.stop();
            work(coordinator);
        })
    });
}

/// An Envoy with a connection that stays.
struct Busy;

impl Admin for Busy {
    fn call(&mut self, call: Call, _: &Options, _: Option<Duration>) -> CallResult {
        Ok(reply(call, 1))
    }
}

#[test]
fn the_worker_hears_of_a_release_while_a_hook_waits() {
    explore(3, &[true], |coordinator| {
        let start = coordinator.trigger().start(&DrainRequest::default()).unwrap();
        let waiting = coordinator.tracker().exec_hook();
        let worker = spawn(coordinator, |coordinator| coordinator.work(&mut Busy));
        let hook = spawn(coordinator, move |coordinator| {
            let result = wait(coordinator, &Route::ExecHook(start.number()));
            drop(waiting);
            result
        });
        coordinator.trigger().release("a client");
        let result = hook.join().unwrap();
        stop(coordinator);
        worker.join().unwrap();
        matches!(result, WaitResult::Ended(Outcome { kind: OutcomeKind::Released, .. }))
    });
}
