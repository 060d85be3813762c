//! Labelled sets and single questions through the whole pipeline, by the command line: what is measured is what the
//! services did, and real collections reach their targets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use weir_contracts::{
    Answer, AnswerToken, Document, DocumentState, DocumentStatus, Evaluation, Question, Topic, Usage,
};
use weir_llm::testing::{Behaviour, FakeProvider};
use weir_models::{ModelConfig, ModelError, TEST_MODEL};
use weir_testing::{Broker, Pipeline, program};

const LANES: i32 = 4;
const SERVICES: [&str; 6] = ["ingest", "chunk", "embed", "index", "generate", "eval"];
/// (document, text)
const DOCUMENTS: [(&str, &str); 6] = [
    ("otters", "Otters hold hands while they sleep, so that they do not drift apart."),
    ("crows", "Crows remember the faces of people for years."),
    ("rivers", "A weir raises the level of a river for the mill."),
    ("lights", "The lighthouse at Cape Grim was lit in 1857."),
    ("bread", "Sourdough rises slowly, wild yeast being unhurried."),
    ("copper", "Copper roofs turn green as verdigris forms."),
];
/// (question, its document, what must be in the answer)
const QUESTIONS: [(&str, &str, &str); 4] = [
    ("Why do otters hold hands while they sleep?", "otters", "do not drift apart"),
    ("When was the lighthouse at Cape Grim lit?", "lights", "1857"),
    ("When do copper roofs turn green?", "copper", "verdigris"),
    ("Which birds remember the faces of people?", "crows", "Crows"),
];

/// A stack with all services, and the command line on it.
struct House {
    // Ends before the stack does.
    pipeline: Pipeline,
    broker: Broker,
    collection: &'static str,
    model: String,
    folder: tempfile::TempDir,
}

impl House {
    async fn new(collection: &'static str, model: &ModelConfig) -> Self {
        let broker = Broker::start(|mut config| {
            config.registry = true;
            config.qdrant = true;
            config.qdrant_binary = Some(program("qdrant-embedded"));
            config
        });
        let pipeline = Pipeline::new(&broker.stack, collection, LANES).await;
        let folder = tempfile::tempdir().unwrap();
        let mut house = Self { pipeline, broker, collection, model: model.name.clone(), folder };
        for service in SERVICES {
            house.start(service, "0", &[]);
        }
        house
    }

    fn start(&mut self, service: &str, instance: &str, settings: &[(&str, &str)]) {
        let model = self.model.clone();
        let mut all = vec![];
        if matches!(service, "chunk" | "embed" | "generate") {
            all.push(("WEIR_MODEL__NAME", model.as_str()));
        }
        if self.model != TEST_MODEL {
            // It keeps all processors busy.
            all.push(("WEIR_RUNNER__SESSION_TIMEOUT_MS", "20000"));
            all.push(("WEIR_RUNNER__TRANSACTION_TIMEOUT_MS", "20000"));
        }
        all.extend(settings);
        self.pipeline.start(service, instance, &all);
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("weir"));
        // Settings of whoever runs the tests must not lead elsewhere.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WEIR_")) {
            command.env_remove(name);
        }
        let kafka = self.pipeline.kafka();
        command.arg("--json").arg("--data").arg(self.folder.path().join("data")).args(arguments);
        command.envs([
            ("WEIR_KAFKA__BROKERS", kafka.brokers.as_str()),
            ("WEIR_KAFKA__PREFIX", &kafka.prefix),
            ("WEIR_KAFKA__LANES", &kafka.lanes.to_string()),
            ("WEIR_REGISTRY__URL", &self.broker.stack.registry_url()),
            ("WEIR_QDRANT__URL", &self.broker.stack.qdrant_url()),
            ("WEIR_QDRANT__COLLECTION", self.collection),
            ("WEIR_MODEL__NAME", &self.model),
        ]);
        command.output().unwrap()
    }

    /// What it prints as JSON, and whether it succeeded.
    fn weir(&self, arguments: &[&str]) -> (Value, bool) {
        let output = self.run(arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        let value = serde_json::from_str(&text).unwrap_or_else(|error| {
            let errors = String::from_utf8_lossy(&output.stderr);
            panic!("weir {arguments:?}: {error}\n{text}\n{errors}\n{}", self.pipeline.outputs())
        });
        (value, output.status.success())
    }

    /// A labelled set of this name whose n-th question belongs to the document `relevant` says.
    fn set(&self, name: &str, relevant: impl Fn(usize) -> &'static str) -> PathBuf {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let write = |file: &str, lines: Vec<String>| std::fs::write(folder.join(file), lines.join("\n")).unwrap();
        let line = |value: Value| value.to_string();
        let numbered = || QUESTIONS.iter().enumerate();
        write(
            "corpus.jsonl",
            DOCUMENTS.iter().map(|(id, text)| line(serde_json::json!({ "id": id, "text": text }))).collect(),
        );
        write(
            "queries.jsonl",
            numbered().map(|(n, (text, ..))| line(serde_json::json!({ "id": n.to_string(), "text": text }))).collect(),
        );
        write("qrels.tsv", numbered().map(|(n, _)| format!("{n}\t{}\t1", relevant(n))).collect());
        write(
            "answers.jsonl",
            numbered()
                .map(|(n, (.., span))| line(serde_json::json!({ "id": n.to_string(), "answers": [span] })))
                .collect(),
        );
        folder
    }
}

