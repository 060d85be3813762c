//! Reads a dead-letter topic as the table it is: the last record of each key counts, and a tombstone removes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use weir_contracts::{Lane, dead_letter_topic};

use super::letter::{DeadLetter, Place};
use crate::KafkaConfig;
use crate::client::{CALL_TIMEOUT, consumer_config};
use crate::reader::{copy_headers, partitions};

/// Bytes of rejected records that are held at once, at most (one may exceed it).
const MEMORY: usize = 64 << 20;
/// How long nothing may arrive before reading is given up. Transactions are open for less.
const SILENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// What of the table is of interest; memory is used for nothing else.
pub(crate) struct Wanted<'a> {
    /// Dead letters to keep.
    pub(crate) keep: &'a dyn Fn(&DeadLetter) -> bool,
    /// Those among them whose bytes are needed as well, as far as memory goes: some come without.
    pub(crate) hold: &'a dyn Fn(&DeadLetter) -> bool,
}

/// The dead letters of a stage that are outstanding when this is called. Blocks.
///
/// Reads up to the **high** watermark, read uncommitted, and gets there read committed: so it waits for transactions
/// that are open on the topic now, and whoever has fenced another operator before sees all that one has done.
pub(crate) fn read(
    kafka: &KafkaConfig,
    stage: &Arc<str>,
    wanted: &Wanted<'_>,
) -> Result<BTreeMap<Place, DeadLetter>, String> {
    let topic = kafka.topics().full_name(&dead_letter_topic(stage));
    let mut ends = HashMap::new();
    let mut assignment = TopicPartitionList::new();
    let uncommitted = consumer(kafka, "read_uncommitted")?;
    for lane in partitions(&uncommitted, &topic)? {
        let (low, high) = uncommitted.fetch_watermarks(&topic, lane, CALL_TIMEOUT).map_err(|error| text(&error))?;
        if low < high {
            ends.insert(lane, high);
            assignment.add_partition_offset(&topic, lane, Offset::Offset(low)).map_err(|error| text(&error))?;
        }
    }
    let mut reading = Reading { stage, wanted, held: 0, letters: BTreeMap::new() };
    if !ends.is_empty() {
        let consumer = consumer(kafka, "read_committed")?;
        consumer.assign(&assignment).map_err(|error| text(&error))?;
        reading.until(&consumer, &topic, ends)?;
    }
    Ok(reading.letters)
}

/// Partitions of a topic. Blocks.
pub(crate) fn lanes(kafka: &KafkaConfig, topic: &str) -> Result<Vec<i32>, String> {
    partitions(&consumer(kafka, "read_committed")?, topic)
}

/// A consumer in no group.
pub(crate) fn consumer(kafka: &KafkaConfig, isolation: &str) -> Result<BaseConsumer, String> {
    let mut settings = consumer_config(kafka);
    settings
        .set("group.id", "weir-dead-letters")
        .set("isolation.level", isolation)
        .set("auto.offset.reset", "earliest")
        .set("fetch.wait.max.ms", "20")
        .set("queued.max.messages.kbytes", "8192");
    settings.create().map_err(|error| text(&error))
}

struct Reading<'a> {
    stage: &'a Arc<str>,
    wanted: &'a Wanted<'a>,
    held: usize,
    letters: BTreeMap<Place, DeadLetter>,
}

impl Reading<'_> {
    fn until(&mut self, consumer: &BaseConsumer, topic: &str, mut ends: HashMap<i32, i64>) -> Result<(), String> {
        let mut heard = Instant::now();
        let mut seen: HashMap<i32, i64> = HashMap::new();
        while !ends.is_empty() {
            match consumer.poll(POLL) {
                Some(Ok(message)) => {
                    heard = Instant::now();
                    self.take(&message);
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
                return Err(format!(
                    "lanes {left:?} can't be read to their high watermarks: a transaction hangs on them"
                ));
            }
        }
        Ok(())
    }

    fn take(&mut self, message: &BorrowedMessage<'_>) {
        let Some(key) = message.key() else { return };
        let place = (Lane(message.partition()), key.to_vec());
        if let Some(before) = self.letters.remove(&place) {
            self.held -= before.value.map_or(0, |value| value.len());
        }
        let Some(value) = message.payload() else { return };
        let mut letter = DeadLetter {
            stage: Arc::clone(self.stage),
            lane: place.0,
            offset: message.offset(),
            headers: copy_headers(message),
            size: value.len(),
            written_at: message.timestamp().to_millis().unwrap_or_default(),
            key: key.to_vec(),
            value: None,
        };
        if !(self.wanted.keep)(&letter) {
            return;
        }
        if self.held < MEMORY && (self.wanted.hold)(&letter) {
            self.held += value.len();
            letter.value = Some(value.to_vec());
        }
        self.letters.insert(place, letter);
    }
}

fn text(error: &KafkaError) -> String {
    error.to_string()
}
