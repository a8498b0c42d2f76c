//! The built program: a sidecar with its hooks, or any other run of it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::ops::Deref;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, iter};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::net::{self, Address, Response};
use super::{PATIENCE, Record, temp_dir, try_wait_for, wait_for};

/// The program: `$CROSS_PROGRAM` if that is set, one that `$CROSS_RUNNER` can run. Cargo tells a test
/// where its own is; an example's place is `examples` beside it.
pub fn program() -> PathBuf {
    if let Some(path) = env::var_os("CROSS_PROGRAM") {
        return Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    }
    if let Some(path) = option_env!("CARGO_BIN_EXE_envoy-shutdown-manager") {
        return path.into();
    }
    let own = env::current_exe().expect("the place of this program");
    let beside = own.parent().and_then(Path::parent).expect("a directory above");
    beside.join("envoy-shutdown-manager")
}

/// Whether something else runs the program, and has memory and libraries of its own.
pub fn is_emulated() -> bool {
    env::var_os("CROSS_RUNNER").is_some()
}

/// The program, run by `$CROSS_RUNNER` if that is set, such as `qemu-aarch64 -L …`.
fn command(program: &Path) -> Command {
    let runner = env::var("CROSS_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    let Some(runner) = words.next() else {
        return Command::new(program);
    };
    let mut command = Command::new(runner);
    command.args(words).arg(program);
    command
}

/// Starts the program with no more than these arguments; a sidecar, if nothing is said of its
/// port, on any that is free.
pub fn run<S: AsRef<OsStr>>(args: &[S]) -> Process {
    let mut command = command(&program());
    command.args(on_a_free_port(args));
    Process::spawn(command)
}

fn on_a_free_port<S: AsRef<OsStr>>(args: &[S]) -> Vec<OsString> {
    let mut args: Vec<_> = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
    let told = args.iter().any(|arg| arg.to_string_lossy().starts_with("--serve-port"));
    if let Some(at) = args.iter().position(|arg| arg == "shutdown-manager")
        && !told
    {
        args.insert(at + 1, "--serve-port=0".into());
    }
    args
}

/// Starts `wrapper` with the program and these arguments behind it: `unshare …`, say, or
/// `sh -c 'exec "$@"' sh`.
pub fn run_under<S: AsRef<OsStr>>(wrapper: &[&str], args: &[S]) -> Process {
    let mut program = command(&program());
    program.args(on_a_free_port(args));
    Process::spawn(under(wrapper, &program))
}

fn under<S: AsRef<OsStr>>(wrapper: &[S], program: &Command) -> Command {
    let mut command = Command::new(&wrapper[0]);
    command.args(&wrapper[1..]).arg(program.get_program()).args(program.get_args());
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// How a process ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// Its code; `None` if a signal has ended it.
    pub code: Option<i32>,
    /// How long it ran.
    pub took: Duration,
    /// What it wrote on stdout and stderr.
    pub output: String,
    /// When its output ended, which is when it did.
    pub at: Instant,
}

/// A run of the program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    started: Instant,
    lines: Record<String>,
    reader: Option<JoinHandle<Instant>>,
    exit: Option<Exit>,
}

/// A run of `envoy shutdown`.
pub type Hook = Process;

impl Process {
    /// Starts this, which is the program or runs it.
    pub fn spawn(mut command: Command) -> Self {
        let (reader, writer) = io::pipe().expect("make a pipe");
        command.stdin(Stdio::null());
        command.stdout(writer.try_clone().expect("share the pipe"));
        command.stderr(writer);
        let started = Instant::now();
        let child = command.spawn().expect("start the program");
        // The pipe's end is the program's only when nobody else can write to it.
        drop(command);
        let lines = Record::default();
        let record = lines.clone();
        let reader = thread::spawn(move || {
            let lines = BufReader::new(reader).split(b'\n').map_while(Result::ok);
            for line in lines {
                record.push(String::from_utf8_lossy(&line).into_owned());
            }
            Instant::now()
        });
        Self { child, started, lines, reader: Some(reader), exit: None }
    }

