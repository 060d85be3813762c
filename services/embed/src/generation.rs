//! One generation of the cache: a small database in a folder of its own, which goes as a whole.
//!
//! Vectors come in as finished tables and are never merged: each is written once, nothing runs in the background, and
//! what goes wrong is said to whoever asked for it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fjall::config::{
    BlockSizePolicy, BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry, PinningPolicy,
};
use fjall::{Database, Keyspace, KeyspaceCreateOptions};

/// Identifies a vector.
pub(crate) type Key = [u8; 32];

/// Bytes of blocks kept in memory.
const BLOCKS: u64 = 4 << 20;
/// Files kept open.
const FILES: usize = 32;
/// Bytes of a block: some ten vectors, so that the index over them stays small.
const BLOCK: u32 = 16 << 10;
/// Share of keys that are looked for in a table though they are not in it. A miss asks every table.
const FALSE_POSITIVES: f32 = 0.0001;
/// Bytes in which the system counts what a file takes, whatever the blocks of the file system are.
const STAT_BLOCK: u64 = 512;

/// Why a generation can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// Its files are not what was written.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The disk is full, or does not answer, or may not be used.
    #[error("{0}")]
    Disk(String),
}

impl Trouble {
    /// Files that are missing, too short or in each other's place are damage; whatever else the system complains of may
    /// pass.
    fn of(kind: Option<ErrorKind>, reason: String) -> Self {
        match kind {
            None
            | Some(
                ErrorKind::NotFound
                | ErrorKind::AlreadyExists
                | ErrorKind::NotADirectory
                | ErrorKind::IsADirectory
                | ErrorKind::UnexpectedEof
                | ErrorKind::InvalidData
                | ErrorKind::InvalidInput,
            ) => Self::Damaged(reason),
            Some(_) => Self::Disk(reason),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::of(Some(error.kind()), error.to_string())
    }
}

impl From<fjall::Error> for Trouble {
    fn from(error: fjall::Error) -> Self {
        let kind = match &error {
            fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => Some(error.kind()),
            fjall::Error::Locked => Some(ErrorKind::WouldBlock),
            _ => None,
        };
        Self::of(kind, error.to_string())
    }
}

/// Calls the engine, which may trip over damaged bytes: that is damage like any other.
fn guarded<T>(work: impl FnOnce() -> fjall::Result<T>) -> Result<T, Trouble> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(Trouble::from),
        Err(_) => Err(Trouble::Damaged("the engine panicked".into())),
    }
}

/// See the module.
pub(crate) struct Generation {
    folder: PathBuf,
    // Fields are dropped in this order: the database goes last.
    vectors: Keyspace,
    _database: Database,
    bytes: u64,
}

impl Generation {
    /// Opens the generation in `folder`, or begins one there.
    pub(crate) fn open(folder: &Path) -> Result<Self, Trouble> {
        let (database, vectors) = guarded(|| {
            // Threads would only merge tables, and one that dies (of a full disk) is waited for when the database is
            // closed, for ever.
            let database = Database::builder(folder)
                .cache_size(BLOCKS)
                .max_cached_files(Some(FILES))
                .worker_threads_unchecked(0)
                .open()?;
            let vectors = database.keyspace("vectors", options)?;
            Ok((database, vectors))
        })?;
        let mut generation = Self { folder: folder.to_path_buf(), vectors, _database: database, bytes: 0 };
        generation.bytes = disk_usage(folder)?;
        Ok(generation)
    }

    /// The bytes kept under a key.
    pub(crate) fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, Trouble> {
        let found = guarded(|| self.vectors.get(key))?;
        Ok(found.map(|bytes| bytes.to_vec()))
    }

    /// Adds a table. They are on disk when this returns.
    pub(crate) fn write(&mut self, vectors: &BTreeMap<Key, Vec<u8>>) -> Result<(), Trouble> {
        guarded(|| {
            let mut table = self.vectors.start_ingestion()?;
            for (key, vector) in vectors {
                table.write(*key, vector)?;
            }
            table.finish()
        })?;
        self.bytes = disk_usage(&self.folder)?;
        Ok(())
    }

    /// Bytes on disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Tables a miss asks.
    pub(crate) fn tables(&self) -> usize {
        self.vectors.table_count()
    }

    /// Vectors in it.
    pub(crate) fn len(&self) -> usize {
        self.vectors.approximate_len()
    }

    /// Closes and opens it: what a failed write left behind goes. One that can't be opened is removed.
    pub(crate) fn reopen(self) -> Result<Self, Trouble> {
        let folder = self.close();
        Self::open(&folder).inspect_err(|_| {
            // There is nothing more to try: the first error is the one to tell.
            let _ = remove_folder(&folder);
        })
    }

    /// Closes it and removes its folder.
    pub(crate) fn remove(self) -> io::Result<()> {
        remove_folder(&self.close())
    }

    fn close(self) -> PathBuf {
        let folder = self.folder.clone();
        // A damaged database may panic once more. What it held is given back all the same.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(self)));
        folder
    }
}

/// Nothing is pinned in memory: what is needed often is in the block cache, whose size is fixed.
fn options() -> KeyspaceCreateOptions {
    let filter = FilterPolicyEntry::Bloom(BloomConstructionPolicy::FalsePositiveRate(FALSE_POSITIVES));
    KeyspaceCreateOptions::default()
        .data_block_size_policy(BlockSizePolicy::all(BLOCK))
        // Components of vectors look like noise.
        .data_block_compression_policy(CompressionPolicy::disabled())
        .filter_policy(FilterPolicy::all(filter))
        .filter_block_pinning_policy(PinningPolicy::all(false))
        .index_block_pinning_policy(PinningPolicy::all(false))
}

/// Bytes a folder takes on disk; holes in files take none.
pub(crate) fn disk_usage(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += metadata.blocks() * STAT_BLOCK;
        if metadata.is_dir() {
            bytes += disk_usage(&entry.path())?;
        }
    }
    Ok(bytes)
}

/// Removes a generation's folder. It is renamed first, so that one that is removed in part is not taken for a damaged
/// one after a crash.
pub(crate) fn remove_folder(folder: &Path) -> io::Result<()> {
    let aside = folder.with_extension(REMOVED);
    let folder = match fs::rename(folder, &aside) {
        Ok(()) => aside.as_path(),
        Err(_) => folder,
    };
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Extension of folders that are being removed.
pub(crate) const REMOVED: &str = "removed";
