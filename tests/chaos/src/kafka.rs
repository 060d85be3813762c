//! Kafka past all code of Weir: what lies in topics, and how far groups are.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use color_eyre::eyre::{WrapErr, bail};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

/// How long one question to Kafka may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long Kafka may take to answer at all: right after a start, partitions have no leader yet.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);

/// A stage: its name, which is its group's too, its service and its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageDef {
    /// Name.
    pub name: &'static str,
    /// Service that runs it.
    pub service: &'static str,
    /// Topic it reads.
    pub input: &'static str,
    /// Topic through which records return to it.
    pub again: Option<&'static str>,
}

const fn stage(
    name: &'static str,
    service: &'static str,
    input: &'static str,
    again: Option<&'static str>,
) -> StageDef {
    StageDef { name, service, input, again }
}

/// The stages of documents, in the order in which records flow.
pub const STAGES: [StageDef; 9] = [
    stage("route-documents", "ingest", "document-requests", Some("route-documents.again")),
    stage("extract", "ingest", "requests", Some("extract.again")),
    stage("retry.1s", "retry", "retry.1s", None),
    stage("retry.2s", "retry", "retry.2s", None),
    stage("retry.4s", "retry", "retry.4s", None),
    stage("retry.8s", "retry", "retry.8s", None),
    stage("chunk", "chunk", "documents", Some("chunk.again")),
    stage("embed", "embed", "chunks", Some("embed.again")),
    stage("index", "index", "embeddings", Some("index.again")),
];

/// A record as it lies in a topic.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Partition.
    pub lane: i32,
    /// Offset.
    pub offset: i64,
    /// Key.
    pub key: Vec<u8>,
    /// Value; none for a tombstone.
    pub value: Option<Vec<u8>>,
    /// Headers.
    pub headers: BTreeMap<String, String>,
}

/// What a reader sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Committed records; the end is the last stable offset.
    Committed,
    /// Everything; the end is the high watermark.
    Everything,
}

/// A cluster, and the prefix of the topics on it.
#[derive(Debug, Clone)]
pub struct Kafka {
    /// Bootstrap servers.
    pub brokers: String,
    /// Prefix of topics and groups.
    pub prefix: String,
}

/// How far a stage is in one lane of one of its topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The stage.
    pub stage: &'static str,
    /// The topic.
    pub topic: &'static str,
    /// The lane.
    pub lane: i32,
    /// Next offset that is not committed.
    pub committed: i64,
    /// High watermark.
    pub end: i64,
}

impl Place {
    /// Records, or markers, that are not committed.
    #[must_use]
    pub fn lag(&self) -> i64 {
        self.end - self.committed
    }
}

impl Kafka {
    /// Full name of a topic or group.
    #[must_use]
    pub fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A consumer that asks in the name of a group, without joining it.
    ///
    /// # Errors
    /// When librdkafka does not take the settings.
    pub fn consumer(&self, group: &str, isolation: Isolation) -> color_eyre::Result<BaseConsumer> {
        let level = if isolation == Isolation::Committed { "read_committed" } else { "read_uncommitted" };
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.queue.backoff.ms", "5")
            .set("isolation.level", level)
            .set("log_level", "0")
            .create()?;
        Ok(consumer)
    }

