//! Watches the table of jobs for work: what is queued, and what its owner has left lying.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use weir_contracts::{Job, JobState, Topic};

use super::JobsError;
use super::desk::Clients;
use super::record::{duration, is_final};
use crate::{ReadError, Start, TopicReader};

const WAIT: Duration = Duration::from_millis(250);

/// Everything up to the ends that the topic had when the reader was opened: the last record of each job.
pub(super) async fn all(reader: &mut TopicReader<Job>) -> Result<Vec<Job>, JobsError> {
    let records = reader.read_to_end().await.map_err(unreadable)?;
    let last: HashMap<String, Job> =
        records.into_iter().map(|delivery| (delivery.record.id.clone(), delivery.record)).collect();
    Ok(last.into_values().collect())
}

/// The table, followed in the background.
pub(super) struct Watch {
    seen: Arc<Mutex<Seen>>,
    tasks: JoinSet<Result<(), ReadError>>,
}

/// How jobs are as far as it was committed, and when something was last heard of each.
///
/// Signs of life are read uncommitted: the open transaction of one owner that died holds back what is committed after
/// it, and would make all others look dead. They are counted by this process's clock from when they were read, so that
/// clocks that differ make nobody look dead either.
#[derive(Debug, Default)]
struct Seen {
    jobs: HashMap<String, Job>,
    life: HashMap<String, (JobState, Instant)>,
}

impl Watch {
    /// Reads what there is, then follows it.
    pub(super) async fn start(clients: &Clients) -> Result<Self, JobsError> {
        let Clients { kafka, registry } = clients;
        let open = TopicReader::open(kafka, registry.clone(), Topic::JOBS, Start::Beginning);
        let mut committed = open.await.map_err(unreadable)?;
        let open = TopicReader::open_uncommitted(kafka, registry.clone(), Topic::JOBS, Start::Beginning);
        let mut uncommitted = open.await.map_err(unreadable)?;
        let mut first = Seen::default();
        for job in all(&mut uncommitted).await? {
            first.heard(job, Instant::now());
        }
        for job in all(&mut committed).await? {
            first.is(job);
        }
        let seen = Arc::new(Mutex::new(first));
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(committed, Arc::clone(&seen), Seen::is));
        tasks.spawn(follow(uncommitted, Arc::clone(&seen), |seen, job| seen.heard(job, Instant::now())));
        Ok(Self { seen, tasks })
    }

    /// Jobs that wait for an owner now, oldest first.
    pub(super) fn waiting(&mut self) -> Result<Vec<Job>, JobsError> {
        if let Some(ended) = self.tasks.try_join_next() {
            return Err(match ended {
                Ok(Err(error)) => unreadable(error),
                Ok(Ok(())) => JobsError::Read { reason: "a reader has stopped".into() },
                Err(error) => JobsError::Read { reason: error.to_string() },
            });
        }
        Ok(lock(&self.seen).waiting(Instant::now()))
    }
}

impl Seen {
    fn is(&mut self, job: Job) {
        self.jobs.insert(job.id.clone(), job);
    }

    fn heard(&mut self, job: Job, now: Instant) {
        self.life.insert(job.id, (job.state, now));
    }

    fn waiting(&self, now: Instant) -> Vec<Job> {
        let mut waiting: Vec<Job> = self.jobs.values().filter(|job| self.waits(job, now)).cloned().collect();
        waiting.sort_by(|one, other| (one.submitted_at, &one.id).cmp(&(other.submitted_at, &other.id)));
        waiting
    }

    /// Queued, and nobody is about to take it; or its owner was not heard of for too long.
    fn waits(&self, job: &Job, now: Instant) -> bool {
        if is_final(job) {
            return false;
        }
        let Some((state, heard)) = self.life.get(&job.id) else { return false };
        let silent = now.saturating_duration_since(*heard) >= duration(job.heartbeat_timeout_ms);
        silent || (job.state == JobState::Queued && *state == JobState::Queued)
    }
}

async fn follow(
    mut reader: TopicReader<Job>,
    seen: Arc<Mutex<Seen>>,
    note: impl Fn(&mut Seen, Job),
) -> Result<(), ReadError> {
    loop {
        if let Some(delivery) = reader.next(WAIT).await? {
            note(&mut lock(&seen), delivery.record);
        }
    }
}

fn unreadable(error: ReadError) -> JobsError {
    JobsError::Read { reason: error.to_string() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::record::{NewJob, claimed, ended};
    use super::*;

    fn job(key: &str) -> Job {
        let new = NewJob {
            kind: "k".into(),
            tenant: None,
            key: key.into(),
            spec: serde_json::Value::Null,
            execution_timeout: None,
            activity_timeout: None,
            heartbeat_timeout: Duration::from_secs(15),
        };
        new.record(None, 1)
    }

    #[test]
    fn a_job_waits_when_it_is_queued_or_its_owner_is_silent_and_not_otherwise() {
        let start = Instant::now();
        let (soon, late) = (start + Duration::from_secs(14), start + Duration::from_secs(15));
        let mut seen = Seen::default();
        let waits = |seen: &Seen, now| !seen.waiting(now).is_empty();
        seen.is(job("a"));
        assert!(!waits(&seen, late), "its first record was not heard yet");
        seen.heard(job("a"), start);
        assert!(waits(&seen, start), "queued");
        // Somebody takes it; that is not committed yet, and perhaps never will be.
        seen.heard(claimed(job("a"), "w", 2), start);
        assert!(!waits(&seen, soon) && waits(&seen, late));
        seen.is(claimed(job("a"), "w", 2));
        assert!(!waits(&seen, soon) && waits(&seen, late));
        seen.heard(claimed(job("a"), "w", 2), soon);
        assert!(!waits(&seen, late), "it is alive");
        // Its end was written, but did not count: the owner died before.
        seen.heard(ended(claimed(job("a"), "w", 2), JobState::Succeeded, None, 3), start);
        assert!(waits(&seen, late));
        seen.is(ended(claimed(job("a"), "w", 2), JobState::Succeeded, None, 3));
        assert!(!waits(&seen, late + Duration::from_secs(999)));
    }
}
