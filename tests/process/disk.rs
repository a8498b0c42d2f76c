//! A disk that is full, read-only or missing, and a log that no client reads: a drain ends
//! nevertheless, and what failed is logged.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use crate::support::log::Record;
use crate::support::prelude::*;

#[test]
fn a_drain_ends_though_its_ready_file_cannot_be_created() {
    if !can_unshare("--mount") {
        return;
    }
    let (tmpfs, is_there) = ("mount -t tmpfs tmpfs", true);
    let not_created = |error| Some((READY_FILE_NOT_CREATED, error));
    let not_removed = |error| Some((READY_FILE_NOT_REMOVED, error));
    // What is mounted at `.`, what is logged, and whether a ready file is there at the end.
    let rows = [
        (
            "no room for a file",
            (format!("{tmpfs} -o nr_inodes=1 ."), not_created("No space left"), !is_there),
        ),
        ("no room but for an empty file", {
            (format!("{tmpfs} -o size=4k .; head -c 4096 /dev/zero > ./full"), None, is_there)
        }),
        (
            "read-only",
            (format!("{tmpfs} -o ro ."), not_created("Read-only file system"), !is_there),
        ),
        ("read-only, and one is there", {
            let script = format!("{tmpfs} .; touch ./ready; mount -o remount,ro .");
            (script, not_removed("Read-only file system"), is_there)
        }),
        ("a directory", {
            (format!("{tmpfs} .; mkdir ./ready"), not_created("Is a directory"), is_there)
        }),
        ("no such directory", ("rmdir .".to_owned(), not_created("No such file"), !is_there)),
    ];
    for_each_case(named(rows), |name, (script, failure, is_there)| {
        let (admin, dir) = (FakeAdmin::unix(), temp_dir("disk"));
        let disk = dir.path().join("disk");
        std::fs::create_dir(&disk).expect("make a directory");
        let script = script.replace(" .", &format!(" {}", disk.display()));
        let script = format!("set -e; {script}; exec \"$@\"");
        let ready = disk.join("ready");
        let ready_file = format!("--ready-file={}", ready.display());
        let sidecar = Sidecar::builder()
            .beside(&admin)
            .arg(ready_file)
            .under(["unshare", "--mount", "sh", "-c", &script, "sh"])
            .start();
        let waiter = sidecar.control().start_get("/shutdown");
        let mut hook = start_drain(&sidecar, &admin);
        assert!(waiter.is_waiting(), "{name}");
        finish_drain(&admin, &mut hook);
        assert_eq!(waiter.response(), OK, "{name}");
        if let Some((message, error)) = failure {
            let record = logged(message).with("level", "error").with("path", ready.display());
            sidecar.wait_log(record.containing("error", error));
        } else {
            sidecar.assert_not_logged(Expected::default().with("level", "error"));
        }
        sidecar.wait_log(outcome("drained"));
        let inside = PathBuf::from(format!("/proc/{}/root{}", sidecar.pid(), ready.display()));
        assert_eq!(inside.exists(), is_there, "{name}");
    });
}

#[test]
fn a_drain_ends_though_its_log_cannot_be_written() {
    let admin = FakeAdmin::unix();
    let mut sidecar = Sidecar::builder()
        .beside(&admin)
        .under(["sh", "-c", "exec \"$@\" >/dev/full", "sh"])
        .start();
    let mut hook = start_drain(&sidecar, &admin);
    finish_drain(&admin, &mut hook);
    sidecar.signal(Signal::SIGTERM);
    let exit = sidecar.wait();
    assert_eq!((exit.code, exit.output.as_str()), (Some(0), ""));
}

#[test]
fn what_is_put_in_the_ready_files_place_during_a_drain_is_replaced_by_it() {
    for_each_case(named([("a FIFO", true), ("a link", false)]), |name, is_fifo| {
        let (admin, dir) = (FakeAdmin::unix(), temp_dir("ready"));
        let (ready, other) = (dir.path().join("ready"), dir.path().join("other"));
        std::fs::write(&other, "another program's").expect("write a file");
        let ready_file = format!("--ready-file={}", ready.display());
        let sidecar = Sidecar::builder().beside(&admin).arg(ready_file).start();
        let mut hook = start_drain(&sidecar, &admin);
        if is_fifo {
            nix::unistd::mkfifo(&ready, nix::sys::stat::Mode::S_IRWXU).expect("make a FIFO");
        } else {
            std::os::unix::fs::symlink(&other, &ready).expect("make a link");
        }
        finish_drain(&admin, &mut hook);
        let there = std::fs::symlink_metadata(&ready).expect("the ready file");
        assert!(there.is_file(), "{name}: {there:?}");
        let kept = std::fs::read_to_string(&other).expect("read a file");
        assert_eq!(kept, "another program's", "{name}: the link was followed");
        sidecar.assert_not_logged(READY_FILE_NOT_CREATED);
    });
}

/// What a pipe takes at once, and in one piece.
const PIECE: usize = 4096;

/// A pipe that is read only when the test does.
struct Pipe {
    /// Both of its ends.
    file: File,
    dir: TempDir,
    /// What was read, but for the end of an incomplete line.
    lines: Vec<String>,
    incomplete: Vec<u8>,
}

impl Pipe {
    fn new() -> Self {
        let dir = temp_dir("pipe");
        let path = dir.path().join("pipe");
        mkfifo(&path, Mode::S_IRWXU).expect("make a pipe");
        let flags = OFlag::O_NONBLOCK.bits();
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        Self { file: file.expect("open a pipe"), dir, lines: Vec::new(), incomplete: Vec::new() }
    }

