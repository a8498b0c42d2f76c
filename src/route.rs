//! Every route of the sidecar, once: what the public port serves, what the control socket serves
//! beside it, and the status codes of both.

use std::borrow::Cow;
use std::num::ParseIntError;

use crate::labels;

labels! {
    /// What the public port serves, with the value of the label `route`. It cannot express the start
    /// of a drain.
    pub enum PublicRoute {
        Healthz = "healthz",
        /// `/shutdown`, `/shutdown/ready`: Envoy's own hook.
        Shutdown = "shutdown",
        Metrics = "metrics",
    }
}

impl PublicRoute {
    pub const fn target(self) -> UpstreamTarget {
        let (path_and_query, hold) = match self {
            Self::Healthz => ("/healthz", Hold::None),
            Self::Shutdown => (ENVOY_HOOKS, Hold::EnvoyHook),
            Self::Metrics => ("/metrics", Hold::None),
        };
        let path_and_query = Cow::Borrowed(path_and_query);
        UpstreamTarget { route: Some(self), post: false, path_and_query, hold }
    }

    pub fn from_path(path: &str) -> Option<Self> {
        match path {
            "/healthz" => Some(Self::Healthz),
            "/shutdown" | "/shutdown/ready" => Some(Self::Shutdown),
            "/metrics" => Some(Self::Metrics),
            _ => None,
        }
    }
}

/// The one request to the backend that waits for all clients which wait as Envoy's own hook does.
const ENVOY_HOOKS: &str = "/shutdown?waiters";

/// The query of an exec hook begins with this, before the number of its drain.
const EXEC_HOOK: &str = "drain=";

/// What the backend serves.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    Healthz,
    /// The end of a drain, for all clients that wait as Envoy's own hook does.
    EnvoyHooks,
    /// The end of this drain, for its exec hooks.
    ExecHooks(u64),
    StatusJson,
    StatusLine,
    StatusPage,
    Metrics,
    /// The start of a drain, with this query.
    Drain(String),
}

impl Route {
    /// # Errors
    /// When there is no such path, or it has no such method or query.
    pub fn parse(method: &str, target: &str) -> Result<Self, Status> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let route = match (PublicRoute::from_path(path), path, query) {
            (Some(PublicRoute::Healthz), ..) => Self::Healthz,
            (Some(PublicRoute::Metrics), ..) => Self::Metrics,
            (Some(PublicRoute::Shutdown), ..) if target == ENVOY_HOOKS => Self::EnvoyHooks,
            (Some(PublicRoute::Shutdown), _, query) => match exec_hook(query) {
                Some(Ok(number @ 1..)) => Self::ExecHooks(number),
                _ => return Err(Status::BadRequest),
            },
            (None, "/status", "as=line") => Self::StatusLine,
            (None, "/status", "as=page") => Self::StatusPage,
            (None, "/status", _) => Self::StatusJson,
            (None, "/drain", query) => Self::Drain(query.to_owned()),
            _ => return Err(Status::NotFound),
        };
        let post = matches!(route, Self::Drain(_));
        let allowed = if post { method == "POST" } else { matches!(method, "GET" | "HEAD") };
        if allowed { Ok(route) } else { Err(Status::MethodNotAllowed) }
    }
}

/// The number of the drain that an exec hook waits for, if the query is an exec hook's.
fn exec_hook(query: &str) -> Option<Result<u64, ParseIntError>> {
    query.strip_prefix(EXEC_HOOK).map(str::parse)
}

/// What the frontend requests from the backend: once for all clients that want the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTarget {
    /// What the public port counts it as.
    pub route: Option<PublicRoute>,
    pub post: bool,
    pub path_and_query: Cow<'static, str>,
    pub hold: Hold,
}

/// How long the backend holds a request before it responds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    None,
    /// As for Envoy's own hook: until a drain has started and ended.
    EnvoyHook,
    /// As for the exec hook: until a drain that has started ends.
    ExecHook,
}

/// What a listener serves: leads from the method and the target of a request to the target of the
/// request to the backend, or to the status of a rejection, with the route if there is one.
pub type Router = fn(&str, &str) -> Routed;
pub type Routed = Result<UpstreamTarget, (Option<PublicRoute>, Status)>;

/// The [`Router`] of the public port.
///
/// # Errors
/// For anything but a GET or HEAD of a [`PublicRoute`].
pub fn public_target(method: &str, target: &str) -> Routed {
    let path = target.split('?').next().unwrap_or_default();
    let route = PublicRoute::from_path(path).ok_or((None, Status::NotFound))?;
    match method {
        "GET" | "HEAD" => Ok(route.target()),
        _ => Err((Some(route), Status::MethodNotAllowed)),
    }
}

