//! Reads a topic outside any consumer group: tables, answers, tests.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;
use weir_contracts::{Lane, Record, Topic, unframe};
use weir_stage::{Coordinates, Delivery, Headers};

use crate::client::{CALL_TIMEOUT, LogContext, client_config, consumer_config};
use crate::{KafkaConfig, Registry};

const QUEUE: usize = 256;
const POLL: Duration = Duration::from_millis(50);
/// How long the broker holds a request back while there is nothing to read, which a record ends at once. The end of what
/// there is shows by an answer without records, so that who reads up to there has it quick.
const QUICK: Duration = Duration::from_millis(20);
const SELDOM: Duration = Duration::from_millis(500);

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

/// What a record of a table says of its key: what it is from now on, or that it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<R> {
    /// The key.
    pub key: Vec<u8>,
    /// What it stands for; none when it was removed.
    pub record: Option<R>,
}

struct Bytes {
    at: Coordinates,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Headers,
    timestamp: i64,
}

enum Event {
    Record(Bytes),
    End(Lane, i64),
    Failed(String),
}

const COMMITTED: &str = "read_committed";

/// How a topic is read.
#[derive(Debug, Clone, Copy)]
struct How {
    start: Start,
    /// How long the broker may wait for more before it answers.
    fetch_wait: Duration,
    /// `isolation.level`.
    isolation: &'static str,
}

/// All partitions of a topic, read committed unless said otherwise, with its own positions. A thread reads ahead, a little.
pub struct TopicReader<R> {
    topic: String,
    registry: Registry,
    events: mpsc::Receiver<Event>,
    /// For each partition with records: its end when the reader was opened, until it was reached.
    ends: HashMap<Lane, i64>,
    decode: fn(Option<&apache_avro::Schema>, &[u8]) -> Result<R, weir_contracts::CodecError>,
}

impl<R: Record> TopicReader<R> {
    /// Opens all partitions of a topic.
    ///
    /// # Errors
    /// When the topic does not exist or Kafka does not answer.
    pub async fn open(kafka: &KafkaConfig, registry: Registry, topic: Topic, start: Start) -> Result<Self, ReadError> {
        let full = kafka.topics().full(topic);
        Self::open_named(kafka, registry, full, start).await
    }

    /// Opens a topic by its full name.
    ///
    /// # Errors
    /// As [`TopicReader::open`].
    pub async fn open_named(
        kafka: &KafkaConfig,
        registry: Registry,
        topic: String,
        start: Start,
    ) -> Result<Self, ReadError> {
        let fetch_wait = match start {
            Start::Beginning => QUICK,
            Start::End => SELDOM,
        };
        Self::open_with(kafka, registry, topic, How { start, fetch_wait, isolation: COMMITTED }).await
    }

    /// Opens all partitions of a topic from the beginning, to be followed for long: its end may be seen half a second
    /// late, and the broker is asked seldom.
    ///
    /// # Errors
    /// As [`TopicReader::open`].
    pub async fn follow(kafka: &KafkaConfig, registry: Registry, topic: Topic) -> Result<Self, ReadError> {
        let how = How { start: Start::Beginning, fetch_wait: SELDOM, isolation: COMMITTED };
        Self::open_with(kafka, registry, kafka.topics().full(topic), how).await
    }

    /// With the records of transactions that are open or were aborted, too.
    pub(crate) async fn open_uncommitted(
        kafka: &KafkaConfig,
        registry: Registry,
        topic: Topic,
        start: Start,
    ) -> Result<Self, ReadError> {
        let how = How { start, fetch_wait: QUICK, isolation: "read_uncommitted" };
        Self::open_with(kafka, registry, kafka.topics().full(topic), how).await
    }

