//! The records of `schemas/*.avsc`, field by field.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::record::{CodecError, Record, SchemaDef, decode_avro, encode_avro};
use crate::{DocumentId, Lane, RequestId, Revision, TenantId};

macro_rules! avro_record {
    ($type:ty, $schema:ident) => {
        impl Record for $type {
            fn schema() -> Option<&'static SchemaDef> {
                Some(&$schema)
            }

            fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
                encode_avro(&$schema, self, out)
            }

            fn decode(writer: Option<&apache_avro::Schema>, body: &[u8]) -> Result<Self, CodecError> {
                decode_avro(&$schema, writer, body)
            }
        }
    };
}

pub(crate) static SCHEMAS: &[&SchemaDef] = &[
    &DOCUMENT_REQUEST,
    &DOCUMENT,
    &CHUNK_BATCH,
    &EMBEDDING_BATCH,
    &REQUEST_OUTCOME,
    &DOCUMENT_STATUS,
    &QUESTION,
    &ANSWER,
    &ANSWER_TOKEN,
    &EVALUATION,
    &USAGE,
    &TENANT,
    &LANE_STOP,
    &JOB,
];

/// Store (or replace) the document, or delete it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// `upsert`
    Upsert,
    /// `delete`
    Delete,
}

/// A producer asks for a document to be stored or deleted. In topics document-requests (any key, any partition) and requests (keyed tenant/document, in its lane).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DocumentRequest {
    /// Id the producer gave its request, unique per tenant.
    pub request_id: RequestId,
    /// Tenant the record belongs to; [a-z0-9-]{1,63}.
    pub tenant: TenantId,
    /// The tenant's own id of the document, 1 to 512 bytes of UTF-8.
    pub document: DocumentId,
    /// Store (or replace) the document, or delete it.
    pub action: Action,
    /// The raw bytes of the document; null for a delete or when content_uri is set. At most 1 MiB.
    #[serde(with = "apache_avro::serde::bytes_opt")]
    pub content: Option<Vec<u8>>,
    /// Where the raw bytes lie (claim check), when they are too large for a record: file:// or s3:// or any allow-listed URL.
    pub content_uri: Option<String>,
    /// Media type the producer believes the content has. A hint: the content is sniffed.
    pub content_type: Option<String>,
    /// Title to show in citations; extracted from the content when null.
    pub title: Option<String>,
    /// Free key-value pairs, carried to every chunk, usable as filters of a question.
    pub metadata: BTreeMap<String, String>,
    /// A repeat with the same key returns the first outcome.
    pub idempotency_key: Option<String>,
    /// When the request was made, milliseconds since the Unix epoch, UTC.
    pub created_at: i64,
}

static DOCUMENT_REQUEST: SchemaDef =
    SchemaDef::new("document-request", include_str!("../../../schemas/document-request.avsc"));
avro_record!(DocumentRequest, DOCUMENT_REQUEST);

/// What the element is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// `heading`
    Heading,
    /// `paragraph`
    Paragraph,
    /// `list`
    List,
    /// `code`
    Code,
    /// `table`
    Table,
}

/// One structural element of the text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// What the element is.
    pub kind: BlockKind,
    /// Heading level 1 to 6; 0 for everything else.
    pub level: i32,
    /// First byte of the element in text.
    pub start: i64,
    /// Byte after the last one of the element in text.
    pub end: i64,
}

/// The extracted text of one revision of a document, or its deletion. In topic documents, compacted, keyed tenant/document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// Tenant the record belongs to; [a-z0-9-]{1,63}.
    pub tenant: TenantId,
    /// The tenant's own id of the document, 1 to 512 bytes of UTF-8.
    pub document: DocumentId,
    /// Rises with every accepted change of the document: placement epoch * 2^40 + offset of the request in its lane's requests topic.
    pub revision: Revision,
    /// Id the producer gave its request, unique per tenant.
    pub request_id: RequestId,
    /// True when this revision deletes the document; then text is empty.
    pub deleted: bool,
    /// Title for citations.
    pub title: Option<String>,
    /// Extracted text, UTF-8, line breaks normalised to \n. Byte ranges everywhere refer to this text.
    pub text: String,
    /// Structure of the text, in order, not overlapping; may be empty.
    pub blocks: Vec<Block>,
    /// SHA-256 over the raw bytes, the metadata and the extractor version, in hex.
    pub content_hash: String,
    /// Media type that was found by looking at the content.
    pub content_type: String,
    /// Name and version of the extractor.
    pub extractor: String,
    /// As in the request.
    pub metadata: BTreeMap<String, String>,
    /// When the request was made, milliseconds since the Unix epoch, UTC.
    pub requested_at: i64,
}

