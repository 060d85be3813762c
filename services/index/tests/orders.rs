//! Any history of documents, delivered in any order: what can be found in the end is what a model says, and on the way
//! there nothing that never was. On the embedded server and, when `WEIR_TEST_QDRANT_URL` names one, on a real Qdrant
//! (`WEIR_TEST_QDRANT_API_KEY` is its key).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod setup;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use qdrant_client::Qdrant;
use setup::server::{Server, chunk, document, record, revision};
use setup::{NEAR, again, outcomes, placed, search, stage, statuses};
use weir_contracts::{DocumentId, DocumentState, EmbeddingBatch};
use weir_stage::{Delivery, Outcome};
use weir_vectors::{QdrantConfig, VectorStore};

/// Histories that are tried on each server.
const CASES: u32 = 30;

/// How a batch gets to the index.
#[derive(Debug, Clone, Copy)]
enum Way {
    Straight,
    /// Its record is there twice, the second one so many places later.
    Twice(usize),
    /// It is retried or replayed before it is embedded: a new record, so many places later.
    LateBefore(usize),
    /// It is retried or replayed here: the same record, so many places later.
    LateHere(usize),
    /// It is a dead letter, which says so, of a stage before, and perhaps replayed.
    Dead(Option<usize>),
    /// It can't be indexed, and perhaps is repaired and replayed.
    Bad(Option<usize>),
}

/// Chunks of each batch and how it comes. No batch at all stands for a document without text.
type Build = Vec<(i32, Way)>;

/// What becomes of a document.
#[derive(Debug, Clone)]
enum Change {
    /// Its builds, one after the other: a chunker was deployed between two of them.
    Upsert(Vec<(usize, Build)>),
    Delete(Way),
    /// The chunker rejects it, and builds it so much later, when it was replayed.
    Rejected(Option<(usize, Build)>),
}

#[derive(Debug, Clone)]
struct History {
    changes: Vec<(usize, Change)>,
    /// How many records are processed together, and whether the service dies before that is committed.
    cuts: Vec<(usize, bool)>,
}

fn way() -> impl Strategy<Value = Way> {
    let late = 1..20usize;
    prop_oneof![
        6 => Just(Way::Straight),
        1 => late.clone().prop_map(Way::Twice),
        1 => late.clone().prop_map(Way::LateBefore),
        1 => late.clone().prop_map(Way::LateHere),
        1 => proptest::option::of(late.clone()).prop_map(Way::Dead),
        1 => proptest::option::of(late).prop_map(Way::Bad),
    ]
}

fn build() -> impl Strategy<Value = Build> {
    proptest::collection::vec((1..3i32, way()), 0..4)
}

fn change() -> impl Strategy<Value = Change> {
    let first = build().prop_map(|build| vec![(0, build)]);
    let second = (build(), 0..3usize, build()).prop_map(|(first, later, second)| vec![(0, first), (later, second)]);
    prop_oneof![
        5 => first.prop_map(Change::Upsert),
        2 => second.prop_map(Change::Upsert),
        2 => way().prop_map(Change::Delete),
        1 => proptest::option::of((1..4usize, build())).prop_map(Change::Rejected),
    ]
}

fn history() -> impl Strategy<Value = History> {
    (proptest::collection::vec((0..3usize, change()), 1..9), proptest::collection::vec((1..7usize, any::<bool>()), 8))
        .prop_map(|(changes, cuts)| History { changes, cuts })
}

/// A record where it lies in its lane of `chunks`, and how it gets to the index.
struct Sent {
    record: EmbeddingBatch,
    way: Way,
}

