//! One call while it runs, and what is noted of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::client::{ChatRequest, Completion, Failed};
use crate::error::CallError;
use crate::link::Link;
use crate::metric::{self, InFlight};
use crate::pricing::{TokenUsage, Usd, estimate_tokens_of};
use crate::timeouts::End;

/// One call that was made; becomes a usage record.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Name of the provider.
    pub provider: String,
    /// Model.
    pub model: String,
    /// Which attempt of the question it was, from 1.
    pub attempt: i32,
    /// `ok`, the class of the error, or `cancelled` when another call of the question was quicker.
    pub status: &'static str,
    /// Tokens; of a call that failed or was cancelled what it may have cost, estimated.
    pub usage: TokenUsage,
    /// By the configured prices.
    pub cost: Usd,
    /// Duration.
    pub latency: Duration,
}

/// A call under way. Dropped before its end it was cancelled, and what it may have cost until then counts all the same.
pub(crate) struct Running<'a> {
    link: &'a Link,
    request: &'a ChatRequest,
    attempt: i32,
    began: Instant,
    end: End,
    /// Bytes of text and tool calls so far.
    heard: Arc<AtomicUsize>,
    ended: bool,
    _in_flight: InFlight,
}

impl<'a> Running<'a> {
    pub(crate) fn start(link: &'a Link, request: &'a ChatRequest, attempt: i32, end: End, now: Instant) -> Self {
        let in_flight = InFlight::count(gauge!(metric::CALLS_IN_FLIGHT, "provider" => link.name.clone()));
        let heard = Arc::default();
        Self { link, request, attempt, began: now, end, heard, ended: false, _in_flight: in_flight }
    }

    /// Where the bytes that it says are added up.
    pub(crate) fn heard(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.heard)
    }

    /// The call has ended with this.
    pub(crate) fn end(mut self, result: &Result<Completion, Failed>) -> Call {
        self.ended = true;
        let call = match result {
            Ok(completion) => self.call("ok", completion.usage),
            Err(failed) => self.call(failed.error.class(), failed.usage),
        };
        match result {
            Ok(completion) => {
                let labels = [("provider", call.provider.clone()), ("model", call.model.clone())];
                histogram!(metric::FIRST_TOKEN_SECONDS, &labels).record(completion.first_token.as_secs_f64());
                self.note(&call, None);
            }
            Err(failed) => self.note(&call, Some(&failed.error)),
        }
        call
    }

    /// The call is not wanted any more.
    pub(crate) fn cancel(mut self) -> Call {
        self.ended = true;
        self.note_cancelled()
    }

    fn note_cancelled(&self) -> Call {
        let usage = TokenUsage {
            input: self.request.estimated_tokens(),
            cached: 0,
            output: estimate_tokens_of(self.heard.load(Ordering::Relaxed)),
            estimated: true,
        };
        let call = self.call("cancelled", usage);
        self.note(&call, None);
        call
    }

    fn call(&self, status: &'static str, usage: TokenUsage) -> Call {
        Call {
            provider: self.link.name.clone(),
            model: self.link.model.clone(),
            attempt: self.attempt,
            status,
            usage,
            cost: usage.cost(&self.link.price),
            latency: self.began.elapsed(),
        }
    }

    /// One log event and the metrics of the call. Sizes and times, never content.
    fn note(&self, call: &Call, error: Option<&CallError>) {
        let timed_out = match error {
            Some(CallError::Timeout { step, .. }) => Some(step.name()),
            _ => None,
        };
        let remaining_ms = millis(self.end.at.saturating_duration_since(Instant::now()));
        let request_bytes = self.request.bytes();
        let heard_bytes = self.heard.load(Ordering::Relaxed);
        macro_rules! event {
            ($level:ident, $($more:tt)*) => {
                $level!(
                    tenant = self.request.tenant.as_deref(),
                    prompt_template = self.request.prompt_template.as_deref(),
                    prompt_version = self.request.prompt_version.as_deref(),
                    provider = call.provider,
                    model = call.model,
                    attempt = call.attempt,
                    status = call.status,
                    input_tokens = call.usage.input,
                    cached_tokens = call.usage.cached,
                    output_tokens = call.usage.output,
                    estimated = call.usage.estimated,
                    cost_usd = call.cost.0,
                    elapsed_ms = millis(call.latency),
                    remaining_ms,
                    request_bytes,
                    heard_bytes,
                    $($more)*
                )
            };
        }
        match error {
            Some(error) => event!(warn, step = timed_out, error = %error, "model call failed"),
            None => event!(info, "model call"),
        }
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
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.note_cancelled();
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// Costs are not negative, and a cast beyond the range saturates.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn microdollars(cost: Usd) -> u64 {
    (cost.0 * 1e6).round().max(0.0) as u64
}
