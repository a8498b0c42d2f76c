//! Drains while thousands of probes a second, which are not counted, open and close connections. A
//! poll that meets one of them counts one too many or too few: see `src/envoy/stats.rs`.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fmt};

use envoy_shutdown_manager::envoy::stats::{Exclusions, REQUEST, ReadLines as _, StatsParser};
use socket2::Socket;
use tempfile::TempDir;

use crate::support::client::read_before;
use crate::support::http::find;
use crate::support::lock;
use crate::support::net::{Address, Server};
use crate::support::prelude::*;
use crate::take_turn;

/// Probes a second. More of them would make more polls wrong, so a faster machine makes no more.
const PACE: u32 = 3_500;
/// Fewer than this are too few to show anything.
const MIN_PACE: f64 = 2_000.0;
const THREADS: u32 = 4;

/// A thread does not make up for a longer stall than this.
const MAX_BEHIND: Duration = Duration::from_millis(10);

/// Threads that probe a port until this is dropped.
#[derive(Debug)]
struct Probes {
    count: Arc<Count>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Count {
    is_over: AtomicBool,
    succeeded: AtomicUsize,
    failed: AtomicUsize,
}

impl Probes {
    fn start(port: u16) -> Self {
        let count = Arc::new(Count::default());
        let threads = (0..THREADS).map(|n| {
            let count = Arc::clone(&count);
            thread::spawn(move || keep_probing(port, n % 2 == 0, &count))
        });
        Self { threads: threads.collect(), count }
    }

    fn succeeded(&self) -> usize {
        self.count.succeeded.load(Ordering::Relaxed)
    }

    fn failed(&self) -> usize {
        self.count.failed.load(Ordering::Relaxed)
    }

    /// How many succeeded a second while this ran.
    fn during<T>(&self, run: impl FnOnce() -> T) -> (T, f64) {
        let (before, start) = (self.succeeded(), Instant::now());
        let result = run();
        let made = (self.succeeded() - before) as f64;
        (result, made / start.elapsed().as_secs_f64())
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.count.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "a prober panicked");
        }
    }
}

/// At equal distances, as one prober's probes come, or at random, as those of many do.
fn keep_probing(port: u16, is_regular: bool, count: &Count) {
    let period = Duration::from_secs(1) * THREADS / PACE;
    let random = RandomState::new();
    let (mut made, mut distance) = (0_u64, period);
    let mut due = Instant::now();
    while !count.is_over.load(Ordering::Relaxed) {
        let counter = if probe(port).is_ok() { &count.succeeded } else { &count.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        made += 1;
        if !is_regular {
            let uniform = (random.hash_one(made) as f64 + 1.0) / (u64::MAX as f64 + 1.0);
            distance = period.mul_f64(-uniform.ln());
        }
        let now = Instant::now();
        due = (due + distance).max(now - MAX_BEHIND);
        // The pace itself.
        thread::sleep(due.saturating_duration_since(now));
    }
}

/// One probe, on a connection of its own. The client closes first, as one does that has read all.
fn probe(port: u16) -> io::Result<()> {
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
    let (mut buffer, mut length) = ([0; 1024], 0);
    while !buffer[..length].ends_with(b"\r\n\r\nserved") {
        match socket.read(&mut buffer[length..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => length += n,
        }
    }
    Ok(())
}

/// What each poll counted, taken alone, while one connection was open.
#[derive(Clone, Copy, Debug, Default)]
struct Polls {
    all: u32,
    /// So many would have ended the drain, if one were enough.
    wrong: u32,
    wrong_in_a_row: usize,
    /// How often so many in a row were wrong, from one on: four end a drain.
    rows: [u32; 4],
    /// So many counted a probe besides.
    above: u32,
}

impl Polls {
    fn add(&mut self, open: u64) {
        self.all += 1;
        self.above += u32::from(open > 1);
        if open > 0 {
            self.wrong_in_a_row = 0;
            return;
        }
        self.wrong += 1;
        // A longer row is counted as each of the shorter ones that it begins with.
        if let Some(rows) = self.rows.get_mut(self.wrong_in_a_row) {
            *rows += 1;
        }
        self.wrong_in_a_row += 1;
    }
}

impl fmt::Display for Polls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: u32| 100.0 * f64::from(part) / f64::from(self.all.max(1));
        let Self { all, wrong, rows, above, .. } = *self;
        write!(f, "{all}; {wrong} ({:.2} %) counted 0, ", percent(wrong))?;
        write!(f, "{rows:?} times 1, 2, 3, 4 in a row; {above} ({:.2} %) too many", percent(above))
    }
}