impl History {
    /// What the chunker writes, in order.
    fn sent(&self, tenant: &str) -> Vec<Sent> {
        let mut written: Vec<(usize, Vec<Sent>)> = Vec::new();
        for (time, (number, change)) in self.changes.iter().enumerate() {
            let name = format!("d{number}");
            let ordinal = i64::try_from(time).unwrap() + 1;
            let bare = record(tenant, &name, ordinal, &[]);
            match change {
                Change::Upsert(builds) => {
                    for (build, (later, batches)) in builds.iter().enumerate() {
                        written.push((time + later, batches_of(&bare, build, batches)));
                    }
                }
                Change::Delete(way) => {
                    let deletion = EmbeddingBatch { deleted: true, ..bare };
                    written.push((time, vec![Sent { record: deletion, way: *way }]));
                }
                Change::Rejected(replayed) => {
                    let whole = EmbeddingBatch { total_chunks: 1, ..bare.clone() };
                    written.push((time, vec![Sent { record: whole, way: Way::Dead(None) }]));
                    if let Some((later, batches)) = replayed {
                        written.push((time + later, batches_of(&bare, 7, batches)));
                    }
                }
            }
        }
        written.sort_by_key(|(time, _)| *time);
        written.into_iter().flat_map(|(_, sent)| sent).collect()
    }
}

fn batches_of(bare: &EmbeddingBatch, build: usize, batches: &[(i32, Way)]) -> Vec<Sent> {
    let total_chunks = batches.iter().map(|(chunks, _)| chunks).sum();
    let bare = EmbeddingBatch { build: format!("build-{build}"), total_chunks, ..bare.clone() };
    if batches.is_empty() {
        return vec![Sent { record: bare, way: Way::Straight }];
    }
    let mut ordinals = 0..total_chunks;
    let of = i32::try_from(batches.len()).unwrap();
    let batch = |((chunks, way), batch): (&(i32, Way), i32)| {
        let texts = ordinals.by_ref().take(usize::try_from(*chunks).unwrap());
        let chunks = texts.map(|ordinal| chunk(ordinal, &text(&bare, ordinal), NEAR)).collect();
        Sent { record: EmbeddingBatch { batch, batches: of, chunks, ..bare.clone() }, way: *way }
    };
    batches.iter().zip(0..).map(batch).collect()
}

fn text(record: &EmbeddingBatch, ordinal: i32) -> String {
    format!("word {} {} {} {ordinal} of {}", record.document, record.revision, record.build, record.total_chunks)
}

/// What the index gets, in the order it gets it.
fn arriving(sent: &[Sent]) -> Vec<Delivery<EmbeddingBatch>> {
    let mut arriving: Vec<(usize, Delivery<EmbeddingBatch>)> = Vec::new();
    for (place, Sent { record, way }) in sent.iter().enumerate() {
        let offset = i64::try_from(place).unwrap();
        let straight = placed(&setup::at(record.clone(), offset), offset, offset);
        let failed = |record: &EmbeddingBatch| EmbeddingBatch {
            failure: Some("dead letter of embed".into()),
            chunks: Vec::new(),
            ..record.clone()
        };
        let bad = |record: &EmbeddingBatch| EmbeddingBatch { batches: record.batch, ..record.clone() };
        let with = |record| Delivery { record, ..straight.clone() };
        match *way {
            Way::Straight => arriving.push((place, straight)),
            Way::Twice(later) => arriving.extend([(place, straight.clone()), (place + later, straight)]),
            Way::LateBefore(later) => arriving.push((place + later, straight)),
            Way::LateHere(later) => arriving.push((place + later, again(&straight, offset))),
            Way::Dead(replayed) => {
                arriving.push((place, with(failed(record))));
                arriving.extend(replayed.map(|later| (place + later, straight.clone())));
            }
            Way::Bad(replayed) => {
                arriving.push((place, with(bad(record))));
                arriving.extend(replayed.map(|later| (place + later, again(&straight, offset))));
            }
        }
    }
    // What is late comes behind what was written at its time.
    arriving.sort_by_key(|(place, _)| *place);
    let mut arriving: Vec<_> = arriving.into_iter().map(|(_, delivery)| delivery).collect();
    for (offset, delivery) in (0..).zip(&mut arriving) {
        delivery.at.offset = offset;
    }
    arriving
}

/// A state of a document, in the order in which states may follow each other.
type State = (i64, DocumentState, BTreeSet<String>);

/// Document, revision, build.
type SetKey = (DocumentId, i64, String);

fn rank(state: DocumentState) -> u8 {
    u8::from(state != DocumentState::Failed)
}

