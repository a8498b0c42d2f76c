//! Threads that outlive their panics: the process must not die of a bug in one of them while
//! Envoy's own hook waits for it.

use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A panic at every start must not become a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs `work` in a thread of this name until it returns, again after each panic, of which
/// `restarted` is told.
///
/// # Errors
/// When the thread cannot be started.
pub fn supervise(
    name: &'static str,
    mut work: Work,
    restarted: fn(&'static str),
) -> io::Result<JoinHandle<()>> {
    spawn(
        name,
        Box::new(move || {
            // What `work` shares with others is behind locks whose poison is ignored.
            while catch_unwind(AssertUnwindSafe(&mut work)).is_err() {
                restarted(name);
                thread::sleep(PAUSE);
            }
        }),
    )
}

/// What a supervised thread does. Boxed, so that the machinery of threads is there once.
pub type Work = Box<dyn FnMut() + Send>;

/// Runs `work` in a thread of this name, once.
///
/// # Errors
/// When the thread cannot be started.
pub fn spawn(name: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// What is waited for is polled this often: a channel in the place of that would be 10 kB of the
/// program, for files and names that hardly any sidecar has.
const POLL: Duration = Duration::from_millis(5);

/// Does `work` that cannot be given a timeout, in a thread that may outlive the call.
///
/// # Errors
/// As the work; `TimedOut` when it takes longer than `timeout`; when the thread cannot be started,
/// or panics.
pub fn bounded<T: Send + Sync + 'static>(
    name: &'static str,
    timeout: Duration,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let deadline = Instant::now() + timeout;
    let result = Arc::new(OnceLock::new());
    let its_result = Arc::clone(&result);
    // It is set once only.
    let thread = spawn(name, Box::new(move || drop(its_result.set(work()))))?;
    while !thread.is_finished() {
        if Instant::now() >= deadline {
            return Err(ErrorKind::TimedOut.into());
        }
        thread::sleep(POLL);
    }
    let result = Arc::into_inner(result).and_then(OnceLock::into_inner);
    result.unwrap_or_else(|| Err(io::Error::other(format!("the thread {name} panicked"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_panics_is_done_again_until_it_returns() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut left = 3;
        let work = move || {
            sender.send(left).unwrap();
            left -= 1;
            assert!(left == 0, "not yet");
        };
        let thread = supervise("test", Box::new(work), |_| {});
        thread.unwrap().join().unwrap();
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [3, 2, 1]);
    }

    #[test]
    fn bounded_work_ends_with_its_result_or_its_thread_or_its_time() {
        let minute = Duration::from_secs(60);
        assert_eq!(bounded("test", minute, || Ok(7)).unwrap(), 7);
        let failed = bounded::<()>("test", minute, || Err(io::Error::other("no such name")));
        assert_eq!(failed.unwrap_err().to_string(), "no such name");
        let died = bounded::<()>("test", minute, || panic!("as a bug would"));
        assert_eq!(died.unwrap_err().to_string(), "the thread test panicked");
        let (_sender, never) = std::sync::mpsc::channel::<()>();
        let late = move || never.recv().map_err(io::Error::other);
        let late = bounded("test", Duration::from_millis(20), late);
        assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
    }
}
