//! One collection: the engine's shard, and the thread that writes to it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use qdrant_client::qdrant::CreateCollection;
use qdrant_edge::{
    CreateIndex, EdgeConfig, EdgeShard, FieldIndexOperations, OperationResult, PayloadFieldSchema, ShardInfo,
    UpdateOperation,
};
use tonic::Status;

use crate::journal::Journal;
use crate::refusal::{internal, no_collection, of_engine};
use crate::writer::{Taken, Writer};

/// The file of what was written since the last flush, beside the shard's folder.
const JOURNAL: &str = "journal";

/// Closed files of the write-ahead log (32 MiB each) that make it worth while to open the shard again without them.
/// The engine never removes them, but it does not read them either.
const LOG_FILES: usize = 6;

/// The engine's shard; gone after the collection was deleted.
pub struct Shard {
    path: PathBuf,
    edge: RwLock<Option<EdgeShard>>,
}

impl Shard {
    fn new(path: &Path, edge: EdgeShard) -> Self {
        Self { path: path.to_owned(), edge: RwLock::new(Some(edge)) }
    }

    fn with<T>(&self, f: impl FnOnce(&EdgeShard) -> Result<T, Status>) -> Result<T, Status> {
        let edge = self.edge.read().unwrap_or_else(PoisonError::into_inner);
        f(edge.as_ref().ok_or_else(|| Status::unavailable("the collection is being deleted"))?)
    }

    /// Applies a write; in memory.
    pub fn update(&self, operation: UpdateOperation) -> Result<(), Status> {
        self.with(|edge| edge.update(operation).map_err(|error| of_engine(&error)))
    }

    /// Writes everything to disk. Ends the thread in a panic when that fails: the engine does so.
    pub fn flush(&self) {
        let _ = self.with(|edge| {
            edge.flush();
            Ok(())
        });
    }

    /// Rewrites segments of which much was deleted.
    pub fn clear_deleted(&self) -> Result<(), Status> {
        self.with(|edge| edge.optimize().map(|_| ()).map_err(|error| of_engine(&error)))
    }

    /// Removes closed files of the write-ahead log when there are many. Everything must have been flushed. How many.
    pub fn trim_log(&self) -> Result<usize, Status> {
        let closed = closed_log_files(&self.path)?;
        if closed.len() < LOG_FILES {
            return Ok(0);
        }
        let mut edge = self.edge.write().unwrap_or_else(PoisonError::into_inner);
        // The log must be closed first, and what is dropped is flushed.
        drop(edge.take());
        let removed = remove_all_but_last(&closed)?;
        *edge = Some(EdgeShard::load(&self.path, None).map_err(|error| of_engine(&error))?);
        Ok(removed)
    }

    /// Makes the payload indexes anew. A kill in the middle of a flush may leave an index ahead of the payload.
    fn rebuild_indexes(&self) -> Result<(), Status> {
        self.with(|edge| rebuild_indexes(edge).map_err(|error| of_engine(&error)))
    }
}

fn rebuild_indexes(edge: &EdgeShard) -> OperationResult<()> {
    for (field, info) in edge.info().payload_schema {
        let schema = match info.params {
            Some(params) => PayloadFieldSchema::FieldParams(params),
            None => PayloadFieldSchema::FieldType(info.data_type),
        };
        edge.update(UpdateOperation::FieldIndexOperation(FieldIndexOperations::DeleteIndex(field.clone())))?;
        edge.update(UpdateOperation::FieldIndexOperation(FieldIndexOperations::CreateIndex(CreateIndex {
            field_name: field,
            field_schema: Some(schema),
        })))?;
    }
    edge.flush();
    Ok(())
}

/// `wal/closed-<first entry>`, in order.
fn closed_log_files(shard: &Path) -> Result<Vec<(u64, PathBuf)>, Status> {
    let entries = std::fs::read_dir(shard.join("wal")).map_err(internal)?;
    let mut closed = Vec::new();
    for entry in entries {
        let entry = entry.map_err(internal)?;
        let name = entry.file_name();
        let first = name.to_str().and_then(|name| name.strip_prefix("closed-")).and_then(|number| number.parse().ok());
        if let Some(first) = first {
            closed.push((first, entry.path()));
        }
    }
    closed.sort_unstable();
    Ok(closed)
}

