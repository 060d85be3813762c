//! The loop: reads lanes, hands batches to the processor, commits what came back. One OS thread owns the consumer
//! and the producer, so every blocking call to Kafka is on it and nothing happens between a rebalance and a commit.

mod rebalance;
mod report;
mod stops;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio_util::sync::CancellationToken;
use weir_contracts::Lane;

use crate::assignment::{GroupContext, Rebalance};
use crate::backoff::Backoff;
use crate::clock::now_millis;
use crate::commit::{Committer, Logged, Next, Positions, Verified};
use crate::concurrent::{Concurrency, Mode};
use crate::failpoint::{Failpoint, reach};
use crate::lane::OwnedLane;
use crate::lane_stops::LaneStops;
use crate::mechanism::{Mechanism, is_switched_off};
use crate::ownership::Ownership;
use crate::process::{Prepared, Processed, RawRecord};
use crate::state::{Changelog, SharedStores};
use crate::{RunnerConfig, StageStatus};

/// Longest sleep when nothing happens; rebalances are noticed no later.
const IDLE: Duration = Duration::from_millis(50);
/// What completes record by record is committed together, this often at most.
const GROUP_COMMIT: Duration = Duration::from_millis(5);
/// Batches of finished work that wait for the commit interval, at most.
const READY_BATCHES: usize = 4;
/// A lane at its end whose position lies behind by markers only is committed after this long.
const MARKER_DELAY: Duration = Duration::from_millis(200);
/// Polls without an event after which there are none: librdkafka's own events, such as statistics, look like silence.
const SILENT_POLLS: usize = 4;
/// Bounds of the pauses between attempts at a commit that Kafka refuses.
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_millis(500);

/// Everything the loop works with.
pub(crate) struct Engine {
    pub(crate) stage: &'static str,
    pub(crate) config: RunnerConfig,
    pub(crate) input: Arc<str>,
    /// Reads what returns, in the lanes that are owned; none where the topic for it does not exist.
    pub(crate) returning: Option<Returning>,
    pub(crate) consumer: Arc<BaseConsumer<GroupContext>>,
    pub(crate) committer: Committer,
    pub(crate) ownership: Arc<Ownership>,
    pub(crate) status: Arc<StageStatus>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) batches: tokio::sync::mpsc::Sender<Vec<RawRecord>>,
    pub(crate) done: mpsc::Receiver<Processed>,
    pub(crate) lanes: BTreeMap<Lane, OwnedLane>,
    /// Which lanes stand still until somebody resumes them.
    pub(crate) stops: LaneStops,
    /// Lanes that were resumed and do not flow yet.
    pub(crate) resuming: BTreeSet<Lane>,
    pub(crate) mode: Mode,
    /// Batches that processors have.
    pub(crate) processing: usize,
    pub(crate) ready: Vec<Prepared>,
    /// How many of `ready`, from the first on, are in the open transaction.
    pub(crate) produced: usize,
    /// How far the logs of the lanes' states are in the open transaction, see [`crate::state::Stores::logged`].
    pub(crate) logged: BTreeMap<Lane, u64>,
    /// The open transaction holds what is not to count.
    pub(crate) abort_due: bool,
    pub(crate) ready_batches: usize,
    pub(crate) last_commit: Instant,
    pub(crate) waiting_since: Option<Instant>,
    pub(crate) next_lane: usize,
    pub(crate) tenants: HashMap<String, &'static str>,
    /// The state of the lanes and the topic behind it, for stages that keep some.
    pub(crate) state: Option<(SharedStores, Changelog)>,
}

/// The topic through which records return. Its lanes are not assigned by the group, but taken on with those of the
/// input, so that both are always in the same hands; their positions are committed under the same group.
pub(crate) struct Returning {
    pub(crate) topic: Arc<str>,
    pub(crate) consumer: Arc<BaseConsumer<GroupContext>>,
}

