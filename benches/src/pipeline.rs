//! The whole pipeline on real documents with the real model: documents a second beside the embedder alone on the same
//! chunks with the share of each stage, latencies at low load, and the memory of each service.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant, SystemTime};

use color_eyre::eyre::{Result, bail, ensure, eyre};
use serde_json::{Map, Value, json};
use weir_contracts::{Answer, AnswerStatus, ChunkBatch, DocumentState, DocumentStatus, Evaluation, Topic, unix_millis};
use weir_models::{Embedder, ModelConfig};
use weir_runner::{Publisher, Start, TopicReader};
use weir_stack::free_ports;
use weir_stage::Output;
use weir_testing::{Broker, Pipeline, program};

use crate::scrape::Metrics;
use crate::{at_least, at_most, percentile};

pub(crate) const LANES: i32 = 4;
pub(crate) const TENANT: &str = "bench";
/// Longest wait for the next document or answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// What a document passes, and the stages of each service.
const SERVICES: [(&str, &[&str]); 4] =
    [("ingest", &["route-documents", "extract"]), ("chunk", &["chunk"]), ("embed", &["embed"]), ("index", &["index"])];
pub(crate) const REAL_MODEL: [(&str, &str); 1] = [("WEIR_MODEL__NAME", "all-MiniLM-L6-v2")];
/// One document to warm up with for so many that are measured.
const WARM_UP: usize = 3;
/// Questions asked while memory is measured.
const QUESTIONS: usize = 200;
const MB: u64 = 1_000_000;

/// Kafka, the registry and Qdrant.
pub(crate) fn stack() -> Broker {
    Broker::start(|mut config| {
        config.registry = true;
        config.qdrant = true;
        config.qdrant_binary = Some(program("qdrant-embedded"));
        config
    })
}

