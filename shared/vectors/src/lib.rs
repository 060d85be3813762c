//! Qdrant access: collections, points, heads, hybrid retrieval, the tenant filter.
//!
//! A document is a set of *chunk points* (one for each chunk: a dense vector, a sparse BM25 vector and what a citation
//! needs) and one *head point* without vectors that says which revision of it can be seen. Writers put down every
//! chunk of a revision first and move the head after that; readers drop hits the head does not vouch for. So nobody
//! sees a mix of two revisions, half a document, or a document that was deleted. A third kind of point, without vectors
//! too, notes the latest revision of a document that failed.
//!
//! - **Invariant:** a head only moves forward: its upsert carries a condition on (revision, position) that Qdrant
//!   checks where the point lies. A process that was frozen and wakes up can't move it back; what it writes late stays
//!   invisible until a sweep removes it.
//! - **Invariant:** a deleted document keeps its head. Without it, a late write would bring the document back.
//! - **Invariant:** the condition on the tenant is built in one function (`filter::scope`), which every read goes
//!   through.

pub mod bm25;
mod collection;
mod config;
mod document;
mod error;
mod export;
mod failed;
mod filter;
mod head;
pub mod metric;
mod payload;
mod search;
mod store;
mod sweep;

pub use config::QdrantConfig;
pub use error::VectorError;
pub use export::StoredVector;
pub use failed::FailedRevision;
pub use head::{Head, Stale};
pub use search::{Hit, Mode, Search};
pub use store::{Placed, VectorStore};
pub use sweep::{Sweep, SweepCursor, SweepPage};
