//! The stage.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use metrics::counter;
use tokio::task::spawn_blocking;
use weir_contracts::{Chunk, ChunkBatch, EmbeddedChunk, EmbeddingBatch, TenantId, Topic, document_key, header};
use weir_models::{Embedder, ModelError};
use weir_stage::{Batch, Delivery, Failure, Outcome, Output, Stage, StageError, failure_class};

use crate::cache::{VectorCache, key};
use crate::generation::Key;
use crate::metric;

/// What makes vectors of texts.
pub trait Model: Send + Sync + 'static {
    /// A vector for each text, in order. Blocks.
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, ModelError>;

    /// Vectors of the same id and dimension are comparable.
    fn id(&self) -> &str;

    /// Components of its vectors.
    fn dimension(&self) -> usize;
}

impl Model for Embedder {
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, ModelError> {
        Self::embed(self, texts)
    }

    fn id(&self) -> &str {
        self.model_id()
    }

    fn dimension(&self) -> usize {
        Self::dimension(self)
    }
}

/// Gives every chunk its vector. The chunks of all records of a batch are embedded together, whichever documents and
/// lanes they belong to; those whose text the tenant had embedded before are not embedded again.
pub struct Embed {
    model: Arc<dyn Model>,
    cache: Option<Arc<VectorCache>>,
}

/// A chunk's text, and whose it is.
struct Text {
    tenant: TenantId,
    text: String,
}

impl Embed {
    /// The stage with this model, and a cache of its vectors.
    pub fn new(model: Arc<dyn Model>, cache: Option<Arc<VectorCache>>) -> Self {
        Self { model, cache }
    }

    /// Vectors of texts, away from the threads that keep the connections alive.
    async fn embed(&self, texts: Vec<Text>) -> Result<Vec<Vec<f32>>, ModelError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let (model, cache) = (Arc::clone(&self.model), self.cache.clone());
        let work = move || vectors(model.as_ref(), cache.as_deref(), &texts);
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
                Ok(vectors) => self.outcome(delivery, &mut vectors.into_iter()),
                Err(error @ ModelError::Tokenize { .. }) => {
                    Outcome::reject(Failure::new(failure_class::INVALID, error))
                }
                Err(error) => return Err(unusable(&error)),
            });
        }
        Ok(outcomes)
    }

    /// A record with the next vectors, one for each of its chunks. What failed before has no chunks, and passes through.
    fn outcome(&self, delivery: &Delivery<ChunkBatch>, vectors: &mut impl Iterator<Item = Vec<f32>>) -> Outcome {
        let record = delivery.record();
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
        let (title, metadata) = (record.title.clone(), record.metadata.clone());
        let embedded = EmbeddingBatch { title, metadata, chunks, ..self.batch_of(record) };
        Outcome::emit(output(delivery, embedded))
    }

    /// What becomes of a batch, without chunks, title and metadata.
    fn batch_of(&self, record: &ChunkBatch) -> EmbeddingBatch {
        EmbeddingBatch {
            tenant: record.tenant.clone(),
            document: record.document.clone(),
            revision: record.revision,
            request_id: record.request_id.clone(),
            deleted: record.deleted,
            build: record.build.clone(),
            batch: record.batch,
            batches: record.batches,
            total_chunks: record.total_chunks,
            title: None,
            metadata: BTreeMap::new(),
            requested_at: record.requested_at,
            model: self.model.id().to_owned(),
            dimension: i32::try_from(self.model.dimension()).unwrap_or(i32::MAX),
            failure: record.failure.clone(),
            chunks: Vec::new(),
        }
    }
}

/// A batch that comes late keeps its place among the builds of its revision.
fn output(delivery: &Delivery<ChunkBatch>, batch: EmbeddingBatch) -> Output {
    Output::new(Topic::EMBEDDINGS, document_key(&batch.tenant, &batch.document), batch)
        .with_header(header::POSITION, delivery.first_offset().to_string())
}

impl Stage for Embed {
    type Input = ChunkBatch;

    async fn process(&mut self, batch: Batch<'_, ChunkBatch>) -> Result<Vec<Outcome>, StageError> {
        let texts = batch.iter().flat_map(|delivery| texts(delivery.record())).collect();
        match self.embed(texts).await {
            Ok(vectors) => {
                let mut vectors = vectors.into_iter();
                Ok(batch.iter().map(|delivery| self.outcome(delivery, &mut vectors)).collect())
            }
            Err(ModelError::Tokenize { .. }) => self.embed_each(batch).await,
            Err(error) => Err(unusable(&error)),
        }
    }

