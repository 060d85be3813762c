//! One service of the stack: its process, its log, and the request that proves it works.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::probe::Probe;
use crate::process::{ProcessId, Supervised};
use crate::state::{Phase, ServiceState};
use crate::{StackError, ports};

/// A log that has grown larger than this starts anew; the one before is kept.
const LOG_LIMIT: u64 = 16 << 20;

/// How a service is started and asked.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub log: PathBuf,
    pub address: String,
    pub ports: Vec<u16>,
    pub probe: Probe,
    /// How long it may take to answer.
    pub patience: Duration,
    /// How long it gets to end when asked.
    pub grace: Duration,
}

/// A service, running or not.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    plan: Arc<Plan>,
    slot: Arc<Mutex<Slot>>,
}

#[derive(Debug)]
struct Slot {
    child: Option<Supervised>,
    phase: Phase,
    restarts: u32,
    /// Length of the log when the process was started.
    log_start: u64,
}

impl Unit {
    pub fn new(plan: Plan) -> Self {
        let slot = Slot { child: None, phase: Phase::Waiting, restarts: 0, log_start: 0 };
        Self { plan: Arc::new(plan), slot: Arc::new(Mutex::new(slot)) }
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the process, unless it runs, and returns when it has answered.
    pub async fn start(&self) -> Result<(), StackError> {
        self.launch()?;
        self.answered().await
    }

    /// Starts the process, unless it runs.
    pub fn launch(&self) -> Result<(), StackError> {
        let plan = &*self.plan;
        let mut slot = self.slot();
        if slot.child.as_mut().is_some_and(|child| child.ended().is_none()) {
            return Ok(());
        }
        slot.child = None;
        for port in &plan.ports {
            ports::check_free(&plan.name, *port)?;
        }
        slot.log_start = rotate(&plan.log);
        let child = Supervised::start(&plan.program, &plan.args, &plan.environment, &plan.log)
            .map_err(StackError::io(format!("start {} ({})", plan.name, plan.program.display())))?;
        tracing::debug!(service = plan.name, pid = child.id().pid, "started");
        slot.child = Some(child);
        slot.phase = Phase::Starting;
        Ok(())
    }

    /// Waits until the service answers its probe.
    pub async fn answered(&self) -> Result<(), StackError> {
        let plan = &*self.plan;
        let begin = Instant::now();
        let mut last = String::from("not asked yet");
        while begin.elapsed() < plan.patience {
            self.check_running()?;
            match tokio::time::timeout(plan.patience.saturating_sub(begin.elapsed()), plan.probe.ask()).await {
                Ok(Ok(())) => {
                    // Whoever answered must have been this process and not another on the same port.
                    self.check_running()?;
                    self.slot().phase = Phase::Ready;
                    tracing::debug!(service = plan.name, after_ms = begin.elapsed().as_millis(), "ready");
                    return Ok(());
                }
                Ok(Err(reason)) => last = reason,
                Err(_) => break,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.slot().phase = Phase::Failed;
        Err(StackError::NotReady {
            service: plan.name.clone(),
            seconds: plan.patience.as_secs(),
            last,
            log: plan.log.clone(),
        })
    }

    fn check_running(&self) -> Result<(), StackError> {
        let status = match self.slot().child.as_mut() {
            Some(child) => match child.ended() {
                None => return Ok(()),
                Some(status) => status.to_string(),
            },
            None => "it was stopped".to_owned(),
        };
        Err(StackError::Ended {
            service: self.plan.name.clone(),
            status,
            log: self.plan.log.clone(),
            tail: self.log_tail(),
        })
    }

    /// Whether it was started, was not asked to end, and ended all the same; or does not answer.
    pub fn died(&self) -> bool {
        let mut slot = self.slot();
        matches!(slot.phase, Phase::Ready | Phase::Starting | Phase::Restarting)
            && slot.child.as_mut().is_some_and(|child| child.ended().is_some())
    }

    /// Forgets a child that ended.
    pub fn bury(&self) {
        self.slot().child = None;
    }

    pub fn mark(&self, phase: Phase) {
        let mut slot = self.slot();
        if phase == Phase::Restarting {
            slot.restarts += 1;
        }
        slot.phase = phase;
    }

    pub fn state(&self) -> ServiceState {
        let slot = self.slot();
        ServiceState {
            name: self.plan.name.clone(),
            phase: slot.phase,
            process: slot.child.as_ref().map(Supervised::id),
            address: self.plan.address.clone(),
            log: self.plan.log.clone(),
            restarts: slot.restarts,
        }
    }

    pub fn process(&self) -> Option<ProcessId> {
        self.slot().child.as_ref().map(Supervised::id)
    }

    /// Asks the process to end, without waiting.
    pub fn terminate(&self) {
        let mut slot = self.slot();
        slot.phase = Phase::Stopped;
        if let Some(child) = slot.child.as_mut() {
            child.terminate();
        }
    }

    /// Asks the process to end and waits; kills it when that takes too long.
    pub async fn stop(&self) {
        self.terminate();
        let Some(child) = self.slot().child.take() else { return };
        let grace = self.plan.grace;
        // Fails only when the runtime shuts down, and then the child is dropped, which kills it.
        let _ = tokio::task::spawn_blocking(move || child.stop(grace)).await;
    }

    /// Ends the process with SIGKILL and waits until it is gone.
    pub fn kill(&self) {
        let mut slot = self.slot();
        slot.phase = Phase::Stopped;
        slot.child = None;
    }

    /// What the log says since the process was started: its complaints, or else its last lines.
    pub fn log_tail(&self) -> String {
        const LINES: usize = 12;
        let start = self.slot().log_start;
        let text = read_from(&self.plan.log, start).unwrap_or_default();
        let telling = |line: &&str| ["ERROR", "FATAL", "Exception", "Error", "error"].iter().any(|w| line.contains(w));
        let mut lines: Vec<&str> = text.lines().filter(telling).collect();
        if lines.is_empty() {
            lines = text.lines().collect();
        }
        let skip = lines.len().saturating_sub(LINES);
        lines.into_iter().skip(skip).map(|line| line.chars().take(400).collect::<String>() + "\n").collect()
    }
}

fn rotate(log: &PathBuf) -> u64 {
    let length = fs::metadata(log).map(|file| file.len()).unwrap_or(0);
    if length <= LOG_LIMIT {
        return length;
    }
    // Without rotation the log only grows further.
    match fs::rename(log, log.with_extension("log.1")) {
        Ok(()) => 0,
        Err(_) => length,
    }
}

fn read_from(log: &PathBuf, start: u64) -> std::io::Result<String> {
    let mut file = fs::File::open(log)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(LOG_LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
