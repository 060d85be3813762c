//! Metrics of the service, beside the runner's.

use weir_contracts::{MetricDef, MetricKind};

/// Chunks that were made.
pub const CHUNKS: &str = "weir_chunk_chunks_total";
/// Length of the chunks.
pub const TOKENS: &str = "weir_chunk_tokens";
/// Bytes of text that were split.
pub const BYTES: &str = "weir_chunk_text_bytes_total";

/// All of them.
pub const METRICS: &[MetricDef] = &[
    MetricDef { name: CHUNKS, kind: MetricKind::Counter, labels: &[], help: "Chunks that were made." },
    MetricDef {
        name: TOKENS,
        kind: MetricKind::Histogram,
        labels: &[],
        help: "Tokens of the embedding model in a chunk, overlap included.",
    },
    MetricDef { name: BYTES, kind: MetricKind::Counter, labels: &[], help: "Bytes of text that were split." },
];
