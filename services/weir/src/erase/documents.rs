//! Which documents are to be erased, and where each stands.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use weir_contracts::{Document, DocumentId, DocumentState, DocumentStatus, Revision, TenantId, Topic};
use weir_runner::{Registry, Start};

use crate::context::Context;
use crate::tail;

/// Where a document stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is stored, or on its way.
    Stored,
    /// A deletion is on its way.
    Deleting,
    /// It can't be found any more.
    Deleted {
        /// Since when, milliseconds since the Unix epoch.
        at: i64,
    },
}

/// The documents that are meant.
#[derive(Debug, Default)]
pub struct Documents {
    /// Where each stands.
    pub standings: BTreeMap<DocumentId, Standing>,
    /// Records in `documents` that still have the text of one of them.
    pub texts: usize,
}

/// The latest record of a document.
#[derive(Debug, Clone, Copy)]
struct Latest {
    revision: Revision,
    deleted: bool,
}

impl Documents {
    /// A document of the tenant, or all it has: those that `document-status` and `documents` know, and the one that is
    /// named, known or not.
    ///
    /// # Errors
    /// When Kafka can't be read.
    pub async fn find(
        context: &Context,
        registry: &Registry,
        tenant: &TenantId,
        named: Option<&DocumentId>,
    ) -> color_eyre::Result<Self> {
        let meant = |of: &TenantId, document: &DocumentId| of == tenant && named.is_none_or(|named| named == document);
        let mut states: BTreeMap<DocumentId, DocumentStatus> = BTreeMap::new();
        let mut reader =
            tail::open::<DocumentStatus>(context, registry, Topic::DOCUMENT_STATUS, Start::Beginning).await?;
        while let Some(delivery) = reader.next_before_end().await? {
            let status = delivery.record;
            if meant(&status.tenant, &status.document) {
                match states.entry(status.document.clone()) {
                    Entry::Vacant(entry) => _ = entry.insert(status),
                    Entry::Occupied(mut entry) if entry.get().revision <= status.revision => _ = entry.insert(status),
                    Entry::Occupied(_) => {}
                }
            }
        }
        let mut latest: BTreeMap<DocumentId, Latest> = BTreeMap::new();
        let mut texts = 0;
        let mut reader = tail::open::<Document>(context, registry, Topic::DOCUMENTS, Start::Beginning).await?;
        while let Some(delivery) = reader.next_before_end().await? {
            let Document { tenant, document, revision, deleted, .. } = delivery.record;
            if meant(&tenant, &document) {
                texts += usize::from(!deleted);
                let found = Latest { revision, deleted };
                let known = latest.entry(document).or_insert(found);
                if known.revision <= revision {
                    *known = found;
                }
            }
        }
        let mut standings: BTreeMap<DocumentId, Standing> = states
            .keys()
            .chain(latest.keys())
            .map(|document| (document.clone(), standing(states.get(document), latest.get(document))))
            .collect();
        if let Some(named) = named {
            standings.entry(named.clone()).or_insert(Standing::Stored);
        }
        Ok(Self { standings, texts })
    }

    /// Those that nobody has asked to delete yet.
    pub fn stored(&self) -> impl Iterator<Item = &DocumentId> {
        self.standings.iter().filter(|(_, standing)| **standing == Standing::Stored).map(|(document, _)| document)
    }

    /// Those that are not deleted yet.
    pub fn pending(&self) -> impl Iterator<Item = &DocumentId> {
        let deleted = |standing: &Standing| matches!(standing, Standing::Deleted { .. });
        self.standings.iter().filter(move |(_, standing)| !deleted(standing)).map(|(document, _)| document)
    }

    /// When the last of them was deleted, milliseconds since the Unix epoch; `now` while one is not.
    pub fn deleted_at(&self, now: i64) -> i64 {
        let at = |standing: &Standing| match standing {
            Standing::Deleted { at } => *at,
            Standing::Stored | Standing::Deleting => now,
        };
        self.standings.values().map(at).max().unwrap_or(now)
    }
}

fn standing(status: Option<&DocumentStatus>, latest: Option<&Latest>) -> Standing {
    let gone = status.filter(|status| status.state == DocumentState::Deleted);
    match (gone, latest) {
        (Some(gone), Some(latest)) if gone.revision >= latest.revision => Standing::Deleted { at: gone.at },
        (Some(gone), None) => Standing::Deleted { at: gone.at },
        (_, Some(latest)) if latest.deleted => Standing::Deleting,
        _ => Standing::Stored,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use weir_contracts::RequestId;

    fn status(state: DocumentState, revision: i64) -> DocumentStatus {
        DocumentStatus {
            tenant: TenantId::parse("acme").unwrap(),
            document: DocumentId::parse("a.md").unwrap(),
            revision: Revision::from_ordinal(revision),
            request_id: RequestId::parse("r").unwrap(),
            state,
            chunks: 0,
            reason: None,
            requested_at: 1,
            at: 9,
        }
    }

    fn latest(revision: i64, deleted: bool) -> Latest {
        Latest { revision: Revision::from_ordinal(revision), deleted }
    }

    #[test]
    fn a_document_is_deleted_once_the_index_says_so_of_its_latest_revision() {
        let deleted = status(DocumentState::Deleted, 5);
        let indexed = status(DocumentState::Indexed, 5);
        assert_eq!(standing(Some(&deleted), Some(&latest(5, true))), Standing::Deleted { at: 9 });
        assert_eq!(standing(Some(&deleted), None), Standing::Deleted { at: 9 });
        assert_eq!(standing(Some(&deleted), Some(&latest(6, false))), Standing::Stored, "it came back since");
        assert_eq!(standing(Some(&deleted), Some(&latest(7, true))), Standing::Deleting, "and is deleted again");
        assert_eq!(standing(Some(&indexed), Some(&latest(6, true))), Standing::Deleting);
        assert_eq!(standing(Some(&indexed), Some(&latest(5, false))), Standing::Stored);
        assert_eq!(standing(None, Some(&latest(5, true))), Standing::Deleting);
        assert_eq!(standing(None, None), Standing::Stored);
    }

    #[test]
    fn time_runs_from_the_last_deletion_and_not_before_all_are_deleted() {
        let document = |name: &str| DocumentId::parse(name).unwrap();
        let mut documents = Documents::default();
        assert_eq!(documents.deleted_at(50), 50);
        documents.standings.insert(document("a"), Standing::Deleted { at: 3 });
        documents.standings.insert(document("b"), Standing::Deleted { at: 7 });
        assert_eq!((documents.deleted_at(50), documents.pending().count()), (7, 0));
        documents.standings.insert(document("c"), Standing::Deleting);
        assert_eq!((documents.deleted_at(50), documents.pending().count(), documents.stored().count()), (50, 1, 0));
    }
}
