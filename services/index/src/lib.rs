//! Index: writes vectors to Qdrant and moves each document's head.
//!
//! The stage is [`Index`]; its documentation says what it does with a record and why a repetition does no harm. What
//! heads leave behind, [`Janitor`] removes later.

mod config;
mod index;
mod janitor;
mod known;
pub mod metric;
mod sets;

pub use config::{Config, IndexConfig};
pub use index::Index;
pub use janitor::Janitor;