    async fn open_with(kafka: &KafkaConfig, registry: Registry, topic: String, how: How) -> Result<Self, ReadError> {
        let kafka = kafka.clone();
        let name = topic.clone();
        let opened = tokio::task::spawn_blocking(move || open_consumer(&kafka, &name, how)).await;
        let (consumer, ends) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(reason)) => return Err(ReadError { topic, reason }),
            Err(error) => return Err(ReadError { topic, reason: error.to_string() }),
        };
        let (sender, events) = mpsc::channel(QUEUE);
        let name: Arc<str> = topic.as_str().into();
        std::thread::Builder::new()
            .name("weir-reader".into())
            .spawn(move || read(&consumer, &name, &sender))
            .map_err(|error| ReadError { topic: topic.clone(), reason: format!("no thread: {error}") })?;
        Ok(Self { topic, registry, events, ends, decode: R::decode })
    }

    /// The next record, or none when none came within `wait`. A tombstone or undecodable bytes are passed over,
    /// with a log line for the latter.
    ///
    /// # Errors
    /// When Kafka fails in a way that does not heal, or the registry does not answer.
    pub async fn next(&mut self, wait: Duration) -> Result<Option<Delivery<R>>, ReadError> {
        let deadline = Instant::now() + wait;
        while let Some(bytes) = self.next_bytes(deadline).await? {
            if let Some(delivery) = self.decode(bytes).await? {
                return Ok(Some(delivery));
            }
        }
        Ok(None)
    }

    /// The next change of the table that the topic is, as [`TopicReader::next`]; records without a key are passed over.
    ///
    /// # Errors
    /// As [`TopicReader::next`].
    pub async fn next_entry(&mut self, wait: Duration) -> Result<Option<Entry<R>>, ReadError> {
        let deadline = Instant::now() + wait;
        while let Some(bytes) = self.next_bytes(deadline).await? {
            if let Some(entry) = self.entry(bytes).await? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Everything up to the ends the topic had when the reader was opened.
    ///
    /// # Errors
    /// As [`TopicReader::next`].
    pub async fn read_to_end(&mut self) -> Result<Vec<Delivery<R>>, ReadError> {
        let mut all = Vec::new();
        while let Some(delivery) = self.next_before_end().await? {
            all.push(delivery);
        }
        Ok(all)
    }

    /// The next record before the ends the topic had when the reader was opened, one after another.
    ///
    /// # Errors
    /// As [`TopicReader::next`].
    pub async fn next_before_end(&mut self) -> Result<Option<Delivery<R>>, ReadError> {
        while let Some(bytes) = self.bytes_to_end().await? {
            if let Some(delivery) = self.decode(bytes).await? {
                return Ok(Some(delivery));
            }
        }
        Ok(None)
    }

    /// The table that the topic was when the reader was opened: the last record of each key that was not removed.
    ///
    /// # Errors
    /// As [`TopicReader::next`].
    pub async fn read_table(&mut self) -> Result<BTreeMap<Vec<u8>, R>, ReadError> {
        let mut table = BTreeMap::new();
        while let Some(bytes) = self.bytes_to_end().await? {
            match self.entry(bytes).await? {
                Some(Entry { key, record: Some(record) }) => _ = table.insert(key, record),
                Some(Entry { key, record: None }) => _ = table.remove(&key),
                None => {}
            }
        }
        Ok(table)
    }

    /// As [`TopicReader::read_table`], where every partition is a table of its own, and only of the keys that are `wanted`.
    pub(crate) async fn read_lanes(
        &mut self,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<BTreeMap<(Lane, Vec<u8>), R>, ReadError> {
        let mut tables = BTreeMap::new();
        while let Some(bytes) = self.bytes_to_end().await? {
            if !bytes.key.as_deref().is_some_and(&wanted) {
                continue;
            }
            let lane = bytes.at.lane;
            match self.entry(bytes).await? {
                Some(Entry { key, record: Some(record) }) => _ = tables.insert((lane, key), record),
                Some(Entry { key, record: None }) => _ = tables.remove(&(lane, key)),
                None => {}
            }
        }
        Ok(tables)
    }

    async fn next_bytes(&mut self, deadline: Instant) -> Result<Option<Bytes>, ReadError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(event) = tokio::time::timeout(left, self.events.recv()).await else { return Ok(None) };
            if let Some(bytes) = self.take(event)? {
                return Ok(Some(bytes));
            }
        }
    }

    /// The next record before the ends the topic had when the reader was opened.
    async fn bytes_to_end(&mut self) -> Result<Option<Bytes>, ReadError> {
        while !self.ends.is_empty() {
            let event = self.events.recv().await;
            if let Some(bytes) = self.take(event)? {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// The record of an event, if it is one.
    fn take(&mut self, event: Option<Event>) -> Result<Option<Bytes>, ReadError> {
        match event {
            Some(Event::Record(bytes)) => {
                self.passed(bytes.at.lane, bytes.at.offset + 1);
                Ok(Some(bytes))
            }
            Some(Event::End(lane, offset)) => {
                self.passed(lane, offset);
                Ok(None)
            }
            Some(Event::Failed(reason)) => Err(self.fail(reason)),
            None => Err(self.fail("the reader has stopped".into())),
        }
    }

    async fn entry(&self, bytes: Bytes) -> Result<Option<Entry<R>>, ReadError> {
        let Some(key) = bytes.key.clone() else { return Ok(None) };
        if bytes.value.is_none() {
            return Ok(Some(Entry { key, record: None }));
        }
        let decoded = self.decode(bytes).await?;
        Ok(decoded.map(|delivery| Entry { key, record: Some(delivery.record) }))
    }

    /// The topic was read up to `position`; the end of a partition may be a marker no record follows.
    fn passed(&mut self, lane: Lane, position: i64) {
        if self.ends.get(&lane).is_some_and(|end| position >= *end) {
            self.ends.remove(&lane);
        }
    }

    async fn decode(&self, bytes: Bytes) -> Result<Option<Delivery<R>>, ReadError> {
        let Bytes { at, key, value: Some(value), headers, timestamp } = bytes else { return Ok(None) };
        let decoded = if R::schema().is_none() {
            (self.decode)(None, &value).map_err(|error| error.to_string())
        } else {
            match unframe(&value) {
                Err(error) => Err(error.to_string()),
                Ok((id, body)) => match self.registry.schema(id).await {
                    Ok(schema) => (self.decode)(Some(&schema), body).map_err(|error| error.to_string()),
                    Err(error) if error.not_found => Err(error.to_string()),
                    Err(error) => return Err(self.fail(error.to_string())),
                },
            }
        };
        match decoded {
            Ok(record) => Ok(Some(Delivery { record, at, key, headers, timestamp })),
            Err(error) => {
                tracing::warn!(topic = %at.topic, lane = %at.lane, offset = at.offset, %error, "record can't be decoded");
                Ok(None)
            }
        }
    }

    fn fail(&self, reason: String) -> ReadError {
        ReadError { topic: self.topic.clone(), reason }
    }
}

type Opened = (BaseConsumer<LogContext>, HashMap<Lane, i64>);

fn open_consumer(kafka: &KafkaConfig, topic: &str, how: How) -> Result<Opened, String> {
    let mut config = consumer_config(kafka);
    config
        .set("group.id", "weir-reader")
        .set("isolation.level", how.isolation)
        .set("auto.offset.reset", "earliest")
        .set("queued.max.messages.kbytes", "4096")
        .set("fetch.wait.max.ms", how.fetch_wait.as_millis().to_string());
    let consumer = config.create_with_context(LogContext).map_err(|error: KafkaError| error.to_string())?;
    let partitions = partitions(&consumer, topic)?;
    let mut assignment = TopicPartitionList::new();
    let mut ends = HashMap::new();
    for partition in partitions {
        let (low, high) =
            consumer.fetch_watermarks(topic, partition, CALL_TIMEOUT).map_err(|error| error.to_string())?;
        let from = match how.start {
            Start::Beginning => low,
            Start::End => high,
        };
        if from < high {
            ends.insert(Lane(partition), high);
        }
        assignment.add_partition_offset(topic, partition, Offset::Offset(from)).map_err(|error| error.to_string())?;
    }
    consumer.assign(&assignment).map_err(|error| error.to_string())?;
    Ok((consumer, ends))
}

/// A setting of a topic. Blocks.
pub(crate) fn topic_setting(kafka: &KafkaConfig, topic: &str, name: &str) -> Result<String, String> {
    let admin: AdminClient<DefaultClientContext> =
        client_config(kafka).create().map_err(|error: KafkaError| error.to_string())?;
    let options = AdminOptions::new().request_timeout(Some(CALL_TIMEOUT));
    let resource = [ResourceSpecifier::Topic(topic)];
    let described = futures::executor::block_on(admin.describe_configs(&resource, &options));
    let described = described.map_err(|error| format!("can't read the settings of {topic}: {error}"))?;
    let settings = described.into_iter().next().transpose();
    let settings = settings.map_err(|error| format!("can't read the settings of {topic}: {error}"))?;
    let value = settings.as_ref().and_then(|settings| settings.get(name)).and_then(|entry| entry.value.clone());
    value.ok_or_else(|| format!("{topic} has no setting {name}"))
}

/// Partitions of a topic.
pub(crate) fn partitions<C: rdkafka::consumer::ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
) -> Result<Vec<i32>, String> {
    let metadata = consumer
        .fetch_metadata(Some(topic), CALL_TIMEOUT)
        .map_err(|error| format!("Kafka does not answer ({error}): check that the brokers are up"))?;
    let partitions: Vec<i32> =
        metadata.topics().iter().flat_map(|topic| topic.partitions()).map(|partition| partition.id()).collect();
    if partitions.is_empty() {
        return Err("the topic does not exist: run `weir topics apply`".into());
    }
    Ok(partitions)
}

fn read(consumer: &BaseConsumer<LogContext>, topic: &Arc<str>, events: &mpsc::Sender<Event>) {
    while !events.is_closed() {
        let event = match consumer.poll(POLL) {
            None => continue,
            Some(Ok(message)) => Event::Record(copy(topic, &message)),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                let position = consumer.position().ok().and_then(|positions| {
                    positions.find_partition(topic, partition).and_then(|at| at.offset().to_raw())
                });
                Event::End(Lane(partition), position.filter(|offset| *offset >= 0).unwrap_or(i64::MAX))
            }
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => Event::Failed(code.to_string()),
            Some(Err(error)) => {
                tracing::debug!(topic = %topic, %error, "reading");
                continue;
            }
        };
        if events.blocking_send(event).is_err() {
            return;
        }
    }
}

fn copy(topic: &Arc<str>, message: &BorrowedMessage<'_>) -> Bytes {
    Bytes {
        at: Coordinates { topic: Arc::clone(topic), lane: Lane(message.partition()), offset: message.offset() },
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: copy_headers(message),
        timestamp: message.timestamp().to_millis().unwrap_or_default(),
    }
}

/// The headers of a message, copied.
pub(crate) fn copy_headers(message: &BorrowedMessage<'_>) -> Headers {
    let Some(headers) = message.headers() else { return Headers::default() };
    Headers(headers.iter().map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec())).collect())
}
