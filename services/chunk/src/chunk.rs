//! The stage.

use std::collections::BTreeMap;

use weir_contracts::{Chunk, ChunkBatch, Document, Topic, document_key, length_prefixed_hash};
use weir_stage::{Batch, Delivery, Failure, Outcome, Output, Stage, StageError};

use crate::config::{ChunkConfig, MIN_TOKENS};
use crate::metric;
use crate::split::{Piece, Splitter};
use crate::tokens::CountTokens;

/// Raise it whenever the same text would be cut in another way.
const VERSION: &str = "weir-chunk/1";

/// Chunks of one record, at most.
const MAX_CHUNKS: usize = 64;

/// Bytes of one record, at most, counting what it will have when its vectors have been added.
const MAX_BYTES: usize = 400 << 10;

/// Bytes that a chunk takes beside its words: numbers, and a vector of up to 512 dimensions.
const PER_CHUNK: usize = 2 << 10;

/// The settings do not fit the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfitting(String);

impl std::fmt::Display for Unfitting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unfitting {}

/// Splits documents into chunks that fit the embedding model.
pub struct Chunker<T> {
    splitter: Splitter<T>,
    build: String,
}

impl<T: CountTokens> Chunker<T> {
    /// Chunks for `model`, measured in its tokens.
    ///
    /// # Errors
    /// When chunks are to be longer than the model takes.
    pub fn new(tokens: T, model: &str, config: &ChunkConfig) -> Result<Self, Unfitting> {
        let limit = tokens.limit();
        let max = if config.max_tokens == 0 { limit } else { config.max_tokens };
        if max > limit {
            return Err(Unfitting(format!(
                "chunk.max_tokens is {max}, but {model} takes {limit} tokens of text: set it to {limit} or less, or 0"
            )));
        }
        if max < MIN_TOKENS || config.overlap_tokens * 2 > max {
            return Err(Unfitting(format!(
                "chunks of {max} tokens for {model} with {} repeated: at least {MIN_TOKENS} are needed, and at most \
                 half of them can be repeated (chunk.max_tokens, chunk.overlap_tokens)",
                config.overlap_tokens
            )));
        }
        let build = length_prefixed_hash(&[
            VERSION.as_bytes(),
            model.as_bytes(),
            max.to_string().as_bytes(),
            config.overlap_tokens.to_string().as_bytes(),
        ]);
        let build = build.get(..8).map_or_else(String::new, hex::encode);
        Ok(Self { splitter: Splitter::new(tokens, max, config.overlap_tokens), build })
    }

    fn chunk(&mut self, delivery: &Delivery<Document>) -> Outcome {
        let document = delivery.record();
        let pieces = if document.deleted { Vec::new() } else { self.splitter.split(&document.text, &document.blocks) };
        count(document, &pieces);
        let total = pieces.len();
        let chunks = pieces.into_iter().enumerate().map(|(ordinal, piece)| chunk(document, ordinal, piece));
        let batches = batches(chunks.collect(), weight_of(document));
        let of = batches.len();
        Outcome::emit_all(batches.into_iter().enumerate().map(|(number, chunks)| {
            output(ChunkBatch {
                batch: small(number),
                batches: small(of),
                total_chunks: small(total),
                title: document.title.clone(),
                metadata: document.metadata.clone(),
                chunks,
                ..self.batch_of(document)
            })
        }))
    }

    /// The only batch of a document, without chunks, title and metadata.
    fn batch_of(&self, document: &Document) -> ChunkBatch {
        ChunkBatch {
            tenant: document.tenant.clone(),
            document: document.document.clone(),
            revision: document.revision,
            request_id: document.request_id.clone(),
            deleted: document.deleted,
            build: self.build.clone(),
            batch: 0,
            batches: 1,
            total_chunks: 0,
            title: None,
            metadata: BTreeMap::new(),
            requested_at: document.requested_at,
            failure: None,
            chunks: Vec::new(),
        }
    }
}

impl<T: CountTokens> Stage for Chunker<T> {
    type Input = Document;

    async fn process(&mut self, batch: Batch<'_, Document>) -> Result<Vec<Outcome>, StageError> {
        let mut outcomes = Vec::with_capacity(batch.len());
        for delivery in batch.iter() {
            outcomes.push(self.chunk(delivery));
            // Splitting is work without pause; others want to run in between.
            tokio::task::yield_now().await;
        }
        Ok(outcomes)
    }

    /// Nothing of the document will come. The chunk that is announced and missing keeps readers that do not know of
    /// failures from taking it for a document without text.
    async fn last_words(
        &mut self,
        delivery: &Delivery<Document>,
        failure: &Failure,
    ) -> Result<Vec<Output>, StageError> {
        let failure = Some(failure.told_by("chunk"));
        Ok(vec![output(ChunkBatch { failure, total_chunks: 1, ..self.batch_of(delivery.record()) })])
    }
}

fn output(batch: ChunkBatch) -> Output {
    Output::new(Topic::CHUNKS, document_key(&batch.tenant, &batch.document), batch)
}

fn chunk(document: &Document, ordinal: usize, piece: Piece) -> Chunk {
    Chunk {
        ordinal: small(ordinal),
        text: document.text.get(piece.range.clone()).unwrap_or_default().to_owned(),
        heading_path: piece.heading_path,
        tokens: small(piece.tokens),
        start: i64::try_from(piece.range.start).unwrap_or(i64::MAX),
        end: i64::try_from(piece.range.end).unwrap_or(i64::MAX),
    }
}

/// Bytes that every record of a document carries.
fn weight_of(document: &Document) -> usize {
    let metadata: usize = document.metadata.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    metadata + document.title.as_ref().map_or(0, String::len) + document.document.as_str().len() * 2
}

/// Records of chunks; one without chunks when there are none, since "nothing" must be said as well.
fn batches(chunks: Vec<Chunk>, weight: usize) -> Vec<Vec<Chunk>> {
    let mut batches = vec![Vec::new()];
    let mut bytes = weight;
    for chunk in chunks {
        let path: usize = chunk.heading_path.iter().map(|heading| heading.len() + 4).sum();
        let more = chunk.text.len() + path + PER_CHUNK;
        let last_is_full = batches
            .last()
            .is_some_and(|last: &Vec<Chunk>| last.len() >= MAX_CHUNKS || !last.is_empty() && bytes + more > MAX_BYTES);
        if last_is_full {
            batches.push(Vec::new());
            bytes = weight;
        }
        bytes += more;
        if let Some(last) = batches.last_mut() {
            last.push(chunk);
        }
    }
    batches
}

fn count(document: &Document, pieces: &[Piece]) {
    let number = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
    metrics::counter!(metric::CHUNKS).increment(number(pieces.len()));
    metrics::counter!(metric::BYTES).increment(number(document.text.len()));
    for piece in pieces {
        metrics::histogram!(metric::TOKENS).record(f64::from(u32::try_from(piece.tokens).unwrap_or(u32::MAX)));
    }
}

fn small(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
#[path = "chunk_tests.rs"]
mod tests;
