//! What readers see of what writers do, on the embedded server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod server;

use std::collections::BTreeMap;
use std::time::Duration;

use server::{MODEL, Server, deletion, document, record, revision, tenant};
use weir_contracts::EmbeddingBatch;
use weir_vectors::{Head, Hit, Mode, Placed, QdrantConfig, Search, Stale, VectorError, VectorStore};

const NEAR: [f32; 3] = [1.0, 0.0, 0.0];
const FAR: [f32; 3] = [0.0, 1.0, 0.0];

async fn ready(server: &Server) -> VectorStore {
    let store = server.store();
    store.ensure_collection(3, MODEL).await.unwrap();
    store
}

fn head(record: &EmbeddingBatch, position: i64) -> Head {
    Head {
        tenant: record.tenant.clone(),
        document: record.document.clone(),
        revision: record.revision,
        build: record.build.clone(),
        position,
        deleted: record.deleted,
        chunks: record.total_chunks,
        requested_at: record.requested_at,
        at: 2_000,
    }
}

async fn write(store: &VectorStore, record: &EmbeddingBatch, position: i64) {
    store.write_chunks(&[Placed { batch: record, position }]).await.unwrap();
}

async fn publish(store: &VectorStore, record: &EmbeddingBatch, position: i64) {
    write(store, record, position).await;
    store.move_head(&head(record, position)).await.unwrap();
}

async fn count(store: &VectorStore, record: &EmbeddingBatch) -> u64 {
    store.count_chunks(&record.tenant, &record.document, record.revision, &record.build).await.unwrap()
}

async fn search(store: &VectorStore, tenant_name: &str, mode: Mode, text: &str, limit: usize) -> Vec<Hit> {
    filtered(store, tenant_name, mode, text, limit, &BTreeMap::new()).await
}

async fn filtered(
    store: &VectorStore,
    tenant_name: &str,
    mode: Mode,
    text: &str,
    limit: usize,
    filter: &BTreeMap<String, String>,
) -> Vec<Hit> {
    let tenant = tenant(tenant_name);
    let search = Search { tenant: &tenant, filter, dense: Some(&NEAR), text: Some(text), limit, mode };
    store.search(&search).await.unwrap()
}

fn texts(hits: &[Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.text.as_str()).collect()
}

#[tokio::test]
async fn nothing_is_found_before_there_is_a_collection() {
    let server = Server::start();
    assert!(search(&server.store(), "acme", Mode::Hybrid, "fish", 5).await.is_empty());
}

#[tokio::test]
async fn chunks_are_found_only_once_the_head_has_moved() {
    let server = Server::start();
    let store = ready(&server).await;
    let first = record("acme", "d", 1, &[("red fish", NEAR), ("blue bird", FAR)]);
    write(&store, &first, 0).await;
    assert_eq!(count(&store, &first).await, 2, "the chunks are there");
    assert!(search(&store, "acme", Mode::Dense, "", 5).await.is_empty(), "and nobody sees them");
    store.move_head(&head(&first, 0)).await.unwrap();
    let hits = search(&store, "acme", Mode::Dense, "", 5).await;
    assert_eq!(texts(&hits), ["red fish", "blue bird"]);
    let hit = &hits[0];
    assert_eq!((hit.ordinal, hit.start, hit.end, hit.revision), (0, 0, 100, revision(1)));
    assert_eq!(hit.heading_path, ["Part"]);
    assert!((hit.score - 1.0).abs() < 1e-5);

    let second = record("acme", "d", 2, &[("green frog", NEAR)]);
    write(&store, &second, 1).await;
    assert_eq!(texts(&search(&store, "acme", Mode::Dense, "", 5).await), ["red fish", "blue bird"]);
    store.move_head(&head(&second, 1)).await.unwrap();
    assert_eq!(texts(&search(&store, "acme", Mode::Dense, "", 5).await), ["green frog"], "never a mix");
    let stale = Stale { tenant: tenant("acme"), document: document("d"), below: revision(2), build: None };
    store.delete_stale(&[stale]).await.unwrap();
    eventually(async || count(&store, &first).await == 0).await;
    assert_eq!(count(&store, &second).await, 1);
}

