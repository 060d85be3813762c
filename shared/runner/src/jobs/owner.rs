//! The owner of a job: works on it, gives signs of life, and stops when somebody else has taken it over.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weir_contracts::{Job, JobState};

use super::JobsError;
use super::desk::{Clients, JobDesk};
use super::kind::{JobFailure, JobKind, JobStep};
use super::record::{advanced, alive, claimed, duration, ended, handed_back, is_final};
use crate::backoff::Backoff;
use crate::clock::now_millis;
use crate::desk::{Transacted, fenced};
use crate::process::EncodedRecord;

/// Owners that may die over a job, one after another without a checkpoint, before it counts as the job's fault.
const MOST_ATTEMPTS: i32 = 10;
/// Transactions that fail one after another before this owner gives up and leaves the job to others.
const FAILURES: u32 = 5;
/// Between two tries of what is unavailable.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How an owner's work on a job ended.
#[derive(Debug, Clone, PartialEq)]
pub enum JobEnding {
    /// It is over: done, or failed.
    Over(Job),
    /// It was given up when the owner was asked to stop, and waits for the next one at its checkpoint.
    HandedBack(Job),
    /// It is not this owner's any more, or never was: somebody else has it, or has ended it.
    NotOurs(Job),
}

impl JobEnding {
    /// The job as it was left.
    #[must_use]
    pub fn job(&self) -> &Job {
        match self {
            Self::Over(job) | Self::HandedBack(job) | Self::NotOurs(job) => job,
        }
    }
}

/// Who owns a job, and what is to be done with it.
pub(super) struct Task<'a> {
    pub(super) clients: &'a Clients,
    pub(super) kind: &'a dyn JobKind,
    pub(super) owner: &'a str,
    pub(super) shutdown: &'a CancellationToken,
    pub(super) told: &'a mut (dyn FnMut(&Job) + Send),
}

/// Takes over the job and works on it to its end.
pub(super) async fn run(task: Task<'_>, id: &str) -> Result<JobEnding, JobsError> {
    let desk = JobDesk::of_owner(task.clients, id).await?;
    let job = task.clients.read(id).await?.ok_or_else(|| JobsError::NoSuchJob { id: id.to_owned() })?;
    if is_final(&job) {
        return Ok(JobEnding::NotOurs(job));
    }
    let now = Instant::now();
    let mut owner = Owner { task, desk, job, written: now, progressed: now, claimed: now, epoch: 0, failures: 0 };
    match owner.claim_and_work().await {
        Ok(ending) => Ok(ending),
        Err(Leave::NotOurs(job)) => Ok(owner.left(*job)),
        Err(Leave::Failed(error)) => Err(error),
    }
}

/// Why an owner stops in the middle.
enum Leave {
    NotOurs(Box<Job>),
    Failed(JobsError),
}

impl From<JobsError> for Leave {
    fn from(error: JobsError) -> Self {
        Self::Failed(error)
    }
}

enum Turn<T> {
    Done(Result<T, JobFailure>),
    /// With the reason.
    TimedOut(String),
    Stopped,
}

enum Written {
    Committed,
    /// It was not, or nobody knows: the job was read again, and its work must be opened again.
    Lost,
}

struct Owner<'a> {
    task: Task<'a>,
    desk: JobDesk,
    job: Job,
    /// When the record was last written.
    written: Instant,
    progressed: Instant,
    claimed: Instant,
    epoch: i32,
    failures: u32,
}

