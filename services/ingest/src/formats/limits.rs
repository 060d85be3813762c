//! How much of anything a document may be.

use serde::{Deserialize, Serialize};

/// What a document may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Raw bytes.
    pub max_bytes: usize,
    /// Bytes that compressed parts unfold to, together.
    pub max_expanded_bytes: usize,
    /// Bytes that compressed parts unfold to, for each of their compressed bytes.
    pub max_expansion_ratio: usize,
    /// Elements inside one another.
    pub max_nesting: usize,
    /// Pages.
    pub max_pages: usize,
    /// Seconds of processor time.
    pub max_seconds: u64,
    /// Memory of the process that parses, bytes.
    pub max_memory: u64,
}
