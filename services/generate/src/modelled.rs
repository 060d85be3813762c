//! Answers that a model writes, or wrote before, and what there is instead when none does.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use weir_contracts::{AnswerStatus, Provenance, unix_millis};
use weir_llm::{Chain, ChatRequest, Run};
use weir_stage::{LaneState, StageError};

use crate::answering::{Answering, Instead, failed};
use crate::ask::Ask;
use crate::cache::{Basis, Cached, normalised};
use crate::case::{Case, Keep};
use crate::cite::cited;
use crate::clock::Clock;
use crate::draft::{Draft, Timings};
use crate::gist::Gist;
use crate::journal::StoredReply;
use crate::metric;
use crate::prompt::{ANSWER, UNAIDED, full_name, parts};
use crate::retrieve::{Passage, Retrieve};
use crate::similar::Asked;
use crate::slot::fingerprint;
use crate::stream::Streamer;

impl<R: Retrieve> Answering<R> {
    /// What a model says, or said before, or what there is instead.
    pub(crate) async fn model(
        &self,
        case: &mut Case<'_>,
        state: LaneState<'_>,
        chain: &Chain,
        passages: &[Passage],
        mut timings: Timings,
    ) -> Result<Result<Draft, Instead>, StageError> {
        let ask = case.ask;
        let version = self.version_for(ask, passages);
        let messages = match self.parts.prompts.messages(&version, ask.text(), passages) {
            Ok(messages) => messages,
            Err(error) => return Ok(Err(Instead::Reject(failed(&error)))),
        };
        if let Some(expired) = self.expired(ask, "before a model was asked") {
            return Ok(Ok(expired));
        }
        let known = self.look_up(case, state, chain, passages, &version).await?;
        let known = match known {
            Known::Answer(draft) => return Ok(Ok(Draft { timings, ..*draft })),
            Known::Joined(slot, asked) => return Ok(Err(Instead::Joined(slot, asked))),
            Known::Stale(cached) => Some(cached),
            Known::Nothing => None,
        };
        case.journal.passages = Some(passages.to_vec());
        let remaining = ask.deadline.and_then(|deadline| deadline.remaining(self.now()));
        let own = self.parts.prompts.settings(&version);
        let request = ChatRequest {
            messages,
            max_tokens: own.max_output_tokens.map_or(self.parts.config.max_output_tokens, NonZeroU32::get),
            temperature: self.temperature(&version),
            deadline: remaining.map(|left| tokio::time::Instant::now() + left),
            idempotency_key: Some(self.call_key(case)),
            tenant: Some(ask.question.tenant.to_string()),
            prompt_template: Some(parts(&version).0.to_owned()),
            prompt_version: Some(parts(&version).1.to_owned()),
            tools: Vec::new(),
        };
        let calling = Instant::now();
        let mut streamer = Streamer::start(Arc::clone(&self.parts.tokens), ask.origin());
        let first = case.journal.next_attempt();
        let Run { reply, calls: made } = self.call(case, state, chain, &request, first, &mut streamer).await?;
        // Where a call was made before, there is an answer all the same.
        if let Some(refusal) = case.stopped()?.filter(|_| case.journal.calls.is_empty()) {
            return Ok(Err(Instead::OverLimit(refusal)));
        }
        let heard = Instant::now();
        case.record().await?;
        let journaled = async {
            state.committed().await?;
            histogram!(metric::UNJOURNALED_SECONDS).record(heard.elapsed().as_secs_f64());
            Ok::<_, StageError>(())
        };
        let (streamed, journaled) = tokio::join!(streamer.finish(), journaled);
        journaled?;
        for call in made.iter().filter(|call| !call.usage.estimated && call.usage.input > 0) {
            self.prompts.observe(&version, call.usage.input);
        }
        timings.step("model", calling.elapsed());
        let attempt = |attempt: i32| if streamed { attempt } else { 0 };
        let draft = match reply {
            Ok(reply) if !reply.text.trim().is_empty() => {
                timings.note("first_token", reply.first_token);
                let attempt = attempt(reply.call.attempt);
                let stored = case.journal.reply.clone();
                stored.map(|stored| complete(&stored, passages, attempt)).ok_or_else(|| "no reply".to_owned())
            }
            Ok(_) => Err("the model wrote nothing".to_owned()),
            Err(exhausted) if exhausted.is_deadline() => {
                let reason = "the deadline passed while a model was answering".to_owned();
                Ok(Draft::without_text(AnswerStatus::Expired, reason))
            }
            Err(exhausted) => match (&exhausted.partial, &known) {
                (Some(partial), None) => Ok(Draft {
                    reason: Some(exhausted.error.to_string()),
                    attempt: attempt(partial.attempt),
                    provider: partial.provider.clone(),
                    model: partial.model.clone(),
                    ..Draft::with_text(AnswerStatus::Incomplete, partial.text.clone(), cited(&partial.text, passages))
                }),
                _ => Err(exhausted.to_string()),
            },
        };
        let draft = match draft {
            Ok(draft) => Ok(Draft { timings, ..draft }),
            Err(reason) => self.degraded(ask, passages, timings, known, reason).await,
        };
        Ok(draft.map(|draft| Draft { prompt_version: version.to_string(), ..draft }))
    }

