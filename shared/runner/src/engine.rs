//! The loop: reads lanes, hands batches to the processor, commits what came back. One OS thread owns the consumer
//! and the producer, so every blocking call to Kafka is on it and nothing happens between a rebalance and a commit.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics::{counter, gauge, histogram};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;
use weir_contracts::{Lane, header};

use crate::assignment::{GroupContext, Position, Rebalance, positions};
use crate::commit::{Committer, Verified, insist};
use crate::lane::OwnedLane;
use crate::ownership::Ownership;
use crate::process::{Prepared, Processed, RawRecord, Verdict, count};
use crate::transaction::TransactionError;
use crate::{PauseReason, RunnerConfig, StageStatus, metric};

/// Longest sleep when nothing happens; rebalances are noticed no later.
const IDLE: Duration = Duration::from_millis(50);
/// Bytes of finished work that wait for the commit interval, at most, in batches.
const READY_BATCHES: usize = 4;
/// A lane at its end whose position lies behind by markers only is committed after this long.
const MARKER_DELAY: Duration = Duration::from_millis(200);
/// Tenants with a label of their own.
const MAX_TENANT_LABELS: usize = 50;

/// Everything the loop works with.
pub(crate) struct Engine {
    pub(crate) stage: &'static str,
    pub(crate) config: RunnerConfig,
    pub(crate) input: Arc<str>,
    pub(crate) consumer: Arc<BaseConsumer<GroupContext>>,
    pub(crate) committer: Committer,
    pub(crate) ownership: Arc<Ownership>,
    pub(crate) status: Arc<StageStatus>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) batches: tokio::sync::mpsc::Sender<Vec<RawRecord>>,
    pub(crate) done: mpsc::Receiver<Processed>,
    pub(crate) lanes: BTreeMap<Lane, OwnedLane>,
    pub(crate) processing: bool,
    pub(crate) ready: Vec<Prepared>,
    /// How many of `ready`, from the first on, are in the open transaction.
    pub(crate) produced: usize,
    pub(crate) ready_batches: usize,
    pub(crate) last_commit: Instant,
    pub(crate) waiting_since: Option<Instant>,
    pub(crate) next_lane: usize,
    pub(crate) tenants: HashMap<String, &'static str>,
}

