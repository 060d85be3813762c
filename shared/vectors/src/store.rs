//! Writing: chunks, heads, and the removal of what heads left behind.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use qdrant_client::qdrant::vectors::VectorsOptions;
use qdrant_client::qdrant::{
    CountPoints, DeletePoints, DenseVector, Filter, GetPoints, NamedVectors, PointId, PointStruct, SparseVector,
    UpsertPoints, Value, Vector, Vectors, WriteOrdering, WriteOrderingType, vector,
};
use qdrant_client::{Qdrant, QdrantError};
use secrecy::ExposeSecret;
use tokio::sync::Mutex;
use weir_contracts::{DocumentId, EmbeddedChunk, EmbeddingBatch, Revision, TenantId, point_id};

use crate::bm25::Bm25;
use crate::collection::{DENSE, Made, TEXT};
use crate::head::{head_id, may_replace};
use crate::payload::{Writer, field, kind, meta_entry};
use crate::{Head, QdrantConfig, Stale, VectorError, filter, metric};

/// Points in one upsert: about 2 MB with vectors of 384 numbers.
const POINTS_A_REQUEST: usize = 400;
/// Heads in one conditional upsert; each brings its own condition.
const HEADS_A_REQUEST: usize = 100;
/// Heads, or notes of failures, in one read.
const POINTS_A_READ: usize = 500;
/// Documents in one removal.
const DOCUMENTS_A_REMOVAL: usize = 50;
/// Requests of one batch that are under way at once. The server writes them to disk together.
const CONCURRENT_REQUESTS: usize = 8;

/// Reads a point: its id and payload.
type FromPayload<T> = fn(Option<&PointId>, HashMap<String, Value>) -> Result<T, VectorError>;

/// A batch of embedded chunks and where its record lay.
#[derive(Debug, Clone, Copy)]
pub struct Placed<'a> {
    /// The record.
    pub batch: &'a EmbeddingBatch,
    /// Its offset; see [`Head::position`].
    pub position: i64,
}

/// Weir's collection in Qdrant. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct VectorStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    config: QdrantConfig,
    client: Qdrant,
    pub bm25: Bm25,
    pub ensured: Mutex<Option<Made>>,
}

impl std::fmt::Debug for VectorStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VectorStore").field("config", self.config()).finish_non_exhaustive()
    }
}