/// What should be the end of it: of each document the texts that are found, and the revision and state said last.
fn expected(sent: &[Sent]) -> BTreeMap<DocumentId, (BTreeSet<String>, (i64, DocumentState))> {
    let mut complete: BTreeMap<(DocumentId, i64, usize), State> = BTreeMap::new();
    let mut failed: BTreeMap<DocumentId, i64> = BTreeMap::new();
    let mut sets: BTreeMap<SetKey, Vec<(usize, &Sent)>> = BTreeMap::new();
    for (place, sent) in sent.iter().enumerate() {
        let (name, ordinal) = (sent.record.document.clone(), sent.record.revision.ordinal());
        if matches!(sent.way, Way::Dead(_) | Way::Bad(_)) {
            let latest = failed.entry(name.clone()).or_insert(ordinal);
            *latest = ordinal.max(*latest);
        }
        sets.entry((name, ordinal, sent.record.build.clone())).or_default().push((place, sent));
    }
    for ((name, ordinal, _), batches) in sets {
        if batches.iter().all(|(_, sent)| !matches!(sent.way, Way::Dead(None) | Way::Bad(None))) {
            let state = if batches[0].1.record.deleted { DocumentState::Deleted } else { DocumentState::Indexed };
            let texts = batches.iter().flat_map(|(_, sent)| &sent.record.chunks).map(|chunk| chunk.text.clone());
            complete.insert((name, ordinal, batches[0].0), (ordinal, state, texts.collect()));
        }
    }
    let mut expected = BTreeMap::new();
    for ((name, ..), (ordinal, state, texts)) in complete {
        // The latest build of the latest revision comes last.
        expected.insert(name, (texts, (ordinal, state)));
    }
    for (name, ordinal) in failed {
        let end = expected.entry(name).or_insert((BTreeSet::new(), (ordinal, DocumentState::Failed)));
        if end.1.0 < ordinal {
            end.1 = (ordinal, DocumentState::Failed);
        }
    }
    expected
}

/// Checks an answer: of each document one revision, whole, and none before one that was found earlier.
async fn look(
    store: &VectorStore,
    tenant: &str,
    seen: &mut BTreeMap<DocumentId, i64>,
) -> BTreeMap<DocumentId, BTreeSet<String>> {
    let mut found: BTreeMap<DocumentId, BTreeSet<String>> = BTreeMap::new();
    for hit in search(store, tenant, "word", &BTreeMap::new()).await {
        found.entry(hit.document).or_default().insert(hit.text);
    }
    for (name, texts) in &found {
        let sets: BTreeSet<Vec<&str>> = texts.iter().map(|text| text.split(' ').take(4).collect()).collect();
        assert_eq!(sets.len(), 1, "a mix: {texts:?}");
        let first = texts.first().unwrap();
        assert!(first.ends_with(&format!(" of {}", texts.len())), "a part: {texts:?}");
        let ordinal: i64 = first.split(' ').nth(2).unwrap().rsplit('.').next().unwrap().parse().unwrap();
        let before = seen.insert(name.clone(), ordinal);
        assert!(before <= Some(ordinal), "{name} went back from {before:?} to {ordinal}");
    }
    found
}

/// Plays a history on a tenant of its own, and holds it against the model.
async fn play(store: &VectorStore, tenant: &str, history: &History) {
    let sent = history.sent(tenant);
    let arriving = arriving(&sent);
    let mut index = stage(store);
    let (mut rest, mut cuts) = (arriving.as_slice(), history.cuts.iter());
    let mut said = Vec::new();
    let mut seen = BTreeMap::new();
    while !rest.is_empty() {
        let (size, dies) = cuts.next().copied().unwrap_or((5, false));
        let (batch, behind) = rest.split_at(size.min(rest.len()));
        let outcomes = outcomes(&mut index, batch).await;
        look(store, tenant, &mut seen).await;
        if !dies {
            said.extend(outcomes.iter().map(Outcome::outputs).flat_map(statuses));
            rest = behind;
        }
    }
    let expected = expected(&sent);
    let found = look(store, tenant, &mut seen).await;
    for (name, (texts, state)) in &expected {
        assert_eq!(found.get(name).cloned().unwrap_or_default(), *texts, "{name} is {state:?}");
    }
    check_statuses(&said, &sent, &expected);
}

