//! The life of the process.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use envoy_shutdown_manager::backend::Backend;
use envoy_shutdown_manager::cli::address::ServeAt;
use envoy_shutdown_manager::cli::duration;
use envoy_shutdown_manager::cli::options::{Flavor, Options};
use envoy_shutdown_manager::cli::{self, Command, SidecarArgs};
use envoy_shutdown_manager::control_socket::{self, SocketFile, Sockets};
use envoy_shutdown_manager::coordinator::{Coordinator, remove_ready_file};
use envoy_shutdown_manager::envoy::admin::AdminClient;
use envoy_shutdown_manager::frontend::listen;
use envoy_shutdown_manager::frontend::{Frontend, Limits, Listener, Timeouts};
use envoy_shutdown_manager::hook::{self, Exit};
use envoy_shutdown_manager::observe::log::{self, Record};
use envoy_shutdown_manager::os::limits;
use envoy_shutdown_manager::os::supervisor::supervise;
use envoy_shutdown_manager::route;
use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = Flavor::of(&args.next().unwrap_or_default());
    match cli::parse(name, args) {
        Ok(Command::Sidecar(args)) => match sidecar(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(sentence) => {
                Record::error(sentence).emit();
                ExitCode::FAILURE
            }
        },
        Ok(Command::Shutdown(args)) => ExitCode::from(hook::shutdown(args) as u8),
        Ok(Command::Status(args)) => ExitCode::from(hook::status(&args) as u8),
        Ok(Command::Print(text)) => {
            // Nobody reads any more: a pager was left, say.
            let _ = io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(sentence) => {
            hook::say(&format!("envoy-shutdown-manager: {sentence}\n"));
            ExitCode::from(Exit::Usage as u8)
        }
    }
}

/// The sidecar's life, to its end by a signal.
fn sidecar(args: &SidecarArgs) -> Result<(), String> {
    log::install(args.log_format);
    // Before any thread or socket: every thread inherits that they are blocked, and a thread of
    // their own takes them one by one. So they interrupt nobody's system call, and PID 1, for
    // which the kernel drops a signal that has neither a handler nor is blocked, gets them too.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().map_err(|error| failed("signals cannot be waited for", error.into()))?;
    // Before anything else is done: a hook may come within milliseconds, and waits in its backlog.
    let public = listen::bind_public(&args.serve)?;
    let port = public.local_addr().map_err(|error| failed("no public port", error))?.port();
    let serving = ServeAt { port, ..args.serve.clone() };
    let options = Options::of(args.name).with(&args.overrides);
    let places =
        control_socket::sidecar_paths(args.control_socket.as_deref(), &options.admin_address);
    let Sockets { control: private, backend: listener, files } = control_socket::bind(&places)?;
    private
        .set_nonblocking(true)
        .map_err(|error| failed("the control socket cannot be used", error))?;
    let descriptors = limits::raise_descriptor_limit()
        .map_err(|error| failed("the limit of file descriptors cannot be read", error))?;

    if let Some(path) = &options.ready_file {
        remove_ready_file(path);
    }
    let manager = Coordinator::new(options.clone(), !args.no_restore);
    let thread_failed = |error| failed("a thread cannot be started", error);
    let worker = manager.clone();
    supervise("worker", Box::new(move || worker.work(&mut AdminClient))).map_err(thread_failed)?;
    let files = Arc::new(files);
    let mut service =
        Backend::new(listener, Arc::clone(&files), manager.trigger(), manager.observer());
    let bell = service.restart_signal();
    supervise("server", Box::new(move || service.serve())).map_err(thread_failed)?;
    let door = |listener, keeper, rules| {
        let (server, bell) = (files[1].path.clone(), bell.clone());
        let on_backend_error = Box::new(move |error| bell.request_restart(error));
        Frontend::new(listener, keeper, server, on_backend_error, manager.tracker(), rules)
    };
    let patience = Timeouts { start: args.start_timeout, ready: args.ready_timeout };
    let rules = Limits::control(descriptors, patience);
    let mut private = door(Listener::Control(private), route::private_target, rules);
    supervise("private", Box::new(move || private.serve())).map_err(thread_failed)?;
    let rules = Limits::public(descriptors, patience);
    let mut public = door(Listener::Public(public), route::public_target, rules);
    supervise("public", Box::new(move || public.serve())).map_err(thread_failed)?;
    let place = files[0].path.display().to_string();
    let (stopping, leaving) = (manager.clone(), Arc::clone(&files));
    let signals = move || obey(&signals, &stopping, leaving.as_slice());
    supervise("signals", Box::new(signals)).map_err(thread_failed)?;

    // Past this point the process ends by a signal alone; what goes wrong is logged.
    let mut started = Record::info("started")
        .with("version", env!("CARGO_PKG_VERSION"))
        .with("serving", serving.to_string())
        .with("control-socket", place)
        .with("start-timeout", duration::format(args.start_timeout))
        .with("ready-timeout", args.ready_timeout.map_or("none".to_owned(), duration::format))
        .with("restore", if args.no_restore { "off" } else { "on" });
    for (name, value) in options.settings() {
        started = started.with(name, value);
    }
    started.emit();
    for name in &args.ignored {
        Record::warn("an option is ignored, as Contour does; use --admin-address")
            .with("option", format!("--{name}"))
            .emit();
    }
    manager.wait_until_over();
    files.iter().for_each(SocketFile::remove);
    Record::info("stopped").emit();
    Ok(())
}

fn failed(what: &str, error: io::Error) -> String {
    format!("{what}: {error}")
}

/// Stops at the first signal when the drain has ended, and at the second at once.
fn obey(signals: &SigSet, manager: &Coordinator, files: &[SocketFile]) {
    let mut stopping = false;
    loop {
        // It fails on a signal that does not exist alone.
        let Ok(signal) = signals.wait() else { return };
        let name = if signal == Signal::SIGTERM { "SIGTERM" } else { "SIGINT" };
        if stopping {
            let line = Record::warn("stopped at once, by a second signal");
            line.with("signal", name).emit();
            files.iter().for_each(SocketFile::remove);
            // As a shell reports a process that a signal has ended.
            std::process::exit(128 + signal as i32);
        }
        stopping = true;
        let phase = manager.observer().snapshot().phase.name();
        Record::info("stopping, when no drain goes on")
            .with("signal", name)
            .with("phase", phase)
            .emit();
        manager.stop();
    }
}
