//! Reads dead letters: what was rejected, where it came from, and what is in it.

use apache_avro::types::Value as Avro;
use serde::Serialize;
use serde_json::{Map, Value, json};
use weir_contracts::{DocumentId, TenantId, unframe};
use weir_runner::{DeadLetter, DeadLetters, Filter, Parked, Registry};

use crate::context::Context;
use crate::ledger::Ledger;
use crate::pipeline;
use crate::tail;

/// Bytes that are not text are shown up to this many.
const BYTES_SHOWN: usize = 4_096;

/// What is said of a dead letter in a list.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Its id.
    pub id: String,
    /// Stage that rejected it.
    pub stage: String,
    /// Class of the failure.
    pub class: String,
    /// Why it was rejected.
    pub message: String,
    /// Tenant, where a header says it.
    pub tenant: Option<String>,
    /// Document, where its key says it.
    pub document: Option<String>,
    /// Where it was read from: topic/partition@offset.
    pub origin: String,
    /// When it was rejected, milliseconds since the Unix epoch, UTC.
    pub at: i64,
    /// How often it was replayed.
    pub replays: u32,
    /// Why it is parked, and since when, if it is.
    pub parked: Option<Parked>,
    /// Bytes of the record.
    pub bytes: usize,
}

impl Summary {
    /// What is said of this one.
    #[must_use]
    pub fn of(letter: &DeadLetter) -> Self {
        Self {
            id: letter.id(),
            stage: letter.stage.to_string(),
            class: letter.class().unwrap_or("?").to_owned(),
            message: letter.message().to_owned(),
            tenant: letter.tenant().map(str::to_owned),
            document: letter.document().map(str::to_owned),
            origin: letter.origin(),
            at: letter.rejected_at(),
            replays: letter.replays(),
            parked: letter.parked(),
            bytes: letter.size,
        }
    }

    /// The beginning of its id, enough to name it.
    #[must_use]
    pub fn short_id(&self) -> String {
        self.id.chars().take(12).collect()
    }
}

/// The headers of a dead letter, those that are not text as hex.
pub fn headers(letter: &DeadLetter) -> impl Iterator<Item = (&str, String)> {
    letter.headers.0.iter().map(|(name, value)| {
        let shown = std::str::from_utf8(value).map_or_else(|_| format!("0x{}", hex::encode(value)), str::to_owned);
        (name.as_str(), shown)
    })
}

/// What is in it: decoded with its writer's schema where that works, else the bytes as they are.
pub async fn payload(letter: &DeadLetter, registry: &Registry) -> Payload {
    let bytes = letter.value().unwrap_or_default();
    match decode(registry, bytes).await {
        Ok((schema, value)) => Payload::Decoded { schema, value },
        Err(reason) => Payload::Bytes { reason, bytes: bytes.to_vec() },
    }
}

/// What is in a dead letter.
#[derive(Debug, Clone)]
pub enum Payload {
    /// A record.
    Decoded {
        /// Name of its schema.
        schema: String,
        /// Its fields.
        value: Value,
    },
    /// Bytes that are no record.
    Bytes {
        /// Why they are none.
        reason: String,
        /// The bytes.
        bytes: Vec<u8>,
    },
}

/// The outstanding dead letters of these stages that the filter means, oldest first, without their records.
///
/// # Errors
/// When Kafka can't be read.
pub async fn list(context: &Context, stages: &[String], filter: &Filter) -> color_eyre::Result<Vec<DeadLetter>> {
    let lists = stages.iter().map(|stage| async move {
        let all = DeadLetters::of(&context.kafka, stage);
        tail::settled(|| all.list(filter.clone())).await
    });
    let mut letters: Vec<_> = futures::future::try_join_all(lists).await?.into_iter().flatten().collect();
    letters.sort_by_key(DeadLetter::rejected_at);
    Ok(letters)
}

