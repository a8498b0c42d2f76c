//! Shares the drain's state between the worker, the frontend, the backend and the signals. One worker
//! performs what the machine asks for; a [`DrainTrigger`] can start a drain, a [`DrainObserver`] can
//! only observe, a [`WaiterTracker`] says who waits and learns when they are to be answered.

mod injected_resource;
mod observer;
mod ready_file;
mod termination_message;
mod tracker;
mod trigger;

use std::path::PathBuf;
use std::sync::{OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use self::injected_resource::{InjectedResource, Writer};
pub use self::ready_file::remove as remove_ready_file;
use crate::cli::address::AdminAddress;
use crate::cli::options::{Options, Overrides};
use crate::drain::{Action, Drain, DrainEvent, Event, Machine, Outcome, Phase, Step};
use crate::envoy::Call;
use crate::envoy::admin::Admin;
use crate::observe::counters::Counters;
use crate::observe::drain_log::DrainLog;
use crate::observe::history::History;
use crate::observe::log::Record;
use crate::os::clock::{self, Timestamp};
use crate::os::sync::{Arc, Condvar, Mutex, MutexGuard};
use crate::os::waker::Waker;
use crate::route::Route;

/// An exec hook is answered once no Envoy hook waits, and at the latest after this: the kubelet stops the
/// sidecar when its hook returns.
const HOOK_ANSWER_DELAY: Duration = Duration::from_secs(1);

/// An exec hook that has started a drain comes to wait within milliseconds, or was no hook.
const HOOK_RETURN_WINDOW: Duration = Duration::from_secs(1);

/// Answering waiters takes microseconds; one that cannot be answered must not keep the process.
const FINAL_ANSWERS_TIMEOUT: Duration = Duration::from_secs(2);

/// The state of the sidecar, with the right to do the work and to stop it.
#[derive(Clone, Debug)]
pub struct Coordinator(Arc<Shared>);

/// The right to start a drain and to end it, and to restore Envoy.
#[derive(Clone, Debug)]
pub struct DrainTrigger(Arc<Shared>);

/// The right to observe.
#[derive(Clone, Debug)]
pub struct DrainObserver(Arc<Shared>);

/// The frontend's right: to say who waits, to learn when a wait is over, and to count responses.
#[derive(Clone, Debug)]
pub struct WaiterTracker(Arc<Shared>);

/// A client that waits for the end of a drain, counted while this lives.
#[derive(Debug)]
#[must_use]
pub struct WaiterGuard {
    shared: Arc<Shared>,
    waiter: Waiter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiter {
    EnvoyHook,
    ExecHook,
}

/// Why waiting threads, and the frontend, are notified. Each is a place where a lost notification would
/// leave one waiting for ever, which the model tries (`coordinator::model`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    WorkerStepped,
    Stopping,
    Requested,
    DrainStarted,
    EnvoyHookArrived,
    WaiterLeft,
    WorkerEnded,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Held by the thread that writes [`State::records`], so that no other writes what came later.
    log_writer: Mutex<()>,
    /// One for all runs of the worker: an older one must not write over a newer value.
    writer: Writer,
    /// Wakes the frontend, which sleeps in poll(2).
    waker: OnceLock<Waker>,
}

#[derive(Debug)]
struct State {
    machine: Machine,
    log: DrainLog,
    /// What has happened and is yet to be written to the log, oldest first.
    records: Vec<Record>,
    counters: Counters,
    /// The options that the latest drain was requested with.
    requested: String,
    /// What was open over the latest drain.
    history: History,
    /// The phase as last shown, and since when it is in force.
    phase: Phase,
    phase_since: Timestamp,
    /// When the latest call to Envoy was made.
    called_at: Timestamp,
    /// The latest request to restore Envoy to service: its number, and the result, once there is one.
    restore: (u64, Option<Result<(), String>>),
    /// What waits for the end of a drain.
    envoy_hooks: usize,
    exec_hooks: usize,
    /// Exec hooks that have started or joined a drain and are yet to come to wait, and when the
    /// latest of them was here.
    hooks_expected: usize,
    hook_expected_at: Timestamp,
    /// When the latest drain ended.
    ended_at: Timestamp,
    /// Whether no hook finds the sidecar: its control socket was removed and cannot be bound again.
    control_socket_lost: bool,
    /// A ready file of an earlier drain, for the worker to remove: no file is touched under the
    /// lock, since a volume that hangs would then fail the liveness probe.
    stale_ready_file: Option<PathBuf>,
    injected: InjectedResource,
    /// Something has changed since the worker's latest step.
    step_due: bool,
    worker_running: bool,
    /// The worker has yet to write the latest drain's end as the termination message.
    unwritten: bool,
}

/// How the wait for a drain ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitResult {
    Ended(Outcome),
    /// The sidecar stops, and no drain is in progress.
    Stopping,
    /// There was no drain of that number in this run of the sidecar.
    UnknownDrain,
}

