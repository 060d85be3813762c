//! Dead letters and their replay on real Kafka: each goes back once, whoever is killed and however many replay at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::process::{Command, Output as Ended, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use weir_contracts::{Question, Raw, Record, RequestId, TenantId, Topic, frame, header, unframe};
use weir_runner::{
    Action, DeadLetterError, DeadLetters, Decision, Filter, Pace, Registry, RegistryConfig, Report, Runner,
    RunnerConfig,
};
use weir_stage::{Batch, Failure, Outcome, Output, Stage, StageError};
use weir_testing::{Broker, Isolation, Process, Stored, TestTopics, eventually, program};

const LANES: i32 = 2;
const PATIENCE: Duration = Duration::from_secs(60);
const STAGE: &str = "answer";
const DEAD: &str = "dlq.answer";
const AGAIN: &str = "answer.again";
const REPLAY: Action = Action::Replay { max_replays: 3, parked: false, restart: false };
/// As topics/*.toml declares it for both.
const TWICE_A_RECORD: &str = "2097152";

fn topics(test: &str) -> TestTopics {
    let topics = Broker::shared().topics(test, &[("in", LANES), ("out", LANES), (DEAD, LANES), (AGAIN, LANES)]);
    for name in [DEAD, AGAIN] {
        Broker::shared().alter_topic(&topics.full(name), "max.message.bytes", TWICE_A_RECORD);
    }
    topics
}

/// A record with headers, as the test wants it.
struct Written<'a> {
    topic: &'a str,
    lane: i32,
    key: &'a str,
    value: &'a [u8],
    headers: Vec<(&'a str, String)>,
}

fn write<'a>(topics: &TestTopics, records: impl IntoIterator<Item = Written<'a>>) {
    let producer: BaseProducer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &topics.brokers)
        .set("enable.idempotence", "true")
        .set("message.max.bytes", "4194304")
        .create()
        .unwrap();
    for written in records {
        let topic = topics.full(written.topic);
        let mut headers = OwnedHeaders::new();
        for (key, value) in &written.headers {
            headers = headers.insert(Header { key, value: Some(value.as_bytes()) });
        }
        let record = BaseRecord::to(&topic).partition(written.lane).key(written.key).payload(written.value);
        producer.send(record.headers(headers)).map_err(|(error, _)| error).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(PATIENCE).unwrap();
}

/// Dead letters as a stage writes them, one for each value.
fn bury(topics: &TestTopics, values: &[Vec<u8>]) {
    let ids: Vec<String> = (0..values.len()).map(|n| format!("{n:05x}")).collect();
    let records = ids.iter().zip(values).enumerate().map(|(n, (id, value))| Written {
        topic: DEAD,
        lane: i32::try_from(n).unwrap() % LANES,
        key: id,
        value,
        headers: vec![
            (header::TENANT, "acme".into()),
            (header::REVISION, "17".into()),
            (header::ATTEMPT, "4".into()),
            (header::DEAD_LETTER, id.clone()),
            (header::DEAD_LETTER_KEY, format!("acme/document-{n}")),
            (header::ERROR_CLASS, if n % 10 == 0 { "rare" } else { "usual" }.into()),
            (header::DLQ_MESSAGE, format!("record {n} says so")),
            (header::DLQ_TOPIC, topics.full("in")),
            (header::DLQ_PARTITION, "0".into()),
            (header::DLQ_OFFSET, n.to_string()),
        ],
    });
    write(topics, records);
}

fn values(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| format!("value {n}").into_bytes()).collect()
}

/// The test's own reading of the table: the last record of each key, unless it is a tombstone.
fn outstanding(topics: &TestTopics) -> BTreeMap<String, Stored> {
    let mut table = BTreeMap::new();
    for record in topics.read(DEAD, Isolation::Committed) {
        let id = String::from_utf8(record.key.clone()).unwrap();
        match record.value.is_empty() {
            true => table.remove(&id),
            false => table.insert(id, record),
        };
    }
    table
}

fn returned(topics: &TestTopics) -> Vec<Stored> {
    topics.read(AGAIN, Isolation::Committed)
}

