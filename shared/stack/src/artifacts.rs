//! Kafka and the schema registry, fetched once from Maven Central into the cache.
//!
//! Maven checks every file against the repository's checksum (`--strict-checksums`) and keeps whole files only, so an
//! interrupted download goes on with the file it was at. A folder appears under its final name when it is complete.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::{StackError, machine};

/// Something Maven can fetch.
struct Artifact {
    /// For messages.
    what: &'static str,
    /// For messages.
    size: &'static str,
    /// Name of its folder in the cache; a hash of the pom follows.
    folder: &'static str,
    pom: &'static str,
    goal: &'static str,
    /// A file that must be there afterwards.
    witness: &'static str,
}

impl Artifact {
    /// A changed pom means other files, so it gets a folder of its own.
    fn folder_name(&self) -> String {
        let pom_hash: String = hex::encode(Sha256::digest(self.pom)).chars().take(8).collect();
        format!("{}-{pom_hash}", self.folder)
    }
}

/// Names of the folders in the cache; they change with versions and poms.
pub(crate) fn folder_names() -> [String; 2] {
    [KAFKA.folder_name(), REGISTRY.folder_name()]
}

const KAFKA: Artifact = Artifact {
    what: "Apache Kafka 4.4.0",
    size: "43 MB",
    folder: "kafka-4.4.0",
    pom: include_str!("../../../deploy/dev/kafka/pom.xml"),
    goal: "dependency:copy-dependencies",
    witness: "kafka_2.13-4.4.0.jar",
};

const REGISTRY: Artifact = Artifact {
    what: "the Apicurio schema registry 3.0.9",
    size: "109 MB",
    folder: "apicurio-3.0.9",
    pom: include_str!("../../../deploy/dev/apicurio/pom.xml"),
    goal: "dependency:unpack",
    witness: REGISTRY_JAR,
};

/// The registry's program, in its folder.
pub(crate) const REGISTRY_JAR: &str = "apicurio-registry-app-3.0.9-runner.jar";

/// Folder with Kafka's jars. Downloads them the first time.
///
/// # Errors
/// When Maven is missing, the network fails, or the disk is full.
pub fn kafka() -> Result<PathBuf, StackError> {
    fetch(&KAFKA, &cache())
}

/// Folder with the unpacked schema registry. Downloads it the first time.
///
/// # Errors
/// As [`kafka`].
pub fn registry() -> Result<PathBuf, StackError> {
    fetch(&REGISTRY, &cache())
}

/// `$WEIR_CACHE`, or `weir` in the user's cache folder.
pub(crate) fn cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("WEIR_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|base| base.join("weir")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/weir")))
        .unwrap_or_else(|| std::env::temp_dir().join("weir-cache"))
}

fn fetch(artifact: &Artifact, cache: &Path) -> Result<PathBuf, StackError> {
    let folder = cache.join(artifact.folder_name());
    if folder.is_dir() {
        return Ok(folder);
    }
    fs::create_dir_all(cache).map_err(StackError::io(format!("create {}", cache.display())))?;
    let lock_path = cache.join("download.lock");
    let lock = File::create(&lock_path).map_err(StackError::io(format!("create {}", lock_path.display())))?;
    lock.lock().map_err(StackError::io("wait for another download"))?;
    if folder.is_dir() {
        return Ok(folder);
    }
    machine::check_room(cache, machine::DOWNLOAD_MIB)?;
    // A folder of its own: beside the pom Maven notes what it has unpacked, and does not unpack that again.
    let work = cache.join(format!(".{}-partial", artifact.folder));
    let (pom, draft) = (work.join("pom.xml"), work.join("files"));
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).map_err(StackError::io(format!("create {}", work.display())))?;
    fs::write(&pom, artifact.pom).map_err(StackError::io(format!("write {}", pom.display())))?;
    run_maven(artifact, &pom, &draft)?;
    if !draft.join(artifact.witness).is_file() {
        return Err(StackError::Download {
            what: artifact.what,
            reason: format!("Maven ended well but {} is not there", artifact.witness),
        });
    }
    fs::rename(&draft, &folder).map_err(StackError::io(format!("move {} into place", draft.display())))?;
    let _ = fs::remove_dir_all(&work);
    Ok(folder)
}

fn run_maven(artifact: &Artifact, pom: &Path, output: &Path) -> Result<(), StackError> {
    let mut maven = Command::new("mvn");
    maven.args(["--batch-mode", "--strict-checksums", "-Dstyle.color=never", "--file"]).arg(pom);
    maven.arg(artifact.goal).arg(format!("-DoutputDirectory={}", output.display()));
    // Its library for colours, which sets a terminal back at the end also where it did not colour anything.
    let options = std::env::var("MAVEN_OPTS").unwrap_or_default();
    maven.env("MAVEN_OPTS", format!("{options} -Djansi.noreset=true"));
    maven.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = maven.spawn().map_err(|_| StackError::MavenMissing { what: artifact.what })?;

    let progress = progress(artifact);
    let mut files = 0u32;
    let mut errors = Vec::new();
    for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(Result::ok) {
        if let Some((_, url)) = line.split_once("Downloading from ") {
            progress.set_message(url.rsplit('/').next().unwrap_or_default().to_owned());
        } else if line.contains("Downloaded from ") {
            files += 1;
            progress.set_position(u64::from(files));
        } else if let Some(error) = line.strip_prefix("[ERROR] ")
            && !error.trim().is_empty()
            && errors.len() < 2
        {
            errors.push(error.trim().to_owned());
        }
    }
    let status = child.wait().map_err(StackError::io("wait for Maven"))?;
    progress.finish_and_clear();
    if !status.success() {
        return Err(StackError::Download { what: artifact.what, reason: errors.join(" ") });
    }
    if !std::io::stderr().is_terminal() {
        eprintln!("fetched {}", artifact.what);
    }
    Ok(())
}

/// A line that lives while files arrive; where there is no terminal, one that says it began.
fn progress(artifact: &Artifact) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        eprintln!("fetching {} ({}) from Maven Central, once", artifact.what, artifact.size);
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {pos} files, {elapsed}  {msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(format!("fetching {} ({}) from Maven Central, once", artifact.what, artifact.size));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_was_removed_from_the_cache_is_fetched_again() {
        let cache = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let folder = fetch(&REGISTRY, cache.path()).unwrap();
            assert!(folder.join(REGISTRY_JAR).is_file());
            let names: Vec<_> = fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(
                names.iter().all(|name| *name == folder || name.ends_with("download.lock")),
                "left over: {names:?}"
            );
            fs::remove_dir_all(&folder).unwrap();
        }
    }
}
