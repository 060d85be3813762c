//! How a metric is declared: beside the code that counts it, once, so that documentation can be made of it.

/// What a metric does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// A distribution.
    Histogram,
}

/// A metric: `weir_<name>_<unit>`, counters ending in `_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricDef {
    /// Full name.
    pub name: &'static str,
    /// What it does.
    pub kind: MetricKind,
    /// Names of its labels; every label has a bounded number of values.
    pub labels: &'static [&'static str],
    /// What it says, with the unit.
    pub help: &'static str,
}