impl VectorStore {
    /// Prepares the client. Connects when first used, so it succeeds while Qdrant is away.
    ///
    /// # Errors
    /// When the address is not one.
    pub fn connect(config: &QdrantConfig) -> Result<Self, VectorError> {
        let client = Qdrant::from_url(&config.url)
            .connect_timeout(config.connect_timeout())
            .timeout(config.request_timeout())
            .api_key(config.api_key.as_ref().map(|key| key.expose_secret().to_owned()))
            .skip_compatibility_check()
            .build()
            .map_err(|error| VectorError::of_call("connect", &config.collection, error))?;
        let inner = Inner { config: config.clone(), client, bm25: Bm25::new(), ensured: Mutex::new(None) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The settings in force.
    #[must_use]
    pub fn config(&self) -> &QdrantConfig {
        &self.inner.config
    }

    /// Whether Qdrant answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn health(&self) -> Result<(), VectorError> {
        self.call("answer", self.client().health_check()).await.map(|_| ())
    }

    /// Whether a record can become points, before anything of it is written.
    ///
    /// # Errors
    /// [`VectorError::Invalid`] says what is wrong with it.
    pub fn check(batch: &EmbeddingBatch) -> Result<(), VectorError> {
        batch.chunks.iter().try_for_each(|chunk| numbers(batch, chunk).map(|_| ()))
    }

    /// Writes the chunks of these batches; durable when it returns. Writing them again changes nothing.
    ///
    /// # Errors
    /// [`VectorError::Invalid`] when a vector has the wrong length.
    pub async fn write_chunks(&self, batches: &[Placed<'_>]) -> Result<(), VectorError> {
        let chunks: Vec<_> =
            batches.iter().flat_map(|placed| placed.batch.chunks.iter().map(|chunk| (*placed, chunk))).collect();
        let requests: Vec<_> = chunks.chunks(POINTS_A_REQUEST).collect();
        self.each(&requests, |chunks| self.write_some(chunks).boxed()).await.map(|_| ())
    }

    async fn write_some(&self, chunks: &[(Placed<'_>, &EmbeddedChunk)]) -> Result<(), VectorError> {
        let points = chunks.iter().map(|(placed, chunk)| self.chunk_point(*placed, chunk));
        let request = UpsertPoints {
            collection_name: self.collection().to_owned(),
            wait: Some(true),
            points: points.collect::<Result<_, _>>()?,
            ..UpsertPoints::default()
        };
        self.call("write chunks", self.client().upsert_points(request)).await.map(|_| ())
    }

    /// How many chunks of a build of a revision are there.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn count_chunks(
        &self,
        tenant: &TenantId,
        document: &DocumentId,
        revision: Revision,
        build: &str,
    ) -> Result<u64, VectorError> {
        self.count(filter::set(tenant, document, revision, build)).await
    }

    /// How many chunks of a tenant, or of one of its documents, there are, of whatever revision, visible or not.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn count_all(&self, tenant: &TenantId, document: Option<&DocumentId>) -> Result<u64, VectorError> {
        match self.count(filter::chunks_in(tenant, document)).await {
            Err(VectorError::NoCollection { .. }) => Ok(0),
            other => other,
        }
    }

    async fn count(&self, filter: Filter) -> Result<u64, VectorError> {
        let request = CountPoints {
            collection_name: self.collection().to_owned(),
            filter: Some(filter),
            exact: Some(true),
            ..CountPoints::default()
        };
        let response = self.call("count chunks", self.client().count(request)).await?;
        Ok(response.result.map_or(0, |result| result.count))
    }

    /// The same for many sets, in order.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn count_sets(&self, sets: &[&EmbeddingBatch]) -> Result<Vec<u64>, VectorError> {
        self.each(sets, |set| self.count(filter::set(&set.tenant, &set.document, set.revision, &set.build)).boxed())
            .await
    }

    /// The head of a document.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn head(&self, tenant: &TenantId, document: &DocumentId) -> Result<Option<Head>, VectorError> {
        Ok(self.heads(&[(tenant, document)]).await?.into_iter().next().flatten())
    }

