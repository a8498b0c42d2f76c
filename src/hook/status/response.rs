//! The response to a request for the status.

use std::io;
use std::ops::Range;

use crate::frontend::response::ResponseHead;
use crate::hook::sidecar::MAX_RESPONSE;
use crate::observe::json::is_unseen;

/// The page of a response, and whether nothing follows it, once it is complete.
///
/// # Errors
/// When it is none of a sidecar.
pub fn parse(bytes: &[u8]) -> io::Result<Option<(String, bool)>> {
    match ResponseHead::parse(bytes) {
        Ok(None) if bytes.len() < MAX_RESPONSE => Ok(None),
        Ok(Some(ResponseHead { status: 200, body: Some(Range { start, end }), .. }))
            if end < MAX_RESPONSE =>
        {
            let page = bytes.get(start..end);
            Ok(page.map(|page| (harmless(&String::from_utf8_lossy(page)), bytes.len() == end)))
        }
        Ok(Some(head)) if head.status != 200 => {
            Err(io::Error::other(format!("it responded to /status with {}", head.status)))
        }
        _ => Err(io::Error::other("its response to /status is none of a sidecar")),
    }
}

/// The page without what changes more of a terminal than how its text is laid out and coloured (CSI,
/// ECMA-48 section 5.4), whatever process it is from.
fn harmless(page: &str) -> String {
    let mut out = String::new();
    for (at, c) in page.char_indices() {
        let is_harmless = match c {
            '\n' => true,
            '\x1b' => page.get(at..).is_some_and(|rest| rest.starts_with("\x1b[")),
            c => !is_unseen(c),
        };
        out.push(if is_harmless { c } else { '?' });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nDate: x\r\n{fields}\r\n")
    }

    #[test]
    fn a_page_is_parsed_once_it_is_complete() {
        let text = head("content-length: 4\r\n") + "page";
        for length in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..length]).unwrap(), None, "{length}");
        }
        assert_eq!(parse(text.as_bytes()).unwrap(), Some(("page".to_owned(), true)));
        // The next response would be read from its middle.
        assert_eq!(parse((text + "x").as_bytes()).unwrap(), Some(("page".to_owned(), false)));
    }

    #[test]
    fn what_is_no_status_is_an_error_at_once() {
        for (text, error) in [
            ("HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n", "/status with 404"),
            ("HTTP/1.1 503 Unavailable\r\nContent-Length: 9\r\n\r\n", "/status with 503"),
            ("SSH-2.0-OpenSSH_9.9\r\n", "none of a sidecar"),
            (&head("transfer-encoding: chunked\r\n"), "none of a sidecar"),
            (&head("Content-Length: x\r\n"), "none of a sidecar"),
            (&head("Content-Length: 18446744073709551615\r\n"), "none of a sidecar"),
        ] {
            let found = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(found.contains(error), "{text}: {found}");
        }
        let endless = "HTTP/1.1 200 OK\r\na: ".to_owned() + &"b".repeat(MAX_RESPONSE);
        assert!(parse(endless.as_bytes()).is_err(), "it is read for ever");
    }

    #[test]
    fn a_page_changes_nothing_but_the_layout() {
        let page = "\x1b[1;31mred\x1b[m\n\x1b[0mplain\u{fc}\n";
        assert_eq!(harmless(page), page);
        for (page, shown) in [
            ("a\x1b]0;title\x07m\n", "a?]0;title?m\n"),
            ("a\x1bc\rb\u{202e}\u{9b}2J", "a?c?b??2J"),
            ("a\x1b\x1b", "a??"),
        ] {
            assert_eq!(harmless(page), shown);
        }
    }
}
