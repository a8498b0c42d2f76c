//! A table of cases, each of which is tried, and those that fail are named.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::thread;

use super::lock;

/// Runs each case, many at a time, for most of them only wait.
pub fn for_each_case<T: Send>(cases: Vec<(String, T)>, run: impl Fn(&str, T) + Sync) {
    at_a_time(16, cases, run);
}

/// The same with a few at a time, each of which has an Envoy of its own.
pub fn for_each_case_with_envoy<T: Send>(cases: Vec<(String, T)>, run: impl Fn(&str, T) + Sync) {
    at_a_time(4, cases, run);
}

fn at_a_time<T: Send>(max: usize, cases: Vec<(String, T)>, run: impl Fn(&str, T) + Sync) {
    let total = cases.len();
    assert!(total > 0, "nothing is tested");
    let cases = Mutex::new(cases.into_iter());
    let failed = Mutex::new(Vec::new());
    let next = || lock(&cases).next();
    thread::scope(|scope| {
        for _ in 0..max.min(total) {
            scope.spawn(|| {
                while let Some((name, case)) = next() {
                    let run = AssertUnwindSafe(|| run(&name, case));
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

/// Cases whose names are constants.
pub fn named<T>(cases: impl IntoIterator<Item = (&'static str, T)>) -> Vec<(String, T)> {
    cases.into_iter().map(|(name, case)| (name.to_owned(), case)).collect()
}