/// (id, text) of real abstracts, or of made-up notes where there are none.
pub(crate) fn documents(n: usize) -> (Vec<(String, String)>, &'static str) {
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

/// Waits until `expected` documents are indexed. When the last of them was: milliseconds since the Unix epoch. It is the
/// time of the record that says so, which is made when the vector store has answered that the document's head is written.
async fn wait_indexed(pipeline: &Pipeline, reader: &mut TopicReader<DocumentStatus>, expected: usize) -> Result<i64> {
    let mut indexed = HashSet::new();
    let mut last = 0;
    while indexed.len() < expected {
        let Some(status) = reader.next(PATIENCE).await? else {
            bail!("only {} of {expected} documents are indexed\n{}", indexed.len(), pipeline.outputs());
        };
        last = status.timestamp;
        let status = status.record;
        ensure!(status.state == DocumentState::Indexed, "{} failed: {:?}", status.document, status.reason);
        indexed.insert(status.document);
    }
    Ok(last)
}

/// Starts a service on a port of its own, where its metrics can be had.
pub(crate) fn start(pipeline: &mut Pipeline, service: &str, settings: &[(&str, &str)]) -> Result<u16> {
    let port = free_ports(1)?.into_iter().next().unwrap_or_default();
    let listen = format!("127.0.0.1:{port}");
    let settings: Vec<_> = settings.iter().copied().chain([("WEIR_HTTP__LISTEN", listen.as_str())]).collect();
    pipeline.start(service, "0", &settings);
    Ok(port)
}

/// Seconds each stage has worked, and processor time of each service, so far.
fn work(ports: &BTreeMap<&str, u16>) -> Result<BTreeMap<String, f64>> {
    let mut seconds = BTreeMap::new();
    for (service, stages) in SERVICES {
        let port = ports.get(service).ok_or_else(|| eyre!("{service} is not running"))?;
        let metrics = Metrics::of(*port)?;
        seconds.insert(format!("{service}.cpu"), metrics.sum("weir_process_cpu_milliseconds_total", "") / 1e3);
        for stage in stages {
            let label = format!("stage=\"{stage}\"");
            seconds.insert(format!("{stage}.process"), metrics.sum("weir_process_seconds_sum", &label));
            seconds.insert(format!("{stage}.commit"), metrics.sum("weir_commit_seconds_sum", &label));
        }
    }
    Ok(seconds)
}

/// What each stage did between two looks: the share of the whole time in which it processed a batch and in which a
/// transaction of it was open, and each service's share of the processor time of all of them.
fn shares(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>, whole: Duration) -> Value {
    let spent =
        |name: &str| after.get(name).copied().unwrap_or_default() - before.get(name).copied().unwrap_or_default();
    let cpu: f64 = SERVICES.iter().map(|(service, _)| spent(&format!("{service}.cpu"))).sum();
    let (mut stages, mut services) = (Map::new(), Map::new());
    println!("  {:>16} {:>16} {:>16}", "stage", "processing", "in transaction");
    for (service, names) in SERVICES {
        for stage in names {
            let process = spent(&format!("{stage}.process")) / whole.as_secs_f64();
            let commit = spent(&format!("{stage}.commit")) / whole.as_secs_f64();
            println!("  {stage:>16} {:>14.1} % {:>14.1} %", process * 100.0, commit * 100.0);
            stages.insert((*stage).to_owned(), json!({ "processing_share": process, "in_transaction_share": commit }));
        }
        let seconds = spent(&format!("{service}.cpu"));
        services.insert(service.to_owned(), json!({ "cpu_seconds": seconds, "cpu_share": seconds / cpu }));
    }
    json!({ "stages": stages, "services": services })
}

/// The most memory each service ever held.
fn peaks(pipeline: &mut Pipeline, services: &[&str]) -> Result<BTreeMap<String, u64>> {
    let mut peaks = BTreeMap::new();
    for service in services {
        let peak = pipeline.process(service, "0").peak_memory();
        let peak = peak.ok_or_else(|| eyre!("{service} has ended\n{}", pipeline.outputs()))?;
        peaks.insert((*service).to_owned(), peak / MB);
    }
    Ok(peaks)
}

/// Documents a second, how that compares with the embedder alone on the same chunks, and who spends the time.
pub async fn run(documents_wanted: usize) -> Result<Value> {
    weir_models::prepare(&ModelConfig::default()).await?;
    let broker = stack();
    let mut pipeline = Pipeline::new(&broker.stack, "bench", LANES).await;
    let mut ports = BTreeMap::new();
    for (service, _) in SERVICES {
        ports.insert(service, start(&mut pipeline, service, &REAL_MODEL)?);
    }
    let mut reader = statuses(&pipeline).await?;
    let (mut documents, corpus) = documents(documents_wanted + documents_wanted / WARM_UP);
    // The first documents wait for the services to join their groups and load the model, and for the Java machine of
    // the broker to have compiled what it runs, which takes up to a core for half a minute; they are not measured.
    let warm_up = documents.split_off(documents.len() - documents.len() / (WARM_UP + 1));
    let (expected, first) = (documents.len(), warm_up.len());
    let measured: HashSet<String> = documents.iter().map(|(id, _)| id.clone()).collect();
    pipeline.send(TENANT, warm_up).await;
    wait_indexed(&pipeline, &mut reader, first).await?;
    let before = work(&ports)?;
    let start = Instant::now();
    pipeline.send(TENANT, documents).await;
    wait_indexed(&pipeline, &mut reader, expected).await?;
    let whole = start.elapsed();
    let shares = shares(&before, &work(&ports)?, whole);
    println!("  pipeline: {expected} {corpus} in {:.1} s", whole.as_secs_f64());
    let peaks = peaks(&mut pipeline, &SERVICES.map(|(service, _)| service))?;
    for (service, _) in SERVICES {
        pipeline.process(service, "0").terminate(Duration::from_secs(20));
    }
    let mut chunks: Vec<ChunkBatch> = pipeline.records(Topic::CHUNKS).await;
    chunks.retain(|batch| measured.contains(batch.document.as_str()));
    let alone = tokio::task::spawn_blocking(move || embed_alone(&chunks)).await??;
    println!("  embedder alone on the same chunks: {:.1} s", alone.as_secs_f64());
    let per_second = |time: Duration| count(expected) / time.as_secs_f64();
    Ok(json!({
        "corpus": corpus,
        "documents": expected,
        "documents_per_second": per_second(whole),
        "embedder_alone_documents_per_second": per_second(alone),
        "share": shares,
        "peak_mb": peaks,
        "targets": { "ratio_to_embedder_alone": at_least(alone.as_secs_f64() / whole.as_secs_f64(), 0.9) },
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

/// Asks a question and waits for its answer.
async fn ask(
    pipeline: &Pipeline,
    publisher: &Publisher,
    answers: &mut TopicReader<Answer>,
    name: &str,
    question: String,
) -> Result<Answer> {
    let question = Pipeline::question(name, TENANT, question);
    let request_id = question.request_id.clone();
    publisher.publish(Output::new(Topic::QUESTIONS, TENANT, question)).await?;
    loop {
        let Some(answer) = answers.next(PATIENCE).await? else {
            bail!("{name} is not answered\n{}", pipeline.outputs());
        };
        let answer = answer.record;
        if answer.request_id == request_id {
            let status = answer.status;
            let without_model = matches!(status, AnswerStatus::Extractive | AnswerStatus::NoContext);
            ensure!(without_model, "{name} is answered as {status:?}: {:?}", answer.reason);
            return Ok(answer);
        }
    }
}

/// Latencies at low load: a document until it can be found and until its producer can read so, a question until its
/// extractive answer.
pub async fn latency(rounds: usize) -> Result<Value> {
    weir_models::prepare(&ModelConfig::default()).await?;
    let broker = stack();
    let mut pipeline = Pipeline::new(&broker.stack, "latency", LANES).await;
    for service in SERVICES.map(|(service, _)| service).into_iter().chain(["generate"]) {
        pipeline.start(service, "0", &REAL_MODEL);
    }
    let mut reader = statuses(&pipeline).await?;
    let (documents, corpus) = documents(200 + rounds);
    let (background, measured) = documents.split_at(documents.len().saturating_sub(rounds));
    pipeline.send(TENANT, background.iter().cloned()).await;
    wait_indexed(&pipeline, &mut reader, background.len()).await?;
    let publisher = pipeline.publisher();
    // The first one connects; it is not measured.
    pipeline.send_with(&publisher, TENANT, [("warm-up".to_owned(), "Warm water.".to_owned())]).await;
    wait_indexed(&pipeline, &mut reader, 1).await?;
    let (mut searchable, mut told) = (Vec::new(), Vec::new());
    for document in measured {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (start, sent) = (Instant::now(), unix_millis(SystemTime::now()));
        pipeline.send_with(&publisher, TENANT, [document.clone()]).await;
        let indexed = wait_indexed(&pipeline, &mut reader, 1).await?;
        told.push(start.elapsed().as_secs_f64() * 1e3);
        searchable.push(f64::from(i32::try_from(indexed - sent)?));
    }
    let mut answers: TopicReader<Answer> =
        TopicReader::open(pipeline.kafka(), pipeline.registry(), Topic::ANSWERS, Start::End).await?;
    let (mut answered, mut extractive) = (Vec::new(), 0);
    for round in 0..=rounds {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let text = measured.get(round % rounds.max(1)).map_or("cells", |(_, text)| text.as_str());
        let question = format!("What is known about {}?", text.split('\n').next().unwrap_or("cells"));
        let start = Instant::now();
        let answer = ask(&pipeline, &publisher, &mut answers, &format!("question-{round}"), question).await?;
        // The first question waits for the generate service to load its model and to join its groups.
        if round > 0 {
            answered.push(start.elapsed().as_secs_f64() * 1e3);
            extractive += usize::from(answer.status == AnswerStatus::Extractive);
        }
    }
    let (document, question) = (percentile(&mut searchable, 50), percentile(&mut answered, 50));
    Ok(json!({
        "corpus": corpus,
        "rounds": rounds,
        "extractive_answers": extractive,
        "document_to_searchable_p50_ms": document,
        "document_to_searchable_p99_ms": percentile(&mut searchable, 99),
        "document_to_status_p50_ms": percentile(&mut told, 50),
        "document_to_status_p99_ms": percentile(&mut told, 99),
        "question_to_answer_p50_ms": question,
        "question_to_answer_p99_ms": percentile(&mut answered, 99),
        "targets": {
            "document_to_searchable_p50_ms": at_most(document, 200.0),
            "question_to_answer_p50_ms": at_most(question, 250.0),
        },
    }))
}

/// Peak memory of each service while short documents pass with the test model, and some questions after them.
pub async fn memory(documents: usize) -> Result<Value> {
    let broker = stack();
    let mut pipeline = Pipeline::new(&broker.stack, "memory", LANES).await;
    let services = ["ingest", "chunk", "embed", "index", "generate", "eval", "retry"];
    for service in services {
        pipeline.start(service, "0", &[]);
    }
    let mut reader = statuses(&pipeline).await?;
    let mut evaluations: TopicReader<Evaluation> =
        TopicReader::open(pipeline.kafka(), pipeline.registry(), Topic::EVALUATIONS, Start::End).await?;
    let mut answers: TopicReader<Answer> =
        TopicReader::open(pipeline.kafka(), pipeline.registry(), Topic::ANSWERS, Start::End).await?;
    let publisher = pipeline.publisher();
    let start = Instant::now();
    for part in notes(documents).chunks(10_000) {
        pipeline.send_with(&publisher, TENANT, part.iter().cloned()).await;
    }
    wait_indexed(&pipeline, &mut reader, documents).await?;
    let elapsed = start.elapsed();
    for n in 0..QUESTIONS {
        let question = format!("What does the keeper of weir {} raise at dawn?", n * documents / QUESTIONS);
        ask(&pipeline, &publisher, &mut answers, &format!("question-{n}"), question).await?;
    }
    for n in 0..QUESTIONS {
        ensure!(evaluations.next(PATIENCE).await?.is_some(), "only {n} answers are scored\n{}", pipeline.outputs());
    }
    let peaks = peaks(&mut pipeline, &services)?;
    let without_model = ["ingest", "chunk", "index", "retry"];
    let target = |service: &&str| {
        let peak = peaks.get(*service).copied().unwrap_or(u64::MAX);
        ((*service).to_owned(), at_most(u32::try_from(peak).map_or(f64::MAX, f64::from), 150.0))
    };
    Ok(json!({
        "documents": documents,
        "documents_per_second": count(documents) / elapsed.as_secs_f64(),
        "questions": QUESTIONS,
        "peak_mb": peaks,
        "targets": { "peak_mb": without_model.iter().map(target).collect::<Map<_, _>>() },
    }))
}

fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::from(u32::MAX), f64::from)
}