/// The last closed file stays: it says with which number the log goes on, and numbers must rise.
fn remove_all_but_last(closed: &[(u64, PathBuf)]) -> Result<usize, Status> {
    let Some((_, old)) = closed.split_last() else { return Ok(0) };
    for (_, path) in old {
        std::fs::remove_file(path).map_err(internal)?;
    }
    Ok(old.len())
}

/// A collection.
pub struct Collection {
    name: String,
    folder: PathBuf,
    created: CreateCollection,
    config: EdgeConfig,
    shard: Arc<Shard>,
    writer: Mutex<Option<Arc<Writer>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Collection {
    /// Makes the files of a new collection in `folder`.
    pub fn create(folder: &Path, created: CreateCollection, config: EdgeConfig) -> Result<Self, Status> {
        let path = folder.join("shard");
        std::fs::create_dir_all(&path).map_err(internal)?;
        let edge = EdgeShard::new(&path, config).map_err(|error| of_engine(&error))?;
        let (journal, _) = Journal::open(&folder.join(JOURNAL)).map_err(internal)?;
        Self::start(folder, created, Shard::new(&path, edge), journal)
    }

    /// Opens the files in `folder`. After a kill, what could be torn is made anew, and what was written since the last
    /// flush is written again.
    pub fn open(folder: &Path, created: CreateCollection, after_kill: bool) -> Result<Self, Status> {
        let path = folder.join("shard");
        remove_all_but_last(&closed_log_files(&path)?)?;
        let edge = EdgeShard::load(&path, None).map_err(|error| of_engine(&error))?;
        let shard = Shard::new(&path, edge);
        if after_kill {
            shard.rebuild_indexes()?;
        }
        let (mut journal, operations) = Journal::open(&folder.join(JOURNAL)).map_err(internal)?;
        if !operations.is_empty() {
            tracing::info!(
                collection = created.collection_name,
                writes = operations.len(),
                "writes again what was not flushed"
            );
            for operation in operations {
                // What a later write removed, that was flushed, can't be changed any more.
                if let Err(error) = shard.update(operation) {
                    tracing::warn!(
                        collection = created.collection_name,
                        error = error.message(),
                        "could not be written again"
                    );
                }
            }
            shard.flush();
            journal.clear().map_err(internal)?;
        }
        Self::start(folder, created, shard, journal)
    }

    fn start(folder: &Path, created: CreateCollection, shard: Shard, journal: Journal) -> Result<Self, Status> {
        let name = created.collection_name.clone();
        let config = shard.with(|edge| Ok(edge.config().clone()))?;
        let shard = Arc::new(shard);
        let (writer, thread) = Writer::start(&name, shard.clone(), journal)?;
        Ok(Self {
            name,
            folder: folder.to_owned(),
            created,
            config,
            shard,
            writer: Mutex::new(Some(Arc::new(writer))),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The request that made it.
    pub fn created(&self) -> &CreateCollection {
        &self.created
    }

    /// The engine's configuration.
    pub fn config(&self) -> &EdgeConfig {
        &self.config
    }

    /// What is in it.
    pub fn info(&self) -> Result<ShardInfo, Status> {
        self.shard.with(|edge| Ok(edge.info()))
    }

    /// Reads from it, on a thread that may block.
    pub async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        f: impl FnOnce(&EdgeShard) -> OperationResult<T> + Send + 'static,
    ) -> Result<T, Status> {
        let shard = self.shard.clone();
        let read = move || shard.with(|edge| f(edge).map_err(|error| of_engine(&error)));
        tokio::task::spawn_blocking(read).await.map_err(|error| internal(format!("a read failed: {error}")))?
    }

    /// Writes to it.
    pub async fn write(&self, operation: UpdateOperation, wait: bool) -> Result<Taken, Status> {
        let writer = lock(&self.writer).clone().ok_or_else(|| no_collection(&self.name))?;
        writer.write(operation, wait).await
    }

    /// Stops taking writes, writes down what was taken, and closes the files. Blocks.
    pub fn close(&self) {
        drop(lock(&self.writer).take());
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // It ends by itself; when it panicked, it has ended the process.
            let _ = thread.join();
        }
        drop(self.shard.edge.write().unwrap_or_else(PoisonError::into_inner).take());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
