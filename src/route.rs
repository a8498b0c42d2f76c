//! Every route of the sidecar, once: what the public port serves, what the control socket serves
//! beside it, and the status codes of both.

use std::borrow::Cow;
use std::ops::RangeInclusive;

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
    /// # Errors
    /// For anything but a GET or HEAD of one of these; with the route, if there is one.
    pub fn parse(method: &str, target: &str) -> Result<Self, Unserved> {
        let path = target.split('?').next().unwrap_or_default();
        let route = Self::from_path(path).ok_or((None, Status::NotFound))?;
        let is_served = matches!(method, "GET" | "HEAD");
        if is_served { Ok(route) } else { Err((Some(route), Status::MethodNotAllowed)) }
    }

    fn from_path(path: &str) -> Option<Self> {
        match path {
            "/healthz" => Some(Self::Healthz),
            "/shutdown" | "/shutdown/ready" => Some(Self::Shutdown),
            "/metrics" => Some(Self::Metrics),
            _ => None,
        }
    }
}

/// The status of a request that is not served, and the route of the public port that it is counted as.
pub type Unserved = (Option<PublicRoute>, Status);

/// What the control socket serves, and the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Healthz,
    Metrics,
    /// The end of the drain of this number, or of one before it that still holds, for Envoy's own
    /// hook. The frontend sets the number.
    EnvoyHook(u64),
    /// The end of the drain of this number, for its exec hook.
    ExecHook(u64),
    StatusJson,
    StatusLine,
    StatusPage(PageStyle),
    /// The start of a drain, with this query.
    Drain(String),
    /// The end of the drain in progress, and the restoring of Envoy: asked for by this process.
    Release(String),
    Restore(String),
    /// What came of the request to restore Envoy of this number.
    Restored(u64),
}

/// How the status page is laid out, as the query of its request has it. Parts that are unknown have no
/// effect, so that a newer `status` is served by an older sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageStyle {
    /// No line of the page is wider.
    pub columns: u16,
    /// Whether it may hold escape sequences for colours (SGR).
    pub colour: bool,
    /// Whether it holds the plot of open connections over the drain.
    pub plot: bool,
}

impl Default for PageStyle {
    fn default() -> Self {
        Self { columns: 80, colour: false, plot: false }
    }
}

/// What the page can be laid out for.
const COLUMNS: RangeInclusive<u16> = 20..=500;

impl PageStyle {
    fn parse(query: &str) -> Self {
        let mut style = Self::default();
        for part in query.split('&') {
            let (name, value) = part.split_once('=').unwrap_or_default();
            match name {
                "columns" => {
                    // What is no number has no effect.
                    let columns = value.parse().unwrap_or(style.columns);
                    style.columns = columns.clamp(*COLUMNS.start(), *COLUMNS.end());
                }
                "colour" => style.colour = value == "1",
                "plot" => style.plot = value == "1",
                _ => {}
            }
        }
        style
    }
}

impl From<PublicRoute> for Route {
    fn from(route: PublicRoute) -> Self {
        match route {
            PublicRoute::Healthz => Self::Healthz,
            PublicRoute::Shutdown => Self::EnvoyHook(0),
            PublicRoute::Metrics => Self::Metrics,
        }
    }
}

/// The queries of `/shutdown`, before the number of a drain.
const ENVOY_HOOK: &str = "awaited=";
const EXEC_HOOK: &str = "drain=";

/// The queries of `/release` and `/restore`, before the process that asks, which the frontend adds; and
/// before the number of a request.
const BY: &str = "by=";
const REQUEST: &str = "request=";

