//! A bounded pool of processes that read documents: a hang or a crash costs one document.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Semaphore;

use crate::formats::{Extracted, Hint, Limits, Refusal};
use crate::metric;
use crate::worker::{ARGUMENT, Answer, GREETING, Task};

/// A worker is replaced after this many documents, so that what parsers leak does not add up.
const DOCUMENTS_PER_WORKER: usize = 1_000;

/// How long a new worker may take to greet.
const START: Duration = Duration::from_secs(20);

/// The largest answer: text has at most a record's size, JSON at most six bytes for one.
const MAX_ANSWER: usize = 1 << 30;

/// How elapsed time is limited, as a multiple of the processor time: a busy machine must not make a document fail, a
/// process that neither works nor answers must.
const ELAPSED_FACTOR: u32 = 10;

/// The documents are fine; nothing could be started to read them, or something outside ended it.
#[derive(Debug, thiserror::Error)]
#[error("no process to read documents: {0}")]
pub struct PoolError(String);

/// What to start as a worker.
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    program: PathBuf,
    arguments: Vec<String>,
}

impl WorkerCommand {
    /// This program itself.
    ///
    /// # Errors
    /// When the system does not say which program that is.
    pub fn own() -> io::Result<Self> {
        // The link stays right when the file is replaced while the service runs.
        let link = Path::new("/proc/self/exe");
        let program = if link.exists() { link.to_owned() } else { std::env::current_exe()? };
        Ok(Self::new(program, [ARGUMENT]))
    }

    /// Another program.
    pub fn new<'a>(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        Self { program: program.into(), arguments: arguments.into_iter().map(str::to_owned).collect() }
    }
}

/// The pool. Workers start when they are needed.
#[derive(Debug)]
pub struct Pool {
    command: WorkerCommand,
    permits: Semaphore,
    idle: Mutex<Vec<Worker>>,
}

#[derive(Debug)]
struct Worker {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    documents: usize,
}

/// How a worker ended that was reading a document.
#[derive(Debug)]
enum End {
    Timeout,
    Crash(String),
    /// SIGKILL that this service did not send; the kernel does so when memory is short.
    Killed,
    /// Asked to stop by someone else.
    Stopped(String),
}

impl Pool {
    /// A pool of at most `workers` processes.
    #[must_use]
    pub fn new(workers: usize, command: WorkerCommand) -> Self {
        Self { command, permits: Semaphore::new(workers.max(1)), idle: Mutex::default() }
    }

    /// Extracts a document in a process of its own.
    ///
    /// # Errors
    /// When there is no such process; the inner result is about the document.
    pub async fn extract(&self, bytes: &[u8], hint: &Hint, limits: &Limits) -> Result<Answer, PoolError> {
        let _permit = self.permits.acquire().await.map_err(|closed| PoolError(closed.to_string()))?;
        let _busy = Busy::new();
        let used = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(worker) = used {
            match self.ask(worker, bytes, hint, limits).await? {
                Ok(answer) => return Ok(answer),
                Err(End::Timeout) => return Ok(Err(Refusal::Timeout { seconds: limits.max_seconds })),
                // What earlier documents left behind in a worker must not be held against this one: it is blamed only
                // for ending a new worker.
                Err(_) => {}
            }
        }
        let mut kills = 0;
        let how = loop {
            let worker = self.start().await?;
            match self.ask(worker, bytes, hint, limits).await? {
                Ok(answer) => return Ok(answer),
                Err(End::Killed) if kills == 0 => kills += 1,
                Err(End::Killed) => break "killed by the system, probably for its memory".to_owned(),
                Err(End::Crash(how)) => break how,
                Err(End::Timeout) => return Ok(Err(Refusal::Timeout { seconds: limits.max_seconds })),
                Err(End::Stopped(how)) => return Err(PoolError(how)),
            }
        };
        Ok(Err(Refusal::Crashed { how, memory: usize::try_from(limits.max_memory).unwrap_or(usize::MAX) }))
    }

