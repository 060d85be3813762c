//! Where it happens: brokers, registry, Qdrant, an object store, and on them the topics and services of one run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use color_eyre::eyre::{WrapErr, eyre};
use weir_contracts::TopicNames;
use weir_stack::schemas::{self, RegistryAccess, SchemaRegistry};
use weir_stack::topics::{self, Shape};
use weir_stack::{Cluster, ProcessId, Stack, StackConfig};

use crate::fleet::{FIRST, Fleet, SERVICES, program};
use crate::kafka::Kafka;
use crate::store::{BUCKET, Store};

/// Lanes of every run.
pub const LANES: i32 = 4;
const HTTP: Duration = Duration::from_secs(20);

/// The servers, as children of this process.
pub struct World {
    /// Kafka, registry, Qdrant.
    pub stack: Stack,
    folder: tempfile::TempDir,
}

/// One run in a world: topics under a prefix, a collection, an object store and the services.
pub struct Run {
    /// Its topics.
    pub kafka: Kafka,
    /// Its collection.
    pub collection: String,
    /// What claim checks lead to.
    pub store: Store,
    /// Its services.
    pub fleet: Fleet,
    /// Id of the schema of requests.
    pub schema_id: u32,
    registry: String,
}

impl World {
    /// Starts everything; returns when every server has answered.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn start(brokers: u16) -> color_eyre::Result<Self> {
        let folder = tempfile::Builder::new().prefix("weir-chaos-").tempdir().wrap_err("a folder for the run")?;
        let mut config = StackConfig::for_test(folder.path());
        config.registry = true;
        config.qdrant = true;
        config.brokers = brokers;
        config.broker_heap_mib = if brokers > 1 { 320 } else { 512 };
        // How soon the controller notices that a broker is lost.
        for (key, value) in [("broker.session.timeout.ms", "3000"), ("broker.heartbeat.interval.ms", "500")] {
            config.broker_properties.insert(key.to_owned(), value.to_owned());
        }
        config.qdrant_binary = Some(program("qdrant-embedded")?);
        Ok(Self { stack: Stack::start(config).await?, folder })
    }

    /// Folder with all logs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Keeps the folder after the end. Where it is.
    #[must_use]
    pub fn keep(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    /// Process of one of the servers: `kafka-1`, `registry`, `qdrant`.
    #[must_use]
    pub fn process(&self, server: &str) -> Option<ProcessId> {
        self.stack.services().into_iter().find(|service| service.name == server)?.process
    }

    /// Topics, schemas and settings for a run of this name; no service runs yet.
    ///
    /// # Errors
    /// When Kafka or the registry does not do it.
    pub async fn prepare(&self, name: &str) -> color_eyre::Result<Run> {
        let prefix = format!("{name}.");
        let kafka = Kafka { brokers: self.stack.kafka_brokers(), prefix: prefix.clone() };
        let names = TopicNames::new(prefix);
        let declared = topics::declared()?;
        let cluster = Cluster::connect(&kafka.brokers, &BTreeMap::new())?;
        let shape = Shape { names: names.clone(), lanes: LANES, replication: None, allow_loss: false };
        topics::apply(&cluster, &declared, &shape).await?;
        let registry = self.stack.registry_url();
        let access = RegistryAccess { url: registry.clone(), username: None, password: None };
        SchemaRegistry::new(access)?.push(&schemas::subjects(&declared, &names)?).await?;
        let schema_id = schema_id(&registry, &kafka.full("document-requests-value")).await?;
        let store = Store::start().await?;
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).wrap_err_with(|| folder.display().to_string())?;
        let environment = self.environment(&kafka, name, &store, &folder);
        let fleet = Fleet::new(&folder, environment);
        Ok(Run { kafka, collection: name.to_owned(), store, fleet, schema_id, registry })
    }

    fn environment(&self, kafka: &Kafka, name: &str, store: &Store, folder: &Path) -> Vec<(String, String)> {
        let settings = [
            ("WEIR_KAFKA__BROKERS", kafka.brokers.as_str()),
            ("WEIR_KAFKA__PREFIX", &kafka.prefix),
            ("WEIR_KAFKA__LANES", &LANES.to_string()),
            ("WEIR_REGISTRY__URL", &self.stack.registry_url()),
            ("WEIR_HTTP__LISTEN", "127.0.0.1:0"),
            ("WEIR_TELEMETRY__LOG_FORMAT", "json"),
            ("WEIR_RUNNER__STATE_DIR", &folder.join("state").display().to_string()),
            ("WEIR_RUNNER__SESSION_TIMEOUT_MS", "4000"),
            // As where a supervisor starts instances again under their names.
            ("WEIR_RUNNER__STATIC_MEMBERSHIP", "true"),
            ("WEIR_RUNNER__TRANSACTION_TIMEOUT_MS", "6000"),
            ("WEIR_RUNNER__BACKOFF_MAX_MS", "1000"),
            // Transactions stay open for a while and batches are small, so that faults find them at work.
            ("WEIR_RUNNER__COMMIT_INTERVAL_MS", "100"),
            ("WEIR_RUNNER__MAX_BATCH_RECORDS", "100"),
            ("WEIR_RUNNER__RETRY_ATTEMPTS", "3"),
            ("WEIR_INGEST__ALLOW_URLS", &format!("[\"s3://{BUCKET}/\"]")),
            ("WEIR_INGEST__FETCHES", "16"),
            ("WEIR_INGEST__S3__AWS_ENDPOINT", store.address()),
            ("WEIR_INGEST__S3__AWS_ALLOW_HTTP", "true"),
            ("WEIR_INGEST__S3__AWS_REGION", "here"),
            ("WEIR_INGEST__S3__AWS_ACCESS_KEY_ID", "chaos"),
            ("WEIR_INGEST__S3__AWS_SECRET_ACCESS_KEY", "chaos"),
            ("WEIR_MODEL__NAME", "test"),
            ("WEIR_QDRANT__URL", &self.stack.qdrant_url()),
            ("WEIR_QDRANT__COLLECTION", name),
            // What heads leave behind is gone before the end.
            ("WEIR_QDRANT__DELETE_GRACE_MS", "1000"),
            ("WEIR_INDEX__SWEEP_INTERVAL_S", "5"),
            ("WEIR_INDEX__SWEEP_PAUSE_MS", "20"),
        ];
        settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }
}

impl Run {
    /// Starts one instance of every service, each with these variables as well.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start_all(&self, more: &[(String, String)]) -> color_eyre::Result<()> {
        SERVICES.iter().try_for_each(|service| self.fleet.start(service, FIRST, more))
    }

    /// Arguments of `weir` that lead to this run.
    #[must_use]
    pub fn cli(&self) -> Vec<String> {
        ["--kafka", &self.kafka.brokers, "--prefix", &self.kafka.prefix, "--registry", &self.registry]
            .map(str::to_owned)
            .into()
    }
}

async fn schema_id(registry: &str, subject: &str) -> color_eyre::Result<u32> {
    let url = format!("{registry}/subjects/{subject}/versions/latest");
    let client = reqwest::Client::builder().timeout(HTTP).no_proxy().build()?;
    let answer: serde_json::Value = client.get(&url).send().await?.error_for_status()?.json().await?;
    let id = answer.get("id").and_then(serde_json::Value::as_u64).and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| eyre!("{url} has no id"))
}
