//! The recorder, and the metrics every process has.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use weir_contracts::{MetricDef, MetricKind};

/// Always 1; the labels say what runs here.
pub const SERVICE_INFO: &str = "weir_service_info";
/// Memory of the process that is in RAM.
pub const RESIDENT: &str = "weir_process_resident_bytes";
/// The most memory of the process that was ever in RAM.
pub const RESIDENT_PEAK: &str = "weir_process_resident_peak_bytes";
/// Processor time.
pub const CPU: &str = "weir_process_cpu_milliseconds_total";
/// Open files, sockets among them.
pub const OPEN_FILES: &str = "weir_process_open_files";
/// Connections to other processes.
pub const CONNECTIONS: &str = "weir_process_connections";
/// Threads.
pub const THREADS: &str = "weir_process_threads";

/// Every metric of this crate.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: SERVICE_INFO,
        kind: MetricKind::Gauge,
        labels: &["service", "version"],
        help: "Always 1; the labels say which service in which version runs here.",
    },
    MetricDef {
        name: RESIDENT,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Memory of the process that is in RAM, bytes.",
    },
    MetricDef {
        name: RESIDENT_PEAK,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "The most memory of the process that was ever in RAM, bytes.",
    },
    MetricDef {
        name: CPU,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Processor time the process used, in user and system mode, milliseconds.",
    },
    MetricDef {
        name: OPEN_FILES,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Open file descriptors, sockets among them.",
    },
    MetricDef {
        name: CONNECTIONS,
        kind: MetricKind::Gauge,
        labels: &["peer"],
        help: "Established TCP connections this process opened, by the address they lead to: the pools of Kafka's \
               clients, registry, Qdrant and providers; addresses beyond the first 32 count as other.",
    },
    MetricDef { name: THREADS, kind: MetricKind::Gauge, labels: &[], help: "Threads of the process." },
];

/// Buckets of durations, seconds: from below a Kafka round trip to a slow model's answer.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

/// Buckets of sizes, bytes: powers of four from 256 B to 64 MiB.
const BYTES: &[f64] =
    &[256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0, 67_108_864.0];

/// Buckets of ratios and scores.
const RATIOS: &[f64] = &[0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];

/// Buckets of everything that is counted: records, tokens, chunks.
const COUNTS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 50_000.0, 250_000.0];

/// Installs the process-wide recorder and describes all metrics of the service.
pub(crate) fn install(service: &'static str, own: &[MetricDef]) -> Result<PrometheusHandle, String> {
    let suffix = |text: &str| Matcher::Suffix(text.to_owned());
    let handle = PrometheusBuilder::new()
        .set_buckets(COUNTS)
        .and_then(|builder| builder.set_buckets_for_metric(suffix("_seconds"), SECONDS))
        .and_then(|builder| builder.set_buckets_for_metric(suffix("_bytes"), BYTES))
        .and_then(|builder| builder.set_buckets_for_metric(suffix("_ratio"), RATIOS))
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| format!("cannot install the recorder of metrics: {error}"))?;
    for (_, definition) in all(service, own) {
        match definition.kind {
            MetricKind::Counter => metrics::describe_counter!(definition.name, definition.help),
            MetricKind::Gauge => metrics::describe_gauge!(definition.name, definition.help),
            MetricKind::Histogram => metrics::describe_histogram!(definition.name, definition.help),
        }
    }
    metrics::gauge!(SERVICE_INFO, "service" => service, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

fn all<'a>(service: &'a str, own: &'a [MetricDef]) -> impl Iterator<Item = (&'a str, &'a MetricDef)> {
    METRICS
        .iter()
        .map(|definition| ("every service", definition))
        .chain(weir_runner::metric::METRICS.iter().map(|definition| ("every stage", definition)))
        .chain(own.iter().map(move |definition| (service, definition)))
}

#[derive(Serialize)]
struct Described<'a> {
    scope: &'a str,
    name: &'a str,
    kind: &'a str,
    labels: &'a [&'a str],
    help: &'a str,
}

/// What `--print-metrics` prints: the source of docs/metrics.md.
pub(crate) fn as_json(service: &str, own: &[MetricDef]) -> serde_json::Result<String> {
    let described: Vec<_> = all(service, own)
        .map(|(scope, definition)| Described {
            scope,
            name: definition.name,
            kind: match definition.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
                MetricKind::Histogram => "histogram",
            },
            labels: definition.labels,
            help: definition.help,
        })
        .collect();
    serde_json::to_string_pretty(&described)
}
