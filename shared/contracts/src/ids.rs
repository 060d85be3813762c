//! Identifiers, and the hashes that are made of them.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::Revision;

/// An identifier that breaks its rule; the message names the rule and the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} {value:?}: {rule}")]
pub struct InvalidId {
    what: &'static str,
    value: String,
    rule: &'static str,
}

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Parses an identifier.
            ///
            /// # Errors
            /// When the value breaks the rule of this kind of identifier.
            pub fn parse(value: impl Into<String>) -> Result<Self, InvalidId> {
                let value = value.into();
                let valid: fn(&str) -> bool = $valid;
                if valid(&value) {
                    Ok(Self(value))
                } else {
                    Err(InvalidId { what: $what, value: value.chars().take(80).collect(), rule: $rule })
                }
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(value: String) -> Result<Self, InvalidId> {
                Self::parse(value)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;

            fn from_str(value: &str) -> Result<Self, InvalidId> {
                Self::parse(value)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

string_id! {
    /// Name of a tenant: 1 to 63 characters of `[a-z0-9-]`.
    TenantId, "tenant", "1 to 63 characters of a-z, 0-9 and -",
    |v| (1..=63).contains(&v.len()) && v.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

string_id! {
    /// A tenant's own id of a document: 1 to 512 bytes without control characters.
    DocumentId, "document id", "1 to 512 bytes without control characters",
    |v| (1..=512).contains(&v.len()) && !v.chars().any(char::is_control)
}

string_id! {
    /// The id a producer gave its request: 1 to 256 bytes without control characters.
    RequestId, "request id", "1 to 256 bytes without control characters",
    |v| (1..=256).contains(&v.len()) && !v.chars().any(char::is_control)
}

impl RequestId {
    /// A new random id, ordered by time (UUIDv7 without the clock hidden: the caller passes milliseconds since
    /// the Unix epoch).
    #[must_use]
    pub fn from_uuid(id: Uuid) -> Self {
        Self(id.to_string())
    }
}

/// SHA-256 over the parts, each preceded by its length, so that `a + b/c` and `a/b + c` differ.
#[must_use]
pub fn length_prefixed_hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// Key of everything about one document: tenant/document. Tenants contain no slash, so it is unambiguous.
#[must_use]
pub fn document_key(tenant: &TenantId, document: &DocumentId) -> String {
    format!("{tenant}/{document}")
}

/// Id of a chunk's point in the vector store: the same chunk of the same build always gets the same id, so
/// writing it twice changes nothing.
#[must_use]
pub fn point_id(tenant: &TenantId, document: &DocumentId, revision: Revision, ordinal: i32, build: &str) -> Uuid {
    let name = length_prefixed_hash(&[
        tenant.as_str().as_bytes(),
        document.as_str().as_bytes(),
        &revision.ordinal().to_le_bytes(),
        &ordinal.to_le_bytes(),
        build.as_bytes(),
    ]);
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &name)
}

/// Id of a dead letter: where the record failed first. The same failure of the same record is the same dead
/// letter, however often it comes back.
#[must_use]
pub fn dead_letter_id(stage: &str, topic: &str, partition: i32, offset: i64) -> String {
    let hash =
        length_prefixed_hash(&[stage.as_bytes(), topic.as_bytes(), &partition.to_le_bytes(), &offset.to_le_bytes()]);
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Id of a job: the same kind of work for the same tenant under the same idempotency key is the same job.
#[must_use]
pub fn job_id(tenant: Option<&TenantId>, kind: &str, key: &str) -> String {
    let tenant = tenant.map_or("", TenantId::as_str);
    let hash = length_prefixed_hash(&[tenant.as_bytes(), kind.as_bytes(), key.as_bytes()]);
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_the_rule_are_refused() {
        for bad in ["", "A", "a_b", "a/b", &"a".repeat(64)] {
            assert!(TenantId::parse(bad).is_err(), "{bad:?}");
        }
        assert!(TenantId::parse("acme-1").is_ok());
        assert!(DocumentId::parse("a\nb").is_err());
        assert!(DocumentId::parse("reports/2026 Q1.pdf").is_ok());
    }

    #[test]
    fn shifting_a_separator_changes_the_hash() {
        assert_ne!(length_prefixed_hash(&[b"a", b"b/c"]), length_prefixed_hash(&[b"a/b", b"c"]));
    }
}
