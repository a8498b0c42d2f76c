//! How the demo is interrupted. The process that the user starts, the supervisor, receives the
//! signals. It runs the demo as a child in a process group of its own, and interrupts it by closing
//! its standard input. So the demo also ends when the supervisor is killed; it blocks no signals,
//! which its own children would inherit; and a terminal's Ctrl-C reaches none of them, so that they
//! end in the order that the demo chooses.

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

/// Runs this program with `argument` until it exits. Returns its exit status, and the signal that
/// interrupted it, if one did.
pub fn supervise(argument: &str) -> io::Result<(ExitStatus, Option<Signal>)> {
    let mut demo = Command::new(env::current_exe()?)
        .arg(argument)
        .process_group(0)
        .stdin(Stdio::piped())
        .spawn()?;
    let input = demo.stdin.take();
    // Not earlier, since the child would inherit the mask. A signal before this ends the supervisor,
    // which closes the child's input too.
    let signals = SigSet::from_iter(SIGNALS);
    signals.thread_block()?;
    let caught = Arc::new(OnceLock::new());
    let catching = Arc::clone(&caught);
    thread::spawn(move || {
        let _first = signals.wait().map(|signal| catching.set(signal));
        drop(input);
    });
    let status = demo.wait()?;
    // A demo that was killed leaves processes in its group; otherwise the group is empty.
    if let Ok(group) = demo.id().try_into() {
        let _empty = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    Ok((status, caught.get().copied()))
}

/// Whether the demo is to stop.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Waits in a thread for the supervisor to close the standard input.
    pub fn listen() -> Self {
        // This process group is in the background, and a terminal may be set to stop a background
        // process that writes to it.
        let _ = SigSet::from(Signal::SIGTTOU).thread_block();
        let interrupt = Self(Arc::default());
        let listening = interrupt.clone();
        thread::spawn(move || {
            while matches!(io::stdin().read(&mut [0; 64]), Ok(1..)) {}
            listening.0.store(true, Ordering::Relaxed);
        });
        interrupt
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error if it is set.
    pub fn check(&self) -> Result<(), String> {
        if self.is_set() { Err("interrupted".to_owned()) } else { Ok(()) }
    }

    /// Calls `probe` until it returns something. An error at the limit, or when interrupted.
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
