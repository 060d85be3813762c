//! What `ingest` remembers of documents, on real Kafka: it outlives its process and its disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::time::Duration;

use weir_contracts::{Document, OutcomeKind, RequestOutcome, Topic};
use weir_testing::{Broker, Isolation, Pipeline, eventually, program};

const PATIENCE: Duration = Duration::from_secs(60);
const DOCUMENTS: usize = 300;

fn documents(version: usize) -> impl Iterator<Item = (String, String)> {
    (0..DOCUMENTS)
        .map(move |n| (format!("notes/{n:03}.txt"), format!("Gate {n} is raised at dawn, version {version}.")))
}

async fn send(pipeline: &Pipeline, version: usize, outcomes: usize) {
    pipeline.send("acme", documents(version)).await;
    let told = || pipeline.topics.read("request-outcomes", Isolation::Committed).len();
    eventually("every request has its outcome", PATIENCE, || told() >= outcomes);
    assert_eq!(told(), outcomes, "one outcome a request");
}

async fn kinds(pipeline: &Pipeline) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for outcome in pipeline.records::<RequestOutcome>(Topic::REQUEST_OUTCOMES).await {
        let kind = match outcome.outcome {
            OutcomeKind::Accepted => "accepted",
            OutcomeKind::Duplicate => "duplicate",
            _ => "other",
        };
        *counts.entry(kind).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_again_is_a_duplicate_after_a_kill_and_after_the_disk_is_lost() {
    let broker = Broker::start(|mut config| {
        config.registry = true;
        config.qdrant = true;
        config.qdrant_binary = Some(program("qdrant-embedded"));
        config
    });
    let mut pipeline = Pipeline::new(&broker.stack, "identity", 4).await;
    pipeline.start("ingest", "0", &[]);
    send(&pipeline, 1, DOCUMENTS).await;
    pipeline.process("ingest", "0").kill();
    pipeline.process("ingest", "0").restart();
    send(&pipeline, 1, 2 * DOCUMENTS).await;
    // Another instance has nothing on its disk.
    pipeline.process("ingest", "0").kill();
    pipeline.start("ingest", "1", &[]);
    send(&pipeline, 1, 3 * DOCUMENTS).await;
    assert_eq!(kinds(&pipeline).await, BTreeMap::from([("accepted", DOCUMENTS), ("duplicate", 2 * DOCUMENTS)]));
    send(&pipeline, 2, 4 * DOCUMENTS).await;
    assert_eq!(kinds(&pipeline).await, BTreeMap::from([("accepted", 2 * DOCUMENTS), ("duplicate", 2 * DOCUMENTS)]));

    let mut revisions = BTreeMap::new();
    let written = pipeline.records::<Document>(Topic::DOCUMENTS).await;
    assert_eq!(written.len(), 2 * DOCUMENTS, "duplicates wrote nothing");
    for document in written {
        let before = revisions.insert(document.document, document.revision);
        assert!(before.is_none_or(|before| before < document.revision));
    }
}
