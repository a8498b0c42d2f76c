//! As much of HTTP/1.1 as a client needs to read a response.

use std::io::{self, ErrorKind};

/// A response. Compares with a status and a body: `assert_eq!(response, (200, "OK"))`.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// Status line and header fields, as sent.
    pub head: String,
    /// The body, without the framing of its chunks.
    pub body: String,
}

impl PartialEq<(u16, &str)> for Response {
    fn eq(&self, (status, body): &(u16, &str)) -> bool {
        self.status == *status && self.body == *body
    }
}

impl PartialEq<(u16, String)> for Response {
    fn eq(&self, (status, body): &(u16, String)) -> bool {
        *self == (*status, body.as_str())
    }
}

impl Response {
    /// All that came on a connection to its end, with everything behind the head as the body.
    #[track_caller]
    pub fn of(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text}"));
        let status = status(head).unwrap_or_else(|| panic!("no status line: {text}"));
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }

    /// Status code and reason phrase.
    pub fn status_line(&self) -> &str {
        let line = self.head.lines().next().unwrap_or_default();
        line.strip_prefix("HTTP/1.1 ").unwrap_or(line)
    }

    /// Names and values of the header fields, in their order.
    #[track_caller]
    pub fn fields(&self) -> Vec<(&str, &str)> {
        let lines = self.head.split("\r\n").skip(1);
        lines.map(|line| line.split_once(": ").expect("a header field")).collect()
    }

    /// The value of a header field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The first response in these bytes; `None` while it is not whole.
    pub fn parse(bytes: &[u8], ended: bool) -> io::Result<Option<Self>> {
        let Some(end) = find(bytes, b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status =
            status(&head).ok_or_else(|| io::Error::new(ErrorKind::InvalidData, head.clone()))?;
        let mut response = Self { status, head, body: String::new() };
        let rest = &bytes[end + 4..];
        let length = response.header("content-length").map(str::parse);
        let body = if response.header("transfer-encoding") == Some("chunked") {
            unchunk(rest)?
        } else if let Some(length) = length {
            rest.get(..length.map_err(invalid)?).map(<[u8]>::to_vec)
        } else {
            ended.then(|| rest.to_vec())
        };
        Ok(body.map(|body| {
            response.body = String::from_utf8_lossy(&body).into_owned();
            response
        }))
    }
}

fn status(head: &str) -> Option<u16> {
    head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

fn unchunk(mut rest: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    while let Some(line) = find(rest, b"\r\n") {
        let size = str::from_utf8(&rest[..line]).map_err(invalid)?;
        let size = usize::from_str_radix(size, 16).map_err(invalid)?;
        let Some(chunk) = rest.get(line + 2..line + 2 + size + 2) else {
            break;
        };
        if size == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(&chunk[..size]);
        rest = &rest[line + 2 + size + 2..];
    }
    Ok(None)
}

/// Where `wanted` first starts.
pub fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|part| part == wanted)
}
