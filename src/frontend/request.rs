//! What a client asks for: the head of its request, read whole or not at all. Nothing else of what
//! a client sends is ever looked at.

use httparse::{EMPTY_HEADER, Error};

use crate::route::{PublicRoute, Router, Status, UpstreamTarget};

/// A request without a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// For what.
    pub wanted: UpstreamTarget,
    /// It was a HEAD request: the answer has no body.
    pub head_only: bool,
    /// The client has sent more than this request.
    pub more: bool,
}

/// A request that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What for, where it could be known.
    pub route: Option<PublicRoute>,
    /// Why.
    pub status: Status,
    /// It was a HEAD request.
    pub head_only: bool,
}

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParsedHead {
    /// The beginning of a head.
    Partial,
    /// A whole one.
    Whole(Request),
    /// One that is not, or something else.
    Rejection(Rejection),
}

/// The longest head, in bytes. Those of kubelets, Prometheus and `curl` have less than 500.
pub const LONGEST: usize = 4096;

const MOST_FIELDS: usize = 64;

/// Reads the first bytes of a connection, at the door that `keeper` keeps.
#[must_use]
pub fn read(bytes: &[u8], keeper: Router) -> ParsedHead {
    let mut fields = [EMPTY_HEADER; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let refused =
        |status| ParsedHead::Rejection(Rejection { route: None, status, head_only: false });
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= LONGEST => length,
        Ok(httparse::Status::Partial) if bytes.len() < LONGEST => return ParsedHead::Partial,
        Ok(_) | Err(Error::TooManyHeaders) => return refused(Status::HeadTooLarge),
        Err(_) => return refused(Status::BadRequest),
    };
    // A complete head has both.
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let head_only = method == "HEAD";
    let refused = |route, status| ParsedHead::Rejection(Rejection { route, status, head_only });
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
    ParsedHead::Whole(Request { wanted, head_only, more: bytes.len() > length })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::public;

    fn status(head: &str) -> Option<&'static str> {
        match read(head.as_bytes(), public) {
            ParsedHead::Rejection(refused) => Some(refused.status.code()),
            ParsedHead::Whole(_) | ParsedHead::Partial => None,
        }
    }

    #[test]
    fn a_get_or_head_of_a_public_path_is_served() {
        for (head, route, head_only) in [
            ("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", PublicRoute::Healthz, false),
            ("GET /healthz HTTP/1.0\r\n\r\n", PublicRoute::Healthz, false),
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
            let asked = Request { wanted: route.target(), head_only, more: false };
            assert_eq!(read(head.as_bytes(), public), ParsedHead::Whole(asked.clone()), "{head}");
            let more = read((head.to_owned() + "x").as_bytes(), public);
            assert_eq!(more, ParsedHead::Whole(Request { more: true, ..asked }), "{head}");
            for length in 0..head.len() {
                assert_eq!(
                    read(&head.as_bytes()[..length], public),
                    ParsedHead::Partial,
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
            ParsedHead::Rejection(Rejection {
                route: Some(PublicRoute::Shutdown),
                status: Status::ContentTooLarge,
                head_only: true
            })
        );
    }

    #[test]
    fn a_head_is_bounded_in_bytes_and_fields() {
        let fields = |n| format!("GET /healthz HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(n));
        assert!(matches!(read(fields(MOST_FIELDS).as_bytes(), public), ParsedHead::Whole(_)));
        assert_eq!(status(&fields(MOST_FIELDS + 1)), Some("431"));
        let start = "GET /healthz HTTP/1.1\r\na: ";
        let line = |total: usize| format!("{start}{}\r\n\r\n", "b".repeat(total - start.len() - 4));
        assert!(matches!(read(line(LONGEST).as_bytes(), public), ParsedHead::Whole(_)));
        assert_eq!(status(&line(LONGEST + 1)), Some("431"));
        let endless = start.to_owned() + &"b".repeat(LONGEST);
        assert_eq!(read(&endless.as_bytes()[..LONGEST - 1], public), ParsedHead::Partial);
        assert_eq!(status(&endless[..LONGEST]), Some("431"));
    }
}
