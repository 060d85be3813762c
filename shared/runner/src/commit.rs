//! One transaction: outputs, dead letters and input positions of finished records, together or not at all.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use metrics::{counter, histogram};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use weir_contracts::Lane;
use weir_stage::Headers;

use crate::assignment::{GroupContext, committed};
use crate::dead_letter::dead_letter;
use crate::failpoint::{Failpoint, reach};
use crate::insist::Insist;
use crate::mechanism::{Mechanism, is_switched_off};
use crate::metric;
use crate::process::{EncodedRecord, Prepared, Verdict};
use crate::state::{Write, encode};
use crate::transaction::{TransactionError, TransactionalProducer};

/// Version of what is written into the commit metadata.
const METADATA_VERSION: &str = "w1";

/// Where each partition that was read goes on.
pub(crate) type Positions = BTreeMap<(Arc<str>, Lane), Next>;

/// Where a partition goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Next {
    /// The first offset that is not done.
    pub(crate) offset: i64,
    /// What is done beyond it, see [`crate::progress::Progress`].
    pub(crate) beyond: String,
}

impl Next {
    /// Everything before `offset` is done, and nothing beyond.
    pub(crate) fn at(offset: i64) -> Self {
        Self { offset, beyond: String::new() }
    }
}

/// What is committed beside a position: whose transaction it was, and what is done beyond the position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Metadata<'a> {
    serial: &'a str,
    pub(crate) beyond: &'a str,
}

impl<'a> Metadata<'a> {
    /// None for what no runner wrote.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let rest = text.strip_prefix(METADATA_VERSION)?.strip_prefix(';')?;
        let (serial, beyond) = rest.split_once(';').unwrap_or((rest, ""));
        Some(Self { serial, beyond })
    }
}

impl std::fmt::Display for Metadata<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{METADATA_VERSION};{}", self.serial)?;
        if self.beyond.is_empty() { Ok(()) } else { write!(f, ";{}", self.beyond) }
    }
}

/// Writes to the state of a lane, and the number of the last of them in the lane's log.
pub(crate) type Logged = (Lane, Vec<Write>, u64);

/// Whether the records count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verified {
    /// They are (or, of producing: will be with the next commit).
    Committed,
    /// Nothing of them is; produce the same again.
    NotCommitted,
}

/// Commits to Kafka for one stage. Records are produced as soon as they are processed, into a transaction that stays
/// open until the next commit is due: the network works while the next batch is read.
pub(crate) struct Committer {
    pub(crate) stage: &'static str,
    pub(crate) insist: Insist,
    pub(crate) group: String,
    pub(crate) dead_letters: Arc<str>,
    /// The topic behind the state of the lanes, for stages that keep some.
    pub(crate) changelog: Option<Arc<str>>,
    pub(crate) producer: Producing,
    /// Random per process, so that the serials of two instances never meet.
    pub(crate) instance: u64,
    pub(crate) serial: u64,
    pub(crate) open: bool,
}

/// How records are produced.
pub(crate) enum Producing {
    Transactions(Box<TransactionalProducer>),
    #[cfg(feature = "at-least-once")]
    AtLeastOnce(crate::transaction::PlainProducer),
}

impl Committer {
    /// Produces what `prepared` says, and writes to the state of lanes, beginning a transaction if none is open. An error is
    /// fatal.
    pub(crate) fn produce(&mut self, prepared: &[Prepared], logged: &[Logged]) -> Result<Verified, String> {
        match self.try_produce(prepared, logged) {
            Ok(()) => {
                reach(self.stage, Failpoint::AfterProduce);
                Ok(Verified::Committed)
            }
            Err(TransactionError::Fatal(reason)) => Err(reason),
            Err(TransactionError::Abort(reason) | TransactionError::Ambiguous(reason)) => self.give_up(&reason),
        }
    }

