//! What the extractor remembers: duplicates, deletions, records that come late, keys that are used again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use weir_contracts::{
    Action, Document, DocumentId, DocumentRequest, Lane, OutcomeKind, Record, RequestId, RequestOutcome, Revision,
    TenantId, Topic, header,
};
use weir_ingest::pool::WorkerCommand;
use weir_ingest::{Config, Extract, Route, worker};
use weir_stage::{
    Batch, Coordinates, Delivery, Failure, Headers, MemoryState, Outcome, Output, Stage, StageError, failure_class,
};

const HOUR: i64 = 3_600_000;
/// When the first record was written.
const BEGIN: i64 = 1_800_000_000_000;

/// Text that is stored, and text that is refused because there is none.
const GOOD: &str = "The mill turns.";
const EMPTY: &str = " \n";

fn upsert(document: &str, content: &str) -> DocumentRequest {
    DocumentRequest {
        request_id: RequestId::parse("unset").unwrap(),
        tenant: TenantId::parse("acme").unwrap(),
        document: DocumentId::parse(document).unwrap(),
        action: Action::Upsert,
        content: Some(content.as_bytes().to_vec()),
        content_uri: None,
        content_type: Some("text/plain".into()),
        title: None,
        metadata: BTreeMap::new(),
        idempotency_key: None,
        created_at: 1_000,
    }
}

fn delete(document: &str) -> DocumentRequest {
    DocumentRequest { action: Action::Delete, content: None, content_type: None, ..upsert(document, "") }
}

fn keyed(key: &str, request: DocumentRequest) -> DocumentRequest {
    DocumentRequest { idempotency_key: Some(key.into()), ..request }
}

/// A request as it is delivered first. Its id says at which offset.
fn first(offset: i64, request: DocumentRequest) -> Delivery<DocumentRequest> {
    Delivery {
        record: DocumentRequest { request_id: RequestId::parse(format!("r{offset}")).unwrap(), ..request },
        at: Coordinates { topic: "weir.requests".into(), lane: Lane(3), offset },
        key: None,
        headers: Headers::default(),
        timestamp: BEGIN + offset,
    }
}

/// The same when it returns from retry or replay, with what the runner notes on its way.
fn late(offset: i64, request: DocumentRequest) -> Delivery<DocumentRequest> {
    let mut delivery = first(offset, request);
    delivery.headers.set(header::DLQ_TOPIC, "weir.requests");
    delivery.headers.set(header::DLQ_PARTITION, "3");
    delivery.headers.set(header::DLQ_OFFSET, offset.to_string());
    delivery.at = Coordinates { topic: "weir.extract.again".into(), lane: Lane(3), offset: 1_000_000 + offset };
    delivery
}

fn stage(config: &Config) -> Extract {
    Extract::with_workers(config, WorkerCommand::new(env!("CARGO_BIN_EXE_weir-ingest"), [worker::ARGUMENT]))
}

fn decoded<R: Record>(output: &Output) -> R {
    let mut bytes = Vec::new();
    output.record.as_ref().unwrap().encode(&mut bytes).unwrap();
    R::decode(None, &bytes).unwrap()
}

/// What the sender is told: the outcome and the revision it names.
type Told = (OutcomeKind, Option<i64>);

/// What became of a request, in short.
#[derive(Debug, Clone, PartialEq)]
struct Said {
    /// Nothing when the sender was told before.
    told: Option<Told>,
    reason: Option<String>,
    /// What goes downstream: revision and text, none for a deletion.
    document: Option<(i64, Option<String>)>,
    is_dead_letter: bool,
}

impl Said {
    fn of(outcome: &Outcome) -> Self {
        let (mut told, mut reason, mut document) = (None, None, None);
        for output in outcome.outputs() {
            match output.topic {
                Topic::DOCUMENTS => {
                    let found: Document = decoded(output);
                    assert!(document.is_none(), "two documents for one request");
                    document = Some((found.revision.ordinal(), (!found.deleted).then_some(found.text)));
                }
                Topic::REQUEST_OUTCOMES => {
                    let found: RequestOutcome = decoded(output);
                    assert!(told.is_none(), "two outcomes for one request");
                    told = Some((found.outcome, found.revision.map(Revision::ordinal)));
                    reason = found.reason;
                }
                other => panic!("{other} has nothing to do with it"),
            }
        }
        Self { told, reason, document, is_dead_letter: matches!(outcome, Outcome::Reject { .. }) }
    }