fn check_statuses(
    said: &[weir_contracts::DocumentStatus],
    sent: &[Sent],
    expected: &BTreeMap<DocumentId, (BTreeSet<String>, (i64, DocumentState))>,
) {
    let mut last: BTreeMap<DocumentId, (i64, DocumentState)> = BTreeMap::new();
    let mut times: BTreeMap<(DocumentId, i64, u8), usize> = BTreeMap::new();
    for status in said {
        let (name, ordinal, state) = (status.document.clone(), status.revision.ordinal(), status.state);
        let before = last.insert(name.clone(), (ordinal, state));
        let forward = before.is_none_or(|(before, was)| (before, rank(was)) <= (ordinal, rank(state)));
        assert!(forward, "{name} went back from {before:?} to {state:?} {ordinal}");
        *times.entry((name, ordinal, rank(state))).or_default() += 1;
    }
    for ((name, ordinal, rank), times) in times {
        let of_revision =
            || sent.iter().filter(|sent| sent.record.document == name && sent.record.revision == revision(ordinal));
        let builds: BTreeSet<_> = of_revision().map(|sent| &sent.record.build).collect();
        let twice = of_revision().filter(|sent| matches!(sent.way, Way::Twice(_))).count();
        let most = if rank == 0 { 1 } else { builds.len() + twice };
        assert!(times <= most, "revision {ordinal} of {name} was said {times} times");
    }
    let expected: BTreeMap<_, _> = expected.iter().map(|(name, (_, state))| (name.clone(), *state)).collect();
    assert_eq!(last, expected);
}

fn try_on(config: &QdrantConfig) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let case = AtomicUsize::new(0);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: CASES,
        max_shrink_iters: 300,
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    });
    let tried = runner.run(&history(), |history| {
        let tenant = format!("case-{}", case.fetch_add(1, Ordering::SeqCst));
        runtime.block_on(async { play(&VectorStore::connect(config).unwrap(), &tenant, &history).await });
        Ok(())
    });
    tried.unwrap();
}

#[test]
fn whatever_the_order_the_latest_complete_revision_is_found_and_states_never_go_back() {
    let server = Server::start();
    try_on(&server.config());
    let Ok(url) = std::env::var("WEIR_TEST_QDRANT_URL") else { return };
    let key = std::env::var("WEIR_TEST_QDRANT_API_KEY").ok();
    let collection = format!("weir-orders-{}", std::process::id());
    let config = QdrantConfig {
        url: url.clone(),
        api_key: key.clone().map(Into::into),
        collection: collection.clone(),
        delete_grace_ms: 0,
        ..QdrantConfig::default()
    };
    let tried = std::panic::catch_unwind(|| try_on(&config));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Qdrant::from_url(&url).api_key(key).skip_compatibility_check().build().unwrap();
        let _ = client.delete_collection(&collection).await;
    });
    tried.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// The model can be wrong: what it expects of a history that a person can follow.
#[test]
fn the_model_expects_what_a_person_would() {
    let whole = |way| vec![(1, Way::Straight), (1, way)];
    let history = History {
        changes: vec![
            (0, Change::Upsert(vec![(0, whole(Way::Straight))])),
            (0, Change::Upsert(vec![(0, whole(Way::Dead(None)))])),
            (1, Change::Upsert(vec![(0, whole(Way::Straight)), (0, whole(Way::LateHere(3)))])),
            (2, Change::Upsert(vec![(0, Vec::new())])),
            (2, Change::Delete(Way::Straight)),
        ],
        cuts: Vec::new(),
    };
    let expected = expected(&history.sent("acme"));
    let (texts, state) = &expected[&document("d0")];
    assert_eq!((texts.len(), *state), (2, (2, DocumentState::Failed)), "the first revision is found");
    assert!(texts.first().unwrap().contains("build-0"));
    let (texts, state) = &expected[&document("d1")];
    assert_eq!(*state, (3, DocumentState::Indexed));
    assert!(texts.iter().all(|text| text.contains("build-1")), "{texts:?}");
    assert_eq!(expected[&document("d2")], (BTreeSet::new(), (5, DocumentState::Deleted)));
}
