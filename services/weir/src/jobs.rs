//! `weir jobs`: long pieces of work, and who does them.

mod bucket;
mod follow;
mod ingest;
mod look;
mod replay;
mod submit;
mod walk;
mod work;

use std::process::ExitCode;
use std::sync::Arc;

use color_eyre::eyre::{bail, eyre};
use weir_contracts::Job;
use weir_runner::{JobKind, Jobs, RunnerConfig};

use crate::context::Context;
use crate::tail;

pub use ingest::{CHECKPOINT_EVERY, Ingest, IngestSpec};
pub use replay::{Replay, ReplaySpec};
pub use submit::Submission;

const EXAMPLES: &str = "\
Examples:
  weir ingest /data/handbook --job --key handbook-2026  send a large folder as a job, and watch it
  weir ingest s3://docs/2026/ --job --detach            leave it to a worker
  weir jobs work                                        be a worker; Ctrl-C hands jobs back
  weir jobs list                                        what there is
  weir jobs show 9c1f0e6b --wait                        one of them, until it is over
  weir jobs cancel 9c1f0e6b
  weir jobs resume 9c1f0e6b                             go on where it failed or was cancelled

A job outlives whoever works on it: killed or frozen, another worker goes on at its last checkpoint after the heartbeat
timeout, and nothing is sent twice.";

/// Arguments of `weir jobs`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the jobs, oldest first.
    List(look::List),
    /// Show one job, whole.
    Show(look::Show),
    /// End a job. When this returns, nothing more is sent for it; what was sent stays.
    Cancel(look::Cancel),
    /// Let a job that has failed or was cancelled go on at its last checkpoint.
    Resume {
        /// Its id, or the beginning of it.
        id: String,
    },
    /// Be a worker: take jobs that are queued or that their owner has left lying, until Ctrl-C.
    Work(work::Work),
}

/// Runs the subcommand.
///
/// # Errors
/// When Kafka can't be read or does not take what is written, or what was named does not exist.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    match args.command {
        Command::List(list) => look::list(&list, context).await,
        Command::Show(show) => look::show(&show, context).await,
        Command::Cancel(cancel) => look::cancel(&cancel, context).await,
        Command::Resume { id } => look::resume(&id, context).await,
        Command::Work(work) => work::work(&work, context).await,
    }
}

/// The jobs of the cluster.
fn jobs(context: &Context) -> color_eyre::Result<Jobs> {
    Ok(Jobs::new(&context.kafka, tail::registry(context)?))
}

/// Every kind that this program knows.
fn kinds(context: &Context) -> color_eyre::Result<Vec<Arc<dyn JobKind>>> {
    Ok(vec![Arc::new(Ingest::new(context)?), Arc::new(Replay::new(context))])
}

/// The one job whose id begins like this.
async fn find(jobs: &Jobs, id: &str) -> color_eyre::Result<Job> {
    let mut found: Vec<Job> =
        tail::settled(|| jobs.list()).await?.into_iter().filter(|job| job.id.starts_with(id)).collect();
    match (found.pop(), found.is_empty()) {
        (Some(job), true) => Ok(job),
        (Some(_), false) => bail!("several jobs have ids that begin with {id}; give more of it"),
        (None, _) => Err(eyre!("no job has an id that begins with {id}; see `weir jobs list`")),
    }
}

/// The name of whoever works here, for people.
fn owner(context: &Context) -> color_eyre::Result<String> {
    let configured = context.section::<RunnerConfig>("runner")?.instance;
    Ok(match configured.is_empty() {
        true => format!("{}-{}", host(), std::process::id()),
        false => configured,
    })
}

fn host() -> String {
    let named = std::env::var("HOSTNAME").ok().or_else(|| std::fs::read_to_string("/etc/hostname").ok());
    named.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).unwrap_or_else(|| "this-host".into())
}
