//! The whole pipeline while its services are killed, frozen and scaled: every document indexed exactly once, with the
//! same content as in an undisturbed run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use weir_contracts::{
    ChunkBatch, Document, DocumentState, DocumentStatus, EmbeddingBatch, OutcomeKind, RequestOutcome, Topic,
};
use weir_testing::{Broker, Isolation, Pipeline, StoredPoint, eventually, program};

const LANES: i32 = 4;
const PATIENCE: Duration = Duration::from_secs(180);
/// (service, stage, its input, an output of its transactions)
const STAGES: [(&str, &str, &str, &str); 5] = [
    ("ingest", "route-documents", "document-requests", "requests"),
    ("ingest", "extract", "requests", "documents"),
    ("chunk", "chunk", "documents", "chunks"),
    ("embed", "embed", "chunks", "embeddings"),
    ("index", "index", "embeddings", "document-status"),
];
/// Keeps transactions open for a while, so that kills find them open, and batches small, so that there are many.
const HURTABLE: [(&str, &str); 2] =
    [("WEIR_RUNNER__COMMIT_INTERVAL_MS", "250"), ("WEIR_RUNNER__MAX_BATCH_RECORDS", "50")];

fn stack() -> Broker {
    Broker::start(|mut config| {
        config.registry = true;
        config.qdrant = true;
        config.qdrant_binary = Some(program("qdrant-embedded"));
        config
    })
}

fn documents(n: usize) -> impl Iterator<Item = (String, String)> {
    (0..n).map(|n| {
        let text = format!(
            "# Note {n}\n\nThe lock keeper of weir {n} raises gate {} at dawn.\n\nWater number {n} flows on.",
            n % 17
        );
        (format!("notes/{n:05}.md"), text)
    })
}

fn wait_until_done(pipeline: &mut Pipeline, expected: usize) {
    pipeline.supervise_until("every document is indexed and no lag is left", PATIENCE, |pipeline| {
        // A stage that has not begun leaves the next one without lag: what is indexed counts too.
        pipeline.topics.read("document-status", Isolation::Committed).len() >= expected
            && STAGES.iter().all(|(_, stage, input, _)| pipeline.topics.lag(stage, input) == 0)
    });
}

/// Starts a service once half of the documents wait for a stage of it, so that it is still at work when it is looked at.
fn start_behind(storm: &mut Pipeline, service: &str, stage: &str, input: &str, documents: usize) {
    let much = i64::try_from(documents / 2).unwrap();
    eventually(&format!("much waits for {stage}"), PATIENCE, || storm.topics.lag(stage, input) >= much);
    storm.start(service, "0", &HURTABLE);
}

/// What must hold at the end of every run, and the content of the index.
async fn check(pipeline: &Pipeline, expected: usize) -> Vec<StoredPoint> {
    let outcomes: Vec<RequestOutcome> = pipeline.records(Topic::REQUEST_OUTCOMES).await;
    let requests: HashSet<_> = outcomes.iter().map(|outcome| outcome.request_id.clone()).collect();
    assert_eq!((outcomes.len(), requests.len()), (expected, expected), "one final outcome a request");
    assert!(outcomes.iter().all(|outcome| outcome.outcome == OutcomeKind::Accepted));

    let documents: Vec<Document> = pipeline.records(Topic::DOCUMENTS).await;
    assert_eq!(documents.len(), expected, "one revision a document");
    let chunks: Vec<ChunkBatch> = pipeline.records(Topic::CHUNKS).await;
    let distinct: HashSet<_> =
        chunks.iter().map(|batch| (batch.document.clone(), batch.revision, batch.batch)).collect();
    assert_eq!(distinct.len(), chunks.len(), "no chunk batch twice");
    let embeddings: Vec<EmbeddingBatch> = pipeline.records(Topic::EMBEDDINGS).await;
    assert_eq!(embeddings.len(), chunks.len(), "an embedding batch for each chunk batch");
    let statuses: Vec<DocumentStatus> = pipeline.records(Topic::DOCUMENT_STATUS).await;
    let indexed: HashSet<_> = statuses.iter().map(|status| status.document.clone()).collect();
    assert_eq!((statuses.len(), indexed.len()), (expected, expected), "every document is said to be indexed, once");
    assert!(statuses.iter().all(|status| status.state == DocumentState::Indexed && status.chunks > 0));
    for (_, stage, _, output) in STAGES {
        let dead = pipeline.topics.read(&format!("dlq.{stage}"), Isolation::Committed);
        assert!(
            dead.is_empty(),
            "{stage} has dead letters: {:?}",
            dead.first().map(|letter| letter.header("__dlq.errors.message"))
        );
        eventually("no transaction is left open", PATIENCE, || !pipeline.topics.has_open_transaction(output));
    }
    pipeline.points().await
}

