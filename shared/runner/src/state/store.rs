//! The stores on disk, and what is written but not committed yet.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;

use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use tokio::sync::{OwnedMutexGuard, watch};
use weir_contracts::Lane;
use weir_stage::StateValue;

use super::codec::{decode, encode};
use super::log::LaneLog;
use super::view::Write;
use crate::commit::Logged;
use crate::ownership::LaneEpoch;

/// Bytes of blocks kept in memory, for all lanes together.
const CACHE: u64 = 16 << 20;
/// Bytes a lane's newest writes may take in memory before they go to disk.
const MEMTABLE: u64 = 4 << 20;
/// Bytes of journal after which the stores it belongs to are flushed.
const JOURNAL: u64 = 64 << 20;
/// Parts of a lane's store, by the first byte of the key.
const META: u8 = b'm';
const DATA: u8 = b'd';
const EXPIRY: u8 = b'x';

const CLUSTER: &str = "cluster";
const NEXT: &str = "next";
const TOUCHED: &str = "touched";

/// The stores can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Reading or writing failed.
    #[error("state in {path}: {reason}. It is a cache: check the disk; if the folder is damaged, delete it")]
    Disk {
        /// The folder.
        path: String,
        /// What failed.
        reason: String,
    },
    /// The lane was given away meanwhile.
    #[error("lane {0} is not owned any more")]
    Gone(Lane),
}

/// A write that waits for its transaction.
#[derive(Debug)]
struct Pending {
    sequence: u64,
    value: Option<StateValue>,
}

/// One lane's store.
struct LaneStore {
    epoch: LaneEpoch,
    keyspace: Keyspace,
    pending: HashMap<Vec<u8>, Pending>,
    /// What records that run side by side have written.
    log: LaneLog,
    /// Who changes the lane's state holds this.
    turns: Arc<tokio::sync::Mutex<()>>,
}

/// The stores of the lanes this instance owns; shared between the loop, which writes, and the processor, which reads.
pub(crate) struct Stores {
    path: PathBuf,
    database: Database,
    lanes: Mutex<HashMap<Lane, LaneStore>>,
    /// The loop, which commits what is written.
    wake: OnceLock<Thread>,
}