impl Route {
    /// # Errors
    /// When there is no such path, or it has no such method or query.
    pub fn parse(method: &str, target: &str) -> Result<Self, Unserved> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let rejected = |status| Err((None, status));
        let number = |start| query.strip_prefix(start).map(|number: &str| number.parse::<u64>());
        let route = match (PublicRoute::from_path(path), path, query) {
            // tiny_http would close the connection.
            _ if !target.is_ascii() => return rejected(Status::BadRequest),
            (Some(PublicRoute::Healthz), ..) => Self::Healthz,
            (Some(PublicRoute::Metrics), ..) => Self::Metrics,
            (Some(PublicRoute::Shutdown), ..) => match (number(EXEC_HOOK), number(ENVOY_HOOK)) {
                (Some(Ok(number @ 1..)), _) => Self::ExecHook(number),
                (Some(_), _) => return rejected(Status::BadRequest),
                (None, Some(Ok(number))) => Self::EnvoyHook(number),
                (None, _) => Self::EnvoyHook(0),
            },
            (None, "/status", query) => {
                match query.split('&').find_map(|p| p.strip_prefix("as=")) {
                    Some("line") => Self::StatusLine,
                    Some("page") => Self::StatusPage(PageStyle::parse(query)),
                    _ => Self::StatusJson,
                }
            }
            (None, "/drain", query) => Self::Drain(query.to_owned()),
            (None, "/release", query) => Self::Release(by(query)),
            (None, "/restore", query) => match number(REQUEST) {
                Some(Ok(number)) => Self::Restored(number),
                Some(Err(_)) => return rejected(Status::BadRequest),
                None => Self::Restore(by(query)),
            },
            _ => return rejected(Status::NotFound),
        };
        let is_served =
            if route.is_post() { method == "POST" } else { matches!(method, "GET" | "HEAD") };
        if is_served { Ok(route) } else { rejected(Status::MethodNotAllowed) }
    }

    /// Whether it changes something: a POST, which is neither shared nor repeated.
    pub const fn is_post(&self) -> bool {
        matches!(self, Self::Drain(_) | Self::Release(_) | Self::Restore(_))
    }

    /// The same, where the log is to say who asks: what a client itself says of that does not count.
    pub fn asked_by(self, peer: impl FnOnce() -> String) -> Self {
        match self {
            Self::Release(_) => Self::Release(peer()),
            Self::Restore(_) => Self::Restore(peer()),
            other => other,
        }
    }

    /// Whether a client waits for a drain with it.
    pub const fn is_hook(&self) -> bool {
        matches!(self, Self::EnvoyHook(_) | Self::ExecHook(_))
    }

    /// Whether it shows how things stand, which a client may request again and again on one connection.
    pub const fn is_status(&self) -> bool {
        matches!(self, Self::StatusJson | Self::StatusLine | Self::StatusPage(_))
    }

    pub const fn is_envoy_hook(&self) -> bool {
        matches!(self, Self::EnvoyHook(_))
    }

    /// What the public port counts it as.
    pub const fn public(&self) -> Option<PublicRoute> {
        match self {
            Self::Healthz => Some(PublicRoute::Healthz),
            Self::EnvoyHook(_) => Some(PublicRoute::Shutdown),
            Self::Metrics => Some(PublicRoute::Metrics),
            _ => None,
        }
    }

    /// The method and target of a request for it.
    pub fn request_line(&self) -> (&'static str, Cow<'static, str>) {
        let target = match self {
            Self::Healthz => "/healthz".into(),
            Self::Metrics => "/metrics".into(),
            Self::EnvoyHook(number) => format!("/shutdown?{ENVOY_HOOK}{number}").into(),
            Self::ExecHook(number) => format!("/shutdown?{EXEC_HOOK}{number}").into(),
            Self::StatusJson => "/status".into(),
            Self::StatusLine => "/status?as=line".into(),
            Self::StatusPage(PageStyle { columns, colour, plot }) => format!(
                "/status?as=page&columns={columns}&colour={}&plot={}",
                u8::from(*colour),
                u8::from(*plot)
            )
            .into(),
            Self::Restored(number) => format!("/restore?{REQUEST}{number}").into(),
            Self::Drain(query) => return ("POST", format!("/drain?{query}").into()),
            Self::Release(by) => return ("POST", format!("/release?{BY}{by}").into()),
            Self::Restore(by) => return ("POST", format!("/restore?{BY}{by}").into()),
        };
        ("GET", target)
    }
}

