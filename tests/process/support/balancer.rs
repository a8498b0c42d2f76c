//! A balancer before several Envoys, clients that open a connection for each request, and a health
//! checker that only connects.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::admin_proxy::pump;
use super::client::Client;
use super::envoy::Envoy;
use super::net::{Address, Server};
use super::{PATIENCE, Timeline, lock};

/// The name of the listener that clients reach through the balancer.
pub const WEB: &str = "web";

/// A thread that does the same again and again, at equal distances, until this is dropped.
#[derive(Debug)]
pub struct Repeated {
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Repeated {
    pub fn start(every: Duration, mut act: impl FnMut() + Send + 'static) -> Self {
        let (over, ends) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            let mut due = Instant::now();
            loop {
                act();
                // A stall is not made up for.
                due = (due + every).max(Instant::now());
                let wait = due.saturating_duration_since(Instant::now());
                if ends.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                    break;
                }
            }
        });
        Self { over: Some(over), thread: Some(thread) }
    }
}

impl Drop for Repeated {
    fn drop(&mut self) {
        self.over = None;
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_some_and(|end| end.is_ok()) || thread::panicking(), "a thread panicked");
    }
}

/// When a balancer sends no more to an Envoy: this lag later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stops {
    /// After its health checks have failed.
    AfterFailedChecks,
    /// After its pod's deletion, whatever its health checks are. It must be ready until then, as on a node
    /// that drops connections to a pod which is not.
    AfterDeletion,
}

/// Forwards each connection to the first Envoy in rotation. So the first one has all clients until it
/// is taken out, as if the hash of their address had chosen it.
#[derive(Debug)]
pub struct Balancer {
    server: Server,
    backends: Arc<[Backend]>,
    _checks: Vec<Repeated>,
}

#[derive(Debug)]
struct Backend {
    web: Address,
    health: Client,
    stops: Stops,
    lag: Duration,
    deleted: OnceLock<Instant>,
    /// When the latest health check started that succeeded. Health checks were not failed before that,
    /// so the lag ends this long after it at the latest.
    healthy: Mutex<Option<Instant>>,
    connections: AtomicUsize,
}

impl Backend {
    /// Whether a health check succeeds now.
    fn check(&self) -> bool {
        let start = Instant::now();
        let response = self.health.try_request("GET", "/healthz", PATIENCE);
        let succeeds = response.is_ok_and(|response| response.status == 200);
        if succeeds {
            let mut healthy = lock(&self.healthy);
            *healthy = (*healthy).max(Some(start));
        }
        succeeds
    }

    fn was_healthy_within_lag(&self) -> bool {
        lock(&self.healthy).is_some_and(|healthy| healthy.elapsed() < self.lag)
    }

    fn is_in_rotation(&self) -> bool {
        if self.stops == Stops::AfterDeletion {
            return self.deleted.get().is_none_or(|deleted| deleted.elapsed() < self.lag);
        }
        // Where its checks have stalled, another one decides: a busy machine makes no lag longer.
        self.was_healthy_within_lag() || {
            self.check();
            self.was_healthy_within_lag()
        }
    }
}

impl Balancer {
    /// Before Envoys with the listener [`WEB`] and one for health checks. One whose health checks fail
    /// is out of rotation `lag` later at the latest, and sooner by a twentieth of that at most.
    #[track_caller]
    pub fn start(envoys: &[&Envoy], lag: Duration, stops: Stops) -> Self {
        let backend = |envoy: &&Envoy| Backend {
            web: Address::port(envoy.port(WEB)),
            health: Client::of_port(envoy.port("health")),
            stops,
            lag,
            deleted: OnceLock::new(),
            healthy: Mutex::default(),
            connections: AtomicUsize::default(),
        };
        let backends: Arc<[Backend]> = envoys.iter().map(backend).collect();
        let every = (lag / 20).min(Duration::from_secs(1));
        let checks = (0..backends.len()).map(|n| {
            let backends = Arc::clone(&backends);
            Repeated::start(every, move || {
                backends[n].check();
            })
        });
        let checks = checks.collect();
        let chosen = Arc::clone(&backends);
        let server = Server::start(&Address::loopback(), move |client| {
            // Its client sees the end of the connection.
            let _ = forward(client, &chosen);
        });
        Self { server: server.expect("listen"), backends, _checks: checks }
    }

    pub fn client(&self) -> Client {
        self.server.address().clone().into()
    }

    /// The pod of the `n`th Envoy is being deleted.
    pub fn delete(&self, n: usize) {
        let _deleted_before = self.backends[n].deleted.set(Instant::now());
    }

    /// How many connections the `n`th Envoy was given, from 0 on.
    pub fn connections_to(&self, n: usize) -> usize {
        self.backends[n].connections.load(Ordering::Relaxed)
    }
}

/// To the end of either side.
fn forward(client: &Socket, backends: &[Backend]) -> io::Result<()> {
    let backend = backends.iter().find(|backend| backend.is_in_rotation());
    let backend = backend.ok_or(ErrorKind::NotConnected)?;
    if backend.stops == Stops::AfterDeletion && !backend.check() {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    let envoy = backend.web.connect(PATIENCE)?;
    backend.connections.fetch_add(1, Ordering::Relaxed);
    thread::scope(|scope| {
        scope.spawn(|| pump(&envoy, client, |_| ()));
        pump(client, &envoy, |_| ());
    });
    Ok(())
}

/// A client that opens a connection for each request.
#[derive(Debug)]
pub struct Traffic {
    /// How each request has ended: why not with a whole 200.
    requests: Timeline<Option<String>>,
    _client: Repeated,
}

impl Traffic {
    pub fn start(balancer: &Balancer, every: Duration) -> Self {
        let requests = Timeline::default();
        let (client, ended) = (balancer.client(), requests.clone());
        let client = Repeated::start(every, move || ended.push(failure(&client)));
        Self { requests, _client: client }
    }

    /// How many requests have ended, and why some have failed, with when.
    pub fn results(&self) -> (usize, Vec<(Instant, String)>) {
        let all = self.requests.all();
        let failed = all.iter().filter_map(|(at, why)| Some((*at, why.clone()?)));
        (all.len(), failed.collect())
    }

    #[track_caller]
    pub fn assert_none_failed(&self) {
        let (all, failed) = self.results();
        assert!(all > 0, "no request was made");
        assert!(
            failed.is_empty(),
            "{} of {all} requests failed: {:?}",
            failed.len(),
            failed.first()
        );
    }
}

/// Does one request; why it failed, if it did.
pub fn failure(client: &Client) -> Option<String> {
    match client.try_request("GET", "/", PATIENCE) {
        Ok(response) if response == (200, "served") => None,
        Ok(response) => Some(format!("{response:?}")),
        Err(error) => Some(error.to_string()),
    }
}

/// A health checker that connects and disconnects, as balancers of connections do.
pub fn connect_checks(envoy: &Envoy, every: Duration) -> Repeated {
    let client = Client::of_port(envoy.port(WEB));
    Repeated::start(every, move || {
        let _none_listens = client.try_connect();
    })
}
