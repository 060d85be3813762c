//! Long jobs: work that outlives whoever does it.
//!
//! A job is a record in the table `jobs`: what is to be done, where to go on, who does it. Its owner holds the
//! transactional id of the job. What it produces commits together with its next checkpoint, so after a crash the work
//! since the last checkpoint is done again and no record is there twice. Whoever takes the job over, be it another
//! worker or somebody who cancels it, takes over the id first and reads the table to its high watermark then: the owner
//! before is fenced, and cannot write any more when it wakes up. Every change of a job's record is made that way, so
//! none is lost.

mod desk;
mod kind;
mod owner;
mod record;
mod watch;
mod worker;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use weir_contracts::{Job, JobState, Topic};

use crate::backoff::Backoff;
use crate::clock::now_millis;
use crate::desk::Transacted;
use crate::{KafkaConfig, Registry, Start, TopicReader};
use desk::{Clients, JobDesk};
use owner::Task;

pub use kind::{JobFailure, JobKind, JobStep, JobWork};
pub use owner::JobEnding;
pub use record::NewJob;
pub use worker::{JobWorker, WorkerEvent};

/// How often a transaction that is not known to be committed is tried again.
const TRIES: usize = 5;
/// The same for a submission, which others may make at the same moment; and how long it waits for them in between.
const SUBMISSIONS: usize = 20;
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LAST_WAIT: Duration = Duration::from_secs(8);

/// Something can't be done with a job.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    /// The table can't be read.
    #[error("can't read the jobs: {reason}")]
    Read {
        /// What is wrong and what to do.
        reason: String,
    },
    /// There is none with this id.
    #[error("there is no job {id}; see `weir jobs list`")]
    NoSuchJob {
        /// The id.
        id: String,
    },
    /// The idempotency key was used before for something else.
    #[error(
        "the key {:?} belongs to job {}, which was submitted with other parameters ({}); choose another key",
        first.key, first.id, first.spec
    )]
    Conflict {
        /// The job that was submitted first.
        first: Box<Job>,
    },
    /// Kafka does not take it.
    #[error("job {id}: {reason}")]
    Kafka {
        /// The job.
        id: String,
        /// What is wrong and what to do.
        reason: String,
    },
}

/// What a submission came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Submitted {
    /// The job as it is now.
    pub job: Job,
    /// Whether it is new. Otherwise it was submitted before, under the same key.
    pub new: bool,
}

/// The table of jobs.
#[derive(Clone)]
pub struct Jobs {
    clients: Clients,
}

impl Jobs {
    /// The jobs of a cluster.
    #[must_use]
    pub fn new(kafka: &KafkaConfig, registry: Registry) -> Self {
        Self { clients: Clients { kafka: kafka.clone(), registry } }
    }

    /// All jobs, oldest first.
    ///
    /// # Errors
    /// When Kafka can't be read.
    pub async fn list(&self) -> Result<Vec<Job>, JobsError> {
        let mut jobs = watch::all(&mut self.reader(Start::Beginning).await?).await?;
        jobs.sort_by(|one, other| (one.submitted_at, &one.id).cmp(&(other.submitted_at, &other.id)));
        Ok(jobs)
    }

    /// A job, if there is one with this id.
    ///
    /// # Errors
    /// When Kafka can't be read.
    pub async fn get(&self, id: &str) -> Result<Option<Job>, JobsError> {
        Ok(self.list().await?.into_iter().find(|job| job.id == id))
    }

