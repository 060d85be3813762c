//! Writes vectors to Qdrant and moves each document's head.

use std::process::ExitCode;

use weir_contracts::Topic;
use weir_index::{Config, Index, Janitor};
use weir_vectors::VectorStore;

fn main() -> ExitCode {
    weir_service::main::<Config, _, _>(|config, service| async move {
        let store = VectorStore::connect(&config.qdrant)?;
        let janitor = Janitor::start(store.clone(), &config.index, service.shutdown());
        service.run_stage("index", Topic::EMBEDDINGS, Index::new(store, janitor)).await?;
        Ok(())
    })
}
