//! Vectors on disk, so that a text that was embedded once is not embedded again: an update of a document costs what has
//! changed in it.
//!
//! New vectors wait in memory until they make a table worth writing. Tables go to the newest of a few generations; when
//! there is no more room the oldest goes, whole. A vector that is found in an old generation is written to the newest
//! once more, so what is used stays. Whatever fails here, a batch is embedded without it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Display;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{counter, gauge};
use weir_contracts::{TenantId, length_prefixed_hash};

use crate::config::EmbedConfig;
use crate::generation::{Generation, Key, REMOVED, Trouble, remove_folder};
use crate::metric;

/// Version of what is stored under a key. Raise it when that changes: old entries are not found any more, and go.
const FORM: &[u8] = b"1";
/// Generations the room is divided into: one of them is lost when it is full.
const GENERATIONS: u64 = 8;
/// Tables in a generation, at most. A miss asks all of them; small ones come from restarts.
const TABLES: usize = 128;
/// Parts of the room that make a table.
const TABLES_IN_ALL: u64 = 128;
/// Bytes of the smallest table: below, the format would take more than the vectors.
const SMALLEST_TABLE: u64 = 64 << 10;
/// Bytes of the largest table, which waits in memory.
const LARGEST_TABLE: u64 = 32 << 20;
/// Bytes a new generation takes before it holds anything.
const EMPTY_GENERATION: u64 = 128 << 10;
/// Part of the vectors that the format takes on top, at most: keys' filters and the index over the blocks.
const FORMAT_SHARE: u64 = 16;
/// Bytes kept free for folders and the lock.
const RESERVE: u64 = 16 << 10;
/// Bytes an entry takes beside its vector.
const ENTRY: u64 = 48;
/// Instances that may share a folder.
const INSTANCES: usize = 64;
/// File with the name of the generation that is being opened.
const OPENING: &str = "opening";

/// The cache can't be used at all.
#[derive(Debug, thiserror::Error)]
#[error("vectors can't be kept in {folder}: {reason}")]
pub struct CacheError {
    folder: String,
    reason: String,
}

/// Where a text's vector lies. Nobody but the tenant finds it, and only for the same model.
pub fn key(tenant: &TenantId, model: &str, dimension: usize, text: &str) -> Key {
    let dimension = (dimension as u64).to_le_bytes();
    length_prefixed_hash(&[FORM, tenant.as_str().as_bytes(), model.as_bytes(), &dimension, text.as_bytes()])
}

/// See the module. Calls block.
pub struct VectorCache {
    inner: Mutex<Inner>,
}

impl VectorCache {
    /// The cache as configured. None when it is switched off, and when it can't be used: the service works without.
    pub fn configured(config: &EmbedConfig, state: &Path) -> Option<Arc<Self>> {
        if config.cache_mib == 0 {
            return None;
        }
        let folder = config.cache_dir.clone().unwrap_or_else(|| state.join("embed-cache"));
        match Self::open(&folder, config.cache_mib << 20) {
            Ok(cache) => Some(Arc::new(cache)),
            Err(error) => {
                counter!(metric::CACHE_FAILURES).increment(1);
                tracing::warn!(%error, "no cache: unchanged chunks are embedded again");
                None
            }
        }
    }

    /// Opens the cache in `folder`, which takes at most `limit` bytes there. Instances may share a folder: each takes a
    /// part of it for itself, with a limit of its own.
    pub fn open(folder: &Path, limit: u64) -> Result<Self, CacheError> {
        let fail = |error: &dyn Display| CacheError { folder: folder.display().to_string(), reason: error.to_string() };
        let (part, lock) = claim(folder).map_err(|error| fail(&error))?;
        let (generations, next) = load(&part).map_err(|error| fail(&error))?;
        let mut inner = Inner {
            folder: part,
            limit,
            generations,
            pending: BTreeMap::new(),
            pending_bytes: 0,
            next,
            told: false,
            _lock: lock,
        };
        inner.make_room(RESERVE);
        let vectors: usize = inner.generations.iter().map(Generation::len).sum();
        let (folder, bytes) = (inner.folder.display(), inner.bytes());
        tracing::info!(%folder, vectors, bytes, limit, "cache of vectors opened");
        Ok(Self { inner: Mutex::new(inner) })
    }

