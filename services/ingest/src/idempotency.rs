//! What is remembered of idempotency keys: the request that used one first, and what became of it.

use serde::{Deserialize, Serialize};
use weir_contracts::{Action, DocumentRequest, OutcomeKind, Revision, TenantId, length_prefixed_hash};

/// The first use of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FirstUse {
    /// Revision of the request, which tells it from its repeats.
    pub(crate) request: Revision,
    /// Hash of what it asked for, in hex.
    pub(crate) fingerprint: String,
    /// What became of it.
    pub(crate) outcome: OutcomeKind,
    /// Revision its outcome named.
    pub(crate) revision: Option<Revision>,
    /// Reason its outcome named.
    pub(crate) reason: Option<String>,
}

/// The key of a request; clients that can't leave a field out send an empty one.
pub(crate) fn key_of(request: &DocumentRequest) -> Option<&str> {
    request.idempotency_key.as_deref().filter(|key| !key.is_empty())
}

/// Where a key is remembered. Keys may be as long as a record, so only their hash is kept.
pub(crate) fn state_key(tenant: &TenantId, key: &str) -> String {
    format!("key/{tenant}/{}", hex::encode(length_prefixed_hash(&[key.as_bytes()])))
}

/// Everything a request asks for, apart from its id and time. What lies elsewhere is named by its URI: a repeat is
/// recognised without fetching.
pub(crate) fn fingerprint(request: &DocumentRequest) -> String {
    let action: &[u8] = match request.action {
        Action::Upsert => b"upsert",
        Action::Delete => b"delete",
    };
    let (place, content): (&[u8], &[u8]) = match (&request.content, &request.content_uri) {
        (Some(content), None) => (b"inline", content),
        (None, Some(uri)) => (b"uri", uri.as_bytes()),
        (None, None) => (b"none", b""),
        (Some(_), Some(_)) => (b"both", b""),
    };
    let mut parts: Vec<&[u8]> = vec![
        request.document.as_str().as_bytes(),
        action,
        place,
        content,
        request.content_type.as_deref().unwrap_or_default().as_bytes(),
        request.title.as_deref().unwrap_or_default().as_bytes(),
    ];
    for (name, value) in &request.metadata {
        parts.push(name.as_bytes());
        parts.push(value.as_bytes());
    }
    hex::encode(length_prefixed_hash(&parts))
}
