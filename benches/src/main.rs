//! Weir's benchmarks: ratios against something public in the same run.

mod relay;

use clap::Parser;
use color_eyre::eyre::Result;

/// Measures Weir. Machines are noisy: compare ratios of one run, not numbers of two.
#[derive(Parser)]
struct Arguments {
    /// Which benchmarks to run; all when none is named.
    names: Vec<String>,
    /// An existing broker to measure against, instead of a local one of its own.
    #[arg(long)]
    kafka: Option<String>,
    /// Records of the relay.
    #[arg(long, default_value_t = 500_000)]
    records: usize,
    /// Repetitions; medians are reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// The middle of some figures.
fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

#[tokio::main]
async fn main() -> Result<()> {
    color_eyre::install()?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = Arguments::parse();
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let brokers = arguments.kafka.clone().unwrap_or_default();
    println!("{:#}", relay::run(&brokers, arguments.records, arguments.rounds).await?);
    Ok(())
}
