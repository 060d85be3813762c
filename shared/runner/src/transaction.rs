//! Kafka transactions: every error classified into what must be done about it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::Producer;
use weir_contracts::Lane;

use crate::client::CALL_TIMEOUT;
use crate::failpoint::{Failpoint, is_lost, reach};
use crate::process::EncodedRecord;
use crate::sender::{DRAIN_POLL, Sender};
use crate::{KafkaConfig, RunnerConfig};

/// How long librdkafka waits at once while it aborts: for records that are on their way, to no purpose, since it is this thread
/// that has to hear of them.
const ABORT_STEP: Duration = Duration::from_millis(50);

/// How much longer than its timeout a call may take before it counts as one that never returns.
const LATE: Duration = Duration::from_secs(1);

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

/// A producer with a transactional id.
pub(crate) struct TransactionalProducer {
    kafka: KafkaConfig,
    config: RunnerConfig,
    transactional_id: String,
    changelog: Option<Arc<str>>,
    sender: Sender,
    /// Whether a call to the producer has not returned: it is of no use any more.
    stuck: bool,
    timeout: Duration,
}

impl TransactionalProducer {
    /// A producer that has not yet fenced its predecessor; see [`TransactionalProducer::fence`].
    pub(crate) fn new(
        kafka: &KafkaConfig,
        config: &RunnerConfig,
        transactional_id: String,
        changelog: Option<Arc<str>>,
    ) -> Result<Self, String> {
        let sender = Sender::new(kafka, config, Some(&transactional_id), changelog.clone())?;
        Ok(Self {
            kafka: kafka.clone(),
            config: config.clone(),
            transactional_id,
            changelog,
            sender,
            stuck: false,
            timeout: Duration::from_millis(config.transaction_timeout_ms).min(CALL_TIMEOUT),
        })
    }

    /// Fences every earlier producer with this transactional id and resolves the transaction it left open.
    pub(crate) fn fence(&self) -> Result<(), TransactionError> {
        match self.sender.producer.init_transactions(self.timeout) {
            Ok(()) => Ok(()),
            Err(error) => Err(classify(&error, "init_transactions")),
        }
    }

    /// Forgets the producer and its transaction in doubt; the new one must [`TransactionalProducer::fence`].
    pub(crate) fn recreate(&mut self) -> Result<(), String> {
        self.sender = Sender::new(&self.kafka, &self.config, Some(&self.transactional_id), self.changelog.clone())?;
        self.stuck = false;
        Ok(())
    }

    /// For each lane of the changelog that was written since the last call: the position behind it.
    pub(crate) fn take_ends(&self) -> HashMap<Lane, i64> {
        self.sender.take_ends()
    }

    /// Begins a transaction.
    pub(crate) fn begin(&mut self) -> Result<(), TransactionError> {
        self.sender.producer.begin_transaction().map_err(|error| classify(&error, "begin_transaction"))
    }

