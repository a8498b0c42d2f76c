//! A value that one thread leaves for another.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A place for one value; clones are the same place.
#[derive(Debug)]
pub struct Slot<T>(Arc<(Mutex<Option<T>>, Condvar)>);

impl<T> Slot<T> {
    /// An empty place.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new((Mutex::new(None), Condvar::new())))
    }

    /// Leaves the value.
    pub fn put(&self, value: T) {
        // Whoever panicked has not left half a value.
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        self.0.1.notify_all();
    }

    /// Takes the value, as soon as it is there, within this time.
    #[must_use]
    pub fn take_within(&self, time: Duration) -> Option<T> {
        let value = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(value, time, |value| value.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.take()
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_taken_once_and_waited_for_no_longer_than_allowed() {
        let slot = Slot::new();
        assert_eq!(slot.take_within(Duration::ZERO), None);
        let other = slot.clone();
        let thread = std::thread::spawn(move || other.put(7));
        assert_eq!(slot.take_within(Duration::from_secs(60)), Some(7));
        thread.join().unwrap();
        assert_eq!(slot.take_within(Duration::ZERO), None);
    }
}
