//! `tiny_http` on the control socket. Whoever can connect to it may begin a drain: this is the
//! only place that holds a [`Control`].

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tiny_http::{Header, Method, Response, Server};

use crate::drain::Begun;
use crate::logger::Line;
use crate::manager::{Control, Refusal, Verdict, Watch};
use crate::options;
use crate::story;
use crate::supervisor;

/// Each has a thread, and a hook that was killed has its thread until the drain ends. The kubelet
/// runs two hooks, and each again when it was restarted.
const MOST_WAITERS: usize = 64;

/// A server whose accept thread has ended is replaced after this: each leaves threads behind.
const REBUILD: Duration = Duration::from_secs(1);

/// The server of the control socket.
pub struct Service {
    listener: UnixListener,
    control: Control,
    watch: Watch,
    /// Requests that have a thread: of Envoy's hooks and others, of exec hooks, and of the public
    /// port, which others must not keep out.
    waiters: Arc<AtomicUsize>,
    hooks: Arc<AtomicUsize>,
    outside: Arc<AtomicUsize>,
    /// Never dropped, since that would remove the socket's file; and kept over a panic, since its
    /// accept thread lives on.
    server: Option<&'static Server>,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    Healthz,
    /// Envoy's hook: wait for the end of the drain that goes on or comes next.
    Shutdown,
    /// The exec hook: wait for the end of this drain.
    Hook(u64),
    /// The public port: wait in the place of all who wait there.
    Outside,
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

/// Answers a request.
type Answer = Box<dyn FnOnce(Reply)>;

/// Waits for what a request is to be answered with, and answers it.
type Wait = Box<dyn FnOnce(Answer) + Send>;

/// What comes of a request.
enum Next<'a> {
    Reply(Reply),
    /// One of these places is taken meanwhile.
    Wait(&'a Arc<AtomicUsize>, Wait),
}

impl Service {
    /// A service for a bound socket.
    #[must_use]
    pub fn new(listener: UnixListener, control: Control, watch: Watch) -> Self {
        Self {
            listener,
            control,
            watch,
            waiters: Arc::default(),
            hooks: Arc::default(),
            outside: Arc::default(),
            server: None,
        }
    }

    /// Serves for as long as the process lives.
    pub fn serve(&mut self) {
        loop {
            let server = match self.server.map_or_else(|| self.build(), Ok) {
                Ok(server) => server,
                Err(error) => {
                    Line::error("the control socket cannot be served; trying again")
                        .with("error", error)
                        .emit();
                    thread::sleep(REBUILD);
                    continue;
                }
            };
            self.server = Some(server);
            match server.recv() {
                Ok(request) => self.answer(request),
                Err(error) => {
                    Line::error("the control socket's server has ended; starting another")
                        .with("error", error.to_string())
                        .emit();
                    self.server = None;
                    thread::sleep(REBUILD);
                }
            }
        }
    }

    fn build(&self) -> Result<&'static Server, String> {
        let listener = self.listener.try_clone().map_err(|error| error.to_string())?;
        let server = Server::from_listener(listener, None).map_err(|error| error.to_string())?;
        Ok(Box::leak(Box::new(server)))
    }

    fn answer(&self, request: tiny_http::Request) {
        match self.next(&request) {
            Next::Reply(reply) => respond(request, reply),
            Next::Wait(taken, wait) => in_a_thread(taken, request, wait),
        }
    }

