//! State of the lanes: a key-value store on disk for each, whose truth is a compacted topic.
//!
//! What a stage writes is produced to the changelog in the transaction of the record it belongs to. The store on disk
//! takes it after the commit, with the changelog's position in the same atomic batch, so it never runs ahead of Kafka:
//! it is a cache that may be deleted at any time. Until then the writes wait in memory, where later batches see them.
//!
//! Records that run side by side write to a log of their lane instead, and each transaction takes all that it has by then:
//! so none of them completes without what it read, whoever wrote it.

mod codec;
mod contents;
mod lane;
mod log;
mod restore;
mod store;
mod view;

pub(crate) use codec::encode;
pub use contents::read_state;
pub(crate) use lane::LaneHandle;
pub(crate) use restore::{Changelog, RestoreError};
pub(crate) use store::{SharedStores, StoreError, Stores};
pub(crate) use view::{BatchState, RecordKey, Write, record_key};

/// Name, without prefix, of the topic behind the state of a stage.
#[must_use]
pub(crate) fn changelog_topic(stage: &str) -> String {
    format!("{stage}-state")
}
