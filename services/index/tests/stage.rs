//! The stage on the embedded server: what it says of records, once, twice, and after things broke in between.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod setup;

use std::collections::BTreeMap;
use std::time::Duration;

use setup::server::{deletion, document, record, revision, split, tenant};
use setup::*;
use weir_contracts::EmbeddingBatch;
use weir_index::Index;
use weir_stage::{Batch, Delivery, Failure, Outcome, Stage, StageError};
use weir_vectors::{QdrantConfig, VectorStore};

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

/// What the other stages say of a record that became a dead letter.
fn failure_of(record: &EmbeddingBatch) -> EmbeddingBatch {
    EmbeddingBatch { failure: Some("dead letter of embed: no".into()), chunks: Vec::new(), ..record.clone() }
}

#[tokio::test]
async fn a_set_with_a_record_missing_says_nothing_and_is_indexed_when_the_record_comes() {
    let mut t = setup();
    assert_eq!(process(&mut t.index, &[at(three(1), 0)]).await, [Said::Indexed(1, 3)]);
    let parts = lined_up(split(&three(2)), 1);
    let arrived = [parts[0].clone(), parts[2].clone()];
    assert_eq!(process(&mut t.index, &arrived).await, [Said::Nothing, Said::Nothing], "it is on its way");
    assert_eq!(found(&t.store, "word").await.len(), 3, "the previous revision stays");
    assert_eq!(shown(&t.store).await, (1, false));

    // Through the retries of this stage, or of one before it, which write a new record.
    for late in [again(&parts[1], 40), placed(&parts[1], 41, 2)] {
        let mut t = setup();
        process(&mut t.index, &arrived).await;
        let wanted = [Said::Indexed(2, 3)];
        assert_eq!(process(&mut t.index, std::slice::from_ref(&late)).await, wanted);
        assert_eq!(process(&mut t.index, &arrived).await, [Said::Nothing, Said::Nothing], "it was said");
        assert_eq!(process(&mut t.index, &[late]).await, wanted, "a crash before it was committed");
    }
}

#[tokio::test]
async fn a_revision_of_which_a_record_is_a_dead_letter_is_failed_once_and_a_replay_heals_it() {
    // Whichever of the records it is: the last one, too.
    for dead in 0..3 {
        let mut t = setup();
        assert_eq!(process(&mut t.index, &[at(three(1), 0)]).await, [Said::Indexed(1, 3)]);
        let parts = lined_up(split(&three(2)), 1);
        let mut arriving = parts.clone();
        arriving[dead].record = failure_of(&parts[dead].record);
        let mut wanted = vec![Said::Nothing; 3];
        wanted[dead] = Said::Failed(2, "dead letter of embed: no".into());
        assert_eq!(process(&mut t.index, &arriving).await, wanted);
        assert_eq!(process(&mut t.index, &arriving).await, wanted, "a crash before it was committed");
        assert_eq!(found(&t.store, "word").await.len(), 3, "the previous revision stays, whole");
        assert_eq!(shown(&t.store).await, (1, false));
        let other = at(failure_of(&parts[(dead + 1) % 3].record), 10);
        assert_eq!(process(&mut t.index, &[other]).await, [Said::Nothing], "a second dead letter of the revision");

        let replayed = placed(&parts[dead], 11, parts[dead].at.offset);
        assert_eq!(process(&mut t.index, &[replayed]).await, [Said::Indexed(2, 3)]);
        assert_eq!(shown(&t.store).await, (2, false));
        assert_eq!(process(&mut t.index, &[arriving[dead].clone()]).await, [Said::Nothing], "never after it is shown");
    }
}

#[tokio::test]
async fn a_document_that_was_rejected_as_a_whole_is_failed_also_before_there_is_a_collection() {
    let mut t = setup();
    let whole = EmbeddingBatch { total_chunks: 1, ..failure_of(&record("acme", "d", 1, &[])) };
    let wanted = [Said::Failed(1, "dead letter of embed: no".into())];
    assert_eq!(process(&mut t.index, &[at(whole.clone(), 0)]).await, wanted);
    let deleted = EmbeddingBatch { deleted: true, revision: revision(2), ..whole };
    assert_eq!(process(&mut t.index, &[at(deleted, 1)]).await, [Said::Failed(2, "dead letter of embed: no".into())]);
    assert_eq!(process(&mut t.index, &[at(record("acme", "d", 3, &[]), 2)]).await, [Said::Indexed(3, 0)]);
}

