//! What can be wrong with a machine, a folder or a service, each with its cure.

use std::io;
use std::path::PathBuf;

/// The stack can't do what it was asked. Every message ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// A port is in use.
    #[error(
        "port {port}, which {service} needs, is taken{}: stop that process, or choose another port (--kafka-port, \
         --registry-port, --qdrant-port)",
        holder.as_ref().map(|holder| format!(" by {holder}")).unwrap_or_default()
    )]
    PortTaken {
        /// Who needs it.
        service: String,
        /// Which.
        port: u16,
        /// Who has it, as far as this user may see.
        holder: Option<String>,
    },
    /// No free port was found.
    #[error("no free port between {from} and {to}: end what listens there")]
    NoFreePort {
        /// First that was tried.
        from: u16,
        /// Last that was tried.
        to: u16,
    },
    /// There is no Java.
    #[error(
        "Java was not found ({looked}): Kafka and the schema registry need version 17 or later. Install one \
         (Debian, Ubuntu: apt-get install openjdk-17-jre-headless), or set JAVA_HOME"
    )]
    JavaMissing {
        /// Where it was sought.
        looked: String,
    },
    /// Java is too old.
    #[error(
        "{program} is Java {found}, and Kafka needs 17 or later: install one (Debian, Ubuntu: apt-get install \
         openjdk-17-jre-headless) and set JAVA_HOME to its folder"
    )]
    JavaTooOld {
        /// The program that was asked.
        program: String,
        /// Its version.
        found: u32,
    },
    /// There is no Maven, and something must be downloaded.
    #[error(
        "Maven (mvn) was not found, and {what} must be downloaded once: install it (Debian, Ubuntu: apt-get install \
         maven)"
    )]
    MavenMissing {
        /// What it is needed for.
        what: &'static str,
    },
    /// A download failed.
    #[error(
        "downloading {what} failed: {reason}. What has arrived is kept: check the network (or the mirror in \
         ~/.m2/settings.xml) and run the command again"
    )]
    Download {
        /// What was fetched.
        what: &'static str,
        /// What Maven said.
        reason: String,
    },
    /// Too little memory.
    #[error(
        "{available_mib} MiB of memory are available, and this stack needs {needed_mib} MiB: close other programs, \
         start fewer brokers, or use existing servers (--kafka, --registry, --qdrant)"
    )]
    TooLittleMemory {
        /// MiB there are.
        available_mib: u64,
        /// MiB it takes.
        needed_mib: u64,
    },
    /// Too little disk.
    #[error(
        "{available_mib} MiB are free in {}, and the stack needs {needed_mib} MiB: make room, or choose a folder on \
         another disk with --data",
        path.display()
    )]
    TooLittleDisk {
        /// Where.
        path: PathBuf,
        /// MiB there are.
        available_mib: u64,
        /// MiB it takes.
        needed_mib: u64,
    },
    /// What lies in the data folder can't be used.
    #[error(
        "the data in {} can't be used: {reason}. If nothing in it is needed any more, remove that folder and start \
         again: documents have to be ingested again",
        path.display()
    )]
    CorruptData {
        /// Where.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The data folder belongs to another kind of stack.
    #[error(
        "the data in {} was made by {found}, not {wanted}: start it as it was, or choose another folder with --data",
        path.display()
    )]
    OtherShape {
        /// Where.
        path: PathBuf,
        /// What it was.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// Another supervisor has the data folder.
    #[error("another process already runs a stack in {}: `weir stack status` shows it, `weir stack down` ends it", path.display())]
    Locked {
        /// Where.
        path: PathBuf,
    },
    /// The Qdrant server's program was not found.
    #[error(
        "the program qdrant-embedded was not found ({looked}): build it with `cargo build -p qdrant-embedded`, or \
         name an existing Qdrant with --qdrant"
    )]
    QdrantMissing {
        /// Where it was sought.
        looked: String,
    },
    /// A service ended while it was being started.
    #[error("{service} ended while starting ({status}). The end of its log, {}:\n{tail}", log.display())]
    Ended {
        /// Which.
        service: String,
        /// How.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines that say something.
        tail: String,
    },
    /// A service did not answer in time.
    #[error(
        "{service} did not answer within {seconds} s ({last}): the machine may be too busy, or its log says more: {}",
        log.display()
    )]
    NotReady {
        /// Which.
        service: String,
        /// How long was waited.
        seconds: u64,
        /// What the last attempt said.
        last: String,
        /// Its log.
        log: PathBuf,
    },
    /// What was asked can't be combined.
    #[error("{0}")]
    Config(String),
    /// The detached supervisor says why it ended.
    #[error("{0}")]
    Supervisor(String),
    /// A file or program could not be used.
    #[error("can't {action}: {source}")]
    Io {
        /// What was tried, with the path.
        action: String,
        /// Why not.
        source: io::Error,
    },
}

impl StackError {
    /// For `map_err`: an IO error with what was tried.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}
