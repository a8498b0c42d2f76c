//! Drains behind a balancer that goes on sending for a while: which delays, fixed or ended by a quiet
//! period, cost no request. Envoy is stopped as soon as its hook returns, as the kubelet does.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::balancer::{Balancer, Stops, Traffic, WEB, connect_checks, failure};
use crate::support::prelude::*;
use crate::take_turn;

const DENSE: Duration = Duration::from_millis(10);
const SPARSE: Duration = Duration::from_secs(5);

/// How often the health checker connects that does nothing else.
const CHECKS: Duration = Duration::from_secs(1);

const INTERVAL: &str = "--check-interval=1s";

/// No drain here takes longer.
const LONG: Duration = Duration::from_secs(90);

const LAGS: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(3), Duration::from_secs(12)];

/// A drain, and what is around it.
#[derive(Clone, Debug)]
struct Case {
    lag: Duration,
    stops: Stops,
    every: Duration,
    /// From the hook's start to the first request after it.
    next: Duration,
    checks: Checks,
    options: Vec<String>,
}

/// A health checker beside the balancer, which only connects and disconnects.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Checks {
    None,
    /// Envoy counts its connections.
    Counted,
    /// Envoy does not count its connections, since the listener has a TLS inspector.
    NotCounted,
}

impl Case {
    fn new(lag: Duration, every: Duration, options: &[String]) -> Self {
        let (stops, checks, options) = (Stops::AfterFailedChecks, Checks::None, options.to_vec());
        Self { lag, stops, every, next: every, checks, options }
    }

    /// The first request comes shortly before the end of the balancer's lag, if one can.
    fn late(mut self) -> Self {
        self.next = (self.lag * 9 / 10).min(self.every);
        self
    }
}

/// What a drain has cost.
#[derive(Debug)]
struct Cost {
    took: Duration,
    /// Requests from the hook's start until the balancer sent no more to the drained Envoy.
    requests: usize,
    failed: usize,
    first_failure: Option<String>,
    /// So many connections the drained Envoy was given meanwhile.
    to_drained: usize,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { took, requests, failed, first_failure, to_drained } = self;
        let percent = 100.0 * *failed as f64 / (*requests).max(1) as f64;
        write!(f, "hook {:6.2} s; {failed:4} of {requests:4} failed ", took.as_secs_f32())?;
        write!(f, "({percent:5.1} %); {to_drained:4} to the drained Envoy")?;
        first_failure.iter().try_for_each(|why| write!(f, "; {why}"))
    }
}

/// An Envoy behind the balancer.
fn envoy(checks: Checks) -> Envoy {
    let builder = Envoy::builder().health_listener();
    match checks {
        Checks::NotCounted => builder.tls_inspector(WEB).start(),
        Checks::None | Checks::Counted => builder.http(WEB).start(),
    }
}

/// How a hook ended that may take longer than a test's patience.
#[track_caller]
fn wait_long(hook: &mut Hook, sidecar: &Sidecar) -> Exit {
    let exit = try_wait_for(LONG, || hook.try_wait());
    let exit = exit.unwrap_or_else(|| panic!("no end; {}", sidecar.report()));
    assert_eq!(exit.code, Some(0), "{exit:?}; {}", sidecar.report());
    exit
}

