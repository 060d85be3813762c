//! Apache Kafka in KRaft mode: each process is broker and controller.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::classes::{Classes, RECORD_GRACE};
use crate::folder::{Cluster, Folder};
use crate::probe::Probe;
use crate::tls::{self, Certificate, STORE_PASSWORD};
use crate::unit::{Plan, Unit};
use crate::{SaslSsl, StackConfig, StackError, User, artifacts, machine, metadata_log};

/// Ports of one broker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BrokerPorts {
    /// For clients.
    pub client: u16,
    /// For controllers.
    pub controller: u16,
    /// Plain text, for the other brokers and the registry; only where clients are asked for a password.
    pub internal: Option<u16>,
}

/// The brokers of a stack.
#[derive(Debug)]
pub(crate) struct Kafka {
    pub brokers: Vec<Unit>,
    /// Bootstrap servers for clients.
    pub bootstrap: String,
    /// Bootstrap servers without security.
    pub internal_bootstrap: String,
    certificate: Option<Certificate>,
}

const BROKER: &str = "kafka.Kafka";
/// The first of Java's two compilers alone: it takes little time, and its code is not as fast.
pub(crate) const QUICK_COMPILER: &str = "-XX:TieredStopAtLevel=1";
/// Fewer than Kafka's 50: a stack for one machine starts faster.
const INTERNAL_PARTITIONS: &str = "8";

impl Kafka {
    /// Formats the folders of brokers that have none, and plans the processes.
    pub fn prepare(
        config: &StackConfig,
        java: &Path,
        classes: &Classes,
        folder: &Folder,
        ports: &[BrokerPorts],
    ) -> Result<Self, StackError> {
        let jars = artifacts::kafka()?;
        let cluster = folder.cluster(config)?;
        let certificate = config.security.as_ref().map(|_| tls::certificate(java, folder.root())).transpose()?;
        let logging = folder.root().join("kafka-log4j2.properties");
        fs::write(&logging, LOGGING).map_err(StackError::io(format!("write {}", logging.display())))?;
        let addresses = |port: fn(&BrokerPorts) -> u16| -> String {
            let list: Vec<_> = ports.iter().map(|broker| format!("127.0.0.1:{}", port(broker))).collect();
            list.join(",")
        };
        let kafka = Self {
            brokers: Vec::new(),
            bootstrap: addresses(|broker| broker.client),
            internal_bootstrap: addresses(|broker| broker.internal.unwrap_or(broker.client)),
            certificate,
        };
        let heap_mib = config.broker_heap_mib;
        let quick = config.security.is_none();
        let machine = Java { program: java, classes, jars: &jars, logging: &logging, heap_mib, quick };
        let brokers = ports.iter().zip(1..).map(|(own, id)| {
            let data = folder.root().join(format!("kafka-{id}"));
            let properties = properties(config, id, ports, own, &data, kafka.certificate.as_ref());
            let file = folder.root().join(format!("kafka-{id}.properties"));
            write_properties(&file, &properties)?;
            if !formatted(folder, &cluster, id, &data)? {
                format(&machine, &cluster, &properties, &data)?;
            }
            Ok(Unit::new(Plan {
                name: format!("kafka-{id}"),
                program: java.to_path_buf(),
                args: machine.args(BROKER, &[file.display().to_string()]),
                environment: Vec::new(),
                log: folder.log(&format!("kafka-{id}")),
                address: format!("127.0.0.1:{}", own.client),
                ports: [Some(own.client), Some(own.controller), own.internal].into_iter().flatten().collect(),
                probe: Probe::Broker { id, client: kafka.client_of(config, &format!("127.0.0.1:{}", own.client)) },
                patience: Duration::from_secs(90),
                grace: if classes.recording() { RECORD_GRACE } else { Duration::from_secs(10) },
            }))
        });
        let brokers = brokers.collect::<Result<Vec<_>, StackError>>()?;
        Ok(Self { brokers, ..kafka })
    }

    /// What a client must set to log in as the first user, beside the bootstrap servers; nothing without security.
    pub fn client_properties(&self, config: &StackConfig) -> BTreeMap<String, String> {
        let first = config.security.as_ref().and_then(|security| security.users.first());
        first.map(|user| self.properties_of(user)).unwrap_or_default()
    }

    /// What a client must set to log in as `user`.
    pub fn properties_of(&self, user: &User) -> BTreeMap<String, String> {
        let pem = self.certificate.as_ref().map(|certificate| certificate.pem.display().to_string());
        let properties = [
            ("security.protocol", "SASL_SSL".to_owned()),
            ("sasl.mechanism", "PLAIN".to_owned()),
            ("sasl.username", user.name.clone()),
            ("sasl.password", user.password.clone()),
            ("ssl.ca.location", pem.unwrap_or_default()),
        ];
        properties.map(|(key, value)| (key.to_owned(), value)).into()
    }

