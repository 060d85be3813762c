//! The stage.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use weir_contracts::{DocumentState, DocumentStatus, EmbeddingBatch, Topic, document_key};
use weir_stage::{Batch, Delivery, Failure, Outcome, Output, Stage, StageError, failure_class};
use weir_vectors::{Head, Placed, Stale, VectorError, VectorStore};

use crate::janitor::Janitor;
use crate::metric;
use crate::sets::{DocumentKey, Set, document_of, fault, group, last_of_each, position};

/// Why a record is skipped that came after a later one of its document.
const SUPERSEDED: &str = "superseded";

type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;
type Heads<'a> = HashMap<DocumentKey<'a>, Head>;

/// Writes the chunks of a batch of records, then moves the heads of the documents whose sets became complete, then
/// says so on `document-status`.
///
/// A *set* is all batches of one build of one revision. Everything written to Qdrant has an id that its content
/// decides, and heads only move forward, so doing it all again changes nothing. What needs thought is the status,
/// which must neither be lost nor said twice:
///
/// - The status of a set belongs to its **last** batch. The batches of a set lie in one lane, in order, so when the
///   last one is processed the others were: they are written, or rejected for good.
/// - A crash after Qdrant has everything and before Kafka has committed brings the records back. Then the head is
///   already there. The last batch finds it and says the status again (the first saying was never committed), with
///   the time the head keeps; earlier batches say nothing, as before, although by now all chunks are there.
/// - A record that took a detour (it was a dead letter, and replayed) may be the one that completes its set after the
///   last batch found it incomplete. So such a record says the status too.
/// - When the last batch finds the set incomplete, a batch before it was rejected: the status is `failed`, and the
///   previous revision stays visible. A replay of what is missing turns it into `indexed`.
/// - A set that a head is beyond is skipped as `superseded`, and so are all but the last of several complete sets of
///   one document in one batch. Delivered again, the head says the same.
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
        Self { store, janitor, clock: Arc::new(now) }
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
        let accepted: Vec<_> = faults.iter().map(Option::is_none).collect();
        let sets = group(deliveries, &accepted);
        let results = self.settle(&sets, deliveries).await.map_err(stage_error)?;

        let mut outcomes: Vec<_> =
            faults.into_iter().zip(deliveries).map(|(fault, delivery)| self.first(fault, delivery)).collect();
        for (set, result) in sets.iter().zip(results) {
            self.conclude(set, &result, &mut outcomes);
        }
        Ok(outcomes)
    }
}

/// What became of a set.
enum Settled {
    /// Its head is there.
    Shown(Head),
    /// A later set of the document is there, or will be.
    Superseded,
    /// Not all of its chunks are there; so many are.
    Incomplete(u64),
    /// Nobody needed to know: its last batch is still to come.
    Open,
}

impl Index {
    async fn settle<'a>(
        &self,
        sets: &[Set<'a>],
        deliveries: &'a [Delivery<EmbeddingBatch>],
    ) -> Result<Vec<Settled>, VectorError> {
        for (dimension, model) in kinds(sets) {
            self.store.ensure_collection(dimension, model).await?;
        }
        let documents = documents(sets);
        let before = self.heads(&documents).await?;
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
        Ok(sets
            .iter()
            .map(|set| {
                let head = after.get(&document_of(set.record));
                match (head, counts.get(&key(set))) {
                    (Some(head), _) if set.is_shown_by(Some(head)) => Settled::Shown(head.clone()),
                    _ if is_late(set) || set.is_superseded_by(head) => Settled::Superseded,
                    (_, Some(count)) => Settled::Incomplete(*count),
                    (_, None) => Settled::Open,
                }
            })
            .collect())
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

    /// How many chunks are there of the sets that may be complete now. What is whole is not asked for.
    async fn count<'a>(
        &self,
        sets: &[&Set<'a>],
        deliveries: &[Delivery<EmbeddingBatch>],
    ) -> Result<HashMap<SetKey<'a>, u64>, VectorError> {
        let (whole, parts): (Vec<&Set<'a>>, Vec<&Set<'a>>) =
            sets.iter().copied().filter(|set| set.concluding.is_some()).partition(|set| set.is_whole(deliveries));
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
        let now = self.heads(&documents).await?;
        let mut stale = Vec::new();
        for (document, set) in &last {
            let (old, new) = (before.get(document), now.get(document));
            if !set.is_shown_by(new) && !set.is_superseded_by(new) {
                let call = "move a head, although nothing is ahead of it";
                return Err(VectorError::Unavailable { call, reason: "it did not move".to_owned() });
            }
            stale.extend(old.zip(new).and_then(|(old, new)| left_behind(old, new)));
            if set.is_shown_by(new) {
                observe(set, at);
            }
        }
        self.janitor.remove_later(stale);
        let mut after = before.clone();
        after.extend(now);
        Ok(after)
    }

