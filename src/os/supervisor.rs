//! Threads that outlive their panics: the process must not die of a bug in one of them while
//! Envoy's own hook waits for it.

use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A panic at every start must not become a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs `work` in a thread of this name until it returns, again after each panic;
/// `restarted` is then called with the name.
///
/// # Errors
/// When the thread cannot be started.
pub fn supervise(
    name: &'static str,
    mut work: Work,
    restarted: fn(&'static str),
) -> io::Result<Thread> {
    spawn(
        name,
        Box::new(move || {
            // What `work` shares with others is behind locks whose poison is ignored.
            while catch_unwind(AssertUnwindSafe(&mut work)).is_err() {
                restarted(name);
                thread::sleep(PAUSE);
            }
            Ok(())
        }),
    )
}

/// What a supervised thread does. Boxed, so that the machinery of threads is there once.
pub type Work = Box<dyn FnMut() + Send>;

/// Runs `work` in a thread of this name, once.
///
/// # Errors
/// When the thread cannot be started.
pub fn spawn(name: &'static str, work: WorkOnce) -> io::Result<Thread> {
    thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// Polled this often: a channel would add 10 kB for what few sidecars use.
const POLL: Duration = Duration::from_millis(5);

/// Does `work` that cannot be given a timeout, in a thread that may outlive the call.
///
/// # Errors
/// As the work; `TimedOut` when it takes longer than `timeout`; when the thread cannot be started,
/// or panics.
pub fn bounded(name: &'static str, timeout: Duration, work: WorkOnce) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    let thread = spawn(name, work)?;
    while !thread.is_finished() {
        if Instant::now() >= deadline {
            return Err(ErrorKind::TimedOut.into());
        }
        thread::sleep(POLL);
    }
    let panicked = || Err(io::Error::other(format!("the thread {name} panicked")));
    thread.join().unwrap_or_else(|_| panicked())
}

/// Boxed as [`Work`] is.
pub type WorkOnce = Box<dyn FnOnce() -> io::Result<()> + Send>;

pub type Thread = JoinHandle<io::Result<()>>;

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
        thread.unwrap().join().unwrap().unwrap();
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [3, 2, 1]);
    }

    #[test]
    fn each_restart_is_reported_with_the_threads_name() {
        static RESTARTED: std::sync::Mutex<Vec<&str>> = std::sync::Mutex::new(Vec::new());
        let mut left = 2;
        let work = move || {
            left -= 1;
            assert!(left < 0, "not yet");
        };
        let restarted = |name| RESTARTED.lock().unwrap().push(name);
        supervise("reported", Box::new(work), restarted).unwrap().join().unwrap().unwrap();
        let reported = RESTARTED.lock().unwrap();
        assert_eq!(*reported, ["reported"; 2], "a thread that panics again and again is not seen");
    }

    #[test]
    fn a_pause_follows_each_panic() {
        let start = Instant::now();
        let mut left = 2;
        let work = move || {
            left -= 1;
            assert!(left < 0, "not yet");
        };
        supervise("test", Box::new(work), |_| {}).unwrap().join().unwrap().unwrap();
        let took = start.elapsed();
        let least = Duration::from_millis(200);
        assert!(took >= least, "two panics took {took:?}: one at every start is a busy loop");
    }

    #[test]
    fn bounded_work_ends_with_its_result_or_its_thread_or_its_time() {
        let minute = Duration::from_secs(60);
        assert!(bounded("test", minute, Box::new(|| Ok(()))).is_ok());
        let failed = bounded("test", minute, Box::new(|| Err(io::Error::other("no such name"))));
        assert_eq!(failed.unwrap_err().to_string(), "no such name");
        let died = bounded("test", minute, Box::new(|| panic!("as a bug would")));
        assert_eq!(died.unwrap_err().to_string(), "the thread test panicked");
        let (_sender, never) = std::sync::mpsc::channel::<()>();
        let late = move || never.recv().map_err(io::Error::other);
        let late = bounded("test", Duration::from_millis(20), Box::new(late));
        assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
    }
}