impl Stores {
    /// Opens the stores in `path`. What is damaged is deleted: the changelog has it all.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let fail = |error: &dyn std::fmt::Display| StoreError::Disk {
            path: path.display().to_string(),
            reason: error.to_string(),
        };
        std::fs::create_dir_all(path).map_err(|error| fail(&error))?;
        let database = match open(path) {
            Ok(database) => database,
            Err(error @ (fjall::Error::Locked | fjall::Error::Io(_))) => return Err(fail(&error)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "state on disk is damaged: deleted, to be restored");
                std::fs::remove_dir_all(path).map_err(|error| fail(&error))?;
                open(path).map_err(|error| fail(&error))?
            }
        };
        Ok(Self { path: path.to_path_buf(), database, lanes: Mutex::default(), wake: OnceLock::new() })
    }

    fn fail(&self, error: &fjall::Error) -> StoreError {
        StoreError::Disk { path: self.path.display().to_string(), reason: error.to_string() }
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<Lane, LaneStore>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a lane on.
    pub(crate) fn assign(&self, lane: Lane, epoch: LaneEpoch) -> Result<(), StoreError> {
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE);
        let keyspace = self.database.keyspace(&format!("lane-{lane}"), options).map_err(|error| self.fail(&error))?;
        let store =
            LaneStore { epoch, keyspace, pending: HashMap::new(), log: LaneLog::default(), turns: Arc::default() };
        self.lanes().insert(lane, store);
        Ok(())
    }

    /// Gives a lane up, and notes until when its store was current.
    pub(crate) fn revoke(&self, lane: Lane, now: i64) {
        let Some(store) = self.lanes().remove(&lane) else { return };
        if let Err(error) = store.keyspace.insert(meta(TOUCHED), now.to_be_bytes()) {
            tracing::warn!(lane = lane.0, %error, "state can't be closed: it will be restored as a whole");
        }
    }

    /// Where reading the changelog goes on, and when the store was last known to be current (milliseconds since the
    /// Unix epoch); none for an empty store.
    pub(crate) fn position(&self, lane: Lane) -> Result<Option<(i64, i64)>, StoreError> {
        let keyspace = self.keyspace(lane)?;
        let read = |name| -> Result<Option<i64>, StoreError> {
            let value = keyspace.get(meta(name)).map_err(|error| self.fail(&error))?;
            Ok(value.and_then(|value| value.as_ref().try_into().ok()).map(i64::from_be_bytes))
        };
        Ok(read(NEXT)?.zip(read(TOUCHED)?))
    }

    /// Whether a lane's store was filled from this Kafka cluster.
    pub(crate) fn is_of(&self, lane: Lane, cluster: &str) -> Result<bool, StoreError> {
        let filled_from = self.keyspace(lane)?.get(meta(CLUSTER)).map_err(|error| self.fail(&error))?;
        Ok(filled_from.is_some_and(|id| id.as_ref() == cluster.as_bytes()))
    }

    /// Empties a lane's store, to be filled from this Kafka cluster.
    pub(crate) fn wipe(&self, lane: Lane, cluster: &str) -> Result<(), StoreError> {
        let keyspace = self.keyspace(lane)?;
        keyspace.clear().and_then(|()| keyspace.insert(meta(CLUSTER), cluster)).map_err(|error| self.fail(&error))
    }

    fn keyspace(&self, lane: Lane) -> Result<Keyspace, StoreError> {
        self.lanes().get(&lane).map(|store| store.keyspace.clone()).ok_or(StoreError::Gone(lane))
    }

    /// The value of a key: what waits for its transaction, else what is on disk.
    pub(crate) fn get(&self, lane: Lane, epoch: LaneEpoch, key: &[u8]) -> Result<Option<StateValue>, StoreError> {
        let keyspace = {
            let lanes = self.lanes();
            let store = lanes.get(&lane).filter(|store| store.epoch == epoch).ok_or(StoreError::Gone(lane))?;
            if let Some(pending) = store.pending.get(key) {
                return Ok(pending.value.clone());
            }
            store.keyspace.clone()
        };
        // What left the waiting room meanwhile was written before it left.
        let value = keyspace.get(data(key)).map_err(|error| self.fail(&error))?;
        Ok(value.and_then(|value| decode(&value)))
    }

    /// Lets a write wait for its transaction. Sequences rise with each batch.
    pub(crate) fn pend(
        &self,
        lane: Lane,
        epoch: LaneEpoch,
        sequence: u64,
        writes: impl IntoIterator<Item = (Vec<u8>, Option<StateValue>)>,
    ) {
        let mut lanes = self.lanes();
        if let Some(store) = lanes.get_mut(&lane).filter(|store| store.epoch == epoch) {
            for (key, value) in writes {
                store.pending.insert(key, Pending { sequence, value });
            }
        }
    }

    /// The loop is woken when there is something to commit.
    pub(crate) fn wakes(&self, thread: Thread) {
        // There is one loop.
        let _ = self.wake.set(thread);
    }

    /// What changes of a lane's state hold, one at a time.
    pub(crate) fn turns(&self, lane: Lane, epoch: LaneEpoch) -> Result<Arc<tokio::sync::Mutex<()>>, StoreError> {
        self.owned(lane, epoch, |store| Arc::clone(&store.turns))
    }

    /// Tells how far the log of a lane is committed.
    pub(crate) fn watch(&self, lane: Lane, epoch: LaneEpoch) -> Result<watch::Receiver<u64>, StoreError> {
        self.owned(lane, epoch, |store| store.log.watch())
    }

    fn owned<T>(&self, lane: Lane, epoch: LaneEpoch, of: impl FnOnce(&mut LaneStore) -> T) -> Result<T, StoreError> {
        let mut lanes = self.lanes();
        lanes.get_mut(&lane).filter(|store| store.epoch == epoch).map(of).ok_or(StoreError::Gone(lane))
    }

    /// Adds to the log of a lane, and lets later reads see it. Gives the number of the write; none when the lane is gone.
    pub(crate) fn append(&self, lane: Lane, epoch: LaneEpoch, writes: Vec<Write>) -> Option<u64> {
        let number = self.owned(lane, epoch, |store| {
            let number = store.log.append(writes.clone());
            for (key, value) in writes {
                store.pending.insert(key, Pending { sequence: number, value });
            }
            number
        });
        if let Some(thread) = self.wake.get() {
            thread.unpark();
        }
        number.ok()
    }

    /// For each lane whose log has something after the number given for it (what is committed, where none is): what that is, and the number
    /// of its last write.
    pub(crate) fn logged(&self, after: &BTreeMap<Lane, u64>) -> Vec<Logged> {
        let lanes = self.lanes();
        let news = lanes.iter().filter_map(|(lane, store)| {
            let after = after.get(lane).copied().unwrap_or(store.log.done());
            let last = store.log.last();
            (last > after).then(|| (*lane, store.log.between(after, last), last))
        });
        news.collect()
    }

    /// Whether a lane has written something that is not committed.
    pub(crate) fn has_logged(&self) -> bool {
        self.lanes().values().any(|store| store.log.last() > store.log.done())
    }

    /// The log of a lane is committed up to this number: takes it over to disk, see [`Stores::apply`], and tells those who
    /// wait for it.
    pub(crate) fn settle(&self, lane: Lane, to: u64, next: Option<i64>, now: i64) -> Result<usize, StoreError> {
        let writes = self.lanes().get(&lane).map(|store| store.log.between(0, to)).ok_or(StoreError::Gone(lane))?;
        let pairs = writes.iter().map(|(key, value)| (key.as_slice(), value.as_ref()));
        self.apply(lane, pairs, next, Some(to), now)?;
        if let Some(store) = self.lanes().get_mut(&lane) {
            store.log.commit(to);
        }
        Ok(writes.len())
    }

    /// Lets nobody change the state of any lane until what this gives is dropped. Blocks.
    pub(crate) fn still(&self) -> Vec<OwnedMutexGuard<()>> {
        let turns: Vec<_> = self.lanes().values().map(|store| Arc::clone(&store.turns)).collect();
        // Nobody else holds two of them.
        turns.into_iter().map(tokio::sync::Mutex::blocking_lock_owned).collect()
    }

    /// Keys whose values have expired by `now`, at most `limit`, without those that are being written.
    pub(crate) fn expired(
        &self,
        lane: Lane,
        epoch: LaneEpoch,
        now: i64,
        limit: usize,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let keyspace = self.keyspace(lane)?;
        let mut found = Vec::new();
        let mut gone = Vec::new();
        for entry in keyspace.range(vec![EXPIRY]..=expiry(now, &[])) {
            if found.len() + gone.len() >= limit {
                break;
            }
            let index = entry.key().map_err(|error| self.fail(&error))?;
            let Some((at, key)) = index.get(1..).and_then(|rest| rest.split_first_chunk::<8>()) else { continue };
            let value = keyspace.get(data(key)).map_err(|error| self.fail(&error))?;
            let current = value.and_then(|value| decode(&value)).and_then(|value| value.expires_at);
            if current.map(ordered) == Some(*at) { found.push(key.to_vec()) } else { gone.push(index.to_vec()) }
        }
        if !gone.is_empty() {
            let mut batch = self.database.batch();
            for index in gone {
                batch.remove(&keyspace, index);
            }
            batch.commit().map_err(|error| self.fail(&error))?;
        }
        let lanes = self.lanes();
        let store = lanes.get(&lane).filter(|store| store.epoch == epoch).ok_or(StoreError::Gone(lane))?;
        found.retain(|key| !store.pending.contains_key(key));
        Ok(found)
    }

    /// Writes to disk what counts in Kafka, with the position in the changelog behind it (unchanged when none: what
    /// lies there is then read again, which changes nothing), and lets go of what waited for it.
    pub(crate) fn apply<'a>(
        &self,
        lane: Lane,
        writes: impl IntoIterator<Item = (&'a [u8], Option<&'a StateValue>)>,
        next: Option<i64>,
        sequence: Option<u64>,
        now: i64,
    ) -> Result<(), StoreError> {
        let keyspace = self.keyspace(lane)?;
        let mut batch = self.database.batch();
        let mut keys = Vec::new();
        for (key, value) in writes {
            match value {
                Some(value) => {
                    batch.insert(&keyspace, data(key), encode(value));
                    if let Some(at) = value.expires_at {
                        batch.insert(&keyspace, expiry(at, key), Vec::new());
                    }
                }
                None => batch.remove(&keyspace, data(key)),
            }
            keys.push(key);
        }
        if let Some(next) = next {
            batch.insert(&keyspace, meta(NEXT), next.to_be_bytes());
        }
        batch.insert(&keyspace, meta(TOUCHED), now.to_be_bytes());
        batch.commit().map_err(|error| self.fail(&error))?;
        let Some(sequence) = sequence else { return Ok(()) };
        let mut lanes = self.lanes();
        if let Some(store) = lanes.get_mut(&lane) {
            for key in keys {
                if store.pending.get(key).is_some_and(|pending| pending.sequence <= sequence) {
                    store.pending.remove(key);
                }
            }
        }
        Ok(())
    }

    /// Bytes on disk.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.database.disk_space().unwrap_or_default()
    }

    /// Writes that wait for their transactions.
    pub(crate) fn waiting(&self) -> usize {
        self.lanes().values().map(|store| store.pending.len()).sum()
    }
}

fn open(path: &Path) -> fjall::Result<Database> {
    Database::builder(path).cache_size(CACHE).max_journaling_size(JOURNAL).worker_threads(1).open()
}

fn meta(name: &str) -> Vec<u8> {
    [&[META], name.as_bytes()].concat()
}

fn data(key: &[u8]) -> Vec<u8> {
    [&[DATA], key].concat()
}

fn expiry(at: i64, key: &[u8]) -> Vec<u8> {
    [&[EXPIRY], &ordered(at)[..], key].concat()
}

/// Bytes that order as the numbers do.
fn ordered(at: i64) -> [u8; 8] {
    (at ^ i64::MIN).to_be_bytes()
}

/// Shared by the loop and the processor.
pub(crate) type SharedStores = Arc<Stores>;
