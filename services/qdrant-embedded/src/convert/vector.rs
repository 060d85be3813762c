//! Vectors.

use std::collections::{HashMap, HashSet};

use qdrant_client::qdrant::vectors::VectorsOptions;
use qdrant_client::qdrant::{
    DenseVector, NamedVectorsOutput, PointStruct, SparseVector as SparseMessage, Vector, VectorOutput, VectorsOutput,
    WithVectorsSelector, vector, vector_output, vectors_output, with_vectors_selector,
};
use qdrant_edge::{
    EdgeConfig, PointStructPersisted, SparseVector, VectorInternal, VectorPersisted, VectorStructInternal,
    VectorStructPersisted, WithVector,
};
use tonic::Status;

use crate::convert::{payload, point_id};
use crate::refusal::{invalid, unsupported};

/// A point, checked against the collection before it is written: the engine would find the fault only after it has
/// written a part.
pub fn point(point: PointStruct, config: &EdgeConfig) -> Result<PointStructPersisted, Status> {
    let id = point_id(point.id)?;
    let vectors = match point.vectors.and_then(|vectors| vectors.vectors_options) {
        None => HashMap::new(),
        Some(VectorsOptions::Vectors(named)) => named.vectors,
        Some(VectorsOptions::Vector(_)) => return Err(unsupported("vectors without a name")),
    };
    let vectors = vectors
        .into_iter()
        .map(|(name, value)| {
            let value = stored(&name, value, config)?;
            Ok((name, value))
        })
        .collect::<Result<_, Status>>()?;
    Ok(PointStructPersisted {
        id,
        vector: VectorStructPersisted::Named(vectors),
        payload: Some(payload::payload(point.payload)?),
    })
}

/// A vector as it is stored.
fn stored(name: &str, value: Vector, config: &EdgeConfig) -> Result<VectorPersisted, Status> {
    match plain(value)? {
        VectorInternal::Dense(data) => {
            check_dense(name, &data, config)?;
            Ok(VectorPersisted::Dense(data))
        }
        VectorInternal::Sparse(sparse) => {
            check_sparse_name(name, config)?;
            Ok(VectorPersisted::Sparse(sparse))
        }
        VectorInternal::MultiDense(_) => Err(unsupported("vectors of vectors")),
    }
}

fn plain(value: Vector) -> Result<VectorInternal, Status> {
    match value.vector {
        Some(vector::Vector::Dense(dense)) => Ok(VectorInternal::Dense(dense.data)),
        Some(vector::Vector::Sparse(message)) => Ok(VectorInternal::Sparse(sparse(message)?)),
        Some(vector::Vector::MultiDense(_)) => Err(unsupported("vectors of vectors")),
        Some(vector::Vector::Document(_) | vector::Vector::Image(_) | vector::Vector::Object(_)) => {
            Err(unsupported("inference"))
        }
        None => old_style(value),
    }
}

/// Clients before 1.16 put the numbers straight into the message.
#[allow(deprecated)]
fn old_style(value: Vector) -> Result<VectorInternal, Status> {
    if value.vectors_count.is_some() {
        return Err(unsupported("vectors of vectors"));
    }
    match value.indices {
        Some(indices) => {
            Ok(VectorInternal::Sparse(sparse(SparseMessage { values: value.data, indices: indices.data })?))
        }
        None => Ok(VectorInternal::Dense(value.data)),
    }
}

/// A sparse vector with its dimensions in order.
pub fn sparse(message: SparseMessage) -> Result<SparseVector, Status> {
    let SparseMessage { values, indices } = message;
    if values.len() != indices.len() {
        return Err(invalid("a sparse vector has not as many values as indices"));
    }
    if values.iter().any(|value| !value.is_finite()) {
        return Err(invalid("a sparse vector has values that are not finite"));
    }
    if indices.iter().collect::<HashSet<_>>().len() != indices.len() {
        return Err(invalid("Validation error in sparse vector: indices must be unique"));
    }
    let mut pairs: Vec<_> = indices.into_iter().zip(values).collect();
    pairs.sort_unstable_by_key(|(index, _)| *index);
    let (indices, values) = pairs.into_iter().unzip();
    Ok(SparseVector { indices, values })
}

/// Whether numbers fit a named dense vector.
pub fn check_dense(name: &str, data: &[f32], config: &EdgeConfig) -> Result<(), Status> {
    let params = config.vectors.get(name).ok_or_else(|| no_vector(name))?;
    if params.size != data.len() {
        return Err(invalid(format!(
            "Wrong input: Vector dimension error: expected dim: {}, got {}",
            params.size,
            data.len()
        )));
    }
    if data.iter().any(|value| !value.is_finite()) {
        return Err(invalid(format!("vector {name:?} has numbers that are not finite")));
    }
    Ok(())
}

/// Whether a named sparse vector exists.
pub fn check_sparse_name(name: &str, config: &EdgeConfig) -> Result<(), Status> {
    if config.sparse_vectors.contains_key(name) { Ok(()) } else { Err(no_vector(name)) }
}

fn no_vector(name: &str) -> Status {
    invalid(format!("Wrong input: Not existing vector name error: {name}"))
}

/// Which vectors are wanted.
pub fn with_vectors(selector: Option<WithVectorsSelector>) -> WithVector {
    match selector.and_then(|selector| selector.selector_options) {
        None => WithVector::Bool(false),
        Some(with_vectors_selector::SelectorOptions::Enable(all)) => WithVector::Bool(all),
        Some(with_vectors_selector::SelectorOptions::Include(names)) => WithVector::Selector(names.names),
    }
}

/// Vectors, to be sent.
pub fn vectors_out(vectors: Option<VectorStructInternal>) -> Option<VectorsOutput> {
    let named = match vectors? {
        VectorStructInternal::Named(named) => named,
        VectorStructInternal::Single(data) => HashMap::from([(String::new(), VectorInternal::Dense(data))]),
        VectorStructInternal::MultiDense(_) => HashMap::new(),
    };
    let vectors = named.into_iter().filter_map(|(name, value)| Some((name, vector_out(value)?))).collect();
    Some(VectorsOutput {
        vectors_options: Some(vectors_output::VectorsOptions::Vectors(NamedVectorsOutput { vectors })),
    })
}

fn vector_out(value: VectorInternal) -> Option<VectorOutput> {
    let value = match value {
        VectorInternal::Dense(data) => vector_output::Vector::Dense(DenseVector { data }),
        VectorInternal::Sparse(SparseVector { indices, values }) => {
            vector_output::Vector::Sparse(SparseMessage { values, indices })
        }
        // None can have been stored.
        VectorInternal::MultiDense(_) => return None,
    };
    Some(VectorOutput { vector: Some(value), ..VectorOutput::default() })
}
