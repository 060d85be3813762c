//! The built programs, asked about themselves.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The services, in the order of the flow.
pub const SERVICES: &[&str] = &["ingest", "chunk", "embed", "index", "generate", "eval", "retry"];

/// Root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Text of a file of the repository.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs a program of this build with exactly this environment; it must succeed.
pub fn run(name: &str, arguments: &[&str], environment: &BTreeMap<String, String>) -> String {
    let Output { status, stdout, stderr } = output(name, arguments, environment);
    assert!(status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// As [`run`], whatever comes of it.
pub fn output(name: &str, arguments: &[&str], environment: &BTreeMap<String, String>) -> Output {
    let mut folder = std::env::current_exe().unwrap();
    folder.pop();
    folder.pop();
    let program = folder.join(name);
    assert!(program.exists(), "{} is not built: run `make build` first", program.display());
    Command::new(program)
        .args(arguments)
        .env_clear()
        .env("HOME", "/nonexistent")
        .envs(environment)
        .current_dir(root())
        .output()
        .unwrap()
}
