//! Metrics of the scores.

use weir_contracts::{MetricDef, MetricKind};

/// Distribution of groundedness.
pub const GROUNDEDNESS: &str = "weir_eval_groundedness_ratio";
/// Distribution of citation validity.
pub const CITATION_VALIDITY: &str = "weir_eval_citation_validity_ratio";

/// The list.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: GROUNDEDNESS,
        kind: MetricKind::Histogram,
        labels: &["status"],
        help: "How much of an answer its cited passages support, 0 to 1, by the answer's status.",
    },
    MetricDef {
        name: CITATION_VALIDITY,
        kind: MetricKind::Histogram,
        labels: &["status"],
        help: "Share of an answer's citations that point at a passage, 0 to 1, by the answer's status.",
    },
];
