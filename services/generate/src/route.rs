//! From `questions` into the tenant's home lane.

use weir_contracts::{Lane, Question, Topic, header};
use weir_stage::{Batch, Delivery, Outcome, Output, Stage, StageError};

/// Puts every question into its tenant's home lane, wherever it was produced and whatever its key.
#[derive(Debug, Clone, Copy)]
pub struct RouteQuestions {
    lanes: i32,
}

impl RouteQuestions {
    /// A router over this many lanes.
    #[must_use]
    pub fn new(lanes: i32) -> Self {
        Self { lanes }
    }

    fn route(self, delivery: &Delivery<Question>) -> Outcome {
        let mut question = delivery.record().clone();
        if question.created_at <= 0 {
            question.created_at = delivery.timestamp;
        }
        let from_header = || delivery.headers.text(header::DEADLINE).and_then(|value| value.parse().ok());
        question.deadline = question.deadline.or_else(from_header);
        let tenant = question.tenant.clone();
        let deadline = question.deadline;
        let ask = Output::new(Topic::ASKS, tenant.as_str(), question)
            .in_lane(Lane::of(tenant.as_str().as_bytes(), self.lanes))
            .with_header(header::TENANT, tenant.as_str());
        Outcome::emit(match deadline {
            Some(deadline) => ask.with_header(header::DEADLINE, deadline.to_string()),
            None => ask,
        })
    }
}

impl Stage for RouteQuestions {
    type Input = Question;

    async fn process(&mut self, batch: Batch<'_, Question>) -> Result<Vec<Outcome>, StageError> {
        Ok(batch.iter().map(|delivery| self.route(delivery)).collect())
    }
}
