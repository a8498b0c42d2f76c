//! The rules that no schedule may break.

use std::time::Duration;

use super::world::World;
use crate::drain::stages::MAX_READY_INTERVAL;
use crate::drain::*;
use crate::envoy::error::AdminError;
use crate::envoy::{Call, CallResult, Health, Reply};
use crate::os::clock::Timestamp;

impl World {
    /// A call that the machine asks for.
    pub fn check_call(&mut self, call: Call, in_drain: bool) {
        let (now, drain) = (self.now, &self.drain);
        let options = &drain.options;
        // A hurried drain polls for the number alone, whatever it waits for; any other does in a delay.
        let for_the_end = !drain.hurried
            && drain.confirms.is_none()
            && !matches!(self.machine.phase(), Phase::DrainDelay | Phase::CheckDelay);
        match call {
            Call::FailHealthChecks => {
                assert!(in_drain, "health checks failed outside a drain");
                let came_late = drain.hurried && !drain.arrivals.is_empty();
                assert!(!options.require_envoy_hook || self.envoys_hook_came() || came_late);
                let delay = options.drain_timeout.unwrap_or(Duration::MAX).min(options.delay());
                let ended_early = drain.quiet_before_failing || drain.released;
                assert!(ended_early || now >= drain.began + delay, "failed too early");
                let interval = options.check_interval.min(MAX_READY_INTERVAL);
                let interval = if drain.hurried { Duration::ZERO } else { interval };
                let again = drain.failed_at.map_or(Timestamp::ZERO, |failed| failed + interval);
                assert!(now >= again, "health checks failed twice within an interval");
                self.drain.tried = true;
            }
            Call::DrainListeners => {
                assert!(in_drain && options.drains_listeners(), "unasked");
                assert!(self.is_awaited(), "what cannot be undone, while no client waits");
                let early = !options.health_check_failure_delay.is_zero();
                assert!(early || drain.failed_at.is_some(), "before health checks were failed");
                let ended_early = drain.quiet_before_failing || drain.released;
                assert!(
                    ended_early || now >= drain.began + options.drain_delay,
                    "within the drain delay"
                );
                assert!(!drain.reverted, "before health checks were failed again");
                self.drain.listeners = true;
            }
            Call::ReadStats if in_drain && for_the_end => {
                self.assert_settled();
                let unasked = !options.drains_listeners() || !self.is_awaited();
                assert!(unasked || drain.listeners, "polled before the listeners drain");
            }
            Call::RestoreHealthChecks if std::mem::take(&mut self.restore_asked) => {
                assert!(!in_drain, "restored in a drain");
            }
            Call::ReadAccepted => assert!(in_drain, "counted outside a drain"),
            Call::RestoreHealthChecks => {
                let delay_is_over = now >= Timestamp::ZERO + RESTORE_DELAY;
                assert!(self.restore && !self.drained && delay_is_over, "restored");
                assert!(!self.is_awaited(), "restored while a client waits");
                assert!(self.stopped.is_none(), "restored by a sidecar that stops");
            }
            Call::CheckListeners if in_drain => {
                let asked = drain.failed_at.is_some() || !options.quiet_period.is_zero();
                assert!(asked, "listeners checked before health checks failed");
            }
            Call::ShowState => assert!(!in_drain, "a call for show in a drain"),
            Call::CheckReady | Call::ReadStats | Call::CheckListeners => {}
        }
    }

    /// What the rules need to know of a reply in a drain.
    pub fn note(&mut self, asked: Timestamp, call: Call, result: &CallResult) {
        let awaits = self.machine.phase() == Phase::AwaitingEnvoyHook && self.is_awaited();
        let drain = &mut self.drain;
        if result.as_ref().is_err_and(AdminError::is_refusal) {
            // One that came too late for the pair counts while it is found out.
            drain.awaited |= awaits;
            drain.refused.push(asked);
            drain.listeners = false;
        } else {
            drain.refused.clear();
        }
        let envoy = &self.envoys[drain.target];
        match result {
            Ok(Reply::HealthChecksFailed) => {
                drain.confirms = None;
                drain.failed_at = Some(self.now);
                drain.reverted = false;
                drain.quiet_since_failing = false;
            }
            Ok(Reply::Ready(_)) if call == Call::CheckListeners => drain.starting = true,
            Ok(Reply::Ready(health)) => self.saw(*health),
            Ok(Reply::Stats(poll)) => {
                drain.last_poll = Some(poll.clone());
                // What is not subtracted from does not lie.
                let plain = envoy.holding(drain.options.wait_for);
                let subtracts = self.machine.drain().is_none_or(|drain| drain.subtracts());
                let honest = envoy.honest(drain.options.wait_for);
                drain.honest = honest.or((!subtracts).then_some(plain)).or(drain.honest);
                if poll.health == Health::Live {
                    self.saw(Health::Live);
                }
            }
            _ => {}
        }
        self.drain.polled = matches!(result, Ok(Reply::Stats(_)));
    }

