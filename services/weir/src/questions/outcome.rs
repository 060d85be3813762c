//! What came of a question: its answers, without their texts, and its dead letters.

use serde::Serialize;
use serde_json::Value;
use weir_contracts::{Answer, AnswerStatus, Provenance, RequestId, TenantId, Topic};
use weir_runner::{DeadLetters, Filter, Registry, Start};

use crate::context::Context;
use crate::dead_letters::{Payload, Summary, payload};
use crate::tail;

/// Stages among whose dead letters a question may lie.
const STAGES: [&str; 2] = ["route-questions", "answer"];

/// An answer without what it says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answered {
    /// Whose it is.
    pub tenant: TenantId,
    /// What kind of answer it is.
    pub status: AnswerStatus,
    /// Where it comes from.
    pub provenance: Provenance,
    /// Why it is not complete.
    pub reason: Option<String>,
    /// Provider that answered; empty when none did.
    pub provider: String,
    /// Model that wrote it; empty when none did.
    pub model: String,
    /// Calls of models that were made for it.
    pub attempts: i32,
    /// Tokens sent to the model.
    pub input_tokens: i64,
    /// Tokens the model wrote.
    pub output_tokens: i64,
    /// Whether the tokens are estimated.
    pub usage_estimated: bool,
    /// What it cost, US dollars.
    pub cost_usd: f64,
    /// Passages that are cited.
    pub citations: usize,
    /// How old it was when it was given again, milliseconds.
    pub age_ms: Option<i64>,
    /// The request whose work it is, when it is that of another one.
    pub answered_with: Option<RequestId>,
    /// When a rejected request may be sent again, milliseconds from `at`.
    pub retry_after_ms: Option<i64>,
    /// When it was asked, milliseconds since the Unix epoch.
    pub asked_at: i64,
    /// When it was finished, milliseconds since the Unix epoch.
    pub at: i64,
}

impl From<Answer> for Answered {
    fn from(answer: Answer) -> Self {
        Self {
            citations: answer.citations.len(),
            tenant: answer.tenant,
            status: answer.status,
            provenance: answer.provenance,
            reason: answer.reason,
            provider: answer.provider,
            model: answer.model,
            attempts: answer.attempts,
            input_tokens: answer.input_tokens,
            output_tokens: answer.output_tokens,
            usage_estimated: answer.usage_estimated,
            cost_usd: answer.cost_usd,
            age_ms: answer.age_ms,
            answered_with: answer.answered_with,
            retry_after_ms: answer.retry_after_ms,
            asked_at: answer.asked_at,
            at: answer.at,
        }
    }
}

/// A dead letter that is a question, and how it comes back.
#[derive(Debug, Clone, Serialize)]
pub struct Dead {
    /// Whose it is.
    pub tenant: TenantId,
    #[serde(flatten)]
    letter: Letter,
    /// The command that gives it back to its stage.
    pub replay: String,
}

/// What is said of the dead letter itself.
#[derive(Debug, Clone, Serialize)]
pub struct Letter {
    /// Its id.
    pub id: String,
    /// Stage that rejected it.
    pub stage: String,
    /// Class of the failure.
    pub class: String,
    /// Why it was rejected.
    pub message: String,
    /// When it was rejected, milliseconds since the Unix epoch.
    pub at: i64,
    /// How often it was replayed.
    pub replays: u32,
    /// Whether it is parked.
    pub parked: bool,
}

impl Dead {
    /// This one, of this tenant.
    #[must_use]
    pub fn of(summary: Summary, tenant: TenantId) -> Self {
        let parked = summary.parked.is_some();
        // What is parked is passed over unless that is wanted.
        let more = if parked { " --parked" } else { "" };
        let replay = format!("weir dlq replay {}{more}", summary.short_id());
        let Summary { id, stage, class, message, at, replays, .. } = summary;
        Self { tenant, letter: Letter { id, stage, class, message, at, replays, parked }, replay }
    }

    /// What is said of the dead letter itself.
    #[must_use]
    pub fn letter(&self) -> &Letter {
        &self.letter
    }
}

/// The answers to a request, oldest first: one, and another one after a replay.
///
/// # Errors
/// When Kafka can't be read.
pub async fn answers(context: &Context, registry: &Registry, request: &RequestId) -> color_eyre::Result<Vec<Answered>> {
    let mut reader = tail::open::<Answer>(context, registry, Topic::ANSWERS, Start::Beginning).await?;
    let mut found: Vec<Answered> = Vec::new();
    while let Some(delivery) = reader.next_before_end().await? {
        if delivery.record.request_id == *request {
            found.push(delivery.record.into());
        }
    }
    found.sort_by_key(|answer| answer.at);
    Ok(found)
}

/// The outstanding dead letters that are this request, oldest first.
///
/// # Errors
/// When Kafka can't be read.
pub async fn dead_letters(
    context: &Context,
    registry: &Registry,
    request: &RequestId,
) -> color_eyre::Result<Vec<Dead>> {
    let mut found = Vec::new();
    for stage in STAGES {
        let all = DeadLetters::of(&context.kafka, stage);
        let mut whole = all.read(tail::settled(|| all.list(Filter::default())).await?);
        while let Some(letter) = whole.recv().await {
            let letter = letter?;
            let Payload::Decoded { value, .. } = payload(&letter, registry).await else { continue };
            let field = |name| value.get(name).and_then(Value::as_str).unwrap_or_default();
            let tenant = TenantId::parse(field("tenant"));
            if let (true, Ok(tenant)) = (field("request_id") == request.as_str(), tenant) {
                found.push(Dead::of(Summary::of(&letter), tenant));
            }
        }
    }
    found.sort_by_key(|dead| dead.letter.at);
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_answer_is_told_without_a_word_of_it() {
        let mut example: Value =
            serde_json::from_str(include_str!("../../../../schemas/examples/answer.json")).unwrap();
        for (name, text) in [("text", "a secret text"), ("question", "a secret question")] {
            example.as_object_mut().unwrap().insert(name.into(), text.into());
        }
        let answer: Answer = serde_json::from_value(example).unwrap();
        let passages: Vec<String> = answer.citations.iter().map(|citation| citation.passage.clone()).collect();
        assert!(!passages.is_empty());
        let told = serde_json::to_string(&Answered::from(answer)).unwrap();
        assert!(!told.contains("secret"), "{told}");
        assert!(!passages.iter().any(|passage| told.contains(passage.as_str())), "{told}");
    }

    #[test]
    fn a_dead_letter_names_the_command_that_brings_it_back() {
        let summary = |parked: bool| Summary {
            id: "4a6f21c09b3d77aa".into(),
            stage: "answer".into(),
            class: "unanswered".into(),
            message: "the prompt is gone".into(),
            tenant: None,
            document: None,
            origin: String::new(),
            at: 1,
            replays: 0,
            parked: parked.then(|| weir_runner::Parked { reason: "by hand".into(), at: 1 }),
            bytes: 10,
        };
        let tenant = TenantId::parse("acme").unwrap();
        assert_eq!(Dead::of(summary(false), tenant.clone()).replay, "weir dlq replay 4a6f21c09b3d");
        assert_eq!(Dead::of(summary(true), tenant).replay, "weir dlq replay 4a6f21c09b3d --parked");
    }
}
