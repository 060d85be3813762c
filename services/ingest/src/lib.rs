//! Ingest: routes document requests into lanes and extracts their text.
//!
//! Two stages in one service. [`Route`] puts each request into its tenant's lane, whatever partition its producer
//! chose. [`Extract`], the only writer of a document, fixes its revision, sees whether anything changed, fetches what
//! lies elsewhere, and turns bytes into text with structure. What might hang or crash on a hostile file runs in child
//! processes ([`pool`]).

pub mod config;
mod extract;
mod fetch;
pub mod formats;
mod idempotency;
mod identity;
pub mod metric;
pub mod pool;
mod route;
mod waves;
pub mod worker;

pub use config::Config;
pub use extract::Extract;
pub use fetch::Claims;
pub use route::Route;