    /// Every topic with the prefix, without it, and its partitions.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn topics(&self) -> color_eyre::Result<BTreeMap<String, Vec<i32>>> {
        let consumer = self.consumer("chaos-look", Isolation::Everything)?;
        let metadata = patiently("topics", || consumer.fetch_metadata(None, ANSWER))?;
        let found = metadata.topics().iter().filter_map(|topic| {
            let name = topic.name().strip_prefix(&self.prefix)?.to_owned();
            Some((name, topic.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect()))
        });
        Ok(found.collect())
    }

    /// First and end offset of a partition.
    fn watermarks(&self, consumer: &BaseConsumer, topic: &str, lane: i32) -> color_eyre::Result<(i64, i64)> {
        let full = self.full(topic);
        patiently(topic, || consumer.fetch_watermarks(&full, lane, ANSWER))
    }

    /// Everything that is committed in a topic, lane by lane.
    ///
    /// # Errors
    /// When it can't be read to its end.
    pub fn read(&self, topic: &str) -> color_eyre::Result<Vec<Stored>> {
        let consumer = self.consumer("chaos-read", Isolation::Committed)?;
        let lanes = self.topics()?.remove(topic).unwrap_or_default();
        let full = self.full(topic);
        let mut open = HashSet::new();
        let mut list = TopicPartitionList::new();
        for lane in lanes {
            let (low, high) = self.watermarks(&consumer, topic, lane)?;
            if low < high {
                open.insert(lane);
                list.add_partition_offset(&full, lane, Offset::Offset(low))?;
            }
        }
        consumer.assign(&list)?;
        let mut stored = Vec::new();
        let mut heard = Instant::now();
        while !open.is_empty() {
            match consumer.poll(PAUSE) {
                Some(Ok(message)) => stored.push(copy(&message)),
                Some(Err(KafkaError::PartitionEOF(lane))) => {
                    open.remove(&lane);
                }
                // Lost connections; it goes on by itself.
                Some(Err(_)) | None => {
                    if heard.elapsed() > PATIENCE {
                        bail!("{topic} can't be read to its end");
                    }
                    continue;
                }
            }
            heard = Instant::now();
        }
        stored.sort_by_key(|record| (record.lane, record.offset));
        Ok(stored)
    }

    /// Partitions whose last stable offset lies before their end, and by how much: a transaction is open.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn open_transactions(&self) -> color_eyre::Result<Vec<(String, i32, i64)>> {
        let stable = self.consumer("chaos-look", Isolation::Committed)?;
        let all = self.consumer("chaos-look", Isolation::Everything)?;
        let mut open = Vec::new();
        for (topic, lanes) in self.topics()? {
            for lane in lanes {
                // This order: what is written in between is not taken for an open transaction.
                let (_, end) = self.watermarks(&all, &topic, lane)?;
                let (_, stable) = self.watermarks(&stable, &topic, lane)?;
                if stable < end {
                    open.push((topic.clone(), lane, end - stable));
                }
            }
        }
        Ok(open)
    }

    /// How far every stage is everywhere, upstream first.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn places(&self) -> color_eyre::Result<Vec<Place>> {
        let topics = self.topics()?;
        let mut places = Vec::new();
        for stage in STAGES {
            let consumer = self.consumer(&self.full(stage.name), Isolation::Everything)?;
            for topic in std::iter::once(stage.input).chain(stage.again) {
                let lanes = topics.get(topic).cloned().unwrap_or_default();
                let committed = committed(&consumer, &self.full(topic), &lanes)
                    .wrap_err_with(|| format!("positions of {} in {topic}", stage.name))?;
                for lane in lanes {
                    let (low, end) = self.watermarks(&consumer, topic, lane)?;
                    let committed = committed.get(&lane).copied().unwrap_or(low);
                    places.push(Place { stage: stage.name, topic, lane, committed, end });
                }
            }
        }
        Ok(places)
    }
}

/// Committed positions of the consumer's group.
fn committed(consumer: &BaseConsumer, topic: &str, lanes: &[i32]) -> color_eyre::Result<BTreeMap<i32, i64>> {
    let mut list = TopicPartitionList::new();
    for lane in lanes {
        list.add_partition(topic, *lane);
    }
    let found = patiently(topic, || consumer.committed_offsets(list.clone(), ANSWER))?;
    let positions = found.elements().into_iter();
    Ok(positions.filter_map(|at| Some((at.partition(), at.offset().to_raw().filter(|at| *at >= 0)?))).collect())
}

/// Right after it has started, a broker does not lead its partitions and groups yet.
fn patiently<T>(what: &str, mut ask: impl FnMut() -> Result<T, KafkaError>) -> color_eyre::Result<T> {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error).wrap_err_with(|| what.to_owned()),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn copy(message: &rdkafka::message::BorrowedMessage<'_>) -> Stored {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = message.headers().map(|headers| {
        let all = headers.iter();
        all.map(|header| (header.key.to_owned(), header.value.map(text).unwrap_or_default())).collect()
    });
    Stored {
        lane: message.partition(),
        offset: message.offset(),
        key: message.key().unwrap_or_default().to_vec(),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
    }
}
