//! Whether rankings in bf16 and int8 are as good as those in single precision, on real corpora with judged queries.
//!
//! The corpora are not part of the project: `WEIR_CORPORA` names the folder that holds them, by default `../shared/data`
//! beside the checkout.

#![cfg(feature = "embedder")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_precision_loss)]

use std::collections::HashMap;
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
    /// None where the corpus is absent.
    fn read(name: &str) -> Option<Self> {
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
        let documents = texts("corpus.jsonl");
        let queries = texts("queries.jsonl").into_iter().filter(|query| judgments.contains_key(&query.id)).collect();
        Some(Self { documents, queries, judgments })
    }

    /// Mean nDCG of the first ten documents.
    fn ndcg(&self, queries: &[Vec<f32>], documents: &[Vec<f32>]) -> f64 {
        let of = |(query, vector): (&Text, &Vec<f32>)| {
            let mut ranking: Vec<(f32, &str)> =
                self.documents.iter().zip(documents).map(|(text, x)| (dot(vector, x), text.id.as_str())).collect();
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
        self.queries.iter().zip(queries).map(of).sum::<f64>() / self.queries.len() as f64
    }
}

/// A corpus as vectors.
struct Embedded {
    model: String,
    documents: Vec<Vec<f32>>,
    queries: Vec<Vec<f32>>,
}

impl Embedded {
    /// None where the model can't be had.
    async fn of(corpus: &Corpus, precision: Precision) -> Option<Self> {
        let config = ModelConfig { device: DeviceChoice::Cpu, precision, ..ModelConfig::default() };
        let files = match prepare(&config).await {
            Err(error @ ModelError::Unobtainable { .. }) => {
                println!("skipped: {error}");
                return None;
            }
            files => files.unwrap(),
        };
        let embedder = Embedder::load(&config, &files).unwrap();
        let whole: Vec<String> = corpus.documents.iter().map(|text| format!("{}\n{}", text.title, text.text)).collect();
        let documents = embedder.embed(&whole.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        let asked: Vec<&str> = corpus.queries.iter().map(|query| query.text.as_str()).collect();
        let queries = embedder.embed(&asked).unwrap();
        Some(Self { model: embedder.model_id().to_owned(), documents, queries })
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Takes minutes.
#[tokio::test]
#[ignore = "minutes of embedding"]
async fn rankings_in_other_precisions_are_as_good_as_in_single_precision() {
    for name in ["xquad", "scifact"] {
        let Some(corpus) = Corpus::read(name) else { return };
        let Some(exact) = Embedded::of(&corpus, Precision::F32).await else { return };
        let wanted = corpus.ndcg(&exact.queries, &exact.documents);
        println!("{name}: {} documents, {} queries", corpus.documents.len(), corpus.queries.len());
        println!("  nDCG@10 {wanted:.4} in {}", exact.model);
        for (precision, least) in [(Precision::Int8, 0.995), (Precision::Bf16, 0.9998)] {
            let Some(other) = Embedded::of(&corpus, precision).await else { return };
            let mixed = are_comparable(&exact.model, &other.model);
            assert_eq!(mixed, precision == Precision::Bf16);
            assert_ne!(exact.model, other.model);
            let mut cosines: Vec<f32> = exact.documents.iter().zip(&other.documents).map(|(a, b)| dot(a, b)).collect();
            cosines.sort_by(f32::total_cmp);
            let first = cosines.get(cosines.len() / 100).copied().unwrap();
            // A fleet may have processors of several kinds.
            let found = [
                corpus.ndcg(&other.queries, &other.documents),
                corpus.ndcg(&exact.queries, &other.documents),
                corpus.ndcg(&other.queries, &exact.documents),
            ];
            println!(
                "  {:.4} in {}, {:.4} for questions in f32 and {:.4} for documents in f32; cosine of the first percentile \
                 {first:.6}, of the worst {:.6}",
                found[0],
                other.model,
                found[1],
                found[2],
                cosines.first().unwrap(),
            );
            for found in found.into_iter().take(if mixed { 3 } else { 1 }) {
                assert!((wanted - found).abs() <= 0.002, "{name}: {found} instead of {wanted}");
            }
            assert!(first >= least, "{name}: {first}");
        }
    }
}
