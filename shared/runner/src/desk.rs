//! One at a time: a producer whose transactional id stands for something that only one may do at once. Whoever takes
//! the id over ends the one before, and what that one left open is aborted.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::backoff::Backoff;
use crate::process::EncodedRecord;
use crate::table;
use crate::transaction::{TransactionError, TransactionalProducer};
use crate::{KafkaConfig, RunnerConfig};

/// How long Kafka may take to hand over the transactional id; a transaction that is left open lasts for less.
const TAKE_OVER: Duration = Duration::from_secs(60);

/// What its transactions are called where stages have their names.
const DESK: &str = "desk";

/// What became of a transaction that did not fail for good.
pub(crate) enum Transacted {
    Committed,
    /// Nothing of it counts.
    Aborted(String),
    /// It may count or not; the desk must be [renewed](Desk::renew) before anything else, and whoever reads the table
    /// then sees which.
    Unknown(String),
}

/// The desk at which one sits at a time. All of it blocks.
pub(crate) struct Desk {
    producer: TransactionalProducer,
    /// In no group and without positions; a commit wants to know one.
    consumer: BaseConsumer,
}

impl Desk {
    /// Takes over a transactional id (full name).
    pub(crate) fn take_over(kafka: &KafkaConfig, config: &RunnerConfig, id: String) -> Result<Self, String> {
        let desk = Self {
            producer: TransactionalProducer::new(kafka, config, id, None)?,
            consumer: table::consumer(kafka, "read_committed")?,
        };
        desk.fence()?;
        Ok(desk)
    }

    /// Takes the id over once more, from whoever has it now.
    pub(crate) fn renew(&mut self) -> Result<(), String> {
        self.producer.recreate()?;
        self.fence()
    }

    /// Ends whoever has the transactional id, and what they left open.
    fn fence(&self) -> Result<(), String> {
        let start = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            match self.producer.fence() {
                Ok(()) => return Ok(()),
                Err(TransactionError::Fatal(reason)) => return Err(reason),
                Err(TransactionError::Abort(reason) | TransactionError::Ambiguous(reason)) => {
                    if start.elapsed() > TAKE_OVER {
                        return Err(format!("Kafka does not hand over the transactional id: {reason}"));
                    }
                    tracing::debug!(reason, "taking over the transactional id: trying again");
                    std::thread::sleep(backoff.next(&mut rand::rng(), None));
                }
            }
        }
    }

    /// Produces records in one transaction. After an error the desk is of no use any more.
    pub(crate) fn transact(&mut self, records: &[EncodedRecord]) -> Result<Transacted, String> {
        match self.try_to(records) {
            Ok(()) => Ok(Transacted::Committed),
            Err(TransactionError::Fatal(reason)) => Err(reason),
            Err(TransactionError::Ambiguous(reason)) => Ok(Transacted::Unknown(reason)),
            Err(TransactionError::Abort(reason)) => match self.producer.abort() {
                Ok(()) => Ok(Transacted::Aborted(reason)),
                Err(TransactionError::Fatal(reason)) => Err(reason),
                Err(TransactionError::Abort(_) | TransactionError::Ambiguous(_)) => Ok(Transacted::Unknown(reason)),
            },
        }
    }

    fn try_to(&mut self, records: &[EncodedRecord]) -> Result<(), TransactionError> {
        let group = self.consumer.group_metadata();
        let group = group.ok_or_else(|| TransactionError::Fatal("the consumer has no group metadata".into()))?;
        self.producer.begin()?;
        self.producer.produce(&records.iter().map(Cow::Borrowed).collect::<Vec<_>>())?;
        self.producer.commit(DESK, TopicPartitionList::new(), group)
    }
}

/// Whether an error says that somebody else has taken over the transactional id.
pub(crate) fn fenced(reason: &str) -> bool {
    // librdkafka says it in several ways, depending on which request was refused.
    let said = reason.to_lowercase();
    said.contains("fence") || said.contains("old epoch")
}
