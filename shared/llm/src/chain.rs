//! Providers in the order they are tried.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use crate::asking::Asking;
use crate::call::Call;
use crate::client::{ChatRequest, Deltas, Finish, Provider};
use crate::config::{InvalidConfig, LlmConfig};
use crate::error::{CallError, Step};
use crate::hedging::Hedging;
use crate::ledger::{Ledger, Unaccounted};
use crate::link::Link;
use crate::money::NanoUsd;
use crate::pricing::TokenUsage;
use crate::retry::RetryConfig;
use crate::timeouts::TimeoutConfig;
use crate::tool_call::ToolCall;

/// The chain can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The configuration can't work.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// The HTTP client can't be made, for example because no root certificates were found.
    #[error("HTTP client of llm.providers.{provider}: {source}")]
    Http {
        /// For which provider.
        provider: String,
        /// What is wrong.
        source: reqwest::Error,
    },
}

/// A complete answer, and who gave it.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The text.
    pub text: String,
    /// Why it ends.
    pub finish: Finish,
    /// What it calls, whole and in order.
    pub tool_calls: Vec<ToolCall>,
    /// From the start of the chain to the first piece of this answer.
    pub first_token: Duration,
    /// The call that gave it.
    pub call: Call,
}

/// What had arrived of an answer that broke off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// Name of the provider.
    pub provider: String,
    /// Model.
    pub model: String,
    /// Attempt whose pieces were given out.
    pub attempt: i32,
    /// The text so far.
    pub text: String,
}

/// Why a provider gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswered {
    /// Name of the provider.
    pub provider: String,
    /// Its latest error, or why it was not asked.
    pub error: CallError,
}

/// No provider gave a complete answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Exhausted {
    /// The provider that was asked last; if none was, the last that could not be asked; empty when there was no time to
    /// try any.
    pub provider: String,
    /// Its error.
    pub error: CallError,
    /// Every provider that was tried, in the order of the chain.
    pub providers: Vec<Unanswered>,
    /// What the latest attempt that had begun to answer had said.
    pub partial: Option<Partial>,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no provider answered")?;
        for Unanswered { provider, error } in &self.providers {
            write!(f, "; {provider}: {error}")?;
        }
        if self.providers.is_empty() {
            write!(f, ": {}", self.error)?;
        }
        Ok(())
    }
}

impl Exhausted {
    /// Whether it was the caller's deadline that ended it.
    #[must_use]
    pub fn is_deadline(&self) -> bool {
        matches!(self.error, CallError::Timeout { step: Step::Deadline, .. })
    }
}

/// What came of a question put to the chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The answer.
    pub reply: Result<Reply, Exhausted>,
    /// Every call that was made, in the order in which they left.
    pub calls: Vec<Call>,
}

/// Providers in the order they are tried. Clones share breakers, gates and budgets: a process has one chain.
#[derive(Debug, Clone)]
pub struct Chain {
    pub(crate) links: Arc<[Link]>,
    pub(crate) timeouts: TimeoutConfig,
    pub(crate) retries: RetryConfig,
    pub(crate) hedging: Arc<Hedging>,
    pub(crate) random: Arc<Mutex<StdRng>>,
}

impl Chain {
    /// The chain of this configuration; none when it names no provider.
    ///
    /// # Errors
    /// When the configuration can't work.
    pub fn new(config: &LlmConfig) -> Result<Option<Self>, ChainError> {
        let now = Instant::now();
        let links = config
            .ordered()?
            .into_iter()
            .map(|(name, provider)| {
                let client = Provider::new(provider, &config.timeouts)
                    .map_err(|source| ChainError::Http { provider: name.to_owned(), source })?;
                Ok(Link::new(name, provider, Box::new(client), config, now))
            })
            .collect::<Result<Vec<_>, ChainError>>()?;
        Ok((!links.is_empty()).then(|| Self::of(links, config)))
    }

    pub(crate) fn of(links: Vec<Link>, config: &LlmConfig) -> Self {
        let (links, hedging) = (links.into(), Arc::new(Hedging::new(config.hedging)));
        let random = Arc::new(Mutex::new(StdRng::from_os_rng()));
        Self { links, timeouts: config.timeouts, retries: config.retries, hedging, random }
    }

    /// Draws its waits from this seed, so that a run can be repeated.
    #[must_use]
    pub fn seeded(self, seed: u64) -> Self {
        Self { random: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))), ..self }
    }

    /// How long each part of answering may take; the deadline of a question that names none among it.
    #[must_use]
    pub fn timeouts(&self) -> &TimeoutConfig {
        &self.timeouts
    }

    /// What one call takes and costs at most, whichever provider is asked.
    #[must_use]
    pub fn most(&self, request: &ChatRequest) -> (TokenUsage, NanoUsd) {
        let mut most = (TokenUsage::default(), NanoUsd::ZERO);
        for planned in self.links.iter().map(|link| link.plan(request, 0)) {
            most.0.input = most.0.input.max(planned.bound.input);
            most.0.output = most.0.output.max(planned.bound.output);
            most.1 = most.1.max(planned.bound.charge(&planned.price));
        }
        most
    }

    /// What changes when other models are asked, or in another order.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let models = self.links.iter().map(|link| format!("{}={}", link.name, link.model));
        models.collect::<Vec<_>>().join(",")
    }

    /// Asks the providers until one gives a complete answer, none is left, or the step or the deadline ends. What may
    /// pass is tried again with the same provider, then the next one is asked; a request that is at fault itself, or
    /// that a model refuses, is put to no other. Attempts count from `first_attempt`, one a call. With hedging, a second
    /// provider may be asked beside one that does not begin to answer; pieces come only from the one that begins first.
    pub async fn ask(&self, request: &ChatRequest, first_attempt: i32, deltas: &mut dyn Deltas) -> Run {
        self.ask_with_ledger(request, first_attempt, deltas, &mut Unaccounted).await
    }

    /// The same, and no call leaves that `ledger` does not let go.
    pub async fn ask_with_ledger(
        &self,
        request: &ChatRequest,
        first_attempt: i32,
        deltas: &mut dyn Deltas,
        ledger: &mut dyn Ledger,
    ) -> Run {
        Asking::new(self, request, first_attempt, ledger).run(deltas).await
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
