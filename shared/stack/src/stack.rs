//! A stack in this process's hands.

use std::collections::BTreeMap;
use std::path::Path;

use crate::classes::{self, Classes};
use crate::config::Ports;
use crate::folder::Folder;
use crate::kafka::{BrokerPorts, Kafka};
use crate::process::ProcessId;
use crate::state::{Endpoints, ServiceState, StackState};
use crate::unit::Unit;
use crate::{StackConfig, StackError, User, kafka, machine, ports, qdrant, registry};

/// Kafka, registry and Qdrant as children of this process.
///
/// Dropping it kills them and waits; so does the kernel when this process ends in any other way. [`Stack::stop`] lets
/// them end in order.
#[derive(Debug)]
pub struct Stack {
    config: StackConfig,
    folder: Folder,
    kafka: Option<Kafka>,
    registry: Option<Unit>,
    qdrant: Option<Unit>,
}

impl Stack {
    /// Starts a stack and returns when every service has answered a real request.
    ///
    /// # Errors
    /// When the machine, the folder or a service is not as needed; what was started is ended again.
    pub async fn start(config: StackConfig) -> Result<Self, StackError> {
        let stack = tokio::task::spawn_blocking(move || Self::prepare(config)).await;
        let stack =
            stack.map_err(|error| StackError::Supervisor(format!("preparing the stack broke off: {error}")))??;
        stack.launch().await?;
        Ok(stack)
    }

    /// Checks machine and folder, downloads what is missing, formats new folders. Blocks; starts nothing yet.
    ///
    /// # Errors
    /// When the machine or the folder is not as needed, or a download fails.
    pub fn prepare(config: StackConfig) -> Result<Self, StackError> {
        let folder = Folder::open(&config.data)?;
        Self::prepare_in(config, folder)
    }

    /// [`Stack::prepare`] for who has locked the folder already.
    pub(crate) fn prepare_in(config: StackConfig, folder: Folder) -> Result<Self, StackError> {
        if !(1..=9).contains(&config.brokers) {
            return Err(StackError::Config(format!(
                "{} brokers: choose 1 to 9 (3 to survive losing one)",
                config.brokers
            )));
        }
        let java = if config.kafka || config.registry { machine::java()? } else { "java".into() };
        machine::check_memory(&config)?;
        machine::check_disk(folder.root())?;
        let ports = ChosenPorts::choose(&config)?;
        let classes = classes::prepared(&config, &java);
        Self::assemble(config, folder, &ports, &java, &classes)
    }

    /// The last step of [`Stack::prepare`].
    pub(crate) fn assemble(
        config: StackConfig,
        folder: Folder,
        ports: &ChosenPorts,
        java: &Path,
        classes: &Classes,
    ) -> Result<Self, StackError> {
        let kafka = config.kafka.then(|| Kafka::prepare(&config, java, classes, &folder, &ports.brokers));
        let kafka = kafka.transpose()?;
        let registry =
            config.registry.then(|| registry::prepare(java, classes, &folder, kafka.as_ref(), ports.registry));
        let registry = registry.transpose()?;
        let qdrant = config.qdrant.then(|| qdrant::prepare(&config, &folder, ports.qdrant)).transpose()?;
        Ok(Self { config, folder, kafka, registry, qdrant })
    }

    /// Starts what [`Stack::prepare`] planned, and waits until it answers.
    ///
    /// # Errors
    /// When a service ends or does not answer in time.
    pub async fn launch(&self) -> Result<(), StackError> {
        let kafka_then_registry = async {
            if let Some(kafka) = &self.kafka {
                for broker in &kafka.brokers {
                    broker.launch()?;
                }
                for broker in &kafka.brokers {
                    broker.answered().await?;
                }
            }
            match &self.registry {
                Some(registry) => registry.start().await,
                None => Ok(()),
            }
        };
        let qdrant = async {
            match &self.qdrant {
                Some(qdrant) => qdrant.start().await,
                None => Ok(()),
            }
        };
        let result = tokio::try_join!(kafka_then_registry, qdrant).map(drop);
        result.map_err(|error| kafka::explain(error, self.folder.root()))
    }

    /// Bootstrap servers for Kafka's clients; empty without Kafka.
    #[must_use]
    pub fn kafka_brokers(&self) -> String {
        self.kafka.as_ref().map(|kafka| kafka.bootstrap.clone()).unwrap_or_default()
    }

    /// Bootstrap servers that ask for no password, also where [`StackConfig::security`] is set: for a test's own
    /// look at the cluster. Empty without Kafka.
    #[must_use]
    pub fn internal_kafka_brokers(&self) -> String {
        self.kafka.as_ref().map(|kafka| kafka.internal_bootstrap.clone()).unwrap_or_default()
    }

    /// librdkafka properties with which a client logs in as the first user; empty without security.
    #[must_use]
    pub fn kafka_properties(&self) -> BTreeMap<String, String> {
        self.kafka.as_ref().map(|kafka| kafka.client_properties(&self.config)).unwrap_or_default()
    }

    /// librdkafka properties with which a client logs in as `user`.
    #[must_use]
    pub fn kafka_properties_of(&self, user: &User) -> BTreeMap<String, String> {
        self.kafka.as_ref().map(|kafka| kafka.properties_of(user)).unwrap_or_default()
    }

    /// Base URL of the registry's Confluent API; empty without a registry.
    #[must_use]
    pub fn registry_url(&self) -> String {
        self.registry.as_ref().map(|registry| registry.plan().address.clone()).unwrap_or_default()
    }

    /// URL of Qdrant's gRPC; empty without Qdrant.
    #[must_use]
    pub fn qdrant_url(&self) -> String {
        self.qdrant.as_ref().map(|qdrant| qdrant.plan().address.clone()).unwrap_or_default()
    }