    /// Submits a job, once for each key: the same again says how the first one is. With an `owner`, workers leave it alone
    /// for the heartbeat timeout, so that the owner can [run](Self::run) it itself.
    ///
    /// # Errors
    /// When the key was used for something else before, or Kafka does not take it.
    pub async fn submit(&self, new: &NewJob, owner: Option<&str>) -> Result<Submitted, JobsError> {
        let id = new.id();
        if let Some(first) = self.get(&id).await? {
            return same(new, first);
        }
        let mut desk = JobDesk::of_submission(&self.clients, &id).await?;
        let mut backoff = Backoff::new(FIRST_WAIT, LAST_WAIT);
        for _ in 0..SUBMISSIONS {
            if let Some(first) = self.clients.read(&id).await? {
                return same(new, first);
            }
            let job = new.record(owner, now_millis());
            match write(&mut desk, &job).await {
                Ok(true) => return Ok(Submitted { job, new: true }),
                Ok(false) => {}
                // Somebody submits the same at this moment, and was later. Taking over from them at once, they would do
                // the same in turn: what comes of it is in the table soon.
                Err(JobsError::Kafka { reason, .. }) if crate::desk::fenced(&reason) => {
                    let wait = backoff.next(&mut rand::rng(), None);
                    tokio::time::sleep(wait).await;
                    if let Some(first) = self.get(&id).await? {
                        return same(new, first);
                    }
                    desk = JobDesk::of_submission(&self.clients, &id).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(JobsError::Kafka { id, reason: "it can't be submitted: its transactions fail".into() })
    }

    /// Ends a job that is not over yet: its owner is fenced, so when this returns nothing more is written for it. What
    /// was committed stays. Says how the job is then.
    ///
    /// # Errors
    /// When there is none, or Kafka does not take it.
    pub async fn cancel(&self, id: &str, why: &str) -> Result<Job, JobsError> {
        let cancelled = |job: &Job| {
            let end = || record::ended(job.clone(), JobState::Cancelled, Some(why.to_owned()), now_millis());
            (!record::is_final(job)).then(end)
        };
        self.change(id, cancelled).await
    }

    /// Lets a job that has failed or was cancelled go on at its checkpoint; its timeouts begin anew. Says how the job is
    /// then.
    ///
    /// # Errors
    /// When there is none, or Kafka does not take it.
    pub async fn resume(&self, id: &str) -> Result<Job, JobsError> {
        let resumed = |job: &Job| {
            let over = matches!(job.state, JobState::Failed | JobState::Cancelled);
            over.then(|| record::resumed(job.clone()))
        };
        self.change(id, resumed).await
    }

    /// Takes a job over, whoever has it, and works on it to its end, or until `shutdown`: then it is handed back. `told`
    /// hears each record that was committed.
    ///
    /// # Errors
    /// When there is none, or Kafka does not take what is written. Then others take it over after its heartbeat timeout.
    pub async fn run(
        &self,
        id: &str,
        kind: &dyn JobKind,
        owner: &str,
        shutdown: &CancellationToken,
        told: &mut (dyn FnMut(&Job) + Send),
    ) -> Result<JobEnding, JobsError> {
        owner::run(Task { clients: &self.clients, kind, owner, shutdown, told }, id).await
    }

    /// Follows a job, from how it is now.
    ///
    /// # Errors
    /// When there is none, or Kafka can't be read.
    pub async fn follow(&self, id: &str) -> Result<JobFollower, JobsError> {
        let reader = self.reader(Start::Beginning).await?;
        Ok(JobFollower { reader, id: id.to_owned() })
    }

    /// Changes a job nobody else can change meanwhile. What is not to be changed is given back as it is.
    async fn change(&self, id: &str, change: impl Fn(&Job) -> Option<Job>) -> Result<Job, JobsError> {
        let no_such_job = || JobsError::NoSuchJob { id: id.to_owned() };
        // An owner is not disturbed for what would not be done.
        let job = self.get(id).await?.ok_or_else(no_such_job)?;
        if change(&job).is_none() {
            return Ok(job);
        }
        let mut desk = JobDesk::of_owner(&self.clients, id).await?;
        for _ in 0..TRIES {
            let job = self.clients.read(id).await?.ok_or_else(no_such_job)?;
            let Some(changed) = change(&job) else { return Ok(job) };
            if write(&mut desk, &changed).await? {
                return Ok(changed);
            }
        }
        Err(JobsError::Kafka { id: id.to_owned(), reason: "it can't be changed: its transactions fail".into() })
    }

    async fn reader(&self, start: Start) -> Result<TopicReader<Job>, JobsError> {
        let Clients { kafka, registry } = &self.clients;
        let reader = TopicReader::open(kafka, registry.clone(), Topic::JOBS, start).await;
        reader.map_err(|error| JobsError::Read { reason: error.to_string() })
    }
}

/// What a job becomes while one looks.
pub struct JobFollower {
    reader: TopicReader<Job>,
    id: String,
}

impl JobFollower {
    /// Its next record, or none when none came within `wait`.
    ///
    /// # Errors
    /// When Kafka can't be read.
    pub async fn next(&mut self, wait: Duration) -> Result<Option<Job>, JobsError> {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let next = self.reader.next(left).await.map_err(|error| JobsError::Read { reason: error.to_string() })?;
            match next {
                None => return Ok(None),
                Some(delivery) if delivery.record.id == self.id => return Ok(Some(delivery.record)),
                Some(_) => {}
            }
        }
    }
}

/// The job that was submitted first, if it is the same.
fn same(new: &NewJob, first: Job) -> Result<Submitted, JobsError> {
    let spec: Option<serde_json::Value> = serde_json::from_str(&first.spec).ok();
    match spec.as_ref() == Some(&new.spec) {
        true => Ok(Submitted { job: first, new: false }),
        false => Err(JobsError::Conflict { first: Box::new(first) }),
    }
}

/// Whether the record was committed; when not, or nobody knows, the table tells.
async fn write(desk: &mut JobDesk, job: &Job) -> Result<bool, JobsError> {
    let fail = |reason| JobsError::Kafka { id: job.id.clone(), reason };
    let record = desk.encode_job(job).await.map_err(|failure| fail(failure.to_string()))?;
    match desk.transact(vec![record]).await.map_err(fail)? {
        Transacted::Committed => Ok(true),
        Transacted::Aborted(_) => Ok(false),
        Transacted::Unknown(_) => {
            desk.renew().await.map_err(fail)?;
            Ok(false)
        }
    }
}
