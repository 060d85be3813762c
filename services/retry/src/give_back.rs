//! The stage.

use weir_contracts::{Raw, again_of, header};
use weir_stage::{Batch, Delivery, Failure, Outcome, Output, Stage, StageError, failure_class};

/// Returns each record, which is due by now, to the stage that its headers name.
#[derive(Debug, Clone, Copy)]
pub struct Return;

impl Stage for Return {
    type Input = Raw;

    async fn process(&mut self, batch: Batch<'_, Raw>) -> Result<Vec<Outcome>, StageError> {
        Ok(batch.iter().map(give_back).collect())
    }
}

fn give_back(delivery: &Delivery<Raw>) -> Outcome {
    let named = delivery.headers.text(header::STAGE);
    let Some(topic) = named.and_then(again_of) else {
        let message = format!("its header {} names {named:?}, which is no stage records return to", header::STAGE);
        return Outcome::reject(Failure::new(failure_class::INVALID, message));
    };
    let mut headers = delivery.headers.clone();
    headers.0.retain(|(name, _)| name != header::NOT_BEFORE);
    Outcome::emit(Output {
        topic,
        lane: Some(delivery.at.lane),
        key: delivery.key.clone(),
        record: Some(Box::new(delivery.record().clone())),
        headers,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

    use weir_contracts::Lane;
    use weir_stage::{Coordinates, Headers};

    use super::*;

    fn delivery(stage: &str) -> Delivery<Raw> {
        let mut headers = Headers::default();
        headers.set(header::STAGE, stage);
        headers.set(header::ATTEMPT, "2");
        headers.set(header::NOT_BEFORE, "1");
        let at = Coordinates { topic: "weir.retry.1s".into(), lane: Lane(3), offset: 9 };
        Delivery { record: Raw(vec![1, 2]), at, key: Some(b"k".to_vec()), headers, timestamp: 0 }
    }

    #[tokio::test]
    async fn a_record_returns_to_its_stage_in_its_lane_with_its_history() {
        let deliveries = [delivery("extract"), delivery("nowhere")];
        let outcomes = Return.process(Batch::new(&deliveries)).await.unwrap();
        let Outcome::Emit(outputs) = &outcomes[0] else { panic!("{outcomes:?}") };
        assert_eq!(outputs[0].topic.name(), "extract.again");
        assert_eq!(outputs[0].lane, Some(Lane(3)));
        assert_eq!(outputs[0].headers.text(header::ATTEMPT), Some("2"));
        assert_eq!(outputs[0].headers.text(header::NOT_BEFORE), None);
        assert!(matches!(outcomes[1], Outcome::Reject { .. }));
    }
}
