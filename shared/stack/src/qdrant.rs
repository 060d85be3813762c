//! The embedded Qdrant server: this project's own program.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::folder::Folder;
use crate::probe::Probe;
use crate::unit::{Plan, Unit};
use crate::{StackConfig, StackError};

const PROGRAM: &str = "qdrant-embedded";

/// URL of the gRPC of a Qdrant on this machine.
pub(crate) fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// Plans the process.
pub(crate) fn prepare(config: &StackConfig, folder: &Folder, port: u16) -> Result<Unit, StackError> {
    let data = folder.root().join("qdrant").display().to_string();
    Ok(Unit::new(Plan {
        name: "qdrant".into(),
        program: program(config.qdrant_binary.as_deref())?,
        args: vec!["--data".into(), data, "--listen".into(), format!("127.0.0.1:{port}")],
        environment: Vec::new(),
        log: folder.log("qdrant"),
        address: url(port),
        ports: vec![port],
        probe: Probe::Qdrant { url: url(port) },
        patience: Duration::from_secs(60),
        grace: Duration::from_secs(10),
    }))
}

/// The named program, or the one beside the running program: there Cargo and the images put it.
fn program(named: Option<&Path>) -> Result<PathBuf, StackError> {
    if let Some(named) = named {
        return if named.is_file() { Ok(named.to_path_buf()) } else { Err(missing(&named.display().to_string())) };
    }
    let own = std::env::current_exe().map_err(StackError::io("find the running program"))?;
    // A test runs in `deps`, under the folder of the programs.
    let candidates: Vec<PathBuf> = own.ancestors().skip(1).take(2).map(|folder| folder.join(PROGRAM)).collect();
    let looked: Vec<_> = candidates.iter().map(|candidate| candidate.display().to_string()).collect();
    candidates.into_iter().find(|candidate| candidate.is_file()).ok_or_else(|| missing(&looked.join(", ")))
}

fn missing(looked: &str) -> StackError {
    StackError::QdrantMissing { looked: looked.to_owned() }
}
