//! Tests of the built program, as a process, beside a real Envoy or a scripted admin interface.
//!
//! `example.rs` shows how a test is written. Tests that need the machine for themselves are in
//! `tests/alone`.

#![allow(clippy::expect_used, reason = "a step that fails is a test that fails")]

mod admin_faults;
mod backend;
mod clock;
mod command_line;
mod container_restarts;
mod control_socket;
mod disk;
mod drains;
mod endings;
mod envoy_gateway;
mod envoy_restarts;
mod example;
mod idle_connections;
mod log_and_status;
mod manifests;
mod monitoring;
mod open_connections;
mod prestop_hooks;
mod public_port;
mod quiet_period;
mod remedies;
mod signals;
mod supply_chain;
mod support;
mod support_tests;
mod termination_message;
mod wait_for_requests;
mod watch;
