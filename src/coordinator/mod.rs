//! The drain's state, shared: one worker performs what the machine asks for; a [`DrainTrigger`] can
//! begin a drain, a [`DrainObserver`] can only look and wait, a [`WaiterTracker`] only says who waits and was answered.

use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use crate::cli::drain_request::DrainRequest;
use crate::cli::options::Options;
use crate::drain::{Action, Answer, Call, DrainStart, Ended, Event, Machine, Outline, Phase};
use crate::envoy::admin::Admin;
use crate::envoy::stats::StatsCoverage;
use crate::observe::drain_log::DrainLog;
use crate::observe::log::Record;
use crate::observe::status::{Counters, Snapshot};
use crate::os::clock;
use crate::os::clock::Timestamp;
use crate::os::sync::{Arc, Condvar, Mutex, MutexGuard};
use crate::route::{PublicRoute, Status};

/// A hook is answered when nobody else waits any more, but not later than this.
const HOOK_ANSWER_DELAY: Duration = Duration::from_secs(1);

/// A hook that has begun a drain comes to wait within milliseconds, or was no hook.
const HOOK_RETURN_WINDOW: Duration = Duration::from_secs(1);

/// Answering waiters takes microseconds; one that cannot be answered must not keep the process.
const FINAL_ANSWERS_TIMEOUT: Duration = Duration::from_secs(2);

/// The state of the sidecar and whoever works on it.
#[derive(Clone, Debug)]
pub struct Coordinator(Arc<Shared>);

/// The right to begin a drain.
#[derive(Clone, Debug)]
pub struct DrainTrigger(Arc<Shared>);

/// The right to look and to wait.
#[derive(Clone, Debug)]
pub struct DrainObserver(Arc<Shared>);

/// The right to say who waits and who was answered, at the public port and the control socket.
#[derive(Clone, Debug)]
pub struct WaiterTracker(Arc<Shared>);

/// Somebody who waits for the end of a drain, counted while this lives.
#[derive(Debug)]
pub struct WaiterGuard {
    shared: Arc<Shared>,
    is_hook: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Notified at every change that somebody may wait for.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    machine: Machine,
    story: DrainLog,
    /// The sidecar's own options, which a hook's override.
    options: Options,
    counters: Counters,
    last_error: Option<String>,
    visible: StatsCoverage,
    /// Who waits for the end of a drain: Envoy's hooks, and exec hooks.
    waiters: usize,
    hooks: usize,
    /// Exec hooks that have begun or joined a drain and are yet to come to wait, and when the
    /// latest of them was here.
    expected: usize,
    expected_at: Timestamp,
    stopping: bool,
    working: bool,
    /// The worker has lines to log of what has already happened.
    telling: bool,
}

/// What somebody who waited is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitResult {
    /// The drain has ended.
    Ended(Ended),
    /// The sidecar stops, and no drain goes on.
    Stopping,
    /// No client waits for it any more.
    NoWaiter,
    /// There was no drain of that number in this life of the sidecar.
    UnknownDrain,
}

/// Why a drain was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// Nobody waits for it any more.
    Expired,
    /// The sidecar stops.
    Stopping,
}

