//! The backend, `tiny_http`, which makes the response for every route. It alone holds a
//! [`DrainTrigger`].
//!
//! Only the frontends may connect to it, with requests of their own: a body of an absurd length
//! would end the process, and a request that is sent behind one that waits would block it.

use std::io::{self, Cursor, ErrorKind};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tiny_http::{Header, Server, StatusCode};

use crate::cli::drain_request::HookRequest;
use crate::control_socket::{ControlSocket, SocketFile};
use crate::coordinator::{DrainObserver, DrainTrigger, StartError, WaitResult};
use crate::drain::{DrainStart, Outcome, OutcomeKind};
use crate::envoy::transport::connect_unix;
use crate::observe::log::{RateLimit, Record};
use crate::observe::messages;
use crate::os::clock::{self, Timestamp};
use crate::os::supervisor;
use crate::route::{Route, Status};

/// At least this long between the starts of two servers: each that ends leaves threads behind for
/// 5 s. A probe that meets the end of one server and of the next still gets a response within a
/// second.
const MIN_START_INTERVAL: Duration = Duration::from_millis(500);

/// A backlog that stays full this long is that of a server that is running.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(20);

pub struct Backend {
    files: Arc<[SocketFile; 2]>,
    control: ControlSocket,
    /// Whether hooks find the control socket.
    control_is_lost: bool,
    lost_log: RateLimit,
    /// For the first server; each later one binds its own.
    listener: Option<UnixListener>,
    started_at: Timestamp,
    trigger: DrainTrigger,
    observer: DrainObserver,
    restart_signal: RestartSignal,
    /// It may have been reading a request as it ended.
    previous: Option<&'static Server>,
}

/// Tells the [`Backend`] that its server cannot be reached. `tiny_http` does not: its accept thread
/// ends silently when it panics, for want of a thread or of a descriptor, and takes the listener
/// along.
#[derive(Clone, Default)]
pub struct RestartSignal(Arc<Mutex<Option<&'static Server>>>);

impl RestartSignal {
    /// The server. It is never dropped, since that would remove the socket's file, and kept over a
    /// panic, since its accept thread lives on.
    fn server(&self) -> Option<&'static Server> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_server(&self, server: Option<&'static Server>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = server;
    }

    /// Has the server checked, and restarted if need be, after this error on the way to it.
    pub fn request_restart(&self, error: ErrorKind) {
        if means_no_listener(error)
            && let Some(server) = self.server()
        {
            server.unblock();
        }
    }
}

fn means_no_listener(error: ErrorKind) -> bool {
    matches!(error, ErrorKind::ConnectionRefused | ErrorKind::NotFound)
}

struct TextResponse {
    status: u16,
    content_type: &'static str,
    body: String,
}

fn plain(status: u16, body: impl Into<String>) -> TextResponse {
    TextResponse { status, content_type: "text/plain; charset=utf-8", body: body.into() }
}

fn stopping() -> TextResponse {
    plain(503, "the sidecar is stopping\n")
}

enum Handling {
    Respond(TextResponse),
    /// The response is what this returns once a drain has ended.
    Wait(Box<dyn FnOnce() -> TextResponse + Send>),
}

impl Backend {
    /// `files`: of the control socket, and of the backend's, at which `listener` is bound.
    pub fn new(
        listener: UnixListener,
        files: Arc<[SocketFile; 2]>,
        control: ControlSocket,
        trigger: DrainTrigger,
        observer: DrainObserver,
    ) -> Self {
        Self {
            files,
            control,
            control_is_lost: false,
            lost_log: RateLimit::default(),
            listener: Some(listener),
            started_at: Timestamp::ZERO,
            trigger,
            observer,
            restart_signal: RestartSignal::default(),
            previous: None,
        }
    }

    pub fn restart_signal(&self) -> RestartSignal {
        self.restart_signal.clone()
    }

    /// Serves until the process exits.
    pub fn serve(&mut self) {
        loop {
            let server = match self.restart_signal.server().map_or_else(|| self.start(), Ok) {
                Ok(server) => server,
                Err(error) => {
                    Record::error(messages::BACKEND_NOT_STARTED)
                        .with("error", error.to_string())
                        .emit();
                    continue;
                }
            };
            match server.recv() {
                Ok(request) => self.handle(request),
                Err(error) => self.check(server, &error),
            }
            while let Some(request) = self.previous.and_then(|server| server.try_recv().ok()?) {
                self.handle(request);
            }
        }
    }

    /// Checks whether the server still listens; if not, the next loop starts another.
    fn check(&mut self, server: &'static Server, error: &io::Error) {
        match connect_unix(&self.files[1].path, CONNECT_TIMEOUT) {
            Err(error) if means_no_listener(error.kind()) => {}
            _ => return,
        }
        Record::error(messages::BACKEND_ENDED).with("error", error.to_string()).emit();
        self.previous = Some(server);
        self.restart_signal.set_server(None);
    }

