//! The stage.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use weir_contracts::{
    Action, DocumentRequest, DocumentState, DocumentStatus, EmbeddingBatch, Topic, again_of, document_key, header,
    unix_millis,
};
use weir_stage::{Batch, Delivery, Failure, Outcome, Output, Stage, StageError, failure_class};
use weir_vectors::{FailedRevision, Head, Placed, Stale, VectorError, VectorStore};

use crate::janitor::Janitor;
use crate::known::{self, Failing, Failures, Heads};
use crate::metric;
use crate::sets::{DocumentKey, Set, document_of, fault, group, last_of_each, position};

/// Why a record is skipped that came after a later one of its document.
const SUPERSEDED: &str = "superseded";

/// The stage that remembers what documents are.
const EXTRACT: &str = "extract";

type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Writes the chunks of a batch of records, then moves the heads of the documents whose sets became complete, then
/// says so on `document-status`.
///
/// A *set* is all batches of one build of one revision, in whatever order they come. Everything written to Qdrant has an
/// id that its content decides, and heads only move forward, so doing it all again changes nothing. What needs thought
/// is the status, which must neither be lost nor said twice:
///
/// - The status of a set belongs to the record that **completed** it, whichever batch that was. A set that is incomplete
///   says nothing: what is missing is on its way, in the retries perhaps, or a dead letter that says so itself.
/// - A crash after Qdrant has everything and before Kafka has committed brings the records back. Then the head is
///   already there and names the record that completed the set. That one says the status again (the first saying was
///   never committed), with the time the head keeps; the others say nothing, although by now all chunks are there.
/// - A record with a `failure` stands for a batch, or a whole revision, that became a dead letter. The first of a
///   revision says `failed`, unless the revision is shown already; the previous one stays visible. A replay of what is
///   missing completes the set and turns `failed` into `indexed`.
/// - A set that a head is beyond is skipped as `superseded`, and so are all but the last of several complete sets of
///   one document in one batch. Delivered again, the head says the same.
/// - What is said of a document never goes back: the latest failed revision is noted in Qdrant beside the head, and a
///   revision before it that becomes complete late is shown, but not said.
///
/// Heads are read before anything is written, which keeps what is late from being written at all in the common case,
/// and read again after they were moved, since a conditional upsert does not say whether it did anything: a status is
/// said of what is there, not of what was asked for.
pub struct Index {
    store: VectorStore,
    janitor: Janitor,
    clock: Clock,
}

impl Index {
    /// The stage with this store.
    #[must_use]
    pub fn new(store: VectorStore, janitor: Janitor) -> Self {
        Self { store, janitor, clock: Arc::new(|| unix_millis(SystemTime::now())) }
    }

    /// The same with another clock, for tests: milliseconds since the Unix epoch.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }
}

impl Stage for Index {
    type Input = EmbeddingBatch;

    async fn process(&mut self, batch: Batch<'_, EmbeddingBatch>) -> Result<Vec<Outcome>, StageError> {
        let deliveries = batch.iter().as_slice();
        let faults: Vec<_> = deliveries.iter().map(|delivery| rejection(delivery.record())).collect();
        let brings_chunks = |(fault, delivery): (&Option<Failure>, &Delivery<EmbeddingBatch>)| {
            fault.is_none() && delivery.record().failure.is_none()
        };
        let accepted: Vec<_> = faults.iter().zip(deliveries).map(brings_chunks).collect();
        let sets = group(deliveries, &accepted);
        let failing: Vec<_> =
            deliveries.iter().zip(&accepted).filter(|(_, accepted)| !**accepted).map(|(found, _)| of(found)).collect();
        let settlement = self.settle(&sets, &failing, deliveries).await.map_err(stage_error)?;

        let first = |(fault, delivery): (Option<Failure>, &Delivery<EmbeddingBatch>)| match fault {
            // What is said of it, the runner asks for.
            Some(failure) => Outcome::reject(failure),
            None => Outcome::emit_all(
                delivery
                    .record()
                    .failure
                    .iter()
                    .flat_map(|reason| self.failed(of(delivery), reason, &settlement.after)),
            ),
        };
        let mut outcomes: Vec<_> = faults.into_iter().zip(deliveries).map(first).collect();
        for (set, settled) in sets.iter().zip(&settlement.settled) {
            conclude(set, settled, deliveries, settlement.after.failures.get(&document_of(set.record)), &mut outcomes);
        }
        Ok(outcomes)
    }

