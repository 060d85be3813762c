//! What Qdrant knows of the documents at hand: the state of this service lies where it is applied.

use std::collections::HashMap;

use weir_contracts::EmbeddingBatch;
use weir_vectors::{FailedRevision, Head, VectorError, VectorStore};

use crate::sets::{DocumentKey, document_of};

/// Heads of documents.
pub type Heads<'a> = HashMap<DocumentKey<'a>, Head>;

/// The latest failed revisions of documents.
pub type Failures<'a> = HashMap<DocumentKey<'a>, FailedRevision>;

/// A record that says of its revision, or is the reason, that it failed.
#[derive(Debug, Clone, Copy)]
pub struct Failing<'a> {
    /// The record.
    pub record: &'a EmbeddingBatch,
    /// Its place; see [`Head::position`].
    pub position: i64,
}

impl Failing<'_> {
    /// When its revision failed, if it is this record that says so. Once a head is there or beyond, it did not fail;
    /// and of several records the first says it, also when it comes again.
    pub fn failed_at(&self, head: Option<&Head>, failed: Option<&FailedRevision>, now: i64) -> Option<i64> {
        if head.is_some_and(|head| head.revision >= self.record.revision) {
            return None;
        }
        match failed {
            Some(failed) if (failed.revision, failed.position) == (self.record.revision, self.position) => {
                Some(failed.at)
            }
            Some(failed) if failed.revision >= self.record.revision => None,
            // There is no collection yet to note it in.
            _ => Some(now),
        }
    }
}

/// The heads of these documents.
pub async fn heads<'a>(store: &VectorStore, documents: &[DocumentKey<'a>]) -> Result<Heads<'a>, VectorError> {
    by_document(documents, store.heads(documents).await)
}

/// The latest failed revisions of these documents.
pub async fn failures<'a>(store: &VectorStore, documents: &[DocumentKey<'a>]) -> Result<Failures<'a>, VectorError> {
    by_document(documents, store.failures(documents).await)
}

/// Notes the latest revision of each document that fails and is not shown. Whether there was anything to note.
pub async fn note(
    store: &VectorStore,
    failing: &[Failing<'_>],
    heads: &Heads<'_>,
    now: i64,
) -> Result<bool, VectorError> {
    let mut latest = HashMap::<DocumentKey<'_>, Failing<'_>>::new();
    for failing in failing {
        let document = document_of(failing.record);
        if heads.get(&document).is_some_and(|head| head.revision >= failing.record.revision) {
            continue;
        }
        let known = latest.entry(document).or_insert(*failing);
        if known.record.revision < failing.record.revision {
            *known = *failing;
        }
    }
    let notes: Vec<_> = latest
        .values()
        .map(|failing| FailedRevision {
            tenant: failing.record.tenant.clone(),
            document: failing.record.document.clone(),
            revision: failing.record.revision,
            position: failing.position,
            at: now,
        })
        .collect();
    match store.note_failures(&notes).await {
        Ok(()) => Ok(!notes.is_empty()),
        Err(VectorError::NoCollection { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn by_document<'a, T>(
    documents: &[DocumentKey<'a>],
    found: Result<Vec<Option<T>>, VectorError>,
) -> Result<HashMap<DocumentKey<'a>, T>, VectorError> {
    match found {
        Ok(found) => {
            Ok(documents.iter().zip(found).filter_map(|(document, found)| Some((*document, found?))).collect())
        }
        // Before the first chunk there is none.
        Err(VectorError::NoCollection { .. }) => Ok(HashMap::new()),
        Err(error) => Err(error),
    }
}
