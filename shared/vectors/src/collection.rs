//! The collection: what it must look like, and making it when it is not there.

use std::collections::HashMap;

use qdrant_client::qdrant::payload_index_params::IndexParams;
use qdrant_client::qdrant::value::Kind;
use qdrant_client::qdrant::{
    CollectionInfo, CreateCollection, CreateFieldIndexCollection, Distance, FieldType, HnswConfigDiff,
    KeywordIndexParams, Modifier, PayloadIndexParams, SparseVectorConfig, SparseVectorParams, Value, VectorParams,
    VectorParamsMap, VectorsConfig, vectors_config,
};

use weir_contracts::are_comparable;

use crate::payload::field;
use crate::{QdrantConfig, VectorError, VectorStore};

/// Name of the dense vectors.
pub(crate) const DENSE: &str = "dense";
/// Name of the sparse vectors.
pub(crate) const TEXT: &str = "text";
/// Collection metadata: the model the dense vectors come from.
const MODEL: &str = "weir.model";
/// Neighbours of a point within its tenant. There is no graph over all tenants: every search names one.
const TENANT_LINKS: u64 = 16;

/// What the vectors of a collection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    pub dimension: u64,
    pub model: String,
}

impl Made {
    /// Whether vectors of the one may be written and searched among those of the other.
    fn takes(&self, other: &Self) -> bool {
        self.dimension == other.dimension && are_comparable(&self.model, &other.model)
    }
}

impl std::fmt::Display for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} numbers of {}", self.dimension, self.model)
    }
}

impl VectorStore {
    /// Makes sure that the collection, with its payload indexes, exists and holds vectors of this dimension and model.
    /// Asks Qdrant once; afterwards it is a comparison.
    ///
    /// # Errors
    /// [`VectorError::Mismatch`] when the collection was made for other vectors.
    pub async fn ensure_collection(&self, dimension: i32, model: &str) -> Result<(), VectorError> {
        let dimension = u64::try_from(dimension)
            .ok()
            .filter(|dimension| *dimension > 0)
            .ok_or_else(|| VectorError::Invalid(format!("vectors of {dimension} numbers")))?;
        let wanted = Made { dimension, model: model.to_owned() };
        let mut ensured = self.inner.ensured.lock().await;
        if ensured.is_none() {
            *ensured = Some(self.find_or_make(&wanted).await?);
        }
        match ensured.as_ref() {
            Some(found) if !found.takes(&wanted) => Err(self.mismatch(found, &wanted)),
            _ => Ok(()),
        }
    }

