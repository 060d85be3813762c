//! Kafka transactions: every error classified into what must be done about it.

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{ClientContext, config::RDKafkaLogLevel};

use crate::client::{CALL_TIMEOUT, client_config, log_line, store_once};
use crate::process::EncodedRecord;
use crate::{KafkaConfig, RunnerConfig};

/// Shortest wait for acknowledgements; rdkafka's own flush polls in steps of 100 ms.
const DRAIN_POLL: Duration = Duration::from_millis(1);

/// Why a transaction was not committed.
#[derive(Debug)]
pub(crate) enum TransactionError {
    /// Nothing of it counts; produce the same again after aborting.
    Abort(String),
    /// It may have been committed or not: only Kafka knows.
    Ambiguous(String),
    /// The producer is of no use any more, and nor is this process: another one has its transactional id.
    Fatal(String),
}

/// What delivery reports say; a transactional producer's failures surface at commit.
#[derive(Debug, Default)]
pub(crate) struct DeliveryContext {
    failed: std::sync::Mutex<Option<String>>,
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
        if let Err((error, _)) = result {
            let mut failed = self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            failed.get_or_insert_with(|| error.to_string());
        }
    }
}

/// A producer with a transactional id.
pub(crate) struct TransactionalProducer {
    kafka: KafkaConfig,
    config: RunnerConfig,
    transactional_id: String,
    producer: BaseProducer<DeliveryContext>,
    timeout: Duration,
}

impl TransactionalProducer {
    /// A producer that has not yet fenced its predecessor; see [`TransactionalProducer::fence`].
    pub(crate) fn new(kafka: &KafkaConfig, config: &RunnerConfig, transactional_id: String) -> Result<Self, String> {
        let producer = create(kafka, config, Some(&transactional_id))?;
        Ok(Self {
            kafka: kafka.clone(),
            config: config.clone(),
            transactional_id,
            producer,
            timeout: Duration::from_millis(config.transaction_timeout_ms).min(CALL_TIMEOUT),
        })
    }

    /// Fences every earlier producer with this transactional id and resolves the transaction it left open.
    pub(crate) fn fence(&self) -> Result<(), TransactionError> {
        match self.producer.init_transactions(self.timeout) {
            Ok(()) => Ok(()),
            Err(error) => Err(classify(&error, "init_transactions")),
        }
    }

    /// Forgets the producer and its transaction in doubt; the new one must [`TransactionalProducer::fence`].
    pub(crate) fn recreate(&mut self) -> Result<(), String> {
        self.producer = create(&self.kafka, &self.config, Some(&self.transactional_id))?;
        Ok(())
    }

    /// Begins a transaction.
    pub(crate) fn begin(&mut self) -> Result<(), TransactionError> {
        self.producer.begin_transaction().map_err(|error| classify(&error, "begin_transaction"))
    }

    /// Adds a record to the open transaction.
    pub(crate) fn produce(&mut self, record: &EncodedRecord) -> Result<(), TransactionError> {
        send(&self.producer, record, self.timeout).map_err(|error| classify(&error, "produce"))
    }

    /// Adds the positions of the input and commits.
    pub(crate) fn commit(
        &mut self,
        offsets: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
    ) -> Result<(), TransactionError> {
        let deadline = Instant::now() + self.timeout;
        drain(&self.producer, deadline);
        loop {
            match self.producer.send_offsets_to_transaction(offsets, group, self.timeout) {
                Ok(()) => break,
                Err(error) if retriable(&error) && Instant::now() < deadline => self.producer.poll(DRAIN_POLL),
                Err(error) => {
                    return Err(match classify(&error, "send_offsets_to_transaction") {
                        // Nothing is in doubt before the commit: abort and produce again.
                        TransactionError::Ambiguous(reason) => TransactionError::Abort(reason),
                        other => other,
                    });
                }
            }
        }
        loop {
            match self.producer.commit_transaction(self.timeout) {
                Ok(()) => return Ok(()),
                Err(error) if retriable(&error) && !timed_out(&error) && Instant::now() < deadline => {
                    self.producer.poll(DRAIN_POLL);
                }
                Err(error) => return Err(classify(&error, "commit_transaction")),
            }
        }
    }

    /// Aborts whatever is open.
    pub(crate) fn abort(&mut self) -> Result<(), TransactionError> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match self.producer.abort_transaction(self.timeout) {
                Ok(()) => return Ok(()),
                // Nothing was open, or it is already aborted.
                Err(error) if code(&error) == Some(RDKafkaErrorCode::State) => return Ok(()),
                Err(error) if retriable(&error) && Instant::now() < deadline => self.producer.poll(DRAIN_POLL),
                Err(error) => {
                    return Err(match classify(&error, "abort_transaction") {
                        TransactionError::Fatal(reason) => TransactionError::Fatal(reason),
                        TransactionError::Abort(reason) | TransactionError::Ambiguous(reason) => {
                            TransactionError::Ambiguous(reason)
                        }
                    });
                }
            }
        }
    }
}

