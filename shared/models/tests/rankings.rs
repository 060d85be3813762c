//! Whether rankings in bf16 are as good as those in single precision, on real corpora with judged queries.
//!
//! The corpora are not part of the project: `WEIR_CORPORA` names the folder that holds them, by default `../shared/data`
//! beside the checkout.

#![cfg(feature = "embedder")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_precision_loss)]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use weir_contracts::are_comparable;
use weir_models::{DeviceChoice, Embedder, ModelConfig, ModelError, Precision, prepare};

#[derive(Deserialize)]
struct Text {
    id: String,
    #[serde(default)]
    title: String,
    text: String,
}

/// Documents, queries, and for each query the relevant documents with their grades.
struct Corpus {
    documents: Vec<Text>,
    queries: Vec<Text>,
    judgments: HashMap<String, HashMap<String, f64>>,
}

impl Corpus {
    /// Every `step`th document, and all relevant ones; none where the corpus is absent.
    fn read(name: &str, step: usize) -> Option<Self> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
        let folder = std::env::var_os("WEIR_CORPORA").map_or(beside, PathBuf::from).join(name);
        if !folder.is_dir() {
            println!("skipped: no {}; set WEIR_CORPORA to the folder with the corpora", folder.display());
            return None;
        }
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
        let texts =
            |file: &str| -> Vec<Text> { read(file).lines().map(|line| serde_json::from_str(line).unwrap()).collect() };
        let mut judgments: HashMap<String, HashMap<String, f64>> = HashMap::new();
        for line in read("qrels.tsv").lines() {
            let [query, document, grade] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
            judgments.entry(query.into()).or_default().insert(document.into(), grade.parse().unwrap());
        }
        let relevant: HashSet<&String> = judgments.values().flat_map(HashMap::keys).collect();
        let wanted = |(place, text): &(usize, Text)| place % step == 0 || relevant.contains(&text.id);
        let documents = texts("corpus.jsonl").into_iter().enumerate().filter(wanted).map(|(_, text)| text).collect();
        let queries = texts("queries.jsonl").into_iter().filter(|query| judgments.contains_key(&query.id)).collect();
        Some(Self { documents, queries, judgments })
    }

    /// Mean nDCG of the first ten documents, and the vectors of all documents.
    fn ndcg(&self, embedder: &Embedder) -> (f64, Vec<Vec<f32>>) {
        let whole: Vec<String> = self.documents.iter().map(|text| format!("{}\n{}", text.title, text.text)).collect();
        let documents = embedder.embed(&whole.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        let asked: Vec<&str> = self.queries.iter().map(|query| query.text.as_str()).collect();
        let queries = embedder.embed(&asked).unwrap();
        let of = |(query, vector): (&Text, &Vec<f32>)| {
            let mut ranking: Vec<(f32, &str)> =
                self.documents.iter().zip(&documents).map(|(text, x)| (dot(vector, x), text.id.as_str())).collect();
            ranking.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
            let judged = self.judgments.get(&query.id).unwrap();
            let gain = |grades: &mut dyn Iterator<Item = f64>| -> f64 {
                grades.take(10).enumerate().map(|(place, grade)| grade / (place as f64 + 2.0).log2()).sum()
            };
            let mut best: Vec<f64> = judged.values().copied().collect();
            best.sort_by(|a, b| b.total_cmp(a));
            let found = gain(&mut ranking.iter().map(|(_, id)| judged.get(*id).copied().unwrap_or(0.0)));
            found / gain(&mut best.into_iter())
        };
        let all: f64 = self.queries.iter().zip(&queries).map(of).sum();
        (all / self.queries.len() as f64, documents)
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Takes minutes.
#[tokio::test]
#[ignore = "minutes of embedding"]
async fn rankings_in_bf16_are_as_good_as_in_single_precision() {
    for (name, step) in [("xquad", 1), ("scifact", 5)] {
        let Some(corpus) = Corpus::read(name, step) else { return };
        let mut found = Vec::new();
        for precision in [Precision::F32, Precision::Bf16] {
            let config = ModelConfig { device: DeviceChoice::Cpu, precision, ..ModelConfig::default() };
            let files = match prepare(&config).await {
                Err(error @ ModelError::Unobtainable { .. }) => return println!("skipped: {error}"),
                files => files.unwrap(),
            };
            let embedder = Embedder::load(&config, &files).unwrap();
            found.push((embedder.model_id().to_owned(), corpus.ndcg(&embedder)));
        }
        let [(single, (exact, one)), (half, (rounded, other))] = found.try_into().unwrap();
        assert!(are_comparable(&single, &half) && single != half);
        let mut cosines: Vec<f32> = one.iter().zip(&other).map(|(a, b)| dot(a, b)).collect();
        cosines.sort_by(f32::total_cmp);
        let first = cosines.get(cosines.len() / 100).copied().unwrap();
        println!(
            "{name}: nDCG@10 {exact:.4} in {single}, {rounded:.4} in {half}; {} documents, {} queries; cosine of the \
             first percentile {first:.6}, of the worst {:.6}",
            corpus.documents.len(),
            corpus.queries.len(),
            cosines.first().unwrap(),
        );
        assert!((exact - rounded).abs() <= 0.002, "{name}: {rounded} instead of {exact}");
        assert!(first >= 0.9998, "{name}: {first}");
    }
}
