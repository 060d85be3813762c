//! Lanes that come, go and stop.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use metrics::counter;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use weir_contracts::{Lane, RETRY_TIERS};

use super::Engine;
use crate::assignment::{GroupContext, Position, Standing, positions};
use crate::clock::now_millis;
use crate::concurrent::Mode;
use crate::lane::{Intake, OwnedLane};
use crate::ownership::LaneEpoch;
use crate::process::Prepared;
use crate::progress::{Progress, Unreadable};
use crate::state::{RestoreError, StoreError};
use crate::transaction::TransactionError;
use crate::{PauseReason, metric};

impl Engine {
    pub(super) fn assigned(&mut self, lanes: &[Lane]) -> Result<(), String> {
        let topics: Vec<Arc<str>> =
            std::iter::once(&self.input).chain(self.returning.as_ref().map(|r| &r.topic)).cloned().collect();
        let found = self.committer.insist.on("reading committed positions", || {
            let found: Result<Vec<_>, _> = topics.iter().map(|topic| positions(&self.consumer, topic, lanes)).collect();
            found.map_err(|error| TransactionError::Ambiguous(error.to_string()))
        })?;
        let mut found = found.into_iter();
        let (fresh, returning) = (found.next().unwrap_or_default(), found.next().unwrap_or_default());
        let epochs: BTreeMap<Lane, LaneEpoch> =
            lanes.iter().map(|lane| (*lane, self.ownership.assign(*lane))).collect();
        self.restore(&epochs)?;
        let (mut fresh, mut returning) = (
            take_on(&self.consumer, &self.input, &fresh, self.mode)?,
            match &self.returning {
                Some(topic) => take_on(&topic.consumer, &topic.topic, &returning, self.mode)?,
                None => BTreeMap::new(),
            },
        );
        for (lane, epoch) in epochs {
            let Some((intake, position)) = fresh.remove(&lane) else { continue };
            let (back, back_position) = returning.remove(&lane).unzip();
            self.lanes.insert(lane, OwnedLane::new(epoch, intake, back));
            self.status.owned(lane);
            self.stay_stopped(lane);
            for (topic, position) in topics.iter().zip([Some(position), back_position]) {
                if let Some(Position::Gap { from, to }) = position {
                    self.stop_at_gap(lane, topic, from, to);
                }
            }
        }
        counter!(metric::REBALANCES, "stage" => self.stage, "kind" => "assigned").increment(1);
        tracing::info!(stage = self.stage, lanes = ?lanes.iter().map(|lane| lane.0).collect::<Vec<_>>(), "lanes assigned");
        self.status.joined(true);
        Ok(())
    }

    /// Brings the state of new lanes up to date. Their committed positions are stable by now.
    pub(super) fn restore(&self, epochs: &BTreeMap<Lane, LaneEpoch>) -> Result<(), String> {
        let Some((stores, changelog)) = &self.state else { return Ok(()) };
        for (lane, epoch) in epochs {
            stores.assign(*lane, *epoch).map_err(|error| error.to_string())?;
        }
        let lanes: Vec<Lane> = epochs.keys().copied().collect();
        // Whoever else has a transaction open on a lane decides how long that takes.
        self.committer.insist.without_end().on("restoring state", || {
            changelog.restore(stores, &lanes, now_millis(), &|| self.status.turn()).map_err(|error| match error {
                RestoreError::Kafka(reason) => TransactionError::Ambiguous(reason),
                RestoreError::Store(error) => TransactionError::Fatal(error.to_string()),
            })
        })
    }

