//! Envoy's admin interface: what is asked of it, and what it replies.

pub mod admin;
pub mod error;
pub mod stats;
pub mod transport;
