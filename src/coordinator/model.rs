//! The manager between threads that are interleaved in every way, up to so many preemptions. Time
//! stands still and no time-out ever passes: whatever happens comes of a notification.
//!
//! `just model` runs it. Not modelled: time-outs, wake-ups without a reason, poisoned locks.

use std::collections::BTreeSet;
use std::sync::Mutex as Seen;

use loom::model::Builder;
use loom::thread::{self, JoinHandle};

use super::*;
use crate::cli::options::{DrainOption, ON, Overrides};
use crate::drain::{Health, Outcome, Poll};

/// An Envoy that nobody is connected to.
struct Idle;

impl Admin for Idle {
    fn call(&mut self, call: Call, _: &Options) -> Answer {
        match call {
            Call::FailHealthChecks => Answer::Failed,
            Call::DrainListeners => Answer::ListenersDrain,
            Call::RestoreHealthChecks => Answer::PutBack,
            Call::CheckReady => Answer::Seen(Health::Draining),
            Call::ReadStats => Answer::Polled(Poll {
                open: 0,
                visible: StatsCoverage::Everything,
                health: Health::Draining,
            }),
        }
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
        let result = scenario(&Coordinator::new(options, false));
        let mut sees = sees.lock().unwrap();
        sees.0 += 1;
        sees.1.insert(result);
    });
    let (times, seen) = &*seen.lock().unwrap();
    println!("{times} interleavings with at most {bound} preemptions: {seen:?}");
    assert_eq!(*seen, results.iter().cloned().collect());
}

fn spawn<T: 'static>(
    manager: &Coordinator,
    role: impl FnOnce(&Coordinator) -> T + 'static,
) -> JoinHandle<T> {
    let manager = manager.clone();
    thread::spawn(move || role(&manager))
}

fn work(manager: &Coordinator) {
    manager.work(&mut Idle);
}

/// What somebody was told, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Drained,
    Stopping,
    Nobody,
}
use Told::{Drained, Nobody, Stopping};

fn told(verdict: &WaitResult) -> Told {
    match verdict {
        WaitResult::Ended(ended) => {
            assert_eq!((ended.number, ended.outcome), (1, Outcome::Drained { open: 0 }));
            Drained
        }
        WaitResult::Stopping => Stopping,
        WaitResult::NoWaiter => Nobody,
        WaitResult::UnknownDrain => panic!("a drain that is not known"),
    }
}

/// An exec hook, from its beginning to its answer.
fn hook(manager: &Coordinator) -> Told {
    hook_with(manager, Overrides::default())
}

fn hook_with(manager: &Coordinator, overrides: Overrides) -> Told {
    let request = DrainRequest { overrides, expires: None };
    let Ok(begun) = manager.trigger().start(&request) else { return Stopping };
    let waiting = manager.tracker().exec_hook();
    let verdict = manager.observer().wait_for_exec_hooks(begun.number());
    drop(waiting);
    told(&verdict)
}

/// Envoy's own hook, from its beginning to its answer.
fn waiter(manager: &Coordinator) -> Told {
    let waiting = manager.tracker().envoy_hook();
    let verdict = manager.observer().wait_for_envoy_hooks();
    drop(waiting);
    told(&verdict)
}

/// The life of the process after its signal.
fn stop(manager: &Coordinator) {
    manager.stop();
    manager.wait_until_over();
    let state = manager.0.lock();
    assert_eq!((state.hooks, state.expected, state.telling), (0, 0, false));
}

/// The same, when whoever waits at the signal is answered before its end.
fn stop_and_answer(manager: &Coordinator) {
    let waited = manager.observer().snapshot().waiters;
    stop(manager);
    assert!(waited == 0 || manager.observer().snapshot().waiters == 0);
}

/// The worker has ended, and everybody has been answered and has left.
fn assert_over(manager: &Coordinator) {
    let state = manager.0.lock();
    assert_eq!((state.waiters, state.hooks, state.expected), (0, 0, 0));
    assert!(state.is_over() && !state.working && !state.telling);
    assert_eq!(state.counters.drains, [state.machine.number(), 0, 0, 0]);
}

/// The worker, an exec hook and Envoy's own, and a signal.
fn pod(
    manager: &Coordinator,
    work: impl FnOnce(&Coordinator) + 'static,
    hook: impl FnOnce(&Coordinator) -> Told + 'static,
    stop: fn(&Coordinator),
) -> (Told, Told) {
    let worker = spawn(manager, work);
    let (hook, waiter) = (spawn(manager, hook), spawn(manager, waiter));
    stop(manager);
    let all = (hook.join().unwrap(), waiter.join().unwrap());
    worker.join().unwrap();
    assert_over(manager);
    all
}

#[test]
fn both_hooks_are_told_the_same_however_early_the_sidecar_is_stopped() {
    explore(2, &[(Drained, Drained), (Stopping, Stopping)], |manager| {
        pod(manager, work, hook, stop_and_answer)
    });
}

