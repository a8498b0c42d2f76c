//! The image that ships, run as Contour's and Envoy Gateway's own manifests have it.

mod podman;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::support::prelude::*;
use crate::take_turn;
use podman::{Container, podman, run, with_image};

/// Other tests may run meanwhile, since this one only waits.
const MINUTE: Duration = Duration::from_secs(60);

/// The sidecar and the hooks of a manifest.
struct Manifest {
    user: u32,
    command: Vec<&'static str>,
    hook: Vec<&'static str>,
    /// Of Envoy's own hook.
    port: u16,
    path: &'static str,
}

/// `examples/contour/03-envoy.yaml` of Contour.
fn contour() -> Manifest {
    Manifest {
        user: 65534,
        command: vec!["/bin/contour", "envoy", "shutdown-manager"],
        hook: vec!["/bin/contour", "envoy", "shutdown"],
        port: 8090,
        path: "/shutdown",
    }
}

/// The Deployment that Envoy Gateway makes of a Gateway.
fn envoy_gateway() -> Manifest {
    Manifest {
        user: 65532,
        command: vec!["envoy-gateway", "envoy", "shutdown-manager"],
        hook: vec!["envoy-gateway", "envoy", "shutdown"],
        port: 19002,
        path: "/shutdown/ready",
    }
}

impl Manifest {
    fn user(&self) -> String {
        format!("--user={0}:{0}", self.user)
    }
}