/// Marks requests whose record ended among the dead letters of a step that could not say so itself.
///
/// # Errors
/// When Kafka can't be read.
pub async fn mark(context: &Context, registry: &Registry, ledger: &mut Ledger) -> color_eyre::Result<()> {
    for stage in pipeline::stages() {
        let all = DeadLetters::of(&context.kafka, stage.name);
        let mut whole = all.read(tail::settled(|| all.list(Filter::default())).await?);
        while let Some(letter) = whole.recv().await {
            let letter = letter?;
            let Payload::Decoded { value, .. } = payload(&letter, registry).await else { continue };
            let field = |name| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let request = weir_contracts::RequestId::parse(field("request_id"));
            let (tenant, document) = (TenantId::parse(field("tenant")), DocumentId::parse(field("document")));
            if let (Ok(request), Ok(_), Ok(_)) = (request, tenant, document) {
                ledger.failed(&request, stage.name, letter.message().to_owned());
            }
        }
    }
    Ok(())
}

async fn decode(registry: &Registry, bytes: &[u8]) -> Result<(String, Value), String> {
    let (id, mut body) = unframe(bytes).map_err(|error| error.to_string())?;
    let schema = registry.schema(id).await.map_err(|error| error.to_string())?;
    let name = schema.name().map_or_else(|| format!("schema {id}"), |name| name.name().to_string());
    let reader =
        apache_avro::reader::datum::GenericDatumReader::builder(&schema).build().map_err(|error| error.to_string())?;
    let value = reader.read_value(&mut body).map_err(|error| format!("does not decode as {name}: {error}"))?;
    Ok((name, to_json(value)))
}

/// Avro as JSON for people: bytes as text where they are text, else as hex, cut.
fn to_json(value: Avro) -> Value {
    match value {
        Avro::Null => Value::Null,
        Avro::Boolean(flag) => json!(flag),
        Avro::Int(number) => json!(number),
        Avro::Long(number) => json!(number),
        Avro::Float(number) => json!(number),
        Avro::Double(number) => json!(number),
        Avro::String(text) | Avro::Enum(_, text) => json!(text),
        Avro::Bytes(bytes) | Avro::Fixed(_, bytes) => json!(show_bytes(&bytes)),
        Avro::Union(_, value) => to_json(*value),
        Avro::Array(items) => items.into_iter().map(to_json).collect(),
        Avro::Map(entries) => {
            let entries: std::collections::BTreeMap<_, _> = entries.into_iter().collect();
            Value::Object(entries.into_iter().map(|(key, value)| (key, to_json(value))).collect::<Map<_, _>>())
        }
        Avro::Record(fields) => {
            Value::Object(fields.into_iter().map(|(key, value)| (key, to_json(value))).collect::<Map<_, _>>())
        }
        other => json!(format!("{other:?}")),
    }
}

/// Bytes for a person: text where they are text, else hex; cut after some thousand.
#[must_use]
pub fn show_bytes(bytes: &[u8]) -> String {
    let shown = bytes.get(..BYTES_SHOWN.min(bytes.len())).unwrap_or_default();
    let rest = if bytes.len() > shown.len() { format!(" … ({} bytes in all)", bytes.len()) } else { String::new() };
    let text = match std::str::from_utf8(shown) {
        Ok(text) => Some(text),
        // The cut may have gone through a character.
        Err(error) if shown.len() - error.valid_up_to() < 4 && !rest.is_empty() => {
            shown.get(..error.valid_up_to()).and_then(|valid| std::str::from_utf8(valid).ok())
        }
        Err(_) => None,
    };
    let readable = |text: &&str| !text.chars().any(|c| c.is_control() && !c.is_whitespace());
    match text.filter(readable) {
        Some(text) => format!("{text}{rest}"),
        None => format!("0x{}{rest}", hex::encode(shown)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_as_text_only_when_they_are_text() {
        assert_eq!(show_bytes("Grüße\n".as_bytes()), "Grüße\n");
        assert_eq!(show_bytes(&[0xff, 0x00, 0x41]), "0xff0041");
        assert_eq!(show_bytes(b"a\x00b"), "0x610062");
        let long = "ä".repeat(BYTES_SHOWN);
        assert!(show_bytes(long.as_bytes()).starts_with('ä'));
        assert!(show_bytes(long.as_bytes()).ends_with(&format!("({} bytes in all)", 2 * BYTES_SHOWN)));
    }
}