    /// Adds records to the open transaction.
    pub(crate) fn produce(&mut self, records: &[Cow<'_, EncodedRecord>]) -> Result<(), TransactionError> {
        self.sender.send(records, self.timeout).map_err(|error| classify(&error, "produce"))
    }

    /// Adds the positions of the input and commits, on behalf of `stage`.
    pub(crate) fn commit(
        &mut self,
        stage: &str,
        offsets: TopicPartitionList,
        group: ConsumerGroupMetadata,
    ) -> Result<(), TransactionError> {
        let positions = Arc::new((offsets, group));
        let deadline = Instant::now() + self.timeout;
        reach(stage, Failpoint::BeforeCommit);
        // While records are on their way: positions go to another broker, perhaps, and over another connection in any case.
        loop {
            let Some(sent) = self.send_offsets(&positions)? else {
                self.stuck = true;
                return Err(TransactionError::Abort("send_offsets_to_transaction does not return".into()));
            };
            match sent {
                Ok(()) => break,
                Err(error) if retriable(&error) && Instant::now() < deadline => self.sender.producer.poll(DRAIN_POLL),
                Err(error) => {
                    return Err(match classify(&error, "send_offsets_to_transaction") {
                        // Nothing is in doubt before the commit: abort and produce again.
                        TransactionError::Ambiguous(reason) => TransactionError::Abort(reason),
                        other => other,
                    });
                }
            }
        }
        // What was not acknowledged in time fails the commit.
        self.sender.drain(deadline);
        reach(stage, Failpoint::AfterSendOffsets);
        if is_lost(stage, Failpoint::LostCommitRequest) {
            return Err(TransactionError::Ambiguous("a test lost the request".into()));
        }
        loop {
            match self.sender.producer.commit_transaction(self.timeout) {
                Ok(()) if is_lost(stage, Failpoint::LostCommitAnswer) => {
                    return Err(TransactionError::Ambiguous("a test lost the answer".into()));
                }
                Ok(()) => return Ok(()),
                Err(error) if retriable(&error) && !timed_out(&error) && Instant::now() < deadline => {
                    self.sender.producer.poll(DRAIN_POLL);
                }
                Err(error) => return Err(classify(&error, "commit_transaction")),
            }
        }
    }

    /// Adds positions; none when the call does not return. librdkafka 2.12 does not keep its timeout: told three times that
    /// the group has no coordinator, it waits until the connection to some broker changes (its issue 5456). So the call has
    /// a thread of its own, which is left behind with the producer then.
    fn send_offsets(
        &self,
        positions: &Arc<(TopicPartitionList, ConsumerGroupMetadata)>,
    ) -> Result<Option<KafkaResult<()>>, TransactionError> {
        let (producer, positions, timeout) = (Arc::clone(&self.sender.producer), Arc::clone(positions), self.timeout);
        let (answer, answered) = mpsc::sync_channel(1);
        let call = move || {
            let (offsets, group) = &*positions;
            // Nobody waits any more when it is late.
            let _ = answer.send(producer.send_offsets_to_transaction(offsets, group, timeout));
        };
        let thread = std::thread::Builder::new().name("weir-positions".into()).spawn(call);
        thread.map_err(|error| TransactionError::Abort(format!("no thread: {error}")))?;
        Ok(answered.recv_timeout(self.timeout + LATE).ok())
    }

    /// Waits until what was produced is acknowledged.
    pub(crate) fn drain(&self) {
        self.sender.drain(Instant::now() + self.timeout);
    }

    /// Aborts whatever is open.
    pub(crate) fn abort(&mut self) -> Result<(), TransactionError> {
        if self.stuck {
            return Err(TransactionError::Ambiguous("the producer does not answer".into()));
        }
        self.sender.forget();
        let deadline = Instant::now() + self.timeout;
        loop {
            match self.sender.producer.abort_transaction(ABORT_STEP) {
                Ok(()) => return Ok(()),
                // Nothing was open, or it is already aborted.
                Err(error) if code(&error) == Some(RDKafkaErrorCode::State) => return Ok(()),
                // Records were on their way: those not yet sent are purged by now, and nobody else hears what became of the rest.
                Err(error) if retriable(&error) && Instant::now() < deadline => self.sender.drain(deadline),
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
    sender: Sender,
    timeout: Duration,
}

#[cfg(feature = "at-least-once")]
impl PlainProducer {
    pub(crate) fn new(kafka: &KafkaConfig, config: &RunnerConfig, changelog: Option<Arc<str>>) -> Result<Self, String> {
        let timeout = Duration::from_millis(config.transaction_timeout_ms);
        Ok(Self { sender: Sender::new(kafka, config, None, changelog)?, timeout })
    }

    pub(crate) fn take_ends(&self) -> HashMap<Lane, i64> {
        self.sender.take_ends()
    }

    pub(crate) fn produce(&mut self, records: &[Cow<'_, EncodedRecord>]) -> Result<(), TransactionError> {
        self.sender.send(records, self.timeout).map_err(|error| classify(&error, "produce"))
    }

    /// Waits until everything is acknowledged.
    pub(crate) fn flush(&self) -> Result<(), TransactionError> {
        self.sender.drain(Instant::now() + self.timeout);
        self.sender.failure().map_or(Ok(()), |reason| Err(TransactionError::Fatal(reason)))
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