    fn start(&mut self) -> io::Result<&'static Server> {
        thread::sleep(self.started_at + MIN_START_INTERVAL - clock::now());
        self.started_at = clock::now();
        let listener = match self.listener.take() {
            Some(listener) => listener,
            None => self.files[1].bind_again()?,
        };
        let server = Server::from_listener(listener, None).map_err(io::Error::other)?;
        let server = Box::leak(Box::new(server));
        self.restart_signal.set_server(Some(server));
        Ok(server)
    }

    /// A probe comes every few seconds, so this needs no timer.
    fn check_control_socket(&mut self) {
        let file = &self.files[0];
        let bound = self.control.bind_if_removed(file);
        self.control_is_lost = bound.is_err();
        let path = || file.path.display().to_string();
        match bound {
            Ok(false) => {}
            Ok(true) => {
                Record::warn(messages::CONTROL_SOCKET_REPLACED).with("path", path()).emit();
            }
            Err(error) => {
                if let Some(times) = self.lost_log.happened(clock::now()) {
                    Record::error(messages::CONTROL_SOCKET_LOST)
                        .with("path", path())
                        .with("error", error.to_string())
                        .with("times", times)
                        .emit();
                }
            }
        }
    }

    fn handle(&mut self, request: tiny_http::Request) {
        self.check_control_socket();
        match self.handling(&request) {
            // It fails if the client has disconnected, which is no concern of the backend.
            Handling::Respond(response) => drop(respond(request, response)),
            Handling::Wait(wait) => {
                let waiter = move || respond(request, wait());
                if let Err(error) = supervisor::spawn("waiter", Box::new(waiter)) {
                    // The request went with the thread, which tiny_http responds to with a 500.
                    Record::error(messages::NO_THREAD_FOR_WAITER)
                        .with("error", error.to_string())
                        .emit();
                }
            }
        }
    }

    fn handling(&self, request: &tiny_http::Request) -> Handling {
        let observer = &self.observer;
        Handling::Respond(match Route::parse(request.method().as_str(), request.url()) {
            Ok(Route::EnvoyHooks) => {
                let observer = observer.clone();
                let wait = move || hook_response(&observer.wait_for_envoy_hooks(), envoy_hook_text);
                return Handling::Wait(Box::new(wait));
            }
            Ok(Route::ExecHooks(drain)) => {
                let observer = observer.clone();
                let wait =
                    move || hook_response(&observer.wait_for_exec_hooks(drain), exec_hook_text);
                return Handling::Wait(Box::new(wait));
            }
            Ok(Route::Healthz) if self.control_is_lost => {
                plain(503, "no hook finds the control socket\n")
            }
            Ok(Route::Healthz) if observer.is_worker_running() => plain(200, "OK"),
            Ok(Route::Healthz) => plain(503, "the worker is down\n"),
            Ok(Route::StatusJson) => TextResponse {
                content_type: "application/json",
                ..plain(200, observer.snapshot().json())
            },
            Ok(Route::StatusLine) => plain(200, observer.snapshot().line()),
            Ok(Route::StatusPage) => plain(200, observer.snapshot().page()),
            Ok(Route::Metrics) => TextResponse {
                content_type: "text/plain; version=0.0.4",
                ..plain(200, observer.snapshot().metrics())
            },
            Ok(Route::Drain(query)) => self.start_drain(&query),
            Err(Status::BadRequest) => plain(400, "drain= takes the number of a drain\n"),
            Err(Status::NotFound) => plain(404, "not found\n"),
            Err(_) => plain(405, "method not allowed\n"),
        })
    }

    fn start_drain(&self, query: &str) -> TextResponse {
        let HookRequest { drain, error } = match HookRequest::from_query(query) {
            Ok(request) => request,
            Err(sentence) => {
                Record::warn(messages::DRAIN_REQUEST_REJECTED)
                    .with("error", sentence.as_str())
                    .emit();
                return plain(400, sentence + "\n");
            }
        };
        let start = self.trigger.start(&drain);
        if !error.is_empty() {
            let number = match start {
                Ok(DrainStart::Started(number) | DrainStart::Joined(number)) => Some(number),
                Err(_) => None,
            };
            Record::error(messages::HOOK_CALLED_WRONGLY)
                .with("drain", number)
                .with("error", error)
                .emit();
        }
        match start {
            Ok(DrainStart::Started(number)) => plain(200, format!("started {number}\n")),
            Ok(DrainStart::Joined(number)) => plain(200, format!("joined {number}\n")),
            Err(StartError::Expired) => {
                Record::warn(messages::DRAIN_REQUEST_EXPIRED).emit();
                plain(410, "the request has expired\n")
            }
            Err(StartError::Stopping) => stopping(),
            Err(StartError::OtherEnvoy(own)) => {
                Record::warn(messages::DRAIN_OF_OTHER_ENVOY_REFUSED)
                    .with("admin_address", own.to_string())
                    .with("requested", query)
                    .emit();
                plain(409, format!("this sidecar drains the Envoy at {own} alone\n"))
            }
        }
    }
}

/// The response to a hook; `text` is what it reads of an outcome.
fn hook_response(result: &WaitResult, text: fn(Outcome) -> String) -> TextResponse {
    match result {
        WaitResult::Ended(ended) => plain(200, text(ended.outcome)),
        WaitResult::NoWaiter => plain(410, "no client waits any more\n"),
        WaitResult::UnknownDrain => plain(410, "there is no such drain\n"),
        WaitResult::Stopping => stopping(),
    }
}

/// For Envoy's own hook. The kubelet takes any response for success; people read this one.
fn envoy_hook_text(outcome: Outcome) -> String {
    if outcome.kind == OutcomeKind::Drained { "OK".to_owned() } else { outcome.explain() + "\n" }
}

/// For the exec hook: the outcome's name on a line, and its explanation on the next.
fn exec_hook_text(outcome: Outcome) -> String {
    format!("{}\n{}\n", outcome.kind.name(), outcome.explain())
}

fn respond(request: tiny_http::Request, response: TextResponse) -> io::Result<()> {
    // The names and values are constants of this file, so they are always headers.
    let headers = Header::from_bytes("Content-Type", response.content_type).into_iter().collect();
    let (length, body) = (response.body.len(), Cursor::new(response.body.into_bytes()));
    let status = StatusCode(response.status);
    let response = tiny_http::Response::new(status, headers, body, Some(length), None);
    request.respond(response)
}

#[cfg(test)]
mod tests;
