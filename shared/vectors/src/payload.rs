//! What lies in a point beside its vectors.

use std::collections::HashMap;

use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::value::Kind;
use qdrant_client::qdrant::vectors::VectorsOptions;
use qdrant_client::qdrant::{ListValue, NamedVectors, PointId, PointStruct, Value, Vectors};
use weir_contracts::{DocumentId, Revision, TenantId};

use crate::VectorError;

/// Names of the payload's fields.
pub(crate) mod field {
    pub const TENANT: &str = "tenant";
    pub const DOCUMENT: &str = "document";
    pub const REVISION: &str = "revision";
    pub const BUILD: &str = "build";
    /// Offset of the record that brought the point: orders builds of one revision.
    pub const POSITION: &str = "position";
    pub const KIND: &str = "kind";
    pub const REQUESTED_AT: &str = "requested_at";
    // Of chunks.
    pub const ORDINAL: &str = "ordinal";
    pub const START: &str = "start";
    pub const END: &str = "end";
    pub const TITLE: &str = "title";
    pub const HEADING_PATH: &str = "heading_path";
    pub const TEXT: &str = "text";
    /// The document's metadata, one entry a pair, see [`super::meta_entry`].
    pub const META: &str = "meta";
    // Of heads and notes of failures.
    pub const DELETED: &str = "deleted";
    pub const CHUNKS: &str = "chunks";
    pub const AT: &str = "at";
}

/// Values of [`field::KIND`].
pub(crate) mod kind {
    pub const CHUNK: &str = "chunk";
    pub const HEAD: &str = "head";
    pub const FAILED: &str = "failed";
}

/// A pair of metadata as one keyword, so that one index serves whatever keys tenants use. The length of the key keeps
/// `a` = `b=c` and `a=b` = `c` apart.
pub(crate) fn meta_entry(key: &str, value: &str) -> String {
    format!("{}:{key}={value}", key.len())
}

/// A payload that is being made.
#[derive(Default)]
pub(crate) struct Writer(HashMap<String, Value>);

impl Writer {
    pub fn put(mut self, field: &str, kind: Kind) -> Self {
        self.0.insert(field.to_owned(), Value { kind: Some(kind) });
        self
    }

    pub fn text(self, field: &str, value: impl Into<String>) -> Self {
        self.put(field, Kind::StringValue(value.into()))
    }

    pub fn int(self, field: &str, value: impl Into<i64>) -> Self {
        self.put(field, Kind::IntegerValue(value.into()))
    }

    pub fn flag(self, field: &str, value: bool) -> Self {
        self.put(field, Kind::BoolValue(value))
    }

    pub fn list(self, field: &str, values: impl IntoIterator<Item = String>) -> Self {
        let values = values.into_iter().map(|value| Value { kind: Some(Kind::StringValue(value)) }).collect();
        self.put(field, Kind::ListValue(ListValue { values }))
    }

    pub fn done(self) -> HashMap<String, Value> {
        self.0
    }

    /// A point without vectors: no search finds it.
    pub fn point(self, id: PointId) -> PointStruct {
        let vectors = Vectors { vectors_options: Some(VectorsOptions::Vectors(NamedVectors::default())) };
        PointStruct { id: Some(id), payload: self.0, vectors: Some(vectors) }
    }
}

/// A payload that is being read.
pub(crate) struct Reader {
    id: String,
    fields: HashMap<String, Value>,
}

impl Reader {
    pub fn new(id: Option<&PointId>, fields: HashMap<String, Value>) -> Self {
        Self { id: id.map(id_text).unwrap_or_default(), fields }
    }

    pub fn foreign(&self, reason: impl Into<String>) -> VectorError {
        VectorError::Foreign { id: self.id.clone(), reason: reason.into() }
    }

    fn kind(&mut self, field: &str) -> Option<Kind> {
        self.fields.remove(field).and_then(|value| value.kind)
    }

    /// Whose document and which revision of it the point belongs to.
    pub fn revision(&mut self) -> Result<(TenantId, DocumentId, Revision), VectorError> {
        let tenant = TenantId::parse(self.text(field::TENANT)?).map_err(|e| self.foreign(e.to_string()))?;
        let document = DocumentId::parse(self.text(field::DOCUMENT)?).map_err(|e| self.foreign(e.to_string()))?;
        Ok((tenant, document, Revision::from_ordinal(self.int(field::REVISION)?)))
    }

    pub fn optional_text(&mut self, field: &str) -> Option<String> {
        match self.kind(field) {
            Some(Kind::StringValue(text)) => Some(text),
            _ => None,
        }
    }

    pub fn text(&mut self, field: &str) -> Result<String, VectorError> {
        self.optional_text(field).ok_or_else(|| self.foreign(format!("{field} is not a text")))
    }

    pub fn int(&mut self, field: &str) -> Result<i64, VectorError> {
        match self.kind(field) {
            Some(Kind::IntegerValue(value)) => Ok(value),
            _ => Err(self.foreign(format!("{field} is not an integer"))),
        }
    }

    pub fn small_int(&mut self, field: &str) -> Result<i32, VectorError> {
        let value = self.int(field)?;
        i32::try_from(value).map_err(|_| self.foreign(format!("{field} is out of range")))
    }

    pub fn flag(&mut self, field: &str) -> Result<bool, VectorError> {
        match self.kind(field) {
            Some(Kind::BoolValue(value)) => Ok(value),
            _ => Err(self.foreign(format!("{field} is not a boolean"))),
        }
    }

    pub fn list(&mut self, field: &str) -> Vec<String> {
        let Some(Kind::ListValue(list)) = self.kind(field) else { return Vec::new() };
        let text = |value: Value| match value.kind {
            Some(Kind::StringValue(text)) => Some(text),
            _ => None,
        };
        list.values.into_iter().filter_map(text).collect()
    }
}

/// An id as people write it.
pub(crate) fn id_text(id: &PointId) -> String {
    match &id.point_id_options {
        Some(PointIdOptions::Uuid(uuid)) => uuid.clone(),
        Some(PointIdOptions::Num(number)) => number.to_string(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_metadata_can_not_be_mistaken_for_others() {
        assert_ne!(meta_entry("a", "b=c"), meta_entry("a=b", "c"));
        assert_eq!(meta_entry("author", "Ada"), "6:author=Ada");
    }
}
