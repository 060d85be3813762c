//! Where the time of the model goes.

use std::time::{Duration, Instant};

/// A part of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Products with weights, and what is fused to them: bias, GELU, residuals.
    Products,
    /// Attention.
    Attention,
    /// Layer normalisations.
    Norms,
    /// Embeddings of words, means.
    Other,
}

/// Time spent, step by step. A look at the clock costs some ten nanoseconds, the shortest step some thousand.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    spent: [Duration; 4],
    since: Option<Instant>,
}

impl Steps {
    /// What happened until now does not count.
    pub fn begin(&mut self) {
        self.since = Some(Instant::now());
    }

    /// What happened since the last look was this.
    pub fn end(&mut self, step: Step) {
        let now = Instant::now();
        if let (Some(spent), Some(since)) = (self.spent.get_mut(step as usize), self.since) {
            *spent += now - since;
        }
        self.since = Some(now);
    }

    /// Seconds of a step.
    pub fn seconds(&self, step: Step) -> f64 {
        self.spent.get(step as usize).map_or(0.0, Duration::as_secs_f64)
    }
}