fn figure(report: &Value, mode: &str, name: &str) -> f64 {
    report["runs"][mode][name].as_f64().unwrap_or_else(|| panic!("no {name} of {mode}: {report}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_measured_and_answered_went_through_the_pipeline() {
    let mut house = House::new("eval", &ModelConfig::test()).await;
    a_labelled_set_is_measured(&house).await;
    wrong_labels_measure_badly(&house);
    nothing_is_measured_when_a_stage_is_missing(&mut house);
    a_filter_narrows_what_answers_rest_on(&house);
    what_comes_too_late_is_answered_as_expired(&house);
    a_models_answer_is_streamed_and_without_one_it_is_extractive(&mut house).await;
}

async fn a_labelled_set_is_measured(house: &House) {
    let set = house.set("set", |n| QUESTIONS[n].1);
    let file = house.folder.path().join("report.json");
    let (report, passed) = house.weir(&[
        "eval",
        "run",
        set.to_str().unwrap(),
        "--exact",
        "--ask",
        "4",
        "--output",
        file.to_str().unwrap(),
    ]);
    assert!(passed, "{report}");
    for name in ["ndcg@10", "recall@10", "recall@100", "mrr@10"] {
        assert!(figure(&report, "sparse", name) > 0.999, "{report}");
        assert!(figure(&report, "hybrid", name) > 0.0 && figure(&report, "dense", name) > 0.0, "{report}");
    }
    assert_eq!(report["exact"]["chunks"], DOCUMENTS.len(), "{report}");
    assert!(report["exact"]["difference"].as_f64().unwrap().abs() <= 0.005, "{report}");
    let asked = &report["asked"];
    assert_eq!((&asked["questions"], &asked["scored"]), (&4.into(), &4.into()), "{report}");
    assert_eq!(asked["by_status"]["extractive"], 4, "{report}");
    assert_eq!((&asked["contains_answer"], &asked["citation_validity"]), (&1.0.into(), &1.0.into()), "{report}");
    assert!(asked["groundedness"].as_f64().unwrap() > 0.9, "{report}");
    let written: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(written, report);

    // Every document and every question left its traces in every topic on the way.
    let pipeline = &house.pipeline;
    assert_eq!(pipeline.records::<Document>(Topic::DOCUMENTS).await.len(), DOCUMENTS.len());
    let states: Vec<DocumentStatus> = pipeline.records(Topic::DOCUMENT_STATUS).await;
    assert_eq!(states.iter().filter(|state| state.state == DocumentState::Indexed).count(), DOCUMENTS.len());
    assert!(states.iter().all(|state| state.tenant.as_str() == "eval-set"));
    assert_eq!(pipeline.records::<Question>(Topic::ASKS).await.len(), QUESTIONS.len());
    assert_eq!(pipeline.records::<Answer>(Topic::ANSWERS).await.len(), QUESTIONS.len());
    assert_eq!(pipeline.records::<Evaluation>(Topic::EVALUATIONS).await.len(), QUESTIONS.len());
}

fn wrong_labels_measure_badly(house: &House) {
    // No question has a word of this document.
    let set = house.set("mislabelled", |_| "bread");
    let (report, _) = house.weir(&["--tenant", "eval-set", "eval", "run", set.to_str().unwrap(), "--skip-ingest"]);
    assert!(figure(&report, "sparse", "ndcg@10") < 0.001, "{report}");
}

fn nothing_is_measured_when_a_stage_is_missing(house: &mut House) {
    house.pipeline.process("index", "0").kill();
    let set = house.set("unindexed", |n| QUESTIONS[n].1);
    let output = house.run(&["eval", "run", set.to_str().unwrap(), "--patience", "4"]);
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!output.status.success() && said.contains("nothing moved"), "{said}");
    house.pipeline.process("index", "0").restart();
}

fn a_filter_narrows_what_answers_rest_on(house: &House) {
    for animal in ["otter", "seal"] {
        let folder = house.folder.path().join(animal);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{animal}.txt")), format!("The {animal} eats four fish before noon."))
            .unwrap();
        let metadata = format!("kind={animal}");
        let (sent, taken) = house.weir(&["--tenant", "zoo", "ingest", folder.to_str().unwrap(), "-m", &metadata]);
        assert!(taken, "{sent}");
    }
    let cited = |filter: &[&str]| {
        let arguments = [["--tenant", "zoo", "ask", "Who eats four fish before noon?"].as_slice(), filter].concat();
        let (answered, _) = house.weir(&arguments);
        let citations = answered["answer"]["citations"].as_array().unwrap();
        let mut cited: Vec<String> =
            citations.iter().map(|citation| citation["document"].as_str().unwrap().to_owned()).collect();
        cited.sort_unstable();
        cited
    };
    assert_eq!(cited(&[]), ["otter.txt", "seal.txt"]);
    assert_eq!(cited(&["--filter", "kind=otter"]), ["otter.txt"]);
    assert_eq!(cited(&["--filter", "kind=seal"]), ["seal.txt"]);
    assert!(cited(&["--filter", "kind=otter", "--filter", "size=small"]).is_empty(), "all must hold");
    let twice = house.run(&["--tenant", "zoo", "ask", "--filter", "kind=otter", "--filter", "kind=seal", "Who eats?"]);
    let said = String::from_utf8(twice.stderr).unwrap();
    assert!(!twice.status.success() && said.contains("--filter kind is given twice"), "{said}");
}

fn what_comes_too_late_is_answered_as_expired(house: &House) {
    let (answered, useful) =
        house.weir(&["--tenant", "zoo", "ask", "--deadline", "0", "Who eats four fish before noon?"]);
    assert_eq!(answered["answer"]["status"], "expired", "{answered}");
    assert!(!useful && answered["answer"]["timings"]["retrieve"].is_null(), "not worked on: {answered}");
}

async fn a_models_answer_is_streamed_and_without_one_it_is_extractive(house: &mut House) {
    let text = "The otter eats four fish [1].";
    let broken = FakeProvider::start(Behaviour::Cut { text: text.into(), words: 3 }).await.unwrap();
    let whole = FakeProvider::start(Behaviour::Answer(text.into())).await.unwrap();
    house.pipeline.process("generate", "0").kill();
    house.start(
        "generate",
        "1",
        &[
            ("WEIR_LLM__PROVIDERS__A__BASE_URL", &broken.base_url()),
            ("WEIR_LLM__PROVIDERS__A__MODEL", "first"),
            ("WEIR_LLM__PROVIDERS__B__BASE_URL", &whole.base_url()),
            ("WEIR_LLM__PROVIDERS__B__MODEL", "second"),
            // What follows asks the same question again.
            ("WEIR_GENERATE__CACHE_FRESH_S", "0"),
            ("WEIR_GENERATE__CACHE_STALE_S", "0"),
            // The next provider at once, instead of the first one again.
            ("WEIR_LLM__RETRIES__MAX", "0"),
        ],
    );
    let ask = ["--tenant", "zoo", "ask", "--filter", "kind=otter", "Which fish does the otter eat before noon?"];
    let (answered, useful) = house.weir(&ask);
    let answer = &answered["answer"];
    assert!(useful, "{answered}");
    assert_eq!((answer["text"].as_str(), answer["model"].as_str()), (Some(text), Some("second")), "{answered}");
    assert_eq!(answer["citations"][0]["document"], "otter.txt", "{answered}");
    let mut streamed: BTreeMap<i32, Vec<AnswerToken>> = BTreeMap::new();
    for token in house.pipeline.records::<AnswerToken>(Topic::ANSWER_TOKENS).await {
        streamed.entry(token.attempt).or_default().push(token);
    }
    let texts: Vec<String> = streamed
        .values_mut()
        .map(|tokens| {
            tokens.sort_by_key(|token| token.sequence);
            let sequences: Vec<i32> = tokens.iter().map(|token| token.sequence).collect();
            assert_eq!(sequences, (0..i32::try_from(tokens.len()).unwrap()).collect::<Vec<_>>());
            tokens.iter().map(|token| token.delta.as_str()).collect()
        })
        .collect();
    assert_eq!(texts, ["The otter eats ", text], "the second attempt starts the text again");
    assert_eq!(answer["attempt"], *streamed.keys().last().unwrap(), "{answered}");
    let calls: Vec<Usage> = house.pipeline.records(Topic::USAGE).await;
    let mut statuses: Vec<_> = calls.iter().map(|call| (call.model.as_str(), call.status.as_str())).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [("first", "broken-off"), ("second", "ok")]);

    // A connection that is kept open may outlive its server.
    for provider in [&broken, &whole] {
        provider.set(Behaviour::status(503));
    }
    drop((broken, whole));
    let (answered, _) = house.weir(&ask);
    let answer = &answered["answer"];
    assert_eq!((&answer["status"], &answer["provenance"]), (&"extractive".into(), &"degraded".into()), "{answered}");
    assert_eq!(answer["citations"][0]["document"], "otter.txt", "{answered}");
}

