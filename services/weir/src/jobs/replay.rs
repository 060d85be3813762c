//! The replay of dead letters as a job: what the filter means, part by part.

use std::num::NonZeroU32;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use weir_contracts::Job;
use weir_runner::{
    Action, DeadLetterError, DeadLetters, Filter, JobFailure, JobKind, JobStep, JobWork, KafkaConfig, Pace, Plan,
    Report,
};

use crate::context::Context;

/// Dead letters between two checkpoints, at most. For each part the table is read again.
const PART: usize = 2_000;
/// Seconds that a part may take where there is a rate.
const PART_SECONDS: u32 = 5;

/// What is to be replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplaySpec {
    /// The stages.
    pub stages: Vec<String>,
    /// Which of their dead letters. Those that were rejected after the submission are never meant: they would go round in
    /// circles.
    pub filter: Filter,
    /// What came back this often is parked instead.
    pub max_replays: u32,
    /// Parked ones too.
    pub parked: bool,
    /// From the beginning.
    #[serde(default)]
    pub restart: bool,
    /// Dead letters a second, at most.
    pub rate: Option<NonZeroU32>,
}

/// The kind `dlq-replay`.
pub struct Replay {
    kafka: KafkaConfig,
}

impl Replay {
    /// Name of the kind.
    pub const NAME: &'static str = "dlq-replay";

    /// The kind on this cluster.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self { kafka: context.kafka.clone() }
    }
}

impl JobKind for Replay {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn open<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Box<dyn JobWork>, JobFailure>> {
        async move {
            let mut spec: ReplaySpec = serde_json::from_str(&job.spec).map_err(invalid)?;
            let checkpoint: Option<Checkpoint> =
                job.checkpoint.as_deref().map(serde_json::from_str).transpose().map_err(invalid)?;
            spec.filter.before = Some(spec.filter.before.unwrap_or(i64::MAX).min(job.submitted_at));
            let action = Action::Replay { max_replays: spec.max_replays, parked: spec.parked, restart: spec.restart };
            let mut plans = Vec::new();
            for stage in &spec.stages {
                let plan = DeadLetters::of(&self.kafka, stage).plan(spec.filter.clone(), &action).await;
                plans.push(plan.map_err(|error| JobFailure::Unavailable(error.to_string()))?);
            }
            let left = plans.iter().map(|plan| plan.work() as u64).sum();
            let total = checkpoint.map_or(left, |checkpoint| checkpoint.total);
            Ok(Box::new(Work { plans, pace: pace(spec.rate), part: part(spec.rate), total, left }) as Box<dyn JobWork>)
        }
        .boxed()
    }
}

fn pace(rate: Option<NonZeroU32>) -> Pace {
    Pace { rate, ..Pace::default() }
}

fn part(rate: Option<NonZeroU32>) -> usize {
    let slow = rate.map(|rate| rate.get().saturating_mul(PART_SECONDS));
    slow.and_then(|slow| usize::try_from(slow).ok()).unwrap_or(PART).min(PART)
}

/// The dead letters that are left say where to go on: what was replayed is not among them any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    total: u64,
}

struct Work {
    plans: Vec<Plan>,
    pace: Pace,
    part: usize,
    total: u64,
    /// Something is to be done with so many.
    left: u64,
}

impl Work {
    async fn step(&mut self) -> Result<JobStep, JobFailure> {
        self.plans.retain(|plan| plan.work() > 0);
        let mut message = None;
        if let Some(plan) = self.plans.first_mut() {
            let part = plan.split_off_first(self.part);
            let (stage, work) = (part.stage().to_owned(), part.work() as u64);
            let report = carry_out(part, self.pace).await?;
            self.left = self.left.saturating_sub(work);
            if report.gone > 0 || report.parked > 0 {
                message = Some(format!("{stage}: {report}"));
            }
        }
        let finished = self.plans.iter().all(|plan| plan.work() == 0);
        Ok(JobStep {
            checkpoint: serde_json::to_value(Checkpoint { total: self.total }).map_err(invalid)?,
            done: self.total.saturating_sub(self.left),
            total: Some(self.total),
            message,
            finished,
            ..JobStep::default()
        })
    }
}

/// Carries out a part. Dropped, it stops after the transaction that is under way.
async fn carry_out(part: Plan, pace: Pace) -> Result<Report, JobFailure> {
    let cancel = CancellationToken::new();
    let _stop = cancel.clone().drop_guard();
    match part.carry_out(pace, |_| (), cancel).await {
        Ok(report) => Ok(report),
        // Somebody replays by hand, or another owner of this job does: they win.
        Err(
            error @ (DeadLetterError::TakenOver { .. }
            | DeadLetterError::NotPortable(_)
            | DeadLetterError::NoWayBack { .. }),
        ) => Err(JobFailure::Failed(error.to_string())),
        Err(error @ (DeadLetterError::Read { .. } | DeadLetterError::Kafka { .. })) => {
            Err(JobFailure::Unavailable(error.to_string()))
        }
    }
}

impl JobWork for Work {
    fn next(&mut self) -> BoxFuture<'_, Result<JobStep, JobFailure>> {
        self.step().boxed()
    }
}

fn invalid(error: serde_json::Error) -> JobFailure {
    JobFailure::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_replay_makes_its_checkpoints_every_few_seconds_all_the_same() {
        assert_eq!((part(None), part(NonZeroU32::new(50)), part(NonZeroU32::new(u32::MAX))), (2_000, 250, 2_000));
    }
}
