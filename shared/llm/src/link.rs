//! A provider of the chain with all that stands before it.

use metrics::counter;
use tokio::time::Instant;

use crate::breaker::{Breaker, Permit, Refused};
use crate::client::{Ask, ChatRequest};
use crate::config::{LlmConfig, PriceConfig, ProviderConfig};
use crate::error::CallError;
use crate::estimate::EstimateConfig;
use crate::gate::Gate;
use crate::hedging::FirstTokens;
use crate::ledger::Planned;
use crate::metric;
use crate::retry_budget::RetryBudget;

/// A provider, its breaker, gate and budget of retries; shared by all questions of the process.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) model: String,
    pub(crate) price: PriceConfig,
    estimate: EstimateConfig,
    honours_idempotency: bool,
    pub(crate) provider: Box<dyn Ask>,
    pub(crate) breaker: Breaker,
    pub(crate) gate: Gate,
    pub(crate) first_tokens: FirstTokens,
    budget: RetryBudget,
}

impl Link {
    pub(crate) fn new(
        name: &str,
        settings: &ProviderConfig,
        provider: Box<dyn Ask>,
        config: &LlmConfig,
        now: Instant,
    ) -> Self {
        Self {
            name: name.to_owned(),
            model: settings.model.clone(),
            price: settings.price,
            estimate: settings.estimate,
            honours_idempotency: settings.honours_idempotency,
            provider,
            breaker: Breaker::new(name, &settings.model, config.breaker, now),
            gate: Gate::new(config.retries.max_pause()),
            first_tokens: FirstTokens::default(),
            budget: RetryBudget::new(config.retry_budget, now),
        }
    }

    fn labels(&self) -> [(&'static str, String); 2] {
        [("provider", self.name.clone()), ("model", self.model.clone())]
    }

    /// Leave for one call, to be asked for right before it.
    pub(crate) fn acquire(&self, now: Instant) -> Result<Permit, CallError> {
        self.breaker.acquire(now).map_err(|refused| self.refused(refused))
    }

    /// Fails when the breaker will not let a call through at that later instant either.
    pub(crate) fn check(&self, later: Instant, now: Instant) -> Result<(), CallError> {
        self.breaker.refused_at(later, now).map_or(Ok(()), |refused| Err(self.refused(refused)))
    }

    fn refused(&self, refused: Refused) -> CallError {
        counter!(metric::BREAKER_REFUSALS, &self.labels()).increment(1);
        CallError::BreakerOpen { retry_after: refused.retry_after }
    }

    /// Whether the budget allows one more retry; it is counted when it does.
    pub(crate) fn take_retry(&self, now: Instant) -> bool {
        let granted = self.budget.take(now);
        if !granted {
            counter!(metric::RETRY_BUDGET_EXHAUSTED, &self.labels()).increment(1);
        }
        granted
    }

    /// The call that would put this question to the model.
    pub(crate) fn plan(&self, request: &ChatRequest, attempt: i32) -> Planned {
        Planned {
            provider: self.name.clone(),
            model: self.model.clone(),
            attempt,
            price: self.price,
            bound: self.estimate.upper_bound(request),
            honours_idempotency: self.honours_idempotency,
        }
    }

    /// Notes what came of a call that was made beside a slow one.
    pub(crate) fn note_hedge(&self, outcome: &'static str) {
        let [provider, model] = self.labels();
        counter!(metric::HEDGES, &[provider, model, ("outcome", outcome.to_owned())]).increment(1);
    }

    /// Notes that a call begins: the first of a question, or one that repeats another because of its error.
    pub(crate) fn note_call(&self, repeats: Option<&CallError>, now: Instant) {
        match repeats {
            None => self.budget.first_call(now),
            Some(error) => {
                let [provider, model] = self.labels();
                counter!(metric::RETRIES, &[provider, model, ("reason", error.class().to_owned())]).increment(1);
            }
        }
    }
}