/// Every dead letter went back, and none twice.
fn assert_each_once(topics: &TestTopics, count: usize) {
    let again = returned(topics);
    let ids: BTreeSet<String> = again.iter().map(|record| record.header(header::DEAD_LETTER)).collect();
    assert_eq!((ids.len(), again.len()), (count, count), "some were replayed twice, or not at all");
    assert!(outstanding(topics).is_empty(), "what was replayed is not outstanding any more");
}

fn letters(topics: &TestTopics) -> DeadLetters {
    DeadLetters::of(&topics.kafka(LANES), STAGE)
}

async fn act(topics: &TestTopics, filter: Filter, action: &Action) -> Report {
    let plan = letters(topics).plan(filter, action).await.unwrap();
    plan.carry_out(Pace::default(), |_| (), CancellationToken::new()).await.unwrap()
}

fn weir(topics: &TestTopics, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("weir"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WEIR_")) {
        command.env_remove(name);
    }
    command.args(["--kafka", &topics.brokers, "--prefix", &topics.prefix, "dlq"]).args(arguments);
    command.args(["--stage", STAGE]).stdin(Stdio::null()).env_remove("VISUAL");
    command
}

fn output(mut command: Command) -> (Ended, String) {
    let ended = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    (ended, said)
}

fn succeeds(command: Command) -> String {
    let (ended, said) = output(command);
    assert!(ended.status.success(), "{said}");
    String::from_utf8(ended.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_killed_again_and_again_replays_each_once() {
    const COUNT: usize = 1_500;
    let topics = topics("replay-kill");
    bury(&topics, &values(COUNT));
    // Longer at work than a busy machine can need to kill it four times.
    let arguments: Vec<String> =
        ["--kafka", &topics.brokers, "--prefix", &topics.prefix, "dlq", "replay", "--stage", STAGE]
            .into_iter()
            .chain(["--batch", "7", "--rate", "20"])
            .map(String::from)
            .collect();
    let log = std::env::temp_dir().join(format!("weir-test-{}-{}replay.log", std::process::id(), topics.prefix));
    let mut replay = Process::start(&program("weir"), &arguments, &[], &log);
    for round in 1..=4 {
        let before = returned(&topics).len();
        eventually("it gets on", PATIENCE, || returned(&topics).len() > before + 50);
        replay.kill();
        assert!(returned(&topics).len() < COUNT, "there is nothing left to be killed for");
        if round < 4 {
            replay.restart();
        }
    }
    succeeds(weir(&topics, &["replay", "--batch", "7"]));
    assert_each_once(&topics, COUNT);
    assert!(!topics.has_open_transaction(AGAIN));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_at_once_replay_each_once() {
    const COUNT: usize = 1_000;
    let topics = topics("replay-two");
    bury(&topics, &values(COUNT));
    // Longer at work than a busy machine can need to let the second begin.
    let slow = Pace { batch: 5, rate: NonZeroU32::new(25) };
    let plan = letters(&topics).plan(Filter::default(), &REPLAY).await.unwrap();
    // Both have seen all of them before either begins.
    let second = letters(&topics).plan(Filter::default(), &REPLAY).await.unwrap();
    assert_eq!((plan.work(), second.work()), (COUNT, COUNT));
    let first = tokio::spawn(plan.carry_out(slow, |_| (), CancellationToken::new()));
    eventually("the first is at work", PATIENCE, || returned(&topics).len() > 20);
    let second = second.carry_out(Pace::default(), |_| (), CancellationToken::new()).await.unwrap();
    let first = match first.await.unwrap() {
        Err(DeadLetterError::TakenOver { done, .. }) => done,
        other => panic!("the first was not fenced: {other:?}"),
    };
    assert!(first.replayed > 0 && second.replayed > 0, "{first:?} {second:?}");
    assert_eq!(second.gone + second.replayed, COUNT, "what the first has done is seen: {second:?}");
    // A transaction that was committed when the first was fenced counts for neither.
    assert!(first.replayed + second.replayed <= COUNT);
    assert_each_once(&topics, COUNT);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_back_is_what_was_rejected_with_its_history_and_attempts_from_the_beginning() {
    let topics = topics("replay-whole");
    bury(&topics, &values(20));
    let filter = Filter { class: Some("rare".into()), ..Filter::default() };
    let report = act(&topics, filter, &REPLAY).await;
    assert_eq!(report, Report { replayed: 2, ..Report::default() });
    let again = returned(&topics);
    let record = again.iter().find(|record| record.header(header::DEAD_LETTER) == "0000a").unwrap();
    assert_eq!((record.lane, record.value.as_slice()), (0, &b"value 10"[..]));
    assert_eq!(record.key, b"acme/document-10", "its own key");
    assert_eq!((record.header(header::REPLAYS), record.header(header::REVISION)), ("1".into(), "17".into()));
    assert_eq!((record.header(header::ATTEMPT), record.header(header::DLQ_OFFSET)), (String::new(), "10".into()));
    assert_eq!(outstanding(&topics).len(), 18, "the others stay");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_is_read_past_transactions_that_are_open() {
    let topics = topics("replay-open");
    topics.open_transaction(DEAD, 0, Duration::from_secs(3));
    bury(&topics, &values(3));
    let list = letters(&topics).list(Filter::default()).await.unwrap();
    assert_eq!(list.len(), 3, "what lies behind an open transaction is outstanding too");
}

/// Rejects what is broken, and everything while it is strict; says of the rest how long it is.
#[derive(Clone, Default)]
struct Judge {
    strict: Arc<AtomicBool>,
}

impl Stage for Judge {
    type Input = Raw;

    async fn process(&mut self, batch: Batch<'_, Raw>) -> Result<Vec<Outcome>, StageError> {
        let judge = |Raw(value): &Raw| {
            let broken = value.windows(6).any(|part| part == b"broken");
            if broken || self.strict.load(Ordering::SeqCst) {
                return Outcome::reject(Failure::new("told-so", "no ".repeat(3_000)));
            }
            Outcome::emit(Output::new(Topic::custom("out"), "k", Raw(value.len().to_string().into_bytes())))
        };
        Ok(batch.iter().map(|delivery| judge(delivery.record())).collect())
    }
}

fn run(topics: &TestTopics, judge: Judge) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let registry = Registry::new(&RegistryConfig::default(), &topics.prefix).unwrap();
    let config = RunnerConfig { instance: "0".into(), session_timeout_ms: 6_000, ..RunnerConfig::default() };
    let runner = Runner::new(STAGE, topics.kafka(LANES), registry, config);
    let stop = CancellationToken::new();
    let token = stop.clone();
    let task = tokio::spawn(async move { runner.run(Topic::custom("in"), judge, token).await.unwrap() });
    (stop, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_again_and_again_is_parked() {
    let topics = topics("replay-loop");
    topics.produce_keyed("in", LANES, [("k".into(), "broken".into())]);
    let (stop, task) = run(&topics, Judge::default());
    let came_back = |times: usize| {
        eventually("it is rejected", PATIENCE, || {
            let wanted = if times == 0 { String::new() } else { times.to_string() };
            outstanding(&topics).values().any(|letter| letter.header(header::REPLAYS) == wanted)
        });
    };
    came_back(0);
    let id = outstanding(&topics).into_keys().next().unwrap();
    for times in 1..=3 {
        assert_eq!(act(&topics, Filter::default(), &REPLAY).await.replayed, 1);
        came_back(times);
        assert_eq!(outstanding(&topics).into_keys().collect::<Vec<_>>(), [id.as_str()], "it is the same dead letter");
    }
    assert_eq!(act(&topics, Filter::default(), &REPLAY).await, Report { parked: 1, ..Report::default() });
    let parked = letters(&topics).list(Filter { parked: Some(true), ..Filter::default() }).await.unwrap();
    assert!(parked[0].parked().unwrap().reason.contains("3 times"), "{parked:?}");
    assert_eq!(act(&topics, Filter::default(), &REPLAY).await, Report { left: 1, ..Report::default() });
    assert_eq!(returned(&topics).len(), 3, "what is parked does not go back by itself");
    let asked_for = Action::Replay { max_replays: 3, parked: true, restart: false };
    assert_eq!(act(&topics, Filter::default(), &asked_for).await.replayed, 1);
    came_back(4);
    assert!(letters(&topics).list(Filter::default()).await.unwrap()[0].parked().is_none());
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_at_the_size_limit_becomes_a_dead_letter_with_its_history_and_goes_back_whole() {
    const LIMIT: usize = 1 << 20;
    let topics = topics("replay-size");
    // Room for the value and what Kafka wraps it in, and no more.
    Broker::shared().alter_topic(&topics.full("in"), "max.message.bytes", &(LIMIT + 1_024).to_string());
    let value: Vec<u8> = (0..LIMIT).map(|_| rand::random::<u8>() | 0x80).collect();
    let judge = Judge::default();
    judge.strict.store(true, Ordering::SeqCst);
    let (stop, task) = run(&topics, judge.clone());
    write(&topics, [Written { topic: "in", lane: 1, key: "large", value: &value, headers: vec![] }]);
    eventually("it is rejected", PATIENCE, || !outstanding(&topics).is_empty());
    let dead = outstanding(&topics).into_values().next().unwrap();
    assert!(dead.value == value, "the bytes are kept");
    assert!(dead.header(header::DLQ_MESSAGE).len() > 4_000, "and a long message");
    judge.strict.store(false, Ordering::SeqCst);
    assert_eq!(act(&topics, Filter::default(), &REPLAY).await.replayed, 1);
    eventually("it is done", PATIENCE, || !topics.read("out", Isolation::Committed).is_empty());
    assert_eq!(topics.read("out", Isolation::Committed)[0].value, LIMIT.to_string().into_bytes());
    assert!(returned(&topics)[0].value == value && returned(&topics)[0].key == b"large");
    assert!(outstanding(&topics).is_empty());
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_would_happen_and_changes_nothing() {
    let topics = topics("replay-dry");
    bury(&topics, &values(30));
    let everything = || (topics.read(DEAD, Isolation::Everything), topics.read(AGAIN, Isolation::Everything).len());
    let before = everything();
    let said = succeeds(weir(&topics, &["--json", "replay", "--class", "rare", "--dry-run"]));
    let said: Value = serde_json::from_str(&said).unwrap();
    let steps = said["steps"].as_array().unwrap();
    assert_eq!((said["dry_run"].as_bool(), steps.len()), (Some(true), 3), "{said}");
    for (step, id) in steps.iter().zip(["00000", "0000a", "00014"]) {
        assert_eq!((step["id"].as_str(), step["decision"].as_str()), (Some(id), Some("replay")), "{step}");
        assert_eq!((step["lane"].as_i64(), step["document"].is_string()), (Some(0), true), "{step}");
    }
    succeeds(weir(&topics, &["discard", "--dry-run"]));
    succeeds(weir(&topics, &["park", "--text", "RECORD 7 says", "--dry-run"]));
    assert_eq!(everything(), before);
    // And it happens just so.
    let said = succeeds(weir(&topics, &["--json", "replay", "--class", "rare"]));
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["report"]["replayed"], 3, "{said}");
    // A commit may return before its markers are where a reader needs them.
    eventually("what was committed can be read", PATIENCE, || !topics.has_open_transaction(AGAIN));
    let again: BTreeSet<_> = returned(&topics).iter().map(|record| record.header(header::DEAD_LETTER)).collect();
    assert_eq!(again, BTreeSet::from(["00000", "0000a", "00014"].map(String::from)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_held_and_a_replay_can_be_stopped() {
    let topics = topics("replay-rate");
    bury(&topics, &values(200));
    let plan = letters(&topics).plan(Filter::default(), &REPLAY).await.unwrap();
    let cancel = CancellationToken::new();
    let (stop, start) = (cancel.clone(), Instant::now());
    let stop_after_40 = move |report: Report| {
        if report.replayed >= 40 {
            stop.cancel();
        }
    };
    let pace = Pace { batch: 500, rate: NonZeroU32::new(20) };
    let report = plan.carry_out(pace, stop_after_40, cancel).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "40 at 20 a second: {:?}", start.elapsed());
    assert_eq!(report, Report { replayed: 40, cancelled: true, ..Report::default() });
    assert_eq!((returned(&topics).len(), outstanding(&topics).len()), (40, 160));
    assert_eq!(act(&topics, Filter::default(), &REPLAY).await.replayed, 160);
    assert_each_once(&topics, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn discarding_removes_and_is_asked_for_twice() {
    let topics = topics("replay-discard");
    bury(&topics, &values(30));
    let (refused, said) = output(weir(&topics, &["discard", "--class", "usual"]));
    assert!(!refused.status.success() && said.contains("--yes") && said.contains("27"), "{said}");
    let (refused, said) = output(weir(&topics, &["discard", "zzz"]));
    assert!(!refused.status.success() && said.contains("zzz"), "{said}");
    assert_eq!(outstanding(&topics).len(), 30, "nothing was discarded");
    succeeds(weir(&topics, &["discard", "--class", "usual", "--yes"]));
    assert_eq!(outstanding(&topics).into_keys().collect::<Vec<_>>(), ["00000", "0000a", "00014"]);
    succeeds(weir(&topics, &["discard", "0000a"]));
    assert_eq!(outstanding(&topics).len(), 2, "a single one is not asked about");
    assert!(returned(&topics).is_empty());
    let stats: Value = serde_json::from_str(&succeeds(weir(&topics, &["--json", "stats"]))).unwrap();
    assert_eq!((stats[0]["class"].as_str(), stats[0]["count"].as_u64()), (Some("rare"), Some(2)), "{stats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_nothing_can_decode_survive_export_and_import_and_can_be_repaired_between() {
    let topics = topics("replay-export");
    let bytes: Vec<u8> = (0..=255).collect();
    bury(&topics, &[bytes.clone(), b"second".to_vec(), b"third".to_vec()]);
    let before = outstanding(&topics);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("letters.jsonl");
    let path = file.to_str().unwrap();
    succeeds(weir(&topics, &["export", "--output", path]));
    let lines = std::fs::read_to_string(&file).unwrap();
    assert_eq!(lines.lines().count(), 3);
    let import = |more: &[&str]| {
        let mut command = Command::new(program("weir"));
        let place = ["--json", "--kafka", &topics.brokers, "--prefix", &topics.prefix];
        command.args(place).args(["dlq", "import", path]).args(more).stdin(Stdio::null());
        serde_json::from_str::<Value>(&succeeds(command)).unwrap()["report"].clone()
    };
    assert_eq!(import(&[])["imported"], 3);
    let after = outstanding(&topics);
    for (id, letter) in &before {
        let back = &after[id];
        assert!(back.offset > letter.offset, "{id} was not written again");
        assert_eq!((&back.value, &back.headers, &back.key), (&letter.value, &letter.headers, &letter.key));
    }
    // One is repaired, one was replayed meanwhile, and one is not in the file.
    act(&topics, Filter { ids: vec!["00001".into()], ..Filter::default() }, &REPLAY).await;
    let repaired: Vec<String> = lines
        .lines()
        .filter(|line| !line.contains("\"00002\""))
        .map(|line| {
            let mut letter: Value = serde_json::from_str(line).unwrap();
            if letter["id"] == "00000" {
                letter["value"] = serde_json::json!({ "text": "repaired" });
            }
            letter.to_string()
        })
        .collect();
    std::fs::write(&file, repaired.join("\n")).unwrap();
    let report = import(&[]);
    assert_eq!((report["imported"].as_u64(), report["left"].as_u64()), (Some(1), Some(1)), "{report}");
    assert_eq!(outstanding(&topics).into_keys().collect::<Vec<_>>(), ["00000", "00002"]);
    assert_eq!(act(&topics, Filter { ids: vec!["00000".into()], ..Filter::default() }, &REPLAY).await.replayed, 1);
    let again = returned(&topics);
    let record = again.iter().find(|record| record.header(header::DEAD_LETTER) == "00000").unwrap();
    assert_eq!((record.value.as_slice(), record.key.as_slice()), (&b"repaired"[..], &b"acme/document-0"[..]));
    assert_eq!(import(&["--restore"])["imported"], 2, "what is gone comes back only when it is asked for");
}

/// A registry that knows one schema.
fn registry() -> String {
    use std::io::{BufRead, BufReader, Write};
    let schema = serde_json::json!({ "schema": Question::schema().unwrap().json() }).to_string();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
            let kind = "Content-Type: application/json\r\nConnection: close";
            write!(stream, "HTTP/1.1 200 OK\r\n{kind}\r\nContent-Length: {}\r\n\r\n{schema}", schema.len()).unwrap();
        }
    });
    url
}

fn question(text: &str) -> Vec<u8> {
    let question = Question {
        request_id: RequestId::parse("r-1").unwrap(),
        tenant: TenantId::parse("acme").unwrap(),
        question: text.into(),
        deadline: None,
        idempotency_key: None,
        feature: None,
        filter: BTreeMap::new(),
        prompt_version: None,
        top_k: Some(3),
        agent: false,
        created_at: 1_700_000_000_000,
    };
    let mut bytes = Vec::new();
    frame(1, &mut bytes);
    question.encode(&mut bytes).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_record_is_accepted_and_an_invalid_edit_changes_nothing() {
    let topics = topics("replay-edit");
    let (stop, task) = run(&topics, Judge::default());
    write(&topics, [Written { topic: "in", lane: 0, key: "acme", value: &question("broken?"), headers: vec![] }]);
    eventually("it is rejected", PATIENCE, || !outstanding(&topics).is_empty());
    let before = outstanding(&topics);
    let id = before.keys().next().unwrap().clone();
    let registry = registry();
    let folder = tempfile::tempdir().unwrap();
    let edit = |editor: &str| {
        let mut command = weir(&topics, &["--registry", &registry, "replay", &id, "--edit"]);
        command.env("EDITOR", editor).env("TMPDIR", folder.path());
        output(command)
    };
    for (editor, said) in [
        (r#"sed -i 's/"question"/"query"/'"#, "query"),
        (r#"sed -i 's/"top_k": 3/"top_k": "many"/'"#, "top_k"),
        (r#"sed -i 's/acme/other/'"#, "tenant"),
        ("sed -i '1d'", "not JSON"),
        ("true", "nothing was changed"),
        ("false", "editor"),
    ] {
        let (ended, output) = edit(editor);
        assert!(!ended.status.success() && output.contains(said), "{editor}: {output}");
        assert_eq!(outstanding(&topics), before, "{editor}");
        assert!(returned(&topics).is_empty(), "{editor}");
    }
    let (ended, output) = edit("sed -i 's/broken/mended/'");
    assert!(ended.status.success(), "{output}");
    eventually("it is done", PATIENCE, || !topics.read("out", Isolation::Committed).is_empty());
    let again = returned(&topics);
    assert_eq!((again.len(), again[0].header(header::DEAD_LETTER)), (1, id), "it is the same dead letter");
    let (schema, body) = unframe(&again[0].value).unwrap();
    assert_eq!((schema, Question::decode(None, body).unwrap().question), (1, "mended?".to_owned()));
    assert_eq!(again[0].value, question("mended?"), "nothing else was touched");
    assert!(outstanding(&topics).is_empty());
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_return_stays_outstanding_and_the_missing_topic_is_named() {
    let topics = Broker::shared().topics("replay-nowhere", &[(DEAD, LANES)]);
    bury(&topics, &values(3));
    let plan = letters(&topics).plan(Filter::default(), &REPLAY).await.unwrap();
    assert!(plan.steps().iter().all(|step| matches!(step.decision, Decision::Replay { .. })));
    let error = plan.carry_out(Pace::default(), |_| (), CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains(&topics.full(AGAIN)) && error.contains("weir topics apply"), "{error}");
    assert_eq!(outstanding(&topics).len(), 3);
}
