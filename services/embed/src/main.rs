//! Turns chunks into vectors.

mod config;
mod embed;

use std::process::ExitCode;
use std::sync::Arc;

use color_eyre::eyre::Context as _;
use tokio::task::spawn_blocking;
use weir_contracts::Topic;
use weir_models::Embedder;

use crate::config::Config;
use crate::embed::Embed;

fn main() -> ExitCode {
    weir_service::main::<Config, _, _>(|config, service| async move {
        let shutdown = service.shutdown();
        let files = tokio::select! {
            files = weir_models::prepare(&config.model) => files?,
            () = shutdown.cancelled() => return Ok(()),
        };
        let embedder = spawn_blocking(move || Embedder::load(&config.model, &files)).await.wrap_err("loading")??;
        service.run_stage("embed", Topic::CHUNKS, Embed::new(Arc::new(embedder))).await?;
        Ok(())
    })
}
