//! Collections: what a client asks for, as the engine's configuration.

use std::collections::HashMap;

use qdrant_client::qdrant::payload_index_params::IndexParams;
use qdrant_client::qdrant::{
    CreateCollection, CreateFieldIndexCollection, Datatype, Distance as DistanceMessage, FieldType, HnswConfigDiff,
    IntegerIndexParams as IntegerMessage, KeywordIndexParams as KeywordMessage, Memory, Modifier as ModifierMessage,
    OptimizersConfigDiff, PayloadIndexParams, PayloadSchemaInfo, PayloadSchemaType as SchemaMessage,
    SparseVectorParams, VectorParams, WalConfigDiff, vectors_config,
};
use qdrant_edge::{
    Distance, EdgeConfig, EdgeOptimizersConfig, EdgeSparseVectorParams, EdgeVectorParams, IntegerIndexParams,
    KeywordIndexParams, Modifier, PayloadFieldSchema, PayloadIndexInfo, PayloadSchemaParams, PayloadSchemaType,
};
use tonic::Status;

use crate::refusal::{invalid, only_if, unsupported};

/// The engine's configuration of a collection.
#[allow(deprecated)]
pub fn engine(message: &CreateCollection) -> Result<EdgeConfig, Status> {
    only_if(message.quantization_config.is_none(), "quantization")?;
    only_if(message.strict_mode_config.is_none(), "strict mode")?;
    only_if(message.sharding_method.unwrap_or_default() == 0, "custom sharding")?;
    only_if(message.replication_factor.unwrap_or(1) <= 1, "more than one replica")?;
    only_if(message.write_consistency_factor.unwrap_or(1) <= 1, "more than one replica")?;
    let vectors = match message.vectors_config.as_ref().and_then(|vectors| vectors.config.as_ref()) {
        None => HashMap::new(),
        Some(vectors_config::Config::ParamsMap(map)) => map
            .map
            .iter()
            .map(|(name, params)| Ok((name.clone(), dense(name, params)?)))
            .collect::<Result<_, Status>>()?,
        Some(vectors_config::Config::Params(_)) => return Err(unsupported("vectors without a name")),
    };
    let sparse_vectors = match message.sparse_vectors_config.as_ref() {
        None => HashMap::new(),
        Some(config) => config
            .map
            .iter()
            .map(|(name, params)| Ok((name.clone(), sparse(params)?)))
            .collect::<Result<_, Status>>()?,
    };
    Ok(EdgeConfig {
        on_disk_payload: true,
        vectors,
        sparse_vectors,
        // No approximate index: search is exact.
        optimizers: EdgeOptimizersConfig { indexing_threshold: Some(0), ..EdgeOptimizersConfig::default() },
        ..EdgeConfig::default()
    })
}

#[allow(deprecated)]
fn dense(name: &str, params: &VectorParams) -> Result<EdgeVectorParams, Status> {
    only_if(params.quantization_config.is_none(), "quantization")?;
    only_if(params.multivector_config.is_none(), "vectors of vectors")?;
    plain_numbers(params.datatype)?;
    let size = usize::try_from(params.size).map_err(invalid)?;
    if !(1..=65_536).contains(&size) {
        return Err(invalid(format!("vectors {name:?} of {size} numbers")));
    }
    let distance = match DistanceMessage::try_from(params.distance) {
        Ok(DistanceMessage::Cosine) => Distance::Cosine,
        Ok(DistanceMessage::Dot) => Distance::Dot,
        Ok(DistanceMessage::Euclid) => Distance::Euclid,
        Ok(DistanceMessage::Manhattan) => Distance::Manhattan,
        Ok(DistanceMessage::UnknownDistance) | Err(_) => {
            return Err(invalid(format!("vectors {name:?} have no distance")));
        }
    };
    let cold = params.memory == Some(Memory::Cold.into());
    Ok(EdgeVectorParams {
        size,
        distance,
        on_disk: Some(params.on_disk.unwrap_or(cold)),
        multivector_config: None,
        datatype: None,
        quantization_config: None,
        hnsw_config: None,
    })
}

fn sparse(params: &SparseVectorParams) -> Result<EdgeSparseVectorParams, Status> {
    plain_numbers(params.index.as_ref().and_then(|index| index.datatype))?;
    let modifier = match params.modifier.map(ModifierMessage::try_from) {
        None | Some(Ok(ModifierMessage::None)) => None,
        Some(Ok(ModifierMessage::Idf)) => Some(Modifier::Idf),
        Some(Err(_)) => return Err(invalid("a sparse vector has a modifier that does not exist")),
    };
    Ok(EdgeSparseVectorParams { full_scan_threshold: None, on_disk: None, modifier, datatype: None })
}

fn plain_numbers(datatype: Option<i32>) -> Result<(), Status> {
    let plain = datatype
        .is_none_or(|datatype| matches!(Datatype::try_from(datatype), Ok(Datatype::Default | Datatype::Float32)));
    only_if(plain, "numbers other than float32")
}