static DOCUMENT: SchemaDef = SchemaDef::new("document", include_str!("../../../schemas/document.avsc"));
avro_record!(Document, DOCUMENT);

/// A piece of a document that fits the embedding model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// Position of the chunk in its document, from 0.
    pub ordinal: i32,
    /// Text of the chunk: exactly text[start..end] of the document.
    pub text: String,
    /// Headings above the chunk, outermost first.
    pub heading_path: Vec<String>,
    /// Length in tokens of the embedding model, without special tokens.
    pub tokens: i32,
    /// First byte in the document's text.
    pub start: i64,
    /// Byte after the last one in the document's text.
    pub end: i64,
}

/// Some chunks of one revision of a document: batch `batch` of `batches`. In topic chunks, keyed tenant/document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChunkBatch {
    /// Tenant the record belongs to; [a-z0-9-]{1,63}.
    pub tenant: TenantId,
    /// The tenant's own id of the document, 1 to 512 bytes of UTF-8.
    pub document: DocumentId,
    /// Rises with every accepted change of the document: placement epoch * 2^40 + offset of the request in its lane's requests topic.
    pub revision: Revision,
    /// Id the producer gave its request, unique per tenant.
    pub request_id: RequestId,
    /// True when this revision deletes the document; then there are no chunks.
    pub deleted: bool,
    /// Id of what made this set of chunks: chunker, its settings, embedding model, dimension. A set with another build starts anew.
    pub build: String,
    /// Number of this batch, from 0.
    pub batch: i32,
    /// Batches of this revision in all, at least 1: a document without text has one empty batch.
    pub batches: i32,
    /// Chunks of this revision in all.
    pub total_chunks: i32,
    /// Title for citations.
    pub title: Option<String>,
    /// As in the request.
    pub metadata: BTreeMap<String, String>,
    /// When the request was made, milliseconds since the Unix epoch, UTC.
    pub requested_at: i64,
    /// Why this batch, or with batch 0 of 1 perhaps all of the revision, is a dead letter: stage, class and reason. Then it has no chunks, title or metadata, and total_chunks is at least 1. Null when nothing is wrong.
    pub failure: Option<String>,
    /// The chunks of this batch, in order.
    pub chunks: Vec<Chunk>,
}

static CHUNK_BATCH: SchemaDef = SchemaDef::new("chunk-batch", include_str!("../../../schemas/chunk-batch.avsc"));
avro_record!(ChunkBatch, CHUNK_BATCH);

/// A chunk and its vector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbeddedChunk {
    /// Position of the chunk in its document, from 0.
    pub ordinal: i32,
    /// Text of the chunk: exactly text[start..end] of the document.
    pub text: String,
    /// Headings above the chunk, outermost first.
    pub heading_path: Vec<String>,
    /// Length in tokens of the embedding model, without special tokens.
    pub tokens: i32,
    /// First byte in the document's text.
    pub start: i64,
    /// Byte after the last one in the document's text.
    pub end: i64,
    /// Unit-length vector: dimension little-endian IEEE 754 single-precision numbers.
    #[serde(with = "apache_avro::serde::bytes")]
    pub vector: Vec<u8>,
}

/// A chunk batch with a vector for each chunk. In topic embeddings, keyed tenant/document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingBatch {
    /// Tenant the record belongs to; [a-z0-9-]{1,63}.
    pub tenant: TenantId,
    /// The tenant's own id of the document, 1 to 512 bytes of UTF-8.
    pub document: DocumentId,
    /// Rises with every accepted change of the document: placement epoch * 2^40 + offset of the request in its lane's requests topic.
    pub revision: Revision,
    /// Id the producer gave its request, unique per tenant.
    pub request_id: RequestId,
    /// True when this revision deletes the document; then there are no chunks.
    pub deleted: bool,
    /// Id of what made this set of chunks: chunker, its settings, embedding model, dimension. A set with another build starts anew.
    pub build: String,
    /// Number of this batch, from 0.
    pub batch: i32,
    /// Batches of this revision in all, at least 1: a document without text has one empty batch.
    pub batches: i32,
    /// Chunks of this revision in all.
    pub total_chunks: i32,
    /// Title for citations.
    pub title: Option<String>,
    /// As in the request.
    pub metadata: BTreeMap<String, String>,
    /// When the request was made, milliseconds since the Unix epoch, UTC.
    pub requested_at: i64,
    /// Embedding model: id@revision/precision.
    pub model: String,
    /// Components of each vector.
    pub dimension: i32,
    /// Why this batch, or with batch 0 of 1 perhaps all of the revision, is a dead letter: stage, class and reason. Then it has no chunks, title or metadata, and total_chunks is at least 1. Null when nothing is wrong.
    pub failure: Option<String>,
    /// The chunks of this batch, in order.
    pub chunks: Vec<EmbeddedChunk>,
}

