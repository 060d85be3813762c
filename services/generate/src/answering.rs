//! The stage: asks become answers.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use metrics::counter;
use weir_contracts::{Answer, AnswerStatus, Deadline, Lane, Provenance, Question, Topic, header, unix_millis};
use weir_llm::Chain;
use weir_stage::{Change, ConcurrentStage, Delivery, Failure, LaneState, Outcome, Output, StageError};

use crate::accounts::Refusal;
use crate::agent::Agents;
use crate::ask::Ask;
use crate::case::{Case, Opened, fail, look_again, wait_for_key};
use crate::cite::citation;
use crate::clock::Clock;
use crate::config::GenerateConfig;
use crate::draft::{Draft, Timings, outputs};
use crate::extract::{candidates, choose};
use crate::journal::KEPT_BYTES;
use crate::meaning::{Meaning, MeaningError};
use crate::metric;
use crate::modelled::complete;
use crate::prompt::{self, PromptError, Prompts, full_name};
use crate::queries::Vector;
use crate::recall::{Recall, search_key};
use crate::relevance::any_relevant;
use crate::rerank::{Rerank, reordered};
use crate::retrieve::{Passage, Retrieve, RetrieveError, Wanted, fitting};
use crate::similar::Similar;
use crate::slot::{Found, as_answer_of};
use crate::stream::TokenSink;
use crate::tenants::Tenants;
use crate::watch::PromptBaselines;

/// What answering is made of.
pub struct Parts<R> {
    /// Prompt templates.
    pub prompts: Prompts,
    /// Providers of models; without them answers are extractive.
    pub chain: Option<Chain>,
    /// Where passages come from.
    pub retrieve: R,
    /// What orders them, if anything does beside the search.
    pub rerank: Option<Arc<dyn Rerank>>,
    /// The embedding model.
    pub meaning: Meaning,
    /// Where answers are streamed to.
    pub tokens: Arc<dyn TokenSink>,
    /// What tenants may use.
    pub tenants: Tenants,
    /// What models with tools work with.
    pub agents: Agents,
    /// Lanes there are.
    pub lanes: i32,
    /// Settings.
    pub config: GenerateConfig,
    /// The time.
    pub clock: Clock,
}

/// Answers questions.
///
/// **Invariant:** every ask gets exactly one answer, also when it is expired, malformed, over a limit, or nothing was found:
/// whoever asked waits for it. What may not be done twice is in its journal before it is done, so an owner that takes it over
/// goes on where the last one was.
pub struct Answering<R> {
    pub(crate) parts: Parts<R>,
    recall: Recall<Vec<Passage>>,
    pub(crate) tool_results: Recall<String>,
    pub(crate) similar: Similar,
    pub(crate) prompts: PromptBaselines,
}

/// Why a question has no answer yet, and what becomes of it instead.
pub(crate) enum Instead {
    /// This answer, which no model gave.
    Draft(Box<Draft>),
    /// It lies among the dead letters.
    Reject(Failure),
    /// It waits for the answer of another: the slot, and what was asked.
    Joined(String, String),
    /// A limit is in the way.
    OverLimit(Refusal),
}

/// What passages were found, and how.
struct Gathered {
    passages: Vec<Passage>,
    timings: Timings,
    /// Why they may be old or missing.
    fallback: Option<String>,
}

impl<R: Retrieve> Answering<R> {
    /// The stage.
    ///
    /// # Errors
    /// When there is no prompt of the configured version.
    pub fn new(parts: Parts<R>) -> Result<Self, PromptError> {
        for (template, version) in [
            (prompt::ANSWER, parts.config.prompt_version.as_str()),
            (prompt::AGENT, parts.agents.prompt_version()),
            (prompt::UNAIDED, &parts.config.unaided_prompt_version),
        ] {
            parts.prompts.check(&full_name(template, version))?;
        }
        Ok(Self {
            parts,
            recall: Recall::default(),
            tool_results: Recall::default(),
            similar: Similar::default(),
            prompts: PromptBaselines::default(),
        })
    }

