//! Steps that scenarios share: a quick sidecar, what it says of itself, and `/shutdown`s that wait.

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Write as _};
use std::mem::MaybeUninit;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use socket2::Socket;

use super::envoy::{Builder, Envoy};
use super::net::{self, Address, ipv6_available};
use super::sidecar::{Process, Sidecar, run_under};
use super::{PATIENCE, try_wait_for, wait_for};

/// What keeps a scenario short, where it says nothing else.
const QUICK: [&str; 2] = ["--check-interval=100ms", "--check-delay=0s"];

/// A sidecar beside this Envoy, with these options and quick ones.
#[track_caller]
pub fn beside(envoy: &Envoy, args: &[&str]) -> Sidecar {
    before(&envoy.admin_address(), args)
}

/// The same at any admin address.
#[track_caller]
pub fn before(admin: &str, args: &[&str]) -> Sidecar {
    Sidecar::start(&arguments(admin, args).iter().map(String::as_str).collect::<Vec<_>>())
}

/// The arguments of such a sidecar.
pub fn arguments(admin: &str, args: &[&str]) -> Vec<String> {
    let name = |arg: &str| arg.split('=').next().map(str::to_owned);
    let said = |quick: &&str| args.iter().any(|arg| name(arg) == name(quick));
    let quick = QUICK.into_iter().filter(|quick| !said(quick));
    let all = quick.chain(args.iter().copied()).map(str::to_owned);
    all.chain([format!("--admin-address={admin}")]).collect()
}

/// An Envoy to be, at each kind of admin address that this machine has.
pub fn admin_kinds() -> Vec<Builder> {
    let mut kinds = vec![Envoy::builder(), Envoy::builder().admin_tcp_v4()];
    if ipv6_available() {
        kinds.push(Envoy::builder().admin_tcp_v6());
    }
    kinds
}

/// Waits until the JSON of `/status` has all of these in it, and gives it.
#[track_caller]
pub fn wait_status(sidecar: &Sidecar, parts: &[&str]) -> String {
    let mut last = String::new();
    let found = try_wait_for(PATIENCE, || {
        last = sidecar.status();
        parts.iter().all(|part| last.contains(part)).then(|| last.clone())
    });
    match found {
        Some(status) => status,
        None => panic!("no {parts:?} in {last}"),
    }
}

/// Waits until the drain counts just so many open connections.
#[track_caller]
pub fn wait_open(sidecar: &Sidecar, open: u64) {
    let open = format!("\"open_connections\":{open},");
    wait_status(sidecar, &["\"phase\":\"draining\"", &open]);
}

/// Asserts that a hook still waits while this Envoy is out of service, and so many connections are
/// counted.
#[track_caller]
pub fn assert_held(sidecar: &Sidecar, hook: &mut Process, envoy: &Envoy, open: u64) {
    wait_open(sidecar, open);
    assert_eq!(envoy.get("/ready"), (503, "DRAINING\n".to_owned()));
    assert!(hook.running(), "the hook ended with {open} open: {:?}", hook.try_wait());
}

/// Waits for the hook's end, and asserts how it ended: its code, and a part of what it wrote.
#[track_caller]
pub fn assert_ends(hook: &mut Process, code: i32, part: &str) {
    let exit = hook.wait(PATIENCE);
    assert!(exit.code == Some(code) && exit.output.contains(part), "no {code}, {part:?}: {exit:?}");
}

/// Waits for the last of these, and asserts that the log has a line with each, in this order.
#[track_caller]
pub fn assert_told(sidecar: &Process, parts: &[&str]) {
    if let Some(last) = parts.last() {
        sidecar.wait_log(last, PATIENCE);
    }
    let log = sidecar.log();
    let mut lines = log.iter();
    for part in parts {
        assert!(lines.any(|line| line.contains(part)), "no {part:?} in its place in {log:#?}");
    }
}

