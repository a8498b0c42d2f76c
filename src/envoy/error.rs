//! What can go wrong when Envoy's admin interface is called.

use std::fmt;

/// A call that brought no usable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminError {
    /// What kind it is of, for the metrics and for telling a dead Envoy from a slow one.
    pub kind: AdminErrorKind,
    /// A clause for an operator: what was asked of whom, and what came back.
    pub text: String,
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The kinds of [`AdminError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminErrorKind {
    /// Nobody listens: connection refused, or no such socket. Three in a row are a dead Envoy.
    Refused,
    /// No whole answer in time; a full backlog too.
    Timeout,
    /// A status other than the one that the call has when it succeeds.
    Status,
    /// Not HTTP, or cut off.
    Protocol,
    /// An answer longer than Envoy's can be.
    TooLong,
    /// A whole answer that does not say what was asked.
    Content,
    /// Anything else: no permission, no descriptors, an unknown host.
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
