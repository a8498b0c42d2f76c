//! The life of the process.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use envoy_shutdown_manager::address::ServeAt;
use envoy_shutdown_manager::cli::{self, Command, ManagerArgs};
use envoy_shutdown_manager::control::{self, Service};
use envoy_shutdown_manager::duration;
use envoy_shutdown_manager::envoy::Client;
use envoy_shutdown_manager::front::{Front, Listener, Patience, Rules};
use envoy_shutdown_manager::head;
use envoy_shutdown_manager::hook::{self, Exit};
use envoy_shutdown_manager::logger::{self, Line};
use envoy_shutdown_manager::manager::{Manager, remove_ready_file};
use envoy_shutdown_manager::options::{Name, Options};
use envoy_shutdown_manager::port;
use envoy_shutdown_manager::socket::{self, SocketFile, Sockets};
use envoy_shutdown_manager::supervisor::supervise;
use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = Name::of(&args.next().unwrap_or_default());
    match cli::parse(name, args) {
        Ok(Command::Manager(args)) => match sidecar(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(sentence) => {
                Line::error(sentence).emit();
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
fn sidecar(args: &ManagerArgs) -> Result<(), String> {
    logger::install(args.log_format);
    // Before any thread or socket: every thread inherits that they are blocked, and a thread of
    // their own takes them one by one. So they interrupt nobody's system call, and PID 1, for
    // which the kernel drops a signal that has neither a handler nor is blocked, gets them too.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().map_err(|error| failed("signals cannot be waited for", error.into()))?;
    // Before anything else is done: a hook may come within milliseconds, and waits in its backlog.
    let public = port::listener(&args.serve)?;
    let port = public.local_addr().map_err(|error| failed("no public port", error))?.port();
    let serving = ServeAt { port, ..args.serve.clone() };
    let options = Options::of(args.name).with(&args.overrides);
    let places = socket::sidecar_places(args.control_socket.as_deref(), &options.admin_address);
    let Sockets { control: private, server: listener, files } = socket::bind(&places)?;
    private
        .set_nonblocking(true)
        .map_err(|error| failed("the control socket cannot be used", error))?;
    let descriptors = port::raise_descriptor_limit()
        .map_err(|error| failed("the limit of file descriptors cannot be read", error))?;

    if let Some(path) = &options.ready_file {
        remove_ready_file(path);
    }
    let manager = Manager::new(options.clone(), !args.no_restore);
    let thread_failed = |error| failed("a thread cannot be started", error);
    let worker = manager.clone();
    supervise("worker", Box::new(move || worker.work(&mut Client))).map_err(thread_failed)?;
    let files = Arc::new(files);
    let mut service =
        Service::new(listener, Arc::clone(&files), manager.control(), manager.watch());
    let bell = service.bell();
    supervise("server", Box::new(move || service.serve())).map_err(thread_failed)?;
    let door = |listener, keeper, rules| {
        let server = files[1].path.clone();
        Front::new(listener, keeper, server, bell.clone(), manager.register(), rules)
    };
    let patience = Patience { start: args.start_timeout, ready: args.ready_timeout };
    let rules = Rules::private(descriptors, patience);
    let mut private = door(Listener::Private(private), control::private, rules);
    supervise("private", Box::new(move || private.serve())).map_err(thread_failed)?;
    let rules = Rules::public(descriptors, patience);
    let mut public = door(Listener::Public(public), head::public, rules);
    supervise("public", Box::new(move || public.serve())).map_err(thread_failed)?;
    let place = files[0].path.display().to_string();
    let (stopping, leaving) = (manager.clone(), Arc::clone(&files));
    let signals = move || obey(&signals, &stopping, leaving.as_slice());
    supervise("signals", Box::new(signals)).map_err(thread_failed)?;

    // Past this point the process ends by a signal alone; what goes wrong is logged.
    let mut started = Line::info("started")
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
        Line::warn("an option is ignored, as Contour does; use --admin-address")
            .with("option", format!("--{name}"))
            .emit();
    }
    manager.wait_until_over();
    files.iter().for_each(SocketFile::remove);
    Line::info("stopped").emit();
    Ok(())
}

fn failed(what: &str, error: io::Error) -> String {
    format!("{what}: {error}")
}

/// Stops at the first signal when the drain has ended, and at the second at once.
fn obey(signals: &SigSet, manager: &Manager, files: &[SocketFile]) {
    let mut stopping = false;
    loop {
        // It fails on a signal that does not exist alone.
        let Ok(signal) = signals.wait() else { return };
        let name = if signal == Signal::SIGTERM { "SIGTERM" } else { "SIGINT" };
        if stopping {
            let line = Line::warn("stopped at once, by a second signal");
            line.with("signal", name).emit();
            files.iter().for_each(SocketFile::remove);
            // As a shell reports a process that a signal has ended.
            std::process::exit(128 + signal as i32);
        }
        stopping = true;
        let phase = manager.watch().snapshot().phase.name();
        Line::info("stopping, when no drain goes on")
            .with("signal", name)
            .with("phase", phase)
            .emit();
        manager.stop();
    }
}
