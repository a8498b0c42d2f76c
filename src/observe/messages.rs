//! Every message of the log, once. The values that belong to an event are fields of its record, so
//! that a message can be searched for and alerted on. The page *operations* of the manual says what
//! to do about each.

use std::time::Duration;

use crate::cli::options::Options;
use crate::envoy::HiddenStats;
use crate::envoy::stats::StatsCoverage;

// The process.
pub const STARTED: &str = "started";
pub const CANNOT_START: &str = "cannot start";
pub const STOP_REQUESTED: &str = "shutdown requested; exiting once no drain is in progress";
pub const STOPPED: &str = "stopped";
pub const STOPPED_BY_SECOND_SIGNAL: &str = "stopped immediately by a second signal";
pub const CONTROL_SOCKET_REPLACED: &str = "the control socket was removed; bound again";
pub const CONTROL_SOCKET_LOST: &str = "the control socket was removed and cannot be bound again";
pub const SIGNAL_IGNORED: &str = "signal ignored";
pub const OPTION_IGNORED: &str = "option ignored, as Contour does; use --admin-address";
pub const THREAD_PANICKED: &str = "a thread panicked, which is a bug in this program";
pub const THREAD_RESTARTED: &str = "thread restarted after a panic";
pub const LIBRARY_WARNING: &str = "warning from a library";
pub const READY_FILE_NOT_CREATED: &str = "cannot create the ready file";
pub const READY_FILE_NOT_REMOVED: &str = "cannot remove the ready file";

// A drain, in the order in which it goes.
pub const DRAIN_STARTED: &str = "drain started";
pub const DRAIN_JOINED: &str = "a hook joined the drain, whose options apply";
pub const STARTED_BY_SIGNAL: &str = "a signal came while Envoy's own hook waits: the pod is being \
    deleted, so it starts a drain; the sidecar's preStop hook did not come. Check its exec command";
pub const OUTCOME_OUTDATED: &str =
    "the outcome of the previous drain no longer holds: this drain runs from its start";
pub const TIMEOUT_BEFORE_DRAIN_DELAY: &str = "the drain timeout passes before the drain delay: health \
    checks are failed at the timeout, and connections will not be waited for";
pub const TIMEOUT_BEFORE_FIRST_POLL: &str =
    "the drain timeout passes before the first poll: connections will not be waited for";
pub const ENVOY_HOOK_WAITS: &str = "Envoy's own hook waits too: the pod is being deleted";
pub const ENVOY_HOOK_MISSING: &str = "Envoy's own hook did not come to /shutdown within 3s: this is \
    a drain by hand, only the sidecar is being restarted, or Envoy's container has no such hook. The drain \
    continues; with --require-envoy-hook Envoy would stay in service";
pub const OUT_OF_SERVICE: &str = "Envoy is out of service: its health checks now fail";
pub const QUIET: &str = "no new connection for the quiet period: the delay is over";
pub const NOT_QUIET: &str =
    "the delay ran its full length: it was never quiet for the quiet period";
pub const HINT_HEALTH_CHECKS: &str = "they come as regularly as a balancer's health checks, which go on \
    after it has stopped sending: then only a quiet period shorter than their interval ends a delay early";
pub const ARRIVALS_HIDDEN: &str = "new connections cannot be seen in Envoy's stats, so the quiet period \
    ends no delay: let stats_config show listener.*.downstream_cx_total of all listeners, and with \
    --wait-for=requests http.*.downstream_rq_total";
pub const LISTENERS_DRAINING: &str =
    "Envoy's listeners are draining, which only a restart of Envoy undoes";
pub const OPEN_CONNECTIONS: &str = "open connections";
pub const STILL_WAITING: &str = "still waiting";
pub const ENVOY_RESTARTED: &str =
    "Envoy restarted: failing its health checks again; the check delay starts over";
pub const ENVOY_LIVE_AGAIN: &str = "Envoy is LIVE again, restarted or restored by another client: \
    failing its health checks again; the check delay starts over";
pub const ENVOY_CALL_FAILED: &str = "Envoy did not respond as expected; retrying";
pub const HINT_READ_ONLY: &str = "Envoy's admin interface does not let its health checks be failed: \
    allow POST /healthcheck/fail in admin.allow_paths, or in the proxy before it";
pub const HINT_IDLE_CONNECTIONS: &str = "idle HTTP connections hold the drain: for 15s no poll has found \
    a request in flight. Each ends with its next response, or by the idle_timeout of Envoy's \
    http_connection_manager; --injected-resource lets them leave, --wait-for=requests does not wait for \
    them";
pub const PRESSURE_NOT_WRITTEN: &str = "cannot write the file of --injected-resource, so Envoy closes no \
    idle connections in a drain, or goes on with it after one; retrying";
pub const PRESSURE_WRITTEN: &str = "the file of --injected-resource can be written again";
pub const HINT_PRESSURE_NOT_READ: &str = "Envoy's overload manager does not read the file of \
    --injected-resource, so that idle connections do not leave, or its stats_config hides that: its \
    bootstrap needs the resource monitor and the action reduce_timeouts";