    fn client_of(&self, config: &StackConfig, bootstrap: &str) -> Vec<(String, String)> {
        let servers = ("bootstrap.servers".to_owned(), bootstrap.to_owned());
        self.client_properties(config).into_iter().chain([servers]).collect()
    }
}

/// Says a broken folder by its name when that is why a broker ended.
pub(crate) fn explain(error: StackError, root: &Path) -> StackError {
    const SIGNS: [&str; 9] = [
        "meta.properties",
        "CorruptRecordException",
        "CorruptSnapshotException",
        "InvalidRecordException",
        "KafkaStorageException",
        "InconsistentClusterId",
        "InconsistentTopicId",
        "Found unexpected cluster metadata",
        "fault while initializing",
    ];
    if let StackError::Ended { tail, .. } = &error
        && tail.contains("No space left on device")
    {
        // Kafka says it with the words for a broken folder, which removing the data would not mend.
        return machine::check_disk(root).err().unwrap_or(error);
    }
    match error {
        StackError::Ended { service, tail, .. } if SIGNS.iter().any(|sign| tail.contains(sign)) => {
            let reason = tail.lines().find(|line| SIGNS.iter().any(|sign| line.contains(sign))).unwrap_or_default();
            StackError::CorruptData { path: root.to_path_buf(), reason: format!("{service} says: {reason}") }
        }
        other => other,
    }
}

struct Java<'a> {
    program: &'a Path,
    classes: &'a Classes,
    jars: &'a Path,
    logging: &'a Path,
    heap_mib: u32,
    /// The quick compiler alone: a broker on one machine has the cores that its clients compute on, and what the other
    /// compiler takes of them for minutes it never gives back. Encryption is slow without that one.
    quick: bool,
}

impl Java<'_> {
    fn args(&self, class: &str, rest: &[String]) -> Vec<String> {
        let heap = self.heap_mib;
        let mut args = vec![
            format!("-Xmx{heap}m"),
            format!("-Xms{}m", heap.min(128)),
            "-XX:+UseSerialGC".into(),
            "-XX:-UsePerfData".into(),
            "-XX:+ExitOnOutOfMemoryError".into(),
            "-Djava.awt.headless=true".into(),
            format!("-Dlog4j2.configurationFile={}", self.logging.display()),
            "-cp".into(),
            format!("{}/*", self.jars.display()),
            class.into(),
        ];
        args.extend_from_slice(rest);
        if self.quick {
            args.insert(0, QUICK_COMPILER.into());
        }
        // Only the broker is recorded; whatever else runs on these jars maps what it can.
        if class == BROKER || !self.classes.recording() {
            args.splice(0..0, self.classes.argument("kafka"));
        }
        args
    }
}

/// Whether the folder of a broker was formatted, for this cluster and this broker.
fn formatted(folder: &Folder, cluster: &Cluster, id: i32, data: &Path) -> Result<bool, StackError> {
    if !data.exists() {
        return Ok(false);
    }
    let meta = data.join("meta.properties");
    let corrupt = |reason: String| StackError::CorruptData { path: folder.root().to_path_buf(), reason };
    let text =
        fs::read_to_string(&meta).map_err(|error| corrupt(format!("{} can't be read: {error}", meta.display())))?;
    let has = |key: &str, value: &str| text.lines().any(|line| line.trim() == format!("{key}={value}"));
    if !has("cluster.id", &cluster.id) || !has("node.id", &id.to_string()) {
        return Err(corrupt(format!("{} does not belong to cluster {}, broker {id}", meta.display(), cluster.id)));
    }
    match metadata_log::damage(data) {
        Some(damage) => Err(corrupt(damage)),
        None => Ok(true),
    }
}

