//! What is shown: the log, the status, the metrics.

pub mod counters;
pub mod drain_log;
pub mod json;
pub mod log;
pub mod messages;
pub mod metrics;
pub mod status;
