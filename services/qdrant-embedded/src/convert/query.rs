//! Queries.

use qdrant_client::qdrant::{
    Fusion as FusionMessage, PrefetchQuery, Query as QueryMessage, QueryPoints, SearchParams as ParamsMessage,
    VectorInput, query, vector_input,
};
use qdrant_edge::external::ordered_float::OrderedFloat;
use qdrant_edge::{
    EdgeConfig, Fusion, NamedQuery, Prefetch, QueryEnum, QueryRequest, ScoringQuery, SearchParams, VectorInternal,
};
use tonic::Status;

use crate::convert::vector::{check_dense, check_sparse_name, sparse, with_vectors};
use crate::convert::{filter, payload};
use crate::refusal::{invalid, only_if, unsupported};

/// Hits when nothing is said, as in Qdrant.
const DEFAULT_LIMIT: u64 = 10;
/// The k of reciprocal rank fusion when nothing is said, as in Qdrant.
const DEFAULT_RRF_K: usize = 2;
/// Prefetches within prefetches, at most.
const DEEPEST: usize = 8;

/// A query, checked against the collection.
pub fn request(message: QueryPoints, config: &EdgeConfig) -> Result<QueryRequest, Status> {
    let QueryPoints {
        collection_name: _,
        prefetch,
        query,
        using,
        filter,
        params,
        score_threshold,
        limit,
        offset,
        with_vectors: vectors,
        with_payload,
        // One replica: every read is consistent.
        read_consistency: _,
        shard_key_selector,
        lookup_from,
        timeout: _,
    } = message;
    only_if(shard_key_selector.is_none(), "shard keys")?;
    only_if(lookup_from.is_none(), "lookups in other collections")?;
    let prefetches =
        prefetch.into_iter().map(|message| self::prefetch(message, config, 1)).collect::<Result<Vec<_>, _>>()?;
    let query = scoring(query, using, prefetches.len(), config)?;
    Ok(QueryRequest {
        prefetches,
        query,
        filter: filter::optional(filter)?,
        score_threshold: score_threshold.map(OrderedFloat),
        limit: count(limit.unwrap_or(DEFAULT_LIMIT))?,
        offset: count(offset.unwrap_or_default())?,
        params: self::params(params)?,
        with_vector: with_vectors(vectors),
        with_payload: payload::with_payload(with_payload)?,
    })
}

fn prefetch(message: PrefetchQuery, config: &EdgeConfig, depth: usize) -> Result<Prefetch, Status> {
    if depth > DEEPEST {
        return Err(invalid(format!("prefetches may lie in each other {DEEPEST} deep")));
    }
    let PrefetchQuery { prefetch, query, using, filter, params, score_threshold, limit, lookup_from } = message;
    only_if(lookup_from.is_none(), "lookups in other collections")?;
    let prefetches = prefetch
        .into_iter()
        .map(|message| self::prefetch(message, config, depth.saturating_add(1)))
        .collect::<Result<Vec<_>, _>>()?;
    let query = scoring(query, using, prefetches.len(), config)?;
    Ok(Prefetch {
        prefetches,
        query,
        limit: count(limit.unwrap_or(DEFAULT_LIMIT))?,
        params: self::params(params)?,
        filter: filter::optional(filter)?,
        score_threshold: score_threshold.map(OrderedFloat),
    })
}

fn scoring(
    query: Option<QueryMessage>,
    using: Option<String>,
    prefetches: usize,
    config: &EdgeConfig,
) -> Result<Option<ScoringQuery>, Status> {
    let Some(variant) = query.and_then(|query| query.variant) else {
        return if prefetches == 0 {
            Ok(None)
        } else {
            Err(invalid("A query is needed to merge the prefetches. Can't have prefetches without defining a query."))
        };
    };
    let fusion = match variant {
        query::Variant::Nearest(input) => {
            let name = using.ok_or_else(|| unsupported("vectors without a name"))?;
            return Ok(Some(ScoringQuery::Vector(nearest(input, name, config)?)));
        }
        query::Variant::Fusion(number) => match FusionMessage::try_from(number) {
            Ok(FusionMessage::Rrf) => Fusion::Rrf { k: DEFAULT_RRF_K, weights: None },
            Ok(FusionMessage::Dbsf) => Fusion::Dbsf,
            Err(_) => return Err(invalid(format!("{number} is not a fusion"))),
        },
        query::Variant::Rrf(rrf) => {
            let k = match rrf.k {
                None => DEFAULT_RRF_K,
                Some(0) => return Err(invalid("the k of reciprocal rank fusion is at least 1")),
                Some(k) => usize::try_from(k).map_err(invalid)?,
            };
            let weights = rrf.weights.into_iter().map(OrderedFloat).collect::<Vec<_>>();
            Fusion::Rrf { k, weights: (!weights.is_empty()).then_some(weights) }
        }
        query::Variant::Recommend(_) => return Err(unsupported("recommendations")),
        query::Variant::Discover(_) | query::Variant::Context(_) => return Err(unsupported("discovery")),
        query::Variant::OrderBy(_) => return Err(unsupported("order_by")),
        query::Variant::Sample(_) => return Err(unsupported("samples")),
        query::Variant::Formula(_) => return Err(unsupported("formulas")),
        query::Variant::NearestWithMmr(_) => return Err(unsupported("maximal marginal relevance")),
        query::Variant::RelevanceFeedback(_) => return Err(unsupported("relevance feedback")),
        query::Variant::Text(_) => return Err(unsupported("text queries")),
    };
    if prefetches == 0 {
        return Err(invalid("a fusion needs prefetches"));
    }
    Ok(Some(ScoringQuery::Fusion(fusion)))
}

fn nearest(input: VectorInput, name: String, config: &EdgeConfig) -> Result<QueryEnum, Status> {
    let vector = match input.variant.ok_or_else(|| invalid("a query has no vector"))? {
        vector_input::Variant::Dense(dense) => {
            check_dense(&name, &dense.data, config)?;
            VectorInternal::Dense(dense.data)
        }
        vector_input::Variant::Sparse(message) => {
            check_sparse_name(&name, config)?;
            VectorInternal::Sparse(sparse(message)?)
        }
        vector_input::Variant::Id(_) => return Err(unsupported("queries by the id of a point")),
        vector_input::Variant::MultiDense(_) => return Err(unsupported("vectors of vectors")),
        vector_input::Variant::Document(_) | vector_input::Variant::Image(_) | vector_input::Variant::Object(_) => {
            return Err(unsupported("inference"));
        }
    };
    Ok(QueryEnum::Nearest(NamedQuery { query: vector, using: Some(name) }))
}

/// Search here is always exact, so what trades exactness for time has nothing to change.
fn params(message: Option<ParamsMessage>) -> Result<Option<SearchParams>, Status> {
    let Some(message) = message else { return Ok(None) };
    let ParamsMessage { hnsw_ef: _, exact: _, quantization, indexed_only, acorn: _, idf } = message;
    only_if(quantization.is_none(), "quantization")?;
    only_if(!indexed_only.unwrap_or_default(), "searches of what is indexed only")?;
    only_if(idf.is_none(), "an IDF corpus of its own")?;
    Ok(None)
}

fn count(number: u64) -> Result<usize, Status> {
    usize::try_from(number).map_err(invalid)
}
