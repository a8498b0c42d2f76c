//! The manual: the pages that the README links to. They are read on a forge and here.
//!
//! | page | for |
//! |---|---|
//! | [`kubernetes`] | the installation: every manifest |
//! | [`settings`] | the options of a pod, by what is before it and by its traffic |
//! | [`operations`] | a pod at night: the log, the options, endpoints, restarts |
//! | [`monitoring`] | what watches the pods: metrics, alerts, a [dashboard] |
//! | [`security`] | what the network and the pod can reach, and the limits |
//! | [`architecture`] | a reader of the code: the facts behind it, one request and one drain |
//!
//! Pages link to each other by reference (`[text][label]`). On a forge the definitions at the end of
//! a page hold; rustdoc has other paths, so `rustdoc-links.txt` stands before each page, and the
//! first definition of a label wins.

/// Every manifest, and what its parts are for.
///
pub mod kubernetes {
    #![doc = include_str!("rustdoc-links.txt")]
    #![doc = include_str!("kubernetes.md")]
}

/// The options that a pod needs, and how to wait no longer than necessary.
///
pub mod settings {
    #![doc = include_str!("rustdoc-links.txt")]
    #![doc = include_str!("settings.md")]
}

/// The log, the options, what is counted, restarts, endpoints.
///
pub mod operations {
    #![doc = include_str!("rustdoc-links.txt")]
    #![doc = include_str!("operations.md")]
}

/// Metrics, alerts on them and on the log, a dashboard.
///
pub mod monitoring {
    #![doc = include_str!("rustdoc-links.txt")]
    #![doc = include_str!("monitoring.md")]
}

/// A dashboard for Grafana.
///
pub mod dashboard {
    #![doc = "```json"]
    #![doc = include_str!("dashboard.json")]
    #![doc = "```"]
}

/// The threat model, the limits, and the supply chain.
///
pub mod security {
    #![doc = include_str!("rustdoc-links.txt")]
    #![doc = include_str!("security.md")]
}

/// The facts that shape the code, one request and one drain.
///
pub mod architecture {
    #![doc = include_str!("rustdoc-links.txt")]
    #![doc = include_str!("architecture.md")]
}

#[cfg(test)]
mod tests;
