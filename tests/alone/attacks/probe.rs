//! A prober as the kubelet is one: in a process of its own, at an address of its own.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fmt, fs, panic, thread};

use crate::support::prelude::*;

const PORT: &str = "PROBED_PORT";
const PROBER: &str = "attacks::probe::the_prober_probes_until_its_input_ends";

/// Twenty times a second.
const PERIOD: Duration = Duration::from_millis(50);

/// Its address, 127.0.0.this.
const HOST: u8 = 2;

/// No probe may take longer.
const LATEST: Duration = Duration::from_millis(500);

/// When the kernel sends a SYN again that had no answer. It drops those that come while the listener's
/// backlog is full, before any program learns of them.
const SYN_RETRY: Duration = Duration::from_secs(1);

/// The results of its probes.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub probes: usize,
    pub failed: usize,
    /// So many waited for [`SYN_RETRY`], which the times are without.
    pub dropped: usize,
    /// How many the kernel says that it has dropped, of all clients.
    pub dropped_by_kernel: u64,
    pub median: Duration,
    pub p99: Duration,
    pub slowest: Duration,
}

impl Figures {
    /// Asserts what every build must keep to, and what the one that ships must.
    #[track_caller]
    pub fn assert_none_failed_or_was_late(&self) {
        assert_eq!(self.failed, 0, "probes have failed: {self}");
        assert!(!SHIPS || self.slowest <= LATEST, "a probe was late: {self}");
        assert!(self.dropped as u64 <= self.dropped_by_kernel, "connections were late: {self}");
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { probes, failed, dropped, dropped_by_kernel, median, p99, slowest } = self;
        write!(
            f,
            "{probes} probes, {failed} failed, {median:?} {p99:?} {slowest:?} (p50 p99 max), "
        )?;
        write!(f, "{dropped} of {dropped_by_kernel} SYNs that the kernel dropped")
    }
}

/// How many SYNs the kernel has dropped because a backlog was full, since it started.
fn dropped_by_kernel() -> u64 {
    let text = fs::read_to_string("/proc/net/netstat").expect("the kernel's counters");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let [names, values] = [lines.next(), lines.next()].map(|line| line.expect("a line").split(' '));
    let value = names.zip(values).find(|(name, _)| *name == "ListenDrops").expect("a counter").1;
    value.parse().expect("a number")
}

/// A running prober. It ends when this is dropped, or when the process that has it dies.
#[derive(Debug)]
pub struct Prober {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    dropped_before: u64,
}

impl Prober {
    /// Starts one, whose first probe was answered.
    #[track_caller]
    pub fn start(port: u16) -> Self {
        let mut command = Command::new(env::current_exe().expect("this program"));
        command.args(["--ignored", "--exact", "--nocapture", PROBER]).env(PORT, port.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start the prober");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (input, dropped_before) = (child.stdin.take(), dropped_by_kernel());
        let mut prober = Self { child, input, output, dropped_before };
        let lines = prober.output.by_ref().lines().map_while(Result::ok);
        let before = lines.take_while(|line| !line.ends_with("started")).count();
        assert!(before < 10, "it does not start");
        prober
    }

    /// Ends it, and returns its figures.
    #[track_caller]
    pub fn end(mut self) -> Figures {
        self.input = None;
        let mut text = String::new();
        self.output.read_to_string(&mut text).expect("its output");
        let line = text.lines().find_map(|line| line.strip_prefix("figures "));
        let line = line.unwrap_or_else(|| panic!("no figures: {text}"));
        let numbers: Vec<u64> = line.split(' ').map(|n| n.parse().expect("a number")).collect();
        let &[probes, failed, dropped, median, p99, slowest] = &numbers[..] else {
            panic!("not six numbers: {line}")
        };
        let [probes, failed, dropped] = [probes, failed, dropped].map(|n| n as usize);
        let [median, p99, slowest] = [median, p99, slowest].map(Duration::from_micros);
        let dropped_by_kernel = dropped_by_kernel() - self.dropped_before;
        Figures { probes, failed, dropped, dropped_by_kernel, median, p99, slowest }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.input = None;
        let _ended = self.child.wait();
    }
}

#[test]
#[ignore = "a process that the attacks start for themselves"]
fn the_prober_probes_until_its_input_ends() {
    let Ok(port) = env::var(PORT) else { return };
    let port = port.parse().expect("a port");
    let client = Client::of_port(port).at_host(HOST);
    let input = thread::spawn(|| io::copy(&mut io::stdin(), &mut io::sink()));
    let (mut times, mut failed, mut dropped) = (Vec::new(), 0, 0);
    while !input.is_finished() {
        let started = Instant::now();
        // The panic's own message shows what went wrong.
        let connection = panic::catch_unwind(|| client.connect());
        let mut waited = Duration::ZERO;
        if started.elapsed() >= SYN_RETRY {
            (waited, dropped) = (SYN_RETRY, dropped + 1);
        }
        let response = connection.and_then(|connection| {
            panic::catch_unwind(|| {
                connection.send(HEALTHZ);
                connection.only_response()
            })
        });
        let took = started.elapsed() - waited;
        failed += usize::from(!response.is_ok_and(|response| response.status_line() == "200 OK"));
        if times.is_empty() {
            println!("started");
        }
        times.push(took);
        // A prober keeps its own pace, whatever the responses.
        thread::sleep(PERIOD.saturating_sub(took));
    }
    times.sort();
    let part = |part: usize| times[(times.len() * part).div_ceil(100) - 1].as_micros();
    let [median, p99, slowest] = [50, 99, 100].map(part);
    println!("figures {} {failed} {dropped} {median} {p99} {slowest}", times.len());
}
