//! The stage on the embedded server: what it says of records, once, twice, and after things broke in between.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "../../../shared/vectors/tests/server/mod.rs"]
mod server;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use server::{Server, deletion, document, record, revision, split, tenant};
use tokio_util::sync::CancellationToken;
use weir_contracts::{DocumentState, DocumentStatus, EmbeddingBatch, Lane, Record, header};
use weir_index::{Index, IndexConfig, Janitor};
use weir_stage::{Batch, Coordinates, Delivery, Headers, Outcome, Stage, StageError};
use weir_vectors::{Mode, QdrantConfig, Search, VectorStore};

const NEAR: [f32; 3] = [1.0, 0.0, 0.0];

struct Setup {
    server: Server,
    store: VectorStore,
    index: Index,
}

/// A stage whose clock moves on by one with each look at it.
fn setup() -> Setup {
    let server = Server::start();
    let store = server.store();
    let index = stage(&store);
    Setup { server, store, index }
}

fn stage(store: &VectorStore) -> Index {
    let config = IndexConfig { sweep_interval_s: 0, ..IndexConfig::default() };
    let janitor = Janitor::start(store.clone(), &config, CancellationToken::new());
    let clock = Arc::new(AtomicI64::new(5_000));
    Index::new(store.clone(), janitor).with_clock(move || clock.fetch_add(1, Ordering::SeqCst))
}

fn at(record: EmbeddingBatch, offset: i64) -> Delivery<EmbeddingBatch> {
    Delivery {
        record,
        at: Coordinates { topic: "weir.embeddings".into(), lane: Lane(0), offset },
        key: None,
        headers: Headers::default(),
        timestamp: 0,
    }
}

fn lined_up(records: impl IntoIterator<Item = EmbeddingBatch>, from: i64) -> Vec<Delivery<EmbeddingBatch>> {
    records.into_iter().zip(from..).map(|(record, offset)| at(record, offset)).collect()
}

/// What became of a record, in short.
#[derive(Debug, Clone, PartialEq)]
enum Said {
    Nothing,
    Superseded,
    Indexed(i64, i32),
    Deleted(i64),
    Failed(i64),
    Rejected(String),
}

fn said(outcome: &Outcome) -> Said {
    let statuses: Vec<DocumentStatus> = outcome
        .outputs()
        .iter()
        .map(|output| {
            let mut body = Vec::new();
            output.record.as_ref().unwrap().encode(&mut body).unwrap();
            let status = DocumentStatus::decode(None, &body).unwrap();
            assert_eq!(output.key.as_deref(), Some(format!("{}/{}", status.tenant, status.document).as_bytes()));
            status
        })
        .collect();
    match (outcome, statuses.as_slice()) {
        (Outcome::Skip { reason: "superseded", .. }, []) => Said::Superseded,
        (Outcome::Reject { failure, .. }, [status]) => {
            assert_eq!((status.state, status.reason.as_ref()), (DocumentState::Failed, Some(&failure.message)));
            Said::Rejected(failure.message.clone())
        }
        (Outcome::Emit(_), []) => Said::Nothing,
        (Outcome::Emit(_), [status]) => match status.state {
            DocumentState::Indexed => Said::Indexed(status.revision.ordinal(), status.chunks),
            DocumentState::Deleted => Said::Deleted(status.revision.ordinal()),
            DocumentState::Failed => Said::Failed(status.revision.ordinal()),
        },
        other => panic!("{other:?}"),
    }
}

async fn process(index: &mut Index, deliveries: &[Delivery<EmbeddingBatch>]) -> Vec<Said> {
    index.process(Batch::new(deliveries)).await.unwrap().iter().map(said).collect()
}

async fn found(store: &VectorStore, text: &str) -> Vec<String> {
    let (tenant, filter) = (tenant("acme"), BTreeMap::new());
    let search =
        Search { tenant: &tenant, filter: &filter, dense: None, text: Some(text), limit: 50, mode: Mode::Sparse };
    let mut texts: Vec<_> = store.search(&search).await.unwrap().into_iter().map(|hit| hit.text).collect();
    texts.sort();
    texts
}

fn three(number: i64) -> EmbeddingBatch {
    record("acme", "d", number, &[("word one", NEAR), ("word two", NEAR), ("word three", NEAR)])
}

#[tokio::test]
async fn a_document_goes_from_indexed_to_replaced_to_deleted() {
    let mut t = setup();
    assert_eq!(process(&mut t.index, &[at(three(1), 0)]).await, [Said::Indexed(1, 3)]);
    assert_eq!(found(&t.store, "word").await.len(), 3);
    let next = record("acme", "d", 2, &[("word four", NEAR)]);
    assert_eq!(process(&mut t.index, &[at(next, 1)]).await, [Said::Indexed(2, 1)]);
    assert_eq!(found(&t.store, "word").await, ["word four"]);
    eventually(async || count(&t.store, 1).await == 0).await;
    assert_eq!(process(&mut t.index, &[at(deletion("acme", "d", 3), 2)]).await, [Said::Deleted(3)]);
    assert!(found(&t.store, "word").await.is_empty());
    eventually(async || count(&t.store, 2).await == 0).await;
}