/// The first process of its container, with no more rights than a manifest gives it.
#[track_caller]
fn assert_confined(container: &Container, user: u32) {
    let user = user.to_string();
    for (name, value) in [
        ("Uid", &user[..]),
        ("Gid", &user),
        ("NSpid", "1"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(container.proc_status(name).last().map(String::as_str), Some(value), "{name}");
    }
}

/// How the metric begins that a drain has once connections are counted.
const COUNTED: &str = "\nenvoy_shutdown_open_connections ";

/// The deletion of a pod, whose one connection is held until after `settle`; then the sidecar's end.
#[track_caller]
fn assert_drains(
    manifest: &Manifest,
    mut container: Container,
    envoy: &Envoy,
    client: KeptAlive,
    settle: Duration,
) {
    let turn = take_turn();
    container.wait_healthy(manifest.port);
    assert_confined(&container, manifest.user);
    let public = Client::of_port(manifest.port);
    let envoys_hook = public.start_get(manifest.path);
    let mut hook = container.exec(&manifest.hook);
    wait_value("Envoy to be out of service", || envoy.ready(), |state| state == "DRAINING");
    let waiting = format!("envoy_shutdown_phase{{phase=\"{WAITING_FOR_CONNECTIONS}\"}} 1");
    let polled = || {
        let waits = try_wait_for(settle + PATIENCE, || {
            // Connections are counted once in the check delay too, so the log does not tell.
            // The pace: each try is a request, for up to a minute.
            thread::sleep(Duration::from_millis(500));
            let metrics = public.get("/metrics").body;
            // The first poll follows at once, and this request could come between.
            (metrics.contains(&waiting) && metrics.contains(COUNTED)).then_some(())
        });
        assert!(waits.is_some(), "the check delay does not end: {}", container.process.report());
    };
    let _turn = if settle < MINUTE {
        // This one has a timeout, which other tests could use up.
        polled();
        turn
    } else {
        drop(turn);
        polled();
        take_turn()
    };
    let metrics = public.get("/metrics").body;
    assert_eq!(metric::<u64>(&metrics, "open_connections"), 1, "{metrics}");
    assert!(hook.running() && envoys_hook.is_waiting());
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert_eq!(envoys_hook.arrived_response(), OK, "the exec hook ended first");
    assert_eq!(envoy.ready(), "DRAINING");
    let took = container.terminate();
    println!("from SIGTERM to its end: {took:?}");
    container.process.wait_log(STOPPED);
    assert_exits(&mut container.process, 0, "");
    assert!(took <= Duration::from_millis(100), "{took:?}");
    // Podman removes it in this turn, beside no test that measures.
    drop(container);
}

#[test]
fn contours_manifest_drains_with_nothing_but_its_image_changed() {
    with_image(|image| {
        let turn = take_turn();
        let manifest = contour();
        let envoy = Envoy::builder().http("http").start();
        let Address::Unix(socket) = envoy.admin() else { panic!("no socket") };
        let volume = socket.parent().expect("a directory");
        // In a pod Envoy has the sidecar's user id, and every user may write to the volume.
        for path in [volume, socket] {
            fs::set_permissions(path, Permissions::from_mode(0o777)).expect("set a mode");
        }
        let mount = format!("--volume={}:/admin", volume.display());
        let client = KeptAlive::open(envoy.port("http"));
        let container = image.run(&[&manifest.user(), &mount], &manifest.command);
        let private = volume.join("shutdown-manager.sock");
        wait_for("the control socket", || private.exists().then_some(()));
        drop(turn);
        assert_drains(&manifest, container, &envoy, client, MINUTE);
        assert!(!private.exists());
    });
}

#[track_caller]
fn assert_envoy_gateway_drains(options: &[&'static str], hook: &[&'static str], settle: Duration) {
    with_image(|image| {
        let turn = take_turn();
        let mut manifest = envoy_gateway();
        manifest.command.extend(options);
        manifest.hook.extend(hook);
        let own = [("eg-stats-http", 19001), ("eg-ready-http", 19003)];
        let builder = Envoy::builder().admin_at(19000).http_at("http", 10080);
        let envoy = own.iter().fold(builder, |builder, (name, port)| builder.http_at(name, *port));
        let envoy = envoy.start();
        let client = KeptAlive::open(10080);
        let scrapes_and_probes = own.map(|(_, port)| KeptAlive::open(port));
        // Without any volume; `/dev/shm` alone can be written to.
        let container = image.run(&[&manifest.user()], &manifest.command);
        drop(turn);
        assert_drains(&manifest, container, &envoy, client, settle);
        for (name, _) in own {
            assert_eq!(envoy.stat(&format!("http.{name}.downstream_cx_active")), Some(1));
        }
        drop(scrapes_and_probes);
    });
}

#[test]
fn envoy_gateways_deployment_drains_with_nothing_but_its_image_changed() {
    assert_envoy_gateway_drains(&[], &[], Duration::from_secs(10));
}

#[test]
fn envoy_gateways_deployment_drains_with_the_options_that_it_is_given() {
    assert_envoy_gateway_drains(
        &["--ready-timeout=70s"],
        &["--drain-timeout=60s", "--min-drain-duration=1s"],
        Duration::from_secs(1),
    );
}

#[test]
fn a_container_runs_the_programs_own_commands() {
    with_image(|image| {
        let _turn = take_turn();
        let bootstrap = ["contour", "bootstrap", "/config/envoy.json", "--xds-address=contour"];
        let version = concat!("envoy-shutdown-manager ", env!("CARGO_PKG_VERSION"));
        for (command, code, part) in [
            (&["--help"][..], 0, "Usage:"),
            (&["--version"], 0, version),
            (&[], 2, "a command is missing"),
            (&bootstrap, 2, "this image is for the container shutdown-manager only"),
        ] {
            assert_exits(&mut image.run(&[], command).process, code, part);
        }
    });
}

#[test]
fn podmans_own_signal_ends_a_container() {
    with_image(|image| {
        let _turn = take_turn();
        let Manifest { command, port, .. } = contour();
        let mut container = image.run(&["--tmpfs=/admin"], &command);
        container.wait_healthy(port);
        assert_confined(&container, 65534);
        container.stop();
        container.process.wait_log(STOPPED);
        assert_exits(&mut container.process, 0, "");
    });
}

/// Mode, owner and name, with the target of a link, of everything in an archive; and its files' size.
#[track_caller]
fn listed(archive: &Path) -> (Vec<String>, usize) {
    let list = run(Command::new("tar").args(["--list", "--verbose", "--file"]).arg(archive));
    let rows = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows: Vec<_> = rows.collect();
    let size = rows.iter().map(|row| row[2].parse::<usize>().expect("a size")).sum();
    (rows.iter().map(|row| [&row[..2], &row[5..]].concat().join(" ")).collect(), size)
}

#[test]
fn the_image_is_small_and_holds_the_program_once_and_two_links() {
    with_image(|image| {
        let _turn = take_turn();
        let dir = temp_dir("image");
        let archive = dir.path().join("image.tar");
        run(podman(&["save", "--output"]).arg(&archive).arg(&image.tag));
        run(Command::new("tar").arg("--extract").arg("--file").arg(&archive).current_dir(&dir));
        let files = fs::read_dir(&dir).expect("read").map(|entry| entry.expect("a file"));
        let layers = files.filter(|entry| {
            let name = entry.file_name();
            name.as_encoded_bytes().ends_with(b".tar") && name != "image.tar"
        });
        let layers: Vec<_> = layers.map(|entry| entry.path()).collect();
        let [layer] = &layers[..] else { panic!("not one layer: {layers:?}") };
        let (mut files, size) = listed(layer);
        files.sort();
        assert_eq!(
            files,
            [
                "-rwxr-xr-x 0/0 bin/envoy-shutdown-manager",
                "drwxr-xr-x 0/0 bin/",
                "lrwxrwxrwx 0/0 bin/contour -> envoy-shutdown-manager",
                "lrwxrwxrwx 0/0 bin/envoy-gateway -> envoy-shutdown-manager",
            ]
        );
        let whole = fs::metadata(archive).expect("its size").len();
        println!("{size} bytes of files, {whole} as an archive");
        assert!(size <= 900_000 && whole <= 900_000, "{size} and {whole} bytes");
    });
}

#[test]
fn the_image_has_its_labels_user_and_entrypoint() {
    with_image(|image| {
        let _turn = take_turn();
        let inspect = |field: &str| {
            let format = format!("--format={{{{json .Config.{field}}}}}");
            run(&mut podman(&["image", "inspect", &format, &image.tag])).trim().to_owned()
        };
        assert_eq!(inspect("User"), r#""65534:65534""#);
        assert_eq!(inspect("Env"), r#"["PATH=/bin"]"#);
        assert_eq!(inspect("Entrypoint"), r#"["/bin/envoy-shutdown-manager"]"#);
        let labels = inspect("Labels");
        for (name, value) in [
            ("title", env!("CARGO_PKG_NAME")),
            ("version", env!("CARGO_PKG_VERSION")),
            ("description", env!("CARGO_PKG_DESCRIPTION")),
            ("licenses", env!("CARGO_PKG_LICENSE")),
        ] {
            let label = format!("\"org.opencontainers.image.{name}\":\"{value}\"");
            assert!(labels.contains(&label), "no {label} in {labels}");
        }
    });
}

#[test]
fn the_image_is_compiled_by_the_pinned_toolchain() {
    let toolchain = include_str!("../../rust-toolchain.toml");
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = "));
    let wanted = format!("\nARG RUST={}-", channel.expect("a channel").trim_matches('"'));
    assert!(include_str!("../../Containerfile").contains(&wanted), "no {wanted:?}");
}