    pub(crate) fn now(&self) -> SystemTime {
        (self.parts.clock)()
    }

    fn ask<'a>(&'a self, delivery: &'a Delivery<Question>) -> Ask<'a> {
        let question = delivery.record();
        let named = question.prompt_version.as_deref();
        let version = match question.agent && self.parts.chain.is_some() {
            true => Cow::Owned(full_name(prompt::AGENT, named.unwrap_or(self.parts.agents.prompt_version()))),
            false => Cow::Borrowed(named.unwrap_or(&self.parts.config.prompt_version)),
        };
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

    /// Budgets are kept in the tenant's home lane: a question that is elsewhere goes there.
    fn forwarded(&self, delivery: &Delivery<Question>) -> Option<Outcome> {
        let tenant = &delivery.record().tenant;
        let home = Lane::of(tenant.as_str().as_bytes(), self.parts.lanes);
        (delivery.at.lane != home).then(|| {
            tracing::warn!(%tenant, lane = delivery.at.lane.0, home = home.0, "a question outside its home lane");
            let ask = Output::new(Topic::ASKS, tenant.as_str(), delivery.record().clone()).in_lane(home);
            Outcome::emit(ask.with_header(header::TENANT, tenant.as_str()))
        })
    }

    /// The answer to give at once when the deadline has passed.
    pub(crate) fn expired(&self, ask: &Ask<'_>, during: &str) -> Option<Draft> {
        let passed = ask.deadline?.remaining(self.now()).is_none();
        passed.then(|| Draft::without_text(AnswerStatus::Expired, format!("the deadline passed {during}")))
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
        if question_names_another_template(ask.question) {
            return Err("a question names a version of the prompt for answers; it has no slash".into());
        }
        self.parts.prompts.check(&ask.version).map_err(|error| error.to_string())
    }

    /// Everything between a question and its answer.
    async fn answer(&self, mut case: Case<'_>, state: LaneState<'_>) -> Result<Outcome, StageError> {
        let ask = case.ask;
        let mut draft = match self.draft(&mut case, state).await? {
            Ok(draft) => draft,
            Err(Instead::Draft(draft)) => *draft,
            Err(Instead::Reject(failure)) => return Ok(Outcome::reject(failure)),
            Err(Instead::Joined(slot, asked)) => return Ok(case.join(slot, asked)),
            Err(Instead::OverLimit(refusal)) => return case.over_limit(&refusal),
        };
        if ask.question.created_at > 0 {
            draft.timings.note("queued", ask.queued);
        }
        draft.timings.note("total", ask.began.elapsed());
        case.finish(draft)
    }

    async fn draft(&self, case: &mut Case<'_>, state: LaneState<'_>) -> Result<Result<Draft, Instead>, StageError> {
        if let Some(reply) = case.journal.reply.clone().filter(|_| case.journal.agent.is_none()) {
            // An owner before heard it; only what was streamed is not known.
            let passages = case.journal.passages.clone().unwrap_or_default();
            let version = self.version_for(case.ask, &passages).into_owned();
            let draft = Draft { prompt_version: version, ..complete(&reply, &passages, 0) };
            return Ok(Ok(degraded_by(case.journal.fallback.clone(), draft)));
        }
        if let Some(expired) = self.expired(case.ask, "before the question was worked on") {
            return Ok(Ok(expired));
        }
        let Gathered { passages, timings, fallback } = match self.gather(case).await? {
            Ok(gathered) => gathered,
            Err(instead) => return Ok(Err(instead)),
        };
        case.journal.fallback.clone_from(&fallback);
        let draft = match &self.parts.chain {
            None => self.extract(case.ask, &passages, timings).await,
            Some(chain) if case.ask.question.agent => {
                self.with_tools(case, state, chain, passages.clone(), timings).await?
            }
            Some(chain) => self.model(case, state, chain, &passages, timings).await?,
        };
        Ok(draft.map(|draft| degraded_by(fallback, draft)))
    }

    /// The passages, from the journal or the vector store.
    async fn gather(&self, case: &Case<'_>) -> Result<Result<Gathered, Instead>, StageError> {
        let begun = case.journal.agent.is_some().then(Vec::new);
        if let Some(passages) = case.journal.passages.clone().or(begun) {
            let fallback = case.journal.fallback.clone();
            return Ok(Ok(Gathered { passages, timings: Timings::default(), fallback }));
        }
        let ask = case.ask;
        let mut timings = Timings::default();
        let embedding = Instant::now();
        let vector = match self.vector(ask.text()).await {
            Ok(vector) => vector,
            Err(error) => return Ok(Err(Instead::Reject(failed(&error)))),
        };
        timings.step("embed", embedding.elapsed());
        let retrieving = Instant::now();
        let limit = ask.question.top_k.and_then(|top_k| usize::try_from(top_k).ok()).filter(|top_k| *top_k > 0);
        let wanted = Wanted {
            tenant: &ask.question.tenant,
            filter: &ask.question.filter,
            question: ask.text(),
            vector: &vector,
            limit: limit.unwrap_or(self.parts.config.top_k).min(self.parts.config.max_top_k),
        };
        let (passages, fallback) = match self.retrieve(&wanted).await {
            Ok(passages) => (passages, None),
            Err(error @ RetrieveError::OtherModel { .. }) => return Err(StageError::Fatal(error.to_string())),
            Err(error) if error.is_unavailable() => match self.recall.last(&search_key(&wanted), Instant::now()) {
                Some((passages, age)) => {
                    counter!(metric::RETRIEVAL_FALLBACKS, "to" => "cached").increment(1);
                    let reason = format!("the search did not answer ({error}); passages found {} s ago", age.as_secs());
                    (passages, Some(reason))
                }
                None if self.answers_unaided(ask) => {
                    counter!(metric::RETRIEVAL_FALLBACKS, "to" => "unaided").increment(1);
                    timings.step("retrieve", retrieving.elapsed());
                    let reason = format!("the search did not answer ({error}): answered without the documents");
                    return Ok(Ok(Gathered { passages: Vec::new(), timings, fallback: Some(reason) }));
                }
                None => {
                    counter!(metric::RETRIEVAL_FALLBACKS, "to" => "none").increment(1);
                    let reason = format!("the search did not answer ({error}): nothing could be looked up");
                    let draft = Draft::without_text(AnswerStatus::NoContext, reason);
                    let draft = Draft { provenance: Provenance::Degraded, timings, ..draft };
                    return Ok(Err(Instead::Draft(Box::new(draft))));
                }
            },
            Err(error) => return Ok(Err(Instead::Reject(failed(&error)))),
        };
        timings.step("retrieve", retrieving.elapsed());
        // Who may search again is not turned away.
        let searches = ask.question.agent && self.parts.chain.is_some();
        if !searches && !any_relevant(ask.text(), &passages, &self.parts.config) {
            let mut draft = Draft::without_text(AnswerStatus::NoContext, None);
            draft.timings = timings;
            return Ok(Err(Instead::Draft(Box::new(draft))));
        }
        Ok(Ok(Gathered { passages, timings, fallback }))
    }

    /// Whether a model may answer this question though nothing can be looked up.
    fn answers_unaided(&self, ask: &Ask<'_>) -> bool {
        self.parts.config.answer_unaided && self.parts.chain.is_some() && !ask.question.agent
    }

    /// The best passages, in the order of the reranker where there is one and it answers.
    pub(crate) async fn retrieve(&self, wanted: &Wanted<'_>) -> Result<Vec<Passage>, RetrieveError> {
        let key = search_key(wanted);
        let passages = match &self.parts.rerank {
            None => self.search(wanted).await?,
            Some(rerank) => {
                let more = Wanted { limit: rerank.candidates().max(wanted.limit), ..*wanted };
                let mut passages = reranked(rerank.as_ref(), wanted.question, self.search(&more).await?).await;
                passages.truncate(wanted.limit);
                passages
            }
        };
        let passages = fitting(passages, KEPT_BYTES);
        let kept = Duration::from_secs(self.parts.config.retrieval_cache_s);
        self.recall.note(key, passages.clone(), kept, Instant::now());
        Ok(passages)
    }

    /// Asks the vector store, which has a limited time; some questions it answers slowly at first.
    async fn search(&self, wanted: &Wanted<'_>) -> Result<Vec<Passage>, RetrieveError> {
        let limit = Duration::from_millis(self.parts.config.retrieve_timeout_ms);
        let mut last = RetrieveError::TimedOut { limit };
        for _ in 0..self.parts.config.retrieve_attempts.max(1) {
            match tokio::time::timeout(limit, self.parts.retrieve.retrieve(wanted)).await {
                Ok(Ok(passages)) => return Ok(passages),
                Ok(Err(error)) if error.is_unavailable() => {
                    last = error;
                    tokio::time::sleep(limit / 4).await;
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => last = RetrieveError::TimedOut { limit },
            }
        }
        Err(last)
    }

    /// The vector of what is looked for.
    pub(crate) async fn vector(&self, text: &str) -> Result<Vector, MeaningError> {
        self.parts.meaning.of_question(text).await
    }

    pub(crate) async fn extract(
        &self,
        ask: &Ask<'_>,
        passages: &[Passage],
        timings: Timings,
    ) -> Result<Draft, Instead> {
        self.sentences(ask, passages, timings).await.map_err(|error| Instead::Reject(failed(&error)))
    }

    async fn sentences(
        &self,
        ask: &Ask<'_>,
        passages: &[Passage],
        mut timings: Timings,
    ) -> Result<Draft, MeaningError> {
        let extracting = Instant::now();
        let candidates = candidates(&ask.question.question, passages, &self.parts.config);
        let vector = self.vector(ask.text()).await?;
        let texts = candidates.iter().map(|candidate| candidate.text.clone());
        let vectors = self.parts.meaning.of(texts.collect()).await?;
        let extract = choose(&candidates, &vector, &vectors, &self.parts.config);
        let chosen = (1..).zip(&extract.passages);
        let citations = chosen.filter_map(|(marker, at)| Some(citation(marker, passages.get(*at)?))).collect();
        timings.step("extract", extracting.elapsed());
        // Passages without a single sentence: tables, lists of words.
        let status = if extract.text.is_empty() { AnswerStatus::NoContext } else { AnswerStatus::Extractive };
        Ok(Draft { timings, ..Draft::with_text(status, extract.text, citations) })
    }
}

impl<R: Retrieve> Answering<R> {
    /// Whether every document that an answer cites is still there. A repeat can wait until somebody can say.
    async fn still_stands(&self, answer: &Answer) -> Result<bool, StageError> {
        let documents: Vec<_> = answer.citations.iter().map(|citation| &citation.document).collect();
        if documents.is_empty() {
            return Ok(true);
        }
        let shown = self.parts.retrieve.all_shown(&answer.tenant, &documents).await;
        shown.map_err(|error| StageError::unavailable("qdrant", error))
    }
}

/// An answer that rests on less than it should, where it does, for this reason.
fn degraded_by(fallback: Option<String>, draft: Draft) -> Draft {
    let Some(reason) = fallback else { return draft };
    let reason = draft.reason.as_ref().map_or(reason.clone(), |other| format!("{reason}; {other}"));
    Draft { provenance: Provenance::Degraded, reason: Some(reason), ..draft }
}

/// Passages in the order of the reranker; as they are when it does not answer.
async fn reranked(rerank: &dyn Rerank, question: &str, passages: Vec<Passage>) -> Vec<Passage> {
    let texts: Vec<&str> = passages.iter().map(|passage| passage.hit.text.as_str()).collect();
    if texts.len() < 2 {
        return passages;
    }
    let order = rerank.order(question, &texts).await;
    let result = if order.is_ok() { "ok" } else { "failed" };
    counter!(metric::RERANKS, "result" => result).increment(1);
    match order {
        Ok(order) => reordered(passages, &order),
        Err(error) => {
            tracing::warn!(%error, "passages are not reranked");
            passages
        }
    }
}

/// Versions of other templates are not for questions to choose.
fn question_names_another_template(question: &Question) -> bool {
    question.prompt_version.as_ref().is_some_and(|version| version.contains('/'))
}

/// Class of questions that could not be answered though nothing is wrong with them.
const UNANSWERED: &str = "unanswered";

pub(crate) fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::new(UNANSWERED, error)
}

impl<R: Retrieve> ConcurrentStage for Answering<R> {
    type Input = Question;

