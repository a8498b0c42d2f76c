//! The bytes of a response, and the head of another server's.

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::time::SystemTime;

use crate::route::Status;

/// The content type of the responses that the frontend itself makes.
pub const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

/// A response, ready to be sent to any number of clients.
#[derive(Debug)]
pub struct Response {
    bytes: Vec<u8>,
    head_length: usize,
}

impl Response {
    /// One that is made now (RFC 9110, section 6.6.1). `allow`: the methods of section 10.2.1. `kept`:
    /// whether the client may send its next request on the connection.
    pub fn new(status: Status, content_type: &str, body: &[u8], allow: &str, kept: bool) -> Self {
        let date = httpdate::fmt_http_date(SystemTime::now());
        let connection = if kept { "keep-alive" } else { "close" };
        let wrong_method = status == Status::MethodNotAllowed && !allow.is_empty();
        let allow = if wrong_method { format!("Allow: {allow}\r\n") } else { String::new() };
        let head = format!(
            "HTTP/1.1 {}\r\nDate: {date}\r\n{allow}Content-Type: {content_type}\r\n\
             Content-Length: {}\r\nConnection: {connection}\r\n\r\n",
            status.name(),
            body.len()
        );
        let mut bytes = head.into_bytes();
        let head_length = bytes.len();
        bytes.extend_from_slice(body);
        Self { bytes, head_length }
    }

    /// What is sent: the response to a HEAD request has no body.
    pub fn bytes(&self, head_only: bool) -> &[u8] {
        if head_only { &self.bytes[..self.head_length] } else { &self.bytes }
    }
}

/// The head of a response of the backend, or of the sidecar to a command.
pub struct ResponseHead {
    pub status: u16,
    pub content_type: String,
    /// Where its body is, if it states the length.
    pub body: Option<Range<usize>>,
}

impl ResponseHead {
    /// Parses it, if it is complete.
    ///
    /// # Errors
    /// When it is not HTTP.
    pub fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut fields);
        let start = match response.parse(bytes).map_err(|_| ErrorKind::InvalidData)? {
            httparse::Status::Complete(start) => start,
            httparse::Status::Partial => return Ok(None),
        };
        let field = |name: &str| {
            let mut fields = response.headers.iter();
            let field = fields.find(|field| field.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(field.value).ok()
        };
        let length = field("Content-Length").and_then(|length| length.parse::<usize>().ok());
        Ok(Some(Self {
            status: response.code.unwrap_or_default(),
            content_type: field("Content-Type").unwrap_or_default().to_owned(),
            body: length.map(|length| start..start.saturating_add(length)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn text(response: &Response, head_only: bool) -> &str {
        std::str::from_utf8(response.bytes(head_only)).unwrap()
    }

    #[test]
    fn a_response_has_its_length_and_the_time_and_closes_the_connection() {
        let before = SystemTime::now();
        let response = Response::new(Status::Ok, PLAIN_TEXT, b"OK", "", false);
        let (start, rest) = text(&response, false).split_once("\r\nDate: ").unwrap();
        let (date, rest) = rest.split_once("\r\n").unwrap();
        assert_eq!(start, "HTTP/1.1 200 OK");
        let head = "Content-Type: text/plain; charset=utf-8\r\nContent-Length: 2\r\n\
                    Connection: close\r\n\r\n";
        assert_eq!(rest, head.to_owned() + "OK");
        // It has whole seconds.
        let made = httpdate::parse_http_date(date).unwrap() + Duration::from_secs(1);
        assert!(made > before && made <= SystemTime::now() + Duration::from_secs(1), "{date}");
        let to_head = text(&response, true);
        assert!(to_head.ends_with(head), "the response to a HEAD request: {to_head}");
    }

    #[test]
    fn a_response_on_a_connection_that_is_kept_says_so() {
        let response = Response::new(Status::Ok, PLAIN_TEXT, b"OK", "", true);
        let text = text(&response, false);
        assert!(text.ends_with("\r\nConnection: keep-alive\r\n\r\nOK"), "{text}");
        assert!(!text.contains("close"), "{text}");
    }

    #[test]
    fn only_a_405_has_an_allow_field() {
        for (status, allows) in [(Status::MethodNotAllowed, true), (Status::NotFound, false)] {
            let response = Response::new(status, PLAIN_TEXT, b"", "GET, HEAD", false);
            let text = text(&response, false);
            assert_eq!(text.contains("\r\nAllow: GET, HEAD\r\n"), allows, "{text}");
            assert_eq!(text.contains("Allow"), allows, "{text}");
        }
    }
}
