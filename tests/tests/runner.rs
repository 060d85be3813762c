//! What the runner promises about records it can't process, dependencies that are away and logs that were cut.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weir_contracts::{Lane, Raw, Topic, header};
use weir_runner::{PauseReason, Registry, RegistryConfig, Runner, RunnerConfig, RunnerError, StageStatus};
use weir_stage::{Batch, Delivery, Failure, Outcome, Output, Stage, StageError};
use weir_testing::{Broker, Isolation, TestTopics, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
const INPUT: Topic = Topic::custom("in");
const OUTPUT: Topic = Topic::custom("out");
const WORDS: Topic = Topic::custom("words");

/// Does what a record says: `panic`, `reject`, `huge`; copies anything else. Away while `away` is set.
#[derive(Clone, Default)]
struct Obedient {
    away: Arc<AtomicBool>,
    attempts: Arc<AtomicUsize>,
}

impl Stage for Obedient {
    type Input = Raw;

    async fn process(&mut self, batch: Batch<'_, Raw>) -> Result<Vec<Outcome>, StageError> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            return Err(StageError::unavailable("vault", "it is away"));
        }
        Ok(batch
            .iter()
            .map(|delivery| {
                let Raw(value) = delivery.record();
                match std::str::from_utf8(value) {
                    Ok("panic") => panic!("as told"),
                    Ok("reject") => Outcome::reject(Failure::new("told-so", "the record says so")),
                    Ok("huge") => Outcome::emit(Output::new(OUTPUT, "k", Raw(vec![7; 2 << 20]))),
                    _ => {
                        Outcome::emit(Output::new(OUTPUT, delivery.key.clone().unwrap_or_default(), Raw(value.clone())))
                    }
                }
            })
            .collect())
    }

    async fn last_words(&mut self, delivery: &Delivery<Raw>, failure: &Failure) -> Result<Vec<Output>, StageError> {
        let Raw(value) = delivery.record();
        Ok(vec![Output::new(WORDS, value.clone(), Raw(failure.class.into()))])
    }
}

struct Running {
    stop: CancellationToken,
    status: Arc<StageStatus>,
    task: JoinHandle<Result<(), RunnerError>>,
}

fn settings() -> RunnerConfig {
    RunnerConfig { instance: "0".into(), session_timeout_ms: 6_000, ..RunnerConfig::default() }
}

fn run<S: Stage>(topics: &TestTopics, lanes: i32, config: RunnerConfig, stage: S) -> Running {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let registry = Registry::new(&RegistryConfig::default(), &topics.prefix).unwrap();
    let runner = Runner::new("obedient", topics.kafka(lanes), registry, config);
    let status = runner.status();
    let stop = CancellationToken::new();
    let task = tokio::spawn(runner.run(INPUT, stage, stop.clone()));
    Running { stop, status, task }
}

