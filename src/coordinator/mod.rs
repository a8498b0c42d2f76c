//! Shares the drain's state between the worker, the frontend, the backend and the signals. One worker
//! performs what the machine asks for; a [`DrainTrigger`] can start a drain, a [`DrainObserver`] can
//! only observe, a [`WaiterTracker`] says who waits and learns when they are to be answered.

mod ready_file;

use std::path::PathBuf;
use std::sync::{OnceLock, PoisonError};
use std::time::Duration;

pub use self::ready_file::remove as remove_ready_file;
use crate::cli::address::AdminAddress;
use crate::cli::drain_request::DrainRequest;
use crate::cli::options::{Options, Overrides};
use crate::drain::{Action, Drain, DrainEvent, DrainStart, Ended, Event, Machine, Phase, Step};
use crate::envoy::Call;
use crate::envoy::admin::Admin;
use crate::observe::counters::Counters;
use crate::observe::drain_log::DrainLog;
use crate::observe::log::Record;
use crate::observe::status::Snapshot;
use crate::os::clock::{self, Timestamp};
use crate::os::sync::{Arc, Condvar, Mutex, MutexGuard};
use crate::os::waker::Waker;
use crate::route::{PublicRoute, Route, Status};

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

/// The right to start a drain.
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
    DrainStarted,
    EnvoyHookArrived,
    WaiterLeft,
    WorkerEnded,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Wakes the frontend, which sleeps in poll(2).
    waker: OnceLock<Waker>,
}

#[derive(Debug)]
struct State {
    machine: Machine,
    log: DrainLog,
    counters: Counters,
    /// The sidecar's own options, which a hook's override.
    options: Options,
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
    /// Something has changed since the worker's latest step.
    step_due: bool,
    worker_running: bool,
    /// The worker has records to write of what has already happened.
    logging: bool,
}

/// How the wait for a drain ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitResult {
    Ended(Ended),
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
        let state = State {
            machine: Machine::new(options.clone(), given, restore, clock::now()),
            log: DrainLog::default(),
            counters: Counters::default(),
            options,
            envoy_hooks: 0,
            exec_hooks: 0,
            hooks_expected: 0,
            hook_expected_at: Timestamp::ZERO,
            ended_at: Timestamp::ZERO,
            control_socket_lost: false,
            stale_ready_file: None,
            step_due: false,
            worker_running: false,
            logging: false,
        };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        Self(Arc::new(Shared { state, changed, waker: OnceLock::new() }))
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
            let (records, task) = self.0.advance(&event);
            let was_logging = !records.is_empty();
            records.into_iter().for_each(Record::emit);
            // The end is logged before a waiter learns it.
            if event != Event::Tick || was_logging {
                self.0.lock().logging = false;
                self.0.notify(Change::WorkerStepped);
            }
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
        state.step_due = true;
        drop(state);
        self.0.notify(Change::Stopping);
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
            let until = if state.envoy_hooks + state.exec_hooks > 0 || state.logging {
                deadline
            } else if state.hooks_expected > 0 {
                deadline.min(state.hook_expected_at + HOOK_RETURN_WINDOW)
            } else {
                return;
            };
            if clock::now() >= until {
                return;
            }
            state = shared.wait(state, Some(until));
        }
    }
}

impl DrainTrigger {
    /// Starts a drain with the sidecar's options and the request's in their place, or joins the
    /// one in progress.
    ///
    /// # Errors
    /// When the request has expired, or the sidecar stops.
    pub fn start(&self, request: &DrainRequest) -> Result<DrainStart, StartError> {
        if request.expires.is_some_and(|expires| clock::wall_now() > expires) {
            return Err(StartError::Expired);
        }
        let (start, records) = {
            let mut state = self.0.lock();
            let now = clock::now();
            if state.machine.is_over() {
                return Err(StartError::Stopping);
            }
            let start = state.machine.request(&request.overrides, now);
            let start = start.map_err(StartError::OtherEnvoy)?;
            if let DrainStart::Started(_) = start {
                state.drain_started();
            }
            state.step_due = true;
            state.hooks_expected += 1;
            state.hook_expected_at = now;
            let State { machine, log, .. } = &mut *state;
            (start, log.drain_started(start, &request.overrides, machine, now))
        };
        // Before the worker has more to log.
        records.into_iter().for_each(Record::emit);
        self.0.notify(Change::DrainStarted);
        Ok(start)
    }
}

impl DrainObserver {
    /// How things stand.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.0.lock();
        let machine = &state.machine;
        let drain = machine.drain();
        let options = machine.options().unwrap_or(&state.options);
        Snapshot {
            phase: machine.phase(),
            drain: machine.number(),
            open: drain.and_then(|drain| drain.last_poll).map(|poll| poll.open),
            threshold: options.min_open_connections,
            elapsed: drain.map(|drain| clock::now() - drain.started),
            last: machine.last().cloned(),
            envoy_hooks: state.envoy_hooks,
            counters: state.counters.clone(),
            admin_address: options.admin_address.to_string(),
            worker_running: state.worker_running,
        }
    }

    /// # Errors
    /// A sentence, when no drain would go on or start.
    pub fn health(&self) -> Result<(), &'static str> {
        let state = self.0.lock();
        match state.worker_running {
            _ if state.control_socket_lost => Err("no hook finds the control socket\n"),
            false => Err("the worker is down\n"),
            true => Ok(()),
        }
    }

    /// How the wait of a hook ends, once it does.
    pub fn wait_result(&self, hook: &Route) -> Option<WaitResult> {
        self.0.lock().wait_result(hook)
    }
}

