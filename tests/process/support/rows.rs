//! A table of cases, whose failures are told by their names.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::thread;

use super::lock;

/// Does it with each of these, many at a time, and tells which of them have failed.
pub fn each<T: Send>(rows: Vec<(String, T)>, run: impl Fn(&str, T) + Sync) {
    // Most of them only wait.
    at_a_time(16, rows, run);
}

/// The same with a few at a time, each of which has an Envoy of its own.
pub fn each_few<T: Send>(rows: Vec<(String, T)>, run: impl Fn(&str, T) + Sync) {
    at_a_time(4, rows, run);
}

fn at_a_time<T: Send>(most: usize, rows: Vec<(String, T)>, run: impl Fn(&str, T) + Sync) {
    let total = rows.len();
    assert!(total > 0, "nothing is tested");
    let rows = Mutex::new(rows.into_iter());
    let failed = Mutex::new(Vec::new());
    let next = || lock(&rows).next();
    thread::scope(|scope| {
        for _ in 0..most.min(total) {
            scope.spawn(|| {
                while let Some((name, row)) = next() {
                    let run = AssertUnwindSafe(|| run(&name, row));
                    if let Err(cause) = catch_unwind(run) {
                        lock(&failed).push((name, cause));
                    }
                }
            });
        }
    });
    let mut failed = lock(&failed);
    let names: Vec<_> = failed.iter().map(|(name, _)| name.clone()).collect();
    if let Some((_, cause)) = failed.pop() {
        eprintln!("{} of {total} failed: {names:#?}", names.len());
        resume_unwind(cause);
    }
}

/// Rows whose names are constants.
pub fn named<T>(rows: impl IntoIterator<Item = (&'static str, T)>) -> Vec<(String, T)> {
    rows.into_iter().map(|(name, row)| (name.to_owned(), row)).collect()
}
