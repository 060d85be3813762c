//! The one place that computes a group's lag from outside: high watermark minus committed position, and the age of
//! the oldest unread record. librdkafka's own consumer lag does not see transactional commits.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};
use weir_contracts::{Lane, Topic};

use crate::KafkaConfig;
use crate::client::consumer_config;
use crate::clock::{now_millis, seconds_between};
use crate::reader::partitions;

/// Lag could not be computed.
#[derive(Debug, thiserror::Error)]
#[error("can't read the lag of group {group}: {reason}")]
pub struct LagError {
    /// Full name of the group.
    pub group: String,
    /// What is wrong and what to do.
    pub reason: String,
}

/// How far a consumer group is behind in one lane.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LaneLag {
    /// The lane.
    pub lane: Lane,
    /// Committed position; none when the group never committed.
    pub committed: Option<i64>,
    /// First offset that exists.
    pub low_watermark: i64,
    /// Offset after the last record.
    pub high_watermark: i64,
    /// Records (and transaction markers) not processed yet.
    pub records: i64,
    /// Age of the oldest record not processed yet, seconds; 0 when there is none.
    pub seconds: f64,
}

/// Lag of consumer group `group` (full name) in every lane of `topic`. Blocks; call it off the async threads.
///
/// # Errors
/// When Kafka does not answer within `timeout`.
pub fn group_lag(kafka: &KafkaConfig, group: &str, topic: Topic, timeout: Duration) -> Result<Vec<LaneLag>, LagError> {
    let fail = |reason: String| LagError { group: group.to_owned(), reason };
    let kafka_fail = |error: KafkaError| fail(error.to_string());
    let topic = kafka.topics().full(topic);
    let mut config = consumer_config(kafka);
    config.set("group.id", group).set("auto.offset.reset", "earliest").set("queued.max.messages.kbytes", "512");
    let consumer: BaseConsumer = config.create().map_err(kafka_fail)?;
    let mut list = TopicPartitionList::new();
    for partition in partitions(&consumer, &topic).map_err(fail)? {
        list.add_partition(&topic, partition);
    }
    let committed = consumer.committed_offsets(list, timeout).map_err(kafka_fail)?;
    let mut lanes = Vec::new();
    for element in committed.elements() {
        let (low, high) = consumer.fetch_watermarks(&topic, element.partition(), timeout).map_err(kafka_fail)?;
        let committed = match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        let records = (high - committed.unwrap_or(low).max(low)).max(0);
        lanes.push(LaneLag {
            lane: Lane(element.partition()),
            committed,
            low_watermark: low,
            high_watermark: high,
            records,
            seconds: 0.0,
        });
    }
    oldest_unread(&consumer, &topic, &mut lanes, timeout).map_err(kafka_fail)?;
    Ok(lanes)
}

/// Fills in the age of the first record after each committed position.
fn oldest_unread(
    consumer: &BaseConsumer,
    topic: &str,
    lanes: &mut [LaneLag],
    timeout: Duration,
) -> Result<(), KafkaError> {
    let mut behind = TopicPartitionList::new();
    for lane in lanes.iter().filter(|lane| lane.records > 0) {
        let from = lane.committed.unwrap_or(lane.low_watermark).max(lane.low_watermark);
        behind.add_partition_offset(topic, lane.lane.0, Offset::Offset(from))?;
    }
    let mut open = behind.count();
    if open == 0 {
        return Ok(());
    }
    consumer.assign(&behind)?;
    let now = now_millis();
    let deadline = Instant::now() + timeout.min(Duration::from_secs(5));
    let mut seen = std::collections::HashSet::new();
    while open > 0 && Instant::now() < deadline {
        let (partition, timestamp) = match consumer.poll(Duration::from_millis(50)) {
            Some(Ok(message)) => (message.partition(), message.timestamp().to_millis()),
            Some(Err(KafkaError::PartitionEOF(partition))) => (partition, None),
            _ => continue,
        };
        if !seen.insert(partition) {
            continue;
        }
        open -= 1;
        if let Some(lane) = lanes.iter_mut().find(|lane| lane.lane.0 == partition) {
            lane.seconds = timestamp.map_or(0.0, |written| seconds_between(written, now));
        }
    }
    Ok(())
}
