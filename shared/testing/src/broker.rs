//! A real broker for tests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use tokio::runtime::Runtime;
use weir_runner::KafkaConfig;
use weir_stack::{Cluster, CreateTopic, StackConfig};

use crate::TestStack;

/// Runs what belongs to the shared broker, whatever test started it.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));

/// Kafka on free ports, in a temporary folder. It ends with the test program, however that ends.
pub struct Broker {
    /// The stack it belongs to.
    pub stack: TestStack,
    folder: PathBuf,
}

impl Broker {
    /// The broker all tests of this program share.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(|config| config))
    }

    /// A broker of the test's own, for tests that hurt it.
    pub fn start(change: impl FnOnce(StackConfig) -> StackConfig) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // The probe of the registry speaks HTTP; a second installation is refused and harmless.
        let _ = rustls::crypto::ring::default_provider().install_default();
        remove_stale_folders();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("weir-test-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the broker");
        let config = change(StackConfig::for_test(&folder));
        let stack = std::thread::spawn(move || RUNTIME.block_on(TestStack::start(config)))
            .join()
            .expect("the thread that starts Kafka")
            .unwrap_or_else(|error| panic!("{error}"));
        Self { stack, folder }
    }

    /// Runs something asynchronous of the stack's.
    pub fn block_on<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        std::thread::scope(|scope| scope.spawn(|| RUNTIME.block_on(future)).join().expect("the stack's thread"))
    }

    /// Topics under a prefix of the test's own: (name, partitions), created now.
    pub fn topics(&self, test: &str, topics: &[(&str, i32)]) -> TestTopics {
        let prefix = format!("{test}-{:x}.", rand::random::<u32>());
        let brokers = self.stack.kafka_brokers();
        let created = TestTopics { brokers: brokers.clone(), prefix };
        let replication = i32::from(self.stack.config().replication());
        let new: Vec<CreateTopic> = topics
            .iter()
            .map(|(name, partitions)| CreateTopic {
                name: created.full(name),
                partitions: *partitions,
                replication,
                settings: BTreeMap::new(),
            })
            .collect();
        let cluster = Cluster::connect(&brokers, &BTreeMap::new()).expect("a client");
        self.block_on(cluster.create(&new)).expect("topics are created");
        created
    }
}

impl Broker {
    /// Sets a setting of a topic (full name).
    pub fn alter_topic(&self, topic: &str, name: &str, value: &str) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", self.stack.kafka_brokers()).create().expect("an admin client");
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(name, value);
        let changed = self.block_on(async { admin.alter_configs(&[change], &AdminOptions::new()).await });
        for result in changed.expect("Kafka answers") {
            result.unwrap_or_else(|(_, code)| panic!("altering {topic}: {code}"));
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the broker's logs are kept in {}", self.folder.display());
            return;
        }
        // What is left open in it does not matter: the next test program removes stale folders too.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Topics of one test.
#[derive(Debug, Clone)]
pub struct TestTopics {
    /// Bootstrap servers.
    pub brokers: String,
    /// Prefix of the topics, the consumer groups and the transactional ids.
    pub prefix: String,
}

impl TestTopics {
    /// Full name of a topic.
    pub fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Settings for the runner.
    pub fn kafka(&self, lanes: i32) -> KafkaConfig {
        KafkaConfig { brokers: self.brokers.clone(), prefix: self.prefix.clone(), lanes, ..KafkaConfig::default() }
    }
}

/// Waits until `condition` holds; fails the test with `what` after `limit`.
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "did not happen within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Folders of test programs that were killed.
fn remove_stale_folders() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid =
            name.to_str().and_then(|name| name.strip_prefix("weir-test-")?.split('-').next()?.parse::<u32>().ok());
        let old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > Duration::from_secs(3_600)));
        if old && pid.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists() && cfg!(target_os = "linux")) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
