//! What is the embedded server's own: what it refuses, who may use it, and what outlives a kill.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod qdrant;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use qdrant_client::Qdrant;
use qdrant_client::qdrant::{
    Condition, CountPointsBuilder, CreateAliasBuilder, CreateCollection, CreateCollectionBuilder, DeletePointsBuilder,
    Distance, FacetCountsBuilder, Filter, GetPointsBuilder, NamedVectors, PointStruct, QueryPointsBuilder,
    ScrollPointsBuilder, SearchPointsBuilder, UpsertPointsBuilder, Value, VectorParamsBuilder,
};
use serde_json::json;
use tempfile::TempDir;

use crate::qdrant::*;

#[tokio::test]
async fn what_the_embedded_server_does_not_support_it_refuses() {
    let data = TempDir::new().unwrap();
    let server = Embedded::start(data.path(), &[]);
    let client = server.client(None);
    let name = "refusals";
    create(&client, name).await;
    let facet = client.facet(FacetCountsBuilder::new(name, "tenant")).await.unwrap_err();
    assert_eq!(code(&facet), UNIMPLEMENTED);
    #[allow(deprecated)]
    let search = client.search_points(SearchPointsBuilder::new(name, vec![1.0, 0.0, 0.0], 1)).await.unwrap_err();
    assert_eq!(code(&search), UNIMPLEMENTED);
    assert_eq!(code(&client.create_snapshot(name).await.unwrap_err()), UNIMPLEMENTED, "a service that is not there");
    // Fields of supported calls that would change the result.
    let text = Filter::must([Condition::matches_text("text", "word")]);
    let error = client.count(CountPointsBuilder::new(name).filter(text)).await.unwrap_err();
    assert_eq!(code(&error), UNIMPLEMENTED);
    let ordered = ScrollPointsBuilder::new(name)
        .order_by(qdrant_client::qdrant::OrderBy { key: "revision".into(), ..Default::default() });
    assert_eq!(code(&client.scroll(ordered).await.unwrap_err()), UNIMPLEMENTED);
    let replicated = CreateCollection { replication_factor: Some(2), ..collection("replicated") };
    assert_eq!(code(&client.create_collection(replicated).await.unwrap_err()), UNIMPLEMENTED);
    let unnamed = CreateCollectionBuilder::new("unnamed").vectors_config(VectorParamsBuilder::new(3, Distance::Cosine));
    assert_eq!(code(&client.create_collection(unnamed).await.unwrap_err()), UNIMPLEMENTED);
}

#[tokio::test]
async fn a_key_is_asked_for_when_one_is_set() {
    let data = TempDir::new().unwrap();
    let server = Embedded::start(data.path(), &["--api-key", "secret"]);
    assert!(server.client(None).health_check().await.is_ok());
    assert_eq!(code(&server.client(None).list_collections().await.unwrap_err()), UNAUTHENTICATED);
    assert_eq!(code(&server.client(Some("wrong")).list_collections().await.unwrap_err()), PERMISSION_DENIED);
    assert!(server.client(Some("secret")).list_collections().await.is_ok());
}

