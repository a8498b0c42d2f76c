//! An end before the end. A process of its own, the watch, gets the signals; it runs the story as
//! its child and tells it by the end of its input. So the story hears of it even if the watch is
//! killed, blocks no signals, which its own children would inherit, and a terminal's Ctrl-C reaches
//! none of them: they end in the order that the story chooses.

use std::env;
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;

use crate::support::try_wait_for;

const SIGNALS: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Runs this program with `argument` to its end; gives how it ended, and the signal that came.
pub fn watch_over(argument: &str) -> io::Result<(ExitStatus, Option<Signal>)> {
    let mut story = Command::new(env::current_exe()?)
        .arg(argument)
        .process_group(0)
        .stdin(Stdio::piped())
        .spawn()?;
    let input = story.stdin.take();
    // Not before, for the child would inherit it. A signal until now ends the watch, and so the
    // child's input, too.
    let signals = SigSet::from_iter(SIGNALS);
    signals.thread_block()?;
    let caught = Arc::new(OnceLock::new());
    let catching = Arc::clone(&caught);
    thread::spawn(move || {
        let _first = signals.wait().map(|signal| catching.set(signal));
        drop(input);
    });
    let status = story.wait()?;
    // A story that was killed has left its group behind; else it is empty.
    if let Ok(group) = story.id().try_into() {
        let _empty = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    Ok((status, caught.get().copied()))
}

/// Whether the story is to come to an end.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens to the watch.
    pub fn listen() -> Self {
        // Its group is in the background, where a terminal may be set to stop whoever writes.
        let _ = SigSet::from(Signal::SIGTTOU).thread_block();
        let interrupt = Self(Arc::default());
        let listening = interrupt.clone();
        thread::spawn(move || {
            while matches!(io::stdin().read(&mut [0; 64]), Ok(1..)) {}
            listening.0.store(true, Ordering::Relaxed);
        });
        interrupt
    }

    /// Whether it has come.
    pub fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error if it has come.
    pub fn check(&self) -> Result<(), String> {
        if self.came() { Err("interrupted".to_owned()) } else { Ok(()) }
    }

    /// Asks `probe` until it has something; an error at the limit, or if the story is to end.
    pub fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        mut probe: impl FnMut() -> Option<T>,
    ) -> Result<T, String> {
        let found = try_wait_for(limit, || match self.check() {
            Ok(()) => probe().map(Ok),
            Err(why) => Some(Err(why)),
        });
        found.unwrap_or_else(|| Err(format!("waited {limit:?} for {what}")))
    }
}
