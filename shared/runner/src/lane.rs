//! What the loop knows of one lane it owns.

use std::collections::VecDeque;
use std::sync::Arc;

use rdkafka::Message;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use weir_contracts::{Lane, header};
use weir_stage::Coordinates;

use crate::assignment::GroupContext;
use crate::flood::FloodGauge;
use crate::ownership::LaneEpoch;
use crate::process::RawRecord;
use crate::reader::copy_headers;

/// Most messages taken from a lane before the others get their turn.
const TURN: usize = 512;

/// One lane: its part of the input, and its part of the topic through which records return.
pub(crate) struct OwnedLane {
    pub(crate) epoch: LaneEpoch,
    pub(crate) fresh: Intake,
    pub(crate) returning: Option<Intake>,
    pub(crate) stopped: bool,
    pub(crate) flood: FloodGauge,
}

/// What a turn of reading brought.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    pub(crate) records: usize,
    /// Topics whose reading failed in a way that needs a look at the log's watermarks.
    pub(crate) lost_positions: Vec<Arc<str>>,
    pub(crate) fatal: Option<String>,
}

impl OwnedLane {
    pub(crate) fn new(epoch: LaneEpoch, fresh: Intake, returning: Option<Intake>) -> Self {
        Self { epoch, fresh, returning, stopped: false, flood: FloodGauge::default() }
    }

    pub(crate) fn intakes(&self) -> impl Iterator<Item = &Intake> {
        std::iter::once(&self.fresh).chain(&self.returning)
    }

    pub(crate) fn intakes_mut(&mut self) -> impl Iterator<Item = &mut Intake> {
        std::iter::once(&mut self.fresh).chain(&mut self.returning)
    }

    /// The intake of a topic.
    pub(crate) fn intake(&mut self, topic: &str) -> Option<&mut Intake> {
        self.intakes_mut().find(|intake| *intake.topic == *topic)
    }

    /// Takes what has arrived, as far as there is room for it.
    pub(crate) fn read(&mut self, room: usize) -> Turn {
        let mut turn = Turn::default();
        if !self.stopped {
            let epoch = self.epoch;
            for intake in self.intakes_mut() {
                intake.read(epoch, room, &mut turn);
            }
        }
        turn
    }

    /// Moves records that are due to `batch`, at most `records` of them and about `max_bytes`. While fresh records
    /// wait, those that return get `share` of it.
    pub(crate) fn take(
        &mut self,
        batch: &mut Vec<RawRecord>,
        records: usize,
        max_bytes: usize,
        share: f64,
        now: i64,
    ) -> usize {
        let mut bytes = 0;
        if let Some(returning) = &mut self.returning {
            let contended = self.fresh.due(now) > 0;
            let (records, max_bytes) =
                if contended { (part(records, share), part(max_bytes, share)) } else { (records, max_bytes) };
            if !contended || share > 0.0 {
                returning.take(batch, records, &mut bytes, max_bytes, now);
            }
        }
        let left = records.saturating_sub(self.returning.as_ref().map_or(0, |returning| returning.last_taken));
        self.fresh.take(batch, left.max(1), &mut bytes, max_bytes, now);
        bytes
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.intakes().map(|intake| intake.in_flight).sum()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.intakes().map(|intake| intake.buffer.len()).sum()
    }

    /// Records that wait and are due by `now`; more than `TURN` count as that.
    pub(crate) fn due(&self, now: i64) -> usize {
        self.intakes().map(|intake| intake.due(now)).sum()
    }

    /// When the first record that waits is due, if none is yet.
    pub(crate) fn next_due(&self) -> Option<i64> {
        self.intakes().filter_map(|intake| intake.buffer.front()?.not_before).min()
    }

    pub(crate) fn waiting_bytes(&self) -> usize {
        self.intakes().map(|intake| intake.buffered_bytes).sum()
    }

    /// Forgets what waits; whoever owns the lane next reads it again.
    pub(crate) fn discard(&mut self) {
        for intake in self.intakes_mut() {
            intake.forget();
        }
    }

    /// Goes on under a new epoch, as if the lane had just been assigned.
    pub(crate) fn resume(&mut self, epoch: LaneEpoch) {
        self.epoch = epoch;
        self.stopped = false;
        self.flood = FloodGauge::default();
    }
}

fn part(of: usize, share: f64) -> usize {
    let percent = (share.clamp(0.0, 1.0) * 100.0).round();
    // Between 0 and 100.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let percent = percent as usize;
    (of / 100).saturating_mul(percent).saturating_add((of % 100) * percent / 100).max(1)
}

