//! What can go wrong when Envoy's admin interface is called.

use crate::labels;

/// A call that brought no usable response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminError {
    /// For the metrics, and to tell a dead Envoy from a slow one.
    pub kind: AdminErrorKind,
    /// A clause for an operator: the request, the address, and what came back.
    pub text: String,
}

impl AdminError {
    /// Whether something responded all the same, though not as expected.
    pub fn is_response(&self) -> bool {
        use AdminErrorKind::{Content, Status, TooLong};
        matches!(self.kind, Status | Content | TooLong)
    }

    /// Whether nothing listens at the admin address.
    pub fn is_refusal(&self) -> bool {
        self.kind == AdminErrorKind::Refused
    }
}

labels! {
    pub enum AdminErrorKind {
        /// Nothing listens: connection refused, or no such socket. Three in a row are a dead Envoy.
        Refused = "refused",
        /// No whole response in time. A full backlog, too: Envoy's main thread is busy or hangs.
        Timeout = "timeout",
        /// Another status than the one of success.
        Status = "status",
        /// Not HTTP, or cut off: mostly not Envoy's admin interface, or an Envoy that has just ended.
        Protocol = "protocol",
        /// A response longer than Envoy's can be.
        TooLong = "too_long",
        /// A whole response that does not say what was asked.
        Content = "content",
        /// No permission, no descriptors, an unknown host.
        Other = "other",
    }
}