    fn kind(&self) -> OutcomeKind {
        self.told.expect("an outcome").0
    }
}

/// A lane: the stage and what it remembers.
struct LaneOf {
    stage: Extract,
    state: MemoryState,
}

impl LaneOf {
    fn new() -> Self {
        Self { stage: stage(&Config::default()), state: MemoryState::default() }
    }

    async fn try_all(&mut self, batch: &[Delivery<DocumentRequest>]) -> Result<Vec<Said>, StageError> {
        let outcomes = self.stage.process(Batch::with_state(batch, &self.state)).await?;
        let mut said = Vec::with_capacity(outcomes.len());
        for (mut outcome, delivery) in outcomes.into_iter().zip(batch) {
            // As the runner does with whatever becomes a dead letter.
            if let Outcome::Reject { failure, outputs } = &mut outcome {
                outputs.extend(self.stage.last_words(delivery, failure).await?);
            }
            said.push(Said::of(&outcome));
        }
        Ok(said)
    }

    async fn all(&mut self, batch: &[Delivery<DocumentRequest>]) -> Vec<Said> {
        self.try_all(batch).await.unwrap()
    }

    async fn one(&mut self, delivery: Delivery<DocumentRequest>) -> Said {
        self.all(&[delivery]).await.pop().unwrap()
    }
}

fn accepted(revision: i64) -> Option<Told> {
    Some((OutcomeKind::Accepted, Some(revision)))
}

fn duplicate_of(revision: i64) -> Option<Told> {
    Some((OutcomeKind::Duplicate, Some(revision)))
}

#[tokio::test]
async fn what_is_the_same_is_a_duplicate_and_every_change_a_higher_revision() {
    let mut lane = LaneOf::new();
    assert_eq!(lane.one(first(5, upsert("a", GOOD))).await.document, Some((5, Some(GOOD.into()))));
    let again = lane.one(first(6, upsert("a", GOOD))).await;
    assert_eq!((again.told, again.document, again.is_dead_letter), (duplicate_of(5), None, false));
    assert_eq!(lane.one(first(7, upsert("b", GOOD))).await.told, accepted(7), "another document");

    let mut other = upsert("a", GOOD);
    other.metadata.insert("kind".into(), "note".into());
    assert_eq!(lane.one(first(8, other.clone())).await.told, accepted(8), "other metadata");
    assert_eq!(lane.one(first(9, other)).await.told, duplicate_of(8));
    assert_eq!(lane.one(first(10, upsert("a", GOOD))).await.told, accepted(10), "back to what it was is a change");

    let foreign = DocumentRequest { tenant: TenantId::parse("other").unwrap(), ..upsert("a", GOOD) };
    assert_eq!(lane.one(first(11, foreign)).await.told, accepted(11), "another tenant's document of the same name");
}

#[tokio::test]
async fn a_duplicate_is_found_without_extracting_it_again() {
    let page = "<html><body><p>The mill turns.</p></body></html>";
    let html = |content: &str| DocumentRequest { content_type: None, ..upsert("a", content) };
    let mut lane = LaneOf::new();
    assert_eq!(lane.one(first(5, html(page))).await.told, accepted(5));
    lane.stage = Extract::with_workers(&Config::default(), WorkerCommand::new("/nonexistent", []));
    assert_eq!(lane.one(first(6, html(page))).await.told, duplicate_of(5));
    let changed = lane.try_all(&[first(7, html("<html><body><p>It stands.</p></body></html>"))]).await;
    assert!(matches!(changed, Err(StageError::Unavailable { .. })), "a change does need a worker: {changed:?}");
}