/// Lets Kafka's own tool format a folder. It appears under its name when it is complete.
fn format(
    java: &Java<'_>,
    cluster: &Cluster,
    properties: &BTreeMap<String, String>,
    data: &Path,
) -> Result<(), StackError> {
    let draft = data.with_extension("new");
    let _ = fs::remove_dir_all(&draft);
    let file = data.with_extension("format.properties");
    let mut properties = properties.clone();
    properties.insert("log.dirs".into(), draft.display().to_string());
    write_properties(&file, &properties)?;
    let args = ["format", "--cluster-id", &cluster.id, "--config"].map(String::from);
    let rest: Vec<String> = args.into_iter().chain([file.display().to_string()]).collect();
    // The tool's start is all there is to it, so the quick compiler alone.
    let output = Command::new(java.program)
        .args(Java { quick: true, ..*java }.args("kafka.tools.StorageTool", &rest))
        .output()
        .map_err(StackError::io("run Kafka's StorageTool"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let reason = format!("Kafka's StorageTool could not format it: {said}");
        return Err(StackError::CorruptData { path: data.to_path_buf(), reason });
    }
    let _ = fs::remove_file(&file);
    fs::rename(&draft, data).map_err(StackError::io(format!("move {} into place", draft.display())))
}

/// Properties of one broker.
pub(crate) fn properties(
    config: &StackConfig,
    id: i32,
    all: &[BrokerPorts],
    own: &BrokerPorts,
    data: &Path,
    certificate: Option<&Certificate>,
) -> BTreeMap<String, String> {
    let voters: Vec<_> =
        all.iter().zip(1..).map(|(broker, id)| format!("{id}@127.0.0.1:{}", broker.controller)).collect();
    let replicas = config.replication().to_string();
    let in_sync = config.min_insync_replicas().to_string();
    let mut properties: BTreeMap<String, String> = [
        ("process.roles", "broker,controller"),
        ("node.id", &id.to_string()),
        ("controller.quorum.voters", &voters.join(",")),
        ("controller.listener.names", "CONTROLLER"),
        ("log.dirs", &data.display().to_string()),
        ("num.partitions", "1"),
        ("default.replication.factor", &replicas),
        ("min.insync.replicas", &in_sync),
        ("offsets.topic.replication.factor", &replicas),
        ("offsets.topic.num.partitions", INTERNAL_PARTITIONS),
        ("transaction.state.log.replication.factor", &replicas),
        ("transaction.state.log.min.isr", &in_sync),
        ("transaction.state.log.num.partitions", INTERNAL_PARTITIONS),
        ("share.coordinator.state.topic.replication.factor", &replicas),
        ("share.coordinator.state.topic.min.isr", &in_sync),
        ("share.coordinator.state.topic.num.partitions", INTERNAL_PARTITIONS),
        // Services never create topics; `weir topics apply` does.
        ("auto.create.topics.enable", "false"),
        ("group.initial.rebalance.delay.ms", "0"),
        // The default takes a quarter of the heap.
        ("log.cleaner.dedupe.buffer.size", "16777216"),
        // A broker of a cluster that ends as a whole has nobody to hand its partitions to.
        ("controlled.shutdown.enable", if config.brokers > 1 { "true" } else { "false" }),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    match (&config.security, certificate) {
        (Some(security), Some(certificate)) => properties.extend(secured(security, certificate, own)),
        _ => properties.extend(
            [
                ("listeners", format!("CLIENT://127.0.0.1:{},CONTROLLER://127.0.0.1:{}", own.client, own.controller)),
                ("advertised.listeners", format!("CLIENT://127.0.0.1:{}", own.client)),
                ("inter.broker.listener.name", "CLIENT".into()),
                ("listener.security.protocol.map", "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT".into()),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        ),
    }
    properties.extend(config.broker_properties.clone());
    properties
}

fn secured(security: &SaslSsl, certificate: &Certificate, own: &BrokerPorts) -> Vec<(String, String)> {
    let internal = own.internal.unwrap_or(own.client);
    let client = format!("CLIENT://127.0.0.1:{},INTERNAL://127.0.0.1:{internal}", own.client);
    let mut login = String::from("org.apache.kafka.common.security.plain.PlainLoginModule required");
    let mut superusers = String::from("User:ANONYMOUS");
    for user in &security.users {
        // Writing to a String can't fail.
        let _ = write!(login, " user_{}=\"{}\"", user.name, user.password);
        if user.superuser {
            let _ = write!(superusers, ";User:{}", user.name);
        }
    }
    login.push(';');
    let mut properties = vec![
        ("listeners", format!("{client},CONTROLLER://127.0.0.1:{}", own.controller)),
        ("advertised.listeners", client),
        ("inter.broker.listener.name", "INTERNAL".into()),
        ("listener.security.protocol.map", "CLIENT:SASL_SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT".into()),
        ("sasl.enabled.mechanisms", "PLAIN".into()),
        ("listener.name.client.plain.sasl.jaas.config", login),
        ("ssl.keystore.type", "PKCS12".into()),
        ("ssl.keystore.location", certificate.store.display().to_string()),
        ("ssl.keystore.password", STORE_PASSWORD.into()),
        ("ssl.key.password", STORE_PASSWORD.into()),
    ];
    if security.authorize {
        properties.push(("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer".into()));
        properties.push(("super.users", superusers));
    }
    properties.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn write_properties(path: &PathBuf, properties: &BTreeMap<String, String>) -> Result<(), StackError> {
    fs::write(path, properties_file(properties)).map_err(StackError::io(format!("write {}", path.display())))
}

/// The text of a file with these properties, such as a broker's `server.properties`.
#[must_use]
pub fn properties_file(properties: &BTreeMap<String, String>) -> String {
    // Java's format: a backslash escapes.
    let line = |(key, value): (&String, &String)| format!("{key}={}\n", value.replace('\\', "\\\\"));
    properties.iter().map(line).collect()
}

const LOGGING: &str = "\
appender.out.type=Console
appender.out.name=OUT
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %m (%c)%n
rootLogger.level=INFO
rootLogger.appenderRef.out.ref=OUT
# Hundreds of lines at each start that repeat the configuration.
logger.config.name=org.apache.kafka.common.config
logger.config.level=WARN
logger.utils.name=org.apache.kafka.common.utils.AppInfoParser
logger.utils.level=WARN
";