    /// This batch of its revision will not come.
    async fn last_words(
        &mut self,
        delivery: &Delivery<ChunkBatch>,
        failure: &Failure,
    ) -> Result<Vec<Output>, StageError> {
        let batch = self.batch_of(delivery.record());
        let failure = batch.failure.clone().unwrap_or_else(|| failure.told_by("embed"));
        // Announced and missing: readers that do not know of failures find the revision incomplete.
        let total_chunks = batch.total_chunks.max(1);
        Ok(vec![output(delivery, EmbeddingBatch { failure: Some(failure), total_chunks, ..batch })])
    }
}

fn texts(record: &ChunkBatch) -> Vec<Text> {
    let text = |chunk: &Chunk| Text { tenant: record.tenant.clone(), text: chunk.text.clone() };
    record.chunks.iter().map(text).collect()
}

/// The model computes the vectors that are not in the cache, each once.
fn vectors(model: &dyn Model, cache: Option<&VectorCache>, texts: &[Text]) -> Result<Vec<Vec<f32>>, ModelError> {
    let Some(cache) = cache else {
        return compute(model, &texts.iter().map(|text| text.text.as_str()).collect::<Vec<_>>());
    };
    let dimension = model.dimension();
    let keys: Vec<Key> = texts.iter().map(|text| key(&text.tenant, model.id(), dimension, &text.text)).collect();
    let mut known = cache.get(&keys, dimension);
    let mut seen = HashSet::new();
    let (missing, missing_texts): (Vec<Key>, Vec<&str>) = keys
        .iter()
        .zip(texts)
        .filter(|(key, _)| !known.contains_key(*key) && seen.insert(**key))
        .map(|(key, text)| (*key, text.text.as_str()))
        .unzip();
    let computed = compute(model, &missing_texts)?;
    cache.put(missing.iter().copied().zip(&computed));
    counter!(metric::CACHE_HITS).increment((keys.len() - missing.len()) as u64);
    counter!(metric::CACHE_MISSES).increment(missing.len() as u64);
    known.extend(missing.into_iter().zip(computed));
    // All are known now.
    Ok(keys.iter().filter_map(|key| known.get(key).cloned()).collect())
}