/// A partition being read. It has a queue of its own, so that a lane that is full or stopped simply is not polled.
/// (Pausing a partition would throw away what librdkafka has fetched ahead.)
pub(crate) struct Intake {
    pub(crate) topic: Arc<str>,
    /// Whether its records wait until they are due. Elsewhere anybody may set that header.
    timed: bool,
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
    /// When the oldest record handed to the processor was written, milliseconds since the Unix epoch.
    pub(crate) oldest_in_flight: Option<i64>,
    last_taken: usize,
}

impl Intake {
    pub(crate) fn new(
        topic: Arc<str>,
        timed: bool,
        queue: Option<PartitionQueue<GroupContext>>,
        committed: i64,
    ) -> Self {
        Self {
            topic,
            timed,
            queue,
            buffer: VecDeque::new(),
            buffered_bytes: 0,
            committed,
            next_read: committed,
            in_flight: 0,
            at_end: false,
            oldest_in_flight: None,
            last_taken: 0,
        }
    }

    /// Offset of the first record that was not handed to the processor.
    pub(crate) fn first_waiting(&self) -> i64 {
        self.buffer.front().map_or(self.next_read, |raw| raw.at.offset)
    }

    fn forget(&mut self) {
        self.buffer.clear();
        self.buffered_bytes = 0;
        self.in_flight = 0;
        self.oldest_in_flight = None;
    }

    /// What comes next is the record at `offset`: the consumer was told to go back there.
    pub(crate) fn rewind(&mut self, offset: i64) {
        self.forget();
        self.committed = offset;
        self.next_read = offset;
        self.at_end = false;
    }

    fn read(&mut self, epoch: LaneEpoch, room: usize, turn: &mut Turn) {
        let Some(queue) = self.queue.take() else { return };
        let mut records = 0;
        while records < TURN && self.buffered_bytes < room {
            match queue.poll(std::time::Duration::ZERO) {
                None => break,
                Some(Ok(message)) => {
                    records += 1;
                    self.push(epoch, &message);
                }
                // What waits in the buffer came before it.
                Some(Err(KafkaError::PartitionEOF(_))) => self.at_end = true,
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                    turn.fatal = Some(code.to_string());
                    break;
                }
                Some(Err(error)) => {
                    tracing::debug!(topic = %self.topic, %error, "reading");
                    turn.lost_positions.push(Arc::clone(&self.topic));
                    break;
                }
            }
        }
        turn.records += records;
        self.queue = Some(queue);
    }

    pub(crate) fn push(&mut self, epoch: LaneEpoch, message: &BorrowedMessage<'_>) {
        let headers = copy_headers(message);
        let not_before = if self.timed { headers.text(header::NOT_BEFORE) } else { None };
        let raw = RawRecord {
            not_before: not_before.and_then(|text| text.parse().ok()),
            at: Coordinates {
                topic: Arc::clone(&self.topic),
                lane: Lane(message.partition()),
                offset: message.offset(),
            },
            epoch,
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers,
            timestamp: message.timestamp().to_millis().unwrap_or_default(),
        };
        self.buffered_bytes += raw.size();
        self.next_read = raw.at.offset + 1;
        self.at_end = false;
        self.buffer.push_back(raw);
    }

    fn take(&mut self, batch: &mut Vec<RawRecord>, records: usize, bytes: &mut usize, max_bytes: usize, now: i64) {
        self.last_taken = 0;
        while self.last_taken < records && (*bytes == 0 || *bytes < max_bytes) {
            if !self.buffer.front().is_some_and(|raw| raw.is_due(now)) {
                break;
            }
            let Some(raw) = self.buffer.pop_front() else { break };
            self.buffered_bytes = self.buffered_bytes.saturating_sub(raw.size());
            *bytes += raw.size();
            self.last_taken += 1;
            self.oldest_in_flight.get_or_insert(raw.timestamp);
            batch.push(raw);
        }
        self.in_flight += self.last_taken;
    }

    /// Records that may be taken now, in order.
    fn due(&self, now: i64) -> usize {
        match self.timed {
            false => self.buffer.len(),
            true => self.buffer.iter().take(TURN).take_while(|raw| raw.is_due(now)).count(),
        }
    }

    /// When the oldest record that is not committed was written, milliseconds since the Unix epoch.
    pub(crate) fn oldest_uncommitted(&self) -> Option<i64> {
        self.oldest_in_flight.or_else(|| self.buffer.front().map(|raw| raw.timestamp))
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_part_and_never_nothing() {
        assert_eq!(part(1_000, 0.2), 200);
        assert_eq!(part(8 << 20, 1.0), 8 << 20);
        assert_eq!(part(3, 0.2), 1);
        assert_eq!(part(0, 0.2), 1);
    }
}
