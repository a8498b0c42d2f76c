use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tempfile::TempDir;

use super::*;
use crate::envoy::HiddenStats;
use crate::envoy::ServerTotal;

const SECOND: Duration = Duration::from_secs(1);

/// A response: how long it takes, its status and body; or none, ever.
type Response = Option<(Duration, u16, &'static str)>;

/// An Envoy that responds by the path, one request at a time.
struct Envoy {
    options: Options,
    path: PathBuf,
    _folder: TempDir,
}

impl Envoy {
    fn start(respond: fn(&str) -> Response) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            for client in listener.incoming() {
                serve(client.unwrap(), respond);
            }
        });
        let admin_address = AdminAddress::Unix(path.clone());
        let options = Options { admin_address, check_interval: SECOND, ..Options::default() };
        Self { options, path, _folder: folder }
    }

    fn error(&self, client: &mut AdminClient, call: Call, limit: Option<Duration>) -> AdminError {
        client.call(call, &self.options, limit).unwrap_err()
    }
}

fn serve(mut client: UnixStream, respond: fn(&str) -> Response) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if client.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    match respond(head.split(' ').nth(1).unwrap()) {
        // It is the client that gives up.
        None => drop(client.read(&mut [0])),
        Some((after, status, body)) => {
            thread::sleep(after);
            let length = body.len();
            let response = format!("HTTP/1.1 {status} S\r\nContent-Length: {length}\r\n\r\n{body}");
            // The client may have given up.
            let _ = client.write_all(response.as_bytes());
            let _ = client.shutdown(Shutdown::Write);
        }
    }
}

const STATS: &str = "http.admin.downstream_cx_active: 1\nlistener.a.downstream_cx_active: 2\n\
    listener.admin.downstream_cx_active: 1\nserver.total_connections: 6\nserver.uptime: 5\n";

/// Asserts how long something takes: a busy machine may make it longer, but not every time.
#[track_caller]
fn assert_takes(expected: Duration, mut attempt: impl FnMut()) {
    let mut times = Vec::new();
    while times.len() < 5 {
        let started = Instant::now();
        attempt();
        let took = started.elapsed();
        assert!(took >= expected, "{took:?}, not {expected:?}");
        if took < expected + SECOND {
            return;
        }
        times.push(took);
    }
    panic!("{times:?}, not {expected:?}");
}

#[test]
fn a_call_has_the_interval_and_more_after_one_that_was_slow() {
    let seconds = Duration::from_secs_f32;
    for (least, interval, limit, expected) in [
        (0.0, 0.1, None, 2.0),
        (0.0, 5.0, None, 5.0),
        (0.0, 60.0, None, 10.0),
        (4.0, 0.1, None, 4.0),
        (4.0, 5.0, None, 5.0),
        // The limit takes back what has grown, and no more.
        (8.0, 0.1, Some(3.0), 3.0),
        (8.0, 0.1, Some(0.0), 2.0),
        (8.0, 5.0, Some(3.0), 5.0),
        (8.0, 0.1, Some(60.0), 8.0),
    ] {
        let mut timeouts = Timeouts::default();
        timeouts.0[Call::ReadStats as usize] = seconds(least);
        let limit = limit.map(seconds);
        let timeout = timeouts.of(Call::ReadStats, seconds(interval), limit);
        assert_eq!(timeout, seconds(expected), "{least} {interval} {limit:?}");
        // Other calls have their own.
        let other = timeouts.of(Call::CheckReady, seconds(0.1), None);
        assert_eq!(other, seconds(2.0));
    }
    for (least, timeout, next) in
        [(0.0, 2.0, 4.0), (4.0, 4.0, 8.0), (8.0, 8.0, 10.0), (10.0, 2.0, 10.0)]
    {
        let mut timeouts = Timeouts::default();
        timeouts.0[Call::ReadStats as usize] = seconds(least);
        assert_eq!(timeouts.after_timeout(Call::ReadStats, seconds(timeout)), seconds(next));
    }
}

#[test]
fn both_requests_of_a_poll_share_its_time_and_the_next_poll_has_twice_as_long() {
    let envoy = Envoy::start(|path| match path {
        "/ready" => None,
        _ => Some((3 * SECOND / 2, 200, STATS)),
    });
    let (mut client, mut error) = (AdminClient::default(), None);
    assert_takes(2 * SECOND, || {
        client = AdminClient::default();
        error = Some(envoy.error(&mut client, Call::ReadStats, None));
    });
    let error = error.unwrap();
    assert_eq!(error.kind, AdminErrorKind::Timeout);
    let expected = "no whole response within 2s; the next call has 4s";
    assert!(error.text.starts_with("GET /ready") && error.text.ends_with(expected), "{error:?}");
    assert_eq!(client.timeouts.0[Call::ReadStats as usize], 4 * SECOND);
    // Another address is another Envoy.
    let mut elsewhere = envoy.options.clone();
    elsewhere.admin_address = AdminAddress::Unix(envoy.path.with_extension("none"));
    assert!(client.call(Call::ReadStats, &elsewhere, None).unwrap_err().is_refusal());
    assert_eq!(client.timeouts.0, [Duration::ZERO; CALLS]);
}