/// A proxy before Envoy's admin interface, which reads each poll that passes.
#[derive(Debug)]
struct Observer {
    server: Server,
    polls: Arc<Mutex<Polls>>,
    _dir: TempDir,
}

impl AsRef<Address> for Observer {
    fn as_ref(&self) -> &Address {
        self.server.address()
    }
}

impl Observer {
    fn start(envoy: &Envoy) -> Self {
        let dir = temp_dir("observer");
        let polls = Arc::<Mutex<Polls>>::default();
        let (admin, seen) = (envoy.admin().clone(), Arc::clone(&polls));
        let server = Server::start(&Address::Unix(dir.path().join("admin.sock")), move |client| {
            if let Ok((request, response)) = relay(client, &admin)
                && request.starts_with(format!("GET {REQUEST} ").as_bytes())
            {
                let exclusions = Exclusions { names: &[], ignored_suffixes: &[] };
                let mut parser = StatsParser::new(exclusions);
                assert!(parser.push(response.body.as_bytes()), "{response:?}");
                lock(&seen).add(parser.finish().expect("a poll").open);
            }
        });
        Self { server: server.expect("listen"), polls, _dir: dir }
    }

    fn polls(&self) -> Polls {
        *lock(&self.polls)
    }
}

/// Passes on a request without a body, and its response.
fn relay(mut client: &Socket, admin: &Address) -> io::Result<(Vec<u8>, Response)> {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 16 << 10];
    let mut receive = |from: &Socket, bytes: &mut Vec<u8>| -> io::Result<usize> {
        let n = read_before(from, &mut buffer, deadline)?;
        bytes.extend_from_slice(&buffer[..n]);
        if n == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(n) }
    };
    let (mut request, mut response) = (Vec::new(), Vec::new());
    while find(&request, b"\r\n\r\n").is_none() {
        receive(client, &mut request)?;
    }
    let admin = admin.connect(PATIENCE)?;
    (&admin).write_all(&request)?;
    loop {
        let n = receive(&admin, &mut response)?;
        client.write_all(&response[response.len() - n..])?;
        if let Some(response) = Response::parse(&response, false)? {
            return Ok((request, response));
        }
    }
}

/// Holds a drain with one open connection for this long, at the shortest interval there is.
#[track_caller]
fn assert_holds(envoy: &Envoy, time: Duration) -> Polls {
    let observer = Observer::start(envoy);
    let sidecar = Sidecar::builder().beside(&observer).arg("--check-interval=10ms").start();
    let client = connect(envoy);
    let mut hook = sidecar.hook(&[]);
    let start = Instant::now();
    while start.elapsed() < time {
        let took = start.elapsed();
        let none_counted = sidecar.status().open_connections() == Some(0);
        let ended = hook.try_wait();
        assert!(
            ended.is_none() && !none_counted,
            "after {took:?}, with one open, {ended:?}; polls: {}",
            observer.polls()
        );
        // Between two samples.
        thread::sleep(Duration::from_millis(20));
    }
    assert_drain_waits(&sidecar, &mut hook, envoy, 1);
    sidecar.assert_not_logged(counted(0));
    let polls = observer.polls();
    assert!(polls.all > 0 && sidecar.metric("polls_total") >= polls.all.into(), "{polls}");
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    polls
}

/// The check interval where the end is timed. Three must be more than one and [`SPARE`], which they are
/// not at 10 ms.
const INTERVAL: Duration = Duration::from_millis(200);
const SPARE: Duration = Duration::from_millis(50);