#[tokio::test]
async fn a_deleted_document_comes_back_by_newer_requests_only() {
    let mut lane = LaneOf::new();
    assert_eq!(lane.one(first(5, upsert("a", GOOD))).await.told, accepted(5));
    let gone = lane.one(first(7, delete("a"))).await;
    assert_eq!((gone.told, gone.document), (accepted(7), Some((7, None))));
    let again = lane.one(first(8, delete("a"))).await;
    assert_eq!((again.told, again.document), (duplicate_of(7), None));

    let returning = lane.one(late(6, upsert("a", "Older text."))).await;
    assert_eq!((returning.kind(), returning.document), (OutcomeKind::Superseded, None));
    let newer = lane.one(first(9, upsert("a", GOOD))).await;
    assert_eq!(newer.document, Some((9, Some(GOOD.into()))), "what was there before its deletion is not there now");
    assert_eq!(lane.one(first(10, delete("never seen"))).await.told, accepted(10));
}

#[tokio::test]
async fn an_older_request_that_returns_never_overwrites_a_newer_one() {
    let mut lane = LaneOf::new();
    assert_eq!(lane.one(first(5, upsert("a", GOOD))).await.told, accepted(5));
    // 6 is on its way through the retries. 7 says again what 5 said: that is the last word, not 6.
    assert_eq!(lane.one(first(7, upsert("a", GOOD))).await.told, duplicate_of(5));
    let returning = lane.one(late(6, upsert("a", "Older text."))).await;
    assert_eq!((returning.kind(), returning.document), (OutcomeKind::Superseded, None));
    assert!(returning.reason.unwrap().contains("0.7"), "which one was newer");
    // The newest one may take its time.
    assert_eq!(lane.one(late(8, upsert("a", "Newer text."))).await.told, accepted(8));
}

#[tokio::test]
async fn the_revision_is_that_of_the_first_delivery_and_nobody_can_choose_it() {
    let mut lane = LaneOf::new();
    let mut forged = first(5, upsert("a", GOOD));
    forged.headers.set(header::REVISION, "999999");
    forged.headers.set(header::DLQ_TOPIC, "weir.requests");
    forged.headers.set(header::DLQ_OFFSET, "999999");
    assert_eq!(lane.one(forged).await.told, accepted(5));
    let mut returning = late(6, upsert("a", "Text."));
    returning.headers.set(header::REVISION, "999999");
    assert_eq!(lane.one(returning).await.told, accepted(6), "what a producer wrote once does not help later either");

    let mut moved = first(7, upsert("b", GOOD));
    moved.at.topic = "weir.extract.again".into();
    moved.headers.set(header::REVISION, "4");
    assert_eq!(lane.one(moved.clone()).await.told, accepted(4), "without an origin, the header says it");
    moved.headers = Headers::default();
    let lost = lane.one(moved).await;
    assert!(lost.is_dead_letter && lost.kind() == OutcomeKind::Rejected);
}

#[tokio::test]
async fn a_dead_lettered_document_sent_again_is_not_a_duplicate_and_may_be_replayed() {
    let mut lane = LaneOf::new();
    assert_eq!(lane.one(first(5, upsert("a", GOOD))).await.told, accepted(5));
    let failed = lane.one(first(6, upsert("a", EMPTY))).await;
    assert!(failed.is_dead_letter && failed.document.is_none());
    assert_eq!(failed.told, Some((OutcomeKind::Rejected, None)));
    let again = lane.one(first(7, upsert("a", EMPTY))).await;
    assert!(again.is_dead_letter, "the same failure again, not a duplicate");
    assert_eq!(lane.one(late(6, upsert("a", "Repaired."))).await.kind(), OutcomeKind::Superseded);
    let replayed = lane.one(late(7, upsert("a", "Repaired."))).await;
    assert_eq!(replayed.document, Some((7, Some("Repaired.".into()))), "the last word, once it can be read");
    let twice = lane.one(late(7, upsert("a", "Repaired."))).await;
    assert_eq!((twice.told, twice.document, twice.is_dead_letter), (None, None, false), "it has its outcome");
    // A document whose last request failed is stored anew, also with what it had before.
    assert!(lane.one(first(8, upsert("a", EMPTY))).await.is_dead_letter);
    assert_eq!(lane.one(first(9, upsert("a", "Repaired."))).await.told, accepted(9));
}

