//! A prober as the kubelet is one: in a process of its own, at an address of its own.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fmt, panic, thread};

use crate::support::prelude::*;

const PORT: &str = "PROBED_PORT";
const PROBER: &str = "attacks::probe::the_prober_probes_until_its_input_ends";

/// Twenty times a second.
const PERIOD: Duration = Duration::from_millis(50);

/// Its address, 127.0.0.this.
const HOST: u8 = 2;

/// The results of its probes.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub probes: usize,
    pub failed: usize,
    pub median: Duration,
    pub p99: Duration,
    pub slowest: Duration,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { probes, failed, median, p99, slowest } = self;
        write!(f, "{probes} probes, {failed} failed, {median:?} {p99:?} {slowest:?} (p50 p99 max)")
    }
}

/// A running prober. It ends when this is dropped, or when the process that has it dies.
#[derive(Debug)]
pub struct Prober {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
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
        let mut prober = Self { input: child.stdin.take(), output, child };
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
        let [probes, failed, times @ ..] = &numbers[..] else { panic!("too few: {line}") };
        let time = |n: usize| Duration::from_micros(times[n]);
        let (probes, failed) = (*probes as usize, *failed as usize);
        Figures { probes, failed, median: time(0), p99: time(1), slowest: time(2) }
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
    let (mut times, mut failed) = (Vec::new(), 0);
    while !input.is_finished() {
        let started = Instant::now();
        // The panic's own message shows what went wrong.
        let response = panic::catch_unwind(|| client.send(HEALTHZ).only_response());
        let took = started.elapsed();
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
    println!("figures {} {failed} {} {} {}", times.len(), part(50), part(99), part(100));
}