/// The [`Router`] of the control socket. It passes on nearly everything: the backend decides.
///
/// # Errors
/// For a method that no route there has, and for what the backend could not respond to.
pub fn control_target(method: &str, target: &str) -> Routed {
    let post = match method {
        "GET" | "HEAD" => false,
        "POST" => true,
        _ => return Err((None, Status::MethodNotAllowed)),
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let to = |path_and_query, hold| UpstreamTarget { route: None, post, path_and_query, hold };
    match PublicRoute::from_path(path) {
        // tiny_http would close the connection.
        _ if !target.is_ascii() => Err((None, Status::BadRequest)),
        Some(PublicRoute::Shutdown) if post => Err((None, Status::MethodNotAllowed)),
        Some(PublicRoute::Shutdown) => Ok(match exec_hook(query) {
            None => to(Cow::Borrowed(ENVOY_HOOKS), Hold::EnvoyHook),
            // Written in one way, so that all hooks of a drain want the same.
            Some(Ok(number)) => to(format!("/shutdown?{EXEC_HOOK}{number}").into(), Hold::ExecHook),
            Some(Err(_)) => to(target.to_owned().into(), Hold::None),
        }),
        _ => Ok(to(target.to_owned().into(), Hold::None)),
    }
}

labels! {
    /// The status of a response, with its status line (RFC 9110, section 15; RFC 6585, section 5).
    pub enum Status {
        Ok = "200 OK",
        BadRequest = "400 Bad Request",
        NotFound = "404 Not Found",
        MethodNotAllowed = "405 Method Not Allowed",
        RequestTimeout = "408 Request Timeout",
        Conflict = "409 Conflict",
        Gone = "410 Gone",
        ContentTooLarge = "413 Content Too Large",
        HeadTooLarge = "431 Request Header Fields Too Large",
        InternalServerError = "500 Internal Server Error",
        Unavailable = "503 Service Unavailable",
    }
}

impl Status {
    /// The status with this code; one that no response here has is taken for 503.
    pub fn from_code(code: u16) -> Self {
        let has_code = |status: &Self| status.code().parse() == Ok(code);
        Self::ALL.iter().copied().find(has_code).unwrap_or(Self::Unavailable)
    }

    /// The value of the label `code`.
    pub fn code(self) -> &'static str {
        &self.name()[..3]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_code() {
        let codes = Status::ALL.map(Status::code);
        assert_eq!(
            codes,
            ["200", "400", "404", "405", "408", "409", "410", "413", "431", "500", "503"]
        );
        assert_eq!(
            [200, 410, 502].map(Status::from_code),
            [Status::Ok, Status::Gone, Status::Unavailable],
            "502 is not in use"
        );
    }

    #[test]
    fn the_control_socket_passes_on_what_the_backend_has_and_holds_waiters() {
        for (method, target, post, passed, hold) in [
            ("GET", "/healthz", false, "/healthz", Hold::None),
            ("HEAD", "/status?as=line", false, "/status?as=line", Hold::None),
            ("POST", "/drain?check-delay=0", true, "/drain?check-delay=0", Hold::None),
            ("GET", "/shutdown", false, ENVOY_HOOKS, Hold::EnvoyHook),
            ("GET", "/shutdown/ready?x", false, ENVOY_HOOKS, Hold::EnvoyHook),
            ("GET", ENVOY_HOOKS, false, ENVOY_HOOKS, Hold::EnvoyHook),
            ("GET", "/shutdown?drain=7", false, "/shutdown?drain=7", Hold::ExecHook),
            ("GET", "/shutdown?drain=+07", false, "/shutdown?drain=7", Hold::ExecHook),
            ("GET", "/shutdown?drain=x", false, "/shutdown?drain=x", Hold::None),
            ("GET", "/nowhere", false, "/nowhere", Hold::None),
        ] {
            let expected =
                UpstreamTarget { route: None, post, path_and_query: passed.into(), hold };
            assert_eq!(control_target(method, target), Ok(expected), "{method} {target}");
        }
        assert_eq!(control_target("GET", "/\u{e9}"), Err((None, Status::BadRequest)));
        for (method, target) in [("PUT", "/drain"), ("POST", "/shutdown?drain=1")] {
            let rejected = Err((None, Status::MethodNotAllowed));
            assert_eq!(control_target(method, target), rejected, "{method} {target}");
        }
    }

    #[test]
    fn the_backend_serves_a_route_for_each_target_and_rejects_the_rest_with_its_status() {
        for (method, target, expected) in [
            ("GET", "/healthz", Ok(Route::Healthz)),
            ("HEAD", "/healthz?x", Ok(Route::Healthz)),
            ("GET", "/shutdown?drain=12", Ok(Route::ExecHooks(12))),
            ("GET", "/shutdown?waiters", Ok(Route::EnvoyHooks)),
            ("GET", "/status", Ok(Route::StatusJson)),
            ("GET", "/status?as=line", Ok(Route::StatusLine)),
            ("GET", "/status?as=page", Ok(Route::StatusPage)),
            ("GET", "/metrics", Ok(Route::Metrics)),
            ("POST", "/drain", Ok(Route::Drain(String::new()))),
            ("POST", "/drain?a=1?b", Ok(Route::Drain("a=1?b".to_owned()))),
            ("GET", "/drain", Err(Status::MethodNotAllowed)),
            ("HEAD", "/drain", Err(Status::MethodNotAllowed)),
            ("PUT", "/drain", Err(Status::MethodNotAllowed)),
            ("POST", "/status", Err(Status::MethodNotAllowed)),
            ("DELETE", "/healthz", Err(Status::MethodNotAllowed)),
            ("POST", "/", Err(Status::NotFound)),
            ("POST", "/drain/", Err(Status::NotFound)),
            ("POST", "//drain", Err(Status::NotFound)),
            ("POST", "/DRAIN", Err(Status::NotFound)),
            ("POST", "http://x/drain", Err(Status::NotFound)),
            ("GET", "/shutdown?drain=", Err(Status::BadRequest)),
            ("GET", "/shutdown?drain=0", Err(Status::BadRequest)),
            ("GET", "/shutdown?drain=-1", Err(Status::BadRequest)),
        ] {
            assert_eq!(Route::parse(method, target), expected, "{method} {target}");
        }
    }
}
