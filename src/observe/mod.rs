//! What is shown: the log, the status, the metrics.

pub mod counters;
pub mod drain_log;
mod hints;
pub mod history;
pub mod json;
pub mod log;
pub mod messages;
pub mod metrics;
mod page;
pub mod status;