pub const HINT_IDLE_UNDER_PRESSURE: &str = "idle HTTP connections hold the drain though Envoy reads the \
    file of --injected-resource: its bootstrap has no action reduce_timeouts, or their \
    http_connection_manager has idle_timeout: 0s";
pub const HINT_PROBES: &str = "connections of a listener that looks like one for health checks or \
    metrics hold the drain; if it serves no client, exclude it";
pub const HINT_SLOW_POLL: &str = "a poll takes Envoy more than a tenth of the check interval; a longer \
    --check-interval costs it less";
pub const ENVOY_RESPONDS_AGAIN: &str = "Envoy responds again";
pub const DRAINED: &str = "drained";
pub const TIMED_OUT: &str = "gave up at the drain timeout";
pub const RELEASED: &str = "released by an operator: the drain ended as its timeout would end it";
pub const RELEASE_REQUESTED: &str = "release of the drain requested";
pub const ENVOY_NEVER_RESPONDED: &str = "nothing has ever responded at Envoy's admin address, while \
    Envoy's own hook waits, so Envoy runs: check --admin-address. The drain goes on trying";
pub const ENVOY_GONE: &str = "Envoy is gone: nothing listens at its admin address";
pub const HINT_CONNECTIONS_CUT: &str = "Envoy ended with connections open at the last poll";
pub const HINT_ENVOY_STOPPED: &str = "Envoy ended before it was drained, and its own hook never came \
    to /shutdown: check the preStop hook of Envoy's container, and the pod's events for \
    FailedPreStopHook";
pub const NO_ENVOY_HOOK: &str = "Envoy left in service: its own hook did not come to /shutdown \
    within 3s, as it would if the pod were being deleted; to drain by hand add --require-envoy-hook=false";
pub const READY_FOR_NEXT_DRAIN: &str = "the pod lives on: ready for the next drain";

// Envoy, while no drain is in progress.
pub const ENVOY_RESPONDS: &str = "Envoy responds";
pub const ENVOY_NOT_RESPONDING_YET: &str = "Envoy does not respond yet";
pub const ENVOY_NOT_COUNTABLE: &str =
    "Envoy's open connections cannot be counted, so no drain would end";
pub const ENVOY_STILL_STARTING: &str =
    "Envoy has been starting for a minute; from now on it is checked once a minute";
pub const ENVOY_NEVER_READY: &str = "Envoy never became ready; startup check stopped. A drain will \
    still try. Check --admin-address";
pub const ENVOY_RESTORED: &str = "Envoy restored to service: it was out of service with no drain in \
    progress, left so by a previous run of this sidecar";
pub const RESTORE_REQUESTED: &str = "restore of Envoy to service requested";
pub const ENVOY_RESTORED_BY_REQUEST: &str = "Envoy restored to service, as requested";
pub const ENVOY_NOT_RESTORED_BY_REQUEST: &str = "Envoy not restored to service as requested";
pub const HINT_LISTENERS_STILL_DRAIN: &str = "its listeners still drain, and Envoy goes on closing its \
    clients' connections: only a restart of Envoy undoes that";
pub const ENVOY_NOT_RESTORED: &str = "Envoy is out of service with no drain in progress, and stays \
    so with --no-restore; the command restore puts it back in service";
pub const ENVOY_STILL_OUT_OF_SERVICE: &str = "Envoy is still out of service; the command restore puts it \
    back in service, and so does a restart of this sidecar";
pub const LISTENERS_HIDDEN: &str = "Envoy's stats_config hides the listeners' gauges: connections \
    that are not HTTP cannot be seen and will not be waited for; let it show the names that begin \
    with \"listener.\"";
pub const HTTP_HIDDEN: &str = "Envoy's stats_config hides the HTTP gauges: scrapes and health \
    checks look like traffic and hold a drain; let it show the names that begin with \"http.\"";
pub const LISTENERS_WITHOUT_GAUGES: &str = "listeners have no gauges in Envoy's stats, so a drain also \
    waits for server.total_connections, which Envoy counts every few seconds. Check the stats_matcher of \
    the listener and of stats_config";
pub const LISTENERS_PERHAPS_WITHOUT_GAUGES: &str = "some of these listeners have no gauges in Envoy's \
    stats, or share a stat_prefix, so a drain also waits for server.total_connections, which Envoy counts \
    every few seconds. Check the stats_matcher of the listener and of stats_config";
pub const REQUESTS_HIDDEN: &str = "Envoy's stats do not show the requests in flight of an HTTP stat \
    prefix, so connections hold the drain as with --wait-for=connections. There was no request since Envoy's \
    start, or it has connections of HTTP/3, or stats_config hides http.*.downstream_rq_active or downstream_cx_tx_bytes_buffered";
pub const UNCOUNTED_WITHOUT_GAUGES: &str = "excluded or internal listeners have no gauges in Envoy's stats, \
    so that nothing can be subtracted for them: excluded HTTP prefixes and idle connections hold a drain, \
    too. Check the stats_matcher of the listener and of stats_config";