#[test]
fn both_requests_of_a_check_of_listeners_share_its_time() {
    let envoy = Envoy::start(|path| match path {
        "/ready" => Some((Duration::ZERO, 200, "LIVE\n")),
        "/listeners" => Some((3 * SECOND / 2, 200, "a::127.0.0.1:80\n")),
        _ => None,
    });
    let mut error = None;
    assert_takes(2 * SECOND, || {
        error = Some(envoy.error(&mut AdminClient::default(), Call::CheckListeners, None));
    });
    let error = error.unwrap();
    assert!(error.text.starts_with("GET /stats") && error.text.contains("within 2s"), "{error:?}");
}

#[test]
fn a_limit_holds_whatever_has_grown() {
    let envoy = Envoy::start(|_| None);
    let address = Some(envoy.options.admin_address.clone());
    let mut client = AdminClient { address, timeouts: Timeouts([10 * SECOND; CALLS]) };
    let mut error = None;
    assert_takes(2 * SECOND, || {
        error = Some(envoy.error(&mut client, Call::FailHealthChecks, Some(SECOND)));
    });
    let error = error.unwrap();
    assert!(error.text.ends_with("within 2s; the next call has 10s"), "{error:?}");
    assert_eq!(client.timeouts.0, [10 * SECOND; CALLS]);
}

#[test]
fn a_call_that_cannot_be_longer_says_so() {
    let text = |timeout, next| explain(&Error::Timeout, timeout, next).1;
    let longest = "no whole response within 10s, which is the longest that a call may take";
    assert_eq!(text(MAX_TIMEOUT, MAX_TIMEOUT), longest);
    let expected = "no whole response within 4s; the next call has 8s";
    assert_eq!(text(4 * SECOND, 8 * SECOND), expected);
}

#[test]
fn a_slow_envoy_has_twice_as_long_for_the_next_call() {
    let after = Duration::from_millis(200);
    let envoy = Envoy::start(|path| match path {
        "/ready" => Some((Duration::ZERO, 503, "DRAINING\n")),
        "/healthcheck/fail" => Some((Duration::ZERO, 500, "")),
        _ => Some((Duration::from_millis(200), 200, STATS)),
    });
    let address = Some(envoy.options.admin_address.clone());
    let mut client = AdminClient { address, timeouts: Timeouts([8 * SECOND; CALLS]) };
    let reply = client.call(Call::ReadStats, &envoy.options, None).unwrap();
    let total = Some(ServerTotal { connections: 6, uptime: 5 });
    let Reply::Stats(found) = reply else { panic!("{reply:?}") };
    assert_eq!(found.breakdown.bytes, STATS.len() as u64);
    let breakdown = found.breakdown.clone();
    let poll = Poll { total, breakdown, ..Poll::of(2, Health::Draining) };
    assert_eq!(found, poll);
    let least = client.timeouts.0[Call::ReadStats as usize];
    assert!(least >= 2 * after && least < 8 * SECOND, "{least:?}");
    // An error that is no time-out says nothing about the time.
    assert_eq!(envoy.error(&mut client, Call::FailHealthChecks, None).kind, AdminErrorKind::Status);
    assert_eq!(client.timeouts.0[Call::FailHealthChecks as usize], 8 * SECOND);
}