impl WaiterTracker {
    /// A complete request of Envoy's hook has come, and waits for the drain of this number.
    pub fn envoy_hook(&self) -> (WaiterGuard, u64) {
        let mut state = self.0.lock();
        let awaited = state.machine.awaited_drain();
        state.envoy_hooks += 1;
        // Do not notify for every arrival: network clients could cause a wake-up storm.
        if state.machine.waiter_arrived(clock::now()) {
            state.step_due = true;
            self.0.notify(Change::EnvoyHookArrived);
        }
        (WaiterGuard { shared: Arc::clone(&self.0), waiter: Waiter::EnvoyHook }, awaited)
    }

    /// An exec hook has come to wait for the end of its drain.
    pub fn exec_hook(&self) -> WaiterGuard {
        let mut state = self.0.lock();
        state.exec_hooks += 1;
        state.hooks_expected = state.hooks_expected.saturating_sub(1);
        WaiterGuard { shared: Arc::clone(&self.0), waiter: Waiter::ExecHook }
    }

    /// From when on a hook is to be answered: its drain has ended, which is logged, or none will come.
    pub fn answer_due(&self, hook: &Route) -> Option<Timestamp> {
        let state = self.0.lock();
        let others_wait = !hook.is_envoy_hook() && state.envoy_hooks > 0;
        state.wait_result(hook).map(|result| match result {
            WaitResult::Ended(_) if others_wait => state.ended_at + HOOK_ANSWER_DELAY,
            _ => Timestamp::ZERO,
        })
    }

    pub fn set_control_socket_lost(&self, lost: bool) {
        self.0.lock().control_socket_lost = lost;
    }

    /// When the drain in progress started.
    pub fn drain_started(&self) -> Option<Timestamp> {
        self.0.lock().machine.drain().map(|drain| drain.started)
    }

    /// Whether no drain is in progress or has just ended, so that a client that has waited for the
    /// start timeout is answered with 503.
    pub fn no_drain_active(&self) -> bool {
        self.0.lock().machine.phase() == Phase::Idle
    }

    /// Counts `times` responses of the public port; `route`: to what, where that could be known.
    pub fn count_responses(&self, route: Option<PublicRoute>, status: Status, times: u64) {
        self.0.lock().counters.count_responses(route, status, times);
    }

    /// Counts a connection to the public port that was evicted or not served, for want of a slot.
    pub fn count_rejected_connection(&self) {
        self.0.lock().counters.connections_rejected += 1;
    }
}

impl Drop for WaiterGuard {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        match self.waiter {
            Waiter::ExecHook => state.exec_hooks -= 1,
            Waiter::EnvoyHook => {
                state.envoy_hooks -= 1;
                if state.envoy_hooks > 0 {
                    return;
                }
                state.machine.last_waiter_left(clock::now());
                state.step_due = true;
            }
        }
        self.shared.notify(Change::WaiterLeft);
    }
}

/// What the worker does next.
enum Task {
    Wait(Option<Timestamp>),
    Call { call: Call, drain: u64, options: Options, limit: Option<Duration> },
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
        match until {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(time) => {
                let left = time - clock::now();
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            }
        }
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

    /// Takes one step of the machine: what to log, and what to do next.
    fn advance(&self, event: &Event) -> (Vec<Record>, Task) {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.step_due = false;
        let now = clock::now();
        let Step { action, events } = state.machine.step(event, now);
        if *event == Event::Finished {
            state.ended_at = now;
        }
        for event in &events {
            state.counters.record(event);
            match event {
                DrainEvent::StartedBySignal => state.drain_started(),
                DrainEvent::OutcomeOutdated => state.stale_ready_file = state.ready_file(),
                _ => {}
            }
        }
        let records = state.log.record(&events, &state.machine, now);
        state.logging = !records.is_empty();
        // The machine asks for its action again in the next step.
        let stale = state.stale_ready_file.take().map(Task::RemoveReadyFile);
        (records, stale.unwrap_or_else(|| state.task(action, now)))
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
            // The end is logged before a waiter learns it.
            Some(_) if self.logging => None,
            Some(ended) => Some(WaitResult::Ended(ended.clone())),
            None if hook.is_envoy_hook() && self.machine.is_over() => Some(WaitResult::Stopping),
            None => None,
        }
    }

    fn drain_started(&mut self) {
        self.counters.error = None;
        // One that may end as the one before has keeps its file until it does not.
        let confirms = self.machine.drain().is_some_and(Drain::confirms_outcome);
        self.stale_ready_file = self.ready_file().filter(|_| !confirms);
    }

    fn ready_file(&self) -> Option<PathBuf> {
        self.machine.options().and_then(|options| options.ready_file.clone())
    }

    fn task(&self, action: Action, now: Timestamp) -> Task {
        if self.machine.is_over() {
            return Task::Stop;
        }
        let until = match action {
            Action::Call(call) => {
                return Task::Call {
                    call,
                    drain: self.machine.number(),
                    options: self.machine.options().unwrap_or(&self.options).clone(),
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
        Task::Wait([until, self.log.reminder(&self.machine)].into_iter().flatten().min())
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
        state.logging = false;
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
