//! Reading one document as it can be seen.

use std::collections::BTreeMap;

use qdrant_client::qdrant::ScrollPoints;
use weir_contracts::{DocumentId, TenantId};

use crate::search::passage;
use crate::{Hit, VectorError, VectorStore, filter};

impl VectorStore {
    /// The first passages of a document, in the order they stand in it, at most `limit`; none when it can't be seen, or its
    /// metadata are others. Their score is 0.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn document(
        &self,
        tenant: &TenantId,
        metadata: &BTreeMap<String, String>,
        document: &DocumentId,
        limit: usize,
    ) -> Result<Vec<Hit>, VectorError> {
        let Some(head) = self.head(tenant, document).await?.filter(|head| !head.deleted) else {
            return Ok(Vec::new());
        };
        let mut scope = filter::chunks_with(tenant, metadata);
        scope.must.extend(filter::set(tenant, document, head.revision, &head.build).must);
        let request = ScrollPoints {
            collection_name: self.collection().to_owned(),
            filter: Some(scope),
            // Points come in the order of their ids, which says nothing.
            limit: Some(u32::try_from(head.chunks.max(1)).unwrap_or(1)),
            with_payload: Some(true.into()),
            with_vectors: Some(false.into()),
            ..ScrollPoints::default()
        };
        let response = match self.call("read a document", self.client().scroll(request)).await {
            Err(VectorError::NoCollection { .. }) => return Ok(Vec::new()),
            other => other?,
        };
        let mut hits = response
            .result
            .into_iter()
            .map(|point| passage(point.id.as_ref(), point.payload, 0.0).map(|(hit, _)| hit))
            .collect::<Result<Vec<_>, _>>()?;
        hits.sort_by_key(|hit| hit.ordinal);
        hits.truncate(limit);
        Ok(hits)
    }
}
