//! Which records of a batch belong together, and which came too late. No IO.

use std::collections::HashMap;

use weir_contracts::{DocumentId, DocumentState, EmbeddingBatch, Revision, TenantId, header};
use weir_runner::{Mechanism, is_switched_off};
use weir_stage::Delivery;
use weir_vectors::Head;

/// A document.
pub type DocumentKey<'a> = (&'a TenantId, &'a DocumentId);

/// A document of a record.
pub fn document_of(record: &EmbeddingBatch) -> DocumentKey<'_> {
    (&record.tenant, &record.document)
}

/// The records of one build of one revision of a document that are at hand.
#[derive(Debug)]
pub struct Set<'a> {
    /// Any of its records: all say the same of the set.
    pub record: &'a EmbeddingBatch,
    /// Place of the last of its records at hand; see [`Head::position`].
    pub position: i64,
    /// Which of the deliveries are its records.
    pub deliveries: Vec<usize>,
}

impl Set<'_> {
    /// The state its document reaches when the set is complete.
    pub fn state(&self) -> DocumentState {
        if self.record.deleted { DocumentState::Deleted } else { DocumentState::Indexed }
    }

    /// Whether every record of the set is at hand: then nobody needs to be asked whether it is complete.
    pub fn is_whole(&self, deliveries: &[Delivery<EmbeddingBatch>]) -> bool {
        let mut batches: Vec<_> =
            self.deliveries.iter().filter_map(|index| deliveries.get(*index)).map(|d| d.record.batch).collect();
        batches.sort_unstable();
        batches.dedup();
        i32::try_from(batches.len()) == Ok(self.record.batches)
    }

    /// The head that shows the set.
    pub fn head(&self, at: i64) -> Head {
        Head {
            tenant: self.record.tenant.clone(),
            document: self.record.document.clone(),
            revision: self.record.revision,
            build: self.record.build.clone(),
            position: self.position,
            deleted: self.record.deleted,
            chunks: self.record.total_chunks,
            requested_at: self.record.requested_at,
            at,
        }
    }

    /// Whether a head is that of this set.
    pub fn is_shown_by(&self, head: Option<&Head>) -> bool {
        head.is_some_and(|head| {
            head.revision == self.record.revision
                && head.deleted == self.record.deleted
                && head.build == self.record.build
        })
    }

    /// Whether a head is beyond this set.
    pub fn is_superseded_by(&self, head: Option<&Head>) -> bool {
        !is_switched_off(Mechanism::RevisionFencing)
            && head.is_some_and(|head| head.is_beyond(self.record.revision, &self.record.build, self.position))
    }

    /// The delivery that says that the set is shown, if it is at hand. It is the record that completed the set, which the
    /// head names by its place. When nothing showed the set before, it has not been said yet, so the last one at hand
    /// says it, even if another instance, frozen until now, moved the head meanwhile.
    pub fn speaker(&self, head: &Head, was_shown: bool, deliveries: &[Delivery<EmbeddingBatch>]) -> Option<usize> {
        let named = |index: &&usize| deliveries.get(**index).is_some_and(|found| position(found) == head.position);
        let completed = self.deliveries.iter().rev().find(named);
        completed.or_else(|| self.deliveries.last().filter(|_| !was_shown)).copied()
    }

    /// What orders the sets of a document.
    fn rank(&self) -> (Revision, i64) {
        (self.record.revision, self.position)
    }
}

/// Place of a record among those of its lane, which orders the builds of a revision: that of the batch of chunks it was
/// made of. Records that do not say it have the offset where they lay first, also when they come back from elsewhere.
pub fn position(delivery: &Delivery<EmbeddingBatch>) -> i64 {
    let chunks = delivery.headers.text(header::POSITION).and_then(|offset| offset.parse().ok());
    chunks.unwrap_or_else(|| delivery.first_offset())
}

/// Groups the accepted deliveries by set, in order of their first record.
pub fn group<'a>(deliveries: &'a [Delivery<EmbeddingBatch>], accepted: &[bool]) -> Vec<Set<'a>> {
    let mut sets: Vec<Set<'a>> = Vec::new();
    let mut by_key = HashMap::<(DocumentKey<'a>, Revision, &'a str), usize>::new();
    for (index, delivery) in deliveries.iter().enumerate() {
        if !accepted.get(index).copied().unwrap_or_default() {
            continue;
        }
        let record = delivery.record();
        let key = (document_of(record), record.revision, record.build.as_str());
        let at = *by_key.entry(key).or_insert_with(|| {
            sets.push(Set { record, position: i64::MIN, deliveries: Vec::new() });
            sets.len().saturating_sub(1)
        });
        if let Some(set) = sets.get_mut(at) {
            set.position = position(delivery);
            set.deliveries.push(index);
        }
    }
    sets
}

