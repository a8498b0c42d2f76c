//! What the program writes besides the messages of its log, which are constants of
//! `envoy_shutdown_manager::observe::messages`. Dashboards and scripts depend on the phases.

pub const IDLE: &str = "idle";
pub const AWAITING_ENVOY_HOOK: &str = "awaiting_envoy_hook";
pub const DRAIN_DELAY: &str = "drain_delay";
pub const FAILING_HEALTH_CHECKS: &str = "failing_health_checks";
pub const CHECK_DELAY: &str = "check_delay";
pub const WAITING_FOR_CONNECTIONS: &str = "waiting_for_connections";
pub const ENDED: &str = "ended";

// How a drain ended, as a hook explains it.
pub const NONE_OPEN: &str = "drained: no connection is open";
pub const ENVOY_IS_GONE: &str =
    "Envoy is gone: nothing listens at its admin address; its open connections were not counted";
pub const ENVOY_IS_GONE_WITH_ONE_OPEN: &str =
    "Envoy is gone: nothing listens at its admin address; 1 open at the last poll";
pub const LEFT_IN_SERVICE: &str = "Envoy left in service: its own hook did not come to /shutdown within 3s, as it would if the \
     pod were being deleted; to drain by hand add --require-envoy-hook=false";

// The bodies of responses.
pub const NO_DRAIN_BODY: &str = "no drain started within the start timeout\n";
pub const NOT_READY_BODY: &str = "the drain has not ended within the ready timeout\n";
pub const STOPPING_BODY: &str = "the sidecar is stopping\n";
pub const TOO_MANY_BODY: &str = "too many clients wait already\n";
