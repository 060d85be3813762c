//! The record of a job: what each event makes of it, and how it travels.

use std::time::Duration;

use weir_contracts::{Job, JobState, TenantId, job_id};

use super::kind::JobStep;

/// A job to be submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// What kind of work it is.
    pub kind: String,
    /// Tenant the work belongs to, where it belongs to one.
    pub tenant: Option<TenantId>,
    /// Under the same key the same kind of job of the same tenant is submitted once.
    pub key: String,
    /// What is to be done, in the kind's own words.
    pub spec: serde_json::Value,
    /// When it fails, whatever is left, counted from its start.
    pub execution_timeout: Option<Duration>,
    /// When it fails for want of a checkpoint.
    pub activity_timeout: Option<Duration>,
    /// Without a sign of life for so long, anybody may take it over.
    pub heartbeat_timeout: Duration,
}

impl NewJob {
    /// The id it gets.
    #[must_use]
    pub fn id(&self) -> String {
        job_id(self.tenant.as_ref(), &self.kind, &self.key)
    }

    /// Its record. With an `owner`, others leave it alone until they have heard nothing for the heartbeat timeout.
    pub(crate) fn record(&self, owner: Option<&str>, now: i64) -> Job {
        Job {
            id: self.id(),
            kind: self.kind.clone(),
            tenant: self.tenant.clone(),
            key: self.key.clone(),
            spec: self.spec.to_string(),
            state: if owner.is_some() { JobState::Running } else { JobState::Queued },
            owner: owner.map(str::to_owned),
            epoch: 0,
            attempts: 0,
            submitted_at: now,
            started_at: None,
            heartbeat_at: owner.map(|_| now),
            progressed_at: None,
            finished_at: None,
            checkpoint: None,
            done: 0,
            total: None,
            failures: 0,
            message: None,
            heartbeat_timeout_ms: millis(self.heartbeat_timeout).max(1),
            execution_timeout_ms: self.execution_timeout.map(millis),
            activity_timeout_ms: self.activity_timeout.map(millis),
        }
    }
}

/// Whether nobody will work on it any more.
pub(crate) fn is_final(job: &Job) -> bool {
    matches!(job.state, JobState::Cancelled | JobState::Succeeded | JobState::Failed)
}

/// Somebody takes it over.
pub(crate) fn claimed(mut job: Job, owner: &str, now: i64) -> Job {
    job.state = JobState::Running;
    job.owner = Some(owner.to_owned());
    job.epoch = job.epoch.saturating_add(1);
    job.attempts = job.attempts.saturating_add(1);
    job.started_at.get_or_insert(now);
    job.heartbeat_at = Some(now);
    job
}

/// Its owner is alive.
pub(crate) fn alive(mut job: Job, now: i64) -> Job {
    job.heartbeat_at = Some(now);
    job
}

/// A piece of work is done.
pub(crate) fn advanced(mut job: Job, step: &JobStep, now: i64) -> Job {
    job.attempts = 0;
    job.heartbeat_at = Some(now);
    job.progressed_at = Some(now);
    job.checkpoint = Some(step.checkpoint.to_string());
    job.done = count(step.done);
    job.total = step.total.map(count);
    job.failures = count(step.failures);
    if step.message.is_some() {
        job.message.clone_from(&step.message);
    }
    match step.finished {
        true => ended(job, JobState::Succeeded, None, now),
        false => job,
    }
}

/// It is over.
pub(crate) fn ended(mut job: Job, state: JobState, message: Option<String>, now: i64) -> Job {
    job.state = state;
    job.finished_at = Some(now);
    if message.is_some() {
        job.message = message;
    }
    job
}

/// Its owner gives it up, and the next one goes on at its checkpoint.
pub(crate) fn handed_back(mut job: Job) -> Job {
    job.state = JobState::Queued;
    job.attempts = (job.attempts - 1).max(0);
    job
}

/// It is to go on though it had failed or was cancelled; its time counts from the beginning.
pub(crate) fn resumed(mut job: Job) -> Job {
    job.state = JobState::Queued;
    job.attempts = 0;
    job.started_at = None;
    job.finished_at = None;
    job.message = None;
    job
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A time span of a record; negative ones count as none.
pub(crate) fn duration(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn new() -> NewJob {
        NewJob {
            kind: "ingest".into(),
            tenant: TenantId::parse("acme").ok(),
            key: "nightly".into(),
            spec: serde_json::json!({ "folder": "/data" }),
            execution_timeout: None,
            activity_timeout: Some(Duration::from_secs(60)),
            heartbeat_timeout: Duration::from_secs(15),
        }
    }

    #[test]
    fn the_same_key_is_the_same_job_for_the_same_tenant_and_kind_only() {
        let id = new().id();
        assert_eq!(NewJob { spec: serde_json::Value::Null, ..new() }.id(), id);
        for other in [
            NewJob { key: "weekly".into(), ..new() },
            NewJob { kind: "dlq-replay".into(), ..new() },
            NewJob { tenant: TenantId::parse("other").ok(), ..new() },
            NewJob { tenant: None, ..new() },
        ] {
            assert_ne!(other.id(), id, "{other:?}");
        }
    }

    #[test]
    fn each_owner_has_its_epoch_and_only_a_checkpoint_forgives_those_that_died() {
        let job = new().record(None, 1);
        assert_eq!((job.state, job.heartbeat_at), (JobState::Queued, None));
        let job = claimed(claimed(job, "a", 2), "b", 3);
        assert_eq!((job.epoch, job.attempts, job.started_at, job.owner.as_deref()), (2, 2, Some(2), Some("b")));
        assert_eq!(alive(job.clone(), 4).attempts, 2);
        let back = handed_back(job.clone());
        assert_eq!((back.state, back.attempts, back.epoch), (JobState::Queued, 1, 2));
        let step = JobStep { done: 500, checkpoint: "x".into(), ..JobStep::default() };
        let job = advanced(job, &step, 5);
        assert_eq!(
            (job.attempts, job.done, job.progressed_at, job.checkpoint.as_deref()),
            (0, 500, Some(5), Some("\"x\""))
        );
        let last = advanced(job, &JobStep { finished: true, done: 600, ..step }, 6);
        assert_eq!((last.state, last.finished_at, is_final(&last)), (JobState::Succeeded, Some(6), true));
    }

    #[test]
    fn a_resumed_job_goes_on_at_its_checkpoint_with_all_its_time() {
        let step = JobStep { done: 500, checkpoint: "x".into(), ..JobStep::default() };
        let job = advanced(claimed(new().record(None, 1), "a", 2), &step, 3);
        let job = resumed(ended(job, JobState::Failed, Some("no".into()), 9));
        assert_eq!((job.state, job.done, job.checkpoint.as_deref()), (JobState::Queued, 500, Some("\"x\"")));
        assert_eq!((job.started_at, job.finished_at, job.message), (None, None, None));
    }
}