/// What the indexer says of a revision that failed behind the extractor.
fn notice(offset: i64, revision: i64, request: DocumentRequest) -> Delivery<DocumentRequest> {
    let mut notice = first(offset, DocumentRequest { content: None, content_type: None, ..request });
    notice.at.topic = "weir.extract.again".into();
    notice.headers.set(header::REVISION, revision.to_string());
    notice.headers.set(header::FAILED, "true");
    notice
}

#[tokio::test]
async fn a_document_that_failed_in_a_later_stage_sent_again_is_not_a_duplicate() {
    let mut lane = LaneOf::new();
    assert_eq!(lane.one(first(5, upsert("a", GOOD))).await.told, accepted(5));
    assert_eq!(lane.one(first(6, upsert("a", GOOD))).await.told, duplicate_of(5));
    let heard = lane.one(notice(0, 5, upsert("a", GOOD))).await;
    assert_eq!((heard.told, heard.document, heard.is_dead_letter), (None, None, false), "it is no request");
    assert_eq!(lane.one(first(7, upsert("a", GOOD))).await.told, accepted(7));
    lane.one(notice(1, 5, upsert("a", GOOD))).await;
    assert_eq!(lane.one(first(8, upsert("a", GOOD))).await.told, duplicate_of(7), "what failed was replaced meanwhile");
    lane.one(notice(2, 7, upsert("a", GOOD))).await;
    assert_eq!(lane.one(late(6, upsert("a", "Older."))).await.kind(), OutcomeKind::Superseded, "the fence stays");
    let mut forged = first(9, upsert("a", GOOD));
    forged.headers.set(header::FAILED, "true");
    assert_eq!(lane.one(forged).await.told, accepted(9), "in a producer's request the header says nothing");
}

#[tokio::test]
async fn requests_for_one_document_are_decided_in_order_within_a_batch() {
    let mut lane = LaneOf::new();
    let batch = [
        first(5, upsert("a", GOOD)),
        first(6, upsert("b", GOOD)),
        first(7, upsert("a", GOOD)),
        first(8, delete("a")),
        first(9, delete("a")),
        late(4, upsert("a", "Older text.")),
        first(10, upsert("a", GOOD)),
        first(11, keyed("k", upsert("c", GOOD))),
        first(12, keyed("k", upsert("d", GOOD))),
    ];
    let kinds: Vec<_> = lane.all(&batch).await.iter().map(Said::kind).collect();
    use OutcomeKind::{Accepted, Conflict, Duplicate, Superseded};
    assert_eq!(kinds, [Accepted, Accepted, Duplicate, Accepted, Duplicate, Superseded, Accepted, Accepted, Conflict]);
}

#[tokio::test]
async fn a_repeat_with_the_same_key_returns_the_first_outcome() {
    let mut lane = LaneOf::new();
    assert_eq!(lane.one(first(5, keyed("k", upsert("a", GOOD)))).await.told, accepted(5));
    assert_eq!(lane.one(first(6, upsert("a", "Other text."))).await.told, accepted(6));
    let repeat = lane.one(first(7, keyed("k", upsert("a", GOOD)))).await;
    assert_eq!((repeat.told, repeat.document), (accepted(5), None), "it changes nothing, whatever came in between");
    assert_eq!(lane.one(first(8, upsert("a", GOOD))).await.told, accepted(8), "without a key it is a new request");

    let duplicate = lane.one(first(9, keyed("l", upsert("a", GOOD)))).await;
    assert_eq!(lane.one(first(10, keyed("l", upsert("a", GOOD)))).await, duplicate);
    assert_eq!(lane.one(first(11, keyed("m", delete("a")))).await.told, accepted(11));
    assert_eq!(lane.one(first(12, keyed("m", delete("a")))).await.told, accepted(11));
    let foreign = DocumentRequest { tenant: TenantId::parse("other").unwrap(), ..upsert("a", GOOD) };
    assert_eq!(lane.one(first(13, keyed("k", foreign))).await.told, accepted(13), "another tenant's key");
    for offset in [14, 15] {
        assert_eq!(
            lane.one(first(offset, keyed("", upsert("b", GOOD)))).await.kind(),
            match offset {
                14 => OutcomeKind::Accepted,
                _ => OutcomeKind::Duplicate,
            }
        );
    }
}

