//! A small server that speaks the part of Qdrant's gRPC that Weir uses, over Qdrant's own engine.
//!
//! For development and tests on one machine: one process, one shard a collection, exact search. What it does not
//! support it answers with UNIMPLEMENTED; it never leaves out silently what would change a result.
//!
//! - **Invariant:** a write with `wait` is on disk before it is answered. A SIGKILL at any moment loses nothing that
//!   was answered.
//! - **Invariant:** one thread writes to a collection; one process has a data folder.

mod catalog;
mod collection;
mod collections;
mod convert;
mod journal;
mod points;
mod refusal;
mod server;
mod writer;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use color_eyre::eyre::WrapErr;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::catalog::Catalog;
use crate::server::ApiKey;

/// A small server that speaks the part of Qdrant's gRPC that Weir uses.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Folder of the collections; made when it is not there. One process at a time.
    #[arg(long, value_name = "DIR", default_value = "qdrant-data")]
    data: PathBuf,
    /// Address to serve gRPC on; port 0 picks a free one, which is printed.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6334")]
    listen: SocketAddr,
    /// Ask clients for this key.
    #[arg(long, value_name = "KEY", env = "QDRANT_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// What to log, for example `info` or `qdrant_embedded=debug`.
    #[arg(long, value_name = "FILTER", env = "QDRANT_LOG", default_value = "info,qdrant_edge=error")]
    log: String,
}

const EXAMPLES: &str = "Examples:
  qdrant-embedded --data ./qdrant
  qdrant-embedded --data ./qdrant --listen 127.0.0.1:0 --api-key secret

When it is ready it prints one line to standard output:
  qdrant-embedded ready on 127.0.0.1:6334

SIGTERM and SIGINT write everything to disk and end it with status 0.";

fn main() -> ExitCode {
    match start(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("qdrant-embedded: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> color_eyre::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&arguments.log).wrap_err("--log is not a filter")?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> color_eyre::Result<()> {
    // Before the listener: who sees an open port may use it.
    let data = arguments.data.clone();
    let catalog = tokio::task::spawn_blocking(move || Catalog::open(&data)).await??;
    let listener = TcpListener::bind(arguments.listen)
        .await
        .wrap_err_with(|| format!("can't listen on {}: choose another address with --listen", arguments.listen))?;
    let address = listener.local_addr()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping");
    };
    println!("qdrant-embedded ready on {address}");
    server::serve(listener, &catalog, arguments.api_key.map(ApiKey::new), stop).await?;
    tokio::task::spawn_blocking(move || catalog.close()).await??;
    Ok(())
}
