//! Nothing lost, nothing applied twice: the runner on real Kafka while it is killed, frozen, scaled and cut off.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use weir_testing::{Broker, BrokerProxy, Isolation, Process, Swallow, TestTopics, eventually};

const LANES: i32 = 4;
const PATIENCE: Duration = Duration::from_secs(90);

fn topics(broker: &Broker, test: &str) -> TestTopics {
    broker.topics(test, &[("relay-in", LANES), ("relay-out", LANES), ("dlq.relay", LANES)])
}

fn relay(topics: &TestTopics, instance: &str, options: &[&str]) -> Process {
    let log = std::env::temp_dir().join(format!("weir-test-{}-{}{instance}.log", std::process::id(), topics.prefix));
    let mut arguments: Vec<String> =
        ["--brokers", &topics.brokers, "--prefix", &topics.prefix, "--instance", instance].map(String::from).into();
    arguments.extend(options.iter().map(ToString::to_string));
    Process::start(Path::new(env!("CARGO_BIN_EXE_weir-test-relay")), &arguments, &[], &log)
}

fn values(n: usize) -> impl Iterator<Item = String> {
    (0..n).map(|n| format!("record-{n:06}"))
}

/// How often each value was written, and whether every lane has its records in order.
fn counts(topics: &TestTopics) -> (HashMap<Vec<u8>, usize>, bool) {
    let written = topics.read("relay-out", Isolation::Committed);
    let in_order = written.windows(2).all(|pair| pair[0].lane != pair[1].lane || pair[0].value < pair[1].value);
    let mut counts = HashMap::new();
    for record in written {
        *counts.entry(record.value).or_insert(0) += 1;
    }
    (counts, in_order)
}

fn assert_each_once(topics: &TestTopics, expected: usize) {
    let (counts, in_order) = counts(topics);
    let missing = expected - counts.len();
    let doubled = counts.values().filter(|count| **count > 1).count();
    assert_eq!((missing, doubled), (0, 0), "of {expected} records {missing} are missing, {doubled} doubled");
    assert!(in_order, "a lane is out of order");
    eventually("no transaction is left open", PATIENCE, || !topics.has_open_transaction("relay-out"));
}

fn wait_until_done(topics: &TestTopics) {
    eventually("everything is processed and committed", PATIENCE, || topics.lag("relay", "relay-in") == 0);
}

/// Kills the relay five times, each time with work left and a transaction open.
fn kill_again_and_again(topics: &TestTopics, options: &[&str]) {
    let mut process = relay(topics, "0", options);
    for _ in 0..5 {
        let before = topics.lag("relay", "relay-in");
        eventually("it works", PATIENCE, || {
            let lag = topics.lag("relay", "relay-in");
            (lag < before && topics.has_open_transaction("relay-out")) || lag == 0
        });
        assert!(topics.lag("relay", "relay-in") > 0, "there is nothing left to be killed for");
        process.kill();
        process.restart();
    }
    wait_until_done(topics);
}

#[test]
fn a_process_killed_again_and_again_repeats_nothing_and_loses_nothing() {
    let topics = topics(Broker::shared(), "kill");
    topics.produce("relay-in", LANES, values(20_000));
    kill_again_and_again(&topics, &["--work-ms", "60", "--commit-interval-ms", "150"]);
    assert_each_once(&topics, 20_000);
    let everything = topics.read("relay-out", Isolation::Everything).len();
    assert!(everything > 20_000, "no kill hit an open transaction: the test proved nothing");
}

/// The session outlasts the test: whoever had to wait for its end would not get on.
#[test]
fn a_static_member_that_is_killed_has_its_lanes_back_at_once() {
    let topics = topics(Broker::shared(), "static");
    topics.produce("relay-in", LANES, values(20_000));
    let session = ["--static-membership", "--session-timeout-ms", "250000"];
    kill_again_and_again(&topics, &[&["--work-ms", "60", "--commit-interval-ms", "150"][..], &session].concat());
    assert_each_once(&topics, 20_000);
}

