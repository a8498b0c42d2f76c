//! Rounds of a door, at times that the test sets, before a server that answers as the test wants.

use std::io::{ErrorKind, Read as _, Write as _};
use std::mem;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;

use super::*;
use crate::cli::options::Options;
use crate::coordinator::Coordinator;
use crate::route;

/// Longer than anything takes; only a failing test waits for so long.
const PATIENCE: Duration = Duration::from_secs(10);

const NANO: Duration = Duration::from_nanos(1);

const PATIENT: Timeouts = Timeouts { start: Duration::from_secs(15), ready: None };

const RULES: Limits = Limits { clients: 4, waiting: 2, patience: PATIENT };

const HEALTHZ: &str = "GET /healthz HTTP/1.1\r\n\r\n";
const SHUTDOWN: &str = "GET /shutdown HTTP/1.1\r\n\r\n";

struct Scene {
    manager: Coordinator,
    front: Frontend,
    /// Where the door is.
    at: SockAddr,
    server: UnixListener,
    now: Timestamp,
    folder: TempDir,
}

fn server(folder: &TempDir) -> UnixListener {
    let server = UnixListener::bind(folder.path().join("server")).unwrap();
    server.set_nonblocking(true).unwrap();
    server
}

impl Scene {
    fn new(keeper: Router, rules: Limits, listen: fn(&Path) -> (Listener, SockAddr)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (listener, at) = listen(folder.path());
        let manager = Coordinator::new(Options::default(), false);
        let path = folder.path().join("server");
        let bell = crate::backend::RestartSignal::default();
        let front = Frontend::new(listener, keeper, path, bell, manager.tracker(), rules);
        let server = server(&folder);
        Self {
            manager,
            front,
            at,
            server,
            now: Timestamp::from_start(Duration::from_secs(1000)),
            folder,
        }
    }

    fn public(rules: Limits) -> Self {
        Self::new(route::public, rules, |_| {
            let port = TcpListener::bind("127.0.0.1:0").unwrap();
            port.set_nonblocking(true).unwrap();
            let at = port.local_addr().unwrap().into();
            (Listener::Public(port), at)
        })
    }

    fn private(rules: Limits) -> Self {
        Self::new(route::private, rules, |folder| {
            let path = folder.join("door");
            let socket = UnixListener::bind(&path).unwrap();
            socket.set_nonblocking(true).unwrap();
            (Listener::Private(socket), SockAddr::unix(path).unwrap())
        })
    }

    /// A client that says this; at the public port from 127.0.0.`host`.
    fn from(&self, host: u8, text: impl AsRef<[u8]>) -> Socket {
        let client = Socket::new(self.at.domain(), Type::STREAM, None).unwrap();
        if self.at.domain() == Domain::IPV4 {
            client.bind(&std::net::SocketAddr::from(([127, 0, 0, host], 0)).into()).unwrap();
        }
        client.connect(&self.at).unwrap();
        say(&client, text);
        client
    }

    fn say(&self, text: impl AsRef<[u8]>) -> Socket {
        self.from(1, text)
    }

    fn round(&mut self) {
        let ready = self.front.look(self.now, self.now + Duration::from_millis(1));
        self.front.go_on(&ready, self.now);
    }