    /// The prompt version for what was found. Nothing is, where nothing could be looked up; what is not relevant does not come
    /// here.
    pub(crate) fn version_for<'a>(&self, ask: &'a Ask<'_>, passages: &[Passage]) -> Cow<'a, str> {
        match passages.is_empty() {
            true => Cow::Owned(full_name(UNAIDED, &self.parts.config.unaided_prompt_version)),
            false => Cow::Borrowed(&*ask.version),
        }
    }

    /// The prompt version's own temperature, or the configured one.
    pub(crate) fn temperature(&self, version: &str) -> f32 {
        self.parts.prompts.settings(version).temperature.unwrap_or(self.parts.config.temperature)
    }

    /// The key under which a provider that knows such keys remembers the question's call: the same for every owner of the
    /// question, another one for every question.
    pub(crate) fn call_key(&self, case: &Case<'_>) -> String {
        let ask = case.ask;
        let at = &ask.delivery.at;
        let (request, lane, offset) = (&ask.question.request_id, at.lane.0, ask.delivery.first_offset());
        let parts: [&[u8]; 5] = [
            ask.question.tenant.as_str().as_bytes(),
            request.as_str().as_bytes(),
            &lane.to_le_bytes(),
            &offset.to_le_bytes(),
            // Who wants it done anew does not want what was said before.
            &case.journal.restarts.to_le_bytes(),
        ];
        hex::encode(weir_contracts::length_prefixed_hash(&parts))
    }

    /// Puts the question to the chain. Signs of life are committed meanwhile; where that fails the step ends: nobody else may
    /// find it under way and dead.
    pub(crate) async fn call(
        &self,
        case: &mut Case<'_>,
        state: LaneState<'_>,
        chain: &Chain,
        request: &ChatRequest,
        first_attempt: i32,
        streamer: &mut Streamer,
    ) -> Result<Run, StageError> {
        let every = Duration::from_millis(self.parts.config.heartbeat_ms);
        let beats = beat(state, case.ask.journal_key(), every, &self.parts.clock);
        tokio::select! {
            run = chain.ask_with_ledger(request, first_attempt, streamer, case) => Ok(run),
            missed = beats => Err(missed),
        }
    }

    /// Whether the question was answered before, or is being answered, from just what was found now.
    async fn look_up(
        &self,
        case: &mut Case<'_>,
        state: LaneState<'_>,
        chain: &Chain,
        passages: &[Passage],
        version: &str,
    ) -> Result<Known, StageError> {
        let config = &self.parts.config;
        if config.cache_stale_s == 0 || !case.journal.open.is_empty() || !case.journal.calls.is_empty() {
            return Ok(Known::Nothing);
        }
        let ask = case.ask;
        let question = fingerprint(ask.question, &normalised(ask.text()), version);
        let key = format!("answer/{}/{question}", ask.question.tenant);
        let basis = Basis::of(passages, self.parts.prompts.fingerprint(version), chain.fingerprint());
        let flight = format!("flight/{}/{question}/{}", ask.question.tenant, basis.fingerprint());
        let cached: Option<Cached> = state.update(|change| crate::journal::load(change, &key)).await?;
        let now = unix_millis(self.now());
        let fresh_for = i64::try_from(config.cache_fresh_s.saturating_mul(1_000)).unwrap_or(i64::MAX);
        let for_millis = i64::try_from(config.cache_stale_s.saturating_mul(1_000)).unwrap_or(i64::MAX);
        if let Some(cached) = cached.as_ref().filter(|cached| cached.basis == basis && cached.age(now) < fresh_for) {
            counter!(metric::CACHE, "result" => "hit").increment(1);
            return Ok(Known::Answer(Box::new(cached_draft(cached, Provenance::Cached, now))));
        }
        let similar = self.similar_to(case, version).await;
        if let Some((scope, asked, threshold)) = &similar
            && let Some(key) = self.similar.find(scope, asked, *threshold)
        {
            let other: Option<Cached> = state.update(|change| crate::journal::load(change, &key)).await?;
            let fits = |other: &Cached| other.answers_too(&basis) && other.age(now) < fresh_for;
            if let Some(other) = other.filter(fits) {
                counter!(metric::CACHE, "result" => "similar").increment(1);
                let mut draft = cached_draft(&other, Provenance::Cached, now);
                draft.reason = Some("the answer to an equivalent question".to_owned());
                return Ok(Known::Answer(Box::new(draft)));
            }
        }
        counter!(metric::CACHE, "result" => "miss").increment(1);
        if case.is_under_way_elsewhere(&flight, &question).await? {
            return Ok(Known::Joined(flight, question));
        }
        if let Some((scope, asked, _)) = similar {
            // It may come to nothing: then there is no answer under the key.
            self.similar.note(scope, asked, key.clone());
        }
        case.keep = Some(Keep { key, basis, for_millis });
        Ok(cached.map_or(Known::Nothing, |cached| Known::Stale(Box::new(cached))))
    }