impl Running {
    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn topics(test: &str, lanes: i32) -> TestTopics {
    Broker::shared().topics(test, &[("in", lanes), ("out", lanes), ("words", lanes), ("dlq.obedient", lanes)])
}

fn done(topics: &TestTopics) {
    eventually("everything is processed", PATIENCE, || topics.lag("obedient", "in") == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_panics_or_is_rejected_becomes_a_dead_letter_with_its_bytes_and_its_history() {
    let topics = topics("dead", 1);
    topics.produce("in", 1, ["a", "panic", "b", "reject", "huge", "c"].map(String::from));
    let running = run(&topics, 1, settings(), Obedient::default());
    done(&topics);
    running.end().await;
    let out: Vec<_> = topics.read("out", Isolation::Committed).into_iter().map(|record| record.value).collect();
    assert_eq!(out, [b"a", b"b", b"c"], "the others flow, in order");
    let dead = topics.read("dlq.obedient", Isolation::Committed);
    let classes: Vec<_> = dead.iter().map(|letter| letter.header(header::ERROR_CLASS)).collect();
    assert_eq!(classes, ["panic", "told-so", "too-large"]);
    assert_eq!(dead[0].value, b"panic", "the bytes are kept");
    assert_eq!(dead[0].header(header::DLQ_TOPIC), topics.full("in"));
    assert_eq!((dead[0].header(header::DLQ_PARTITION), dead[0].header(header::DLQ_OFFSET)), ("0".into(), "1".into()));
    assert_eq!(dead[0].header(header::DLQ_GROUP), topics.full("obedient"));
    assert_eq!(dead[1].header(header::DLQ_MESSAGE), "the record says so");
    assert_eq!(dead[1].header(header::DEAD_LETTER_KEY), "reject");
    assert_eq!(dead[1].key, dead[1].headers[header::DEAD_LETTER], "the key of a dead letter is its id");
    let words: Vec<_> =
        topics.read("words", Isolation::Committed).into_iter().map(|word| (word.key, word.value)).collect();
    let told = |record: &str, class: &str| (record.as_bytes().to_vec(), class.as_bytes().to_vec());
    assert_eq!(
        words,
        [told("panic", "panic"), told("reject", "told-so"), told("huge", "too-large")],
        "whoever rejects it, the stage says it once"
    );
}

/// Wants Avro, is given anything.
struct Typed;

impl Stage for Typed {
    type Input = weir_contracts::Question;

    async fn process(&mut self, batch: Batch<'_, Self::Input>) -> Result<Vec<Outcome>, StageError> {
        Ok(batch.iter().map(|_| Outcome::skip("seen")).collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_record_become_dead_letters_whole() {
    let topics = topics("bytes", 1);
    topics.produce("in", 1, ["not framed".into(), "\u{0}".into()]);
    let running = run(&topics, 1, settings(), Typed);
    done(&topics);
    running.end().await;
    let dead = topics.read("dlq.obedient", Isolation::Committed);
    let letters: Vec<_> =
        dead.iter().map(|letter| (letter.header(header::ERROR_CLASS), letter.value.clone())).collect();
    assert_eq!(letters, [("undecodable".into(), b"not framed".to_vec()), ("undecodable".into(), vec![0])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unavailable_dependency_pauses_the_lanes_and_heals_without_dead_letters() {
    let topics = topics("away", 2);
    let stage = Obedient::default();
    stage.away.store(true, Ordering::SeqCst);
    topics.produce("in", 2, (0..100).map(|n| format!("{n:03}")));
    let running = run(&topics, 2, settings(), stage.clone());
    eventually("it tries again and again", PATIENCE, || stage.attempts.load(Ordering::SeqCst) > 2);
    let lanes = running.status.lanes();
    assert!(
        lanes.values().all(|pause| matches!(pause, Some(PauseReason::Unavailable { dependency: "vault", .. }))),
        "{lanes:?}"
    );
    assert_eq!(topics.lag("obedient", "in"), 100, "nothing is committed meanwhile");
    stage.away.store(false, Ordering::SeqCst);
    done(&topics);
    assert!(running.status.lanes().values().all(Option::is_none), "the lanes flow again");
    running.end().await;
    assert_eq!(topics.read("out", Isolation::Committed).len(), 100);
    assert!(topics.read("dlq.obedient", Isolation::Committed).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_between_the_committed_offset_and_the_log_stops_that_lane_and_names_the_range() {
    let topics = topics("gap", 2);
    topics.produce("in", 2, (0..20).map(|n| format!("{n:03}")));
    let running = run(&topics, 2, settings(), Obedient::default());
    done(&topics);
    running.end().await;
    topics.produce("in", 2, (20..40).map(|n| format!("{n:03}")));
    topics.delete_records("in", 0, 15);
    let running = run(&topics, 2, settings(), Obedient::default());
    let stopped = || running.status.lanes().get(&Lane(0)).cloned().flatten();
    eventually("lane 0 stops", PATIENCE, || stopped().is_some());
    assert_eq!(stopped(), Some(PauseReason::Gap { from: 10, to: 15 }), "the exact range is named");
    let in_lane = |lane| topics.read("out", Isolation::Committed).iter().filter(|r| r.lane == lane).count();
    eventually("lane 1 flows on", PATIENCE, || in_lane(1) == 20);
    assert_eq!(in_lane(0), 10, "nothing is skipped silently");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_opens_while_the_lane_is_read_stops_it_too() {
    let topics = topics("gap-live", 1);
    let stage = Obedient::default();
    // Small buffers, so that what is deleted has not been read ahead.
    let config = RunnerConfig { lane_buffer_bytes: 64, max_batch_records: 1, ..settings() };
    stage.away.store(true, Ordering::SeqCst);
    topics.produce("in", 1, (0..4_000).map(|n| format!("{n:06}{}", "x".repeat(2_000))));
    let running = run(&topics, 1, config, stage.clone());
    eventually("it has begun", PATIENCE, || stage.attempts.load(Ordering::SeqCst) > 0);
    topics.delete_records("in", 0, 3_990);
    stage.away.store(false, Ordering::SeqCst);
    let stopped = || running.status.lanes().get(&Lane(0)).cloned().flatten();
    eventually("the lane stops", PATIENCE, || matches!(stopped(), Some(PauseReason::Gap { .. })));
    let written = topics.read("out", Isolation::Committed);
    let Some(PauseReason::Gap { from, to }) = stopped() else { panic!("{:?}", stopped()) };
    assert_eq!((usize::try_from(from).unwrap(), to), (written.len(), 3_990), "from what was not processed");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_rejections_stops_the_lane_instead_of_emptying_it_into_the_dead_letters() {
    let topics = topics("flood", 2);
    // Lane 0 is poisoned, lane 1 is fine.
    topics.produce("in", 2, (0..400).map(|n| if n % 2 == 0 { "reject".into() } else { format!("{n:03}") }));
    let config = RunnerConfig { flood_consecutive: 20, max_batch_records: 20, ..settings() };
    let running = run(&topics, 2, config, Obedient::default());
    let stopped = || running.status.lanes().get(&Lane(0)).cloned().flatten();
    eventually("lane 0 stops", PATIENCE, || matches!(stopped(), Some(PauseReason::Flood { .. })));
    let written = || topics.read("out", Isolation::Committed).len();
    eventually("lane 1 flows on", PATIENCE, || written() == 200);
    running.end().await;
    let dead = topics.read("dlq.obedient", Isolation::Committed).len();
    assert!(dead < 40, "{dead} records were thrown after the first");
    assert_eq!(topics.lag("obedient", "in"), 200 - i64::try_from(dead).unwrap(), "the rest waits where it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn markers_and_aborted_records_at_the_end_of_a_lane_do_not_leave_lag() {
    let topics = topics("markers", 1);
    topics.produce("in", 1, ["a".to_owned()]);
    let running = run(&topics, 1, settings(), Obedient::default());
    done(&topics);
    // An aborted transaction of somebody else: records nobody sees, then a marker.
    let brokers = topics.brokers.clone();
    let (full, id) = (topics.full("in"), topics.full("aborter"));
    tokio::task::spawn_blocking(move || {
        use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
        let producer: BaseProducer = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .set("transactional.id", &id)
            .create()
            .unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        producer.send(BaseRecord::to(&full).partition(0).key("k").payload("never")).map_err(|(e, _)| e).unwrap();
        producer.flush(PATIENCE).unwrap();
        producer.abort_transaction(PATIENCE).unwrap();
    })
    .await
    .unwrap();
    done(&topics);
    running.end().await;
    assert_eq!(topics.read("out", Isolation::Committed).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_named_with_the_cure() {
    let topics = Broker::shared().topics("missing", &[("out", 1)]);
    let running = run(&topics, 1, settings(), Obedient::default());
    let error = running.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains(&topics.full("in")) && error.contains("weir topics apply"), "{error}");
}
