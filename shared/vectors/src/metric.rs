//! Metrics of the vector store.

use weir_contracts::{MetricDef, MetricKind};

/// How long calls of Qdrant took.
pub const REQUEST_SECONDS: &str = "weir_qdrant_request_seconds";
/// Calls of Qdrant that are under way.
pub const REQUESTS_IN_FLIGHT: &str = "weir_qdrant_requests_in_flight";
/// Hits that no head vouched for.
pub const HIDDEN_HITS: &str = "weir_retrieval_hidden_hits_total";
/// Searches that had to ask again.
pub const SECOND_ASKS: &str = "weir_retrieval_second_asks_total";
/// How long searches took, with the look at the heads.
pub const RETRIEVAL_SECONDS: &str = "weir_retrieval_seconds";
/// Points a sweep removed.
pub const SWEPT_POINTS: &str = "weir_index_swept_points_total";

/// Every metric of this crate.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: REQUEST_SECONDS,
        kind: MetricKind::Histogram,
        labels: &["call", "result"],
        help: "Duration of calls of Qdrant, seconds; result is ok, unavailable or refused.",
    },
    MetricDef {
        name: REQUESTS_IN_FLIGHT,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Calls of Qdrant under way; they share the connections to it.",
    },
    MetricDef {
        name: RETRIEVAL_SECONDS,
        kind: MetricKind::Histogram,
        labels: &["mode"],
        help: "Duration of searches with the look at the heads, seconds; mode is dense, sparse or hybrid.",
    },
    MetricDef {
        name: HIDDEN_HITS,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Hits dropped because the document's head does not show their revision.",
    },
    MetricDef {
        name: SECOND_ASKS,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Times a search asked again: too few hits were left, or a document was changing.",
    },
    MetricDef {
        name: SWEPT_POINTS,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Points removed by a sweep because no head shows or awaits them.",
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