impl Engine {
    /// Runs until shutdown. An error is fatal.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        while !self.shutdown.is_cancelled() {
            let mut progressed = self.serve_group()?;
            progressed |= self.read_lanes()?;
            progressed |= self.collect()?;
            progressed |= self.dispatch();
            progressed |= self.commit_due()?;
            progressed |= self.commit_markers()?;
            self.report();
            if !progressed {
                std::thread::park_timeout(self.sleep());
            }
        }
        self.drain()
    }

    /// Serves librdkafka's events and answers rebalances.
    fn serve_group(&mut self) -> Result<bool, String> {
        let mut progressed = false;
        let consumer = Arc::clone(&self.consumer);
        while let Some(event) = consumer.poll(Duration::ZERO) {
            match event {
                // A message may still come here that was on its way when its lane got a queue of its own.
                Ok(message) => {
                    let lane = Lane(rdkafka::Message::partition(&message));
                    if let Some(owned) = self.lanes.get_mut(&lane).filter(|owned| !owned.stopped) {
                        owned.push(&self.input, &message);
                        progressed = true;
                    }
                }
                Err(rdkafka::error::KafkaError::MessageConsumptionFatal(code)) => return Err(code.to_string()),
                Err(rdkafka::error::KafkaError::PartitionEOF(_)) => {}
                Err(error) => {
                    tracing::debug!(stage = self.stage, %error, "consumer event");
                    break;
                }
            }
        }
        while let Some(rebalance) = self.consumer.context().next_rebalance() {
            progressed = true;
            match rebalance {
                Rebalance::Assigned(lanes) => self.assigned(&lanes)?,
                Rebalance::Revoked(lanes) => self.revoked(&lanes)?,
            }
        }
        Ok(progressed)
    }

    fn assigned(&mut self, lanes: &[Lane]) -> Result<(), String> {
        let found = insist(self.stage, "reading committed positions", || {
            positions(&self.consumer, &self.input, lanes)
                .map_err(|error| TransactionError::Ambiguous(error.to_string()))
        })?;
        let mut list = TopicPartitionList::with_capacity(found.len());
        for (lane, position) in &found {
            let (Position::At(offset) | Position::Gap { to: offset, .. }) = position;
            list.add_partition_offset(&self.input, lane.0, Offset::Offset(*offset)).map_err(|e| e.to_string())?;
        }
        self.consumer.incremental_assign(&list).map_err(|error| error.to_string())?;
        for (lane, position) in found {
            let queue = self.consumer.split_partition_queue(&self.input, lane.0).map(|mut queue| {
                let thread = std::thread::current();
                queue.set_nonempty_callback(move || thread.unpark());
                queue
            });
            let (Position::At(offset) | Position::Gap { from: offset, .. }) = position;
            self.lanes.insert(lane, OwnedLane::new(self.ownership.assign(lane), queue, offset));
            self.status.owned(lane);
            if let Position::Gap { from, to } = position {
                self.stop_at_gap(lane, from, to);
            }
        }
        counter!(metric::REBALANCES, "stage" => self.stage, "kind" => "assigned").increment(1);
        tracing::info!(stage = self.stage, lanes = ?lanes.iter().map(|lane| lane.0).collect::<Vec<_>>(), "lanes assigned");
        self.status.joined(true);
        Ok(())
    }

    fn revoked(&mut self, lanes: &[Lane]) -> Result<(), String> {
        let lost = self.consumer.assignment_lost();
        if !lost {
            self.finish_within_grace(lanes)?;
        }
        let mut list = TopicPartitionList::with_capacity(lanes.len());
        for lane in lanes {
            self.ownership.revoke(*lane);
            self.lanes.remove(lane);
            self.status.gone(*lane);
            self.clear_gauges(*lane);
            list.add_partition(&self.input, lane.0);
        }
        let before = self.ready.len();
        self.ready.retain(|prepared| self.ownership.holds(prepared.raw.at.lane, prepared.raw.epoch));
        if self.ready.len() < before {
            // The open transaction holds records of lanes that others have now.
            self.committer.abort()?;
            self.produced = 0;
        }
        self.consumer.incremental_unassign(&list).map_err(|error| error.to_string())?;
        let kind = if lost { "lost" } else { "revoked" };
        counter!(metric::REBALANCES, "stage" => self.stage, "kind" => kind).increment(1);
        tracing::info!(stage = self.stage, kind, lanes = ?lanes.iter().map(|lane| lane.0).collect::<Vec<_>>(), "lanes gone");
        Ok(())
    }

    /// Work of lanes that go away may finish, for a bounded time, and is committed before they are given up.
    fn finish_within_grace(&mut self, lanes: &[Lane]) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_millis(self.config.grace_ms);
        let running = |engine: &Self| {
            let busy = lanes.iter().any(|lane| engine.lanes.get(lane).is_some_and(|lane| lane.in_flight > 0));
            engine.processing && busy && !engine.status.is_unavailable()
        };
        while running(self) && Instant::now() < deadline {
            match self.done.recv_timeout(Duration::from_millis(20)) {
                Ok(processed) => self.finished(processed)?,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err("the processor has stopped".into()),
            }
        }
        if self.ready.iter().any(|prepared| lanes.contains(&prepared.raw.at.lane)) {
            self.commit()?;
        }
        Ok(())
    }

    fn read_lanes(&mut self) -> Result<bool, String> {
        let mut progressed = false;
        let mut lost = Vec::new();
        for (lane, owned) in &mut self.lanes {
            let turn = owned.read(&self.input, self.config.lane_buffer_bytes);
            progressed |= turn.records > 0;
            if let Some(reason) = turn.fatal {
                return Err(reason);
            }
            if turn.lost_position {
                lost.push(*lane);
            }
        }
        for lane in lost {
            self.check_gap(lane);
        }
        if progressed && self.waiting_since.is_none() {
            self.waiting_since = Some(Instant::now());
        }
        Ok(progressed)
    }

    /// Reading failed: when the position is not in the log any more, the lane stops and says which records are gone.
    fn check_gap(&mut self, lane: Lane) {
        let Some(owned) = self.lanes.get(&lane) else { return };
        let next = owned.next_read;
        match self.consumer.fetch_watermarks(&self.input, lane.0, crate::client::CALL_TIMEOUT) {
            Ok((low, high)) if next < low || next > high => {
                self.stop_at_gap(lane, next, low.min(high));
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(stage = self.stage, lane = lane.0, %error, "watermarks"),
        }
    }

    fn stop_at_gap(&mut self, lane: Lane, from: i64, to: i64) {
        tracing::error!(
            stage = self.stage,
            topic = %self.input,
            lane = lane.0,
            from,
            to,
            "lane stopped: records {from}..{to} of {}/{lane} are gone from the log and were never processed. To accept \
             the loss, stop every instance of this stage and run: kafka-consumer-groups --group {} --topic {}:{lane} \
             --reset-offsets --to-earliest --execute",
            self.input,
            self.committer.group,
            self.input,
        );
        self.stop_lane(lane, PauseReason::Gap { from, to });
    }

    fn stop_lane(&mut self, lane: Lane, reason: PauseReason) {
        if let Some(owned) = self.lanes.get_mut(&lane) {
            owned.stopped = true;
        }
        self.status.stopped(lane, reason);
    }

    /// Takes what the processor has finished.
    fn collect(&mut self) -> Result<bool, String> {
        match self.done.try_recv() {
            Ok(processed) => {
                self.finished(processed)?;
                Ok(true)
            }
            Err(mpsc::TryRecvError::Empty) => Ok(false),
            Err(mpsc::TryRecvError::Disconnected) => Err("the processor has stopped".into()),
        }
    }

    fn finished(&mut self, processed: Processed) -> Result<(), String> {
        self.processing = false;
        match processed {
            Processed::Failed(reason) => Err(reason),
            Processed::Done(prepared) => {
                self.ready_batches += 1;
                let mut runs = prepared;
                self.stop_floods(&mut runs);
                runs.retain(|prepared| self.ownership.holds(prepared.raw.at.lane, prepared.raw.epoch));
                self.ready.extend(runs);
                Ok(())
            }
        }
    }

    /// Hands the next batch to the processor, unless it is busy or finished work piles up.
    fn dispatch(&mut self) -> bool {
        if self.processing || self.ready_batches > READY_BATCHES {
            return false;
        }
        let waiting: usize = self.lanes.values().map(OwnedLane::waiting).sum();
        if waiting == 0 {
            self.waiting_since = None;
            return false;
        }
        let bytes: usize = self.lanes.values().map(OwnedLane::waiting_bytes).sum();
        let full = waiting >= self.config.max_batch_records || bytes >= self.config.max_batch_bytes;
        let linger = Duration::from_millis(self.config.linger_ms);
        if !full && self.waiting_since.is_some_and(|since| since.elapsed() < linger) {
            return false;
        }
        let batch = self.form_batch();
        // The processor holds one batch at a time, so there is always room for this one.
        match self.batches.try_send(batch) {
            Ok(()) => {
                self.processing = true;
                self.waiting_since = None;
                true
            }
            Err(_) => false,
        }
    }

    /// A batch in which every lane with records has an even share; lanes take turns at being first.
    fn form_batch(&mut self) -> Vec<RawRecord> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let busy = self.lanes.values().filter(|lane| lane.waiting() > 0).count().max(1);
        let share = (self.config.max_batch_records / busy).max(1);
        let byte_share = self.config.max_batch_bytes / busy;
        self.next_lane = self.next_lane.wrapping_add(1);
        let order: Vec<Lane> = self.lanes.keys().copied().collect();
        let first = self.next_lane % order.len().max(1);
        for lane in order.iter().cycle().skip(first).take(order.len()) {
            let room = self.config.max_batch_records.saturating_sub(batch.len());
            if room == 0 || bytes >= self.config.max_batch_bytes {
                break;
            }
            if let Some(owned) = self.lanes.get_mut(lane) {
                let mut lane_bytes = 0;
                owned.take(&mut batch, share.min(room), &mut lane_bytes, byte_share);
                bytes += lane_bytes;
            }
        }
        batch
    }

    fn commit_due(&mut self) -> Result<bool, String> {
        if self.ready_batches == 0 {
            return Ok(false);
        }
        let mut progressed = false;
        if self.produced < self.ready.len() {
            self.produce()?;
            progressed = true;
        }
        let interval = Duration::from_millis(self.config.commit_interval_ms);
        if self.last_commit.elapsed() >= interval || self.ready_bytes() >= READY_BATCHES * self.config.max_batch_bytes {
            self.commit()?;
            progressed = true;
        }
        Ok(progressed)
    }

    fn ready_bytes(&self) -> usize {
        self.ready_batches * self.config.max_batch_bytes
    }

    /// Produces what is finished; the next batch is read and processed meanwhile.
    fn produce(&mut self) -> Result<(), String> {
        let fresh = self.ready.get(self.produced..).unwrap_or_default();
        self.produced = match self.committer.produce(fresh)? {
            Verified::Committed => self.ready.len(),
            Verified::NotCommitted => 0,
        };
        Ok(())
    }

    /// Commits what is finished, again and again until Kafka says that it counts or that it belongs to others.
    fn commit(&mut self) -> Result<(), String> {
        self.last_commit = Instant::now();
        self.ready_batches = 0;
        loop {
            if self.produced < self.ready.len() {
                self.produce()?;
            }
            let mut next = BTreeMap::new();
            for run in runs(&self.ready) {
                if let Some(last) = run.last() {
                    let position = next.entry(last.raw.at.lane).or_insert(0);
                    *position = (*position).max(last.raw.at.offset + 1);
                }
            }
            if next.is_empty() {
                return Ok(());
            }
            if self.produced == self.ready.len() && self.committer.commit(&self.consumer, &next)? == Verified::Committed
            {
                self.produced = 0;
                let ready = std::mem::take(&mut self.ready);
                self.committed(&ready, &next);
                return Ok(());
            }
            // An abort often means that lanes went away: hear of it before trying again.
            self.produced = 0;
            std::thread::sleep(Duration::from_millis(20));
            self.serve_group()?;
        }
    }

    /// Leaves out lanes that reject nearly everything: their records stay where they are, uncommitted.
    fn stop_floods(&mut self, finished: &mut Vec<Prepared>) {
        let mut flooded: BTreeMap<Lane, String> = BTreeMap::new();
        for run in runs(finished) {
            let Some(lane) = run.first().map(|prepared| prepared.raw.at.lane) else { continue };
            let Some(owned) = self.lanes.get_mut(&lane) else { continue };
            let rejected = |prepared: &Prepared| matches!(prepared.verdict, Verdict::Rejected(_));
            if !run.iter().any(rejected) {
                owned.flood.count_good(run.len(), &self.config);
                continue;
            }
            for prepared in run {
                if let Some(counted) = owned.flood.count(rejected(prepared), &self.config) {
                    flooded.entry(lane).or_insert(counted);
                }
            }
        }
        for (lane, counted) in flooded {
            finished.retain(|prepared| prepared.raw.at.lane != lane);
            if let Some(owned) = self.lanes.get_mut(&lane) {
                owned.discard();
            }
            // What is being processed of it now would leave a hole: it is not ours to commit any more.
            self.ownership.revoke(lane);
            tracing::error!(
                stage = self.stage,
                topic = %self.input,
                lane = lane.0,
                "lane stopped: {counted}. The cause is probably not the records. Nothing was lost: fix the cause and \
                 restart the service"
            );
            self.stop_lane(lane, PauseReason::Flood { reason: counted });
        }
    }

    fn committed(&mut self, ready: &[Prepared], next: &BTreeMap<Lane, i64>) {
        for (lane, position) in next {
            if let Some(owned) = self.lanes.get_mut(lane) {
                owned.committed = *position;
                owned.oldest_in_flight = None;
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (mut emitted, mut skipped, mut rejected, mut outputs) = (0u64, 0u64, 0u64, 0u64);
        for run in runs(ready) {
            if let Some(owned) = run.first().and_then(|prepared| self.lanes.get_mut(&prepared.raw.at.lane)) {
                owned.in_flight = owned.in_flight.saturating_sub(run.len());
            }
        }
        for prepared in ready {
            outputs += prepared.outputs.len() as u64;
            match &prepared.verdict {
                Verdict::Emitted => emitted += 1,
                Verdict::Skipped(reason) => {
                    skipped += 1;
                    counter!(metric::SKIPPED, "stage" => self.stage, "reason" => *reason).increment(1);
                }
                Verdict::Rejected(failure) => {
                    rejected += 1;
                    outputs += 1;
                    counter!(metric::REJECTED, "stage" => self.stage, "class" => failure.class).increment(1);
                }
            }
            if let Some(tenant) = prepared.raw.headers.text(header::TENANT) {
                let tenant = self.tenant_label(tenant);
                let written = Duration::from_millis(u64::try_from(prepared.raw.timestamp).unwrap_or(0));
                histogram!(metric::LATENCY_SECONDS, "stage" => self.stage, "tenant" => tenant)
                    .record(now.saturating_sub(written).as_secs_f64());
            }
        }
        for (outcome, n) in [("emitted", emitted), ("skipped", skipped), ("rejected", rejected)] {
            if n > 0 {
                counter!(metric::RECORDS, "stage" => self.stage, "outcome" => outcome).increment(n);
            }
        }
        counter!(metric::OUTPUTS, "stage" => self.stage).increment(outputs);
    }

    /// A label for a tenant; a bounded number of them, so that a flood of tenants can't flood the metrics.
    fn tenant_label(&mut self, tenant: &str) -> &'static str {
        if let Some(label) = self.tenants.get(tenant) {
            return label;
        }
        if self.tenants.len() >= MAX_TENANT_LABELS {
            return "other";
        }
        // At most MAX_TENANT_LABELS short strings live as long as the process.
        let label: &'static str = Box::leak(tenant.to_owned().into_boxed_str());
        self.tenants.insert(tenant.to_owned(), label);
        label
    }

    /// Where only aborted records or markers are left before the end, the position moves past them, so that lag
    /// reaches zero and nobody waits for nothing.
    fn commit_markers(&mut self) -> Result<bool, String> {
        let idle = !self.processing && self.ready_batches == 0 && self.last_commit.elapsed() > MARKER_DELAY;
        if !idle || !self.lanes.values().any(|lane| lane.at_end && !lane.stopped) {
            return Ok(false);
        }
        let Ok(position) = self.consumer.position() else { return Ok(false) };
        let mut next = BTreeMap::new();
        for (lane, owned) in &mut self.lanes {
            if !owned.at_end || owned.stopped || owned.in_flight > 0 || owned.waiting() > 0 {
                continue;
            }
            owned.at_end = false;
            let at = position.find_partition(&self.input, lane.0).and_then(|element| element.offset().to_raw());
            if let Some(at) = at.filter(|at| *at > owned.committed) {
                next.insert(*lane, at);
            }
        }
        if next.is_empty() {
            return Ok(false);
        }
        self.last_commit = Instant::now();
        if self.committer.commit(&self.consumer, &next)? == Verified::Committed {
            self.committed(&[], &next);
        }
        Ok(true)
    }

    fn report(&mut self) {
        let Some(statistics) = self.consumer.context().take_statistics() else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let partitions = statistics.topics.get(&*self.input).map(|topic| &topic.partitions);
        for (lane, owned) in &self.lanes {
            let label = lane.to_string();
            if let Some(partition) = partitions.and_then(|partitions| partitions.get(&lane.0)) {
                let lag = (partition.hi_offset - owned.committed).max(0);
                let unstable = (partition.hi_offset - partition.ls_offset).max(0);
                gauge!(metric::LAG_RECORDS, "stage" => self.stage, "lane" => label.clone()).set(signed(lag));
                gauge!(metric::UNSTABLE_RECORDS, "stage" => self.stage, "lane" => label.clone()).set(signed(unstable));
            }
            let age = owned
                .oldest_uncommitted()
                .and_then(|millis| u64::try_from(millis).ok())
                .map_or(0.0, |millis| now.saturating_sub(Duration::from_millis(millis)).as_secs_f64());
            gauge!(metric::OLDEST_UNREAD_SECONDS, "stage" => self.stage, "lane" => label).set(age);
        }
        let in_flight = self.lanes.values().map(|lane| lane.in_flight + lane.waiting()).sum();
        gauge!(metric::IN_FLIGHT, "stage" => self.stage).set(count(in_flight));
        gauge!(metric::LANES, "stage" => self.stage).set(count(self.lanes.len()));
        let reasons = self.status.lanes();
        for label in ["unavailable", "gap", "flood"] {
            let paused = reasons.values().flatten().filter(|reason| reason.label() == label).count();
            gauge!(metric::PAUSED_LANES, "stage" => self.stage, "reason" => label).set(count(paused));
        }
    }

    fn clear_gauges(&self, lane: Lane) {
        for name in [metric::LAG_RECORDS, metric::UNSTABLE_RECORDS, metric::OLDEST_UNREAD_SECONDS] {
            gauge!(name, "stage" => self.stage, "lane" => lane.to_string()).set(0.0);
        }
    }

    fn sleep(&self) -> Duration {
        let interval = Duration::from_millis(self.config.commit_interval_ms);
        let linger = Duration::from_millis(self.config.linger_ms);
        let mut sleep = IDLE;
        if self.ready_batches > 0 {
            sleep = sleep.min(interval.saturating_sub(self.last_commit.elapsed()));
        }
        if let Some(since) = self.waiting_since {
            if !self.processing {
                sleep = sleep.min(linger.saturating_sub(since.elapsed()));
            }
        }
        sleep.max(Duration::from_millis(1))
    }

    /// On shutdown: what runs may finish within the grace and is committed; then the group is left.
    fn drain(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_millis(self.config.grace_ms);
        while self.processing && !self.status.is_unavailable() && Instant::now() < deadline {
            match self.done.recv_timeout(Duration::from_millis(20)) {
                Ok(processed) => self.finished(processed)?,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.serve_group()?;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        let abandoned = if self.processing { "some work was dropped and will be done again" } else { "all work done" };
        self.commit()?;
        tracing::info!(stage = self.stage, abandoned, "leaving the group");
        Ok(())
    }
}

impl Drop for Engine {
    /// Dropping the consumer leaves the group, which waits until every rebalance is answered.
    fn drop(&mut self) {
        self.status.joined(false);
        self.lanes.clear();
        self.consumer.context().close(&self.consumer, &self.input);
    }
}

/// Neighbouring records of one lane.
fn runs(prepared: &[Prepared]) -> impl Iterator<Item = &[Prepared]> {
    prepared.chunk_by(|a, b| a.raw.at.lane == b.raw.at.lane && a.raw.epoch == b.raw.epoch)
}

fn signed(n: i64) -> f64 {
    u32::try_from(n).map_or(f64::from(u32::MAX), f64::from)
}