    /// The heads of these documents, in order; none for a document that has none.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn heads(&self, documents: &[(&TenantId, &DocumentId)]) -> Result<Vec<Option<Head>>, VectorError> {
        let ids: Vec<_> = documents.iter().map(|(tenant, document)| head_id(tenant, document)).collect();
        self.read_points("read heads", &ids, Head::from_payload).await
    }

    /// What lies under these ids, in order; none where nothing does.
    pub(crate) async fn read_points<T: Clone + Send>(
        &self,
        call: &'static str,
        ids: &[PointId],
        read: FromPayload<T>,
    ) -> Result<Vec<Option<T>>, VectorError> {
        let pages: Vec<_> = ids.chunks(POINTS_A_READ).collect();
        Ok(self.each(&pages, |ids| self.read_page(call, ids, read).boxed()).await?.concat())
    }

    async fn read_page<T: Clone>(
        &self,
        call: &'static str,
        ids: &[PointId],
        read: FromPayload<T>,
    ) -> Result<Vec<Option<T>>, VectorError> {
        let request = GetPoints {
            collection_name: self.collection().to_owned(),
            ids: ids.to_vec(),
            with_payload: Some(true.into()),
            with_vectors: Some(false.into()),
            ..GetPoints::default()
        };
        let response = self.call(call, self.client().get_points(request)).await?;
        let mut found = HashMap::with_capacity(ids.len());
        for point in response.result {
            if let Some(id) = point.id {
                let value = read(Some(&id), point.payload)?;
                found.insert(id, value);
            }
        }
        Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
    }

    /// Moves heads forward; at most one for each document. A head that is already there moves only from an earlier
    /// revision, or from an earlier record of the same one, and stays otherwise: look at [`Self::heads`] to see
    /// which did. Durable when it returns.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn move_heads(&self, heads: &[Head]) -> Result<(), VectorError> {
        let requests: Vec<_> = heads.chunks(HEADS_A_REQUEST).collect();
        let moves = self.each(&requests, |heads| {
            let points = heads.iter().map(Head::to_point).collect();
            self.upsert_if("move heads", points, may_replace(heads)).boxed()
        });
        moves.await.map(|_| ())
    }

    /// Writes points that are not there yet, and replaces those that meet the condition. Durable when it returns.
    pub(crate) async fn upsert_if(
        &self,
        call: &'static str,
        points: Vec<PointStruct>,
        condition: Filter,
    ) -> Result<(), VectorError> {
        let request = UpsertPoints {
            collection_name: self.collection().to_owned(),
            wait: Some(true),
            points,
            ordering: Some(WriteOrdering { r#type: WriteOrderingType::Strong.into() }),
            update_filter: fenced().then_some(condition),
            ..UpsertPoints::default()
        };
        self.call(call, self.client().upsert_points(request)).await.map(|_| ())
    }

    /// The same for one head.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn move_head(&self, head: &Head) -> Result<(), VectorError> {
        self.move_heads(std::slice::from_ref(head)).await
    }

    /// Removes the chunks that heads left behind. Not waited for on disk: what a crash brings back, a sweep removes.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn delete_stale(&self, stale: &[Stale]) -> Result<(), VectorError> {
        let requests: Vec<_> = stale.chunks(DOCUMENTS_A_REMOVAL).collect();
        let removals = self.each(&requests, |stale| {
            let any = Filter::should(stale.iter().map(|stale| stale.filter().into()));
            self.call("remove chunks", self.client().delete_points(self.removal(any))).boxed()
        });
        removals.await.map(|_| ())
    }

    pub(crate) fn removal(&self, points: impl Into<qdrant_client::qdrant::PointsSelector>) -> DeletePoints {
        DeletePoints {
            collection_name: self.collection().to_owned(),
            wait: Some(false),
            points: Some(points.into()),
            ..DeletePoints::default()
        }
    }

    fn chunk_point(&self, placed: Placed<'_>, chunk: &EmbeddedChunk) -> Result<PointStruct, VectorError> {
        let batch = placed.batch;
        let id = point_id(&batch.tenant, &batch.document, batch.revision, chunk.ordinal, &batch.build);
        let mut vectors = HashMap::from([(DENSE.to_owned(), dense(batch, chunk)?)]);
        let sparse = self.inner.bm25.document(&words_of(batch, chunk));
        if !sparse.is_empty() {
            let sparse = SparseVector { indices: sparse.indices, values: sparse.values };
            vectors.insert(TEXT.to_owned(), named(vector::Vector::Sparse(sparse)));
        }
        let mut payload = Writer::default()
            .text(field::KIND, kind::CHUNK)
            .text(field::TENANT, batch.tenant.as_str())
            .text(field::DOCUMENT, batch.document.as_str())
            .int(field::REVISION, batch.revision.ordinal())
            .text(field::BUILD, &batch.build)
            .int(field::POSITION, placed.position)
            .int(field::CHUNKS, batch.total_chunks)
            .int(field::REQUESTED_AT, batch.requested_at)
            .int(field::ORDINAL, chunk.ordinal)
            .int(field::START, chunk.start)
            .int(field::END, chunk.end)
            .list(field::HEADING_PATH, chunk.heading_path.iter().cloned())
            .list(field::META, batch.metadata.iter().map(|(key, value)| meta_entry(key, value)))
            .text(field::TEXT, &chunk.text);
        if let Some(title) = &batch.title {
            payload = payload.text(field::TITLE, title);
        }
        Ok(PointStruct {
            id: Some(PointId::from(id.to_string())),
            payload: payload.done(),
            vectors: Some(Vectors { vectors_options: Some(VectorsOptions::Vectors(NamedVectors { vectors })) }),
        })
    }

    pub(crate) fn client(&self) -> &Qdrant {
        &self.inner.client
    }

    pub(crate) fn collection(&self) -> &str {
        &self.inner.config.collection
    }

    /// Makes a call for each item, several side by side; the first error ends them. Results in the order of the items. A
    /// call is only made when its turn comes: those of a batch of thousands would fill the memory.
    async fn each<'a, I: Sync, T>(
        &self,
        items: &'a [I],
        call: impl Fn(&'a I) -> BoxFuture<'a, Result<T, VectorError>>,
    ) -> Result<Vec<T>, VectorError> {
        // Places, not items: the compiler can't see that a stream of borrowed items may go to another thread.
        let calls = (0..items.len()).filter_map(|place| items.get(place).map(&call));
        stream::iter(calls).buffered(CONCURRENT_REQUESTS).try_collect().await
    }

    /// Times a call and says what its error means. A collection that is gone is forgotten, so that it is made again.
    pub(crate) async fn call<T>(
        &self,
        call: &'static str,
        request: impl Future<Output = Result<T, QdrantError>>,
    ) -> Result<T, VectorError> {
        let started = Instant::now();
        let in_flight = metric::InFlight::count(metrics::gauge!(metric::REQUESTS_IN_FLIGHT));
        let result = request.await.map_err(|error| VectorError::of_call(call, self.collection(), error));
        drop(in_flight);
        let label = match &result {
            Ok(_) => "ok",
            Err(error) if error.is_unavailable() => "unavailable",
            Err(_) => "refused",
        };
        metrics::histogram!(metric::REQUEST_SECONDS, "call" => call, "result" => label).record(started.elapsed());
        if let Err(VectorError::NoCollection { .. }) = &result
            && let Ok(mut ensured) = self.inner.ensured.try_lock()
        {
            *ensured = None;
        }
        result
    }
}

