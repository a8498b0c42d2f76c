//! The bytes of a response, and the head of another server's.

use std::io::{self, ErrorKind};
use std::ops::Range;

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
    /// `date`: RFC 9110, section 6.6.1. `allow`: the methods of section 10.2.1. `kept`: whether the
    /// client may send its next request on the connection.
    pub fn new(
        status: Status,
        content_type: &str,
        body: &[u8],
        date: &str,
        allow: &str,
        kept: bool,
    ) -> Self {
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
    use super::*;

    const DATE: &str = "Tue, 24 Nov 2026 12:00:00 GMT";

    fn text(status: Status, head_only: bool) -> String {
        let response = Response::new(status, PLAIN_TEXT, b"OK", DATE, "GET, HEAD", false);
        String::from_utf8(response.bytes(head_only).to_vec()).unwrap()
    }

    #[test]
    fn a_response_has_its_length_and_closes_the_connection() {
        let head = "HTTP/1.1 200 OK\r\nDate: Tue, 24 Nov 2026 12:00:00 GMT\r\n\
                    Content-Type: text/plain; charset=utf-8\r\nContent-Length: 2\r\n\
                    Connection: close\r\n\r\n";
        assert_eq!(text(Status::Ok, false), head.to_owned() + "OK");
        assert_eq!(text(Status::Ok, true), head, "the response to a HEAD request");
    }

    #[test]
    fn a_response_on_a_connection_that_is_kept_says_so() {
        let closing = Response::new(Status::Ok, PLAIN_TEXT, b"OK", DATE, "", false);
        let keeping = Response::new(Status::Ok, PLAIN_TEXT, b"OK", DATE, "", true);
        let text = |response: &Response| String::from_utf8(response.bytes(false).to_vec()).unwrap();
        let expected = text(&closing).replace("Connection: close", "Connection: keep-alive");
        assert_eq!(text(&keeping), expected);
        assert_ne!(text(&keeping), text(&closing));
    }

    #[test]
    fn only_a_405_has_an_allow_field() {
        assert!(text(Status::MethodNotAllowed, false).contains("\r\nAllow: GET, HEAD\r\n"));
        assert!(!text(Status::NotFound, false).contains("Allow"));
    }
}