async fn undisturbed(broker: &Broker, n: usize) -> Vec<StoredPoint> {
    let mut calm = Pipeline::new(&broker.stack, "calm", LANES).await;
    for service in ["ingest", "chunk", "embed", "index"] {
        calm.start(service, "0", &[]);
    }
    calm.send("acme", documents(n)).await;
    wait_until_done(&mut calm, n);
    check(&calm, n).await
}

fn assert_same(calm: &[StoredPoint], storm: &[StoredPoint]) {
    assert_eq!(calm.len(), storm.len(), "as many points as in the undisturbed run");
    let differing: Vec<_> = calm.iter().zip(storm).filter(|(calm, storm)| calm != storm).take(2).collect();
    assert!(differing.is_empty(), "points differ: {differing:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_killed_in_the_middle_of_5000_documents_leaves_them_indexed_exactly_once() {
    const DOCUMENTS: usize = 5_000;
    let broker = stack();
    let calm = undisturbed(&broker, DOCUMENTS).await;
    let mut storm = Pipeline::new(&broker.stack, "storm", LANES).await;
    storm.send("acme", documents(DOCUMENTS)).await;
    let mut aborted: BTreeMap<&str, bool> = BTreeMap::new();
    let mut running = HashSet::new();
    for (service, stage, input, output) in STAGES {
        if running.insert(service) {
            start_behind(&mut storm, service, stage, input, DOCUMENTS);
        }
        storm.kill_at_work(service, stage, input, output, PATIENCE);
        aborted.insert(output, false);
    }
    wait_until_done(&mut storm, DOCUMENTS);
    let stormy = check(&storm, DOCUMENTS).await;
    for (output, found) in &mut aborted {
        let (committed, everything) = storm.sizes(output);
        *found = everything > committed;
    }
    assert!(aborted.values().any(|found| *found), "no kill aborted anything: the test proved nothing: {aborted:?}");
    assert_same(&calm, &stormy);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute, and the chaos harness freezes services, too"]
async fn frozen_and_joining_instances_and_a_qdrant_that_is_away_change_nothing() {
    const DOCUMENTS: usize = 2_000;
    let broker = stack();
    let calm = undisturbed(&broker, DOCUMENTS).await;
    let mut storm = Pipeline::new(&broker.stack, "storm", LANES).await;
    storm.send("acme", documents(DOCUMENTS)).await;
    for service in ["ingest", "chunk", "index"] {
        storm.start(service, "0", &HURTABLE);
    }
    start_behind(&mut storm, "embed", "embed", "chunks", DOCUMENTS);
    eventually("embed works", PATIENCE, || storm.topics.has_open_transaction("embeddings"));
    // A second indexer and a second embedder; the first of each freezes for longer than the session timeout.
    storm.start("embed", "1", &HURTABLE);
    storm.start("index", "1", &HURTABLE);
    storm.process("embed", "0").freeze();
    storm.process("index", "0").freeze();
    broker.block_on(broker.stack.stop_qdrant());
    std::thread::sleep(Duration::from_secs(20));
    storm.process("embed", "0").thaw();
    storm.process("index", "0").thaw();
    broker.block_on(broker.stack.start_qdrant()).unwrap();
    wait_until_done(&mut storm, DOCUMENTS);
    let stormy = check(&storm, DOCUMENTS).await;
    assert_same(&calm, &stormy);
}