/// Without transactions: the negative control of the tests and the yardstick of the benchmark.
#[cfg(feature = "at-least-once")]
pub(crate) struct PlainProducer {
    producer: BaseProducer<DeliveryContext>,
    timeout: Duration,
}

#[cfg(feature = "at-least-once")]
impl PlainProducer {
    pub(crate) fn new(kafka: &KafkaConfig, config: &RunnerConfig) -> Result<Self, String> {
        let timeout = Duration::from_millis(config.transaction_timeout_ms);
        Ok(Self { producer: create(kafka, config, None)?, timeout })
    }

    pub(crate) fn produce(&self, record: &EncodedRecord) -> Result<(), TransactionError> {
        send(&self.producer, record, self.timeout).map_err(|error| classify(&error, "produce"))
    }

    /// Waits until everything is acknowledged.
    pub(crate) fn flush(&self) -> Result<(), TransactionError> {
        drain(&self.producer, Instant::now() + self.timeout);
        let mut failed = self.producer.context().failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match failed.take() {
            Some(reason) => Err(TransactionError::Fatal(reason)),
            None => Ok(()),
        }
    }
}

fn create(
    kafka: &KafkaConfig,
    config: &RunnerConfig,
    transactional_id: Option<&str>,
) -> Result<BaseProducer<DeliveryContext>, String> {
    let mut settings = client_config(kafka);
    let timeout = config.transaction_timeout_ms.to_string();
    settings
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "2")
        .set("batch.size", "524288")
        .set("batch.num.messages", "20000")
        .set("compression.type", "lz4")
        .set("queue.buffering.max.messages", "100000")
        .set("queue.buffering.max.kbytes", "32768")
        .set("message.timeout.ms", &timeout)
        // Dead letters carry the record and its history.
        .set("message.max.bytes", (2 * config.max_record_bytes + (64 << 10)).to_string())
        .set("delivery.report.only.error", "true");
    for (name, value) in &kafka.properties {
        settings.set(name, value);
    }
    store_once(&mut settings);
    if let Some(id) = transactional_id {
        settings.set("transactional.id", id).set("transaction.timeout.ms", &timeout);
    }
    settings.create_with_context(DeliveryContext::default()).map_err(|error: KafkaError| error.to_string())
}

fn send(producer: &BaseProducer<DeliveryContext>, record: &EncodedRecord, timeout: Duration) -> Result<(), KafkaError> {
    let deadline = Instant::now() + timeout;
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
        match producer.send(message) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned))
                if Instant::now() < deadline =>
            {
                message = returned;
                producer.poll(DRAIN_POLL);
            }
            Err((error, _)) => return Err(error),
        }
    }
}

/// Waits until everything produced is acknowledged, or the deadline: the commit reports what failed.
fn drain(producer: &BaseProducer<DeliveryContext>, deadline: Instant) {
    while producer.in_flight_count() > 0 && Instant::now() < deadline {
        producer.poll(DRAIN_POLL);
    }
}

fn code(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::Transaction(error) => Some(error.code()),
        other => other.rdkafka_error_code(),
    }
}

fn retriable(error: &KafkaError) -> bool {
    matches!(error, KafkaError::Transaction(error) if error.is_retriable() && !error.txn_requires_abort())
}

fn timed_out(error: &KafkaError) -> bool {
    matches!(code(error), Some(RDKafkaErrorCode::OperationTimedOut | RDKafkaErrorCode::RequestTimedOut))
}

/// In this order: abort where librdkafka asks for it; in doubt where a call timed out; fatal otherwise.
fn classify(error: &KafkaError, call: &str) -> TransactionError {
    let reason = format!("{call}: {error}");
    match error {
        KafkaError::Transaction(inner) if inner.is_fatal() => TransactionError::Fatal(reason),
        KafkaError::Transaction(inner) if inner.txn_requires_abort() => TransactionError::Abort(reason),
        KafkaError::Transaction(inner) if inner.is_retriable() => TransactionError::Ambiguous(reason),
        KafkaError::Flush(_) => TransactionError::Ambiguous(reason),
        // A record that can't be produced leaves the transaction in its error state; aborting tells how bad it is.
        KafkaError::MessageProduction(_) => TransactionError::Abort(reason),
        _ if timed_out(error) => TransactionError::Ambiguous(reason),
        _ => TransactionError::Fatal(reason),
    }
}