/// Two processes under one name: the group and the transactional id both belong to the later one.
#[test]
fn a_static_member_whose_name_was_taken_writes_nothing() {
    let topics = topics(Broker::shared(), "named");
    topics.produce("relay-in", LANES, values(20_000));
    let options = ["--work-ms", "30", "--commit-interval-ms", "150", "--static-membership"];
    let mut first = relay(&topics, "a", &options);
    eventually("the first works", PATIENCE, || topics.lag("relay", "relay-in") < 20_000);
    assert!(topics.lag("relay", "relay-in") > 0);
    let _second = relay(&topics, "a", &options);
    eventually("the first ends", PATIENCE, || first.ended().is_some());
    assert!(first.ended().is_some_and(|status| !status.success()), "a process that is fenced fails");
    wait_until_done(&topics);
    assert_each_once(&topics, 20_000);
}

/// The negative control: the check above fails when transactions are switched off.
#[test]
#[ignore = "a negative control of half a minute"]
fn without_transactions_the_same_kills_repeat_records() {
    let topics = topics(Broker::shared(), "control");
    topics.produce("relay-in", LANES, values(20_000));
    let mut process = relay(&topics, "0", &["--work-ms", "60", "--commit-interval-ms", "150", "--at-least-once"]);
    for _ in 0..5 {
        let before = topics.lag("relay", "relay-in");
        eventually("it works", PATIENCE, || topics.lag("relay", "relay-in") < before);
        process.kill();
        process.restart();
    }
    wait_until_done(&topics);
    let (counts, _) = counts(&topics);
    assert_eq!(counts.len(), 20_000, "at least once loses nothing");
    assert!(counts.values().any(|count| *count > 1), "nothing was repeated: the check proves nothing");
}

#[test]
fn a_zombie_that_wakes_up_after_its_lanes_were_given_away_writes_nothing() {
    let topics = topics(Broker::shared(), "zombie");
    topics.produce("relay-in", LANES, values(20_000));
    let options = ["--work-ms", "10", "--commit-interval-ms", "150"];
    let mut zombie = relay(&topics, "a", &options);
    eventually("the first instance works", PATIENCE, || {
        topics.lag("relay", "relay-in") < 20_000 && topics.has_open_transaction("relay-out")
    });
    zombie.freeze();
    assert!(topics.lag("relay", "relay-in") > 0);
    let _heir = relay(&topics, "b", &options);
    wait_until_done(&topics);
    zombie.thaw();
    eventually("the zombie has noticed", PATIENCE, || {
        let log = zombie.output();
        zombie.ended().is_some() || log.contains("lost") || log.contains("aborted")
    });
    topics.produce("relay-in", LANES, (0..400).map(|n| format!("record-{:06}", 20_000 + n)));
    if zombie.ended().is_some() {
        zombie.restart();
    }
    wait_until_done(&topics);
    assert_each_once(&topics, 20_400);
}

#[test]
fn instances_that_join_and_leave_hand_over_their_lanes_exactly_once() {
    let topics = topics(Broker::shared(), "scale");
    topics.produce("relay-in", LANES, values(30_000));
    let options = ["--work-ms", "10"];
    let mut first = relay(&topics, "a", &options);
    for round in 0..3 {
        let before = topics.lag("relay", "relay-in");
        let mut second = relay(&topics, &format!("b{round}"), &options);
        eventually("both work", PATIENCE, || second.output().contains("lanes assigned"));
        eventually("and get on", PATIENCE, || topics.lag("relay", "relay-in") < before);
        let status = second.terminate(Duration::from_secs(20)).expect("it ends on SIGTERM");
        assert!(status.success(), "{status}: {}", second.output());
    }
    wait_until_done(&topics);
    let status = first.terminate(Duration::from_secs(20)).expect("it ends on SIGTERM");
    assert!(status.success(), "{status}: {}", first.output());
    assert_each_once(&topics, 30_000);
}

