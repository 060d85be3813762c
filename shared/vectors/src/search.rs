//! Reading: retrieval of a tenant's passages, of revisions that heads show only.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use qdrant_client::qdrant::{
    DenseVector, Filter, PrefetchQuery, Query, QueryPoints, Rrf, ScoredPoint, SparseVector, VectorInput, query,
    vector_input,
};
use weir_contracts::{DocumentId, Revision, TenantId};

use crate::collection::{DENSE, TEXT};
use crate::payload::{Reader, field};
use crate::{Head, VectorError, VectorStore, filter, metric};

/// How much more a second ask brings than the first.
const SECOND_ASK: usize = 4;

/// Which vectors are searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By meaning.
    Dense,
    /// By words (BM25).
    Sparse,
    /// Both, fused by reciprocal rank.
    Hybrid,
}

impl Mode {
    /// Name in metrics, tables and on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Sparse => "sparse",
            Self::Hybrid => "hybrid",
        }
    }
}

/// What is searched for.
#[derive(Debug, Clone, Copy)]
pub struct Search<'a> {
    /// Whose documents.
    pub tenant: &'a TenantId,
    /// Only documents whose metadata has all these values.
    pub filter: &'a BTreeMap<String, String>,
    /// The question as a vector of the collection's model; needed for [`Mode::Dense`].
    pub dense: Option<&'a [f32]>,
    /// The question as text; needed for [`Mode::Sparse`].
    pub text: Option<&'a str>,
    /// Hits wanted.
    pub limit: usize,
    /// Which vectors are searched. A hybrid search with one leg missing searches the other.
    pub mode: Mode,
}

/// A passage that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// Document it belongs to.
    pub document: DocumentId,
    /// Revision of the document.
    pub revision: Revision,
    /// Which chunk of it.
    pub ordinal: i32,
    /// First byte in the document's text.
    pub start: i64,
    /// Byte after the last one.
    pub end: i64,
    /// Title of the document.
    pub title: Option<String>,
    /// Headings above the passage, outermost first.
    pub heading_path: Vec<String>,
    /// The passage.
    pub text: String,
    /// How well it fits; comparable within one search only.
    pub score: f64,
}

struct Candidate {
    hit: Hit,
    build: String,
}

impl VectorStore {
    /// The best passages, best first. Empty when there is no collection yet.
    ///
    /// # Errors
    /// [`VectorError::Invalid`] when the mode needs a vector or a text that is not given.
    pub async fn search(&self, search: &Search<'_>) -> Result<Vec<Hit>, VectorError> {
        let started = Instant::now();
        let result = match self.search_shown(search).await {
            Err(VectorError::NoCollection { .. }) => Ok(Vec::new()),
            other => other,
        };
        metrics::histogram!(metric::RETRIEVAL_SECONDS, "mode" => search.mode.name()).record(started.elapsed());
        result
    }

    async fn search_shown(&self, search: &Search<'_>) -> Result<Vec<Hit>, VectorError> {
        let Some(legs) = self.legs(search)? else { return Ok(Vec::new()) };
        let first = more(search.limit, self.config().overfetch);
        let (mut hits, hidden) = self.ask(search, &legs, first).await?;
        // Either hidden hits took the place of others, or a head moved on between the search and the look at it: then
        // the chunks it shows now were all there before it moved, and a second ask finds them.
        if hits.len() < search.limit && hidden > 0 {
            metrics::counter!(metric::SECOND_ASKS).increment(1);
            (hits, _) = self.ask(search, &legs, first.saturating_mul(SECOND_ASK)).await?;
        }
        hits.truncate(search.limit);
        Ok(hits)
    }

    /// Hits that heads show, and how many they hid.
    async fn ask(&self, search: &Search<'_>, legs: &Legs, limit: usize) -> Result<(Vec<Hit>, usize), VectorError> {
        let request = self.query(search, legs, limit);
        let response = self.call("search", self.client().query(request)).await?;
        let candidates = response.result.into_iter().map(candidate).collect::<Result<Vec<_>, _>>()?;
        let heads = self.heads_of(search.tenant, &candidates).await?;
        let found = candidates.len();
        let hits: Vec<_> = candidates
            .into_iter()
            .filter(|candidate| {
                heads
                    .get(&candidate.hit.document)
                    .is_some_and(|head| head.shows(candidate.hit.revision, &candidate.build))
            })
            .map(|candidate| candidate.hit)
            .collect();
        let hidden = found.saturating_sub(hits.len());
        if hidden > 0 {
            metrics::counter!(metric::HIDDEN_HITS).increment(u64::try_from(hidden).unwrap_or(u64::MAX));
        }
        Ok((hits, hidden))
    }

