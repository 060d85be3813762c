//! The runner's metrics.

use weir_contracts::MetricDef;

/// Every metric of this crate.
pub const METRICS: &[MetricDef] = &[];
