//! A sidecar, and the one builder for it.

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use envoy_shutdown_manager::observe::messages::STARTED;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::client::Client;
use super::net::Address;
use super::process::{Exit, Hook, Process, command, program, run, under};
use super::status::{Status, metric};
use super::words::{ENDED, IDLE};
use super::{PATIENCE, temp_dir, try_wait_for, wait_for};

/// What keeps a test short. Each is left out where the test gives that option itself.
const QUICK: [&str; 3] = ["--check-interval=50ms", "--check-delay=0s", "--min-drain-duration=0s"];

/// Configures a sidecar: with a control socket of its own, at a free port, and quick.
#[derive(Debug)]
pub struct Builder {
    dir: TempDir,
    program: PathBuf,
    control: PathBuf,
    finds_control: bool,
    admin: Option<String>,
    quick: &'static [&'static str],
    args: Vec<String>,
    env: Vec<(String, String)>,
    wrapper: Vec<String>,
}

impl Builder {
    /// Its `--admin-address` is that of an Envoy, of a scripted admin interface or of a proxy.
    #[must_use]
    pub fn beside(self, envoy: &impl AsRef<Address>) -> Self {
        self.admin(envoy.as_ref())
    }

    /// Its `--admin-address`.
    #[must_use]
    pub fn admin(mut self, address: impl ToString) -> Self {
        self.admin = Some(address.to_string());
        self
    }

    /// Options of `shutdown-manager`.
    #[must_use]
    pub fn args<S: AsRef<str>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// One option of `shutdown-manager`.
    #[must_use]
    pub fn arg(self, arg: impl AsRef<str>) -> Self {
        self.args([arg])
    }

    /// The program's own defaults, instead of quick ones.
    #[must_use]
    pub fn with_own_defaults(mut self) -> Self {
        self.quick = &[];
        self
    }

