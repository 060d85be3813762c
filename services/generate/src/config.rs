//! Settings.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weir_contracts::MetricDef;
use weir_llm::LlmConfig;
use weir_models::ModelConfig;
use weir_runner::{KafkaConfig, RegistryConfig, RunnerConfig};
use weir_service::{Common, HttpConfig, Invalid, ServiceConfig, TelemetryConfig};
use weir_vectors::QdrantConfig;

use crate::agent::{AgentSection, Agents};
use crate::rerank::{HttpReranker, RerankConfig};

/// Settings of the service.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// How to reach the schema registry.
    pub registry: RegistryConfig,
    /// How the stages are run.
    pub runner: RunnerConfig,
    /// The health server.
    pub http: HttpConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// How to reach Qdrant.
    pub qdrant: QdrantConfig,
    /// The embedding model; the same as the documents'.
    pub model: ModelConfig,
    /// Providers of language models; none by default.
    pub llm: LlmConfig,
    /// How questions are answered.
    pub generate: GenerateConfig,
    /// Models that call tools.
    pub agent: AgentSection,
    /// A model that orders what a search has found; none by default.
    pub rerank: RerankConfig,
}

/// A call of a model mostly waits, and holds little more than a connection.
const DEFAULT_CONCURRENCY: NonZeroUsize = match NonZeroUsize::new(64) {
    Some(questions) => questions,
    None => NonZeroUsize::MIN,
};

/// Section `[generate]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateConfig {
    /// Passages to retrieve for a question that does not say.
    pub top_k: usize,
    /// Passages to retrieve, at most, whatever the question says.
    pub max_top_k: usize,
    /// Milliseconds the vector store has for a search; then it is asked again, `retrieve_attempts` times in all.
    pub retrieve_timeout_ms: u64,
    /// Times a search is tried that gets no answer, before the last result of the same search or none is used.
    pub retrieve_attempts: u32,
    /// Seconds for which the results of searches are remembered, for when the vector store does not answer.
    pub retrieval_cache_s: u64,
    /// Seconds for which a repeat with the same idempotency key gets the same answer.
    pub idempotency_window_s: u64,
    /// Seconds for which an answer is given again to the same question, as long as the same passages are found for it and
    /// prompt and models are the same. 0: never.
    pub cache_fresh_s: u64,
    /// Seconds for which an answer is kept for when no model answers; it is marked stale then, with its age. 0: none is kept.
    pub cache_stale_s: u64,
    /// Milliseconds between signs of life of a question while a model is asked; when one is not committed for three times as
    /// long, the call ends and the question is taken up again.
    pub heartbeat_ms: u64,
    /// Questions worked on side by side, over all lanes of an instance.
    pub concurrency: NonZeroUsize,
    /// Longest question, bytes; a longer one is answered as failed.
    pub max_question_bytes: usize,
    /// Version of the prompt for questions that name none.
    pub prompt_version: String,
    /// Whether a model is asked without passages when the vector store does not answer and nothing is remembered; the answer
    /// is marked degraded, and cites nothing. Else the question is answered as one without context.
    pub answer_unaided: bool,
    /// Version of the prompt `unaided`, for answers without passages.
    pub unaided_prompt_version: String,
    /// Folder with further versions of the prompts, `<template>/<version>.toml`; they come before built-in ones of the same
    /// name. It must have answers: `answer/`.
    pub prompts_dir: Option<PathBuf>,
    /// Tokens of an answer, at most.
    pub max_output_tokens: u32,
    /// Temperature of the model, 0 to 2.
    pub temperature: f32,
    /// Cosine of question and best passage below which nothing is relevant, unless enough of the question's words occur
    /// in a passage. It belongs to the embedding model.
    pub min_similarity: f64,
    /// Share of the question's content words, by rarity, that make a passage relevant whatever its cosine.
    pub min_word_share: f64,
    /// Extractive answers: sentences, at most.
    pub extract_sentences: usize,
    /// Extractive answers: sentences that are embedded to find the best, at most. Decides their latency.
    pub extract_candidates: usize,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            top_k: 6,
            max_top_k: 20,
            retrieve_timeout_ms: 500,
            retrieve_attempts: 3,
            retrieval_cache_s: 60,
            idempotency_window_s: 86_400,
            cache_fresh_s: 3_600,
            cache_stale_s: 86_400,
            heartbeat_ms: 5_000,
            concurrency: DEFAULT_CONCURRENCY,
            max_question_bytes: 8 << 10,
            prompt_version: "v1".into(),
            answer_unaided: true,
            unaided_prompt_version: "v1".into(),
            prompts_dir: None,
            max_output_tokens: 512,
            temperature: 0.0,
            min_similarity: 0.25,
            min_word_share: 0.6,
            extract_sentences: 3,
            extract_candidates: 12,
        }
    }
}