/// Drains one of two Envoys, and stops it.
#[track_caller]
fn drain(case: &Case) -> (Cost, Sidecar) {
    let (mut drained, other) = (envoy(case.checks), envoy(case.checks));
    let balancer = Balancer::start(&[&drained, &other], case.lag, case.stops);
    let sidecar = Sidecar::builder().beside(&drained).args(&case.options).start();
    sidecar.wait_log(ENVOY_RESPONDS);
    let _checks = (case.checks != Checks::None).then(|| connect_checks(&drained, CHECKS));
    let traffic = Traffic::start(&balancer, case.every);
    wait_until("a request", || traffic.results().0 > 0);
    // Where in the traffic the drain starts, which is what is tested.
    thread::sleep(case.every - case.next);
    let (before, given) = (traffic.results(), balancer.connections_to(0));
    assert!(before.1.is_empty(), "{before:?}");
    balancer.delete(0);
    let deleted = Instant::now();
    let mut hook = sidecar.hook(&[]);
    let out_of_service = sidecar.wait_log_within(OUT_OF_SERVICE, LONG);
    let exit = wait_long(&mut hook, &sidecar);
    drained.terminate();
    let lag_starts = match case.stops {
        Stops::AfterFailedChecks => out_of_service,
        Stops::AfterDeletion => deleted,
    };
    // The lag itself, at whose end the balancer sends no more.
    thread::sleep((lag_starts + case.lag).saturating_duration_since(Instant::now()));
    let (all, failed) = traffic.results();
    let cost = Cost {
        took: exit.took,
        requests: all - before.0,
        failed: failed.len(),
        first_failure: failed.first().map(|(_, why)| why.clone()),
        to_drained: balancer.connections_to(0) - given,
    };
    assert_eq!(failure(&balancer.client()), None, "the balancer still sends to an ended Envoy");
    (cost, sidecar)
}

fn seconds(option: &str, time: Duration) -> String {
    format!("--{option}={}ms", time.as_millis())
}

/// The traffic's name.
fn name(every: Duration) -> &'static str {
    if every == DENSE { "dense" } else { "sparse" }
}

fn each_lag_and_traffic() -> impl Iterator<Item = (Duration, Duration)> {
    LAGS.into_iter().flat_map(|lag| [DENSE, SPARSE].map(|every| (lag, every)))
}

#[test]
#[ignore = "two minutes; `just balancer` runs it"]
fn requests_fail_where_a_fixed_delay_is_shorter_than_the_balancers_lag_and_nowhere_else() {
    let _turn = take_turn();
    let mut cases = Vec::new();
    for (lag, every) in each_lag_and_traffic() {
        for percent in [0, 50, 100] {
            let delay = seconds("check-delay", lag * percent / 100);
            let name = format!("lag {lag:5?} {:6} delay {percent:3} %", name(every));
            cases.push((name, (percent, Case::new(lag, every, &[delay]))));
        }
    }
    for_each_case_with_envoy(cases, |name, (percent, case)| {
        let (cost, _sidecar) = drain(&case);
        println!("{name}  {cost}");
        // A short lag may end before a request comes, or before a drain without a delay has ended.
        let must_fail = percent < 100 && case.lag > 2 * case.every && case.lag > LAGS[0];
        assert!(percent < 100 || cost.failed == 0, "{name}: {cost:?}");
        assert!(!must_fail || cost.failed > 0, "{name}: {cost:?}");
    });
}

#[test]
#[ignore = "two minutes; `just balancer` runs it"]
fn no_request_fails_where_the_quiet_period_is_the_balancers_lag() {
    let _turn = take_turn();
    let mut cases = Vec::new();
    for (lag, every) in each_lag_and_traffic() {
        for checks in [Checks::None, Checks::Counted, Checks::NotCounted] {
            let delay = 3 * lag + Duration::from_secs(6);
            let options =
                [seconds("check-delay", delay), seconds("quiet-period", lag), INTERVAL.to_owned()];
            let mut case = Case::new(lag, every, &options).late();
            case.checks = checks;
            let name = format!("lag and period {lag:5?} {:6} checks {checks:?}", name(every));
            cases.push((name, (delay, case)));
        }
    }
    for_each_case_with_envoy(cases, |name, (delay, case)| {
        let (cost, sidecar) = drain(&case);
        println!("{name}  {cost}");
        assert_eq!(cost.failed, 0, "{name}: {cost:?}");
        let is_quiet = case.checks != Checks::Counted || case.lag < CHECKS;
        if is_quiet {
            sidecar.wait_log(logged(QUIET).with("delay", CHECK_DELAY));
            // The last connection came before the end of the lag, and is noticed at the next look.
            let max = 2 * case.lag + Duration::from_secs(2);
            assert!((case.lag..max).contains(&cost.took), "{name}: {cost:?}");
        } else {
            sidecar.wait_log(logged(NOT_QUIET).containing("hint", "health checks"));
            sidecar.assert_not_logged(QUIET);
            assert!(cost.took >= delay, "{name}: {cost:?}");
        }
    });
}