/// From a connection's close to the exec hook's exit, in this many drains, from short to long; and how
/// long their polls took on average.
#[track_caller]
fn times_to_end(envoy: &Envoy, rounds: u32) -> (Vec<Duration>, Duration) {
    let (mut took, mut polls) = (0.0, 0.0);
    let interval = format!("--check-interval={}ms", INTERVAL.as_millis());
    let mut times: Vec<_> = (0..rounds)
        .map(|round| {
            restore(envoy);
            let sidecar = Sidecar::builder().beside(envoy).arg(&interval).start();
            let client = connect(envoy);
            let mut hook = sidecar.hook(&[]);
            assert_drain_waits(&sidecar, &mut hook, envoy, 1);
            // Another moment between two polls each time.
            thread::sleep(INTERVAL * round / rounds);
            hook.assert_running();
            let closed = Instant::now();
            drop(client);
            let exit = hook.wait();
            assert!(exit.code == Some(0), "{exit:?}; {}", sidecar.report());
            let metrics = sidecar.metrics();
            took += metric::<f64>(&metrics, "poll_duration_seconds_sum");
            polls += metric::<f64>(&metrics, "poll_duration_seconds_count");
            exit.at - closed
        })
        .collect();
    times.sort();
    (times, Duration::from_secs_f64(took / polls))
}

struct Size {
    is_full: bool,
    hold: Duration,
    rounds: u32,
    /// So many of these rounds may end later than [`SPARE`] after an interval.
    max_late: usize,
    max_intervals: u32,
}

#[track_caller]
fn race(size: &Size) {
    let _turn = take_turn();
    let envoy = Envoy::builder().stats_listener().tcp("tcp").start();
    let probes = Probes::start(envoy.port("stats"));
    let (polls, pace) = probes.during(|| assert_holds(&envoy, size.hold));
    println!("held         {:?}, {pace:.0} probes a second", size.hold);
    println!("polls        {polls}");
    let ((times, poll), pace_of_rounds) = probes.during(|| times_to_end(&envoy, size.rounds));
    let part = |part: usize| times[(times.len() * part).div_ceil(100) - 1];
    // Four polls confirm an end, and what Envoy takes for them is not the sidecar's.
    let limit = if SHIPS { INTERVAL + SPARE } else { 4 * (INTERVAL + SPARE) } + 4 * poll;
    let late = times.iter().filter(|time| **time > limit).count();
    println!("ends         {}, {pace_of_rounds:.0} probes a second", times.len());
    println!(
        "close to end {:?} {:?} {:?} {:?} (p50 p90 p99 max), {late} later than {limit:?}",
        part(50),
        part(90),
        part(99),
        part(100)
    );
    assert_eq!(probes.failed(), 0, "probes have failed");
    if pace.min(pace_of_rounds) < MIN_PACE {
        let few = format!("this machine makes too few probes, {MIN_PACE} a second are needed");
        assert!(!size.is_full, "{few}");
        return println!("SKIPPED: {few}");
    }
    assert!(late <= size.max_late, "{late} are later than {limit:?}: {times:?}");
    let max = size.max_intervals * INTERVAL;
    assert_took("the slowest end", part(100), 0.0..max.as_secs_f32());
}

#[test]
fn probes_that_are_not_counted_neither_end_a_drain_nor_keep_it() {
    // One in ten may be late, so that of ten four are once in a hundred runs. And a poll that counts
    // a probe makes it one interval more; three in a row do so once in some thousand drains.
    let hold = Duration::from_secs(3);
    race(&Size { is_full: false, hold, rounds: 10, max_late: 3, max_intervals: 6 });
}

#[test]
#[ignore = "ten minutes; `just race` runs it"]
fn a_race() {
    let seconds = env::var("RACE").map_or(600, |seconds| seconds.parse().expect("seconds"));
    let hold = Duration::from_secs(seconds);
    race(&Size { is_full: true, hold, rounds: 100, max_late: 10, max_intervals: 3 });
}
