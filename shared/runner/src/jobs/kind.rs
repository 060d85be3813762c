//! What a kind of job has to be.

use futures::future::BoxFuture;
use weir_contracts::Job;
use weir_stage::Output;

/// Why a piece of work was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobFailure {
    /// Something is not there; the work is fine. It is opened again at the last checkpoint, after a while.
    #[error("{0}")]
    Unavailable(String),
    /// It can't be done, however often it is tried: the job fails.
    #[error("{0}")]
    Failed(String),
}

/// A piece of work, done as far as its records are concerned. They and the checkpoint are committed together.
#[derive(Debug, Default)]
pub struct JobStep {
    /// What it produces. A few MB at most: the transaction must end long before it times out.
    pub outputs: Vec<Output>,
    /// Where the next one goes on.
    pub checkpoint: serde_json::Value,
    /// Things done since the job began.
    pub done: u64,
    /// Things there are to do, where that is known.
    pub total: Option<u64>,
    /// Things passed over since the job began.
    pub failures: u64,
    /// What there is to say; what was said before stays when there is nothing new.
    pub message: Option<String>,
    /// Nothing is left to be done.
    pub finished: bool,
}

/// A kind of job, by its name in [`Job::kind`].
pub trait JobKind: Send + Sync {
    /// The name.
    fn name(&self) -> &'static str;

    /// Begins the work of a job at its checkpoint, or at its beginning.
    ///
    /// # Errors
    /// See [`JobFailure`].
    fn open<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Box<dyn JobWork>, JobFailure>>;
}

/// The work of one job. It may be dropped at any time, in the middle of a piece too: whatever it does beside its outputs
/// must bear to be done again from the last checkpoint.
pub trait JobWork: Send {
    /// Does the next piece. Never blocks its thread: signs of life are given meanwhile.
    ///
    /// # Errors
    /// See [`JobFailure`]. It is not called again after one.
    fn next(&mut self) -> BoxFuture<'_, Result<JobStep, JobFailure>>;
}
