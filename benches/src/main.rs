//! Weir's benchmarks: ratios against something public in the same run.

mod chunking;
mod concurrent;
mod embed;
mod outage;
mod pipeline;
mod relay;
mod scrape;
mod state;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use color_eyre::eyre::{Result, ensure};
use serde_json::{Value, json};
use weir_testing::Broker;

/// Measures Weir. Machines are noisy: compare ratios of one run, not numbers of two.
#[derive(Parser)]
#[command(after_help = "Examples:\n  make bench\n  make bench BENCH=relay\n  make bench BENCH='relay embed'")]
struct Arguments {
    /// Which benchmarks to run; all when none is named.
    names: Vec<Bench>,
    /// Folder for the results, one JSON file a benchmark.
    #[arg(long, default_value = "bench-results")]
    out: PathBuf,
    /// Records of the relay.
    #[arg(long, default_value_t = 500_000)]
    records: usize,
    /// Repetitions where medians are reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Documents of the pipeline's throughput.
    #[arg(long, default_value_t = 600)]
    documents: usize,
    /// Short documents that pass while memory is measured.
    #[arg(long, default_value_t = 100_000)]
    short_documents: usize,
    /// Keys of the state.
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    /// Measure the embedder's peers too; makes their virtual environment.
    #[arg(long)]
    peers: bool,
    /// Seconds of each of the five parts of the outage drill.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    part_seconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// The runner's relay, exactly once and at least once, beside a bare loop.
    Relay,
    /// Weir's embedder beside candle's stock BERT and, with `--peers`, the usual runtimes.
    Embed,
    /// The whole pipeline beside the embedder alone.
    Pipeline,
    /// Document to searchable, question to answer, at low load.
    Latency,
    /// Peak memory of each service while many short documents pass.
    Memory,
    /// State: throughput with and without, and the time to own a lane with a million keys.
    State,
    /// How fast the chunk service cuts texts, on one core.
    Chunking,
    /// 10,000 records of one partition side by side, by key, with 0 to 5 ms of work each.
    Concurrent,
    /// The provider of models goes down for two minutes of five; fails when a target is missed.
    Outage,
}

impl Bench {
    fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Embed => "embed",
            Self::Pipeline => "pipeline",
            Self::Latency => "latency",
            Self::Memory => "memory",
            Self::State => "state",
            Self::Chunking => "chunking",
            Self::Concurrent => "concurrent",
            Self::Outage => "outage",
        }
    }
}

/// The middle of some figures.
fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

/// The figure below which `percent` of all lie; they get sorted.
fn percentile(figures: &mut [f64], percent: usize) -> f64 {
    figures.sort_by(f64::total_cmp);
    let place = (figures.len() * percent / 100).min(figures.len().saturating_sub(1));
    figures.get(place).copied().unwrap_or_default()
}

/// A figure that should reach a target.
fn at_least(reached: f64, wanted: f64) -> Value {
    json!({ "reached": reached, "at_least": wanted, "met": reached >= wanted })
}

/// A figure that should stay below a target.
fn at_most(reached: f64, wanted: f64) -> Value {
    json!({ "reached": reached, "at_most": wanted, "met": reached <= wanted })
}

/// Folder of the corpora; may not exist.
fn corpora() -> PathBuf {
    std::env::var_os("WEIR_CORPORA").map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from)
}

fn main() -> Result<()> {
    color_eyre::install()?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = Arguments::parse();
    // Kafka's client reports the end of a partition as an error.
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "error,rdkafka=off".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    std::fs::create_dir_all(&arguments.out)?;
    let names = if arguments.names.is_empty() { Bench::value_variants() } else { &arguments.names };
    let runtime = tokio::runtime::Runtime::new()?;
    for bench in names {
        println!("{}", bench.name());
        let figures = runtime.block_on(measure(*bench, &arguments))?;
        table(&figures, 2);
        write(&arguments.out, bench.name(), &figures)?;
        ensure!(*bench != Bench::Outage || all_met(&figures), "a target of the drill was missed, see above");
    }
    Ok(())
}

fn all_met(figures: &Value) -> bool {
    let targets = figures.get("targets").and_then(Value::as_object);
    targets.is_some_and(|targets| targets.values().all(|target| target.get("met") == Some(&Value::Bool(true))))
}

async fn measure(bench: Bench, arguments: &Arguments) -> Result<Value> {
    match bench {
        Bench::Relay => {
            let broker = tokio::task::block_in_place(|| Broker::start(|config| config));
            relay::run(&broker.stack.kafka_brokers(), arguments.records, arguments.rounds).await
        }
        Bench::Embed => embed::run(arguments.rounds, arguments.peers).await,
        Bench::Pipeline => pipeline::run(arguments.documents).await,
        Bench::Latency => pipeline::latency(100).await,
        Bench::Memory => pipeline::memory(arguments.short_documents).await,
        Bench::State => tokio::task::block_in_place(|| state::run(arguments.keys)),
        Bench::Chunking => chunking::run().await,
        Bench::Concurrent => concurrent::run(arguments.rounds).await,
        Bench::Outage => outage::run(Duration::from_secs(arguments.part_seconds)).await,
    }
}

fn table(figures: &Value, indent: usize) {
    let Value::Object(figures) = figures else { return };
    for (name, value) in figures {
        match value {
            Value::Object(_) => {
                println!("{:indent$}{name}", "");
                table(value, indent + 2);
            }
            Value::Number(number) => println!("{:indent$}{name:44} {:>14.2}", "", number.as_f64().unwrap_or_default()),
            other => println!("{:indent$}{name:44} {:>14}", "", other.to_string()),
        }
    }
}

fn write(folder: &Path, name: &str, figures: &Value) -> Result<()> {
    let file = folder.join(format!("{name}.json"));
    let result = json!({ "name": name, "machine": machine(), "commit": commit(), "figures": figures });
    std::fs::write(&file, serde_json::to_vec_pretty(&result)?)?;
    println!("  written to {}", file.display());
    Ok(())
}

fn machine() -> Value {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    json!({ "processor": model, "cores": std::thread::available_parallelism().map_or(0, usize::from) })
}

fn commit() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