    pub(super) fn revoked(&mut self, lanes: &[Lane]) -> Result<(), String> {
        let lost = self.consumer.assignment_lost();
        if !lost {
            self.finish_within_grace(lanes)?;
        }
        let mut list = TopicPartitionList::with_capacity(lanes.len());
        let mut returning = TopicPartitionList::new();
        for lane in lanes {
            if let Some(topic) = self.returning.as_ref().filter(|_| self.lanes.contains_key(lane)) {
                returning.add_partition(&topic.topic, lane.0);
            }
            self.ownership.revoke(*lane);
            self.lanes.remove(lane);
            self.close_state(*lane);
            self.status.gone(*lane);
            self.clear_gauges(*lane);
            list.add_partition(&self.input, lane.0);
        }
        self.drop_work(lanes);
        self.abort_if_due()?;
        if let Some(topic) = self.returning.as_ref().filter(|_| returning.count() > 0) {
            topic.consumer.incremental_unassign(&returning).map_err(|error| error.to_string())?;
        }
        self.consumer.incremental_unassign(&list).map_err(|error| error.to_string())?;
        let kind = if lost { "lost" } else { "revoked" };
        counter!(metric::REBALANCES, "stage" => self.stage, "kind" => kind).increment(1);
        tracing::info!(stage = self.stage, kind, lanes = ?lanes.iter().map(|lane| lane.0).collect::<Vec<_>>(), "lanes gone");
        Ok(())
    }

    /// Forgets what is finished of lanes that are not ours any more, and what the open transaction holds of them with it.
    pub(super) fn drop_work(&mut self, lanes: &[Lane]) {
        let before = self.ready.len();
        self.ready.retain(|prepared| self.ownership.holds(prepared.raw.at.lane, prepared.raw.epoch));
        let logged = self.logged.keys().any(|lane| lanes.contains(lane));
        self.abort_due |= logged || self.ready.len() < before;
    }

    pub(super) fn close_state(&self, lane: Lane) {
        if let Some((stores, _)) = &self.state {
            stores.revoke(lane, now_millis());
        }
    }

