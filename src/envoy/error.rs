//! What can go wrong when Envoy's admin interface is called.

use std::fmt;

/// A call that brought no usable response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminError {
    /// For the metrics, and to tell a dead Envoy from a slow one.
    pub kind: AdminErrorKind,
    /// A clause for an operator: what was asked of which address, and what came back.
    pub text: String,
}

impl AdminError {
    /// Whether nothing listens at the admin address.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.kind == AdminErrorKind::Refused
    }
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminErrorKind {
    /// Nothing listens: connection refused, or no such socket. Three in a row are a dead Envoy.
    Refused,
    /// No whole response in time. A full backlog, too: Envoy's main thread is busy or hangs.
    Timeout,
    /// Another status than the one of success.
    Status,
    /// Not HTTP, or cut off: mostly not Envoy's admin interface, or an Envoy that has just ended.
    Protocol,
    /// A response longer than Envoy's can be.
    TooLong,
    /// A whole response that does not say what was asked.
    Content,
    /// No permission, no descriptors, an unknown host.
    Other,
}

impl AdminErrorKind {
    /// All kinds, for a series each.
    pub const ALL: [Self; 7] = [
        Self::Refused,
        Self::Timeout,
        Self::Status,
        Self::Protocol,
        Self::TooLong,
        Self::Content,
        Self::Other,
    ];

    /// The value of the label `kind`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::Protocol => "protocol",
            Self::TooLong => "too_long",
            Self::Content => "content",
            Self::Other => "other",
        }
    }
}
