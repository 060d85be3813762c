//! The state as one batch sees it: its own writes first, then those that wait for their transactions, then the disk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weir_contracts::Lane;
use weir_stage::{Coordinates, StageError, StateValue, StateView};

use super::store::{StoreError, Stores};
use crate::ownership::LaneEpoch;

/// A key and what becomes of it.
pub(crate) type Write = (Vec<u8>, Option<StateValue>);

/// What identifies a record of the batch.
pub(crate) type RecordKey = (Arc<str>, Lane, i64);

pub(crate) fn record_key(at: &Coordinates) -> RecordKey {
    (Arc::clone(&at.topic), at.lane, at.offset)
}

/// State for one batch; see [`StateView`].
pub(crate) struct BatchState {
    stores: Arc<Stores>,
    epochs: HashMap<Lane, LaneEpoch>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    overlay: HashMap<(Lane, Vec<u8>), Option<StateValue>>,
    log: Vec<Logged>,
}

struct Logged {
    record: RecordKey,
    lane: Lane,
    key: Vec<u8>,
    value: Option<StateValue>,
    /// What the overlay had before.
    before: Option<Option<StateValue>>,
}

impl BatchState {
    pub(crate) fn new(stores: Arc<Stores>, epochs: HashMap<Lane, LaneEpoch>) -> Self {
        Self { stores, epochs, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place in the history of writes, to roll back to.
    pub(crate) fn mark(&self) -> usize {
        self.inner().log.len()
    }

    /// Undoes all writes since `mark`.
    pub(crate) fn roll_back(&self, mark: usize) {
        let mut inner = self.inner();
        while inner.log.len() > mark {
            let Some(logged) = inner.log.pop() else { return };
            match logged.before {
                Some(value) => inner.overlay.insert((logged.lane, logged.key), value),
                None => inner.overlay.remove(&(logged.lane, logged.key)),
            };
        }
    }

    /// Whether a record has written anything.
    pub(crate) fn has_written(&self, at: &Coordinates) -> bool {
        let record = record_key(at);
        self.inner().log.iter().any(|logged| logged.record == record)
    }

    /// Removes what has expired by `now` in the lane of `at`, on behalf of that record.
    pub(crate) fn expire(&self, at: &Coordinates, now: i64, limit: usize) -> Result<usize, StoreError> {
        let Some(epoch) = self.epochs.get(&at.lane) else { return Ok(0) };
        let expired = self.stores.expired(at.lane, *epoch, now, limit)?;
        let mut removed = 0;
        for key in expired {
            // What this batch has written is newer.
            if !self.inner().overlay.contains_key(&(at.lane, key.clone())) {
                self.write(at, &key, None);
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// The writes of each record, in order; those of a key that it wrote again only once.
    pub(crate) fn into_writes(self) -> HashMap<RecordKey, Vec<Write>> {
        let inner = self.inner.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut writes: HashMap<RecordKey, Vec<Write>> = HashMap::new();
        for logged in inner.log {
            let of_record = writes.entry(logged.record).or_default();
            of_record.retain(|(key, _)| *key != logged.key);
            of_record.push((logged.key, logged.value));
        }
        writes
    }
}

impl StateView for BatchState {
    fn get(&self, lane: Lane, key: &[u8]) -> Result<Option<StateValue>, StageError> {
        if let Some(value) = self.inner().overlay.get(&(lane, key.to_vec())) {
            return Ok(value.clone());
        }
        let gone = || StageError::unavailable("lane", StoreError::Gone(lane));
        let epoch = self.epochs.get(&lane).ok_or_else(gone)?;
        self.stores.get(lane, *epoch, key).map_err(|error| match error {
            // Its records are dropped before the batch is tried again.
            StoreError::Gone(_) => gone(),
            disk @ StoreError::Disk { .. } => StageError::Fatal(disk.to_string()),
        })
    }

    fn write(&self, at: &Coordinates, key: &[u8], value: Option<StateValue>) {
        let mut inner = self.inner();
        let before = inner.overlay.insert((at.lane, key.to_vec()), value.clone());
        inner.log.push(Logged { record: record_key(at), lane: at.lane, key: key.to_vec(), value, before });
    }
}
