//! A lane's key-value state, as records see it that are worked on side by side.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Outcome, StageError, StateValue};

/// What a view gives, later.
pub type ViewFuture<'a, T = ()> = Pin<Box<dyn Future<Output = Result<T, StageError>> + Send + 'a>>;

/// Where the state of a record's lane lies. Records of the lane that run side by side change it in turns; their changes
/// form one sequence, and each transaction takes a beginning of it. So a record's outcome counts only together with
/// everything that it read and wrote.
pub trait LaneView: Send + Sync {
    /// Begins a change: nobody else changes the lane's state until it is finished or dropped.
    ///
    /// # Errors
    /// When the lane is not owned any more.
    fn begin(&self) -> ViewFuture<'_, Box<dyn LaneChange + '_>>;

    /// Returns once everything this record has written is committed.
    ///
    /// # Errors
    /// When the lane is not owned any more.
    fn committed(&self) -> ViewFuture<'_>;

    /// Returns once it is sure that nobody else has this lane.
    ///
    /// # Errors
    /// When somebody else may have it: nothing may be done that can't be undone.
    fn hold_lease(&self) -> ViewFuture<'_>;
}

/// A change that has begun; dropping it changes nothing.
pub trait LaneChange: Send + Sync {
    /// The value of a key, expired or not, as all changes before this one left it.
    ///
    /// # Errors
    /// When the state can't be read.
    fn get(&self, key: &[u8]) -> Result<Option<StateValue>, StageError>;

    /// Makes these writes part of the lane's state, all of them at once.
    fn finish(self: Box<Self>, writes: Vec<(Vec<u8>, Option<StateValue>)>);
}

/// The state of a record's lane.
#[derive(Clone, Copy)]
pub struct LaneState<'a> {
    view: &'a dyn LaneView,
    /// The record's time, milliseconds since the Unix epoch.
    now: i64,
}

impl std::fmt::Debug for LaneState<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LaneState")
    }
}

impl<'a> LaneState<'a> {
    /// The state behind a view, for a record written at `now` (milliseconds since the Unix epoch).
    #[must_use]
    pub fn new(view: &'a dyn LaneView, now: i64) -> Self {
        Self { view, now }
    }

    /// Reads and writes while nobody else does. What `change` writes becomes part of the state when it succeeds, and true
    /// with the next transaction, perhaps before this record's outcome is: what belongs to the outcome is written by
    /// [`crate::Outcome::Finally`]. It must not take long: the others of the lane wait.
    ///
    /// # Errors
    /// Those of `change`, after which nothing has changed; when the lane is not owned any more.
    pub async fn update<T>(
        self,
        change: impl FnOnce(&mut Change<'_>) -> Result<T, StageError>,
    ) -> Result<T, StageError> {
        let view = self.view.begin().await?;
        let mut open = Change::new(view.as_ref(), self.now);
        let result = change(&mut open)?;
        let writes = open.into_writes();
        if !writes.is_empty() {
            view.finish(writes);
        }
        Ok(result)
    }

    /// The value of a key; none when it has expired by the record's time.
    ///
    /// # Errors
    /// When the state can't be read.
    pub async fn get(self, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>, StageError> {
        self.update(|change| change.get(key)).await
    }

    /// Returns once everything this record has written is committed: from then on it is known to whoever has the lane
    /// next.
    ///
    /// # Errors
    /// When the lane is not owned any more.
    pub async fn committed(self) -> Result<(), StageError> {
        self.view.committed().await
    }

    /// To be awaited right before a call leaves that can't be taken back: returns once it is sure that nobody else has this
    /// lane. An owner that was frozen can't be, until Kafka has taken a commit of it.
    ///
    /// # Errors
    /// When the lane is not owned any more.
    pub async fn hold_lease(self) -> Result<(), StageError> {
        self.view.hold_lease().await
    }
}

/// Reads and writes that belong together.
pub struct Change<'a> {
    view: &'a dyn LaneChange,
    now: i64,
    order: Vec<Vec<u8>>,
    writes: HashMap<Vec<u8>, Option<StateValue>>,
}

impl std::fmt::Debug for Change<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Change").field("writes", &self.writes.len()).finish_non_exhaustive()
    }
}

impl<'a> Change<'a> {
    /// A change by a record written at `now` (milliseconds since the Unix epoch); nothing is written yet.
    #[must_use]
    pub fn new(view: &'a dyn LaneChange, now: i64) -> Self {
        Self { view, now, order: Vec::new(), writes: HashMap::new() }
    }

    /// Forgets what was written.
    pub fn clear(&mut self) {
        self.order.clear();
        self.writes.clear();
    }

