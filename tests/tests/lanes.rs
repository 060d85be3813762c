//! Lanes that are stopped by a flood of rejections, on real Kafka: stopped stays stopped until somebody resumes them,
//! and then they go on at exactly the next record.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use weir_contracts::TopicNames;
use weir_stack::schemas::{RegistryAccess, SchemaRegistry, subjects};
use weir_stack::topics::declared;
use weir_testing::{Broker, Isolation, Process, TestTopics, eventually, program};

const LANES: i32 = 4;
const PATIENCE: Duration = Duration::from_secs(90);

/// Kafka and a registry, for all tests here.
fn broker() -> &'static Broker {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    BROKER.get_or_init(|| {
        Broker::start(|mut config| {
            config.registry = true;
            config
        })
    })
}

/// A relay that rejects what is bad until the test mends it.
struct Relay {
    topics: TestTopics,
    folder: tempfile::TempDir,
}

impl Relay {
    fn new(test: &str) -> Self {
        let lanes = ["relay-in", "relay-out", "dlq.relay", "relay.again", "relay-state"]
            .map(|topic| (topic, LANES))
            .into_iter();
        let all: Vec<_> = lanes.chain([("lanes", 1)]).collect();
        let topics = broker().topics(test, &all);
        let mut specs = declared().unwrap();
        specs.retain(|spec| spec.name == "lanes");
        let subjects = subjects(&specs, &TopicNames::new(topics.prefix.clone())).unwrap();
        let access = RegistryAccess { url: broker().stack.registry_url(), username: None, password: None };
        let registry = SchemaRegistry::new(access).unwrap();
        broker().block_on(registry.push(&subjects)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("broken"), "").unwrap();
        Self { topics, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The cause of the rejections is gone.
    fn mend(&self) {
        std::fs::remove_file(self.path("broken")).unwrap();
    }

    fn start(&self, instance: &str, more: &[&str]) -> Process {
        let log = self.path(&format!("{instance}.log"));
        let broken = self.path("broken");
        let url = broker().stack.registry_url();
        let mut arguments: Vec<String> = ["--brokers", &self.topics.brokers, "--prefix", &self.topics.prefix]
            .into_iter()
            .chain(["--instance", instance, "--registry", &url, "--batch", "8", "--flood-consecutive", "20"])
            .chain(["--reject-while", broken.to_str().unwrap()])
            .chain(more.iter().copied())
            .map(String::from)
            .collect();
        if more.contains(&"--count-in") {
            arguments.push(self.path(&format!("{instance}-state")).to_str().unwrap().to_owned());
        }
        Process::start(Path::new(env!("CARGO_BIN_EXE_weir-test-relay")), &arguments, &[], &log)
    }

    /// The test's own reading of the table of stopped lanes: when it was written, by key.
    fn stopped(&self) -> BTreeMap<String, i64> {
        let mut table = BTreeMap::new();
        for record in self.topics.read("lanes", Isolation::Committed) {
            let key = String::from_utf8(record.key).unwrap();
            match record.value.is_empty() {
                true => table.remove(&key),
                false => table.insert(key, record.offset),
            };
        }
        table
    }

    /// Values in a lane of a topic, in order.
    fn values(&self, topic: &str, lane: i32) -> Vec<String> {
        let records = self.topics.read(topic, Isolation::Committed).into_iter();
        records.filter(|record| record.lane == lane).map(|record| String::from_utf8(record.value).unwrap()).collect()
    }

    fn dead(&self) -> usize {
        self.topics.read("dlq.relay", Isolation::Committed).len()
    }

    fn weir(&self, arguments: &[&str]) -> (Value, bool, String) {
        let mut command = Command::new(program("weir"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WEIR_")) {
            command.env_remove(name);
        }
        command.args(["--json", "--kafka", &self.topics.brokers, "--prefix", &self.topics.prefix]);
        command.args(["--registry", &broker().stack.registry_url(), "lanes"]).args(arguments);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        let said = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (said, output.status.success(), errors)
    }

    /// Lane and offset of each lane that `weir lanes list` names.
    fn listed(&self) -> Vec<(i64, i64)> {
        let (list, listed, errors) = self.weir(&["list"]);
        assert!(listed, "{errors}");
        let lanes = list.as_array().unwrap().iter();
        lanes
            .map(|stop| {
                assert_eq!((&stop["stage"], &stop["class"]), (&"relay".into(), &"told-so".into()), "{stop}");
                assert!(stop["next"].as_str().unwrap().contains("weir lanes resume relay"), "{stop}");
                (stop["lane"].as_i64().unwrap(), stop["offset"].as_i64().unwrap())
            })
            .collect()
    }

    fn resume(&self, arguments: &[&str]) {
        let (said, resumed, errors) = self.weir(&[&["resume", "relay"], arguments].concat());
        assert!(resumed, "{said} {errors}");
    }
}

fn count(text: &str, what: &str) -> usize {
    text.lines().filter(|line| line.contains(what)).count()
}

#[test]
fn a_flooded_lane_stays_stopped_over_a_kill_until_it_is_resumed_and_goes_on_with_the_next_record() {
    let relay = Relay::new("lanes-kill");
    let topics = &relay.topics;
    // Lanes 0 and 1 are poisoned, 2 and 3 are fine.
    let record = |n: usize| if n % 4 < 2 { format!("bad-{n:03}") } else { format!("good-{n:03}") };
    topics.produce("relay-in", LANES, (0..400).map(record));
    let mut process = relay.start("a", &[]);
    eventually("both lanes stop, the others flow", PATIENCE, || {
        relay.stopped().len() == 2 && topics.read("relay-out", Isolation::Committed).len() == 200
    });
    assert_eq!(count(&process.output(), "ERROR"), 2, "one alert for each lane: {}", process.output());

    // Resumed without the cure, a lane stops again: what was rejected are the next records, each once.
    let (before, first) = (relay.values("dlq.relay", 1).len(), relay.stopped()["relay/1"]);
    relay.resume(&["--lane", "1"]);
    eventually("lane 1 stops again", PATIENCE, || relay.stopped().get("relay/1").is_some_and(|at| *at > first));
    let rejected = relay.values("dlq.relay", 1);
    assert!(rejected.len() > before && rejected.len() < 40, "{before}, then {}", rejected.len());
    assert_eq!(rejected, relay.values("relay-in", 1)[..rejected.len()]);

    process.kill();
    let dead = relay.dead();
    process.restart();
    eventually("the lanes stay stopped", PATIENCE, || count(&process.output(), "lane stays stopped") >= 2);
    topics.produce("relay-in", LANES, (400..440).map(|n| format!("more-{n}")));
    eventually("the others flow", PATIENCE, || topics.read("relay-out", Isolation::Committed).len() == 220);
    assert_eq!(relay.dead(), dead, "a restart let more through");
    assert!(relay.values("relay-out", 0).is_empty() && relay.values("relay-out", 1).is_empty());
    let at = |lane| (i64::from(lane), i64::try_from(relay.values("dlq.relay", lane).len()).unwrap());
    assert_eq!(relay.listed(), [at(0), at(1)]);

    relay.mend();
    relay.resume(&["--all", "--dry-run"]);
    assert_eq!(relay.stopped().len(), 2, "a dry run changes nothing");
    relay.resume(&["--lane", "0"]);
    let rest = |lane| relay.values("relay-in", lane).split_off(relay.values("dlq.relay", lane).len());
    eventually("lane 0 goes on", PATIENCE, || relay.values("relay-out", 0).len() >= rest(0).len());
    assert!(relay.values("relay-out", 1).is_empty(), "only what was named goes on");
    relay.resume(&["--all"]);
    eventually("everything is done", PATIENCE, || topics.lag("relay", "relay-in") == 0);
    for lane in 0..2 {
        assert_eq!(relay.values("relay-out", lane), rest(lane), "every record once, in order");
    }
    assert_eq!(relay.dead(), dead);
    assert!(process.ended().is_none(), "{}", process.output());
    assert!(relay.listed().is_empty());
    let (_, resumed, errors) = relay.weir(&["resume", "relay", "--all"]);
    assert!(!resumed && errors.contains("no lane of relay is stopped"), "{errors}");
}

#[test]
fn a_stopped_lane_that_moves_to_another_instance_is_resumed_there_with_its_state() {
    let relay = Relay::new("lanes-move");
    let topics = &relay.topics;
    let keys: Vec<String> = (0..8).map(|n| format!("key-{n}")).collect();
    let rounds = |value: &'static str, rounds: usize| {
        let keys = &keys;
        (0..rounds).flat_map(move |_| keys.iter().map(move |key| (key.clone(), value.to_owned())))
    };
    topics.produce_keyed("relay-in", LANES, rounds("x", 10).chain(rounds("bad", 30)));
    let mut first = relay.start("a", &["--count-in"]);
    eventually("all lanes stop", PATIENCE, || relay.stopped().len() == 4);
    let dead = relay.dead();
    let second = relay.start("b", &["--count-in"]);
    eventually("some lanes move", PATIENCE, || count(&second.output(), "lane stays stopped") > 0);
    first.kill();
    eventually("all lanes moved", PATIENCE, || count(&second.output(), "lane stays stopped") >= 4);
    assert_eq!(relay.dead(), dead, "a move let more through");
    assert_eq!(relay.listed().len(), 4);

    relay.mend();
    relay.resume(&["--all"]);
    eventually("everything is done", PATIENCE, || topics.lag("relay", "relay-in") == 0);
    assert_eq!(relay.dead(), dead);
    let mut counted: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
    for record in topics.read("relay-out", Isolation::Committed) {
        let count = std::str::from_utf8(&record.value).unwrap().parse().unwrap();
        counted.entry(record.key).or_default().push(count);
    }
    assert_eq!(counted.values().map(Vec::len).sum::<usize>() + dead, 8 * 40, "lost or doubled");
    for (key, counts) in counted {
        let expected: Vec<usize> = (1..=counts.len()).collect();
        assert_eq!(counts, expected, "{}", String::from_utf8_lossy(&key));
    }
}