static EMBEDDING_BATCH: SchemaDef =
    SchemaDef::new("embedding-batch", include_str!("../../../schemas/embedding-batch.avsc"));
avro_record!(EmbeddingBatch, EMBEDDING_BATCH);

/// What became of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// `accepted`
    Accepted,
    /// `duplicate`
    Duplicate,
    /// `superseded`
    Superseded,
    /// `conflict`
    Conflict,
    /// `rejected`
    Rejected,
}

/// The one final outcome of a document request. In topic request-outcomes, keyed by request id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestOutcome {
    /// Id the producer gave its request, unique per tenant.
    pub request_id: RequestId,
    /// Tenant the record belongs to; [a-z0-9-]{1,63}.
    pub tenant: TenantId,
    /// The tenant's own id of the document, 1 to 512 bytes of UTF-8.
    pub document: DocumentId,
    /// What became of the request.
    pub outcome: OutcomeKind,
    /// Why, in words for a person; set unless accepted.
    pub reason: Option<String>,
    /// Revision the document has because of this request (or already had, for a duplicate).
    pub revision: Option<Revision>,
    /// When it was decided, milliseconds since the Unix epoch, UTC.
    pub at: i64,
}

static REQUEST_OUTCOME: SchemaDef =
    SchemaDef::new("request-outcome", include_str!("../../../schemas/request-outcome.avsc"));
avro_record!(RequestOutcome, REQUEST_OUTCOME);

/// State of this revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DocumentState {
    /// `indexed`
    Indexed,
    /// `deleted`
    Deleted,
    /// `failed`
    Failed,
}

/// The latest state of a document. In topic document-status, compacted, keyed tenant/document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DocumentStatus {
    /// Tenant the record belongs to; [a-z0-9-]{1,63}.
    pub tenant: TenantId,
    /// The tenant's own id of the document, 1 to 512 bytes of UTF-8.
    pub document: DocumentId,
    /// Rises with every accepted change of the document: placement epoch * 2^40 + offset of the request in its lane's requests topic.
    pub revision: Revision,
    /// Id the producer gave its request, unique per tenant.
    pub request_id: RequestId,
    /// State of this revision.
    pub state: DocumentState,
    /// Chunks that can be found.
    pub chunks: i32,
    /// Why it failed.
    pub reason: Option<String>,
    /// When the request was made, milliseconds since the Unix epoch, UTC.
    pub requested_at: i64,
    /// When the state was reached, milliseconds since the Unix epoch, UTC.
    pub at: i64,
}

static DOCUMENT_STATUS: SchemaDef =
    SchemaDef::new("document-status", include_str!("../../../schemas/document-status.avsc"));
avro_record!(DocumentStatus, DOCUMENT_STATUS);

/// A question to be answered from a tenant's documents. In topics questions (any key) and asks (keyed by tenant, in its home lane).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// Id the producer gave its request, unique per tenant.
    pub request_id: RequestId,
    /// Tenant the record belongs to; [a-z0-9-]{1,63}.
    pub tenant: TenantId,
    /// The question, in plain words.
    pub question: String,
    /// When an answer is of no use any more, milliseconds since the Unix epoch, UTC.
    pub deadline: Option<i64>,
    /// A repeat with the same key returns the first answer.
    pub idempotency_key: Option<String>,
    /// What part of the application asks; for accounting.
    pub feature: Option<String>,
    /// Only documents whose metadata has all these values are considered.
    pub filter: BTreeMap<String, String>,
    /// Prompt template to use; the service's default when null.
    pub prompt_version: Option<String>,
    /// Passages to retrieve; the service's default when null.
    pub top_k: Option<i32>,
    /// Whether the model may call tools to answer: search, read documents, calculate, and those of the configuration. Takes longer and costs more, within the bounds of the configuration.
    pub agent: bool,
    /// When the question was asked, milliseconds since the Unix epoch, UTC.
    pub created_at: i64,
}

