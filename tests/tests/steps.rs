//! State of records that run side by side, on real Kafka: a step that was committed is not done again, whatever happens to
//! its owner, and an owner that can't be sure of its lane does nothing that can't be undone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use weir_testing::{Broker, Isolation, Process, TestTopics, eventually};

const LANES: i32 = 4;
const KEYS: usize = 40;
const PATIENCE: Duration = Duration::from_secs(120);

fn topics(test: &str, lanes: i32) -> TestTopics {
    let names = ["relay-in", "relay-out", "dlq.relay", "relay-state"].map(|name| (name, lanes));
    Broker::shared().topics(test, &names)
}

fn relay(
    topics: &TestTopics,
    instance: &str,
    folder: &Path,
    environment: &[(String, String)],
    options: &[&str],
) -> Process {
    let log = std::env::temp_dir().join(format!("weir-test-{}-{}{instance}.log", std::process::id(), topics.prefix));
    let mut arguments: Vec<String> =
        ["--brokers", &topics.brokers, "--prefix", &topics.prefix, "--instance", instance].map(String::from).into();
    arguments.extend(["--count-in".into(), folder.to_str().unwrap().into()]);
    arguments.extend(options.iter().map(ToString::to_string));
    Process::start(Path::new(env!("CARGO_BIN_EXE_weir-test-relay")), &arguments, environment, &log)
}

/// `count` records over the keys, each with its milliseconds of work in its value.
fn feed(topics: &TestTopics, lanes: i32, count: usize, millis: impl Fn(usize) -> usize) {
    let records = (0..count).map(|n| (format!("key-{:02}", n % KEYS), format!("record-{n:05}:{}", millis(n))));
    topics.produce_keyed("relay-in", lanes, records);
}

/// The records in lines of the log that say `what`, in order.
fn said(process: &Process, what: &str) -> Vec<String> {
    let output = process.output();
    let lines = output.lines().filter(|line| line.contains(what));
    let record =
        |line: &str| line.split("record=").nth(1)?.split_whitespace().next().map(|r| r.trim_matches('"').to_owned());
    lines.filter_map(record).collect()
}

fn assert_numbered(topics: &TestTopics, of_each: usize) {
    let mut numbers: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
    for record in topics.read("relay-out", Isolation::Committed) {
        numbers.entry(record.key).or_default().push(String::from_utf8(record.value).unwrap().parse().unwrap());
    }
    assert_eq!(numbers.len(), KEYS);
    for (key, mut of_key) in numbers {
        of_key.sort_unstable();
        assert_eq!(of_key, (1..=of_each).collect::<Vec<_>>(), "{}", String::from_utf8_lossy(&key));
    }
}

#[test]
fn a_step_that_was_committed_is_not_done_again_over_kills_and_a_lost_disk() {
    let topics = topics("steps", LANES);
    feed(&topics, LANES, 1_200, |n| n * 7_919 % 2_000);
    let folder = tempfile::tempdir().unwrap();
    let options = ["--concurrent", "60", "--static-membership"];
    let mut process = relay(&topics, "0", folder.path(), &[], &options);
    for round in 1..=4 {
        // By its positions: reading what was written to its end does not end as long as more is written.
        eventually("it gets on", PATIENCE, || topics.lag("relay", "relay-in") <= 1_200 - round * 130);
        assert!(topics.lag("relay", "relay-in") > 0, "there is nothing left to be killed for");
        process.kill();
        if round == 2 {
            std::fs::remove_dir_all(folder.path()).unwrap();
        }
        process.restart();
    }
    eventually("everything is done", PATIENCE, || topics.lag("relay", "relay-in") == 0);
    assert_numbered(&topics, 1_200 / KEYS);
    let first = said(&process, "resumed=false");
    assert_eq!(first.len(), first.iter().collect::<HashSet<_>>().len(), "a committed step was done again");
    assert!(!said(&process, "resumed=true").is_empty(), "no kill hit a record between its steps: nothing was proven");
    let mut left = BTreeMap::new();
    for record in topics.read("relay-state", Isolation::Committed) {
        left.insert(record.key, record.value);
    }
    let steps = left.iter().filter(|(key, value)| key.starts_with(b"step") && !value.is_empty()).count();
    assert_eq!(steps, 0, "steps were left behind");
}

/// An instance is frozen, in the middle of many records, for longer than its session; another one takes its lanes over and
/// does their work. Gives the records on which the first one still acted after it woke up though the other had them by then.
fn freeze(test: &str, environment: &[(String, String)]) -> Vec<String> {
    let topics = topics(test, 1);
    feed(&topics, 1, 120, |_| 4_000);
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = ["--concurrent", "120"];
    let first = relay(&topics, "a", here.path(), environment, &options);
    eventually("all have begun", PATIENCE, || said(&first, "numbered").len() == 120);
    assert!(said(&first, "called").is_empty(), "too late to freeze it");
    first.freeze();
    let second = relay(&topics, "b", there.path(), environment, &options);
    eventually("the other has taken over", PATIENCE, || said(&second, "called").len() == 120);
    assert!(said(&second, "resumed=false").is_empty(), "what was committed was done again");
    first.thaw();
    eventually("everything is done", PATIENCE, || topics.lag("relay", "relay-in") == 0);
    eventually("the first one is back", PATIENCE, || first.output().contains("lost"));
    assert!(!first.output().contains("abort in doubt"), "records on their way kept a transaction from being aborted");
    assert_numbered(&topics, 120 / KEYS);
    said(&first, "called")
}

#[test]
fn an_owner_that_was_frozen_past_its_session_does_nothing_more_when_it_wakes_up() {
    assert_eq!(freeze("lease", &[]), Vec::<String>::new());
}

/// The negative control. Now and then an owner that wakes up hears that its lanes are gone before it comes to act: that proves
/// nothing either way.
#[test]
fn without_its_lease_an_owner_that_wakes_up_does_everything_once_more() {
    let mut tries = (1..=4).map(|n| freeze(&format!("no-lease-{n}"), &[("WEIR_TEST_WITHOUT".into(), "lease".into())]));
    assert!(tries.any(|repeated| !repeated.is_empty()), "nothing was repeated: the check proves nothing");
}