#[tokio::test]
async fn a_repeat_of_a_rejected_request_makes_no_second_dead_letter_but_its_replay_counts() {
    let mut lane = LaneOf::new();
    let failed = lane.one(first(5, keyed("k", upsert("a", EMPTY)))).await;
    assert!(failed.is_dead_letter);
    let repeat = lane.one(first(6, keyed("k", upsert("a", EMPTY)))).await;
    assert_eq!(repeat, Said { is_dead_letter: false, ..failed });
    // Replayed after it was repaired: the same request, whatever it contains now.
    assert_eq!(lane.one(late(5, keyed("k", upsert("a", "Repaired.")))).await.told, accepted(5));
    assert_eq!(lane.one(first(7, keyed("k", upsert("a", "Repaired.")))).await.told, accepted(5));
}

#[tokio::test]
async fn a_key_that_was_used_for_something_else_is_a_conflict() {
    let mut lane = LaneOf::new();
    assert_eq!(lane.one(first(5, keyed("k", upsert("a", GOOD)))).await.told, accepted(5));
    let mut metadata = upsert("a", GOOD);
    metadata.metadata.insert("kind".into(), "note".into());
    for (offset, other) in [(6, upsert("a", "Other.")), (7, metadata), (8, delete("a")), (9, upsert("b", GOOD))] {
        let said = lane.one(first(offset, keyed("k", other))).await;
        assert!(said.is_dead_letter && said.document.is_none(), "{said:?}");
        assert_eq!(said.told, Some((OutcomeKind::Conflict, None)));
        assert!(said.reason.unwrap().contains("0.5"), "it names the first use");
    }
    assert_eq!(lane.one(first(10, upsert("a", GOOD))).await.told, duplicate_of(5), "a conflict changes nothing");
}

#[tokio::test]
async fn a_key_is_free_again_after_its_window() {
    let mut config = Config::default();
    config.ingest.idempotency_window_hours = 2;
    let mut lane = LaneOf { stage: stage(&config), state: MemoryState::default() };
    let at = |offset, millis, content| {
        let mut delivery = first(offset, keyed("k", upsert("a", content)));
        delivery.timestamp = BEGIN + millis;
        delivery
    };
    assert_eq!(lane.one(at(5, 0, GOOD)).await.told, accepted(5));
    assert_eq!(lane.one(at(6, 2 * HOUR - 1, GOOD)).await.told, accepted(5));
    assert_eq!(lane.one(at(7, 2 * HOUR - 1, "Other.")).await.kind(), OutcomeKind::Conflict);
    assert_eq!(lane.one(at(8, 2 * HOUR, "Other.")).await.told, accepted(8), "a repeat does not prolong it");
    assert_eq!(lane.one(at(9, 4 * HOUR - 1, GOOD)).await.kind(), OutcomeKind::Conflict, "the window of the second");
}

