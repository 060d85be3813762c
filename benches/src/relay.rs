//! The runner's relay rate: 1 KB records, 4 lanes, from one topic to another, exactly once and at least once, beside a
//! bare rdkafka consume-produce loop, in one run on one broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use color_eyre::eyre::{Result, eyre};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use weir_contracts::{Raw, Topic};
use weir_runner::{KafkaConfig, Registry, RegistryConfig, Runner, RunnerConfig};
use weir_stage::{Batch, Outcome, Output, Stage, StageError};

const LANES: i32 = 4;
const RECORD_BYTES: usize = 1024;
const COMMIT: Duration = Duration::from_millis(100);
const INPUT: Topic = Topic::custom("relay-in");
const OUTPUT: Topic = Topic::custom("relay-out");

/// Copies every record.
struct Relay {
    seen: Arc<AtomicUsize>,
    first: Arc<std::sync::OnceLock<Instant>>,
}

impl Stage for Relay {
    type Input = Raw;

    async fn process(&mut self, batch: Batch<'_, Raw>) -> Result<Vec<Outcome>, StageError> {
        self.first.get_or_init(Instant::now);
        self.seen.fetch_add(batch.len(), Ordering::Relaxed);
        Ok(batch
            .iter()
            .map(|delivery| {
                let key = delivery.key.clone().unwrap_or_default();
                Outcome::emit(Output::new(OUTPUT, key, delivery.record().clone()))
            })
            .collect())
    }
}

/// Runs the benchmark against a running broker; `records` a round, `rounds` rounds, medians.
pub async fn run(brokers: &str, records: usize, rounds: usize) -> Result<serde_json::Value> {
    let (mut bare, mut at_least_once, mut exactly_once) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let prefix = format!("bench-{}-{round}.", std::process::id());
        prepare(brokers, &prefix, records).await?;
        let owned = (brokers.to_owned(), prefix.clone());
        bare.push(tokio::task::spawn_blocking(move || bare_loop(&owned.0, &owned.1, records)).await??);
        at_least_once.push(runner(brokers, &prefix, "relay-plain", records, false).await?);
        exactly_once.push(runner(brokers, &prefix, "relay", records, true).await?);
        println!(
            "  round {}: bare loop {:.0}, runner at least once {:.0}, runner exactly once {:.0} records/s",
            round + 1,
            bare.last().copied().unwrap_or_default(),
            at_least_once.last().copied().unwrap_or_default(),
            exactly_once.last().copied().unwrap_or_default(),
        );
        drop_topics(brokers, &prefix).await?;
    }
    let (bare, plain, exact) =
        (crate::median(&mut bare), crate::median(&mut at_least_once), crate::median(&mut exactly_once));
    Ok(json!({
        "records": records, "record_bytes": RECORD_BYTES, "lanes": LANES, "commit_ms": COMMIT.as_millis(),
        "bare_at_least_once_per_second": bare,
        "runner_at_least_once_per_second": plain,
        "runner_exactly_once_per_second": exact,
        "ratio_exactly_to_at_least_once": exact / plain,
        "ratio_exactly_once_to_bare": exact / bare,
    }))
}

fn admin(brokers: &str) -> Result<AdminClient<DefaultClientContext>> {
    Ok(ClientConfig::new().set("bootstrap.servers", brokers).create()?)
}

async fn prepare(brokers: &str, prefix: &str, records: usize) -> Result<()> {
    let names: Vec<String> = ["relay-in", "relay-out", "dlq.relay", "dlq.relay-plain"]
        .iter()
        .map(|name| format!("{prefix}{name}"))
        .collect();
    let topics: Vec<NewTopic<'_>> =
        names.iter().map(|name| NewTopic::new(name, LANES, TopicReplication::Fixed(1))).collect();
    for result in admin(brokers)?.create_topics(&topics, &AdminOptions::new()).await? {
        result.map_err(|(topic, code)| eyre!("creating {topic}: {code}"))?;
    }
    let (brokers, input) = (brokers.to_owned(), format!("{prefix}relay-in"));
    tokio::task::spawn_blocking(move || fill(&brokers, &input, records)).await?
}

