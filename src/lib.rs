//! Drains Envoy before Kubernetes ends its pod: a sidecar that waits beside Envoy, and the preStop
//! hook that tells it to start.

pub mod backend;
pub mod cli;
pub mod control_socket;
pub mod coordinator;
pub mod drain;
pub mod envoy;
pub mod frontend;
pub mod hook;
pub mod observe;
pub mod os;
pub mod route;
