//! In-memory deliveries for stage tests, and the real stack for integration tests.
//!
//! Tests run on real Kafka: one broker per test program, topics with a prefix per test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod behind_proxy;
mod broker;
#[cfg(feature = "containers")]
mod containers;
mod delivery;
mod feeding;
mod pipeline;
mod proxy;
mod service;
mod stack;
mod topics;

pub use broker::{Broker, TestTopics, eventually};
pub use delivery::{delivery, delivery_at};
pub use pipeline::{Pipeline, StoredPoint, program};
pub use proxy::{BrokerProxy, Swallow};
pub use service::Process;
pub use stack::TestStack;
pub use topics::{Isolation, Stored};
