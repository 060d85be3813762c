//! A producer of one stage: records leave it in the order of their partitions, each once.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{ClientContext, config::RDKafkaLogLevel};
use weir_contracts::Lane;

use crate::client::{client_config, log_line};
use crate::process::EncodedRecord;
use crate::{KafkaConfig, RunnerConfig};

/// Shortest wait for acknowledgements; rdkafka's own flush polls in steps of 100 ms.
pub(crate) const DRAIN_POLL: Duration = Duration::from_millis(1);

/// How long a partition counts as knowing a producer that writes nothing to it. Brokers forget one after a day
/// (`producer.id.expiration.ms`).
const KNOWN: Duration = Duration::from_secs(3600);

/// What delivery reports say; a transactional producer's failures surface at commit.
#[derive(Debug, Default)]
pub(crate) struct DeliveryContext {
    failed: Mutex<Option<String>>,
    /// The topic whose ends are of interest, and the position behind the last record written to each of its lanes.
    changelog: Option<Arc<str>>,
    ends: Mutex<HashMap<Lane, i64>>,
}

impl ClientContext for DeliveryContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "producer error");
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &rdkafka::producer::DeliveryResult<'_>, (): ()) {
        match result {
            Err((error, _)) => {
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.get_or_insert_with(|| error.to_string());
            }
            Ok(message) if self.changelog.as_deref() == Some(message.topic()) => {
                let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
                let end = ends.entry(Lane(message.partition())).or_insert(0);
                *end = (*end).max(message.offset() + 1);
            }
            Ok(_) => {}
        }
    }
}

/// Sends records, several requests at a time once a partition has acknowledged its first.
///
/// A broker takes whatever sequence number comes first from a producer that a partition does not know yet. Of two
/// requests in flight to a partition that is just coming to be, the first is refused and the second may be taken; the
/// retry of the first then counts as a duplicate, so that librdkafka takes it for stored, and it is lost, also in a
/// transaction (seen with librdkafka 2.12 and Kafka 4.4). So a partition gets its first record alone.
pub(crate) struct Sender {
    pub(crate) producer: Arc<BaseProducer<DeliveryContext>>,
    /// When each partition was last written to.
    known: HashMap<(Arc<str>, Lane), Instant>,
}

impl Sender {
    /// A producer; connects in the background.
    pub(crate) fn new(
        kafka: &KafkaConfig,
        config: &RunnerConfig,
        transactional_id: Option<&str>,
        changelog: Option<Arc<str>>,
    ) -> Result<Self, String> {
        let mut settings = client_config(kafka);
        let timeout = config.transaction_timeout_ms.to_string();
        settings
            .set("partitioner", "murmur2_random")
            // Records of a batch come at once, so that requests fill while those before them are in flight; who waits for the
            // last of them would wait for nothing.
            .set("linger.ms", "0")
            .set("batch.size", "524288")
            .set("batch.num.messages", "20000")
            .set("compression.type", "lz4")
            .set("queue.buffering.max.messages", "100000")
            .set("queue.buffering.max.kbytes", "32768")
            .set("message.timeout.ms", &timeout)
            // Dead letters carry the record and its history.
            .set("message.max.bytes", (2 * config.max_record_bytes + (64 << 10)).to_string())
            .set("delivery.report.only.error", if changelog.is_some() { "false" } else { "true" });
        for (name, value) in &kafka.properties {
            settings.set(name, value);
        }
        settings.set("enable.idempotence", "true");
        if let Some(id) = transactional_id {
            settings.set("transactional.id", id).set("transaction.timeout.ms", &timeout);
        }
        let context = DeliveryContext { changelog, ..DeliveryContext::default() };
        let producer = settings.create_with_context(context).map_err(|error: KafkaError| error.to_string())?;
        Ok(Self { producer: Arc::new(producer), known: HashMap::new() })
    }

    /// Hands records to librdkafka, which sends them in the background. `timeout` bounds the wait for room in its queue
    /// and, for partitions that are written to for the first time, for the first acknowledgement.
    pub(crate) fn send(&mut self, records: &[Cow<'_, EncodedRecord>], timeout: Duration) -> Result<(), KafkaError> {
        let deadline = Instant::now() + timeout;
        let sent = self.introduce(records, deadline)?;
        for (n, record) in records.iter().enumerate() {
            if !sent.contains(&n) {
                self.enqueue(record, deadline)?;
            }
        }
        Ok(())
    }

    /// Sends the first record to each partition that does not know this producer, waits until all are acknowledged, and
    /// says which they are.
    fn introduce(&mut self, records: &[Cow<'_, EncodedRecord>], deadline: Instant) -> Result<Vec<usize>, KafkaError> {
        let now = Instant::now();
        let mut sent = Vec::new();
        let mut new = HashSet::new();
        let mut previous: Option<&EncodedRecord> = None;
        for (n, record) in records.iter().enumerate() {
            let before = previous.replace(record);
            if before.is_some_and(|other| other.lane == record.lane && Arc::ptr_eq(&other.topic, &record.topic)) {
                continue;
            }
            let partition = (Arc::clone(&record.topic), record.lane);
            match self.known.get_mut(&partition) {
                Some(last) if last.elapsed() < KNOWN => *last = now,
                _ => {
                    if new.insert(partition) {
                        self.enqueue(record, deadline)?;
                        sent.push(n);
                    }
                }
            }
        }
        if !sent.is_empty() {
            self.drain(deadline);
            if self.producer.in_flight_count() > 0 {
                return Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut));
            }
            self.known.extend(new.into_iter().map(|partition| (partition, now)));
        }
        Ok(sent)
    }

    /// After records failed: partitions may not know this producer after all.
    pub(crate) fn forget(&mut self) {
        self.known.clear();
    }

    /// For each lane of the changelog that was written since the last call: the position behind it.
    pub(crate) fn take_ends(&self) -> HashMap<Lane, i64> {
        std::mem::take(&mut *self.producer.context().ends.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until everything sent is acknowledged or has failed, or the deadline.
    pub(crate) fn drain(&self, deadline: Instant) {
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            self.producer.poll(DRAIN_POLL);
        }
    }

    /// The first record since the last call that could not be delivered, and why.
    #[cfg(feature = "at-least-once")]
    pub(crate) fn failure(&self) -> Option<String> {
        self.producer.context().failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn enqueue(&self, record: &EncodedRecord, deadline: Instant) -> Result<(), KafkaError> {
        let mut message: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&record.topic).partition(record.lane.0);
        if let Some(key) = &record.key {
            message = message.key(key);
        }
        if let Some(value) = &record.value {
            message = message.payload(value);
        }
        if !record.headers.0.is_empty() {
            let mut headers = OwnedHeaders::new_with_capacity(record.headers.0.len());
            for (key, value) in &record.headers.0 {
                headers = headers.insert(Header { key, value: Some(value.as_slice()) });
            }
            message = message.headers(headers);
        }
        loop {
            match self.producer.send(message) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned))
                    if Instant::now() < deadline =>
                {
                    message = returned;
                    self.producer.poll(DRAIN_POLL);
                }
                Err((error, _)) => return Err(error),
            }
        }
    }
}