impl Coordinator {
    /// A manager with the sidecar's own options. `put_back`: see [`Machine::new`].
    #[must_use]
    pub fn new(options: Options, put_back: bool) -> Self {
        let state = State {
            machine: Machine::new(clock::now(), put_back),
            story: DrainLog::default(),
            options,
            counters: Counters::default(),
            last_error: None,
            visible: StatsCoverage::Everything,
            waiters: 0,
            hooks: 0,
            expected: 0,
            expected_at: Timestamp::ZERO,
            stopping: false,
            working: false,
            telling: false,
        };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// The right to begin a drain.
    #[must_use]
    pub fn trigger(&self) -> DrainTrigger {
        DrainTrigger(Arc::clone(&self.0))
    }

    /// The right to look and to wait.
    #[must_use]
    pub fn observer(&self) -> DrainObserver {
        DrainObserver(Arc::clone(&self.0))
    }

    /// The right to say who waits and who was answered.
    #[must_use]
    pub fn tracker(&self) -> WaiterTracker {
        WaiterTracker(Arc::clone(&self.0))
    }

    /// Does the work, until the manager was stopped and no drain goes on.
    pub fn work(&self, admin: &mut dyn Admin) {
        let _working = Working::begin(&self.0);
        let mut event = Event::Tick;
        loop {
            event = match self.0.advance(&event) {
                Task::Again => Event::Tick,
                Task::Tell(lines) => {
                    lines.iter().for_each(Record::emit);
                    self.0.lock().telling = false;
                    // Whoever is told the end finds it in the log.
                    self.0.changed.notify_all();
                    Event::Tick
                }
                Task::Ask { call, drain, options } => {
                    Event::Answer { drain, answer: admin.call(call, &options) }
                }
                Task::Finish(ready_file) => {
                    if let Some(path) = ready_file {
                        create_ready_file(&path);
                    }
                    Event::Finished
                }
                Task::Stop => return,
            };
        }
    }

    /// From now on no drain begins, and when none goes on the work is over.
    pub fn stop(&self) {
        self.0.lock().stopping = true;
        self.0.changed.notify_all();
    }

    /// Waits until the manager was stopped, its last drain has ended, and all who waited for that
    /// have been answered.
    pub fn wait_until_over(&self) {
        let shared = &self.0;
        let mut state = shared.lock();
        while !state.is_over() {
            state = shared.wait(state, None);
        }
        let deadline = clock::now() + FINAL_ANSWERS_TIMEOUT;
        loop {
            let comes = if state.expected > 0 {
                state.expected_at + HOOK_RETURN_WINDOW
            } else {
                Timestamp::ZERO
            };
            let until = if state.waiters + state.hooks > 0 || state.telling {
                deadline
            } else {
                comes.min(deadline)
            };
            if clock::now() >= until {
                return;
            }
            state = shared.wait(state, Some(until));
        }
    }
}

impl DrainTrigger {
    /// Begins a drain with the sidecar's options and the request's in their place, or joins the
    /// one that goes on.
    ///
    /// # Errors
    /// When the request has expired, or the sidecar stops.
    pub fn start(&self, request: &DrainRequest) -> Result<DrainStart, StartError> {
        let (begun, lines) = {
            let mut state = self.0.lock();
            let now = clock::now();
            if request.expires.is_some_and(|expires| now > expires) {
                return Err(StartError::Expired);
            }
            if state.is_over() {
                return Err(StartError::Stopping);
            }
            let State { machine, story, options, .. } = &mut *state;
            let options = options.with(&request.overrides);
            if let (Phase::Serving, Some(path)) = (machine.phase(), &options.ready_file) {
                remove_ready_file(path);
            }
            let begun = machine.begin(options, now);
            let lines = story.begun(begun, &request.overrides, machine, now);
            if let DrainStart::Started(_) = begun {
                state.last_error = None;
            }
            state.expected += 1;
            state.expected_at = now;
            (begun, lines)
        };
        // Before the worker has more to tell.
        lines.iter().for_each(Record::emit);
        self.0.changed.notify_all();
        Ok(begun)
    }
}

impl DrainObserver {
    /// How things stand.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.0.lock();
        let machine = &state.machine;
        let drain = machine.drain();
        let options = machine.options().unwrap_or(&state.options);
        Snapshot {
            phase: machine.phase(),
            drain: machine.number(),
            open: drain.and_then(|drain| drain.last_poll()).map(|poll| poll.open),
            threshold: options.min_open_connections,
            elapsed: drain.map(|drain| clock::now() - drain.started()),
            last: machine.last().cloned(),
            last_error: state.last_error.clone(),
            visible: state.visible,
            waiters: state.waiters,
            counters: state.counters,
            admin_address: options.admin_address.to_string(),
            working: state.working,
        }
    }

    /// Whether the worker is at work.
    #[must_use]
    pub fn is_worker_running(&self) -> bool {
        self.0.lock().working
    }

    /// Waits in the place of all who wait as Envoy's hook does, for the end of the drain that goes
    /// on or comes next.
    #[must_use]
    pub fn wait_for_envoy_hooks(&self) -> WaitResult {
        let mut state = self.0.lock();
        let awaited = state.machine.awaits();
        loop {
            if let Some(ended) = state.machine.end_of(awaited) {
                return WaitResult::Ended(ended.clone());
            }
            if state.is_over() {
                return WaitResult::Stopping;
            }
            if state.waiters == 0 {
                return WaitResult::NoWaiter;
            }
            state = self.0.wait(state, None);
        }
    }

    /// Waits in the place of exec hooks, for the end of the drain of this number and until everybody
    /// else has been answered, since the kubelet stops the sidecar when its hook returns.
    #[must_use]
    pub fn wait_for_exec_hooks(&self, number: u64) -> WaitResult {
        let mut state = self.0.lock();
        let verdict = loop {
            if let Some(ended) = state.machine.end_of(number) {
                break WaitResult::Ended(ended.clone());
            }
            if number > state.machine.number() {
                return WaitResult::UnknownDrain;
            }
            state = self.0.wait(state, None);
        };
        let deadline = clock::now() + HOOK_ANSWER_DELAY;
        while state.waiters > 0 && clock::now() < deadline {
            state = self.0.wait(state, Some(deadline));
        }
        verdict
    }
}

impl WaiterTracker {
    /// A complete request of Envoy's hook has come, and waits.
    #[must_use]
    pub fn envoy_hook(&self) -> WaiterGuard {
        let mut state = self.0.lock();
        state.waiters += 1;
        // Nobody is woken by most who come or leave, which the network can do very often.
        if state.machine.arrived(clock::now()) {
            self.0.changed.notify_all();
        }
        WaiterGuard { shared: Arc::clone(&self.0), is_hook: false }
    }

