//! Records that fail for now: they come back, exactly once, after a delay, and hold nobody up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use weir_contracts::{RETRY_TIERS, Raw, Topic, header};
use weir_runner::{Registry, RegistryConfig, Runner, RunnerConfig};
use weir_stage::{Batch, Delivery, Failure, Outcome, Output, Stage, StageError};
use weir_testing::{Broker, Isolation, Process, TestTopics, eventually, program};

const LANES: i32 = 2;
const PATIENCE: Duration = Duration::from_secs(60);
/// One of the stages that the retry service knows.
const STAGE: &str = "eval";

/// A value `fail N` fails the first N times. Everything else is copied, with the topic it came from.
struct Flaky {
    work: Duration,
}

impl Stage for Flaky {
    type Input = Raw;

    async fn process(&mut self, batch: Batch<'_, Raw>) -> Result<Vec<Outcome>, StageError> {
        tokio::time::sleep(self.work * u32::try_from(batch.len()).unwrap()).await;
        let outcome = |delivery: &Delivery<Raw>| {
            let text = String::from_utf8(delivery.record().0.clone()).unwrap();
            let fails: u32 = text.strip_prefix("fail ").map_or(0, |rest| rest.parse().unwrap());
            let tried: u32 = delivery.headers.text(header::ATTEMPT).map_or(0, |attempt| attempt.parse().unwrap());
            if tried < fails {
                return Outcome::retry_later(Failure::new("told-so", format!("try {tried} of {fails}")));
            }
            let from = if delivery.at.topic.ends_with(".again") { "again" } else { "fresh" };
            let key = delivery.key.clone().unwrap_or_default();
            Outcome::emit(Output::new(Topic::custom("out"), key, Raw(from.into())))
        };
        Ok(batch.iter().map(outcome).collect())
    }

    async fn last_words(&mut self, delivery: &Delivery<Raw>, failure: &Failure) -> Result<Vec<Output>, StageError> {
        let key = delivery.key.clone().unwrap_or_default();
        Ok(vec![Output::new(Topic::custom("words"), key, Raw(failure.message.clone().into_bytes()))])
    }
}

fn topics(test: &str) -> TestTopics {
    let mut wanted = vec![("in".to_owned(), LANES), ("out".into(), LANES), ("words".into(), LANES)];
    wanted.extend([format!("dlq.{STAGE}"), format!("{STAGE}.again")].map(|name| (name, LANES)));
    for (tier, _) in RETRY_TIERS {
        wanted.extend([tier.name().to_owned(), format!("dlq.{}", tier.name())].map(|name| (name, LANES)));
    }
    let wanted: Vec<(&str, i32)> = wanted.iter().map(|(name, lanes)| (name.as_str(), *lanes)).collect();
    Broker::shared().topics(test, &wanted)
}