impl Engine {
    /// Runs until shutdown. An error is fatal.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        while !self.shutdown.is_cancelled() {
            self.status.turn();
            let mut progressed = self.serve_group()?;
            progressed |= self.read_lanes()?;
            progressed |= self.collect()?;
            progressed |= self.dispatch();
            progressed |= self.commit_due()?;
            progressed |= self.commit_markers()?;
            progressed |= self.serve_stops()?;
            self.report();
            if !progressed {
                self.rest();
            }
        }
        self.drain()
    }

    /// Sleeps until something happens or is due.
    fn rest(&self) {
        // What gets done meanwhile has time until the commit for which the loop wakes up anyway.
        self.status.set_alarm(self.mode != Mode::Batches && self.has_due());
        std::thread::park_timeout(self.sleep());
        self.status.set_alarm(false);
    }

    /// Serves librdkafka's events and answers rebalances.
    fn serve_group(&mut self) -> Result<bool, String> {
        let mut progressed = false;
        let consumer = Arc::clone(&self.consumer);
        let mut silent = 0;
        while silent < SILENT_POLLS {
            let Some(event) = consumer.poll(Duration::ZERO) else {
                silent += 1;
                continue;
            };
            match event {
                // A message may still come here that was on its way when its lane got a queue of its own.
                Ok(message) => {
                    let lane = Lane(rdkafka::Message::partition(&message));
                    if let Some(owned) = self.lanes.get_mut(&lane).filter(|owned| !owned.stopped) {
                        owned.fresh.push(owned.epoch, &message);
                        progressed = true;
                    }
                }
                Err(rdkafka::error::KafkaError::MessageConsumptionFatal(code)) => return Err(code.to_string()),
                Err(rdkafka::error::KafkaError::PartitionEOF(_)) => {}
                // Lost connections and the like, many of them while a broker is away: none may hide the rebalance
                // behind it.
                Err(error) => tracing::debug!(stage = self.stage, %error, "consumer event"),
            }
        }
        if let Some(returning) = &self.returning {
            // Its records are in queues of their own; this serves the rest.
            while let Some(event) = returning.consumer.poll(Duration::ZERO) {
                let Ok(message) = event else { break };
                let lane = Lane(rdkafka::Message::partition(&message));
                let owned = self.lanes.get_mut(&lane).filter(|owned| !owned.stopped);
                if let Some((epoch, intake)) = owned.and_then(|owned| Some((owned.epoch, owned.returning.as_mut()?))) {
                    intake.push(epoch, &message);
                    progressed = true;
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

    fn read_lanes(&mut self) -> Result<bool, String> {
        let mut progressed = false;
        let mut lost = Vec::new();
        for (lane, owned) in &mut self.lanes {
            let turn = owned.read(self.config.lane_buffer_bytes);
            progressed |= turn.records > 0;
            if let Some(reason) = turn.fatal {
                return Err(reason);
            }
            lost.extend(turn.lost_positions.into_iter().map(|topic| (*lane, topic)));
        }
        for (lane, topic) in lost {
            self.check_gap(lane, &topic);
        }
        if progressed && self.waiting_since.is_none() {
            self.waiting_since = Some(Instant::now());
        }
        Ok(progressed)
    }

    /// Takes what processors have finished.
    fn collect(&mut self) -> Result<bool, String> {
        let mut progressed = false;
        loop {
            match self.done.try_recv() {
                Ok(processed) => self.finished(processed)?,
                Err(mpsc::TryRecvError::Empty) => return Ok(progressed),
                Err(mpsc::TryRecvError::Disconnected) => return Err("the processor has stopped".into()),
            }
            progressed = true;
        }
    }

    fn finished(&mut self, processed: Processed) -> Result<(), String> {
        match processed {
            Processed::Failed(reason) => Err(reason),
            Processed::Idle => {
                self.processing = self.processing.saturating_sub(1);
                Ok(())
            }
            // Its lane was given away meanwhile.
            Processed::Done(prepared, _) if prepared.is_empty() => Ok(()),
            Processed::Done(prepared, _) => {
                reach(self.stage, Failpoint::AfterProcess);
                self.ready_batches += 1;
                let mut runs = prepared;
                self.stop_floods(&mut runs);
                runs.retain(|prepared| self.ownership.holds(prepared.raw.at.lane, prepared.raw.epoch));
                for prepared in &runs {
                    if let Some(owned) = self.lanes.get_mut(&prepared.raw.at.lane) {
                        owned.finish(&prepared.raw);
                    }
                }
                self.ready.extend(runs);
                Ok(())
            }
        }
    }

    /// Hands out work to the processors that have none.
    fn dispatch(&mut self) -> bool {
        match self.mode {
            Mode::Batches => self.dispatch_batch(),
            Mode::Each(concurrency) => self.dispatch_each(concurrency),
        }
    }

    /// Each record, or those of one key that wait, to a processor of its own; the lane of which the fewest run comes first.
    fn dispatch_each(&mut self, concurrency: Concurrency) -> bool {
        let now = now_millis();
        let mut progressed = false;
        while self.processing < concurrency.records.get() {
            let mut lanes: Vec<&mut OwnedLane> = self.lanes.values_mut().filter(|lane| !lane.stopped).collect();
            lanes.sort_by_key(|lane| lane.running);
            let share = self.config.retry_share;
            let Some(run) = lanes.into_iter().find_map(|lane| lane.start(concurrency.order, share, now)) else { break };
            // There is room for as many as there are processors; none of them is gone while the loop runs.
            if self.batches.try_send(run).is_err() {
                break;
            }
            self.processing += 1;
            progressed = true;
        }
        progressed
    }

    /// Hands the next batch to the processor, unless it is busy or finished work piles up.
    fn dispatch_batch(&mut self) -> bool {
        if self.processing > 0 || self.ready_batches > READY_BATCHES {
            return false;
        }
        let now = now_millis();
        let waiting: usize = self.lanes.values().map(|lane| lane.due(now)).sum();
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
        let batch = self.form_batch(now);
        // The processor holds one batch at a time, so there is always room for this one.
        match self.batches.try_send(batch) {
            Ok(()) => {
                self.processing = 1;
                self.waiting_since = None;
                true
            }
            Err(_) => false,
        }
    }

    /// A batch in which every lane with records has an even share; lanes take turns at being first.
    fn form_batch(&mut self, now: i64) -> Vec<RawRecord> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let busy = self.lanes.values().filter(|lane| lane.due(now) > 0).count().max(1);
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
                bytes += owned.take(&mut batch, share.min(room), byte_share, self.config.retry_share, now);
            }
        }
        batch
    }

    fn commit_due(&mut self) -> Result<bool, String> {
        self.abort_if_due()?;
        if !self.has_due() {
            return Ok(false);
        }
        let mut progressed = false;
        if self.produced < self.ready.len() {
            self.produce()?;
            progressed = true;
        }
        let full = self.mode == Mode::Batches && self.ready_batches >= READY_BATCHES;
        if self.last_commit.elapsed() >= self.commit_interval() || full || self.is_last() {
            self.commit()?;
            progressed = true;
        }
        Ok(progressed)
    }

    /// Whether something waits to be committed.
    fn has_due(&self) -> bool {
        self.ready_batches > 0 || self.has_logged()
    }

    /// Whether records that run have written to the state of their lanes.
    fn has_logged(&self) -> bool {
        let stores = self.state.as_ref().filter(|_| self.mode != Mode::Batches);
        stores.is_some_and(|(stores, _)| stores.has_logged())
    }

    /// Whether nothing is at work with which what is finished would share its transaction.
    fn is_last(&self) -> bool {
        self.mode != Mode::Batches && self.processing == 0
    }

    /// Between the beginnings of two transactions, at least. Records that complete one by one share them.
    fn commit_interval(&self) -> Duration {
        let configured = Duration::from_millis(self.config.commit_interval_ms);
        match self.mode {
            Mode::Batches => configured,
            Mode::Each(_) => configured.max(GROUP_COMMIT),
        }
    }

    /// Aborts a transaction that holds what is not to count.
    pub(super) fn abort_if_due(&mut self) -> Result<(), String> {
        if std::mem::take(&mut self.abort_due) {
            self.committer.abort()?;
            (self.produced, self.logged) = (0, BTreeMap::new());
        }
        Ok(())
    }

    /// Produces what is finished, and what was written to the state of the lanes by then; the next batch is read and
    /// processed meanwhile.
    fn produce(&mut self) -> Result<Verified, String> {
        self.abort_if_due()?;
        let logged = self.take_logged()?;
        let ready = self.ready.get(self.produced..).unwrap_or_default();
        let verified = self.committer.produce(ready, &logged)?;
        match verified {
            Verified::Committed => {
                self.produced = self.ready.len();
                self.logged.extend(logged.into_iter().map(|(lane, _, to)| (lane, to)));
            }
            Verified::NotCommitted => (self.produced, self.logged) = (0, BTreeMap::new()),
        }
        Ok(verified)
    }

    /// What records that run side by side have written since the last time, and whose outcomes belong to it: those are taken,
    /// too, so that no transaction has a last change without its outcome.
    fn take_logged(&mut self) -> Result<Vec<Logged>, String> {
        let stores = self.state.as_ref().filter(|_| self.mode != Mode::Batches);
        let Some(stores) = stores.map(|(stores, _)| Arc::clone(stores)) else { return Ok(Vec::new()) };
        let still = stores.still();
        self.collect()?;
        let logged = stores.logged(&self.logged);
        drop(still);
        Ok(logged)
    }

    /// Commits what is finished, again and again until Kafka says that it counts or that it belongs to others.
    fn commit(&mut self) -> Result<(), String> {
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        let begun = Instant::now();
        while self.try_commit()? == Verified::NotCommitted && !self.shutdown.is_cancelled() {
            self.status.turn();
            // librdkafka may not notice that the group has given up on this member (seen when the group's coordinator
            // was lost): only a new client helps.
            if begun.elapsed() > self.patience() {
                let seconds = begun.elapsed().as_secs();
                return Err(format!("no transaction was committed for {seconds} s, see the warnings before"));
            }
            // An abort often means that lanes went away: hear of it before trying again.
            std::thread::sleep(backoff.next(&mut rand::rng(), Some(FIRST_RETRY)));
            self.serve_group()?;
        }
        Ok(())
    }

    /// How long commits may fail in a row before this client is given up.
    fn patience(&self) -> Duration {
        4 * Duration::from_millis(self.config.session_timeout_ms)
    }

    /// One attempt at committing what is finished; what was not committed stays ready.
    fn try_commit(&mut self) -> Result<Verified, String> {
        self.last_commit = Instant::now();
        self.ready_batches = 0;
        self.abort_if_due()?;
        let waits = self.produced < self.ready.len() || self.has_logged();
        let produced = if waits { self.produce()? } else { Verified::Committed };
        let next = self.next_positions();
        if next.is_empty() {
            return Ok(Verified::Committed);
        }
        if is_switched_off(Mechanism::WriteAfterCommit) {
            self.committer.drain();
            let ready = std::mem::take(&mut self.ready);
            self.apply_state(&ready)?;
            self.ready = ready;
        }
        let begun = Instant::now();
        if produced == Verified::Committed && self.committer.commit(&self.consumer, &next)? == Verified::Committed {
            self.ownership.prove(begun);
            self.produced = 0;
            reach(self.stage, Failpoint::BeforeStoreWrite);
            let ready = std::mem::take(&mut self.ready);
            self.apply_state(&ready)?;
            self.logged.clear();
            self.committed(&ready, &next);
            return Ok(Verified::Committed);
        }
        (self.produced, self.logged) = (0, BTreeMap::new());
        // Still due, also when this was the last of it.
        self.ready_batches = 1;
        Ok(Verified::NotCommitted)
    }

    /// Where the lanes of what is ready go on once it is committed.
    fn next_positions(&mut self) -> Positions {
        let mut next = Positions::new();
        for prepared in &self.ready {
            let at = &prepared.raw.at;
            match next.get_mut(&(Arc::clone(&at.topic), at.lane)) {
                Some(position) => position.offset = position.offset.max(at.offset + 1),
                None => _ = next.insert((Arc::clone(&at.topic), at.lane), Next::at(at.offset + 1)),
            }
        }
        // Whoever writes to a lane's changelog must be the one who may move its position, even where it stays.
        for lane in self.logged.keys() {
            if let Some(owned) = self.lanes.get(lane) {
                next.entry((Arc::clone(&self.input), *lane)).or_insert_with(|| Next::at(owned.fresh.committed));
            }
        }
        for ((topic, lane), next) in &mut next {
            let intake = self.lanes.get_mut(lane).and_then(|owned| owned.intake(topic));
            if let Some(progress) = intake.and_then(|intake| intake.progress()) {
                next.offset = progress.position();
                if !is_switched_off(Mechanism::RememberingWhatIsDone) {
                    next.beyond = progress.beyond();
                }
            }
        }
        next
    }

    /// Where only aborted records or markers are left before the end, the position moves past them, so that lag
    /// reaches zero and nobody waits for nothing.
    fn commit_markers(&mut self) -> Result<bool, String> {
        let idle = self.processing == 0 && !self.has_due() && self.last_commit.elapsed() > MARKER_DELAY;
        let at_end = |lane: &OwnedLane| !lane.stopped && lane.intakes().any(|intake| intake.at_end);
        if !idle || !self.lanes.values().any(at_end) {
            return Ok(false);
        }
        let Ok(fresh) = self.consumer.position() else { return Ok(false) };
        let returning = self.returning.as_ref().map(|returning| returning.consumer.position()).transpose();
        let Ok(returning) = returning else { return Ok(false) };
        let mut next = Positions::new();
        for (lane, owned) in self.lanes.iter_mut().filter(|(_, owned)| !owned.stopped) {
            for intake in owned.intakes_mut().filter(|intake| intake.at_end && intake.is_idle()) {
                intake.at_end = false;
                let positions = std::iter::once(&fresh).chain(&returning);
                let at = positions
                    .filter_map(|list| list.find_partition(&intake.topic, lane.0))
                    .find_map(|element| element.offset().to_raw());
                if let Some(at) = at.filter(|at| *at > intake.committed) {
                    next.insert((Arc::clone(&intake.topic), *lane), Next::at(at));
                }
            }
        }
        if next.is_empty() {
            return Ok(false);
        }
        self.last_commit = Instant::now();
        match self.committer.commit(&self.consumer, &next)? {
            Verified::Committed => self.committed(&[], &next),
            // The end is announced once only.
            Verified::NotCommitted => {
                for (topic, lane) in next.keys() {
                    if let Some(intake) = self.lanes.get_mut(lane).and_then(|owned| owned.intake(topic)) {
                        intake.at_end = true;
                    }
                }
            }
        }
        Ok(true)
    }

    /// Whether a processor has work and does not wait for a dependency.
    fn is_working(&self) -> bool {
        self.processing > self.status.waiting()
    }

    fn sleep(&self) -> Duration {
        let linger = Duration::from_millis(self.config.linger_ms);
        let mut sleep = IDLE;
        if self.has_due() {
            sleep = sleep.min(self.commit_interval().saturating_sub(self.last_commit.elapsed()));
        }
        let now = now_millis();
        if let Some(due) = self.lanes.values().filter(|lane| !lane.stopped).filter_map(OwnedLane::next_due).min() {
            sleep = sleep.min(Duration::from_millis(u64::try_from(due.saturating_sub(now)).unwrap_or_default()));
        }
        if let Some(since) = self.waiting_since.filter(|_| self.processing == 0 && self.mode == Mode::Batches) {
            sleep = sleep.min(linger.saturating_sub(since.elapsed()));
        }
        sleep.max(Duration::from_millis(1))
    }

    /// Commits what records that run wait for: the state they have written.
    fn let_go_on(&mut self) -> Result<(), String> {
        if self.has_logged() && self.last_commit.elapsed() >= self.commit_interval() {
            self.try_commit()?;
        }
        Ok(())
    }

    /// On shutdown: what runs may finish within the grace and is committed; then the group is left.
    fn drain(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_millis(self.config.grace_ms);
        while self.is_working() && Instant::now() < deadline {
            match self.done.recv_timeout(Duration::from_millis(20)) {
                Ok(processed) => self.finished(processed)?,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.serve_group()?;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            self.let_go_on()?;
        }
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        let mut committed = self.try_commit()?;
        while committed == Verified::NotCommitted && Instant::now() < deadline {
            std::thread::sleep(backoff.next(&mut rand::rng(), Some(FIRST_RETRY)));
            self.serve_group()?;
            committed = self.try_commit()?;
        }
        let undone = self.processing > 0 || committed == Verified::NotCommitted;
        let abandoned = if undone { "some work was dropped and will be done again" } else { "all work done" };
        tracing::info!(stage = self.stage, abandoned, "leaving the group");
        Ok(())
    }
}

impl Drop for Engine {
    /// Dropping the consumer leaves the group, which waits until every rebalance is answered.
    fn drop(&mut self) {
        self.status.joined(false);
        for lane in std::mem::take(&mut self.lanes).into_keys() {
            self.close_state(lane);
        }
        self.consumer.context().close(&self.consumer, &self.input);
    }
}

/// Neighbouring records of one lane and topic.
fn runs(prepared: &[Prepared]) -> impl Iterator<Item = &[Prepared]> {
    prepared.chunk_by(|a, b| {
        a.raw.at.lane == b.raw.at.lane && a.raw.epoch == b.raw.epoch && a.raw.at.topic == b.raw.at.topic
    })
}
