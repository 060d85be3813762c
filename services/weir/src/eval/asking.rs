//! Questions of a set through the whole pipeline: do the answers contain what they should, and how long do they take?

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use weir_contracts::{Evaluation, Topic};

use crate::ask::{Asker, Asking};
use crate::context::Context;
use crate::eval::dataset::{Dataset, Query};
use crate::eval::metrics::{float, quantile};
use crate::progress::Progress;
use crate::tail::{self, Tail};

/// How long an answer is of use.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long the last scores may take.
const LAST_SCORES: Duration = Duration::from_secs(10);

/// What came of asking.
#[derive(Debug, Clone, Serialize)]
pub struct Asked {
    /// Questions.
    pub questions: usize,
    /// Share of the answers that contain a span that answers.
    pub contains_answer: f64,
    /// Share of the answers that cite a relevant document.
    pub cites_relevant: f64,
    /// Answers by status.
    pub by_status: HashMap<&'static str, usize>,
    /// Mean groundedness of the scored answers.
    pub groundedness: f64,
    /// Mean citation validity of the scored answers.
    pub citation_validity: f64,
    /// Answers that were scored.
    pub scored: usize,
    /// Milliseconds from sending a question to its answer, one after the other: the half are below.
    pub p50_ms: f64,
    /// 99 of 100 are below.
    pub p99_ms: f64,
}

/// Asks the queries one after the other.
///
/// # Errors
/// When an answer does not come.
pub async fn ask(
    context: &Context,
    tenant: &weir_contracts::TenantId,
    set: &Dataset,
    queries: &[Query],
) -> color_eyre::Result<Asked> {
    let registry = tail::registry(context)?;
    let mut scores = Tail::<Evaluation>::from_now(context, &registry, Topic::EVALUATIONS).await?;
    let mut asker = Asker::connect(context, &registry).await?;
    let mut progress = Progress::new(queries.len(), "asked", context.json);
    let mut waiting: HashMap<String, ()> = HashMap::new();
    let (mut contains, mut cites) = (0, 0);
    let mut by_status: HashMap<&'static str, usize> = HashMap::new();
    let mut millis = Vec::new();
    let (mut grounded, mut valid) = (Vec::new(), Vec::new());
    let mut note = |evaluation: Evaluation, waiting: &mut HashMap<String, ()>| {
        if waiting.remove(evaluation.request_id.as_str()).is_some() {
            grounded.extend(evaluation.groundedness);
            valid.extend(evaluation.citation_validity);
        }
    };
    for (done, query) in queries.iter().enumerate() {
        let asking = Asking {
            tenant: tenant.clone(),
            question: query.text.clone(),
            filter: std::collections::BTreeMap::new(),
            deadline: DEADLINE,
            top_k: None,
            agent: false,
            prompt_version: None,
        };
        let answered = asker.ask(&asking, |_| {}).await?;
        millis.push(answered.total.as_secs_f64() * 1e3);
        let answer = answered.answer;
        waiting.insert(answer.request_id.as_str().to_owned(), ());
        *by_status.entry(answer.status.name()).or_default() += 1;
        let text = plain(&answer.text);
        let spans = set.answers.get(&query.id);
        contains += usize::from(spans.is_some_and(|spans| spans.iter().any(|span| text.contains(&plain(span)))));
        let relevant = set.judgments.get(&query.id);
        let is_relevant = |document: &str| relevant.and_then(|of| of.get(document)).is_some_and(|grade| *grade > 0);
        cites += usize::from(answer.citations.iter().any(|citation| is_relevant(citation.document.as_str())));
        progress.set(done + 1, format!("{contains} contain the answer"));
        while let Some(score) = scores.ready() {
            note(score?.record, &mut waiting);
        }
    }
    progress.finish();
    while !waiting.is_empty() {
        match tokio::time::timeout(LAST_SCORES, scores.next()).await {
            Ok(score) => note(score?.record, &mut waiting),
            Err(_) => break,
        }
    }
    millis.sort_by(f64::total_cmp);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / float(values.len()).max(1.0);
    Ok(Asked {
        questions: queries.len(),
        contains_answer: float(contains) / float(queries.len()).max(1.0),
        cites_relevant: float(cites) / float(queries.len()).max(1.0),
        by_status,
        groundedness: mean(&grounded),
        citation_validity: mean(&valid),
        scored: grounded.len(),
        p50_ms: quantile(&millis, 0.5),
        p99_ms: quantile(&millis, 0.99),
    })
}

/// On one line, in lower case.
#[must_use]
pub fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}