    /// Where equivalent questions are, what this one asks, and how near they must be; none where the tenant wants no answers of
    /// theirs, or nothing was found that they could rest on.
    async fn similar_to(&self, case: &Case<'_>, version: &str) -> Option<(String, Asked, f64)> {
        let threshold = case.semantic_cache().filter(|_| parts(version).0 == ANSWER)?;
        let ask = case.ask;
        // Everything but the words.
        let scope = format!("{}/{}", ask.question.tenant, fingerprint(ask.question, "", version));
        let vector = self.vector(ask.text()).await.ok()?;
        Some((scope, Asked { gist: Gist::of(ask.text()), vector }, threshold))
    }

    /// In place of a model's answer: what was answered before, marked, or sentences of the passages, marked.
    async fn degraded(
        &self,
        ask: &Ask<'_>,
        passages: &[Passage],
        timings: Timings,
        known: Option<Box<Cached>>,
        reason: String,
    ) -> Result<Draft, Instead> {
        if let Some(cached) = known {
            let limit = Duration::from_millis(self.parts.config.retrieve_timeout_ms);
            let documents = cached.basis.documents();
            let shown = self.parts.retrieve.all_shown(&ask.question.tenant, &documents);
            // An answer from a document that was erased must not come back, nor one of which nobody can say.
            if matches!(tokio::time::timeout(limit, shown).await, Ok(Ok(true))) {
                counter!(metric::CACHE, "result" => "stale").increment(1);
                let draft = cached_draft(&cached, Provenance::Stale, unix_millis(self.now()));
                return Ok(Draft { reason: Some(reason), timings, ..draft });
            }
            counter!(metric::CACHE, "result" => "unsure").increment(1);
        }
        let draft = self.extract(ask, passages, timings).await?;
        Ok(Draft { provenance: Provenance::Degraded, reason: Some(reason), ..draft })
    }
}

/// What is known of a question before a model is asked.
enum Known {
    Answer(Box<Draft>),
    Joined(String, String),
    Stale(Box<Cached>),
    Nothing,
}

/// Writes signs of life of a question until they are not committed in time.
async fn beat(state: LaneState<'_>, journal: String, every: Duration, clock: &Clock) -> StageError {
    let key = format!("alive/{journal}");
    loop {
        tokio::time::sleep(every).await;
        let at = unix_millis(clock());
        let written = async {
            // Kept as long as a call can take at most; the question's end does not have to know of it.
            state
                .update(|change| {
                    let until = change.now().saturating_add(600_000);
                    change.put_until(&key, at.to_string(), until);
                    Ok(())
                })
                .await?;
            state.committed().await
        };
        match tokio::time::timeout(3 * every, written).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(_) => return StageError::unavailable("lane", "a sign of life was not committed in time"),
        }
    }
}

/// What was answered before, again.
fn cached_draft(cached: &Cached, provenance: Provenance, now: i64) -> Draft {
    let answer = &cached.answer;
    Draft {
        provenance,
        provider: answer.provider.clone(),
        model: answer.model.clone(),
        prompt_version: answer.prompt_version.clone(),
        age: Some(cached.age(now)),
        reason: answer.reason.clone(),
        ..Draft::with_text(answer.status, answer.text.clone(), answer.citations.clone())
    }
}

/// What a model wrote to its end, or to its limit of tokens.
pub(crate) fn complete(reply: &StoredReply, passages: &[Passage], attempt: i32) -> Draft {
    let citations = cited(&reply.text, passages);
    let (status, reason) = if reply.cut {
        (AnswerStatus::Incomplete, Some("the model reached its limit of tokens".to_owned()))
    } else if citations.is_empty() {
        (AnswerStatus::Complete, Some("the answer cites none of the passages it was given".to_owned()))
    } else {
        (AnswerStatus::Complete, None)
    };
    Draft {
        reason,
        provider: reply.provider.clone(),
        model: reply.model.clone(),
        attempt,
        ..Draft::with_text(status, reply.text.clone(), citations)
    }
}
