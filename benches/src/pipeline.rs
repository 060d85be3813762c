//! The whole pipeline on real documents with the real model: documents a second beside the embedder alone on the same
//! chunks, latencies at low load, and the memory of the services without a model.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use color_eyre::eyre::{Result, ensure, eyre};
use serde_json::{Value, json};
use weir_contracts::{Answer, ChunkBatch, DocumentStatus, Question, RequestId, TenantId, Topic};
use weir_models::{Embedder, ModelConfig};
use weir_runner::{Publisher, Start, TopicReader};
use weir_stage::Output;
use weir_testing::{Broker, Pipeline, program};

const LANES: i32 = 4;
const TENANT: &str = "bench";
const PATIENCE: Duration = Duration::from_secs(600);
const SERVICES: [&str; 4] = ["ingest", "chunk", "embed", "index"];
const REAL_MODEL: [(&str, &str); 1] = [("WEIR_MODEL__NAME", "all-MiniLM-L6-v2")];

fn stack() -> Broker {
    Broker::start(|mut config| {
        config.registry = true;
        config.qdrant = true;
        config.qdrant_binary = Some(program("qdrant-embedded"));
        config
    })
}

/// (id, text) of real abstracts, or of made-up notes where there are none.
fn documents(n: usize) -> (Vec<(String, String)>, &'static str) {
    let corpus = crate::corpora().join("scifact/corpus.jsonl");
    let Ok(text) = std::fs::read_to_string(corpus) else { return (notes(n), "made-up notes") };
    let documents = text.lines().take(n).filter_map(|line| {
        let value: Value = serde_json::from_str(line).ok()?;
        let (title, text) = (value.get("title")?.as_str()?, value.get("text")?.as_str()?);
        Some((value.get("id")?.as_str()?.to_owned(), format!("{title}\n\n{text}")))
    });
    (documents.collect(), "scifact abstracts")
}

fn notes(n: usize) -> Vec<(String, String)> {
    let note = |n| format!("Note {n}: the keeper of weir {n} raises gate {} at dawn and lowers it at dusk.", n % 17);
    (0..n).map(|n| (format!("note-{n}"), note(n))).collect()
}

async fn statuses(pipeline: &Pipeline) -> Result<TopicReader<DocumentStatus>> {
    Ok(TopicReader::open(pipeline.kafka(), pipeline.registry(), Topic::DOCUMENT_STATUS, Start::End).await?)
}

/// Waits until `expected` documents are indexed; each stage's share of the time it was busy comes from its own metrics.
async fn wait_indexed(reader: &mut TopicReader<DocumentStatus>, expected: usize) -> Result<()> {
    let mut indexed = HashSet::new();
    let start = Instant::now();
    while indexed.len() < expected {
        ensure!(start.elapsed() < PATIENCE, "only {} of {expected} documents are indexed", indexed.len());
        if let Some(status) = reader.next(Duration::from_millis(500)).await? {
            indexed.insert(status.record.document);
        }
    }
    Ok(())
}

/// Documents a second, and how that compares with the embedder alone on the same chunks.
pub async fn run(documents_wanted: usize) -> Result<Value> {
    let broker = stack();
    let mut pipeline = Pipeline::new(&broker.stack, "bench", LANES).await;
    for service in SERVICES {
        pipeline.start(service, "0", &REAL_MODEL);
    }
    let mut reader = statuses(&pipeline).await?;
    let (documents, corpus) = documents(documents_wanted);
    let expected = documents.len();
    // The first document waits for the services to join their groups and load the model; it is not measured.
    pipeline.send(TENANT, [("warm-up".to_owned(), "Warm water.".to_owned())]).await;
    wait_indexed(&mut reader, 1).await?;
    let start = Instant::now();
    pipeline.send(TENANT, documents).await;
    wait_indexed(&mut reader, expected).await?;
    let whole = start.elapsed();
    println!("  pipeline: {expected} {corpus} in {:.1} s", whole.as_secs_f64());
    for service in SERVICES {
        pipeline.process(service, "0").terminate(Duration::from_secs(20));
    }
    let chunks: Vec<ChunkBatch> = pipeline.records(Topic::CHUNKS).await;
    let alone = tokio::task::spawn_blocking(move || embed_alone(&chunks)).await??;
    println!("  embedder alone on the same chunks: {:.1} s", alone.as_secs_f64());
    let per_second = |time: Duration| count(expected) / time.as_secs_f64();
    Ok(json!({
        "corpus": corpus,
        "documents": expected,
        "documents_per_second": per_second(whole),
        "embedder_alone_documents_per_second": per_second(alone),
        "ratio_to_embedder_alone": alone.as_secs_f64() / whole.as_secs_f64(),
    }))
}

