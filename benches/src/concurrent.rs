//! 10,000 records on one partition with 0 to 5 ms of work each, by key: the case that Confluent's Parallel Consumer is known
//! for. One record after another, and side by side with 1, 10, 20 and 100 keys, exactly once; beside each the bound that the
//! key with the most work sets. What goes one after another is a batch stage, as it would be for work that is short.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use color_eyre::eyre::{Result, eyre};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;
use weir_contracts::{Raw, Topic};
use weir_runner::{Concurrency, KafkaConfig, Order, Registry, RegistryConfig, Runner, RunnerConfig};
use weir_stage::{Batch, ConcurrentStage, Delivery, LaneState, Outcome, Output, Stage, StageError};
use weir_testing::{Broker, TestTopics};

use crate::{median, relay};

const RECORDS: usize = 10_000;
/// Between two commits, at least; the Parallel Consumer leaves five seconds unless it is told otherwise.
const COMMIT_MS: u64 = 500;
const TOPICS: [(&str, i32); 3] = [("relay-in", 1), ("relay-out", 1), ("dlq.relay", 1)];
/// Keys, and the seconds of Confluent's Parallel Consumer without transactions on two cores, and its bound.
const CASES: [(usize, f64, f64); 4] = [(1, 29.2, 25.1), (10, 3.68, 2.56), (20, 1.91, 1.32), (100, 0.61, 0.28)];
/// The same without the Parallel Consumer, one record after another.
const SEQUENTIAL: f64 = 26.2;

/// Works as long as a record says, and copies it.
#[derive(Clone)]
struct Work {
    first: Arc<OnceLock<Instant>>,
}

impl Work {
    async fn on(&self, delivery: &Delivery<Raw>) -> Result<Outcome, StageError> {
        self.first.get_or_init(Instant::now);
        let text = std::str::from_utf8(&delivery.record().0).unwrap_or_default();
        let micros: u32 = text.parse().map_err(|error| StageError::Fatal(format!("{text}: {error}")))?;
        // A thread sleeps more exactly than the runtime's timers, which count milliseconds; there is one for each record
        // in work. What this one was to run next goes to another first.
        tokio::task::yield_now().await;
        std::thread::sleep(Duration::from_micros(micros.into()));
        let key = delivery.key.clone().unwrap_or_default();
        Ok(Outcome::emit(Output::new(Topic::custom("relay-out"), key, delivery.record().clone())))
    }
}

impl ConcurrentStage for Work {
    type Input = Raw;

    async fn process(&self, delivery: &Delivery<Raw>, _: LaneState<'_>) -> Result<Outcome, StageError> {
        self.on(delivery).await
    }
}

impl Stage for Work {
    type Input = Raw;

    async fn process(&mut self, batch: Batch<'_, Raw>) -> Result<Vec<Outcome>, StageError> {
        let mut outcomes = Vec::with_capacity(batch.len());
        for delivery in batch.iter() {
            outcomes.push(self.on(delivery).await?);
        }
        Ok(outcomes)
    }
}

/// Seconds from the first record's start until all are committed, medians of `rounds`.
pub async fn run(rounds: usize) -> Result<Value> {
    let broker = tokio::task::block_in_place(|| Broker::start(|config| config));
    let mut figures = Map::new();
    let (seconds, work) = measure(&broker, "sequential", 1, None, rounds).await?;
    figures.insert("sequential".into(), case(seconds, work, SEQUENTIAL, None));
    for (keys, theirs, their_bound) in CASES {
        let (seconds, bound) = measure(&broker, &format!("keys-{keys}"), keys, NonZeroUsize::new(keys), rounds).await?;
        figures.insert(format!("{keys}_keys"), case(seconds, bound, theirs, Some(their_bound)));
    }
    Ok(Value::Object(figures))
}

fn case(seconds: f64, bound: f64, theirs: f64, their_bound: Option<f64>) -> Value {
    json!({
        "seconds": seconds,
        "bound_seconds": bound,
        "ratio_to_bound": seconds / bound,
        "parallel_consumer_seconds": theirs,
        "parallel_consumer_ratio_to_bound": their_bound.map(|bound| theirs / bound),
    })
}

/// Seconds, and the least they can be. So many records at once; else one after another.
async fn measure(
    broker: &Broker,
    name: &str,
    keys: usize,
    concurrent: Option<NonZeroUsize>,
    rounds: usize,
) -> Result<(f64, f64)> {
    let mut of_key: HashMap<usize, u64> = HashMap::new();
    let mut records = Vec::with_capacity(RECORDS);
    for n in 0..RECORDS {
        // Steps of a prime: even over 0 to 5 ms, and in no order.
        let micros = u32::try_from(n * 7_919 % 5_000)?;
        *of_key.entry(n % keys).or_default() += u64::from(micros);
        records.push((format!("key-{}", n % keys), micros.to_string()));
    }
    let most = of_key.values().copied().max().unwrap_or(0);
    let mut times = Vec::new();
    for round in 0..rounds {
        let topics = tokio::task::block_in_place(|| {
            let topics = broker.topics(&format!("{name}-{round}"), &TOPICS);
            topics.produce_keyed("relay-in", 1, records.iter().cloned());
            topics
        });
        times.push(time(&topics, concurrent).await?);
    }
    Ok((median(&mut times), Duration::from_micros(most).as_secs_f64()))
}

async fn time(topics: &TestTopics, concurrent: Option<NonZeroUsize>) -> Result<f64> {
    let kafka = KafkaConfig {
        brokers: topics.brokers.clone(),
        prefix: topics.prefix.clone(),
        lanes: 1,
        ..KafkaConfig::default()
    };
    let registry = Registry::new(&RegistryConfig::default(), &topics.prefix)?;
    let config = RunnerConfig { instance: "bench".into(), commit_interval_ms: COMMIT_MS, ..RunnerConfig::default() };
    let first = Arc::new(OnceLock::new());
    let stop = CancellationToken::new();
    let (runner, input) = (Runner::new("relay", kafka, registry, config), Topic::custom("relay-in"));
    let (work, until) = (Work { first: Arc::clone(&first) }, stop.clone());
    let threads = concurrent.map_or(1, NonZeroUsize::get) + 2;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let running = runtime.spawn(async move {
        match concurrent {
            None => runner.run(input, work, until).await,
            Some(records) => {
                let concurrency = Concurrency { records, order: Order::ByKey };
                runner.run_concurrent(input, work, concurrency, until).await
            }
        }
    });
    let observer = relay::observer(&topics.brokers, &topics.full("relay"))?;
    let input = topics.full("relay-in");
    let done = tokio::task::spawn_blocking(move || relay::wait_committed(&observer, &input, RECORDS)).await??;
    let seconds = (done - *first.get().ok_or_else(|| eyre!("nothing was processed"))?).as_secs_f64();
    stop.cancel();
    running.await??;
    runtime.shutdown_background();
    Ok(seconds)
}
