//! Lanes that stand still because nearly everything was rejected, until somebody resumes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use weir_contracts::{Lane, LaneStop, StopReason};

use super::rebalance::progress;
use super::{Engine, runs};
use crate::PauseReason;
use crate::assignment::{GroupContext, Position, Standing, positions};
use crate::client::CALL_TIMEOUT;
use crate::clock::now_millis;
use crate::concurrent::Mode;
use crate::lane_stops::Change;
use crate::process::{Prepared, Verdict};

impl Engine {
    /// Leaves out lanes that reject nearly everything: their records stay where they are, uncommitted.
    pub(super) fn stop_floods(&mut self, finished: &mut Vec<Prepared>) {
        for (lane, stop) in self.count_floods(finished) {
            finished.retain(|prepared| prepared.raw.at.lane != lane);
            let next = match self.stops.durable() {
                true => format!("run `weir lanes resume {} --lane {lane}`", self.stage),
                false => "restart the service".to_owned(),
            };
            tracing::error!(
                stage = self.stage,
                topic = %self.input,
                lane = lane.0,
                offset = stop.offset,
                class = stop.class,
                "lane stopped: {}. The cause is probably not the records. Nothing was lost: fix the cause, then {next}",
                stop.message,
            );
            self.hold(&stop);
            self.stops.announce(stop);
        }
    }

    /// Counts what became of these records; says which lanes must stop, and why.
    fn count_floods(&mut self, finished: &[Prepared]) -> BTreeMap<Lane, LaneStop> {
        let mut flooded = BTreeMap::new();
        for run in runs(finished) {
            let Some(lane) = run.first().map(|prepared| prepared.raw.at.lane) else { continue };
            let Some(owned) = self.lanes.get_mut(&lane) else { continue };
            if !run.iter().any(|prepared| matches!(prepared.verdict, Verdict::Rejected(_))) {
                owned.flood.count_good(run.len(), &self.config);
                continue;
            }
            for prepared in run {
                let class = match &prepared.verdict {
                    Verdict::Rejected(failure) => Some(failure.class),
                    _ => None,
                };
                let Some(message) = owned.flood.count(class.is_some(), &self.config) else { continue };
                flooded.entry(lane).or_insert_with(|| {
                    // Nothing of the lane that is among these is committed.
                    let all = finished.iter().map(|prepared| &prepared.raw.at);
                    let fresh = all.filter(|at| at.lane == lane && at.topic == self.input);
                    let first = fresh.map(|at| at.offset).min();
                    LaneStop {
                        stage: self.stage.to_owned(),
                        lane,
                        reason: StopReason::Flood,
                        message,
                        class: class.map(str::to_owned),
                        offset: first.unwrap_or_else(|| owned.fresh.first_waiting()),
                        since: now_millis(),
                    }
                });
            }
        }
        flooded
    }

    /// Lets go of a lane's records without giving up the lane.
    fn hold(&mut self, stop: &LaneStop) {
        let lane = stop.lane;
        if let Some(owned) = self.lanes.get_mut(&lane) {
            owned.discard();
        }
        // What is being processed of it now would leave a hole: it is not ours to commit any more.
        self.ownership.revoke(lane);
        if self.mode != Mode::Batches && self.state.is_some() {
            // Its outcomes can't be produced again without the log that closes here.
            self.drop_work(&[lane]);
        }
        self.close_state(lane);
        self.stop_lane(lane, PauseReason::Flood { reason: stop.message.clone() });
    }

    /// A lane that comes is not read if it is stopped.
    pub(super) fn stay_stopped(&mut self, lane: Lane) {
        self.resuming.remove(&lane);
        let Some(stop) = self.stops.of(lane) else { return };
        tracing::warn!(
            stage = self.stage,
            topic = %self.input,
            lane = lane.0,
            offset = stop.offset,
            since = stop.since,
            "lane stays stopped: {}. When the cause is fixed, run `weir lanes resume {} --lane {lane}`",
            stop.message,
            self.stage,
        );
        self.hold(&stop);
    }

    /// Does what the table of stopped lanes says now.
    pub(super) fn serve_stops(&mut self) -> Result<bool, String> {
        for change in self.stops.changes() {
            match change {
                // Its former owner, or an own one come back: the table counts, so that it never says other than is.
                Change::Stopped(stop) => {
                    self.resuming.remove(&stop.lane);
                    if self.lanes.get(&stop.lane).is_some_and(|owned| !owned.stopped) {
                        self.stay_stopped(stop.lane);
                    }
                }
                Change::Resumed(lane) => _ = self.resuming.insert(lane),
            }
        }
        let mut resumed = false;
        for lane in self.resuming.clone() {
            if self.try_resume(lane)? {
                self.resuming.remove(&lane);
                resumed = true;
            }
        }
        Ok(resumed)
    }

    /// Reads a lane on from its committed position. False: not yet.
    fn try_resume(&mut self, lane: Lane) -> Result<bool, String> {
        let flooded = matches!(self.status.lanes().get(&lane), Some(Some(PauseReason::Flood { .. })));
        if !flooded || self.stops.of(lane).is_some() {
            return Ok(true);
        }
        // What is finished of it is committed first: it would be read once more.
        if self.ready.iter().any(|prepared| prepared.raw.at.lane == lane) {
            return Ok(false);
        }
        let found = match self.go_back(lane) {
            Ok(found) => found,
            Err(reason) => {
                tracing::debug!(stage = self.stage, lane = lane.0, reason, "resuming: trying again");
                return Ok(false);
            }
        };
        let epoch = self.ownership.assign(lane);
        self.restore(&BTreeMap::from([(lane, epoch)]))?;
        if let Some(owned) = self.lanes.get_mut(&lane) {
            owned.resume(epoch);
            for (topic, standing) in &found {
                let (Position::At(offset) | Position::Gap { from: offset, .. }) = standing.position;
                if let Some(intake) = owned.intake(topic) {
                    intake.rewind(offset, progress(topic, standing, self.mode)?);
                }
            }
        }
        self.status.owned(lane);
        tracing::info!(stage = self.stage, topic = %self.input, lane = lane.0, "lane resumed");
        for (topic, standing) in found {
            if let Position::Gap { from, to } = standing.position {
                self.stop_at_gap(lane, &topic, from, to);
            }
        }
        Ok(true)
    }

    /// Moves the consumers of a lane back to its committed positions.
    fn go_back(&self, lane: Lane) -> Result<Vec<(Arc<str>, Standing)>, String> {
        let mut found = vec![go_back(&self.consumer, &self.input, lane)?];
        if let Some(returning) = &self.returning {
            found.push(go_back(&returning.consumer, &returning.topic, lane)?);
        }
        Ok(found)
    }
}

fn go_back(
    consumer: &BaseConsumer<GroupContext>,
    topic: &Arc<str>,
    lane: Lane,
) -> Result<(Arc<str>, Standing), String> {
    let found = positions(consumer, topic, &[lane]).map_err(|error| error.to_string())?;
    let standing = found.into_iter().next().ok_or("no position")?;
    let (Position::At(offset) | Position::Gap { to: offset, .. }) = standing.position;
    // Also drops what the client has fetched ahead.
    consumer.seek(topic, lane.0, Offset::Offset(offset), CALL_TIMEOUT).map_err(|error| error.to_string())?;
    Ok((Arc::clone(topic), standing))
}
