//! A reader that polls while documents change.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod setup;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use qdrant_client::Qdrant;
use qdrant_client::qdrant::{Condition, Filter, ScrollPointsBuilder, Value, value::Kind};
use setup::server::{Server, deletion, record, split};
use setup::{NEAR, lined_up, on_time, process, search};
use tokio::sync::watch;
use weir_contracts::EmbeddingBatch;

const UPDATES: usize = 1_000;
const DOCUMENTS: usize = 10;
/// Records that are processed together: not a multiple of those of a document.
const TOGETHER: usize = 26;

/// The update of a number: another text of another length, or a deletion.
fn update(number: usize) -> Vec<EmbeddingBatch> {
    let (name, ordinal) = (document_of(number), i64::try_from(number).unwrap());
    if is_deletion(number) {
        return vec![deletion("acme", &name, ordinal)];
    }
    let of = 2 + number % 3;
    let texts: Vec<_> = (0..of).map(|ordinal| format!("word {name} {number} {ordinal} {of}")).collect();
    let chunks: Vec<_> = texts.iter().map(|text| (text.as_str(), NEAR)).collect();
    split(&record("acme", &name, ordinal, &chunks))
}

fn document_of(number: usize) -> String {
    format!("d{}", number * 7 % DOCUMENTS)
}

fn is_deletion(number: usize) -> bool {
    number % 13 == 5
}

/// What is wrong with an answer: texts of a document that are a mix, a part, or of before `applied`.
fn faults(texts: &[String], applied: usize) -> Vec<String> {
    let mut by_document: BTreeMap<&str, Vec<(usize, &str, usize)>> = BTreeMap::new();
    for text in texts {
        let [_, name, number, ordinal, of] = text.split(' ').collect::<Vec<_>>()[..] else { panic!("{text}") };
        by_document.entry(name).or_default().push((number.parse().unwrap(), ordinal, of.parse().unwrap()));
    }
    let mut faults = Vec::new();
    for (name, chunks) in by_document {
        let (number, _, of) = chunks[0];
        if chunks.iter().any(|(other, ..)| *other != number) {
            faults.push(format!("a mix: {chunks:?}"));
        } else if chunks.iter().map(|(_, ordinal, _)| ordinal).collect::<BTreeSet<_>>().len() != of {
            faults.push(format!("a part: {chunks:?}"));
        }
        // What was replaced or deleted before the reader began to ask.
        let latest = (1..=applied).rev().find(|number| document_of(*number) == name);
        let gone = latest.is_some_and(|latest| number < latest);
        if gone {
            faults.push(format!("{name} is {number}, but {latest:?} was applied before"));
        }
    }
    faults
}

/// All chunks that are there, whatever the heads say.
async fn everything(client: &Qdrant, collection: &str) -> Vec<String> {
    let chunks = Filter::must([Condition::matches("kind", "chunk".to_owned())]);
    let request = ScrollPointsBuilder::new(collection).filter(chunks).limit(1_000).with_payload(true);
    let Ok(page) = client.scroll(request).await else { return Vec::new() };
    let text = |payload: &std::collections::HashMap<String, Value>| match &payload["text"].kind {
        Some(Kind::StringValue(text)) => text.clone(),
        other => panic!("{other:?}"),
    };
    page.result.iter().map(|point| text(&point.payload)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_polls_throughout_1000_updates_sees_no_mix_no_part_and_nothing_deleted() {
    let server = Server::start();
    let config = server.config();
    let applied = Arc::new(AtomicUsize::new(0));
    let (told, mut answered) = watch::channel(0_usize);
    let reader = tokio::spawn({
        let (store, applied) = (server.store(), Arc::clone(&applied));
        let client = Qdrant::from_url(&config.url).skip_compatibility_check().build().unwrap();
        async move {
            let (mut answers, mut documents, mut without_heads) = (0_usize, 0, 0);
            loop {
                let before = applied.load(Ordering::SeqCst);
                let hits = search(&store, "acme", "word", &BTreeMap::new()).await;
                let texts: Vec<_> = hits.into_iter().map(|hit| hit.text).collect();
                assert_eq!(faults(&texts, before), Vec::<String>::new());
                answers += 1;
                told.send_replace(answers);
                documents += texts.iter().filter(|text| text.contains(" 0 ")).count();
                // The control, now and then: what a reader would see that does not look at the heads.
                if answers.is_multiple_of(10) {
                    let chunks = everything(&client, &config.collection).await;
                    without_heads += usize::from(!faults(&chunks, before).is_empty());
                }
                if before == UPDATES {
                    return (answers, documents, without_heads);
                }
            }
        }
    });
    let mut index = on_time(&server.store());
    let (mut records, mut ends) = (Vec::new(), Vec::new());
    for number in 1..=UPDATES {
        records.extend(update(number));
        ends.push(records.len());
    }
    let deliveries = lined_up(records, 0);
    let begun = std::time::Instant::now();
    for (count, batch) in deliveries.chunks(TOGETHER).enumerate() {
        process(&mut index, batch).await;
        let processed = count * TOGETHER + batch.len();
        applied.store(ends.iter().filter(|end| **end <= processed).count(), Ordering::SeqCst);
        // However fast the store is, one answer is asked for and given while nothing moves.
        let before = *answered.borrow();
        if answered.wait_for(|answers| *answers >= before + 2).await.is_err() {
            break;
        }
    }
    let (answers, documents, without_heads) = reader.await.unwrap();
    println!(
        "{answers} answers with {documents} documents in {:?}; {without_heads} faulty ones without heads",
        begun.elapsed()
    );
    assert!(answers > 50, "the reader came to ask {answers} times only");
    assert!(documents > answers * DOCUMENTS / 2, "it found {documents} documents in {answers} answers");
    assert!(without_heads > 10, "the test can't fail: {without_heads}");
}