fn compute(model: &dyn Model, texts: &[&str]) -> Result<Vec<Vec<f32>>, ModelError> {
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    let vectors = model.embed(texts)?;
    if vectors.len() != texts.len() {
        return Err(ModelError::Compute(format!("{} vectors for {} texts", vectors.len(), texts.len())));
    }
    Ok(vectors)
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
    use std::path::Path;
    use std::sync::Mutex;

    use weir_contracts::{DocumentId, Lane, Record, RequestId, Revision};
    use weir_models::{DeviceChoice, ModelConfig, prepare};
    use weir_stage::{Coordinates, Headers};

    use super::*;

    async fn stage() -> Embed {
        let config = ModelConfig::test();
        let files = prepare(&config).await.unwrap();
        Embed::new(Arc::new(Embedder::load(&config, &files).unwrap()), None)
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
            failure: None,
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
                let alone = stage.model.embed(&[&chunk.text]).unwrap();
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

    fn decoded(output: &Output) -> EmbeddingBatch {
        let mut body = Vec::new();
        output.record.as_ref().unwrap().encode(&mut body).unwrap();
        EmbeddingBatch::decode(None, &body).unwrap()
    }

    #[tokio::test]
    async fn what_failed_before_passes_through_and_what_fails_here_is_said_in_its_place() {
        let mut stage = stage().await;
        let mut failed = delivery("a", &[], false);
        failed.record.failure = Some("dead letter of chunk (panic): it panicked".into());
        let outcomes = stage.process(Batch::new(&[failed.clone()])).await.unwrap();
        let (_, passed) = emitted(&outcomes[0]);
        assert_eq!((&passed.failure, passed.chunks.len()), (&failed.record.failure, 0));
        assert_eq!((passed.model.as_str(), passed.dimension), ("test@1/f32", 32));

        let mut part = delivery("a", &["one two"], false);
        (part.record.batch, part.record.batches, part.record.total_chunks) = (2, 4, 9);
        let failure = Failure::new("too-large", "too much");
        let words = stage.last_words(&part, &failure).await.unwrap();
        let said = decoded(&words[0]);
        assert_eq!(said.failure.as_deref(), Some("dead letter of embed (too-large): too much"));
        assert_eq!((said.batch, said.batches, said.total_chunks, said.chunks.len()), (2, 4, 9, 0));
        let again = decoded(&stage.last_words(&failed, &failure).await.unwrap()[0]);
        assert_eq!(again.failure, failed.record.failure, "the first cause counts");
    }

    #[tokio::test]
    async fn a_batch_says_where_its_chunks_lie_also_when_it_comes_late() {
        let mut stage = stage().await;
        let fresh = delivery("a", &["x"], false);
        let mut late = fresh.clone();
        late.at = Coordinates { topic: "weir.embed.again".into(), lane: Lane(3), offset: 77 };
        late.headers.set(header::DLQ_OFFSET, "1");
        for outcome in stage.process(Batch::new(&[fresh, late])).await.unwrap() {
            assert_eq!(outcome.outputs()[0].headers.text(header::POSITION), Some("1"));
        }
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

    /// The test model under another name; notes what it is asked for.
    struct Counting {
        inner: Embedder,
        id: &'static str,
        asked: Mutex<Vec<String>>,
    }

    impl Counting {
        async fn named(id: &'static str) -> Arc<Self> {
            let config = ModelConfig::test();
            let inner = Embedder::load(&config, &prepare(&config).await.unwrap()).unwrap();
            Arc::new(Self { inner, id, asked: Mutex::default() })
        }

        /// What it was asked for since the last time.
        fn asked(&self) -> Vec<String> {
            std::mem::take(&mut self.asked.lock().unwrap())
        }
    }

    impl Model for Counting {
        fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, ModelError> {
            self.asked.lock().unwrap().extend(texts.iter().map(ToString::to_string));
            self.inner.embed(texts)
        }

        fn id(&self) -> &str {
            self.id
        }

        fn dimension(&self) -> usize {
            self.inner.dimension()
        }
    }

    fn cache(folder: &Path) -> Option<Arc<VectorCache>> {
        Some(Arc::new(VectorCache::open(folder, 4 << 20).unwrap()))
    }

    /// Texts of a document of twenty chunks, and of the same with another eighth.
    fn document_and_update() -> (Vec<String>, Vec<String>) {
        let before: Vec<String> =
            (0..20).map(|n| format!("Chunk {n} tells of the lock, its gates and its keeper.")).collect();
        let mut after = before.clone();
        after[7] = "The eighth was written anew.".into();
        (before, after)
    }

    async fn run(stage: &mut Embed, tenant: &str, texts: &[String]) -> EmbeddingBatch {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut delivery = delivery("a", &texts, false);
        delivery.record.tenant = TenantId::parse(tenant).unwrap();
        let outcomes = stage.process(Batch::new(&[delivery])).await.unwrap();
        emitted(&outcomes[0]).1
    }

    #[tokio::test]
    async fn an_update_that_changes_one_chunk_embeds_that_chunk_only() {
        let folder = tempfile::tempdir().unwrap();
        let (before, after) = document_and_update();
        let model = Counting::named("m@1/f32").await;
        let mut stage = Embed::new(model.clone(), cache(folder.path()));
        run(&mut stage, "acme", &before).await;
        assert_eq!(model.asked(), before);
        let updated = run(&mut stage, "acme", &after).await;
        assert_eq!(model.asked(), [after[7].as_str()]);

        let mut without = Embed::new(model.clone(), None);
        assert_eq!(run(&mut without, "acme", &after).await, updated, "with and without cache");
        assert_eq!(model.asked(), after, "without a cache everything is embedded again");
    }

    #[tokio::test]
    async fn a_change_of_title_and_metadata_only_asks_the_model_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (texts, _) = document_and_update();
        let model = Counting::named("m@1/f32").await;
        let mut stage = Embed::new(model.clone(), cache(folder.path()));
        let before = run(&mut stage, "acme", &texts).await;
        model.asked();
        let mut changed = delivery("a", &texts.iter().map(String::as_str).collect::<Vec<_>>(), false);
        changed.record.revision = Revision::new(0, 8).unwrap();
        changed.record.title = Some("Another title".into());
        changed.record.metadata = BTreeMap::from([("k".into(), "other".into())]);
        let outcomes = stage.process(Batch::new(&[changed.clone()])).await.unwrap();
        assert!(model.asked().is_empty(), "not one chunk");
        let (_, after) = emitted(&outcomes[0]);
        assert_eq!(after.chunks, before.chunks);
        let told = (after.revision, after.title, after.metadata);
        assert_eq!(told, (changed.record.revision, changed.record.title, changed.record.metadata));
    }

    #[tokio::test]
    async fn a_restarted_service_embeds_nothing_again() {
        let folder = tempfile::tempdir().unwrap();
        let (before, after) = document_and_update();
        let model = Counting::named("m@1/f32").await;
        let cached = cache(folder.path());
        run(&mut Embed::new(model.clone(), cached.clone()), "acme", &before).await;
        cached.as_ref().unwrap().flush();
        drop(cached);
        model.asked();
        run(&mut Embed::new(model.clone(), cache(folder.path())), "acme", &after).await;
        assert_eq!(model.asked(), [after[7].as_str()]);
    }

    #[tokio::test]
    async fn another_tenant_or_another_model_never_hits() {
        let folder = tempfile::tempdir().unwrap();
        let (texts, _) = document_and_update();
        let model = Counting::named("m@1/f32").await;
        let cached = cache(folder.path());
        let mut stage = Embed::new(model.clone(), cached.clone());
        run(&mut stage, "acme", &texts).await;
        model.asked();
        run(&mut stage, "other", &texts).await;
        assert_eq!(model.asked(), texts);
        for tenant in ["acme", "other"] {
            run(&mut stage, tenant, &texts).await;
            assert!(model.asked().is_empty(), "now each has its own");
        }
        let newer = Counting::named("m@2/f32").await;
        let embedded = run(&mut Embed::new(newer.clone(), cached), "acme", &texts).await;
        assert_eq!(newer.asked(), texts);
        assert_eq!(embedded.model, "m@2/f32");
    }

    #[tokio::test]
    async fn a_text_that_occurs_again_in_a_batch_is_embedded_once() {
        let folder = tempfile::tempdir().unwrap();
        let model = Counting::named("m@1/f32").await;
        let mut stage = Embed::new(model.clone(), cache(folder.path()));
        let deliveries = [delivery("a", &["one", "two", "one"], false), delivery("b", &["two", "three"], false)];
        let outcomes = stage.process(Batch::new(&deliveries)).await.unwrap();
        assert_eq!(model.asked(), ["one", "two", "three"]);
        let plain = Embed::new(model.clone(), None).process(Batch::new(&deliveries)).await.unwrap();
        for (cached, plain) in outcomes.iter().zip(&plain) {
            assert_eq!(emitted(cached), emitted(plain));
        }
    }

    /// A real model adds the same numbers in another order when other texts are in the batch: the last bits of a
    /// vector depend on its company, with and without a cache. No ranking notices.
    #[tokio::test]
    async fn cached_vectors_are_those_the_real_model_computes() {
        let config = ModelConfig { device: DeviceChoice::Cpu, ..ModelConfig::default() };
        let files = match prepare(&config).await {
            Ok(files) => files,
            Err(error @ ModelError::Unobtainable { .. }) => return println!("skipped: {error}"),
            Err(error) => unreachable!("{error}"),
        };
        let model: Arc<dyn Model> = Arc::new(Embedder::load(&config, &files).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let (before, after) = document_and_update();
        let mut stage = Embed::new(Arc::clone(&model), cache(folder.path()));
        run(&mut stage, "acme", &before).await;
        let cached = run(&mut stage, "acme", &after).await;
        let plain = run(&mut Embed::new(model, None), "acme", &after).await;
        for (cached, plain) in cached.chunks.iter().zip(&plain.chunks) {
            assert_eq!(cached.text, plain.text);
            let components = |vector: &[u8]| -> Vec<f32> {
                vector.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
            };
            let (cached, plain) = (components(&cached.vector), components(&plain.vector));
            assert_eq!(cached.len(), plain.len());
            let apart = cached.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-6, "{apart}");
        }
    }
}
