//! The stage: asks become answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use weir_contracts::{AnswerStatus, Deadline, Provenance, Question, header, unix_millis};
use weir_llm::{Chain, ChatRequest, Finish, Reply, Run};
use weir_stage::{ConcurrentStage, Delivery, Failure, LaneState, Outcome, Output, StageError};

use crate::cite::{citation, cited};
use crate::clock::Clock;
use crate::config::GenerateConfig;
use crate::draft::{Draft, Timings};
use crate::extract::{candidates, choose};
use crate::meaning::{Meaning, MeaningError};
use crate::prompt::{PromptError, Prompts};
use crate::relevance::any_relevant;
use crate::retrieve::{Passage, Retrieve, RetrieveError, Wanted};
use crate::stream::{Origin, Streamer, TokenSink};

/// Questions whose last attempt is remembered.
const REMEMBERED: usize = 4_096;

/// Leaves room above it for the attempts of every provider.
const LAST_FIRST_ATTEMPT: i32 = i32::MAX / 2;

/// What answering is made of.
pub struct Parts<R> {
    /// Prompt templates.
    pub prompts: Prompts,
    /// Providers of models; without them answers are extractive.
    pub chain: Option<Chain>,
    /// Where passages come from.
    pub retrieve: R,
    /// The embedding model.
    pub meaning: Meaning,
    /// Where answers are streamed to.
    pub tokens: Arc<dyn TokenSink>,
    /// Settings.
    pub config: GenerateConfig,
    /// The time.
    pub clock: Clock,
}

/// Answers questions.
///
/// **Invariant:** every ask gets exactly one answer, also when it is expired, malformed or nothing was found: whoever
/// asked waits for it. Only a dependency that every answer needs, the vector store, holds asks back.
pub struct Answering<R> {
    parts: Parts<R>,
    /// The last attempt that was streamed for a question, so that a repetition starts a new one.
    attempts: Mutex<HashMap<String, i32>>,
}

/// A question on its way.
struct Ask<'a> {
    delivery: &'a Delivery<Question>,
    question: &'a Question,
    version: &'a str,
    deadline: Option<Deadline>,
    began: Instant,
    /// Since it was asked.
    queued: Duration,
}

/// What the first half of the work came to.
enum Gathered {
    /// The answer is clear without a model.
    Settled(Draft),
    /// Passages to answer from.
    Passages { passages: Vec<Passage>, vector: Vec<f32>, timings: Timings },
}

impl<R: Retrieve> Answering<R> {
    /// The stage.
    ///
    /// # Errors
    /// When there is no prompt of the configured version.
    pub fn new(parts: Parts<R>) -> Result<Self, PromptError> {
        parts.prompts.check(&parts.config.prompt_version)?;
        Ok(Self { parts, attempts: Mutex::default() })
    }

    fn now(&self) -> SystemTime {
        (self.parts.clock)()
    }

    fn ask<'a>(&'a self, delivery: &'a Delivery<Question>) -> Ask<'a> {
        let question = delivery.record();
        let version = question.prompt_version.as_deref().unwrap_or(&self.parts.config.prompt_version);
        let named = question.deadline.map(Deadline::at_millis).or_else(|| delivery.deadline());
        let deadline = named.or_else(|| self.usual_deadline(question));
        let waited = unix_millis(self.now()).saturating_sub(question.created_at);
        let queued = Duration::from_millis(u64::try_from(waited).unwrap_or(0));
        Ask { delivery, question, version, deadline, began: Instant::now(), queued }
    }

    /// The deadline of a question that names none, where a model is to answer it.
    fn usual_deadline(&self, question: &Question) -> Option<Deadline> {
        let end_to_end = self.parts.chain.as_ref()?.timeouts().end_to_end();
        let millis = i64::try_from(end_to_end.as_millis()).unwrap_or(i64::MAX);
        (question.created_at > 0).then(|| Deadline::at_millis(question.created_at.saturating_add(millis)))
    }

    /// The answer to give at once when the deadline has passed.
    fn expired(&self, ask: &Ask<'_>, during: &str) -> Option<Draft> {
        let passed = ask.deadline?.remaining(self.now()).is_none();
        passed.then(|| Draft::without_text(AnswerStatus::Expired, format!("the deadline passed {during}")))
    }

