//! Records, ids, topics and headers of the Weir pipeline. No IO.
//!
//! `schemas/*.avsc` is the truth for what travels; the types here are its Rust face and a test holds the two
//! together. Identifiers are types with parsing constructors: an invalid one cannot exist past the edge.

mod headers;
mod ids;
mod lane;
mod metric;
mod model;
mod names;
mod record;
mod records;
mod revision;
mod time;
mod token_stream;
mod topics;
mod wire;

pub use headers::{Deadline, header};
pub use ids::{
    DocumentId, InvalidId, RequestId, TenantId, dead_letter_id, document_key, job_id, length_prefixed_hash, point_id,
};
pub use lane::{Lane, lane_key, lane_of_key, murmur2};
pub use metric::{MetricDef, MetricKind};
pub use model::are_comparable;
pub use record::{AnyRecord, CodecError, Raw, Record, SchemaDef};
pub use records::{
    Action, Answer, AnswerStatus, AnswerToken, Block, BlockKind, Chunk, ChunkBatch, Citation, Document,
    DocumentRequest, DocumentState, DocumentStatus, EmbeddedChunk, EmbeddingBatch, Evaluation, Job, JobState, LaneStop,
    Limits, OutcomeKind, OverLimit, Price, Provenance, Question, RequestOutcome, StopReason, Tenant, Tier, Usage,
};
pub use revision::{InvalidRevision, Revision};
pub use time::unix_millis;
pub use token_stream::{Shown, TokenStream};
pub use topics::{
    Cleanup, DEFAULT_LANES, DEFAULT_PREFIX, Partitions, RETRY_TIERS, RETURNING, Topic, TopicNames, again_of,
    again_topic, dead_letter_topic,
};
pub use wire::{FrameError, frame, unframe};

/// Every schema in `schemas/`, by file name without `.avsc`.
#[must_use]
pub fn schemas() -> &'static [&'static SchemaDef] {
    records::SCHEMAS
}