/// The value of a series.
#[track_caller]
pub fn metric(metrics: &str, series: &str) -> u64 {
    let start = format!("envoy_shutdown_{series} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok());
    value.unwrap_or_else(|| panic!("no {series} in {metrics}"))
}

/// Stops it, and waits until each of its threads has stopped: the first one to take the signal stops
/// the others.
#[track_caller]
pub fn freeze(process: &Process) {
    process.signal(Signal::SIGSTOP);
    wait_for("all threads to stop", PATIENCE, || {
        let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).expect("its threads");
        let stopped = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"))
        };
        tasks.map(|task| task.expect("a thread")).all(stopped).then_some(())
    });
}

/// Leaves a socket behind, as a process does that was killed.
#[track_caller]
pub fn leave_socket(path: &Path, mode: u32) {
    drop(UnixListener::bind(path).expect("listen"));
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("set a mode");
    // Another test may be starting a process, which has a copy of it for a moment.
    wait_for("nobody to listen", PATIENCE, || {
        let error = UnixStream::connect(path).err()?;
        (error.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
}

/// Whether this machine permits namespaces of this kind; says so if not.
pub fn may_unshare(kind: &str) -> bool {
    let mut run = run_under(&["unshare", kind, "--fork"], &["--version"]);
    let exit = run.wait(PATIENCE);
    if exit.code != Some(0) {
        println!("SKIPPED: no unshare {kind} here: {}", exit.output);
    }
    exit.code == Some(0)
}

/// A GET whose answer is yet to come.
#[derive(Debug)]
pub struct Waiter(Socket);

impl Waiter {
    /// Waits at the control socket.
    #[track_caller]
    pub fn new(sidecar: &Sidecar) -> Self {
        Self::at(sidecar, "/shutdown")
    }

    /// Asks for any path there.
    #[track_caller]
    pub fn at(sidecar: &Sidecar, path: &str) -> Self {
        Self::ask(&Address::Unix(sidecar.control_socket().to_owned()), path)
    }

    /// Asks at the public port, where Envoy's own hook waits.
    #[track_caller]
    pub fn outside(port: u16, path: &str) -> Self {
        Self::ask(&Address::port(port), path)
    }

    #[track_caller]
    fn ask(address: &Address, path: &str) -> Self {
        let mut socket = address.connect(PATIENCE).expect("connect");
        let head = "host: localhost\r\nconnection: close";
        let request = format!("GET {path} HTTP/1.1\r\n{head}\r\n\r\n");
        socket.write_all(request.as_bytes()).expect("send");
        Self(socket)
    }

    /// Whether the answer has begun to come.
    pub fn is_answered(&self) -> bool {
        self.0.set_nonblocking(true).expect("set a mode");
        let n = self.0.peek(&mut [MaybeUninit::uninit()]).unwrap_or(0);
        self.0.set_nonblocking(false).expect("set a mode");
        n > 0
    }

    /// The answer's status and body.
    #[track_caller]
    pub fn answer(&self) -> (u16, String) {
        let answer = net::read_response(&self.0, PATIENCE).expect("an answer");
        (answer.status, answer.body)
    }

    /// The status and body of an answer that has come whole, to the end of its connection.
    #[track_caller]
    pub fn answer_there(&self) -> (u16, String) {
        let answer = net::read_response(&self.0, Duration::ZERO).expect("the whole answer");
        assert!(self.ends_within(PATIENCE), "the connection stays open");
        (answer.status, answer.body)
    }

    /// Whether the connection ends before then, and is not reset. Nothing more may come.
    #[track_caller]
    pub fn ends_within(&self, timeout: Duration) -> bool {
        match net::read_before(&self.0, &mut [0], Instant::now() + timeout) {
            Ok(0) => true,
            Err(error) if error.kind() == ErrorKind::TimedOut => false,
            other => panic!("no end: {other:?}"),
        }
    }

    /// Hangs up by a reset.
    #[track_caller]
    pub fn reset(self) {
        self.0.set_linger(Some(Duration::ZERO)).expect("set an option");
    }
}
