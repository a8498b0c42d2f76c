//! The life of the process.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use envoy_shutdown_manager::backend::Backend;
use envoy_shutdown_manager::cli::address::ServeAt;
use envoy_shutdown_manager::cli::duration;
use envoy_shutdown_manager::cli::flags::Subcommand;
use envoy_shutdown_manager::cli::options::{Flavor, OFF, ON, Options};
use envoy_shutdown_manager::cli::{self, Args, Command};
use envoy_shutdown_manager::control_socket::{self, SocketFile};
use envoy_shutdown_manager::coordinator::{Coordinator, remove_ready_file};
use envoy_shutdown_manager::envoy::admin::AdminClient;
use envoy_shutdown_manager::frontend::{
    Frontend, Limits, Listener, MIN_DESCRIPTORS, Timeouts, listen,
};
use envoy_shutdown_manager::hook::{self, ExitStatus};
use envoy_shutdown_manager::observe::log::{self, Record};
use envoy_shutdown_manager::observe::messages;
use envoy_shutdown_manager::os::supervisor::{self, Work};
use envoy_shutdown_manager::os::waker::Waker;
use envoy_shutdown_manager::os::{descriptors, output, signals};
use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    // Before anything else, any thread included: what comes earlier is lost to PID 1.
    let signals = signals::block();
    let mut args = std::env::args_os();
    let flavor = Flavor::of(&args.next().unwrap_or_default());
    let command = cli::parse(flavor, args);
    if !matches!(command, Ok(Command::Run(Subcommand::Sidecar, _))) {
        let _unblocked = signals.as_ref().map(SigSet::thread_unblock);
    }
    match command {
        Ok(Command::Run(Subcommand::Sidecar, args)) => match run_sidecar(&args, signals) {
            Ok(()) => ExitCode::SUCCESS,
            Err(sentence) => {
                Record::error(messages::CANNOT_START).with("error", sentence).emit();
                ExitCode::FAILURE
            }
        },
        Ok(Command::Run(Subcommand::Shutdown, args)) => ExitCode::from(hook::shutdown(args) as u8),
        Ok(Command::Run(Subcommand::Status, args)) => ExitCode::from(hook::status(&args) as u8),
        Ok(Command::Run(Subcommand::Restore, args)) => ExitCode::from(hook::restore(&args) as u8),
        Ok(Command::Run(Subcommand::Release, args)) => ExitCode::from(hook::release(&args) as u8),
        Ok(Command::Print(text)) => {
            // The reader may have gone: a pager was left, say.
            output::show(&text, false);
            ExitCode::SUCCESS
        }
        Err(sentence) => {
            hook::print_usage_error(&sentence);
            ExitCode::from(ExitStatus::Usage as u8)
        }
    }
}

