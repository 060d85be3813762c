//! The head of a document: which revision of it can be seen.

use std::collections::HashMap;

use qdrant_client::qdrant::{Condition, Filter, PointId, PointStruct, Value};
use uuid::Uuid;
use weir_contracts::{DocumentId, Revision, TenantId, length_prefixed_hash};

use crate::VectorError;
use crate::filter::{below, integer, keyword};
use crate::payload::{Reader, Writer, field, kind};

/// Which revision of a document can be seen, or that it was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Tenant of the document.
    pub tenant: TenantId,
    /// The document.
    pub document: DocumentId,
    /// The revision that can be seen; when deleted, the one that deleted it.
    pub revision: Revision,
    /// The build of that revision's chunks.
    pub build: String,
    /// Offset of the record that completed the set: orders builds of one revision.
    pub position: i64,
    /// Nothing of the document can be seen.
    pub deleted: bool,
    /// Chunks of the revision.
    pub chunks: i32,
    /// When the change was asked for, milliseconds since the Unix epoch.
    pub requested_at: i64,
    /// When the head moved here, milliseconds since the Unix epoch.
    pub at: i64,
}

/// Chunks a head left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale {
    /// Tenant of the document.
    pub tenant: TenantId,
    /// The document.
    pub document: DocumentId,
    /// Chunks of revisions below this one are stale.
    pub below: Revision,
    /// So are chunks of `below` itself with this build.
    pub build: Option<String>,
}

/// Id of a document's head.
pub(crate) fn head_id(tenant: &TenantId, document: &DocumentId) -> PointId {
    let name = length_prefixed_hash(&[b"head", tenant.as_str().as_bytes(), document.as_str().as_bytes()]);
    PointId::from(Uuid::new_v5(&Uuid::NAMESPACE_OID, &name).to_string())
}

impl Head {
    /// Whether a set of chunks can be seen.
    #[must_use]
    pub fn shows(&self, revision: Revision, build: &str) -> bool {
        !self.deleted && self.revision == revision && self.build == build
    }

    /// Whether a record for this revision, build and position came too late: the head is beyond it. What it is not beyond
    /// and does not show, it may become.
    #[must_use]
    pub fn is_beyond(&self, revision: Revision, build: &str, position: i64) -> bool {
        self.revision > revision || (self.revision == revision && self.build != build && self.position >= position)
    }

    pub(crate) fn to_point(&self) -> PointStruct {
        Writer::default()
            .text(field::KIND, kind::HEAD)
            .text(field::TENANT, self.tenant.as_str())
            .text(field::DOCUMENT, self.document.as_str())
            .int(field::REVISION, self.revision.ordinal())
            .text(field::BUILD, &self.build)
            .int(field::POSITION, self.position)
            .flag(field::DELETED, self.deleted)
            .int(field::CHUNKS, self.chunks)
            .int(field::REQUESTED_AT, self.requested_at)
            .int(field::AT, self.at)
            .point(head_id(&self.tenant, &self.document))
    }

    pub(crate) fn from_payload(id: Option<&PointId>, payload: HashMap<String, Value>) -> Result<Self, VectorError> {
        let mut fields = Reader::new(id, payload);
        let (tenant, document, revision) = fields.revision()?;
        Ok(Self {
            tenant,
            document,
            revision,
            build: fields.text(field::BUILD)?,
            position: fields.int(field::POSITION)?,
            deleted: fields.flag(field::DELETED)?,
            chunks: fields.small_int(field::CHUNKS)?,
            requested_at: fields.int(field::REQUESTED_AT)?,
            at: fields.int(field::AT)?,
        })
    }

    /// A head that is already there may become this one only from an earlier revision, or from an earlier record of
    /// the same revision (another build of its chunks).
    fn may_replace(&self) -> Condition {
        let same_revision_earlier =
            Filter::must([integer(field::REVISION, self.revision.ordinal()), below(field::POSITION, self.position)]);
        let earlier = Filter::should([below(field::REVISION, self.revision.ordinal()), same_revision_earlier.into()]);
        Filter::must([Condition::has_id([head_id(&self.tenant, &self.document)]), earlier.into()]).into()
    }
}

/// The condition under which the heads that are there may become these.
pub(crate) fn may_replace(heads: &[Head]) -> Filter {
    Filter::should(heads.iter().map(Head::may_replace))
}

impl Stale {
    pub(crate) fn filter(&self) -> Filter {
        let older = below(field::REVISION, self.below.ordinal());
        let other_build = self.build.as_deref().map(|build| {
            Filter::must([integer(field::REVISION, self.below.ordinal()), keyword(field::BUILD, build)]).into()
        });
        crate::filter::chunks_of(&self.tenant, &self.document, std::iter::once(older).chain(other_build))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn head() -> Head {
        Head {
            tenant: TenantId::parse("acme").unwrap(),
            document: DocumentId::parse("a/b").unwrap(),
            revision: Revision::from_ordinal(7),
            build: "b1".into(),
            position: 40,
            deleted: false,
            chunks: 3,
            requested_at: 5,
            at: 9,
        }
    }

    #[test]
    fn a_head_survives_its_point() {
        let point = head().to_point();
        assert_eq!(Head::from_payload(point.id.as_ref(), point.payload).unwrap(), head());
    }

    #[test]
    fn a_head_is_beyond_older_revisions_and_earlier_builds_only() {
        let at = |revision, build, position| head().is_beyond(Revision::from_ordinal(revision), build, position);
        assert!(at(6, "b1", 99));
        assert!(!at(8, "b1", 1));
        assert!(!at(7, "b1", 39), "a record delivered again is not superseded by itself");
        assert!(at(7, "b0", 39));
        assert!(at(7, "b0", 40), "of two builds in one place the one that is there stays: neither waits for the other");
        assert!(!at(7, "b2", 41));
    }

    #[test]
    fn a_deleted_head_shows_nothing() {
        assert!(head().shows(Revision::from_ordinal(7), "b1"));
        assert!(!Head { deleted: true, ..head() }.shows(Revision::from_ordinal(7), "b1"));
    }

    #[test]
    fn heads_of_different_documents_have_different_ids() {
        let id = |tenant, document| head_id(&TenantId::parse(tenant).unwrap(), &DocumentId::parse(document).unwrap());
        assert_ne!(id("a", "bc"), id("ab", "c"));
    }
}