    async fn heads<'a>(&self, documents: &[DocumentKey<'a>]) -> Result<Heads<'a>, VectorError> {
        let heads = self.store.heads(documents).await?;
        Ok(documents.iter().zip(heads).filter_map(|(document, head)| head.map(|head| (*document, head))).collect())
    }

    /// The outcome of a record before its set is looked at.
    fn first(&self, fault: Option<Failure>, delivery: &Delivery<EmbeddingBatch>) -> Outcome {
        match fault {
            None => Outcome::emit_all([]),
            Some(failure) => {
                let reason = failure.message.clone();
                Outcome::reject(failure).and(self.failed(delivery.record(), reason))
            }
        }
    }

    /// The outcomes of a set's records.
    fn conclude(&self, set: &Set<'_>, settled: &Settled, outcomes: &mut [Outcome]) {
        if let Settled::Superseded = settled {
            metrics::counter!(metric::DOCUMENTS, "state" => SUPERSEDED).increment(1);
            for index in &set.deliveries {
                if let Some(outcome) = outcomes.get_mut(*index) {
                    *outcome = Outcome::skip(SUPERSEDED);
                }
            }
            return;
        }
        let Some(outcome) = set.concluding.and_then(|index| outcomes.get_mut(index)) else { return };
        let output = match settled {
            Settled::Shown(head) => status(set.record, set.state(), head.chunks, None, head.at),
            Settled::Incomplete(count) => {
                let reason = format!(
                    "{count} of {} chunks arrived; the others are dead letters of an earlier stage or of this one",
                    set.record.total_chunks
                );
                self.failed(set.record, reason)
            }
            Settled::Superseded | Settled::Open => return,
        };
        *outcome = Outcome::emit(output);
    }

    fn failed(&self, record: &EmbeddingBatch, reason: String) -> Output {
        metrics::counter!(metric::DOCUMENTS, "state" => "failed").increment(1);
        status(record, DocumentState::Failed, 0, Some(reason), (self.clock)())
    }
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
fn kinds<'a>(sets: &[Set<'a>]) -> HashSet<(i32, &'a str)> {
    sets.iter().map(|set| (set.record.dimension, set.record.model.as_str())).collect()
}

fn documents<'a>(sets: &[Set<'a>]) -> Vec<DocumentKey<'a>> {
    let mut documents: Vec<_> = sets.iter().map(|set| document_of(set.record)).collect();
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

fn observe(set: &Set<'_>, at: i64) {
    let state = if set.record.deleted { "deleted" } else { "indexed" };
    metrics::counter!(metric::DOCUMENTS, "state" => state).increment(1);
    let waited = u32::try_from(at.saturating_sub(set.record.requested_at)).unwrap_or_default();
    metrics::histogram!(metric::SEARCHABLE_SECONDS).record(f64::from(waited) / 1_000.0);
}

fn stage_error(error: VectorError) -> StageError {
    if error.is_unavailable() { StageError::unavailable("qdrant", error) } else { StageError::Fatal(error.to_string()) }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
