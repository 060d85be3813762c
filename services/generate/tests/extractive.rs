//! Extractive answers on real paragraphs, with the real model: how often they contain the answer, how long they take,
//! and whether questions about something else are turned down.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_precision_loss
)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_contracts::{DocumentId, Revision};
use weir_generate::config::GenerateConfig;
use weir_generate::{Meaning, MeaningError, Passage, any_relevant, candidates, choose};
use weir_models::{ModelConfig, ModelError};
use weir_vectors::Hit;
use weir_vectors::bm25::Bm25;

/// xquad below `WEIR_CORPORA`, by default beside the workspace; none when it is not there.
fn corpora() -> Option<PathBuf> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let folder = std::env::var_os("WEIR_CORPORA").map_or(beside, PathBuf::from);
    let there = folder.join("xquad/answers.jsonl").is_file();
    if !there {
        eprintln!("skipped: no xquad in {} (set WEIR_CORPORA to the folder with the corpora)", folder.display());
    }
    there.then_some(folder)
}

/// The model, unless it is not to be had on this machine.
async fn model() -> Option<Meaning> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Meaning::load(&ModelConfig::default()).await {
        Ok(meaning) => Some(meaning),
        Err(MeaningError::Model(error @ ModelError::Unobtainable { .. })) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn lines(path: PathBuf) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap().to_owned()
}

/// A collection in memory, searched exactly: cosine and BM25, fused by reciprocal rank.
struct Collection {
    passages: Vec<Passage>,
    vectors: Vec<Vec<f32>>,
    words: Vec<HashMap<u32, f32>>,
    idf: HashMap<u32, f32>,
    bm25: Bm25,
}

impl Collection {
    async fn of(corpus: &[Value], meaning: &Meaning) -> Self {
        let passages: Vec<Passage> = corpus
            .iter()
            .map(|line| {
                let hit = Hit {
                    document: DocumentId::parse(text(line, "id")).unwrap(),
                    revision: Revision::from_ordinal(1),
                    ordinal: 0,
                    start: 0,
                    end: i64::try_from(text(line, "text").len()).unwrap(),
                    title: Some(text(line, "title")),
                    heading_path: Vec::new(),
                    text: text(line, "text"),
                    score: 0.0,
                };
                Passage { hit, similarity: None }
            })
            .collect();
        let texts = corpus.iter().map(|line| format!("{}\n{}", text(line, "title"), text(line, "text")));
        let vectors = meaning.of(texts.collect()).await.unwrap();
        let bm25 = Bm25::new();
        let words: Vec<HashMap<u32, f32>> = corpus
            .iter()
            .map(|line| {
                let sparse = bm25.document(&[&text(line, "title"), &text(line, "text")]);
                sparse.indices.into_iter().zip(sparse.values).collect()
            })
            .collect();
        let mut idf: HashMap<u32, f32> = HashMap::new();
        for term in words.iter().flat_map(HashMap::keys) {
            *idf.entry(*term).or_default() += 1.0;
        }
        let n = words.len() as f32;
        idf.values_mut().for_each(|df| *df = (1.0 + (n - *df + 0.5) / (*df + 0.5)).ln());
        Self { passages, vectors, words, idf, bm25 }
    }

    fn search(&self, question: &str, vector: &[f32], limit: usize) -> Vec<Passage> {
        let cosines: Vec<f32> = self.vectors.iter().map(|v| v.iter().zip(vector).map(|(a, b)| a * b).sum()).collect();
        let query = self.bm25.query(question);
        let words: Vec<f32> = self
            .words
            .iter()
            .map(|document| {
                let of = |term: &u32| document.get(term).zip(self.idf.get(term)).map_or(0.0, |(w, idf)| w * idf);
                query.indices.iter().map(of).sum()
            })
            .collect();
        let mut fused = vec![0.0; self.passages.len()];
        for scores in [&cosines, &words] {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            for (rank, at) in order.into_iter().take(100).enumerate() {
                fused[at] += 1.0 / (60.0 + rank as f64);
            }
        }
        let mut order: Vec<usize> = (0..fused.len()).collect();
        order.sort_by(|a, b| fused[*b].total_cmp(&fused[*a]));
        order
            .into_iter()
            .take(limit)
            .map(|at| Passage { similarity: Some(f64::from(cosines[at])), ..self.passages[at].clone() })
            .collect()
    }
}

#[tokio::test]
async fn extractive_answers_contain_the_answer_and_are_quick() {
    let (Some(folder), Some(meaning)) = (corpora(), model().await) else { return };
    let config = GenerateConfig::default();
    let collection = Collection::of(&lines(folder.join("xquad/corpus.jsonl")), &meaning).await;
    let questions: HashMap<String, String> =
        lines(folder.join("xquad/queries.jsonl")).iter().map(|l| (text(l, "id"), text(l, "text"))).collect();
    let (mut asked, mut hit, mut first, mut retrieved, mut refused, mut sentences, mut bytes) = (0, 0, 0, 0, 0, 0, 0);
    let mut took: Vec<Duration> = Vec::new();
    // Every tenth question unless all are wanted: minutes instead of seconds.
    let step = if std::env::var_os("WEIR_ALL_QUESTIONS").is_some() { 1 } else { 10 };
    for line in lines(folder.join("xquad/answers.jsonl")).into_iter().step_by(step) {
        let question = &questions[&text(&line, "id")];
        let gold = line["answers"][0].as_str().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        let began = Instant::now();
        let vector = meaning.of(vec![question.clone()]).await.unwrap().remove(0);
        let passages = collection.search(question, &vector, config.top_k);
        refused += usize::from(!any_relevant(question, &passages, &config));
        let candidates = candidates(question, &passages, &config);
        let vectors = meaning.of(candidates.iter().map(|c| c.text.clone()).collect()).await.unwrap();
        let extract = choose(&candidates, &vector, &vectors, &config);
        took.push(began.elapsed());
        asked += 1;
        hit += usize::from(extract.text.contains(&gold));
        first += usize::from(extract.text.split(" [1]").next().unwrap().contains(&gold));
        retrieved += usize::from(passages.iter().any(|p| p.hit.text.contains(&gold)));
        sentences += weir_text::markers(&extract.text).len();
        bytes += extract.text.len();
    }
    took.sort();
    let share = |n: usize| n as f64 / asked as f64;
    println!(
        "xquad: {asked} questions, answer among the passages {:.3}, in the extract {:.3}, in its first sentence {:.3}, \
         refused {:.3}, {:.2} sentences and {} bytes each, p50 {:?}, p99 {:?}",
        share(retrieved),
        share(hit),
        share(first),
        share(refused),
        share(sentences),
        bytes / asked,
        took[asked / 2],
        took[asked * 99 / 100],
    );
    assert!(share(hit) >= 0.6, "{}", share(hit));
    assert!(share(refused) <= 0.01, "{}", share(refused));

    // Claims of another field have nothing to do with these paragraphs.
    let Ok(strangers) = std::fs::read_to_string(folder.join("scifact/queries.jsonl")) else { return };
    let (mut asked, mut refused) = (0, 0);
    for line in strangers.lines().step_by(step) {
        let question = text(&serde_json::from_str(line).unwrap(), "text");
        let vector = meaning.of(vec![question.clone()]).await.unwrap().remove(0);
        let passages = collection.search(&question, &vector, config.top_k);
        asked += 1;
        refused += usize::from(!any_relevant(&question, &passages, &config));
    }
    println!("scifact's claims put to xquad: {refused} of {asked} refused");
}
