//! Metrics of the service, beside the runner's.

use weir_contracts::{MetricDef, MetricKind};

/// Chunks whose vector was kept.
pub const CACHE_HITS: &str = "weir_embed_cache_hits_total";
/// Chunks whose vector had to be computed.
pub const CACHE_MISSES: &str = "weir_embed_cache_misses_total";
/// Vectors dropped to stay within the bound.
pub const CACHE_EVICTIONS: &str = "weir_embed_cache_evictions_total";
/// Room the cache takes on disk.
pub const CACHE_BYTES: &str = "weir_embed_cache_bytes";
/// Times the disk did not do what the cache asked of it.
pub const CACHE_FAILURES: &str = "weir_embed_cache_failures_total";

const OWN: [MetricDef; 5] = [
    MetricDef {
        name: CACHE_HITS,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Chunks whose vector was in the cache, or was computed for the same text in the same batch.",
    },
    MetricDef {
        name: CACHE_MISSES,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Chunks whose vector was not in the cache and had to be computed.",
    },
    MetricDef {
        name: CACHE_EVICTIONS,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Vectors dropped from the cache to stay within `embed.cache_mib`.",
    },
    MetricDef {
        name: CACHE_BYTES,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Bytes the cache takes on disk; at most `embed.cache_mib`.",
    },
    MetricDef {
        name: CACHE_FAILURES,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Times the cache could not be read or written, or was damaged; embedding goes on without it.",
    },
];

const MODEL: &[MetricDef] = weir_models::metric::METRICS;

/// The service's own and the model's.
pub const METRICS: &[MetricDef] = &joined();

// Evaluated by the compiler: out of bounds does not compile.
#[allow(clippy::indexing_slicing)]
const fn joined() -> [MetricDef; OWN.len() + MODEL.len()] {
    let mut all = [OWN[0]; OWN.len() + MODEL.len()];
    let mut i = 0;
    while i < all.len() {
        all[i] = if i < OWN.len() { OWN[i] } else { MODEL[i - OWN.len()] };
        i += 1;
    }
    all
}
