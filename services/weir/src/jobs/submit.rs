//! What `weir ingest --job` and `weir dlq replay --job` have in common: submitting, and working on it here.

use std::process::ExitCode;
use std::time::Duration;

use color_eyre::eyre::eyre;
use serde::Serialize;
use uuid::Uuid;
use weir_contracts::TenantId;
use weir_runner::{NewJob, Submitted};

use super::follow::{self, Shown};
use super::{jobs, kinds, owner};
use crate::context::Context;
use crate::dlq::age;
use crate::tail;

/// Flags of what is submitted as a job.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "As a job")]
pub struct Submission {
    /// Do it as a job, which any worker can go on with when this process ends: see `weir jobs`.
    #[arg(long)]
    pub job: bool,
    /// Submitted again under the same key it is the same job.
    #[arg(long, requires = "job", value_name = "KEY")]
    key: Option<String>,
    /// Only submit it, and leave it to a worker.
    #[arg(long, requires = "job")]
    detach: bool,
    /// Let it fail when it is not done within this time: 90s, 15m, 2h, 7d.
    #[arg(long, requires = "job", value_name = "TIME", value_parser = age)]
    execution_timeout: Option<Duration>,
    /// Let it fail when nothing moves for so long.
    #[arg(long, requires = "job", value_name = "TIME", value_parser = age, default_value = "10m")]
    activity_timeout: Duration,
    /// Without a sign of life for so long another worker takes it over.
    #[arg(long, requires = "job", value_name = "TIME", value_parser = age, default_value = "15s")]
    heartbeat_timeout: Duration,
}

impl Submission {
    /// Submits the job; works on it here, or follows it, to its end, or leaves it to a worker.
    ///
    /// # Errors
    /// When the key was used for something else, or Kafka does not take it.
    pub async fn submit(
        &self,
        kind: &str,
        tenant: Option<TenantId>,
        spec: &impl Serialize,
        wait: bool,
        context: &Context,
    ) -> color_eyre::Result<ExitCode> {
        let jobs = jobs(context)?;
        let new = NewJob {
            kind: kind.to_owned(),
            tenant,
            // Ordered by time, and nobody else's.
            key: self.key.clone().unwrap_or_else(|| Uuid::now_v7().to_string()),
            spec: serde_json::to_value(spec)?,
            execution_timeout: self.execution_timeout,
            activity_timeout: Some(self.activity_timeout),
            heartbeat_timeout: self.heartbeat_timeout,
        };
        let name = owner(context)?;
        let own = (!self.detach).then_some(name.as_str());
        let Submitted { job, new } = tail::settled(|| jobs.submit(&new, own)).await?;
        if !context.json {
            eprintln!("job {}{}", job.id, if new { "" } else { ", which was submitted before" });
        }
        if new && !self.detach {
            let kind = kinds(context)?.into_iter().find(|known| known.name() == kind);
            let kind = kind.ok_or_else(|| eyre!("this program does not know jobs of this kind"))?;
            return follow::work_on(&jobs, &job, kind.as_ref(), &name, context).await;
        }
        if follow::is_over(&job) || (self.detach && !wait) {
            return follow::tell(&job, Shown::AsItIs, context);
        }
        follow::until_over(&jobs, &job, context).await
    }
}