    /// The model whose vectors the collection holds; none when there is no collection.
    ///
    /// # Errors
    /// When Qdrant does not answer, or the collection is not one of Weir's.
    pub async fn model(&self) -> Result<Option<String>, VectorError> {
        match self.info().await {
            Ok(info) => Ok(Some(self.read(info)?.model)),
            Err(VectorError::NoCollection { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn find_or_make(&self, wanted: &Made) -> Result<Made, VectorError> {
        match self.info().await {
            Ok(info) => {
                let missing: Vec<_> =
                    indexes().into_iter().filter(|(field, _)| !info.payload_schema.contains_key(*field)).collect();
                let found = self.read(info)?;
                self.make_indexes(missing).await?;
                Ok(found)
            }
            Err(VectorError::NoCollection { .. }) => {
                let request = creation(self.config(), wanted);
                match self.call("create the collection", self.client().create_collection(request)).await {
                    Ok(_) => {}
                    // Another instance was first: look at what it made.
                    Err(VectorError::Refused { .. }) => {
                        let found = self.read(self.info().await?)?;
                        if !found.takes(wanted) {
                            return Err(self.mismatch(&found, wanted));
                        }
                    }
                    Err(error) => return Err(error),
                }
                self.make_indexes(indexes()).await?;
                Ok(wanted.clone())
            }
            Err(error) => Err(error),
        }
    }

    async fn info(&self) -> Result<CollectionInfo, VectorError> {
        let response = self.call("describe the collection", self.client().collection_info(self.collection())).await?;
        response.result.ok_or_else(|| VectorError::NoCollection { collection: self.collection().to_owned() })
    }

    async fn make_indexes(&self, indexes: Vec<(&'static str, IndexParams)>) -> Result<(), VectorError> {
        for (field, params) in indexes {
            let request = CreateFieldIndexCollection {
                collection_name: self.collection().to_owned(),
                wait: Some(true),
                field_name: field.to_owned(),
                field_type: Some(FieldType::Keyword.into()),
                field_index_params: Some(PayloadIndexParams { index_params: Some(params) }),
                ..CreateFieldIndexCollection::default()
            };
            self.call("index a payload field", self.client().create_field_index(request)).await?;
        }
        Ok(())
    }

    fn read(&self, info: CollectionInfo) -> Result<Made, VectorError> {
        let other = |found: &str| VectorError::Mismatch {
            collection: self.collection().to_owned(),
            found: found.to_owned(),
            wanted: format!("named {DENSE} (cosine) and {TEXT} (sparse, with the IDF modifier)"),
        };
        let config = info.config.ok_or_else(|| other("nothing that is known"))?;
        let model = match config.metadata.get(MODEL).and_then(|value| value.kind.as_ref()) {
            Some(Kind::StringValue(model)) => model.clone(),
            _ => return Err(other("vectors without the name of their model")),
        };
        let params = config.params.ok_or_else(|| other("nothing that is known"))?;
        let dense = match params.vectors_config.and_then(|vectors| vectors.config) {
            Some(vectors_config::Config::ParamsMap(map)) => map.map.get(DENSE).copied(),
            _ => None,
        };
        let dense = dense.ok_or_else(|| other("no dense vectors of that name"))?;
        if dense.distance != i32::from(Distance::Cosine) {
            return Err(other("dense vectors that are not compared by cosine"));
        }
        let sparse = params.sparse_vectors_config.and_then(|sparse| sparse.map.get(TEXT).copied());
        if sparse.and_then(|sparse| sparse.modifier) != Some(Modifier::Idf.into()) {
            return Err(other("no sparse vectors with the IDF modifier"));
        }
        Ok(Made { dimension: dense.size, model })
    }

    fn mismatch(&self, found: &Made, wanted: &Made) -> VectorError {
        VectorError::Mismatch {
            collection: self.collection().to_owned(),
            found: found.to_string(),
            wanted: wanted.to_string(),
        }
    }
}

fn creation(config: &QdrantConfig, made: &Made) -> CreateCollection {
    let dense = VectorParams { size: made.dimension, distance: Distance::Cosine.into(), ..VectorParams::default() };
    let sparse = SparseVectorParams { modifier: Some(Modifier::Idf.into()), ..SparseVectorParams::default() };
    let model = Value { kind: Some(Kind::StringValue(made.model.clone())) };
    CreateCollection {
        collection_name: config.collection.clone(),
        hnsw_config: Some(HnswConfigDiff { m: Some(0), payload_m: Some(TENANT_LINKS), ..HnswConfigDiff::default() }),
        vectors_config: Some(VectorsConfig {
            config: Some(vectors_config::Config::ParamsMap(VectorParamsMap {
                map: HashMap::from([(DENSE.to_owned(), dense)]),
            })),
        }),
        sparse_vectors_config: Some(SparseVectorConfig { map: HashMap::from([(TEXT.to_owned(), sparse)]) }),
        replication_factor: config.replication_factor,
        shard_number: config.shard_number,
        metadata: HashMap::from([(MODEL.to_owned(), model)]),
        ..CreateCollection::default()
    }
}

/// Every index costs each write, so only what a search or a removal begins with has one: the conditions on kind,
/// revision, build and position are looked up in the payloads of the few points of a document.
fn indexes() -> Vec<(&'static str, IndexParams)> {
    let keyword = |is_tenant: bool| {
        IndexParams::KeywordIndexParams(KeywordIndexParams {
            is_tenant: is_tenant.then_some(true),
            ..KeywordIndexParams::default()
        })
    };
    vec![(field::TENANT, keyword(true)), (field::DOCUMENT, keyword(false)), (field::META, keyword(false))]
}