fn retry_service(topics: &TestTopics) -> Process {
    let environment = [
        ("WEIR_KAFKA__BROKERS", topics.brokers.as_str()),
        ("WEIR_KAFKA__PREFIX", &topics.prefix),
        ("WEIR_KAFKA__LANES", "2"),
        ("WEIR_HTTP__LISTEN", "127.0.0.1:0"),
        ("WEIR_RUNNER__INSTANCE", "0"),
        ("WEIR_RUNNER__SESSION_TIMEOUT_MS", "4000"),
        ("WEIR_RUNNER__TRANSACTION_TIMEOUT_MS", "5000"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let log = std::env::temp_dir().join(format!("weir-test-{}-{}retry.log", std::process::id(), topics.prefix));
    Process::start(&program("weir-retry"), &[], &environment, &log)
}

fn settings() -> RunnerConfig {
    RunnerConfig { instance: "0".into(), session_timeout_ms: 6_000, flood_consecutive: 0, ..RunnerConfig::default() }
}

fn run(topics: &TestTopics, config: RunnerConfig, stage: Flaky) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let registry = Registry::new(&RegistryConfig::default(), &topics.prefix).unwrap();
    let runner = Runner::new(STAGE, topics.kafka(LANES), registry, config);
    let stop = CancellationToken::new();
    let token = stop.clone();
    let task = tokio::spawn(async move { runner.run(Topic::custom("in"), stage, token).await.unwrap() });
    (stop, task)
}

fn quick() -> Flaky {
    Flaky { work: Duration::ZERO }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_fail_for_now_come_back_once_though_the_retry_service_is_killed() {
    let topics = topics("retry-kill");
    let record = |n: usize| if n.is_multiple_of(2) { "fail 2".to_owned() } else { "fine".to_owned() };
    topics.produce_keyed("in", LANES, (0..400).map(|n| (format!("key-{n:04}"), record(n))));
    let mut retry = retry_service(&topics);
    let (stop, task) = run(&topics, settings(), quick());
    let done = || topics.read("out", Isolation::Committed).len();
    eventually("what is fine does not wait", PATIENCE, || done() >= 200);
    for _ in 0..2 {
        eventually("records return", PATIENCE, || !topics.read("eval.again", Isolation::Committed).is_empty());
        retry.kill();
        retry.restart();
    }
    eventually("all come through", PATIENCE, || done() >= 400);
    stop.cancel();
    task.await.unwrap();
    let mut counts: HashMap<Vec<u8>, usize> = HashMap::new();
    for record in topics.read("out", Isolation::Committed) {
        *counts.entry(record.key).or_default() += 1;
    }
    assert_eq!(counts.len(), 400);
    assert!(counts.values().all(|count| *count == 1), "a record was done twice");
    let again = topics.read("eval.again", Isolation::Committed);
    assert_eq!(again.len(), 400, "two tries more for each of 200");
    assert!(topics.read("dlq.eval", Isolation::Committed).is_empty());
    let attempts: Vec<_> = again.iter().filter(|record| record.header(header::ATTEMPT) == "2").collect();
    assert_eq!(attempts.len(), 200);
    assert_eq!(attempts[0].header(header::DLQ_TOPIC), topics.full("in"), "where it lay first is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_last_try_it_is_a_dead_letter_with_its_history() {
    let topics = topics("retry-last");
    topics.produce_keyed("in", LANES, [("k".to_owned(), "fail 9".to_owned())]);
    let _retry = retry_service(&topics);
    let (stop, task) = run(&topics, RunnerConfig { retry_attempts: 2, ..settings() }, quick());
    eventually("it is given up", PATIENCE, || !topics.read("dlq.eval", Isolation::Committed).is_empty());
    stop.cancel();
    task.await.unwrap();
    let dead = topics.read("dlq.eval", Isolation::Committed);
    assert_eq!((dead.len(), dead[0].value.as_slice()), (1, &b"fail 9"[..]));
    assert_eq!(dead[0].header(header::ERROR_CLASS), "told-so");
    assert_eq!(dead[0].header(header::ATTEMPT), "2");
    assert_eq!(dead[0].header(header::DLQ_MESSAGE), "try 2 of 9 (tried 3 times)");
    assert_eq!(dead[0].header(header::DLQ_TOPIC), topics.full("in"));
    assert!(!dead[0].header(header::FIRST_FAILURE_AT).is_empty());
    let words: Vec<_> = topics.read("words", Isolation::Committed).into_iter().map(|word| word.value).collect();
    assert_eq!(words, [b"try 2 of 9 (tried 3 times)".to_vec()], "said once, with the dead letter");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rejected_is_not_tried_again_and_without_tiers_nothing_is() {
    let topics = Broker::shared().topics("retry-none", &[("in", 1), ("out", 1), ("words", 1), ("dlq.eval", 1)]);
    topics.produce_keyed("in", 1, [("k".to_owned(), "fail 1".to_owned())]);
    let (stop, task) = run(&topics, settings(), quick());
    eventually("it is given up at once", PATIENCE, || topics.read("dlq.eval", Isolation::Committed).len() == 1);
    stop.cancel();
    task.await.unwrap();
}

/// The most records that are due within one tenth of a second. When they are due is written into them, so a machine that is
/// busy does not count as a herd.
async fn busiest(topics: &TestTopics, jitter: bool) -> usize {
    topics.produce_keyed("in", LANES, (0..1_000).map(|n| (format!("key-{n:04}"), "fail 1".to_owned())));
    let _retry = retry_service(topics);
    let config = RunnerConfig { retry_jitter: jitter, linger_ms: 200, ..settings() };
    let (stop, task) = run(topics, config, quick());
    eventually("all return", PATIENCE, || topics.read("eval.again", Isolation::Committed).len() == 1_000);
    stop.cancel();
    task.await.unwrap();
    let waited = topics.read("retry.1s", Isolation::Committed);
    let mut due: Vec<i64> = waited.iter().map(|record| record.header(header::NOT_BEFORE).parse().unwrap()).collect();
    assert_eq!(due.len(), 1_000);
    due.sort_unstable();
    (0..due.len()).map(|first| due[first..].iter().take_while(|at| **at < due[first] + 100).count()).max().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_together_does_not_return_together() {
    let spread = busiest(&topics("retry-herd"), true).await;
    // A second's worth of jitter: 100 in each tenth when even.
    assert!(spread < 200, "{spread} of 1,000 records returned within 100 ms");
    let herd = busiest(&topics("retry-no-jitter"), false).await;
    assert!(herd >= 200, "without jitter {herd} returned together: the check proves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_returning_records_leaves_fresh_ones_their_share() {
    let topics = topics("retry-storm");
    let records = |kind: &'static str| (0..3_000).map(move |n| (format!("{kind}-{n:05}"), "fine".to_owned()));
    topics.produce_keyed("eval.again", LANES, records("storm"));
    topics.produce_keyed("in", LANES, records("fresh"));
    let config = RunnerConfig { retry_share: 0.2, max_batch_records: 200, ..settings() };
    let (stop, task) = run(&topics, config, Flaky { work: Duration::from_micros(500) });
    eventually("all are done", PATIENCE, || topics.read("out", Isolation::Committed).len() == 6_000);
    stop.cancel();
    task.await.unwrap();
    for lane in 0..LANES {
        let out = topics.read("out", Isolation::Committed);
        let in_lane: Vec<_> = out.iter().filter(|record| record.lane == lane).collect();
        // Both are read over connections of their own: until the first of either is there, there is nothing to share.
        let first = |kind: &[u8]| in_lane.iter().position(|record| record.value == kind).unwrap();
        let begun = first(b"fresh").max(first(b"again"));
        let last_fresh = in_lane.iter().rposition(|record| record.value == b"fresh").unwrap();
        assert!(begun < last_fresh, "those that return waited until no fresh record did");
        let shared = &in_lane[begun..last_fresh];
        let storm = shared.iter().filter(|record| record.value == b"again").count();
        let share = storm as f64 / shared.len() as f64;
        assert!(share < 0.3, "while fresh records waited, {share:.2} of the work went to those that returned");
        assert!(share > 0.1, "those that return must get on too: {share:.2}");
    }
}