/// The sidecar's life, until a signal ends it.
fn run_sidecar(args: &Args, signals: io::Result<SigSet>) -> Result<(), String> {
    log::install(args.log_format);
    let signals = signals.map_err(failed("signals cannot be waited for"))?;
    // Before anything else is done: a hook may come within milliseconds, and waits in its backlog.
    let public = listen::bind_public(&args.serve)?;
    let port = public.local_addr().map_err(failed("no public port"))?.port();
    let serving = ServeAt { port, ..args.serve.clone() };
    let mut options = Options::of(args.flavor).with(&args.overrides);
    let paths =
        control_socket::sidecar_paths(args.control_socket.as_deref(), &options.admin_address);
    // As a hook spells it. One that does not fit into a socket's address stays as it is.
    if let Ok(address) = control_socket::resolve_admin(&options.admin_address) {
        options.admin_address = address;
    }
    let (control, file) = control_socket::bind(&paths)?;
    let file = Arc::new(file);
    let descriptors = descriptors::raise_descriptor_limit()
        .map_err(failed("the limit of file descriptors cannot be read"))?;
    if descriptors < MIN_DESCRIPTORS {
        return Err(format!(
            "{descriptors} file descriptors are too few for a drain; let the process have \
             {MIN_DESCRIPTORS} or more (ulimit -n)"
        ));
    }
    if let Some(path) = &options.ready_file {
        remove_ready_file(path);
    }

    let coordinator = Coordinator::new(options.clone(), &args.overrides, !args.no_restore);
    let worker = coordinator.clone();
    start("worker", Box::new(move || worker.work(&mut AdminClient::default())))?;

    let waker = Waker::new().map_err(failed("no thread can be woken"))?;
    coordinator.set_waker(waker.clone());
    let backend = Arc::new(Backend::new(coordinator.trigger(), coordinator.observer()));
    let mut frontend = Frontend::new(
        Arc::clone(&file),
        (Listener::Control(control), Limits::control(descriptors)),
        (Listener::Public(public), Limits::public(descriptors)),
        Timeouts { start: args.start_timeout, ready: args.ready_timeout },
        Box::new(move || backend.connect()),
        waker,
        coordinator.tracker(),
    );
    start("frontend", Box::new(move || frontend.serve()))?;

    let (stopping, leaving) = (coordinator.clone(), Arc::clone(&file));
    start("signals", Box::new(move || handle_signals(&signals, &stopping, &leaving)))?;

    // Past this point the process ends by a signal alone; what goes wrong is logged.
    log_start(args, &options, &serving, &file);
    coordinator.wait_until_over();
    file.remove();
    Record::info(messages::STOPPED).emit();
    Ok(())
}

fn start(name: &'static str, work: Work) -> Result<(), String> {
    let restarted = |thread: &'static str| {
        Record::error(messages::THREAD_RESTARTED).with("thread", thread).emit();
    };
    let thread = supervisor::supervise(name, work, restarted);
    thread.map(drop).map_err(failed("a thread cannot be started"))
}

fn log_start(args: &Args, options: &Options, serving: &ServeAt, control: &SocketFile) {
    let mut started = Record::info(messages::STARTED)
        .with("version", env!("CARGO_PKG_VERSION"))
        .with("serving", serving.to_string())
        .with("control_socket", control.path.display().to_string())
        .with("start_timeout", duration::format(args.start_timeout))
        .with("ready_timeout", args.ready_timeout.map_or("none".to_owned(), duration::format))
        .with("restore", if args.no_restore { OFF } else { ON });
    for (name, value) in options.settings() {
        started = started.with(name, value);
    }
    started.emit();
    for name in &args.ignored {
        Record::warn(messages::OPTION_IGNORED).with("option", format!("--{name}")).emit();
    }
    // Not only when the first drain shows it.
    if let Some(warning) = messages::short_timeout(options) {
        Record::warn(warning).emit();
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> String {
    move |error| format!("{what}: {error}")
}

/// Stops at the first signal once no drain is in progress, and at the second immediately.
fn handle_signals(signals: &SigSet, coordinator: &Coordinator, file: &SocketFile) {
    // Children from before the program's start.
    signals::reap();
    let mut stopping = false;
    loop {
        // It fails for an invalid signal alone.
        let Ok(signal) = signals.wait() else { return };
        let name = signal.as_str();
        match signal {
            Signal::SIGTERM | Signal::SIGINT => {}
            Signal::SIGCHLD => {
                signals::reap();
                continue;
            }
            _ => {
                Record::warn(messages::SIGNAL_IGNORED).with("signal", name).emit();
                continue;
            }
        }
        if stopping {
            Record::warn(messages::STOPPED_BY_SECOND_SIGNAL).with("signal", name).emit();
            file.remove();
            // As a shell reports a process that a signal has ended.
            std::process::exit(128 + signal as i32);
        }
        stopping = true;
        let now = coordinator.observer().snapshot();
        Record::info(messages::STOP_REQUESTED)
            .with("signal", name)
            .with("phase", now.phase.name())
            .with("envoy_state", now.counters.envoy.name())
            .emit();
        coordinator.stop();
    }
}
