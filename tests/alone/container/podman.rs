//! An image of the program, containers of it, and a network of their own. Podman and other tools take
//! processor time, so no test measures a time meanwhile.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::panic;
use std::path::Path;
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::support::envoy_binary;
use crate::support::prelude::*;
use crate::support::process::program;
use crate::take_turn;

/// Runs this with an image, in a network of its own, where every port is free. Skips it where that
/// cannot be; in CI it must.
pub fn with_image(test: impl FnOnce(&Image) + Send) {
    if env::var_os("CROSS_RUNNER").is_some() {
        return println!("SKIPPED: containers, since the program needs an emulator here");
    }
    if let Some(tool) = ["podman", "buildah"].into_iter().find(|tool| !is_here(tool)) {
        return skip(&format!("no {tool} here"));
    }
    // Where there is no other network, none could be fetched.
    envoy_binary::envoy();
    let Some(network) = own_network() else {
        return skip("no network of its own here, which takes root and iproute2");
    };
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let kind = Some(LinkNameSpaceType::Network);
            // Of this thread alone, and of whatever it starts.
            move_into_link_name_space(network.as_fd(), kind).expect("enter the network");
            let image = {
                let _turn = take_turn();
                Image::build()
            };
            test(&image);
        });
        if let Err(cause) = inside.join() {
            panic::resume_unwind(cause);
        }
    });
}

fn skip(why: &str) {
    assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "containers must run in CI: {why}");
    println!("SKIPPED: containers: {why}");
}

fn is_here(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok()
}

/// A network with nothing but its own loopback. It lasts as long as the file, or a process inside.
fn own_network() -> Option<File> {
    let mut child = Command::new("unshare")
        .args(["--net", "sh", "-c", "ip link set lo up && echo up && read _"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take()?).read_line(&mut line).ok()?;
    let network = File::open(format!("/proc/{}/ns/net", child.id())).ok();
    // Its stdin ends, and so does it.
    child.wait().ok()?;
    network.filter(|_| line == "up\n")
}

/// Runs this to its end, which must be good; its stdout.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().expect("start a tool");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// `podman` with these arguments.
pub fn podman(args: &[&str]) -> Command {
    let mut command = Command::new("podman");
    command.args(args);
    command
}

fn unique(name: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{name}-test-{}-{number}", process::id())
}

/// An image of the program that is tested. Dropping it removes it.
#[derive(Debug)]
pub struct Image {
    /// Its name.
    pub tag: String,
}

impl Image {
    fn build() -> Self {
        let image = Self { tag: unique("localhost/envoy-shutdown-manager") };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".build/image");
        run(Command::new(script).arg(program()).arg(&image.tag));
        image
    }

    /// A container of this command, or of the image's own with these options; read-only and without
    /// any capability. The flags are podman's.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Container {
        let name = unique("envoy-shutdown-manager");
        let mut podman = podman(&["run", "--rm", "--pull=never", "--name", &name]);
        // The one that needs no cgroup of its own, with limits that any machine may give.
        if is_here("runc") {
            podman.args(["--runtime", "runc"]);
        }
        podman.args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]);
        // The network of the thread that starts it.
        podman.args(["--network=host", "--log-driver=none", "--security-opt=label=disable"]);
        podman.args(["--read-only", "--read-only-tmpfs=false", "--cap-drop=all"]);
        podman.args(["--security-opt=no-new-privileges"]).args(flags);
        if let Some(entrypoint) = command.first().filter(|word| !word.starts_with('-')) {
            podman.args(["--entrypoint", entrypoint, &self.tag]).args(&command[1..]);
        } else {
            podman.arg(&self.tag).args(command);
        }
        Container { name, process: Process::spawn(podman) }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // The test that had it has given its own back.
        let _turn = take_turn();
        let _best_effort = podman(&["rmi", "--force", &self.tag]).output();
    }
}

/// A container. Dropping it removes it.
#[derive(Debug)]
pub struct Container {
    name: String,
    /// Its output, and its end.
    pub process: Process,
}

impl Container {
    /// Waits until it serves at its public port.
    #[track_caller]
    pub fn wait_healthy(&mut self, port: u16) {
        wait_for("the container to be healthy", || {
            assert!(self.process.running(), "it ended: {:?}", self.process.try_wait());
            let response = Client::of_port(port).try_request("GET", "/healthz", PATIENCE).ok()?;
            (response.status == 200).then_some(())
        });
    }

    /// Runs this in it, as the kubelet runs a hook.
    pub fn exec(&self, command: &[&str]) -> Hook {
        Process::spawn(podman(&[&["exec", &self.name], command].concat()))
    }

    /// Its first process, by the number that it has here.
    #[track_caller]
    pub fn pid(&self) -> Pid {
        let pid = run(&mut podman(&["inspect", "--format={{.State.Pid}}", &self.name]));
        let pid = pid.trim().parse().expect("a process id");
        // Of one that has ended it is 0, which to signal would be to signal ourselves.
        assert!(pid > 0, "{} has ended", self.name);
        Pid::from_raw(pid)
    }

    /// A line of that process's status in `/proc`.
    #[track_caller]
    pub fn proc_status(&self, name: &str) -> Vec<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("/proc");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.expect(name).split_whitespace().map(str::to_owned).collect()
    }

    /// Has podman send SIGTERM to it.
    #[track_caller]
    pub fn stop(&self) {
        run(&mut podman(&["kill", "--signal=TERM", &self.name]));
    }

    /// Sends SIGTERM to that process; how long it took to end. What podman adds is not counted.
    #[track_caller]
    pub fn terminate(&mut self) -> Duration {
        let pid = self.pid();
        let sent = Instant::now();
        kill(pid, Signal::SIGTERM).expect("signal the program");
        wait_for("its end", || {
            // It may be a zombie until its parent has waited for it.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat.rsplit(") ").next().unwrap_or_default();
            (state.is_empty() || state.starts_with(['Z', 'X'])).then_some(())
        });
        sent.elapsed()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _best_effort = podman(&["rm", "--force", "--ignore", &self.name]).output();
    }
}