    /// Everything up to the model. No call has been paid for yet, so it can be done again at no cost.
    async fn gather(&self, ask: &Ask<'_>) -> Result<Gathered, StageError> {
        if let Some(expired) = self.expired(ask, "before the question was worked on") {
            return Ok(Gathered::Settled(expired));
        }
        if let Err(reason) = self.check(ask) {
            return Ok(Gathered::Settled(Draft::without_text(AnswerStatus::Failed, reason)));
        }
        let mut timings = Timings::default();
        let text = ask.question.question.trim();
        let embedding = Instant::now();
        let vector = match self.embed(vec![text.to_owned()]).await {
            Ok(vectors) => vectors.into_iter().next().unwrap_or_default(),
            Err(error) => return Ok(Gathered::Settled(failed(&error))),
        };
        timings.step("embed", embedding.elapsed());
        let retrieving = Instant::now();
        let limit = ask.question.top_k.and_then(|top_k| usize::try_from(top_k).ok()).filter(|top_k| *top_k > 0);
        let wanted = Wanted {
            tenant: &ask.question.tenant,
            filter: &ask.question.filter,
            question: text,
            vector: &vector,
            limit: limit.unwrap_or(self.parts.config.top_k).min(self.parts.config.max_top_k),
        };
        let passages = match self.parts.retrieve.retrieve(&wanted).await {
            Ok(passages) => passages,
            Err(error) if error.is_unavailable() => return Err(StageError::unavailable("qdrant", error)),
            Err(error @ RetrieveError::OtherModel { .. }) => return Err(StageError::Fatal(error.to_string())),
            Err(error) => return Ok(Gathered::Settled(failed(&error))),
        };
        timings.step("retrieve", retrieving.elapsed());
        if !any_relevant(text, &passages, &self.parts.config) {
            let mut draft = Draft::without_text(AnswerStatus::NoContext, None);
            draft.timings = timings;
            return Ok(Gathered::Settled(draft));
        }
        Ok(Gathered::Passages { passages, vector, timings })
    }

    /// Why a question can't be answered, however often it is tried.
    fn check(&self, ask: &Ask<'_>) -> Result<(), String> {
        let question = &ask.question.question;
        if question.trim().is_empty() {
            return Err("the question is empty".into());
        }
        let most = self.parts.config.max_question_bytes;
        if question.len() > most {
            return Err(format!("the question has {} bytes, more than the {most} that are allowed", question.len()));
        }
        self.parts.prompts.check(ask.version).map_err(|error| error.to_string())
    }

    async fn embed(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, MeaningError> {
        self.parts.meaning.of(texts).await
    }

    /// From passages to an answer.
    async fn write(&self, ask: &Ask<'_>, passages: &[Passage], vector: &[f32], timings: Timings) -> Draft {
        let draft = match &self.parts.chain {
            None => self.extract(ask, passages, vector, timings).await,
            Some(chain) => self.model(ask, chain, passages, vector, timings).await,
        };
        match draft {
            Ok(draft) => draft,
            Err(error) => failed(&error),
        }
    }

    async fn extract(
        &self,
        ask: &Ask<'_>,
        passages: &[Passage],
        vector: &[f32],
        mut timings: Timings,
    ) -> Result<Draft, MeaningError> {
        let extracting = Instant::now();
        let candidates = candidates(&ask.question.question, passages, &self.parts.config);
        let vectors = self.embed(candidates.iter().map(|candidate| candidate.text.clone()).collect()).await?;
        let extract = choose(&candidates, vector, &vectors, &self.parts.config);
        let chosen = (1..).zip(&extract.passages);
        let citations = chosen.filter_map(|(marker, at)| Some(citation(marker, passages.get(*at)?))).collect();
        timings.step("extract", extracting.elapsed());
        // Passages without a single sentence: tables, lists of words.
        let status = if extract.text.is_empty() { AnswerStatus::NoContext } else { AnswerStatus::Extractive };
        Ok(Draft { timings, ..Draft::with_text(status, extract.text, citations) })
    }

    async fn model(
        &self,
        ask: &Ask<'_>,
        chain: &Chain,
        passages: &[Passage],
        vector: &[f32],
        mut timings: Timings,
    ) -> Result<Draft, MeaningError> {
        let messages = match self.parts.prompts.messages(ask.version, ask.question.question.trim(), passages) {
            Ok(messages) => messages,
            Err(error) => return Ok(failed(&error)),
        };
        if let Some(expired) = self.expired(ask, "before a model was asked") {
            return Ok(expired);
        }
        let remaining = ask.deadline.and_then(|deadline| deadline.remaining(self.now()));
        let request = ChatRequest {
            messages,
            max_tokens: self.parts.config.max_output_tokens,
            temperature: self.parts.config.temperature,
            deadline: remaining.map(|left| tokio::time::Instant::now() + left),
            idempotency_key: Some(format!("{}/{}", ask.question.tenant, ask.question.request_id)),
            tenant: Some(ask.question.tenant.to_string()),
            prompt_version: Some(ask.version.to_owned()),
        };
        let calling = Instant::now();
        let mut streamer = Streamer::start(Arc::clone(&self.parts.tokens), ask.origin());
        let Run { reply, calls } = chain.ask(&request, self.first_attempt(ask), &mut streamer).await;
        let streamed = streamer.finish().await;
        timings.step("model", calling.elapsed());
        self.remember(ask, calls.last().map_or(0, |call| call.attempt));
        let attempt = |attempt: i32| if streamed { attempt } else { 0 };
        let draft = match reply {
            Ok(reply) if !reply.text.trim().is_empty() => {
                timings.note("first_token", reply.first_token);
                let attempt = attempt(reply.call.attempt);
                Draft { attempt, timings, ..complete(reply, passages) }
            }
            Err(exhausted) if exhausted.is_deadline() => {
                let reason = "the deadline passed while a model was answering".to_owned();
                Draft { timings, ..Draft::without_text(AnswerStatus::Expired, reason) }
            }
            Ok(_) => self.degraded(ask, passages, vector, timings, "the model wrote nothing".into()).await?,
            Err(exhausted) => match exhausted.partial {
                Some(partial) => Draft {
                    reason: Some(exhausted.error.to_string()),
                    attempt: attempt(partial.attempt),
                    provider: partial.provider,
                    model: partial.model,
                    timings,
                    ..Draft::with_text(AnswerStatus::Incomplete, partial.text.clone(), cited(&partial.text, passages))
                },
                None => self.degraded(ask, passages, vector, timings, exhausted.to_string()).await?,
            },
        };
        Ok(Draft { calls, prompt_version: ask.version.to_owned(), ..draft })
    }

    /// In place of a model's answer.
    async fn degraded(
        &self,
        ask: &Ask<'_>,
        passages: &[Passage],
        vector: &[f32],
        timings: Timings,
        reason: String,
    ) -> Result<Draft, MeaningError> {
        let draft = self.extract(ask, passages, vector, timings).await?;
        Ok(Draft { provenance: Provenance::Degraded, reason: Some(reason), ..draft })
    }

    /// Above every attempt before: of this process by what it remembers, of a crashed owner of the lane by how long
    /// the question has waited by now, in tenths of a second.
    fn first_attempt(&self, ask: &Ask<'_>) -> i32 {
        let attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let next = attempts.get(&ask.key()).map_or(1, |last| last.saturating_add(1));
        let waited = i32::try_from(ask.queued.as_millis() / 100).unwrap_or(i32::MAX);
        next.max(waited.saturating_add(1)).min(LAST_FIRST_ATTEMPT)
    }

    fn remember(&self, ask: &Ask<'_>, attempt: i32) {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        // Repetitions follow at once; what is older than thousands of questions is not repeated any more.
        if attempts.len() >= REMEMBERED {
            attempts.clear();
        }
        attempts.insert(ask.key(), attempt);
    }

    async fn answer(&self, ask: &Ask<'_>, gathered: Gathered) -> Outcome {
        let mut draft = match gathered {
            Gathered::Settled(draft) => draft,
            Gathered::Passages { passages, vector, timings } => self.write(ask, &passages, &vector, timings).await,
        };
        if ask.question.created_at > 0 {
            draft.timings.note("queued", ask.queued);
        }
        draft.timings.note("total", ask.began.elapsed());
        Outcome::emit_all(draft.into_outputs(ask.question, ask.version, self.now()))
    }
}

impl Ask<'_> {
    fn key(&self) -> String {
        format!("{}/{}", self.question.tenant, self.question.request_id)
    }

