//! Turns raw records into encoded outcomes: decodes, calls the stage, encodes. Runs beside the loop, so that a batch is
//! processed while the one before it commits.

mod alone;
mod encode;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, mpsc};
use std::thread::Thread;
use std::time::{Duration, Instant, SystemTime};

use futures::FutureExt;
use metrics::{counter, histogram};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;
use weir_contracts::{Lane, Record, SchemaDef, Topic, TopicNames, unframe};
use weir_stage::{Change, Coordinates, Delivery, Failure, Headers, NoLane, Outcome, StageError, failure_class};

use crate::backoff::Backoff;
use crate::concurrent::{Mode, Seen, Work};
use crate::ownership::{LaneEpoch, Ownership};
use crate::retry::RetryPolicy;
use crate::state::{BatchState, RecordKey, SharedStores, StoreError, Write, record_key};
use crate::status::Waiting;
use crate::{PauseReason, Registry, RunnerConfig, StageStatus, metric};
use encode::{Encoded, Last};

/// Keys that are forgotten with one batch, at most, for each lane.
const EXPIRED_AT_ONCE: usize = 500;

/// A record as it was read.
#[derive(Debug)]
pub(crate) struct RawRecord {
    pub(crate) at: Coordinates,
    pub(crate) epoch: LaneEpoch,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Headers,
    pub(crate) timestamp: i64,
    /// When it is due, milliseconds since the Unix epoch, for records that wait for their time.
    pub(crate) not_before: Option<i64>,
}

impl RawRecord {
    pub(crate) fn is_due(&self, now: i64) -> bool {
        self.not_before.is_none_or(|due| due <= now)
    }

    pub(crate) fn size(&self) -> usize {
        self.value.as_ref().map_or(0, Vec::len) + self.key.as_ref().map_or(0, Vec::len) + 64
    }
}

/// A record ready to be produced.
#[derive(Debug, Clone)]
pub(crate) struct EncodedRecord {
    pub(crate) topic: Arc<str>,
    pub(crate) lane: Lane,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Headers,
}

/// What became of a record.
#[derive(Debug)]
pub(crate) enum Verdict {
    Emitted,
    Skipped(&'static str),
    Rejected(Failure),
    /// Waits in a delay tier; its record there is among the outputs.
    Retried(Failure),
}

/// A processed record: what it was, what became of it, what is written.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) raw: RawRecord,
    pub(crate) verdict: Verdict,
    pub(crate) outputs: Vec<EncodedRecord>,
    /// What it writes to the state of its lane.
    pub(crate) writes: Vec<Write>,
    /// Rises with each batch.
    pub(crate) sequence: u64,
}

/// What the processor says of a batch.
pub(crate) enum Processed {
    Done(Vec<Prepared>, Turns),
    /// It waits for the next batch.
    Idle,
    Failed(String),
}

/// Held until the loop has been given what was processed: meanwhile nobody else changes the state of the record's lane.
pub(crate) type Turns = Option<OwnedMutexGuard<()>>;

/// What waits for a processor; shared by all of them.
pub(crate) struct Batches(tokio::sync::Mutex<tokio::sync::mpsc::Receiver<Vec<RawRecord>>>);

impl Batches {
    pub(crate) fn new(receiver: tokio::sync::mpsc::Receiver<Vec<RawRecord>>) -> Self {
        Self(tokio::sync::Mutex::new(receiver))
    }

    async fn next(&self) -> Option<Vec<RawRecord>> {
        self.0.lock().await.recv().await
    }
}