/// Whether heads move forward only. A test can switch that off, to see that it notices.
#[cfg(feature = "unfenced")]
fn fenced() -> bool {
    !std::env::var("WEIR_TEST_WITHOUT").is_ok_and(|off| off.split(',').any(|off| off == "revision-fencing"))
}

#[cfg(not(feature = "unfenced"))]
const fn fenced() -> bool {
    true
}

fn named(vector: vector::Vector) -> Vector {
    Vector { vector: Some(vector), ..Vector::default() }
}

fn dense(batch: &EmbeddingBatch, chunk: &EmbeddedChunk) -> Result<Vector, VectorError> {
    Ok(named(vector::Vector::Dense(DenseVector { data: numbers(batch, chunk)? })))
}

/// What a chunk is found by: its text, the headings above it, and for the first one the title, where the text does not
/// say them itself.
fn words_of<'a>(batch: &'a EmbeddingBatch, chunk: &'a EmbeddedChunk) -> Vec<&'a str> {
    let title = batch.title.as_deref().filter(|_| chunk.ordinal == 0);
    let above = title.into_iter().chain(chunk.heading_path.iter().map(String::as_str));
    let mut parts = vec![chunk.text.as_str()];
    for heading in above {
        if !parts.iter().any(|part| part.contains(heading)) {
            parts.push(heading);
        }
    }
    parts
}

/// The chunk's vector, from little-endian bytes.
fn numbers(batch: &EmbeddingBatch, chunk: &EmbeddedChunk) -> Result<Vec<f32>, VectorError> {
    let (numbers, rest) = chunk.vector.as_chunks::<4>();
    let data: Vec<f32> = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let dimension = usize::try_from(batch.dimension).unwrap_or_default();
    if !rest.is_empty() || data.len() != dimension || dimension == 0 {
        return Err(VectorError::Invalid(format!(
            "chunk {} has a vector of {} bytes instead of {} numbers",
            chunk.ordinal,
            chunk.vector.len(),
            batch.dimension
        )));
    }
    if data.iter().any(|number| !number.is_finite()) {
        let message = format!("the vector of chunk {} has numbers that are not finite", chunk.ordinal);
        return Err(VectorError::Invalid(message));
    }
    Ok(data)
}