    /// Has a worker read a document. It goes back to the pool if it answers.
    async fn ask(
        &self,
        mut worker: Worker,
        bytes: &[u8],
        hint: &Hint,
        limits: &Limits,
    ) -> Result<Result<Answer, End>, PoolError> {
        let task = Task { hint: hint.clone(), limits: *limits };
        let task = serde_json::to_vec(&task).map_err(|error| PoolError(error.to_string()))?;
        let elapsed = Duration::from_secs(limits.max_seconds).saturating_mul(ELAPSED_FACTOR);
        let end = match tokio::time::timeout(elapsed, worker.exchange(&task, bytes)).await {
            Ok(Ok(answer)) => {
                worker.documents += 1;
                if worker.documents < DOCUMENTS_PER_WORKER {
                    self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
                }
                return Ok(Ok(answer));
            }
            Ok(Err(error)) => worker.end(&error).await,
            Err(_) => {
                let _ = worker.child.kill().await;
                End::Timeout
            }
        };
        let reason = match &end {
            End::Timeout => "timeout",
            End::Crash(_) => "crash",
            End::Killed => "killed",
            End::Stopped(_) => "stopped",
        };
        metrics::counter!(metric::WORKERS_LOST, "reason" => reason).increment(1);
        tracing::warn!(reason, end = ?end, "a worker ended while it read a document");
        if let End::Stopped(how) = end {
            return Err(PoolError(how));
        }
        Ok(Err(end))
    }

    async fn start(&self) -> Result<Worker, PoolError> {
        let fail = |error: io::Error| PoolError(format!("{} does not start: {error}", self.command.program.display()));
        let mut child = Command::new(&self.command.program)
            .args(&self.command.arguments)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal is for the service, which lets the workers finish.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(fail)?;
        let closed = || fail(io::Error::from(io::ErrorKind::BrokenPipe));
        let input = child.stdin.take().ok_or_else(closed)?;
        let output = child.stdout.take().ok_or_else(closed)?;
        let mut worker = Worker { child, input, output, documents: 0 };
        let greeting = tokio::time::timeout(START, worker.read()).await;
        match greeting.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut))) {
            Ok(greeting) if greeting == GREETING => {}
            Ok(_) => return Err(fail(io::Error::other("it is another version"))),
            Err(error) => return Err(fail(error)),
        }
        metrics::counter!(metric::WORKERS_STARTED).increment(1);
        Ok(worker)
    }
}

impl Worker {
    async fn exchange(&mut self, task: &[u8], bytes: &[u8]) -> io::Result<Answer> {
        self.write(task).await?;
        self.write(bytes).await?;
        let answer = self.read().await?;
        Ok(serde_json::from_slice::<Result<Extracted, Refusal>>(&answer)?)
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.input.write_all(&length.to_le_bytes()).await?;
        self.input.write_all(bytes).await?;
        self.input.flush().await
    }

    async fn read(&mut self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.output.read_u32_le().await?).map_err(io::Error::other)?;
        if length > MAX_ANSWER {
            return Err(io::Error::other("an answer without end"));
        }
        let mut bytes = Vec::new();
        (&mut self.output).take(u64::try_from(length).unwrap_or(u64::MAX)).read_to_end(&mut bytes).await?;
        if bytes.len() < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        Ok(bytes)
    }

    /// Why it no longer answers.
    async fn end(&mut self, error: &io::Error) -> End {
        let ended = tokio::time::timeout(Duration::from_secs(2), self.child.wait()).await;
        match ended {
            Ok(Ok(status)) => end_of(status),
            _ => {
                // It runs, but what it said is no answer.
                let _ = self.child.kill().await;
                End::Crash(error.to_string())
            }
        }
    }
}

fn end_of(status: ExitStatus) -> End {
    const SIGHUP: i32 = 1;
    const SIGINT: i32 = 2;
    const SIGKILL: i32 = 9;
    const SIGTERM: i32 = 15;
    const SIGXCPU: i32 = 24;
    match status.signal() {
        Some(SIGXCPU) => End::Timeout,
        Some(SIGKILL) => End::Killed,
        Some(SIGHUP | SIGINT | SIGTERM) => End::Stopped(format!("it was told to stop ({status})")),
        _ => End::Crash(status.to_string()),
    }
}

/// Counts a worker as busy while it lives.
struct Busy;

impl Busy {
    fn new() -> Self {
        metrics::gauge!(metric::WORKERS_BUSY).increment(1.0);
        Self
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        metrics::gauge!(metric::WORKERS_BUSY).decrement(1.0);
    }
}