impl Owner<'_> {
    async fn claim_and_work(&mut self) -> Result<JobEnding, Leave> {
        let claimed = claimed(self.job.clone(), self.task.owner, now_millis());
        self.epoch = claimed.epoch;
        let attempts = claimed.attempts;
        tracing::info!(job = %claimed.id, kind = claimed.kind, owner = self.task.owner, epoch = self.epoch, "job taken");
        // A record that can't be written is written again; it is ours once it is there.
        while matches!(self.write(claimed.clone(), Vec::new(), Ours::NotYet).await?, Written::Lost) {
            if self.is_ours() {
                break;
            }
        }
        if attempts > MOST_ATTEMPTS {
            let died = attempts - 1;
            return self
                .end(JobState::Failed, format!("{died} owners, one after another, died over the same piece"))
                .await;
        }
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let failure = match self.work(&mut backoff).await? {
                Worked::Ended(ending) => return Ok(*ending),
                Worked::Again(failure) => failure,
            };
            let Some(reason) = failure else { continue };
            let pause = backoff.next(&mut rand::rng(), None);
            tracing::warn!(job = %self.job.id, reason, ?pause, "the job waits");
            let paused = async move {
                tokio::time::sleep(pause).await;
                Ok(())
            };
            match self.living(paused).await? {
                Turn::Done(_) => {}
                Turn::TimedOut(late) => return self.end(JobState::Failed, format!("{late}; last: {reason}")).await,
                Turn::Stopped => return self.hand_back().await,
            }
        }
    }

    /// Works from the last checkpoint until something happens.
    async fn work(&mut self, backoff: &mut Backoff) -> Result<Worked, Leave> {
        let (kind, job) = (self.task.kind, self.job.clone());
        let mut work = match self.living(kind.open(&job)).await? {
            Turn::Done(Ok(work)) => work,
            other => return self.stopped(other).await,
        };
        loop {
            let step = match self.living(work.next()).await? {
                Turn::Done(Ok(step)) => step,
                other => return self.stopped(other).await,
            };
            match self.checkpoint(step).await {
                Ok(Written::Committed) => *backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
                Ok(Written::Lost) => return Ok(Worked::Again(None)),
                Err(Unwritten::Leave(leave)) => return Err(leave),
                Err(Unwritten::Step(failure)) => return self.stopped::<()>(Turn::Done(Err(failure))).await,
            }
            if is_final(&self.job) {
                return Ok(Worked::Ended(Box::new(JobEnding::Over(self.job.clone()))));
            }
        }
    }

    /// What becomes of the job when a turn did not give what it should.
    async fn stopped<T>(&mut self, turn: Turn<T>) -> Result<Worked, Leave> {
        let ending = match turn {
            Turn::Done(Ok(_)) => return Ok(Worked::Again(None)),
            Turn::Done(Err(JobFailure::Unavailable(reason))) => return Ok(Worked::Again(Some(reason))),
            Turn::Done(Err(JobFailure::Failed(reason))) | Turn::TimedOut(reason) => {
                self.end(JobState::Failed, reason).await?
            }
            Turn::Stopped => self.hand_back().await?,
        };
        Ok(Worked::Ended(Box::new(ending)))
    }

    /// Waits for a piece of work; gives signs of life meanwhile, and holds it to the job's limits.
    async fn living<T>(&mut self, work: impl Future<Output = Result<T, JobFailure>>) -> Result<Turn<T>, Leave> {
        let panicked = |_| JobFailure::Failed("it panicked; the log of its owner has the place".into());
        let work = AssertUnwindSafe(work).catch_unwind().map(|done| done.map_err(panicked).and_then(|done| done));
        let mut work = std::pin::pin!(work);
        let shutdown = self.task.shutdown.clone();
        let beat_every = duration(self.job.heartbeat_timeout_ms) / 3;
        loop {
            let limit = self.limit();
            if let Some((_, reason)) = limit.as_ref().filter(|(due, _)| *due <= Instant::now()) {
                return Ok(Turn::TimedOut(reason.clone()));
            }
            tokio::select! {
                done = &mut work => return Ok(Turn::Done(done)),
                () = shutdown.cancelled() => return Ok(Turn::Stopped),
                () = tokio::time::sleep_until(self.written + beat_every) => {
                    let beat = alive(self.job.clone(), now_millis());
                    // Whether it was written or not, what is being done is not touched by it.
                    self.write(beat, Vec::new(), Ours::Already).await?;
                }
                () = until(limit.as_ref()) => {}
            }
        }
    }

    /// The limit that is reached first, and what is to be said then.
    fn limit(&self) -> Option<(Instant, String)> {
        let execution = self.job.execution_timeout_ms.map(duration).and_then(|timeout| {
            let began = duration(millis_since(self.job.started_at));
            let left = timeout.saturating_sub(began);
            let spent = self.claimed.elapsed();
            // Counted from the first owner's start by the clock, from this owner's by what has passed.
            let due = Instant::now().checked_add(left.min(timeout.saturating_sub(spent)))?;
            Some((due, format!("not done within its execution timeout of {timeout:?}")))
        });
        let activity = self.job.activity_timeout_ms.map(duration).and_then(|timeout| {
            let due = self.progressed.checked_add(timeout)?;
            Some((due, format!("no progress within its activity timeout of {timeout:?}")))
        });
        [execution, activity].into_iter().flatten().min_by_key(|(due, _)| *due)
    }

    async fn checkpoint(&mut self, mut step: JobStep) -> Result<Written, Unwritten> {
        let outputs = std::mem::take(&mut step.outputs);
        let mut records = Vec::with_capacity(outputs.len() + 1);
        for output in outputs {
            records.push(self.desk.encode(output).await.map_err(Unwritten::Step)?);
        }
        let job = advanced(self.job.clone(), &step, now_millis());
        let written = self.write(job, records, Ours::Already).await.map_err(Unwritten::Leave)?;
        if matches!(written, Written::Committed) {
            self.progressed = self.written;
        }
        Ok(written)
    }

    async fn end(&mut self, state: JobState, message: String) -> Result<JobEnding, Leave> {
        loop {
            let job = ended(self.job.clone(), state, Some(message.clone()), now_millis());
            if matches!(self.write(job, Vec::new(), Ours::Already).await?, Written::Committed) {
                return Ok(JobEnding::Over(self.job.clone()));
            }
        }
    }

    async fn hand_back(&mut self) -> Result<JobEnding, Leave> {
        loop {
            let job = handed_back(self.job.clone());
            if matches!(self.write(job, Vec::new(), Ours::Already).await?, Written::Committed) {
                return Ok(JobEnding::HandedBack(self.job.clone()));
            }
        }
    }

    /// Writes the record of the job and what belongs to it in one transaction.
    async fn write(&mut self, job: Job, mut records: Vec<EncodedRecord>, ours: Ours) -> Result<Written, Leave> {
        let record = self.desk.encode_job(&job).await;
        records.push(record.map_err(|failure| self.error(failure.to_string()))?);
        let (reason, unknown) = match self.desk.transact(records).await {
            Ok(Transacted::Committed) => {
                self.job = job;
                self.written = Instant::now();
                self.failures = 0;
                (self.task.told)(&self.job);
                return Ok(Written::Committed);
            }
            Ok(Transacted::Aborted(reason)) => (reason, false),
            Ok(Transacted::Unknown(reason)) => (reason, true),
            Err(reason) => return Err(self.ousted(reason).await),
        };
        self.failures += 1;
        if self.failures >= FAILURES {
            return Err(self.error(reason).into());
        }
        tracing::warn!(job = %self.job.id, reason, "transaction failed: reading how the job is");
        // Look before taking the id over again: an owner that was frozen must not end its successor.
        self.read_again(ours).await?;
        if unknown {
            self.desk.renew().await.map_err(|reason| self.error(reason))?;
            self.read_again(ours).await?;
        }
        self.written = Instant::now();
        Ok(Written::Lost)
    }

    async fn read_again(&mut self, ours: Ours) -> Result<(), Leave> {
        let job = self.task.clients.read(&self.job.id).await?;
        let job = job.ok_or_else(|| JobsError::NoSuchJob { id: self.job.id.clone() })?;
        let unclaimed = matches!(ours, Ours::NotYet) && job == self.job;
        self.job = job;
        if unclaimed || self.is_ours() {
            return Ok(());
        }
        // Somebody else has it, or a transaction that ended it was committed after all.
        let Job { id, owner, state, .. } = &self.job;
        tracing::warn!(job = %id, epoch = self.epoch, owner, ?state, "the job was taken over or ended");
        Err(Leave::NotOurs(Box::new(self.job.clone())))
    }

    fn is_ours(&self) -> bool {
        self.job.epoch == self.epoch
            && self.job.owner.as_deref() == Some(self.task.owner)
            && self.job.state == JobState::Running
    }

    /// What a job that is not being worked on any more says of how this owner left it.
    fn left(&self, job: Job) -> JobEnding {
        let own = job.epoch == self.epoch && job.owner.as_deref() == Some(self.task.owner);
        match job.state {
            // Its commit was in doubt, and counts.
            JobState::Succeeded | JobState::Failed if own => JobEnding::Over(job),
            JobState::Queued if own => JobEnding::HandedBack(job),
            _ => JobEnding::NotOurs(job),
        }
    }

    /// The producer is of no use any more: whose is the job?
    async fn ousted(&mut self, reason: String) -> Leave {
        match self.read_again(Ours::Already).await {
            // Whoever is taking it over has not written so yet.
            Ok(()) if fenced(&reason) => {
                tracing::warn!(job = %self.job.id, epoch = self.epoch, reason, "the job was taken over or ended");
                Leave::NotOurs(Box::new(self.job.clone()))
            }
            Ok(()) => self.error(reason).into(),
            Err(leave) => leave,
        }
    }

    fn error(&self, reason: String) -> JobsError {
        JobsError::Kafka { id: self.job.id.clone(), reason }
    }
}

enum Worked {
    Ended(Box<JobEnding>),
    /// The work must be opened again, after a pause when there is a reason.
    Again(Option<String>),
}

enum Unwritten {
    /// A record of the step can't be written as it is.
    Step(JobFailure),
    Leave(Leave),
}

/// Whether the claim of this owner is in the table already.
#[derive(Clone, Copy)]
enum Ours {
    NotYet,
    Already,
}

fn millis_since(then: Option<i64>) -> i64 {
    then.map_or(0, |then| now_millis().saturating_sub(then)).max(0)
}

async fn until(limit: Option<&(Instant, String)>) {
    match limit {
        Some((due, _)) => tokio::time::sleep_until(*due).await,
        None => std::future::pending().await,
    }
}