    async fn last_words(
        &mut self,
        delivery: &Delivery<EmbeddingBatch>,
        failure: &Failure,
    ) -> Result<Vec<Output>, StageError> {
        let (record, failing) = (delivery.record(), of(delivery));
        let known = self.known(&[document_of(record)], &[failing]).await.map_err(stage_error)?;
        let reason = record.failure.clone().unwrap_or_else(|| failure.told_by("index"));
        Ok(self.failed(failing, &reason, &known))
    }
}

/// What is known of the documents at hand.
struct Known<'a> {
    heads: Heads<'a>,
    failures: Failures<'a>,
}

/// What became of the sets, and what is known since then.
struct Settlement<'a> {
    settled: Vec<Settled>,
    after: Known<'a>,
}

/// What became of a set.
enum Settled {
    /// Its head is there, and was before.
    Shown { head: Head, before: bool },
    /// A later set of the document is there, or will be.
    Superseded,
    /// Not all of its chunks are there yet.
    Incomplete,
}

impl Index {
    /// What is known of these documents, when the revisions that fail have been noted.
    async fn known<'a>(
        &self,
        documents: &[DocumentKey<'a>],
        failing: &[Failing<'_>],
    ) -> Result<Known<'a>, VectorError> {
        let store = &self.store;
        let (heads, mut failures) =
            tokio::try_join!(known::heads(store, documents), known::failures(store, documents))?;
        if known::note(store, failing, &heads, (self.clock)()).await? {
            failures = known::failures(store, documents).await?;
        }
        Ok(Known { heads, failures })
    }

