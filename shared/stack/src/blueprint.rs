//! A stack on paper, for who runs its services in another way than as child processes: in containers, say.

use std::collections::BTreeMap;
use std::path::Path;

use crate::probe::Probe;
use crate::stack::ChosenPorts;
use crate::{StackConfig, StackError, folder, kafka, ports, qdrant, registry};

/// A service as it has to be run.
#[derive(Debug, Clone)]
pub struct Planned {
    /// `kafka-1`, `registry` or `qdrant`.
    pub name: String,
    /// Where it has to listen: `host:port` or a URL, on 127.0.0.1.
    pub address: String,
    /// A broker's properties (see [`crate::properties_file`]); the environment of the others.
    pub settings: BTreeMap<String, String>,
    /// Tells whether it works.
    pub probe: Probe,
}

/// The services of a stack, with the ports and the settings that [`crate::Stack`] gives its processes.
#[derive(Debug, Clone)]
pub struct Blueprint {
    /// Identity of the cluster, invented for this blueprint.
    pub cluster_id: String,
    /// Brokers, in order.
    pub brokers: Vec<Planned>,
    /// The schema registry, if it is wanted.
    pub registry: Option<Planned>,
    /// Qdrant, if it is wanted: the official server.
    pub qdrant: Option<Planned>,
}

impl Blueprint {
    /// Chooses ports and settings. `data` is the folder of a broker's data, as that broker will see it.
    ///
    /// # Errors
    /// When ports are taken, or the configuration asks for TLS or for a registry without Kafka.
    pub fn draw(config: &StackConfig, data: &Path) -> Result<Self, StackError> {
        if config.security.is_some() || (config.registry && !config.kafka) {
            let reason = "a blueprint has neither TLS nor a registry without Kafka";
            return Err(StackError::Config(reason.into()));
        }
        let ports = ChosenPorts::choose(config)?;
        let broker = |(own, id): (&kafka::BrokerPorts, i32)| {
            let address = format!("127.0.0.1:{}", own.client);
            Planned {
                name: format!("kafka-{id}"),
                settings: kafka::properties(config, id, &ports.brokers, own, data, None),
                probe: Probe::Broker { id, client: vec![("bootstrap.servers".into(), address.clone())] },
                address,
            }
        };
        let wanted = ports.brokers.iter().filter(|_| config.kafka);
        let brokers: Vec<Planned> = wanted.zip(1..).map(broker).collect();
        let bootstrap: Vec<&str> = brokers.iter().map(|broker| broker.address.as_str()).collect();
        let registry = config.registry.then(|| Planned {
            name: "registry".into(),
            address: registry::url(ports.registry),
            settings: registry::settings_on_kafka(&bootstrap.join(","), ports.registry),
            probe: Probe::Registry { url: registry::url(ports.registry) },
        });
        let qdrant = config.qdrant.then(|| official_qdrant(ports.qdrant)).transpose()?;
        Ok(Self { cluster_id: folder::new_cluster_id(), brokers, registry, qdrant })
    }
}

/// The official server listens for REST too, which nobody asks: on any free port.
fn official_qdrant(port: u16) -> Result<Planned, StackError> {
    let rest = ports::free_ports(1)?.into_iter().next().unwrap_or_default();
    let settings = [
        ("QDRANT__SERVICE__HOST", "127.0.0.1".to_owned()),
        ("QDRANT__SERVICE__GRPC_PORT", port.to_string()),
        ("QDRANT__SERVICE__HTTP_PORT", rest.to_string()),
        ("QDRANT__TELEMETRY_DISABLED", "true".to_owned()),
    ];
    Ok(Planned {
        name: "qdrant".into(),
        address: qdrant::url(port),
        settings: settings.map(|(key, value)| (key.to_owned(), value)).into(),
        probe: Probe::Qdrant { url: qdrant::url(port) },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn services_on_paper_find_each_other_and_a_broker_its_own_folder() {
        let config = StackConfig { registry: true, qdrant: true, brokers: 3, ..StackConfig::for_test(".") };
        let drawn = Blueprint::draw(&config, Path::new("/data")).unwrap();
        let addresses: Vec<_> = drawn.brokers.iter().map(|broker| broker.address.as_str()).collect();
        for broker in &drawn.brokers {
            let text = crate::properties_file(&broker.settings);
            let has = |wanted: &str| text.lines().any(|line| line == wanted);
            assert!(has("log.dirs=/data"), "{text}");
            assert!(has(&format!("advertised.listeners=CLIENT://{}", broker.address)), "{text}");
        }
        let registry = drawn.registry.unwrap();
        assert_eq!(registry.settings["APICURIO_KAFKASQL_BOOTSTRAP_SERVERS"], addresses.join(","));
        let qdrant = drawn.qdrant.unwrap();
        assert!(qdrant.address.ends_with(&format!(":{}", qdrant.settings["QDRANT__SERVICE__GRPC_PORT"])));
    }

    #[test]
    fn what_a_blueprint_does_not_have_is_refused() {
        let config = StackConfig { kafka: false, registry: true, ..StackConfig::for_test(".") };
        assert!(matches!(Blueprint::draw(&config, Path::new("/data")), Err(StackError::Config(_))));
    }
}