#[test]
fn both_hooks_are_told_though_nothing_stops_the_sidecar() {
    explore(2, &[(Drained, Drained)], |manager| {
        let worker = spawn(manager, work);
        let waiter = spawn(manager, waiter);
        let all = (hook(manager), waiter.join().unwrap());
        stop(manager);
        worker.join().unwrap();
        assert_over(manager);
        all
    });
}

#[test]
fn a_drain_that_requires_envoys_hook_goes_on_when_that_comes() {
    explore(2, &[(Drained, Drained), (Stopping, Stopping)], |manager| {
        let mut requires = Overrides::default();
        requires.set(DrainOption::RequireEnvoyHook, ON).unwrap();
        pod(manager, work, |manager| hook_with(manager, requires), stop)
    });
}

/// The worker dies at that task of a drain, and is started again.
fn explore_death<const TASK: u32>() {
    explore(2, &[(Drained, Drained), (Stopping, Stopping)], |manager| {
        let work = |manager: &Coordinator| {
            die_at(manager, TASK);
            work(manager);
        };
        pod(manager, work, hook, stop)
    });
}

#[test]
fn a_worker_that_dies_in_a_drain_and_is_started_again_goes_on() {
    explore_death::<1>();
    explore_death::<2>();
    explore_death::<3>();
    explore_death::<4>();
    explore_death::<5>();
    explore_death::<6>();
}

/// [`Coordinator::work`] to that task, which is not done. Nothing is unwound, since all threads of the
/// model are one to the standard library, which would take all of them to panic.
fn die_at(manager: &Coordinator, task: u32) {
    let shared = &manager.0;
    let _working = Working::begin(shared);
    let mut event = Event::Tick;
    let mut left = task;
    while left > 0 {
        let next = shared.advance(&event);
        left -= u32::from(!matches!(next, Task::Again));
        event = match next {
            Task::Stop => return,
            _ if left == 0 => return,
            Task::Again => Event::Tick,
            Task::Tell(_) => {
                shared.lock().telling = false;
                shared.changed.notify_all();
                Event::Tick
            }
            Task::Ask { call, drain, options } => {
                Event::Answer { drain, answer: Idle.call(call, &options) }
            }
            Task::Finish(_) => Event::Finished,
        };
    }
}

#[test]
fn a_drain_begins_before_the_stop_or_not_at_all() {
    explore(3, &[Drained, Stopping], |manager| {
        let worker = spawn(manager, work);
        let hook = spawn(manager, hook);
        stop(manager);
        let told = hook.join().unwrap();
        worker.join().unwrap();
        assert_over(manager);
        told
    });
}

#[test]
fn a_signal_ends_the_sidecar_though_somebody_waits_for_a_drain() {
    explore(2, &[Stopping], |manager| {
        let worker = spawn(manager, work);
        let waiter = spawn(manager, waiter);
        let signal = spawn(manager, Coordinator::stop);
        manager.wait_until_over();
        signal.join().unwrap();
        worker.join().unwrap();
        let told = waiter.join().unwrap();
        assert_over(manager);
        told
    });
}

#[test]
fn two_hooks_are_told_of_one_drain() {
    let results =
        [(Drained, Drained), (Drained, Stopping), (Stopping, Drained), (Stopping, Stopping)];
    explore(2, &results, |manager| {
        let worker = spawn(manager, work);
        let hooks = (spawn(manager, hook), spawn(manager, hook));
        stop(manager);
        let all = (hooks.0.join().unwrap(), hooks.1.join().unwrap());
        worker.join().unwrap();
        assert_over(manager);
        all
    });
}

/// One who waits leaves, another comes, and the server waits in the place of both.
fn relay(manager: &Coordinator, meanwhile: fn(&Coordinator)) -> (Told, Told) {
    let leaves = manager.tracker().envoy_hook();
    let leaves = spawn(manager, |_| drop(leaves));
    let server = spawn(manager, |manager| told(&manager.observer().wait_for_envoy_hooks()));
    let comes = spawn(manager, waiter);
    meanwhile(manager);
    leaves.join().unwrap();
    let all = (server.join().unwrap(), comes.join().unwrap());
    assert_over(manager);
    all
}

#[test]
fn whoever_comes_while_the_last_one_leaves_is_told_the_end() {
    explore(2, &[(Drained, Drained), (Nobody, Drained)], |manager| {
        manager.trigger().start(&DrainRequest::default()).unwrap();
        drop(manager.tracker().exec_hook());
        manager.stop();
        relay(manager, work)
    });
}

#[test]
fn whoever_comes_while_the_last_one_leaves_is_told_of_the_stop() {
    explore(3, &[(Stopping, Stopping), (Nobody, Stopping)], |manager| relay(manager, stop));
}