static QUESTION: SchemaDef = SchemaDef::new("question", include_str!("../../../schemas/question.avsc"));
avro_record!(Question, QUESTION);

/// complete: written by a model. extractive: sentences taken from the documents, no model was reached or configured. no_context: nothing relevant was found. expired: the deadline had passed. incomplete: the model's stream broke off. failed: see reason. rejected: a limit of the tenant was reached, see retry_after_ms. conflict: the idempotency key came with another question before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerStatus {
    /// `complete`
    Complete,
    /// `extractive`
    Extractive,
    /// `no_context`
    NoContext,
    /// `expired`
    Expired,
    /// `incomplete`
    Incomplete,
    /// `failed`
    Failed,
    /// `rejected`
    Rejected,
    /// `conflict`
    Conflict,
}

/// Where the answer comes from; an extractive answer in place of a model's is degraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provenance {
    /// `fresh`
    Fresh,
    /// `cached`
    Cached,
    /// `stale`
    Stale,
    /// `degraded`
    Degraded,
}

/// A passage that supports the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Citation {
    /// The n of [n] in the text.
    pub marker: i32,
    /// The tenant's own id of the document, 1 to 512 bytes of UTF-8.
    pub document: DocumentId,
    /// Title of the document.
    pub title: Option<String>,
    /// Rises with every accepted change of the document: placement epoch * 2^40 + offset of the request in its lane's requests topic.
    pub revision: Revision,
    /// Chunk of the document.
    pub ordinal: i32,
    /// First byte of the passage in the document's text.
    pub start: i64,
    /// Byte after the last one.
    pub end: i64,
    /// The text of the passage.
    pub passage: String,
    /// Score of the retrieval; comparable within one answer only.
    pub score: f64,
}

/// The answer to a question. In topic answers, keyed by request id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Id the producer gave its request, unique per tenant.
    pub request_id: RequestId,
    /// Tenant the record belongs to; [a-z0-9-]{1,63}.
    pub tenant: TenantId,
    /// complete: written by a model. extractive: sentences taken from the documents, no model was reached or configured. no_context: nothing relevant was found. expired: the deadline had passed. incomplete: the model's stream broke off. failed: see reason. rejected: a limit of the tenant was reached, see retry_after_ms. conflict: the idempotency key came with another question before.
    pub status: AnswerStatus,
    /// Where the answer comes from; an extractive answer in place of a model's is degraded.
    pub provenance: Provenance,
    /// The answer; citations appear in it as [n].
    pub text: String,
    /// The passages that were cited.
    pub citations: Vec<Citation>,
    /// Why the answer is not complete, in words for a person.
    pub reason: Option<String>,
    /// Name of the provider that answered; empty when none did.
    pub provider: String,
    /// Model that wrote the answer; empty when none did.
    pub model: String,
    /// Prompt template that was used.
    pub prompt_version: String,
    /// Tokens sent to the model.
    pub input_tokens: i64,
    /// Tokens the model wrote.
    pub output_tokens: i64,
    /// True when the provider did not report the tokens and they were counted here.
    pub usage_estimated: bool,
    /// Cost by the configured prices, US dollars.
    pub cost_usd: f64,
    /// Attempt whose tokens in answer-tokens make up this answer; 0 when nothing was streamed.
    pub attempt: i32,
    /// Calls of models that were made for it, those of a crashed owner included.
    pub attempts: i32,
    /// How long ago a cached or stale answer was written, milliseconds; null for one written for this request.
    pub age_ms: Option<i64>,
    /// The request whose work this answer is, when it is that of another one: the same idempotency key, or the same question at the same time.
    pub answered_with: Option<RequestId>,
    /// When a rejected request may be sent again, milliseconds from at; null when time alone does not help.
    pub retry_after_ms: Option<i64>,
    /// SHA-256 of text, in hex.
    pub text_hash: String,
    /// Milliseconds by step (retrieve, model, first_token, total), as decimal numbers.
    pub timings: BTreeMap<String, String>,
    /// The question, for scoring.
    pub question: String,
    /// When the question was asked, milliseconds since the Unix epoch, UTC.
    pub asked_at: i64,
    /// When the answer was finished, milliseconds since the Unix epoch, UTC.
    pub at: i64,
}

static ANSWER: SchemaDef = SchemaDef::new("answer", include_str!("../../../schemas/answer.avsc"));
avro_record!(Answer, ANSWER);

