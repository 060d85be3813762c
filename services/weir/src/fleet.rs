//! The services as `weir up` runs them: which instances, where, and how they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use color_eyre::eyre::{WrapErr, bail, eyre};
use serde::{Deserialize, Serialize};
use weir_stack::{Phase, ProcessId};

use crate::pipeline::{self, SERVICES};

/// Instances of one service, at most: their ports lie 10 apart.
const MOST_INSTANCES: u16 = 16;
/// Between the ports of two instances of a service.
const PORT_STEP: u16 = 10;

/// What the supervisor of the services is asked to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Configuration file of all services.
    pub config: PathBuf,
    /// Each instance.
    pub instances: Vec<Instance>,
}

/// One process to be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// `<service>-<number>`, also the runner's instance name.
    pub name: String,
    /// Its service.
    pub service: String,
    /// The program.
    pub program: PathBuf,
    /// Port of its health server.
    pub port: u16,
    /// Its log.
    pub log: PathBuf,
}

/// What the supervisor last wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetState {
    /// The supervisor.
    pub supervisor: ProcessId,
    /// Each instance.
    pub instances: Vec<InstanceState>,
}

/// How one instance is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceState {
    /// Its name.
    pub name: String,
    /// Its service.
    pub service: String,
    /// What it does.
    pub phase: Phase,
    /// Its process.
    pub process: Option<ProcessId>,
    /// Base URL of its health server.
    pub url: String,
    /// Its log.
    pub log: PathBuf,
    /// How often it was started again.
    pub restarts: u32,
    /// How it ended last, if it did.
    pub last_exit: Option<String>,
}

impl FleetState {
    /// What the supervisor in folder `data` last wrote; nothing when there never was one.
    #[must_use]
    pub fn read(data: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(folder(data).join("state.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// The state, if its supervisor still runs.
    #[must_use]
    pub fn running(data: &Path) -> Option<Self> {
        Self::read(data).filter(|state| state.supervisor.alive())
    }

    /// Replaces the file in one step, so that a reader never sees half of it.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn write(&self, data: &Path) -> std::io::Result<()> {
        replace(&folder(data).join("state.json"), &serde_json::to_vec_pretty(self)?)
    }

    /// Whether every instance said that it is ready.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.instances.iter().all(|instance| instance.phase == Phase::Ready)
    }
}

impl Plan {
    /// The plan of the supervisor in folder `data`.
    ///
    /// # Errors
    /// When there is none or it can't be read.
    pub fn read(data: &Path) -> color_eyre::Result<Self> {
        let path = folder(data).join("plan.json");
        let text = std::fs::read_to_string(&path).wrap_err_with(|| format!("can't read {}", path.display()))?;
        serde_json::from_str(&text).wrap_err_with(|| format!("{} is not a plan", path.display()))
    }

    /// Replaces the plan of the supervisor, which follows it.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn write(&self, data: &Path) -> std::io::Result<()> {
        replace(&folder(data).join("plan.json"), &serde_json::to_vec_pretty(self)?)
    }

    /// The instances of every service: one each, but for what `counts` says.
    ///
    /// # Errors
    /// When a program is missing, a port is taken, or a count is out of range.
    pub fn new(data: &Path, config: PathBuf, counts: &BTreeMap<String, u16>, ports: Ports) -> color_eyre::Result<Self> {
        for (name, count) in counts {
            if pipeline::service(name).is_none() {
                let names: Vec<_> = SERVICES.iter().map(|service| service.name).collect();
                bail!("there is no service {name}; services are {}", names.join(", "));
            }
            if *count > MOST_INSTANCES {
                bail!("{name}={count}: at most {MOST_INSTANCES} instances of a service on one machine");
            }
        }
        let mut free = FreePorts::default();
        let mut instances = Vec::new();
        for service in SERVICES {
            let program = program(service.name)?;
            for number in 1..=counts.get(service.name).copied().unwrap_or(1) {
                let name = format!("{}-{number}", service.name);
                let port = match ports {
                    Ports::Fixed => service.port + (number - 1) * PORT_STEP,
                    Ports::Free => free.next()?,
                };
                let log = logs(data).join(format!("{name}.log"));
                instances.push(Instance { name, service: service.name.into(), program: program.clone(), port, log });
            }
        }
        Ok(Self { config, instances })
    }

    /// Refuses ports that something else listens on.
    ///
    /// # Errors
    /// Names the first such port and what to do.
    pub fn check_ports(&self, except: &[u16]) -> color_eyre::Result<()> {
        for instance in self.instances.iter().filter(|instance| !except.contains(&instance.port)) {
            std::net::TcpListener::bind(("127.0.0.1", instance.port)).map_err(|error| {
                eyre!(
                    "port {} of {} can't be used: {error}; end what listens there, or use --free-ports",
                    instance.port,
                    instance.name
                )
            })?;
        }
        Ok(())
    }
}

/// Which ports the health servers get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// Those of the documentation.
    Fixed,
    /// Any that are free.
    Free,
}

/// Ports that were free a moment ago. Held together until all are chosen, so that none is chosen twice.
#[derive(Default)]
struct FreePorts(Vec<std::net::TcpListener>);

impl FreePorts {
    fn next(&mut self) -> color_eyre::Result<u16> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").wrap_err("no free port")?;
        let port = listener.local_addr()?.port();
        self.0.push(listener);
        Ok(port)
    }
}

/// The program of a service lies beside this one.
fn program(service: &str) -> color_eyre::Result<PathBuf> {
    let own = std::env::current_exe().wrap_err("can't find out where this program lies")?;
    let folder = own.parent().unwrap_or(Path::new("."));
    let program = folder.join(format!("weir-{service}"));
    if !program.is_file() {
        bail!(
            "{} is missing: the services' programs lie beside `weir` itself; build them all with `cargo build`",
            program.display()
        );
    }
    Ok(program)
}

/// The services' part of the data folder.
#[must_use]
pub fn folder(data: &Path) -> PathBuf {
    data.join("services")
}

/// Where the services' logs are.
#[must_use]
pub fn logs(data: &Path) -> PathBuf {
    data.join("logs")
}

/// Where services keep the state of their lanes: in the folder of the cluster that is the truth behind it.
#[must_use]
pub fn lane_state(data: &Path) -> PathBuf {
    data.join("lane-state")
}

/// The last lines of a log, for an error message.
#[must_use]
pub fn last_lines(log: &Path, count: usize) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<_> = text.lines().rev().take(count).map(|line| format!("    {line}")).collect();
    lines.reverse();
    lines.join("\n")
}

fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let draft = path.with_extension("json.new");
    std::fs::write(&draft, bytes)?;
    std::fs::rename(draft, path)
}