    /// Goes on until it is so.
    #[track_caller]
    fn until(&mut self, mut is_so: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "it does not come; held: {}", self.held());
            self.round();
        }
    }

    fn later(&mut self, time: Duration) {
        self.now = self.now + time;
        self.round();
    }

    /// Who is held, by number: whether they are Read, Wait, are Answered or Linger.
    fn held(&self) -> String {
        let letter = |client: &Connection| match client.state {
            State::Reading(_) => 'R',
            State::WaiterGuard(..) => 'W',
            State::Answering { .. } => 'A',
            State::Lingering(_) => 'L',
            State::Gone => 'G',
        };
        let mut clients: Vec<_> = self.front.clients.iter().collect();
        clients.sort_by_key(|client| client.number);
        let held = clients.iter().map(|client| format!("{}{}", client.number, letter(client)));
        held.collect::<Vec<_>>().join(" ")
    }

    /// Goes on until these are held, and stay.
    #[track_caller]
    fn holds(&mut self, expected: &str) {
        let mut times = 0;
        self.until(|scene| {
            times = if scene.held() == expected { times + 1 } else { 0 };
            times == 3
        });
    }

    /// All that a client hears, to the end of its connection.
    #[track_caller]
    fn hear(&mut self, client: &Socket) -> String {
        let (mut text, mut piece) = (Vec::new(), [0; 4096]);
        client.set_nonblocking(true).unwrap();
        self.until(|_| {
            loop {
                match (&*client).read(&mut piece) {
                    Ok(0) => return true,
                    Ok(length) => text.extend_from_slice(&piece[..length]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => return true,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        String::from_utf8(text).unwrap()
    }

    /// The status and the body that a client is told.
    #[track_caller]
    fn told(&mut self, client: &Socket) -> (String, String) {
        let text = self.hear(client);
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let status = head.strip_prefix("HTTP/1.1 ").expect("a version")[..3].to_owned();
        (status, body.to_owned())
    }

    #[track_caller]
    fn assert_told(&mut self, client: &Socket, status: &str, body: &str) {
        assert_eq!(self.told(client), (status.to_owned(), body.to_owned()));
    }

    /// The server's side of a request that has this first line.
    #[track_caller]
    fn asked(&mut self, line: &str) -> UnixStream {
        let mut asked = None;
        self.until(|scene| {
            asked = scene.server.accept().ok();
            asked.is_some()
        });
        let mut stream = asked.unwrap().0;
        let more = if line.starts_with("POST") { "Content-Length: 0\r\n" } else { "" };
        let expected =
            format!("{line} HTTP/1.1\r\nHost: localhost\r\n{more}Connection: close\r\n\r\n");
        assert_eq!(request(&mut stream), expected);
        stream
    }

    #[track_caller]
    fn assert_nobody_asks(&mut self) {
        self.round();
        let error = self.server.accept().map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }

    /// What was counted at the public port.
    fn answered(&self) -> Vec<(Option<PublicRoute>, &'static str, u64)> {
        let routes = PublicRoute::ALL.map(Some).into_iter().chain([None]);
        let rows = routes.zip(self.manager.observer().snapshot().counters.requests);
        let all = rows.flat_map(|(route, row)| {
            Status::ALL.into_iter().zip(row).map(move |(status, n)| (route, status.code(), n))
        });
        all.filter(|(_, _, times)| *times > 0).collect()
    }

    fn refused(&self) -> u64 {
        self.manager.observer().snapshot().counters.connections_rejected
    }

    fn waiters(&self) -> usize {
        self.manager.observer().snapshot().envoy_hooks
    }

    /// Lets the `index`th client have more of its answer to read than is sent at once.
    fn narrow(&self, index: usize) {
        setsockopt(&self.front.clients[index].fd(), sockopt::SndBuf, &1).unwrap();
    }
}

fn say(client: &Socket, text: impl AsRef<[u8]>) {
    let mut client = client;
    client.write_all(text.as_ref()).unwrap();
}

/// What the server is asked.
fn request(stream: &mut UnixStream) -> String {
    let mut piece = [0; 4096];
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = stream.read(&mut piece).unwrap();
    String::from_utf8_lossy(&piece[..length]).into_owned()
}

fn reply(stream: &mut UnixStream, status: u16, body: &str) {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status} X\r\nContent-Type: a/b\r\nContent-Length: {length}\r\n\r\n")
        .unwrap();
    stream.write_all(body.as_bytes()).unwrap();
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn all_who_want_the_same_are_told_what_the_server_says_once() {
    let mut scene = Scene::public(RULES);
    let get = scene.say(HEALTHZ);
    let head = scene.say(HEALTHZ.replace("GET", "HEAD"));
    let other = scene.say(HEALTHZ.replace("healthz", "metrics"));
    let mut healthz = scene.asked("GET /healthz");
    let mut metrics = scene.asked("GET /metrics");
    scene.holds("1W 2W 3W");
    scene.assert_nobody_asks();
    // It comes in pieces.
    healthz.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
    scene.holds("1W 2W 3W");
    healthz.write_all(b"Content-Type: a/b\r\nContent-Length: 2\r\n\r\nOK").unwrap();
    let text = scene.hear(&get);
    assert!(text.starts_with("HTTP/1.1 200 OK\r\nDate: "), "{text}");
    assert!(text.contains("\r\nContent-Type: a/b\r\nContent-Length: 2\r\n"), "{text}");
    assert!(text.ends_with("\r\n\r\nOK"), "{text}");
    scene.assert_told(&head, "200", "");
    scene.holds("3W");
    assert_eq!(scene.answered(), [(Some(PublicRoute::Healthz), "200", 2)]);
    reply(&mut metrics, 503, "down");
    scene.assert_told(&other, "503", "down");
    assert_eq!(scene.answered()[1], (Some(PublicRoute::Metrics), "503", 1));
    scene.holds("");
    assert!(scene.front.desks.is_empty());
    assert_eq!((scene.refused(), scene.front.due(scene.now)), (0, Timestamp::MAX));
}

#[test]
fn what_is_refused_is_counted_at_the_public_port_alone() {
    let mut public = Scene::public(RULES);
    let mut private = Scene::private(RULES);
    for (start, status) in [("GET /nowhere", "404"), ("POST /metrics", "405"), ("GET", "400")] {
        let client = public.say(format!("{start} HTTP/1.1\r\n\r\n"));
        let text = public.hear(&client);
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
        assert_eq!(text.contains("\r\nAllow: GET, HEAD\r\n"), status == "405", "{text}");
        assert!(text.ends_with(&format!("\r\n\r\n{}\n", &text[9..text.find('\r').unwrap()])));
    }
    let expected = [(Some(PublicRoute::Metrics), "405", 1), (None, "400", 1), (None, "404", 1)];
    assert_eq!(public.answered(), expected);
    let client = private.say("PUT /drain HTTP/1.1\r\n\r\n");
    let text = private.hear(&client);
    assert!(text.starts_with("HTTP/1.1 405 ") && !text.contains("\r\nAllow: "), "{text}");
    assert!(private.answered().is_empty());
    assert_eq!(public.front.listener.name(), "public");
    assert_eq!(private.front.listener.name(), "control");
}

#[test]
fn a_word_more_is_heard_out_for_a_second() {
    let mut scene = Scene::public(RULES);
    let brief = scene.say(HEALTHZ.to_owned() + "x");
    reply(&mut scene.asked("GET /healthz"), 200, "OK");
    scene.assert_told(&brief, "200", "OK");
    let waits = scene.say(SHUTDOWN.to_owned() + "x");
    scene.assert_told(&waits, "400", "nothing may follow this request\n");
    assert_eq!(scene.answered()[1], (Some(PublicRoute::Shutdown), "400", 1));
    scene.holds("1L 2L");
    say(&brief, "more");
    scene.holds("1L 2L");
    drop(brief);
    scene.holds("2L");
    assert_eq!(scene.front.due(scene.now), scene.now + secs(1));
    scene.later(secs(1) - NANO);
    scene.holds("2L");
    scene.later(NANO);
    scene.holds("");
    scene.assert_nobody_asks();
}

#[test]
fn at_most_64_linger() {
    let mut scene = Scene::private(Limits { clients: 100, ..RULES });
    let silent = scene.say("");
    let clients: Vec<_> = (0..65).map(|_| scene.say("PUT / HTTP/1.1\r\n\r\n")).collect();
    let last = (3..=66).map(|number| format!(" {number}L")).collect::<String>();
    scene.holds(&format!("1R{last}"));
    drop((silent, clients));
    scene.holds("");
}

#[test]
fn a_head_is_waited_for_five_seconds() {
    let mut scene = Scene::public(RULES);
    let silent = scene.say("");
    let begins = scene.say("GET /");
    scene.holds("1R 2R");
    scene.later(secs(5) - NANO);
    scene.holds("1R 2R");
    assert_eq!(scene.front.due(scene.now), scene.now + NANO);
    scene.later(NANO);
    assert_eq!(scene.hear(&silent), "", "who has said nothing is told nothing");
    scene.assert_told(&begins, "408", "408 Request Timeout\n");
    assert_eq!(scene.answered(), [(None, "408", 1)]);
}

#[test]
fn a_head_may_come_in_pieces() {
    let mut scene = Scene::private(RULES);
    let client = scene.say("");
    for (number, piece) in SHUTDOWN.as_bytes().chunks(1).enumerate() {
        scene.holds("1R");
        assert_eq!(scene.front.clients[0].unfinished(), number);
        say(&client, piece);
    }
    scene.holds("1W");
}

#[test]
fn who_has_closed_its_half_is_answered_unless_it_waits_for_a_drain() {
    let mut scene = Scene::public(RULES);
    let clients = [HEALTHZ, SHUTDOWN, "GET /", SHUTDOWN].map(|text| {
        let client = scene.say(text);
        client.shutdown(Shutdown::Write).unwrap();
        client
    });
    scene.holds("1W");
    say(&scene.say(SHUTDOWN), "x");
    scene.holds("1W");
    assert_eq!(scene.waiters(), 0);
    for client in &clients[1..] {
        assert_eq!(scene.hear(client), "");
    }
    reply(&mut scene.asked("GET /healthz"), 200, "OK");
    scene.assert_told(&clients[0], "200", "OK");
}

#[test]
fn the_oldest_of_those_who_have_not_asked_give_way() {
    let mut scene = Scene::public(Limits { clients: 3, ..RULES });
    let first = [(); 3].map(|()| scene.say(""));
    scene.holds("1R 2R 3R");
    let fourth = scene.say("");
    scene.holds("2R 3R 4R");
    assert_eq!(scene.hear(&first[0]), "");
    let _fifth = scene.say("");
    scene.holds("3R 4R 5R");
    say(&first[2], HEALTHZ);
    scene.holds("3W 4R 5R");
    let _sixth = scene.say("");
    scene.holds("3W 5R 6R");
    assert_eq!(scene.hear(&fourth), "");
    assert_eq!(scene.refused(), 3);
    assert_eq!(scene.front.full.happened(scene.now), None, "it was told");
}

#[test]
fn who_has_not_been_told_all_is_kept_longer_than_who_has_and_who_waits_never_goes() {
    let mut scene = Scene::private(Limits { clients: 3, ..RULES });
    let _slow = scene.say(HEALTHZ);
    scene.holds("1W");
    scene.narrow(0);
    reply(&mut scene.asked("GET /healthz"), 200, &"x".repeat(60_000));
    let _refused = scene.say("PUT / HTTP/1.1\r\n\r\n");
    let _silent = scene.say("");
    scene.holds("1A 2L 3R");
    scene.later(ms(100));
    let fourth = scene.say("");
    scene.holds("1A 2L 4R");
    say(&fourth, HEALTHZ);
    scene.holds("1A 2L 4W");
    let _fifth = scene.say(HEALTHZ);
    scene.holds("1A 4W 5W");
    // The last who can be spared is kept while somebody waits who will not do so for long.
    let outside = scene.say(HEALTHZ);
    scene.holds("1A 4W 5W");
    assert!(!scene.front.look(scene.now, scene.now).listener, "nobody is let in");
    reply(&mut scene.asked("GET /healthz"), 200, "OK");
    scene.assert_told(&fourth, "200", "OK");
    scene.holds("1A 6W");
    reply(&mut scene.asked("GET /healthz"), 200, "OK");
    scene.assert_told(&outside, "200", "OK");
    assert_eq!(scene.refused(), 0, "that is counted at the public port alone");
}

#[test]
fn who_has_just_come_is_kept_longer_than_who_has_its_answer() {
    let mut scene = Scene::public(Limits { clients: 2, ..RULES });
    let answered = scene.say("PUT / HTTP/1.1\r\n\r\n");
    let slow = scene.from(2, "");
    scene.holds("1L 2R");
    scene.later(ms(100) - NANO);
    let _third = scene.from(3, "");
    scene.holds("2R 3R");
    scene.later(NANO);
    let _fourth = scene.from(4, "PUT / HTTP/1.1\r\n\r\n");
    scene.holds("3R 4L");
    assert!(scene.hear(&answered).starts_with("HTTP/1.1 404 "));
    assert_eq!(scene.hear(&slow), "");
}

#[test]
fn who_has_asked_by_now_does_not_give_way() {
    let mut scene = Scene::private(Limits { clients: 2, ..RULES });
    let first = scene.say("");
    let _second = scene.say("");
    scene.holds("1R 2R");
    say(&first, HEALTHZ);
    let _third = scene.say("");
    // Nobody has looked whether the first has something to say.
    scene.front.accept(scene.now);
    assert_eq!(scene.held(), "1W 3R");
}

#[test]
fn those_who_are_there_have_their_turn_after_64_that_come() {
    let mut scene = Scene::private(Limits { clients: 100, ..RULES });
    let _clients: Vec<_> = (0..65).map(|_| scene.say("")).collect();
    scene.front.number = 10;
    scene.round();
    assert_eq!(scene.front.clients.len(), 64);
    scene.round();
    assert_eq!(scene.front.clients.len(), 65);
}

#[test]
fn a_full_door_takes_a_sixteenth_of_what_it_holds_at_once() {
    let mut scene = Scene::private(Limits { clients: 100, ..RULES });
    let _clients: Vec<_> = (0..100).map(|_| scene.say("")).collect();
    scene.until(|scene| scene.front.clients.len() == 100);
    assert_eq!(scene.front.room(), 6);
    // No more than can be spared.
    for client in &mut scene.front.clients[3..] {
        let Ok(wanted) = route::public("GET", "/shutdown") else { panic!("it is served") };
        client.wait(Request { wanted, head_only: false, more: false }, None, Timestamp::MAX);
    }
    assert_eq!(scene.front.room(), 3);
}

#[test]
fn those_who_come_count_to_the_crowd_of_their_origin() {
    for (hosts, gone) in [
        // Of these, host 3 had most before, and host 2 has as many now.
        ([(3, ""), (3, ""), (3, ""), (2, ""), (3, HEALTHZ), (2, HEALTHZ), (2, HEALTHZ)], 30),
        // Host 1 has most, and nobody who can be spared.
        ([(1, HEALTHZ), (1, HEALTHZ), (2, ""), (3, ""), (4, ""), (1, HEALTHZ), (1, HEALTHZ)], 29),
    ] {
        let mut scene = Scene::public(Limits { clients: 32, ..RULES });
        let mut clients: Vec<_> = (1..=26).map(|_| scene.say(HEALTHZ)).collect();
        for (host, text) in &hosts[..5] {
            clients.push(scene.from(*host, text));
        }
        scene.until(|scene| scene.front.clients.len() == 31);
        // Both at once, for whom there is one place.
        clients.extend(hosts[5..].iter().map(|(host, text)| scene.from(*host, text)));
        let says = |number: usize| hosts.get(number - 27).map_or(HEALTHZ, |(_, text)| text);
        let letter = |number| if number < 27 || says(number) == HEALTHZ { 'W' } else { 'R' };
        let held = (1..=33).filter(|number| *number != gone);
        let held: Vec<_> = held.map(|number| format!("{number}{}", letter(number))).collect();
        scene.holds(&held.join(" "));
    }
}

#[test]
fn unfinished_heads_are_kept_within_their_bound() {
    let mut scene = Scene::private(Limits { clients: 100, ..RULES });
    let start =
        |length: usize| "GET /healthz HTTP/1.1\r\na: ".to_owned() + &"b".repeat(length - 26);
    let silent = [(); 2].map(|()| scene.say(""));
    let clients = [&[4095; 32][..], &[32]].concat().into_iter();
    let clients: Vec<_> = clients.map(|length| scene.say(start(length))).collect();
    let held = |first: usize| {
        let all = (first..=35).map(|number| format!(" {number}R"));
        "1R 2R".to_owned() + &all.collect::<String>()
    };
    scene.holds(&held(3));
    say(clients.last().unwrap(), "b");
    scene.holds(&held(4));
    assert_eq!(scene.hear(&clients[0]), "");
    drop(silent);
}

#[test]
fn the_origin_with_most_who_wait_loses_its_newest() {
    let mut scene = Scene::public(Limits { clients: 8, ..RULES });
    let _first = scene.from(1, SHUTDOWN);
    let second = scene.from(1, SHUTDOWN.replace("GET", "HEAD"));
    let _probe = scene.from(1, HEALTHZ);
    scene.holds("1W 2W 3W");
    let third = scene.from(1, SHUTDOWN);
    scene.assert_told(&third, "503", "too many wait already\n");
    scene.holds("1W 2W 3W 4L");
    let _other = scene.from(2, SHUTDOWN);
    scene.assert_told(&second, "503", "");
    scene.holds("1W 2L 3W 4L 5W");
    let late = scene.from(3, SHUTDOWN);
    scene.assert_told(&late, "503", "too many wait already\n");
    assert_eq!((scene.refused(), scene.waiters()), (3, 2));
    assert_eq!(scene.answered(), [(Some(PublicRoute::Shutdown), "503", 3)]);
}

#[test]
fn envoys_hooks_and_exec_hooks_have_places_of_their_own() {
    let mut scene = Scene::private(Limits { clients: 8, ..RULES });
    let hook = |number: u32| format!("GET /shutdown?drain={number} HTTP/1.1\r\n\r\n");
    let clients: Vec<_> =
        [SHUTDOWN, &hook(1), SHUTDOWN, &hook(2)].map(|text| scene.say(text)).into();
    scene.holds("1W 2W 3W 4W");
    assert_eq!(scene.waiters(), 2);
    for text in [SHUTDOWN, &hook(3)] {
        let late = scene.say(text);
        scene.assert_told(&late, "503", "too many wait already\n");
    }
    // Nobody asked Envoy's hooks to wait for ever.
    scene.later(PATIENT.start);
    scene.assert_told(&clients[0], "503", NO_DRAIN);
    drop(clients);
    scene.holds("");
}

#[test]
fn who_waits_is_let_go_after_the_start_timeout_while_no_drain_has_begun() {
    let mut scene = Scene::public(RULES);
    let client = scene.say(SHUTDOWN);
    scene.holds("1W");
    assert_eq!(scene.front.due(scene.now), scene.now + PATIENT.start);
    scene.later(PATIENT.start - NANO);
    scene.holds("1W");
    assert_eq!(scene.waiters(), 1);
    scene.later(NANO);
    scene.assert_told(&client, "503", NO_DRAIN);
    scene.until(|scene| scene.waiters() == 0);
    assert_eq!(scene.answered(), [(Some(PublicRoute::Shutdown), "503", 1)]);
    assert_eq!(scene.front.let_go.happened(scene.now), None, "it was told");

    let client = scene.say(SHUTDOWN);
    scene.holds("1L 2W");
    scene.manager.trigger().start(&crate::cli::drain_request::DrainRequest::default()).unwrap();
    scene.later(PATIENT.start);
    scene.holds("2W");
    assert_eq!(scene.front.due(scene.now), scene.now + PATIENT.start);
    reply(&mut scene.asked("GET /shutdown?waiters"), 200, "drained");
    scene.assert_told(&client, "200", "drained");
    assert_eq!(scene.answered()[0], (Some(PublicRoute::Shutdown), "200", 1));
}

#[test]
fn nobody_waits_longer_than_the_ready_timeout_even_in_a_drain() {
    let patience = Timeouts { ready: Some(secs(20)), ..PATIENT };
    let mut scene = Scene::public(Limits { patience, ..RULES });
    let (client, mut later) = (scene.say(SHUTDOWN), None);
    scene.holds("1W");
    assert_eq!(scene.front.due(scene.now), scene.now + PATIENT.start);
    scene.manager.trigger().start(&crate::cli::drain_request::DrainRequest::default()).unwrap();
    scene.later(PATIENT.start);
    later.replace(scene.say(SHUTDOWN));
    scene.holds("1W 2W");
    assert_eq!(scene.front.due(scene.now), scene.now + secs(5));
    scene.later(secs(5) - NANO);
    scene.holds("1W 2W");
    scene.later(NANO);
    scene.assert_told(&client, "500", NOT_READY);
    assert_eq!(scene.answered(), [(Some(PublicRoute::Shutdown), "500", 1)]);
    assert_eq!(scene.front.too_long.happened(scene.now), None, "it was told");
    scene.until(|scene| scene.waiters() == 1);
    // Where no drain has begun that is told, whichever of the two is over first.
    let patience = Timeouts { ready: Some(secs(1)), ..PATIENT };
    let mut scene = Scene::public(Limits { patience, ..RULES });
    let client = scene.say(SHUTDOWN);
    scene.holds("1W");
    scene.later(secs(1));
    scene.assert_told(&client, "500", NOT_READY);
}

#[test]
fn an_exec_hook_is_never_let_go() {
    let mut scene = Scene::private(RULES);
    let client = scene.say("GET /shutdown?drain=07 HTTP/1.1\r\n\r\n");
    let mut asked = scene.asked("GET /shutdown?drain=7");
    assert_eq!((scene.front.due(scene.now), scene.waiters()), (Timestamp::MAX, 0));
    scene.later(secs(86_400));
    scene.holds("1W");
    scene.assert_nobody_asks();
    reply(&mut asked, 200, "drained\n");
    scene.assert_told(&client, "200", "drained\n");
}

#[test]
fn an_end_that_is_for_those_who_have_left_is_not_told() {
    let mut scene = Scene::private(RULES);
    let client = scene.say(SHUTDOWN);
    drop(scene.asked("GET /shutdown?waiters"));
    scene.holds("1W");
    scene.later(ms(25));
    reply(&mut scene.asked("GET /shutdown?waiters"), 410, "nobody waits any more\n");
    let again = scene.asked("GET /shutdown?waiters");
    scene.holds("1W");
    drop(again);
    scene.holds("1W");
    assert_eq!(scene.front.due(scene.now), scene.now + ms(25), "it is well again");
    scene.later(ms(25));
    reply(&mut scene.asked("GET /shutdown?waiters"), 503, "the sidecar stops\n");
    scene.assert_told(&client, "503", "the sidecar stops\n");
    let expired = scene.say("POST /drain?expires=1 HTTP/1.1\r\n\r\n");
    reply(&mut scene.asked("POST /drain?expires=1"), 410, "the request has expired\n");
    scene.assert_told(&expired, "410", "the request has expired\n");
}

#[test]
fn a_server_that_fails_is_asked_again_after_longer_and_longer_pauses() {
    let mut scene = Scene::private(RULES);
    let client = scene.say(SHUTDOWN);
    type Failure = fn(UnixStream);
    let failures: [(u64, Failure); 6] = [
        (25, drop),
        (50, |mut asked| reply(&mut asked, 500, "")),
        (100, |mut asked| asked.write_all(b"nonsense\r\n\r\n").unwrap()),
        (200, |mut asked| asked.write_all(b"HTTP/1.1 200 OK\r\n\r\nOK").unwrap()),
        (200, |mut asked| {
            asked.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nO").unwrap()
        }),
        (200, |asked| asked.shutdown(Shutdown::Both).unwrap()),
    ];
    for (pause, fail) in failures {
        fail(scene.asked("GET /shutdown?waiters"));
        scene.holds("1W");
        assert_eq!(scene.front.due(scene.now), scene.now + ms(pause));
        scene.later(ms(pause) - NANO);
        scene.assert_nobody_asks();
        scene.later(NANO);
    }
    assert_eq!(scene.front.not_answered.happened(scene.now), None, "it was told");
    reply(&mut scene.asked("GET /shutdown?waiters"), 200, "OK");
    scene.assert_told(&client, "200", "OK");
}

#[test]
fn a_server_that_cannot_be_reached_is_asked_again() {
    let mut scene = Scene::private(RULES);
    std::fs::remove_file(scene.folder.path().join("server")).unwrap();
    let client = scene.say(HEALTHZ);
    for pause in [25, 50, 100, 200, 200] {
        scene.holds("1W");
        assert_eq!(scene.front.due(scene.now), scene.now + ms(pause));
        scene.later(ms(pause));
    }
    scene.server = server(&scene.folder);
    scene.later(ms(200));
    reply(&mut scene.asked("GET /healthz"), 200, "OK");
    scene.assert_told(&client, "200", "OK");
}

#[test]
fn a_brief_answer_that_is_late_is_asked_for_again_and_given_up_after_five_seconds() {
    let mut scene = Scene::public(RULES);
    let start = scene.now;
    let client = scene.say(HEALTHZ);
    let mut asked = Vec::new();
    for patience in [500, 1000, 2000] {
        asked.push(scene.asked("GET /healthz"));
        assert_eq!(scene.front.due(scene.now), scene.now + ms(patience));
        scene.later(ms(patience) - NANO);
        scene.assert_nobody_asks();
        scene.later(NANO);
    }
    assert_eq!(scene.front.not_answered.happened(scene.now), None, "it was told");
    asked.push(scene.asked("GET /healthz"));
    scene.later(start + (secs(5) - NANO) - scene.now);
    scene.holds("1W");
    scene.later(NANO);
    scene.assert_told(&client, "503", "the sidecar does not answer itself\n");
    assert_eq!(scene.answered(), [(Some(PublicRoute::Healthz), "503", 1)]);
}

#[test]
fn an_answer_that_is_too_long_is_none() {
    let mut scene = Scene::private(RULES);
    let _client = scene.say(SHUTDOWN);
    let mut asked = scene.asked("GET /shutdown?waiters");
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n";
    let longest = head.to_owned() + &"x".repeat(64 * 1024 - head.len());
    asked.write_all(longest.as_bytes()).unwrap();
    scene.holds("1W");
    assert_eq!(scene.front.due(scene.now), scene.now + PATIENT.start);
    asked.write_all(b"x").unwrap();
    scene.holds("1W");
    assert_eq!(scene.front.due(scene.now), scene.now + ms(25));
}

#[test]
fn a_request_that_nobody_wants_any_more_keeps_its_place_until_it_is_answered() {
    let mut scene = Scene::private(Limits { clients: 2, ..RULES });
    let mut asked = Vec::new();
    for number in 1..=2 {
        drop(scene.say(format!("GET /shutdown?drain={number} HTTP/1.1\r\n\r\n")));
        asked.push(scene.asked(&format!("GET /shutdown?drain={number}")));
        scene.holds("");
    }
    let third = scene.say("GET /shutdown?drain=3 HTTP/1.1\r\n\r\n");
    scene.holds("3W");
    scene.assert_nobody_asks();
    reply(&mut asked[0], 200, "drained\n");
    reply(&mut scene.asked("GET /shutdown?drain=3"), 200, "drained\n");
    scene.assert_told(&third, "200", "drained\n");
    drop(asked);
    scene.until(|scene| scene.front.desks.is_empty());

    drop(scene.say(HEALTHZ));
    let _asked = scene.asked("GET /healthz");
    scene.holds("");
    assert_eq!(scene.front.due(scene.now), Timestamp::MAX, "nobody wakes for it");
    scene.later(ms(500) - NANO);
    assert_eq!(scene.front.desks.len(), 1);
    scene.later(NANO);
    assert!(scene.front.desks.is_empty());
    scene.assert_nobody_asks();
}

#[test]
fn who_takes_its_answer_slowly_waits_until_it_has_it_for_five_seconds() {
    let mut scene = Scene::private(RULES);
    let body: String = (0..10_000).map(|n| format!("{n:05} ")).collect();
    for _ in 0..2 {
        let client = scene.say(SHUTDOWN);
        scene.until(|scene| scene.waiters() == 1);
        scene.narrow(0);
        reply(&mut scene.asked("GET /shutdown?waiters"), 200, &body);
        let number = scene.front.number;
        scene.holds(&format!("{number}A"));
        assert_eq!(scene.waiters(), 1);
        assert_eq!(scene.front.due(scene.now), scene.now + secs(5));
        scene.later(secs(5) - NANO);
        scene.holds(&format!("{number}A"));
        if number == 1 {
            scene.assert_told(&client, "200", &body);
        } else {
            scene.later(NANO);
            assert!(scene.hear(&client).len() < body.len());
        }
        scene.holds("");
        assert_eq!(scene.waiters(), 0);
    }
}

#[test]
fn what_is_said_after_an_answer_is_heard_out_to_a_bound() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut client = Connection::new(near.into(), SourceKey::HERE, 1, Timestamp::ZERO);
    let answer = Arc::new(Response::new(Status::Ok, PLAIN, b"OK", "", ""));
    client.answer(answer, false, true, Timestamp::ZERO);
    assert!(matches!(client.state, State::Lingering(4_194_304)));
    client.state = State::Lingering(10);
    client.discard();
    assert!(matches!(client.state, State::Lingering(10)), "nothing was said");
    for (said, left) in [("1234", 6), ("56789", 1)] {
        far.write_all(said.as_bytes()).unwrap();
        client.discard();
        assert!(matches!(client.state, State::Lingering(n) if n == left), "{client:?}");
    }
    far.write_all(b"0").unwrap();
    client.discard();
    assert!(matches!(client.state, State::Gone), "{client:?}");
}

#[test]
fn a_door_that_cannot_accept_tries_again_a_tenth_of_a_second_later() {
    let mut scene = Scene::private(RULES);
    // It does not listen.
    let broken = OwnedFd::from(Socket::new(Domain::UNIX, Type::STREAM, None).unwrap());
    let well = mem::replace(&mut scene.front.listener, Listener::Private(broken.into()));
    scene.front.accept(scene.now);
    assert_eq!(scene.front.not_accepted.happened(scene.now), None, "it was told");
    scene.front.listener = well;
    let _client = scene.say("");
    assert_eq!(scene.front.due(scene.now), scene.now + ms(100));
    scene.later(ms(100) - NANO);
    scene.holds("");
    scene.now = scene.now + NANO;
    assert_eq!(scene.front.due(scene.now), Timestamp::MAX);
    scene.holds("1R");
}

#[test]
fn a_door_has_as_many_places_as_descriptors_allow() {
    for (descriptors, public, private) in [
        (0, (4, 2), (6, 2)),
        (32, (4, 2), (6, 2)),
        (64, (32, 16), (6, 2)),
        (128, (64, 32), (16, 5)),
        (1024, (576, 288), (192, 64)),
        (1471, (1023, 511), (192, 64)),
        (1472, (1024, 512), (192, 64)),
        (usize::MAX, (1024, 512), (192, 64)),
    ] {
        let rules = |(clients, waiting)| Limits { clients, waiting, ..RULES };
        assert_eq!(Limits::public(descriptors, PATIENT), rules(public));
        assert_eq!(Limits::private(descriptors, PATIENT), rules(private));
    }
}

fn panics(method: &str, target: &str) -> Result<UpstreamTarget, (Option<PublicRoute>, Status)> {
    assert_ne!(target, "/panic", "as the test wants");
    route::public(method, target)
}

/// Serves as under a supervisor.
fn serve(mut front: Frontend) {
    // It has no end.
    thread::spawn(move || while catch_unwind(AssertUnwindSafe(|| front.serve())).is_err() {});
}

fn accept(server: &UnixListener) -> UnixStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match server.accept() {
            Ok((stream, _)) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "nobody asks: {error}"),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn heard(mut client: &Socket) -> String {
    let mut text = String::new();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    match client.read_to_string(&mut text) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => text,
    }
}

#[test]
fn who_waits_is_kept_over_a_panic_and_nobody_else() {
    let mut scene = Scene::private(RULES);
    scene.now = clock::now();
    scene.front.keeper = panics;
    let waits = scene.say(SHUTDOWN);
    scene.holds("1W");
    let half = scene.say("GET /healthz");
    scene.holds("1W 2R");
    let panics = scene.say("GET /panic HTTP/1.1\r\n\r\n");
    let Scene { front, server, manager, folder: _folder, .. } = scene;
    serve(front);
    // What was asked by the scene and before the panic.
    let _lost = [accept(&server), accept(&server)];
    assert_eq!((heard(&panics), heard(&half)), (String::new(), String::new()));
    let mut asked = accept(&server);
    assert!(request(&mut asked).starts_with("GET /shutdown?waiters "));
    assert_eq!(manager.observer().snapshot().envoy_hooks, 1);
    reply(&mut asked, 200, "OK");
    assert!(heard(&waits).ends_with("\r\n\r\nOK"));
}

#[test]
fn nobody_is_kept_who_makes_every_round_panic() {
    let mut scene = Scene::private(RULES);
    scene.now = clock::now();
    scene.front.keeper = panics;
    let waits = scene.say(SHUTDOWN);
    scene.holds("1W");
    let _panics = scene.say("GET /panic HTTP/1.1\r\n\r\n");
    // The first time it is kept.
    scene.front.starts = MOST_STARTS - 1;
    serve(scene.front);
    assert_eq!(heard(&waits), "");
}
