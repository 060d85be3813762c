//! The stage on a server, and what it says in short.

#![allow(dead_code, reason = "each test file uses a part of it")]

#[path = "../../../../shared/vectors/tests/server/mod.rs"]
pub mod server;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio_util::sync::CancellationToken;
use weir_contracts::{DocumentState, DocumentStatus, EmbeddingBatch, Lane, Record, Topic, header};
use weir_index::{Index, IndexConfig, Janitor};
use weir_stage::{Batch, Coordinates, Delivery, Headers, Outcome, Output, Stage};
use weir_vectors::{Hit, Mode, Search, VectorStore};

use server::{Server, document, tenant};

pub const NEAR: [f32; 3] = [1.0, 0.0, 0.0];

pub struct Setup {
    pub server: Server,
    pub store: VectorStore,
    pub index: Index,
}

/// A stage whose clock moves on by one with each look at it.
pub fn setup() -> Setup {
    let server = Server::start();
    let store = server.store();
    let index = stage(&store);
    Setup { server, store, index }
}

pub fn stage(store: &VectorStore) -> Index {
    let clock = Arc::new(AtomicI64::new(5_000));
    on_time(store).with_clock(move || clock.fetch_add(1, Ordering::SeqCst))
}

/// A stage with the real clock.
pub fn on_time(store: &VectorStore) -> Index {
    let config = IndexConfig { sweep_interval_s: 0, ..IndexConfig::default() };
    Index::new(store.clone(), Janitor::start(store.clone(), &config, CancellationToken::new()))
}

pub fn at(record: EmbeddingBatch, offset: i64) -> Delivery<EmbeddingBatch> {
    Delivery {
        record,
        at: Coordinates { topic: "weir.embeddings".into(), lane: Lane(0), offset },
        key: None,
        headers: Headers::default(),
        timestamp: 0,
    }
}

/// The same when it returns from the retries or the dead letters of the stage.
pub fn again(first: &Delivery<EmbeddingBatch>, offset: i64) -> Delivery<EmbeddingBatch> {
    let mut delivery = first.clone();
    delivery.at = Coordinates { topic: "weir.index.again".into(), lane: Lane(0), offset };
    delivery.headers.set(header::ATTEMPT, "1");
    delivery.headers.set(header::DLQ_OFFSET, first.at.offset.to_string());
    delivery
}

/// The same as a new record that says where its chunks lie, as it comes from the stage before.
pub fn placed(first: &Delivery<EmbeddingBatch>, offset: i64, position: i64) -> Delivery<EmbeddingBatch> {
    let mut delivery = at(first.record.clone(), offset);
    delivery.headers.set(header::POSITION, position.to_string());
    delivery
}

pub fn lined_up(records: impl IntoIterator<Item = EmbeddingBatch>, from: i64) -> Vec<Delivery<EmbeddingBatch>> {
    records.into_iter().zip(from..).map(|(record, offset)| at(record, offset)).collect()
}

/// What became of a record, in short.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    Nothing,
    Superseded,
    Indexed(i64, i32),
    Deleted(i64),
    Failed(i64, String),
    /// A dead letter, and the reason the status says, if it says one.
    Rejected(Option<String>),
}

pub fn statuses(outputs: &[Output]) -> Vec<DocumentStatus> {
    let status = |output: &Output| {
        let mut body = Vec::new();
        output.record.as_ref().unwrap().encode(&mut body).unwrap();
        let status = DocumentStatus::decode(None, &body).unwrap();
        assert_eq!(output.key.as_deref(), Some(format!("{}/{}", status.tenant, status.document).as_bytes()));
        status
    };
    let (statuses, notices): (Vec<&Output>, Vec<&Output>) =
        outputs.iter().partition(|output| output.topic == Topic::DOCUMENT_STATUS);
    let statuses: Vec<DocumentStatus> = statuses.into_iter().map(status).collect();
    // What failed is told to the extractor too, and nothing else is.
    let failed: Vec<String> = statuses
        .iter()
        .filter(|status| status.state == DocumentState::Failed)
        .map(|status| status.revision.ordinal().to_string())
        .collect();
    let told: Vec<_> = notices.iter().map(|notice| notice.headers.text(header::REVISION).unwrap().to_owned()).collect();
    assert_eq!(told, failed);
    assert!(notices.iter().all(|notice| notice.topic.name() == "extract.again"));
    statuses
}

fn said(outcome: &Outcome) -> Said {
    match (outcome, statuses(outcome.outputs()).as_slice()) {
        (Outcome::Skip { reason: "superseded", .. }, []) => Said::Superseded,
        (Outcome::Reject { .. }, []) => Said::Rejected(None),
        (Outcome::Reject { failure, .. }, [status]) => {
            let reason = status.reason.clone().unwrap();
            assert!(status.state == DocumentState::Failed && reason.ends_with(&failure.message), "{status:?}");
            Said::Rejected(Some(reason))
        }
        (Outcome::Emit(_), []) => Said::Nothing,
        (Outcome::Emit(_), [status]) => match status.state {
            DocumentState::Indexed => Said::Indexed(status.revision.ordinal(), status.chunks),
            DocumentState::Deleted => Said::Deleted(status.revision.ordinal()),
            DocumentState::Failed => Said::Failed(status.revision.ordinal(), status.reason.clone().unwrap()),
        },
        other => panic!("{other:?}"),
    }
}

/// The outcomes with the stage's last words, for which the runner asks when a record becomes a dead letter.
pub async fn outcomes(index: &mut Index, deliveries: &[Delivery<EmbeddingBatch>]) -> Vec<Outcome> {
    let mut outcomes = index.process(Batch::new(deliveries)).await.unwrap();
    for (outcome, delivery) in outcomes.iter_mut().zip(deliveries) {
        if let Outcome::Reject { failure, outputs } = outcome {
            outputs.extend(index.last_words(delivery, failure).await.unwrap());
        }
    }
    outcomes
}

pub async fn process(index: &mut Index, deliveries: &[Delivery<EmbeddingBatch>]) -> Vec<Said> {
    outcomes(index, deliveries).await.iter().map(said).collect()
}

pub async fn hits(store: &VectorStore, text: &str, filter: &BTreeMap<String, String>) -> Vec<Hit> {
    search(store, "acme", text, filter).await
}

pub async fn search(store: &VectorStore, name: &str, text: &str, filter: &BTreeMap<String, String>) -> Vec<Hit> {
    let tenant = tenant(name);
    let search = Search { tenant: &tenant, filter, dense: None, text: Some(text), limit: 200, mode: Mode::Sparse };
    store.search(&search).await.unwrap()
}

pub async fn found(store: &VectorStore, text: &str) -> Vec<String> {
    let mut texts: Vec<_> = hits(store, text, &BTreeMap::new()).await.into_iter().map(|hit| hit.text).collect();
    texts.sort();
    texts
}

/// The revision that the head of `acme`'s document `d` names, and whether it is deleted.
pub async fn shown(store: &VectorStore) -> (i64, bool) {
    let head = store.head(&tenant("acme"), &document("d")).await.unwrap().unwrap();
    (head.revision.ordinal(), head.deleted)
}
