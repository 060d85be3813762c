//! Records that run side by side and share the state of their lane.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use metrics::histogram;
use tokio::sync::OwnedMutexGuard;
use weir_stage::{Change, Delivery, Outcome};

use super::encode::{Encoded, Last};
use super::{Prepared, Processor, RawRecord, Turns, Verdict, Wait, decode, panicked};
use crate::concurrent::{Seen, Work};
use crate::metric;
use crate::state::{LaneHandle, SharedStores};

/// Keys that are forgotten with one record, at most.
const EXPIRED_WITH_ONE: usize = 20;

impl<S: Work> Processor<S> {
    /// Processes records one after another. What a record changes last is made while nobody else changes the state of its
    /// lane, until the loop has been given the outcome: so no transaction has the one without the other.
    pub(super) async fn process_alone(
        &mut self,
        mut batch: Vec<RawRecord>,
        stores: &SharedStores,
    ) -> Result<(Vec<Prepared>, Turns), (Vec<RawRecord>, Wait)> {
        // They come one by one.
        let Some(raw) = batch.pop() else { return Ok((Vec::new(), None)) };
        match self.conclude(&raw, stores).await {
            Ok((Encoded { verdict, outputs, .. }, turn)) => {
                Ok((vec![Prepared { raw, verdict, outputs, writes: Vec::new(), sequence: 0 }], Some(turn)))
            }
            Err(wait) => Err((vec![raw], wait)),
        }
    }

    async fn conclude(
        &mut self,
        raw: &RawRecord,
        stores: &SharedStores,
    ) -> Result<(Encoded, OwnedMutexGuard<()>), Wait> {
        let (start, clock) = (SystemTime::now(), Instant::now());
        let lane = LaneHandle::new(stores, &Arc::clone(&self.ownership), raw.at.lane, raw.epoch)?;
        let decoded = decode::<S::Input>(&self.registry, std::slice::from_ref(raw)).await?.pop();
        let (delivery, outcome) = match decoded {
            Some(Ok(delivery)) => {
                let outcome = self.call(std::slice::from_ref(&delivery), &Seen::Lane(&lane)).await?.pop();
                (Some(delivery), outcome)
            }
            Some(Err(fate)) => (None, Some(fate.outcome().0)),
            None => (None, None),
        };
        let outcome = outcome.ok_or_else(|| Wait::Fatal("the stage returned no outcome for a record".into()))?;
        let delivery = delivery.as_ref();
        let (encoded, turn) = match outcome {
            Outcome::Finally(change) => loop {
                let made =
                    |last: &mut Change<'_>| match std::panic::catch_unwind(AssertUnwindSafe(|| change.make(last))) {
                        Ok(outcome) => outcome.map_err(Wait::from),
                        Err(panic) => {
                            last.clear();
                            Ok(panicked(panic.as_ref()))
                        }
                    };
                match self.close(raw, delivery, &lane, start, made).await {
                    // Asked for while nobody waits; what the stage has done is not done again for it.
                    Err(Wait::Unregistered(topic, schema)) => _ = self.schema_id(topic, schema).await?,
                    closed => break closed?,
                }
            },
            outcome => self.close(raw, delivery, &lane, start, |_| Ok(outcome)).await?,
        };
        histogram!(metric::PROCESS_SECONDS, "stage" => self.name).record(clock.elapsed().as_secs_f64());
        Ok((encoded, turn))
    }

    /// Has the last change made, and encodes what it says, while nobody else changes the state of the lane.
    async fn close(
        &mut self,
        raw: &RawRecord,
        delivery: Option<&Delivery<S::Input>>,
        lane: &LaneHandle,
        start: SystemTime,
        made: impl FnOnce(&mut Change<'_>) -> Result<Outcome, Wait> + Send,
    ) -> Result<(Encoded, OwnedMutexGuard<()>), Wait> {
        let turn = lane.turn().await?;
        let mut last = Last { change: Change::new(&turn, raw.timestamp), others_wait: true };
        let outcome = made(&mut last.change)?;
        let mut encoded = self.encode(raw, delivery, outcome, start, &mut last).await?;
        if matches!(encoded.verdict, Verdict::Retried(_)) {
            self.retry.spread(encoded.outputs.iter_mut(), start, &mut rand::rng());
        }
        let writes = last.change.into_writes();
        Ok((encoded, turn.close(writes, raw.timestamp, EXPIRED_WITH_ONE)?))
    }
}
