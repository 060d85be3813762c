//! Chunk: splits documents into pieces that fit the embedding model.
//!
//! Structure comes first: a piece ends, in this order of preference, before a heading, between paragraphs, items and
//! rows, between sentences, lines, words. Nothing of a text is lost, and every piece knows its exact bytes.

mod atoms;
mod chunk;
pub mod config;
pub mod metric;
mod outline;
mod split;
mod tokens;

pub use chunk::Chunker;
pub use config::Config;
pub use split::{Piece, Splitter};
pub use tokens::CountTokens;
