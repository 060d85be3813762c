//! Whether a topic still holds what was written before a time, from outside.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use crate::client::consumer_config;
use crate::reader::partitions;
use crate::{KafkaConfig, ReadError};

/// What a topic holds, seen from a point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Nothing at all.
    Empty,
    /// Records, all of them written at that time or later.
    Later,
    /// Records written before it.
    Earlier,
}

/// What `topic` (full name) holds, seen from `time` (milliseconds since the Unix epoch), by the timestamps of its
/// records. Blocks; call it off the async threads.
///
/// # Errors
/// When there is no such topic, or Kafka does not answer within `timeout`.
pub fn extent(kafka: &KafkaConfig, topic: &str, time: i64, timeout: Duration) -> Result<Extent, ReadError> {
    let fail = |reason: String| ReadError { topic: topic.to_owned(), reason };
    let mut config = consumer_config(kafka);
    config.set("group.id", "weir-reader");
    let consumer: BaseConsumer = config.create().map_err(|error| fail(error.to_string()))?;
    let mut times = TopicPartitionList::new();
    let mut lows = Vec::new();
    for lane in partitions(&consumer, topic).map_err(fail)? {
        let (low, high) = consumer.fetch_watermarks(topic, lane, timeout).map_err(|error| fail(error.to_string()))?;
        if low < high {
            lows.push((lane, low));
            times.add_partition_offset(topic, lane, Offset::Offset(time)).map_err(|error| fail(error.to_string()))?;
        }
    }
    if lows.is_empty() {
        return Ok(Extent::Empty);
    }
    let found = consumer.offsets_for_times(times, timeout).map_err(|error| fail(error.to_string()))?;
    let earlier = |(lane, low): &(i32, i64)| match found.find_partition(topic, *lane).map(|found| found.offset()) {
        Some(Offset::Offset(first)) => first > *low,
        // No record at that time or later: all are earlier.
        _ => true,
    };
    Ok(if lows.iter().any(earlier) { Extent::Earlier } else { Extent::Later })
}
