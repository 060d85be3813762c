//! Bulk ingest: what its steps are, wherever they begin.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use weir_contracts::{DocumentRequest, Record};

use super::*;

fn spec(source: &str, every: usize) -> IngestSpec {
    IngestSpec {
        source: source.into(),
        id_prefix: "all/".into(),
        hidden: false,
        claim_check: true,
        content_type: None,
        title: None,
        metadata: BTreeMap::from([("team".into(), "legal".into())]),
        checkpoint_every: every,
    }
}

fn work(spec: &IngestSpec, limit: usize, places: Places, checkpoint: Checkpoint) -> Work {
    Work::new("job".into(), TenantId::parse("acme").unwrap(), spec.clone(), limit, places, checkpoint)
}

fn request(output: &Output) -> DocumentRequest {
    let mut body = Vec::new();
    output.record.as_ref().unwrap().encode(&mut body).unwrap();
    DocumentRequest::decode(None, &body).unwrap()
}

/// Each step, as the ids in it and its checkpoint.
async fn steps(mut work: Work) -> Vec<(Vec<String>, Checkpoint)> {
    let mut steps = Vec::new();
    loop {
        let step = work.next().await.unwrap();
        let ids = step.outputs.iter().map(|output| request(output).document.to_string()).collect();
        steps.push((ids, serde_json::from_value(step.checkpoint).unwrap()));
        if step.finished {
            return steps;
        }
    }
}

#[tokio::test]
async fn wherever_a_job_goes_on_each_file_is_requested_once() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..53 {
        let folder = dir.path().join(format!("{:02}", n % 7));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{n:02}.txt")), format!("file {n}")).unwrap();
    }
    let spec = spec(dir.path().to_str().unwrap(), 10);
    let places = |checkpoint: &Checkpoint| Places::folder(&spec, checkpoint.last.clone()).unwrap();
    let begin = Checkpoint { total: count(&spec).await.unwrap(), ..Checkpoint::default() };
    assert_eq!(begin.total, Some(53));
    let whole = steps(work(&spec, 1 << 20, places(&begin), begin)).await;
    let all: Vec<String> = whole.iter().flat_map(|(ids, _)| ids.clone()).collect();
    assert!(all.len() == 53 && all.is_sorted() && all[0] == "all/00/00.txt", "{all:?}");
    assert!(whole.iter().all(|(ids, _)| ids.len() <= 10));
    for (n, (_, checkpoint)) in whole.iter().enumerate().take(whole.len() - 1) {
        let rest = steps(work(&spec, 1 << 20, places(checkpoint), checkpoint.clone())).await;
        let rest_of_whole: Vec<_> = whole[n + 1..].iter().flat_map(|(ids, _)| ids.clone()).collect();
        let ids: Vec<_> = rest.iter().flat_map(|(ids, _)| ids.clone()).collect();
        assert_eq!(ids, rest_of_whole, "after {checkpoint:?}");
        assert_eq!(rest.last().unwrap().1, whole.last().unwrap().1, "and counts the same");
    }
}

#[tokio::test]
async fn a_request_made_again_has_the_same_id_and_what_can_not_be_sent_is_counted() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.txt"), "a").unwrap();
    std::fs::write(dir.path().join("large.txt"), vec![b'x'; 60_000]).unwrap();
    std::fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"odd\xff")), "odd").unwrap();
    let spec = IngestSpec { claim_check: false, ..spec(dir.path().to_str().unwrap(), 1) };
    let first = async || {
        let places = Places::folder(&spec, None).unwrap();
        let step = work(&spec, 50_000, places, Checkpoint::default()).next().await.unwrap();
        request(&step.outputs[0])
    };
    let request = first().await;
    assert_eq!((request.document.as_str(), request.content.as_deref()), ("all/a.txt", Some(&b"a"[..])));
    assert_eq!(request.metadata["team"], "legal");
    assert_eq!(request.request_id, first().await.request_id);
    let places = Places::folder(&spec, None).unwrap();
    let all = steps(work(&spec, 50_000, places, Checkpoint::default())).await;
    let last = &all.last().unwrap().1;
    assert_eq!((last.done, last.failures), (1, 2));
    assert!(Places::folder(&IngestSpec { source: "/nowhere/at/all".into(), ..spec }, None).is_err());
}

#[tokio::test]
async fn objects_of_a_bucket_are_sent_in_the_order_of_their_keys_and_large_ones_as_links() {
    let store = Arc::new(InMemory::new());
    for (key, size) in [("in/b.txt", 3), ("in/a/c.txt", 4), ("in/z.bin", 90_000), ("out/x.txt", 5)] {
        store.put(&Key::from(key), vec![b'x'; size].into()).await.unwrap();
    }
    let store: Arc<dyn ObjectStore> = store;
    let bucket = || Bucket::of(Arc::clone(&store), "docs", "in");
    let spec = spec("s3://docs/in/", 2);
    let whole = steps(work(&spec, 50_000, Places::bucket(bucket(), None), Checkpoint::default())).await;
    let ids: Vec<_> = whole.iter().map(|(ids, _)| ids.join(" ")).collect();
    assert_eq!(ids[..2], ["all/a/c.txt all/b.txt", "all/z.bin"]);
    let checkpoint = whole[0].1.clone();
    assert_eq!(checkpoint.last.as_deref(), Some("in/b.txt"));
    let places = Places::bucket(bucket(), checkpoint.last.as_deref());
    let step = work(&spec, 50_000, places, checkpoint).next().await.unwrap();
    let linked = request(&step.outputs[0]);
    assert_eq!((linked.content_uri.as_deref(), linked.content), (Some("s3://docs/in/z.bin"), None));
    assert_eq!((step.done, step.finished), (3, true));
}