    fn next(&self, request: &tiny_http::Request) -> Next<'_> {
        let has_body = request.body_length().is_some_and(|length| length > 0)
            || request.headers().iter().any(|header| header.field.equiv("Transfer-Encoding"));
        if has_body {
            // Dropping the request reads its body to the end, which may never come.
            let refuse = |answer: Answer| answer(Reply::text(413, "a body is not taken here\n"));
            return Next::Wait(&self.waiters, Box::new(refuse));
        }
        let route = match route(request.method(), request.url()) {
            Ok(route) => route,
            Err(reply) => return Next::Reply(reply),
        };
        let watch = &self.watch;
        Next::Reply(match route {
            Route::Shutdown => {
                let watch = watch.clone();
                let wait = move |answer: Answer| {
                    watch.wait_as_waiter(|verdict| answer(for_envoy(&verdict)));
                };
                return Next::Wait(&self.waiters, Box::new(wait));
            }
            Route::Outside => {
                let watch = watch.clone();
                let wait = move |answer: Answer| {
                    watch.wait_for_those_outside(|verdict| answer(for_envoy(&verdict)));
                };
                return Next::Wait(&self.outside, Box::new(wait));
            }
            Route::Hook(number) => {
                let watch = watch.clone();
                let wait = move |answer: Answer| {
                    watch.wait_as_hook(number, |verdict| answer(for_the_hook(&verdict)));
                };
                return Next::Wait(&self.hooks, Box::new(wait));
            }
            Route::Healthz if watch.is_working() => Reply::text(200, "OK"),
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
        let request = match options::Request::from_query(query) {
            Ok(request) => request,
            Err(sentence) => return Reply::text(400, sentence + "\n"),
        };
        match self.control.begin(&request) {
            Ok(Begun::Started(number)) => Reply::text(200, format!("started {number}\n")),
            Ok(Begun::Joined(number)) => Reply::text(200, format!("joined {number}\n")),
            Err(Refusal::Expired) => {
                Line::warn("a request to drain came too late: nobody waits for it any more").emit();
                Reply::text(410, "the request has expired\n")
            }
            Err(Refusal::Stopping) => Reply::text(503, "the sidecar stops\n"),
        }
    }
}

/// Waits in a thread of its own, if there is a place for it.
fn in_a_thread(taken: &Arc<AtomicUsize>, request: tiny_http::Request, wait: Wait) {
    let place = Place::take(taken);
    if place.number > MOST_WAITERS {
        return respond(
            request,
            Reply::text(503, format!("{MOST_WAITERS} requests wait already\n")),
        );
    }
    let waiter = move || {
        let _place = place;
        wait(Box::new(move |reply| respond(request, reply)));
    };
    if let Err(error) = supervisor::spawn("waiter", Box::new(waiter)) {
        // The request went with the thread, which tiny_http answers with a 500.
        Line::error("there is no thread for a request that waits")
            .with("error", error.to_string())
            .emit();
    }
}

/// A place among those who wait.
struct Place {
    taken: Arc<AtomicUsize>,
    number: usize,
}

impl Place {
    fn take(taken: &Arc<AtomicUsize>) -> Self {
        let number = taken.fetch_add(1, Ordering::Relaxed) + 1;
        Self { taken: Arc::clone(taken), number }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

fn route(method: &Method, url: &str) -> Result<Route, Reply> {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let route = match (path, query) {
        ("/healthz", _) => Route::Healthz,
        ("/shutdown", "outside") => Route::Outside,
        ("/shutdown" | "/shutdown/ready", _) => match query.strip_prefix("drain=") {
            None => Route::Shutdown,
            Some(number) => match number.parse() {
                Ok(number) if number > 0 => Route::Hook(number),
                _ => return Err(Reply::text(400, "drain= takes the number of a drain\n")),
            },
        },
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
fn for_envoy(verdict: &Verdict) -> Reply {
    match verdict {
        Verdict::Ended(ended) if ended.outcome.name() == "drained" => Reply::text(200, "OK"),
        Verdict::Ended(ended) => Reply::text(200, ended.outcome.explain() + "\n"),
        Verdict::NoDrain => Reply::text(503, story::NO_DRAIN),
        Verdict::Nobody | Verdict::Unknown => Reply::text(410, "nobody waits any more\n"),
        Verdict::Stopping => Reply::text(503, "the sidecar stops\n"),
    }
}

/// What the exec hook is told: the outcome's name on a line, and its explanation on the next.
fn for_the_hook(verdict: &Verdict) -> Reply {
    match verdict {
        Verdict::Ended(ended) => {
            let outcome = ended.outcome;
            Reply::text(200, format!("{}\n{}\n", outcome.name(), outcome.explain()))
        }
        Verdict::Unknown | Verdict::Nobody | Verdict::NoDrain => {
            Reply::text(410, "there is no such drain\n")
        }
        Verdict::Stopping => Reply::text(503, "the sidecar stops\n"),
    }
}

fn respond(request: tiny_http::Request, reply: Reply) {
    let mut response = Response::from_string(reply.body).with_status_code(reply.status);
    // The names and values are constants of this file, so they are always headers.
    if let Ok(kind) = Header::from_bytes("Content-Type", reply.kind) {
        response.add_header(kind);
    }
    // Whoever has hung up is not told.
    let _ = request.respond(response);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_methods_lead_to_their_routes() {
        for (method, url, expected) in [
            (Method::Get, "/healthz", Route::Healthz),
            (Method::Head, "/healthz?x", Route::Healthz),
            (Method::Get, "/shutdown", Route::Shutdown),
            (Method::Get, "/shutdown/ready", Route::Shutdown),
            (Method::Get, "/shutdown?drain=12", Route::Hook(12)),
            (Method::Get, "/shutdown?outside", Route::Outside),
            (Method::Get, "/status", Route::StatusJson),
            (Method::Get, "/status?as=line", Route::StatusLine),
            (Method::Get, "/status?as=page", Route::StatusPage),
            (Method::Get, "/metrics", Route::Metrics),
            (Method::Post, "/drain", Route::Drain(String::new())),
            (Method::Post, "/drain?a=1?b", Route::Drain("a=1?b".to_owned())),
        ] {
            assert_eq!(route(&method, url).ok(), Some(expected), "{method} {url}");
        }
        for (method, url, status) in [
            (Method::Get, "/drain", 405),
            (Method::Head, "/drain", 405),
            (Method::Put, "/drain", 405),
            (Method::Post, "/shutdown", 405),
            (Method::Post, "/status", 405),
            (Method::Delete, "/healthz", 405),
            (Method::Post, "/", 404),
            (Method::Post, "/drain/", 404),
            (Method::Post, "//drain", 404),
            (Method::Post, "/DRAIN", 404),
            (Method::Post, "http://x/drain", 404),
            (Method::Get, "/shutdown?drain=", 400),
            (Method::Get, "/shutdown?drain=0", 400),
            (Method::Get, "/shutdown?drain=-1", 400),
        ] {
            let status_found = route(&method, url).err().map(|reply| reply.status);
            assert_eq!(status_found, Some(status), "{method} {url}");
        }
    }
}