/// A process that was frozen before it wrote revision 1 wakes up after its successor has deleted the document.
#[tokio::test]
async fn what_is_written_after_a_later_deletion_stays_invisible_and_is_swept() {
    let server = Server::start();
    let store = ready(&server).await;
    let late = record("acme", "d", 1, &[("zombie", NEAR)]);
    publish(&store, &deletion("acme", "d", 2), 5).await;

    publish(&store, &late, 3).await;
    assert_eq!(count(&store, &late).await, 1, "it was written all the same");
    assert!(search(&store, "acme", Mode::Hybrid, "zombie", 5).await.is_empty());
    let found = store.head(&tenant("acme"), &document("d")).await.unwrap().unwrap();
    assert_eq!((found.revision, found.deleted), (revision(2), true), "the head did not move back");

    let swept = store.sweep(100, Duration::ZERO).await.unwrap();
    assert_eq!((swept.seen, swept.removed), (1, 1));
    eventually(async || count(&store, &late).await == 0).await;

    // The mechanism under test is the head: without one that is ahead, the same write is seen.
    let other = record("acme", "other", 1, &[("alive", NEAR)]);
    publish(&store, &other, 4).await;
    assert_eq!(texts(&search(&store, "acme", Mode::Hybrid, "alive", 5).await), ["alive"]);
}

#[tokio::test]
async fn a_sweep_leaves_alone_what_is_shown_or_still_to_come() {
    let server = Server::start();
    let store = ready(&server).await;
    let shown = record("acme", "shown", 1, &[("a", NEAR), ("b", NEAR)]);
    publish(&store, &shown, 0).await;
    let coming = record("acme", "shown", 2, &[("c", NEAR)]);
    let new = record("acme", "new", 1, &[("d", NEAR)]);
    for pending in [&coming, &new] {
        write(&store, pending, 7).await;
    }
    let swept = store.sweep(1, Duration::ZERO).await.unwrap();
    assert_eq!((swept.seen, swept.removed), (4, 0));
    assert_eq!(texts(&search(&store, "acme", Mode::Dense, "", 9).await).len(), 2);
}

#[tokio::test]
async fn another_build_of_a_revision_replaces_it_and_the_earlier_one_can_not_come_back() {
    let server = Server::start();
    let store = ready(&server).await;
    let old = record("acme", "d", 1, &[("old", NEAR)]);
    let new = EmbeddingBatch { build: "build-2".into(), ..record("acme", "d", 1, &[("new", NEAR)]) };
    publish(&store, &old, 10).await;
    publish(&store, &new, 11).await;
    assert_eq!(texts(&search(&store, "acme", Mode::Dense, "", 5).await), ["new"]);
    publish(&store, &old, 10).await;
    assert_eq!(texts(&search(&store, "acme", Mode::Dense, "", 5).await), ["new"]);
    assert_eq!(store.sweep(100, Duration::ZERO).await.unwrap().removed, 1);
}

#[tokio::test]
async fn many_heads_move_at_once_each_by_its_own_condition() {
    let server = Server::start();
    let store = ready(&server).await;
    let records: Vec<_> = (0..250).map(|i| record("acme", &format!("d{i}"), 5, &[("text", NEAR)])).collect();
    let heads: Vec<_> = records.iter().map(|record| head(record, 1)).collect();
    store.move_heads(&heads).await.unwrap();
    let moved: Vec<_> = heads
        .iter()
        .zip(0..)
        .map(|(head, i)| Head { revision: revision(if i % 2 == 0 { 6 } else { 4 }), ..head.clone() })
        .collect();
    store.move_heads(&moved).await.unwrap();
    let keys: Vec<_> = heads.iter().map(|head| (&head.tenant, &head.document)).collect();
    let found = store.heads(&keys).await.unwrap();
    for (i, head) in found.into_iter().enumerate() {
        assert_eq!(head.unwrap().revision, revision(if i % 2 == 0 { 6 } else { 5 }), "d{i}");
    }
}

