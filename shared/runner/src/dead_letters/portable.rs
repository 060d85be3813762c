//! Dead letters outside Kafka: one as a line of JSON, whatever its bytes are, and back.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_contracts::{Lane, header};
use weir_stage::Headers;

use super::letter::DeadLetter;

/// A dead letter that can be kept in a file, repaired, and brought back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Portable {
    /// Stage that rejected it.
    pub stage: String,
    /// Its id.
    pub id: String,
    /// Partition it lay in.
    pub lane: i32,
    /// Its headers, in order; those of the rejected record among them.
    pub headers: Vec<PortableHeader>,
    /// The rejected record.
    pub value: PortableBytes,
}

/// A header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortableHeader {
    /// Its name.
    pub name: String,
    /// What it says.
    pub value: PortableBytes,
}

/// Bytes in JSON: `{"text": "…"}` or `{"base64": "…"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortableBytes {
    /// Bytes that are UTF-8.
    Text(String),
    /// Any bytes.
    #[serde(with = "base64_text")]
    Base64(Vec<u8>),
}

/// A dead letter can't be taken out of Kafka or brought back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("dead letter {id}: {reason}")]
pub struct NotPortable {
    /// Its id.
    pub id: String,
    /// Why.
    pub reason: &'static str,
}

impl PortableBytes {
    /// As text where they are text that an editor shows, else as base64.
    #[must_use]
    pub fn readable(bytes: &[u8]) -> Self {
        let shown = |text: &&str| !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
        match std::str::from_utf8(bytes).ok().filter(shown) {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Base64(bytes.to_vec()),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.into_bytes(),
            Self::Base64(bytes) => bytes,
        }
    }
}

impl Portable {
    /// A dead letter that was read with its value.
    ///
    /// # Errors
    /// When it was read without.
    pub fn of(letter: &DeadLetter) -> Result<Self, NotPortable> {
        let id = letter.id();
        let fail = |reason| NotPortable { id: id.clone(), reason };
        let value = letter.value.clone().ok_or_else(|| fail("its bytes were not read"))?;
        if id.as_bytes() != letter.key {
            return Err(fail("its id is not UTF-8"));
        }
        let header = |(name, value): &(String, Vec<u8>)| PortableHeader {
            name: name.clone(),
            value: PortableBytes::readable(value),
        };
        Ok(Self {
            stage: letter.stage.to_string(),
            lane: letter.lane.0,
            headers: letter.headers.0.iter().map(header).collect(),
            value: PortableBytes::Base64(value),
            id,
        })
    }

    pub(crate) fn into_letter(self, stage: &Arc<str>) -> Result<DeadLetter, NotPortable> {
        let fail = |id: String, reason| NotPortable { id, reason };
        if self.id.is_empty() {
            return Err(fail(self.id, "it has no id"));
        }
        if *self.stage != **stage {
            return Err(fail(self.id, "it is of another stage"));
        }
        let headers = self.headers.into_iter().map(|header| (header.name, header.value.into_bytes()));
        let mut headers = Headers(headers.collect());
        if headers.text(header::DEAD_LETTER) != Some(&self.id) {
            headers.set(header::DEAD_LETTER, self.id.as_bytes());
        }
        let value = self.value.into_bytes();
        Ok(DeadLetter {
            stage: Arc::clone(stage),
            lane: Lane(self.lane),
            offset: -1,
            headers,
            size: value.len(),
            written_at: 0,
            key: self.id.into_bytes(),
            value: Some(value),
        })
    }
}

mod base64_text {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text.trim()).map_err(|error| D::Error::custom(format!("not base64: {error}")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::letter::letter;
    use super::*;

    #[test]
    fn a_dead_letter_survives_a_line_of_json_byte_for_byte() {
        let mut original = letter(&[(header::DEAD_LETTER, "4a6f"), (header::ERROR_CLASS, "undecodable")]);
        original.headers.set("odd", vec![0xc3, 0x28, 0]);
        original.value = Some((0..=255).collect());
        original.size = 256;
        let line = serde_json::to_string(&Portable::of(&original).unwrap()).unwrap();
        assert!(!line.contains('\n'));
        let back: Portable = serde_json::from_str(&line).unwrap();
        let back = back.into_letter(&"extract".into()).unwrap();
        assert_eq!(back, DeadLetter { offset: -1, written_at: 0, ..original });
    }

    #[test]
    fn what_is_no_dead_letter_is_refused() {
        let portable = Portable::of(&letter(&[])).unwrap();
        assert!(portable.clone().into_letter(&"chunk".into()).is_err(), "another stage");
        assert!(Portable { id: String::new(), ..portable.clone() }.into_letter(&"extract".into()).is_err(), "no id");
        let line = serde_json::to_string(&portable).unwrap();
        assert!(serde_json::from_str::<Portable>(&line.replace("base64", "base46")).is_err());
        assert!(serde_json::from_str::<Portable>(&line.replace("/wA=", "/w*=")).is_err());
        let unread = DeadLetter { value: None, ..letter(&[]) };
        assert!(Portable::of(&unread).is_err());
    }
}