    /// The same while an ended drain is kept.
    pub fn note_late(&mut self, result: &CallResult) {
        let envoy = &self.envoys[self.drain.target];
        match result {
            Ok(Reply::Stats(poll)) => {
                self.drain.last_poll = Some(poll.clone());
                let honest = envoy.honest(self.drain.options.wait_for);
                self.drain.honest = honest.or(self.drain.honest);
                self.drain.refused.clear();
            }
            Err(error) if error.is_refusal() => self.drain.refused.push(self.now),
            _ => {}
        }
    }

    /// One that is starting was restarted, which counts once.
    fn saw(&mut self, health: Health) {
        let drain = &mut self.drain;
        let was_starting = std::mem::replace(&mut drain.starting, health == Health::Starting);
        let restarted = drain.starting && !was_starting;
        drain.reverted |= (health == Health::Live || restarted) && drain.failed_at.is_some();
        drain.listeners &= !drain.reverted;
    }

    /// What has happened in a step.
    pub fn check_event(&mut self, event: &DrainEvent) {
        let DrainEvent::Quiet { delay, took, left, .. } = event else { return };
        let envoy = &self.envoys[self.drain.target];
        let drain = &mut self.drain;
        let period = drain.options.quiet_period;
        assert!(!period.is_zero() && *took >= period && !left.is_zero(), "quiet without a period");
        assert!(!drain.hurried, "a drain that hurries waits for no quiet");
        let quiet_since = envoy.arrived_at.unwrap_or(Timestamp::ZERO);
        assert!(self.now >= quiet_since + period, "quiet though a connection came");
        match delay {
            Delay::DrainDelay => drain.quiet_before_failing = true,
            Delay::CheckDelay => {
                let failed_at = drain.failed_at.expect("health checks were failed");
                assert!(self.now >= failed_at + period, "quiet before health checks were failed");
                drain.quiet_since_failing = true;
            }
        }
    }

    fn assert_settled(&self) {
        let drain = &self.drain;
        let failed_at = drain.failed_at.expect("health checks were failed");
        if drain.quiet_since_failing {
            return;
        }
        assert!(self.now >= failed_at + drain.options.check_delay, "polled unsettled");
        assert!(self.now >= drain.began + drain.options.min_drain_duration, "polled too early");
    }

    fn envoys_hook_came(&self) -> bool {
        let window = self.drain.began + HOOK_PAIRING_WINDOW;
        self.drain.awaited || self.drain.arrivals.iter().any(|arrival| *arrival < window)
    }

    /// What a step has made of what was fed in.
    pub fn check_step(&self, action: Action) {
        let phase = self.machine.phase();
        let settled = matches!(phase, Phase::CheckDelay | Phase::WaitingForConnections);
        let goes_on = self.machine.drain().is_some() && !matches!(action, Action::Finish(_));
        let ignored = goes_on && settled && self.drain.reverted;
        assert!(!ignored, "a revert was seen and nothing done");
        if let Some(stopped) = self.stopped
            && phase == Phase::Idle
            && !self.machine.is_over()
        {
            // Those who are just being answered wait no longer.
            let waits = self.waiters.iter().any(|waiter| {
                waiter.answers == 0 && self.machine.answer_to(waiter.awaits).is_none()
            });
            let alone = !waits && self.now < stopped + STOP_DELAY;
            assert!(alone, "a signal at rest neither ends the sidecar nor starts a drain");
        }
    }