/// The part of the runner that calls the stage.
pub(crate) struct Processor<S: Work> {
    pub(crate) name: &'static str,
    pub(crate) stage: S,
    pub(crate) registry: Registry,
    pub(crate) config: RunnerConfig,
    pub(crate) names: TopicNames,
    pub(crate) ownership: Arc<Ownership>,
    pub(crate) status: Arc<StageStatus>,
    /// The service is to end.
    pub(crate) shutdown: CancellationToken,
    /// The loop has ended.
    pub(crate) stop: CancellationToken,
    pub(crate) topics: HashMap<Topic, Arc<str>>,
    /// The state of the lanes, for stages that keep some.
    pub(crate) stores: Option<SharedStores>,
    pub(crate) sequence: u64,
    pub(crate) retry: RetryPolicy,
    pub(crate) mode: Mode,
}

/// What becomes of a record the stage is not asked about.
enum Fate<R> {
    Tombstone,
    Undecodable(Failure),
    /// The stage was asked, but what it said can't be done.
    Overruled(Failure, Box<Delivery<R>>),
}

impl<R> Fate<R> {
    fn outcome(&self) -> (Outcome, Option<&Delivery<R>>) {
        match self {
            Self::Tombstone => (Outcome::skip("tombstone"), None),
            Self::Undecodable(failure) => (Outcome::reject(failure.clone()), None),
            Self::Overruled(failure, delivery) => (Outcome::reject(failure.clone()), Some(delivery)),
        }
    }
}

/// Why a batch is not processed yet.
enum Wait {
    /// The id of a schema was needed at once and is not known yet.
    Unregistered(Topic, &'static SchemaDef),
    Unavailable {
        dependency: &'static str,
        reason: String,
        retry_after: Option<Duration>,
    },
    Fatal(String),
}

impl From<StoreError> for Wait {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Gone(_) => {
                Self::Unavailable { dependency: "lane", reason: error.to_string(), retry_after: None }
            }
            StoreError::Disk { .. } => Self::Fatal(error.to_string()),
        }
    }
}

impl From<StageError> for Wait {
    fn from(error: StageError) -> Self {
        match error {
            StageError::Unavailable { dependency, reason, retry_after } => {
                Self::Unavailable { dependency, reason, retry_after }
            }
            StageError::Fatal(reason) => Self::Fatal(reason),
        }
    }
}

impl<S: Work> Processor<S> {
    /// Processes batches until the loop goes away.
    pub(crate) async fn run(mut self, batches: Arc<Batches>, done: mpsc::Sender<Processed>, wake: Thread) {
        let status = Arc::clone(&self.status);
        let hand_over = |mut processed: Processed| {
            let has_time = matches!(processed, Processed::Done(..));
            let goes_on = !matches!(processed, Processed::Failed(_));
            let turn = if let Processed::Done(_, turn) = &mut processed { turn.take() } else { None };
            let heard = done.send(processed).is_ok();
            drop(turn);
            if !(has_time && status.wakes_in_time()) {
                wake.unpark();
            }
            goes_on && heard
        };
        while let Some(batch) = batches.next().await {
            let goes_on = match self.mode {
                Mode::Batches => hand_over(self.until_available(batch).await),
                Mode::Each(_) => match AssertUnwindSafe(self.one_by_one(batch, &hand_over)).catch_unwind().await {
                    Ok(goes_on) => goes_on,
                    Err(_) => hand_over(Processed::Failed("a processor panicked; see the log".into())),
                },
            };
            if !goes_on || !hand_over(Processed::Idle) {
                return;
            }
        }
    }

    /// Processes records one after another, and hands each over as it is done. False when there is no going on.
    async fn one_by_one(&mut self, batch: Vec<RawRecord>, hand_over: &(impl Fn(Processed) -> bool + Sync)) -> bool {
        for raw in batch {
            // What has not begun by then is left to whoever goes on.
            if self.shutdown.is_cancelled() {
                break;
            }
            let processed = self.while_owned(raw).await;
            if !hand_over(processed) {
                return false;
            }
        }
        true
    }

    /// Processes a record, and gives it up when its lane goes.
    async fn while_owned(&mut self, raw: RawRecord) -> Processed {
        let ownership = Arc::clone(&self.ownership);
        let (lane, epoch) = (raw.at.lane, raw.epoch);
        tokio::select! {
            processed = self.until_available(vec![raw]) => processed,
            () = ownership.gone(lane, epoch) => Processed::Done(Vec::new(), None),
        }
    }