fn embed_alone(batches: &[ChunkBatch]) -> Result<Duration> {
    let config = ModelConfig::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let files = runtime.block_on(weir_models::prepare(&config))?;
    let embedder = Embedder::load(&config, &files)?;
    let texts: Vec<&str> = batches.iter().flat_map(|batch| &batch.chunks).map(|chunk| chunk.text.as_str()).collect();
    let start = Instant::now();
    for part in texts.chunks(256) {
        embedder.embed(part)?;
    }
    Ok(start.elapsed())
}

/// Latencies at low load: a document until it can be found, a question until its extractive answer.
pub async fn latency(rounds: usize) -> Result<Value> {
    let broker = stack();
    let mut pipeline = Pipeline::new(&broker.stack, "latency", LANES).await;
    for service in SERVICES.into_iter().chain(["generate"]) {
        pipeline.start(service, "0", &REAL_MODEL);
    }
    let mut reader = statuses(&pipeline).await?;
    let (documents, corpus) = documents(200 + rounds);
    let (background, measured) = documents.split_at(documents.len().saturating_sub(rounds));
    pipeline.send(TENANT, background.iter().cloned()).await;
    wait_indexed(&mut reader, background.len()).await?;
    let mut searchable = Vec::new();
    for document in measured {
        let start = Instant::now();
        pipeline.send(TENANT, [document.clone()]).await;
        wait_indexed(&mut reader, 1).await?;
        searchable.push(start.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut answers: TopicReader<Answer> =
        TopicReader::open(pipeline.kafka(), pipeline.registry(), Topic::ANSWERS, Start::End).await?;
    let publisher = Publisher::new(pipeline.kafka(), pipeline.registry())?;
    let mut answered = Vec::new();
    for round in 0..=rounds {
        let request_id = RequestId::parse(format!("question-{round}"))?;
        let question = Question {
            request_id: request_id.clone(),
            tenant: TenantId::parse(TENANT)?,
            question: format!(
                "What is known about {}?",
                measured
                    .get(round % rounds.max(1))
                    .map_or("cells", |(_, text)| { text.split('\n').next().unwrap_or("cells") })
            ),
            deadline: None,
            idempotency_key: None,
            feature: None,
            filter: std::collections::BTreeMap::new(),
            prompt_version: None,
            top_k: None,
            created_at: 0,
        };
        let start = Instant::now();
        publisher.publish(Output::new(Topic::QUESTIONS, TENANT, question)).await?;
        loop {
            let answer =
                answers.next(Duration::from_secs(60)).await?.ok_or_else(|| eyre!("no answer within a minute"))?;
            if answer.record.request_id == request_id {
                break;
            }
        }
        // The first question waits for the generate service to join its groups.
        if round > 0 {
            answered.push(start.elapsed().as_secs_f64() * 1e3);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(json!({
        "corpus": corpus,
        "document_to_searchable_p50_ms": percentile(&mut searchable, 50),
        "document_to_searchable_p99_ms": percentile(&mut searchable, 99),
        "question_to_answer_p50_ms": percentile(&mut answered, 50),
        "question_to_answer_p99_ms": percentile(&mut answered, 99),
    }))
}

/// Peak memory of each service while short documents pass with the test model.
pub async fn memory(documents: usize) -> Result<Value> {
    let broker = stack();
    let mut pipeline = Pipeline::new(&broker.stack, "memory", LANES).await;
    for service in SERVICES {
        pipeline.start(service, "0", &[]);
    }
    let mut reader = statuses(&pipeline).await?;
    let start = Instant::now();
    for part in notes(documents).chunks(10_000) {
        pipeline.send(TENANT, part.iter().cloned()).await;
    }
    wait_indexed(&mut reader, documents).await?;
    let elapsed = start.elapsed();
    let mut figures = serde_json::Map::new();
    for service in SERVICES {
        let peak = pipeline.process(service, "0").peak_memory().map(|bytes| bytes / (1 << 20));
        figures.insert(format!("{service}_peak_mib"), json!(peak));
    }
    figures.insert("documents".into(), json!(documents));
    figures.insert("documents_per_second".into(), json!(count(documents) / elapsed.as_secs_f64()));
    Ok(Value::Object(figures))
}

fn percentile(figures: &mut [f64], percent: usize) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get((figures.len() * percent / 100).min(figures.len().saturating_sub(1))).copied()
}

fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::from(u32::MAX), f64::from)
}
