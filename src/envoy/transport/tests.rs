use std::io::Write;
use std::os::unix::net::UnixListener;
use std::thread;

use super::*;

/// Longer than anything takes; only a failing test waits for so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// What comes of a server that sends these bytes and closes the connection: the body, or the error.
fn response_to(bytes: &str) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let bytes = bytes.to_owned();
    let server = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        client.write_all(bytes.as_bytes()).unwrap();
    });
    let mut body = Vec::new();
    let mut on_body = |_: u16, piece: &[u8]| {
        body.extend_from_slice(piece);
        true
    };
    let address = AdminAddress::Unix(path);
    let result = request(&address, any_peer, "GET", "/", Some(PATIENCE), &mut on_body);
    server.join().unwrap();
    match result {
        Ok(status) => {
            assert_eq!(status, 200);
            Ok(String::from_utf8(body).unwrap())
        }
        Err(Error::Protocol(reason)) => Err(reason),
        // The connection ended too early.
        Err(Error::Io(error)) => Err(error.kind().to_string()),
        Err(error) => panic!("{error}"),
    }
}

const LENGTH: &str = "Content-Length: 4";
const CHUNKED: &str = "Transfer-Encoding: chunked";

#[test]
fn a_response_whose_end_is_known_is_whole_only_with_its_end() {
    for (version, fields, body, cuts) in [
        ("1.1", LENGTH, "LIVE", vec!["LIV", ""]),
        ("1.0", LENGTH, "LIVE", vec!["LIV", ""]),
        ("1.1", "content-length:4", "LIVE", vec!["LIV"]),
        (
            "1.1",
            CHUNKED,
            "2\r\nLI\r\n2\r\nVE\r\n0\r\n\r\n",
            // The end of the last chunk without the last line is the end of all data.
            vec![
                "2\r\nLI\r\n2\r\nVE\r\n0\r",
                "2\r\nLI\r\n2\r\nVE\r\n0",
                "2\r\nLI\r\n2\r\nVE\r\n",
                "2\r\nLI\r\n",
                "2\r\n",
                "",
            ],
        ),
        ("1.1", "transfer-encoding:CHUNKED", "4\r\nLIVE\r\n0\r\n\r\n", vec!["4\r\nLIVE\r\n"]),
    ] {
        let head = format!("HTTP/{version} 200 OK\r\n{fields}\r\n\r\n");
        assert_eq!(response_to(&format!("{head}{body}")), Ok("LIVE".to_owned()), "{head}");
        for cut in cuts {
            let result = response_to(&format!("{head}{cut}"));
            assert!(result.is_err(), "{head}{cut:?} is {result:?}");
        }
    }
}

#[test]
fn a_response_whose_end_is_not_known_is_never_whole() {
    const NO_LENGTH: &str = "it has no length";
    const LENGTHS: &str = "its length is not one number";
    const NUMBER: &str = "protocol: content-length header not a number";
    const CONFLICT: &str = "protocol: conflicting content-length headers";
    const BOTH: &str = "it has both a length and a transfer encoding";
    const ENCODINGS: &str = "its transfer encoding is not chunked alone";
    let chunked_body = "4\r\nLIVE\r\n0\r\n\r\n";
    for (version, fields, bodies, reason) in [
        ("1.1", "X-A: b", ["LIVE", "LIV"], NO_LENGTH),
        ("1.0", "X-A: b", ["LIVE", "LIV"], NO_LENGTH),
        ("1.1", "Transfer-Encoding: identity", ["LIVE", "LIV"], ENCODINGS),
        ("1.1", "Transfer-Encoding: gzip", ["LIVE", "LIV"], ENCODINGS),
        ("1.1", "Transfer-Encoding:", ["LIVE", "LIV"], ENCODINGS),
        ("1.1", "Transfer-Encoding: gzip, chunked", [chunked_body, "4\r\nLI"], ENCODINGS),
        ("1.1", "Transfer-Encoding: chunked, identity", [chunked_body, "4\r\nLI"], ENCODINGS),
        ("1.1", &format!("{CHUNKED}\r\n{CHUNKED}"), [chunked_body, "4\r\nLI"], ENCODINGS),
        ("1.1", "Transfer-Encoding: xchunked", [chunked_body, "4\r\nLI"], ENCODINGS),
        ("1.0", CHUNKED, [chunked_body, "4\r\nLI"], "it is chunked, which HTTP/1.0 has not"),
        ("1.1", &format!("{LENGTH}\r\n{CHUNKED}"), [chunked_body, "4\r\nLI"], BOTH),
        ("1.1", &format!("{CHUNKED}\r\n{LENGTH}"), ["LIVE", "LIV"], BOTH),
        ("1.1", &format!("{LENGTH}\r\n{LENGTH}"), ["LIVE", "LIV"], LENGTHS),
        ("1.1", &format!("{LENGTH}\r\nContent-Length: 3"), ["LIVE", "LIV"], CONFLICT),
        ("1.1", "Content-Length: +4", ["LIVE", "LIV"], NUMBER),
        ("1.1", "Content-Length: 4, 4", ["LIVE", "LIV"], LENGTHS),
        ("1.1", "Content-Length: -1", ["LIVE", ""], NUMBER),
        ("1.1", "Content-Length:", ["LIVE", ""], NUMBER),
    ] {
        let head = format!("HTTP/{version} 200 OK\r\n{fields}\r\n\r\n");
        for body in bodies {
            let result = response_to(&format!("{head}{body}"));
            assert_eq!(result, Err(reason.to_owned()), "{head:?}{body:?}");
        }
    }
}
