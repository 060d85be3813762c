//! An answer in the making.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use metrics::{counter, histogram};
use sha2::{Digest, Sha256};
use weir_contracts::{Answer, AnswerStatus, Citation, Provenance, Question, Topic, Usage, unix_millis};
use weir_llm::{TokenUsage, Usd};
use weir_stage::Output;

use crate::journal::Spent;
use crate::metric;

/// Bytes of a question that its answer repeats, at most: a question that fills a record must not keep its own answer
/// from fitting into one.
const QUESTION_REPEATED: usize = 64 << 10;

/// What is known of an answer so far; becomes the records about it.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) status: AnswerStatus,
    pub(crate) provenance: Provenance,
    pub(crate) text: String,
    pub(crate) citations: Vec<Citation>,
    pub(crate) reason: Option<String>,
    pub(crate) provider: String,
    pub(crate) model: String,
    pub(crate) prompt_version: String,
    /// Attempt whose pieces make up the text; 0 when it was not streamed.
    pub(crate) attempt: i32,
    pub(crate) calls: Vec<Spent>,
    pub(crate) timings: Timings,
    /// When a request that was turned away may come again.
    pub(crate) retry_after: Option<Duration>,
    /// How old a stale answer is, milliseconds.
    pub(crate) age: Option<i64>,
}

impl Draft {
    /// An answer without text.
    pub(crate) fn without_text(status: AnswerStatus, reason: impl Into<Option<String>>) -> Self {
        Self {
            status,
            provenance: Provenance::Fresh,
            text: String::new(),
            citations: Vec::new(),
            reason: reason.into(),
            provider: String::new(),
            model: String::new(),
            prompt_version: String::new(),
            attempt: 0,
            calls: Vec::new(),
            timings: Timings::default(),
            retry_after: None,
            age: None,
        }
    }

    /// An answer with text.
    pub(crate) fn with_text(status: AnswerStatus, text: String, citations: Vec<Citation>) -> Self {
        Self { text, citations, ..Self::without_text(status, None) }
    }

    /// Tokens and cost of all calls together: failed ones may have cost, too.
    fn spent(&self) -> (TokenUsage, Usd) {
        let mut usage = TokenUsage::default();
        let mut cost = Usd::default();
        for call in &self.calls {
            usage.input += call.input;
            usage.cached += call.cached;
            usage.output += call.output;
            usage.estimated |= call.estimated;
            cost += call.cost();
        }
        (usage, cost)
    }

    /// The answer, and a usage record for each call but the first `reported`. `prompt_version` is the one the question was to
    /// be answered with.
    pub(crate) fn into_records(
        self,
        question: &Question,
        prompt_version: &str,
        now: SystemTime,
        reported: usize,
    ) -> (Answer, Vec<Usage>) {
        let at = unix_millis(now);
        count(&self, question, at);
        let (usage, cost) = self.spent();
        let calls = self.calls.iter().skip(reported);
        let used = if self.prompt_version.is_empty() { prompt_version } else { &self.prompt_version };
        let usages = calls.map(|call| usage_of(call, question, used, at)).collect();
        // One whose repeat is not charged again is no call of its own, but an attempt.
        let highest = self.calls.iter().map(|call| call.attempt).max().unwrap_or(0);
        let attempts = highest.max(i32::try_from(self.calls.len()).unwrap_or(i32::MAX));
        let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let answer = Answer {
            request_id: question.request_id.clone(),
            tenant: question.tenant.clone(),
            status: self.status,
            provenance: self.provenance,
            text_hash: text_hash(&self.text),
            text: self.text,
            citations: self.citations,
            reason: self.reason,
            provider: self.provider,
            model: self.model,
            prompt_version: self.prompt_version,
            input_tokens: whole(usage.input),
            output_tokens: whole(usage.output),
            usage_estimated: usage.estimated,
            cost_usd: cost.0,
            attempt: self.attempt,
            attempts,
            age_ms: self.age,
            answered_with: None,
            retry_after_ms: self.retry_after.map(millis),
            timings: self.timings.into_map(),
            question: beginning(&question.question).to_owned(),
            asked_at: question.created_at,
            at,
        };
        (answer, usages)
    }
}

/// SHA-256 of a text, in hex.
pub(crate) fn text_hash(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

/// The records about an answer: itself, its calls, and the answers of those who waited for it.
pub(crate) fn outputs(answer: &Answer, usages: &[Usage], others: impl IntoIterator<Item = Answer>) -> Vec<Output> {
    let answers = std::iter::once(answer.clone()).chain(others).map(to_output);
    let usages = usages.iter().map(|usage| Output::new(Topic::USAGE, usage.tenant.as_str(), usage.clone()));
    answers.chain(usages).collect()
}

fn to_output(answer: Answer) -> Output {
    Output::new(Topic::ANSWERS, answer.request_id.to_string(), answer)
}

fn beginning(question: &str) -> &str {
    question.get(..question.floor_char_boundary(QUESTION_REPEATED)).unwrap_or_default()
}

fn usage_of(call: &Spent, question: &Question, prompt_version: &str, at: i64) -> Usage {
    Usage {
        request_id: question.request_id.clone(),
        tenant: question.tenant.clone(),
        provider: call.provider.clone(),
        model: call.model.clone(),
        input_tokens: whole(call.input),
        cached_tokens: whole(call.cached),
        output_tokens: whole(call.output),
        estimated: call.estimated,
        cost_usd: call.cost_usd,
        latency_ms: whole(call.latency_ms),
        status: call.status.clone(),
        attempt: call.attempt,
        prompt_version: prompt_version.to_owned(),
        feature: question.feature.clone(),
        at,
    }
}

fn whole(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

fn count(draft: &Draft, question: &Question, at: i64) {
    let status = draft.status.name();
    let provenance = draft.provenance.name();
    counter!(metric::ANSWERS, "status" => status, "provenance" => provenance).increment(1);
    let waited = u64::try_from(at.saturating_sub(question.created_at)).unwrap_or(0);
    if question.created_at > 0 {
        histogram!(metric::ANSWER_SECONDS, "status" => status).record(Duration::from_millis(waited).as_secs_f64());
    }
    let (template, version) = crate::prompt::parts(&draft.prompt_version);
    tracing::info!(
        tenant = %question.tenant,
        request = %question.request_id,
        status,
        provenance,
        citations = draft.citations.len(),
        calls = draft.calls.len(),
        prompt_template = template,
        prompt_version = version,
        since_asked_ms = waited,
        "question answered"
    );
}

/// How long each step took.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timings(Vec<(&'static str, Duration)>);

impl Timings {
    /// Notes a step.
    pub(crate) fn note(&mut self, step: &'static str, took: Duration) {
        self.0.push((step, took));
    }

    /// Notes a step that has a metric, too.
    pub(crate) fn step(&mut self, step: &'static str, took: Duration) {
        histogram!(metric::STEP_SECONDS, "step" => step).record(took.as_secs_f64());
        self.note(step, took);
    }

    fn into_map(self) -> BTreeMap<String, String> {
        self.0.into_iter().map(|(step, took)| (step.to_owned(), format!("{:.1}", took.as_secs_f64() * 1e3))).collect()
    }
}