#[test]
#[ignore = "a minute; `just balancer` runs it"]
fn no_request_fails_where_the_drain_delay_is_quiet_for_as_long_as_the_balancer_needs_for_a_deletion()
 {
    let _turn = take_turn();
    let cases = each_lag_and_traffic().map(|(lag, every)| {
        let options =
            ["--drain-delay=60s".to_owned(), seconds("quiet-period", lag), INTERVAL.to_owned()];
        let mut case = Case::new(lag, every, &options).late();
        case.stops = Stops::AfterDeletion;
        (format!("lag and period {lag:5?} {:6} from the deletion", name(every)), case)
    });
    for_each_case_with_envoy(cases.collect(), |name, case| {
        let (cost, sidecar) = drain(&case);
        println!("{name}  {cost}");
        assert_eq!(cost.failed, 0, "{name}: {cost:?}");
        sidecar.wait_log(logged(QUIET).with("delay", DRAIN_DELAY));
        assert!(cost.took >= case.lag, "{name}: {cost:?}");
    });
}

#[test]
#[ignore = "half a minute; `just balancer` runs it"]
fn a_request_of_sparse_traffic_fails_where_the_quiet_period_is_shorter_than_the_lag() {
    let _turn = take_turn();
    let options = ["--check-delay=60s", "--quiet-period=2s", INTERVAL].map(str::to_owned);
    // The next two requests come after 5 s and 10 s, both in the lag.
    let (cost, sidecar) = drain(&Case::new(LAGS[2], SPARSE, &options));
    println!("lag {:?}, period 2s, sparse  {cost}", LAGS[2]);
    sidecar.wait_log(QUIET);
    assert!(cost.failed > 0, "{cost:?}");
}

#[test]
#[ignore = "half a minute; `just balancer` runs it"]
fn both_delays_end_early_in_sparse_traffic_and_no_request_fails() {
    let _turn = take_turn();
    let options = ["--drain-delay=60s", "--check-delay=60s", "--quiet-period=3s", INTERVAL];
    let (cost, sidecar) = drain(&Case::new(LAGS[1], SPARSE, &options.map(str::to_owned)).late());
    println!("lag and period {:?}, sparse, both delays  {cost}", LAGS[1]);
    assert_eq!(cost.failed, 0, "{cost:?}");
    for delay in [DRAIN_DELAY, CHECK_DELAY] {
        sidecar.wait_log(logged(QUIET).with("delay", delay));
    }
}

#[test]
#[ignore = "half a minute; `just balancer` runs it"]
fn an_idle_envoy_is_drained_one_second_after_the_quiet_period_at_the_latest() {
    let _turn = take_turn();
    let cases = LAGS.map(|period| (format!("idle, period {period:?}"), period));
    for_each_case_with_envoy(cases.into(), |name, period| {
        let envoy = envoy(Checks::None);
        let options = ["--check-delay=60s", INTERVAL];
        let sidecar = Sidecar::builder().beside(&envoy).args(options).start();
        let mut hook = sidecar.hook(&[&seconds("quiet-period", period)]);
        let took = wait_long(&mut hook, &sidecar).took;
        println!("{name}  hook {:.3} s", took.as_secs_f32());
        let max = period + Duration::from_secs(1);
        assert!((period..max).contains(&took), "{name}: {took:?}");
    });
}
