//! The whole pipeline as processes: Kafka, registry, Qdrant and the services, with a prefix and a collection of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use qdrant_client::Qdrant;
use qdrant_client::qdrant::value::Kind;
use qdrant_client::qdrant::vectors_output::VectorsOptions;
use qdrant_client::qdrant::{ScrollPointsBuilder, Value, VectorsOutput};
use weir_contracts::{Action, DocumentId, DocumentRequest, Question, Record, RequestId, TenantId, Topic, document_key};
use weir_runner::{KafkaConfig, Publisher, Registry, RegistryConfig, Start, TopicReader};
use weir_stack::Cluster;
use weir_stack::schemas::{self, RegistryAccess, SchemaRegistry};
use weir_stack::topics::{self, Shape};

use crate::{Process, TestStack, TestTopics, eventually};

const PAGE: u32 = 1_000;
/// How often a service at work is looked at while it is frozen, and how long it works before the next look.
const LOOKS: usize = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// A program of this workspace, built beside the test.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the test's own path");
    // Tests lie in `deps`, programs in the folder above.
    let folder = own.parent().expect("a target folder");
    let folder = if folder.ends_with("deps") { folder.parent().expect("a target folder") } else { folder };
    let program = folder.join(name);
    assert!(program.exists(), "{} is missing: run `make build`", program.display());
    program
}

/// Services on a stack.
pub struct Pipeline {
    /// Its topics.
    pub topics: TestTopics,
    collection: String,
    kafka: KafkaConfig,
    registry: RegistryConfig,
    qdrant: String,
    processes: BTreeMap<String, Process>,
    /// State of the services; removed after they have ended.
    state: tempfile::TempDir,
}

/// A point as Qdrant has it: its payload as text, without what differs from run to run.
pub type StoredPoint = BTreeMap<String, String>;