async fn count(store: &VectorStore, number: i64) -> u64 {
    store.count_chunks(&tenant("acme"), &document("d"), revision(number), "build-1").await.unwrap()
}

#[tokio::test]
async fn a_document_without_text_is_indexed_too() {
    let mut t = setup();
    assert_eq!(process(&mut t.index, &[at(record("acme", "d", 1, &[]), 0)]).await, [Said::Indexed(1, 0)]);
    assert_eq!(process(&mut t.index, &[at(three(2), 1)]).await, [Said::Indexed(2, 3)]);
    assert_eq!(process(&mut t.index, &[at(record("acme", "d", 3, &[]), 2)]).await, [Said::Indexed(3, 0)]);
    assert!(found(&t.store, "word").await.is_empty());
}

#[tokio::test]
async fn a_set_in_several_records_is_shown_and_said_with_the_last_one() {
    let mut t = setup();
    let parts = lined_up(split(&three(1)), 0);
    assert_eq!(process(&mut t.index, &parts[..2]).await, [Said::Nothing, Said::Nothing]);
    assert!(found(&t.store, "word").await.is_empty(), "not half of a document");
    assert_eq!(process(&mut t.index, &parts[2..]).await, [Said::Indexed(1, 3)]);
    assert_eq!(found(&t.store, "word").await.len(), 3);
}

/// A crash after Qdrant has everything and before the commit: all, or some, of the records come again.
#[tokio::test]
async fn delivered_again_records_change_nothing_and_say_the_same() {
    let mut t = setup();
    let mut records = split(&three(1));
    records.push(record("acme", "e", 1, &[("word five", NEAR)]));
    records.push(deletion("acme", "f", 1));
    let deliveries = lined_up(records, 0);
    let first = outputs(&mut t.index, &deliveries).await;
    let said_first = process(&mut t.index, &deliveries).await;
    assert_eq!(said_first, [Said::Nothing, Said::Nothing, Said::Indexed(1, 3), Said::Indexed(1, 1), Said::Deleted(1)]);
    assert_eq!(outputs(&mut stage(&t.store), &deliveries).await, first, "byte for byte, also by another instance");
    for from in 1..deliveries.len() {
        let again = process(&mut t.index, &deliveries[from..]).await;
        assert_eq!(again, said_first[from..], "cut before record {from}");
    }
    assert_eq!(found(&t.store, "word").await.len(), 4);
}

async fn outputs(index: &mut Index, deliveries: &[Delivery<EmbeddingBatch>]) -> Vec<Vec<u8>> {
    let outcomes = index.process(Batch::new(deliveries)).await.unwrap();
    outcomes
        .iter()
        .flat_map(Outcome::outputs)
        .map(|output| {
            let mut body = Vec::new();
            output.record.as_ref().unwrap().encode(&mut body).unwrap();
            body
        })
        .collect()
}

#[tokio::test]
async fn of_several_revisions_in_one_batch_the_last_one_is_shown_and_the_others_are_superseded() {
    let mut t = setup();
    let next = record("acme", "d", 2, &[("word four", NEAR)]);
    let deliveries = lined_up([three(1), next.clone(), record("acme", "d", 0, &[("old", NEAR)])], 0);
    let wanted = [Said::Superseded, Said::Indexed(2, 1), Said::Superseded];
    assert_eq!(process(&mut t.index, &deliveries).await, wanted);
    assert_eq!(process(&mut t.index, &deliveries).await, wanted, "and again");
    assert_eq!(found(&t.store, "word").await, ["word four"]);
    assert_eq!(count(&t.store, 1).await, 0, "what is superseded was not even written");

    // A later revision that is not all there does not supersede anything yet.
    let parts = lined_up(split(&three(4)), 10);
    let mixed = [at(record("acme", "d", 3, &[("word five", NEAR)]), 9), parts[0].clone()];
    assert_eq!(process(&mut t.index, &mixed).await, [Said::Indexed(3, 1), Said::Nothing]);
    assert_eq!(found(&t.store, "word").await, ["word five"]);
    assert_eq!(process(&mut t.index, &parts[1..]).await, [Said::Nothing, Said::Indexed(4, 3)]);
}

/// An instance is frozen with revision 1 in its hands; its successor deletes the document; the frozen one wakes up.
#[tokio::test]
async fn a_frozen_instance_does_not_bring_a_deleted_document_back() {
    let mut t = setup();
    let mut frozen = stage(&t.store);
    assert_eq!(process(&mut t.index, &[at(deletion("acme", "d", 2), 7)]).await, [Said::Deleted(2)]);
    assert_eq!(process(&mut frozen, &[at(three(1), 6)]).await, [Said::Superseded]);
    assert!(found(&t.store, "word").await.is_empty());
    let head = t.store.head(&tenant("acme"), &document("d")).await.unwrap().unwrap();
    assert_eq!((head.revision, head.deleted), (revision(2), true));
}

