//! The file in which a detached supervisor says what it runs, and which others read.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::process::ProcessId;

/// What one service of the stack does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Not asked to run yet.
    Waiting,
    /// Its process runs, its first answer is awaited.
    Starting,
    /// It answered a real request.
    Ready,
    /// It ended by itself and will be started again.
    Restarting,
    /// It ended too often; the supervisor gave up on it.
    Failed,
    /// It was asked to end.
    Stopped,
}

/// State of one service of the stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceState {
    /// `kafka-1`, `registry` or `qdrant`.
    pub name: String,
    /// What it does.
    pub phase: Phase,
    /// Its process.
    pub process: Option<ProcessId>,
    /// Where it listens: `host:port` or a URL.
    pub address: String,
    /// Its log.
    pub log: PathBuf,
    /// How often it was started again after it had ended by itself.
    pub restarts: u32,
}

/// Where the services of a stack are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Kafka bootstrap servers.
    pub kafka: Option<String>,
    /// Base URL of the registry's Confluent API.
    pub registry: Option<String>,
    /// URL of Qdrant's gRPC.
    pub qdrant: Option<String>,
}

/// What a supervisor last wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackState {
    /// The supervisor.
    pub supervisor: ProcessId,
    /// Whether every service answered.
    pub ready: bool,
    /// Why it could not start or had to stop.
    pub error: Option<String>,
    /// Where the services are.
    pub endpoints: Endpoints,
    /// One entry for each process.
    pub services: Vec<ServiceState>,
}

impl StackState {
    /// What this process says as the supervisor of a stack of which nothing runs yet.
    pub(crate) fn starting() -> Self {
        Self {
            supervisor: ProcessId::own(),
            ready: false,
            error: None,
            endpoints: Endpoints::default(),
            services: Vec::new(),
        }
    }

    /// What the supervisor of the stack in folder `data` last wrote; nothing when there never was one.
    #[must_use]
    pub fn read(data: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(file(data)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Replaces the file in one step, so that a reader never sees half of it.
    pub(crate) fn write(&self, data: &Path) -> std::io::Result<()> {
        let path = file(data);
        let draft = path.with_extension("json.new");
        std::fs::write(&draft, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(draft, path)
    }

    /// Says that nothing runs.
    pub(crate) fn remove(data: &Path) {
        // Whoever reads a file that could not be removed sees that its processes are gone.
        let _ = std::fs::remove_file(file(data));
    }
}

/// Addresses of the stack that runs in folder `data`, if one does.
#[must_use]
pub fn running(data: &Path) -> Option<Endpoints> {
    StackState::read(data).filter(|state| state.supervisor.alive()).map(|state| state.endpoints)
}

fn file(data: &Path) -> PathBuf {
    folder(data).join("state.json")
}

/// The stack's own part of the data folder.
pub(crate) fn folder(data: &Path) -> PathBuf {
    data.join("stack")
}
