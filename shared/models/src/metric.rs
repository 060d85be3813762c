//! What the models count.

use weir_contracts::{MetricDef, MetricKind};

/// Tokens embedded, special tokens included.
pub const EMBEDDED_TOKENS: &str = "weir_embedded_tokens_total";
/// Texts embedded.
pub const EMBEDDED_TEXTS: &str = "weir_embedded_texts_total";
/// Seconds of a call to the model.
pub const EMBED_SECONDS: &str = "weir_embed_seconds";
/// Tokens computed at once.
pub const EMBED_BATCH_TOKENS: &str = "weir_embed_batch_tokens";
/// Times the device ran out of memory.
pub const EMBED_OUT_OF_MEMORY: &str = "weir_embed_out_of_memory_total";
/// Tokens that may be computed at once, as it stands.
pub const EMBED_TOKEN_BUDGET: &str = "weir_embed_token_budget_tokens";
/// Share of the time in which the GPU is busy.
pub const GPU_UTILIZATION: &str = "weir_gpu_utilization_ratio";
/// Memory of the GPU in use.
pub const GPU_MEMORY_USED: &str = "weir_gpu_memory_used_bytes";
/// Memory of the GPU.
pub const GPU_MEMORY: &str = "weir_gpu_memory_bytes";

/// Everything above.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: EMBEDDED_TOKENS,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Tokens embedded, special tokens included.",
    },
    MetricDef { name: EMBEDDED_TEXTS, kind: MetricKind::Counter, labels: &[], help: "Texts embedded." },
    MetricDef {
        name: EMBED_SECONDS,
        kind: MetricKind::Histogram,
        labels: &[],
        help: "Seconds from texts to vectors, for each call to the model.",
    },
    MetricDef {
        name: EMBED_BATCH_TOKENS,
        kind: MetricKind::Histogram,
        labels: &[],
        help: "Tokens the model computes at once.",
    },
    MetricDef {
        name: EMBED_OUT_OF_MEMORY,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Times the device ran out of memory and the batch was halved.",
    },
    MetricDef {
        name: EMBED_TOKEN_BUDGET,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Tokens that may be computed at once; halved whenever the device runs out of memory.",
    },
    MetricDef {
        name: GPU_UTILIZATION,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Share of the time in which the GPU is busy, 0 to 1; absent without a GPU.",
    },
    MetricDef {
        name: GPU_MEMORY_USED,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Bytes of the GPU's memory in use, by all processes; absent without a GPU.",
    },
    MetricDef {
        name: GPU_MEMORY,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Bytes of the GPU's memory; absent without a GPU.",
    },
];
