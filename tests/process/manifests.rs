//! The manifests in the README: each is valid in Kubernetes' eyes (`tests/manifests/read.py`), and
//! what it starts and asks fits this program.

#![allow(clippy::expect_used, reason = "a manifest that cannot be read fails the test")]

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use envoy_shutdown_manager::cli::options::{Flavor, Options};
use envoy_shutdown_manager::cli::{self, Command as Cli};

#[test]
fn the_readmes_manifests_are_valid_and_fit_this_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The same for every build, where `tests/manifests/install` puts it.
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let python = root.join(target).join("manifests/bin/python3");
    if !python.exists() && env::var_os("CI").is_none_or(|ci| ci != "true") {
        return println!("SKIPPED: the manifests, for which there is no {}", python.display());
    }
    let read = Command::new(&python)
        .arg(root.join("tests/manifests/read.py"))
        .args([root.join("README.md").as_os_str(), env!("CARGO_PKG_VERSION").as_ref()])
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", python.display()));
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let told = String::from_utf8(read.stdout).expect("text");
    let pods: Vec<_> = told.split("pod\t").skip(1).map(Pod).collect();
    assert!(pods.len() >= 5, "{told}");
    pods.iter().for_each(Pod::check);
}

/// What `read.py` tells of a pod: its name, then a line for each fact.
struct Pod<'a>(&'a str);

impl<'a> Pod<'a> {
    /// The words of a fact.
    fn try_fact(&self, name: &str) -> Option<Vec<&'a str>> {
        let mut lines = self.0.lines().map(|line| line.split('\t'));
        lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.collect()))
    }

    fn fact(&self, name: &str) -> Vec<&'a str> {
        self.try_fact(name).unwrap_or_else(|| panic!("no {name} in {}", self.0))
    }

    /// A command line, as the program takes it.
    fn parsed(&self, name: &str) -> (Flavor, Cli) {
        let mut words = self.fact(name).into_iter().map(OsString::from);
        let program = Flavor::of(&words.next().expect("a program"));
        let command = cli::parse(program, words);
        (program, command.unwrap_or_else(|error| panic!("{name}: {error}, in {}", self.0)))
    }

    fn check(&self) {
        let (name, Cli::Sidecar(sidecar)) = self.parsed("sidecar") else {
            panic!("another command than the sidecar's in {}", self.0);
        };
        let (its_name, Cli::Shutdown(hook)) = self.parsed("hook") else {
            panic!("another command than the hook's in {}", self.0);
        };
        assert_eq!(name, its_name, "{}", self.0);

        // On the host's network `host` is the pod's loopback; in a network of its own, the node's.
        let loopback = (self.fact("network") == ["host"]).then_some("127.0.0.1");
        assert_eq!(sidecar.serve.address.as_deref(), loopback, "{}", self.0);
        let port = sidecar.serve.port.to_string();
        let asked = |path| vec![loopback.unwrap_or_default(), path, &port];
        let path = match name {
            Flavor::Contour => "/shutdown",
            Flavor::EnvoyGateway => "/shutdown/ready",
        };
        assert_eq!(self.fact("waits"), asked(path), "{}", self.0);
        if let Some(probe) = self.try_fact("probe") {
            assert_eq!(probe, asked("/healthz"), "{}", self.0);
        }

        let options = Options::of(name).with(&sidecar.overrides).with(&hook.overrides);
        let grace = Duration::from_secs(self.fact("grace")[0].parse().expect("seconds"));
        let polls = (options.delay() + options.check_delay).max(options.min_drain_duration);
        let seconds = Duration::from_secs;
        assert!(grace > polls + options.check_interval + seconds(5), "{}", self.0);
        if let Some(timeout) = options.drain_timeout {
            assert!(grace >= timeout + seconds(15), "the drain timeout is too long: {}", self.0);
            assert!(timeout > polls, "nothing is waited for: {}", self.0);
            let ready = sidecar.ready_timeout;
            assert!(ready.is_none_or(|ready| ready > timeout), "let go too early: {}", self.0);
        }
    }
}
