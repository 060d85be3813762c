//! Splits documents into chunks that fit the embedding model.

use std::process::ExitCode;

use weir_chunk::{Chunker, Config};
use weir_contracts::Topic;
use weir_models::Tokenizer;

fn main() -> ExitCode {
    weir_service::main::<Config, _, _>(|config, service| async move {
        let shutdown = service.shutdown();
        let files = tokio::select! {
            files = weir_models::prepare(&config.model) => files?,
            () = shutdown.cancelled() => return Ok(()),
        };
        let model = format!("{}@{}", files.name(), files.revision());
        let chunker = Chunker::new(Tokenizer::load(&files)?, &model, &config.chunk)?;
        service.run_stage("chunk", Topic::DOCUMENTS, chunker).await?;
        Ok(())
    })
}
