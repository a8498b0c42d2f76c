//! HTTP clients of the public port that are not part of these tests.

use std::fs;
use std::process::{Child, Command, Stdio};

use super::start;
use crate::support::prelude::*;

/// Starts another program, if it is here.
pub fn start_program(command: &[&str]) -> Option<Child> {
    let child = Command::new(command[0]).args(&command[1..]).stdout(Stdio::piped()).spawn();
    child.map_err(|error| println!("SKIPPED: no {} here: {error}", command[0])).ok()
}

/// Its stdout, once it has ended well.
#[track_caller]
pub fn output(child: Child) -> String {
    let output = child.wait_with_output().expect("its output");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn curl_is_served() {
    let admin = FakeAdmin::unix();
    let sidecar = start(&admin);
    let dir = temp_dir("curl");
    // With a large body curl waits for a 100, which never comes; of a small one it sends all.
    let [large, small] = [("large", 2_000_000), ("small", 60_000)].map(|(name, size)| {
        let path = dir.path().join(name);
        fs::write(&path, vec![b'x'; size]).expect("write");
        format!("@{}", path.display())
    });
    let port = sidecar.port();
    let [healthz, drain, shutdown] =
        ["healthz", "drain", "shutdown"].map(|path| format!("http://127.0.0.1:{port}/{path}"));
    let code = "-w%{http_code} %{num_connects}";
    let curl = |args: &[&str]| {
        start_program(&[&["curl", "--silent", "--show-error", "--max-time", "20"], args].concat())
    };
    for (args, expected) in [
        (&[healthz.as_str(), code][..], "OK200 1"),
        (&["--http1.0", &healthz, code], "OK200 1"),
        (&["--http2", &healthz, code], "OK200 1"),
        (&["--head", "-o/dev/null", &healthz, code], "200 1"),
        (&[&healthz, &healthz], "OKOK"),
        (&["--data", "a=1", &drain, code], "404 Not Found\n404 1"),
        (&["--data-binary", &large, &drain, code], "404 Not Found\n404 1"),
        (&["--data-binary", &large, &healthz, code], "405 Method Not Allowed\n405 1"),
        (&["-T", &small[1..], "-HExpect:", &shutdown, code], "405 Method Not Allowed\n405 1"),
    ] {
        let Some(child) = curl(args) else { return };
        assert_eq!(output(child), expected, "{args:?}");
    }
    let waiter = curl(&[&shutdown, code]).expect("as before");
    wait_envoy_hooks(&sidecar, 1);
    let mut hook = start_drain(&sidecar, &admin);
    finish_drain(&admin, &mut hook);
    assert_eq!(output(waiter), "OK200 1");
    assert_eq!(admin.count(Route::Fail), 1);
}

const HTTP_CLIENT: &str = r#"
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=20)
for method, path, body in [
    ("GET", "/healthz", None), ("GET", "/healthz", None), ("HEAD", "/healthz", None),
    ("POST", "/drain", "a=1"), ("PUT", "/healthz", None), ("GET", "/shutdown", None),
]:
    connection.request(method, path, body, {"Connection": "keep-alive"})
    response = connection.getresponse()
    print(method, response.status, response.getheader("Content-Length"), response.read().decode().strip())
"#;

#[test]
fn pythons_http_client_is_served() {
    let admin = FakeAdmin::unix();
    let sidecar = start(&admin);
    let port = sidecar.port().to_string();
    let Some(child) = start_program(&["python3", "-c", HTTP_CLIENT, &port]) else { return };
    wait_envoy_hooks(&sidecar, 1);
    let mut hook = start_drain(&sidecar, &admin);
    finish_drain(&admin, &mut hook);
    let lines = output(child);
    let expected = [
        "GET 200 2 OK",
        "GET 200 2 OK",
        "HEAD 200 2 ",
        "POST 404 14 404 Not Found",
        "PUT 405 23 405 Method Not Allowed",
        "GET 200 2 OK",
    ];
    assert_eq!(lines.lines().collect::<Vec<_>>(), expected);
    assert_eq!(admin.count(Route::Fail), 1);
}
