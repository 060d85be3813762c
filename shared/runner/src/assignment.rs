//! Rebalances: what the group says, noted inside librdkafka's callback and acted on by the loop.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use weir_contracts::Lane;

use crate::client::{CALL_TIMEOUT, log_line};
use crate::commit::Metadata;

/// A change of the lanes this instance owns.
#[derive(Debug)]
pub(crate) enum Rebalance {
    Assigned(Vec<Lane>),
    Revoked(Vec<Lane>),
}

/// Notes rebalances for the loop, which answers them when it is between two transactions.
#[derive(Default)]
pub(crate) struct GroupContext {
    rebalances: Mutex<VecDeque<Rebalance>>,
    statistics: Mutex<Option<Statistics>>,
    closing: AtomicBool,
}

impl GroupContext {
    pub(crate) fn next_rebalance(&self) -> Option<Rebalance> {
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    pub(crate) fn take_statistics(&self) -> Option<Statistics> {
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// From now on rebalances are acknowledged at once, and so are those that were noted and not yet answered: there
    /// is no loop any more to do it.
    pub(crate) fn close(&self, consumer: &BaseConsumer<Self>, topic: &str) {
        self.closing.store(true, Ordering::Release);
        while let Some(rebalance) = self.next_rebalance() {
            let mut list = TopicPartitionList::new();
            let assigned = match rebalance {
                Rebalance::Assigned(_) => true,
                Rebalance::Revoked(lanes) => {
                    for lane in lanes {
                        list.add_partition(topic, lane.0);
                    }
                    false
                }
            };
            acknowledge(consumer, assigned, &list);
        }
    }
}

/// Answers a rebalance without taking any lane.
fn acknowledge(consumer: &BaseConsumer<GroupContext>, assigned: bool, list: &TopicPartitionList) {
    let answered = match assigned {
        true => consumer.incremental_assign(&TopicPartitionList::new()),
        false => consumer.incremental_unassign(list),
    };
    if let Err(error) = answered {
        tracing::debug!(%error, "acknowledging a rebalance while closing");
    }
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "consumer error");
    }

    fn stats(&self, statistics: Statistics) {
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) = Some(statistics);
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let lanes = list.elements().iter().map(|element| Lane(element.partition())).collect();
        let assigned = err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(Ordering::Acquire) {
            acknowledge(consumer, assigned, list);
            return;
        }
        let rebalance = if assigned { Rebalance::Assigned(lanes) } else { Rebalance::Revoked(lanes) };
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).push_back(rebalance);
    }
}

/// Where a newly assigned lane goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position {
    /// Read from here.
    At(i64),
    /// Records `from..to` are gone (or, when `to < from`, the log was cut behind the committed position).
    Gap { from: i64, to: i64 },
}

/// A lane of a topic as the group left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) lane: Lane,
    pub(crate) position: Position,
    /// What was done beyond the position, see [`crate::progress::Progress`].
    pub(crate) beyond: String,
}

/// Reads committed positions (waiting for transactions that are still open on them) and holds them against the log.
pub(crate) fn positions<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    lanes: &[Lane],
) -> Result<Vec<Standing>, KafkaError> {
    let mut found = Vec::with_capacity(lanes.len());
    for (lane, committed, metadata) in committed(consumer, topic, lanes)? {
        let (low, high) = consumer.fetch_watermarks(topic, lane.0, CALL_TIMEOUT)?;
        let beyond = Metadata::parse(&metadata).map_or_else(String::new, |metadata| metadata.beyond.to_owned());
        found.push(Standing { lane, position: position(committed, low, high), beyond });
    }
    Ok(found)
}

/// Committed position and its metadata for each lane; only stable ones.
pub(crate) fn committed<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    lanes: &[Lane],
) -> Result<Vec<(Lane, Option<i64>, String)>, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(lanes.len());
    for lane in lanes {
        list.add_partition(topic, lane.0);
    }
    let list = consumer.committed_offsets(list, CALL_TIMEOUT)?;
    let mut found = Vec::with_capacity(lanes.len());
    for element in list.elements() {
        element.error()?;
        let offset = match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        found.push((Lane(element.partition()), offset, element.metadata().to_owned()));
    }
    Ok(found)
}

fn position(committed: Option<i64>, low: i64, high: i64) -> Position {
    match committed {
        None => Position::At(low),
        Some(offset) if offset < low || offset > high => Position::Gap { from: offset, to: low.min(high) },
        Some(offset) => Position::At(offset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_outside_the_log_is_a_gap_and_never_a_reset() {
        assert_eq!(position(None, 5, 9), Position::At(5), "a new group reads everything there is");
        assert_eq!(position(Some(5), 5, 9), Position::At(5));
        assert_eq!(position(Some(9), 5, 9), Position::At(9));
        assert_eq!(position(Some(2), 5, 9), Position::Gap { from: 2, to: 5 });
        assert_eq!(position(Some(12), 0, 9), Position::Gap { from: 12, to: 0 });
    }
}
