//! Reads dead letters: what was rejected, where it came from, and what is in it.

use std::time::Duration;

use apache_avro::types::Value as Avro;
use color_eyre::eyre::WrapErr;
use serde::Serialize;
use serde_json::{Map, Value, json};
use weir_contracts::{DocumentId, Raw, TenantId, header, unframe};
use weir_runner::Registry;
use weir_stage::Delivery;

use crate::context::Context;
use crate::ledger::Ledger;
use crate::pipeline::{self, StageDef};
use crate::progress::age_of;
use crate::tail;

/// Bytes that are not text are shown up to this many.
const BYTES_SHOWN: usize = 4_096;

/// A record that was rejected.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Stage that rejected it.
    pub stage: &'static str,
    delivery: Delivery<Raw>,
}

/// What is said of a dead letter in a list.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Its id.
    pub id: String,
    /// Stage that rejected it.
    pub stage: &'static str,
    /// Class of the failure.
    pub class: String,
    /// Why it was rejected.
    pub message: String,
    /// Tenant, where a header says it.
    pub tenant: Option<String>,
    /// Where it was read from: topic/partition@offset.
    pub origin: String,
    /// When it was rejected, milliseconds since the Unix epoch, UTC.
    pub at: i64,
    /// How often it was replayed.
    pub replays: u32,
}

impl DeadLetter {
    fn text(&self, name: &str) -> Option<&str> {
        self.delivery.headers.text(name)
    }

    /// Its id: the header's, or the key.
    #[must_use]
    pub fn id(&self) -> String {
        let key = || self.delivery.key.as_deref().map(|key| String::from_utf8_lossy(key).into_owned());
        self.text(header::DEAD_LETTER).map(str::to_owned).or_else(key).unwrap_or_default()
    }

    /// What is said of it in a list.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let or_unknown = |name| self.text(name).unwrap_or("?");
        Summary {
            id: self.id(),
            stage: self.stage,
            class: or_unknown(header::ERROR_CLASS).to_owned(),
            message: self.text(header::DLQ_MESSAGE).unwrap_or_default().to_owned(),
            tenant: self.text(header::TENANT).map(str::to_owned),
            origin: format!(
                "{}/{}@{}",
                or_unknown(header::DLQ_TOPIC),
                or_unknown(header::DLQ_PARTITION),
                or_unknown(header::DLQ_OFFSET)
            ),
            at: self.text(header::DEAD_LETTER_AT).and_then(|at| at.parse().ok()).unwrap_or(self.delivery.timestamp),
            replays: self.text(header::REPLAYS).and_then(|count| count.parse().ok()).unwrap_or(0),
        }
    }

    /// How long ago it was rejected.
    #[must_use]
    pub fn age(&self) -> Duration {
        age_of(self.summary().at)
    }

    /// Its headers, those that are not text as hex.
    pub fn headers(&self) -> impl Iterator<Item = (&str, String)> {
        self.delivery.headers.0.iter().map(|(name, value)| {
            let shown = std::str::from_utf8(value).map_or_else(|_| format!("0x{}", hex::encode(value)), str::to_owned);
            (name.as_str(), shown)
        })
    }

    /// What is in it: decoded with its writer's schema where that works, else the bytes as they are.
    pub async fn payload(&self, registry: &Registry) -> Payload {
        match decode(registry, &self.delivery.record.0).await {
            Ok((schema, value)) => Payload::Decoded { schema, value },
            Err(reason) => Payload::Bytes { reason, bytes: self.delivery.record.0.clone() },
        }
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

/// The dead letters of these stages, oldest first.
///
/// # Errors
/// When Kafka can't be read.
pub async fn read(
    context: &Context,
    registry: &Registry,
    stages: impl Iterator<Item = &'static StageDef>,
) -> color_eyre::Result<Vec<DeadLetter>> {
    let reads = stages.map(|stage| async move {
        let letters = tail::read_all::<Raw>(context, registry, stage.dead_letters).await;
        letters
            .map(|letters| letters.into_iter().map(|delivery| DeadLetter { stage: stage.name, delivery }).collect())
            .wrap_err_with(|| format!("can't read the dead letters of {}", stage.name))
    });
    let letters: Vec<Vec<DeadLetter>> = futures::future::try_join_all(reads).await?;
    let mut letters: Vec<_> = letters.into_iter().flatten().collect();
    letters.sort_by_key(|letter| letter.summary().at);
    Ok(letters)
}

/// Marks requests whose record ended among the dead letters of a step that could not say so itself.
///
/// # Errors
/// When Kafka can't be read.
pub async fn mark(context: &Context, registry: &Registry, ledger: &mut Ledger) -> color_eyre::Result<()> {
    for letter in read(context, registry, pipeline::stages()).await? {
        let Payload::Decoded { value, .. } = letter.payload(registry).await else { continue };
        let field = |name| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let request = weir_contracts::RequestId::parse(field("request_id"));
        let (tenant, document) = (TenantId::parse(field("tenant")), DocumentId::parse(field("document")));
        if let (Ok(request), Ok(_), Ok(_)) = (request, tenant, document) {
            ledger.failed(&request, letter.stage, letter.summary().message);
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
