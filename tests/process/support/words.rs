//! What the program writes today, in one place.

pub use self::phases::*;

pub mod phases {
    pub const IDLE: &str = "serving";
    pub const AWAITING_ENVOY_HOOK: &str = "delaying";
    pub const DRAIN_DELAY: &str = "delaying";
    pub const FAILING_HEALTH_CHECKS: &str = "failing";
    pub const CHECK_DELAY: &str = "settling";
    pub const WAITING_FOR_CONNECTIONS: &str = "draining";
    pub const ENDED: &str = "ended";
}

pub const THRESHOLD_KEY: &str = "threshold";
pub const ENVOY_HOOKS_KEY: &str = "waiters";
pub const OPEN_KEY: &str = "open";
pub const LOG_THRESHOLD_KEY: &str = "threshold";
pub const REQUESTED_KEY: &str = "given";
pub const NOT_COUNTED_KEY: &str = "not-counted";
pub const REJECTED_METRIC: &str = "refused_total";
pub const ENVOY_HOOKS_METRIC: &str = "waiters";

pub const STARTED: &str = "started";
pub const STOP_REQUESTED: &str = "stopping, when no drain goes on";
pub const STOPPED: &str = "stopped";
pub const STOPPED_BY_SECOND_SIGNAL: &str = "stopped at once, by a second signal";
pub const READY_FILE_NOT_CREATED: &str = "could not create the ready file";
pub const READY_FILE_NOT_REMOVED: &str = "could not remove the ready file";
pub const DRAIN_STARTED: &str = "drain requested";
pub const DRAIN_JOINED: &str = "a hook has joined the drain, whose options hold";
pub const ENVOY_HOOK_WAITS: &str = "Envoy's own hook waits too: the pod is being deleted";
pub const ENVOY_HOOK_MISSING: &str = "Envoy's own hook did not come to /shutdown within 3s: only the sidecar is being restarted, or Envoy's container has no such hook. The drain goes on; with --require-envoy-hook Envoy would be left alone";
pub const OUT_OF_SERVICE: &str = "health checks failed: Envoy is out of service";
pub const LISTENERS_DRAINING: &str =
    "Envoy's listeners drain, which nothing but its restart takes back";
pub const OPEN_CONNECTIONS: &str = "open connections";
pub const ENVOY_RESTARTED: &str =
    "Envoy has restarted: failing its health checks again, and the check delay begins anew";
pub const ENVOY_LIVE_AGAIN: &str = "Envoy is LIVE again, restarted or put back by somebody: failing its health checks again, and the check delay begins anew";
pub const ENVOY_CALL_FAILED: &str = "Envoy did not answer as it should; trying again";
pub const ENVOY_RESPONDS_AGAIN: &str = "Envoy answers again";
pub const NO_ENVOY_HOOK: &str =
    "Envoy is left alone: its own hook did not come to /shutdown within 3s";
pub const ENVOY_RESPONDS: &str = "Envoy answers";
pub const ENVOY_NOT_RESPONDING_YET: &str = "Envoy does not answer yet";
pub const ENVOY_NOT_COUNTABLE: &str =
    "Envoy's open connections cannot be counted, so no drain would end";
pub const ENVOY_RESTORED: &str = "Envoy was out of service though no drain goes on, left so by an earlier life of this sidecar: put back in service";
pub const ENVOY_NOT_RESTORED: &str = "Envoy is out of service though no drain goes on, and is left so; POST /healthcheck/ok on its admin interface puts it back";
pub const LISTENERS_HIDDEN: &str = "";
pub const CONNECTION_LIMIT_REACHED: &str =
    "the public port is full: a connection gives way to a new one, or is refused";
pub const START_TIMEOUT_PASSED: &str = "no drain has begun within the start timeout of a request for /shutdown, which is let go: only Envoy is being restarted, or the sidecar has no preStop hook";
pub const READY_TIMEOUT_PASSED: &str = "a request for /shutdown has waited for the ready timeout and is let go: Kubernetes may end Envoy before the drain does";
pub const DRAIN_REQUEST_EXPIRED: &str =
    "a request to drain came too late: nobody waits for it any more";
pub const BACKEND_ENDED: &str = "the sidecar's own server has ended; starting another";

/// Response bodies.
pub const NO_DRAIN_BODY: &str = "no drain has begun within the start timeout\n";
pub const NOT_READY_BODY: &str = "the drain has not ended within the ready timeout\n";
pub const STOPPING_BODY: &str = "the sidecar stops\n";
pub const TOO_MANY_BODY: &str = "too many wait already\n";

/// What a hook writes, and what the outcome explains.
pub const NONE_OPEN: &str = "drained: no connection is open";
pub const GONE_EXPLANATION: &str = "Envoy is gone: nobody listens at its admin address";
pub const NO_ENVOY_HOOK_EXPLANATION: &str =
    "Envoy is left alone: its own hook did not come to /shutdown within 3s";
pub const REQUESTED_MIN_OPEN_2: &str = "min-open-connections=2";
pub const IGNORED_MIN_OPEN_9: &str = "min-open-connections=9";
pub const FAILING_AGAIN_PART: &str = "failing its health checks again";
pub const LISTENERS_HIDDEN_PART: &str = "Envoy's stats_config hides the listeners' gauges: connections that are not HTTP cannot be seen";
pub const NOT_LIVE: &str = "not LIVE";
pub const GONE_EXPLANATION_WHOLE: &str =
    "Envoy is gone: nobody listens at its admin address, so nothing is left to drain";

/// The key of an option in the log.
pub fn option_key(option: &str) -> String {
    option.to_owned()
}

pub const CONTROL_SOCKET_KEY: &str = "control-socket";
pub const LISTENERS_NOT_DRAINED: &str = "not told to drain, which could not be taken back";
pub const NO_WHOLE_RESPONSE: &str = "no whole answer";
pub const OPTION_IGNORED: &str = "an option is ignored, as Contour does; use --admin-address";
