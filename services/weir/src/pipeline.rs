//! The services and their stages, as the local stack runs them and as lag is shown.

use weir_contracts::Topic;

/// A service.
#[derive(Debug, Clone, Copy)]
pub struct ServiceDef {
    /// Name; the binary is `weir-<name>`.
    pub name: &'static str,
    /// Port of `/metrics`, `/healthz` and `/readyz` of its first instance.
    pub port: u16,
    /// Its stages.
    pub stages: &'static [StageDef],
}

/// A stage of a service.
#[derive(Debug, Clone, Copy)]
pub struct StageDef {
    /// Name; the consumer group is `<prefix><name>`, its dead letters are in `<prefix>dlq.<name>`.
    pub name: &'static str,
    /// What it reads.
    pub input: Topic,
    /// Where its dead letters are.
    pub dead_letters: Topic,
}

const fn stage(name: &'static str, input: Topic, dead_letters: &'static str) -> StageDef {
    StageDef { name, input, dead_letters: Topic::custom(dead_letters) }
}

/// The six services, in the order in which records flow.
pub const SERVICES: &[ServiceDef] = &[
    ServiceDef {
        name: "ingest",
        port: 9101,
        stages: &[
            stage("route-documents", Topic::DOCUMENT_REQUESTS, "dlq.route-documents"),
            stage("extract", Topic::REQUESTS, "dlq.extract"),
        ],
    },
    ServiceDef { name: "chunk", port: 9102, stages: &[stage("chunk", Topic::DOCUMENTS, "dlq.chunk")] },
    ServiceDef { name: "embed", port: 9103, stages: &[stage("embed", Topic::CHUNKS, "dlq.embed")] },
    ServiceDef { name: "index", port: 9104, stages: &[stage("index", Topic::EMBEDDINGS, "dlq.index")] },
    ServiceDef {
        name: "generate",
        port: 9105,
        stages: &[
            stage("route-questions", Topic::QUESTIONS, "dlq.route-questions"),
            stage("answer", Topic::ASKS, "dlq.answer"),
        ],
    },
    ServiceDef { name: "eval", port: 9106, stages: &[stage("eval", Topic::ANSWERS, "dlq.eval")] },
];

/// Every stage, in the order in which records flow.
pub fn stages() -> impl Iterator<Item = &'static StageDef> {
    SERVICES.iter().flat_map(|service| service.stages)
}

/// The service of this name.
#[must_use]
pub fn service(name: &str) -> Option<&'static ServiceDef> {
    SERVICES.iter().find(|service| service.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letters_of_a_stage_are_in_the_topic_named_for_it() {
        for stage in stages() {
            assert_eq!(stage.dead_letters.name(), weir_contracts::dead_letter_topic(stage.name));
        }
    }
}
