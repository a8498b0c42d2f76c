//! The open connections of a drain over its time, for the plot of the status page.

use std::time::Duration;

use crate::os::clock::Timestamp;

/// So many samples are kept; more are thinned out, so that they always cover the whole drain.
const MAX_SAMPLES: usize = 256;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// When the drain started.
    started: Timestamp,
    /// The time since then, and the open connections.
    samples: Vec<(Duration, u64)>,
    /// Of so many polls one is kept.
    stride: u32,
    skipped: u32,
}

impl History {
    pub fn of_drain(started: Timestamp) -> Self {
        Self { started, stride: 1, ..Self::default() }
    }

    pub fn add(&mut self, open: u64, now: Timestamp) {
        self.skipped += 1;
        if self.skipped < self.stride {
            return;
        }
        self.skipped = 0;
        self.samples.push((now - self.started, open));
        if self.samples.len() == MAX_SAMPLES {
            let mut index = 0;
            self.samples.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride = self.stride.saturating_mul(2);
        }
    }

    /// The most that were open at once.
    pub fn max(&self) -> u64 {
        self.samples.iter().map(|(_, open)| *open).max().unwrap_or(0)
    }

    /// What was open in each of so many parts of the time up to `end`: the most that was counted in it,
    /// or the last count before; none before the first.
    pub fn columns(&self, columns: usize, end: Duration) -> Vec<Option<u64>> {
        let width = (end.as_millis() / columns.max(1) as u128 + 1).max(1);
        let mut samples = self.samples.iter().peekable();
        let mut last = None;
        let column = |column: usize| {
            let until = width * (column as u128 + 1);
            let mut most = None;
            while let Some((_, open)) = samples.next_if(|(at, _)| at.as_millis() < until) {
                most = most.max(Some(*open));
                last = Some(*open);
            }
            most.or(last)
        };
        (0..columns).map(column).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_column_has_the_most_of_its_time_and_a_gap_the_count_before() {
        let mut history = History::of_drain(s(10));
        for (at, open) in [(13, 5), (14, 7), (19, 2)] {
            history.add(open, s(at));
        }
        let end = Duration::from_millis(9_999);
        let some = Some;
        assert_eq!(history.columns(5, end), [None, some(5), some(7), some(7), some(2)]);
        assert_eq!(history.max(), 7);
        assert_eq!(history.columns(0, end), []);
        assert_eq!(History::default().columns(2, Duration::ZERO), [None, None]);
    }

    #[test]
    fn a_long_drain_is_covered_from_its_start_with_few_samples() {
        let mut history = History::of_drain(s(0));
        for second in 0..100_000 {
            history.add(100_000 - second, s(second));
            assert!(history.samples.len() < MAX_SAMPLES);
        }
        assert_eq!(history.max(), 100_000);
        let columns = history.columns(10, Duration::from_secs(100_000));
        for (index, open) in columns.iter().enumerate() {
            let at = 100_000 - index as u64 * 10_000;
            let open = open.expect("a count");
            assert!(open <= at && open + 1_000 > at, "{open} in column {index}");
        }
    }
}