    pub fn check_end(&mut self, outcome: Outcome) {
        let drain = &self.drain;
        let left_in_service = match outcome.kind {
            OutcomeKind::NoEnvoyHook => true,
            OutcomeKind::Released => !drain.tried,
            _ => false,
        };
        self.drained |= !left_in_service;
        let envoy = &self.envoys[drain.target];
        let timeout = drain.options.drain_timeout;
        let threshold = drain.options.min_open_connections;
        match outcome.kind {
            OutcomeKind::Drained => {
                let open = outcome.holding.expect("a number of open connections");
                assert!(drain.polled, "drained by something else than an honest poll");
                let poll = drain.last_poll.as_ref().expect("drained without an honest poll");
                assert_eq!(poll.health, Health::Draining, "drained in service, by no honest poll");
                assert!(open <= threshold, "drained above the threshold");
                let honest = drain.honest.expect("drained on a count that lied, the only one");
                assert!(honest <= threshold, "drained on a count that lied, by no honest poll");
                if self.knows_hidden {
                    assert!(envoy.shows_total, "drained while a hidden listener is not counted");
                    let total = envoy.total;
                    assert!(
                        total.connections <= threshold,
                        "drained while a hidden connection was open"
                    );
                    let flushed = Timestamp::from_boot(Duration::from_secs(total.uptime));
                    assert!(drain.failed_at <= Some(flushed), "drained on an old total");
                }
                if drain.confirms.is_none() {
                    self.assert_settled();
                }
            }
            OutcomeKind::Released => {
                assert!(drain.released, "released by no client");
                assert!(drain.tried || !drain.owes_try, "released before health checks were tried");
            }
            OutcomeKind::TimedOut => {
                let timeout = timeout.expect("timed out without a timeout");
                assert!(self.now >= drain.began + timeout, "timed out too early");
                assert!(drain.tried, "timed out before health checks were tried");
            }
            OutcomeKind::EnvoyGone if drain.confirms == Some(OutcomeKind::EnvoyGone) => {
                assert!(!drain.refused.is_empty(), "gone though it responds");
            }
            OutcomeKind::EnvoyGone => {
                let waits = self.is_awaited() && !envoy.responded;
                assert!(!waits, "gone where nothing has ever responded");
                assert!(drain.refused.len() >= 3, "refusals in a row: {:?}", drain.refused);
                let pause = Duration::from_millis(if drain.hurried { 100 } else { 1_000 });
                for pair in drain.refused.windows(2) {
                    assert!(pair[1] >= pair[0] + pause, "refusals in a row too close");
                }
            }
            OutcomeKind::NoEnvoyHook => {
                assert!(drain.options.require_envoy_hook);
                assert!(!self.envoys_hook_came(), "left in service though its own hook waits");
                assert!(drain.refused.is_empty(), "left in service though it refuses");
                assert!(self.now >= drain.began + HOOK_PAIRING_WINDOW, "left alone too early");
                assert_eq!(drain.failed_at, None, "left in service and taken out of it");
            }
        }
        if let Some(timeout) = timeout {
            // What must be known first may take a call, and so does the first try to fail health checks.
            let window = HOOK_PAIRING_WINDOW + 4 * self.call_time;
            let first = if drain.options.require_envoy_hook { window } else { Duration::ZERO };
            // Four polls may be needed to confirm the end before, and a refused one has its pause.
            let confirming = Duration::from_secs(if drain.began_confirming { 9 } else { 0 });
            let end = timeout.max(first) + 3 * self.call_time + confirming;
            assert!(self.now <= drain.began + end, "later than the calls after its timeout");
        }
    }

    /// An answer to a client that waits as Envoy's own hook does.
    pub fn check_answer(&self, waiter: usize) {
        let waiter = &self.waiters[waiter];
        let ended = self.machine.answer_to(waiter.awaits).expect("an end");
        if ended.number >= waiter.awaits {
            return;
        }
        assert!(ended.number + 1 == waiter.awaits, "the end of another drain");
        let drain = &self.drain;
        let holds = match ended.outcome.kind {
            OutcomeKind::Drained => {
                drain.last_poll.as_ref().is_some_and(|poll| poll.health == Health::Draining)
                    && drain.honest.is_some_and(|open| open <= ended.threshold)
            }
            OutcomeKind::EnvoyGone => !drain.refused.is_empty(),
            OutcomeKind::TimedOut | OutcomeKind::Released | OutcomeKind::NoEnvoyHook => false,
        };
        assert!(holds, "answered late with an end that no longer holds: {ended:?}");
    }
}