pub const TOTAL_HIDDEN: &str = "server.total_connections and server.uptime are not in Envoy's stats, and \
    listeners without gauges are counted by nothing else: this drain does not end as drained. Let \
    stats_config show both";
pub const LISTENERS_NOT_COMPARED: &str = "Envoy's listeners cannot be compared with its stats: \
    connections of a listener that is hidden there would not be waited for, and nothing is subtracted, so \
    that excluded HTTP prefixes and idle connections hold a drain, too";

// The public port, the control socket, and the backend.
pub const CONNECTION_LIMIT_REACHED: &str = "connection limit reached";
pub const ACCEPT_FAILED: &str = "cannot accept a connection; retrying";
pub const POLL_FAILED: &str = "cannot wait for connections; retrying";
pub const ENVOY_HOOK_ALONE: &str = "/shutdown has been waiting for 3s, and nothing has started a drain: \
    only Envoy is being restarted, or the sidecar's preStop hook is missing or failed. At the start \
    timeout it is answered with 503";
pub const START_TIMEOUT_PASSED: &str = "no drain started within the start timeout: /shutdown \
    answered with 503. Only Envoy is being restarted, or the sidecar has no preStop hook";
pub const READY_TIMEOUT_PASSED: &str = "the drain did not end within the ready timeout: /shutdown \
    answered with 500. Kubernetes may stop Envoy before the drain ends";
pub const DRAIN_REQUEST_EXPIRED: &str =
    "drain request expired: the hook that sent it waits no longer";
pub const DRAIN_OF_OTHER_ENVOY_REFUSED: &str =
    "drain refused: the hook means another Envoy than this sidecar's; check both --admin-address";
pub const DRAIN_REQUEST_REJECTED: &str = "drain request rejected: its options are wrong";
pub const HOOK_CALLED_WRONGLY: &str =
    "the hook was called wrongly; the drain starts all the same, without what is wrong";
pub const CONTROL_REQUEST_REJECTED: &str = "request at the control socket rejected";
pub const BACKEND_NOT_RESPONDING: &str = "the backend does not respond; retrying";

/// What it means that a drain with these options waits for no connection.
pub fn short_timeout(options: &Options) -> Option<&'static str> {
    let delays = options.delay().saturating_add(options.check_delay);
    let first_poll = delays.max(options.min_drain_duration);
    // Each ends after the quiet period at the earliest.
    let least = |delay: Duration| match options.quiet_period {
        Duration::ZERO => delay,
        period => delay.min(period),
    };
    let delay = least(options.delay());
    let first_poll = delay.saturating_add(least(first_poll - options.delay()));
    match options.drain_timeout? {
        timeout if timeout < delay => Some(TIMEOUT_BEFORE_DRAIN_DELAY),
        timeout if timeout <= first_poll => Some(TIMEOUT_BEFORE_FIRST_POLL),
        _ => None,
    }
}

/// What cannot be seen in Envoy's stats, and what to add to its `stats_config` so that it can.
pub const fn hidden_stats(coverage: StatsCoverage) -> Option<&'static str> {
    match coverage {
        StatsCoverage::Everything => None,
        StatsCoverage::HttpOnly => Some(LISTENERS_HIDDEN),
        StatsCoverage::ListenersOnly => Some(HTTP_HIDDEN),
    }
}

/// What it means that some of Envoy's listeners have no gauges, each with their names.
pub fn hidden_listeners(hidden: &HiddenStats) -> Vec<(&'static str, String)> {
    let counted = match hidden.certain {
        true => LISTENERS_WITHOUT_GAUGES,
        false => LISTENERS_PERHAPS_WITHOUT_GAUGES,
    };
    let all = [(counted, &hidden.listeners), (UNCOUNTED_WITHOUT_GAUGES, &hidden.uncounted)];
    let some = all.into_iter().filter(|(_, names)| !names.is_empty());
    some.map(|(message, names)| (message, names.join(", "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_short_where_even_quiet_delays_leave_no_time_to_wait() {
        let seconds = Duration::from_secs;
        for (drain_delay, check_delay, quiet_period, timeout, expected) in [
            (20, 10, 0, 31, None),
            (20, 10, 0, 30, Some(TIMEOUT_BEFORE_FIRST_POLL)),
            (20, 10, 0, 19, Some(TIMEOUT_BEFORE_DRAIN_DELAY)),
            (0, 300, 150, 280, None),
            (0, 300, 150, 150, Some(TIMEOUT_BEFORE_FIRST_POLL)),
            (90, 5, 45, 51, None),
            (90, 5, 45, 44, Some(TIMEOUT_BEFORE_DRAIN_DELAY)),
        ] {
            let options = Options {
                drain_delay: seconds(drain_delay),
                check_delay: seconds(check_delay),
                quiet_period: seconds(quiet_period),
                drain_timeout: Some(seconds(timeout)),
                ..Options::default()
            };
            assert_eq!(short_timeout(&options), expected, "{options:?}");
        }
    }
}