#[tokio::test]
async fn tenants_do_not_see_each_others_documents_even_of_the_same_name() {
    let server = Server::start();
    let store = ready(&server).await;
    for (name, text) in [("acme", "their secret"), ("globex", "our secret")] {
        publish(&store, &record(name, "d", 1, &[(text, NEAR)]), 0).await;
    }
    for mode in [Mode::Dense, Mode::Sparse, Mode::Hybrid] {
        assert_eq!(texts(&search(&store, "acme", mode, "secret", 9).await), ["their secret"], "{mode:?}");
        assert!(search(&store, "initech", mode, "secret", 9).await.is_empty());
    }
    publish(&store, &deletion("globex", "d", 2), 1).await;
    assert_eq!(search(&store, "acme", Mode::Dense, "", 9).await.len(), 1);
}

#[tokio::test]
async fn metadata_narrow_a_search_whatever_characters_they_have() {
    let server = Server::start();
    let store = ready(&server).await;
    let with = |name: &str, pairs: &[(&str, &str)]| {
        let metadata = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        EmbeddingBatch { metadata, ..record("acme", name, 1, &[(name, NEAR)]) }
    };
    for record in
        [with("one", &[("lang", "en"), ("a.b [c]", "x=\"y\"")]), with("two", &[("lang", "de")]), with("three", &[])]
    {
        publish(&store, &record, 0).await;
    }
    let only = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    for mode in [Mode::Dense, Mode::Hybrid] {
        let found = |filter: BTreeMap<String, String>| {
            let store = store.clone();
            async move { filtered(&store, "acme", mode, "one two three", 9, &filter).await.len() }
        };
        assert_eq!(found(only(&[])).await, 3);
        assert_eq!(found(only(&[("lang", "en")])).await, 1);
        assert_eq!(found(only(&[("lang", "en"), ("a.b [c]", "x=\"y\"")])).await, 1);
        assert_eq!(found(only(&[("lang", "de"), ("a.b [c]", "x=\"y\"")])).await, 0);
        assert_eq!(found(only(&[("lang", "fr")])).await, 0);
    }
}

#[tokio::test]
async fn words_meaning_and_both_find_in_their_own_way() {
    let server = Server::start();
    let store = ready(&server).await;
    let titled = EmbeddingBatch {
        title: Some("Annual report".into()),
        ..record("acme", "report", 1, &[("figures and tables", FAR)])
    };
    publish(&store, &titled, 0).await;
    publish(&store, &record("acme", "a", 1, &[("a fisherman was fishing", [0.9, 0.1, 0.0])]), 1).await;
    publish(&store, &record("acme", "b", 1, &[("nothing of the kind", NEAR)]), 2).await;
    let dense = search(&store, "acme", Mode::Dense, "fishes", 2).await;
    assert_eq!(texts(&dense), ["nothing of the kind", "a fisherman was fishing"]);
    assert_eq!(texts(&search(&store, "acme", Mode::Sparse, "fishes", 2).await), ["a fisherman was fishing"]);
    assert_eq!(texts(&search(&store, "acme", Mode::Hybrid, "fishes", 1).await), ["a fisherman was fishing"]);
    assert_eq!(texts(&search(&store, "acme", Mode::Sparse, "annual reports", 2).await), ["figures and tables"]);
    assert!(search(&store, "acme", Mode::Sparse, "the of and", 2).await.is_empty(), "stop words only");
    assert_eq!(search(&store, "acme", Mode::Hybrid, "the of and", 3).await.len(), 3, "the other leg is left");
}

#[tokio::test]
async fn a_document_may_have_any_name() {
    let server = Server::start();
    let store = ready(&server).await;
    for name in ["reports/2026 Q1.pdf", "reports/2026", "Q1.pdf", "\"[a]\" \\ ünï", "*"] {
        let first = record("acme", name, 1, &[(name, NEAR)]);
        publish(&store, &first, 0).await;
        assert_eq!(count(&store, &first).await, 1, "{name}");
    }
    let stale =
        Stale { tenant: tenant("acme"), document: document("reports/2026 Q1.pdf"), below: revision(2), build: None };
    store.delete_stale(&[stale]).await.unwrap();
    eventually(async || search(&store, "acme", Mode::Dense, "", 9).await.len() == 4).await;
}

