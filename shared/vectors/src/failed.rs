//! The latest revision of a document that failed, noted beside its head so that nobody has to remember it.

use std::collections::HashMap;

use qdrant_client::qdrant::{Condition, Filter, PointId, PointStruct, Value};
use uuid::Uuid;
use weir_contracts::{DocumentId, Revision, TenantId, length_prefixed_hash};

use crate::filter::below;
use crate::payload::{Reader, Writer, field, kind};
use crate::{VectorError, VectorStore};

/// Notes in one conditional upsert; each brings its own condition.
const NOTES_A_REQUEST: usize = 100;

/// A revision that failed: a part of it, or all, is a dead letter. It says nothing of what can be seen; that is the
/// head's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedRevision {
    /// Tenant of the document.
    pub tenant: TenantId,
    /// The document.
    pub document: DocumentId,
    /// The revision.
    pub revision: Revision,
    /// Offset of the record that said so first; see [`crate::Head::position`].
    pub position: i64,
    /// When it was noted, milliseconds since the Unix epoch.
    pub at: i64,
}

fn note_id(tenant: &TenantId, document: &DocumentId) -> PointId {
    let name = length_prefixed_hash(&[b"failed", tenant.as_str().as_bytes(), document.as_str().as_bytes()]);
    PointId::from(Uuid::new_v5(&Uuid::NAMESPACE_OID, &name).to_string())
}

impl FailedRevision {
    fn to_point(&self) -> PointStruct {
        Writer::default()
            .text(field::KIND, kind::FAILED)
            .text(field::TENANT, self.tenant.as_str())
            .text(field::DOCUMENT, self.document.as_str())
            .int(field::REVISION, self.revision.ordinal())
            .int(field::POSITION, self.position)
            .int(field::AT, self.at)
            .point(note_id(&self.tenant, &self.document))
    }

    fn from_payload(id: Option<&PointId>, payload: HashMap<String, Value>) -> Result<Self, VectorError> {
        let mut fields = Reader::new(id, payload);
        let (tenant, document, revision) = fields.revision()?;
        Ok(Self { tenant, document, revision, position: fields.int(field::POSITION)?, at: fields.int(field::AT)? })
    }

    /// A note that is already there gives way to one of a later revision only.
    fn may_replace(&self) -> Condition {
        let id = Condition::has_id([note_id(&self.tenant, &self.document)]);
        Filter::must([id, below(field::REVISION, self.revision.ordinal())]).into()
    }
}

impl VectorStore {
    /// Notes revisions that failed; at most one for each document. The first note of the latest revision stays: look at
    /// [`Self::failures`] to see which that is. Durable when it returns.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn note_failures(&self, failed: &[FailedRevision]) -> Result<(), VectorError> {
        for some in failed.chunks(NOTES_A_REQUEST) {
            let points = some.iter().map(FailedRevision::to_point).collect();
            let condition = Filter::should(some.iter().map(FailedRevision::may_replace));
            self.upsert_if("note failures", points, condition).await?;
        }
        Ok(())
    }

    /// The latest revisions that failed of these documents, in order; none for a document without any.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn failures(
        &self,
        documents: &[(&TenantId, &DocumentId)],
    ) -> Result<Vec<Option<FailedRevision>>, VectorError> {
        let ids: Vec<_> = documents.iter().map(|(tenant, document)| note_id(tenant, document)).collect();
        self.read_points("read failures", &ids, FailedRevision::from_payload).await
    }
}