/// A piece of an answer while it streams. In topic answer-tokens, keyed by request id. Readers follow the highest attempt; only the record in answers ends a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnswerToken {
    /// Id the producer gave its request, unique per tenant.
    pub request_id: RequestId,
    /// Tenant the record belongs to; [a-z0-9-]{1,63}.
    pub tenant: TenantId,
    /// Attempt the piece belongs to, from 1.
    pub attempt: i32,
    /// Position in the attempt, from 0.
    pub sequence: i32,
    /// The text to append.
    pub delta: String,
}

static ANSWER_TOKEN: SchemaDef = SchemaDef::new("answer-token", include_str!("../../../schemas/answer-token.avsc"));
avro_record!(AnswerToken, ANSWER_TOKEN);

/// Scores of one answer. In topic evaluations, keyed by request id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Id the producer gave its request, unique per tenant.
    pub request_id: RequestId,
    /// Tenant the record belongs to; [a-z0-9-]{1,63}.
    pub tenant: TenantId,
    /// Status of the answer that was scored.
    pub answer_status: String,
    /// Share of the citations in the text that point at a retrieved passage, 0 to 1; null without citations.
    pub citation_validity: Option<f64>,
    /// How much of the answer the cited passages support, 0 to 1; null when there is nothing to score.
    pub groundedness: Option<f64>,
    /// Name and version of the scorer.
    pub evaluator: String,
    /// Prompt template of the answer.
    pub prompt_version: String,
    /// When it was scored, milliseconds since the Unix epoch, UTC.
    pub at: i64,
}

static EVALUATION: SchemaDef = SchemaDef::new("evaluation", include_str!("../../../schemas/evaluation.avsc"));
avro_record!(Evaluation, EVALUATION);

/// One call of a model. In topic usage, keyed by tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Id the producer gave its request, unique per tenant.
    pub request_id: RequestId,
    /// Tenant the record belongs to; [a-z0-9-]{1,63}.
    pub tenant: TenantId,
    /// Provider that was called.
    pub provider: String,
    /// Model that was called.
    pub model: String,
    /// Tokens sent.
    pub input_tokens: i64,
    /// Those among the tokens sent that the provider had in its cache.
    pub cached_tokens: i64,
    /// Tokens received.
    pub output_tokens: i64,
    /// True when the provider did not report the tokens.
    pub estimated: bool,
    /// Cost by the configured prices, US dollars.
    pub cost_usd: f64,
    /// Duration of the call in milliseconds.
    pub latency_ms: i64,
    /// ok, or the class of the error; unknown for a call whose owner crashed before it heard the answer.
    pub status: String,
    /// Which call of its request it was, from 1.
    pub attempt: i32,
    /// Prompt template.
    pub prompt_version: String,
    /// What part of the application asked.
    pub feature: Option<String>,
    /// When the call ended, milliseconds since the Unix epoch, UTC.
    pub at: i64,
}

static USAGE: SchemaDef = SchemaDef::new("usage", include_str!("../../../schemas/usage.avsc"));
avro_record!(Usage, USAGE);

/// Service class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// `dedicated`
    Dedicated,
    /// `standard`
    Standard,
    /// `best_effort`
    BestEffort,
}

/// How much may be used; null is unlimited. Limits hold in every window of their length, however it lies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Questions in any 60 seconds.
    pub requests_per_minute: Option<i64>,
    /// Tokens sent to and received from models in any 60 seconds.
    pub tokens_per_minute: Option<i64>,
    /// Questions that are worked on at once.
    pub concurrency: Option<i64>,
    /// US dollars that calls of models cost in any 60 minutes.
    pub usd_per_hour: Option<f64>,
}

/// What becomes of a question over a limit. reject: it is answered at once, as rejected. queue: it waits, until its deadline at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverLimit {
    /// `reject`
    Reject,
    /// `queue`
    Queue,
}

/// US dollars for a million tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Price {
    /// For input.
    pub input_per_million: f64,
    /// For input that the provider had in its cache; the price of input when null.
    pub cached_input_per_million: Option<f64>,
    /// For output.
    pub output_per_million: f64,
}

