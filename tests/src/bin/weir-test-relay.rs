//! A stage to hurt: copies records from `relay-in` to `relay-out`, as a process of its own.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio_util::sync::CancellationToken;
use weir_contracts::{Raw, Topic};
use weir_runner::{Concurrency, KafkaConfig, Order, Registry, RegistryConfig, Runner, RunnerConfig};
use weir_stage::{Batch, ConcurrentStage, Delivery, Failure, LaneState, Outcome, Output, Stage, StageError};
use weir_tests::program;

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    prefix: String,
    #[arg(long, default_value = "0")]
    instance: String,
    /// Milliseconds of work for each batch.
    #[arg(long, default_value_t = 0)]
    work_ms: u64,
    #[arg(long, default_value_t = 200)]
    batch: usize,
    #[arg(long, default_value_t = 3_000)]
    session_timeout_ms: u64,
    #[arg(long)]
    static_membership: bool,
    #[arg(long, default_value_t = 4_000)]
    transaction_timeout_ms: u64,
    /// Keeps transactions open this long, so that kills find them open.
    #[arg(long, default_value_t = 0)]
    commit_interval_ms: u64,
    #[arg(long)]
    at_least_once: bool,
    /// Counts the records of each key in the state of their lane, kept in this folder, and writes the counts instead of
    /// the values. The value `forget` removes the key's count.
    #[arg(long)]
    count_in: Option<PathBuf>,
    /// Size of a count in the state.
    #[arg(long, default_value_t = 8)]
    value_bytes: usize,
    /// URL of the schema registry; only what is no plain bytes needs it.
    #[arg(long)]
    registry: Option<String>,
    /// Rejects records whose value begins with `bad` while this file exists.
    #[arg(long)]
    reject_while: Option<PathBuf>,
    /// Works on so many records side by side, on each as many milliseconds as its value says behind the last `:`.
    #[arg(long)]
    concurrent: Option<NonZeroUsize>,
    /// Records with the same key one after another.
    #[arg(long, requires = "concurrent")]
    by_key: bool,
    /// Says in the log on which record work begins.
    #[arg(long)]
    announce: bool,
    #[arg(long, default_value_t = RunnerConfig::default().flood_consecutive)]
    flood_consecutive: u32,
}

/// What every record meets.
struct Conditions {
    work: Duration,
    reject_while: Option<PathBuf>,
}

impl Conditions {
    /// Why the record is rejected, if it is.
    fn refuse(&self, Raw(value): &Raw) -> Option<Outcome> {
        let bad = value.starts_with(b"bad") && self.reject_while.as_ref().is_some_and(|file| file.exists());
        bad.then(|| Outcome::reject(Failure::new("told-so", "the record says so")))
    }
}

struct Relay(Conditions);

impl Stage for Relay {
    type Input = Raw;

    async fn process(&mut self, batch: Batch<'_, Raw>) -> Result<Vec<Outcome>, StageError> {
        tokio::time::sleep(self.0.work).await;
        let copies = batch.iter().map(|delivery| self.0.refuse(delivery.record()).unwrap_or_else(|| copy(delivery)));
        Ok(copies.collect())
    }
}

/// Below, tokio's timers with their millisecond are too coarse.
const EXACT: Duration = Duration::from_millis(10);

/// Does the same with each record by itself.
struct Aside {
    conditions: Conditions,
    announce: bool,
}

impl ConcurrentStage for Aside {
    type Input = Raw;

    async fn process(&self, delivery: &Delivery<Raw>, _: LaneState<'_>) -> Result<Outcome, StageError> {
        let text = String::from_utf8_lossy(&delivery.record().0);
        if self.announce {
            tracing::info!(record = %text, "begun");
        }
        self.work(&text).await?;
        if let Some(refused) = self.conditions.refuse(delivery.record()) {
            return Ok(refused);
        }
        Ok(copy(delivery))
    }
}

impl Aside {
    async fn work(&self, text: &str) -> Result<(), StageError> {
        let millis: Option<f64> = text.rsplit_once(':').and_then(|(_, millis)| millis.parse().ok());
        let work = millis.map_or(self.conditions.work, |millis| Duration::from_secs_f64(millis / 1_000.0));
        if work < EXACT {
            let slept = tokio::task::spawn_blocking(move || std::thread::sleep(work)).await;
            slept.map_err(|error| StageError::Fatal(error.to_string()))?;
        } else {
            tokio::time::sleep(work).await;
        }
        Ok(())
    }
}

/// Gives each record the next number of its key, as its first step, which is committed before the second: the work. Writes the
/// number.
struct CountAside(Aside);

impl ConcurrentStage for CountAside {
    type Input = Raw;

    const STATEFUL: bool = true;

