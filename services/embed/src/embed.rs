//! The stage.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use weir_contracts::{ChunkBatch, EmbeddedChunk, EmbeddingBatch, Topic, document_key};
use weir_models::{Embedder, ModelError};
use weir_stage::{Batch, Failure, Outcome, Output, Stage, StageError, failure_class};

/// Gives every chunk its vector. The chunks of all records of a batch are embedded together, whichever documents and
/// lanes they belong to.
pub struct Embed {
    embedder: Arc<Embedder>,
}

impl Embed {
    /// The stage with this model.
    pub fn new(embedder: Arc<Embedder>) -> Self {
        Self { embedder }
    }

    /// Vectors of texts, away from the threads that keep the connections alive.
    async fn embed(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, ModelError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let embedder = Arc::clone(&self.embedder);
        let work = move || embedder.embed(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        match spawn_blocking(work).await {
            Ok(vectors) => vectors,
            // The runner finds out which record does it, and goes on with the others.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => Err(ModelError::Compute(error.to_string())),
        }
    }

    /// Each record alone, so that one text that can't be tokenized costs its own record only.
    async fn embed_each(&self, batch: Batch<'_, ChunkBatch>) -> Result<Vec<Outcome>, StageError> {
        let mut outcomes = Vec::with_capacity(batch.len());
        for delivery in batch.iter() {
            outcomes.push(match self.embed(texts(delivery.record())).await {
                Ok(vectors) => self.outcome(delivery.record(), &mut vectors.into_iter()),
                Err(error @ ModelError::Tokenize { .. }) => {
                    Outcome::reject(Failure::new(failure_class::INVALID, error))
                }
                Err(error) => return Err(unusable(&error)),
            });
        }
        Ok(outcomes)
    }

    /// A record with the next vectors, one for each of its chunks.
    fn outcome(&self, record: &ChunkBatch, vectors: &mut impl Iterator<Item = Vec<f32>>) -> Outcome {
        let chunks = record
            .chunks
            .iter()
            .zip(vectors)
            .map(|(chunk, vector)| EmbeddedChunk {
                ordinal: chunk.ordinal,
                text: chunk.text.clone(),
                heading_path: chunk.heading_path.clone(),
                tokens: chunk.tokens,
                start: chunk.start,
                end: chunk.end,
                vector: vector.iter().flat_map(|x| x.to_le_bytes()).collect(),
            })
            .collect();
        let embedded = EmbeddingBatch {
            tenant: record.tenant.clone(),
            document: record.document.clone(),
            revision: record.revision,
            request_id: record.request_id.clone(),
            deleted: record.deleted,
            build: record.build.clone(),
            batch: record.batch,
            batches: record.batches,
            total_chunks: record.total_chunks,
            title: record.title.clone(),
            metadata: record.metadata.clone(),
            requested_at: record.requested_at,
            model: self.embedder.model_id().to_owned(),
            dimension: i32::try_from(self.embedder.dimension()).unwrap_or(i32::MAX),
            chunks,
        };
        Outcome::emit(Output::new(Topic::EMBEDDINGS, document_key(&record.tenant, &record.document), embedded))
    }
}

impl Stage for Embed {
    type Input = ChunkBatch;

