//! The sweep: removes chunks that no head shows and none will.

use std::collections::HashMap;
use std::time::Duration;

use qdrant_client::qdrant::points_selector::PointsSelectorOneOf;
use qdrant_client::qdrant::{PointId, PointsIdsList, PointsSelector, ScrollPoints, WithPayloadSelector};
use weir_contracts::{DocumentId, Revision, TenantId};

use crate::payload::{Reader, field};
use crate::{Head, VectorError, VectorStore, filter, metric};

/// What a whole sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Chunks that were looked at.
    pub seen: u64,
    /// Chunks that were removed.
    pub removed: u64,
}

/// What one page of a sweep did.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepPage {
    /// Where the next page begins; none after the last one.
    pub next: Option<SweepCursor>,
    /// Chunks that were looked at.
    pub seen: u64,
    /// Chunks that were removed.
    pub removed: u64,
}

/// Where a sweep goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepCursor(PointId);

struct Swept {
    id: PointId,
    tenant: TenantId,
    document: DocumentId,
    revision: Revision,
    build: String,
    position: i64,
}

impl Swept {
    /// A chunk is stale when its head is beyond it. Chunks without a head, or of a later revision or record than it
    /// shows, belong to a set that is not complete yet: the next revision will sweep them if it never is.
    fn is_stale(&self, head: Option<&Head>) -> bool {
        head.is_some_and(|head| {
            head.is_beyond(self.revision, &self.build, self.position)
                || (head.deleted && head.revision == self.revision)
        })
    }
}

impl VectorStore {
    /// Looks at every chunk, `page` at a time with a pause after each, and removes the stale ones. Heads only move
    /// forward, so what is stale stays stale: several sweeps at once, or a write in between, do no harm.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn sweep(&self, page: u32, pause: Duration) -> Result<Sweep, VectorError> {
        let mut sweep = Sweep::default();
        let mut cursor = None;
        loop {
            let swept = self.sweep_page(cursor.as_ref(), page).await?;
            sweep.seen += swept.seen;
            sweep.removed += swept.removed;
            cursor = swept.next;
            if cursor.is_none() {
                return Ok(sweep);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// One page of a sweep.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn sweep_page(&self, from: Option<&SweepCursor>, page: u32) -> Result<SweepPage, VectorError> {
        let request = ScrollPoints {
            collection_name: self.collection().to_owned(),
            filter: Some(filter::all_chunks()),
            offset: from.map(|cursor| cursor.0.clone()),
            limit: Some(page),
            with_payload: Some(WithPayloadSelector::from(vec![
                field::TENANT,
                field::DOCUMENT,
                field::REVISION,
                field::BUILD,
                field::POSITION,
            ])),
            with_vectors: Some(false.into()),
            ..ScrollPoints::default()
        };
        let response = match self.call("list chunks", self.client().scroll(request)).await {
            Err(VectorError::NoCollection { .. }) => return Ok(SweepPage { next: None, seen: 0, removed: 0 }),
            other => other?,
        };
        let mut points = Vec::with_capacity(response.result.len());
        for point in response.result {
            let Some(id) = point.id else { continue };
            let mut fields = Reader::new(Some(&id), point.payload);
            let (tenant, document, revision) = fields.revision()?;
            points.push(Swept {
                tenant,
                document,
                revision,
                build: fields.text(field::BUILD)?,
                position: fields.int(field::POSITION)?,
                id,
            });
        }
        let removed = self.remove_stale(&points).await?;
        Ok(SweepPage {
            next: response.next_page_offset.map(SweepCursor),
            seen: u64::try_from(points.len()).unwrap_or(u64::MAX),
            removed,
        })
    }

    async fn remove_stale(&self, points: &[Swept]) -> Result<u64, VectorError> {
        let mut documents: Vec<_> = points.iter().map(|point| (&point.tenant, &point.document)).collect();
        documents.sort_unstable();
        documents.dedup();
        let heads = self.heads(&documents).await?;
        let heads: HashMap<_, _> = documents.into_iter().zip(heads).collect();
        let ids: Vec<_> = points
            .iter()
            .filter(|point| point.is_stale(heads.get(&(&point.tenant, &point.document)).and_then(Option::as_ref)))
            .map(|point| point.id.clone())
            .collect();
        if ids.is_empty() {
            return Ok(0);
        }
        let removed = u64::try_from(ids.len()).unwrap_or(u64::MAX);
        let selector =
            PointsSelector { points_selector_one_of: Some(PointsSelectorOneOf::Points(PointsIdsList { ids })) };
        self.call("remove chunks", self.client().delete_points(self.removal(selector))).await?;
        metrics::counter!(metric::SWEPT_POINTS).increment(removed);
        Ok(removed)
    }
}
