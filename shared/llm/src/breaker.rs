//! Keeps calls away from a model that fails, and lets a few through later to see whether it has recovered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::{counter, gauge};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::InvalidConfig;
use crate::metric;
use crate::window::{Counts, Window};

/// Longest window, seconds; each second is a bucket in memory.
const LONGEST_WINDOW_S: u32 = 3_600;

/// Section `[llm.breaker]`, for each provider's model: timeouts, network errors, 5xx, broken and malformed answers count
/// as failures; what the caller did wrong, refusals, rate limits and the caller's own deadline do not count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// Share of failures, above 0 to 1, from which the breaker opens.
    pub failure_ratio: f64,
    /// Seconds in which the share is counted, 1 to 3600.
    pub window_s: u32,
    /// Calls within the window below which the share says nothing.
    pub min_calls: u32,
    /// Seconds of the short window, which notices an outage that follows many good calls; not above `window_s`.
    pub burst_window_s: u32,
    /// Calls within the short window below which the share says nothing.
    pub burst_min_calls: u32,
    /// Failures one after the other that open the breaker whatever the share.
    pub consecutive_failures: u32,
    /// Milliseconds an open breaker lets no call through.
    pub open_ms: u64,
    /// Calls let through after that, at most; the breaker closes when so many succeeded, and opens when one fails.
    pub probes: u32,
    /// Milliseconds from which a call that succeeded counts as a failure; none does unless this is set.
    pub slow_call_ms: Option<u64>,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failure_ratio: 0.5,
            window_s: 60,
            min_calls: 20,
            burst_window_s: 5,
            burst_min_calls: 10,
            consecutive_failures: 10,
            open_ms: 30_000,
            probes: 3,
            slow_call_ms: None,
        }
    }
}

impl BreakerConfig {
    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        let wrong = InvalidConfig::setting;
        if !(self.failure_ratio > 0.0 && self.failure_ratio <= 1.0) {
            return Err(wrong("breaker.failure_ratio", "must lie above 0 and not above 1"));
        }
        if !(1..=LONGEST_WINDOW_S).contains(&self.window_s) {
            return Err(wrong("breaker.window_s", "must lie between 1 and 3600"));
        }
        if !(1..=self.window_s).contains(&self.burst_window_s) {
            return Err(wrong("breaker.burst_window_s", "must lie between 1 and llm.breaker.window_s"));
        }
        for (key, value) in [
            ("breaker.min_calls", u64::from(self.min_calls)),
            ("breaker.burst_min_calls", u64::from(self.burst_min_calls)),
            ("breaker.consecutive_failures", u64::from(self.consecutive_failures)),
            ("breaker.open_ms", self.open_ms),
            ("breaker.probes", u64::from(self.probes)),
            ("breaker.slow_call_ms", self.slow_call_ms.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(wrong(key, "must be at least 1"));
            }
        }
        Ok(())
    }

    /// Why so many failures open the breaker, if they do.
    fn verdict(&self, inner: &Inner, now: Instant) -> Option<&'static str> {
        let failing = |Counts { all, marked }: Counts, least: u32| {
            all >= least && f64::from(marked) >= self.failure_ratio * f64::from(all)
        };
        if inner.consecutive >= self.consecutive_failures {
            Some("consecutive failures")
        } else if failing(inner.calls.last(now, self.burst_window_s), self.burst_min_calls) {
            Some("share of failures in the short window")
        } else if failing(inner.calls.last(now, self.window_s), self.min_calls) {
            Some("share of failures")
        } else {
            None
        }
    }
}

/// What a call says of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It works.
    Success,
    /// It does not.
    Failure,
    /// Nothing.
    Ignored,
}

/// **Invariant:** while open no permit is given, and while half-open `in_flight + succeeded` is at most the number of
/// probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { in_flight: u32, succeeded: u32 },
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen { .. } => "half-open",
            Self::Open { .. } => "open",
        }
    }

    fn level(self) -> f64 {
        match self {
            Self::Closed => 0.0,
            Self::HalfOpen { .. } => 1.0,
            Self::Open { .. } => 2.0,
        }
    }
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// Rises with every change of state: what a call says that was let through before tells nothing any more.
    generation: u64,
    /// Calls, failures marked.
    calls: Window,
    consecutive: u32,
}

/// The breaker of one provider's model.
#[derive(Debug, Clone)]
pub(crate) struct Breaker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    provider: String,
    model: String,
    config: BreakerConfig,
    inner: Mutex<Inner>,
}

/// Leave for one call. Given back when dropped without a report, as a cancelled call does.
#[derive(Debug)]
#[must_use]
pub(crate) struct Permit {
    shared: Arc<Shared>,
    generation: u64,
    reported: bool,
}

/// No call may be made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Until the next probe is let through; zero while probes are under way.
    pub(crate) retry_after: Duration,
}

