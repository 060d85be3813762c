//! Where a model comes from, as a service sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use weir_models::{ModelConfig, ModelError, Precision, Tokenizer, prepare};

#[tokio::test]
async fn the_test_model_needs_no_files() {
    let files = prepare(&ModelConfig::test()).await.unwrap();
    assert_eq!(files.model_id(Precision::F32), "test@1/f32");
    assert_eq!(Tokenizer::load(&files).unwrap().count("a b c"), 3);
}

#[tokio::test]
async fn an_unknown_model_is_refused_with_the_names_that_are_known() {
    let config = ModelConfig { name: "all-MiniLM".into(), ..ModelConfig::default() };
    let error = prepare(&config).await.unwrap_err().to_string();
    assert!(error.contains("all-MiniLM-L6-v2") && error.contains("model.dir"), "{error}");
}

#[tokio::test]
async fn offline_nothing_is_downloaded_and_the_error_says_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let config = ModelConfig { offline: true, cache: cache.path().join("models"), ..ModelConfig::default() };
    let error = prepare(&config).await.unwrap_err();
    assert!(matches!(error, ModelError::Offline { .. }), "{error}");
    assert!(error.to_string().contains("model.offline") && error.to_string().contains("model.dir"), "{error}");
    assert!(!config.cache.exists());
}

#[tokio::test]
async fn a_configured_folder_that_lacks_a_file_names_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let config = ModelConfig { dir: Some(dir.path().into()), ..ModelConfig::default() };
    let error = prepare(&config).await.unwrap_err();
    assert!(matches!(&error, ModelError::Missing { file, .. } if file == "tokenizer.json"), "{error}");
}

#[tokio::test]
async fn other_weights_in_a_configured_folder_get_a_revision_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::write(dir.path().join(file), "{}").unwrap();
    }
    fs::write(dir.path().join("sentence_bert_config.json"), r#"{"max_seq_length": 99}"#).unwrap();
    let config = ModelConfig { dir: Some(dir.path().into()), ..ModelConfig::default() };
    let files = prepare(&config).await.unwrap();
    // SHA-256 of the two bytes "{}" begins with 44136fa3.
    assert_eq!(files.model_id(Precision::F32), "all-MiniLM-L6-v2@44136fa3/f32");
    assert_eq!(files.max_tokens(), 99);
}