/// The last thing that is said of a document is that of its latest revision, though an earlier one is shown.
#[tokio::test]
async fn a_revision_that_is_complete_late_is_shown_but_does_not_hide_that_a_later_one_failed() {
    let mut t = setup();
    let parts = lined_up(split(&three(1)), 0);
    process(&mut t.index, &parts[..2]).await;
    let failed = at(failure_of(&three(2)), 3);
    assert!(matches!(process(&mut t.index, &[failed]).await[..], [Said::Failed(2, _)]));
    assert_eq!(process(&mut t.index, &[again(&parts[2], 9)]).await, [Said::Nothing]);
    assert_eq!(shown(&t.store).await, (1, false));
    assert_eq!(process(&mut t.index, &[at(failure_of(&three(1)), 10)]).await, [Said::Nothing], "nor does its failure");
    assert_eq!(process(&mut t.index, &[at(deletion("acme", "d", 3), 11)]).await, [Said::Deleted(3)]);
}

#[tokio::test]
async fn another_build_begins_its_set_anew_and_the_earlier_one_that_is_complete_late_does_not_replace_it() {
    let mut t = setup();
    let old = lined_up(split(&three(1)), 0);
    let built = |record: EmbeddingBatch| EmbeddingBatch { build: "build-2".into(), ..record };
    let new = lined_up(split(&built(record("acme", "d", 1, &[("word a", NEAR), ("word b", NEAR)]))), 3);
    assert_eq!(process(&mut t.index, &[old[0].clone(), old[2].clone(), new[0].clone()]).await, [NOTHING; 3]);
    assert!(found(&t.store, "word").await.is_empty(), "three chunks are there, but of two builds");
    assert_eq!(process(&mut t.index, &new[1..]).await, [Said::Indexed(1, 2)]);
    // It took a detour before it was embedded: its record is a new one.
    assert_eq!(process(&mut t.index, &[placed(&old[1], 9, 1)]).await, [Said::Superseded]);
    assert_eq!(found(&t.store, "word").await, ["word a", "word b"]);
}

#[tokio::test]
async fn a_change_of_title_and_metadata_only_changes_what_is_found() {
    let mut t = setup();
    let about = |kind: &str| BTreeMap::from([("kind".to_owned(), kind.to_owned())]);
    let with = |number, kind| EmbeddingBatch { metadata: about(kind), title: Some(kind.to_owned()), ..three(number) };
    assert_eq!(process(&mut t.index, &[at(with(1, "draft"), 0)]).await, [Said::Indexed(1, 3)]);
    assert_eq!(process(&mut t.index, &[at(with(2, "final"), 1)]).await, [Said::Indexed(2, 3)]);
    assert!(hits(&t.store, "word", &about("draft")).await.is_empty());
    let hits = hits(&t.store, "word", &about("final")).await;
    assert_eq!(hits.len(), 3);
    assert!(hits.iter().all(|hit| hit.title.as_deref() == Some("final") && hit.revision == revision(2)));
}

#[tokio::test]
async fn a_record_that_can_not_be_indexed_costs_only_itself() {
    let mut t = setup();
    let mut bad = record("acme", "bad", 1, &[("word", NEAR)]);
    bad.chunks[0].vector.pop();
    let deliveries = lined_up([three(1), bad, record("acme", "e", 1, &[("word five", NEAR)])], 0);
    let outcomes = process(&mut t.index, &deliveries).await;
    assert_eq!((&outcomes[0], &outcomes[2]), (&Said::Indexed(1, 3), &Said::Indexed(1, 1)));
    assert!(matches!(&outcomes[1], Said::Rejected(Some(reason)) if reason.contains("11 bytes")), "{outcomes:?}");
    assert_eq!(process(&mut t.index, &deliveries).await, outcomes, "and again");
    let mut empty = setup();
    assert_eq!(process(&mut empty.index, &deliveries[1..2]).await, outcomes[1..2], "the first record ever");
}

/// The runner rejects what the stage panics on, and asks it for last words.
#[tokio::test]
async fn what_the_runner_rejects_is_failed_unless_it_is_shown() {
    let mut t = setup();
    let failure = Failure::new("panic", "the stage panicked");
    let parts = lined_up(split(&three(1)), 0);
    let words = t.index.last_words(&parts[0], &failure).await.unwrap();
    assert_eq!(statuses(&words).len(), 1);
    assert_eq!(process(&mut t.index, &parts).await, [Said::Nothing, Said::Nothing, Said::Indexed(1, 3)]);
    assert!(t.index.last_words(&parts[0], &failure).await.unwrap().is_empty());
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
    let outcomes = process(&mut t.index, &deliveries).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Said::Indexed(1, 1)));
}

const NOTHING: Said = Said::Nothing;

async fn eventually(condition: impl AsyncFn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(std::time::Instant::now() < deadline, "it does not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
