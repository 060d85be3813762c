//! A dead letter as it lies in its topic, and what its headers say of it.

use std::sync::Arc;

use weir_contracts::{Lane, header};
use weir_stage::Headers;

/// Where a dead letter lies: its lane and its key.
pub(crate) type Place = (Lane, Vec<u8>);

/// A record that was rejected and still waits for somebody to replay or discard it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Stage that rejected it.
    pub stage: Arc<str>,
    /// Partition it lies in.
    pub lane: Lane,
    /// Offset it lies at.
    pub offset: i64,
    /// Its headers, those of the rejected record among them.
    pub headers: Headers,
    /// Bytes of the rejected record.
    pub size: usize,
    /// When it was written here, milliseconds since the Unix epoch.
    pub written_at: i64,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
}

/// That a dead letter is parked.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Parked {
    /// Why.
    pub reason: String,
    /// Since when, milliseconds since the Unix epoch.
    pub at: i64,
}

impl DeadLetter {
    pub(crate) fn place(&self) -> Place {
        (self.lane, self.key.clone())
    }

    /// Its id: the same for the same record, however often it comes back.
    #[must_use]
    pub fn id(&self) -> String {
        String::from_utf8_lossy(&self.key).into_owned()
    }

    /// Class of the failure.
    #[must_use]
    pub fn class(&self) -> Option<&str> {
        self.headers.text(header::ERROR_CLASS)
    }

    /// Why it was rejected.
    #[must_use]
    pub fn message(&self) -> &str {
        self.headers.text(header::DLQ_MESSAGE).unwrap_or_default()
    }

    /// Tenant, where a header says it.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        self.headers.text(header::TENANT)
    }

    /// Key of the rejected record.
    #[must_use]
    pub fn original_key(&self) -> Option<&[u8]> {
        self.headers.get(header::DEAD_LETTER_KEY)
    }

    /// Document it is about, where tenant and key say so: behind the routers they do.
    #[must_use]
    pub fn document(&self) -> Option<&str> {
        let key = std::str::from_utf8(self.original_key()?).ok()?;
        key.strip_prefix(self.tenant()?)?.strip_prefix('/')
    }

    /// Where the record was read first: topic/partition@offset.
    #[must_use]
    pub fn origin(&self) -> String {
        let part = |name| self.headers.text(name).unwrap_or("?");
        format!("{}/{}@{}", part(header::DLQ_TOPIC), part(header::DLQ_PARTITION), part(header::DLQ_OFFSET))
    }

    /// When it was rejected, milliseconds since the Unix epoch.
    #[must_use]
    pub fn rejected_at(&self) -> i64 {
        self.number(header::DEAD_LETTER_AT).unwrap_or(self.written_at)
    }

    /// How often it was replayed.
    #[must_use]
    pub fn replays(&self) -> u32 {
        self.number(header::REPLAYS).unwrap_or(0)
    }

    /// Whether it is parked, and why.
    #[must_use]
    pub fn parked(&self) -> Option<Parked> {
        let reason = self.headers.text(header::PARKED)?.to_owned();
        Some(Parked { reason, at: self.number(header::PARKED_AT).unwrap_or(self.written_at) })
    }

    /// The rejected record, where it was asked for.
    #[must_use]
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.headers.text(name)?.parse().ok()
    }
}

#[cfg(test)]
pub(crate) fn letter(headers: &[(&str, &str)]) -> DeadLetter {
    let mut all = Headers::default();
    for (name, value) in headers {
        all.set(name, *value);
    }
    DeadLetter {
        stage: "extract".into(),
        lane: Lane(3),
        offset: 7,
        headers: all,
        size: 2,
        written_at: 1_000,
        key: b"4a6f".to_vec(),
        value: Some(vec![0xff, 0x00]),
    }
}
