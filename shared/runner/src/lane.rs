//! What the loop knows of one lane it owns.

use std::collections::VecDeque;
use std::sync::Arc;

use rdkafka::Message;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use weir_contracts::Lane;
use weir_stage::Coordinates;

use crate::assignment::GroupContext;
use crate::flood::FloodGauge;
use crate::ownership::LaneEpoch;
use crate::process::RawRecord;
use crate::reader::copy_headers;

/// Most messages taken from a lane before the others get their turn.
const TURN: usize = 512;

/// One lane: a queue of its own, so that a lane that is full or stopped simply is not polled. (Pausing a partition
/// would throw away what librdkafka has fetched ahead.)
pub(crate) struct OwnedLane {
    pub(crate) epoch: LaneEpoch,
    queue: Option<PartitionQueue<GroupContext>>,
    buffer: VecDeque<RawRecord>,
    buffered_bytes: usize,
    /// Next offset that is not committed yet.
    pub(crate) committed: i64,
    /// Next offset that has not been read yet.
    pub(crate) next_read: i64,
    /// Records handed to the processor and not committed.
    pub(crate) in_flight: usize,
    /// The end was reached and nothing came since.
    pub(crate) at_end: bool,
    pub(crate) stopped: bool,
    pub(crate) flood: FloodGauge,
    /// When the oldest record handed to the processor was written, milliseconds since the Unix epoch.
    pub(crate) oldest_in_flight: Option<i64>,
}

/// What a turn of reading brought.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    pub(crate) records: usize,
    /// Reading failed in a way that needs a look at the log's watermarks.
    pub(crate) lost_position: bool,
    pub(crate) fatal: Option<String>,
}

impl OwnedLane {
    pub(crate) fn new(epoch: LaneEpoch, queue: Option<PartitionQueue<GroupContext>>, committed: i64) -> Self {
        Self {
            epoch,
            queue,
            buffer: VecDeque::new(),
            buffered_bytes: 0,
            committed,
            next_read: committed,
            in_flight: 0,
            at_end: false,
            stopped: false,
            flood: FloodGauge::default(),
            oldest_in_flight: None,
        }
    }

    /// Takes what has arrived, as far as there is room for it.
    pub(crate) fn read(&mut self, topic: &Arc<str>, room: usize) -> Turn {
        let mut turn = Turn::default();
        let Some(queue) = self.queue.take() else { return turn };
        while !self.stopped && turn.records < TURN && self.buffered_bytes < room {
            match queue.poll(std::time::Duration::ZERO) {
                None => break,
                Some(Ok(message)) => {
                    turn.records += 1;
                    self.push(topic, &message);
                }
                // What waits in the buffer came before it.
                Some(Err(KafkaError::PartitionEOF(_))) => self.at_end = true,
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                    turn.fatal = Some(code.to_string());
                    break;
                }
                Some(Err(error)) => {
                    tracing::debug!(topic = %topic, %error, "reading");
                    turn.lost_position = true;
                    break;
                }
            }
        }
        self.queue = Some(queue);
        turn
    }

    pub(crate) fn push(&mut self, topic: &Arc<str>, message: &BorrowedMessage<'_>) {
        let raw = RawRecord {
            at: Coordinates { topic: Arc::clone(topic), lane: Lane(message.partition()), offset: message.offset() },
            epoch: self.epoch,
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: copy_headers(message),
            timestamp: message.timestamp().to_millis().unwrap_or_default(),
        };
        self.buffered_bytes += raw.size();
        self.next_read = raw.at.offset + 1;
        self.at_end = false;
        self.buffer.push_back(raw);
    }

    /// Moves records to `batch`, at most `records` of them and until it holds `bytes`.
    pub(crate) fn take(
        &mut self,
        batch: &mut Vec<RawRecord>,
        records: usize,
        bytes: &mut usize,
        max_bytes: usize,
    ) -> usize {
        let mut taken = 0;
        while taken < records && (*bytes == 0 || *bytes < max_bytes) {
            let Some(raw) = self.buffer.pop_front() else { break };
            self.buffered_bytes = self.buffered_bytes.saturating_sub(raw.size());
            *bytes += raw.size();
            taken += 1;
            self.oldest_in_flight.get_or_insert(raw.timestamp);
            batch.push(raw);
        }
        self.in_flight += taken;
        taken
    }

    pub(crate) fn waiting(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) fn waiting_bytes(&self) -> usize {
        self.buffered_bytes
    }

    /// When the oldest record that is not committed was written, milliseconds since the Unix epoch.
    pub(crate) fn oldest_uncommitted(&self) -> Option<i64> {
        self.oldest_in_flight.or_else(|| self.buffer.front().map(|raw| raw.timestamp))
    }

    /// Forgets what waits; whoever owns the lane next reads it again.
    pub(crate) fn discard(&mut self) {
        self.buffer.clear();
        self.buffered_bytes = 0;
    }
}