fn by(query: &str) -> String {
    query.strip_prefix(BY).unwrap_or_default().to_owned()
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
    fn each_target_has_its_route_and_the_rest_the_status_of_its_rejection() {
        for (method, target, expected) in [
            ("GET", "/healthz", Ok(Route::Healthz)),
            ("HEAD", "/healthz?x", Ok(Route::Healthz)),
            ("GET", "/shutdown", Ok(Route::EnvoyHook(0))),
            ("GET", "/shutdown/ready?x", Ok(Route::EnvoyHook(0))),
            ("GET", "/shutdown?awaited=7", Ok(Route::EnvoyHook(7))),
            ("GET", "/shutdown?drain=12", Ok(Route::ExecHook(12))),
            ("GET", "/shutdown?drain=+07", Ok(Route::ExecHook(7))),
            ("GET", "/status", Ok(Route::StatusJson)),
            ("HEAD", "/status?as=line", Ok(Route::StatusLine)),
            ("GET", "/status?x&as=line&x=y", Ok(Route::StatusLine)),
            ("GET", "/status?as=x", Ok(Route::StatusJson)),
            ("GET", "/status?as=page", Ok(Route::StatusPage(PageStyle::default()))),
            ("GET", "/metrics", Ok(Route::Metrics)),
            ("POST", "/drain", Ok(Route::Drain(String::new()))),
            ("POST", "/drain?a=1?b", Ok(Route::Drain("a=1?b".to_owned()))),
            ("GET", "/drain", Err(Status::MethodNotAllowed)),
            ("HEAD", "/drain", Err(Status::MethodNotAllowed)),
            ("PUT", "/drain", Err(Status::MethodNotAllowed)),
            ("POST", "/status", Err(Status::MethodNotAllowed)),
            ("POST", "/shutdown?drain=1", Err(Status::MethodNotAllowed)),
            ("DELETE", "/healthz", Err(Status::MethodNotAllowed)),
            ("POST", "/", Err(Status::NotFound)),
            ("POST", "/drain/", Err(Status::NotFound)),
            ("POST", "//drain", Err(Status::NotFound)),
            ("POST", "/DRAIN", Err(Status::NotFound)),
            ("POST", "http://x/drain", Err(Status::NotFound)),
            ("POST", "/release", Ok(Route::Release(String::new()))),
            ("POST", "/restore?x=y", Ok(Route::Restore(String::new()))),
            ("GET", "/restore?request=4", Ok(Route::Restored(4))),
            ("GET", "/release", Err(Status::MethodNotAllowed)),
            ("GET", "/restore", Err(Status::MethodNotAllowed)),
            ("POST", "/restore?request=4", Err(Status::MethodNotAllowed)),
            ("GET", "/restore?request=x", Err(Status::BadRequest)),
            ("GET", "/nowhere", Err(Status::NotFound)),
            ("GET", "/shutdown?drain=", Err(Status::BadRequest)),
            ("GET", "/shutdown?drain=0", Err(Status::BadRequest)),
            ("GET", "/shutdown?drain=-1", Err(Status::BadRequest)),
            ("POST", "/drain?\u{e9}", Err(Status::BadRequest)),
        ] {
            let expected = expected.map_err(|status| (None, status));
            assert_eq!(Route::parse(method, target), expected, "{method} {target}");
        }
    }

    #[test]
    fn the_style_of_the_page_is_within_its_bounds_and_unknown_parts_have_no_effect() {
        let style = |columns, colour, plot| PageStyle { columns, colour, plot };
        for (query, expected) in [
            ("", style(80, false, false)),
            ("&columns=200&colour=1&plot=1", style(200, true, true)),
            ("&plot=1&x=1&colour=0&", style(80, false, true)),
            ("&colour&plot=true&columns=", style(80, false, false)),
            ("&columns=19", style(20, false, false)),
            ("&columns=501", style(500, false, false)),
            ("&columns=70000", style(80, false, false)),
            ("&columns=-1", style(80, false, false)),
        ] {
            let parsed = Route::parse("GET", &format!("/status?as=page{query}"));
            assert_eq!(parsed, Ok(Route::StatusPage(expected)), "{query}");
        }
    }

    #[test]
    fn a_request_for_a_route_is_parsed_as_that_route() {
        for route in [
            Route::Healthz,
            Route::Metrics,
            Route::EnvoyHook(3),
            Route::ExecHook(4),
            Route::StatusJson,
            Route::StatusLine,
            Route::StatusPage(PageStyle { columns: 200, colour: true, plot: false }),
            Route::StatusPage(PageStyle { columns: 20, colour: false, plot: true }),
            Route::Drain("check-delay=1s&error=x".to_owned()),
            Route::Release("uid:0,pid:7".to_owned()),
            Route::Restore("uid:0,pid:7".to_owned()),
            Route::Restored(9),
        ] {
            let (method, target) = route.request_line();
            assert_eq!(Route::parse(method, &target), Ok(route), "{method} {target}");
        }
    }
}