impl Pipeline {
    /// Topics, schemas and a collection under this name; no service runs yet.
    pub async fn new(stack: &TestStack, name: &str, lanes: i32) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let prefix = format!("{name}-{:x}.", rand::random::<u32>());
        let kafka =
            KafkaConfig { brokers: stack.kafka_brokers(), prefix: prefix.clone(), lanes, ..KafkaConfig::default() };
        let registry = RegistryConfig { url: stack.registry_url(), ..RegistryConfig::default() };
        let declared = topics::declared().expect("the declared topics");
        let cluster = Cluster::connect(&kafka.brokers, &kafka.properties).expect("Kafka");
        let shape = Shape { names: kafka.topics(), lanes, replication: None, allow_loss: false };
        topics::apply(&cluster, &declared, &shape).await.expect("topics are created");
        let access = RegistryAccess { url: registry.url.clone(), username: None, password: None };
        let subjects = schemas::subjects(&declared, &kafka.topics()).expect("subjects");
        SchemaRegistry::new(access).expect("a registry").push(&subjects).await.expect("schemas are registered");
        Self {
            topics: TestTopics { brokers: kafka.brokers.clone(), prefix },
            collection: name.to_owned(),
            kafka,
            registry,
            qdrant: stack.qdrant_url(),
            processes: BTreeMap::new(),
            state: tempfile::tempdir().expect("a folder for state"),
        }
    }

    /// Starts a service (`chunk`, `embed`, ...) with the tiny test model, as the instance `instance`.
    pub fn start(&mut self, service: &str, instance: &str, settings: &[(&str, &str)]) {
        let mut environment: Vec<(String, String)> = [
            ("WEIR_KAFKA__BROKERS", self.kafka.brokers.as_str()),
            ("WEIR_KAFKA__PREFIX", &self.kafka.prefix),
            ("WEIR_KAFKA__LANES", &self.kafka.lanes.to_string()),
            ("WEIR_REGISTRY__URL", &self.registry.url),
            ("WEIR_HTTP__LISTEN", "127.0.0.1:0"),
            ("WEIR_RUNNER__INSTANCE", instance),
            ("WEIR_RUNNER__STATE_DIR", &self.state.path().display().to_string()),
            ("WEIR_RUNNER__SESSION_TIMEOUT_MS", "4000"),
            ("WEIR_RUNNER__TRANSACTION_TIMEOUT_MS", "5000"),
            ("WEIR_TELEMETRY__LOG_FORMAT", "json"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        if matches!(service, "index" | "generate") {
            environment.push(("WEIR_QDRANT__URL".into(), self.qdrant.clone()));
            environment.push(("WEIR_QDRANT__COLLECTION".into(), self.collection.clone()));
        }
        if matches!(service, "chunk" | "embed" | "generate") {
            environment.push(("WEIR_MODEL__NAME".into(), "test".into()));
        }
        environment.extend(settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let log = std::env::temp_dir().join(format!(
            "weir-test-{}-{}{service}-{instance}.log",
            std::process::id(),
            self.kafka.prefix
        ));
        let program = program(&format!("weir-{service}"));
        let process = Process::start(&program, &[], &environment, &log);
        self.processes.insert(format!("{service}-{instance}"), process);
    }

    /// A running service.
    pub fn process(&mut self, service: &str, instance: &str) -> &mut Process {
        self.processes.get_mut(&format!("{service}-{instance}")).expect("a service that was started")
    }

    /// Kills the first instance of a service, with SIGKILL, while its `stage` has a transaction open in the topic
    /// `output` and lag in `input`, and starts it again.
    pub fn kill_at_work(&mut self, service: &str, stage: &str, input: &str, output: &str, limit: Duration) {
        let topics = self.topics.clone();
        let at_work = || topics.has_open_transaction(output) && topics.lag(stage, input) > 0;
        let process = self.process(service, "0");
        // What was seen may be over by now; of what is frozen it holds until it is killed.
        let catch = || {
            process.freeze();
            let caught = at_work();
            if !caught {
                process.thaw();
                std::thread::sleep(BETWEEN_LOOKS);
            }
            caught
        };
        // While it runs, a look takes longer than many transactions: there might be few of them before the work is done.
        eventually(&format!("{stage} has work and a transaction open"), limit, || {
            at_work() && std::iter::repeat_with(catch).take(LOOKS).any(|caught| caught)
        });
        process.restart();
    }

    /// Settings of a client.
    pub fn kafka(&self) -> &KafkaConfig {
        &self.kafka
    }

    /// Restarts what ends by itself, as a supervisor does, until `done` holds; fails the test after `limit` with what
    /// the services wrote.
    pub fn supervise_until(&mut self, what: &str, limit: Duration, mut done: impl FnMut(&Self) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            for process in self.processes.values_mut() {
                if process.ended().is_some() {
                    process.restart();
                }
            }
            assert!(begin.elapsed() < limit, "{what}: not after {limit:?}\n{}", self.outputs());
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    /// What the services wrote, for a failed test.
    pub fn outputs(&self) -> String {
        let last = |text: String| {
            text.lines().rev().take(8).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        self.processes.iter().map(|(name, process)| format!("--- {name}\n{}\n", last(process.output()))).collect()
    }

    /// A client of the registry.
    pub fn registry(&self) -> Registry {
        Registry::new(&self.registry, &self.kafka.prefix).expect("a registry")
    }

    /// Asks for documents to be stored: (id, text).
    pub async fn send(&self, tenant: &str, documents: impl IntoIterator<Item = (String, String)>) {
        self.send_with(&self.publisher(), tenant, documents).await;
    }

    /// A producer, connected when first used.
    pub fn publisher(&self) -> Publisher {
        Publisher::new(&self.kafka, self.registry()).expect("a publisher")
    }

    /// The same as [`Pipeline::send`] with a producer that is there.
    pub async fn send_with(
        &self,
        publisher: &Publisher,
        tenant: &str,
        documents: impl IntoIterator<Item = (String, String)>,
    ) {
        let tenant = TenantId::parse(tenant).expect("a tenant");
        let mut pending = Vec::new();
        for (n, (document, text)) in documents.into_iter().enumerate() {
            let document = DocumentId::parse(document).expect("a document id");
            let key = document_key(&tenant, &document);
            let request = DocumentRequest {
                request_id: RequestId::parse(format!("request-{n}-{document}")).expect("a request id"),
                tenant: tenant.clone(),
                document,
                action: Action::Upsert,
                content: Some(text.into_bytes()),
                content_uri: None,
                content_type: Some("text/plain".into()),
                title: None,
                metadata: BTreeMap::new(),
                idempotency_key: None,
                created_at: 1_700_000_000_000,
            };
            let publisher = publisher.clone();
            pending.push(tokio::spawn(async move {
                publisher.publish(weir_stage::Output::new(Topic::DOCUMENT_REQUESTS, key, request)).await
            }));
            if pending.len() >= 500 {
                for sent in pending.drain(..) {
                    sent.await.expect("no panic").expect("it is sent");
                }
            }
        }
        for sent in pending {
            sent.await.expect("no panic").expect("it is sent");
        }
    }

    /// A question of a tenant, without a deadline and whatever else it may have.
    pub fn question(request_id: &str, tenant: &str, text: String) -> Question {
        Question {
            request_id: RequestId::parse(request_id).expect("a request id"),
            tenant: TenantId::parse(tenant).expect("a tenant"),
            question: text,
            deadline: None,
            idempotency_key: None,
            feature: None,
            filter: BTreeMap::new(),
            prompt_version: None,
            top_k: None,
            agent: false,
            created_at: 0,
        }
    }

    /// Every record of a topic, decoded.
    pub async fn records<R: Record>(&self, topic: Topic) -> Vec<R> {
        let mut reader = TopicReader::<R>::open(&self.kafka, self.registry(), topic, Start::Beginning)
            .await
            .expect("a topic that can be read");
        let records = tokio::time::timeout(Duration::from_secs(60), reader.read_to_end()).await.expect("in time");
        records.expect("records").into_iter().map(|delivery| delivery.record).collect()
    }

    /// Every point of the collection, sorted, without ids, revisions and times.
    pub async fn points(&self) -> Vec<StoredPoint> {
        let client = Qdrant::from_url(&self.qdrant).build().expect("a client");
        let mut points = Vec::new();
        let mut offset = None;
        loop {
            let mut request =
                ScrollPointsBuilder::new(&self.collection).limit(PAGE).with_payload(true).with_vectors(true);
            if let Some(offset) = offset {
                request = request.offset::<qdrant_client::qdrant::PointId>(offset);
            }
            let page = client.scroll(request).await.expect("points");
            for point in page.result {
                let mut stored: StoredPoint =
                    point.payload.iter().map(|(name, value)| (name.clone(), text(value))).collect();
                for changing in ["revision", "requested_at", "position", "at"] {
                    stored.remove(changing);
                }
                stored.insert("vectors".into(), vectors(point.vectors));
                points.push(stored);
            }
            offset = page.next_page_offset;
            if offset.is_none() {
                break;
            }
        }
        points.sort();
        points
    }

    /// Records of a topic that readers see, and those of aborted transactions too.
    pub fn sizes(&self, topic: &str) -> (usize, usize) {
        let committed = self.topics.read(topic, crate::Isolation::Committed).len();
        (committed, self.topics.read(topic, crate::Isolation::Everything).len())
    }
}

/// Vectors as text, by name: the map they come in has an order of its own each time.
fn vectors(output: Option<VectorsOutput>) -> String {
    match output.and_then(|output| output.vectors_options) {
        Some(VectorsOptions::Vectors(named)) => {
            format!("{:?}", named.vectors.into_iter().collect::<BTreeMap<_, _>>())
        }
        other => format!("{other:?}"),
    }
}

fn text(value: &Value) -> String {
    match &value.kind {
        Some(Kind::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    }
}