    /// What was asked for.
    #[must_use]
    pub fn config(&self) -> &StackConfig {
        &self.config
    }

    /// Kills broker `index` (from 0) with SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When there is no such broker.
    pub fn kill_broker(&self, index: usize) -> Result<(), StackError> {
        self.broker(index)?.kill();
        Ok(())
    }

    /// Lets broker `index` end in order.
    ///
    /// # Errors
    /// When there is no such broker.
    pub async fn stop_broker(&self, index: usize) -> Result<(), StackError> {
        self.broker(index)?.stop().await;
        Ok(())
    }

    /// Starts broker `index` again on its port and data, ending it first if it runs, and waits until it answers.
    ///
    /// # Errors
    /// When there is no such broker, or it does not start.
    pub async fn restart_broker(&self, index: usize) -> Result<(), StackError> {
        let broker = self.broker(index)?;
        broker.stop().await;
        broker.start().await.map_err(|error| kafka::explain(error, self.folder.root()))
    }

    /// The process of broker `index`, for signals; nothing while it does not run.
    #[must_use]
    pub fn broker_process(&self, index: usize) -> Option<ProcessId> {
        self.broker(index).ok()?.process()
    }

    fn broker(&self, index: usize) -> Result<&Unit, StackError> {
        let brokers = self.kafka.as_ref().map_or(&[][..], |kafka| &kafka.brokers);
        let none = || StackError::Config(format!("there is no broker {index}: the stack has {}", brokers.len()));
        brokers.get(index).ok_or_else(none)
    }

    /// Lets Qdrant end in order.
    pub async fn stop_qdrant(&self) {
        if let Some(qdrant) = &self.qdrant {
            qdrant.stop().await;
        }
    }

    /// Kills Qdrant with SIGKILL, and waits until it is gone.
    pub fn kill_qdrant(&self) {
        if let Some(qdrant) = &self.qdrant {
            qdrant.kill();
        }
    }

    /// Starts Qdrant again on its port and data, and waits until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_qdrant(&self) -> Result<(), StackError> {
        match &self.qdrant {
            Some(qdrant) => qdrant.start().await,
            None => Err(StackError::Config("this stack has no Qdrant".into())),
        }
    }

    /// Starts the schema registry again on its port, and waits until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_registry(&self) -> Result<(), StackError> {
        match &self.registry {
            Some(registry) => registry.start().await,
            None => Err(StackError::Config("this stack has no schema registry".into())),
        }
    }

    /// Lets everything end in order: who uses others first, brokers together.
    pub async fn stop(self) {
        self.wind_down().await;
    }

    pub(crate) async fn wind_down(&self) {
        if let Some(qdrant) = &self.qdrant {
            qdrant.terminate();
        }
        if let Some(registry) = &self.registry {
            registry.stop().await;
        }
        let brokers = self.kafka.as_ref().map_or(&[][..], |kafka| &kafka.brokers);
        for broker in brokers {
            broker.terminate();
        }
        for broker in brokers {
            broker.stop().await;
        }
        self.stop_qdrant().await;
    }

    pub(crate) fn units(&self) -> impl Iterator<Item = &Unit> {
        let brokers = self.kafka.iter().flat_map(|kafka| &kafka.brokers);
        brokers.chain(&self.registry).chain(&self.qdrant)
    }

    /// What every service does now.
    #[must_use]
    pub fn services(&self) -> Vec<ServiceState> {
        self.units().map(Unit::state).collect()
    }

    /// Where the services are.
    #[must_use]
    pub fn endpoints(&self) -> Endpoints {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        Endpoints {
            kafka: some(self.kafka_brokers()),
            registry: some(self.registry_url()),
            qdrant: some(self.qdrant_url()),
        }
    }

    /// Writes the state file.
    pub(crate) fn publish(&self, ready: bool, error: Option<String>) -> Result<(), StackError> {
        let state = StackState {
            supervisor: ProcessId::own(),
            ready,
            error,
            endpoints: self.endpoints(),
            services: self.services(),
        };
        state.write(self.folder.data()).map_err(StackError::io("write the state of the stack"))
    }
}

/// Where the services will listen.
#[derive(Debug)]
pub(crate) struct ChosenPorts {
    pub brokers: Vec<BrokerPorts>,
    pub registry: u16,
    pub qdrant: u16,
}

impl ChosenPorts {
    /// Those that are asked for, or free ones. Refuses those that are taken, all before anything is started.
    pub fn choose(config: &StackConfig) -> Result<Self, StackError> {
        let mut free = ports::free_ports(3 * usize::from(config.brokers) + 2)?.into_iter();
        let mut any = || free.next().unwrap_or_default();
        let secured = config.security.is_some();
        let chosen = match config.ports {
            Ports::Free => {
                let broker = |_| BrokerPorts { client: any(), controller: any(), internal: secured.then(&mut any) };
                let brokers = (0..config.brokers).map(broker).collect();
                Self { brokers, registry: any(), qdrant: any() }
            }
            Ports::Fixed { kafka, registry, qdrant } => {
                let broker = |n: u16| BrokerPorts {
                    client: kafka.saturating_add(2 * n),
                    controller: kafka.saturating_add(2 * n + 1),
                    internal: secured.then(&mut any),
                };
                Self { brokers: (0..config.brokers).map(broker).collect(), registry, qdrant }
            }
        };
        for broker in chosen.brokers.iter().filter(|_| config.kafka) {
            ports::check_free("Kafka", broker.client)?;
            ports::check_free("Kafka's controller", broker.controller)?;
        }
        if config.registry {
            ports::check_free("the schema registry", chosen.registry)?;
        }
        if config.qdrant {
            ports::check_free("Qdrant", chosen.qdrant)?;
        }
        Ok(chosen)
    }
}
