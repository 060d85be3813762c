//! What the stage emits.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use std::collections::BTreeMap;

use weir_contracts::{DocumentId, Lane, Record, RequestId, Revision, TenantId};
use weir_stage::{Coordinates, Headers};

use super::*;
use crate::split::tests::Quarters;

fn document(text: &str, deleted: bool) -> Document {
    Document {
        tenant: TenantId::parse("acme").unwrap(),
        document: DocumentId::parse("mill.txt").unwrap(),
        revision: Revision::new(0, 7).unwrap(),
        request_id: RequestId::parse("r-1").unwrap(),
        deleted,
        title: Some("Mills".into()),
        text: text.into(),
        blocks: Vec::new(),
        content_hash: String::new(),
        content_type: String::new(),
        extractor: String::new(),
        metadata: BTreeMap::from([("kind".into(), "note".into())]),
        requested_at: 5,
    }
}

fn delivery(document: Document) -> Delivery<Document> {
    let at = Coordinates { topic: "weir.documents".into(), lane: Lane(3), offset: 1 };
    Delivery { record: document, at, key: None, headers: Headers::default(), timestamp: 9 }
}

async fn records(document: Document, config: &ChunkConfig) -> Vec<ChunkBatch> {
    let mut chunker = Chunker::new(Quarters, "model@1", config).unwrap();
    let outcomes = chunker.process(Batch::new(&[delivery(document)])).await.unwrap();
    decoded(outcomes[0].outputs())
}

fn decoded(outputs: &[Output]) -> Vec<ChunkBatch> {
    outputs
        .iter()
        .map(|output| {
            assert_eq!(output.topic, Topic::CHUNKS);
            assert_eq!(output.key.as_deref(), Some(b"acme/mill.txt".as_slice()));
            let mut bytes = Vec::new();
            output.record.as_ref().unwrap().encode(&mut bytes).unwrap();
            assert!(bytes.len() < 600 << 10);
            ChunkBatch::decode(None, &bytes).unwrap()
        })
        .collect()
}

#[tokio::test]
async fn batches_are_numbered_and_chunks_are_exactly_their_bytes() {
    let text = "The mill turns day and night. ".repeat(5_000);
    let batches = records(document(&text, false), &ChunkConfig { max_tokens: 64, overlap_tokens: 16 }).await;
    assert!(batches.len() > 2);
    let total: usize = batches.iter().map(|batch| batch.chunks.len()).sum();
    for (number, batch) in batches.iter().enumerate() {
        assert_eq!((batch.batch, batch.batches), (number as i32, batches.len() as i32));
        assert_eq!(batch.total_chunks, total as i32);
        assert_eq!(batch.title.as_deref(), Some("Mills"));
        assert!(!batch.chunks.is_empty() && batch.chunks.len() <= MAX_CHUNKS);
    }
    for (ordinal, chunk) in batches.iter().flat_map(|batch| &batch.chunks).enumerate() {
        assert_eq!(chunk.ordinal, ordinal as i32);
        assert_eq!(chunk.text, text[chunk.start as usize..chunk.end as usize]);
    }
}

#[tokio::test]
async fn nothing_and_a_deletion_are_one_batch_each() {
    for (text, deleted) in [("", false), ("\n", false), ("left over", true)] {
        let batches = records(document(text, deleted), &ChunkConfig::default()).await;
        assert_eq!(batches.len(), 1);
        let batch = &batches[0];
        assert_eq!((batch.batch, batch.batches, batch.total_chunks, batch.chunks.len()), (0, 1, 0, 0));
        assert_eq!(batch.deleted, deleted);
    }
}

/// What embed and index are told when the runner rejects a document, for whatever reason.
#[tokio::test]
async fn of_a_document_that_is_rejected_the_failure_goes_on_without_its_content() {
    let mut chunker = Chunker::new(Quarters, "model@1", &ChunkConfig::default()).unwrap();
    let failure = Failure::new("too-large", "an output has 2000000 bytes");
    let words = chunker.last_words(&delivery(document("text", false)), &failure).await.unwrap();
    let batch = &decoded(&words)[0];
    assert_eq!(batch.failure.as_deref(), Some("dead letter of chunk (too-large): an output has 2000000 bytes"));
    assert_eq!((words.len(), batch.revision, batch.request_id.as_str()), (1, Revision::new(0, 7).unwrap(), "r-1"));
    assert!(batch.chunks.is_empty() && batch.metadata.is_empty() && batch.title.is_none());
    assert!(batch.total_chunks > 0, "not to be taken for a document without text");
}

#[tokio::test]
async fn the_build_says_what_made_the_chunks() {
    let build = |config: ChunkConfig| async move { records(document("text", false), &config).await[0].build.clone() };
    let first = build(ChunkConfig::default()).await;
    assert_eq!(first, build(ChunkConfig { max_tokens: 254, ..ChunkConfig::default() }).await);
    assert_ne!(first, build(ChunkConfig { max_tokens: 200, ..ChunkConfig::default() }).await);
    assert_ne!(first, build(ChunkConfig { overlap_tokens: 20, ..ChunkConfig::default() }).await);
}

#[test]
fn chunks_that_the_model_would_cut_are_refused() {
    let refusal = Chunker::new(Quarters, "model@1", &ChunkConfig { max_tokens: 300, overlap_tokens: 40 });
    assert!(refusal.err().unwrap().to_string().contains("takes 254 tokens"));
}
