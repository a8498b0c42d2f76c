//! What most tests use: `use crate::support::prelude::*;`.

pub use envoy_shutdown_manager::observe::messages::*;

pub use super::admin_proxy::AdminProxy;
pub use super::cases::*;
pub use super::client::{Client, Connection};
pub use super::elf::Elf;
pub use super::envoy::{Builder, Envoy, MIN_IDLE};
pub use super::envoy_clients::{ANY_STREAM, Http2, KeptAlive, connect_tunnel, web_socket};
pub use super::fake_admin::{FakeAdmin, Fault, OPEN, Route, State};
pub use super::http::Response;
pub use super::log::{Expected, logged};
pub use super::net::{Address, ipv6_available};
pub use super::pressure_file::{PressureFile, injected_resource};
pub use super::process::{Exit, Hook, Process, is_emulated, run, run_at_terminal, run_under};
pub use super::requests::*;
pub use super::sidecar::Sidecar;
pub use super::status::{Status, metric};
pub use super::steps::*;
pub use super::terminal::{AtTerminal, Screen};
pub use super::words::*;
pub use super::{
    PATIENCE, SHIPS, assert_took, temp_dir, try_wait_for, wait_for, wait_until, wait_value,
};
