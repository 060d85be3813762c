//! Apicurio, a schema registry that speaks Confluent's API. It keeps its data in Kafka.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::classes::{Classes, RECORD_GRACE};
use crate::folder::Folder;
use crate::kafka::{Kafka, QUICK_COMPILER};
use crate::probe::Probe;
use crate::unit::{Plan, Unit};
use crate::{StackError, artifacts};

/// Base URL of the Confluent API of a registry on this machine.
pub(crate) fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}/apis/ccompat/v7")
}

/// Plans the process. With no Kafka of the stack's own the data lies in the data folder instead.
pub(crate) fn prepare(
    java: &Path,
    classes: &Classes,
    folder: &Folder,
    kafka: Option<&Kafka>,
    port: u16,
) -> Result<Unit, StackError> {
    let home = artifacts::registry()?;
    let environment = match kafka {
        Some(kafka) => settings_on_kafka(&kafka.internal_bootstrap, port),
        None => settings(
            [
                ("APICURIO_STORAGE_KIND", "sql".to_owned()),
                ("APICURIO_STORAGE_SQL_KIND", "h2".to_owned()),
                ("APICURIO_DATASOURCE_URL", format!("jdbc:h2:file:{}", folder.root().join("registry").display())),
            ],
            port,
        ),
    };
    let mut args: Vec<String> =
        ["-Xmx256m", "-XX:+UseSerialGC", QUICK_COMPILER, "-XX:-UsePerfData"].map(String::from).into();
    args.extend(classes.argument("registry"));
    args.extend(["-jar".to_owned(), home.join(artifacts::REGISTRY_JAR).display().to_string()]);
    Ok(Unit::new(Plan {
        name: "registry".into(),
        program: java.to_path_buf(),
        args,
        environment: environment.into_iter().collect(),
        log: folder.log("registry"),
        address: url(port),
        ports: vec![port],
        probe: Probe::Registry { url: url(port) },
        patience: Duration::from_secs(120),
        grace: if classes.recording() { RECORD_GRACE } else { Duration::from_secs(5) },
    }))
}

/// Environment of a registry that keeps its data in Kafka.
pub(crate) fn settings_on_kafka(bootstrap: &str, port: u16) -> BTreeMap<String, String> {
    let storage = [
        ("APICURIO_STORAGE_KIND", "kafkasql".to_owned()),
        ("APICURIO_KAFKASQL_BOOTSTRAP_SERVERS", bootstrap.to_owned()),
        // At its start it waits so long for a snapshot that is not there; 5 s by default.
        ("APICURIO_KAFKASQL_CONSUMER_POLL_TIMEOUT", "1000".to_owned()),
    ];
    settings(storage, port)
}

fn settings(storage: [(&str, String); 3], port: u16) -> BTreeMap<String, String> {
    let listen = [
        ("QUARKUS_HTTP_HOST", "127.0.0.1".to_owned()),
        ("QUARKUS_HTTP_PORT", port.to_string()),
        // Nobody asks its management interface: any port will do.
        ("QUARKUS_MANAGEMENT_HOST", "127.0.0.1".to_owned()),
        ("QUARKUS_MANAGEMENT_PORT", "0".to_owned()),
        ("QUARKUS_HTTP_ACCESS_LOG_ENABLED", "false".to_owned()),
    ];
    storage.into_iter().chain(listen).map(|(key, value)| (key.to_owned(), value)).collect()
}
