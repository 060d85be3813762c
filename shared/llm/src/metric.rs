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

/// The list.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: CALLS,
        kind: MetricKind::Counter,
        labels: &["provider", "model", "status"],
        help: "Calls of a model; status is ok or the class of the error.",
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
        help: "Seconds from sending a request to the first piece of text.",
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
