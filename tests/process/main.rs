//! Process-level tests: the built program against a real Envoy and against a scripted one.

mod attacks;
mod clock;
mod command_line;
#[cfg(all(target_env = "musl", not(debug_assertions)))]
mod container;
mod disk;
mod faults;
mod gateway;
mod hooks;
mod lives;
mod manifests;
mod port;
mod real_envoy;
mod restarts;
mod server;
mod signals;
mod socket;
mod supply_chain;
mod support;
mod support_works;
#[cfg(all(target_env = "musl", not(debug_assertions)))]
mod timing;
mod told;
