//! Records with keys and times of the test's choosing, and transactions that hang.

use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use crate::TestTopics;

const TIMEOUT: Duration = Duration::from_secs(20);

impl TestTopics {
    /// Writes (key, value) pairs; a key lies in the lane that the sum of its bytes names, so that all of a key's
    /// records are in order. Waits until they are stored.
    pub fn produce_keyed(&self, topic: &str, lanes: i32, records: impl IntoIterator<Item = (String, String)>) {
        let producer = self.producer(&[]);
        let topic = self.full(topic);
        for (key, value) in records {
            let lane = key.bytes().map(i32::from).sum::<i32>() % lanes;
            send(&producer, BaseRecord::to(&topic).partition(lane).key(key.as_str()).payload(value.as_str()));
        }
        producer.flush(TIMEOUT).expect("everything is stored");
    }

    /// Writes one record that says it was written at `timestamp`, milliseconds since the Unix epoch.
    pub fn produce_at(&self, topic: &str, lane: i32, timestamp: i64, key: &str, value: &str) {
        let producer = self.producer(&[]);
        let topic = self.full(topic);
        send(&producer, BaseRecord::to(&topic).partition(lane).timestamp(timestamp).key(key).payload(value));
        producer.flush(TIMEOUT).expect("everything is stored");
    }

    /// Leaves a transaction of somebody else open on a lane; the broker aborts it after `timeout`.
    pub fn open_transaction(&self, topic: &str, lane: i32, timeout: Duration) {
        let id = format!("{}stranger-{:x}", self.prefix, rand::random::<u32>());
        let millis = timeout.as_millis().to_string();
        let producer = self.producer(&[
            ("transactional.id", id.as_str()),
            ("transaction.timeout.ms", millis.as_str()),
            ("message.timeout.ms", millis.as_str()),
        ]);
        producer.init_transactions(TIMEOUT).expect("a transactional id");
        producer.begin_transaction().expect("a transaction");
        let topic = self.full(topic);
        send(&producer, BaseRecord::to(&topic).partition(lane).key("stranger").payload("never"));
        producer.flush(TIMEOUT).expect("the record is stored");
        // Dropping it would abort the transaction.
        std::mem::forget(producer);
    }

    fn producer(&self, settings: &[(&str, &str)]) -> BaseProducer<AllStored> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("enable.idempotence", "true");
        config.set("max.in.flight.requests.per.connection", "1");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        config.create_with_context(AllStored).expect("a producer")
    }
}

/// Fails the test when a record is not stored.
struct AllStored;

impl ClientContext for AllStored {}

impl ProducerContext for AllStored {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            // On the way out of a failed test nobody waits for its records.
            assert!(std::thread::panicking(), "a record was not stored: {error}");
        }
    }
}

fn send(producer: &BaseProducer<AllStored>, mut record: BaseRecord<'_, str, str>) {
    while let Err((error, returned)) = producer.send(record) {
        assert!(matches!(error, rdkafka::error::KafkaError::MessageProduction(_)), "{error}");
        producer.poll(Duration::from_millis(5));
        record = returned;
    }
}
