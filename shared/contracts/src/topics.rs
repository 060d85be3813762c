//! Names of the topics.

use std::fmt;

/// Prefix of every topic unless configured otherwise.
pub const DEFAULT_PREFIX: &str = "weir.";

/// Lanes unless configured otherwise.
pub const DEFAULT_LANES: i32 = 12;

/// A topic of the pipeline, without the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(&'static str);

impl Topic {
    /// Document requests as producers write them.
    pub const DOCUMENT_REQUESTS: Topic = Topic("document-requests");
    /// Questions as producers write them.
    pub const QUESTIONS: Topic = Topic("questions");
    /// Document requests in their lanes.
    pub const REQUESTS: Topic = Topic("requests");
    /// Questions in their tenant's home lane.
    pub const ASKS: Topic = Topic("asks");
    /// Extracted text: the source of truth.
    pub const DOCUMENTS: Topic = Topic("documents");
    /// Batches of chunks.
    pub const CHUNKS: Topic = Topic("chunks");
    /// Batches of chunks with vectors.
    pub const EMBEDDINGS: Topic = Topic("embeddings");
    /// The one final outcome of each document request.
    pub const REQUEST_OUTCOMES: Topic = Topic("request-outcomes");
    /// Latest state of each document.
    pub const DOCUMENT_STATUS: Topic = Topic("document-status");
    /// Answers.
    pub const ANSWERS: Topic = Topic("answers");
    /// Pieces of answers while they stream.
    pub const ANSWER_TOKENS: Topic = Topic("answer-tokens");
    /// Scores of answers.
    pub const EVALUATIONS: Topic = Topic("evaluations");
    /// One record a model call.
    pub const USAGE: Topic = Topic("usage");
    /// Configuration of the tenants.
    pub const TENANTS: Topic = Topic("tenants");
    /// Lanes that are stopped until somebody resumes them.
    pub const LANES: Topic = Topic("lanes");
    /// Long pieces of work, with their checkpoints.
    pub const JOBS: Topic = Topic("jobs");

    /// A topic of a custom service.
    #[must_use]
    pub const fn custom(name: &'static str) -> Self {
        Self(name)
    }

    /// Name without the prefix.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Name, without prefix, of the topic that keeps a stage's dead letters.
#[must_use]
pub fn dead_letter_topic(stage: &str) -> String {
    format!("dlq.{stage}")
}

/// Name, without prefix, of the topic through which records return to a stage from retry and replay.
#[must_use]
pub fn again_topic(stage: &str) -> String {
    format!("{stage}.again")
}

/// Stages that records return to, and the topics they return through.
pub const RETURNING: [(&str, Topic); 8] = [
    ("route-documents", Topic("route-documents.again")),
    ("extract", Topic("extract.again")),
    ("chunk", Topic("chunk.again")),
    ("embed", Topic("embed.again")),
    ("index", Topic("index.again")),
    ("route-questions", Topic("route-questions.again")),
    ("answer", Topic("answer.again")),
    ("eval", Topic("eval.again")),
];

/// The topic through which records return to a stage of the pipeline.
#[must_use]
pub fn again_of(stage: &str) -> Option<Topic> {
    RETURNING.iter().find(|(name, _)| *name == stage).map(|(_, topic)| *topic)
}

/// Topics in which records wait before they are tried again, with their delays in milliseconds.
pub const RETRY_TIERS: [(Topic, u64); 4] =
    [(Topic("retry.1s"), 1_000), (Topic("retry.2s"), 2_000), (Topic("retry.4s"), 4_000), (Topic("retry.8s"), 8_000)];

/// Turns a topic into its name on the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicNames {
    prefix: String,
}

impl TopicNames {
    /// Names with this prefix, for example `weir.`; dots and hyphens only, since Kafka's metrics confuse `.` and `_`.
    #[must_use]
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// Name on the cluster.
    #[must_use]
    pub fn full(&self, topic: Topic) -> String {
        self.full_name(topic.name())
    }

    /// Name on the cluster of a topic known by its text.
    #[must_use]
    pub fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The prefix.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

/// How many partitions a topic has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Partitions {
    /// One for each lane.
    Lanes,
    /// Before the routers: as many as there are lanes, but with no meaning.
    Routers,
    /// A single one.
    One,
}

/// What Kafka removes from a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cleanup {
    /// What is older than the retention.
    Delete,
    /// What was replaced by a later record of the same key.
    Compact,
}