    fn origin(&self) -> Origin {
        Origin {
            request_id: self.question.request_id.clone(),
            tenant: self.question.tenant.clone(),
            lane: self.delivery.at.lane,
            traceparent: self.delivery.headers.get(header::TRACEPARENT).map(<[u8]>::to_vec),
        }
    }
}

/// What a model wrote to its end, or to its limit of tokens.
fn complete(reply: Reply, passages: &[Passage]) -> Draft {
    let citations = cited(&reply.text, passages);
    let (status, reason) = match reply.finish {
        Finish::Length => (AnswerStatus::Incomplete, Some("the model reached its limit of tokens".to_owned())),
        Finish::Stop if citations.is_empty() => {
            (AnswerStatus::Complete, Some("the answer cites none of the passages it was given".to_owned()))
        }
        Finish::Stop => (AnswerStatus::Complete, None),
    };
    Draft {
        reason,
        provider: reply.call.provider,
        model: reply.call.model,
        ..Draft::with_text(status, reply.text, citations)
    }
}

fn failed(error: &dyn std::error::Error) -> Draft {
    tracing::warn!(error = %error, "question failed");
    Draft::without_text(AnswerStatus::Failed, error.to_string())
}

impl<R: Retrieve> ConcurrentStage for Answering<R> {
    type Input = Question;

    async fn process(&self, delivery: &Delivery<Question>, _: LaneState<'_>) -> Result<Outcome, StageError> {
        let ask = self.ask(delivery);
        let gathered = self.gather(&ask).await?;
        Ok(self.answer(&ask, gathered).await)
    }

    /// Whoever asked waits for an answer, also when the question became a dead letter.
    async fn last_words(
        &self,
        delivery: &Delivery<Question>,
        failure: &Failure,
        _: LaneState<'_>,
    ) -> Result<Vec<Output>, StageError> {
        let ask = self.ask(delivery);
        let draft = Draft::without_text(AnswerStatus::Failed, failure.message.clone());
        Ok(draft.into_outputs(ask.question, ask.version, self.now()))
    }
}
