//! Providers in the order they are tried.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics::counter;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::breaker::Outcome;
use crate::call::{Call, Running};
use crate::client::{ChatRequest, Completion, Deltas, Failed, Finish, Provider};
use crate::config::{InvalidConfig, LlmConfig};
use crate::error::{CallError, Step};
use crate::ledger::{Ledger, Unaccounted, Withheld};
use crate::link::Link;
use crate::metric;
use crate::question::{Next, Question};
use crate::retry::RetryConfig;
use crate::timeouts::{End, TimeoutConfig};
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
    /// Every call that was made, in order.
    pub calls: Vec<Call>,
}

/// Providers in the order they are tried. Clones share breakers, gates and budgets: a process has one chain.
#[derive(Debug, Clone)]
pub struct Chain {
    links: Arc<[Link]>,
    timeouts: TimeoutConfig,
    retries: RetryConfig,
    random: Arc<Mutex<StdRng>>,
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
                Ok(Link::new(name, &provider.model, provider.price, Box::new(client), config, now))
            })
            .collect::<Result<Vec<_>, ChainError>>()?;
        Ok((!links.is_empty()).then(|| Self::of(links, config)))
    }

    fn of(links: Vec<Link>, config: &LlmConfig) -> Self {
        let random = Arc::new(Mutex::new(StdRng::from_os_rng()));
        Self { links: links.into(), timeouts: config.timeouts, retries: config.retries, random }
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

    /// Asks the providers until one gives a complete answer, none is left, or the step or the deadline ends. What may
    /// pass is tried again with the same provider, then the next one is asked; a request that is at fault itself, or
    /// that a model refuses, is put to no other. Attempts count from `first_attempt`, one a call.
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
        let began = Instant::now();
        let end = End::of(began, &self.timeouts, request.deadline);
        let mut question = Question::new(&self.links, &self.retries, &self.random, began, end);
        let mut calls: Vec<Call> = Vec::new();
        let mut partial = None;
        let mut attempt = first_attempt;
        loop {
            let now = Instant::now();
            let (at, permit) = match question.next(now) {
                Next::Call(at, permit) => (at, permit),
                Next::Wait(until) => {
                    sleep_until(until).await;
                    continue;
                }
                Next::GiveUp => break,
            };
            let Some(link) = self.links.get(at) else { break };
            let planned = link.plan(request, attempt);
            if let Err(Withheld(reason)) = ledger.before(&planned).await {
                question.failed(at, &CallError::Withheld { reason }, Instant::now());
                continue;
            }
            let now = Instant::now();
            if !permit.is_current() {
                ledger.withdrawn(&planned);
                if let Err(open) = link.check(now, now) {
                    question.failed(at, &open, now);
                }
                continue;
            }
            let running = Running::start(link, request, attempt, end, now);
            let result = link.provider.ask(request, attempt, end, &mut running.counted(deltas)).await;
            let call = running.end(&result);
            permit.report(outcome(&result), call.latency, Instant::now());
            ledger.after(&call);
            calls.push(call.clone());
            match result {
                Ok(completion) => {
                    let first_token = now.duration_since(began) + completion.first_token;
                    let Completion { text, finish, tool_calls, .. } = completion;
                    let reply = Reply { text, finish, tool_calls, first_token, call };
                    return Run { reply: Ok(reply), calls };
                }
                Err(failed) => {
                    question.failed(at, &failed.error, Instant::now());
                    if !failed.partial.is_empty() {
                        let Call { provider, model, .. } = call;
                        partial = Some(Partial { provider, model, attempt, text: failed.partial });
                    }
                }
            }
            attempt = attempt.saturating_add(1);
        }
        Run { reply: Err(exhausted(question, partial, request)), calls }
    }
}

fn outcome(result: &Result<Completion, Failed>) -> Outcome {
    match result {
        Ok(_) => Outcome::Success,
        Err(failed) if failed.error.blames_provider() => Outcome::Failure,
        Err(_) => Outcome::Ignored,
    }
}

fn exhausted(question: Question<'_>, partial: Option<Partial>, request: &ChatRequest) -> Exhausted {
    let ((provider, error), errors) = question.into_errors();
    let providers = errors.into_iter().map(|(provider, error)| Unanswered { provider, error }).collect();
    let exhausted = Exhausted { provider, error, providers, partial };
    counter!(metric::EXHAUSTED, "reason" => exhausted.error.class()).increment(1);
    warn!(
        tenant = request.tenant.as_deref(),
        prompt_version = request.prompt_version.as_deref(),
        reason = exhausted.error.class(),
        error = %exhausted,
        "question not answered"
    );
    exhausted
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
