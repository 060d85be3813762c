//! Records by their schema files, without types: what is written and read here shares no code with the services.

use std::collections::{BTreeMap, HashMap};

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use color_eyre::eyre::{WrapErr, bail, eyre};

use crate::store::BUCKET;
use crate::workload::{Impossible, Request, Wish};

/// Topics with a schema, without prefix, and the files.
const SCHEMAS: [(&str, &str); 7] = [
    ("document-requests", include_str!("../../../schemas/document-request.avsc")),
    ("requests", include_str!("../../../schemas/document-request.avsc")),
    ("documents", include_str!("../../../schemas/document.avsc")),
    ("chunks", include_str!("../../../schemas/chunk-batch.avsc")),
    ("embeddings", include_str!("../../../schemas/embedding-batch.avsc")),
    ("request-outcomes", include_str!("../../../schemas/request-outcome.avsc")),
    ("document-status", include_str!("../../../schemas/document-status.avsc")),
];
/// Before the body: a zero byte and the id of the schema.
const FRAME: usize = 5;

/// The schemas, parsed.
#[derive(Debug)]
pub struct Schemas(HashMap<&'static str, Schema>);

/// A record's fields.
#[derive(Debug, Clone, Default)]
pub struct Fields(BTreeMap<String, Value>);

impl Schemas {
    /// Parses them.
    ///
    /// # Errors
    /// When one is no schema.
    pub fn parse() -> color_eyre::Result<Self> {
        let parse = |(topic, text): (&'static str, &str)| Ok((topic, Schema::parse_str(text)?));
        SCHEMAS.into_iter().map(parse).collect::<color_eyre::Result<_>>().map(Self)
    }

    /// Fields of a framed record of a topic.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(&self, topic: &str, bytes: &[u8]) -> color_eyre::Result<Fields> {
        let schema = self.0.get(topic).ok_or_else(|| eyre!("no schema is known for {topic}"))?;
        let mut body = match bytes.split_at_checked(FRAME) {
            Some((frame, body)) if frame.first() == Some(&0) => body,
            _ => bail!("{} bytes without a frame", bytes.len()),
        };
        let value = GenericDatumReader::builder(schema).build()?.read_value(&mut body)?;
        match value {
            Value::Record(fields) => Ok(Fields(fields.into_iter().collect())),
            other => bail!("not a record: {other:?}"),
        }
    }

    /// A request as a producer writes it, framed with the id of the schema.
    ///
    /// # Errors
    /// When the schema does not take it.
    pub fn write(&self, request: &Request, schema_id: u32, now: i64) -> color_eyre::Result<Vec<u8>> {
        let schema = self.0.get("document-requests").ok_or_else(|| eyre!("no schema for requests"))?;
        let some = |value: Value| Value::Union(1, Box::new(value));
        let optional = |value: Option<Value>| value.map_or(Value::Union(0, Box::new(Value::Null)), some);
        let elsewhere = |name: &str| Value::String(format!("s3://{BUCKET}/{name}"));
        let (content, uri) = match &request.wish {
            Wish::Text(text) => (Some(text.clone().into_bytes()), None),
            Wish::Claim { name, .. } => (None, Some(elsewhere(name))),
            Wish::Impossible(Impossible::Both) => (Some(Impossible::Both.bytes()), Some(elsewhere("nothing"))),
            Wish::Impossible(kind) => (Some(kind.bytes()), None),
            Wish::Delete => (None, None),
        };
        let action = if request.wish == Wish::Delete { (1, "delete") } else { (0, "upsert") };
        let is_text = matches!(request.wish, Wish::Text(_) | Wish::Claim { .. });
        let metadata = request.metadata.iter().map(|value| ("note".to_owned(), Value::String(value.clone())));
        let fields = [
            ("request_id", Value::String(request.id.clone())),
            ("tenant", Value::String(request.tenant.to_owned())),
            ("document", Value::String(request.document.clone())),
            ("action", Value::Enum(action.0, action.1.to_owned())),
            ("content", optional(content.map(Value::Bytes))),
            ("content_uri", optional(uri)),
            ("content_type", optional(is_text.then(|| Value::String("text/plain".to_owned())))),
            ("title", optional(None)),
            ("metadata", Value::Map(metadata.collect())),
            ("idempotency_key", optional(request.key.clone().map(Value::String))),
            ("created_at", Value::Long(now)),
        ];
        let record = Value::Record(fields.map(|(name, value)| (name.to_owned(), value)).into());
        let body = GenericDatumWriter::builder(schema).build()?.write_value_to_vec(record);
        let body = body.wrap_err_with(|| format!("{} does not fit its schema", request.id))?;
        let mut framed = vec![0];
        framed.extend_from_slice(&schema_id.to_be_bytes());
        framed.extend(body);
        Ok(framed)
    }
}

impl Fields {
    /// Fields of a record that never was.
    #[cfg(test)]
    #[must_use]
    pub fn of(fields: BTreeMap<String, Value>) -> Self {
        Self(fields)
    }

    fn get(&self, name: &str) -> Option<&Value> {
        match self.0.get(name) {
            Some(Value::Union(_, value)) => Some(value),
            other => other,
        }
    }

    /// A text or the name of an enum's symbol; empty where there is none.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        match self.get(name) {
            Some(Value::String(text) | Value::Enum(_, text)) => text,
            _ => "",
        }
    }

    /// A number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<i64> {
        match self.get(name) {
            Some(Value::Long(number)) => Some(*number),
            Some(Value::Int(number)) => Some(i64::from(*number)),
            _ => None,
        }
    }

    /// A truth value; false where there is none.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Value::Boolean(true)))
    }

    /// `tenant/document`.
    #[must_use]
    pub fn subject(&self) -> String {
        format!("{}/{}", self.text("tenant"), self.text("document"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let schemas = Schemas::parse().unwrap();
        for request in crate::workload::requests(3, 400) {
            let bytes = schemas.write(&request, 77, 5).unwrap();
            let fields = schemas.read("requests", &bytes).unwrap();
            assert_eq!((fields.text("request_id"), fields.subject()), (request.id.as_str(), request.subject()));
            assert_eq!(fields.text("idempotency_key"), request.key.as_deref().unwrap_or_default());
            assert_eq!(fields.number("created_at"), Some(5));
            assert_eq!(fields.text("action") == "delete", request.wish == Wish::Delete);
        }
        assert!(schemas.read("requests", b"no frame").is_err());
    }
}
