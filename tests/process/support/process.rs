//! The built program as a process.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, iter};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::log::{Expected, Record};
use super::terminal::open_terminal;
use super::{PATIENCE, Timeline, try_wait_for};

/// The program: `$CROSS_PROGRAM` if that is set, one that `$CROSS_RUNNER` can run. A test has its path
/// from cargo; an example finds it beside its directory `examples`.
pub fn program() -> PathBuf {
    if let Some(path) = env::var_os("CROSS_PROGRAM") {
        return Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    }
    if let Some(path) = option_env!("CARGO_BIN_EXE_envoy-shutdown-manager") {
        return path.into();
    }
    let own = env::current_exe().expect("the path of this program");
    let beside = own.parent().and_then(Path::parent).expect("a directory above");
    beside.join("envoy-shutdown-manager")
}

/// Whether an emulator runs the program, with memory and libraries of its own.
pub fn is_emulated() -> bool {
    env::var_os("CROSS_RUNNER").is_some()
}

/// The program, run by `$CROSS_RUNNER` if that is set, such as `qemu-aarch64 -L …`.
pub fn command(program: &Path) -> Command {
    let runner = env::var("CROSS_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    let Some(runner) = words.next() else {
        return Command::new(program);
    };
    let mut command = Command::new(runner);
    command.args(words).arg(program);
    command
}

/// A command behind a wrapper, such as `unshare …` or `sh -c 'exec "$@"' sh`.
pub fn under<S: AsRef<OsStr>>(wrapper: &[S], program: &Command) -> Command {
    let mut command = Command::new(&wrapper[0]);
    command.args(&wrapper[1..]).arg(program.get_program()).args(program.get_args());
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// Starts the program with these arguments alone, but for a sidecar's port: a free one, if none is
/// given.
pub fn run<S: AsRef<OsStr>>(args: &[S]) -> Process {
    Process::spawn(with_args(args))
}

/// The same behind a wrapper, as [`under`] has it.
pub fn run_under<S: AsRef<OsStr>>(wrapper: &[&str], args: &[S]) -> Process {
    Process::spawn(under(wrapper, &with_args(args)))
}

/// The same with a terminal as stdin.
pub fn run_at_terminal<S: AsRef<OsStr>>(wrapper: &[&str], args: &[S]) -> Process {
    let (terminal, stdin) = open_terminal((80, 24));
    let mut process = Process::spawn_with(under(wrapper, &with_args(args)), stdin.into());
    process.terminal = Some(terminal);
    process
}

fn with_args<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut args: Vec<OsString> = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
    let has_port = args.iter().any(|arg| arg.to_string_lossy().starts_with("--serve-port"));
    if let Some(at) = args.iter().position(|arg| arg == "shutdown-manager")
        && !has_port
    {
        args.insert(at + 1, "--serve-port=0".into());
    }
    let mut command = command(&program());
    command.args(args);
    command
}

/// How a process ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// `None` if a signal has ended it.
    pub code: Option<i32>,
    /// How long it ran.
    pub took: Duration,
    /// Its stdout and stderr.
    pub output: String,
    /// When its output ended, which is when it did.
    pub at: Instant,
}

/// A run of the program; killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    started: Instant,
    lines: Timeline<String>,
    reader: Option<JoinHandle<Instant>>,
    exit: Option<Exit>,
    /// Without it, its other end is a terminal no more.
    terminal: Option<OwnedFd>,
}

/// A run of `envoy shutdown`.
pub type Hook = Process;

impl Process {
    /// Starts a command that is the program or runs it.
    pub fn spawn(command: Command) -> Self {
        Self::spawn_with(command, Stdio::null())
    }

    fn spawn_with(mut command: Command, stdin: Stdio) -> Self {
        let (reader, writer) = io::pipe().expect("make a pipe");
        command.stdin(stdin);
        command.stdout(writer.try_clone().expect("share the pipe"));
        command.stderr(writer);
        let started = Instant::now();
        let child = command.spawn().expect("start the program");
        // The pipe ends with the program only if no other process can write to it.
        drop(command);
        let lines = Timeline::default();
        let timeline = lines.clone();
        let reader = thread::spawn(move || {
            let lines = BufReader::new(reader).split(b'\n').map_while(Result::ok);
            for line in lines {
                timeline.push(String::from_utf8_lossy(&line).into_owned());
            }
            Instant::now()
        });
        Self { child, started, lines, reader: Some(reader), exit: None, terminal: None }
    }

