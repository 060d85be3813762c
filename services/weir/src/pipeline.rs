//! The services and their stages, as the local stack runs them and as lag is shown.

use weir_contracts::{RETRY_TIERS, Topic};

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
}

const fn stage(name: &'static str, input: Topic) -> StageDef {
    StageDef { name, input }
}

/// The stage that empties a topic of delayed records has the topic's name.
const fn tier(input: Topic) -> StageDef {
    StageDef { name: input.name(), input }
}

/// The seven services, in the order in which records flow.
pub const SERVICES: &[ServiceDef] = &[
    ServiceDef {
        name: "ingest",
        port: 9101,
        stages: &[stage("route-documents", Topic::DOCUMENT_REQUESTS), stage("extract", Topic::REQUESTS)],
    },
    ServiceDef { name: "chunk", port: 9102, stages: &[stage("chunk", Topic::DOCUMENTS)] },
    ServiceDef { name: "embed", port: 9103, stages: &[stage("embed", Topic::CHUNKS)] },
    ServiceDef { name: "index", port: 9104, stages: &[stage("index", Topic::EMBEDDINGS)] },
    ServiceDef {
        name: "generate",
        port: 9105,
        stages: &[stage("route-questions", Topic::QUESTIONS), stage("answer", Topic::ASKS)],
    },
    ServiceDef { name: "eval", port: 9106, stages: &[stage("eval", Topic::ANSWERS)] },
    ServiceDef {
        name: "retry",
        port: 9107,
        stages: &[tier(RETRY_TIERS[0].0), tier(RETRY_TIERS[1].0), tier(RETRY_TIERS[2].0), tier(RETRY_TIERS[3].0)],
    },
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
