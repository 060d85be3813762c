//! Working on a job here, or looking at it from afar, with a bar, to its end.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use weir_contracts::{Job, JobState};
use weir_runner::{JobEnding, JobKind, Jobs};

use crate::context::Context;
use crate::exit::FOUND;
use crate::progress::{Ink, Progress, human};

const WAIT: Duration = Duration::from_millis(500);
/// As a shell reports a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// Why a job is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// It was asked for.
    AsItIs,
    /// It was to be waited for.
    AtItsEnd,
}

/// Whether nobody will work on it any more.
pub fn is_over(job: &Job) -> bool {
    matches!(job.state, JobState::Cancelled | JobState::Succeeded | JobState::Failed)
}

/// Takes the job over and works on it. Ctrl-C hands it back.
///
/// # Errors
/// When Kafka does not take what is written.
pub async fn work_on(
    jobs: &Jobs,
    job: &Job,
    kind: &dyn JobKind,
    owner: &str,
    context: &Context,
) -> color_eyre::Result<ExitCode> {
    let shutdown = CancellationToken::new();
    let interrupted = shutdown.clone();
    let watch = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.cancel();
        }
    });
    let mut bar = Progress::new(0, "done", context.json);
    let mut told = |job: &Job| show(&mut bar, job);
    let ended = jobs.run(&job.id, kind, owner, &shutdown, &mut told).await;
    watch.abort();
    bar.finish();
    match ended? {
        JobEnding::Over(job) => tell(&job, Shown::AtItsEnd, context),
        JobEnding::HandedBack(job) => {
            tell(&job, Shown::AsItIs, context)?;
            if !context.json {
                eprintln!("It waits for a worker (`weir jobs work`), and goes on where it was.");
            }
            Ok(ExitCode::from(INTERRUPTED))
        }
        JobEnding::NotOurs(job) if is_over(&job) => tell(&job, Shown::AtItsEnd, context),
        JobEnding::NotOurs(job) => {
            if !context.json {
                eprintln!("{} has taken it over.", job.owner.as_deref().unwrap_or("Another worker"));
            }
            until_over(jobs, &job, context).await
        }
    }
}

/// Follows a job that somebody else works on. Ctrl-C ends the following only.
///
/// # Errors
/// When Kafka can't be read.
pub async fn until_over(jobs: &Jobs, job: &Job, context: &Context) -> color_eyre::Result<ExitCode> {
    let mut follower = jobs.follow(&job.id).await?;
    let mut last = job.clone();
    let mut bar = Progress::new(0, "done", context.json);
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    while !is_over(&last) {
        tokio::select! {
            _ = &mut interrupt => {
                bar.finish();
                tell(&last, Shown::AsItIs, context)?;
                return Ok(ExitCode::from(INTERRUPTED));
            }
            next = follower.next(WAIT) => {
                // What was written before what is known already is passed over.
                if let Some(job) = next?.filter(|job| job.epoch >= last.epoch && job.done >= last.done) {
                    last = job;
                }
            }
        }
        show(&mut bar, &last);
    }
    bar.finish();
    tell(&last, Shown::AtItsEnd, context)
}

fn show(bar: &mut Progress, job: &Job) {
    let dealt_with = job.done.saturating_add(job.failures);
    bar.set_total(count(job.total.unwrap_or(dealt_with)));
    let mut detail = named(job.state).to_owned();
    if let Some(owner) = job.owner.as_ref().filter(|_| job.state == JobState::Running) {
        detail = format!("{detail} on {owner}");
    }
    if job.failures > 0 {
        detail = format!("{detail}, {} passed over", job.failures);
    }
    bar.set(count(dealt_with), detail);
}

/// Says how a job is; the exit code says whether it is all done.
///
/// # Errors
/// When it can't be written as JSON.
pub fn tell(job: &Job, shown: Shown, context: &Context) -> color_eyre::Result<ExitCode> {
    if context.json {
        println!("{}", serde_json::to_string_pretty(&as_json(job))?);
    } else {
        println!("{}", sentence(job, Ink::for_stdout()));
        if job.failures > 0
            && let Some(message) = &job.message
        {
            println!("Passed over last: {message}");
        }
    }
    let well = job.state == JobState::Succeeded && job.failures == 0;
    Ok(match shown {
        Shown::AtItsEnd if !well => ExitCode::from(FOUND),
        Shown::AtItsEnd | Shown::AsItIs => ExitCode::SUCCESS,
    })
}

fn sentence(job: &Job, ink: Ink) -> String {
    let state = match job.state {
        JobState::Succeeded => ink.green(named(job.state)),
        JobState::Failed => ink.red(named(job.state)),
        JobState::Cancelled => ink.yellow(named(job.state)),
        JobState::Queued | JobState::Running => ink.bold(named(job.state)),
    };
    let mut parts = vec![format!("{} {state}: {}", job.id, progress(job))];
    if job.failures > 0 {
        parts.push(format!("{} passed over", job.failures));
    }
    let mut text = parts.join(", ");
    if let (Some(from), Some(to)) = (job.started_at, job.finished_at) {
        text += &format!(" in {}", human(Duration::from_millis(u64::try_from(to - from).unwrap_or(0))));
    }
    match &job.message {
        Some(message) if matches!(job.state, JobState::Failed | JobState::Cancelled) => format!("{text} ({message})"),
        _ => text,
    }
}

/// `500 of 10000 done`.
pub fn progress(job: &Job) -> String {
    match job.total {
        Some(total) => format!("{} of {total} done", job.done),
        None => format!("{} done", job.done),
    }
}

/// A state for people and scripts.
pub fn named(state: JobState) -> &'static str {
    match state {
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Cancelled => "cancelled",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
    }
}

/// The record, with what is JSON in it as such.
pub fn as_json(job: &Job) -> Value {
    let inner = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_else(|_| json!(text));
    let mut shown = serde_json::to_value(job).unwrap_or_default();
    if let Value::Object(fields) = &mut shown {
        fields.insert("spec".into(), inner(&job.spec));
        fields.insert("checkpoint".into(), job.checkpoint.as_deref().map_or(Value::Null, inner));
    }
    shown
}

fn count(number: i64) -> usize {
    usize::try_from(number).unwrap_or(0)
}