    fn set_exit(&mut self, status: ExitStatus) -> &Exit {
        let reader = self.reader.take();
        let at = reader.map_or_else(Instant::now, |reader| reader.join().expect("read output"));
        self.exit.insert(Exit {
            code: status.code(),
            took: at - self.started,
            output: self.lines().join("\n"),
            at,
        })
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Option<Exit> {
        if self.exit.is_none() {
            let status = self.child.try_wait().expect("wait for the program")?;
            self.set_exit(status);
        }
        self.exit.clone()
    }

    /// How it ended, once it has.
    #[track_caller]
    pub fn wait(&mut self) -> Exit {
        match try_wait_for(PATIENCE, || self.try_wait()) {
            Some(exit) => exit,
            None => panic!("still running after {PATIENCE:?}; {}", self.report()),
        }
    }

    pub fn running(&mut self) -> bool {
        self.try_wait().is_none()
    }

    /// Asserts that it has not ended.
    #[track_caller]
    pub fn assert_running(&mut self) {
        let exit = self.try_wait();
        assert!(exit.is_none(), "it has ended: {exit:?}");
    }

    /// Kills it, as the kernel would.
    pub fn kill(&mut self) {
        if self.running() {
            self.child.kill().expect("kill the program");
            let status = self.child.wait().expect("wait for the program");
            self.set_exit(status);
        }
    }

    pub fn signal(&self, signal: Signal) {
        assert!(self.exit.is_none(), "it has ended; {}", self.report());
        let pid = Pid::from_raw(self.pid().try_into().expect("a process id"));
        kill(pid, signal).expect("signal the program");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The lines of its output so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.all().into_iter().map(|(_, line)| line).collect()
    }

    /// When it first wrote a line that contains this, once it has.
    #[track_caller]
    pub fn wait_line(&self, part: &str) -> Instant {
        match self.lines.nth(1, PATIENCE, |line| line.contains(part)) {
            Some(at) => at,
            None => panic!("no {part:?}; {}", self.report()),
        }
    }

    /// The records of its log so far.
    pub fn log(&self) -> Vec<Record> {
        self.lines().iter().filter_map(|line| Record::parse(line)).collect()
    }

    /// When it first logged this, once it has.
    #[track_caller]
    pub fn wait_log(&self, expected: impl Into<Expected>) -> Instant {
        self.wait_log_within(expected, PATIENCE)
    }

    #[track_caller]
    pub fn wait_log_within(&self, expected: impl Into<Expected>, timeout: Duration) -> Instant {
        let expected = expected.into();
        let matches = |line: &String| Record::parse(line).is_some_and(|r| expected.matches(&r));
        match self.lines.nth(1, timeout, matches) {
            Some(at) => at,
            None => panic!("not logged: {expected:?}; {}", self.report()),
        }
    }

    /// How often it has logged this so far.
    pub fn times_logged(&self, expected: impl Into<Expected>) -> usize {
        let expected = expected.into();
        self.log().iter().filter(|record| expected.matches(record)).count()
    }

    /// Waits until it has logged this so often, and asserts that it is not more often.
    #[track_caller]
    pub fn assert_times_logged(&self, expected: impl Into<Expected>, times: usize) {
        let expected = expected.into();
        let logged = || self.times_logged(expected.clone());
        let _in_time = try_wait_for(PATIENCE, || (logged() >= times).then_some(()));
        assert_eq!(logged(), times, "logged: {expected:?}; {}", self.report());
    }

    /// Asserts that it has not logged this so far.
    #[track_caller]
    pub fn assert_not_logged(&self, expected: impl Into<Expected>) {
        let expected = expected.into();
        let times = self.times_logged(expected.clone());
        assert_eq!(times, 0, "logged: {expected:?}; {}", self.report());
    }

    /// Its output, with times since its start.
    pub fn report(&self) -> String {
        let lines = self.lines.all().into_iter();
        let lines = lines.map(|(at, line)| {
            let at = at.duration_since(self.started).as_secs_f64();
            format!("{at:8.3} {line}\n")
        });
        iter::once("its output:\n".to_owned()).chain(lines).collect()
    }

    fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.pid().to_string()).join(name)
    }

    fn entries(&self, dir: &str) -> Vec<PathBuf> {
        let dir = fs::read_dir(self.proc(dir)).expect("read a directory of /proc");
        dir.map(|entry| entry.expect("read a directory of /proc").path()).collect()
    }

    pub fn threads(&self) -> usize {
        self.entries("task").len()
    }

    /// How many descriptors it has open.
    pub fn fds(&self) -> usize {
        self.entries("fd").len()
    }

    /// How often its threads have been switched, voluntarily or not.
    pub fn context_switches(&self) -> u64 {
        let threads = self.entries("task").into_iter();
        // A thread may end between the two reads.
        let status = threads.filter_map(|task| fs::read_to_string(task.join("status")).ok());
        status.map(|status| sum_lines(&status, "ctxt_switches:")).sum()
    }

    /// Its resident memory.
    pub fn rss_bytes(&self) -> u64 {
        let rollup = fs::read_to_string(self.proc("smaps_rollup")).expect("read smaps_rollup");
        sum_lines(&rollup, "Rss:") * 1024
    }
}

/// The sum of the numbers on the lines that have this before them.
fn sum_lines(text: &str, name: &str) -> u64 {
    let values = text.lines().filter_map(|line| line.split_once(name)).map(|(_, value)| {
        let number = value.split_whitespace().next().expect("a value");
        number.parse::<u64>().expect("a number")
    });
    values.sum()
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