    async fn settle<'a>(
        &self,
        sets: &[Set<'a>],
        failing: &[Failing<'a>],
        deliveries: &'a [Delivery<EmbeddingBatch>],
    ) -> Result<Settlement<'a>, VectorError> {
        let records = || sets.iter().map(|set| set.record).chain(failing.iter().map(|failing| failing.record));
        // What is rejected here says nothing that holds.
        let sound = records().filter(|record| rejection(record).is_none());
        for (dimension, model) in kinds(sound) {
            self.store.ensure_collection(dimension, model).await?;
        }
        let Known { heads: before, failures } = self.known(&documents(records()), failing).await?;
        // Sets that are whole will be complete once they are written, so what is older need not be.
        let certain = last_of_each(sets.iter().filter(|set| set.is_whole(deliveries)));
        let is_late = |set: &Set<'a>| {
            set.is_superseded_by(before.get(&document_of(set.record)))
                || certain
                    .get(&document_of(set.record))
                    .is_some_and(|last| last.head(0).is_beyond(set.record.revision, &set.record.build, set.position))
        };
        let fresh: Vec<_> =
            sets.iter().filter(|set| !is_late(set) && !set.is_shown_by(before.get(&document_of(set.record)))).collect();
        self.write(&fresh, deliveries).await?;
        let counts = self.count(&fresh, deliveries).await?;
        let complete = fresh.iter().filter(|set| counts.get(&key(set)).is_some_and(|count| is_complete(set, *count)));
        let after = self.show(complete.copied(), &before).await?;
        let settled = sets.iter().map(|set| {
            let document = document_of(set.record);
            match after.get(&document) {
                Some(head) if set.is_shown_by(Some(head)) => {
                    Settled::Shown { head: head.clone(), before: set.is_shown_by(before.get(&document)) }
                }
                head if is_late(set) || set.is_superseded_by(head) => Settled::Superseded,
                _ => Settled::Incomplete,
            }
        });
        Ok(Settlement { settled: settled.collect(), after: Known { heads: after, failures } })
    }

    async fn write(&self, sets: &[&Set<'_>], deliveries: &[Delivery<EmbeddingBatch>]) -> Result<(), VectorError> {
        let records: Vec<_> = sets
            .iter()
            .flat_map(|set| &set.deliveries)
            .filter_map(|index| deliveries.get(*index))
            .map(|delivery| Placed { batch: delivery.record(), position: position(delivery) })
            .collect();
        self.store.write_chunks(&records).await?;
        let points: usize = records.iter().map(|placed| placed.batch.chunks.len()).sum();
        metrics::counter!(metric::POINTS).increment(u64::try_from(points).unwrap_or(u64::MAX));
        Ok(())
    }

    /// How many chunks are there of these sets. What is whole is not asked for.
    async fn count<'a>(
        &self,
        sets: &[&Set<'a>],
        deliveries: &[Delivery<EmbeddingBatch>],
    ) -> Result<HashMap<SetKey<'a>, u64>, VectorError> {
        let (whole, parts): (Vec<&Set<'a>>, Vec<&Set<'a>>) =
            sets.iter().copied().partition(|set| set.is_whole(deliveries));
        let records: Vec<_> = parts.iter().map(|set| set.record).collect();
        let counted = self.store.count_sets(&records).await?;
        let whole = whole.into_iter().map(|set| {
            let of_set = set.deliveries.iter().filter_map(|index| deliveries.get(*index));
            let ordinals: HashSet<_> = of_set.flat_map(|d| &d.record.chunks).map(|chunk| chunk.ordinal).collect();
            (key(set), u64::try_from(ordinals.len()).unwrap_or(u64::MAX))
        });
        Ok(parts.iter().map(|set| key(set)).zip(counted).chain(whole).collect())
    }

    /// Moves the heads to the last complete set of each document. The heads that are there then.
    async fn show<'s, 'a: 's>(
        &self,
        complete: impl Iterator<Item = &'s Set<'a>>,
        before: &Heads<'a>,
    ) -> Result<Heads<'a>, VectorError> {
        let last = last_of_each(complete);
        if last.is_empty() {
            return Ok(before.clone());
        }
        let at = (self.clock)();
        let heads: Vec<_> = last.values().map(|set| set.head(at)).collect();
        self.store.move_heads(&heads).await?;
        let documents: Vec<_> = last.keys().copied().collect();
        let now = known::heads(&self.store, &documents).await?;
        let mut stale = Vec::new();
        for (document, set) in &last {
            let (old, new) = (before.get(document), now.get(document));
            if !set.is_shown_by(new) && !set.is_superseded_by(new) {
                let call = "move a head, although nothing is ahead of it";
                return Err(VectorError::Unavailable { call, reason: "it did not move".to_owned() });
            }
            stale.extend(old.zip(new).and_then(|(old, new)| left_behind(old, new)));
            if set.is_shown_by(new) {
                observe(set, (self.clock)());
            }
        }
        self.janitor.remove_later(stale);
        let mut after = before.clone();
        after.extend(now);
        Ok(after)
    }

    /// That a revision failed, if it is this record that says so: for everybody, and for the extractor, which then takes
    /// the same content again.
    fn failed(&self, failing: Failing<'_>, reason: &str, known: &Known<'_>) -> Vec<Output> {
        let document = document_of(failing.record);
        let (head, failed) = (known.heads.get(&document), known.failures.get(&document));
        let Some(at) = failing.failed_at(head, failed, (self.clock)()) else { return Vec::new() };
        metrics::counter!(metric::DOCUMENTS, "state" => "failed").increment(1);
        let status = status(failing.record, DocumentState::Failed, 0, Some(reason.to_owned()), at);
        std::iter::once(status).chain(notice(failing.record)).collect()
    }
}

/// The outcomes of a set's records.
fn conclude(
    set: &Set<'_>,
    settled: &Settled,
    deliveries: &[Delivery<EmbeddingBatch>],
    failed: Option<&FailedRevision>,
    outcomes: &mut [Outcome],
) {
    match settled {
        Settled::Superseded => {
            metrics::counter!(metric::DOCUMENTS, "state" => SUPERSEDED).increment(1);
            for index in &set.deliveries {
                if let Some(outcome) = outcomes.get_mut(*index) {
                    *outcome = Outcome::skip(SUPERSEDED);
                }
            }
        }
        // The status of a later revision stays.
        Settled::Shown { .. } if failed.is_some_and(|failed| failed.revision > set.record.revision) => {}
        Settled::Shown { head, before } => {
            let outcome = set.speaker(head, *before, deliveries).and_then(|index| outcomes.get_mut(index));
            if let Some(outcome) = outcome {
                *outcome = Outcome::emit(status(set.record, set.state(), head.chunks, None, head.at));
            }
        }
        Settled::Incomplete => {}
    }
}

