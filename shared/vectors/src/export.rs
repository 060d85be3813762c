//! Reading a tenant's vectors back, to compare what a search finds with what an exact one would.

use std::collections::HashMap;

use qdrant_client::qdrant::vector_output::Vector;
use qdrant_client::qdrant::{RetrievedPoint, ScrollPoints, WithPayloadSelector};
use weir_contracts::{DocumentId, Revision, TenantId};

use crate::collection::DENSE;
use crate::payload::{Reader, field, kind};
use crate::{Head, VectorError, VectorStore, filter};

/// Points read at a time: about 1 MB with vectors of 384 numbers.
const PAGE: u32 = 500;

/// A chunk that can be found, and its vector.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredVector {
    /// Document it belongs to.
    pub document: DocumentId,
    /// Which chunk of it.
    pub ordinal: i32,
    /// Its dense vector, as it was written: Qdrant scales vectors to unit length for cosine.
    pub vector: Vec<f32>,
}

struct Stored {
    vector: StoredVector,
    revision: Revision,
    build: String,
}

impl VectorStore {
    /// The vectors of all of a tenant's chunks that heads show. All of them are in memory at once: meant for
    /// measurements, not for serving.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn vectors_of(&self, tenant: &TenantId) -> Result<Vec<StoredVector>, VectorError> {
        let mut found = Vec::new();
        let mut offset = None;
        loop {
            let request = ScrollPoints {
                collection_name: self.collection().to_owned(),
                filter: Some(filter::scope(tenant, [filter::keyword(field::KIND, kind::CHUNK)])),
                offset,
                limit: Some(PAGE),
                with_payload: Some(WithPayloadSelector::from(vec![
                    field::DOCUMENT,
                    field::REVISION,
                    field::BUILD,
                    field::ORDINAL,
                ])),
                with_vectors: Some(vec![DENSE].into()),
                ..ScrollPoints::default()
            };
            let response = match self.call("list vectors", self.client().scroll(request)).await {
                Err(VectorError::NoCollection { .. }) => return Ok(found),
                other => other?,
            };
            let page = response.result.into_iter().map(stored).collect::<Result<Vec<_>, _>>()?;
            self.keep_shown(tenant, page, &mut found).await?;
            offset = response.next_page_offset;
            if offset.is_none() {
                return Ok(found);
            }
        }
    }

    async fn keep_shown(
        &self,
        tenant: &TenantId,
        page: Vec<Stored>,
        found: &mut Vec<StoredVector>,
    ) -> Result<(), VectorError> {
        let mut documents: Vec<_> = page.iter().map(|stored| &stored.vector.document).collect();
        documents.sort_unstable();
        documents.dedup();
        let keys: Vec<_> = documents.into_iter().map(|document| (tenant, document)).collect();
        let heads: HashMap<DocumentId, Head> =
            self.heads(&keys).await?.into_iter().flatten().map(|head| (head.document.clone(), head)).collect();
        let shown = |stored: &Stored| {
            heads.get(&stored.vector.document).is_some_and(|head| head.shows(stored.revision, &stored.build))
        };
        found.extend(page.into_iter().filter(shown).map(|stored| stored.vector));
        Ok(())
    }
}

fn stored(point: RetrievedPoint) -> Result<Stored, VectorError> {
    let mut fields = Reader::new(point.id.as_ref(), point.payload);
    let vector = match point.vectors.and_then(|vectors| vectors.get_vector_by_name(DENSE)) {
        Some(Vector::Dense(dense)) => dense.data,
        _ => return Err(fields.foreign("it has no dense vector")),
    };
    let document = DocumentId::parse(fields.text(field::DOCUMENT)?).map_err(|e| fields.foreign(e.to_string()))?;
    Ok(Stored {
        vector: StoredVector { document, ordinal: fields.small_int(field::ORDINAL)?, vector },
        revision: Revision::from_ordinal(fields.int(field::REVISION)?),
        build: fields.text(field::BUILD)?,
    })
}
