//! Every route of the sidecar, once: what the public port serves, what the control socket serves
//! beside it, and the status codes of both.

use std::borrow::Cow;

/// What the public port serves. None of it can begin a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublicRoute {
    /// `/healthz`
    Healthz,
    /// `/shutdown`, `/shutdown/ready`: Envoy's own hook.
    Shutdown,
    /// `/metrics`
    Metrics,
}

impl PublicRoute {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Healthz, Self::Shutdown, Self::Metrics];

    /// The value of the label `route`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthz => "healthz",
            Self::Shutdown => "shutdown",
            Self::Metrics => "metrics",
        }
    }

    /// What the sidecar's server is asked for this.
    #[must_use]
    pub const fn target(self) -> UpstreamTarget {
        let (target, waits) = match self {
            Self::Healthz => ("/healthz", Hold::None),
            Self::Shutdown => (FOR_WAITERS, Hold::EnvoyHook),
            Self::Metrics => ("/metrics", Hold::None),
        };
        UpstreamTarget { route: Some(self), post: false, target: Cow::Borrowed(target), waits }
    }

    /// The route that a path leads to.
    #[must_use]
    pub fn from_path(path: &str) -> Option<Self> {
        match path {
            "/healthz" => Some(Self::Healthz),
            "/shutdown" | "/shutdown/ready" => Some(Self::Shutdown),
            "/metrics" => Some(Self::Metrics),
            _ => None,
        }
    }
}

/// Waits in the place of all who wait as Envoy's own hook does.
pub const FOR_WAITERS: &str = "/shutdown?waiters";

/// What the sidecar's server is asked for: once for all who want the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTarget {
    /// What the public port counts it as.
    pub route: Option<PublicRoute>,
    /// By POST, or by GET.
    pub post: bool,
    /// The path and the query.
    pub target: Cow<'static, str>,
    /// How long the answer may take.
    pub waits: Hold,
}

/// How long an answer is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It comes at once.
    None,
    /// As Envoy's own hook does: for a drain to start, and for its end.
    EnvoyHook,
    /// As the exec hook does: for the end of a drain that has started.
    ExecHook,
}

/// Who decides what is served: the method and the target of a request lead to what is wanted, or
/// to the reason why it is refused, and the route where there is one.
pub type Router = fn(&str, &str) -> Result<UpstreamTarget, (Option<PublicRoute>, Status)>;

/// The keeper of the public port.
///
/// # Errors
/// For anything but a GET or HEAD of a [`PublicRoute`].
pub fn public(method: &str, target: &str) -> Result<UpstreamTarget, (Option<PublicRoute>, Status)> {
    let path = target.split('?').next().unwrap_or_default();
    let route = PublicRoute::from_path(path).ok_or((None, Status::NotFound))?;
    match method {
        "GET" | "HEAD" => Ok(route.target()),
        _ => Err((Some(route), Status::MethodNotAllowed)),
    }
}

/// What is answered (RFC 9110, section 15; RFC 6585, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 200
    Ok,
    /// 400
    BadRequest,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 408
    RequestTimeout,
    /// 410
    Gone,
    /// 413
    ContentTooLarge,
    /// 431
    HeadTooLarge,
    /// 500
    TookTooLong,
    /// 503
    Unavailable,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Ok,
        Self::BadRequest,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::Gone,
        Self::ContentTooLarge,
        Self::HeadTooLarge,
        Self::TookTooLong,
        Self::Unavailable,
    ];

    /// The code and the phrase of the status line.
    #[must_use]
    pub const fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::RequestTimeout => "408 Request Timeout",
            Self::Gone => "410 Gone",
            Self::ContentTooLarge => "413 Content Too Large",
            Self::HeadTooLarge => "431 Request Header Fields Too Large",
            Self::TookTooLong => "500 Internal Server Error",
            Self::Unavailable => "503 Service Unavailable",
        }
    }

    /// The status of this code; one that is not in use is taken for 503.
    #[must_use]
    pub fn of(code: u16) -> Self {
        let of = |status: &Self| status.code().parse() == Ok(code);
        Self::ALL.into_iter().find(of).unwrap_or(Self::Unavailable)
    }

    /// The value of the label `code`.
    #[must_use]
    pub fn code(self) -> &'static str {
        &self.line()[..3]
    }
}

/// The keeper of the control socket: what its server will make of a request, that decides.
///
/// # Errors
/// For a method that nothing there has.
pub fn private(
    method: &str,
    target: &str,
) -> Result<UpstreamTarget, (Option<PublicRoute>, Status)> {
    let post = match method {
        "GET" | "HEAD" => false,
        "POST" => true,
        _ => return Err((None, Status::MethodNotAllowed)),
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let passed = |target, waits| Ok(UpstreamTarget { route: None, post, target, waits });
    match (PublicRoute::from_path(path), query.strip_prefix(HOOK).map(str::parse)) {
        // The server would close the connection.
        _ if !target.is_ascii() => Err((None, Status::BadRequest)),
        (Some(PublicRoute::Shutdown), _) if post => Err((None, Status::MethodNotAllowed)),
        (Some(route @ PublicRoute::Shutdown), None) => {
            Ok(UpstreamTarget { route: None, ..route.target() })
        }
        // However it was written, so that all hooks of a drain want the same.
        (Some(PublicRoute::Shutdown), Some(Ok(number))) => {
            let number: u64 = number;
            passed(format!("/shutdown?{HOOK}{number}").into(), Hold::ExecHook)
        }
        _ => passed(target.to_owned().into(), Hold::None),
    }
}

/// What begins the query of an exec hook, before the number of its drain.
pub const HOOK: &str = "drain=";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_code() {
        let codes = Status::ALL.map(Status::code);
        assert_eq!(codes, ["200", "400", "404", "405", "408", "410", "413", "431", "500", "503"]);
        assert_eq!(
            [200, 410, 502].map(Status::of),
            [Status::Ok, Status::Gone, Status::Unavailable]
        );
    }

    #[test]
    fn the_control_socket_passes_on_what_the_server_has_and_keeps_who_waits() {
        for (method, target, post, passed, waits) in [
            ("GET", "/healthz", false, "/healthz", Hold::None),
            ("HEAD", "/status?as=line", false, "/status?as=line", Hold::None),
            ("POST", "/drain?check-delay=0", true, "/drain?check-delay=0", Hold::None),
            ("GET", "/shutdown", false, FOR_WAITERS, Hold::EnvoyHook),
            ("GET", "/shutdown/ready?x", false, FOR_WAITERS, Hold::EnvoyHook),
            ("GET", FOR_WAITERS, false, FOR_WAITERS, Hold::EnvoyHook),
            ("GET", "/shutdown?drain=7", false, "/shutdown?drain=7", Hold::ExecHook),
            ("GET", "/shutdown?drain=+07", false, "/shutdown?drain=7", Hold::ExecHook),
            ("GET", "/shutdown?drain=x", false, "/shutdown?drain=x", Hold::None),
            ("GET", "/nowhere", false, "/nowhere", Hold::None),
        ] {
            let wanted = UpstreamTarget { route: None, post, target: passed.into(), waits };
            assert_eq!(private(method, target), Ok(wanted), "{method} {target}");
        }
        assert_eq!(private("GET", "/\u{e9}"), Err((None, Status::BadRequest)));
        for (method, target) in [("PUT", "/drain"), ("POST", "/shutdown?drain=1")] {
            assert_eq!(private(method, target), Err((None, Status::MethodNotAllowed)), "{method}");
        }
    }
}
