//! Drains with `--wait-for=requests` at full size: how long an eviction takes that idle connections would
//! hold, and how many requests are lost that meet the close of such a connection.

use std::collections::hash_map::RandomState;
use std::env;
use std::hash::BuildHasher as _;
use std::io::{self, ErrorKind, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use socket2::Socket;

use crate::support::Timeline;
use crate::support::client::{read_before, read_response};
use crate::support::prelude::*;
use crate::take_turn;

/// What a pod that is to leave fast is given.
const OPTIONS: [&str; 3] = ["--wait-for=requests", "--check-delay=0s", "--check-interval=1s"];

const MAX_EVICTION: Duration = Duration::from_secs(10);

#[test]
#[ignore = "full size; `just requests` runs it"]
fn an_eviction_with_a_hundred_idle_connections_of_each_kind_ends_within_ten_seconds() {
    let _turn = take_turn();
    let envoy = Envoy::builder().http("web").start();
    let sidecar = Sidecar::builder().beside(&envoy).args(OPTIONS).start();
    let web = envoy.port("web");
    let http1: Vec<_> = (0..100).map(|_| KeptAlive::open(web)).collect();
    let _http2: Vec<_> = (0..100).map(|_| Http2::open(web)).collect();
    assert_eq!(envoy.stat("http.web.downstream_cx_active"), Some(200));
    let mut hooks = PreStopHooks::start(&sidecar, false, Duration::ZERO);
    let exit = hooks.exec.wait();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert_eq!(hooks.envoy.arrived_response(), OK);
    println!("eviction     {:?} with 200 idle connections", exit.took);
    assert!(exit.took <= MAX_EVICTION, "{exit:?}");
    assert!(http1.iter().all(|client| client.is_waiting()), "Envoy has closed one");
    // As long as they hold it, none of these drains ends.
    restore(&envoy);
    let sidecar = Sidecar::builder().beside(&envoy).args(&OPTIONS[1..]).start();
    let mut hook = sidecar.hook(&[]);
    // That nothing happens in this time is what is tested.
    thread::sleep(MAX_EVICTION);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 200);
    assert_exits(&mut sidecar.run(&["release"]), 0, "200 open");
}

/// A client's request gets a response, or meets the close of its connection and is lost.
#[derive(Debug, Default)]
struct Count {
    sent: Timeline<()>,
    lost: Timeline<Instant>,
    retries_failed: AtomicUsize,
}

/// Clients that keep a connection each and send a request at random moments. Each leaves when Envoy asks
/// it to, or closes the connection.
struct Clients {
    count: Arc<Count>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// So many, with a pause of this length between two requests of one, on average. What is lost is
    /// sent once more to another Envoy.
    fn start(port: u16, other: u16, clients: usize, pause: Duration) -> Self {
        let count = Arc::<Count>::default();
        let threads = (0..clients).map(|_| {
            let (socket, count) = (connect_to(port), Arc::clone(&count));
            // One that has had no request yet is not idle to Envoy's stats.
            request(&socket).expect("a first response");
            let client = move || keep_requesting(&socket, other, pause, &count);
            // A thousand of them.
            thread::Builder::new().stack_size(128 << 10).spawn(client).expect("a thread")
        });
        Self { threads: threads.collect(), count }
    }

    /// Waits until each has left.
    fn join(self) -> Arc<Count> {
        for thread in self.threads {
            thread.join().expect("a client panicked");
        }
        self.count
    }
}

fn connect_to(port: u16) -> Socket {
    Address::port(port).connect(PATIENCE).expect("connect")
}

fn request(mut socket: &Socket) -> io::Result<Response> {
    socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
    read_response(socket, PATIENCE)
}