/// Configuration of a tenant. In topic tenants, compacted, keyed by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tenant {
    /// Name of the tenant; [a-z0-9-]{1,63}.
    pub name: String,
    /// Service class.
    pub tier: Tier,
    /// Share of batched work relative to other tenants, at least 1.
    pub weight: i32,
    /// Lanes its documents are placed in; empty means the shared pool.
    pub lanes: Vec<i32>,
    /// False turns its requests and questions away.
    pub enabled: bool,
    /// What its questions may use together.
    pub limits: Limits,
    /// What questions of one feature may use, by the feature's name; beside the limits of the tenant.
    pub features: BTreeMap<String, Limits>,
    /// What becomes of a question over a limit. reject: it is answered at once, as rejected. queue: it waits, until its deadline at most.
    pub over_limit: OverLimit,
    /// Prices of models for this tenant, by the model's name, where they are not those of the configuration.
    pub prices: BTreeMap<String, Price>,
    /// Cosine, 0 to 1, from which the answer to an equivalent question is given again; null: never.
    pub semantic_cache: Option<f64>,
}

static TENANT: SchemaDef = SchemaDef::new("tenant", include_str!("../../../schemas/tenant.avsc"));
avro_record!(Tenant, TENANT);

/// flood: so many records were rejected that the cause is probably not the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// `flood`
    Flood,
}

/// A lane of a stage that is stopped until somebody resumes it. In topic lanes, compacted, keyed stage/lane; a tombstone resumes the lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStop {
    /// Name of the stage.
    pub stage: String,
    /// The lane: a partition of what the stage reads.
    pub lane: Lane,
    /// flood: so many records were rejected that the cause is probably not the records.
    pub reason: StopReason,
    /// What was counted, in words for a person.
    pub message: String,
    /// Class of the last failure that was counted.
    pub class: Option<String>,
    /// Offset in what the stage reads of the first record that waits.
    pub offset: i64,
    /// When the lane was stopped, milliseconds since the Unix epoch, UTC.
    pub since: i64,
}

static LANE_STOP: SchemaDef = SchemaDef::new("lane-stop", include_str!("../../../schemas/lane-stop.avsc"));
avro_record!(LaneStop, LANE_STOP);
/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// `queued`
    Queued,
    /// `running`
    Running,
    /// `cancelled`
    Cancelled,
    /// `succeeded`
    Succeeded,
    /// `failed`
    Failed,
}

/// A long piece of work: what is to be done, how far it is, and who does it. In topic jobs, compacted, keyed by id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Id of the job: a hash of tenant, kind and idempotency key, so that a repeated submission is the same job.
    pub id: String,
    /// What kind of work it is, for example ingest or dlq-replay.
    pub kind: String,
    /// Tenant the work belongs to, where it belongs to one.
    pub tenant: Option<TenantId>,
    /// Idempotency key it was submitted with, or the one that was made for it.
    pub key: String,
    /// What exactly is to be done, in the kind's own words: JSON.
    pub spec: String,
    /// Where it stands. The last three are final.
    pub state: JobState,
    /// Who works on it, or did last.
    pub owner: Option<String>,
    /// How often it was taken over; rises with each owner.
    pub epoch: i32,
    /// Owners that have begun since the last checkpoint, the present one included.
    pub attempts: i32,
    /// When it was submitted, milliseconds since the Unix epoch, UTC.
    pub submitted_at: i64,
    /// When its first owner began, milliseconds since the Unix epoch, UTC.
    pub started_at: Option<i64>,
    /// When its owner last gave a sign of life, milliseconds since the Unix epoch, UTC.
    pub heartbeat_at: Option<i64>,
    /// When its last checkpoint was made, milliseconds since the Unix epoch, UTC.
    pub progressed_at: Option<i64>,
    /// When it ended, milliseconds since the Unix epoch, UTC.
    pub finished_at: Option<i64>,
    /// Where to go on, in the kind's own words: JSON. Null before the first checkpoint.
    pub checkpoint: Option<String>,
    /// Things that are done, in the kind's own unit.
    pub done: i64,
    /// Things there are to do, where that is known.
    pub total: Option<i64>,
    /// Things that could not be done and were passed over.
    pub failures: i64,
    /// What there is to say of it: why it ended, or why a thing was passed over last.
    pub message: Option<String>,
    /// Milliseconds without a sign of life after which anybody may take it over.
    pub heartbeat_timeout_ms: i64,
    /// Milliseconds after which it fails, counted from its start; null for no limit.
    pub execution_timeout_ms: Option<i64>,
    /// Milliseconds without a checkpoint, while somebody works on it, after which it fails; null for no limit.
    pub activity_timeout_ms: Option<i64>,
}

static JOB: SchemaDef = SchemaDef::new("job", include_str!("../../../schemas/job.avsc"));
avro_record!(Job, JOB);
