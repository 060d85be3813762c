//! A kind of job to hurt: every file of a folder becomes a record in `out`, and each that is read is noted.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use weir_contracts::{Job, Raw, Topic};
use weir_runner::{JobFailure, JobKind, JobStep, JobWork};
use weir_stage::Output;

/// What is to be done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// The folder.
    pub folder: PathBuf,
    /// Files between two checkpoints.
    pub batch: usize,
    /// Milliseconds that a batch takes.
    pub pause_ms: u64,
}

/// The kind.
pub struct Files {
    /// Where it notes what it reads, a line each.
    pub log: PathBuf,
}

impl JobKind for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    fn open<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Box<dyn JobWork>, JobFailure>> {
        async move {
            let spec: Spec = serde_json::from_str(&job.spec).map_err(failed)?;
            let last: Option<String> =
                job.checkpoint.as_deref().map(serde_json::from_str).transpose().map_err(failed)?;
            let mut names = names(&spec.folder).map_err(failed)?;
            let total = names.len();
            names.retain(|name| last.as_ref().is_none_or(|last| name > last));
            let work = Work { done: total - names.len(), total, names: names.into_iter(), spec, log: self.log.clone() };
            Ok(Box::new(work) as Box<dyn JobWork>)
        }
        .boxed()
    }
}

struct Work {
    spec: Spec,
    log: PathBuf,
    names: std::vec::IntoIter<String>,
    done: usize,
    total: usize,
}

impl JobWork for Work {
    fn next(&mut self) -> BoxFuture<'_, Result<JobStep, JobFailure>> {
        async move {
            let batch: Vec<String> = self.names.by_ref().take(self.spec.batch).collect();
            let mut log = std::fs::File::options().create(true).append(true).open(&self.log).map_err(failed)?;
            let mut outputs = Vec::with_capacity(batch.len());
            for name in &batch {
                let bytes = std::fs::read(self.spec.folder.join(name)).map_err(failed)?;
                log.write_all(format!("{name}\n").as_bytes()).map_err(failed)?;
                outputs.push(Output::new(Topic::custom("out"), name.as_bytes(), Raw(bytes)));
            }
            tokio::time::sleep(Duration::from_millis(self.spec.pause_ms)).await;
            self.done += batch.len();
            Ok(JobStep {
                outputs,
                checkpoint: batch.last().cloned().into(),
                done: self.done as u64,
                total: Some(self.total as u64),
                finished: self.names.len() == 0,
                ..JobStep::default()
            })
        }
        .boxed()
    }
}

/// Names of the files of a folder, in order.
///
/// # Errors
/// When it can't be read.
pub fn names(folder: &Path) -> std::io::Result<Vec<String>> {
    let entries = std::fs::read_dir(folder)?;
    let names: std::io::Result<Vec<String>> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
    let mut names = names?;
    names.sort();
    Ok(names)
}

fn failed(error: impl std::fmt::Display) -> JobFailure {
    JobFailure::Failed(error.to_string())
}
