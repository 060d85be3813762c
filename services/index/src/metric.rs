//! Metrics of the service, beside the runner's.

use weir_contracts::{MetricDef, MetricKind};

/// Documents by the state they reached.
pub const DOCUMENTS: &str = "weir_index_documents_total";
/// Chunks that were written.
pub const POINTS: &str = "weir_index_points_total";
/// From a request to the moment its document can be found.
pub const SEARCHABLE_SECONDS: &str = "weir_index_searchable_seconds";

const OWN: [MetricDef; 3] = [
    MetricDef {
        name: DOCUMENTS,
        kind: MetricKind::Counter,
        labels: &["state"],
        help: "Sets of chunks by what became of them: indexed, deleted, failed or superseded. A repetition after a \
               crash counts again when it moves a head or fails.",
    },
    MetricDef {
        name: POINTS,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Chunks written to Qdrant, repetitions included.",
    },
    MetricDef {
        name: SEARCHABLE_SECONDS,
        kind: MetricKind::Histogram,
        labels: &[],
        help: "Time from the request to the moment its document can be found, or no more, seconds.",
    },
];

const STORE: &[MetricDef] = weir_vectors::metric::METRICS;

/// The service's own and the vector store's.
pub const METRICS: &[MetricDef] = &joined();

// Evaluated by the compiler: out of bounds does not compile.
#[allow(clippy::indexing_slicing)]
const fn joined() -> [MetricDef; OWN.len() + STORE.len()] {
    let mut all = [OWN[0]; OWN.len() + STORE.len()];
    let mut i = 0;
    while i < all.len() {
        all[i] = if i < OWN.len() { OWN[i] } else { STORE[i - OWN.len()] };
        i += 1;
    }
    all
}
