//! The real model against vectors that sentence-transformers made (scripts/reference_vectors.py).

#![cfg(feature = "embedder")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use serde::Deserialize;
use weir_models::{DeviceChoice, Embedder, ModelConfig, ModelError, Precision, prepare};

#[derive(Deserialize)]
struct Reference {
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    tokens: usize,
    vector: Vec<f32>,
}

fn reference() -> Vec<Text> {
    let reference: Reference = serde_json::from_str(include_str!("reference_vectors.json")).unwrap();
    reference.texts
}

/// The model, unless it is not to be had on this machine.
async fn model(config: &ModelConfig) -> Option<Embedder> {
    match prepare(config).await {
        Ok(files) => Some(Embedder::load(config, &files).unwrap()),
        Err(error @ ModelError::Unobtainable { .. }) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[tokio::test]
async fn vectors_are_those_of_sentence_transformers() {
    let config = ModelConfig { device: DeviceChoice::Cpu, precision: Precision::F32, ..ModelConfig::default() };
    let Some(embedder) = model(&config).await else { return };
    let reference = reference();
    assert_eq!(embedder.dimension(), 384);
    assert_eq!(embedder.model_id(), "all-MiniLM-L6-v2@c9745ed1/f32");
    let texts: Vec<&str> = reference.iter().map(|text| text.text.as_str()).collect();
    let together = embedder.embed(&texts).unwrap();
    for (text, vector) in reference.iter().zip(&together) {
        let ids = embedder.tokenizer().encode(&text.text).unwrap();
        assert_eq!(ids.len(), text.tokens, "{:?}", text.text);
        let distance = apart(vector, &text.vector);
        println!("{:3} tokens: largest difference {distance:.1e}", text.tokens);
        assert!(distance < 1e-5, "{:?} is {distance} away from its reference", text.text);
        let alone = embedder.embed(&[&text.text]).unwrap();
        assert!(apart(vector, &alone[0]) < 1e-6, "{:?} depends on what is in the batch with it", text.text);
    }
}

#[tokio::test]
async fn a_small_token_budget_gives_the_same_vectors() {
    let config = ModelConfig {
        max_batch_tokens: 40,
        device: DeviceChoice::Cpu,
        precision: Precision::F32,
        ..ModelConfig::default()
    };
    let Some(embedder) = model(&config).await else { return };
    let reference = reference();
    let texts: Vec<&str> = reference.iter().map(|text| text.text.as_str()).collect();
    for (text, vector) in reference.iter().zip(embedder.embed(&texts).unwrap()) {
        assert!(apart(&vector, &text.vector) < 1e-5);
    }
}

#[tokio::test]
async fn in_less_than_single_precision_vectors_point_where_those_of_sentence_transformers_do() {
    // In int8 an empty text has 0.993, all others 0.998.
    for (precision, least) in [(Precision::Bf16, 0.9998), (Precision::Int8, 0.99)] {
        let config = ModelConfig { device: DeviceChoice::Cpu, precision, ..ModelConfig::default() };
        let Some(embedder) = model(&config).await else { return };
        assert_eq!(embedder.model_id(), format!("all-MiniLM-L6-v2@c9745ed1/{}", precision.name()));
        let reference = reference();
        let texts: Vec<&str> = reference.iter().map(|text| text.text.as_str()).collect();
        let together = embedder.embed(&texts).unwrap();
        for (text, vector) in reference.iter().zip(&together) {
            let cosine: f64 = vector.iter().zip(&text.vector).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            println!("{}, {:3} tokens: 1 - cosine is {:.1e}", precision.name(), text.tokens, 1.0 - cosine);
            assert!(cosine > least, "{:?}: the cosine to its reference is {cosine}", text.text);
            let alone = embedder.embed(&[&text.text]).unwrap();
            assert!(apart(vector, &alone[0]) < 1e-6, "{:?} depends on what is in the batch with it", text.text);
        }
    }
}

#[tokio::test]
async fn half_precision_is_for_gpus() {
    let config = ModelConfig { device: DeviceChoice::Cpu, precision: Precision::F16, ..ModelConfig::default() };
    let files = match prepare(&config).await {
        Ok(files) => files,
        Err(error) => return println!("skipped: {error}"),
    };
    let error = Embedder::load(&config, &files).unwrap_err();
    assert!(matches!(error, ModelError::Precision { precision: "f16", .. }), "{error}");
}
