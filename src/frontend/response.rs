//! The bytes of an answer.

use crate::route::Status;

/// What the answers of this program's own words are.
pub const PLAIN: &str = "text/plain; charset=utf-8";

/// An answer, ready to be sent to as many clients as there are.
#[derive(Debug)]
pub struct Response {
    bytes: Vec<u8>,
    head: usize,
}

impl Response {
    /// An answer of this kind (a media type). `date` is that of RFC 9110, section 6.6.1, `allow`
    /// the methods of section 10.2.1.
    #[must_use]
    pub fn new(status: Status, kind: &str, body: &[u8], date: &str, allow: &str) -> Self {
        let wrong_method = status == Status::MethodNotAllowed && !allow.is_empty();
        let allow = if wrong_method { format!("Allow: {allow}\r\n") } else { String::new() };
        let head = format!(
            "HTTP/1.1 {}\r\nDate: {date}\r\n{allow}Content-Type: {kind}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            status.line(),
            body.len()
        );
        let mut bytes = head.into_bytes();
        let head = bytes.len();
        bytes.extend_from_slice(body);
        Self { bytes, head }
    }

    /// What is sent of it: the answer to a HEAD request has no body.
    #[must_use]
    pub fn part(&self, head_only: bool) -> &[u8] {
        if head_only { &self.bytes[..self.head] } else { &self.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "Tue, 24 Nov 2026 12:00:00 GMT";

    fn text(status: Status, head_only: bool) -> String {
        let answer = Response::new(status, PLAIN, b"OK", DATE, "GET, HEAD");
        String::from_utf8(answer.part(head_only).to_vec()).unwrap()
    }

    #[test]
    fn an_answer_says_how_long_it_is_and_that_it_is_the_last() {
        let head = "HTTP/1.1 200 OK\r\nDate: Tue, 24 Nov 2026 12:00:00 GMT\r\n\
                    Content-Type: text/plain; charset=utf-8\r\nContent-Length: 2\r\n\
                    Connection: close\r\n\r\n";
        assert_eq!(text(Status::Ok, false), head.to_owned() + "OK");
        assert_eq!(text(Status::Ok, true), head);
    }

    #[test]
    fn a_wrong_method_is_told_the_right_ones() {
        assert!(text(Status::MethodNotAllowed, false).contains("\r\nAllow: GET, HEAD\r\n"));
        assert!(!text(Status::NotFound, false).contains("Allow"));
    }
}
