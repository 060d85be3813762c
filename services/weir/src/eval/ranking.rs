//! The rankings to be measured: what the vector store finds, and what an exact search over its vectors would.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use color_eyre::eyre::{WrapErr, bail};
use futures::{StreamExt, TryStreamExt, stream};
use weir_contracts::{TenantId, are_comparable};
use weir_models::{Embedder, ModelConfig};
use weir_vectors::{Hit, Mode, QdrantConfig, Search, StoredVector, VectorStore};

use crate::context::Context;
use crate::eval::dataset::Query;
use crate::eval::metrics::by_best_chunk;
use crate::progress::Progress;

/// Documents in a ranking.
pub const DEPTH: usize = 100;
/// Chunks that are asked for first; documents with several chunks take several places.
const FIRST_ASK: usize = 300;
/// Chunks that are asked for at most to come to [`DEPTH`] documents.
const LAST_ASK: usize = 2_400;
/// Queries under way at once.
const AT_ONCE: usize = 4;

/// What a search gave for each query.
pub struct Searched {
    /// Documents by query, best first.
    pub rankings: HashMap<String, Vec<String>>,
    /// The first chunks by query: their texts, best first.
    pub passages: HashMap<String, Vec<String>>,
    /// Milliseconds of each query, sorted.
    pub millis: Vec<f64>,
}

/// The collection of a tenant, and the queries as vectors of its model.
pub struct Searcher {
    store: VectorStore,
    tenant: TenantId,
    vectors: HashMap<String, Vec<f32>>,
    /// Id of the model.
    pub model: String,
}

impl Searcher {
    /// Embeds the queries with the model of the configuration, which must be the documents'.
    ///
    /// # Errors
    /// When the model can't be had, or the collection was built with another.
    pub async fn prepare(context: &Context, tenant: &TenantId, queries: &[Query]) -> color_eyre::Result<Self> {
        let config: ModelConfig = context.section("model")?;
        let store = VectorStore::connect(&context.section::<QdrantConfig>("qdrant")?)?;
        let files = weir_models::prepare(&config).await?;
        let texts: Vec<String> = queries.iter().map(|query| query.text.clone()).collect();
        let work = tokio::task::spawn_blocking(move || {
            let embedder = Arc::new(Embedder::load(&config, &files)?);
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            Ok::<_, weir_models::ModelError>((embedder.embed(&texts)?, embedder.model_id().to_owned()))
        });
        let (vectors, model) = work.await.wrap_err("the embedding thread ended")??;
        match store.model().await? {
            Some(built) if !are_comparable(&built, &model) => bail!(
                "the collection was built with {built}, but [model] names {model}: set model.name as for the services"
            ),
            _ => {}
        }
        let vectors = queries.iter().map(|query| query.id.clone()).zip(vectors).collect();
        Ok(Self { store, tenant: tenant.clone(), vectors, model })
    }

    /// Runs all queries in one mode.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn search(&self, queries: &[Query], mode: Mode, quiet: bool) -> color_eyre::Result<Searched> {
        let mut progress = Progress::new(queries.len(), mode.name(), quiet);
        let mut done = Searched { rankings: HashMap::new(), passages: HashMap::new(), millis: Vec::new() };
        let asking: Vec<_> = queries.iter().map(|query| self.one(query, mode)).collect();
        let mut results = stream::iter(asking).buffered(AT_ONCE);
        while let Some((id, hits, millis)) = results.try_next().await? {
            let chunks = hits.iter().map(|hit| (hit.document.as_str(), hit.score));
            done.rankings.insert(id.clone(), by_best_chunk(chunks, DEPTH));
            done.passages.insert(id, hits.into_iter().take(10).map(|hit| hit.text).collect());
            done.millis.push(millis);
            progress.set(done.millis.len(), String::new());
        }
        progress.finish();
        done.millis.sort_by(f64::total_cmp);
        Ok(done)
    }

    async fn one(&self, query: &Query, mode: Mode) -> color_eyre::Result<(String, Vec<Hit>, f64)> {
        let filter = BTreeMap::new();
        let mut limit = FIRST_ASK;
        let started = Instant::now();
        loop {
            let search = Search {
                tenant: &self.tenant,
                filter: &filter,
                dense: self.vectors.get(&query.id).map(Vec::as_slice),
                text: Some(&query.text),
                limit,
                mode,
            };
            let hits = self.store.search(&search).await?;
            let mut documents: Vec<_> = hits.iter().map(|hit| &hit.document).collect();
            documents.sort_unstable();
            documents.dedup();
            if documents.len() >= DEPTH || hits.len() < limit || limit >= LAST_ASK {
                return Ok((query.id.clone(), hits, started.elapsed().as_secs_f64() * 1e3));
            }
            limit *= 2;
        }
    }

    /// The vectors of all chunks that can be found.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn stored(&self) -> color_eyre::Result<Vec<StoredVector>> {
        Ok(self.store.vectors_of(&self.tenant).await?)
    }

    /// The dense rankings an exact search over these vectors gives.
    #[must_use]
    pub fn exact(&self, stored: &[StoredVector], queries: &[Query]) -> HashMap<String, Vec<String>> {
        let cosine = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum() };
        queries
            .iter()
            .filter_map(|query| {
                let vector = self.vectors.get(&query.id)?;
                let chunks = stored.iter().map(|chunk| (chunk.document.as_str(), cosine(vector, &chunk.vector)));
                Some((query.id.clone(), by_best_chunk(chunks, DEPTH)))
            })
            .collect()
    }
}