    async fn heads_of(
        &self,
        tenant: &TenantId,
        candidates: &[Candidate],
    ) -> Result<HashMap<DocumentId, Head>, VectorError> {
        let mut documents: Vec<_> = candidates.iter().map(|candidate| &candidate.hit.document).collect();
        documents.sort_unstable();
        documents.dedup();
        let keys: Vec<_> = documents.into_iter().map(|document| (tenant, document)).collect();
        let heads = self.heads(&keys).await?;
        Ok(heads.into_iter().flatten().map(|head| (head.document.clone(), head)).collect())
    }

    fn query(&self, search: &Search<'_>, legs: &Legs, limit: usize) -> QueryPoints {
        let scope = filter::chunks_with(search.tenant, search.filter);
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        let mut request = QueryPoints {
            collection_name: self.collection().to_owned(),
            limit: Some(limit),
            with_payload: Some(true.into()),
            with_vectors: Some(false.into()),
            ..QueryPoints::default()
        };
        match legs {
            Legs::One(leg) => {
                request.query = Some(leg.query());
                request.using = Some(leg.using.to_owned());
                request.filter = Some(scope);
            }
            Legs::Both(dense, sparse) => {
                let candidates = limit.max(self.config().candidates);
                request.prefetch = vec![dense.prefetch(&scope, candidates), sparse.prefetch(&scope, candidates)];
                let rrf = Rrf { k: Some(self.config().rrf_k), weights: Vec::new() };
                request.query = Some(Query { variant: Some(query::Variant::Rrf(rrf)) });
            }
        }
        request
    }

    /// What is searched; nothing when the text has no words to search for.
    fn legs(&self, search: &Search<'_>) -> Result<Option<Legs>, VectorError> {
        if search.limit == 0 {
            return Ok(None);
        }
        let dense = search.dense.map(|vector| Leg {
            using: DENSE,
            input: vector_input::Variant::Dense(DenseVector { data: vector.to_vec() }),
        });
        let sparse =
            search.text.map(|text| self.inner.bm25.query(text)).filter(|query| !query.is_empty()).map(|query| {
                let query = SparseVector { indices: query.indices, values: query.values };
                Leg { using: TEXT, input: vector_input::Variant::Sparse(query) }
            });
        let missing = |what| VectorError::Invalid(format!("a {} search needs {what}", search.mode.name()));
        Ok(match search.mode {
            Mode::Dense => Some(Legs::One(dense.ok_or_else(|| missing("a vector"))?)),
            Mode::Sparse if search.text.is_none() => return Err(missing("a text")),
            Mode::Sparse => sparse.map(Legs::One),
            Mode::Hybrid => match (dense, sparse) {
                (Some(dense), Some(sparse)) => Some(Legs::Both(dense, sparse)),
                (Some(leg), None) | (None, Some(leg)) => Some(Legs::One(leg)),
                (None, None) if search.text.is_none() => return Err(missing("a vector or a text")),
                (None, None) => None,
            },
        })
    }
}

enum Legs {
    One(Leg),
    Both(Leg, Leg),
}

struct Leg {
    using: &'static str,
    input: vector_input::Variant,
}

impl Leg {
    fn query(&self) -> Query {
        let input = VectorInput { variant: Some(self.input.clone()) };
        Query { variant: Some(query::Variant::Nearest(input)) }
    }

    fn prefetch(&self, scope: &Filter, limit: u64) -> PrefetchQuery {
        PrefetchQuery {
            query: Some(self.query()),
            using: Some(self.using.to_owned()),
            filter: Some(scope.clone()),
            limit: Some(limit),
            ..PrefetchQuery::default()
        }
    }
}

fn candidate(point: ScoredPoint) -> Result<Candidate, VectorError> {
    let mut fields = Reader::new(point.id.as_ref(), point.payload);
    let document = DocumentId::parse(fields.text(field::DOCUMENT)?).map_err(|e| fields.foreign(e.to_string()))?;
    let hit = Hit {
        document,
        revision: Revision::from_ordinal(fields.int(field::REVISION)?),
        ordinal: fields.small_int(field::ORDINAL)?,
        start: fields.int(field::START)?,
        end: fields.int(field::END)?,
        title: fields.optional_text(field::TITLE),
        heading_path: fields.list(field::HEADING_PATH),
        text: fields.text(field::TEXT)?,
        score: f64::from(point.score),
    };
    Ok(Candidate { hit, build: fields.text(field::BUILD)? })
}

/// `limit` times `factor`, at least `limit`.
fn more(limit: usize, factor: f64) -> usize {
    // A number of hits is small and not negative.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let more = (limit as f64 * factor.clamp(1.0, 100.0)).ceil() as usize;
    more.max(limit)
}
