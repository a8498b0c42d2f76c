//! The manifests in the manual and the README: each is valid by Kubernetes' schemas
//! (`tests/manifests/read.py`), what it starts and requests fits this program, and a real Envoy
//! takes the `envoy.yaml`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use envoy_shutdown_manager::cli::flags::Subcommand;
use envoy_shutdown_manager::cli::options::{Flavor, Options};
use envoy_shutdown_manager::cli::{self, Command as Cli};

use crate::support::{envoy_binary, temp_dir};

/// The one with the whole pod first, which the others patch.
const PAGES: [&str; 4] =
    ["src/manual/kubernetes.md", "src/manual/settings.md", "src/manual/monitoring.md", "README.md"];

/// A program that `tests/manifests/install` has installed, where every build finds it. In CI it must be there; else a
/// test that needs it is skipped.
pub fn validator(name: &str) -> Option<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let bin = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("manifests/bin");
    let program = bin.join(name);
    if program.exists() || env::var_os("CI").is_some_and(|ci| ci == "true") {
        return Some(program);
    }
    println!("SKIPPED: there is no {}; see `just manifests`", program.display());
    None
}

#[test]
fn the_manuals_manifests_are_valid_and_fit_this_program() {
    let Some(python) = validator("python3") else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = temp_dir("manifests");
    let read = Command::new(&python)
        .arg(root.join("tests/manifests/read.py"))
        .arg(env!("CARGO_PKG_VERSION"))
        .arg(folder.path())
        .args(PAGES.map(|page| root.join(page)))
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", python.display()));
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let facts = String::from_utf8(read.stdout).expect("text");
    let pods: Vec<_> = facts.split("pod\t").skip(1).map(Pod).collect();
    assert!(pods.len() >= 6, "{facts}");
    pods.iter().for_each(Pod::check);

    let bootstrap = folder.path().join("envoy.yaml");
    // Envoy watches the folder of a file that it reads, so that must be there.
    let text = fs::read_to_string(&bootstrap).expect("the configuration");
    assert!(text.contains(" /admin/drain"), "another file: {text}");
    let here = format!(" {}/", folder.path().display());
    fs::write(&bootstrap, text.replace(" /admin/", &here)).expect("write it");
    let validated = Command::new(envoy_binary::envoy())
        .args(["--mode", "validate", "--log-level", "error", "-c"])
        .arg(&bootstrap)
        .output()
        .expect("run Envoy");
    assert!(validated.status.success(), "{}", String::from_utf8_lossy(&validated.stderr));
}

/// What `read.py` prints of a pod: its name, then a line for each fact.
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
        let (flavor, Cli::Run(Subcommand::Sidecar, sidecar)) = self.parsed("sidecar") else {
            panic!("another command than the sidecar's in {}", self.0);
        };
        let (hook_flavor, Cli::Run(Subcommand::Shutdown, hook)) = self.parsed("exec_hook") else {
            panic!("another command than the hook's in {}", self.0);
        };
        assert_eq!(flavor, hook_flavor, "{}", self.0);

        // On the host's network `host` is the pod's loopback; in a network of its own, the node's.
        let loopback = (self.fact("network") == ["host"]).then_some("127.0.0.1");
        assert_eq!(sidecar.serve.address.as_deref(), loopback, "{}", self.0);
        let port = sidecar.serve.port.to_string();
        let request = |path| vec![loopback.unwrap_or_default(), path, &port];
        let path = match flavor {
            Flavor::Contour => "/shutdown",
            Flavor::EnvoyGateway => "/shutdown/ready",
        };
        assert_eq!(self.fact("envoy_hook"), request(path), "{}", self.0);
        if let Some(probe) = self.try_fact("probe") {
            assert_eq!(probe, request("/healthz"), "{}", self.0);
        }

        let options = Options::of(flavor).with(&sidecar.overrides).with(&hook.overrides);
        let grace = Duration::from_secs(self.fact("grace")[0].parse().expect("seconds"));
        let polls = (options.delay() + options.check_delay).max(options.min_drain_duration);
        let seconds = Duration::from_secs;
        // With a check delay of 0 s requests were lost on a real cluster, with 3 s none.
        assert!(polls >= seconds(3), "requests that still arrive are lost: {}", self.0);
        assert!(grace > polls + options.check_interval + seconds(5), "{}", self.0);
        if let Some(timeout) = options.drain_timeout {
            assert!(grace >= timeout + seconds(15), "the drain timeout is too long: {}", self.0);
            assert!(timeout > polls, "no connection is waited for: {}", self.0);
            let ready = sidecar.ready_timeout;
            assert!(ready.is_none_or(|ready| ready > timeout), "500 in mid-drain: {}", self.0);
        }
    }
}