    /// Processes a batch, waiting for dependencies as long as it takes.
    async fn until_available(&mut self, mut batch: Vec<RawRecord>) -> Processed {
        let initial = Duration::from_millis(self.config.backoff_initial_ms.max(1));
        let mut backoff = Backoff::new(initial, Duration::from_millis(self.config.backoff_max_ms.max(1)));
        let mut waiting: Option<Waiting> = None;
        loop {
            // What was revoked meanwhile belongs to another instance.
            batch.retain(|record| self.ownership.holds(record.at.lane, record.epoch));
            let (unprocessed, wait) = match self.process(batch).await {
                Ok((prepared, turn)) => return Processed::Done(prepared, turn),
                Err(failed) => failed,
            };
            batch = unprocessed;
            let wait = match wait {
                Wait::Unregistered(topic, schema) => match self.schema_id(topic, schema).await {
                    Ok(_) => continue,
                    Err(wait) => wait,
                },
                other => other,
            };
            let (dependency, reason, retry_after) = match wait {
                Wait::Fatal(reason) => return Processed::Failed(reason),
                Wait::Unregistered(..) => continue,
                Wait::Unavailable { dependency, reason, retry_after } => (dependency, reason, retry_after),
            };
            let delay = backoff.next(&mut rand::rng(), retry_after);
            counter!(metric::UNAVAILABLE, "stage" => self.name, "dependency" => dependency).increment(1);
            tracing::warn!(
                stage = self.name,
                dependency,
                reason,
                records = batch.len(),
                retry_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                "unavailable: lanes paused"
            );
            let reason = PauseReason::Unavailable { dependency, reason };
            waiting.get_or_insert_with(|| self.status.wait()).on(reason);
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.stop.cancelled() => return Processed::Done(Vec::new(), None),
            }
        }
    }

    async fn process(&mut self, batch: Vec<RawRecord>) -> Result<(Vec<Prepared>, Turns), (Vec<RawRecord>, Wait)> {
        match (self.mode, &self.stores) {
            (Mode::Each(_), Some(stores)) => {
                let stores = Arc::clone(stores);
                self.process_alone(batch, &stores).await
            }
            _ => self.process_batch(batch).await.map(|prepared| (prepared, None)),
        }
    }

    async fn process_batch(&mut self, batch: Vec<RawRecord>) -> Result<Vec<Prepared>, (Vec<RawRecord>, Wait)> {
        let start = SystemTime::now();
        let clock = Instant::now();
        histogram!(metric::BATCH_RECORDS, "stage" => self.name).record(count(batch.len()));
        let decoded = match decode::<S::Input>(&self.registry, &batch).await {
            Ok(decoded) => decoded,
            Err(wait) => return Err((batch, wait)),
        };
        let mut deliveries = Vec::with_capacity(batch.len());
        let mut fates: Vec<Option<Fate<S::Input>>> = Vec::with_capacity(batch.len());
        for delivery in decoded {
            match delivery {
                Ok(delivery) => {
                    deliveries.push(delivery);
                    fates.push(None);
                }
                Err(fate) => fates.push(Some(fate)),
            }
        }
        let (encoded, state) = loop {
            let state = self.stores.as_ref().map(|stores| BatchState::new(Arc::clone(stores), epochs(&batch)));
            let seen = state.as_ref().map_or(Seen::Nothing, Seen::Batch);
            let outcomes = match self.call(&deliveries, &seen).await {
                Ok(outcomes) => outcomes,
                Err(wait) => return Err((batch, wait)),
            };
            let encoded = match self.encode_all(&batch, &fates, &deliveries, outcomes, start).await {
                Ok(encoded) => encoded,
                Err(wait) => return Err((batch, wait)),
            };
            // Records behind one that is rejected against the stage's word may have read what it wrote: once more,
            // without it.
            let overruled = encoded.iter().zip(&batch).position(|(encoded, raw)| {
                encoded.overruled.is_some() && state.as_ref().is_some_and(|state| state.has_written(&raw.at))
            });
            let Some(at) = overruled else { break (encoded, state) };
            let delivered = fates.iter().take(at).filter(|fate| fate.is_none()).count();
            let failure = encoded.into_iter().nth(at).and_then(|encoded| encoded.overruled);
            if let (Some(fate), Some(failure), true) = (fates.get_mut(at), failure, delivered < deliveries.len()) {
                *fate = Some(Fate::Overruled(failure, Box::new(deliveries.remove(delivered))));
            }
        };
        let mut writes = match state.map(|state| self.settle_state(&batch, state)).transpose() {
            Ok(writes) => writes.unwrap_or_default(),
            Err(error) => return Err((batch, error.into())),
        };
        histogram!(metric::PROCESS_SECONDS, "stage" => self.name).record(clock.elapsed().as_secs_f64());
        let sequence = self.sequence;
        let prepared = batch.into_iter().zip(encoded).map(|(raw, Encoded { verdict, outputs, .. })| {
            let writes = if writes.is_empty() { None } else { writes.remove(&record_key(&raw.at)) };
            Prepared { raw, verdict, outputs, writes: writes.unwrap_or_default(), sequence }
        });
        Ok(prepared.collect())
    }

    /// Forgets what has expired by the time of these records, and lets later batches see what this one wrote.
    fn settle_state(
        &mut self,
        batch: &[RawRecord],
        state: BatchState,
    ) -> Result<HashMap<RecordKey, Vec<Write>>, StoreError> {
        self.sequence += 1;
        let mut latest: HashMap<Lane, (&RawRecord, i64)> = HashMap::new();
        for raw in batch {
            let seen = latest.entry(raw.at.lane).or_insert((raw, raw.timestamp));
            seen.1 = seen.1.max(raw.timestamp);
        }
        for (first, now) in latest.values() {
            state.expire(&first.at, *now, EXPIRED_AT_ONCE)?;
        }
        let writes = state.into_writes();
        if let Some(stores) = &self.stores {
            for raw in batch {
                if let Some(of_record) = writes.get(&record_key(&raw.at)) {
                    stores.pend(raw.at.lane, raw.epoch, self.sequence, of_record.iter().cloned());
                }
            }
        }
        Ok(writes)
    }

    async fn encode_all(
        &mut self,
        batch: &[RawRecord],
        fates: &[Option<Fate<S::Input>>],
        deliveries: &[Delivery<S::Input>],
        outcomes: Vec<Outcome>,
        start: SystemTime,
    ) -> Result<Vec<Encoded>, Wait> {
        let mut said = outcomes.into_iter().zip(deliveries).map(|(outcome, delivery)| (outcome, Some(delivery)));
        let mut encoded = Vec::with_capacity(batch.len());
        for (raw, fate) in batch.iter().zip(fates) {
            let Some((outcome, delivery)) = fate.as_ref().map(Fate::outcome).or_else(|| said.next()) else {
                return Err(Wait::Fatal("the stage returned fewer outcomes than records".into()));
            };
            let mut last = Last { change: Change::new(&NoLane, raw.timestamp), others_wait: false };
            encoded.push(self.encode(raw, delivery, outcome, start, &mut last).await?);
        }
        let waiting = encoded.iter_mut().filter(|encoded| matches!(encoded.verdict, Verdict::Retried(_)));
        self.retry.spread(waiting.flat_map(|encoded| &mut encoded.outputs), start, &mut rand::rng());
        Ok(encoded)
    }

    /// Calls the stage; when it panics, calls it for each record alone, so that only the record that does it is rejected.
    async fn call(&mut self, deliveries: &[Delivery<S::Input>], state: &Seen<'_>) -> Result<Vec<Outcome>, Wait> {
        if deliveries.is_empty() {
            return Ok(Vec::new());
        }
        match AssertUnwindSafe(self.stage.process(deliveries, state)).catch_unwind().await {
            Ok(result) => {
                let outcomes = result?;
                return match outcomes.len() == deliveries.len() {
                    true => Ok(outcomes),
                    false => Err(Wait::Fatal(format!(
                        "the stage returned {} outcomes for {} records",
                        outcomes.len(),
                        deliveries.len()
                    ))),
                };
            }
            Err(panic) => {
                state.roll_back(0);
                if deliveries.len() == 1 {
                    return Ok(vec![panicked(panic.as_ref())]);
                }
            }
        }
        let mut outcomes = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            let mark = state.mark();
            let alone = std::slice::from_ref(delivery);
            match AssertUnwindSafe(self.stage.process(alone, state)).catch_unwind().await {
                Ok(result) => match result?.pop() {
                    Some(outcome) => outcomes.push(outcome),
                    None => return Err(Wait::Fatal("the stage returned no outcome for a record".into())),
                },
                Err(panic) => {
                    state.roll_back(mark);
                    tracing::error!(stage = self.name, at = %delivery.at, "the stage panicked on a record");
                    outcomes.push(panicked(panic.as_ref()));
                }
            }
        }
        Ok(outcomes)
    }
}