    async fn process(&mut self, batch: Batch<'_, ChunkBatch>) -> Result<Vec<Outcome>, StageError> {
        let texts = batch.iter().flat_map(|delivery| texts(delivery.record())).collect();
        match self.embed(texts).await {
            Ok(vectors) => {
                let mut vectors = vectors.into_iter();
                Ok(batch.iter().map(|delivery| self.outcome(delivery.record(), &mut vectors)).collect())
            }
            Err(ModelError::Tokenize { .. }) => self.embed_each(batch).await,
            Err(error) => Err(unusable(&error)),
        }
    }
}

fn texts(record: &ChunkBatch) -> Vec<String> {
    record.chunks.iter().map(|chunk| chunk.text.clone()).collect()
}

/// Memory of a device comes back when others let it go; a model that fails does not heal by itself.
fn unusable(error: &ModelError) -> StageError {
    match error {
        ModelError::OutOfMemory { .. } => StageError::unavailable("model", error),
        _ => StageError::Fatal(error.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::collections::BTreeMap;

    use weir_contracts::{Chunk, DocumentId, Lane, Record, RequestId, Revision, TenantId};
    use weir_models::{ModelConfig, prepare};
    use weir_stage::{Coordinates, Delivery, Headers};

    use super::*;

    async fn stage() -> Embed {
        let config = ModelConfig::test();
        let files = prepare(&config).await.unwrap();
        Embed::new(Arc::new(Embedder::load(&config, &files).unwrap()))
    }

    fn delivery(document: &str, texts: &[&str], deleted: bool) -> Delivery<ChunkBatch> {
        let chunk = |(ordinal, text): (usize, &&str)| Chunk {
            ordinal: i32::try_from(ordinal).unwrap(),
            text: (*text).into(),
            heading_path: vec!["Locks".into()],
            tokens: 3,
            start: 10,
            end: 20,
        };
        let record = ChunkBatch {
            tenant: TenantId::parse("acme").unwrap(),
            document: DocumentId::parse(document).unwrap(),
            revision: Revision::new(0, 7).unwrap(),
            request_id: RequestId::parse("r-1").unwrap(),
            deleted,
            build: "b1".into(),
            batch: 0,
            batches: 1,
            total_chunks: i32::try_from(texts.len()).unwrap(),
            title: Some("Title".into()),
            metadata: BTreeMap::from([("k".into(), "v".into())]),
            requested_at: 5,
            chunks: texts.iter().enumerate().map(chunk).collect(),
        };
        let at = Coordinates { topic: "weir.chunks".into(), lane: Lane(3), offset: 1 };
        Delivery { record, at, key: None, headers: Headers::default(), timestamp: 0 }
    }

    fn emitted(outcome: &Outcome) -> (String, EmbeddingBatch) {
        let [output] = outcome.outputs() else { unreachable!("one output for each record") };
        assert_eq!(output.topic, Topic::EMBEDDINGS);
        assert_eq!(output.lane, None, "it stays in its lane");
        let mut body = Vec::new();
        output.record.as_ref().unwrap().encode(&mut body).unwrap();
        let key = String::from_utf8(output.key.clone().unwrap()).unwrap();
        (key, EmbeddingBatch::decode(None, &body).unwrap())
    }

    #[tokio::test]
    async fn every_chunk_gets_its_own_vector_across_documents() {
        let mut stage = stage().await;
        let deliveries = [delivery("a", &["one two", "three"], false), delivery("b", &["four five six"], false)];
        let outcomes = stage.process(Batch::new(&deliveries)).await.unwrap();
        assert_eq!(outcomes.len(), 2);
        for (outcome, delivery) in outcomes.iter().zip(&deliveries) {
            let (key, embedded) = emitted(outcome);
            let record = &delivery.record;
            assert_eq!(key, format!("acme/{}", record.document));
            assert_eq!((embedded.model.as_str(), embedded.dimension), ("test@1/f32", 32));
            assert_eq!(embedded.chunks.len(), record.chunks.len());
            for (embedded, chunk) in embedded.chunks.iter().zip(&record.chunks) {
                let alone = stage.embedder.embed(&[&chunk.text]).unwrap();
                let numbers: Vec<f32> =
                    embedded.vector.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                assert_eq!(numbers, alone[0]);
                assert_eq!((embedded.ordinal, &embedded.text), (chunk.ordinal, &chunk.text));
                assert_eq!((embedded.start, embedded.end, embedded.tokens), (10, 20, 3));
                assert_eq!(embedded.heading_path, chunk.heading_path);
            }
        }
    }

    #[tokio::test]
    async fn deletions_and_documents_without_text_pass_through() {
        let mut stage = stage().await;
        let deliveries = [delivery("gone", &[], true), delivery("empty", &[], false), delivery("c", &["x"], false)];
        let outcomes = stage.process(Batch::new(&deliveries)).await.unwrap();
        let embedded: Vec<_> = outcomes.iter().map(|outcome| emitted(outcome).1).collect();
        assert_eq!(embedded.iter().map(|batch| batch.deleted).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(embedded.iter().map(|batch| batch.chunks.len()).collect::<Vec<_>>(), [0, 0, 1]);
        assert_eq!(embedded[0].revision, deliveries[0].record.revision);
        assert_eq!(embedded[2].metadata, deliveries[2].record.metadata);
    }

    #[tokio::test]
    async fn the_same_batch_again_gives_the_same_vectors() {
        let mut stage = stage().await;
        let deliveries = [delivery("a", &["one two", "three"], false)];
        let first = stage.process(Batch::new(&deliveries)).await.unwrap();
        let second = stage.process(Batch::new(&deliveries)).await.unwrap();
        assert_eq!(emitted(&first[0]), emitted(&second[0]));
    }

    #[tokio::test]
    async fn a_full_device_pauses_the_lane_instead_of_rejecting_records() {
        assert!(matches!(unusable(&ModelError::OutOfMemory { tokens: 3 }), StageError::Unavailable { .. }));
        assert!(matches!(unusable(&ModelError::Compute("broken".into())), StageError::Fatal(_)));
    }
}