    /// Work of lanes that go away may finish, for a bounded time, and is committed before they are given up.
    pub(super) fn finish_within_grace(&mut self, lanes: &[Lane]) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_millis(self.config.grace_ms);
        let running = |engine: &Self| {
            let busy = lanes.iter().any(|lane| engine.lanes.get(lane).is_some_and(|lane| lane.running > 0));
            busy && engine.is_working()
        };
        while running(self) && Instant::now() < deadline {
            match self.done.recv_timeout(Duration::from_millis(20)) {
                Ok(processed) => self.finished(processed)?,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err("the processor has stopped".into()),
            }
            self.let_go_on()?;
            self.status.goes_on();
        }
        // Once: the group waits for this answer, and may have left this member behind already.
        if self.has_logged() || self.ready.iter().any(|prepared| lanes.contains(&prepared.raw.at.lane)) {
            self.try_commit()?;
        }
        Ok(())
    }

    /// Reading failed: when the position is not in the log any more, the lane stops and says which records are gone.
    pub(super) fn check_gap(&mut self, lane: Lane, topic: &Arc<str>) {
        let Some(next) = self.lanes.get_mut(&lane).and_then(|owned| owned.intake(topic)).map(|intake| intake.next_read)
        else {
            return;
        };
        let watermarks = self.consumer.fetch_watermarks(topic, lane.0, crate::client::CALL_TIMEOUT);
        self.status.goes_on();
        match watermarks {
            Ok((low, high)) if next < low || next > high => {
                self.stop_at_gap(lane, topic, next, low.min(high));
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(stage = self.stage, %topic, lane = lane.0, %error, "watermarks"),
        }
    }

    pub(super) fn stop_at_gap(&mut self, lane: Lane, topic: &Arc<str>, from: i64, to: i64) {
        tracing::error!(
            stage = self.stage,
            %topic,
            lane = lane.0,
            from,
            to,
            "lane stopped: records {from}..{to} of {topic}/{lane} are gone from the log and were never processed. To \
             accept the loss, stop every instance of this stage and run: kafka-consumer-groups --group {} --topic \
             {topic}:{lane} --reset-offsets --to-earliest --execute",
            self.committer.group,
        );
        self.stop_lane(lane, PauseReason::Gap { from, to });
    }

    pub(super) fn stop_lane(&mut self, lane: Lane, reason: PauseReason) {
        if let Some(owned) = self.lanes.get_mut(&lane) {
            owned.stopped = true;
        }
        self.status.stopped(lane, reason);
    }

    /// Takes the writes of committed records over into the stores.
    pub(super) fn apply_state(&self, ready: &[Prepared]) -> Result<(), String> {
        let Some((stores, _)) = &self.state else { return Ok(()) };
        let ends = self.committer.changelog_ends();
        let mut lanes: BTreeMap<Lane, Vec<&Prepared>> = BTreeMap::new();
        for prepared in ready.iter().filter(|prepared| !prepared.writes.is_empty()) {
            lanes.entry(prepared.raw.at.lane).or_default().push(prepared);
        }
        for (lane, to) in &self.logged {
            match stores.settle(*lane, *to, ends.get(lane).copied(), now_millis()) {
                Ok(writes) => counter!(metric::STATE_WRITES, "stage" => self.stage).increment(writes as u64),
                Err(StoreError::Gone(_)) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        for (lane, prepared) in lanes {
            let sequence = prepared.iter().map(|prepared| prepared.sequence).max();
            let writes = prepared.iter().flat_map(|prepared| &prepared.writes);
            let writes: Vec<_> = writes.map(|(key, value)| (key.as_slice(), value.as_ref())).collect();
            counter!(metric::STATE_WRITES, "stage" => self.stage).increment(writes.len() as u64);
            match stores.apply(lane, writes, ends.get(&lane).copied(), sequence, now_millis()) {
                // A lane that was given away is restored by whoever has it.
                Ok(()) | Err(StoreError::Gone(_)) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }
}

/// Begins to read lanes of a topic at their positions.
fn take_on(
    consumer: &Arc<BaseConsumer<GroupContext>>,
    topic: &Arc<str>,
    lanes: &[Standing],
    mode: Mode,
) -> Result<BTreeMap<Lane, (Intake, Position)>, String> {
    let mut list = TopicPartitionList::with_capacity(lanes.len());
    for Standing { lane, position, .. } in lanes {
        let (Position::At(offset) | Position::Gap { to: offset, .. }) = position;
        list.add_partition_offset(topic, lane.0, Offset::Offset(*offset)).map_err(|error| error.to_string())?;
    }
    consumer.incremental_assign(&list).map_err(|error| error.to_string())?;
    let timed = RETRY_TIERS.iter().any(|(tier, _)| topic.ends_with(tier.name()));
    let intakes = lanes.iter().map(|standing| {
        let Standing { lane, position, .. } = standing;
        let queue = consumer.split_partition_queue(topic, lane.0).map(|mut queue| {
            let thread = std::thread::current();
            queue.set_nonempty_callback(move || thread.unpark());
            queue
        });
        let (Position::At(offset) | Position::Gap { from: offset, .. }) = *position;
        let progress = progress(topic, standing, mode)?;
        Ok((*lane, (Intake::new(Arc::clone(topic), timed, queue, offset, progress), *position)))
    });
    intakes.collect()
}

/// What is done of a lane, where records complete out of order.
pub(super) fn progress(topic: &str, standing: &Standing, mode: Mode) -> Result<Option<Progress>, String> {
    let (Position::At(offset) | Position::Gap { from: offset, .. }) = standing.position;
    let resumed = match mode {
        Mode::Each(_) => Progress::resume(offset, &standing.beyond).map(Some),
        // As if it had been done in order; what is done beyond the position would be done again.
        Mode::Batches if !standing.beyond.is_empty() => Err(Unreadable),
        Mode::Batches => Ok(None),
    };
    resumed.map_err(|error| {
        let lane = standing.lane;
        format!("{topic}/{lane}, offset {offset}: {error}. Run the version of the service that committed it")
    })
}