impl GenerateConfig {
    fn validate(&self) -> Result<(), Invalid> {
        for (key, value) in [
            ("generate.top_k", self.top_k),
            ("generate.max_top_k", self.max_top_k),
            ("generate.max_question_bytes", self.max_question_bytes),
            ("generate.extract_sentences", self.extract_sentences),
        ] {
            if value == 0 {
                return Err(Invalid::new(key, "must be at least 1"));
            }
        }
        for (key, value) in [
            ("generate.retrieve_timeout_ms", self.retrieve_timeout_ms),
            ("generate.retrieve_attempts", self.retrieve_attempts.into()),
            ("generate.heartbeat_ms", self.heartbeat_ms),
        ] {
            if value == 0 {
                return Err(Invalid::new(key, "must be at least 1"));
            }
        }
        if self.cache_fresh_s > self.cache_stale_s {
            return Err(Invalid::new("generate.cache_fresh_s", "must not be above generate.cache_stale_s"));
        }
        if self.top_k > self.max_top_k {
            return Err(Invalid::new("generate.top_k", "must not be above generate.max_top_k"));
        }
        if self.extract_candidates < self.extract_sentences {
            return Err(Invalid::new("generate.extract_candidates", "must not be below generate.extract_sentences"));
        }
        if self.max_output_tokens == 0 {
            return Err(Invalid::new("generate.max_output_tokens", "must be at least 1"));
        }
        if !(0.0..=2.0).contains(&self.temperature) {
            return Err(Invalid::new("generate.temperature", "must lie between 0 and 2"));
        }
        for (key, value) in
            [("generate.min_similarity", self.min_similarity), ("generate.min_word_share", self.min_word_share)]
        {
            if !(0.0..=1.0).contains(&value) {
                return Err(Invalid::new(key, "must lie between 0 and 1"));
            }
        }
        Ok(())
    }
}

impl ServiceConfig for Config {
    const NAME: &'static str = "generate";
    const ABOUT: &'static str = "Answers questions with citations.";
    const PORT: u16 = 9105;
    const METRICS: &'static [MetricDef] = &crate::metric::ALL;

    fn common(&self) -> Common<'_> {
        Common {
            kafka: &self.kafka,
            registry: &self.registry,
            runner: &self.runner,
            http: &self.http,
            telemetry: &self.telemetry,
        }
    }

    fn validate(&self) -> Result<(), Invalid> {
        self.generate.validate()?;
        HttpReranker::new(&self.rerank).map_err(|error| Invalid::new("rerank", error))?;
        Agents::new(&self.agent).map_err(|error| Invalid::new("agent", error))?;
        self.llm.ordered().map(|_| ()).map_err(|error| Invalid::new("llm", error))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_slips_are_refused() {
        assert_eq!(Config::default().validate(), Ok(()));
        let mut config = Config::default();
        config.generate.top_k = 30;
        assert_eq!(config.validate().unwrap_err().key, "generate.top_k");
        let mut config = Config::default();
        config.llm.chain = vec!["nobody".into()];
        assert_eq!(config.validate().unwrap_err().key, "llm");
    }
}
