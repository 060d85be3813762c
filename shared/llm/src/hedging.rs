//! When a second provider is asked because the first is slow to begin, and how often that may be (Dean and Barroso, "The
//! Tail at Scale", Communications of the ACM 56(2), 2013).

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::InvalidConfig;
use crate::money::whole;

/// First tokens that must have been seen of a provider before anything is concluded from them.
const LEAST_SEEN: usize = 50;

/// The latest so many are remembered.
const MOST_SEEN: usize = 512;

/// A hedge, in the units of shares: a millionth of a hedge.
const HEDGE: u64 = 1_000_000;

/// Most hedges that quiet times save up for a slow one.
const MOST_SAVED: u64 = 10 * HEDGE;

/// Section `[llm.hedging]`: when the first call of a question has not begun to answer for longer than usual, the next
/// provider is asked as well; whichever begins first answers, and the other is cancelled. Both are paid for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HedgingConfig {
    /// Whether it is done at all.
    pub enabled: bool,
    /// Share of a provider's calls that begin to answer within the time that is waited, above 0 and below 1. Nothing is
    /// hedged before 50 calls have shown what is usual.
    pub quantile: f64,
    /// Shortest wait, milliseconds, however quick the provider usually is.
    pub min_delay_ms: u64,
    /// Share of questions that a second provider is asked for as well, at most; 0 to 1.
    pub max_share: f64,
}

impl Default for HedgingConfig {
    fn default() -> Self {
        Self { enabled: false, quantile: 0.95, min_delay_ms: 200, max_share: 0.05 }
    }
}

impl HedgingConfig {
    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        if !(self.quantile > 0.0 && self.quantile < 1.0) {
            return Err(InvalidConfig::setting("hedging.quantile", "must lie above 0 and below 1"));
        }
        if !(0.0..=1.0).contains(&self.max_share) {
            return Err(InvalidConfig::setting("hedging.max_share", "must lie between 0 and 1"));
        }
        Ok(())
    }
}

/// Hedges of all questions of the process.
///
/// **Invariant:** there are never more than `max_share` of the questions so far.
#[derive(Debug)]
pub(crate) struct Hedging {
    config: HedgingConfig,
    /// What questions have added and hedges have not taken, in millionths of a hedge.
    saved: Mutex<u64>,
}

impl Hedging {
    pub(crate) fn new(config: HedgingConfig) -> Self {
        Self { config, saved: Mutex::default() }
    }

    /// How long the first token of a question's first call is waited for; `None` where nothing is hedged. Each question
    /// asks once, and is counted.
    pub(crate) fn delay(&self, seen: &FirstTokens) -> Option<Duration> {
        if !self.config.enabled {
            return None;
        }
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        *saved = saved.saturating_add(whole(self.config.max_share * HEDGE as f64)).min(MOST_SAVED);
        let usual = seen.quantile(self.config.quantile)?;
        Some(usual.max(Duration::from_millis(self.config.min_delay_ms)))
    }

    /// Whether there may be one more hedge; it is counted when there may.
    pub(crate) fn take(&self) -> bool {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let left = saved.checked_sub(HEDGE);
        *saved = left.unwrap_or(*saved);
        left.is_some()
    }
}

/// Times to the first token of one provider's latest calls.
#[derive(Debug, Default)]
pub(crate) struct FirstTokens(Mutex<VecDeque<Duration>>);

impl FirstTokens {
    /// A call began to answer after this time, or had not by then when it was overtaken: that it would have taken longer
    /// does not change a quantile below it.
    pub(crate) fn saw(&self, time: Duration) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MOST_SEEN {
            seen.pop_front();
        }
        seen.push_back(time);
    }

    /// The time within which this share of calls begin to answer (nearest rank), once there were enough.
    fn quantile(&self, share: f64) -> Option<Duration> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < LEAST_SEEN {
            return None;
        }
        let mut sorted: Vec<Duration> = seen.iter().copied().collect();
        sorted.sort_unstable();
        let rank = usize::try_from(whole((share * sorted.len() as f64).ceil())).unwrap_or(usize::MAX);
        sorted.get(rank.saturating_sub(1)).copied()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_quantile_is_known_from_fifty_times_on_and_follows_the_latest() {
        let seen = FirstTokens::default();
        for time in 1..50 {
            seen.saw(time * MS);
        }
        assert_eq!(seen.quantile(0.95), None);
        for time in 50..=100 {
            seen.saw(time * MS);
        }
        assert_eq!((seen.quantile(0.95), seen.quantile(0.5)), (Some(95 * MS), Some(50 * MS)));
        assert_eq!((seen.quantile(0.001), seen.quantile(0.999)), (Some(MS), Some(100 * MS)));
        for _ in 0..MOST_SEEN {
            seen.saw(7 * MS);
        }
        assert_eq!(seen.quantile(0.999), Some(7 * MS));
        assert_eq!(seen.0.lock().unwrap().len(), MOST_SEEN);
    }

    #[test]
    fn hedges_are_a_share_of_the_questions_and_few_are_saved_up() {
        let hedging = Hedging::new(HedgingConfig { enabled: true, ..HedgingConfig::default() });
        let seen = FirstTokens::default();
        let taken = || (0..1_000).take_while(|_| hedging.take()).count();
        let questions = |count| (0..count).for_each(|_| assert_eq!(hedging.delay(&seen), None));
        questions(19);
        assert_eq!(taken(), 0);
        questions(1);
        assert_eq!(taken(), 1);
        questions(100);
        assert_eq!(taken(), 5);
        questions(10_000);
        assert_eq!(taken(), 10);
    }

    #[test]
    fn the_wait_is_never_shorter_than_its_least() {
        let seen = FirstTokens::default();
        (0..50).for_each(|_| seen.saw(20 * MS));
        let delay = |config| Hedging::new(config).delay(&seen);
        let enabled = HedgingConfig { enabled: true, ..HedgingConfig::default() };
        assert_eq!(delay(enabled), Some(200 * MS));
        assert_eq!(delay(HedgingConfig { min_delay_ms: 0, ..enabled }), Some(20 * MS));
        assert_eq!(delay(HedgingConfig::default()), None);
    }
}
