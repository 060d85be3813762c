//! How often, and after what wait, a question is put again.

use std::time::Duration;

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::config::InvalidConfig;

/// Section `[llm.retries]`: calls that failed for a passing reason are repeated after a wait that doubles each time, drawn
/// evenly between zero and its bound so that questions that failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// Retries of a question, at most, over all providers; the first call of each provider is none. 0 switches them off.
    pub max: u32,
    /// Longest wait before the first retry, milliseconds; doubles with every further one.
    pub base_ms: u64,
    /// Longest wait before any retry, milliseconds, unless the provider asks for more.
    pub max_backoff_ms: u64,
    /// Longest pause, milliseconds, in which a provider's `Retry-After` keeps all questions away from it.
    pub max_pause_ms: u64,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { max: 4, base_ms: 1_000, max_backoff_ms: 8_000, max_pause_ms: 60_000 }
    }
}

impl RetryConfig {
    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        if self.base_ms == 0 {
            return Err(InvalidConfig::setting("retries.base_ms", "must be above 0"));
        }
        if self.max_backoff_ms < self.base_ms {
            return Err(InvalidConfig::setting("retries.max_backoff_ms", "must not be below llm.retries.base_ms"));
        }
        if self.max_pause_ms == 0 {
            return Err(InvalidConfig::setting("retries.max_pause_ms", "must be above 0"));
        }
        Ok(())
    }

    pub(crate) fn max_pause(&self) -> Duration {
        Duration::from_millis(self.max_pause_ms)
    }

    /// Bound of the wait before a retry; they count from 1.
    fn bound(&self, retry: u32) -> Duration {
        let doubled = self.base_ms.saturating_mul(2u64.saturating_pow(retry.saturating_sub(1)));
        Duration::from_millis(doubled.min(self.max_backoff_ms))
    }

    /// The wait before a retry, with full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
    /// 2015). Retries count from 1.
    pub(crate) fn backoff(&self, retry: u32, random: &mut impl Rng) -> Duration {
        self.bound(retry).mul_f64(random.random_range(0.0..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn waits_are_spread_evenly_between_zero_and_a_doubling_bound() {
        let config = RetryConfig::default();
        let mut random = StdRng::seed_from_u64(7);
        for (retry, seconds) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (40, 8)] {
            let bound = Duration::from_secs(seconds);
            let drawn: Vec<Duration> = (0..1_000).map(|_| config.backoff(retry, &mut random)).collect();
            assert!(drawn.iter().all(|wait| *wait <= bound));
            let tenths = |share: u32| drawn.iter().filter(|wait| **wait < bound * share / 10).count();
            assert!((50..150).contains(&tenths(1)) && (450..550).contains(&tenths(5)), "retry {retry}");
            assert!((850..950).contains(&tenths(9)), "retry {retry}");
        }
    }

    #[test]
    fn the_same_seed_waits_the_same() {
        let draw = |seed| {
            let mut random = StdRng::seed_from_u64(seed);
            (1..5).map(|retry| RetryConfig::default().backoff(retry, &mut random)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
