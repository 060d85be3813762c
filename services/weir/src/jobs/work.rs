//! `weir jobs work`: a worker.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use weir_runner::{JobEnding, JobWorker, WorkerEvent};

use super::follow::{named, progress};
use super::{jobs, kinds, owner};
use crate::context::Context;

/// Arguments of `weir jobs work`.
#[derive(Debug, clap::Args)]
pub struct Work {
    /// Jobs at once, at most.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    at_once: u8,
    /// Name of this worker, for whoever looks at its jobs; the host's name and the process id when not given.
    #[arg(long)]
    name: Option<String>,
}

/// Works until Ctrl-C or SIGTERM.
///
/// # Errors
/// When the jobs can't be read.
pub async fn work(work: &Work, context: &Context) -> color_eyre::Result<ExitCode> {
    let name = match &work.name {
        Some(name) => name.clone(),
        None => owner(context)?,
    };
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.cancel();
    });
    eprintln!("{name} works on jobs; Ctrl-C hands them back.");
    let worker = JobWorker::new(jobs(context)?, kinds(context)?, name, usize::from(work.at_once)).telling(tell);
    worker.run(shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

fn tell(event: WorkerEvent<'_>) {
    match event {
        WorkerEvent::Taking(job) => eprintln!("{} {} taken: {}", job.id, job.kind, progress(job)),
        WorkerEvent::Working(_) => {}
        WorkerEvent::Left(ending) => {
            let job = ending.job();
            let what = match ending {
                JobEnding::Over(_) => named(job.state),
                JobEnding::HandedBack(_) => "handed back",
                JobEnding::NotOurs(_) => "taken over or ended by another",
            };
            let message = job.message.as_ref().map(|message| format!(" ({message})")).unwrap_or_default();
            eprintln!("{} {} {what}: {}{message}", job.id, job.kind, progress(job));
        }
        WorkerEvent::Failed { id, error } => eprintln!("{id} left to others: {error}"),
    }
}
