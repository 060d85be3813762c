//! Long jobs on real Kafka: submitted once, resumed after a crash, fenced after a freeze, ended when they are to end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod schema_registry;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use weir_contracts::{Job, JobState, TenantId, header, job_id};
use weir_runner::{
    JobFailure, JobKind, JobWork, JobWorker, Jobs, JobsError, NewJob, Registry, RegistryConfig, Submitted,
};
use weir_testing::{Broker, Isolation, Process, TestTopics, eventually, program};
use weir_tests::files_job::Spec;

const PATIENCE: Duration = Duration::from_secs(90);
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(3);
const BATCH: usize = 500;
/// What an owner logs who finds that its job is not its own any more.
const FENCED: &str = "taken over or ended";

struct Bench {
    topics: TestTopics,
    registry: String,
    folder: tempfile::TempDir,
    jobs: Jobs,
}

impl Bench {
    /// Topics, a registry and a folder with so many files.
    fn new(test: &str, files: usize) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let names = [("jobs", 1), ("out", 4), ("document-requests", 4), ("dlq.answer", 2), ("answer.again", 2)];
        let topics = Broker::shared().topics(test, &names);
        let registry = schema_registry::start();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("files")).unwrap();
        for n in 0..files {
            std::fs::write(folder.path().join(format!("files/{n:06}.txt")), format!("file {n}")).unwrap();
        }
        let client = RegistryConfig { url: registry.clone(), ..RegistryConfig::default() };
        let jobs = Jobs::new(&topics.kafka(1), Registry::new(&client, &topics.prefix).unwrap());
        Self { topics, registry, folder, jobs }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn job(&self, key: &str, pause_ms: u64) -> NewJob {
        let spec = Spec { folder: self.path("files"), batch: BATCH, pause_ms };
        NewJob {
            kind: "files".into(),
            tenant: TenantId::parse("acme").ok(),
            key: key.into(),
            spec: serde_json::to_value(spec).unwrap(),
            execution_timeout: None,
            activity_timeout: None,
            heartbeat_timeout: HEARTBEAT_TIMEOUT,
        }
    }

    fn worker(&self, name: &str) -> Process {
        let arguments = [
            ("--brokers", self.topics.brokers.clone()),
            ("--prefix", self.topics.prefix.clone()),
            ("--registry", self.registry.clone()),
            ("--name", name.to_owned()),
            ("--log", self.path("read.log").display().to_string()),
        ];
        let arguments: Vec<String> = arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        Process::start(Path::new(env!("CARGO_BIN_EXE_weir-test-job")), &arguments, &[], &self.path(name))
    }

    async fn get(&self, id: &str) -> Job {
        self.jobs.get(id).await.unwrap().unwrap()
    }

    async fn until(&self, what: &str, id: &str, holds: impl Fn(&Job) -> bool) -> Job {
        let mut follower = self.jobs.follow(id).await.unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < deadline {
            match follower.next(Duration::from_millis(200)).await.unwrap() {
                Some(job) if holds(&job) => return job,
                Some(job) => last = Some(job),
                None => {}
            }
        }
        panic!("did not happen within {PATIENCE:?}: {what}: {last:?}");
    }

    /// Files that were read, each as often as it was.
    fn read(&self) -> usize {
        std::fs::read_to_string(self.path("read.log")).unwrap_or_default().lines().count()
    }

    fn committed(&self) -> Vec<String> {
        let out = self.topics.read("out", Isolation::Committed);
        out.into_iter().map(|record| String::from_utf8(record.key).unwrap()).collect()
    }

    fn assert_each_once(&self, files: usize) {
        let out = self.committed();
        let names: BTreeSet<&String> = out.iter().collect();
        assert_eq!((names.len(), out.len()), (files, files), "some are there twice, or not at all");
        assert!(!self.topics.has_open_transaction("out"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_is_the_same_job_also_when_it_is_submitted_many_times_at_once() {
    let bench = Bench::new("jobs-key", 10);
    let new = bench.job("nightly", 0);
    let at_once = (0..6).map(|_| {
        let (jobs, new) = (bench.jobs.clone(), new.clone());
        tokio::spawn(async move { jobs.submit(&new, None).await.unwrap() })
    });
    let all: Vec<Submitted> = futures::future::try_join_all(at_once).await.unwrap();
    assert!(all.iter().all(|submitted| submitted.job.id == new.id()), "{all:?}");
    assert!(all.iter().filter(|submitted| submitted.new).count() <= 1, "{all:?}");
    assert_eq!(bench.topics.read("jobs", Isolation::Committed).len(), 1, "one record, once");
    assert_eq!(bench.jobs.list().await.unwrap(), [all[0].job.clone()]);

    let _worker = bench.worker("a");
    let done = bench.until("it is done", &new.id(), |job| job.state == JobState::Succeeded).await;
    let again = bench.jobs.submit(&new, None).await.unwrap();
    assert_eq!(again, Submitted { job: done, new: false }, "it says how the first one is");
    bench.assert_each_once(10);

    let other = bench.jobs.submit(&bench.job("nightly", 7), None).await;
    assert!(matches!(&other, Err(JobsError::Conflict { first }) if first.id == new.id()), "{other:?}");
}

async fn killed_in_the_middle(test: &str, files: usize) {
    let bench = Bench::new(test, files);
    let id = bench.jobs.submit(&bench.job("bulk", 50), None).await.unwrap().job.id;
    let mut first = bench.worker("a");
    let half = i64::try_from(files / 2).unwrap();
    bench.until("half is done", &id, |job| job.done >= half).await;
    first.kill();
    let left = bench.get(&id).await;
    assert!(left.done < i64::try_from(files).unwrap(), "there is nothing left to be killed for");
    let _second = bench.worker("b");
    let done = bench.until("it is done", &id, |job| job.state == JobState::Succeeded).await;
    assert_eq!((done.owner.as_deref(), done.epoch, done.done), (Some("b"), 2, i64::try_from(files).unwrap()));
    bench.assert_each_once(files);
    let redone = bench.read() - files;
    assert!(redone <= BATCH, "{redone} files were read again, more than lie between two checkpoints");
    println!("{files} files, killed after {}: {redone} read again", left.done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_owner_is_followed_by_another_that_redoes_one_checkpoint_at_most_and_repeats_no_record() {
    killed_in_the_middle("jobs-kill", 10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute"]
async fn a_job_of_a_hundred_thousand_files_killed_in_the_middle_redoes_one_checkpoint_at_most() {
    killed_in_the_middle("jobs-kill-long", 100_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_owner_is_taken_over_and_writes_nothing_when_it_wakes_up() {
    const FILES: usize = 10_000;
    let bench = Bench::new("jobs-freeze", FILES);
    let id = bench.jobs.submit(&bench.job("bulk", 150), None).await.unwrap().job.id;
    let first = bench.worker("a");
    bench.until("it is at work", &id, |job| job.done >= 1_000).await;
    first.freeze();
    let frozen_at = bench.get(&id).await.done;
    let _second = bench.worker("b");
    let before = Instant::now();
    bench.until("another takes over", &id, |job| job.owner.as_deref() == Some("b")).await;
    assert!(before.elapsed() >= HEARTBEAT_TIMEOUT - Duration::from_secs(1), "not before it was silent for long enough");
    bench.until("the other gets on", &id, |job| job.done > frozen_at + 1_000).await;
    first.thaw();
    eventually("the old owner finds itself fenced", PATIENCE, || first.output().contains(FENCED));
    let done = bench.until("it is done", &id, |job| job.state == JobState::Succeeded).await;
    assert_eq!((done.owner.as_deref(), done.epoch), (Some("b"), 2), "it was not taken back");
    bench.assert_each_once(FILES);
    let written = bench.topics.read("jobs", Isolation::Committed);
    let epochs: Vec<bool> =
        written.iter().map(|record| String::from_utf8_lossy(&record.value).contains("\u{2}b")).collect();
    assert!(epochs.is_sorted(), "the old owner wrote after the new one");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_cancel_nothing_more_is_written_and_a_resumed_job_goes_on_where_it_was() {
    const FILES: usize = 5_000;
    let bench = Bench::new("jobs-cancel", FILES);
    let id = bench.jobs.submit(&bench.job("bulk", 150), None).await.unwrap().job.id;
    let worker = bench.worker("a");
    bench.until("it is at work", &id, |job| job.done >= 1_000).await;
    let cancelled = bench.jobs.cancel(&id, "not needed").await.unwrap();
    assert_eq!((cancelled.state, cancelled.message.as_deref()), (JobState::Cancelled, Some("not needed")));
    let written = bench.committed().len();
    assert_eq!(i64::try_from(written).unwrap(), cancelled.done, "what it counts is what is there");
    eventually("its owner stops", PATIENCE, || worker.output().contains(FENCED));
    assert_eq!((bench.committed().len(), bench.get(&id).await), (written, cancelled.clone()));
    assert_eq!(bench.jobs.cancel(&id, "again").await.unwrap(), cancelled, "what is over stays as it is");

    assert_eq!(bench.jobs.resume(&id).await.unwrap().state, JobState::Queued);
    let done = bench.until("it is done", &id, |job| job.state == JobState::Succeeded).await;
    assert_eq!(done.done, i64::try_from(FILES).unwrap());
    bench.assert_each_once(FILES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_job_can_be_cancelled_though_nobody_works_and_what_is_unknown_is_named() {
    let bench = Bench::new("jobs-cancel-queued", 10);
    let id = bench.jobs.submit(&bench.job("bulk", 0), None).await.unwrap().job.id;
    assert_eq!(bench.jobs.cancel(&id, "no").await.unwrap().state, JobState::Cancelled);
    let error = bench.jobs.cancel("nothing", "no").await.unwrap_err();
    assert!(matches!(&error, JobsError::NoSuchJob { id } if id == "nothing"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_asked_to_stop_hands_its_job_back_and_another_goes_on_at_once() {
    const FILES: usize = 5_000;
    let bench = Bench::new("jobs-hand-back", FILES);
    // Nobody would take it over by himself before the test has failed.
    let new = NewJob { heartbeat_timeout: Duration::from_secs(600), ..bench.job("bulk", 150) };
    let id = bench.jobs.submit(&new, None).await.unwrap().job.id;
    let mut first = bench.worker("a");
    bench.until("it is at work", &id, |job| job.done >= 1_000).await;
    assert!(first.terminate(PATIENCE).expect("it ends").success());
    let back = bench.get(&id).await;
    assert_eq!((back.state, back.attempts), (JobState::Queued, 0));
    assert!(back.checkpoint.is_some());
    let _second = bench.worker("b");
    let done = bench.until("it is done", &id, |job| job.state == JobState::Succeeded).await;
    assert_eq!((done.owner.as_deref(), done.epoch), (Some("b"), 2));
    bench.assert_each_once(FILES);
}

/// A kind whose first piece of work never ends.
struct Stuck;

struct Never;

impl JobKind for Stuck {
    fn name(&self) -> &'static str {
        "stuck"
    }

    fn open<'a>(&'a self, _: &'a Job) -> BoxFuture<'a, Result<Box<dyn JobWork>, JobFailure>> {
        async { Ok(Box::new(Never) as Box<dyn JobWork>) }.boxed()
    }
}

impl JobWork for Never {
    fn next(&mut self) -> BoxFuture<'_, Result<weir_runner::JobStep, JobFailure>> {
        std::future::pending().boxed()
    }
}

impl Bench {
    /// A worker of this process, for jobs that never end by themselves.
    fn stuck_worker(&self, name: &str) -> tokio_util::sync::DropGuard {
        let stop = CancellationToken::new();
        let worker = JobWorker::new(self.jobs.clone(), vec![Arc::new(Stuck)], name, 4);
        tokio::spawn(worker.run(stop.clone()));
        stop.drop_guard()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_fails_when_its_time_is_up_or_nothing_moves_and_says_which() {
    let bench = Bench::new("jobs-timeouts", 0);
    let stuck = |key: &str| NewJob { kind: "stuck".into(), ..bench.job(key, 0) };
    let second = Some(Duration::from_secs(1));
    let whole = NewJob { execution_timeout: second, ..stuck("whole") };
    let still = NewJob { activity_timeout: second, execution_timeout: Some(PATIENCE * 10), ..stuck("still") };
    let _worker = bench.stuck_worker("w");
    for (new, said) in [(whole, "execution timeout of 1s"), (still, "activity timeout of 1s")] {
        let id = bench.jobs.submit(&new, None).await.unwrap().job.id;
        let failed = bench.until("it fails", &id, |job| job.state == JobState::Failed).await;
        assert!(failed.message.as_ref().unwrap().contains(said), "{failed:?}");
        let lasted = failed.finished_at.unwrap() - failed.started_at.unwrap();
        assert!((1_000..10_000).contains(&lasted), "{failed:?}");
    }
}

/// Readers of what is committed see nothing of any job while somebody's transaction is open. If signs of life were read
/// like that, every owner would be taken over by every other worker.
#[tokio::test(flavor = "multi_thread")]
async fn the_open_transaction_of_another_makes_no_living_owner_look_dead() {
    let bench = Bench::new("jobs-hung", 0);
    // Long beside a transaction on a machine that is busy with other tests: a late sign of life is not what is tested.
    let new = NewJob { kind: "stuck".into(), heartbeat_timeout: 4 * HEARTBEAT_TIMEOUT, ..bench.job("long", 0) };
    let id = bench.jobs.submit(&new, None).await.unwrap().job.id;
    let _one = bench.stuck_worker("one");
    let owner = bench.until("it is taken", &id, |job| job.state == JobState::Running).await.owner;
    // Not before: two that see it wait at the same time both take it, and the second one has it.
    let _two = bench.stuck_worker("two");
    let producer: BaseProducer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &bench.topics.brokers)
        .set("transactional.id", "hung")
        // Longer than the test's patience: it is to hang until it is aborted here.
        .set("transaction.timeout.ms", "180000")
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    producer.send(BaseRecord::to(&bench.topics.full("jobs")).key("other").payload("?")).map_err(|(e, _)| e).unwrap();
    producer.flush(PATIENCE).unwrap();
    let written = || bench.topics.read("jobs", Isolation::Everything).len();
    let before = written();
    // A sign of life comes three times in the time after which an owner counts as dead.
    eventually("it lives on for twice its timeout", PATIENCE, || written() >= before + 6);
    producer.abort_transaction(PATIENCE).unwrap();
    let job = bench.get(&id).await;
    assert_eq!((job.state, job.owner, job.epoch), (JobState::Running, owner, 1));
}

impl Bench {
    fn arguments(&self, arguments: &[&str]) -> Vec<String> {
        let data = self.path("data").display().to_string();
        let place = ["--kafka", &self.topics.brokers, "--prefix", &self.topics.prefix, "--registry", &self.registry];
        let place = place.into_iter().chain(["--data", &data, "--tenant", "acme"]);
        place.chain(arguments.iter().copied()).map(String::from).collect()
    }

    /// The program `weir`, left running.
    fn weir(&self, name: &str, arguments: &[&str]) -> Process {
        Process::start(&program("weir"), &self.arguments(arguments), &[], &self.path(name))
    }

    /// What it prints as JSON; it must succeed.
    fn weir_json(&self, arguments: &[&str]) -> Value {
        let mut command = Command::new(program("weir"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WEIR_")) {
            command.env_remove(name);
        }
        let ended = command.arg("--json").args(self.arguments(arguments)).stdin(Stdio::null()).output().unwrap();
        assert!(ended.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ended.stderr));
        serde_json::from_slice(&ended.stdout).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_ingest_that_is_killed_goes_on_with_a_worker_and_requests_every_file_once() {
    const FILES: usize = 10_000;
    const EVERY: usize = 50;
    let bench = Bench::new("jobs-ingest", FILES);
    let folder = bench.path("files").display().to_string();
    let every = EVERY.to_string();
    let submit =
        ["ingest", &folder, "--job", "--key", "bulk", "--checkpoint-every", &every, "--heartbeat-timeout", "3s"];
    let mut foreground = bench.weir("foreground.log", &submit);
    let id = job_id(TenantId::parse("acme").ok().as_ref(), "ingest", "bulk");
    bench.until("it is at work", &id, |job| job.done >= 2_000).await;
    foreground.kill();
    let left = bench.get(&id).await;
    assert!(left.state == JobState::Running && left.done < 10_000, "there is nothing left to be killed for: {left:?}");
    let again = bench.weir_json(&[&submit[..], &["--detach"]].concat());
    assert_eq!((again["id"].as_str(), again["state"].as_str()), (Some(&*id), Some("running")));

    let mut worker = bench.weir("worker.log", &["jobs", "work", "--name", "b"]);
    let done = bench.weir_json(&["jobs", "show", &id[..8], "--wait"]);
    assert_eq!((done["state"].as_str(), done["done"].as_u64()), (Some("succeeded"), Some(10_000)), "{done}");
    assert_eq!((done["owner"].as_str(), done["epoch"].as_u64()), (Some("b"), Some(2)));
    let requests = |isolation| bench.topics.read("document-requests", isolation);
    let committed = requests(Isolation::Committed);
    let documents: BTreeSet<Vec<u8>> = committed.iter().map(|record| record.key.clone()).collect();
    assert_eq!((documents.len(), committed.len()), (FILES, FILES), "some were requested twice, or not at all");
    assert!(documents.contains(&b"acme/000042.txt"[..]));
    let redone = requests(Isolation::Everything).len() - committed.len();
    assert!(redone <= EVERY, "{redone} were produced again, more than lie between two checkpoints");
    assert_eq!(bench.weir_json(&["jobs", "list"]).as_array().unwrap().len(), 1);
    assert!(worker.terminate(PATIENCE).expect("it ends").success(), "{}", worker.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_as_a_job_has_progress_and_is_done_once_for_each_key() {
    let bench = Bench::new("jobs-replay", 0);
    let producer: BaseProducer =
        rdkafka::ClientConfig::new().set("bootstrap.servers", &bench.topics.brokers).create().unwrap();
    for n in 0..300 {
        let key = format!("{n:05x}");
        let headers = OwnedHeaders::new()
            .insert(Header { key: header::DEAD_LETTER, value: Some(&key) })
            .insert(Header { key: header::DEAD_LETTER_KEY, value: Some("acme") });
        let topic = bench.topics.full("dlq.answer");
        let record = BaseRecord::to(&topic).partition(n % 2).key(&key).payload("x").headers(headers);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let replay = ["dlq", "replay", "--stage", "answer", "--rate", "30", "--job", "--key", "k"];
    let replay = [&replay[..], &["--execution-timeout", "10m"]].concat();
    let done = bench.weir_json(&replay);
    assert_eq!((done["state"].as_str(), done["done"].as_u64()), (Some("succeeded"), Some(300)), "{done}");
    let checkpoints = bench.topics.read("jobs", Isolation::Committed).len();
    assert!(checkpoints >= 4, "{checkpoints} records: no progress between its beginning and its end");
    let returned = || bench.topics.read("answer.again", Isolation::Committed).len();
    assert_eq!(returned(), 300);
    assert_eq!(bench.weir_json(&replay)["id"], done["id"]);
    assert_eq!(returned(), 300, "the same key replays nothing more");
}
