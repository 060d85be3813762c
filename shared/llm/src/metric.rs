//! Metrics of the calls to providers.

use weir_contracts::{MetricDef, MetricKind};

/// Calls by provider, model and status.
pub const CALLS: &str = "weir_llm_calls_total";
/// Calls that are under way.
pub const CALLS_IN_FLIGHT: &str = "weir_llm_calls_in_flight";
/// Duration of calls.
pub const CALL_SECONDS: &str = "weir_llm_call_seconds";
/// Time to the first piece of text.
pub const FIRST_TOKEN_SECONDS: &str = "weir_llm_first_token_seconds";
/// Tokens by direction.
pub const TOKENS: &str = "weir_llm_tokens_total";
/// Cost in millionths of a US dollar.
pub const COST: &str = "weir_llm_cost_microdollars_total";
/// Retries by provider, model and reason.
pub const RETRIES: &str = "weir_llm_retries_total";
/// Retries that a provider's budget did not allow.
pub const RETRY_BUDGET_EXHAUSTED: &str = "weir_llm_retry_budget_exhausted_total";
/// Calls that were made beside a slow one.
pub const HEDGES: &str = "weir_llm_hedges_total";
/// State of each breaker.
pub const BREAKER_STATE: &str = "weir_llm_breaker_state";
/// Changes of breakers' states.
pub const BREAKER_TRANSITIONS: &str = "weir_llm_breaker_transitions_total";
/// Calls that breakers did not let through.
pub const BREAKER_REFUSALS: &str = "weir_llm_breaker_refusals_total";
/// Questions that no provider answered.
pub const EXHAUSTED: &str = "weir_llm_exhausted_chains_total";

/// The list.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: CALLS,
        kind: MetricKind::Counter,
        labels: &["provider", "model", "status"],
        help: "Calls of a model; status is ok, the class of the error, or cancelled.",
    },
    MetricDef {
        name: CALLS_IN_FLIGHT,
        kind: MetricKind::Gauge,
        labels: &["provider"],
        help: "Calls of a provider's models under way, a connection each.",
    },
    MetricDef {
        name: CALL_SECONDS,
        kind: MetricKind::Histogram,
        labels: &["provider", "model"],
        help: "Duration of a call of a model in seconds, failed ones included.",
    },
    MetricDef {
        name: FIRST_TOKEN_SECONDS,
        kind: MetricKind::Histogram,
        labels: &["provider", "model"],
        help: "Seconds from sending a request to the first piece of text or of a tool call.",
    },
    MetricDef {
        name: TOKENS,
        kind: MetricKind::Counter,
        labels: &["provider", "model", "direction"],
        help: "Tokens sent to (in) and received from (out) a model, as reported or else estimated.",
    },
    MetricDef {
        name: COST,
        kind: MetricKind::Counter,
        labels: &["provider", "model"],
        help: "Cost of calls by the configured prices, in millionths of a US dollar.",
    },
    MetricDef {
        name: RETRIES,
        kind: MetricKind::Counter,
        labels: &["provider", "model", "reason"],
        help: "Calls that repeat a failed one, by the class of the error that made them necessary.",
    },
    MetricDef {
        name: RETRY_BUDGET_EXHAUSTED,
        kind: MetricKind::Counter,
        labels: &["provider", "model"],
        help: "Retries that were not made because `llm.retry_budget` was spent.",
    },
    MetricDef {
        name: HEDGES,
        kind: MetricKind::Counter,
        labels: &["provider", "model", "outcome"],
        help: "Calls that were made beside one that was slow to begin (`llm.hedging`): they won, lost, failed, or were alone after the other one failed.",
    },
    MetricDef {
        name: BREAKER_STATE,
        kind: MetricKind::Gauge,
        labels: &["provider", "model"],
        help: "State of a model's breaker: 0 closed, 1 half-open, 2 open. An open one becomes half-open with the first question after its time.",
    },
    MetricDef {
        name: BREAKER_TRANSITIONS,
        kind: MetricKind::Counter,
        labels: &["provider", "model", "to"],
        help: "Changes of a model's breaker, by the state it changed to: closed, half-open or open.",
    },
    MetricDef {
        name: BREAKER_REFUSALS,
        kind: MetricKind::Counter,
        labels: &["provider", "model"],
        help: "Calls that were not made because the model's breaker did not let them through.",
    },
    MetricDef {
        name: EXHAUSTED,
        kind: MetricKind::Counter,
        labels: &["reason"],
        help: "Questions that no provider of the chain answered, by the class of the last error.",
    },
];

/// Counts a call as under way while it lives, however it ends.
pub(crate) struct InFlight(metrics::Gauge);

impl InFlight {
    pub(crate) fn count(gauge: metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