#[tokio::test]
async fn nothing_is_remembered_of_a_request_that_is_tried_again_later() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = axum::Router::new().fallback(|| async { axum::http::StatusCode::BAD_GATEWAY });
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let mut config = Config::default();
    config.ingest.allow_urls = vec!["s3://bucket/".into()];
    config.ingest.s3 = [
        ("aws_endpoint", format!("http://{address}")),
        ("aws_allow_http", "true".into()),
        ("aws_region", "here".into()),
        ("aws_access_key_id", "id".into()),
        ("aws_secret_access_key", "secret".into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let mut lane = LaneOf { stage: stage(&config), state: MemoryState::default() };
    let claim = DocumentRequest { content: None, content_uri: Some("s3://bucket/a.txt".into()), ..upsert("a", "") };
    let claim = keyed("k", claim);
    assert_eq!(lane.one(first(5, upsert("a", GOOD))).await.told, accepted(5));
    let outcomes = lane.stage.process(Batch::with_state(&[first(6, claim.clone())], &lane.state)).await.unwrap();
    assert!(matches!(outcomes[..], [Outcome::RetryLater { .. }]), "{outcomes:?}");
    server.abort();
    // It neither moved the fence nor took the key, whether it comes back or became a dead letter.
    assert_eq!(lane.one(late(6, keyed("k", upsert("a", "Found at last.")))).await.told, accepted(6));
    assert_eq!(lane.one(first(7, claim)).await.kind(), OutcomeKind::Conflict, "now it has");
}

/// What the runner rejects itself (a panic, an output that is too large, a last try) the stage has not decided.
#[tokio::test]
async fn a_request_that_the_runner_rejects_is_told_so_and_its_replay_counts() {
    let mut lane = LaneOf::new();
    assert_eq!(lane.one(first(5, upsert("a", GOOD))).await.told, accepted(5));
    let panicking = first(6, keyed("k", upsert("a", "Other text.")));
    let failure = Failure::new(failure_class::PANIC, "the stage panicked: at noon");
    let words = lane.stage.last_words(&panicking, &failure).await.unwrap();
    let [told] = words.as_slice() else { panic!("{words:?}") };
    let told: RequestOutcome = decoded(told);
    assert_eq!((told.outcome, told.revision, told.request_id.as_str()), (OutcomeKind::Rejected, None, "r6"));
    assert_eq!(told.reason.as_deref(), Some("the stage panicked: at noon"));
    let replayed = lane.one(late(6, panicking.record)).await;
    assert_eq!(replayed.document, Some((6, Some("Other text.".into()))));

    let mut route = Route::new(12);
    let words = route.last_words(&first(7, upsert("a", GOOD)), &failure).await.unwrap();
    assert_eq!(words[0].lane, Some(Lane::of(b"acme/a", 12)), "before it is in its lane, too");
}

/// A step of a random history: a request, and how it travels.
#[derive(Debug, Clone)]
struct Step {
    request: DocumentRequest,
    /// Steps it spends in the retries before it is decided at all.
    detour: usize,
    /// Steps after which its dead letter, if it becomes one, is repaired and replayed.
    replay: Option<usize>,
}

fn step() -> impl Strategy<Value = Step> {
    (0..2usize, 0..4usize, 0..4usize, 0..8usize, 0..4usize).prop_map(|(document, content, key, detour, replay)| {
        let document = ["a", "b"][document];
        let request = match content {
            0 => upsert(document, GOOD),
            1 => upsert(document, "Other text."),
            2 => upsert(document, EMPTY),
            _ => delete(document),
        };
        let request = match key {
            2 => keyed("k", request),
            3 => keyed("l", request),
            _ => request,
        };
        Step { request, detour: detour.saturating_sub(4), replay: replay.checked_sub(1) }
    })
}

/// What a request wants its document to be; nothing is no document.
type Want = Option<Vec<u8>>;

/// What should happen, told from the history of all that was decided.
#[derive(Default)]
struct Model {
    /// Of each document: revision, outcome, what was wanted.
    decided: BTreeMap<String, BTreeMap<i64, (OutcomeKind, Want)>>,
    keys: BTreeMap<String, FirstUse>,
}

/// The first request with a key: its revision, the document and content it asked for, what it was told.
struct FirstUse {
    revision: i64,
    wanted: (String, Want),
    told: Told,
}

impl Model {
    fn expect(&mut self, revision: i64, request: &DocumentRequest) -> Option<Told> {
        let document = request.document.as_str().to_owned();
        let wanted = (document.clone(), request.content.clone());
        let key = request.idempotency_key.clone();
        match key.as_ref().and_then(|key| self.keys.get(key)) {
            Some(first) if first.revision == revision => {}
            Some(first) if first.wanted == wanted => return Some(first.told),
            Some(_) => return Some((OutcomeKind::Conflict, None)),
            None => {}
        }
        let history = self.decided.entry(document).or_default();
        let newest = history.last_key_value().map(|(revision, (kind, want))| (*revision, *kind, want.clone()));
        let since = history.iter().rev().find(|(_, (kind, _))| *kind == OutcomeKind::Accepted).map(|(at, _)| *at);
        let told = match newest {
            Some((newest, ..)) if newest > revision => (OutcomeKind::Superseded, None),
            Some((newest, kind, _)) if newest == revision && kind != OutcomeKind::Rejected => return None,
            Some((_, kind, want)) if kind != OutcomeKind::Rejected && want == wanted.1 => {
                (OutcomeKind::Duplicate, since)
            }
            _ if wanted.1.as_deref() == Some(EMPTY.as_bytes()) => (OutcomeKind::Rejected, None),
            _ => (OutcomeKind::Accepted, Some(revision)),
        };
        if told.0 != OutcomeKind::Superseded {
            history.insert(revision, (told.0, wanted.1.clone()));
        }
        if let Some(key) = key {
            self.keys.insert(key, FirstUse { revision, wanted, told });
        }
        Some(told)
    }
}

/// Plays a history one record after the other against the model. Deliveries as they came, and what was said of each.
async fn play(steps: &[Step]) -> Vec<(Delivery<DocumentRequest>, Said)> {
    let (mut lane, mut model) = (LaneOf::new(), Model::default());
    let mut due = BTreeMap::new();
    for (number, step) in steps.iter().enumerate() {
        let (offset, request) = (i64::try_from(number).unwrap(), step.request.clone());
        let delivery = if step.detour == 0 { first(offset, request) } else { late(offset, request) };
        due.insert((number + step.detour, number), (offset, delivery, step.replay));
    }
    let mut played = Vec::new();
    while let Some(((now, number), (offset, delivery, replay))) = due.pop_first() {
        let expected = model.expect(offset, delivery.record());
        let said = lane.one(delivery.clone()).await;
        assert_eq!(said.told, expected, "request {offset}, {}", delivery.at);
        if let Some(steps) = replay.filter(|_| said.is_dead_letter && said.kind() == OutcomeKind::Rejected) {
            let mut repaired = late(offset, delivery.record.clone());
            repaired.record.content = Some(b"Repaired.".to_vec());
            due.insert((now + 1 + steps, number), (offset, repaired, None));
        }
        played.push((delivery, said));
    }
    played
}

/// What holds of every history, whatever the model says.
fn check(steps: &[Step], played: &[(Delivery<DocumentRequest>, Said)]) {
    let mut outcomes: BTreeMap<&str, Vec<OutcomeKind>> = BTreeMap::new();
    let mut documents: BTreeMap<&str, (i64, Want)> = BTreeMap::new();
    let mut last_word: BTreeMap<&str, (i64, Want)> = BTreeMap::new();
    for (delivery, said) in played {
        let (request, document) = (delivery.record(), delivery.record().document.as_str());
        outcomes.entry(request.request_id.as_str()).or_default().extend(said.told.map(|told| told.0));
        if let Some((revision, text)) = &said.document {
            let before = documents.insert(document, (*revision, text.clone().map(String::into_bytes)));
            assert!(before.is_none_or(|(before, _)| before < *revision), "compaction would keep an older revision");
        }
        let own = said.document.is_some() || said.told.is_some_and(|told| told.0 == OutcomeKind::Duplicate);
        if own && request.idempotency_key.is_none() {
            let revision: i64 = request.request_id.as_str()[1..].parse().unwrap();
            let word = last_word.entry(document).or_insert((revision, request.content.clone()));
            if word.0 <= revision {
                *word = (revision, request.content.clone());
            }
        }
    }
    assert_eq!(outcomes.len(), steps.len(), "every request has an outcome");
    for (request, kinds) in outcomes {
        let (last, before) = kinds.split_last().expect("every request has an outcome");
        assert!(before.iter().all(|kind| *kind == OutcomeKind::Rejected), "{request}: {before:?} before {last:?}");
    }
    for (document, (revision, want)) in last_word {
        let (at, text) = &documents[document];
        assert!(*at > revision || *text == want, "{document} is not what request {revision} was told it is");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_order_each_request_ends_once_and_the_newest_wins(
        steps in proptest::collection::vec(step(), 1..40),
        sizes in proptest::collection::vec(1..9usize, 80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let played = play(&steps).await;
            check(&steps, &played);
            // The same records in batches of any size: the same is said of each.
            let (mut lane, mut rest) = (LaneOf::new(), played.as_slice());
            for size in sizes {
                let (batch, behind) = rest.split_at(size.min(rest.len()));
                rest = behind;
                let deliveries: Vec<_> = batch.iter().map(|(delivery, _)| delivery.clone()).collect();
                let expected: Vec<_> = batch.iter().map(|(_, said)| said.clone()).collect();
                assert_eq!(lane.all(&deliveries).await, expected);
            }
            assert!(rest.is_empty());
        });
    }
}
