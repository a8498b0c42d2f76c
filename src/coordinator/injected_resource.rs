//! The file of `--injected-resource`, in which Envoy's overload manager reads how far a drain is.
//!
//! Envoy notices a file that is renamed into place, and not one that is written in place (measured). A
//! volume that hangs must not hold a drain up, so a thread writes, which lives for that alone; what it has
//! not written when the next value comes it need not write.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::ready_file::remove_if_there;
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
    /// What is to be written now.
    pub fn due(&mut self, machine: &Machine, now: Timestamp) -> Vec<Value> {
        let mut values = Vec::new();
        let path = machine.in_force().injected_resource.as_ref();
        let Some(hundredths) = machine.pressure(now) else { return values };
        let last = self.0.as_ref();
        // A hook may have named another file for its drain.
        if let Some(((other, 1..), _)) = last.filter(|((other, _), _)| Some(other) != path) {
            values.push((other.clone(), 0));
        }
        match path {
            None => self.0 = None,
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
    /// A value has come since the thread took those before.
    is_new: bool,
    /// Whether a thread writes them.
    is_written: bool,
    /// Files whose latest write has failed, which was logged: once, and again in a new drain.
    failing: Vec<PathBuf>,
    latest: u8,
}

impl Queue {
    /// Another value of the same file that still waits is not written.
    fn add(&mut self, values: Vec<Value>) {
        self.values.retain(|(waiting, _)| values.iter().all(|(path, _)| path != waiting));
        for (path, hundredths) in &values {
            if self.latest == 0 && *hundredths > 0 {
                self.failing.retain(|failing| failing != path);
            }
            self.latest = *hundredths;
        }
        self.values.extend(values);
        self.is_new = true;
    }

    /// A write has ended so. Returns what is to be logged of that.
    fn ended(&mut self, value: &Value, result: io::Result<()>) -> Option<Record> {
        let (path, _) = value;
        let failed_before = self.failing.contains(path);
        self.failing.retain(|failing| failing != path);
        let shown = path.display().to_string();
        let Err(error) = result else {
            return failed_before
                .then(|| Record::info(messages::PRESSURE_WRITTEN).with("path", shown));
        };
        self.failing.push(path.clone());
        if self.values.iter().all(|(waiting, _)| waiting != path) {
            self.values.push(value.clone());
        }
        let record = Record::warn(messages::PRESSURE_NOT_WRITTEN).with("path", shown);
        (!failed_before).then(|| record.with("error", error.to_string()))
    }
}

impl Writer {
    /// Has the values written.
    pub fn write(&self, values: Vec<Value>) {
        let Some(first) = values.first().cloned() else { return };
        let mut queue = self.lock();
        queue.add(values);
        self.0.1.notify_all();
        if std::mem::replace(&mut queue.is_written, true) {
            return;
        }
        drop(queue);
        let writer = self.clone();
        let work = move || {
            writer.write_all();
            Ok(())
        };
        if let Err(error) = spawn("injected-resource", Box::new(work)) {
            self.lock().is_written = false;
            self.ended(&first, Err(error));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes all values; those that fail again and again, until there are others of their files.
    fn write_all(&self) {
        for tried in 0_u32.. {
            let mut queue = self.lock();
            let values = std::mem::take(&mut queue.values);
            (queue.is_new, queue.is_written) = (false, !values.is_empty());
            drop(queue);
            if values.is_empty() {
                return;
            }
            for value in values {
                self.ended(&value, replace(&value.0, value.1));
            }
            let queue = self.lock();
            if !queue.values.is_empty() {
                let pause = if tried < FAST_RETRIES { RETRY } else { SLOW_RETRY };
                let _ = self.0.1.wait_timeout_while(queue, pause, |queue| !queue.is_new);
            }
        }
    }

    fn ended(&self, value: &Value, result: io::Result<()>) {
        let record = self.lock().ended(value, result);
        record.into_iter().for_each(Record::emit);
    }
}

/// Puts a new file in the place of the old one. Follows no link that is there, and replaces neither a
/// socket nor a device: by mistake the path may be that of Envoy's admin interface.
fn replace(path: &Path, hundredths: u8) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    let replaceable = |there: fs::Metadata| there.is_file() || there.is_symlink();
    if ![path, new].iter().all(|path| fs::symlink_metadata(path).map_or(true, replaceable)) {
        return Err(io::Error::other("there is something else than a regular file"));
    }
    remove_if_there(new)?;
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
    use crate::cli::options::{Options, Overrides};
    use crate::drain::{Action, Event, OutcomeKind};
    use crate::envoy::{Call, Reply};

    /// Waits until it is so.
    #[track_caller]
    fn wait(is_so: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while !is_so() {
            assert!(std::time::Instant::now() < deadline, "it is not so after 30 s");
            std::thread::yield_now();
        }
    }

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
        let mut written = vec![(0, injected.due(&machine, at(0)))];
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
            written.push((second, injected.due(&machine, at(second))));
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
        assert_eq!(injected.due(&machine, at(1)), [value("/hook", 0), value("/own", 0)]);
        assert_eq!(injected.due(&machine, at(1)), []);
        let none = Options { injected_resource: None, ..own.clone() };
        machine = Machine::new(none.clone(), &Overrides::default(), false, at(0));
        let mut injected = InjectedResource(Some((value("/hook", 100), at(0))));
        assert_eq!(injected.due(&machine, at(1)), [value("/hook", 0)]);
        assert_eq!(injected.due(&machine, at(1)), []);
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
        wait(|| !writer.lock().is_written);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1.00\n");
    }

    #[test]
    fn a_write_that_fails_is_tried_again_until_the_folder_comes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("late/drain");
        let writer = Writer::default();
        writer.write(vec![(path.clone(), 0)]);
        wait(|| !writer.lock().failing.is_empty());
        fs::create_dir(folder.path().join("late")).unwrap();
        wait(|| !writer.lock().is_written);
        assert_eq!(fs::read_to_string(&path).unwrap(), "0.00\n");
    }

    #[test]
    fn a_socket_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for (socket, file) in [("admin.sock", "admin.sock"), ("drain.new", "drain")] {
            let socket = folder.path().join(socket);
            let _admin = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            let error = replace(&folder.path().join(file), 7).unwrap_err().to_string();
            assert_eq!(error, "there is something else than a regular file");
            assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok(), "{socket:?} is gone");
        }
    }

    #[test]
    fn a_failure_is_logged_once_and_again_in_the_next_drain_and_after_a_success() {
        let mut queue = Queue::default();
        let failure = || Err(io::Error::other("no space"));
        let mut fails = |hundredths| {
            queue.add(vec![value("/r", hundredths)]);
            let is_news = queue.ended(&value("/r", hundredths), failure()).is_some();
            assert_eq!(queue.values, [value("/r", hundredths)], "it waits, the one before not");
            is_news
        };
        let logged = [0, 1, 2, 3, 0, 1].map(&mut fails);
        assert_eq!(logged, [true, true, false, false, false, true]);
        let mut logs = |path, result| queue.ended(&value(path, 0), result).is_some();
        assert!(logs("/other", failure()), "another file");
        assert!(logs("/r", Ok(())), "that it can be written again is logged");
        assert!(!logs("/r", Ok(())));
        assert!(logs("/r", failure()) && !logs("/other", failure()));
    }

    #[test]
    fn each_of_two_files_is_tried_until_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (late, there) = (folder.path().join("late/drain"), folder.path().join("drain"));
        let writer = Writer::default();
        writer.write(vec![(late.clone(), 0), (there.clone(), 0)]);
        wait(|| !writer.lock().failing.is_empty() && there.exists());
        fs::create_dir(folder.path().join("late")).unwrap();
        wait(|| !writer.lock().is_written);
        assert_eq!(fs::read_to_string(&late).unwrap(), "0.00\n");
    }

    #[test]
    fn what_was_written_for_a_hook_does_not_wake_a_drain_without_the_option() {
        let none = Options { injected_resource: None, ..options("/own", Some(200)) };
        let mut machine = Machine::new(none.clone(), &Overrides::default(), false, at(0));
        let mut injected = InjectedResource(Some((value("/hook", 0), at(0))));
        machine.start(none.clone(), at(50));
        machine.step(&Event::Tick, at(50));
        let result = Ok(Reply::HealthChecksFailed);
        machine.step(&Event::Reply { drain: 1, call: Call::FailHealthChecks, result }, at(50));
        for now in [60, 61, 100] {
            assert_eq!(injected.due(&machine, at(now)), []);
            assert_eq!(injected.next(&machine), None, "the worker would not sleep");
        }
    }

    #[test]
    fn an_envoy_that_is_gone_leaves_no_pressure_to_the_one_that_comes_back() {
        use crate::envoy::error::{AdminError, AdminErrorKind};
        let own = options("/r", None);
        let mut machine = Machine::new(own.clone(), &Overrides::default(), false, at(0));
        let mut injected = InjectedResource::default();
        machine.start(own.clone(), at(0));
        machine.step(&Event::Tick, at(0));
        let replied = |machine: &mut Machine, call, result, now| {
            machine.step(&Event::Reply { drain: 1, call, result }, at(now)).action
        };
        let failed = Ok(Reply::HealthChecksFailed);
        replied(&mut machine, Call::FailHealthChecks, failed, 0);
        assert_eq!(injected.due(&machine, at(0)), [value("/r", 100)]);
        for now in 2..10 {
            if let Action::Call(call) = machine.step(&Event::Tick, at(now)).action {
                let kind = AdminErrorKind::Refused;
                replied(&mut machine, call, Err(AdminError { kind, text: String::new() }), now);
            }
        }
        machine.step(&Event::Finished, at(10));
        assert_eq!(machine.last().map(|last| last.outcome.kind), Some(OutcomeKind::EnvoyGone));
        assert_eq!(injected.due(&machine, at(10)), [value("/r", 0)]);
    }

    #[test]
    fn a_write_that_fails_gives_way_to_the_next_and_to_a_folder_that_comes() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let writer = Writer::default();
        writer.write(vec![(missing.join("drain"), 1)]);
        wait(|| !writer.lock().failing.is_empty());
        fs::create_dir(&missing).unwrap();
        writer.write(vec![(missing.join("drain"), 2)]);
        wait(|| !writer.lock().is_written);
        assert_eq!(fs::read_to_string(missing.join("drain")).unwrap(), "0.02\n");
        assert!(writer.lock().failing.is_empty());
    }
}