fn of(delivery: &Delivery<EmbeddingBatch>) -> Failing<'_> {
    Failing { record: delivery.record(), position: position(delivery) }
}

type SetKey<'a> = (DocumentKey<'a>, weir_contracts::Revision, &'a str);

fn key<'a>(set: &Set<'a>) -> SetKey<'a> {
    (document_of(set.record), set.record.revision, set.record.build.as_str())
}

fn is_complete(set: &Set<'_>, count: u64) -> bool {
    u64::try_from(set.record.total_chunks).is_ok_and(|total| count >= total)
}

/// What a head left behind when it moved, if it did.
fn left_behind(old: &Head, new: &Head) -> Option<Stale> {
    let moved = old.revision < new.revision || old.build != new.build;
    (moved && !old.deleted).then(|| Stale {
        tenant: new.tenant.clone(),
        document: new.document.clone(),
        below: new.revision,
        build: (old.revision == new.revision).then(|| old.build.clone()),
    })
}

/// The kinds of vectors at hand; one, unless the embedding model is being changed.
fn kinds<'a>(records: impl Iterator<Item = &'a EmbeddingBatch>) -> HashSet<(i32, &'a str)> {
    records.map(|record| (record.dimension, record.model.as_str())).collect()
}

fn documents<'a>(records: impl Iterator<Item = &'a EmbeddingBatch>) -> Vec<DocumentKey<'a>> {
    let mut documents: Vec<_> = records.map(document_of).collect();
    documents.sort_unstable();
    documents.dedup();
    documents
}

fn rejection(record: &EmbeddingBatch) -> Option<Failure> {
    let fault = fault(record).or_else(|| VectorStore::check(record).err().map(|error| error.to_string()));
    fault.map(|fault| Failure::new(failure_class::INVALID, fault))
}

fn status(record: &EmbeddingBatch, state: DocumentState, chunks: i32, reason: Option<String>, at: i64) -> Output {
    let status = DocumentStatus {
        tenant: record.tenant.clone(),
        document: record.document.clone(),
        revision: record.revision,
        request_id: record.request_id.clone(),
        state,
        chunks,
        reason,
        requested_at: record.requested_at,
        at,
    };
    Output::new(Topic::DOCUMENT_STATUS, document_key(&record.tenant, &record.document), status)
}

/// Tells the extractor that a revision failed.
fn notice(record: &EmbeddingBatch) -> Option<Output> {
    let request = DocumentRequest {
        request_id: record.request_id.clone(),
        tenant: record.tenant.clone(),
        document: record.document.clone(),
        action: if record.deleted { Action::Delete } else { Action::Upsert },
        content: None,
        content_uri: None,
        content_type: None,
        title: None,
        metadata: BTreeMap::new(),
        idempotency_key: None,
        created_at: record.requested_at,
    };
    let key = document_key(&record.tenant, &record.document);
    let notice = Output::new(again_of(EXTRACT)?, key, request)
        .with_header(header::TENANT, record.tenant.as_str())
        .with_header(header::REVISION, record.revision.ordinal().to_string())
        .with_header(header::FAILED, "true");
    Some(notice)
}

fn observe(set: &Set<'_>, at: i64) {
    let state = if set.record.deleted { "deleted" } else { "indexed" };
    metrics::counter!(metric::DOCUMENTS, "state" => state).increment(1);
    let waited = u32::try_from(at.saturating_sub(set.record.requested_at)).unwrap_or_default();
    metrics::histogram!(metric::SEARCHABLE_SECONDS).record(f64::from(waited) / 1_000.0);
}

fn stage_error(error: VectorError) -> StageError {
    if error.is_unavailable() { StageError::unavailable("qdrant", error) } else { StageError::Fatal(error.to_string()) }
}