/// A collection below `WEIR_CORPORA`, by default beside the workspace, and the real model; none when one is not to be had.
async fn real(collection: &str) -> Option<(PathBuf, ModelConfig)> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = std::env::var_os("WEIR_CORPORA").map_or(beside, PathBuf::from).join(collection);
    if !folder.is_dir() {
        eprintln!("skipped: no {} (set WEIR_CORPORA to the folder with the corpora)", folder.display());
        return None;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let model = ModelConfig::default();
    match weir_models::prepare(&model).await {
        Ok(_) => Some((folder, model)),
        Err(error @ ModelError::Unobtainable { .. }) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

async fn measured(collection: &'static str, more: &[&str]) -> Option<Value> {
    let (folder, model) = real(collection).await?;
    let house = House::new(collection, &model).await;
    let arguments = [["eval", "run", folder.to_str().unwrap(), "--exact"].as_slice(), more].concat();
    let (report, passed) = house.weir(&arguments);
    println!("{report:#}");
    assert!(passed, "dense retrieval is further from an exact search than 0.005: {report}");
    Some(report)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "embeds 240 paragraphs and 1,190 questions, minutes on a few processors: `make test-long`"]
async fn xquad_reaches_its_targets() {
    let Some(report) = measured("xquad", &["--ask", "60"]).await else { return };
    assert!(figure(&report, "dense", "ndcg@10") >= 0.93, "{report}");
    assert!(report["asked"]["contains_answer"].as_f64().unwrap() >= 0.6, "{report}");
    assert_eq!(report["asked"]["scored"], 60, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "embeds 5,183 abstracts, many minutes on a few processors: `make test-long`"]
async fn scifact_reaches_its_targets() {
    let Some(report) = measured("scifact", &[]).await else { return };
    assert!(figure(&report, "dense", "ndcg@10") >= 0.659, "{report}");
    assert!(figure(&report, "hybrid", "ndcg@10") >= 0.715, "{report}");
}