/// The same at the worst moment: it has read the head and written its chunks, and is about to move the head.
#[tokio::test]
async fn an_instance_frozen_before_it_moves_a_head_does_not_bring_a_deleted_document_back() {
    let t = setup();
    let config = t.server.config();
    // The stage looks at the clock right before it moves heads: that is where it freezes.
    let mut frozen = stage(&t.store).with_clock(move || {
        let config = config.clone();
        std::thread::spawn(move || successor_deletes(&config)).join().unwrap();
        5_000
    });
    assert_eq!(process(&mut frozen, &[at(three(1), 6)]).await, [Said::Superseded]);
    assert_eq!(count(&t.store, 1).await, 3, "its chunks were written before it froze");
    assert!(found(&t.store, "word").await.is_empty());
    let head = t.store.head(&tenant("acme"), &document("d")).await.unwrap().unwrap();
    assert_eq!((head.revision, head.deleted), (revision(2), true));
    assert_eq!(process(&mut frozen, &[at(three(1), 6)]).await, [Said::Superseded], "and again");
    t.store.sweep(100, Duration::ZERO).await.unwrap();
    eventually(async || count(&t.store, 1).await == 0).await;
}

fn successor_deletes(config: &QdrantConfig) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut successor = stage(&VectorStore::connect(config).unwrap());
        assert_eq!(process(&mut successor, &[at(deletion("acme", "d", 2), 7)]).await, [Said::Deleted(2)]);
    });
}

#[tokio::test]
async fn a_set_with_a_record_missing_fails_and_a_replay_of_that_record_heals_it() {
    let mut t = setup();
    assert_eq!(process(&mut t.index, &[at(three(1), 0)]).await, [Said::Indexed(1, 3)]);
    let next = EmbeddingBatch { revision: revision(2), ..three(2) };
    let parts = lined_up(split(&next), 1);
    let arrived = [parts[0].clone(), parts[2].clone()];
    assert_eq!(process(&mut t.index, &arrived).await, [Said::Nothing, Said::Failed(2)]);
    assert_eq!(found(&t.store, "word").await.len(), 3, "the previous revision stays");
    let head = t.store.head(&tenant("acme"), &document("d")).await.unwrap().unwrap();
    assert_eq!(head.revision, revision(1));

    let mut replayed = at(parts[1].record.clone(), 40);
    replayed.headers.set(header::REPLAYS, "1");
    replayed.headers.set(header::DLQ_OFFSET, "2");
    assert_eq!(process(&mut t.index, std::slice::from_ref(&replayed)).await, [Said::Indexed(2, 3)]);
    assert_eq!(process(&mut t.index, &[replayed]).await, [Said::Indexed(2, 3)]);
}

#[tokio::test]
async fn a_record_that_can_not_be_indexed_costs_only_itself() {
    let mut t = setup();
    let mut bad = record("acme", "bad", 1, &[("word", NEAR)]);
    bad.chunks[0].vector.pop();
    let deliveries = lined_up([three(1), bad, record("acme", "e", 1, &[("word five", NEAR)])], 0);
    let outcomes = process(&mut t.index, &deliveries).await;
    assert_eq!((&outcomes[0], &outcomes[2]), (&Said::Indexed(1, 3), &Said::Indexed(1, 1)));
    assert!(matches!(&outcomes[1], Said::Rejected(reason) if reason.contains("11 bytes")), "{outcomes:?}");
}

#[tokio::test]
async fn vectors_of_another_model_stop_the_stage() {
    let mut t = setup();
    process(&mut t.index, &[at(three(1), 0)]).await;
    let other = EmbeddingBatch { model: "other@2/f32".into(), ..three(2) };
    match t.index.process(Batch::new(&[at(other, 1)])).await {
        Err(StageError::Fatal(message)) => assert!(message.contains("qdrant.collection"), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn while_qdrant_is_away_nothing_is_decided_and_afterwards_everything_is() {
    let mut t = setup();
    assert_eq!(process(&mut t.index, &[at(three(1), 0)]).await, [Said::Indexed(1, 3)]);
    t.server.stop();
    match t.index.process(Batch::new(&[at(three(2), 1)])).await {
        Err(StageError::Unavailable { dependency: "qdrant", .. }) => {}
        other => panic!("{other:?}"),
    }
    t.server.restart();
    // Another address, as ports are free to choose here: a stage of its own.
    let store = t.server.store();
    assert_eq!(process(&mut stage(&store), &[at(three(2), 1)]).await, [Said::Indexed(2, 3)]);
}

#[tokio::test]
async fn a_few_thousand_records_are_indexed_in_one_batch() {
    let mut t = setup();
    let records = (0..2_000).map(|i| record("acme", &format!("d{i}"), 1, &[("many words", NEAR)]));
    let deliveries = lined_up(records, 0);
    let started = std::time::Instant::now();
    let outcomes = process(&mut t.index, &deliveries).await;
    println!("2,000 documents in {:?}", started.elapsed());
    assert!(outcomes.iter().all(|outcome| *outcome == Said::Indexed(1, 1)));
    assert!(started.elapsed() < Duration::from_secs(20));
}

async fn eventually(condition: impl AsyncFn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(std::time::Instant::now() < deadline, "it does not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