impl Breaker {
    pub(crate) fn new(provider: &str, model: &str, config: BreakerConfig, now: Instant) -> Self {
        let calls = Window::new(now, config.window_s);
        let inner = Mutex::new(Inner { state: State::Closed, generation: 0, calls, consecutive: 0 });
        let shared = Shared { provider: provider.to_owned(), model: model.to_owned(), config, inner };
        shared.show(State::Closed);
        Self(Arc::new(shared))
    }

    /// Leave for one call, to be asked for right before it.
    pub(crate) fn acquire(&self, now: Instant) -> Result<Permit, Refused> {
        let mut inner = self.0.lock();
        if let State::Open { until } = inner.state {
            if now < until {
                return Err(Refused { retry_after: until.duration_since(now) });
            }
            self.0.change(&mut inner, now, State::HalfOpen { in_flight: 0, succeeded: 0 }, "time to probe");
        }
        if let State::HalfOpen { in_flight, succeeded } = &mut inner.state {
            if in_flight.saturating_add(*succeeded) >= self.0.config.probes {
                return Err(Refused { retry_after: Duration::ZERO });
            }
            *in_flight += 1;
        }
        Ok(Permit { shared: Arc::clone(&self.0), generation: inner.generation, reported: false })
    }

    /// Why no call may be made at a later instant either, as far as is known now.
    pub(crate) fn refused_at(&self, later: Instant, now: Instant) -> Option<Refused> {
        match self.0.lock().state {
            State::Open { until } if later < until => {
                Some(Refused { retry_after: until.saturating_duration_since(now) })
            }
            _ => None,
        }
    }

    /// Whether calls are let through without restraint.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.lock().state == State::Closed
    }
}

impl Permit {
    /// Whether it still counts: the breaker has not changed since it was given.
    pub(crate) fn is_current(&self) -> bool {
        self.shared.lock().generation == self.generation
    }

    /// Says what came of the call and how long it took.
    pub(crate) fn report(mut self, outcome: Outcome, latency: Duration, now: Instant) {
        self.reported = true;
        let slow = self.shared.config.slow_call_ms.map(Duration::from_millis);
        let outcome = match outcome {
            Outcome::Success if slow.is_some_and(|slow| latency >= slow) => Outcome::Failure,
            outcome => outcome,
        };
        self.shared.report(self.generation, outcome, now);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.reported {
            // The time is of no importance to what says nothing.
            self.shared.report(self.generation, Outcome::Ignored, Instant::now());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, generation: u64, outcome: Outcome, now: Instant) {
        let mut inner = self.lock();
        if inner.generation != generation {
            return;
        }
        let open = State::Open { until: now + Duration::from_millis(self.config.open_ms) };
        let state = inner.state;
        match state {
            State::Closed if outcome != Outcome::Ignored => {
                let failed = outcome == Outcome::Failure;
                inner.calls.add(now, failed);
                inner.consecutive = if failed { inner.consecutive.saturating_add(1) } else { 0 };
                if let Some(reason) = self.config.verdict(&inner, now) {
                    self.change(&mut inner, now, open, reason);
                }
            }
            State::HalfOpen { in_flight, succeeded } => {
                let in_flight = in_flight.saturating_sub(1);
                let succeeded = succeeded + u32::from(outcome == Outcome::Success);
                inner.state = State::HalfOpen { in_flight, succeeded };
                if outcome == Outcome::Failure {
                    self.change(&mut inner, now, open, "a probe failed");
                } else if succeeded >= self.config.probes {
                    self.change(&mut inner, now, State::Closed, "all probes succeeded");
                }
            }
            State::Closed | State::Open { .. } => {}
        }
    }

    fn change(&self, inner: &mut Inner, now: Instant, to: State, reason: &'static str) {
        let from = std::mem::replace(&mut inner.state, to);
        inner.generation += 1;
        let Counts { all: calls, marked: failures } = inner.calls.last(now, self.config.window_s);
        let (provider, model) = (self.provider.as_str(), self.model.as_str());
        let (from, name) = (from.name(), to.name());
        match to {
            State::Open { .. } => {
                let open_ms = self.config.open_ms;
                warn!(provider, model, from, to = name, reason, calls, failures, open_ms, "breaker changed");
            }
            State::HalfOpen { .. } => info!(provider, model, from, to = name, reason, "breaker changed"),
            State::Closed => {
                inner.calls.clear();
                inner.consecutive = 0;
                info!(provider, model, from, to = name, reason, "breaker changed");
            }
        }
        let labels = [("provider", provider.to_owned()), ("model", model.to_owned()), ("to", name.to_owned())];
        counter!(metric::BREAKER_TRANSITIONS, &labels).increment(1);
        self.show(to);
    }

    fn show(&self, state: State) {
        let labels = [("provider", self.provider.clone()), ("model", self.model.clone())];
        gauge!(metric::BREAKER_STATE, &labels).set(state.level());
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
