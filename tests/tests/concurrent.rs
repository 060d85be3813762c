//! Records that run side by side: a slow one holds up no other, and none that is done is done again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use weir_testing::{Broker, Isolation, Process, TestTopics, eventually};

const LANES: i32 = 4;
const PATIENCE: Duration = Duration::from_secs(120);

fn topics(test: &str, lanes: i32) -> TestTopics {
    Broker::shared().topics(test, &[("relay-in", lanes), ("relay-out", lanes), ("dlq.relay", lanes)])
}

fn relay(topics: &TestTopics, instance: &str, environment: &[(&str, &str)], options: &[&str]) -> Process {
    let environment: Vec<(String, String)> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let log = std::env::temp_dir().join(format!("weir-test-{}-{}{instance}.log", std::process::id(), topics.prefix));
    let mut arguments: Vec<String> =
        ["--brokers", &topics.brokers, "--prefix", &topics.prefix, "--instance", instance].map(String::from).into();
    arguments.extend(options.iter().map(ToString::to_string));
    Process::start(Path::new(env!("CARGO_BIN_EXE_weir-test-relay")), &arguments, &environment, &log)
}

/// `count` records, each with its milliseconds of work in its value.
fn questions(count: usize, millis: impl Fn(usize) -> usize) -> impl Iterator<Item = String> {
    (0..count).map(move |n| format!("question-{n:06}:{}", millis(n)))
}

fn written(topics: &TestTopics) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for record in topics.read("relay-out", Isolation::Committed) {
        *counts.entry(String::from_utf8(record.value).unwrap()).or_insert(0) += 1;
    }
    counts
}

fn assert_each_once(topics: &TestTopics, expected: usize) {
    let counts = written(topics);
    let doubled = counts.values().filter(|count| **count > 1).count();
    assert_eq!((expected - counts.len(), doubled), (0, 0), "missing and doubled of {expected}");
    eventually("no transaction is left open", PATIENCE, || !topics.has_open_transaction("relay-out"));
}

fn wait_until_done(topics: &TestTopics) {
    eventually("everything is done", PATIENCE, || topics.lag("relay", "relay-in") == 0);
}

/// How often work on each record has begun.
fn begun(process: &Process) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for line in process.output().lines().filter(|line| line.contains("begun")) {
        let record = line.split("record=").nth(1).unwrap().split_whitespace().next().unwrap();
        *counts.entry(record.trim_matches('"').to_owned()).or_insert(0) += 1;
    }
    counts
}

/// The first record is slow; all others are done and written while it runs. Then the process is killed.
fn kill_behind_a_slow_record(topics: &TestTopics, environment: &[(&str, &str)]) {
    topics.produce("relay-in", 1, std::iter::once("slow:20000".to_owned()).chain(questions(500, |n| n % 5)));
    let mut process = relay(topics, "0", environment, &["--concurrent", "16"]);
    eventually("the others are done", PATIENCE, || written(topics).len() == 500);
    assert!(topics.lag("relay", "relay-in") > 500, "the position waits for the slow one");
    process.kill();
    process.restart();
    wait_until_done(topics);
}

#[test]
fn a_slow_record_holds_up_no_other_and_a_crash_behind_it_repeats_nothing() {
    let topics = topics("slow", 1);
    kill_behind_a_slow_record(&topics, &[]);
    assert_each_once(&topics, 501);
}

/// The negative control: what is done beyond the position is done again when it is not remembered.
#[test]
#[ignore = "a negative control of half a minute"]
fn without_remembering_what_is_done_the_same_crash_repeats_it() {
    let topics = topics("forgets", 1);
    kill_behind_a_slow_record(&topics, &[("WEIR_TEST_WITHOUT", "remembering-what-is-done")]);
    let counts = written(&topics);
    assert_eq!(counts.len(), 501, "nothing is lost");
    assert!(counts.values().any(|count| *count > 1), "nothing was repeated: the check proves nothing");
}

