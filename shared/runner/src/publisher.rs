//! Produces records outside any transaction: the edge (CLI, gateway) and streams of tokens.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use weir_contracts::{Lane, TopicNames, frame, header};
use weir_stage::Output;

use crate::client::{CALL_TIMEOUT, LogContext, client_config};
use crate::trace_context::TraceParent;
use crate::{KafkaConfig, Registry};

/// How long a record may wait for its acknowledgement.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);

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
pub struct Publisher {
    producer: Arc<FutureProducer<LogContext>>,
    registry: Registry,
    names: TopicNames,
}

impl Publisher {
    /// A producer; connects in the background.
    ///
    /// # Errors
    /// When a property is not valid.
    pub fn new(kafka: &KafkaConfig, registry: Registry) -> Result<Self, PublishError> {
        let mut config = client_config(kafka);
        config
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "0")
            .set("compression.type", "lz4")
            .set("message.max.bytes", (4 << 20).to_string())
            .set("message.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string());
        // One request in flight, so that the first record of a partition goes alone: why, the stages' `Sender` tells. What
        // comes meanwhile goes together in the next one, without lingering.
        config.set("enable.idempotence", "true").set("max.in.flight.requests.per.connection", "1");
        let producer = config.create_with_context(LogContext).map_err(|error: KafkaError| PublishError {
            topic: kafka.brokers.clone(),
            reason: format!("the producer can't be made: {error}"),
        })?;
        Ok(Self { producer: Arc::new(producer), registry, names: kafka.topics() })
    }

    /// Produces a record and waits until it is on all in-sync replicas. Without a lane the key decides (murmur2).
    /// Begins a trace unless the record carries one.
    ///
    /// # Errors
    /// When the record is too large, its schema is not registered, or Kafka does not take it in time.
    pub async fn publish(&self, output: Output) -> Result<(), PublishError> {
        let topic = self.names.full(output.topic);
        let fail = |reason: String| PublishError { topic: topic.clone(), reason };
        let value = match &output.record {
            None => None,
            Some(record) => {
                let mut value = Vec::new();
                if let Some(schema) = record.schema() {
                    let id =
                        self.registry.id_of(output.topic, schema).await.map_err(|error| fail(error.to_string()))?;
                    frame(id, &mut value);
                }
                record.encode(&mut value).map_err(|error| fail(error.to_string()))?;
                Some(value)
            }
        };
        let mut headers = OwnedHeaders::new();
        if output.headers.get(header::TRACEPARENT).is_none() {
            let trace = TraceParent::root().header();
            headers = headers.insert(Header { key: header::TRACEPARENT, value: Some(trace.as_bytes()) });
        }
        for (key, value) in &output.headers.0 {
            headers = headers.insert(Header { key, value: Some(value.as_slice()) });
        }
        let record = FutureRecord {
            topic: &topic,
            partition: output.lane.map(|Lane(lane)| lane),
            payload: value.as_deref(),
            key: output.key.as_deref(),
            timestamp: None,
            headers: Some(headers),
        };
        match self.producer.send(record, DELIVERY_TIMEOUT).await {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(fail(explain(&error))),
        }
    }

    /// Waits until everything produced before is acknowledged, at most `timeout`.
    ///
    /// # Errors
    /// When that takes longer.
    pub async fn flush(&self, timeout: Duration) -> Result<(), PublishError> {
        let producer = Arc::clone(&self.producer);
        let done = tokio::task::spawn_blocking(move || producer.flush(timeout)).await;
        match done {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(PublishError { topic: "any topic".into(), reason: explain(&error) }),
            Err(error) => Err(PublishError { topic: "any topic".into(), reason: error.to_string() }),
        }
    }

    /// Asks Kafka for its brokers, to fail early with a clear error where it can't be reached.
    ///
    /// # Errors
    /// When no broker answers.
    pub async fn check(&self) -> Result<(), PublishError> {
        let producer = Arc::clone(&self.producer);
        let answer =
            tokio::task::spawn_blocking(move || producer.client().fetch_metadata(None, CALL_TIMEOUT).map(drop)).await;
        let reason = match answer {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => explain(&error),
            Err(error) => error.to_string(),
        };
        Err(PublishError { topic: "the cluster".into(), reason })
    }
}

fn explain(error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
            "the record is larger than the topic accepts: send the content as a claim check (content_uri)".into()
        }
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            "the topic does not exist: run `weir topics apply`".into()
        }
        Some(RDKafkaErrorCode::MessageTimedOut | RDKafkaErrorCode::AllBrokersDown) => {
            format!("Kafka did not acknowledge in time ({error}): check that the brokers are up")
        }
        _ => error.to_string(),
    }
}