/// Why a drain was not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// No hook waits for it any more.
    Expired,
    /// The sidecar stops.
    Stopping,
    /// The hook means another Envoy than this sidecar's, which is the one at this address.
    OtherEnvoy(AdminAddress),
}

impl Coordinator {
    /// A coordinator with the sidecar's own options. See [`Machine::new`].
    pub fn new(options: Options, given: &Overrides, restore: bool) -> Self {
        let now = clock::now();
        let state = State {
            machine: Machine::new(options, given, restore, now),
            log: DrainLog::default(),
            records: Vec::new(),
            counters: Counters::default(),
            requested: String::new(),
            history: History::default(),
            phase: Phase::Idle,
            phase_since: now,
            called_at: now,
            restore: (0, None),
            envoy_hooks: 0,
            exec_hooks: 0,
            hooks_expected: 0,
            hook_expected_at: Timestamp::ZERO,
            ended_at: Timestamp::ZERO,
            control_socket_lost: false,
            stale_ready_file: None,
            injected: InjectedResource::default(),
            step_due: false,
            worker_running: false,
            unwritten: false,
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            log_writer: Mutex::new(()),
            writer: Writer::default(),
            waker: OnceLock::new(),
        }))
    }

    /// Has the frontend woken by each change from now on. There is one frontend; the waker of a second
    /// is not used.
    pub fn set_waker(&self, waker: Waker) {
        let _ = self.0.waker.set(waker);
    }

    pub fn trigger(&self) -> DrainTrigger {
        DrainTrigger(Arc::clone(&self.0))
    }

    pub fn observer(&self) -> DrainObserver {
        DrainObserver(Arc::clone(&self.0))
    }

    pub fn tracker(&self) -> WaiterTracker {
        WaiterTracker(Arc::clone(&self.0))
    }

    /// Does the work, until the coordinator was stopped and no drain is in progress.
    pub fn work(&self, admin: &mut dyn Admin) {
        let _running = RunningWorker::new(&self.0);
        let mut event = Event::Tick;
        loop {
            let WorkerStep { has_changed, pressure, task } = self.0.advance(&event);
            self.0.writer.write(pressure);
            self.0.write_log();
            if has_changed {
                self.0.notify(Change::WorkerStepped);
            }
            self.0.write_termination_message();
            event = match task {
                Task::Wait(until) => self.0.wait_for_step(until),
                Task::Call { call, drain, options, limit } => {
                    Event::Reply { drain, call, result: admin.call(call, &options, limit) }
                }
                Task::RemoveReadyFile(path) => {
                    ready_file::remove(&path);
                    Event::Tick
                }
                Task::Finish(ready_file) => {
                    if let Some(path) = ready_file {
                        ready_file::create(&path);
                    }
                    Event::Finished
                }
                Task::Stop => return,
            };
        }
    }

    /// From now on no drain starts, but for an Envoy whose own hook waits; when none is in progress
    /// the work is over. See [`Machine::stop`].
    pub fn stop(&self) {
        let mut state = self.0.lock();
        state.machine.stop(clock::now());
        self.0.request_step(state, Change::Stopping);
    }

    /// Waits until the coordinator was stopped, its last drain has ended, and every waiter has been
    /// answered.
    pub fn wait_until_over(&self) {
        let shared = &self.0;
        let mut state = shared.lock();
        loop {
            // Not left to the worker, which may be in a call that takes its time.
            let until = state.machine.update_over(clock::now());
            if state.machine.is_over() {
                break;
            }
            state = shared.wait(state, until);
        }
        shared.notify(Change::Stopping);
        let deadline = clock::now() + FINAL_ANSWERS_TIMEOUT;
        loop {
            let until = if state.envoy_hooks + state.exec_hooks > 0 || state.unwritten {
                deadline
            } else if state.hooks_expected > 0 {
                deadline.min(state.hook_expected_at + HOOK_RETURN_WINDOW)
            } else {
                break;
            };
            if clock::now() >= until {
                break;
            }
            state = shared.wait(state, Some(until));
        }
        drop(state);
        shared.write_log();
    }
}

