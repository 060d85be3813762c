//! Class-data archives of the JVM: what a program loads at its start, laid out once, mapped ever after.
//!
//! They halve the processor time of a start (Kafka 3.5 s to 2.0 s, registry 3.6 s to 1.8 s on one machine), which tests
//! that start dozens of stacks feel. They are made once for each Java, by starting everything a single time. Nothing
//! depends on them: where they can't be made, starts are slower.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::folder::Folder;
use crate::stack::ChosenPorts;
use crate::{Stack, StackConfig, StackError, artifacts};

/// How long the JVM may take to write an archive when it ends.
pub(crate) const RECORD_GRACE: Duration = Duration::from_secs(60);

/// What a JVM does about archives.
#[derive(Debug, Clone)]
pub(crate) enum Classes {
    /// Nothing.
    Plain,
    /// Maps the archives of this folder.
    Mapped(PathBuf),
    /// Writes archives to this folder when it ends.
    Recorded(PathBuf),
}

impl Classes {
    /// The JVM's argument for program `name`.
    pub fn argument(&self, name: &str) -> Option<String> {
        match self {
            Self::Plain => None,
            Self::Mapped(folder) => Some(format!("-XX:SharedArchiveFile={}", file(folder, name).display())),
            Self::Recorded(folder) => Some(format!("-XX:ArchiveClassesAtExit={}", file(folder, name).display())),
        }
    }

    pub fn recording(&self) -> bool {
        matches!(self, Self::Recorded(_))
    }
}

fn file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.jsa"))
}

/// The archives for this Java; made now if there are none.
pub(crate) fn prepared(config: &StackConfig, java: &Path) -> Classes {
    // A registry without Kafka runs on other classes, and is rare.
    if !config.kafka {
        return Classes::Plain;
    }
    match find_or_record(config, java) {
        Ok(folder) => Classes::Mapped(folder),
        Err(error) => {
            tracing::debug!(%error, "no class-data archives: services start more slowly");
            Classes::Plain
        }
    }
}

fn find_or_record(config: &StackConfig, java: &Path) -> Result<PathBuf, StackError> {
    let names: &[&str] = if config.registry { &["kafka", "registry"] } else { &["kafka"] };
    let folder = artifacts::cache().join(format!("classes-{}", identity(java)?));
    let missing = || names.iter().filter(|name| !file(&folder, name).is_file()).copied().collect::<Vec<_>>();
    if missing().is_empty() {
        return Ok(folder);
    }
    fs::create_dir_all(&folder).map_err(StackError::io(format!("create {}", folder.display())))?;
    let path = folder.join("lock");
    let lock = File::create(&path).map_err(StackError::io(format!("create {}", path.display())))?;
    lock.lock().map_err(StackError::io("wait for another process"))?;
    let missing = missing();
    if missing.is_empty() {
        return Ok(folder);
    }
    eprintln!("preparing quick starts of {}, once", missing.join(" and "));
    let draft = folder.join("partial");
    let _ = fs::remove_dir_all(&draft);
    fs::create_dir_all(&draft).map_err(StackError::io(format!("create {}", draft.display())))?;
    let result = record(config, java, &draft).and_then(|()| {
        missing.iter().try_for_each(|name| {
            fs::rename(file(&draft, name), file(&folder, name)).map_err(StackError::io(format!("keep {name}.jsa")))
        })
    });
    let _ = fs::remove_dir_all(&draft);
    result.map(|()| folder)
}

/// Starts everything once and lets it end in order. On a thread of its own: the caller may be inside a runtime.
fn record(config: &StackConfig, java: &Path, draft: &Path) -> Result<(), StackError> {
    let training = StackConfig {
        qdrant: false,
        registry: config.registry,
        broker_heap_mib: config.broker_heap_mib,
        ..StackConfig::for_test(draft.join("data"))
    };
    let (java, folder) = (java.to_path_buf(), draft.to_path_buf());
    let broke = || StackError::Supervisor("recording class data broke off".into());
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(StackError::io("start a runtime"))?;
        runtime.block_on(async {
            let data = Folder::open(&training.data)?;
            let ports = ChosenPorts::choose(&training)?;
            let stack = Stack::assemble(training, data, &ports, &java, &Classes::Recorded(folder))?;
            stack.launch().await?;
            stack.stop().await;
            Ok(())
        })
    });
    thread.join().map_err(|_| broke())?
}

/// What an archive depends on: the Java and the programs, whose folders name versions and poms.
fn identity(java: &Path) -> Result<String, StackError> {
    let output = Command::new(java).arg("-version").output().map_err(StackError::io("run java -version"))?;
    let mut hash = Sha256::new();
    hash.update(java.as_os_str().as_encoded_bytes());
    hash.update(&output.stderr);
    hash.update(artifacts::cache().as_os_str().as_encoded_bytes());
    for name in artifacts::folder_names() {
        hash.update(name);
    }
    Ok(hex::encode(hash.finalize()).chars().take(12).collect())
}
