//! The sidecar's own server, `tiny_http`, which the two doors ask in words of their own: it alone
//! holds a [`DrainTrigger`]. It must not meet anybody else: a body of an absurd length would end the
//! process, and a request that is sent behind one that waits would stop it.

use std::fmt;
use std::io::{self, Cursor, ErrorKind};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tiny_http::{Header, Method, Response, Server, StatusCode};

use crate::cli::drain_request::DrainRequest;
use crate::control_socket::SocketFile;
use crate::coordinator::{DrainObserver, DrainTrigger, StartError, WaitResult};
use crate::drain::{DrainStart, OutcomeKind};
use crate::envoy::transport::connect_unix;
use crate::observe::log::Record;
use crate::observe::messages;
use crate::os::clock;
use crate::os::clock::Timestamp;
use crate::os::supervisor;
use crate::route::{FOR_WAITERS, HOOK};

/// Two servers are built so far apart at least: each that ends leaves threads behind for 5 s. A probe
/// that meets the end of one server and of the next is still answered within a second.
const REBUILD: Duration = Duration::from_millis(500);

/// A backlog that is full this long is that of a server that is there.
const CONNECT: Duration = Duration::from_millis(20);

/// The server.
pub struct Backend {
    files: Arc<[SocketFile; 2]>,
    /// Where the next server listens, once.
    listener: Option<UnixListener>,
    built: Timestamp,
    control: DrainTrigger,
    watch: DrainObserver,
    bell: RestartSignal,
    /// The server before, which may have been reading a request as it ended.
    last: Option<&'static Server>,
}

/// Tells the [`Backend`] that its server cannot be reached. `tiny_http` does not: its accept thread
/// ends silently when it panics, for want of a thread or of a descriptor, and takes the listener along.
#[derive(Clone, Default)]
pub struct RestartSignal(Arc<Mutex<Option<&'static Server>>>);

impl RestartSignal {
    /// The server, which is never dropped, since that would remove the socket's file; and kept over
    /// a panic, since its accept thread lives on.
    fn server(&self) -> Option<&'static Server> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hang(&self, server: Option<&'static Server>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = server;
    }

    /// The door has met this error on its way to the server.
    pub fn ring(&self, error: ErrorKind) {
        if is_gone(error)
            && let Some(server) = self.server()
        {
            server.unblock();
        }
    }
}

impl fmt::Debug for RestartSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bell")
    }
}

fn is_gone(error: ErrorKind) -> bool {
    matches!(error, ErrorKind::ConnectionRefused | ErrorKind::NotFound)
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    Healthz,
    /// Wait in the place of all who wait as Envoy's own hook does.
    Waiters,
    /// Wait in the place of the exec hooks of this drain.
    Hook(u64),
    StatusJson,
    StatusLine,
    StatusPage,
    Metrics,
    /// Begin a drain, with this query.
    Drain(String),
}

/// An answer.
struct Reply {
    status: u16,
    kind: &'static str,
    body: String,
}

impl Reply {
    fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", body: body.into() }
    }
}

/// What comes of a request.
enum Next {
    Reply(Reply),
    /// What comes of a wait for it.
    Wait(Box<dyn FnOnce() -> Reply + Send>),
}

impl Backend {
    /// A service for a bound socket.
    #[must_use]
    pub fn new(
        listener: UnixListener,
        files: Arc<[SocketFile; 2]>,
        control: DrainTrigger,
        watch: DrainObserver,
    ) -> Self {
        let bell = RestartSignal::default();
        Self {
            files,
            listener: Some(listener),
            built: Timestamp::ZERO,
            control,
            watch,
            bell,
            last: None,
        }
    }

    /// What a door rings that cannot reach the server.
    #[must_use]
    pub fn bell(&self) -> RestartSignal {
        self.bell.clone()
    }

    /// Serves for as long as the process lives.
    pub fn serve(&mut self) {
        loop {
            let server = match self.bell.server().map_or_else(|| self.build(), Ok) {
                Ok(server) => server,
                Err(error) => {
                    Record::error(messages::BACKEND_NOT_STARTED).with("error", error).emit();
                    continue;
                }
            };
            match server.recv() {
                Ok(request) => self.answer(request),
                Err(error) => self.look_after(server, &error),
            }
            while let Some(request) = self.last.and_then(|last| last.try_recv().ok()?) {
                self.answer(request);
            }
        }
    }

    /// Looks whether anybody listens still, and else has another server built.
    fn look_after(&mut self, server: &'static Server, error: &io::Error) {
        let path = &self.files[1].path;
        if !connect_unix(path, CONNECT).is_err_and(|error| is_gone(error.kind())) {
            return;
        }
        Record::error(messages::BACKEND_ENDED).with("error", error.to_string()).emit();
        self.last = Some(server);
        self.bell.hang(None);
    }