#[test]
fn an_unexpected_status_is_quoted_with_the_first_line_of_its_body() {
    let envoy = Envoy::start(|path| {
        let (status, body) = match path.split('?').next().unwrap() {
            "/healthcheck/fail" => (405, "a\u{1b}[2J\nb\n"),
            "/healthcheck/ok" => (500, ""),
            "/ready" => (404, "\nsecond"),
            _ => (400, Box::leak("0123456789".repeat(100).into_boxed_str()) as &str),
        };
        Some((Duration::ZERO, status, body))
    });
    for (call, end) in [
        (Call::FailHealthChecks, r#"responded with status 405: "a\u{1b}[2J""#),
        (Call::RestoreHealthChecks, "responded with status 500"),
        (Call::CheckReady, "responded with status 404"),
        (Call::ReadStats, r#"890123456789""#),
    ] {
        let error = envoy.error(&mut AdminClient::default(), call, None);
        assert!(error.text.ends_with(end) && error.text.len() < 300, "{error:?}");
        assert!(error.kind == AdminErrorKind::Status && error.is_response(), "{error:?}");
    }
}

#[test]
fn what_envoy_says_of_a_path_that_is_not_allowed_is_quoted() {
    let envoy = Envoy::start(|path| match path {
        "/ready" => Some((Duration::ZERO, 200, "LIVE\n")),
        _ => Some((Duration::ZERO, 403, "request to path /listeners not allowed")),
    });
    let error = envoy.error(&mut AdminClient::default(), Call::CheckListeners, None);
    let end = r#"status 403: "request to path /listeners not allowed""#;
    assert!(error.text.ends_with(end), "{error:?}");
}

#[test]
fn a_check_of_listeners_compares_two_responses() {
    let envoy = Envoy::start(|path| {
        let body = match path {
            "/ready" => "LIVE\n",
            "/listeners" => "web::0.0.0.0:80\nready::0.0.0.0:81\nhidden::0.0.0.0:82\n",
            listeners::GAUGES => {
                "listener.0.0.0.0_80.downstream_cx_active: 0\n\
                listener.admin.downstream_cx_active: 1\n"
            }
            _ => "",
        };
        Some((Duration::ZERO, 200, body))
    });
    let options = Options { exclude: vec!["0.0.0.0_81".to_owned()], ..envoy.options.clone() };
    let reply = AdminClient::default().call(Call::CheckListeners, &options, None).unwrap();
    let names = vec!["hidden".to_owned()];
    assert_eq!(
        reply,
        Reply::Listeners(HiddenStats {
            listeners: names,
            certain: true,
            uncounted: vec!["ready".to_owned()],
            ..HiddenStats::default()
        })
    );
}

#[test]
fn a_response_without_end_is_given_up() {
    let envoy = Envoy::start(|_| {
        Some((Duration::ZERO, 200, Box::leak("x".repeat(stats::MAX_BODY + 1).into_boxed_str())))
    });
    // A debug build takes a second or more to read so much.
    let mut client = AdminClient {
        address: Some(envoy.options.admin_address.clone()),
        timeouts: Timeouts([10 * SECOND; CALLS]),
    };
    let error = envoy.error(&mut client, Call::FailHealthChecks, None);
    assert_eq!(error.kind, AdminErrorKind::TooLong, "{error:?}");
}

#[test]
fn what_answers_by_http_is_told_from_what_does_not() {
    let answered = AdminErrorKind::ALL
        .map(|kind| AdminError { kind, text: String::new() })
        .into_iter()
        .filter(AdminError::is_response)
        .map(|error| error.kind.name());
    assert_eq!(answered.collect::<Vec<_>>(), ["status", "too_long", "content"]);
}

#[test]
fn errors_of_the_connection_have_their_kinds() {
    use AdminErrorKind::{Other, Protocol, Refused};
    for (error, kind) in [
        (ErrorKind::ConnectionRefused, Refused),
        (ErrorKind::NotFound, Refused),
        (ErrorKind::UnexpectedEof, Protocol),
        (ErrorKind::ConnectionReset, Protocol),
        (ErrorKind::BrokenPipe, Protocol),
        (ErrorKind::PermissionDenied, Other),
        (ErrorKind::NetworkUnreachable, Other),
        (ErrorKind::AddrNotAvailable, Other),
    ] {
        let found = explain(&Error::Io(error.into()), SECOND, SECOND).0;
        assert_eq!(found, kind, "{error}");
    }
}

#[test]
fn a_listener_that_is_added_between_the_requests_is_not_hidden() {
    static ASKED: AtomicBool = AtomicBool::new(false);
    let envoy = Envoy::start(|path| {
        let was_asked = ASKED.swap(true, Ordering::SeqCst);
        let body = match (path, was_asked) {
            ("/listeners", false) => "web::0.0.0.0:80\n",
            ("/listeners", true) => "web::0.0.0.0:80\nnew::0.0.0.0:81\n",
            (_, false) => {
                "listener.0.0.0.0_80.downstream_cx_active: 0\n\
                listener.admin.downstream_cx_active: 1\n"
            }
            (_, true) => {
                "listener.0.0.0.0_80.downstream_cx_active: 0\n\
                listener.0.0.0.0_81.downstream_cx_active: 0\n\
                listener.admin.downstream_cx_active: 1\n"
            }
        };
        Some((Duration::ZERO, 200, body))
    });
    let reply = AdminClient::default().call(Call::CheckListeners, &envoy.options, None);
    let nothing = Ok(Reply::Listeners(HiddenStats::default()));
    assert_eq!(reply, nothing, "a listener that has just been added looks hidden");
}

#[test]
fn every_state_of_envoy_is_known() {
    for (health, respond) in [
        (Health::Live, (|_: &str| Some((Duration::ZERO, 200, "LIVE\n"))) as fn(&str) -> Response),
        (Health::Draining, |_| Some((Duration::ZERO, 503, "DRAINING\n"))),
        (Health::Starting, |_| Some((Duration::ZERO, 503, "PRE_INITIALIZING\n"))),
        (Health::Starting, |_| Some((Duration::ZERO, 503, "INITIALIZING\n"))),
    ] {
        let envoy = Envoy::start(respond);
        let reply = AdminClient::default().call(Call::CheckReady, &envoy.options, None);
        assert_eq!(reply, Ok(Reply::Ready(health)));
    }
}
