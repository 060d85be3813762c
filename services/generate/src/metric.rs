//! Metrics of answering.

use weir_contracts::{MetricDef, MetricKind};

/// Answers by status and provenance.
pub const ANSWERS: &str = "weir_generate_answers_total";
/// Time from the question to its answer.
pub const ANSWER_SECONDS: &str = "weir_generate_answer_seconds";
/// Time of each step.
pub const STEP_SECONDS: &str = "weir_generate_step_seconds";
/// Pieces of answers that could not be streamed.
pub const STREAM_FAILURES: &str = "weir_generate_stream_failures_total";

/// The service's own.
pub const METRICS: [MetricDef; 4] = [
    MetricDef {
        name: ANSWERS,
        kind: MetricKind::Counter,
        labels: &["status", "provenance"],
        help: "Answers by status (complete, extractive, no_context, expired, incomplete, failed) and provenance.",
    },
    MetricDef {
        name: ANSWER_SECONDS,
        kind: MetricKind::Histogram,
        labels: &["status"],
        help: "Seconds from the moment a question was asked to its finished answer, waiting included.",
    },
    MetricDef {
        name: STEP_SECONDS,
        kind: MetricKind::Histogram,
        labels: &["step"],
        help: "Seconds a step of answering took: embed, retrieve, extract, model.",
    },
    MetricDef {
        name: STREAM_FAILURES,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Answers whose stream of tokens broke off because Kafka did not take it; the answers themselves are whole.",
    },
];

const PARTS: [&[MetricDef]; 4] =
    [&METRICS, weir_llm::metric::METRICS, weir_models::metric::METRICS, weir_vectors::metric::METRICS];

const COUNT: usize = {
    let [own, llm, models, vectors] = PARTS;
    own.len() + llm.len() + models.len() + vectors.len()
};

/// The service's own and those of the crates it uses.
pub const ALL: [MetricDef; COUNT] = all();

// Evaluated by the compiler, where an index out of range is an error.
#[allow(clippy::indexing_slicing)]
const fn all() -> [MetricDef; COUNT] {
    let mut all = [METRICS[0]; COUNT];
    let (mut at, mut part) = (0, 0);
    while part < PARTS.len() {
        let mut i = 0;
        while i < PARTS[part].len() {
            all[at] = PARTS[part][i];
            at += 1;
            i += 1;
        }
        part += 1;
    }
    all
}