    /// What was written, each key once.
    #[must_use]
    pub fn into_writes(self) -> Vec<(Vec<u8>, Option<StateValue>)> {
        let Self { order, mut writes, .. } = self;
        order.into_iter().filter_map(|key| writes.remove(&key).map(|value| (key, value))).collect()
    }

    /// The record's time, milliseconds since the Unix epoch.
    #[must_use]
    pub fn now(&self) -> i64 {
        self.now
    }

    /// The value of a key, this change's own writes included; none when it has expired by the record's time.
    ///
    /// # Errors
    /// When the state can't be read.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>, StageError> {
        let key = key.as_ref();
        let value = match self.writes.get(key) {
            Some(written) => written.clone(),
            None => self.view.get(key)?,
        };
        Ok(value.filter(|value| value.is_valid_at(self.now)).map(|value| value.bytes))
    }

    /// Sets a key.
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl Into<Vec<u8>>) {
        self.write(key.as_ref(), Some(StateValue { bytes: value.into(), expires_at: None }));
    }

    /// Sets a key that is forgotten at `expires_at`, milliseconds since the Unix epoch, by the time of later records.
    pub fn put_until(&mut self, key: impl AsRef<[u8]>, value: impl Into<Vec<u8>>, expires_at: i64) {
        self.write(key.as_ref(), Some(StateValue { bytes: value.into(), expires_at: Some(expires_at) }));
    }

    /// Removes a key.
    pub fn remove(&mut self, key: impl AsRef<[u8]>) {
        self.write(key.as_ref(), None);
    }

    fn write(&mut self, key: &[u8], value: Option<StateValue>) {
        if self.writes.insert(key.to_vec(), value).is_none() {
            self.order.push(key.to_vec());
        }
    }
}

/// The state of records whose stage keeps none: using it is a defect of the stage.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLane;

impl LaneView for NoLane {
    fn begin(&self) -> ViewFuture<'_, Box<dyn LaneChange + '_>> {
        Box::pin(async { Ok(Box::new(Self) as Box<dyn LaneChange>) })
    }

    fn committed(&self) -> ViewFuture<'_> {
        Box::pin(async { Ok(()) })
    }

    fn hold_lease(&self) -> ViewFuture<'_> {
        Box::pin(async { Ok(()) })
    }
}

impl LaneChange for NoLane {
    fn get(&self, _: &[u8]) -> Result<Option<StateValue>, StageError> {
        Err(StageError::Fatal("the stage uses state but does not say that it is stateful".into()))
    }

    fn finish(self: Box<Self>, _: Vec<(Vec<u8>, Option<StateValue>)>) {}
}

/// A lane's state in memory, for tests of stages. What is written counts at once.
#[derive(Debug, Default)]
pub struct MemoryLane(Mutex<HashMap<Vec<u8>, StateValue>>);

impl MemoryLane {
    /// Every key there is, in order.
    #[must_use]
    pub fn keys(&self) -> Vec<Vec<u8>> {
        let mut keys: Vec<_> = self.lock().keys().cloned().collect();
        keys.sort();
        keys
    }

    /// What becomes of a record in the end: its last change is made.
    ///
    /// # Errors
    /// Those of the change.
    pub fn conclude(&self, outcome: Outcome, now: i64) -> Result<Outcome, StageError> {
        let Outcome::Finally(last) = outcome else { return Ok(outcome) };
        let change = MemoryChange(self);
        let mut open = Change::new(&change, now);
        let outcome = last.make(&mut open)?;
        let writes = open.into_writes();
        Box::new(change).finish(writes);
        Ok(outcome)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<u8>, StateValue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct MemoryChange<'a>(&'a MemoryLane);

impl LaneChange for MemoryChange<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<StateValue>, StageError> {
        Ok(self.0.lock().get(key).cloned())
    }

    fn finish(self: Box<Self>, writes: Vec<(Vec<u8>, Option<StateValue>)>) {
        let mut values = self.0.lock();
        for (key, value) in writes {
            match value {
                Some(value) => values.insert(key, value),
                None => values.remove(&key),
            };
        }
    }
}

impl LaneView for MemoryLane {
    // Changes do not wait for anything, so those of one thread never meet.
    fn begin(&self) -> ViewFuture<'_, Box<dyn LaneChange + '_>> {
        Box::pin(async { Ok(Box::new(MemoryChange(self)) as Box<dyn LaneChange>) })
    }

    fn committed(&self) -> ViewFuture<'_> {
        Box::pin(async { Ok(()) })
    }

    fn hold_lease(&self) -> ViewFuture<'_> {
        Box::pin(async { Ok(()) })
    }
}
