//! Turns chunks into vectors.

mod cache;
mod config;
mod embed;
mod generation;
mod metric;

use std::process::ExitCode;
use std::sync::Arc;

use color_eyre::eyre::Context as _;
use tokio::task::spawn_blocking;
use weir_contracts::Topic;
use weir_models::{Embedder, ModelError};

use crate::cache::VectorCache;
use crate::config::Config;
use crate::embed::Embed;

fn main() -> ExitCode {
    weir_service::main::<Config, _, _>(|config, service| async move {
        let shutdown = service.shutdown();
        let files = tokio::select! {
            files = weir_models::prepare(&config.model) => files?,
            () = shutdown.cancelled() => return Ok(()),
        };
        let state = config.runner.state_dir.clone();
        let load = move || {
            let embedder = Embedder::load(&config.model, &files)?;
            Ok::<_, ModelError>((Arc::new(embedder), VectorCache::configured(&config.embed, &state)))
        };
        let (embedder, cache) = spawn_blocking(load).await.wrap_err("loading")??;
        let stage = Embed::new(embedder, cache.clone());
        let ended = service.run_stage("embed", Topic::CHUNKS, stage).await;
        if let Some(cache) = cache {
            spawn_blocking(move || cache.flush()).await.wrap_err("writing the cache")?;
        }
        ended?;
        Ok(())
    })
}
