//! Groundedness can fail: on real paragraphs, answers held against a swapped paragraph score apart from true ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde_json::Value;
use weir_contracts::{Answer, AnswerStatus, Citation, DocumentId, Provenance, RequestId, Revision, TenantId};
use weir_eval::groundedness;

/// xquad below `WEIR_CORPORA`, by default beside the workspace; none when it is not there.
fn corpus() -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let folder = std::env::var_os("WEIR_CORPORA").map_or(root, PathBuf::from).join("xquad");
    let there = folder.join("answers.jsonl").is_file();
    if !there {
        eprintln!("skipped: no {} (set WEIR_CORPORA to the folder with the corpora)", folder.display());
    }
    there.then_some(folder)
}

fn lines(path: PathBuf) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap().to_owned()
}

struct Paragraph {
    id: String,
    title: String,
    text: String,
}

fn score(text: &str, passage: &Paragraph) -> Option<f64> {
    groundedness(&Answer {
        request_id: RequestId::parse("r").unwrap(),
        tenant: TenantId::parse("t").unwrap(),
        status: AnswerStatus::Complete,
        provenance: Provenance::Fresh,
        text: format!("{text} [1]"),
        citations: vec![Citation {
            marker: 1,
            document: DocumentId::parse(passage.id.clone()).unwrap(),
            title: Some(passage.title.clone()),
            revision: Revision::from_ordinal(1),
            ordinal: 0,
            start: 0,
            end: i64::try_from(passage.text.len()).unwrap(),
            passage: passage.text.clone(),
            score: 1.0,
        }],
        reason: None,
        provider: String::new(),
        model: String::new(),
        prompt_version: String::new(),
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
    })
}

/// Probability that a true answer scores above a swapped one; ties count half.
#[allow(clippy::cast_precision_loss)]
fn auc(truth: &[f64], swapped: &[f64]) -> f64 {
    let mut wins = 0.0;
    for t in truth {
        for s in swapped {
            wins += if t > s {
                1.0
            } else if (t - s).abs() < f64::EPSILON {
                0.5
            } else {
                0.0
            };
        }
    }
    wins / (truth.len() * swapped.len()) as f64
}

#[allow(clippy::cast_precision_loss)]
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn answers_held_against_swapped_paragraphs_score_apart_from_true_ones() {
    let Some(folder) = corpus() else { return };
    let paragraphs: Vec<Paragraph> = lines(folder.join("corpus.jsonl"))
        .iter()
        .map(|line| Paragraph { id: text(line, "id"), title: text(line, "title"), text: text(line, "text") })
        .collect();
    let at: HashMap<&str, usize> = paragraphs.iter().enumerate().map(|(at, p)| (p.id.as_str(), at)).collect();
    let questions: HashMap<String, String> =
        lines(folder.join("queries.jsonl")).iter().map(|line| (text(line, "id"), text(line, "text"))).collect();

    // What is scored: the sentence with the answer, its second half (so that it is no copy), the question with the
    // answer as one statement, the bare answer. Against what: the next paragraph of the same article, another article.
    let mut scores: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for line in lines(folder.join("answers.jsonl")) {
        let home = at[line["doc"].as_str().unwrap()];
        let gold = line["answers"][0].as_str().unwrap().to_owned();
        let passage = &paragraphs[home];
        let sentence = weir_text::sentences(&passage.text)
            .into_iter()
            .map(|range| passage.text[range].to_owned())
            .find(|sentence| sentence.contains(&gold))
            .unwrap_or_else(|| gold.clone());
        let words: Vec<&str> = sentence.split_whitespace().collect();
        let half = words[words.len() / 2..].join(" ");
        let statement = format!("{} {gold}.", questions[&text(&line, "id")].trim_end_matches('?'));
        let same_article = (1..paragraphs.len())
            .map(|step| (home + step) % paragraphs.len())
            .find(|other| paragraphs[*other].title == passage.title)
            .unwrap();
        let other_article = (home + paragraphs.len() / 2) % paragraphs.len();
        for (kind, said) in [("sentence", &sentence), ("half", &half), ("statement", &statement), ("span", &gold)] {
            for (against, paragraph) in [("true", home), ("same article", same_article), ("other", other_article)] {
                if let Some(score) = score(said, &paragraphs[paragraph]) {
                    scores.entry((kind, against)).or_default().push(score);
                }
            }
        }
    }
    for kind in ["sentence", "half", "statement", "span"] {
        let truth = &scores[&(kind, "true")];
        for against in ["same article", "other"] {
            let swapped = &scores[&(kind, against)];
            let auc = auc(truth, swapped);
            println!("{kind:>9} against {against:<12}: AUC {auc:.4}, means {:.3} / {:.3}", mean(truth), mean(swapped));
            assert!(auc >= 0.9, "{kind} against {against}: AUC {auc}");
        }
    }
}
