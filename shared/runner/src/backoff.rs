//! Exponential backoff with full jitter.

use std::time::Duration;

use rand::Rng;

/// Delays that double up to a limit, each drawn evenly between zero and its bound (full jitter; Brooker, "Exponential
/// Backoff And Jitter", AWS Architecture Blog, 2015).
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    initial: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, failures: 0 }
    }

    /// Bound of the next delay.
    fn bound(&self) -> Duration {
        self.initial.saturating_mul(2u32.saturating_pow(self.failures.min(31))).min(self.max)
    }

    /// The next delay, at least `floor` when a dependency named one.
    pub(crate) fn next(&mut self, random: &mut impl Rng, floor: Option<Duration>) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        let drawn = bound.mul_f64(random.random::<f64>());
        drawn.max(floor.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn delays_stay_below_a_doubling_bound_and_are_spread() {
        let mut random = rand::rngs::StdRng::seed_from_u64(7);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for bound in [100, 200, 400, 800, 1000, 1000] {
            assert_eq!(backoff.bound(), Duration::from_millis(bound));
            assert!(backoff.next(&mut random, None) <= Duration::from_millis(bound));
        }
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let first: Vec<_> = (0..100).map(|_| backoff.clone().next(&mut random, None).as_millis()).collect();
        assert!(first.iter().any(|ms| *ms < 25) && first.iter().any(|ms| *ms > 75), "{first:?}");
        assert!(backoff.next(&mut random, Some(Duration::from_secs(9))) >= Duration::from_secs(9));
    }
}