    /// Starts it by another name, such as `envoy-gateway`.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        let bin = self.dir.path().join("bin");
        fs::create_dir(&bin).expect("make a directory");
        self.program = bin.join(name);
        symlink(program(), &self.program).expect("make a link");
        self
    }

    /// A variable of its environment, and of its hooks'.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it, but not its hooks, behind a wrapper, which must become it, as by `exec`.
    #[must_use]
    pub fn under<S: AsRef<str>>(mut self, wrapper: impl IntoIterator<Item = S>) -> Self {
        self.wrapper = wrapper.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Another `--control-socket`.
    #[must_use]
    pub fn control_socket(mut self, path: &Path) -> Self {
        self.control = path.to_owned();
        self
    }

    /// No `--control-socket` for it and its hooks, which are expected to choose this one.
    #[must_use]
    pub fn finds_control_socket_at(mut self, path: &Path) -> Self {
        self.finds_control = true;
        self.control_socket(path)
    }

    /// After this sidecar in the same container: at its control socket and its port.
    #[must_use]
    pub fn replacing(self, previous: &Sidecar) -> Self {
        let port = format!("--serve-port={}", previous.port());
        self.control_socket(previous.control_socket()).arg(port)
    }

    fn command(&self, name: &str, args: &[String]) -> Command {
        let mut command = command(&self.program);
        command.args(["envoy", name]);
        if !self.finds_control {
            command.arg("--control-socket").arg(&self.control);
        }
        command.args(args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    fn sidecar_command(&self) -> Command {
        let name = |arg: &str| arg.split('=').next().map(str::to_owned);
        let given = |default: &str| self.args.iter().any(|arg| name(arg) == name(default));
        let defaults = ["--serve-port=0"].iter().chain(self.quick).copied();
        let mut args: Vec<_> = defaults.filter(|arg| !given(arg)).map(str::to_owned).collect();
        args.extend(self.args.iter().cloned());
        args.extend(self.admin.iter().map(|address| format!("--admin-address={address}")));
        let command = self.command("shutdown-manager", &args);
        if self.wrapper.is_empty() { command } else { under(&self.wrapper, &command) }
    }

    /// Runs one that cannot start.
    #[track_caller]
    pub fn run_to_end(self) -> Exit {
        Process::spawn(self.sidecar_command()).wait()
    }

    /// Starts it, and waits until it responds at the control socket.
    #[track_caller]
    pub fn start(self) -> Sidecar {
        let process = Process::spawn(self.sidecar_command());
        let mut sidecar =
            Sidecar { setup: self, process, killed: false, panics: false, finished: false };
        wait_for("the control socket to respond", || {
            if let Some(exit) = sidecar.process.try_wait() {
                panic!("the sidecar ended with {:?}; {}", exit.code, exit.output);
            }
            let response = sidecar.control().try_request("GET", "/healthz", PATIENCE).ok()?;
            (response.status == 200).then_some(())
        });
        sidecar
    }
}

/// A running sidecar. Dropping it stops it and asserts that it stops well, see [`Self::finish`].
#[derive(Debug)]
pub struct Sidecar {
    setup: Builder,
    process: Process,
    killed: bool,
    panics: bool,
    finished: bool,
}

impl Sidecar {
    /// A quick sidecar, which needs an admin address.
    pub fn builder() -> Builder {
        let dir = temp_dir("sidecar");
        Builder {
            program: program(),
            control: dir.path().join("control.sock"),
            finds_control: false,
            admin: None,
            quick: &QUICK,
            args: Vec::new(),
            env: Vec::new(),
            wrapper: Vec::new(),
            dir,
        }
    }

    /// A quick sidecar beside this.
    #[track_caller]
    pub fn beside(envoy: &impl AsRef<Address>) -> Self {
        Self::builder().beside(envoy).start()
    }

    pub fn control_socket(&self) -> &Path {
        &self.setup.control
    }

    /// A client of the control socket.
    pub fn control(&self) -> Client {
        Address::Unix(self.setup.control.clone()).into()
    }

    /// A client of the public port.
    #[track_caller]
    pub fn public(&self) -> Client {
        Client::of_port(self.port())
    }

    /// The public port.
    #[track_caller]
    pub fn port(&self) -> u16 {
        self.process.wait_log(STARTED);
        let log = self.process.log();
        let serving = log.iter().find_map(|record| record.get("serving"));
        let port = serving.and_then(|serving| serving.rsplit(':').next()?.parse().ok());
        port.unwrap_or_else(|| panic!("no public port; {}", self.process.report()))
    }

    #[track_caller]
    pub fn status(&self) -> Status {
        let response = self.control().get("/status");
        assert_eq!(response.status, 200, "{response:?}");
        Status::parse(&response.body)
    }

    /// All metrics, as text.
    #[track_caller]
    pub fn metrics(&self) -> String {
        let response = self.control().get("/metrics");
        assert_eq!(response.status, 200, "{response:?}");
        response.body
    }

    /// The value of a series, named without its prefix, with its labels.
    #[track_caller]
    pub fn metric(&self, series: &str) -> u64 {
        metric(&self.metrics(), series)
    }

    /// Starts `envoy shutdown` with these options.
    pub fn hook(&self, args: &[&str]) -> Hook {
        let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
        Process::spawn(self.setup.command("shutdown", &args))
    }

    /// Runs any command of the program with this sidecar's control socket.
    pub fn run(&self, args: &[&str]) -> Process {
        let control = format!("--control-socket={}", self.setup.control.display());
        run(&[args, &[control.as_str()]].concat())
    }

    /// How it ended, once it has.
    #[track_caller]
    pub fn wait(&mut self) -> Exit {
        self.process.wait()
    }

    /// Kills it, as the kernel would; it is then no defect if it leaves files behind.
    pub fn kill(&mut self) {
        self.killed |= self.process.running();
        self.process.kill();
    }

    /// The test has made one of its threads panic.
    pub fn expects_panics(&mut self) {
        self.panics = true;
    }

    /// Stops it by SIGTERM, and a second one if a drain is in progress. It must end by itself, not
    /// have panicked, and leave no file.
    #[track_caller]
    pub fn finish(&mut self) {
        self.finished = true;
        let end = self.process.try_wait().unwrap_or_else(|| self.terminate());
        let log = self.process.report();
        assert!(self.panics || !log.contains("panicked"), "a thread panicked; {log}");
        if self.killed {
            return;
        }
        assert!(end.code.is_some(), "ended by a signal; {log}");
        let control = &self.setup.control;
        assert!(!control.exists(), "{} is left; {log}", control.display());
        let left = fs::read_dir(&self.setup.dir).expect("read the directory");
        let left = left.map(|entry| entry.expect("read the directory").file_name());
        let left: Vec<_> = left.filter(|name| name != "bin").collect();
        assert!(left.is_empty(), "{left:?} is left; {log}");
    }

    fn terminate(&mut self) -> Exit {
        // The test may have frozen it.
        self.process.signal(Signal::SIGCONT);
        let status = self.control().try_request("GET", "/status", PATIENCE);
        let drains = status.is_ok_and(|response| {
            let status = Status::parse(&response.body);
            ![IDLE, ENDED].contains(&status.phase())
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
        self.process.wait()
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
        } else if !self.finished {
            self.finish();
        }
    }
}