    /// The vectors that are there, of this dimension.
    pub fn get(&self, keys: &[Key], dimension: usize) -> HashMap<Key, Vec<f32>> {
        let mut inner = self.inner();
        let found = inner.find(keys);
        inner.write_if_due();
        drop(inner);
        found
            .into_iter()
            .map(|(key, bytes)| (key, decode(&bytes)))
            .filter(|(_, vector)| vector.len() == dimension)
            .collect()
    }

    /// Keeps vectors.
    pub fn put<'a>(&self, vectors: impl IntoIterator<Item = (Key, &'a Vec<f32>)>) {
        let mut inner = self.inner();
        for (key, vector) in vectors {
            inner.pend(key, vector.iter().flat_map(|component| component.to_le_bytes()).collect());
        }
        inner.write_if_due();
    }

    /// Writes what waits in memory. Without it, a process that ends loses its newest vectors.
    pub fn flush(&self) {
        self.inner().write();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn decode(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

struct Inner {
    folder: PathBuf,
    limit: u64,
    /// The oldest first.
    generations: VecDeque<Generation>,
    pending: BTreeMap<Key, Vec<u8>>,
    pending_bytes: u64,
    /// Number of the next generation.
    next: u64,
    /// Whether the log says already that something fails.
    told: bool,
    _lock: File,
}

impl Inner {
    fn find(&mut self, keys: &[Key]) -> HashMap<Key, Vec<u8>> {
        let mut found = HashMap::new();
        for key in keys {
            match self.look_up(key) {
                Ok(Some(vector)) => {
                    found.insert(*key, vector);
                }
                Ok(None) => {}
                // The rest of the batch does without; the next one tries again.
                Err(error) => {
                    self.report("read", &error);
                    break;
                }
            }
        }
        found
    }

    fn look_up(&mut self, key: &Key) -> Result<Option<Vec<u8>>, Trouble> {
        if let Some(vector) = self.pending.get(key) {
            return Ok(Some(vector.clone()));
        }
        for at in (0..self.generations.len()).rev() {
            let Some(generation) = self.generations.get(at) else { continue };
            match generation.get(key) {
                Ok(Some(vector)) => {
                    if self.is_old(at) {
                        self.pend(*key, vector.clone());
                    }
                    return Ok(Some(vector));
                }
                Ok(None) => {}
                Err(Trouble::Damaged(reason)) => self.discard(at, &reason),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Whether a generation is in the half that goes first, and that is going to be soon.
    fn is_old(&self, at: usize) -> bool {
        at < self.generations.len() / 2 && self.bytes() > self.limit / 2
    }

    fn discard(&mut self, at: usize, reason: &str) {
        let Some(generation) = self.generations.remove(at) else { return };
        counter!(metric::CACHE_FAILURES).increment(1);
        tracing::warn!(folder = %self.folder.display(), reason, "a part of the cache is damaged: deleted");
        if let Err(error) = generation.remove() {
            self.report("delete", &error);
        }
    }

    fn pend(&mut self, key: Key, vector: Vec<u8>) {
        let bytes = (key.len() + vector.len()) as u64 + ENTRY;
        if self.pending.insert(key, vector).is_none() {
            self.pending_bytes += bytes;
        }
    }

    fn write_if_due(&mut self) {
        if self.pending_bytes >= (self.limit / TABLES_IN_ALL).clamp(SMALLEST_TABLE, LARGEST_TABLE) {
            self.write();
        }
    }

    fn write(&mut self) {
        let vectors = std::mem::take(&mut self.pending);
        let bytes = std::mem::take(&mut self.pending_bytes);
        if vectors.is_empty() {
            return;
        }
        self.make_room(bytes + bytes / FORMAT_SHARE + EMPTY_GENERATION);
        match self.append(&vectors) {
            Ok(()) => self.told = false,
            // What was to be written is let go: the next table is the next try.
            Err(error) => self.report("write", &error),
        }
        self.make_room(RESERVE);
    }

    fn append(&mut self, vectors: &BTreeMap<Key, Vec<u8>>) -> Result<(), Trouble> {
        let mut newest = match self.generations.pop_back() {
            Some(newest) if !self.is_full(&newest) => newest,
            full => {
                self.generations.extend(full);
                self.begin()?
            }
        };
        match newest.write(vectors) {
            Ok(()) => {
                self.generations.push_back(newest);
                Ok(())
            }
            Err(error) => {
                self.generations.extend(newest.reopen().ok());
                Err(error)
            }
        }
    }

    fn is_full(&self, generation: &Generation) -> bool {
        generation.bytes() >= self.limit / GENERATIONS || generation.tables() >= TABLES
    }

    fn begin(&mut self) -> Result<Generation, Trouble> {
        let folder = self.folder.join(name(self.next));
        self.next += 1;
        Generation::open(&folder).inspect_err(|_| {
            // The first error is the one to tell.
            let _ = remove_folder(&folder);
        })
    }

    /// Drops the oldest generations until that many bytes may be added.
    fn make_room(&mut self, bytes: u64) {
        while self.bytes() + bytes > self.limit {
            let Some(oldest) = self.generations.pop_front() else { break };
            counter!(metric::CACHE_EVICTIONS).increment(oldest.len() as u64);
            if let Err(error) = oldest.remove() {
                self.report("delete", &error);
            }
        }
        gauge!(metric::CACHE_BYTES).set(self.bytes() as f64);
    }

    fn bytes(&self) -> u64 {
        self.generations.iter().map(Generation::bytes).sum()
    }

    /// Counts a failure; logs the first until a table is written again.
    fn report(&mut self, doing: &'static str, error: &dyn Display) {
        counter!(metric::CACHE_FAILURES).increment(1);
        if !self.told {
            self.told = true;
            let folder = self.folder.display();
            tracing::warn!(%folder, doing, %error, "the cache of vectors fails: chunks are embedded without it");
        }
    }
}

/// Takes the first part of a folder that no other process uses.
fn claim(folder: &Path) -> io::Result<(PathBuf, File)> {
    for part in 0..INSTANCES {
        let part = folder.join(part.to_string());
        fs::create_dir_all(&part)?;
        let lock = File::options().create(true).truncate(false).write(true).open(part.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => return Ok((part, lock)),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::other(format!("{INSTANCES} other processes use it")))
}

/// Opens the generations in a folder, oldest first, and says the number of the next. What is damaged is deleted, what
/// is not of this cache left alone.
fn load(folder: &Path) -> Result<(VecDeque<Generation>, u64), Trouble> {
    // The name of the generation that is being opened lies on disk meanwhile: one that takes the process down with it
    // does so once.
    let opening = folder.join(OPENING);
    if let Some(number) = fs::read_to_string(&opening).ok().as_deref().and_then(number) {
        delete(&folder.join(name(number)), "the process died when it was opened")?;
        fs::remove_file(&opening)?;
    }
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if let Some(number) = path.file_stem().and_then(|stem| stem.to_str()).and_then(number) {
            match path.extension() {
                None => numbers.push(number),
                Some(extension) if extension == REMOVED => fs::remove_dir_all(&path)?,
                Some(_) => {}
            }
        }
    }
    numbers.sort_unstable();
    let mut generations = VecDeque::new();
    for number in &numbers {
        let folder = folder.join(name(*number));
        fs::write(&opening, name(*number))?;
        match Generation::open(&folder) {
            Ok(generation) => generations.push_back(generation),
            Err(Trouble::Damaged(reason)) => delete(&folder, &reason)?,
            Err(error) => return Err(error),
        }
    }
    if !numbers.is_empty() {
        fs::remove_file(&opening)?;
    }
    Ok((generations, numbers.last().map_or(0, |last| last.saturating_add(1))))
}

/// Deletes a generation that can't be used, and says so.
fn delete(folder: &Path, reason: &str) -> io::Result<()> {
    counter!(metric::CACHE_FAILURES).increment(1);
    tracing::warn!(folder = %folder.display(), reason, "a part of the cache is damaged: deleted");
    remove_folder(folder)
}

/// Name of a generation's folder.
fn name(number: u64) -> String {
    format!("generation-{number}")
}

fn number(name: &str) -> Option<u64> {
    name.strip_prefix("generation-")?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
