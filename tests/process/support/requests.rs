//! Requests that tests send as they are.

pub const HEALTHZ: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
pub const SHUTDOWN: &str = "GET /shutdown HTTP/1.1\r\nHost: x\r\n\r\n";

pub const METHODS: &str = "GET HEAD POST PUT DELETE PATCH OPTIONS TRACE CONNECT PROPFIND get post \
                       Post DRAIN M-SEARCH !#$%&'*+.^_`|~ P\u{d6}ST POST\0 \u{ff27}ET";

/// Paths that do something at the control socket, at Envoy's admin interface, or in Contour before
/// 1.7.
pub const PATHS: [&str; 6] =
    ["/drain", "/shutdown", "/status", "/healthcheck/fail", "/quitquitquit", "/drain_listeners"];
