//! What a client requests: the head of its request, parsed whole or not at all. No other byte that
//! a client sends is ever interpreted.

use httparse::{EMPTY_HEADER, Error};

use crate::route::{PublicRoute, Route, Status, Unserved};

/// A request without a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub route: Route,
    /// It was a HEAD request: the response has no body.
    pub head_only: bool,
    pub after: After,
}

/// What becomes of a connection once its response is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Close,
    /// The client has sent, or may send, more than its request.
    Linger,
    /// The client's next request is read, as it wants and may: no [`PublicRoute`] is for that.
    Keep,
}

/// A request that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// If it is known.
    pub route: Option<PublicRoute>,
    pub status: Status,
    pub head_only: bool,
}

impl Rejection {
    /// Of what is no request, or not a whole one.
    pub const fn unread(status: Status) -> Self {
        Self { route: None, status, head_only: false }
    }
}

/// The longest request head at the public port, in bytes. Those of kubelets, Prometheus and `curl`
/// have less than 500.
pub const MAX_PUBLIC_HEAD: usize = 4096;

/// The longest request head at the control socket, in bytes: a hook's has its options, with up to
/// [`drain_request::MAX_QUERY`](crate::cli::drain_request::MAX_QUERY) bytes.
pub const MAX_CONTROL_HEAD: usize = 16 * 1024;

const MAX_FIELDS: usize = 64;

/// What a listener serves, of a method and a target.
pub type Router = fn(&str, &str) -> Result<Route, Unserved>;

/// Parses the first bytes of a connection, of which a request head may have `max_head`; `router`
/// decides what is served. None: more bytes are needed.
///
/// # Errors
/// When it is not a request, or one that is not served.
pub fn parse(bytes: &[u8], max_head: usize, router: Router) -> Result<Option<Request>, Rejection> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= max_head => length,
        Ok(httparse::Status::Partial) if bytes.len() < max_head => return Ok(None),
        Ok(_) | Err(Error::TooManyHeaders) => {
            return Err(Rejection::unread(Status::HeadTooLarge));
        }
        Err(_) => return Err(Rejection::unread(Status::BadRequest)),
    };
    // A complete head has both.
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let target = origin_form(target);
    let head_only = method == "HEAD";
    let rejected = |(route, status)| Rejection { route, status, head_only };
    let route = router(method, target).map_err(rejected)?;
    let unserved = |status| Err(rejected((route.public(), status)));
    let mut keep_alive = false;
    for field in request.headers.iter() {
        if field.name.eq_ignore_ascii_case("Transfer-Encoding") {
            return unserved(Status::ContentTooLarge);
        }
        if field.name.eq_ignore_ascii_case("Connection") {
            // Only who says so: the connections of all others end as before.
            keep_alive = route.is_status() && field.value.eq_ignore_ascii_case(b"keep-alive");
        }
        if field.name.eq_ignore_ascii_case("Content-Length") {
            match field.value {
                [] => return unserved(Status::BadRequest),
                digits if digits.iter().all(|digit| *digit == b'0') => {}
                digits if digits.iter().all(u8::is_ascii_digit) => {
                    return unserved(Status::ContentTooLarge);
                }
                _ => return unserved(Status::BadRequest),
            }
        }
    }
    let after = match keep_alive {
        _ if bytes.len() > length => After::Linger,
        true => After::Keep,
        false => After::Close,
    };
    Ok(Some(Request { route, head_only, after }))
}