/// For each document, the last of these sets.
pub fn last_of_each<'a, 's>(sets: impl Iterator<Item = &'s Set<'a>>) -> HashMap<DocumentKey<'a>, &'s Set<'a>>
where
    'a: 's,
{
    let mut last = HashMap::<DocumentKey<'a>, &'s Set<'a>>::new();
    for set in sets {
        let entry = last.entry(document_of(set.record)).or_insert(set);
        if entry.rank() < set.rank() {
            *entry = set;
        }
    }
    last
}

/// What is wrong with a record, in words for a person.
pub fn fault(record: &EmbeddingBatch) -> Option<String> {
    if record.batches < 1 || !(0..record.batches).contains(&record.batch) {
        return Some(format!("batch {} of {} does not exist", record.batch, record.batches));
    }
    if record.dimension < 1 {
        return Some(format!("vectors of {} numbers", record.dimension));
    }
    if record.failure.is_some() {
        return (!record.chunks.is_empty()).then(|| "a failure with chunks".to_owned());
    }
    if record.deleted && (record.total_chunks != 0 || !record.chunks.is_empty() || record.batches != 1) {
        return Some("a deletion with chunks".to_owned());
    }
    if let Some(chunk) = record.chunks.iter().find(|chunk| !(0..record.total_chunks).contains(&chunk.ordinal)) {
        return Some(format!("chunk {} of {} does not exist", chunk.ordinal, record.total_chunks));
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use weir_contracts::{Lane, RequestId};
    use weir_stage::{Coordinates, Headers};

    use super::*;

    fn delivery(revision: i64, batch: i32, batches: i32, offset: i64) -> Delivery<EmbeddingBatch> {
        let record = EmbeddingBatch {
            tenant: TenantId::parse("acme").unwrap(),
            document: DocumentId::parse("d").unwrap(),
            revision: Revision::from_ordinal(revision),
            request_id: RequestId::parse("r").unwrap(),
            deleted: false,
            build: "b".into(),
            batch,
            batches,
            total_chunks: batches,
            title: None,
            metadata: std::collections::BTreeMap::new(),
            requested_at: 0,
            model: "m".into(),
            dimension: 3,
            failure: None,
            chunks: Vec::new(),
        };
        let at = Coordinates { topic: "weir.embeddings".into(), lane: Lane(0), offset };
        Delivery { record, at, key: None, headers: Headers::default(), timestamp: 0 }
    }

    fn group_all(deliveries: &[Delivery<EmbeddingBatch>]) -> Vec<Set<'_>> {
        group(deliveries, &vec![true; deliveries.len()])
    }

    fn shown(set: &Set<'_>, position: i64) -> Head {
        Head { position, ..set.head(0) }
    }

    #[test]
    fn the_record_that_completed_a_set_says_so_and_no_other_when_they_come_again() {
        let deliveries = [delivery(1, 0, 3, 10), delivery(1, 1, 3, 11), delivery(1, 2, 3, 12)];
        let sets = group_all(&deliveries);
        let head = shown(&sets[0], sets[0].position);
        assert_eq!((sets.len(), head.position, sets[0].is_whole(&deliveries)), (1, 12, true));
        assert_eq!(sets[0].speaker(&head, false, &deliveries), Some(2));
        assert_eq!(sets[0].speaker(&head, true, &deliveries), Some(2));
        let sets = group_all(&deliveries[..2]);
        assert!(!sets[0].is_whole(&deliveries[..2]));
        assert_eq!(sets[0].speaker(&head, true, &deliveries[..2]), None);
        assert_eq!(
            sets[0].speaker(&head, false, &deliveries[..2]),
            Some(1),
            "someone else moved it: nobody said it yet"
        );
    }

    #[test]
    fn a_record_that_comes_back_late_keeps_its_place() {
        let mut late = delivery(1, 0, 3, 99);
        late.at.topic = "weir.index.again".into();
        late.headers.set(header::DLQ_OFFSET, "10");
        assert_eq!(position(&late), 10);
        late.headers.set(header::POSITION, "7");
        assert_eq!(position(&late), 7, "where its chunks lie");
    }

    #[test]
    fn the_last_revision_of_a_document_wins() {
        let deliveries = [delivery(2, 0, 1, 5), delivery(1, 0, 1, 6)];
        let sets = group_all(&deliveries);
        let last = last_of_each(sets.iter());
        assert_eq!(last.len(), 1);
        assert_eq!(last.values().next().unwrap().record.revision, Revision::from_ordinal(2));
    }

    #[test]
    fn records_that_contradict_themselves_are_found() {
        assert!(fault(&delivery(1, 0, 1, 0).record).is_none());
        assert!(fault(&delivery(1, 1, 1, 0).record).is_some());
        assert!(fault(&delivery(1, 0, 0, 0).record).is_some());
        let mut deletion = delivery(1, 0, 1, 0).record;
        deletion.deleted = true;
        assert!(fault(&deletion).is_some());
        deletion.total_chunks = 0;
        assert!(fault(&deletion).is_none());
        let failed = EmbeddingBatch { failure: Some("no".into()), total_chunks: 1, ..deletion };
        assert!(fault(&failed).is_none());
    }
}