    fn set_exit(&mut self, status: ExitStatus) -> &Exit {
        let reader = self.reader.take();
        let at = reader.map_or_else(Instant::now, |reader| reader.join().expect("read output"));
        self.exit.insert(Exit {
            code: status.code(),
            took: at - self.started,
            output: self.log().join("\n"),
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
    pub fn wait(&mut self, timeout: Duration) -> Exit {
        match try_wait_for(timeout, || self.try_wait()) {
            Some(exit) => exit,
            None => panic!("still running after {timeout:?}; {}", self.report()),
        }
    }

    /// Whether it is still there.
    pub fn running(&mut self) -> bool {
        self.try_wait().is_none()
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        if self.running() {
            self.child.kill().expect("kill the program");
            let status = self.child.wait().expect("wait for the program");
            self.set_exit(status);
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        assert!(self.exit.is_none(), "it has ended; {}", self.report());
        let pid = Pid::from_raw(self.pid().try_into().expect("a process id"));
        kill(pid, signal).expect("signal the program");
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The lines that it has written so far.
    pub fn log(&self) -> Vec<String> {
        self.lines.all().into_iter().map(|(_, line)| line).collect()
    }

    /// When it first wrote a line with this in it, once it has.
    #[track_caller]
    pub fn wait_log(&self, part: &str, timeout: Duration) -> Instant {
        match self.lines.nth(1, timeout, |line| line.contains(part)) {
            Some(at) => at,
            None => panic!("no {part:?}; {}", self.report()),
        }
    }

    fn report(&self) -> String {
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
        let dir = fs::read_dir(self.proc(dir)).expect("look into /proc");
        dir.map(|entry| entry.expect("look into /proc").path()).collect()
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        self.entries("task").len()
    }

    /// How many descriptors it has open.
    pub fn fds(&self) -> usize {
        self.entries("fd").len()
    }

    /// How often its threads have been switched, of their own accord or not.
    pub fn context_switches(&self) -> u64 {
        let threads = self.entries("task").into_iter();
        // A thread may end between the two looks.
        let status = threads.filter_map(|task| fs::read_to_string(task.join("status")).ok());
        status.map(|status| sum_lines(&status, "ctxt_switches:")).sum()
    }

    /// Its resident memory.
    pub fn rss_bytes(&self) -> u64 {
        let rollup = fs::read_to_string(self.proc("smaps_rollup")).expect("read smaps_rollup");
        sum_lines(&rollup, "Rss:") * 1024
    }
}

/// The sum of the numbers on the lines that have this word before them.
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

/// What a sidecar is to be, before it is started.
#[derive(Debug)]
pub struct Launch {
    dir: TempDir,
    program: PathBuf,
    control: PathBuf,
    tell_control: bool,
    args: Vec<String>,
    env: Vec<(String, String)>,
    wrapper: Vec<String>,
}

impl Launch {
    /// Options of `shutdown-manager`.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    /// Starts it by another name, as for `envoy-gateway`.
    pub fn named(mut self, name: &str) -> Self {
        let bin = self.dir.path().join("bin");
        fs::create_dir(&bin).expect("make a directory");
        self.program = bin.join(name);
        symlink(program(), &self.program).expect("make a link");
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it behind this, as [`run_under`] does; not its hooks. It must run in the place of the
    /// wrapper, as by `exec`.
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Another `--control-socket`, as of a sidecar that came before.
    pub fn control_socket(mut self, path: &Path) -> Self {
        self.control = path.to_owned();
        self
    }

    /// No `--control-socket`, for it and its hooks; it is expected to choose this one.
    pub fn control_socket_found_at(mut self, path: &Path) -> Self {
        self.tell_control = false;
        self.control_socket(path)
    }

    fn command(&self, name: &str, args: &[String]) -> Command {
        let mut all: Vec<OsString> = vec!["envoy".into(), name.into()];
        if self.tell_control {
            all.extend(["--control-socket".into(), self.control.clone().into()]);
        }
        all.extend(args.iter().map(OsString::from));
        let mut command = command(&self.program);
        command.args(on_a_free_port(&all)).envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Starts it, and waits until it answers on the control socket.
    #[track_caller]
    pub fn start(self) -> Sidecar {
        let mut command = self.command("shutdown-manager", &self.args);
        if !self.wrapper.is_empty() {
            command = under(&self.wrapper, &command);
        }
        let process = Process::spawn(command);
        let mut sidecar =
            Sidecar { launch: self, process, killed: false, panics: false, over: false };
        wait_for("the control socket to answer", PATIENCE, || {
            if let Some(exit) = sidecar.process.try_wait() {
                panic!("the sidecar ended with {:?}", exit.code);
            }
            let answer = sidecar.try_request("GET", "/healthz", PATIENCE).ok()?;
            (answer.status == 200).then_some(())
        });
        sidecar
    }
}

/// A running sidecar. Dropping it ends it and looks whether it leaves well, see [`Self::finish`].
#[derive(Debug)]
pub struct Sidecar {
    launch: Launch,
    process: Process,
    killed: bool,
    panics: bool,
    over: bool,
}

impl Sidecar {
    /// A sidecar with a control socket in a directory of its own.
    pub fn launch() -> Launch {
        let dir = temp_dir("sidecar");
        Launch {
            program: program(),
            control: dir.path().join("control.sock"),
            tell_control: true,
            args: Vec::new(),
            env: Vec::new(),
            wrapper: Vec::new(),
            dir,
        }
    }

    /// Starts one with these options.
    #[track_caller]
    pub fn start(args: &[&str]) -> Self {
        Self::launch().args(args).start()
    }

    /// Where the control socket is.
    pub fn control_socket(&self) -> &Path {
        &self.launch.control
    }

    /// The public port, on the loopback address of IPv4.
    #[track_caller]
    pub fn port(&self) -> u16 {
        self.process.wait_log("msg=\"started\"", PATIENCE);
        let log = self.process.log();
        let serving = log.iter().find_map(|line| line.split_once(" serving=")?.1.split(' ').next());
        let port = serving.and_then(|serving| serving.rsplit(':').next()?.parse().ok());
        port.unwrap_or_else(|| panic!("no public port; {}", self.process.report()))
    }

    /// A request on the control socket.
    pub fn try_request(&self, method: &str, path: &str, timeout: Duration) -> io::Result<Response> {
        let control = Address::Unix(self.launch.control.clone());
        net::request(&control, method, path, timeout)
    }

    /// The status and body of a request on the control socket.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str) -> (u16, String) {
        match self.try_request(method, path, PATIENCE) {
            Ok(answer) => (answer.status, answer.body),
            Err(error) => panic!("{method} {path}: {error}; {}", self.process.report()),
        }
    }

    /// The JSON of `/status`.
    #[track_caller]
    pub fn status(&self) -> String {
        let (status, body) = self.request("GET", "/status");
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Starts `envoy shutdown` with these options.
    pub fn hook(&self, args: &[&str]) -> Hook {
        let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
        Process::spawn(self.launch.command("shutdown", &args))
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait_exit(&mut self, timeout: Duration) -> Exit {
        self.process.wait(timeout)
    }

    /// Kills it, as the kernel would; what it leaves behind is then no fault of its own.
    pub fn kill(&mut self) {
        self.killed |= self.process.running();
        self.process.kill();
    }

    /// The test has made one of its threads panic.
    pub fn expects_panics(&mut self) {
        self.panics = true;
    }

    /// Ends it by SIGTERM, and a second one if a drain is on. It must end by itself, not have
    /// panicked, and leave nothing.
    #[track_caller]
    pub fn finish(&mut self) {
        self.over = true;
        let end = self.process.try_wait().unwrap_or_else(|| self.terminate());
        let log = self.process.report();
        assert!(self.panics || !log.contains("panicked"), "a thread panicked; {log}");
        if self.killed {
            return;
        }
        assert!(end.code.is_some(), "ended by a signal; {log}");
        let control = &self.launch.control;
        assert!(!control.exists(), "{} is left; {log}", control.display());
        let left = fs::read_dir(&self.launch.dir).expect("look into the directory");
        let left = left.map(|entry| entry.expect("look into the directory").file_name());
        let left: Vec<_> = left.filter(|name| name != "bin").collect();
        assert!(left.is_empty(), "{left:?} is left; {log}");
    }

    fn terminate(&mut self) -> Exit {
        // The test may have frozen it.
        self.process.signal(Signal::SIGCONT);
        let status = self.try_request("GET", "/status", PATIENCE);
        let drains = status.is_ok_and(|status| {
            let phase =
                status.body.split("\"phase\"").nth(1).and_then(|rest| rest.split('"').nth(1));
            !matches!(phase, Some("serving" | "ended"))
        });
        self.process.signal(Signal::SIGTERM);
        if drains {
            // The second signal counts from when the first was logged, and equal signals that
            // are pending become one: so it is repeated.
            let again = || {
                let exit = self.process.try_wait();
                if exit.is_none() {
                    thread::sleep(Duration::from_millis(50));
                    self.process.signal(Signal::SIGTERM);
                }
                exit
            };
            let _ = try_wait_for(PATIENCE, again);
        }
        self.process.wait(PATIENCE)
    }
}

impl Deref for Sidecar {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("sidecar: {}", self.process.report());
        } else if !self.over {
            self.finish();
        }
    }
}