    async fn process(&self, delivery: &Delivery<Raw>, state: LaneState<'_>) -> Result<Outcome, StageError> {
        let text = String::from_utf8_lossy(&delivery.record().0);
        let key = delivery.key.clone().unwrap_or_default();
        let step = format!("step {}", delivery.first_offset());
        let numbered = state.update(|change| {
            if let Some(number) = change.get(&step)? {
                return Ok((number, true));
            }
            let before =
                change.get(&key)?.and_then(|value| String::from_utf8(value).ok()?.parse().ok()).unwrap_or(0u64);
            let number = (before + 1).to_string().into_bytes();
            change.put(&key, number.clone());
            change.put(&step, number.clone());
            Ok((number, false))
        });
        let (number, resumed) = numbered.await?;
        state.committed().await?;
        tracing::info!(record = %text, resumed, "numbered");
        // Where a frozen process stands most of the time.
        self.0.work(&text).await?;
        state.hold_lease().await?;
        tracing::info!(record = %text, "called");
        Ok(Outcome::finally(move |change| {
            change.remove(&step);
            Ok(Outcome::emit(Output::new(Topic::custom("relay-out"), key.clone(), Raw(number.clone()))))
        }))
    }
}

fn copy(delivery: &Delivery<Raw>) -> Outcome {
    let key = delivery.key.clone().unwrap_or_default();
    Outcome::emit(Output::new(Topic::custom("relay-out"), key, delivery.record().clone()))
}

struct Count {
    conditions: Conditions,
    value_bytes: usize,
}

impl Stage for Count {
    type Input = Raw;

    const STATEFUL: bool = true;

    async fn process(&mut self, batch: Batch<'_, Raw>) -> Result<Vec<Outcome>, StageError> {
        tokio::time::sleep(self.conditions.work).await;
        let state = batch.state();
        let mut outcomes = Vec::with_capacity(batch.len());
        for delivery in batch.iter() {
            if let Some(refused) = self.conditions.refuse(delivery.record()) {
                outcomes.push(refused);
                continue;
            }
            let key = delivery.key.clone().unwrap_or_default();
            if delivery.record().0 == b"forget" {
                state.remove(delivery, &key);
                outcomes.push(Outcome::skip("forgotten"));
                continue;
            }
            let before = state.get(delivery, &key)?;
            let before = before.as_ref().and_then(|value| value.first_chunk().copied()).map_or(0, u64::from_be_bytes);
            let count = before + 1;
            // Bytes that differ from key to key, or they would compress to nothing.
            let mut seed = key.iter().fold(count, |seed, byte| mixed(seed ^ u64::from(*byte)));
            let filler = std::iter::repeat_with(|| {
                seed = mixed(seed);
                seed
            });
            let value = std::iter::once(count).chain(filler).flat_map(u64::to_be_bytes).take(self.value_bytes);
            let value: Vec<u8> = value.collect();
            state.put(delivery, &key, value);
            let output = Output::new(Topic::custom("relay-out"), key, Raw(count.to_string().into_bytes()));
            outcomes.push(Outcome::emit(output));
        }
        Ok(outcomes)
    }
}

/// A multiplication and a rotation: good enough for filling.
fn mixed(seed: u64) -> u64 {
    seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    program::main(|shutdown| run(arguments, shutdown)).await
}

async fn run(arguments: Arguments, shutdown: CancellationToken) -> Result<(), String> {
    let kafka =
        KafkaConfig { brokers: arguments.brokers, prefix: arguments.prefix, lanes: 4, ..KafkaConfig::default() };
    let config = RunnerConfig {
        instance: arguments.instance,
        max_batch_records: arguments.batch,
        session_timeout_ms: arguments.session_timeout_ms,
        static_membership: arguments.static_membership,
        transaction_timeout_ms: arguments.transaction_timeout_ms,
        commit_interval_ms: arguments.commit_interval_ms,
        state_dir: arguments.count_in.clone().unwrap_or_default(),
        flood_consecutive: arguments.flood_consecutive,
        ..RunnerConfig::default()
    };
    let mut registry = RegistryConfig::default();
    if let Some(url) = arguments.registry {
        registry.url = url;
    }
    let registry = Registry::new(&registry, &kafka.prefix).map_err(|error| error.to_string())?;
    let runner = Runner::new("relay", kafka, registry, config);
    let runner = if arguments.at_least_once { runner.at_least_once() } else { runner };
    let input = Topic::custom("relay-in");
    let work = Duration::from_millis(arguments.work_ms);
    let conditions = Conditions { work, reject_while: arguments.reject_while };
    let order = if arguments.by_key { Order::ByKey } else { Order::Free };
    let ended = match (arguments.count_in, arguments.concurrent) {
        (Some(_), Some(records)) => {
            let aside = CountAside(Aside { conditions, announce: arguments.announce });
            runner.run_concurrent(input, aside, Concurrency { records, order }, shutdown).await
        }
        (Some(_), None) => runner.run(input, Count { conditions, value_bytes: arguments.value_bytes }, shutdown).await,
        (None, Some(records)) => {
            let aside = Aside { conditions, announce: arguments.announce };
            runner.run_concurrent(input, aside, Concurrency { records, order }, shutdown).await
        }
        (None, None) => runner.run(input, Relay(conditions), shutdown).await,
    };
    ended.map_err(|error| error.to_string())
}
