//! The passages an answer may rest on.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use weir_contracts::{DocumentId, TenantId, are_comparable};
use weir_vectors::{Hit, Mode, Search, VectorError, VectorStore};

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Whose documents.
    pub tenant: &'a TenantId,
    /// Only documents whose metadata has all these values.
    pub filter: &'a BTreeMap<String, String>,
    /// The question.
    pub question: &'a str,
    /// The question as a vector.
    pub vector: &'a [f32],
    /// Passages, at most.
    pub limit: usize,
}

/// A passage that was found.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Passage {
    /// Where it stands and what it says.
    pub hit: Hit,
    /// Cosine of passage and question, when the search by meaning found it too.
    pub similarity: Option<f64>,
}

/// The first passages, as many as have no more bytes of text than that together.
pub(crate) fn fitting(mut passages: Vec<Passage>, bytes: usize) -> Vec<Passage> {
    let mut left = bytes;
    let mut fits = |passage: &Passage| {
        let rest = left.checked_sub(passage.hit.text.len());
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    passages.truncate(passages.iter().take_while(|passage| fits(passage)).count());
    passages
}

/// Why nothing could be retrieved.
#[derive(Debug, thiserror::Error)]
pub enum RetrieveError {
    /// The vector store says so.
    #[error(transparent)]
    Store(#[from] VectorError),
    /// Documents and questions are embedded by different models: every cosine would be meaningless.
    #[error(
        "the collection holds vectors of {collection}, but questions are embedded by {service}: set [model] to the \
         documents' model, or qdrant.collection to one that was built with this one"
    )]
    OtherModel {
        /// The documents' model.
        collection: String,
        /// The service's model.
        service: String,
    },
    /// The vector store did not answer in time.
    #[error("not within {} ms", limit.as_millis())]
    TimedOut {
        /// The time it had.
        limit: Duration,
    },
}

impl RetrieveError {
    /// Whether the same may succeed later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_unavailable(),
            Self::TimedOut { .. } => true,
            Self::OtherModel { .. } => false,
        }
    }
}

/// Finds passages.
pub trait Retrieve: Send + Sync + 'static {
    /// The best passages, best first.
    ///
    /// # Errors
    /// When the store does not answer or can't.
    fn retrieve(&self, wanted: &Wanted<'_>) -> impl Future<Output = Result<Vec<Passage>, RetrieveError>> + Send;

    /// The first passages of a document in the order they stand in it, if its metadata have all these values.
    ///
    /// # Errors
    /// When the store does not answer.
    fn document(
        &self,
        tenant: &TenantId,
        filter: &BTreeMap<String, String>,
        document: &DocumentId,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Passage>, RetrieveError>> + Send;

    /// Whether all these documents of a tenant are still there.
    ///
    /// # Errors
    /// When the store does not answer.
    fn all_shown(
        &self,
        tenant: &TenantId,
        documents: &[&DocumentId],
    ) -> impl Future<Output = Result<bool, RetrieveError>> + Send;
}

/// Passages from the vector store, by meaning and by words.
#[derive(Debug)]
pub struct Store {
    vectors: VectorStore,
    model: String,
    same_model: AtomicBool,
}

impl Store {
    /// Retrieval for questions that `model` embeds.
    #[must_use]
    pub fn new(vectors: VectorStore, model: &str) -> Self {
        Self { vectors, model: model.to_owned(), same_model: AtomicBool::new(false) }
    }

    async fn check_model(&self) -> Result<(), RetrieveError> {
        if self.same_model.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.vectors.model().await? {
            Some(collection) if !are_comparable(&collection, &self.model) => {
                Err(RetrieveError::OtherModel { collection, service: self.model.clone() })
            }
            Some(_) => {
                self.same_model.store(true, Ordering::Relaxed);
                Ok(())
            }
            // There is no collection before the first document.
            None => Ok(()),
        }
    }
}

impl Retrieve for Store {
    async fn retrieve(&self, wanted: &Wanted<'_>) -> Result<Vec<Passage>, RetrieveError> {
        self.check_model().await?;
        let search = |mode| Search {
            tenant: wanted.tenant,
            filter: wanted.filter,
            dense: Some(wanted.vector),
            text: Some(wanted.question),
            limit: wanted.limit,
            mode,
        };
        // Fused scores say nothing about how near a passage is: the search by meaning alone says that.
        let (hybrid, dense) = (search(Mode::Hybrid), search(Mode::Dense));
        let (hits, near) = tokio::try_join!(self.vectors.search(&hybrid), self.vectors.search(&dense))?;
        let similarity: HashMap<_, f64> =
            near.iter().map(|hit| ((&hit.document, hit.revision, hit.ordinal), hit.score)).collect();
        let of = |hit: &Hit| similarity.get(&(&hit.document, hit.revision, hit.ordinal)).copied();
        Ok(hits.into_iter().map(|hit| Passage { similarity: of(&hit), hit }).collect())
    }

    async fn document(
        &self,
        tenant: &TenantId,
        filter: &BTreeMap<String, String>,
        document: &DocumentId,
        limit: usize,
    ) -> Result<Vec<Passage>, RetrieveError> {
        let hits = self.vectors.document(tenant, filter, document, limit).await?;
        Ok(hits.into_iter().map(|hit| Passage { hit, similarity: None }).collect())
    }

    async fn all_shown(&self, tenant: &TenantId, documents: &[&DocumentId]) -> Result<bool, RetrieveError> {
        let documents: Vec<_> = documents.iter().map(|document| (tenant, *document)).collect();
        let heads = self.vectors.heads(&documents).await?;
        Ok(heads.iter().all(|head| head.as_ref().is_some_and(|head| !head.deleted)))
    }
}
