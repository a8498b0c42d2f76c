//! A prober as the kubelet is one: in a process of its own, at an address of its own.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fmt, panic, thread};

use crate::port::HEALTHZ;
use crate::support::caller::Client;

const PORT: &str = "PROBED_PORT";
const PROBER: &str = "attacks::probe::the_prober_asks_until_its_input_ends";

/// Twenty times a second.
const PERIOD: Duration = Duration::from_millis(50);

/// Its address, 127.0.0.this.
const HOST: u8 = 2;

/// What became of its questions.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub asked: usize,
    pub failed: usize,
    pub median: Duration,
    /// The 99th percentile.
    pub most: Duration,
    pub slowest: Duration,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asked, failed, median, most, slowest } = self;
        write!(f, "{asked} probes, {failed} failed, {median:?} {most:?} {slowest:?} (p50 p99 max)")
    }
}

/// A prober that is at work. Dropping it ends it, and so does the death of whoever has it.
#[derive(Debug)]
pub struct Prober {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Prober {
    /// Starts one, which has been answered once.
    #[track_caller]
    pub fn start(port: u16) -> Self {
        let mut command = Command::new(env::current_exe().expect("this program"));
        command.args(["--ignored", "--exact", "--nocapture", PROBER]).env(PORT, port.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start the prober");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut prober = Self { input: child.stdin.take(), output, child };
        let begun = prober.output.by_ref().lines().map_while(Result::ok);
        let begun = begun.take_while(|line| !line.ends_with("begun")).count();
        assert!(begun < 10, "it does not begin");
        prober
    }

    /// Ends it, and takes its figures.
    #[track_caller]
    pub fn end(mut self) -> Figures {
        self.input = None;
        let mut text = String::new();
        self.output.read_to_string(&mut text).expect("its output");
        let line = text.lines().find_map(|line| line.strip_prefix("figures "));
        let line = line.unwrap_or_else(|| panic!("no figures: {text}"));
        let numbers: Vec<u64> = line.split(' ').map(|n| n.parse().expect("a number")).collect();
        let [asked, failed, times @ ..] = &numbers[..] else { panic!("too few: {line}") };
        let time = |n: usize| Duration::from_micros(times[n]);
        let (asked, failed) = (*asked as usize, *failed as usize);
        Figures { asked, failed, median: time(0), most: time(1), slowest: time(2) }
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
fn the_prober_asks_until_its_input_ends() {
    let Ok(port) = env::var(PORT) else { return };
    let port = port.parse().expect("a port");
    let input = thread::spawn(|| io::copy(&mut io::stdin(), &mut io::sink()));
    let (mut times, mut failed) = (Vec::new(), 0);
    while !input.is_finished() {
        let begun = Instant::now();
        // The panic's own words say what went wrong.
        let answer = panic::catch_unwind(|| Client::from(HOST, port, HEALTHZ).answer());
        let took = begun.elapsed();
        failed += usize::from(!answer.is_ok_and(|answer| answer.status == "200 OK"));
        if times.is_empty() {
            println!("begun");
        }
        times.push(took);
        // A prober asks at its own pace, whatever comes back.
        thread::sleep(PERIOD.saturating_sub(took));
    }
    times.sort();
    let part = |part: usize| times[(times.len() * part).div_ceil(100) - 1].as_micros();
    println!("figures {} {failed} {} {} {}", times.len(), part(50), part(99), part(100));
}
