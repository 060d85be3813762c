//! The runner's relay rate: 1 KB records, 4 lanes, from one topic to another, exactly once and at least once, beside a
//! bare rdkafka consume-produce loop without and with transactions, in one run on one broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use color_eyre::eyre::{Result, ensure, eyre};
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

use crate::{at_least, median};

const LANES: i32 = 4;
const RECORD_BYTES: usize = 1024;
const COMMIT: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long a round may take.
const LIMIT: Duration = Duration::from_secs(300);
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
    let (mut bare, mut bare_exact) = (Vec::new(), Vec::new());
    let (mut at_least_once, mut exactly_once) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let prefix = format!("bench-{}-{round}.", std::process::id());
        prepare(brokers, &prefix, records).await?;
        bare.push(bare_rate(brokers, &prefix, records, false).await?);
        at_least_once.push(runner(brokers, &prefix, "relay-plain", records, false).await?);
        exactly_once.push(runner(brokers, &prefix, "relay", records, true).await?);
        bare_exact.push(bare_rate(brokers, &prefix, records, true).await?);
        for (what, rates) in [
            ("bare loop", &bare),
            ("bare loop with transactions", &bare_exact),
            ("runner at least once", &at_least_once),
            ("runner exactly once", &exactly_once),
        ] {
            println!("  round {}: {what:28} {:>10.0} records/s", round + 1, rates.last().copied().unwrap_or_default());
        }
        drop_topics(brokers, &prefix).await?;
    }
    let (bare, bare_exact) = (median(&mut bare), median(&mut bare_exact));
    let (plain, exact) = (median(&mut at_least_once), median(&mut exactly_once));
    Ok(json!({
        "records": records, "record_bytes": RECORD_BYTES, "lanes": LANES, "commit_ms": COMMIT.as_millis(),
        "bare_at_least_once_per_second": bare,
        "bare_exactly_once_per_second": bare_exact,
        "runner_at_least_once_per_second": plain,
        "runner_exactly_once_per_second": exact,
        "ratio_bare_exactly_once_to_bare": bare_exact / bare,
        "targets": {
            "ratio_exactly_to_at_least_once": at_least(exact / plain, 0.85),
            "ratio_exactly_once_to_bare": at_least(exact / bare, 0.70),
        },
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
    let text = words(1 << 20);
    let starts = text.len().saturating_sub(RECORD_BYTES).max(1);
    for n in 0..records {
        let lane = i32::try_from(n % usize::try_from(LANES)?)?;
        let key = n.to_le_bytes();
        let from = n.wrapping_mul(7_919) % starts;
        let payload = text.get(from..from + RECORD_BYTES).ok_or_else(|| eyre!("the text is too short"))?;
        send(&producer, BaseRecord::to(topic).partition(lane).key(&key[..]).payload(payload))?;
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(())
}

/// Text that compresses as prose does: words from a small vocabulary in no order.
fn words(length: usize) -> Vec<u8> {
    // Knuth's linear congruential generator (MMIX); its high bits are random enough.
    let mut state = 1_u64;
    let mut next = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let letter = |n: u64| b'a' + u8::try_from(n % 26).unwrap_or(0);
    let vocabulary: Vec<Vec<u8>> =
        (0..2_000).map(|_| (0..2 + next(9)).map(|_| letter(next(26))).chain([b' ']).collect()).collect();
    let mut text = Vec::with_capacity(length);
    while text.len() < length {
        let word = usize::try_from(next(2_000)).ok().and_then(|n| vocabulary.get(n));
        text.extend_from_slice(word.map_or(b" ", Vec::as_slice));
    }
    text
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

async fn bare_rate(brokers: &str, prefix: &str, records: usize, exactly: bool) -> Result<f64> {
    let (brokers, prefix) = (brokers.to_owned(), prefix.to_owned());
    tokio::task::spawn_blocking(move || bare_loop(&brokers, &prefix, records, exactly)).await?
}

/// The simplest loop a Kafka user writes: consume, produce, commit what is acknowledged every 100 ms; with
/// transactions if it is to be exact.
fn bare_loop(brokers: &str, prefix: &str, records: usize, exactly: bool) -> Result<f64> {
    let (input, output) = (format!("{prefix}relay-in"), format!("{prefix}relay-out"));
    let group = format!("{prefix}bare{}", if exactly { "-exactly" } else { "" });
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", &group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("fetch.queue.backoff.ms", "5")
        .create()?;
    consumer.subscribe(&[&input])?;
    let mut config = producer_config(brokers);
    if exactly {
        config.set("transactional.id", &group).set("retry.backoff.ms", "10");
    }
    let producer: BaseProducer = config.create()?;
    if exactly {
        producer.init_transactions(TIMEOUT)?;
        producer.begin_transaction()?;
    }
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
        let last = seen == records;
        if committed.elapsed() < COMMIT && !last {
            continue;
        }
        drain(&producer);
        committed = Instant::now();
        let mut list = TopicPartitionList::new();
        for (partition, offset) in &positions {
            list.add_partition_offset(&input, *partition, Offset::Offset(*offset))?;
        }
        if list.count() == 0 {
            continue;
        }
        if exactly {
            let member = consumer.group_metadata().ok_or_else(|| eyre!("not a member of a group"))?;
            producer.send_offsets_to_transaction(&list, &member, TIMEOUT)?;
            producer.commit_transaction(TIMEOUT)?;
            if !last {
                producer.begin_transaction()?;
            }
        } else {
            consumer.commit(&list, if last { CommitMode::Sync } else { CommitMode::Async })?;
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
    let (input, group) = (format!("{prefix}relay-in"), format!("{prefix}{name}"));
    let observer = observer(brokers, &group)?;
    let stop = CancellationToken::new();
    let running = tokio::spawn(runner.run(INPUT, relay, stop.clone()));
    let deadline = Instant::now() + LIMIT;
    while seen.load(Ordering::Relaxed) < records {
        if running.is_finished() || Instant::now() > deadline {
            return Err(eyre!("{name} stopped after {} records: {:?}", seen.load(Ordering::Relaxed), running.await));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Shutting down commits what is processed at once. As for the bare loop, the clock stops when that is done; leaving
    // the group does not count.
    stop.cancel();
    let done = tokio::task::spawn_blocking(move || wait_committed(&observer, &input, records)).await??;
    let elapsed = done - *first.get().ok_or_else(|| eyre!("nothing was processed"))?;
    running.await??;
    Ok(per_second(records, elapsed))
}

/// A look at what a group has committed, from outside.
pub(crate) fn observer(brokers: &str, group: &str) -> Result<BaseConsumer> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        // What is pending in a transaction does not keep it waiting.
        .set("isolation.level", "read_uncommitted")
        .create()?)
}

/// When everything was committed.
pub(crate) fn wait_committed(observer: &BaseConsumer, topic: &str, records: usize) -> Result<Instant> {
    let wanted = i64::try_from(records)?;
    let deadline = Instant::now() + LIMIT;
    while committed(observer, topic).unwrap_or_default() < wanted {
        ensure!(Instant::now() < deadline, "not everything is committed after {LIMIT:?}");
        // Often enough for runs of half a second; each look costs the broker some work.
        std::thread::sleep(Duration::from_millis(4));
    }
    Ok(Instant::now())
}

fn committed(observer: &BaseConsumer, topic: &str) -> Result<i64> {
    let mut list = TopicPartitionList::new();
    for lane in 0..LANES {
        list.add_partition(topic, lane);
    }
    let offsets = observer.committed_offsets(list, TIMEOUT)?;
    Ok(offsets.elements().iter().filter_map(|lane| lane.offset().to_raw()).filter(|offset| *offset > 0).sum())
}

fn per_second(records: usize, elapsed: Duration) -> f64 {
    u32::try_from(records).map_or(0.0, f64::from) / elapsed.as_secs_f64()
}