    /// A wrapper that has the program write to it: `>` is its stdout, `2>` its stderr.
    fn wrapper(&self, output: &str) -> [String; 4] {
        let script = format!("exec \"$@\" {output}{}", self.dir.path().join("pipe").display());
        ["sh", "-c", &script, "sh"].map(str::to_owned)
    }

    /// Leaves room for this many pieces.
    fn fill_but_for(&mut self, pieces: usize) {
        for length in [PIECE, 1] {
            while self.file.write(&b"\n".repeat(length)).is_ok() {}
        }
        for _ in 0..pieces {
            self.file.read_exact(&mut [0; PIECE]).expect("read what was written");
        }
    }

    /// Reads what is there.
    fn read(&mut self) {
        let mut buffer = [0; PIECE];
        while let Ok(length @ 1..) = self.file.read(&mut buffer) {
            self.incomplete.extend_from_slice(&buffer[..length]);
        }
        while let Some(end) = self.incomplete.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.incomplete.drain(..=end).collect();
            let line = String::from_utf8(line).expect("text").trim_end().to_owned();
            self.lines.extend(Some(line).filter(|line| !line.is_empty()));
        }
    }

    /// Reads until there is a record of this.
    #[track_caller]
    fn wait_log(&mut self, expected: impl Into<Expected>) -> Record {
        let expected = expected.into();
        let found = try_wait_for(PATIENCE, || {
            self.read();
            let mut records = self.lines.iter().filter_map(|line| Record::parse(line));
            records.find(|record| expected.matches(record))
        });
        found.unwrap_or_else(|| panic!("not in the pipe: {expected:?}; {:#?}", self.lines))
    }
}

/// Excludes that make the record of a drain's start longer than two pieces.
fn long_excludes() -> Vec<String> {
    (0..60).map(|n| format!("--exclude=listener_{n:03}.{}", "x".repeat(180))).collect()
}

#[test]
fn a_drain_ends_though_its_log_is_a_full_pipe_that_no_client_reads() {
    // The room that is left in the pipe, the options of the hook, and whether a line is cut short.
    let rows = named([
        ("no room", (0, Vec::new(), false)),
        ("no room for a long line", (0, long_excludes(), false)),
        ("room for a piece of a long line", (1, long_excludes(), true)),
    ]);
    for_each_case(rows, |name, (room, excludes, is_cut)| {
        let (admin, mut pipe) = (FakeAdmin::unix(), Pipe::new());
        // A poll that a busy machine makes slow is no line more, up to a tenth of this.
        let builder = Sidecar::builder().beside(&admin).arg("--check-interval=2s");
        let sidecar = builder.under(pipe.wrapper(">")).start();
        let started = pipe.wait_log(STARTED);
        let port = started.get("serving").and_then(|at| at.rsplit(':').next()?.parse().ok());
        let public = Client::of_port(port.expect("a port"));
        pipe.wait_log(ENVOY_RESPONDS);
        pipe.fill_but_for(room);
        let start = Instant::now();
        admin.set_open(1);
        let mut hook = sidecar.hook(&excludes.iter().map(String::as_str).collect::<Vec<_>>());
        wait_until("the drain to begin though its log is not read", || {
            admin.count(Route::Fail) == 1
        });
        wait_open_connections(&sidecar, 1);
        assert_healthy(&public);
        finish_drain(&admin, &mut hook);
        assert_took(name, start.elapsed(), 0.0..4.0);
        assert_healthy(&public);

        pipe.lines.clear();
        pipe.read();
        assert_eq!(pipe.lines, [""; 0], "{name}: a line was written where there is no room");
        // A line that was cut short ends before the next one.
        assert_eq!(pipe.incomplete.len(), if is_cut { PIECE } else { 0 }, "{name}");
        sidecar.signal(Signal::SIGUSR1);
        let next = pipe.wait_log(logged(SIGNAL_IGNORED).with("signal", Signal::SIGUSR1));
        // Its start, out of service, one open, none open, its outcome.
        assert_eq!(next.get("lines_lost_before"), Some("5"), "{name}: the lines of a drain");
        sidecar.signal(Signal::SIGUSR2);
        let later = pipe.wait_log(logged(SIGNAL_IGNORED).with("signal", Signal::SIGUSR2));
        assert_eq!(later.get("lines_lost_before"), None, "{name}: nothing was lost since");
        assert_eq!(pipe.lines.len(), if is_cut { 3 } else { 2 }, "{name}: {:#?}", pipe.lines);
    });
}

#[test]
fn a_hook_ends_with_its_code_though_its_output_is_a_full_pipe_that_no_client_reads() {
    let rows = named([("drained", (None, 0)), ("gave up", (Some("--drain-timeout=2s"), 1))]);
    for_each_case(rows, |name, (timeout, code)| {
        let (admin, mut pipe) = (FakeAdmin::unix(), Pipe::new());
        let sidecar = Sidecar::beside(&admin);
        pipe.fill_but_for(0);
        admin.set_open(1);
        let control = format!("--control-socket={}", sidecar.control_socket().display());
        let wrapper = pipe.wrapper("2>");
        let args = ["shutdown", &control].into_iter().chain(timeout).collect::<Vec<_>>();
        let mut hook = run_under(&wrapper.each_ref().map(String::as_str), &args);
        wait_open_connections(&sidecar, 1);
        hook.assert_running();
        if timeout.is_none() {
            admin.set_open(0);
        }
        sidecar.wait_log(outcome(if code == 0 { "drained" } else { "timed_out" }));
        let (end, exit) = (Instant::now(), hook.wait());
        assert_eq!(exit.code, Some(code), "{name}: {exit:?}");
        assert_took(name, end.elapsed(), 0.0..1.5);
    });
}
