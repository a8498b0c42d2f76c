//! Threads that outlive their panics: the process must not die of a bug in one of them while
//! Envoy's own hook waits for it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle};
use std::time::Duration;

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
}
