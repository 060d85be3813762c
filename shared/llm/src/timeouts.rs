//! How long each part of answering may take, and what that means for one call.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use crate::config::InvalidConfig;
use crate::error::{CallError, Step};

/// Section `[llm.timeouts]`: milliseconds each part of answering may take. They nest: connect < first token < inference <
/// step < end to end, between tokens < inference, tool < step. Each is cut to what is left of a question's deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutConfig {
    /// To connect, TLS included.
    pub connect_ms: u64,
    /// From sending the request to the first piece of text.
    pub first_token_ms: u64,
    /// Between two pieces of text.
    pub between_tokens_ms: u64,
    /// One whole call.
    pub inference_ms: u64,
    /// A tool that a model calls.
    pub tool_ms: u64,
    /// All calls of a step together: retries, waits and other providers included.
    pub step_ms: u64,
    /// From a question to its answer, for questions that name no deadline.
    pub end_to_end_ms: u64,
}

impl Default for TimeoutConfig {
    fn default() -> Self {
        Self {
            connect_ms: 2_000,
            first_token_ms: 20_000,
            between_tokens_ms: 10_000,
            inference_ms: 45_000,
            tool_ms: 10_000,
            step_ms: 60_000,
            end_to_end_ms: 120_000,
        }
    }
}

impl TimeoutConfig {
    pub(crate) fn connect(&self) -> Duration {
        Duration::from_millis(self.connect_ms)
    }

    pub(crate) fn first_token(&self) -> Duration {
        Duration::from_millis(self.first_token_ms)
    }

    pub(crate) fn between_tokens(&self) -> Duration {
        Duration::from_millis(self.between_tokens_ms)
    }

    pub(crate) fn inference(&self) -> Duration {
        Duration::from_millis(self.inference_ms)
    }

    pub(crate) fn step(&self) -> Duration {
        Duration::from_millis(self.step_ms)
    }

    /// Limit of a tool that a model calls; whoever runs the tool applies it.
    #[must_use]
    pub fn tool(&self) -> Duration {
        Duration::from_millis(self.tool_ms)
    }

    /// Deadline of a question that names none, from the moment it was asked; whoever asks the chain applies it.
    #[must_use]
    pub fn end_to_end(&self) -> Duration {
        Duration::from_millis(self.end_to_end_ms)
    }

    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        let connect = ("connect_ms", self.connect_ms);
        let first_token = ("first_token_ms", self.first_token_ms);
        let between_tokens = ("between_tokens_ms", self.between_tokens_ms);
        let inference = ("inference_ms", self.inference_ms);
        let tool = ("tool_ms", self.tool_ms);
        let step = ("step_ms", self.step_ms);
        let end_to_end = ("end_to_end_ms", self.end_to_end_ms);
        for ((inner, inner_ms), (outer, outer_ms)) in [
            (connect, first_token),
            (first_token, inference),
            (between_tokens, inference),
            (inference, step),
            (tool, step),
            (step, end_to_end),
        ] {
            if inner_ms == 0 || inner_ms >= outer_ms {
                return Err(InvalidConfig::Timeouts { inner, inner_ms, outer, outer_ms });
            }
        }
        Ok(())
    }
}

/// When all calls of a question must be over, and what says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) at: Instant,
    pub(crate) step: Step,
}

impl End {
    /// The nearer of the step's end and the caller's deadline.
    pub(crate) fn of(began: Instant, timeouts: &TimeoutConfig, deadline: Option<Instant>) -> Self {
        let step = Self { at: began + timeouts.step(), step: Step::Ask };
        match deadline {
            Some(at) if at <= step.at => Self { at, step: Step::Deadline },
            _ => step,
        }
    }
}

/// The limits of one call, as points in time.
pub(crate) struct Limits<'a> {
    pub(crate) began: Instant,
    pub(crate) timeouts: &'a TimeoutConfig,
    pub(crate) end: End,
}

impl Limits<'_> {
    /// End of the wait for the first piece of text.
    pub(crate) fn first_token(&self) -> Instant {
        self.began + self.timeouts.first_token()
    }

    /// End of the call.
    pub(crate) fn inference(&self) -> Instant {
        self.began + self.timeouts.inference()
    }

    /// The nearest of the part's own limit, the whole call's and the question's.
    fn nearest(&self, step: Step, own: Instant) -> (Instant, Step) {
        let mut nearest = (own, step);
        for outer in [(self.inference(), Step::Inference), (self.end.at, self.end.step)] {
            if outer.0 < nearest.0 {
                nearest = outer;
            }
        }
        nearest
    }

    /// Does a part of the call within its limit.
    pub(crate) async fn within<T>(
        &self,
        step: Step,
        own: Instant,
        work: impl Future<Output = T>,
    ) -> Result<T, CallError> {
        let (at, step) = self.nearest(step, own);
        timeout_at(at, work).await.map_err(|_| CallError::Timeout { step, elapsed: self.began.elapsed() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_limit_ends_a_part_and_gives_its_name() {
        let began = Instant::now();
        let after = |ms| began + Duration::from_millis(ms);
        let timeouts = TimeoutConfig::default();
        let nearest = |began, deadline, step, own| {
            let end = End::of(after(0), &timeouts, deadline);
            Limits { began, timeouts: &timeouts, end }.nearest(step, own).1
        };
        assert_eq!(nearest(began, None, Step::FirstToken, after(20_000)), Step::FirstToken);
        assert_eq!(nearest(began, None, Step::BetweenTokens, after(50_000)), Step::Inference);
        assert_eq!(nearest(after(50_000), None, Step::FirstToken, after(70_000)), Step::Ask);
        assert_eq!(nearest(began, Some(after(5_000)), Step::FirstToken, after(20_000)), Step::Deadline);
        assert_eq!(nearest(after(50_000), Some(after(90_000)), Step::FirstToken, after(70_000)), Step::Ask);
    }
}
