//! Signals, which a thread takes one by one, so that they interrupt no system call and end no drain.

use std::io;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// Those that would end the process, and that a stranger may send: a log rotation, a debugger, a shell.
/// And SIGCHLD: an orphan in its namespace becomes a child of PID 1.
const TAKEN: [Signal; 8] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCHLD,
];

/// Blocks them for this thread and all that it starts. PID 1, for which the kernel drops a signal that
/// is neither handled nor blocked, gets them too.
///
/// # Errors
/// What the kernel says, which has no reason to.
pub fn block() -> io::Result<SigSet> {
    let signals = SigSet::from_iter(TAKEN);
    signals.thread_block()?;
    Ok(signals)
}

/// Takes those that would end the process from a descriptor, and that of a terminal with a new size.
///
/// # Errors
/// When there are no descriptors left.
pub fn take() -> io::Result<SignalFd> {
    let mut signals = block()?;
    signals.remove(Signal::SIGCHLD);
    signals.add(Signal::SIGWINCH);
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Removes children that have ended.
pub fn reap() {
    let next = || waitpid(None, Some(WaitPidFlag::WNOHANG));
    while !matches!(next(), Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD)) {}
}
