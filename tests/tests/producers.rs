//! Producers in Python and Java as they are out of the box, with keys and without: whatever partition they choose, a
//! document's requests end up in its lane, in the order in which its producer wrote them if that keys by document.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};
use weir_contracts::{
    Action, Document, DocumentRequest, Lane, OutcomeKind, Record, RequestOutcome, Revision, Topic, document_key, header,
};
use weir_runner::{Start, TopicReader};
use weir_stage::Delivery;
use weir_testing::{Broker, Isolation, Pipeline};

const LANES: i32 = 4;
const TENANTS: [&str; 2] = ["acme", "beta"];
const DOCUMENTS: usize = 12;
const VERSIONS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(120);
const PYTHON_CLIENT: &str = "confluent-kafka[avro,schemaregistry]==2.12.2";

/// A client, and how it keys what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Producer {
    Python,
    PythonWithoutKeys,
    Java,
    JavaWithoutKeys,
}

const PRODUCERS: [Producer; 4] =
    [Producer::Python, Producer::PythonWithoutKeys, Producer::Java, Producer::JavaWithoutKeys];

impl Producer {
    fn keys_by_document(self) -> bool {
        matches!(self, Self::Python | Self::Java)
    }

    /// The program, with all that it needs.
    fn command(self) -> Command {
        match self {
            Self::Python | Self::PythonWithoutKeys => {
                let mut command = Command::new(python());
                command.arg(client("producer.py"));
                command
            }
            Self::Java | Self::JavaWithoutKeys => {
                let mut command = Command::new("java");
                command.arg("-cp").arg(jars().join("*")).arg(client("Producer.java"));
                command
            }
        }
    }

