//! Settings of the vector store.

use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

/// How to reach Qdrant and how to search it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QdrantConfig {
    /// gRPC address, `http://` or `https://`.
    pub url: String,
    /// Collection, or an alias of one.
    pub collection: String,
    /// API key, when the server asks for one.
    #[serde(skip_serializing)]
    pub api_key: Option<SecretString>,
    /// Milliseconds to wait for a connection.
    pub connect_timeout_ms: u64,
    /// Milliseconds to wait for an answer.
    pub request_timeout_ms: u64,
    /// Milliseconds between a head's move and the removal of the points it left behind; longer than a query takes, so
    /// that a reader between its search and its look at the heads finds what it needs.
    pub delete_grace_ms: u64,
    /// Candidates each leg of a hybrid search brings, at least.
    pub candidates: u64,
    /// The k of reciprocal rank fusion: 1 / (k + rank), rank from 0.
    pub rrf_k: u32,
    /// How many more hits than wanted a search asks for, since heads may turn some down; at least 1.
    pub overfetch: f64,
    /// Copies of each shard in a collection that Weir creates; the server's default when none.
    pub replication_factor: Option<u32>,
    /// Shards of a collection that Weir creates; the server's default when none.
    pub shard_number: Option<u32>,
}

impl Default for QdrantConfig {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:6334".into(),
            collection: "weir".into(),
            api_key: None,
            connect_timeout_ms: 2_000,
            request_timeout_ms: 15_000,
            delete_grace_ms: 3_000,
            candidates: 100,
            rrf_k: 60,
            overfetch: 1.25,
            replication_factor: None,
            shard_number: None,
        }
    }
}

impl QdrantConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// The first key (without its section) whose value can't work, and why.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !["http://", "https://"].iter().any(|scheme| self.url.starts_with(scheme)) {
            return Err(("url", format!("must begin with http:// or https://, not {:?}", self.url)));
        }
        if self.collection.is_empty() {
            return Err(("collection", "must not be empty".to_owned()));
        }
        if self.request_timeout_ms == 0 || self.connect_timeout_ms == 0 {
            return Err(("request_timeout_ms", "timeouts must be at least 1 millisecond".to_owned()));
        }
        if self.rrf_k == 0 {
            return Err(("rrf_k", "must be at least 1".to_owned()));
        }
        if self.candidates == 0 {
            return Err(("candidates", "must be at least 1".to_owned()));
        }
        if self.overfetch.is_nan() || self.overfetch < 1.0 {
            return Err(("overfetch", format!("must be at least 1, not {}", self.overfetch)));
        }
        Ok(())
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    /// Time between a head's move and the removal of the points it left behind.
    #[must_use]
    pub fn delete_grace(&self) -> Duration {
        Duration::from_millis(self.delete_grace_ms)
    }
}
