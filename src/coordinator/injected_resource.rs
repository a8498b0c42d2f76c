//! The file of `--injected-resource`, in which Envoy's overload manager reads how far a drain is.
//!
//! Envoy notices a file that is renamed into place, and not one that is written in place (measured). A
//! volume that hangs must not hold a drain up, so a thread writes, which lives for that alone; what it has
//! not written when the next value comes it need not write.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::cli::options::Options;
use crate::drain::Machine;
use crate::observe::{log::Record, messages};
use crate::os::clock::Timestamp;
use crate::os::supervisor::spawn;

/// Envoy's overload manager reads its resources this often by default.
const INTERVAL: Duration = Duration::from_secs(1);

/// A write that has failed is tried again this often at first, and then more slowly: the volume may come
/// back, and an Envoy that is in service again must not go on closing connections.
const RETRY: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 5_000 });
const FAST_RETRIES: u32 = 60;
const SLOW_RETRY: Duration = Duration::from_secs(60);

/// A file, and what it is to hold, in hundredths.
pub type Value = (PathBuf, u8);

/// What was last handed to the writer, and when.
#[derive(Debug, Default)]
pub struct InjectedResource(Option<(Value, Timestamp)>);

impl InjectedResource {
    /// What is to be written now. `own`: the sidecar's options, which hold while no drain's do.
    pub fn due(&mut self, machine: &Machine, own: &Options, now: Timestamp) -> Vec<Value> {
        let mut values = Vec::new();
        let path = machine.options().unwrap_or(own).injected_resource.as_ref();
        let Some(hundredths) = machine.pressure(now) else { return values };
        let last = self.0.as_ref();
        // A hook may have named another file for its drain.
        if let Some(((other, 1..), _)) = last.filter(|((other, _), _)| Some(other) != path) {
            values.push((other.clone(), 0));
        }
        match path {
            None if !values.is_empty() => self.0 = None,
            None => {}
            Some(path) => {
                let is_due = last.is_none_or(|((last, written), at)| {
                    let grows = *written > 0 && hundredths > 0;
                    last != path || *written != hundredths && (!grows || *at + INTERVAL <= now)
                });
                if is_due {
                    let value = (path.clone(), hundredths);
                    values.push(value.clone());
                    self.0 = Some((value, now));
                }
            }
        }
        values
    }

    /// When something is to be written next, if nothing else happens before.
    pub fn next(&self, machine: &Machine) -> Option<Timestamp> {
        let ((_, hundredths), at) = self.0.as_ref()?;
        machine
            .drain()
            .and_then(|drain| drain.pressure_grows(*hundredths))
            .map(|grows| grows.max(*at + INTERVAL))
    }

    /// What was last to be written, in hundredths.
    pub fn hundredths(&self) -> Option<u8> {
        self.0.as_ref().map(|((_, hundredths), _)| *hundredths)
    }
}

/// Writes values, each after the one before.
#[derive(Clone, Debug, Default)]
pub struct Writer(Arc<(Mutex<Queue>, Condvar)>);

#[derive(Debug, Default)]
struct Queue {
    values: Vec<Value>,
    /// Whether a thread writes them.
    is_written: bool,
    /// Whether the latest write has failed, and whether that was logged: once, and again in a new drain.
    has_failed: bool,
    is_logged: bool,
    latest: u8,
}

impl Queue {
    /// Another value of the same file that still waits is not written.
    fn add(&mut self, values: Vec<Value>) {
        self.values.retain(|(waiting, _)| values.iter().all(|(path, _)| path != waiting));
        for (_, hundredths) in &values {
            self.is_logged &= self.latest > 0 || *hundredths == 0;
            self.latest = *hundredths;
        }
        self.values.extend(values);
    }

    /// A write has failed. Returns whether that is to be logged.
    fn failed(&mut self) -> bool {
        self.has_failed = true;
        !std::mem::replace(&mut self.is_logged, true)
    }

    /// A write has succeeded. Returns whether that is to be logged.
    fn succeeded(&mut self) -> bool {
        self.is_logged = false;
        std::mem::take(&mut self.has_failed)
    }
}