/// What comes of a step: whether there is news, what to write, and what the worker does next.
struct WorkerStep {
    has_changed: bool,
    pressure: Vec<injected_resource::Value>,
    task: Task,
}

/// What the worker does next.
enum Task {
    Wait(Option<Timestamp>),
    Call { call: Call, drain: u64, options: Box<Options>, limit: Option<Duration> },
    RemoveReadyFile(PathBuf),
    Finish(Option<PathBuf>),
    Stop,
}

type Locked<'a> = MutexGuard<'a, State>;

impl Shared {
    fn lock(&self) -> Locked<'_> {
        // A panic elsewhere is no reason to stop: every change leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: Locked<'a>, until: Option<Timestamp>) -> Locked<'a> {
        let left = until.unwrap_or(Timestamp::MAX) - clock::now();
        self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
    }

    #[cfg(not(all(test, loom)))]
    fn notify(&self, _: Change) {
        self.changed.notify_all();
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }

    #[cfg(all(test, loom))]
    fn notify(&self, change: Change) {
        model::notify(&self.changed, change);
    }

    /// Has the worker take a step, after what is yet to be logged is.
    fn request_step(&self, mut state: Locked<'_>, change: Change) {
        state.step_due = true;
        drop(state);
        self.write_log();
        self.notify(change);
    }

    /// Takes one step of the machine.
    fn advance(&self, event: &Event) -> WorkerStep {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.step_due = false;
        let now = clock::now();
        if let Event::Reply { call, result, .. } = event {
            state.counters.replied(*call, result, now - state.called_at, now);
        }
        let Step { action, events } = state.machine.step(event, now);
        for event in &events {
            state.counters.record(event, now);
            match event {
                DrainEvent::StartedBySignal => state.drain_started(String::new(), now),
                DrainEvent::Ended(_) => (state.ended_at, state.unwritten) = (now, true),
                DrainEvent::OutcomeOutdated => state.stale_ready_file = state.ready_file(),
                DrainEvent::Polled(poll) => state.history.add(poll.open, now),
                DrainEvent::RestoreReplied(error) => {
                    let error = error.as_ref().map(|error| error.text.clone());
                    state.restore.1 = Some(error.map_or(Ok(()), Err));
                }
                _ => {}
            }
        }
        state.note_phase(now);
        state.log.envoy = state.counters.envoy;
        state.records.extend(state.log.record(&events, &state.machine, now));
        // The machine asks for its action again in the next step.
        let stale = state.stale_ready_file.take().map(Task::RemoveReadyFile);
        let pressure = state.injected.due(&state.machine, now);
        let has_changed = *event != Event::Tick || !events.is_empty();
        let task = stale.unwrap_or_else(|| state.task(action, now));
        WorkerStep { has_changed, pressure, task }
    }

    /// Writes to the log what has happened until now, in that order, whichever threads it was in.
    fn write_log(&self) {
        if cfg!(loom) {
            return; // Nothing of the model depends on the log.
        }
        let _writing = self.log_writer.lock().unwrap_or_else(PoisonError::into_inner);
        let records = std::mem::take(&mut self.lock().records);
        records.into_iter().for_each(Record::emit);
    }

    /// Writes how a drain has ended, while those who waited for that are answered.
    fn write_termination_message(&self) {
        let state = self.lock();
        let Some(ended) = state.machine.last().filter(|_| state.unwritten) else { return };
        let text = termination_message::text(ended, SystemTime::now());
        drop(state);
        termination_message::write(text);
        // No notification: only the process's end waits for this, and the worker's end follows then.
        self.lock().unwritten = false;
    }

    /// Waits until then, or until something has changed.
    fn wait_for_step(&self, until: Option<Timestamp>) -> Event {
        let mut state = self.lock();
        while !state.step_due && until.is_none_or(|until| clock::now() < until) {
            state = self.wait(state, until);
        }
        Event::Tick
    }
}

