//! How fast the chunk service cuts texts, by the time its one thread has worked on them.

use std::time::Duration;

use color_eyre::eyre::Result;
use serde_json::{Value, json};
use weir_models::ModelConfig;
use weir_testing::{Isolation, Pipeline};

use crate::at_least;
use crate::pipeline::{self, LANES, PATIENCE, REAL_MODEL, TENANT};
use crate::scrape::Metrics;

/// Documents of the corpus, at most.
const DOCUMENTS: usize = 5_000;
/// MB/s that are to be reached on one core.
const WANTED: f64 = 5.0;

/// Lets ingest extract the documents first, then chunk cut them with nobody else at work. MB are 10^6 bytes of text.
pub async fn run() -> Result<Value> {
    weir_models::prepare(&ModelConfig::default()).await?;
    let broker = pipeline::stack();
    let mut pipeline = Pipeline::new(&broker.stack, "chunking", LANES).await;
    let (documents, corpus) = pipeline::documents(DOCUMENTS);
    let expected = documents.len();
    pipeline.start("ingest", "0", &[]);
    pipeline.send(TENANT, documents).await;
    tokio::task::block_in_place(|| {
        pipeline.supervise_until("every document is extracted", PATIENCE, |pipeline| {
            pipeline.topics.read("documents", Isolation::Committed).len() >= expected
        });
    });
    pipeline.process("ingest", "0").terminate(Duration::from_secs(20));
    let port = pipeline::start(&mut pipeline, "chunk", &REAL_MODEL)?;
    tokio::task::block_in_place(|| {
        pipeline.supervise_until("every document is cut", PATIENCE, |pipeline| {
            pipeline.topics.lag("chunk", "documents") == 0
        });
    });
    let metrics = Metrics::of(port)?;
    let megabytes = metrics.sum("weir_chunk_text_bytes_total", "") / 1e6;
    let rate = megabytes / metrics.sum("weir_process_seconds_sum", "stage=\"chunk\"");
    let service = metrics.sum("weir_process_cpu_milliseconds_total", "") / 1e3;
    Ok(json!({
        "corpus": corpus,
        "documents": expected,
        "megabytes": megabytes,
        "mb_per_second": rate,
        "mb_per_cpu_second_of_the_service": megabytes / service,
        "targets": { "mb_per_second": at_least(rate, WANTED) },
    }))
}
