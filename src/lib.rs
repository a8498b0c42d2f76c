//! Drains Envoy before Kubernetes ends its pod: a sidecar that waits beside Envoy, and the preStop
//! hook that tells it to begin.

pub mod address;
pub mod count;
pub mod drain;
pub mod duration;
pub mod fault;
pub mod json;
pub mod logger;
pub mod options;
pub mod page;
pub mod story;