impl State {
    fn wait_result(&self, hook: &Route) -> Option<WaitResult> {
        let ended = match hook {
            Route::EnvoyHook(awaited) => self.machine.answer_to(*awaited),
            Route::ExecHook(number) if *number > self.machine.number() => {
                return Some(WaitResult::UnknownDrain);
            }
            Route::ExecHook(number) => self.machine.end_of(*number),
            _ => None,
        };
        match ended {
            Some(ended) => Some(WaitResult::Ended(ended.outcome)),
            None if hook.is_envoy_hook() && self.machine.is_over() => Some(WaitResult::Stopping),
            None => None,
        }
    }

    fn note_phase(&mut self, now: Timestamp) {
        let phase = self.machine.phase();
        if std::mem::replace(&mut self.phase, phase) != phase {
            self.phase_since = now;
        }
    }

    fn drain_started(&mut self, requested: String, now: Timestamp) {
        self.counters.error = None;
        self.requested = requested;
        self.history = History::of_drain(now);
        self.note_phase(now);
        let (_, restored) = &mut self.restore;
        restored.get_or_insert(Err("a drain has started".to_owned()));
        // One that may end as the one before has keeps its file until it does not.
        let confirms = self.machine.drain().is_some_and(Drain::confirms_outcome);
        self.stale_ready_file = self.ready_file().filter(|_| !confirms);
    }

    fn ready_file(&self) -> Option<PathBuf> {
        self.machine.in_force().ready_file.clone()
    }

    fn task(&mut self, action: Action, now: Timestamp) -> Task {
        if self.machine.is_over() {
            return Task::Stop;
        }
        let until = match action {
            Action::Call(call) => {
                self.called_at = now;
                return Task::Call {
                    call,
                    drain: self.machine.number(),
                    options: Box::new(self.machine.in_force().clone()),
                    limit: self.machine.drain().and_then(|drain| drain.time_left(now)),
                };
            }
            Action::Finish(outcome) => {
                let nothing_left = outcome.kind.nothing_left();
                return Task::Finish(self.ready_file().filter(|_| nothing_left));
            }
            Action::Sleep => None,
            Action::SleepUntil(time) => Some(time),
        };
        let others = [self.log.reminder(&self.machine), self.injected.next(&self.machine)];
        Task::Wait(others.into_iter().chain([until]).flatten().min())
    }
}

/// The worker at work, for as long as this lives.
struct RunningWorker<'a>(&'a Shared);

impl<'a> RunningWorker<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.lock().worker_running = true;
        Self(shared)
    }
}

impl Drop for RunningWorker<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.worker_running = false;
        state.unwritten = false;
        drop(state);
        self.0.notify(Change::WorkerEnded);
    }
}

#[cfg(test)]
#[cfg(loom)]
mod model;
#[cfg(test)]
pub(crate) mod replies;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