/// Three brokers, since one alone can't keep the promise: Kafka 4.4 as a single node, killed between the decision to commit
/// and its markers, comes back without writing those of topics it does not know yet (seen in the log segments).
#[test]
fn the_loss_of_a_broker_is_survived() {
    let broker = Broker::start(|mut config| {
        config.brokers = 3;
        config.broker_heap_mib = 320;
        config
    });
    let topics = topics(&broker, "broker");
    topics.produce("relay-in", LANES, values(20_000));
    let mut process = relay(&topics, "0", &["--work-ms", "30"]);
    for victim in 0..3 {
        let before = topics.lag("relay", "relay-in");
        eventually("it works", PATIENCE, || {
            // A supervisor restarts what exits; a fenced producer must.
            if process.ended().is_some() {
                process.restart();
            }
            topics.lag("relay", "relay-in") < before
        });
        broker.stack.kill_broker(victim).unwrap();
        std::thread::sleep(Duration::from_secs(2));
        broker.block_on(broker.stack.restart_broker(victim)).unwrap();
    }
    let start = Instant::now();
    while topics.lag("relay", "relay-in") > 0 {
        if process.ended().is_some() {
            process.restart();
        }
        assert!(start.elapsed() < PATIENCE, "it does not go on: {}", process.output());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_each_once(&topics, 20_000);
}

/// Two requests of a transaction in flight, of which the first is refused: see the runner's `Sender`.
#[test]
fn the_first_records_of_a_partition_are_stored_though_it_was_just_coming_to_be() {
    let proxy = BrokerProxy::start();
    let (broker, address) = proxy.broker();
    let direct = broker.topics("young", &[("relay-in", 2), ("relay-out", 2), ("dlq.relay", 2)]);
    let through = TestTopics { brokers: address, ..direct.clone() };
    proxy.refuse(&direct.full("relay-out"), 1);
    // One transaction of many requests with few records in each: librdkafka counts records, not requests, in flight.
    let options =
        ["--batch", "2", "--work-ms", "200", "--commit-interval-ms", "8000", "--transaction-timeout-ms", "20000"];
    let _process = relay(&through, "0", &options);
    direct.produce("relay-in", 1, values(40));
    eventually("it works", PATIENCE, || direct.has_open_transaction("relay-out"));
    direct.produce("relay-in", 2, values(100).skip(40));
    wait_until_done(&direct);
    assert!(!proxy.will_refuse(), "nothing was refused");
    assert_each_once(&direct, 100);
}

/// Loses the end of a transaction once with the commit done and once not: both times the runner finds out which.
#[test]
fn a_commit_in_doubt_is_resolved_by_asking_kafka() {
    let proxy = BrokerProxy::start();
    let (broker, address) = proxy.broker();
    let direct = topics(&broker, "ambiguous");
    let through = TestTopics { brokers: address, ..direct.clone() };
    direct.produce("relay-in", LANES, values(6_000));
    let mut process = relay(&through, "0", &["--work-ms", "20", "--transaction-timeout-ms", "3000"]);
    for (swallow, resolved) in [(Swallow::Response, "applied=true"), (Swallow::Request, "applied=false")] {
        let before = direct.lag("relay", "relay-in");
        eventually("it works", PATIENCE, || direct.lag("relay", "relay-in") < before);
        assert!(direct.lag("relay", "relay-in") > 0, "there is nothing left to be in doubt about");
        proxy.swallow(swallow);
        eventually("a producer starts over", PATIENCE, || {
            assert!(process.ended().is_none(), "it ended: {}", process.output());
            proxy.started_over()
        });
        assert!(proxy.swallowed() > 0);
        eventually("the doubt is resolved", PATIENCE, || process.output().contains(resolved));
    }
    eventually("everything is done", PATIENCE, || direct.lag("relay", "relay-in") == 0);
    assert_each_once(&direct, 6_000);
}

/// What librdkafka does not come back from by itself: see the runner's `send_offsets`.
#[test]
fn a_group_without_a_coordinator_for_a_moment_costs_a_transaction_and_not_the_process() {
    let proxy = BrokerProxy::start();
    let (broker, address) = proxy.broker();
    let direct = topics(&broker, "coordinator");
    let through = TestTopics { brokers: address, ..direct.clone() };
    let mut process = relay(&through, "0", &["--transaction-timeout-ms", "3000"]);
    eventually("it has its lanes", PATIENCE, || process.output().contains("lanes assigned"));
    proxy.hide_coordinator(3);
    direct.produce("relay-in", LANES, values(200));
    wait_until_done(&direct);
    assert!(process.ended().is_none(), "it ended: {}", process.output());
    assert!(!proxy.hides_coordinator(), "it was not looked for");
    assert!(process.output().contains("does not return"), "the call returned: {}", process.output());
    assert_each_once(&direct, 200);
}
