//! Puts requests into their lanes.

use weir_contracts::{DocumentRequest, Lane, Topic, document_key, header};
use weir_stage::{Batch, Delivery, Outcome, Output, Stage, StageError};

/// Forwards each request into the lane of its document. Producers hash differently and keys may be missing, so neither
/// the key nor the partition of what they wrote counts. That the tenant's name is one is a matter of its type.
#[derive(Debug)]
pub struct Route {
    lanes: i32,
}

impl Route {
    /// A router into this many lanes.
    #[must_use]
    pub fn new(lanes: i32) -> Self {
        Self { lanes }
    }

    fn route(&self, delivery: &Delivery<DocumentRequest>) -> Outcome {
        let request = delivery.record();
        let key = document_key(&request.tenant, &request.document);
        let lane = Lane::of(key.as_bytes(), self.lanes);
        let output = Output::new(Topic::REQUESTS, key, request.clone())
            .in_lane(lane)
            .with_header(header::TENANT, request.tenant.as_str());
        Outcome::emit(output)
    }
}

impl Stage for Route {
    type Input = DocumentRequest;

    async fn process(&mut self, batch: Batch<'_, DocumentRequest>) -> Result<Vec<Outcome>, StageError> {
        Ok(batch.iter().map(|delivery| self.route(delivery)).collect())
    }
}