impl Seen<'_> {
    /// A place in the history of writes, to roll back to.
    fn mark(&self) -> usize {
        if let Self::Batch(state) = self { state.mark() } else { 0 }
    }

    fn roll_back(&self, mark: usize) {
        if let Self::Batch(state) = self {
            state.roll_back(mark);
        }
    }
}

/// Decodes a batch; what can't be decoded has its outcome already.
async fn decode<R: Record>(
    registry: &Registry,
    batch: &[RawRecord],
) -> Result<Vec<Result<Delivery<R>, Fate<R>>>, Wait> {
    let mut decoded = Vec::with_capacity(batch.len());
    for raw in batch {
        let Some(value) = &raw.value else {
            decoded.push(Err(Fate::Tombstone));
            continue;
        };
        decoded.push(match decode_one(registry, value).await? {
            Ok(record) => Ok(Delivery {
                record,
                at: raw.at.clone(),
                key: raw.key.clone(),
                headers: raw.headers.clone(),
                timestamp: raw.timestamp,
            }),
            Err(reason) => Err(Fate::Undecodable(Failure::new(failure_class::UNDECODABLE, reason))),
        });
    }
    Ok(decoded)
}

async fn decode_one<R: Record>(registry: &Registry, value: &[u8]) -> Result<Result<R, String>, Wait> {
    if R::schema().is_none() {
        return Ok(R::decode(None, value).map_err(|error| error.to_string()));
    }
    let (id, body) = match unframe(value) {
        Ok(parts) => parts,
        Err(error) => return Ok(Err(error.to_string())),
    };
    match registry.schema(id).await {
        // A decoder that panics on hostile bytes costs one record.
        Ok(schema) => Ok(std::panic::catch_unwind(AssertUnwindSafe(|| R::decode(Some(&schema), body)))
            .map_err(|_| "the decoder panicked".to_owned())
            .and_then(|decoded| decoded.map_err(|error| error.to_string()))),
        Err(error) if error.not_found => Ok(Err(error.to_string())),
        Err(error) => {
            Err(Wait::Unavailable { dependency: "schema-registry", reason: error.to_string(), retry_after: None })
        }
    }
}

fn epochs(batch: &[RawRecord]) -> HashMap<Lane, LaneEpoch> {
    batch.iter().map(|raw| (raw.at.lane, raw.epoch)).collect()
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Outcome {
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "no message".into());
    Outcome::reject(Failure::new(failure_class::PANIC, format!("the stage panicked: {text}")))
}

pub(crate) fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::from(u32::MAX), f64::from)
}