impl Writer {
    /// Has the values written.
    pub fn write(&self, values: Vec<Value>) {
        if values.is_empty() {
            return;
        }
        let mut queue = self.lock();
        queue.add(values);
        self.0.1.notify_all();
        if std::mem::replace(&mut queue.is_written, true) {
            return;
        }
        drop(queue);
        let writer = self.clone();
        let work = move || {
            while let Some((path, hundredths)) = writer.next() {
                writer.replace(&path, hundredths);
            }
            Ok(())
        };
        if let Err(error) = spawn("injected-resource", Box::new(work)) {
            self.lock().is_written = false;
            self.failed(Path::new("-"), &error);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Value> {
        let mut queue = self.lock();
        let next = (!queue.values.is_empty()).then(|| queue.values.remove(0));
        queue.is_written = next.is_some();
        next
    }

    /// Tries until it succeeds, or there is another value to be written.
    fn replace(&self, path: &Path, hundredths: u8) {
        for tried in 0_u32.. {
            match replace(path, hundredths) {
                Ok(()) => {
                    let was_failing = self.lock().succeeded();
                    if was_failing {
                        let path = path.display().to_string();
                        Record::info(messages::PRESSURE_WRITTEN).with("path", path).emit();
                    }
                    return;
                }
                Err(error) => self.failed(path, &error),
            }
            let pause = if tried < FAST_RETRIES { RETRY } else { SLOW_RETRY };
            let is_latest = |queue: &mut Queue| queue.values.is_empty();
            let waited = self.0.1.wait_timeout_while(self.lock(), pause, is_latest);
            if !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
                return;
            }
        }
    }

    fn failed(&self, path: &Path, error: &io::Error) {
        let is_news = self.lock().failed();
        if is_news {
            Record::warn(messages::PRESSURE_NOT_WRITTEN)
                .with("path", path.display().to_string())
                .with("error", error.to_string())
                .emit();
        }
    }
}

/// Puts a new file in the place of the old one. Follows no link that is there.
fn replace(path: &Path, hundredths: u8) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    match fs::remove_file(new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::create_new(new)?;
    // Envoy runs as another user, whatever this process's umask is.
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(text(hundredths).as_bytes())?;
    fs::rename(new, path)
}

/// `0.07`, with the end of the line.
fn text(hundredths: u8) -> String {
    format!("{}.{:02}\n", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::options::Overrides;
    use crate::drain::{Action, Event};
    use crate::envoy::{Call, Reply};

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    fn options(path: &str, timeout: Option<u64>) -> Options {
        Options {
            injected_resource: Some(path.into()),
            drain_timeout: timeout.map(Duration::from_secs),
            check_delay: Duration::from_secs(1000),
            ..Options::default()
        }
    }

    /// What is written at these seconds of a drain whose health checks are failed at 2 s.
    fn written(own: &Options, drain: Options, seconds: &[u64]) -> Vec<(u64, Vec<Value>)> {
        let mut machine = Machine::new(own.clone(), &Overrides::default(), false, at(0));
        let mut injected = InjectedResource::default();
        let mut written = vec![(0, injected.due(&machine, own, at(0)))];
        machine.start(drain, at(0));
        for &second in seconds {
            while second >= 2
                && let Action::Call(call) = machine.step(&Event::Tick, at(second)).action
            {
                let reply = match call {
                    Call::FailHealthChecks => Reply::HealthChecksFailed,
                    Call::ReadAccepted => Reply::Accepted(None),
                    _ => break,
                };
                machine.step(&Event::Reply { drain: 1, call, result: Ok(reply) }, at(second));
            }
            written.push((second, injected.due(&machine, own, at(second))));
        }
        written.retain(|(_, values)| !values.is_empty());
        written
    }

    fn value(path: &str, hundredths: u8) -> Value {
        (path.into(), hundredths)
    }

    #[test]
    fn it_grows_with_the_time_of_the_drain_from_the_moment_that_health_checks_are_failed() {
        let own = options("/r", Some(200));
        let found = written(&own, own.clone(), &[1, 2, 3, 4, 5, 100, 199, 300]);
        let expected = [(0, 0), (2, 1), (4, 2), (100, 50), (199, 99)];
        let expected = expected.map(|(second, hundredths)| (second, vec![value("/r", hundredths)]));
        assert_eq!(found, expected);
    }

    #[test]
    fn it_is_written_no_more_often_than_envoy_reads_it() {
        let own = options("/r", Some(10));
        let found = written(&own, own.clone(), &[2, 2, 3, 3, 4]);
        let expected = [(0, 0), (2, 20), (3, 30), (4, 40)];
        let expected = expected.map(|(second, hundredths)| (second, vec![value("/r", hundredths)]));
        assert_eq!(found, expected);
    }

    #[test]
    fn without_a_timeout_it_is_full_at_once() {
        let own = options("/r", None);
        let found = written(&own, own.clone(), &[1, 2, 3]);
        assert_eq!(found, [(0, vec![value("/r", 0)]), (2, vec![value("/r", 100)])]);
    }

    #[test]
    fn the_file_of_a_hook_holds_for_its_drain_alone() {
        let own = options("/own", None);
        let mut machine = Machine::new(own.clone(), &Overrides::default(), false, at(0));
        let mut injected = InjectedResource(Some((value("/hook", 100), at(0))));
        assert_eq!(injected.due(&machine, &own, at(1)), [value("/hook", 0), value("/own", 0)]);
        assert_eq!(injected.due(&machine, &own, at(1)), []);
        let none = Options { injected_resource: None, ..own.clone() };
        machine = Machine::new(none.clone(), &Overrides::default(), false, at(0));
        let mut injected = InjectedResource(Some((value("/hook", 100), at(0))));
        assert_eq!(injected.due(&machine, &none, at(1)), [value("/hook", 0)]);
        assert_eq!(injected.due(&machine, &none, at(1)), []);
    }

    #[test]
    fn a_file_is_replaced_and_a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drain");
        let target = folder.path().join("target");
        fs::write(&target, "another's").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        std::os::unix::fs::symlink(&target, folder.path().join("drain.new")).unwrap();
        for (hundredths, text) in [(0, "0.00\n"), (7, "0.07\n"), (100, "1.00\n")] {
            replace(&path, hundredths).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        }
        assert_eq!(fs::read_to_string(&target).unwrap(), "another's");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "a file is left");
    }

