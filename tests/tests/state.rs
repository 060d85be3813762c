//! State of lanes on real Kafka: a stage that counts the records of each key. Counts that are lost, repeated or read too
//! early show as gaps and doubles in what it writes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;
use weir_contracts::{Raw, Topic, header};
use weir_runner::{Registry, RegistryConfig, Runner, RunnerConfig};
use weir_stage::{Batch, Outcome, Output, Stage, StageError};
use weir_testing::{Broker, BrokerProxy, Isolation, Process, Swallow, TestTopics, eventually};

const LANES: i32 = 4;
const KEYS: usize = 50;
const PATIENCE: Duration = Duration::from_secs(90);

fn topics(broker: &Broker, test: &str) -> TestTopics {
    broker.topics(test, &[("relay-in", LANES), ("relay-out", LANES), ("dlq.relay", LANES), ("relay-state", LANES)])
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

fn counter(topics: &TestTopics, instance: &str, folder: &Path, options: &[&str]) -> Process {
    let log = std::env::temp_dir().join(format!("weir-test-{}-{}{instance}.log", std::process::id(), topics.prefix));
    let mut arguments: Vec<String> =
        ["--brokers", &topics.brokers, "--prefix", &topics.prefix, "--instance", instance].map(String::from).into();
    arguments.extend(["--count-in".into(), folder.to_str().unwrap().into()]);
    arguments.extend(options.iter().map(ToString::to_string));
    Process::start(Path::new(env!("CARGO_BIN_EXE_weir-test-relay")), &arguments, &[], &log)
}

/// `rounds` records for each of the keys, which spread over the lanes.
fn feed(topics: &TestTopics, rounds: usize) {
    let keys = KEYS * usize::try_from(LANES).unwrap();
    topics.produce_keyed("relay-in", LANES, (0..rounds * keys).map(|n| (format!("key-{:03}", n % keys), "x".into())));
}

fn done(topics: &TestTopics) {
    eventually("everything is counted and committed", PATIENCE, || topics.lag("relay", "relay-in") == 0);
}

/// Every key was counted from 1 to `rounds`, in order, each number once.
fn assert_counted(topics: &TestTopics, rounds: usize) {
    let mut counts: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
    for record in topics.read("relay-out", Isolation::Committed) {
        let count = String::from_utf8(record.value).unwrap().parse().unwrap();
        counts.entry(record.key).or_default().push(count);
    }
    let expected: Vec<usize> = (1..=rounds).collect();
    let wrong: Vec<_> = counts
        .iter()
        .filter(|(_, counted)| **counted != expected)
        .map(|(key, counted)| (String::from_utf8_lossy(key), counted))
        .take(2)
        .collect();
    assert!(wrong.is_empty(), "counted wrongly: {wrong:?}");
    assert_eq!(counts.len(), KEYS * usize::try_from(LANES).unwrap());
    eventually("no transaction is left open", PATIENCE, || !topics.has_open_transaction("relay-state"));
}

const BUSY: [&str; 4] = ["--work-ms", "40", "--commit-interval-ms", "150"];

#[test]
fn counts_stay_exact_over_kills_a_lost_disk_and_moves_to_other_instances() {
    let topics = topics(Broker::shared(), "state-kill");
    feed(&topics, 100);
    let (here, there) = (Folder::new(), Folder::new());
    let mut process = counter(&topics, "a", here.path(), &BUSY);
    for round in 0..6 {
        let before = topics.lag("relay", "relay-in");
        eventually("it works", PATIENCE, || {
            let lag = topics.lag("relay", "relay-in");
            (lag < before && topics.has_open_transaction("relay-state")) || lag == 0
        });
        assert!(topics.lag("relay", "relay-in") > 0, "there is nothing left to be killed for");
        process.kill();
        match round {
            // The disk is lost.
            1 => std::fs::remove_dir_all(here.path()).unwrap(),
            // Another machine takes over, and gives back.
            2 => process = counter(&topics, "b", there.path(), &BUSY),
            4 => process = counter(&topics, "a", here.path(), &BUSY),
            _ => process.restart(),
        }
        if round == 1 {
            process.restart();
        }
    }
    done(&topics);
    assert_counted(&topics, 100);
    let everything = topics.read("relay-state", Isolation::Everything).len();
    let committed = topics.read("relay-state", Isolation::Committed).len();
    assert!(everything > committed, "no kill hit an open transaction: the test proved nothing");
}

/// The negative control: at least once, the same kills leave counts that are wrong.
#[test]
#[ignore = "a negative control of half a minute"]
fn without_transactions_the_same_kills_miscount() {
    let topics = topics(Broker::shared(), "state-control");
    feed(&topics, 60);
    let folder = Folder::new();
    let options = ["--work-ms", "40", "--commit-interval-ms", "150", "--at-least-once"];
    let mut process = counter(&topics, "a", folder.path(), &options);
    for _ in 0..4 {
        let before = topics.lag("relay", "relay-in");
        eventually("it works", PATIENCE, || topics.lag("relay", "relay-in") < before);
        process.kill();
        process.restart();
    }
    done(&topics);
    let most: usize = topics
        .read("relay-out", Isolation::Committed)
        .iter()
        .map(|record| std::str::from_utf8(&record.value).unwrap().parse().unwrap())
        .max()
        .unwrap();
    assert!(most > 60, "nothing was counted twice: the check proves nothing");
}

#[test]
fn a_zombie_writes_neither_counts_nor_state() {
    let topics = topics(Broker::shared(), "state-zombie");
    feed(&topics, 60);
    let (here, there) = (Folder::new(), Folder::new());
    let mut zombie = counter(&topics, "a", here.path(), &BUSY);
    eventually("the first instance works", PATIENCE, || {
        topics.lag("relay", "relay-in") < 60 * 200 && topics.has_open_transaction("relay-state")
    });
    zombie.freeze();
    assert!(topics.lag("relay", "relay-in") > 0);
    let _heir = counter(&topics, "b", there.path(), &BUSY);
    done(&topics);
    zombie.thaw();
    eventually("the zombie has noticed", PATIENCE, || {
        let log = zombie.output();
        zombie.ended().is_some() || log.contains("lost") || log.contains("aborted")
    });
    if zombie.ended().is_some() {
        zombie.restart();
    }
    feed(&topics, 10);
    done(&topics);
    assert_counted(&topics, 70);
    assert_state(&topics, 70);
}

/// The changelog's last value of each key is the count.
fn assert_state(topics: &TestTopics, count: u64) {
    let mut last: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    for record in topics.read("relay-state", Isolation::Committed) {
        last.insert(record.key, record.value);
    }
    assert_eq!(last.len(), KEYS * usize::try_from(LANES).unwrap());
    let expected = [&[0][..], &count.to_be_bytes()].concat();
    let wrong = last.values().filter(|value| **value != expected).count();
    assert_eq!(wrong, 0, "the changelog disagrees with what was written");
}

#[test]
fn instances_that_join_and_leave_hand_over_state() {
    let topics = topics(Broker::shared(), "state-scale");
    feed(&topics, 150);
    let (here, there) = (Folder::new(), Folder::new());
    let options = ["--work-ms", "10"];
    let _first = counter(&topics, "a", here.path(), &options);
    for round in 0..3 {
        let before = topics.lag("relay", "relay-in");
        let mut second = counter(&topics, &format!("b{round}"), there.path(), &options);
        eventually("both work", PATIENCE, || second.output().contains("lanes assigned"));
        eventually("and get on", PATIENCE, || topics.lag("relay", "relay-in") < before);
        let status = second.terminate(Duration::from_secs(20)).expect("it ends on SIGTERM");
        assert!(status.success(), "{status}: {}", second.output());
    }
    done(&topics);
    assert_counted(&topics, 150);
}

#[test]
fn a_warm_restart_restores_the_difference_and_a_cold_one_everything() {
    let topics = topics(Broker::shared(), "state-warm");
    feed(&topics, 20);
    let folder = Folder::new();
    let mut process = counter(&topics, "a", folder.path(), &[]);
    done(&topics);
    assert!(process.terminate(Duration::from_secs(20)).unwrap().success());
    process.restart();
    feed(&topics, 5);
    done(&topics);
    let restored = |log: &str| -> Vec<u64> {
        log.lines()
            .filter(|line| line.contains("state restored"))
            .filter_map(|line| line.split("records=").nth(1)?.split_whitespace().next()?.parse().ok())
            .collect()
    };
    let warm: u64 = restored(&process.output()).iter().sum();
    assert!(warm < 20 * 200 / 2, "{warm} records were read again");
    assert!(process.terminate(Duration::from_secs(20)).unwrap().success());
    std::fs::remove_dir_all(folder.path()).unwrap();
    process.restart();
    feed(&topics, 5);
    done(&topics);
    let cold: u64 = restored(&process.output()).iter().sum::<u64>() - warm;
    assert!(cold >= 200, "{cold} records were read after the disk was lost");
    assert_counted(&topics, 30);
}

/// A transaction that hangs on a lane of the changelog holds its last stable offset back; what was committed behind it
/// must be restored all the same.
#[test]
fn restore_reaches_the_high_watermark_although_the_last_stable_offset_lags() {
    let topics = topics(Broker::shared(), "state-lso");
    let (here, there) = (Folder::new(), Folder::new());
    feed(&topics, 10);
    let mut first = counter(&topics, "a", here.path(), &[]);
    done(&topics);
    topics.open_transaction("relay-state", 0, Duration::from_secs(8));
    feed(&topics, 10);
    done(&topics);
    assert!(topics.has_open_transaction("relay-state"), "the foreign transaction is closed already");
    first.kill();
    let _second = counter(&topics, "b", there.path(), &[]);
    feed(&topics, 10);
    done(&topics);
    assert_counted(&topics, 30);
}

#[test]
fn a_store_that_was_left_alone_too_long_is_restored_as_a_whole() {
    let broker = Broker::shared();
    let topics = topics(broker, "state-idle");
    broker.alter_topic(&topics.full("relay-state"), "delete.retention.ms", "3000");
    let folder = Folder::new();
    feed(&topics, 5);
    let mut process = counter(&topics, "a", folder.path(), &[]);
    done(&topics);
    assert!(process.terminate(Duration::from_secs(20)).unwrap().success());
    std::thread::sleep(Duration::from_millis(1_600));
    process.restart();
    feed(&topics, 5);
    done(&topics);
    let log = process.output();
    assert!(log.contains("not used for more than half of delete.retention.ms"), "{log}");
    assert_counted(&topics, 10);
}

#[test]
fn a_commit_in_doubt_leaves_no_hole_in_the_state() {
    let proxy = BrokerProxy::start();
    let (broker, through) = proxy.broker();
    let direct = topics(&broker, "state-doubt");
    let through = TestTopics { brokers: through, ..direct.clone() };
    feed(&direct, 60);
    let folder = Folder::new();
    let options = ["--work-ms", "20", "--transaction-timeout-ms", "3000"];
    let mut process = counter(&through, "a", folder.path(), &options);
    for (swallow, resolved) in [(Swallow::Response, "applied=true"), (Swallow::Request, "applied=false")] {
        let before = direct.lag("relay", "relay-in");
        eventually("it works", PATIENCE, || direct.lag("relay", "relay-in") < before);
        assert!(direct.lag("relay", "relay-in") > 0, "there is nothing left to be in doubt about");
        proxy.swallow(swallow);
        eventually("the doubt is resolved", PATIENCE, || process.output().contains(resolved));
    }
    done(&direct);
    // What the store has now must be what the changelog has: a restart without new records would not tell.
    assert!(process.terminate(Duration::from_secs(20)).unwrap().success());
    process.restart();
    feed(&direct, 5);
    done(&direct);
    assert_counted(&direct, 65);
}

/// Writes state and then does what the value says: `panic`, `huge`, `reject`; `until N` sets a value that expires; any
/// other value is answered with what the state has.
struct Moody;

impl Stage for Moody {
    type Input = Raw;

    const STATEFUL: bool = true;

    async fn process(&mut self, batch: Batch<'_, Raw>) -> Result<Vec<Outcome>, StageError> {
        let state = batch.state();
        let mut outcomes = Vec::new();
        for delivery in batch.iter() {
            let key = delivery.key.clone().unwrap_or_default();
            let value = String::from_utf8(delivery.record().0.clone()).unwrap();
            let found = state.get(delivery, &key)?;
            let out = |bytes: Vec<u8>| Outcome::emit(Output::new(Topic::custom("out"), key.clone(), Raw(bytes)));
            if let Some(millis) = value.strip_prefix("until ") {
                let millis: i64 = millis.parse().unwrap();
                state.put_until(delivery, &key, value.clone(), delivery.timestamp + millis);
                outcomes.push(Outcome::skip("set"));
                continue;
            }
            if matches!(value.as_str(), "panic" | "huge" | "set") {
                state.put(delivery, &key, value.clone());
            }
            outcomes.push(match value.as_str() {
                "panic" => panic!("as told"),
                "huge" => out(vec![7; 2 << 20]),
                "set" => Outcome::skip("set"),
                _ => out(found.unwrap_or_else(|| b"nothing".to_vec())),
            });
        }
        Ok(outcomes)
    }
}

fn run_moody(topics: &TestTopics, folder: &Path) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let registry = Registry::new(&RegistryConfig::default(), &topics.prefix).unwrap();
    let config = RunnerConfig {
        instance: "0".into(),
        session_timeout_ms: 6_000,
        state_dir: PathBuf::from(folder),
        ..RunnerConfig::default()
    };
    let runner = Runner::new("moody", topics.kafka(1), registry, config);
    let stop = CancellationToken::new();
    let token = stop.clone();
    let task = tokio::spawn(async move { runner.run(Topic::custom("in"), Moody, token).await.unwrap() });
    (stop, task)
}