    /// An exec hook has come to wait for the end of its drain.
    #[must_use]
    pub fn exec_hook(&self) -> WaiterGuard {
        let mut state = self.0.lock();
        state.hooks += 1;
        state.expected = state.expected.saturating_sub(1);
        WaiterGuard { shared: Arc::clone(&self.0), is_hook: true }
    }

    /// Whether no drain goes on or has just ended, so that whoever has waited for the start
    /// timeout is let go.
    #[must_use]
    pub fn no_drain_active(&self) -> bool {
        self.0.lock().machine.phase() == Phase::Serving
    }

    /// So many requests to the public port were answered; `route`: for what, where that could be
    /// known.
    pub fn count_response(&self, route: Option<PublicRoute>, status: Status, times: u64) {
        let row = route.map_or(PublicRoute::ALL.len(), |route| route as usize);
        self.0.lock().counters.requests[row][status as usize] += times;
    }

    /// Somebody at the public port had to give way to others.
    pub fn count_rejected_connection(&self) {
        self.0.lock().counters.refused += 1;
    }
}

impl Drop for WaiterGuard {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if self.is_hook {
            state.hooks -= 1;
        } else {
            state.waiters -= 1;
            if state.waiters > 0 {
                return;
            }
            state.machine.all_left(clock::now());
        }
        self.shared.changed.notify_all();
    }
}

/// What the worker does next.
enum Task {
    Again,
    Tell(Vec<Record>),
    Ask { call: Call, drain: u64, options: Options },
    Finish(Option<std::path::PathBuf>),
    Stop,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere is no reason to stop: every change leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        until: Option<Timestamp>,
    ) -> MutexGuard<'a, State> {
        match until {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(time) => {
                let left = time - clock::now();
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Takes one step, or sleeps until there is one to take.
    fn advance(&self, event: &Event) -> Task {
        let mut guard = self.lock();
        let state = &mut *guard;
        let now = clock::now();
        let before = state.machine.outline();
        let action = state.machine.step(event, now);
        if *event != Event::Tick {
            state.note(before, event);
        }
        let lines = state.story.heard(before, event, &state.machine, now);
        if !lines.is_empty() {
            state.telling = true;
            return Task::Tell(lines);
        }
        if *event != Event::Tick {
            self.changed.notify_all();
        }
        let drain = state.machine.number();
        if state.is_over() {
            return Task::Stop;
        }
        let options = state.machine.options().unwrap_or(&state.options);
        let until = match action {
            Action::Call(call) => return Task::Ask { call, drain, options: options.clone() },
            Action::Finish(outcome) => {
                return Task::Finish(options.ready_file.clone().filter(|_| outcome.is_drained()));
            }
            Action::Sleep => None,
            Action::SleepUntil(time) => Some(time),
        };
        let until = [until, state.story.reminder(&state.machine)].into_iter().flatten().min();
        drop(self.wait(guard, until));
        Task::Again
    }
}

impl State {
    /// Whether the sidecar was stopped and no drain goes on.
    fn is_over(&self) -> bool {
        self.stopping && self.machine.drain().is_none()
    }

    /// Keeps what status and metrics show of an event.
    fn note(&mut self, before: Outline, event: &Event) {
        match event {
            Event::Answer { drain, answer } if *drain == before.number => match answer {
                Answer::Polled(poll) => {
                    self.visible = poll.visible;
                    self.counters.polls += 1;
                    self.last_error = None;
                }
                Answer::AdminError(fault) => {
                    if before.polls {
                        self.counters.polls += 1;
                        self.counters.poll_errors[fault.kind as usize] += 1;
                    }
                    self.last_error = Some(fault.text.clone());
                }
                Answer::Failed | Answer::ListenersDrain | Answer::Seen(_) | Answer::PutBack => {
                    self.last_error = None;
                }
            },
            Event::Finished => {
                if let Some(ended) = self.machine.last() {
                    self.counters.drains[ended.outcome.index()] += 1;
                }
            }
            Event::Answer { .. } | Event::Tick => {}
        }
    }
}

fn create_ready_file(path: &Path) {
    if let Err(error) = std::fs::File::create(path) {
        could_not("create", path, &error);
    }
}

/// Removes a file that an earlier life of the sidecar created.
pub fn remove_ready_file(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => could_not("remove", path, &error),
        _ => {}
    }
}

fn could_not(verb: &str, path: &Path, error: &io::Error) {
    Record::error(format!("could not {verb} the ready file"))
        .with("path", path.display().to_string())
        .with("error", error.to_string())
        .emit();
}

/// The worker at work, said so while this lives.
struct Working<'a>(&'a Shared);

impl<'a> Working<'a> {
    fn begin(shared: &'a Shared) -> Self {
        shared.lock().working = true;
        Self(shared)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.working = false;
        state.telling = false;
        drop(state);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
#[cfg(loom)]
mod model;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
