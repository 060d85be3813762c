//! Reading: retrieval of a tenant's passages, of revisions that heads show only.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime};

use qdrant_client::qdrant::{
    DenseVector, Filter, PointId, PrefetchQuery, Query, QueryPoints, Rrf, ScoredPoint, SparseVector, Value,
    VectorInput, query, vector_input,
};
use weir_contracts::{DocumentId, Revision, TenantId, unix_millis};

use crate::collection::{DENSE, TEXT};
use crate::payload::{Reader, field};
use crate::{Head, VectorError, VectorStore, filter, metric};

/// How much more a second ask brings than the first.
const SECOND_ASK: usize = 4;
/// Asks of one search, at most. A document that still changed during the last one is left out: none of it is better
/// than half of it.
const MOST_ASKS: usize = 5;
/// How far the clocks of writers and readers may be apart.
const CLOCKS_APART: Duration = Duration::from_secs(10);

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
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
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

type Heads = HashMap<DocumentId, Head>;

/// What one ask brought.
struct Asked {
    hits: Vec<Hit>,
    /// Hits that no head shows.
    hidden: usize,
    /// Hits of documents of which some chunks may not have been there yet when they were asked for.
    unsure: usize,
    heads: Heads,
}

/// Whether all chunks that a head shows were there before the ask began. Heads are looked at after the chunks, so a
/// head may have moved in between, when the ask had seen but a part of what it shows. It had not if it showed the same
/// before the ask, or if it moved long enough ago.
fn was_whole(head: &Head, earlier: Option<&Head>, settled: i64) -> bool {
    head.at < settled || earlier.is_some_and(|earlier| earlier.shows(head.revision, &head.build))
}

/// Heads that moved before this moment (milliseconds since the Unix epoch) did so before `now`, whoever's clock is
/// ahead.
fn settled(now: SystemTime) -> i64 {
    now.checked_sub(CLOCKS_APART).map_or(0, unix_millis)
}

impl VectorStore {
    /// The best passages, best first. Empty when there is no collection yet.
    ///
    /// # Errors
    /// [`VectorError::Invalid`] when the mode needs a vector or a text that is not given.
    pub async fn search(&self, search: &Search<'_>) -> Result<Vec<Hit>, VectorError> {
        let started = Instant::now();
        let result = match self.search_shown(search, SystemTime::now()).await {
            Err(VectorError::NoCollection { .. }) => Ok(Vec::new()),
            other => other,
        };
        metrics::histogram!(metric::RETRIEVAL_SECONDS, "mode" => search.mode.name()).record(started.elapsed());
        result
    }

    async fn search_shown(&self, search: &Search<'_>, now: SystemTime) -> Result<Vec<Hit>, VectorError> {
        let Some(legs) = self.legs(search)? else { return Ok(Vec::new()) };
        let settled = settled(now);
        let mut limit = more(search.limit, self.config().overfetch);
        let mut asked = self.ask(search, &legs, limit, &Heads::new(), settled).await?;
        for ask in 1..MOST_ASKS {
            // Hidden hits took the place of others.
            let is_short = ask == 1 && asked.hidden > 0 && asked.hits.len().saturating_add(asked.unsure) < search.limit;
            if !is_short && asked.unsure == 0 {
                break;
            }
            if is_short {
                limit = limit.saturating_mul(SECOND_ASK);
            }
            metrics::counter!(metric::SECOND_ASKS).increment(1);
            asked = self.ask(search, &legs, limit, &asked.heads, settled).await?;
        }
        asked.hits.truncate(search.limit);
        Ok(asked.hits)
    }

    /// Hits that heads show. `earlier` is what heads showed before this ask.
    async fn ask(
        &self,
        search: &Search<'_>,
        legs: &Legs,
        limit: usize,
        earlier: &Heads,
        settled: i64,
    ) -> Result<Asked, VectorError> {
        let request = self.query(search, legs, limit);
        let response = self.call("search", self.client().query(request)).await?;
        let candidates = response.result.into_iter().map(candidate).collect::<Result<Vec<_>, _>>()?;
        let heads = self.heads_of(search.tenant, &candidates).await?;
        let mut asked = Asked { hits: Vec::new(), hidden: 0, unsure: 0, heads };
        for Candidate { hit, build } in candidates {
            match asked.heads.get(&hit.document).filter(|head| !head.deleted) {
                Some(head) if !was_whole(head, earlier.get(&hit.document), settled) => {
                    asked.unsure = asked.unsure.saturating_add(1);
                }
                Some(head) if head.shows(hit.revision, &build) => asked.hits.push(hit),
                _ => asked.hidden = asked.hidden.saturating_add(1),
            }
        }
        if asked.hidden > 0 {
            metrics::counter!(metric::HIDDEN_HITS).increment(u64::try_from(asked.hidden).unwrap_or(u64::MAX));
        }
        Ok(asked)
    }

    async fn heads_of(&self, tenant: &TenantId, candidates: &[Candidate]) -> Result<Heads, VectorError> {
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
    let (hit, build) = passage(point.id.as_ref(), point.payload, f64::from(point.score))?;
    Ok(Candidate { hit, build })
}

/// A chunk as a passage, and its build.
pub(crate) fn passage(
    id: Option<&PointId>,
    payload: HashMap<String, Value>,
    score: f64,
) -> Result<(Hit, String), VectorError> {
    let mut fields = Reader::new(id, payload);
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
        score,
    };
    Ok((hit, fields.text(field::BUILD)?))
}

/// `limit` times `factor`, at least `limit`.
fn more(limit: usize, factor: f64) -> usize {
    // A number of hits is small and not negative.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let more = (limit as f64 * factor.clamp(1.0, 100.0)).ceil() as usize;
    more.max(limit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::UNIX_EPOCH;

    use super::*;

    fn head(revision: i64, at: i64) -> Head {
        Head {
            tenant: TenantId::parse("acme").unwrap(),
            document: DocumentId::parse("d").unwrap(),
            revision: Revision::from_ordinal(revision),
            build: "b".into(),
            position: 0,
            deleted: false,
            chunks: 3,
            requested_at: 0,
            at,
        }
    }

    #[test]
    fn what_a_head_shows_was_whole_when_it_was_asked_for_if_the_head_had_not_just_moved() {
        let settled = settled(UNIX_EPOCH + Duration::from_secs(100));
        assert_eq!(settled, 90_000);
        assert!(was_whole(&head(2, 89_999), None, settled), "it moved long ago, whoever's clock is ahead");
        assert!(!was_whole(&head(2, 90_000), None, settled), "it may have moved after the chunks were asked for");
        assert!(was_whole(&head(2, 99_999), Some(&head(2, 99_999)), settled), "it was there before the second ask");
        assert!(!was_whole(&head(2, 99_999), Some(&head(1, 5)), settled), "it moved again");
        assert!(!was_whole(&head(2, 99_999), Some(&Head { deleted: true, ..head(2, 5) }), settled));
    }
}