#[tokio::test]
async fn hidden_hits_do_not_take_the_place_of_others() {
    let server = Server::start();
    let store = ready(&server).await;
    // 20 chunks of a revision that is not shown any more are nearer than what is.
    let old: Vec<_> = (0..20).map(|_| ("old", NEAR)).collect();
    publish(&store, &record("acme", "d", 1, &old), 0).await;
    publish(&store, &record("acme", "d", 2, &[("new", [0.5, 0.5, 0.0])]), 1).await;
    for i in 0..4 {
        publish(&store, &record("acme", &format!("e{i}"), 1, &[("other", FAR)]), 2).await;
    }
    let hits = search(&store, "acme", Mode::Dense, "", 5).await;
    assert_eq!(texts(&hits), ["new", "other", "other", "other", "other"]);
}

#[tokio::test]
async fn a_collection_of_other_vectors_is_not_used() {
    let server = Server::start();
    ready(&server).await;
    let other = server.store();
    for (dimension, model) in [(4, MODEL), (3, "other@1/f32")] {
        let error = other.ensure_collection(dimension, model).await.unwrap_err();
        assert!(matches!(error, VectorError::Mismatch { .. }) && !error.is_unavailable(), "{error}");
    }
    assert_eq!(other.model().await.unwrap().as_deref(), Some(MODEL));
}

/// A fleet may have processors with and without bf16.
#[tokio::test]
async fn a_collection_takes_vectors_of_the_same_model_in_another_floating_precision() {
    let server = Server::start();
    ready(&server).await;
    let other = server.store();
    other.ensure_collection(3, "test@1/bf16").await.unwrap();
    assert_eq!(other.model().await.unwrap().as_deref(), Some(MODEL));
    let error = other.ensure_collection(3, "test@1/int8").await.unwrap_err();
    assert!(matches!(error, VectorError::Mismatch { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_is_away_is_unavailable_and_its_return_is_noticed() {
    let away = QdrantConfig { url: "http://127.0.0.1:1".into(), ..QdrantConfig::default() };
    let away = VectorStore::connect(&away).unwrap();
    assert!(away.ensure_collection(3, MODEL).await.unwrap_err().is_unavailable());

    let server = Server::start();
    let store = ready(&server).await;
    let client = qdrant_client::Qdrant::from_url(&server.url).skip_compatibility_check().build().unwrap();
    client.delete_collection("weir").await.unwrap();
    let first = record("acme", "d", 1, &[("text", NEAR)]);
    let error = store.write_chunks(&[Placed { batch: &first, position: 0 }]).await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    store.ensure_collection(3, MODEL).await.unwrap();
    write(&store, &first, 0).await;
}

#[tokio::test]
async fn a_vector_of_the_wrong_length_is_refused_before_anything_is_written() {
    let server = Server::start();
    let store = ready(&server).await;
    let good = record("acme", "good", 1, &[("text", NEAR)]);
    let mut bad = record("acme", "bad", 1, &[("text", NEAR)]);
    bad.chunks[0].vector.truncate(8);
    let both = [Placed { batch: &good, position: 0 }, Placed { batch: &bad, position: 1 }];
    let error = store.write_chunks(&both).await.unwrap_err();
    assert!(matches!(error, VectorError::Invalid(_)), "{error}");
    assert_eq!(count(&store, &good).await, 0);
    bad.chunks[0].vector = [f32::NAN, 0.0, 0.0].iter().flat_map(|number| number.to_le_bytes()).collect();
    assert!(VectorStore::check(&bad).is_err());
}

/// Waits until a condition holds.
async fn eventually(condition: impl AsyncFn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(std::time::Instant::now() < deadline, "it does not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
