//! Metrics of the vector store.

use weir_contracts::{MetricDef, MetricKind};

/// How long calls of Qdrant took.
pub const REQUEST_SECONDS: &str = "weir_qdrant_request_seconds";
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
        help: "Searches that asked again because too few hits were left.",
    },
    MetricDef {
        name: SWEPT_POINTS,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Points removed by a sweep because no head shows or awaits them.",
    },
];