async fn drop_topics(brokers: &str, prefix: &str) -> Result<()> {
    let names: Vec<String> = ["relay-in", "relay-out", "dlq.relay", "dlq.relay-plain"]
        .iter()
        .map(|name| format!("{prefix}{name}"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    admin(brokers)?.delete_topics(&names, &AdminOptions::new()).await?;
    Ok(())
}

fn fill(brokers: &str, topic: &str, records: usize) -> Result<()> {
    let producer: BaseProducer = producer_config(brokers).create()?;
    // Text-like bytes: compressible, but not to nothing.
    let payload: Vec<u8> = (0..RECORD_BYTES).map(|n| b'a' + u8::try_from((n * n / 7) % 26).unwrap_or(0)).collect();
    for n in 0..records {
        let lane = i32::try_from(n % usize::try_from(LANES)?)?;
        let key = n.to_le_bytes();
        send(&producer, BaseRecord::to(topic).partition(lane).key(&key[..]).payload(&payload[..]))?;
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(())
}

fn producer_config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("compression.type", "lz4")
        .set("linger.ms", "2")
        .set("batch.size", "524288")
        .set("batch.num.messages", "20000")
        .set("queue.buffering.max.messages", "100000")
        .set("delivery.report.only.error", "true");
    config
}

fn send(producer: &BaseProducer, mut record: BaseRecord<'_, [u8], [u8]>) -> Result<()> {
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned)) => {
                record = returned;
                producer.poll(Duration::from_millis(1));
            }
            Err((error, _)) => return Err(error.into()),
        }
    }
}

/// The simplest loop a Kafka user writes: consume, produce, commit what is acknowledged every 100 ms.
fn bare_loop(brokers: &str, prefix: &str, records: usize) -> Result<f64> {
    let (input, output) = (format!("{prefix}relay-in"), format!("{prefix}relay-out"));
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", format!("{prefix}bare"))
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("fetch.queue.backoff.ms", "5")
        .create()?;
    consumer.subscribe(&[&input])?;
    let producer: BaseProducer = producer_config(brokers).create()?;
    let mut positions: std::collections::HashMap<i32, i64> = std::collections::HashMap::new();
    let (mut seen, mut start, mut committed) = (0, None, Instant::now());
    while seen < records {
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            let message = message?;
            start.get_or_insert_with(Instant::now);
            let record = BaseRecord::to(&output)
                .partition(message.partition())
                .key(message.key().unwrap_or_default())
                .payload(message.payload().unwrap_or_default());
            send(&producer, record)?;
            positions.insert(message.partition(), message.offset() + 1);
            seen += 1;
        }
        if committed.elapsed() >= COMMIT || seen == records {
            drain(&producer);
            let mut list = TopicPartitionList::new();
            for (partition, offset) in &positions {
                list.add_partition_offset(&input, *partition, Offset::Offset(*offset))?;
            }
            if list.count() > 0 {
                consumer.commit(&list, CommitMode::Async)?;
            }
            committed = Instant::now();
        }
    }
    let elapsed = start.ok_or_else(|| eyre!("nothing was read"))?.elapsed();
    Ok(per_second(records, elapsed))
}

fn drain(producer: &BaseProducer) {
    while producer.in_flight_count() > 0 {
        producer.poll(Duration::from_millis(1));
    }
}

async fn runner(brokers: &str, prefix: &str, name: &'static str, records: usize, exactly: bool) -> Result<f64> {
    let kafka = KafkaConfig { brokers: brokers.into(), prefix: prefix.into(), lanes: LANES, ..KafkaConfig::default() };
    let registry = Registry::new(&RegistryConfig::default(), prefix)?;
    let millis = u64::try_from(COMMIT.as_millis())?;
    let config = RunnerConfig { instance: "bench".into(), commit_interval_ms: millis, ..RunnerConfig::default() };
    let runner = Runner::new(name, kafka.clone(), registry, config);
    let runner = if exactly { runner } else { runner.at_least_once() };
    let (seen, first) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::OnceLock::new()));
    let relay = Relay { seen: Arc::clone(&seen), first: Arc::clone(&first) };
    let stop = CancellationToken::new();
    let running = tokio::spawn(runner.run(INPUT, relay, stop.clone()));
    let deadline = Instant::now() + Duration::from_secs(300);
    while seen.load(Ordering::Relaxed) < records {
        if running.is_finished() || Instant::now() > deadline {
            return Err(eyre!("{name} stopped after {} records: {:?}", seen.load(Ordering::Relaxed), running.await));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Shutting down commits what is processed: the time includes it.
    stop.cancel();
    running.await??;
    let elapsed = first.get().ok_or_else(|| eyre!("nothing was processed"))?.elapsed();
    Ok(per_second(records, elapsed))
}

fn per_second(records: usize, elapsed: Duration) -> f64 {
    u32::try_from(records).map_or(0.0, f64::from) / elapsed.as_secs_f64()
}