    /// Writes every version of every document, one version after the other; the last deletes every other document.
    fn run(self, pipeline: &Pipeline, registry: &str) {
        let mut lines = String::new();
        for version in 0..VERSIONS {
            for document in 0..DOCUMENTS {
                for tenant in TENANTS {
                    let name = format!("guide-{document}.md");
                    let key = self.keys_by_document().then_some(&name);
                    let delete = version + 1 == VERSIONS && document % 2 == 0;
                    let request = json!({
                        "request_id": format!("{self:?}/{tenant}/{name}/{version}"), "tenant": tenant, "document": name,
                        "action": if delete { "delete" } else { "upsert" },
                        "content": (!delete).then(|| format!("Version {version}, which {self:?} sent.")),
                    });
                    lines.push_str(&json!({ "key": key, "request": request }).to_string());
                    lines.push('\n');
                }
            }
        }
        let mut child = self
            .command()
            .arg(&pipeline.topics.brokers)
            .arg(registry)
            .arg(pipeline.topics.full(Topic::DOCUMENT_REQUESTS.name()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may end without having read everything; then its own words say why.
        let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{self:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Who sent a request, and which version it is.
fn sent_by(request: &DocumentRequest) -> (Producer, usize) {
    let (producer, rest) = request.request_id.as_str().split_once('/').unwrap();
    let producer = PRODUCERS.into_iter().find(|known| format!("{known:?}") == producer).unwrap();
    (producer, rest.rsplit('/').next().unwrap().parse().unwrap())
}

fn key_of(request: &DocumentRequest) -> String {
    document_key(&request.tenant, &request.document)
}

fn client(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(file)
}

/// A folder for what a client needs; it changes with what that is.
fn folder(name: &str, needs: &str) -> PathBuf {
    let hash: String = hex::encode(Sha256::digest(needs)).chars().take(8).collect();
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{hash}"))
}

fn fetch(what: &str, command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{what}: {error}; see scripts/prerequisites.sh"));
    assert!(status.success(), "{what} could not be fetched");
}

/// Python with confluent-kafka, in a virtual environment that is made once.
fn python() -> PathBuf {
    let environment = folder("python-client", PYTHON_CLIENT);
    let python = environment.join("bin/python");
    let works = |python: &Path| {
        let imported = Command::new(python).args(["-c", "import confluent_kafka.schema_registry.avro"]).output();
        imported.is_ok_and(|output| output.status.success())
    };
    if !works(&python) {
        let make = ["-m", "venv", "--clear"];
        fetch("a virtual environment", Command::new("python3").args(make).arg(&environment));
        fetch(PYTHON_CLIENT, Command::new(&python).args(["-m", "pip", "install", PYTHON_CLIENT]));
    }
    python
}

/// Jars of Kafka's own client and of Avro, in a folder that is complete when it has its name.
fn jars() -> PathBuf {
    let pom = client("pom.xml");
    let jars = folder("java-client", &std::fs::read_to_string(&pom).unwrap());
    if !jars.is_dir() {
        let draft = jars.with_extension("partial");
        let _ = std::fs::remove_dir_all(&draft);
        let mut maven = Command::new("mvn");
        maven.args(["--batch-mode", "--strict-checksums", "--file"]).arg(&pom).arg("dependency:copy-dependencies");
        fetch("the Java client", maven.arg(format!("-DoutputDirectory={}", draft.display())));
        std::fs::rename(&draft, &jars).unwrap();
    }
    jars
}

/// Every record of a topic; those of a lane in their order.
async fn read<R: Record>(pipeline: &Pipeline, topic: Topic) -> Vec<Delivery<R>> {
    let opened = TopicReader::<R>::open(pipeline.kafka(), pipeline.registry(), topic, Start::Beginning).await;
    let mut records = tokio::time::timeout(PATIENCE, opened.unwrap().read_to_end()).await.unwrap().unwrap();
    records.sort_by_key(|delivery| (delivery.at.lane, delivery.at.offset));
    records
}

/// Clients put the same documents into different partitions, and each puts some of them elsewhere than into their lane:
/// else the router would have nothing to put right, and this test would prove nothing.
fn assert_clients_differ(written: &[Delivery<DocumentRequest>]) {
    let mut lanes: BTreeMap<Producer, BTreeMap<String, BTreeSet<Lane>>> = BTreeMap::new();
    let mut astray: BTreeSet<Producer> = BTreeSet::new();
    for delivery in written {
        let (producer, _) = sent_by(delivery.record());
        let key = key_of(delivery.record());
        assert_eq!(delivery.key.is_some(), producer.keys_by_document());
        if delivery.at.lane != Lane::of(key.as_bytes(), LANES) {
            astray.insert(producer);
        }
        lanes.entry(producer).or_default().entry(key).or_default().insert(delivery.at.lane);
    }
    assert_eq!(astray.len(), PRODUCERS.len(), "{astray:?}");
    assert_ne!(lanes[&Producer::Python], lanes[&Producer::Java]);
    let keyed = lanes.iter().filter(|(producer, _)| producer.keys_by_document());
    assert!(keyed.flat_map(|(_, documents)| documents.values()).all(|lanes| lanes.len() == 1), "{lanes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_clients_requests_land_in_their_lane_and_keep_the_order_of_their_keys() {
    let broker = Broker::start(|mut config| {
        config.registry = true;
        config
    });
    let mut pipeline = Pipeline::new(&broker.stack, "producers", LANES).await;
    pipeline.start("ingest", "0", &[]);
    for producer in PRODUCERS {
        producer.run(&pipeline, &broker.stack.registry_url());
    }
    let expected = PRODUCERS.len() * TENANTS.len() * DOCUMENTS * VERSIONS;
    pipeline.supervise_until("every request has its outcome", PATIENCE, |pipeline| {
        pipeline.topics.read("request-outcomes", Isolation::Committed).len() >= expected
            && !pipeline.topics.has_open_transaction("documents")
    });

    let written = read::<DocumentRequest>(&pipeline, Topic::DOCUMENT_REQUESTS).await;
    assert_eq!(written.len(), expected);
    assert_clients_differ(&written);

    let requests = read::<DocumentRequest>(&pipeline, Topic::REQUESTS).await;
    assert_eq!(requests.len(), expected);
    let mut places = HashMap::new();
    let mut versions: BTreeMap<(Producer, String), Vec<usize>> = BTreeMap::new();
    for delivery in &requests {
        let request = delivery.record();
        let (producer, version) = sent_by(request);
        let key = key_of(request);
        assert_eq!(delivery.at.lane, Lane::of(key.as_bytes(), LANES), "{}", request.request_id);
        assert_eq!(delivery.key.as_deref(), Some(key.as_bytes()));
        assert_eq!(delivery.headers.text(header::TENANT), Some(request.tenant.as_str()));
        places.insert(request.request_id.clone(), (delivery.at.lane, delivery.at.offset, request.action));
        versions.entry((producer, key)).or_default().push(version);
    }
    assert_eq!(places.len(), expected, "no request twice");
    for ((producer, document), versions) in &versions {
        assert_eq!(versions.len(), VERSIONS, "{producer:?} {document}");
        let ordered = versions.is_sorted();
        assert!(
            ordered || !producer.keys_by_document(),
            "{producer:?} wrote {document} in another order: {versions:?}"
        );
    }

    // What became of them: in the same lane, with the place in `requests` as revision. Without keys, one delete may come right
    // behind another.
    let outcomes: Vec<RequestOutcome> = pipeline.records(Topic::REQUEST_OUTCOMES).await;
    assert_eq!(outcomes.len(), expected);
    let (accepted, others): (Vec<_>, Vec<_>) =
        outcomes.into_iter().partition(|outcome| outcome.outcome == OutcomeKind::Accepted);
    for other in others {
        let (_, _, action) = places[&other.request_id];
        let again = other.outcome == OutcomeKind::Duplicate && action == Action::Delete;
        assert!(again, "{} is {:?}: {:?}", other.request_id, other.outcome, other.reason);
    }
    let documents = read::<Document>(&pipeline, Topic::DOCUMENTS).await;
    assert_eq!(documents.len(), accepted.len());
    for delivery in &documents {
        let document = delivery.record();
        let (lane, offset, action) = places[&document.request_id];
        assert_eq!(delivery.at.lane, lane);
        assert_eq!(document.revision, Revision::new(0, offset).unwrap());
        assert_eq!(document.deleted, action == Action::Delete);
    }
}