#[test]
fn a_thousand_questions_of_up_to_five_seconds_survive_kills_each_answered_once() {
    let topics = topics("questions", LANES);
    topics.produce("relay-in", LANES, questions(1_000, |n| n * 7_919 % 5_000));
    let mut process = relay(&topics, "0", &[], &["--concurrent", "200", "--static-membership"]);
    for round in 1..=4 {
        eventually("it gets on", PATIENCE, || written(&topics).len() >= round * 150);
        assert!(topics.lag("relay", "relay-in") > 0, "there is nothing left to be killed for");
        process.kill();
        process.restart();
    }
    wait_until_done(&topics);
    assert_each_once(&topics, 1_000);
}

/// More records than the metadata of a commit has room for are done behind a slow one: it stops in time, and goes on.
#[test]
fn what_is_done_beyond_the_position_never_outgrows_a_commit() {
    let topics = topics("window", 1);
    // Every second one is slow: the worst there is to remember.
    topics.produce("relay-in", 1, questions(6_000, |n| if n % 2 == 0 { 4_000 } else { 0 }));
    let mut process = relay(&topics, "0", &[], &["--concurrent", "3000", "--static-membership"]);
    eventually("it gets on", PATIENCE, || written(&topics).len() > 500);
    process.kill();
    process.restart();
    wait_until_done(&topics);
    assert!(!process.output().contains("aborted"), "{}", process.output());
    assert_each_once(&topics, 6_000);
}

#[test]
fn a_lane_that_goes_to_another_instance_neither_repeats_nor_cancels_the_work_of_those_that_stay() {
    let topics = topics("moves", LANES);
    topics.produce("relay-in", LANES, questions(400, |n| 1_000 + n % 100 * 20));
    let options = ["--concurrent", "40", "--announce"];
    let first = relay(&topics, "a", &[], &options);
    eventually("the first works", PATIENCE, || !written(&topics).is_empty());
    let mut second = relay(&topics, "b", &[], &options);
    eventually("the second works", PATIENCE, || !begun(&second).is_empty());
    wait_until_done(&topics);
    assert_each_once(&topics, 400);
    let (of_first, of_second) = (begun(&first), begun(&second));
    let both = of_first.keys().filter(|record| of_second.contains_key(*record)).count();
    assert!(of_first.values().all(|count| *count == 1), "work of a lane that stayed was begun again");
    assert!(both <= 40, "{both} records were begun by both: more than can have run when the lanes moved");
    assert!(second.terminate(Duration::from_secs(20)).unwrap().success());
}

#[test]
fn records_of_one_key_run_one_after_another_and_those_of_others_beside_them() {
    let topics = topics("keys", 2);
    let keyed = (0..600).map(|n| (format!("key-{}", n % 30), format!("{:06}:{}", n / 30, n % 7)));
    topics.produce_keyed("relay-in", 2, keyed);
    let mut process = relay(&topics, "0", &[], &["--concurrent", "30", "--by-key", "--static-membership"]);
    eventually("it gets on", PATIENCE, || !topics.read("relay-out", Isolation::Committed).is_empty());
    process.kill();
    process.restart();
    wait_until_done(&topics);
    let mut of_key: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
    for record in topics.read("relay-out", Isolation::Committed) {
        of_key.entry(record.key).or_default().push(record.value);
    }
    assert_eq!(of_key.len(), 30);
    for values in of_key.values() {
        assert_eq!(values.len(), 20);
        assert!(values.is_sorted(), "a key's records were overtaken");
    }
}

#[test]
fn what_runs_is_finished_and_committed_before_a_clean_end() {
    let topics = topics("ends", 1);
    topics.produce("relay-in", 1, questions(60, |n| 200 + n * 10));
    let mut process = relay(&topics, "0", &[], &["--concurrent", "20", "--announce"]);
    eventually("it gets on", PATIENCE, || written(&topics).len() > 5);
    let status = process.terminate(Duration::from_secs(20)).expect("it ends on SIGTERM");
    assert!(status.success(), "{status}: {}", process.output());
    assert_eq!(begun(&process).len(), written(&topics).len(), "what had begun is done");
    process.restart();
    wait_until_done(&topics);
    assert_each_once(&topics, 60);
}