fn moody_topics(test: &str) -> TestTopics {
    Broker::shared().topics(test, &[("in", 1), ("out", 1), ("dlq.moody", 1), ("moody-state", 1)])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rejected_record_wrote_is_rolled_back_with_it() {
    let topics = moody_topics("state-moody");
    let records = ["set", "show", "panic", "show", "huge", "show"];
    topics.produce_keyed("in", 1, records.iter().map(|value| ("k".to_owned(), (*value).to_owned())));
    let folder = Folder::new();
    let (stop, task) = run_moody(&topics, folder.path());
    eventually("done", PATIENCE, || topics.lag("moody", "in") == 0);
    stop.cancel();
    task.await.unwrap();
    let shown: Vec<_> = topics.read("out", Isolation::Committed).into_iter().map(|record| record.value).collect();
    assert_eq!(shown, [b"set"; 3], "neither the panic nor the output that was too large left a trace");
    let dead = topics.read("dlq.moody", Isolation::Committed);
    let classes: Vec<_> = dead.iter().map(|letter| letter.header(header::ERROR_CLASS)).collect();
    assert_eq!(classes, ["panic", "too-large"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_is_forgotten_by_the_time_of_the_records_and_through_the_changelog() {
    let topics = moody_topics("state-expiry");
    // Kafka refuses times that lie ahead.
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap() - 60_000;
    let folder = Folder::new();
    let (stop, task) = run_moody(&topics, folder.path());
    let at = |millis: i64, key: &str, value: &str| topics.produce_at("in", 0, now + millis, key, value);
    at(0, "a", "until 1000");
    at(0, "b", "until 5000");
    at(500, "a", "show");
    at(999, "a", "show");
    eventually("done", PATIENCE, || topics.lag("moody", "in") == 0);
    at(1_000, "a", "show");
    at(4_000, "b", "show");
    eventually("done", PATIENCE, || topics.lag("moody", "in") == 0);
    at(6_000, "b", "show");
    eventually("done", PATIENCE, || topics.lag("moody", "in") == 0);
    stop.cancel();
    task.await.unwrap();
    let shown: Vec<_> = topics
        .read("out", Isolation::Committed)
        .into_iter()
        .map(|record| String::from_utf8(record.value).unwrap())
        .collect();
    assert_eq!(shown, ["until 1000", "until 1000", "nothing", "until 5000", "nothing"]);
    let changes: Vec<_> = topics.read("moody-state", Isolation::Committed);
    let tombstones = changes.iter().filter(|change| change.value.is_empty()).count();
    assert_eq!(tombstones, 2, "both left the changelog too");
}
