//! What the loop knows of one lane it owns.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use rdkafka::Message;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use weir_contracts::{Lane, header};
use weir_stage::Coordinates;

use crate::assignment::GroupContext;
use crate::concurrent::Order;
use crate::flood::FloodGauge;
use crate::ownership::LaneEpoch;
use crate::process::RawRecord;
use crate::progress::Progress;
use crate::reader::copy_headers;

/// Most messages taken from a lane before the others get their turn.
const TURN: usize = 512;
/// Records of one key that a processor is given at once, at most.
const RUN: usize = 64;

/// One lane: its part of the input, and its part of the topic through which records return.
pub(crate) struct OwnedLane {
    pub(crate) epoch: LaneEpoch,
    pub(crate) fresh: Intake,
    pub(crate) returning: Option<Intake>,
    pub(crate) stopped: bool,
    pub(crate) flood: FloodGauge,
    /// Records that a processor works on.
    pub(crate) running: usize,
    /// What returning records have saved up of their share while fresh ones were started, in records.
    returning_credit: f64,
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
        Self {
            epoch,
            fresh,
            returning,
            stopped: false,
            flood: FloodGauge::default(),
            running: 0,
            returning_credit: 0.0,
        }
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
        let before = batch.len();
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
        self.running += batch.len() - before;
        bytes
    }

    /// The next records that may run beside those that do, one after another; none when there are none. While fresh records
    /// wait, those that return get `share` of the starts.
    pub(crate) fn start(&mut self, order: Order, share: f64, now: i64) -> Option<Vec<RawRecord>> {
        let contended = self.fresh.due(now) > 0 && self.returning.as_ref().is_some_and(|intake| intake.due(now) > 0);
        if contended {
            self.returning_credit += share.clamp(0.0, 1.0);
        }
        let mut returning = || self.returning.as_mut().and_then(|intake| intake.start(order, now));
        let started = if self.returning_credit >= 1.0 {
            self.returning_credit -= 1.0;
            returning().or_else(|| self.fresh.start(order, now))
        } else {
            let fresh = self.fresh.start(order, now);
            if contended { fresh } else { fresh.or_else(returning) }
        };
        self.running += started.as_ref().map_or(0, Vec::len);
        started
    }

    /// A processor is done with a record, and the next commit will say so.
    pub(crate) fn finish(&mut self, raw: &RawRecord) {
        self.running = self.running.saturating_sub(1);
        if let Some(intake) = self.intake(&raw.at.topic) {
            intake.finish(raw);
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.intakes().map(|intake| intake.in_flight).sum()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.intakes().map(Intake::waiting).sum()
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
        self.running = 0;
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

/// Records of a key, where they run one after another.
struct OfKey {
    /// How many a processor has.
    running: usize,
    waiting: VecDeque<RawRecord>,
}

impl OfKey {
    /// Several at once, so that the key does not stand still while the loop commits.
    fn start(&mut self) -> Vec<RawRecord> {
        let run: Vec<_> = self.waiting.drain(..self.waiting.len().min(RUN)).collect();
        self.running = run.len();
        run
    }
}

/// A partition being read. It has a queue of its own, so that a lane that is full or stopped simply is not polled.
/// (Pausing a partition would throw away what librdkafka has fetched ahead.)
pub(crate) struct Intake {
    pub(crate) topic: Arc<str>,
    /// Whether its records wait until they are due. Elsewhere anybody may set that header.
    timed: bool,
    queue: Option<PartitionQueue<GroupContext>>,
    buffer: VecDeque<RawRecord>,
    /// Where records complete out of order: how far they have.
    progress: Option<Progress>,
    /// The keys of which records run or wait, where those of one key run one after another.
    keys: HashMap<Vec<u8>, OfKey>,
    /// Keys of which none runs and some wait.
    free_keys: VecDeque<Vec<u8>>,
    /// Of all that wait.
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
        progress: Option<Progress>,
    ) -> Self {
        Self {
            topic,
            timed,
            queue,
            buffer: VecDeque::new(),
            progress,
            keys: HashMap::new(),
            free_keys: VecDeque::new(),
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

    /// How far it is: what is finished counts as done, and all of it must be in the commit that says so.
    pub(crate) fn progress(&self) -> Option<&Progress> {
        self.progress.as_ref()
    }

    fn waiting(&self) -> usize {
        self.buffer.len() + self.keys.values().map(|of_key| of_key.waiting.len()).sum::<usize>()
    }

    fn forget(&mut self) {
        self.buffer.clear();
        self.keys.clear();
        self.free_keys.clear();
        self.buffered_bytes = 0;
        self.in_flight = 0;
        self.oldest_in_flight = None;
    }

    /// What comes next is the record at `offset`: the consumer was told to go back there.
    pub(crate) fn rewind(&mut self, offset: i64, progress: Option<Progress>) {
        self.forget();
        self.progress = progress;
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
        self.next_read = raw.at.offset + 1;
        self.at_end = false;
        let is_open = self.progress.as_mut().is_none_or(|progress| progress.read(raw.at.offset, raw.timestamp));
        if is_open {
            self.buffered_bytes += raw.size();
            self.buffer.push_back(raw);
        }
    }

    /// The next records that may run beside those that do: one, or several of one key.
    fn start(&mut self, order: Order, now: i64) -> Option<Vec<RawRecord>> {
        let run = match self.free_keys.pop_front() {
            Some(key) => self.keys.get_mut(&key)?.start(),
            None => self.start_waiting(order, now)?,
        };
        let bytes: usize = run.iter().map(RawRecord::size).sum();
        self.buffered_bytes = self.buffered_bytes.saturating_sub(bytes);
        self.in_flight += run.len();
        Some(run)
    }

    /// The first record in the buffer that may run, with those right behind it that have its key: they wait for it anyway.
    fn start_waiting(&mut self, order: Order, now: i64) -> Option<Vec<RawRecord>> {
        loop {
            let raw = self.next_due(now)?;
            let Some(key) = raw.key.clone().filter(|_| order == Order::ByKey) else { return Some(vec![raw]) };
            if let Some(of_key) = self.keys.get_mut(&key) {
                of_key.waiting.push_back(raw);
                continue;
            }
            let mut run = vec![raw];
            while run.len() < RUN && self.buffer.front().is_some_and(|raw| raw.key.as_ref() == Some(&key)) {
                let Some(raw) = self.next_due(now) else { break };
                run.push(raw);
            }
            self.keys.insert(key, OfKey { running: run.len(), waiting: VecDeque::new() });
            return Some(run);
        }
    }

    /// Takes the first record of the buffer if work on it may begin.
    fn next_due(&mut self, now: i64) -> Option<RawRecord> {
        let progress = self.progress.as_mut()?;
        let next = self.buffer.front().filter(|raw| raw.is_due(now) && progress.may_begin(raw.at.offset))?;
        progress.begin(next.at.offset);
        self.buffer.pop_front()
    }

    /// A record is done; when it was the last of its key that ran, the next ones may.
    fn finish(&mut self, raw: &RawRecord) {
        let Some(progress) = &mut self.progress else { return };
        progress.done(raw.at.offset);
        let Some(key) = &raw.key else { return };
        let Some(of_key) = self.keys.get_mut(key) else { return };
        of_key.running = of_key.running.saturating_sub(1);
        if of_key.running > 0 {
            return;
        }
        if of_key.waiting.is_empty() {
            self.keys.remove(key);
        } else {
            self.free_keys.push_back(key.clone());
        }
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
        match &self.progress {
            Some(progress) => progress.oldest(),
            None => self.oldest_in_flight.or_else(|| self.buffer.front().map(|raw| raw.timestamp)),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.waiting() == 0
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
