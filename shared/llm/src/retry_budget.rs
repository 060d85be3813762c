//! A bound on the retries a provider gets from all questions together, so that they can't multiply an outage.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::config::InvalidConfig;
use crate::window::Window;

/// Longest window, seconds; each second is a bucket in memory.
const LONGEST_WINDOW_S: u32 = 600;

/// Section `[llm.retry_budget]`, for each provider: within the window, retries are at most `share` of the first calls plus
/// `per_second` for each of its seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryBudgetConfig {
    /// Retries for each first call, 0 to 1.
    pub share: f64,
    /// Retries a second that are granted however few the first calls are.
    pub per_second: f64,
    /// Seconds that are looked back on, 1 to 600.
    pub window_s: u32,
}

impl Default for RetryBudgetConfig {
    fn default() -> Self {
        Self { share: 0.2, per_second: 1.0, window_s: 10 }
    }
}

impl RetryBudgetConfig {
    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        if !(0.0..=1.0).contains(&self.share) {
            return Err(InvalidConfig::setting("retry_budget.share", "must lie between 0 and 1"));
        }
        if !(self.per_second >= 0.0 && self.per_second.is_finite()) {
            return Err(InvalidConfig::setting("retry_budget.per_second", "must not be negative"));
        }
        if !(1..=LONGEST_WINDOW_S).contains(&self.window_s) {
            return Err(InvalidConfig::setting("retry_budget.window_s", "must lie between 1 and 600"));
        }
        Ok(())
    }
}

/// One provider's budget.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    config: RetryBudgetConfig,
    /// Calls, retries marked.
    calls: Mutex<Window>,
}

impl RetryBudget {
    pub(crate) fn new(config: RetryBudgetConfig, now: Instant) -> Self {
        Self { config, calls: Mutex::new(Window::new(now, config.window_s)) }
    }

    /// Notes a call that is no retry.
    pub(crate) fn first_call(&self, now: Instant) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).add(now, false);
    }

    /// Whether there may be one more retry; it is counted when there may.
    pub(crate) fn take(&self, now: Instant) -> bool {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = calls.last(now, self.config.window_s);
        let first = f64::from(counts.all.saturating_sub(counts.marked));
        let allowed = self.config.share * first + self.config.per_second * f64::from(self.config.window_s);
        let granted = f64::from(counts.marked) + 1.0 <= allowed;
        if granted {
            calls.add(now, true);
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn granted(budget: &RetryBudget, now: Instant) -> usize {
        (0..1_000).take_while(|_| budget.take(now)).count()
    }

    #[test]
    fn retries_are_a_share_of_the_first_calls_plus_a_floor() {
        let now = Instant::now();
        let budget = RetryBudget::new(RetryBudgetConfig::default(), now);
        assert_eq!(granted(&budget, now), 10, "one a second of the window");
        for _ in 0..100 {
            budget.first_call(now);
        }
        assert_eq!(granted(&budget, now), 20, "a fifth of the calls");
        assert_eq!(granted(&budget, now + Duration::from_secs(5)), 0);
        assert_eq!(granted(&budget, now + Duration::from_secs(10)), 10, "both have left the window");
    }

    #[test]
    fn without_a_floor_few_calls_get_no_retry() {
        let now = Instant::now();
        let budget = RetryBudget::new(RetryBudgetConfig { per_second: 0.0, ..RetryBudgetConfig::default() }, now);
        for calls in 1..=5 {
            budget.first_call(now);
            assert_eq!(budget.take(now), calls == 5, "{calls}");
        }
    }
}