/// HNSW settings as a server reports them: what was asked for, and Qdrant's defaults.
pub fn hnsw(asked: Option<HnswConfigDiff>) -> HnswConfigDiff {
    let asked = asked.unwrap_or_default();
    HnswConfigDiff {
        m: asked.m.or(Some(16)),
        ef_construct: asked.ef_construct.or(Some(100)),
        full_scan_threshold: asked.full_scan_threshold.or(Some(10_000)),
        max_indexing_threads: asked.max_indexing_threads.or(Some(0)),
        ..asked
    }
}

/// Settings of the optimizers as a server reports them. Clients refuse a description without them.
pub fn optimizers() -> OptimizersConfigDiff {
    OptimizersConfigDiff {
        deleted_threshold: Some(0.2),
        vacuum_min_vector_number: Some(1_000),
        default_segment_number: Some(0),
        indexing_threshold: Some(0),
        flush_interval_sec: Some(1),
        ..OptimizersConfigDiff::default()
    }
}

/// Settings of the write-ahead log as a server reports them.
pub fn log() -> WalConfigDiff {
    WalConfigDiff { wal_capacity_mb: Some(32), wal_segments_ahead: Some(0), wal_retain_closed: Some(1) }
}

/// The index of a payload field.
#[allow(deprecated)]
pub fn field_schema(message: &CreateFieldIndexCollection) -> Result<PayloadFieldSchema, Status> {
    let params = message.field_index_params.as_ref().and_then(|params| params.index_params.as_ref());
    let field_type = message
        .field_type
        .map(FieldType::try_from)
        .transpose()
        .map_err(|_| invalid("a field type that does not exist"))?;
    match (params, field_type) {
        (Some(IndexParams::KeywordIndexParams(params)), None | Some(FieldType::Keyword)) => {
            only_if(params.prefix.is_none(), "prefix indexes")?;
            only_if(params.nested.is_none(), "indexes of nested objects")?;
            Ok(PayloadFieldSchema::FieldParams(PayloadSchemaParams::Keyword(KeywordIndexParams {
                is_tenant: params.is_tenant,
                ..KeywordIndexParams::default()
            })))
        }
        (Some(IndexParams::IntegerIndexParams(params)), None | Some(FieldType::Integer)) => {
            only_if(params.nested.is_none(), "indexes of nested objects")?;
            Ok(PayloadFieldSchema::FieldParams(PayloadSchemaParams::Integer(IntegerIndexParams {
                lookup: params.lookup,
                range: params.range,
                is_principal: params.is_principal,
                ..IntegerIndexParams::default()
            })))
        }
        (None, Some(FieldType::Keyword)) => Ok(PayloadFieldSchema::FieldType(PayloadSchemaType::Keyword)),
        (None, Some(FieldType::Integer)) => Ok(PayloadFieldSchema::FieldType(PayloadSchemaType::Integer)),
        (None, Some(FieldType::Float)) => Ok(PayloadFieldSchema::FieldType(PayloadSchemaType::Float)),
        (None, Some(FieldType::Bool)) => Ok(PayloadFieldSchema::FieldType(PayloadSchemaType::Bool)),
        (None, None) => Err(invalid("a field index needs a type")),
        _ => Err(unsupported("indexes other than of keywords, integers, floats and booleans")),
    }
}

/// The index of a payload field, to be sent.
#[allow(deprecated)]
pub fn field_schema_out(info: &PayloadIndexInfo) -> PayloadSchemaInfo {
    let data_type = match info.data_type {
        PayloadSchemaType::Keyword => SchemaMessage::Keyword,
        PayloadSchemaType::Integer => SchemaMessage::Integer,
        PayloadSchemaType::Float => SchemaMessage::Float,
        PayloadSchemaType::Bool => SchemaMessage::Bool,
        PayloadSchemaType::Geo => SchemaMessage::Geo,
        PayloadSchemaType::Text => SchemaMessage::Text,
        PayloadSchemaType::Datetime => SchemaMessage::Datetime,
        PayloadSchemaType::Uuid => SchemaMessage::Uuid,
    };
    let params = match &info.params {
        Some(PayloadSchemaParams::Keyword(params)) => Some(IndexParams::KeywordIndexParams(KeywordMessage {
            is_tenant: params.is_tenant,
            ..KeywordMessage::default()
        })),
        Some(PayloadSchemaParams::Integer(params)) => Some(IndexParams::IntegerIndexParams(IntegerMessage {
            lookup: params.lookup,
            range: params.range,
            is_principal: params.is_principal,
            ..IntegerMessage::default()
        })),
        _ => None,
    };
    PayloadSchemaInfo {
        data_type: data_type.into(),
        params: params.map(|params| PayloadIndexParams { index_params: Some(params) }),
        points: u64::try_from(info.points).ok(),
    }
}
