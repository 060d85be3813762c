//! What state costs: the same records relayed and counted by key (a read and a write of state each), and how long it takes
//! to own a lane with that many keys, with the store on disk and without it.

use std::path::Path;
use std::time::{Duration, Instant};

use color_eyre::eyre::{Result, ensure, eyre};
use serde_json::{Value, json};
use weir_testing::{Broker, Process, TestTopics, eventually, program};

const LIMIT: Duration = Duration::from_secs(600);
/// A value of this size is what `ingest` remembers of a document, about.
const VALUE_BYTES: &str = "128";
const TOPICS: [(&str, i32); 4] = [("relay-in", 1), ("relay-out", 1), ("dlq.relay", 1), ("relay-state", 1)];

/// One lane with `keys` keys.
pub fn run(keys: usize) -> Result<Value> {
    let broker = Broker::start(|config| config);
    let mut figures = json!({ "keys": keys, "value_bytes": VALUE_BYTES.parse::<u64>()? });
    let plain = broker.topics("plain", &TOPICS);
    feed(&plain, keys);
    let mut relay = start(&plain, None);
    let stateless = rate(&plain, keys);
    stop(&mut relay)?;
    let small = owned(&broker, "few", keys / 10)?;
    let large = owned(&broker, "many", keys)?;
    let figure = |of: &Value, name: &str| of.get(name).and_then(Value::as_f64).unwrap_or_default();
    let stateful = figure(&large, "records_per_second");
    let memory = |of: &Value| figure(of, "peak_memory_mb");
    if let Some(figures) = figures.as_object_mut() {
        figures.insert("stateless_records_per_second".into(), json!(stateless));
        figures.insert("ratio_stateful_to_stateless".into(), json!(stateful / stateless));
        figures.insert("ratio_memory_to_a_tenth_of_the_keys".into(), json!(memory(&large) / memory(&small)));
        figures.insert("a_tenth_of_the_keys".into(), small);
        figures.insert("all_keys".into(), large);
    }
    Ok(figures)
}

/// Counts `keys` records, each of another key; then owns the lane again with what is on disk, and without.
fn owned(broker: &Broker, name: &str, keys: usize) -> Result<Value> {
    let topics = broker.topics(name, &TOPICS);
    feed(&topics, keys);
    let folder = tempfile::tempdir()?;
    let mut counter = start(&topics, Some(folder.path()));
    let rate = rate(&topics, keys);
    stop(&mut counter)?;
    let disk = bytes(folder.path())?;
    let (warm, read_warm) = own(&topics, &mut counter)?;
    stop(&mut counter)?;
    std::fs::remove_dir_all(folder.path())?;
    let (cold, read_cold) = own(&topics, &mut counter)?;
    let memory = counter.peak_memory().unwrap_or_default();
    stop(&mut counter)?;
    ensure!(read_cold >= u64::try_from(keys)?, "{read_cold} records were restored of {keys} keys");
    Ok(json!({
        "records_per_second": rate,
        "disk_mb": megabytes(disk),
        "peak_memory_mb": megabytes(memory),
        "warm_seconds_to_first_record": warm,
        "warm_records_restored": read_warm,
        "cold_seconds_to_first_record": cold,
        "cold_records_restored": read_cold,
        "cold_records_restored_per_second": f64::from(u32::try_from(read_cold)?) / cold,
    }))
}

fn feed(topics: &TestTopics, keys: usize) {
    topics.produce_keyed("relay-in", 1, (0..keys).map(|n| (format!("tenant/document-{n:012}"), "x".to_owned())));
}

fn start(topics: &TestTopics, state: Option<&Path>) -> Process {
    let log = std::env::temp_dir().join(format!("weir-bench-{}-{}log", std::process::id(), topics.prefix));
    let mut arguments: Vec<String> =
        ["--brokers", &topics.brokers, "--prefix", &topics.prefix, "--batch", "2000", "--commit-interval-ms", "100"]
            .map(String::from)
            .into();
    if let Some(folder) = state {
        arguments.extend(["--count-in".into(), folder.display().to_string()]);
        arguments.extend(["--value-bytes", VALUE_BYTES].map(String::from));
    }
    Process::start(&program("weir-test-relay"), &arguments, &[], &log)
}

fn stop(process: &mut Process) -> Result<()> {
    let ended = process.terminate(Duration::from_secs(30)).ok_or_else(|| eyre!("it does not stop"))?;
    ensure!(ended.success(), "it failed:\n{}", process.output());
    Ok(())
}

/// Records a second, from the first commit to the last.
fn rate(topics: &TestTopics, records: usize) -> f64 {
    let records = i64::try_from(records).unwrap_or(i64::MAX);
    eventually("the first commit", LIMIT, || topics.lag("relay", "relay-in") < records);
    let (begun, left) = (Instant::now(), topics.lag("relay", "relay-in"));
    eventually("all is committed", LIMIT, || topics.lag("relay", "relay-in") == 0);
    f64::from(u32::try_from(left).unwrap_or(u32::MAX)) / begun.elapsed().as_secs_f64()
}

/// Seconds from the start of the process until it has committed a new record, and how many records it restored.
fn own(topics: &TestTopics, process: &mut Process) -> Result<(f64, u64)> {
    let before = restored(&process.output());
    topics.produce("relay-in", 1, ["next".to_owned()]);
    let begun = Instant::now();
    process.restart();
    eventually("the new record is committed", LIMIT, || topics.lag("relay", "relay-in") == 0);
    let seconds = begun.elapsed().as_secs_f64();
    Ok((seconds, restored(&process.output()) - before))
}

fn restored(log: &str) -> u64 {
    log.lines()
        .filter(|line| line.contains("state restored"))
        .filter_map(|line| line.split("records=").nth(1)?.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

fn bytes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() { bytes(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(sum)
}

fn megabytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}