    fn build(&mut self) -> Result<&'static Server, String> {
        thread::sleep(self.built + REBUILD - clock::now());
        self.built = clock::now();
        let listener = match self.listener.take() {
            Some(listener) => listener,
            None => self.files[1].bind_again().map_err(|error| error.to_string())?,
        };
        let server = Server::from_listener(listener, None).map_err(|error| error.to_string())?;
        let server = Box::leak(Box::new(server));
        self.bell.hang(Some(server));
        Ok(server)
    }

    fn answer(&self, request: tiny_http::Request) {
        match self.next(&request) {
            Next::Reply(reply) => respond(request, reply),
            Next::Wait(wait) => {
                let waiter = move || respond(request, wait());
                if let Err(error) = supervisor::spawn("waiter", Box::new(waiter)) {
                    // The request went with the thread, which tiny_http answers with a 500.
                    Record::error(messages::NO_THREAD_FOR_WAITER)
                        .with("error", error.to_string())
                        .emit();
                }
            }
        }
    }

    fn next(&self, request: &tiny_http::Request) -> Next {
        let route = match route(request.method(), request.url()) {
            Ok(route) => route,
            Err(reply) => return Next::Reply(reply),
        };
        let watch = &self.watch;
        Next::Reply(match route {
            Route::Waiters => {
                let watch = watch.clone();
                let wait = move || for_envoy(&watch.wait_for_envoy_hooks());
                return Next::Wait(Box::new(wait));
            }
            Route::Hook(number) => {
                let watch = watch.clone();
                return Next::Wait(Box::new(move || {
                    for_the_hook(&watch.wait_for_exec_hooks(number))
                }));
            }
            Route::Healthz if watch.is_worker_running() => Reply::text(200, "OK"),
            Route::Healthz => Reply::text(503, "the worker is down\n"),
            Route::StatusJson => {
                Reply { kind: "application/json", ..Reply::text(200, watch.snapshot().json()) }
            }
            Route::StatusLine => Reply::text(200, watch.snapshot().line()),
            Route::StatusPage => Reply::text(200, watch.snapshot().page()),
            Route::Metrics => Reply {
                kind: "text/plain; version=0.0.4",
                ..Reply::text(200, watch.snapshot().metrics())
            },
            Route::Drain(query) => self.drain(&query),
        })
    }

    fn drain(&self, query: &str) -> Reply {
        let request = match DrainRequest::from_query(query) {
            Ok(request) => request,
            Err(sentence) => return Reply::text(400, sentence + "\n"),
        };
        match self.control.start(&request) {
            Ok(DrainStart::Started(number)) => Reply::text(200, format!("started {number}\n")),
            Ok(DrainStart::Joined(number)) => Reply::text(200, format!("joined {number}\n")),
            Err(StartError::Expired) => {
                Record::warn(messages::DRAIN_REQUEST_EXPIRED).emit();
                Reply::text(410, "the request has expired\n")
            }
            Err(StartError::Stopping) => Reply::text(503, "the sidecar stops\n"),
        }
    }
}

fn route(method: &Method, url: &str) -> Result<Route, Reply> {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let route = match (path, query) {
        ("/healthz", _) => Route::Healthz,
        _ if url == FOR_WAITERS => Route::Waiters,
        ("/shutdown" | "/shutdown/ready", query) => {
            match query.strip_prefix(HOOK).and_then(|number| number.parse().ok()) {
                Some(number) if number > 0 => Route::Hook(number),
                _ => return Err(Reply::text(400, "drain= takes the number of a drain\n")),
            }
        }
        ("/status", "as=line") => Route::StatusLine,
        ("/status", "as=page") => Route::StatusPage,
        ("/status", _) => Route::StatusJson,
        ("/metrics", _) => Route::Metrics,
        ("/drain", query) => Route::Drain(query.to_owned()),
        _ => return Err(Reply::text(404, "not found\n")),
    };
    let allowed = match route {
        Route::Drain(_) => *method == Method::Post,
        _ => matches!(method, Method::Get | Method::Head),
    };
    if allowed { Ok(route) } else { Err(Reply::text(405, "method not allowed\n")) }
}

/// What Envoy's hook is told. The kubelet takes any answer as success; people read this.
fn for_envoy(verdict: &WaitResult) -> Reply {
    match verdict {
        WaitResult::Ended(ended) if ended.outcome.kind == OutcomeKind::Drained => {
            Reply::text(200, "OK")
        }
        WaitResult::Ended(ended) => Reply::text(200, ended.outcome.explain() + "\n"),
        WaitResult::NoWaiter | WaitResult::UnknownDrain => {
            Reply::text(410, "nobody waits any more\n")
        }
        WaitResult::Stopping => Reply::text(503, "the sidecar stops\n"),
    }
}

/// What the exec hook is told: the outcome's name on a line, and its explanation on the next.
fn for_the_hook(verdict: &WaitResult) -> Reply {
    match verdict {
        WaitResult::Ended(ended) => {
            let outcome = ended.outcome;
            Reply::text(200, format!("{}\n{}\n", outcome.kind.name(), outcome.explain()))
        }
        WaitResult::UnknownDrain | WaitResult::NoWaiter => {
            Reply::text(410, "there is no such drain\n")
        }
        WaitResult::Stopping => Reply::text(503, "the sidecar stops\n"),
    }
}

fn respond(request: tiny_http::Request, reply: Reply) {
    // The names and values are constants of this file, so they are always headers.
    let kind = Header::from_bytes("Content-Type", reply.kind).into_iter().collect();
    let (length, body) = (reply.body.len(), Cursor::new(reply.body.into_bytes()));
    let response = Response::new(StatusCode(reply.status), kind, body, Some(length), None);
    // Whoever has hung up is not told.
    let _ = request.respond(response);
}

#[cfg(test)]
mod tests;