    #[test]
    fn the_latest_value_is_written_and_the_thread_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drain");
        let writer = Writer::default();
        for hundredths in 0..=100 {
            writer.write(vec![(path.clone(), hundredths)]);
        }
        while writer.lock().is_written {
            std::thread::yield_now();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "1.00\n");
    }

    #[test]
    fn a_write_that_fails_is_tried_again_until_the_folder_comes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("late/drain");
        let writer = Writer::default();
        writer.write(vec![(path.clone(), 0)]);
        while !writer.lock().has_failed {
            std::thread::yield_now();
        }
        fs::create_dir(folder.path().join("late")).unwrap();
        while writer.lock().is_written {
            std::thread::yield_now();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "0.00\n");
    }

    #[test]
    fn a_failure_is_logged_once_and_again_in_the_next_drain_and_after_a_success() {
        let mut queue = Queue::default();
        let mut fails = |hundredths| {
            queue.add(vec![value("/r", hundredths)]);
            assert_eq!(queue.values, [value("/r", hundredths)], "what waits is replaced");
            queue.failed()
        };
        let logged = [0, 1, 2, 3, 0, 1].map(&mut fails);
        assert_eq!(logged, [true, true, false, false, false, true]);
        assert!(queue.succeeded(), "that it can be written again is logged");
        assert!(!queue.succeeded());
        assert!(queue.failed());
    }

    #[test]
    fn a_write_that_fails_gives_way_to_the_next_and_to_a_folder_that_comes() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let writer = Writer::default();
        writer.write(vec![(missing.join("drain"), 1)]);
        while !writer.lock().has_failed {
            std::thread::yield_now();
        }
        fs::create_dir(&missing).unwrap();
        writer.write(vec![(missing.join("drain"), 2)]);
        while writer.lock().is_written {
            std::thread::yield_now();
        }
        assert_eq!(fs::read_to_string(missing.join("drain")).unwrap(), "0.02\n");
        assert!(!writer.lock().has_failed);
    }
}
