//! The machine's clock is set while a drain goes on: what is waited for takes as long as it should.

#![allow(clippy::expect_used, reason = "a step that fails is a test that fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::support::admin::FakeAdmin;
use crate::support::rows::each;
use crate::support::scene::{arguments, assert_told, wait_status};
use crate::support::sidecar::{Sidecar, is_emulated};
use crate::support::{PATIENCE, assert_took, shared, temp_dir};

/// A library that lets a program see another time of day, as <https://github.com/wolfcw/libfaketime>.
fn libfaketime() -> Option<PathBuf> {
    let folders = ["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from);
    let within = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    let within: Vec<_> = within.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let all = folders.iter().chain(&within);
    all.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|path| path.is_file())
}

fn set_clock(file: &Path, days: i64) {
    // In one piece, for it is read at any time.
    let next = file.with_extension("next");
    fs::write(&next, format!("{:+}\n", days * 24 * 60 * 60)).expect("write");
    fs::rename(next, file).expect("rename");
}

/// The time of the line with this in it, which sorts as text.
#[track_caller]
fn time_of(sidecar: &Sidecar, part: &str) -> String {
    sidecar.wait_log(part, PATIENCE);
    let log = sidecar.log();
    let line = log.iter().find(|line| line.contains(part)).expect("a line");
    line.split(' ').next().and_then(|word| word.strip_prefix("time=")).expect("a time").to_owned()
}

#[test]
fn a_clock_that_is_set_shortens_and_lengthens_no_drain() {
    let _turn = shared();
    let loads = !cfg!(target_env = "musl") && !is_emulated();
    let Some(library) = libfaketime().filter(|_| loads) else {
        println!("SKIPPED: there is no libfaketime here, or no library is loaded into this build");
        return;
    };
    let cases = [
        ("--drain-delay=1500ms", "delaying", 0),
        ("--check-delay=1500ms", "settling", 0),
        ("--check-interval=1500ms", "draining", 0),
        ("--drain-timeout=1500ms", "draining", 1),
    ];
    let rows = cases.into_iter().flat_map(|case| {
        [1000, -3000].map(|days| (format!("{} and {days} days", case.0), (case, days)))
    });
    each(rows.collect(), |name, ((option, phase, code), days)| {
        let (admin, dir) = (FakeAdmin::unix(), temp_dir("clock"));
        let clock = dir.path().join("clock");
        set_clock(&clock, -1000);
        let args = arguments(&admin.address(), &[option]);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        // Its hook has the same.
        let sidecar = Sidecar::launch()
            .args(&args)
            .env("LD_PRELOAD", library.to_str().expect("a path"))
            .env("FAKETIME_TIMESTAMP_FILE", clock.to_str().expect("a path"))
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .start();
        let today = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let started = time_of(&sidecar, "msg=\"started\"");
        assert!(started[..10] < today[..10], "{} changes nothing", library.display());
        admin.set_open(1);
        let mut hook = sidecar.hook(&[]);
        let wanted = format!("\"phase\":\"{phase}\"");
        let wanted = match phase {
            "draining" => vec![&*wanted, "\"open_connections\":1,"],
            _ => vec![&*wanted],
        };
        wait_status(&sidecar, &wanted);
        set_clock(&clock, days);
        if code == 0 {
            admin.set_open(0);
        }
        let exit = hook.wait(PATIENCE);
        assert_eq!(exit.code, Some(code), "{name}: {exit:?}");
        assert_took(name, exit.took, 1.5..4.0);
        assert_told(&sidecar, &["msg=\"drain requested\"", "health checks failed", "outcome="]);
        let ended = time_of(&sidecar, "outcome=");
        assert_eq!(days > 0, ended > today, "{name}: from {started} to {ended}");
        assert_eq!(days > 0, ended > started, "{name}: from {started} to {ended}");
    });
}
