//! A worker: takes jobs that wait, several at once, and hands them back when it is asked to stop.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_contracts::Job;

use super::owner::JobEnding;
use super::watch::Watch;
use super::{JobKind, Jobs, JobsError};

/// Between two looks for work; each is put off a little by chance, so that workers do not take the same job at once.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// After a job could not be worked on, this worker leaves it to others for so long.
const AFTER_AN_ERROR: Duration = Duration::from_secs(5);

/// What a worker does, for whoever watches it.
#[derive(Debug)]
pub enum WorkerEvent<'a> {
    /// It takes a job that waits.
    Taking(&'a Job),
    /// It has committed something.
    Working(&'a Job),
    /// It is done with a job, for now or for good.
    Left(&'a JobEnding),
    /// It could not go on with a job, which others take over.
    Failed {
        /// The job.
        id: &'a str,
        /// Why.
        error: &'a JobsError,
    },
}

type Told = dyn Fn(WorkerEvent<'_>) + Send + Sync;

/// Works on jobs of some kinds.
pub struct JobWorker {
    jobs: Jobs,
    kinds: Vec<Arc<dyn JobKind>>,
    name: String,
    at_once: usize,
    told: Arc<Told>,
}

type Ended = (String, Result<JobEnding, JobsError>);

impl JobWorker {
    /// A worker of this name, which need not be unique, with at most `at_once` jobs at once.
    #[must_use]
    pub fn new(jobs: Jobs, kinds: Vec<Arc<dyn JobKind>>, name: impl Into<String>, at_once: usize) -> Self {
        Self { jobs, kinds, name: name.into(), at_once: at_once.max(1), told: Arc::new(|_| ()) }
    }

    /// Tells somebody what it does.
    #[must_use]
    pub fn telling(self, told: impl Fn(WorkerEvent<'_>) + Send + Sync + 'static) -> Self {
        Self { told: Arc::new(told), ..self }
    }

    /// Works until `shutdown`, then hands back what it has begun.
    ///
    /// # Errors
    /// When the table of jobs can't be read any more. What was begun is handed back before.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), JobsError> {
        let mut watch = Watch::start(&self.jobs.clients).await?;
        let stop = shutdown.child_token();
        let mut running: HashSet<String> = HashSet::new();
        let mut put_off: HashMap<String, Instant> = HashMap::new();
        let mut tasks: JoinSet<Ended> = JoinSet::new();
        let mut failed = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = tasks.join_next() => self.left(ended, &mut running, &mut put_off),
                () = tokio::time::sleep(LOOK_EVERY.mul_f64(0.5 + rand::random::<f64>())) => {}
            }
            put_off.retain(|_, until| *until > Instant::now());
            let waiting = match watch.waiting() {
                Ok(waiting) => waiting,
                Err(error) => {
                    failed = Some(error);
                    stop.cancel();
                    break;
                }
            };
            for job in waiting {
                let free = running.len() < self.at_once;
                let known = self.kinds.iter().find(|kind| kind.name() == job.kind);
                if let (Some(kind), true) = (known, free && !put_off.contains_key(&job.id))
                    && running.insert(job.id.clone())
                {
                    (self.told)(WorkerEvent::Taking(&job));
                    tasks.spawn(self.work(job.id, Arc::clone(kind), stop.clone()));
                }
            }
        }
        while let Some(ended) = tasks.join_next().await {
            self.left(ended, &mut running, &mut put_off);
        }
        failed.map_or(Ok(()), Err)
    }

    fn work(
        &self,
        id: String,
        kind: Arc<dyn JobKind>,
        stop: CancellationToken,
    ) -> impl Future<Output = Ended> + Send + 'static {
        let (jobs, name, told) = (self.jobs.clone(), self.name.clone(), Arc::clone(&self.told));
        async move {
            let mut working = move |job: &Job| told(WorkerEvent::Working(job));
            let ended = jobs.run(&id, kind.as_ref(), &name, &stop, &mut working).await;
            (id, ended)
        }
    }

    fn left(
        &self,
        ended: Result<Ended, tokio::task::JoinError>,
        running: &mut HashSet<String>,
        put_off: &mut HashMap<String, Instant>,
    ) {
        // Nothing in there panics but a defect; then the job stays taken here, and others get it.
        let Ok((id, ended)) = ended else { return };
        running.remove(&id);
        // What it has written itself is not seen at once.
        put_off.insert(id.clone(), Instant::now() + AFTER_AN_ERROR);
        match &ended {
            Ok(ending) => (self.told)(WorkerEvent::Left(ending)),
            Err(error) => {
                tracing::warn!(job = id, %error, "the job is left to others");
                (self.told)(WorkerEvent::Failed { id: &id, error });
            }
        }
    }
}