fn keep_requesting(socket: &Socket, other: u16, pause: Duration, count: &Count) {
    let random = RandomState::new();
    for made in 0_u64.. {
        let uniform = (random.hash_one(made) as f64 + 1.0) / (u64::MAX as f64 + 1.0);
        let due = Instant::now() + pause.mul_f64(-uniform.ln());
        // A connection that is closed by now is one that the client does not use.
        match read_before(socket, &mut [0], due) {
            Err(error) if error.kind() == ErrorKind::TimedOut => {}
            _ => return,
        }
        let sent = Instant::now();
        count.sent.push(());
        match request(socket) {
            Ok(response) if response.header("connection") == Some("close") => return,
            Ok(_) => {}
            Err(_) => {
                count.lost.push(sent);
                // RFC 9112, section 9.3.1: a GET may be sent again, on a new connection.
                if request(&connect_to(other)).is_err() {
                    count.retries_failed.fetch_add(1, Ordering::Relaxed);
                }
                return;
            }
        }
    }
}

/// What the drains with one rate have had.
#[derive(Default)]
struct Total {
    sent: usize,
    /// Of these, since the hook's start.
    sent_in_drain: usize,
    /// How long before (-) or after Envoy's SIGTERM each lost request was sent, in milliseconds.
    lost: Vec<f64>,
    open: u64,
    retries_failed: usize,
    drains: Vec<Duration>,
}

#[track_caller]
fn drain(rate: usize, other: &Envoy, total: &mut Total) {
    let mut envoy = Envoy::builder().http("web").start();
    let sidecar = Sidecar::builder().beside(&envoy).args(OPTIONS).start();
    // Each connection has a request in ten seconds, so that most are still there at the end.
    let pause = Duration::from_secs(10);
    let clients = Clients::start(envoy.port("web"), other.port("web"), rate * 10, pause);
    // The clients' moments are random: a second of them, whatever these are.
    thread::sleep(Duration::from_secs(1));
    let start = Instant::now();
    let mut hook = sidecar.hook(&[]);
    let exit = hook.wait();
    let open = sidecar.status().open_connections();
    let stopped = Instant::now();
    envoy.signal(Signal::SIGTERM);
    assert_eq!(exit.code, Some(0), "{exit:?}; {}", sidecar.report());
    wait_for("Envoy to end", || envoy.try_wait());
    let count = clients.join();
    let sent = count.sent.all();
    total.sent += sent.len();
    total.sent_in_drain += sent.iter().filter(|(at, ())| *at >= start).count();
    total.lost.extend(count.lost.all().iter().map(|(_, sent)| {
        let after = sent.saturating_duration_since(stopped).as_secs_f64();
        1000.0 * (after - stopped.saturating_duration_since(*sent).as_secs_f64())
    }));
    total.open += open.expect("a number");
    total.retries_failed += count.retries_failed.load(Ordering::Relaxed);
    total.drains.push(exit.took);
}

#[test]
#[ignore = "full size; `just requests` runs it"]
fn a_request_that_meets_the_close_is_rare_and_can_be_sent_again() {
    let _turn = take_turn();
    let drains = env::var("DRAINS").map_or(30, |drains| drains.parse().expect("a number"));
    let other = Envoy::builder().http("web").start();
    println!(
        "requests a second, drains (longest), requests (in drains), open at the end, lost (a drain):"
    );
    for rate in [1, 10, 100] {
        let mut total = Total::default();
        for _ in 0..drains {
            drain(rate, &other, &mut total);
        }
        let Total { sent, sent_in_drain, lost, open, retries_failed, drains } = &mut total;
        lost.sort_by(f64::total_cmp);
        let part = lost.len() as f64 / drains.len() as f64;
        println!(
            "{rate:4}  {} ({:?})  {sent} ({sent_in_drain})  {open}  {} ({part:.2}): a close takes {:.1} ms; \
             sent at {lost:.1?} ms from SIGTERM",
            drains.len(),
            drains.iter().max().expect("a drain"),
            lost.len(),
            1000.0 * part / rate as f64,
        );
        assert_eq!(*retries_failed, 0, "sent again and lost");
        // Those that Envoy has read by then are answered; what is lost came while it was closing.
        assert!(lost.iter().all(|at| *at > -100.0), "lost before the close: {lost:?}");
        let limit = 0.1 * (rate * drains.len()) as f64 + 3.0;
        assert!((lost.len() as f64) < limit, "{} are lost, not less than {limit}", lost.len());
    }
}
