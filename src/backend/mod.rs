//! The backend, `tiny_http`, which makes the response for every route. It alone holds a
//! [`DrainTrigger`].
//!
//! Its only client is the frontend, over one [`Wire`]: a body of an absurd length would end the
//! process. Nothing waits here: each response is made at once, of what the coordinator's lock guards.

mod wire;

use std::io::{self, Cursor};
use std::sync::Arc;
use std::time::Duration;

use tiny_http::{Header, Server, StatusCode};

pub use self::wire::Wire;
use crate::cli::drain_request::HookRequest;
use crate::coordinator::{DrainObserver, DrainTrigger, StartError, WaitResult};
use crate::drain::{DrainStart, OutcomeKind, Phase};
use crate::observe::log::Record;
use crate::observe::messages;
use crate::os::supervisor;
use crate::route::Route;

/// The status of a wait that is not over (RFC 9110, section 15.3.3); no client gets it.
pub const ACCEPTED: u16 = 202;

/// For how long a request may come from a wire that was dropped: as long as tiny_http's threads live.
const LATE_REQUESTS: Duration = Duration::from_secs(5);

pub struct Backend {
    trigger: DrainTrigger,
    observer: DrainObserver,
}

struct TextResponse {
    status: u16,
    content_type: &'static str,
    body: String,
}

fn plain(status: u16, body: impl Into<String>) -> TextResponse {
    TextResponse { status, content_type: "text/plain; charset=utf-8", body: body.into() }
}

const STOPPING: &str = "the sidecar is stopping\n";

impl Backend {
    pub fn new(trigger: DrainTrigger, observer: DrainObserver) -> Self {
        Self { trigger, observer }
    }

    /// Serves on a new wire, until that is dropped. After a panic its wire has no use any more.
    ///
    /// # Errors
    /// When descriptors or threads are lacking.
    pub fn connect(self: &Arc<Self>) -> io::Result<Wire> {
        let (wire, server) = Wire::open()?;
        let backend = Arc::clone(self);
        supervisor::spawn("backend", Box::new(move || backend.serve(server)))?;
        Ok(wire)
    }

    fn serve(&self, server: &Server) -> io::Result<()> {
        loop {
            match server.recv() {
                Ok(request) => {
                    let response = self.response(request.method().as_str(), request.url());
                    // It fails when the wire has ended, which the frontend finds out itself.
                    let _ = respond(request, response);
                }
                // Its listener has ended, as it does after the first connection.
                Err(error) if error.raw_os_error().is_some() => {}
                // The wire was dropped. What is still read from it would stay in the queue, with a
                // descriptor.
                Err(_) => {
                    while !matches!(server.recv_timeout(LATE_REQUESTS), Ok(None)) {}
                    return Ok(());
                }
            }
        }
    }

    fn response(&self, method: &str, target: &str) -> TextResponse {
        let observer = &self.observer;
        match Route::parse(method, target) {
            Ok(Route::Healthz) => {
                observer.health().map_or_else(|why| plain(503, why), |()| plain(200, "OK"))
            }
            Ok(Route::Metrics) => {
                // What comes from the network has no effect on the pace of a drain.
                observer.refresh(false);
                let body = observer.snapshot().metrics();
                TextResponse { content_type: "text/plain; version=0.0.4", ..plain(200, body) }
            }
            Ok(hook @ (Route::EnvoyHook(_) | Route::ExecHook(_))) => {
                hook_response(&hook, observer.wait_result(&hook))
            }
            Ok(Route::StatusJson) => {
                observer.refresh(true);
                let body = observer.snapshot().json();
                TextResponse { content_type: "application/json", ..plain(200, body) }
            }
            Ok(Route::StatusLine) => plain(200, observer.snapshot().line()),
            Ok(Route::StatusPage(style)) => {
                observer.refresh(true);
                plain(200, observer.snapshot().page(style))
            }
            Ok(Route::Drain(query)) => self.start_drain(&query),
            Ok(Route::Release(by)) => match self.trigger.release(&by) {
                Some(number) => plain(200, format!("released {number}\n")),
                None => plain(409, "no drain is in progress, so there is none to release\n"),
            },
            Ok(Route::Restore(by)) => match self.trigger.restore(&by) {
                Ok(number) => plain(200, format!("requested {number}\n")),
                Err(Phase::Idle | Phase::Ended) => plain(409, STOPPING),
                Err(phase) => plain(
                    409,
                    format!(
                        "a drain is in progress ({}), which takes Envoy out of service; end it \
                         first, with release\n",
                        phase.name()
                    ),
                ),
            },
            Ok(Route::Restored(number)) => match self.trigger.restored(number) {
                None => plain(200, "requested\n"),
                Some(Ok(())) => plain(200, "restored\n"),
                Some(Err(reason)) => plain(200, format!("failed\n{reason}\n")),
            },
            // The frontend sends none of these.
            Err((_, status)) => plain(status.code().parse().unwrap_or(400), status.name()),
        }
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
            Record::error(messages::HOOK_CALLED_WRONGLY)
                .with("drain", start.as_ref().ok().map(|start| start.number()))
                .with("error", error)
                .emit();
        }
        match start {
            Ok(DrainStart::Started(number)) => plain(200, format!("started {number}\n")),
            Ok(DrainStart::Joined(number)) => {
                let line = self.observer.explain_join(&drain.overrides);
                plain(200, format!("joined {number}\n{line}"))
            }
            Err(StartError::Expired) => {
                Record::warn(messages::DRAIN_REQUEST_EXPIRED).emit();
                plain(410, "the request has expired\n")
            }
            Err(StartError::Stopping) => plain(503, STOPPING),
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

/// The response to a hook.
fn hook_response(hook: &Route, result: Option<WaitResult>) -> TextResponse {
    match result {
        Some(WaitResult::Ended(outcome)) => {
            let explanation = outcome.explain() + "\n";
            plain(
                200,
                match hook {
                    // The outcome's name on a line, and its explanation on the next.
                    Route::ExecHook(_) => format!("{}\n{explanation}", outcome.kind.name()),
                    // The kubelet takes any response for success; people read this one.
                    _ if outcome.kind == OutcomeKind::Drained => "OK".to_owned(),
                    _ => explanation,
                },
            )
        }
        Some(WaitResult::UnknownDrain) => plain(410, "there is no such drain\n"),
        Some(WaitResult::Stopping) => plain(503, STOPPING),
        None => plain(ACCEPTED, "the drain goes on\n"),
    }
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
