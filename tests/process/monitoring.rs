//! The manual's page *monitoring*: its table of metrics against a drain of a real Envoy, its alerts and its
//! dashboard against promtool (`tests/manifests/*.py`), and its log rules against real logs.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use envoy_shutdown_manager::cli;
use envoy_shutdown_manager::cli::options::Flavor;

use crate::manifests::validator;
use crate::support::prelude::*;

/// Runs a script of `tests/manifests`; `None` without the tools for it.
fn script<S: AsRef<OsStr>>(name: &str, args: &[S]) -> Option<String> {
    let python = validator("python3")?;
    let script = root().join("tests/manifests").join(name);
    let run = Command::new(python).arg("-B").arg(script).args(args).output().expect("run Python");
    assert!(run.status.success(), "{name}: {}", String::from_utf8_lossy(&run.stderr));
    Some(String::from_utf8(run.stdout).expect("text"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page() -> PathBuf {
    root().join("src/manual/monitoring.md")
}

fn dashboard() -> PathBuf {
    root().join("src/manual/dashboard.json")
}

#[test]
fn the_manuals_alerts_fire_when_they_should_and_at_no_other_time() {
    let Some(promtool) = validator("promtool") else { return };
    let folder = temp_dir("alerts");
    script("alerts.py", &[promtool, folder.path().to_owned(), page(), dashboard()]);
}

#[test]
fn the_commands_in_alerts_are_commands_of_this_program() {
    let page = fs::read_to_string(page()).expect("read the page");
    let named = page.split("/bin/envoy-shutdown-manager ").skip(1);
    let named: BTreeSet<_> = named.filter_map(|rest| rest.split_whitespace().next()).collect();
    assert!(named.len() >= 2, "{named:?}");
    for command in named {
        let parsed = cli::parse(Flavor::Contour, [OsString::from(command)]);
        assert!(parsed.is_ok(), "{command}: {parsed:?}");
    }
}

#[test]
fn the_manuals_table_has_the_metrics_of_a_drain_and_no_others() {
    let Some(promtool) = validator("promtool") else { return };
    // It sees no Envoy before the scrape, so that what is absent then is: the scrape has Envoy checked, and an
    // address that refused would at times be quicker than its response.
    let dir = temp_dir("silent");
    let silent = dir.path().join("admin.sock");
    let _listener = UnixListener::bind(&silent).expect("bind a socket that does not respond");
    let without_envoy = Sidecar::builder().admin(silent.display()).start();
    let mut scrapes = vec![without_envoy.metrics()];

    let envoy = Envoy::builder().http("http").tcp("tcp").start();
    let sidecar = Sidecar::beside(&envoy);
    sidecar.wait_log(ENVOY_RESPONDS);
    scrapes.push(sidecar.metrics());
    let (first, idle) = (connect(&envoy), KeptAlive::open(envoy.port("http")));
    let mut hook = sidecar.hook(&["--drain-timeout=1h"]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 2);
    // One that arrives during the drain.
    let second = connect(&envoy);
    wait_open_connections(&sidecar, 3);
    scrapes.push(sidecar.metrics());
    drop((first, idle, second));
    assert_exits(&mut hook, 0, "drained");
    scrapes.push(sidecar.metrics());

    let folder = temp_dir("metrics");
    let mut args = vec![promtool, page(), dashboard()];
    for (index, scrape) in scrapes.iter().enumerate() {
        let file = folder.path().join(index.to_string());
        fs::write(&file, scrape).expect("write a scrape");
        args.push(file);
    }
    script("metrics.py", &args);
}

/// Asserts which alerts of the page the log of a sidecar causes, and how many lines do.
#[track_caller]
fn assert_fires(log: &[String], expected: &str) {
    let folder = temp_dir("log");
    let file = folder.path().join("log");
    fs::write(&file, log.join("\n") + "\n").expect("write the log");
    if let Some(fired) = script("logs.py", &[page(), file]) {
        assert_eq!(fired, expected, "{log:#?}");
    }
}

#[test]
fn the_manuals_log_rules_match_the_outcomes_that_they_are_for() {
    if validator("python3").is_none() {
        return;
    }
    type Drain = fn(&Sidecar, &mut FakeAdmin);
    let rows: [(&str, Drain, &str); 5] = [
        (
            "a drain with a failed poll",
            |sidecar, admin| {
                admin.fault_times(Route::Stats, 1, Fault::Status(500));
                assert_drains(sidecar, admin);
                sidecar.wait_log(logged(ENVOY_CALL_FAILED).with("level", "warn"));
            },
            "",
        ),
        (
            "Envoy ended without a connection, and with its own hook",
            |sidecar, admin| {
                let waiter = sidecar.public().start_get("/shutdown");
                wait_envoy_hooks(sidecar, 1);
                let mut hook = sidecar.hook(&["--drain-delay=1h"]);
                sidecar.wait_log(counted(0));
                admin.vanish();
                assert_exits(&mut hook, 0, "Envoy is gone");
                drop(waiter);
            },
            "",
        ),
        (
            "Envoy ended with a connection, and without its own hook",
            |sidecar, admin| {
                let mut hook = start_drain(sidecar, admin);
                admin.vanish();
                assert_exits(&mut hook, 0, ENVOY_IS_GONE_WITH_ONE_OPEN);
            },
            "EnvoyEndedBeforeItsDrain 1\n",
        ),
        (
            "a drain that gave up",
            |sidecar, admin| {
                admin.set_open(1);
                assert_exits(&mut sidecar.hook(&["--drain-timeout=300ms"]), 1, "gave up");
            },
            "EnvoyDrainGaveUp 1\n",
        ),
        (
            "a hook that was called wrongly",
            |sidecar, _| {
                assert_exits(&mut sidecar.hook(&["--no-such-option"]), 2, NONE_OPEN);
            },
            "EnvoyShutdownManagerError 1\n",
        ),
    ];
    let formats = |(name, drain, fires)| {
        ["text", "json"].map(|format| (format!("{name}, in {format}"), (format, drain, fires)))
    };
    for_each_case(rows.into_iter().flat_map(formats).collect(), |_, (format, drain, fires)| {
        let mut admin = FakeAdmin::unix();
        let format = format!("--log-format={format}");
        let sidecar = Sidecar::builder().beside(&admin).arg(&format).start();
        drain(&sidecar, &mut admin);
        sidecar.wait_log(Expected::default().containing("outcome", ""));
        assert_fires(&sidecar.lines(), fires);
        // The other way of giving up is logged in the same words.
        if fires.contains("GaveUp") {
            let log = sidecar.lines().join("\n").replace("timed_out", "released");
            assert_fires(&[log], "EnvoyDrainReleased 1\n");
        }
    });
}
