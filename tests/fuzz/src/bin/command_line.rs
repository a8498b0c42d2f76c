//! Arguments, a line each, or ended by NULs as in `/proc/PID/cmdline`.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use envoy_shutdown_manager::cli::address::{ServeAt, socket_path};
use envoy_shutdown_manager::cli::drain_request::{DrainRequest, HookRequest, join_errors};
use envoy_shutdown_manager::cli::flags::Subcommand;
use envoy_shutdown_manager::cli::options::{DrainOption, Flavor, Overrides};
use envoy_shutdown_manager::cli::{Args, Command, parse};
use envoy_shutdown_manager_fuzz::within;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let end = if input.contains(&0) { 0 } else { b'\n' };
    let input = input.strip_suffix(&[end]).unwrap_or(input);
    let args: Vec<_> =
        input.split(|byte| *byte == end).map(|arg| OsString::from_vec(arg.to_vec())).collect();
    let mut errors = Vec::new();
    // The help, or a sentence that repeats what is wrong.
    let (overrides, command) =
        match within(8192 + 20 * input.len(), || parse(Flavor::Contour, args)) {
            Ok(Command::Run(Subcommand::Sidecar, args)) => {
                assert!(args.serve.address.is_none_or(|address| ServeAt::parse(&address).is_ok()));
                assert!(args.start_timeout.as_secs() > 0);
                let valid = |path: PathBuf| socket_path(path.to_str().unwrap()).is_ok();
                assert!(args.control_socket.is_none_or(valid));
                (args.overrides, "shutdown-manager")
            }
            Ok(Command::Run(Subcommand::Shutdown, args)) => {
                assert!(end == 0 || !args.errors.iter().any(|error| error.contains('\n')));
                errors = args.errors;
                (args.overrides, "shutdown")
            }
            Ok(Command::Run(Subcommand::Status | Subcommand::Restore | Subcommand::Release, _)) => {
                return;
            }
            Ok(Command::Print(text)) => return assert!(text.ends_with('\n')),
            Err(sentence) => return assert!(end == 0 || !sentence.contains('\n'), "{sentence:?}"),
        };
    let again = match parse(
        Flavor::EnvoyGateway,
        [command.into()].into_iter().chain(arguments(&overrides)),
    ) {
        Ok(Command::Run(Subcommand::Sidecar, Args { overrides, .. }))
        | Ok(Command::Run(Subcommand::Shutdown, Args { overrides, .. })) => overrides,
        other => panic!("{other:?}"),
    };
    assert_eq!(again, overrides, "given once more");
    let drain = DrainRequest { overrides, expires: None };
    let request = HookRequest { drain, error: join_errors(&errors) };
    assert_eq!(
        HookRequest::from_query(&request.to_query()),
        Ok(request),
        "as the sidecar reads it"
    );
});

fn arguments(overrides: &Overrides) -> impl Iterator<Item = OsString> {
    overrides.pairs().iter().map(|(option, value)| match option {
        DrainOption::RequireEnvoyHook | DrainOption::DrainListeners => {
            format!("--{}", option.name()).into()
        }
        _ => format!("--{}={value}", option.name()).into(),
    })
}
