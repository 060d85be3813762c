//! Keeps all questions away from a provider that said when it wants to be asked again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A provider's gate: open unless the provider asked for a pause.
#[derive(Debug)]
pub(crate) struct Gate {
    /// No pause is longer, so that one odd answer can't shut a provider out for hours.
    longest: Duration,
    until: Mutex<Option<Instant>>,
}

impl Gate {
    pub(crate) fn new(longest: Duration) -> Self {
        Self { longest, until: Mutex::default() }
    }

    /// Keeps everybody away for this long. Never shortens a pause: of several wishes the latest instant holds.
    pub(crate) fn close(&self, now: Instant, pause: Duration) {
        let until = now + pause.min(self.longest);
        let mut current = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        *current = (*current).max(Some(until));
    }

    /// When it opens, if it is closed.
    pub(crate) fn closed_until(&self, now: Instant) -> Option<Instant> {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_bounded_and_never_shortened() {
        let now = Instant::now();
        let seconds = Duration::from_secs;
        let gate = Gate::new(seconds(60));
        assert_eq!(gate.closed_until(now), None);
        gate.close(now, seconds(7));
        gate.close(now, seconds(3));
        assert_eq!(gate.closed_until(now), Some(now + seconds(7)));
        assert_eq!(gate.closed_until(now + seconds(7)), None);
        gate.close(now, seconds(3_600));
        assert_eq!(gate.closed_until(now), Some(now + seconds(60)));
    }
}
