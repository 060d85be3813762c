//! Metrics of the service, beside the runner's.

use weir_contracts::{MetricDef, MetricKind};

use crate::formats::Format;

/// Documents by what they were found to be and what became of them.
pub const DOCUMENTS: &str = "weir_ingest_documents_total";
/// Raw bytes of documents.
pub const BYTES: &str = "weir_ingest_document_bytes_total";
/// Time to extract a document.
pub const EXTRACT_SECONDS: &str = "weir_ingest_extract_seconds";
/// Processes that were started to read documents.
pub const WORKERS_STARTED: &str = "weir_ingest_workers_started_total";
/// Processes that ended while they read a document.
pub const WORKERS_LOST: &str = "weir_ingest_workers_lost_total";
/// Processes that read a document now.
pub const WORKERS_BUSY: &str = "weir_ingest_workers_busy";
/// Time to fetch a document from where it lies.
pub const FETCH_SECONDS: &str = "weir_ingest_fetch_seconds";

/// All of them.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: DOCUMENTS,
        kind: MetricKind::Counter,
        labels: &["format", "result"],
        help: "Requests for documents, by format found (unknown if none was) and result: accepted, deleted, duplicate, \
               repeat (of an idempotency key), superseded, retry, or the class of the failure.",
    },
    MetricDef {
        name: BYTES,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Raw bytes of documents that were looked at, inline or fetched.",
    },
    MetricDef {
        name: EXTRACT_SECONDS,
        kind: MetricKind::Histogram,
        labels: &["format"],
        help: "Seconds from the raw bytes of a document to its text, waiting for a process included.",
    },
    MetricDef {
        name: WORKERS_STARTED,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Processes that were started to read documents.",
    },
    MetricDef {
        name: WORKERS_LOST,
        kind: MetricKind::Counter,
        labels: &["reason"],
        help: "Processes that ended while they read a document, by reason: timeout, crash, killed, stopped.",
    },
    MetricDef { name: WORKERS_BUSY, kind: MetricKind::Gauge, labels: &[], help: "Processes that read a document now." },
    MetricDef {
        name: FETCH_SECONDS,
        kind: MetricKind::Histogram,
        labels: &[],
        help: "Seconds to fetch a document that does not travel in its record.",
    },
];

/// Counts a request for a document whose content was found to be of this type; an empty one if none was looked at.
pub(crate) fn count_document(media_type: &str, result: &'static str) {
    use Format::{Csv, Docx, Html, Json, JsonLines, Markdown, Pdf, Plain};
    let format = [Plain, Markdown, Html, Pdf, Docx, Json, JsonLines, Csv]
        .into_iter()
        .find(|format| format.media_type() == media_type)
        .map_or("unknown", Format::label);
    metrics::counter!(DOCUMENTS, "format" => format, "result" => result).increment(1);
}
