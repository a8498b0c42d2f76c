//! What a client asks for: the head of its request, read whole or not at all. Nothing else of what
//! a client sends is ever looked at.

use std::borrow::Cow;

use httparse::{EMPTY_HEADER, Error, Request};

/// What the public port serves. None of it can begin a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/healthz`
    Healthz,
    /// `/shutdown`, `/shutdown/ready`: Envoy's own hook.
    Shutdown,
    /// `/metrics`
    Metrics,
}

impl Route {
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
    pub const fn wanted(self) -> Wanted {
        let (target, waits) = match self {
            Self::Healthz => ("/healthz", Waits::Briefly),
            Self::Shutdown => (FOR_WAITERS, Waits::ForADrain),
            Self::Metrics => ("/metrics", Waits::Briefly),
        };
        Wanted { route: Some(self), post: false, target: Cow::Borrowed(target), waits }
    }

    /// The route that a path leads to.
    #[must_use]
    pub fn of(path: &str) -> Option<Self> {
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
pub struct Wanted {
    /// What the public port counts it as.
    pub route: Option<Route>,
    /// By POST, or by GET.
    pub post: bool,
    /// The path and the query.
    pub target: Cow<'static, str>,
    /// How long the answer may take.
    pub waits: Waits,
}

/// How long an answer is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// It comes at once.
    Briefly,
    /// As Envoy's own hook does: for a drain to begin, and for its end.
    ForADrain,
    /// As the exec hook does: for the end of a drain that has begun.
    ForItsDrain,
}

/// Who decides what is served: the method and the target of a request lead to what is wanted, or
/// to the reason why it is refused, and the route where there is one.
pub type Keeper = fn(&str, &str) -> Result<Wanted, (Option<Route>, Status)>;

/// The keeper of the public port.
///
/// # Errors
/// For anything but a GET or HEAD of a [`Route`].
pub fn public(method: &str, target: &str) -> Result<Wanted, (Option<Route>, Status)> {
    let path = target.split('?').next().unwrap_or_default();
    let route = Route::of(path).ok_or((None, Status::NotFound))?;
    match method {
        "GET" | "HEAD" => Ok(route.wanted()),
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

/// A request without a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// For what.
    pub wanted: Wanted,
    /// It was a HEAD request: the answer has no body.
    pub head_only: bool,
    /// The client has sent more than this request.
    pub more: bool,
}

/// A request that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What for, where it could be known.
    pub route: Option<Route>,
    /// Why.
    pub status: Status,
    /// It was a HEAD request.
    pub head_only: bool,
}

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// The beginning of a head.
    Partial,
    /// A whole one.
    Whole(Asked),
    /// One that is not, or something else.
    Refused(Refused),
}

/// The longest head, in bytes. Those of kubelets, Prometheus and `curl` have less than 500.
pub const LONGEST: usize = 4096;

const MOST_FIELDS: usize = 64;

