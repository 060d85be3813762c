//! A test's own look at its topics, past the code under test.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers as _, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use crate::TestTopics;

const TIMEOUT: Duration = Duration::from_secs(20);

/// What a reader sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Committed records.
    Committed,
    /// Those of aborted and open transactions too.
    Everything,
}

/// A record as it lies in a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Partition.
    pub lane: i32,
    /// Offset.
    pub offset: i64,
    /// Key.
    pub key: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
    /// Headers.
    pub headers: BTreeMap<String, Vec<u8>>,
    /// When it was written, milliseconds since the Unix epoch.
    pub timestamp: i64,
}

impl Stored {
    /// A header as text.
    pub fn header(&self, name: &str) -> String {
        String::from_utf8_lossy(self.headers.get(name).map_or(&[][..], Vec::as_slice)).into_owned()
    }
}

impl TestTopics {
    /// Writes values round robin over `lanes` partitions, with the value as key, and waits until they are stored.
    pub fn produce(&self, topic: &str, lanes: i32, values: impl IntoIterator<Item = String>) {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("enable.idempotence", "true")
            .set("max.in.flight.requests.per.connection", "1")
            .create()
            .expect("a producer");
        let topic = self.full(topic);
        for (n, value) in values.into_iter().enumerate() {
            let lane = i32::try_from(n).expect("few values") % lanes;
            let mut record = BaseRecord::to(&topic).partition(lane).key(&value).payload(&value);
            while let Err((error, returned)) = producer.send(record) {
                assert!(matches!(error, KafkaError::MessageProduction(_)), "{error}");
                producer.poll(Duration::from_millis(5));
                record = returned;
            }
        }
        producer.flush(TIMEOUT).expect("everything is stored");
    }

    /// Everything in a topic up to the end it has now, although more may be written meanwhile.
    pub fn read(&self, topic: &str, isolation: Isolation) -> Vec<Stored> {
        let consumer = self.consumer("test-reader", isolation);
        let topic = self.full(topic);
        let mut ends = std::collections::HashMap::new();
        let mut list = TopicPartitionList::new();
        for (lane, low, high) in self.watermarks(&consumer, &topic) {
            if low < high {
                ends.insert(lane, high);
                list.add_partition_offset(&topic, lane, Offset::Offset(low)).expect("an offset");
            }
        }
        consumer.assign(&list).expect("an assignment");
        let mut stored = Vec::new();
        while !ends.is_empty() {
            match consumer.poll(TIMEOUT) {
                Some(Ok(message)) => {
                    let (lane, offset) = (message.partition(), message.offset());
                    let Some(end) = ends.get(&lane).copied() else { continue };
                    if offset < end {
                        stored.push(copy(&message));
                    }
                    if offset + 1 >= end {
                        ends.remove(&lane);
                    }
                }
                // The end may be a marker that no record follows, or lie in a transaction that is open.
                Some(Err(KafkaError::PartitionEOF(lane))) => {
                    ends.remove(&lane);
                }
                Some(Err(error)) => panic!("reading {topic}: {error}"),
                None => panic!("{topic} can't be read to its end"),
            }
        }
        stored.sort_by_key(|record| (record.lane, record.offset));
        stored
    }

    /// Whether a transaction is open on the topic: its last stable offset lies before its end.
    pub fn has_open_transaction(&self, topic: &str) -> bool {
        let topic = self.full(topic);
        let end = |isolation| self.watermarks(&self.consumer("test-watermarks", isolation), &topic);
        end(Isolation::Committed) != end(Isolation::Everything)
    }

    /// Records of `topic` that the group of `stage` has not committed, in all lanes.
    pub fn lag(&self, stage: &str, topic: &str) -> i64 {
        let consumer = self.consumer(&self.full(stage), Isolation::Everything);
        let topic = self.full(topic);
        let ends = self.watermarks(&consumer, &topic);
        let mut list = TopicPartitionList::new();
        for (lane, _, _) in &ends {
            list.add_partition(&topic, *lane);
        }
        let committed = patiently(|| consumer.committed_offsets(list.clone(), TIMEOUT));
        ends.iter()
            .map(|(lane, low, high)| {
                let committed = committed.find_partition(&topic, *lane).and_then(|at| at.offset().to_raw());
                (high - committed.filter(|offset| *offset >= 0).unwrap_or(*low)).max(0)
            })
            .sum()
    }

    /// Deletes the records of one lane before `offset`, as retention does.
    pub fn delete_records(&self, topic: &str, lane: i32, offset: i64) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.brokers).create().expect("an admin client");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.full(topic), lane, Offset::Offset(offset)).expect("an offset");
        let deleting = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(admin.delete_records(&list, &AdminOptions::new())).expect("records are deleted");
        });
        deleting.join().expect("the thread that deletes");
    }

    fn consumer(&self, group: &str, isolation: Isolation) -> BaseConsumer {
        let isolation = if isolation == Isolation::Committed { "read_committed" } else { "read_uncommitted" };
        ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.queue.backoff.ms", "5")
            .set("isolation.level", isolation)
            .create()
            .expect("a consumer")
    }

    fn watermarks(&self, consumer: &BaseConsumer, topic: &str) -> Vec<(i32, i64, i64)> {
        let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).expect("metadata");
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        let mut found: Vec<_> = partitions
            .map(|partition| {
                let (low, high) = patiently(|| consumer.fetch_watermarks(topic, partition.id(), TIMEOUT));
                (partition.id(), low, high)
            })
            .collect();
        found.sort_unstable();
        found
    }
}

/// Right after it has started, a broker does not lead its partitions and groups yet.
fn patiently<T>(mut ask: impl FnMut() -> Result<T, KafkaError>) -> T {
    let deadline = std::time::Instant::now() + TIMEOUT;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn copy(message: &rdkafka::message::BorrowedMessage<'_>) -> Stored {
    let headers = message.headers().map(|headers| {
        let all = headers.iter();
        all.map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec())).collect()
    });
    Stored {
        lane: message.partition(),
        offset: message.offset(),
        key: message.key().unwrap_or_default().to_vec(),
        value: message.payload().unwrap_or_default().to_vec(),
        headers: headers.unwrap_or_default(),
        timestamp: message.timestamp().to_millis().unwrap_or_default(),
    }
}
