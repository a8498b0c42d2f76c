//! A pod that is deleted: an Envoy, a quick sidecar, somebody who is connected, and both hooks.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::clients::Plain;
use super::envoy::Envoy;
use super::net::{self, Address};
use super::scene::{self, Waiter, assert_ends, assert_held, wait_status};
use super::sidecar::{Hook, Sidecar};
use super::{PATIENCE, assert_took};

/// Where Envoy's own hook may wait.
pub const PATHS: [&str; 2] = ["/shutdown", "/shutdown/ready"];

/// The outcome of a drain that has ended as it should.
pub const DRAINED: &str = "drained: no connection is open";

/// An Envoy with a TCP listener.
pub fn with_listener() -> Envoy {
    Envoy::builder().tcp("tcp").start()
}

/// Somebody who is connected to it.
#[track_caller]
pub fn connect(envoy: &Envoy) -> Plain {
    let client = Plain::open(envoy.port("tcp"));
    assert!(client.echoes());
    client
}

/// A quick sidecar beside an Envoy, to which somebody is connected.
#[track_caller]
pub fn pod() -> (Envoy, Sidecar, Plain) {
    let envoy = with_listener();
    let (sidecar, client) = (beside(&envoy, &[]), connect(&envoy));
    (envoy, sidecar, client)
}

/// Puts an Envoy back in service.
#[track_caller]
pub fn put_back(envoy: &Envoy) {
    assert_eq!(envoy.post("/healthcheck/ok").0, 200);
    assert_eq!(envoy.ready(), "LIVE");
}

/// A sidecar beside this Envoy, with these options and quick ones.
#[track_caller]
pub fn beside(envoy: &Envoy, args: &[&str]) -> Sidecar {
    before(&envoy.admin_address(), args)
}

/// The same at any admin address.
#[track_caller]
pub fn before(admin: &str, args: &[&str]) -> Sidecar {
    scene::before(admin, &[&["--check-interval=20ms"], args].concat())
}

/// The status and body of a request at the public port.
#[track_caller]
pub fn ask(port: u16, method: &str, path: &str) -> (u16, String) {
    let answer = net::request(&Address::port(port), method, path, PATIENCE).expect("an answer");
    (answer.status, answer.body)
}

/// Waits until just so many wait as Envoy's hook does.
#[track_caller]
pub fn wait_waiting(sidecar: &Sidecar, count: usize) {
    wait_status(sidecar, &[&format!("\"waiters\":{count},")]);
}

/// What Envoy's hook is told of a drain that has ended as it should.
pub fn ok() -> (u16, String) {
    (200, "OK".to_owned())
}

/// Asserts that a signal ends it without delay, as it should when no drain goes on.
#[track_caller]
pub fn assert_stops(sidecar: &mut Sidecar) {
    let sent = Instant::now();
    sidecar.signal(Signal::SIGTERM);
    let exit = sidecar.wait_exit(PATIENCE);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert_took("its end", exit.at - sent, 0.0..1.0);
}

/// Both hooks of a pod that is deleted; dropping them hangs up and kills.
#[derive(Debug)]
pub struct Hooks {
    /// The exec hook in the sidecar.
    pub exec: Hook,
    /// Envoy's own, at the public port.
    pub envoys: Waiter,
}

impl Hooks {
    /// Runs one, and the other so much later, which is the time that is tried here.
    #[track_caller]
    pub fn run(sidecar: &Sidecar, exec_first: bool, gap: Duration) -> Self {
        let port = sidecar.port();
        let (exec, envoys) = if exec_first {
            let exec = sidecar.hook(&[]);
            thread::sleep(gap);
            (exec, Waiter::outside(port, PATHS[0]))
        } else {
            let envoys = Waiter::outside(port, PATHS[0]);
            thread::sleep(gap);
            (sidecar.hook(&[]), envoys)
        };
        Self { exec, envoys }
    }

    /// Runs both at once, and waits until both wait for the connection's end.
    #[track_caller]
    pub fn held(sidecar: &Sidecar, envoy: &Envoy) -> Self {
        let mut hooks = Self::run(sidecar, false, Duration::ZERO);
        wait_waiting(sidecar, 1);
        assert_held(sidecar, &mut hooks.exec, envoy, 1);
        hooks
    }

    /// Nothing ends before the connection does, and then Envoy's hook ends first.
    #[track_caller]
    pub fn assert_drained_with(mut self, sidecar: &Sidecar, envoy: &Envoy, client: Plain) {
        wait_waiting(sidecar, 1);
        assert_held(sidecar, &mut self.exec, envoy, 1);
        assert!(!self.envoys.is_answered());
        drop(client);
        assert_ends(&mut self.exec, 0, DRAINED);
        assert_eq!(self.envoys.answer_there(), ok());
    }
}

/// The deletion of a pod, with a connection that is open until both hooks wait.
#[track_caller]
pub fn assert_drains(sidecar: &Sidecar, envoy: &Envoy) {
    let client = connect(envoy);
    Hooks::run(sidecar, true, Duration::ZERO).assert_drained_with(sidecar, envoy, client);
}