#[tokio::test]
async fn a_data_folder_belongs_to_one_process() {
    let data = TempDir::new().unwrap();
    let server = Embedded::start(data.path(), &[]);
    let second = Embedded::command(data.path()).output().unwrap();
    assert!(!second.status.success());
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(message.contains("belongs to a server that is running"), "{message}");
    server.kill();
    drop(Embedded::start(data.path(), &[]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_end_keeps_everything_even_what_nobody_waited_for() {
    let data = TempDir::new().unwrap();
    let server = Embedded::start(data.path(), &[]);
    let client = server.client(None);
    create(&client, "kept").await;
    client.create_alias(CreateAliasBuilder::new("kept", "alias")).await.unwrap();
    let points: Vec<_> = (1..=500).map(|id| point(id, [1.0, 0.0, 0.0], &[(1, 1.0)], json!({"revision": id}))).collect();
    client.upsert_points(UpsertPointsBuilder::new("kept", points).wait(false)).await.unwrap();
    assert_eq!(server.terminate(), Some(0));

    let server = Embedded::start(data.path(), &[]);
    let client = server.client(None);
    assert_eq!(count(&client, "alias", Filter::default()).await, 500);
    assert_eq!(count(&client, "kept", Filter::must([below("revision", 11.0)])).await, 10);
    let info = client.collection_info("kept").await.unwrap().result.unwrap();
    assert_eq!(info.payload_schema.len(), 3);
    let found =
        ranked(&client, QueryPointsBuilder::new("kept").query(vec![(1_u32, 1.0_f32)]).using("text").limit(1000)).await;
    assert_eq!(found.len(), 500);
}

/// What a writer was told before the server was killed.
struct Told {
    written: Vec<u64>,
    deleted: Vec<u64>,
    head: Option<(u64, i64)>,
}

/// Writes points and moves a head of its own until the server is gone.
async fn write_until_killed(client: Qdrant, first: u64, head: u64, answers: Arc<AtomicU64>) -> Told {
    let mut told = Told { written: Vec::new(), deleted: Vec::new(), head: None };
    for i in 0.. {
        let ids = first + i * 10..first + i * 10 + 10;
        let fields = |id: u64| json!({"revision": 1, "document": format!("d{id}")});
        let points: Vec<_> = ids.clone().map(|id| point(id, [1.0, 2.0, 2.0], &[(3, 1.0)], fields(id))).collect();
        if client.upsert_points(UpsertPointsBuilder::new("kill", points).wait(true)).await.is_err() {
            break;
        }
        told.written.extend(ids);
        answers.fetch_add(1, Ordering::SeqCst);
        let last = first + i * 10 + 9;
        let gone = Filter::must([Condition::matches("document", format!("d{last}"))]);
        // It may be gone or not when the server is killed before it answers.
        told.written.pop();
        if client.delete_points(DeletePointsBuilder::new("kill").points(gone).wait(true)).await.is_err() {
            break;
        }
        told.deleted.push(last);
        answers.fetch_add(1, Ordering::SeqCst);
        let revision = i64::try_from(first + i).unwrap() + 1;
        let moved = PointStruct::new(head, NamedVectors::default(), payload(json!({"revision": revision})));
        #[allow(clippy::cast_precision_loss)]
        let request = UpsertPointsBuilder::new("kill", vec![moved])
            .update_filter(Filter::must([below("revision", revision as f64)]))
            .wait(true);
        if client.upsert_points(request).await.is_err() {
            break;
        }
        told.head = Some((head, revision));
        answers.fetch_add(1, Ordering::SeqCst);
    }
    told
}

/// Writers run until the server is killed under them. Whatever was answered must be there afterwards, whole: the
/// payload, the vectors, and what the indexes say of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_kill_loses_nothing_that_was_answered() {
    const WRITERS: u64 = 4;
    let data = TempDir::new().unwrap();
    let (mut written, mut deleted) = (Vec::new(), Vec::new());
    let mut heads = HashMap::<u64, i64>::new();
    for round in 0..4_u64 {
        let server = Embedded::start(data.path(), &[]);
        if round == 0 {
            create(&server.client(None), "kill").await;
        }
        let answers = Arc::new(AtomicU64::new(0));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let first = round * 1_000_000 + writer * 100_000;
                let work = write_until_killed(server.client(None), first, u64::MAX - writer, answers.clone());
                tokio::spawn(work)
            })
            .collect();
        // An odd number, so that the kill falls into different moments of the writers' turns.
        while answers.load(Ordering::SeqCst) < 20 + 7 * round {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.kill();
        for writer in writers {
            let told = writer.await.unwrap();
            written.extend(told.written);
            deleted.extend(told.deleted);
            heads.extend(told.head);
        }

        let server = Embedded::start(data.path(), &[]);
        let client = server.client(None);
        for ids in written.chunks(1_000) {
            let request = GetPointsBuilder::new("kill", ids.iter().map(|id| (*id).into()).collect::<Vec<_>>())
                .with_payload(true)
                .with_vectors(true);
            let found = client.get_points(request).await.unwrap().result;
            assert_eq!(found.len(), ids.len(), "points are missing after round {round}");
            for point in found {
                let id = number(point.id.as_ref());
                assert_eq!(point.payload["document"], Value::from(format!("d{id}")));
                let vectors = point.vectors.unwrap();
                assert!(vectors.get_vector_by_name("dense").is_some() && vectors.get_vector_by_name("text").is_some());
            }
        }
        let there = count(&client, "kill", Filter::must([Condition::has_id(deleted.iter().copied())])).await;
        assert_eq!(there, 0, "points came back after round {round}");
        for (id, revision) in &heads {
            let found = integer(&client, "kill", *id, "revision").await.unwrap();
            assert!(found >= *revision, "the head went back from {revision} to {found}");
            let indexed = Filter::must([Condition::has_id([*id]), Condition::matches("revision", found)]);
            assert_eq!(count(&client, "kill", indexed).await, 1, "the index does not say what the payload says");
        }
        for id in written.iter().step_by(17) {
            let indexed = Filter::must([Condition::matches("document", format!("d{id}"))]);
            assert_eq!(count(&client, "kill", indexed).await, 1);
        }
        server.kill();
    }
    assert_eq!(heads.len(), usize::try_from(WRITERS).unwrap());
    println!("{} points were answered, and found after each of 4 kills", written.len());
}

/// The check above can fail: what nobody waited for is not on disk yet, and a kill loses it.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_loses_what_nobody_waited_for() {
    let data = TempDir::new().unwrap();
    // A machine that stands still for half a second gives the server time to write it down.
    for attempt in 0..10_u64 {
        let server = Embedded::start(data.path(), &[]);
        let client = server.client(None);
        if attempt == 0 {
            create(&client, "lost").await;
        }
        let before = count(&client, "lost", Filter::default()).await;
        let first = 1 + attempt * 1_000;
        let points = (first..first + 500).map(|id| point(id, [1.0, 0.0, 0.0], &[(1, 1.0)], json!({"revision": 1})));
        client.upsert_points(UpsertPointsBuilder::new("lost", points.collect::<Vec<_>>()).wait(false)).await.unwrap();
        server.kill();
        let server = Embedded::start(data.path(), &[]);
        if count(&server.client(None), "lost", Filter::default()).await < before + 500 {
            return;
        }
    }
    panic!("ten kills have lost nothing: the test of kills proves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_writes_stays_short_and_nothing_is_lost_with_it() {
    const MIB: usize = 1 << 20;
    let data = TempDir::new().unwrap();
    let server = Embedded::start(data.path(), &[]);
    let client = server.client(None);
    create(&client, "long").await;
    // 16 MiB a write; the engine closes a file of its log at 32 MiB.
    for round in 0..20_i64 {
        let text = "x".repeat(2 * MIB);
        let points =
            (1..=8).map(|id| point(id, [1.0, 0.0, 0.0], &[], json!({"revision": round, "text": text.clone()})));
        upsert(&client, "long", points.collect()).await;
    }
    let logs = || {
        let collection = std::fs::read_dir(data.path().join("collections")).unwrap().next().unwrap().unwrap().path();
        let files = std::fs::read_dir(collection.join("shard/wal")).unwrap();
        files.filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().starts_with("closed-")).count()
    };
    assert!(logs() < 8, "{} closed files of the log", logs());
    assert_eq!(count(&client, "long", Filter::must([Condition::matches("revision", 19_i64)])).await, 8);
    server.kill();
    let server = Embedded::start(data.path(), &[]);
    let client = server.client(None);
    assert_eq!(count(&client, "long", Filter::must([Condition::matches("revision", 19_i64)])).await, 8);
    upsert(&client, "long", vec![point(1, [1.0, 0.0, 0.0], &[], json!({"revision": 20}))]).await;
    assert_eq!(integer(&client, "long", 1, "revision").await, Some(20), "newer writes still win");
    assert!(logs() <= 2, "{} closed files of the log after a start", logs());
}

#[tokio::test]
async fn a_broken_collection_is_named_with_the_cure() {
    let data = TempDir::new().unwrap();
    let server = Embedded::start(data.path(), &[]);
    create(&server.client(None), "broken").await;
    assert_eq!(server.terminate(), Some(0));
    let folder = std::fs::read_dir(data.path().join("collections")).unwrap().next().unwrap().unwrap().path();
    for file in ["collection.pb", "shard/edge_config.json"] {
        let path = folder.join(file);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [0xff_u8; 64]).unwrap();
        let output = Embedded::command(data.path()).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{file}: {message}");
        assert!(
            message.contains(&folder.display().to_string()) && message.contains("move the folder away"),
            "{message}"
        );
        std::fs::write(&path, whole).unwrap();
    }
    drop(Embedded::start(data.path(), &[]));
}
