//! Puts requests into their lanes.

use weir_contracts::{DocumentRequest, Lane, Topic, document_key, header};
use weir_stage::{Batch, Delivery, Failure, Outcome, Output, Stage, StageError};

use crate::identity::last_words;

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
        let lane = self.lane_of(request);
        let output = Output::new(Topic::REQUESTS, key, request.clone())
            .in_lane(lane)
            .with_header(header::TENANT, request.tenant.as_str());
        Outcome::emit(output)
    }

    fn lane_of(&self, request: &DocumentRequest) -> Lane {
        Lane::of(document_key(&request.tenant, &request.document).as_bytes(), self.lanes)
    }
}

impl Stage for Route {
    type Input = DocumentRequest;

    async fn process(&mut self, batch: Batch<'_, DocumentRequest>) -> Result<Vec<Outcome>, StageError> {
        Ok(batch.iter().map(|delivery| self.route(delivery)).collect())
    }

    async fn last_words(
        &mut self,
        delivery: &Delivery<DocumentRequest>,
        failure: &Failure,
    ) -> Result<Vec<Output>, StageError> {
        Ok(vec![last_words(delivery, failure).in_lane(self.lane_of(delivery.record()))])
    }
}
