//! The data folder: who may use it, which cluster lives in it, and what an earlier supervisor left running.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::state::{StackState, folder};
use crate::{StackConfig, StackError};

/// The stack's part of a data folder, locked for this process.
///
/// **Invariant:** at most one process runs a stack in a data folder: the lock is the kernel's and goes with the
/// process.
#[derive(Debug)]
pub(crate) struct Folder {
    data: PathBuf,
    root: PathBuf,
    _lock: File,
}

/// Identity of the cluster in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cluster {
    version: u32,
    /// As Kafka wants it: 16 bytes in URL-safe base64.
    pub id: String,
    brokers: u16,
    secured: bool,
}

const VERSION: u32 = 1;

impl Folder {
    /// Creates and locks the folder, and ends what an earlier supervisor that was killed may have left.
    pub fn open(data: &Path) -> Result<Self, StackError> {
        let root = folder(data);
        fs::create_dir_all(root.join("logs")).map_err(StackError::io(format!("create {}", root.display())))?;
        // Children get absolute paths: they may run elsewhere.
        let root = root.canonicalize().map_err(StackError::io(format!("find {}", root.display())))?;
        let path = root.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(StackError::io(format!("open {}", path.display())))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StackError::Locked { path: data.to_path_buf() }),
            Err(TryLockError::Error(error)) => return Err(StackError::io(format!("lock {}", path.display()))(error)),
        }
        end_orphans(data);
        Ok(Self { data: data.to_path_buf(), root, _lock: lock })
    }

    /// The folder the user named.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The stack's part of it, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn log(&self, service: &str) -> PathBuf {
        log_file(&self.root, service)
    }

    /// The cluster that lives here: read, or invented the first time.
    pub fn cluster(&self, config: &StackConfig) -> Result<Cluster, StackError> {
        let path = self.root.join("cluster.json");
        let wanted = Cluster {
            version: VERSION,
            id: new_cluster_id(),
            brokers: config.brokers,
            secured: config.security.is_some(),
        };
        if !path.exists() {
            // The name goes last in a start that is interrupted, so a cluster without it was never used.
            let text = serde_json::to_string_pretty(&wanted).unwrap_or_default();
            fs::write(&path, text).map_err(StackError::io(format!("write {}", path.display())))?;
            return Ok(wanted);
        }
        let corrupt = |reason: String| StackError::CorruptData { path: self.root.clone(), reason };
        let text = fs::read_to_string(&path).map_err(|error| corrupt(format!("{}: {error}", path.display())))?;
        let found: Cluster = serde_json::from_str(&text)
            .map_err(|error| corrupt(format!("{} is not valid: {error}", path.display())))?;
        if found.version != VERSION || found.brokers != wanted.brokers || found.secured != wanted.secured {
            return Err(StackError::OtherShape {
                path: self.root.clone(),
                found: found.describe(),
                wanted: wanted.describe(),
            });
        }
        Ok(found)
    }
}

impl Cluster {
    fn describe(&self) -> String {
        let plural = if self.brokers == 1 { "" } else { "s" };
        let security = if self.secured { " with SASL_SSL" } else { "" };
        format!("a stack of {} broker{plural}{security}", self.brokers)
    }
}

/// The log of a service of the stack whose own folder is `root`.
pub(crate) fn log_file(root: &Path, service: &str) -> PathBuf {
    root.join("logs").join(format!("{service}.log"))
}

/// The logs of the stack in folder `data`: name of the service, and file. The supervisor's own first.
#[must_use]
pub fn logs(data: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder(data).join("logs"));
    let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    let mut logs: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .filter_map(|path| Some((path.file_stem()?.to_string_lossy().into_owned(), path)))
        .collect();
    logs.sort_by_key(|(name, _)| (name != "supervisor", name.clone()));
    logs
}

/// Ends processes that a supervisor that is gone had started. Which they are is told by number and start time, so no
/// stranger is ever hit. Returns how many there were.
pub(crate) fn end_orphans(data: &Path) -> usize {
    let Some(state) = StackState::read(data) else { return 0 };
    let orphans: Vec<_> =
        state.services.iter().filter_map(|service| service.process).filter(|process| process.alive()).collect();
    for process in &orphans {
        tracing::warn!(pid = process.pid, "ending a process that a killed supervisor left");
        process.end(Duration::from_secs(5));
    }
    orphans.len()
}

/// 22 letters and digits, as Kafka wants them.
pub(crate) fn new_cluster_id() -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    // 128 bits are 21 whole base64 digits and two bits more.
    const LAST: &[u8] = b"AQgw";
    let pick = |from: &[u8]| char::from(from.get(rand::random_range(0..from.len())).copied().unwrap_or(b'A'));
    (0..21).map(|_| pick(LETTERS)).chain([pick(LAST)]).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::process::{ProcessId, Supervised};
    use crate::state::{Endpoints, Phase, ServiceState};

    #[test]
    fn what_a_killed_supervisor_left_is_ended_and_strangers_are_not() {
        let data = tempfile::tempdir().unwrap();
        let root = folder(data.path());
        fs::create_dir_all(&root).unwrap();
        let sleep = || {
            let log = root.join("log");
            Supervised::start(Path::new("/bin/sleep"), &["600".into()], &[], &log).unwrap()
        };
        let (mut orphan, mut stranger) = (sleep(), sleep());
        // The stranger has the number of a service that ended long ago, but began at another time.
        let reused = ProcessId { started: stranger.id().started + 1, ..stranger.id() };
        let service = |process| ServiceState {
            name: "kafka-1".into(),
            phase: Phase::Ready,
            process: Some(process),
            address: String::new(),
            log: root.join("log"),
            restarts: 0,
        };
        let state = StackState {
            supervisor: ProcessId { pid: i32::MAX, started: 1 },
            ready: true,
            error: None,
            endpoints: Endpoints::default(),
            services: vec![service(orphan.id()), service(reused)],
        };
        state.write(data.path()).unwrap();
        assert_eq!(end_orphans(data.path()), 1);
        assert!(orphan.ended().is_some());
        assert!(stranger.ended().is_none());
    }

    #[test]
    fn a_cluster_keeps_its_id_and_a_broken_file_is_named() {
        let data = tempfile::tempdir().unwrap();
        let config = StackConfig::for_test(data.path());
        let folder = Folder::open(data.path()).unwrap();
        let first = folder.cluster(&config).unwrap();
        assert_eq!(first, folder.cluster(&config).unwrap());
        assert_eq!(first.id.len(), 22);
        assert!(matches!(Folder::open(data.path()), Err(StackError::Locked { .. })));
        fs::write(folder.root().join("cluster.json"), "{").unwrap();
        let error = folder.cluster(&config).map_err(|error| error.to_string());
        assert!(matches!(&error, Err(text) if text.contains("cluster.json")), "{error:?}");
    }
}
