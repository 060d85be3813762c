//! Providers in the order they are tried.

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::client::{ChatRequest, Deltas, Finish, Provider};
use crate::config::{InvalidConfig, LlmConfig};
use crate::error::{CallError, Step};
use crate::metric::{self, InFlight};
use crate::pricing::{TokenUsage, Usd};

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

/// One call that was made; becomes a usage record.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Name of the provider.
    pub provider: String,
    /// Model.
    pub model: String,
    /// Which attempt of the question it was, from 1.
    pub attempt: i32,
    /// `ok`, or the class of the error.
    pub status: &'static str,
    /// Tokens; of a failed call what it may have cost, estimated.
    pub usage: TokenUsage,
    /// By the configured prices.
    pub cost: Usd,
    /// Duration.
    pub latency: Duration,
}

/// A complete answer, and who gave it.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The text.
    pub text: String,
    /// Why it ends.
    pub finish: Finish,
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

/// No provider gave a complete answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no provider answered; the last one, {provider}: {error}")]
pub struct Exhausted {
    /// The provider that was tried last.
    pub provider: String,
    /// Its error.
    pub error: CallError,
    /// What the latest attempt that had begun to answer had said.
    pub partial: Option<Partial>,
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

/// Providers in the order they are tried, each once.
#[derive(Debug, Clone)]
pub struct Chain {
    providers: Vec<Provider>,
}

impl Chain {
    /// The chain of this configuration; none when it names no provider.
    ///
    /// # Errors
    /// When the configuration can't work.
    pub fn new(config: &LlmConfig) -> Result<Option<Self>, ChainError> {
        let providers = config
            .ordered()?
            .into_iter()
            .map(|(name, provider)| {
                Provider::new(name, provider, &config.timeouts)
                    .map_err(|source| ChainError::Http { provider: name.to_owned(), source })
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok((!providers.is_empty()).then_some(Self { providers }))
    }

    /// Asks one provider after the other until one gives a complete answer or the deadline passes. Attempts count
    /// from `first_attempt`.
    pub async fn ask(&self, request: &ChatRequest, first_attempt: i32, deltas: &mut dyn Deltas) -> Run {
        let began = Instant::now();
        let mut calls = Vec::new();
        let mut partial = None;
        let mut last = None;
        for (attempt, provider) in (first_attempt..).zip(&self.providers) {
            let called = Instant::now();
            let in_flight = InFlight::count(gauge!(metric::CALLS_IN_FLIGHT, "provider" => provider.name.clone()));
            let result = provider.ask(request, attempt, deltas).await;
            drop(in_flight);
            let latency = called.elapsed();
            let (status, usage) = match &result {
                Ok(completion) => ("ok", completion.usage),
                Err(failed) => (failed.error.class(), failed.usage),
            };
            let call = Call {
                provider: provider.name.clone(),
                model: provider.config.model.clone(),
                attempt,
                status,
                usage,
                cost: usage.cost(&provider.config.price),
                latency,
            };
            record(&call);
            match result {
                Ok(completion) => {
                    let first_token = called.duration_since(began) + completion.first_token;
                    histogram!(metric::FIRST_TOKEN_SECONDS, "provider" => call.provider.clone(), "model" => call.model.clone())
                        .record(completion.first_token.as_secs_f64());
                    calls.push(call.clone());
                    let reply = Reply { text: completion.text, finish: completion.finish, first_token, call };
                    return Run { reply: Ok(reply), calls };
                }
                Err(failed) => {
                    warn!(
                        provider = call.provider,
                        model = call.model,
                        attempt,
                        class = call.status,
                        error = %failed.error,
                        elapsed_ms = millis(latency),
                        "model call failed"
                    );
                    if !failed.partial.is_empty() {
                        partial = Some(Partial {
                            provider: call.provider.clone(),
                            model: call.model.clone(),
                            attempt,
                            text: failed.partial,
                        });
                    }
                    last = Some((call.provider.clone(), failed.error));
                    calls.push(call);
                }
            }
            if request.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                break;
            }
        }
        let (provider, error) =
            last.unwrap_or_else(|| (String::new(), CallError::Network { reason: "no provider".into() }));
        Run { reply: Err(Exhausted { provider, error, partial }), calls }
    }
}

/// One log event and the metrics of a call.
fn record(call: &Call) {
    info!(
        provider = call.provider,
        model = call.model,
        attempt = call.attempt,
        status = call.status,
        input_tokens = call.usage.input,
        output_tokens = call.usage.output,
        estimated = call.usage.estimated,
        cost_usd = call.cost.0,
        latency_ms = millis(call.latency),
        "model call"
    );
    let labels = [("provider", call.provider.clone()), ("model", call.model.clone())];
    let with = |name: &'static str, value: &str| {
        let [provider, model] = labels.clone();
        [provider, model, (name, value.to_owned())]
    };
    counter!(metric::CALLS, &with("status", call.status)).increment(1);
    histogram!(metric::CALL_SECONDS, &labels).record(call.latency.as_secs_f64());
    counter!(metric::TOKENS, &with("direction", "in")).increment(call.usage.input);
    counter!(metric::TOKENS, &with("direction", "out")).increment(call.usage.output);
    counter!(metric::COST, &labels).increment(microdollars(call.cost));
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// Costs are not negative, and a cast beyond the range saturates.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn microdollars(cost: Usd) -> u64 {
    (cost.0 * 1e6).round().max(0.0) as u64
}
