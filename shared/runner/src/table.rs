//! Reads a topic as the table it is, to its very end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::KafkaConfig;
use crate::client::{CALL_TIMEOUT, consumer_config};
use crate::reader::partitions;

/// How long nothing may arrive before reading is given up. Transactions are open for less.
const SILENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// Shows every committed record that a topic (full name) has when this is called, in the order of its partitions. Blocks.
///
/// Reads up to the **high** watermark, read uncommitted, and gets there read committed: so it waits for transactions
/// that are open on the topic now, and whoever has fenced another producer before sees all that one has done.
pub(crate) fn read(
    kafka: &KafkaConfig,
    topic: &str,
    mut visit: impl FnMut(&BorrowedMessage<'_>),
) -> Result<(), String> {
    let mut ends = HashMap::new();
    let mut assignment = TopicPartitionList::new();
    let uncommitted = consumer(kafka, "read_uncommitted")?;
    for lane in partitions(&uncommitted, topic)? {
        let (low, high) = uncommitted.fetch_watermarks(topic, lane, CALL_TIMEOUT).map_err(|error| text(&error))?;
        if low < high {
            ends.insert(lane, high);
            assignment.add_partition_offset(topic, lane, Offset::Offset(low)).map_err(|error| text(&error))?;
        }
    }
    if ends.is_empty() {
        return Ok(());
    }
    let consumer = consumer(kafka, "read_committed")?;
    consumer.assign(&assignment).map_err(|error| text(&error))?;
    until(&consumer, topic, ends, &mut visit)
}

/// Partitions of a topic (full name). Blocks.
pub(crate) fn lanes(kafka: &KafkaConfig, topic: &str) -> Result<Vec<i32>, String> {
    partitions(&consumer(kafka, "read_committed")?, topic)
}

/// A consumer in no group.
pub(crate) fn consumer(kafka: &KafkaConfig, isolation: &str) -> Result<BaseConsumer, String> {
    let mut settings = consumer_config(kafka);
    settings
        .set("group.id", "weir-table")
        .set("isolation.level", isolation)
        .set("auto.offset.reset", "earliest")
        .set("fetch.wait.max.ms", "20")
        .set("queued.max.messages.kbytes", "8192");
    settings.create().map_err(|error| text(&error))
}

fn until(
    consumer: &BaseConsumer,
    topic: &str,
    mut ends: HashMap<i32, i64>,
    visit: &mut impl FnMut(&BorrowedMessage<'_>),
) -> Result<(), String> {
    let mut heard = Instant::now();
    let mut seen: HashMap<i32, i64> = HashMap::new();
    while !ends.is_empty() {
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                heard = Instant::now();
                visit(&message);
                let next = message.offset() + 1;
                seen.insert(message.partition(), next);
                if ends.get(&message.partition()).is_none_or(|end| next < *end) {
                    continue;
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => return Err(code.to_string()),
            Some(Err(error)) => {
                tracing::debug!(topic, %error, "reading");
                std::thread::sleep(POLL);
            }
        }
        // Markers and aborted records are passed over without a message: the position tells.
        let position = consumer.position().map_err(|error| text(&error))?;
        for (lane, next) in ends.keys().filter_map(|lane| {
            let at = position.find_partition(topic, *lane)?.offset().to_raw()?;
            Some((*lane, at))
        }) {
            if next > seen.get(&lane).copied().unwrap_or(0) {
                seen.insert(lane, next);
                heard = Instant::now();
            }
        }
        ends.retain(|lane, end| seen.get(lane).is_none_or(|next| *next < *end));
        if heard.elapsed() > SILENCE {
            let left: Vec<_> = ends.keys().collect();
            return Err(format!("lanes {left:?} can't be read to their high watermarks: a transaction hangs on them"));
        }
    }
    Ok(())
}

fn text(error: &KafkaError) -> String {
    error.to_string()
}
