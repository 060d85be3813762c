//! The one thread that writes to a collection.
//!
//! The engine keeps what is new in memory until it is told to flush, and does not replay its write-ahead log. So a
//! write that waits is answered when it is in the journal on disk. Writes share a sync of it: while one runs, they queue
//! up, and the next covers them all. The engine flushes when the journal is large or nothing was written for a while.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use qdrant_edge::{PointOperations, UpdateOperation};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tonic::Status;

use crate::collection::Shard;
use crate::journal::{Journal, Record};
use crate::refusal::internal;

/// Writes that may wait in the queue; beyond that, clients wait to put theirs in.
const QUEUE: usize = 256;
/// Writes that share a sync, at most.
const GROUP: usize = 128;
/// Longest time writes are gathered before a sync.
const GATHER: Duration = Duration::from_millis(250);
/// Writes that nobody waits for are in the journal on disk after this time without others.
const IDLE_SYNC: Duration = Duration::from_millis(500);
/// The engine flushes after this time without writes.
const IDLE_FLUSH: Duration = Duration::from_secs(5);
/// Quiet time before deleted points are cleared away.
const QUIET: Duration = Duration::from_secs(30);
/// Deletions since the last clearing that make one worth while.
const DELETIONS: u64 = 5_000;
/// The process ends with this status when a write to disk fails: what is on disk is not known any more.
const DISK_FAILED: i32 = 3;

/// Said to a client whose write was taken.
pub enum Taken {
    /// On disk and visible.
    Completed(u64),
    /// In the queue.
    Acknowledged(u64),
}

struct Job {
    operation: UpdateOperation,
    answer: Option<oneshot::Sender<Result<(), Status>>>,
    _place: OwnedSemaphorePermit,
}

/// Handle of the thread.
pub struct Writer {
    jobs: Sender<Job>,
    places: Arc<Semaphore>,
    count: AtomicU64,
}

impl Writer {
    /// Starts the thread. It ends when the handle is dropped, after a last flush.
    pub fn start(name: &str, shard: Arc<Shard>, journal: Journal) -> Result<(Self, JoinHandle<()>), Status> {
        let (jobs, queue) = channel();
        let name = name.to_owned();
        let thread = std::thread::Builder::new()
            .name("writer".into())
            .spawn(move || {
                let run = AssertUnwindSafe(|| Loop::new(&name, &shard, journal).run(&queue));
                if catch_unwind(run).is_err() {
                    tracing::error!(
                        collection = name,
                        "writing to disk failed; ending so that a restart finds what was written"
                    );
                    std::process::exit(DISK_FAILED);
                }
            })
            .map_err(|error| internal(format!("no thread for the collection's writes: {error}")))?;
        Ok((Self { jobs, places: Arc::new(Semaphore::new(QUEUE)), count: AtomicU64::new(0) }, thread))
    }

    /// Writes. With `wait`, returns when it is on disk; without, when it is in the queue.
    pub async fn write(&self, operation: UpdateOperation, wait: bool) -> Result<Taken, Status> {
        let gone = || Status::unavailable("the collection is being closed");
        let place = self.places.clone().acquire_owned().await.map_err(|_| gone())?;
        let (answer, done) = oneshot::channel();
        let job = Job { operation, answer: wait.then_some(answer), _place: place };
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        self.jobs.send(job).map_err(|_| gone())?;
        if !wait {
            return Ok(Taken::Acknowledged(number));
        }
        done.await.map_err(|_| gone())??;
        Ok(Taken::Completed(number))
    }
}

struct Loop<'a> {
    name: &'a str,
    shard: &'a Shard,
    journal: Journal,
    dirty: bool,
    deletions: u64,
    last_write: Instant,
}

impl<'a> Loop<'a> {
    fn new(name: &'a str, shard: &'a Shard, journal: Journal) -> Self {
        Self { name, shard, journal, dirty: false, deletions: 0, last_write: Instant::now() }
    }

    fn run(mut self, queue: &Receiver<Job>) {
        loop {
            match queue.recv_timeout(IDLE_SYNC) {
                Ok(first) => self.write_group(first, queue),
                Err(RecvTimeoutError::Timeout) => self.rest(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.flush();
    }

    fn write_group(&mut self, first: Job, queue: &Receiver<Job>) {
        let started = Instant::now();
        let mut waiting = Vec::new();
        let mut next = Some(first);
        let mut count = 0;
        while let Some(job) = next.take() {
            let result = self.apply(job.operation);
            if let Some(answer) = job.answer {
                waiting.push((answer, result));
            }
            count += 1;
            if count < GROUP && started.elapsed() < GATHER {
                next = queue.try_recv().ok();
            }
        }
        self.last_write = Instant::now();
        if !waiting.is_empty() {
            self.sync();
        }
        for (answer, result) in waiting {
            // A client that went away does not need an answer.
            let _ = answer.send(result);
        }
        if self.journal.is_large() {
            self.flush();
        }
    }

    fn apply(&mut self, operation: UpdateOperation) -> Result<(), Status> {
        self.dirty = true;
        match &operation {
            UpdateOperation::PointOperation(PointOperations::DeletePoints { ids }) => {
                self.deletions = self.deletions.saturating_add(u64::try_from(ids.len()).unwrap_or(u64::MAX));
            }
            // How many is known to nobody; removals of stale chunks are a few each.
            UpdateOperation::PointOperation(PointOperations::DeletePointsByFilter(_)) => {
                self.deletions = self.deletions.saturating_add(10);
            }
            _ => {}
        }
        let record = Record::of(&operation)?;
        self.shard.update(operation)?;
        self.journal.append(&record);
        Ok(())
    }

    fn sync(&mut self) {
        let synced = self.journal.sync();
        self.end_unless(synced);
    }

    fn flush(&mut self) {
        if self.dirty {
            self.shard.flush();
            let cleared = self.journal.clear();
            self.end_unless(cleared);
            self.dirty = false;
            self.trim_log();
        }
    }

    /// Ends the process when the journal can't be written: what is on disk is not known any more.
    fn end_unless(&self, done: io::Result<()>) {
        if let Err(error) = done {
            tracing::error!(collection = self.name, %error, "the journal can't be written; ending so that a restart finds what was");
            std::process::exit(DISK_FAILED);
        }
    }

    fn rest(&mut self) {
        self.sync();
        if self.last_write.elapsed() >= IDLE_FLUSH {
            self.flush();
        }
        if self.deletions >= DELETIONS && self.last_write.elapsed() >= QUIET {
            let started = Instant::now();
            self.deletions = 0;
            match self.shard.clear_deleted() {
                Ok(()) => tracing::info!(
                    collection = self.name,
                    seconds = started.elapsed().as_secs_f64(),
                    "cleared deleted points away"
                ),
                Err(error) => tracing::warn!(
                    collection = self.name,
                    error = error.message(),
                    "deleted points could not be cleared away"
                ),
            }
        }
    }

    fn trim_log(&self) {
        match self.shard.trim_log() {
            Ok(0) => {}
            Ok(files) => {
                tracing::debug!(collection = self.name, files, "removed what was flushed from the write-ahead log")
            }
            Err(error) => {
                // The shard is closed now: nothing can be written or read any more.
                tracing::error!(
                    collection = self.name,
                    error = error.message(),
                    "the collection can't be opened again"
                );
                std::process::exit(DISK_FAILED);
            }
        }
    }
}
