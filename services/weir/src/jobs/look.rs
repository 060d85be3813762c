//! `weir jobs list`, `show`, `cancel` and `resume`.

use std::process::ExitCode;

use serde_json::Value;
use weir_contracts::JobState;

use super::follow::{self, Shown, as_json, named, progress};
use super::{find, jobs, owner};
use crate::context::Context;
use crate::progress::{age_of, human, shorten, table};
use crate::tail;

/// Arguments of `weir jobs list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Only those that are not over.
    #[arg(long)]
    open: bool,
    /// At most so many, the newest.
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

/// Arguments of `weir jobs show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// Its id, or the beginning of it.
    id: String,
    /// Follow it until it is over; the exit status says whether all of it was done.
    #[arg(long, visible_alias = "watch")]
    wait: bool,
}

/// Arguments of `weir jobs cancel`.
#[derive(Debug, clap::Args)]
pub struct Cancel {
    /// Its id, or the beginning of it.
    id: String,
    /// Why, for whoever looks next.
    #[arg(long)]
    reason: Option<String>,
}

/// Lists.
///
/// # Errors
/// When Kafka can't be read.
pub async fn list(list: &List, context: &Context) -> color_eyre::Result<ExitCode> {
    let all = jobs(context)?;
    let mut found = tail::settled(|| all.list()).await?;
    found.retain(|job| !list.open || !follow::is_over(job));
    let shown = found.get(found.len().saturating_sub(list.limit)..).unwrap_or_default();
    if context.json {
        let shown: Vec<Value> = shown.iter().map(as_json).collect();
        println!("{}", serde_json::to_string_pretty(&shown)?);
        return Ok(ExitCode::SUCCESS);
    }
    if shown.is_empty() {
        println!("No jobs.");
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["id", "kind", "tenant", "state", "progress", "passed over", "owner", "age", "message"]);
    for job in shown {
        let silent = job.state == JobState::Running
            && job
                .heartbeat_at
                .is_some_and(|at| age_of(at).as_millis() > u128::from(job.heartbeat_timeout_ms.unsigned_abs()));
        rows.add_row([
            job.id.chars().take(12).collect(),
            job.kind.clone(),
            job.tenant.as_ref().map(ToString::to_string).unwrap_or_default(),
            format!("{}{}", named(job.state), if silent { ", silent" } else { "" }),
            progress(job),
            job.failures.to_string(),
            job.owner.clone().unwrap_or_default(),
            human(age_of(job.submitted_at)),
            shorten(job.message.as_deref().unwrap_or_default(), 60),
        ]);
    }
    println!("{rows}");
    if shown.len() < found.len() {
        println!("{} more; see them with --limit.", found.len() - shown.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows one.
///
/// # Errors
/// When there is none, or Kafka can't be read.
pub async fn show(show: &Show, context: &Context) -> color_eyre::Result<ExitCode> {
    let jobs = jobs(context)?;
    let job = find(&jobs, &show.id).await?;
    if show.wait {
        return follow::until_over(&jobs, &job, context).await;
    }
    let shown = as_json(&job);
    if context.json {
        println!("{}", serde_json::to_string_pretty(&shown)?);
        return Ok(ExitCode::SUCCESS);
    }
    follow::tell(&job, Shown::AsItIs, context)?;
    println!();
    for (name, value) in shown.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        let text = match (name.strip_suffix("_at"), value) {
            (Some(_), value) => format!("{} ago", human(age_of(value.as_i64().unwrap_or_default()))),
            (None, Value::String(text)) => text.clone(),
            (None, value) => value.to_string(),
        };
        println!("{name:<22} {text}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Cancels.
///
/// # Errors
/// When there is none, or Kafka does not take it.
pub async fn cancel(cancel: &Cancel, context: &Context) -> color_eyre::Result<ExitCode> {
    let jobs = jobs(context)?;
    let job = find(&jobs, &cancel.id).await?;
    let by = owner(context)?;
    let why = cancel.reason.clone().unwrap_or_else(|| format!("cancelled on {by}"));
    let job = jobs.cancel(&job.id, &why).await?;
    follow::tell(&job, Shown::AsItIs, context)
}

/// Resumes.
///
/// # Errors
/// When there is none, or Kafka does not take it.
pub async fn resume(id: &str, context: &Context) -> color_eyre::Result<ExitCode> {
    let jobs = jobs(context)?;
    let job = find(&jobs, id).await?;
    let job = jobs.resume(&job.id).await?;
    follow::tell(&job, Shown::AsItIs, context)
}