    /// Commits what was produced, and `positions` (next offset of each lane) with it. An error is fatal.
    pub(crate) fn commit(
        &mut self,
        consumer: &BaseConsumer<GroupContext>,
        positions: &Positions,
    ) -> Result<Verified, String> {
        self.serial += 1;
        let serial = format!("{:x}.{:x}", self.instance, self.serial);
        let offsets = self.offsets(positions, &serial)?;
        let start = Instant::now();
        let tried = self.try_commit(consumer, offsets);
        self.insist.status.goes_on();
        match tried {
            Ok(()) => {
                reach(self.stage, Failpoint::AfterCommit);
                self.open = false;
                let seconds = start.elapsed().as_secs_f64();
                histogram!(metric::COMMIT_SECONDS, "stage" => self.stage).record(seconds);
                tracing::debug!(stage = self.stage, seconds, lanes = positions.len(), "committed");
                self.count("committed");
                Ok(Verified::Committed)
            }
            Err(TransactionError::Fatal(reason)) => Err(reason),
            Err(TransactionError::Abort(reason)) => self.give_up(&reason),
            Err(TransactionError::Ambiguous(reason)) => {
                tracing::warn!(stage = self.stage, reason, "commit in doubt: asking Kafka whether it was applied");
                self.resolve(consumer, positions, &serial)
            }
        }
    }

    /// For each lane whose state was written since the last call: the changelog's position behind it. What an ambiguous
    /// commit wrote is missing.
    pub(crate) fn changelog_ends(&self) -> HashMap<Lane, i64> {
        match &self.producer {
            Producing::Transactions(producer) => producer.take_ends(),
            #[cfg(feature = "at-least-once")]
            Producing::AtLeastOnce(producer) => producer.take_ends(),
        }
    }

    /// Waits until what was produced is acknowledged. Only who writes state before the commit, to be caught at it, needs
    /// that.
    pub(crate) fn drain(&self) {
        match &self.producer {
            Producing::Transactions(producer) => producer.drain(),
            #[cfg(feature = "at-least-once")]
            Producing::AtLeastOnce(_) => {}
        }
    }

    /// Throws away what was produced and not committed. An error is fatal.
    pub(crate) fn abort(&mut self) -> Result<(), String> {
        if self.open {
            self.give_up("lanes were lost")?;
        }
        Ok(())
    }

    fn try_produce(&mut self, prepared: &[Prepared], logged: &[Logged]) -> Result<(), TransactionError> {
        let Self { stage, group, dead_letters, changelog, producer, open, .. } = self;
        let destination = Destination { stage, group, dead_letters, changelog: changelog.as_ref() };
        match producer {
            Producing::Transactions(producer) => {
                if !*open {
                    producer.begin()?;
                    *open = true;
                }
                produce(&destination, prepared, logged, |records| producer.produce(records))
            }
            #[cfg(feature = "at-least-once")]
            Producing::AtLeastOnce(producer) => {
                produce(&destination, prepared, logged, |records| producer.produce(records))
            }
        }
    }

    fn try_commit(
        &mut self,
        consumer: &BaseConsumer<GroupContext>,
        offsets: TopicPartitionList,
    ) -> Result<(), TransactionError> {
        if !self.open {
            self.try_produce(&[], &[])?;
        }
        match &mut self.producer {
            Producing::Transactions(producer) => {
                let group = consumer
                    .group_metadata()
                    .ok_or_else(|| TransactionError::Fatal("the consumer has no group metadata".into()))?;
                producer.commit(self.stage, offsets, group)
            }
            #[cfg(feature = "at-least-once")]
            Producing::AtLeastOnce(producer) => {
                producer.flush()?;
                reach(self.stage, Failpoint::BeforeCommit);
                consumer
                    .commit(&offsets, rdkafka::consumer::CommitMode::Async)
                    .map_err(|error| TransactionError::Abort(error.to_string()))
            }
        }
    }

    /// Aborts; where even that is in doubt, a new producer makes the broker abort.
    fn give_up(&mut self, reason: &str) -> Result<Verified, String> {
        tracing::warn!(stage = self.stage, reason, "transaction aborted; its records are produced again");
        self.open = false;
        self.insist.status.goes_on();
        let aborted = match &mut self.producer {
            Producing::Transactions(producer) => producer.abort(),
            #[cfg(feature = "at-least-once")]
            Producing::AtLeastOnce(_) => Ok(()),
        };
        self.insist.status.goes_on();
        match aborted {
            Ok(()) => {}
            Err(TransactionError::Fatal(reason)) => return Err(reason),
            Err(TransactionError::Abort(reason) | TransactionError::Ambiguous(reason)) => {
                tracing::warn!(stage = self.stage, reason, "abort in doubt: a new producer has the broker do it");
                self.start_over()?;
            }
        }
        self.count("aborted");
        Ok(Verified::NotCommitted)
    }