/// Reads the first bytes of a connection, at the door that `keeper` keeps.
#[must_use]
pub fn read(bytes: &[u8], keeper: Keeper) -> Head {
    let mut fields = [EMPTY_HEADER; MOST_FIELDS];
    let mut request = Request::new(&mut fields);
    let refused = |status| Head::Refused(Refused { route: None, status, head_only: false });
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= LONGEST => length,
        Ok(httparse::Status::Partial) if bytes.len() < LONGEST => return Head::Partial,
        Ok(_) | Err(Error::TooManyHeaders) => return refused(Status::HeadTooLarge),
        Err(_) => return refused(Status::BadRequest),
    };
    // A complete head has both.
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let head_only = method == "HEAD";
    let refused = |route, status| Head::Refused(Refused { route, status, head_only });
    let wanted = match keeper(method, target) {
        Ok(wanted) => wanted,
        Err((route, status)) => return refused(route, status),
    };
    for field in request.headers.iter() {
        if field.name.eq_ignore_ascii_case("Transfer-Encoding") {
            return refused(wanted.route, Status::ContentTooLarge);
        }
        if field.name.eq_ignore_ascii_case("Content-Length") {
            match field.value {
                [] => return refused(wanted.route, Status::BadRequest),
                digits if digits.iter().all(|digit| *digit == b'0') => {}
                digits if digits.iter().all(u8::is_ascii_digit) => {
                    return refused(wanted.route, Status::ContentTooLarge);
                }
                _ => return refused(wanted.route, Status::BadRequest),
            }
        }
    }
    Head::Whole(Asked { wanted, head_only, more: bytes.len() > length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(head: &str) -> Option<&'static str> {
        match read(head.as_bytes(), public) {
            Head::Refused(refused) => Some(refused.status.code()),
            Head::Whole(_) | Head::Partial => None,
        }
    }

    #[test]
    fn a_get_or_head_of_a_public_path_is_served() {
        for (head, route, head_only) in [
            ("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", Route::Healthz, false),
            ("GET /healthz HTTP/1.0\r\n\r\n", Route::Healthz, false),
            ("\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n", Route::Healthz, false),
            ("GET /healthz?probe=1 HTTP/1.1\nHost: x\n\n", Route::Healthz, false),
            ("HEAD /healthz HTTP/1.1\r\n\r\n", Route::Healthz, true),
            ("GET /shutdown HTTP/1.1\r\nContent-Length: 0\r\n\r\n", Route::Shutdown, false),
            ("GET /shutdown/ready HTTP/1.1\r\n\r\n", Route::Shutdown, false),
            ("GET /shutdown?drain=1 HTTP/1.1\r\n\r\n", Route::Shutdown, false),
            ("GET /metrics HTTP/1.1\r\nConnection: keep-alive\r\n\r\n", Route::Metrics, false),
        ] {
            let asked = Asked { wanted: route.wanted(), head_only, more: false };
            assert_eq!(read(head.as_bytes(), public), Head::Whole(asked.clone()), "{head}");
            let more = read((head.to_owned() + "x").as_bytes(), public);
            assert_eq!(more, Head::Whole(Asked { more: true, ..asked }), "{head}");
            for length in 0..head.len() {
                assert_eq!(
                    read(&head.as_bytes()[..length], public),
                    Head::Partial,
                    "{length} of {head}"
                );
            }
        }
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        for (head, expected) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("POST /drain HTTP/1.1\r\n\r\n", "404"),
            ("GET /status HTTP/1.1\r\n\r\n", "404"),
            ("GET /HEALTHZ HTTP/1.1\r\n\r\n", "404"),
            ("GET /healthz/ HTTP/1.1\r\n\r\n", "404"),
            ("GET //shutdown HTTP/1.1\r\n\r\n", "404"),
            ("GET /%73hutdown HTTP/1.1\r\n\r\n", "404"),
            ("GET http://x/shutdown HTTP/1.1\r\n\r\n", "404"),
            ("POST /shutdown HTTP/1.1\r\nContent-Length: 5\r\n\r\n", "405"),
            ("get /healthz HTTP/1.1\r\n\r\n", "405"),
            ("GET /healthz HTTP/1.1\r\nContent-Length: 1\r\n\r\n", "413"),
            ("GET /healthz HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n", "413"),
            ("GET /healthz HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n", "413"),
            ("GET /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "413"),
            ("GET /healthz HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "400"),
            ("GET /healthz HTTP/1.1\r\nContent-Length: 0x5\r\n\r\n", "400"),
            ("GET /healthz HTTP/1.1\r\nContent-Length:\r\n\r\n", "400"),
            ("GET /healthz HTTP/1.1\r\nContent-Length: 0, 0\r\n\r\n", "400"),
            ("GET /healthz\r\n", "400"),
            ("GET /healthz HTTP/2.0\r\n\r\n", "400"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"),
            ("\u{16}\u{3}\u{1}\u{2}", "400"),
            ("GET /healthz HTTP/1.1\r\nBad Name: x\r\n\r\n", "400"),
        ] {
            assert_eq!(status(head), Some(expected), "{head}");
        }
        assert_eq!(
            read(b"HEAD /shutdown HTTP/1.1\r\nContent-Length: 7\r\n\r\n", public),
            Head::Refused(Refused {
                route: Some(Route::Shutdown),
                status: Status::ContentTooLarge,
                head_only: true
            })
        );
    }

    #[test]
    fn a_head_is_bounded_in_bytes_and_fields() {
        let fields = |n| format!("GET /healthz HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(n));
        assert!(matches!(read(fields(MOST_FIELDS).as_bytes(), public), Head::Whole(_)));
        assert_eq!(status(&fields(MOST_FIELDS + 1)), Some("431"));
        let start = "GET /healthz HTTP/1.1\r\na: ";
        let line = |total: usize| format!("{start}{}\r\n\r\n", "b".repeat(total - start.len() - 4));
        assert!(matches!(read(line(LONGEST).as_bytes(), public), Head::Whole(_)));
        assert_eq!(status(&line(LONGEST + 1)), Some("431"));
        let endless = start.to_owned() + &"b".repeat(LONGEST);
        assert_eq!(read(&endless.as_bytes()[..LONGEST - 1], public), Head::Partial);
        assert_eq!(status(&endless[..LONGEST]), Some("431"));
    }

    #[test]
    fn every_status_has_its_code() {
        let codes = Status::ALL.map(Status::code);
        assert_eq!(codes, ["200", "400", "404", "405", "408", "410", "413", "431", "500", "503"]);
        assert_eq!(
            [200, 410, 502].map(Status::of),
            [Status::Ok, Status::Gone, Status::Unavailable]
        );
    }
}