    const STATEFUL: bool = true;

    async fn process(&self, delivery: &Delivery<Question>, state: LaneState<'_>) -> Result<Outcome, StageError> {
        if let Some(forwarded) = self.forwarded(delivery) {
            return Ok(forwarded);
        }
        let ask = self.ask(delivery);
        let policy = self.parts.tenants.of(&ask.question.tenant)?;
        let settled = |draft: Draft| {
            let (answer, usages) = draft.into_records(ask.question, &ask.version, self.now(), 0);
            Outcome::emit_all(outputs(&answer, &usages, []))
        };
        if let Err(reason) = self.check(&ask) {
            return Ok(settled(Draft::without_text(AnswerStatus::Failed, reason)));
        }
        if !policy.is_enabled() {
            let reason = format!("the tenant {} is disabled", ask.question.tenant);
            return Ok(settled(Draft::without_text(AnswerStatus::Rejected, reason)));
        }
        let window = Duration::from_secs(self.parts.config.idempotency_window_s);
        match Case::open(&ask, state, policy, &self.parts.clock, window).await? {
            Opened::Work(case) => self.answer(case, state).await,
            Opened::OverLimit(case, refusal) => match self.expired(&ask, "while the question waited for a limit") {
                Some(draft) => case.finish(draft),
                None => case.over_limit(&refusal),
            },
            Opened::Elsewhere(found) => Ok(match found {
                Found::Answered(answer) => {
                    counter!(metric::SHARED, "by" => "repeat").increment(1);
                    match self.still_stands(&answer).await? {
                        true => {
                            let answer = as_answer_of(&answer, &ask.question.request_id, ask.question.created_at);
                            Outcome::emit_all(outputs(&answer, &[], []))
                        }
                        false => {
                            let reason =
                                "its answer rested on a document that was erased since; ask again under another key";
                            settled(Draft::without_text(AnswerStatus::Failed, reason.to_owned()))
                        }
                    }
                }
                Found::Conflict(first) => {
                    counter!(metric::SHARED, "by" => "conflict").increment(1);
                    let reason = format!("its idempotency key came with another question before, as request {first}");
                    settled(Draft::without_text(AnswerStatus::Conflict, reason))
                }
                Found::Full => look_again("too many requests wait for the same answer"),
                Found::Running | Found::Leads => {
                    wait_for_key(&ask, ask.question.idempotency_key.as_deref().unwrap_or_default())
                }
            }),
        }
    }

    /// Whoever asked waits for an answer, also when the question became a dead letter. Its journal is kept: a replay goes on
    /// at the step that failed.
    fn last_words(
        &self,
        delivery: &Delivery<Question>,
        failure: &Failure,
        change: &mut Change<'_>,
    ) -> Result<Vec<Output>, StageError> {
        let ask = self.ask(delivery);
        let (answer, usages, others) = fail(&ask, change, failure, self.now())?;
        Ok(outputs(&answer, &usages, others))
    }
}