    fn offsets(&self, positions: &Positions, serial: &str) -> Result<TopicPartitionList, String> {
        let mut list = TopicPartitionList::with_capacity(positions.len());
        for ((topic, lane), next) in positions {
            let mut element = list.add_partition(topic, lane.0);
            element.set_offset(Offset::Offset(next.offset)).map_err(|error| error.to_string())?;
            element.set_metadata(Metadata { serial, beyond: &next.beyond }.to_string());
        }
        Ok(list)
    }

    /// After a commit in doubt: a new producer with the same id resolves the transaction at the broker, and the
    /// committed positions tell by their serial whether it counted.
    fn resolve(
        &mut self,
        consumer: &BaseConsumer<GroupContext>,
        positions: &Positions,
        serial: &str,
    ) -> Result<Verified, String> {
        self.open = false;
        self.start_over()?;
        if is_switched_off(Mechanism::AskingAfterDoubt) {
            return Ok(Verified::Committed);
        }
        if is_switched_off(Mechanism::TrustingAnAppliedCommit) {
            return Ok(Verified::NotCommitted);
        }
        // One transaction covers all lanes of all topics: its serial on one of them means it counted for all.
        let Some((topic, _)) = positions.keys().next() else { return Ok(Verified::Committed) };
        let of_topic = positions.iter().filter(|((of, _), _)| of == topic);
        let expected: BTreeMap<Lane, i64> = of_topic.map(|((_, lane), next)| (*lane, next.offset)).collect();
        let lanes: Vec<Lane> = expected.keys().copied().collect();
        let found = self.insist.on("reading committed positions", || {
            committed(consumer, topic, &lanes).map_err(|error| TransactionError::Ambiguous(error.to_string()))
        })?;
        let applied = found.iter().any(|(lane, offset, metadata)| {
            let ours = Metadata::parse(metadata).is_some_and(|metadata| metadata.serial == serial);
            ours && *offset == expected.get(lane).copied()
        });
        self.count(if applied { "ambiguous-applied" } else { "ambiguous-not-applied" });
        tracing::warn!(stage = self.stage, applied, "transaction resolved");
        Ok(if applied { Verified::Committed } else { Verified::NotCommitted })
    }

    /// A new producer that has fenced the old one, as soon as Kafka lets it.
    pub(crate) fn start_over(&mut self) -> Result<(), String> {
        match &mut self.producer {
            Producing::Transactions(producer) => {
                producer.recreate()?;
                self.insist.on("taking over the transactional id", || producer.fence())
            }
            #[cfg(feature = "at-least-once")]
            Producing::AtLeastOnce(_) => Ok(()),
        }
    }

    fn count(&self, result: &'static str) {
        counter!(metric::TRANSACTIONS, "stage" => self.stage, "result" => result).increment(1);
    }
}

/// Where what a stage says goes beside its outputs.
struct Destination<'a> {
    stage: &'a str,
    group: &'a str,
    dead_letters: &'a Arc<str>,
    changelog: Option<&'a Arc<str>>,
}

impl Destination<'_> {
    /// A write to the state of a lane, as a record of the changelog.
    fn change(&self, lane: Lane, (key, value): &Write) -> Option<EncodedRecord> {
        Some(EncodedRecord {
            topic: Arc::clone(self.changelog?),
            lane,
            key: Some(key.clone()),
            value: value.as_ref().map(encode),
            headers: Headers::default(),
        })
    }
}

fn produce(
    to: &Destination<'_>,
    prepared: &[Prepared],
    logged: &[Logged],
    send: impl FnOnce(&[Cow<'_, EncodedRecord>]) -> Result<(), TransactionError>,
) -> Result<(), TransactionError> {
    let mut records = Vec::with_capacity(prepared.len());
    for record in prepared {
        records.extend(record.outputs.iter().map(Cow::Borrowed));
        if let Verdict::Rejected(failure) = &record.verdict {
            let letter = dead_letter(to.stage, to.group, to.dead_letters, &record.raw, failure);
            records.push(Cow::Owned(letter));
        }
        records.extend(record.writes.iter().filter_map(|write| to.change(record.raw.at.lane, write)).map(Cow::Owned));
    }
    for (lane, writes, _) in logged {
        records.extend(writes.iter().filter_map(|write| to.change(*lane, write)).map(Cow::Owned));
    }
    send(&records)
}
