//! A lane's key-value state, as a stage sees it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use weir_contracts::Lane;

use crate::{Coordinates, Delivery, StageError};

/// A value of a lane's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateValue {
    /// The value.
    pub bytes: Vec<u8>,
    /// When it is forgotten by itself, milliseconds since the Unix epoch, in the time of the records that read it.
    pub expires_at: Option<i64>,
}

impl StateValue {
    /// Whether it is still there for a record written at `now`.
    #[must_use]
    pub fn is_valid_at(&self, now: i64) -> bool {
        self.expires_at.is_none_or(|at| now < at)
    }
}

/// Where the state of the lanes at hand lies. What is written belongs to the outcome of the record it is written for:
/// records behind it in the batch see it, and it becomes true in that record's transaction or not at all.
pub trait StateView: Send + Sync {
    /// The value of a key, expired or not.
    ///
    /// # Errors
    /// When the state can't be read, or the lane is not owned any more.
    fn get(&self, lane: Lane, key: &[u8]) -> Result<Option<StateValue>, StageError>;

    /// Sets a key, or removes it, on behalf of the record at `at`.
    fn write(&self, at: &Coordinates, key: &[u8], value: Option<StateValue>);
}

/// The state of the lanes of a batch. Every lane has its own: a record sees its lane's only.
#[derive(Clone, Copy)]
pub struct State<'a>(&'a dyn StateView);

impl fmt::Debug for State<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State")
    }
}

impl<'a> State<'a> {
    pub(crate) fn new(view: &'a dyn StateView) -> Self {
        Self(view)
    }

    /// The value of a key, as writes of earlier records left it; none when it has expired by the record's time.
    ///
    /// # Errors
    /// When the state can't be read.
    pub fn get<R>(self, delivery: &Delivery<R>, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>, StageError> {
        let value = self.0.get(delivery.at.lane, key.as_ref())?;
        Ok(value.filter(|value| value.is_valid_at(delivery.timestamp)).map(|value| value.bytes))
    }

    /// Sets a key, together with the record's outcome.
    pub fn put<R>(self, delivery: &Delivery<R>, key: impl AsRef<[u8]>, value: impl Into<Vec<u8>>) {
        self.0.write(&delivery.at, key.as_ref(), Some(StateValue { bytes: value.into(), expires_at: None }));
    }

    /// Sets a key that is forgotten at `expires_at`, milliseconds since the Unix epoch, by the time of later records.
    pub fn put_until<R>(
        self,
        delivery: &Delivery<R>,
        key: impl AsRef<[u8]>,
        value: impl Into<Vec<u8>>,
        expires_at: i64,
    ) {
        let value = StateValue { bytes: value.into(), expires_at: Some(expires_at) };
        self.0.write(&delivery.at, key.as_ref(), Some(value));
    }

    /// Removes a key, together with the record's outcome.
    pub fn remove<R>(self, delivery: &Delivery<R>, key: impl AsRef<[u8]>) {
        self.0.write(&delivery.at, key.as_ref(), None);
    }
}

/// The state of stages that keep none: reading it is a defect of the stage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoState;

impl StateView for NoState {
    fn get(&self, _: Lane, _: &[u8]) -> Result<Option<StateValue>, StageError> {
        Err(StageError::Fatal("the stage reads state but does not say that it is stateful".into()))
    }

    fn write(&self, _: &Coordinates, _: &[u8], _: Option<StateValue>) {}
}

/// State in memory, for tests of stages. What is written counts at once.
#[derive(Debug, Default)]
pub struct MemoryState(Mutex<BTreeMap<(Lane, Vec<u8>), StateValue>>);

impl StateView for MemoryState {
    fn get(&self, lane: Lane, key: &[u8]) -> Result<Option<StateValue>, StageError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&(lane, key.to_vec())).cloned())
    }

    fn write(&self, at: &Coordinates, key: &[u8], value: Option<StateValue>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match value {
            Some(value) => inner.insert((at.lane, key.to_vec()), value),
            None => inner.remove(&(at.lane, key.to_vec())),
        };
    }
}
