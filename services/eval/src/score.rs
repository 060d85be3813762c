//! The stage: an answer becomes an evaluation.

use std::sync::Arc;
use std::time::SystemTime;

use metrics::histogram;
use weir_contracts::{Answer, AnswerStatus, Evaluation, Topic, unix_millis};
use weir_stage::{Batch, Outcome, Output, Stage, StageError};

use crate::{citation_validity, groundedness, metric};

/// Name and version of the scorer; rises when scores stop being comparable.
pub const EVALUATOR: &str = "weir-lexical/1";

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Scores answers.
pub struct Score {
    clock: Clock,
}

impl Score {
    /// A scorer that dates its evaluations by this clock.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock }
    }

    fn score(&self, answer: &Answer) -> Outcome {
        let status = answer.status.name();
        // Nothing was said from the documents, so there is nothing to hold against them.
        let (validity, grounded) = match answer.status {
            AnswerStatus::Complete | AnswerStatus::Extractive | AnswerStatus::Incomplete => {
                (citation_validity(answer), groundedness(answer))
            }
            AnswerStatus::NoContext
            | AnswerStatus::Expired
            | AnswerStatus::Failed
            | AnswerStatus::Rejected
            | AnswerStatus::Conflict => (None, None),
        };
        for (name, score) in [(metric::CITATION_VALIDITY, validity), (metric::GROUNDEDNESS, grounded)] {
            if let Some(score) = score {
                histogram!(name, "status" => status).record(score);
            }
        }
        let evaluation = Evaluation {
            request_id: answer.request_id.clone(),
            tenant: answer.tenant.clone(),
            answer_status: status.to_owned(),
            citation_validity: validity,
            groundedness: grounded,
            evaluator: EVALUATOR.to_owned(),
            prompt_version: answer.prompt_version.clone(),
            at: unix_millis((self.clock)()),
        };
        Outcome::emit(Output::new(Topic::EVALUATIONS, answer.request_id.as_str(), evaluation))
    }
}

impl Stage for Score {
    type Input = Answer;

    async fn process(&mut self, batch: Batch<'_, Answer>) -> Result<Vec<Outcome>, StageError> {
        Ok(batch.iter().map(|delivery| self.score(delivery.record())).collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::time::UNIX_EPOCH;

    use weir_contracts::{Citation, DocumentId, Provenance, RequestId, Revision, TenantId};

    use super::*;

    pub(crate) fn citation(marker: i32, passage: &str) -> Citation {
        Citation {
            marker,
            document: DocumentId::parse(format!("d{marker}")).unwrap(),
            title: None,
            revision: Revision::from_ordinal(1),
            ordinal: 0,
            start: 0,
            end: i64::try_from(passage.len()).unwrap(),
            passage: passage.to_owned(),
            score: 1.0,
        }
    }

    pub(crate) fn answer(text: &str, citations: &[Citation]) -> Answer {
        Answer {
            request_id: RequestId::parse("r").unwrap(),
            tenant: TenantId::parse("t").unwrap(),
            status: AnswerStatus::Complete,
            provenance: Provenance::Fresh,
            text: text.to_owned(),
            citations: citations.to_vec(),
            reason: None,
            provider: String::new(),
            model: String::new(),
            prompt_version: "v1".into(),
            input_tokens: 0,
            output_tokens: 0,
            usage_estimated: false,
            cost_usd: 0.0,
            attempt: 0,
            attempts: 0,
            age_ms: None,
            answered_with: None,
            retry_after_ms: None,
            text_hash: String::new(),
            timings: BTreeMap::new(),
            question: String::new(),
            asked_at: 0,
            at: 0,
        }
    }

    #[test]
    fn half_of_the_citations_may_be_valid() {
        assert_eq!(citation_validity(&answer("A [1]. B [7].", &[citation(1, "A.")])), Some(0.5));
        assert_eq!(citation_validity(&answer("A [1, 1].", &[citation(1, "A.")])), Some(1.0));
        assert_eq!(citation_validity(&answer("A [1].", &[citation(1, " ")])), Some(0.0));
        assert_eq!(citation_validity(&answer("A.", &[citation(1, "A.")])), None);
    }

    #[test]
    fn an_expired_answer_gets_no_scores() {
        let score = Score::new(Arc::new(|| UNIX_EPOCH));
        let mut expired = answer("Mills [1].", &[citation(1, "Mills.")]);
        expired.status = AnswerStatus::Expired;
        for (input, scored) in [(answer("Mills [1].", &[citation(1, "Mills.")]), true), (expired, false)] {
            let Outcome::Emit(outputs) = score.score(&input) else { panic!("not emitted") };
            let mut body = Vec::new();
            outputs.first().unwrap().record.as_ref().unwrap().encode(&mut body).unwrap();
            let evaluation = <Evaluation as weir_contracts::Record>::decode(None, &body).unwrap();
            assert_eq!(evaluation.groundedness.is_some(), scored);
            assert_eq!(evaluation.citation_validity.is_some(), scored);
        }
    }
}
