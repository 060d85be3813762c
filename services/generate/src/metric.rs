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
/// Calls that were under way when their owner was lost.
pub const CALLS_IN_DOUBT: &str = "weir_generate_calls_in_doubt_total";
/// Questions that met a limit of their tenant.
pub const OVER_LIMIT: &str = "weir_generate_over_limit_total";
/// Looks into the cache of answers.
pub const CACHE: &str = "weir_generate_cache_total";
/// Questions that wait for, or got, the answer of another one.
pub const SHARED: &str = "weir_generate_shared_total";
/// Searches that did not answer.
pub const RETRIEVAL_FALLBACKS: &str = "weir_generate_retrieval_fallbacks_total";
/// Alarms of spend.
pub const SPEND_ANOMALIES: &str = "weir_generate_spend_anomalies_total";
/// Alarms of prompts that became longer.
pub const PROMPT_ANOMALIES: &str = "weir_generate_prompt_anomalies_total";
/// Input tokens by the provider's count, as a share of what was reserved for them.
pub const ESTIMATE_RATIO: &str = "weir_generate_estimate_ratio";
/// From a model's last word to the commit that says so.
pub const UNJOURNALED_SECONDS: &str = "weir_generate_unjournaled_seconds";
/// Turns of models that may call tools.
pub const AGENT_TURNS: &str = "weir_generate_agent_turns";
/// Models that a bound stopped.
pub const AGENT_STOPS: &str = "weir_generate_agent_stops_total";
/// Calls of tools.
pub const TOOL_CALLS: &str = "weir_generate_tool_calls_total";
/// Vectors of questions, computed or remembered.
pub const QUERY_VECTORS: &str = "weir_generate_query_vectors_total";
/// Questions that were embedded together.
pub const QUERY_BATCH: &str = "weir_generate_query_batch";
/// Searches whose results were reranked, or were to be.
pub const RERANKS: &str = "weir_generate_reranks_total";
/// Results of tools that were given again.
pub const TOOL_RESULTS_REUSED: &str = "weir_generate_tool_results_reused_total";

/// The service's own.
pub const METRICS: [MetricDef; 20] = [
    MetricDef {
        name: ANSWERS,
        kind: MetricKind::Counter,
        labels: &["status", "provenance"],
        help: "Answers by status (complete, extractive, no_context, expired, incomplete, failed, rejected, conflict) and provenance.",
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
    MetricDef {
        name: CALLS_IN_DOUBT,
        kind: MetricKind::Counter,
        labels: &["as"],
        help: "Calls of models that were under way when their owner was lost, so that nobody knows what came of them: settled \
               where the provider honours idempotency keys, else charged.",
    },
    MetricDef {
        name: OVER_LIMIT,
        kind: MetricKind::Counter,
        labels: &["limit", "decision"],
        help: "Questions that met a limit of their tenant (requests, tokens, concurrency, cost): rejected, or queued.",
    },
    MetricDef {
        name: CACHE,
        kind: MetricKind::Counter,
        labels: &["result"],
        help: "Looks into the cache of answers: hit, similar (the answer of an equivalent question), miss, stale (served because \
               no model answered), unsure (not served, because nobody could say whether its documents are still there).",
    },
    MetricDef {
        name: SHARED,
        kind: MetricKind::Counter,
        labels: &["by"],
        help: "Questions that share the answer of another one: repeat (its idempotency key was answered), joined (they wait \
               for one that is worked on), conflict (the key came with another question).",
    },
    MetricDef {
        name: RETRIEVAL_FALLBACKS,
        kind: MetricKind::Counter,
        labels: &["to"],
        help: "Searches that did not answer in time: answered from the last result (cached), by a model without passages \
               (unaided), or not (none).",
    },
    MetricDef {
        name: SPEND_ANOMALIES,
        kind: MetricKind::Counter,
        labels: &["tenant"],
        help: "Times a tenant's spend of the last ten minutes was far above its baseline for that time of the day.",
    },
    MetricDef {
        name: PROMPT_ANOMALIES,
        kind: MetricKind::Counter,
        labels: &["version"],
        help: "Times the input tokens of a prompt version jumped against the version's own baseline.",
    },
    MetricDef {
        name: ESTIMATE_RATIO,
        kind: MetricKind::Histogram,
        labels: &["provider"],
        help: "Input tokens by the provider's count, as a share of what was reserved for them; above 1 the estimate is too \
               low (llm.providers.<name>.estimate).",
    },
    MetricDef {
        name: UNJOURNALED_SECONDS,
        kind: MetricKind::Histogram,
        labels: &[],
        help: "Seconds from a model's last word to the commit that says so: an owner that is lost in between makes the call \
               again, under the same idempotency key.",
    },
    MetricDef {
        name: AGENT_TURNS,
        kind: MetricKind::Histogram,
        labels: &[],
        help: "Turns of a model with one question for which it may call tools.",
    },
    MetricDef {
        name: AGENT_STOPS,
        kind: MetricKind::Counter,
        labels: &["reason"],
        help: "Models with tools that a bound stopped: turns, tokens, cost, tool-calls, loop.",
    },
    MetricDef {
        name: TOOL_CALLS,
        kind: MetricKind::Counter,
        labels: &["tool", "result"],
        help: "Calls of tools by models: ok, invalid-arguments, failed, timed-out.",
    },
    MetricDef {
        name: QUERY_VECTORS,
        kind: MetricKind::Counter,
        labels: &["from"],
        help: "Vectors of questions: computed (model), or remembered (cache).",
    },
    MetricDef {
        name: QUERY_BATCH,
        kind: MetricKind::Histogram,
        labels: &[],
        help: "Questions that were embedded together.",
    },
    MetricDef {
        name: RERANKS,
        kind: MetricKind::Counter,
        labels: &["result"],
        help: "Searches whose results went to the reranker: ok, or failed, in which case their order stands.",
    },
    MetricDef {
        name: TOOL_RESULTS_REUSED,
        kind: MetricKind::Counter,
        labels: &["tool"],
        help: "Calls of tools that were answered with the result of the same call before.",
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