/// The path and query of an absolute form, which a server must take (RFC 9112, section 3.2.2).
fn origin_form(target: &str) -> &str {
    match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => {
            rest.find('/').map_or("/", |path| &rest[path..])
        }
        _ => target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::listen::public_route;

    fn parse_public(bytes: &[u8]) -> Result<Option<Request>, Rejection> {
        parse(bytes, MAX_PUBLIC_HEAD, public_route)
    }

    fn status(head: &str) -> Option<&'static str> {
        match parse_public(head.as_bytes()) {
            Err(rejection) => Some(rejection.status.code()),
            Ok(_) => None,
        }
    }

    #[test]
    fn a_get_or_head_of_a_public_path_is_served() {
        for (head, route, head_only) in [
            ("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", PublicRoute::Healthz, false),
            ("GET /healthz HTTP/1.0\r\n\r\n", PublicRoute::Healthz, false),
            ("GET http://x:1/healthz?y HTTP/1.1\r\n\r\n", PublicRoute::Healthz, false),
            ("GET HTTP://[::1]/shutdown HTTP/1.1\r\n\r\n", PublicRoute::Shutdown, false),
            ("\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n", PublicRoute::Healthz, false),
            ("GET /healthz?probe=1 HTTP/1.1\nHost: x\n\n", PublicRoute::Healthz, false),
            ("HEAD /healthz HTTP/1.1\r\n\r\n", PublicRoute::Healthz, true),
            ("GET /shutdown HTTP/1.1\r\nContent-Length: 0\r\n\r\n", PublicRoute::Shutdown, false),
            ("GET /shutdown/ready HTTP/1.1\r\n\r\n", PublicRoute::Shutdown, false),
            ("GET /shutdown?drain=1 HTTP/1.1\r\n\r\n", PublicRoute::Shutdown, false),
            (
                "GET /metrics HTTP/1.1\r\nConnection: keep-alive\r\n\r\n",
                PublicRoute::Metrics,
                false,
            ),
        ] {
            let route = Route::from(route);
            let request = Request { route, head_only, after: After::Close };
            assert_eq!(parse_public(head.as_bytes()), Ok(Some(request.clone())), "{head}");
            let more = parse_public((head.to_owned() + "x").as_bytes());
            assert_eq!(more, Ok(Some(Request { after: After::Linger, ..request })), "{head}");
            for length in 0..head.len() {
                assert_eq!(
                    parse_public(&head.as_bytes()[..length]),
                    Ok(None),
                    "{length} of {head}"
                );
            }
        }
    }

    #[test]
    fn a_client_of_the_status_that_asks_for_it_keeps_its_connection() {
        let kept = |path: &str, fields: &str, router| {
            let head = format!("GET {path} HTTP/1.1\r\n{fields}\r\n");
            match parse(head.as_bytes(), MAX_CONTROL_HEAD, router) {
                Ok(Some(request)) => request.after == After::Keep,
                other => panic!("{head}: {other:?}"),
            }
        };
        let asks = "Host: x\r\nconnection: Keep-Alive\r\nA: b\r\n";
        for path in ["/status", "/status?as=line", "/status?as=page&columns=100"] {
            assert!(kept(path, asks, Route::parse), "{path}");
            assert!(!kept(path, "", Route::parse), "{path}");
        }
        for path in ["/healthz", "/metrics", "/shutdown", "/shutdown?drain=1"] {
            assert!(!kept(path, asks, Route::parse), "{path}");
        }
        for path in ["/healthz", "/metrics", "/shutdown"] {
            assert!(!kept(path, asks, public_route), "{path} at the public port");
        }
    }

    #[test]
    fn every_other_request_is_rejected_with_its_status() {
        for (head, expected) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("POST /drain HTTP/1.1\r\n\r\n", "404"),
            ("GET /status HTTP/1.1\r\n\r\n", "404"),
            ("GET /HEALTHZ HTTP/1.1\r\n\r\n", "404"),
            ("GET /healthz/ HTTP/1.1\r\n\r\n", "404"),
            ("GET //shutdown HTTP/1.1\r\n\r\n", "404"),
            ("GET /%73hutdown HTTP/1.1\r\n\r\n", "404"),
            ("GET http://x HTTP/1.1\r\n\r\n", "404"),
            ("GET http://x/drain HTTP/1.1\r\n\r\n", "404"),
            ("GET ftp://x/shutdown HTTP/1.1\r\n\r\n", "404"),
            ("GET http:/healthz HTTP/1.1\r\n\r\n", "404"),
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
            parse_public(b"HEAD /shutdown HTTP/1.1\r\nContent-Length: 7\r\n\r\n"),
            Err(Rejection {
                route: Some(PublicRoute::Shutdown),
                status: Status::ContentTooLarge,
                head_only: true
            })
        );
    }

    #[test]
    fn a_request_head_is_bounded_in_bytes_and_fields() {
        let fields = |n| format!("GET /healthz HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(n));
        assert!(matches!(parse_public(fields(MAX_FIELDS).as_bytes()), Ok(Some(_))));
        assert_eq!(status(&fields(MAX_FIELDS + 1)), Some("431"));
        let start = "GET /healthz HTTP/1.1\r\na: ";
        let line = |total: usize| format!("{start}{}\r\n\r\n", "b".repeat(total - start.len() - 4));
        assert!(matches!(parse_public(line(MAX_PUBLIC_HEAD).as_bytes()), Ok(Some(_))));
        assert_eq!(status(&line(MAX_PUBLIC_HEAD + 1)), Some("431"));
        let endless = start.to_owned() + &"b".repeat(MAX_PUBLIC_HEAD);
        assert_eq!(parse_public(&endless.as_bytes()[..MAX_PUBLIC_HEAD - 1]), Ok(None));
        assert_eq!(status(&endless[..MAX_PUBLIC_HEAD]), Some("431"));
    }

    #[test]
    fn a_request_head_at_the_control_socket_may_be_longer() {
        let head = |total: usize| {
            let (start, end) = ("POST /drain?exclude=", " HTTP/1.1\r\n\r\n");
            format!("{start}{}{end}", "b".repeat(total - start.len() - end.len())).into_bytes()
        };
        let parse = |head: &[u8]| parse(head, MAX_CONTROL_HEAD, Route::parse);
        let longest = head(MAX_CONTROL_HEAD);
        assert!(matches!(parse(&longest), Ok(Some(_))));
        assert_eq!(parse(&longest[..MAX_CONTROL_HEAD - 1]), Ok(None));
        let rejected = Err(Rejection::unread(Status::HeadTooLarge));
        assert_eq!(parse(&head(MAX_CONTROL_HEAD + 1)), rejected);
        assert_eq!(parse(&head(MAX_CONTROL_HEAD + 1)[..MAX_CONTROL_HEAD]), rejected);
    }
}
