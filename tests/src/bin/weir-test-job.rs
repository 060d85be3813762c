//! A worker for jobs to hurt, as a process of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tokio_util::sync::CancellationToken;
use weir_runner::{JobKind, JobWorker, Jobs, KafkaConfig, Registry, RegistryConfig};
use weir_tests::files_job::Files;
use weir_tests::program;

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    prefix: String,
    #[arg(long)]
    registry: String,
    #[arg(long)]
    name: String,
    /// Where it notes the files that it reads.
    #[arg(long)]
    log: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    program::main(|shutdown| run(arguments, shutdown)).await
}

async fn run(arguments: Arguments, shutdown: CancellationToken) -> Result<(), String> {
    let kafka = KafkaConfig { brokers: arguments.brokers, prefix: arguments.prefix, ..KafkaConfig::default() };
    let registry = RegistryConfig { url: arguments.registry, ..RegistryConfig::default() };
    let registry = Registry::new(&registry, &kafka.prefix).map_err(|error| error.to_string())?;
    let kind: Arc<dyn JobKind> = Arc::new(Files { log: arguments.log });
    let worker = JobWorker::new(Jobs::new(&kafka, registry), vec![kind], arguments.name, 2);
    worker.run(shutdown).await.map_err(|error| error.to_string())
}
