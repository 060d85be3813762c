//! The stack of a test: processes of this machine, or containers when `WEIR_TEST_STACK=containers` asks for them.

use weir_stack::{Stack, StackConfig};

#[cfg(feature = "containers")]
use crate::containers::Containers;

/// Kafka, registry and Qdrant for a test. They end with the test program, however that ends.
pub enum TestStack {
    /// Child processes, with the embedded Qdrant server.
    Processes(Stack),
    /// The official images.
    #[cfg(feature = "containers")]
    Containers(Containers),
}

impl TestStack {
    /// Starts the kind that `WEIR_TEST_STACK` names, and returns when every service has answered a real request.
    ///
    /// # Errors
    /// A sentence for whoever runs the test.
    pub async fn start(config: StackConfig) -> Result<Self, String> {
        match std::env::var("WEIR_TEST_STACK").unwrap_or_default().as_str() {
            "" | "processes" => {
                let stack = Stack::start(config).await;
                stack.map(Self::Processes).map_err(|error| format!("Kafka does not start: {error}"))
            }
            #[cfg(feature = "containers")]
            "containers" => Containers::start(config).await.map(Self::Containers),
            #[cfg(not(feature = "containers"))]
            "containers" => Err("WEIR_TEST_STACK=containers needs tests that were built with `--features \
                                 weir-testing/containers`: run `WEIR_TEST_STACK=containers make test`, or add it"
                .into()),
            other => Err(format!("WEIR_TEST_STACK is `{other}`: it can be `processes` (the default) or `containers`")),
        }
    }

    /// What was asked for.
    pub fn config(&self) -> &StackConfig {
        match self {
            Self::Processes(stack) => stack.config(),
            #[cfg(feature = "containers")]
            Self::Containers(containers) => containers.config(),
        }
    }

    /// Bootstrap servers for Kafka's clients.
    pub fn kafka_brokers(&self) -> String {
        match self {
            Self::Processes(stack) => stack.kafka_brokers(),
            #[cfg(feature = "containers")]
            Self::Containers(containers) => containers.kafka_brokers(),
        }
    }

    /// Base URL of the registry's Confluent API; empty without a registry.
    pub fn registry_url(&self) -> String {
        match self {
            Self::Processes(stack) => stack.registry_url(),
            #[cfg(feature = "containers")]
            Self::Containers(containers) => containers.registry_url(),
        }
    }

    /// URL of Qdrant's gRPC; empty without Qdrant.
    pub fn qdrant_url(&self) -> String {
        match self {
            Self::Processes(stack) => stack.qdrant_url(),
            #[cfg(feature = "containers")]
            Self::Containers(containers) => containers.qdrant_url(),
        }
    }

    /// Kills broker `index` (from 0) with SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When there is no such broker.
    pub fn kill_broker(&self, index: usize) -> Result<(), String> {
        match self {
            Self::Processes(stack) => stack.kill_broker(index).map_err(|error| error.to_string()),
            #[cfg(feature = "containers")]
            Self::Containers(containers) => containers.kill_broker(index),
        }
    }

    /// Starts broker `index` again on its port and data, ending it first if it runs, and waits until it answers.
    ///
    /// # Errors
    /// When there is no such broker, or it does not start.
    pub async fn restart_broker(&self, index: usize) -> Result<(), String> {
        match self {
            Self::Processes(stack) => stack.restart_broker(index).await.map_err(|error| error.to_string()),
            #[cfg(feature = "containers")]
            Self::Containers(containers) => containers.restart_broker(index).await,
        }
    }

    /// Lets Qdrant end in order.
    pub async fn stop_qdrant(&self) {
        match self {
            Self::Processes(stack) => stack.stop_qdrant().await,
            #[cfg(feature = "containers")]
            Self::Containers(containers) => containers.stop_qdrant().await,
        }
    }

    /// Starts Qdrant again on its port and data, and waits until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_qdrant(&self) -> Result<(), String> {
        match self {
            Self::Processes(stack) => stack.start_qdrant().await.map_err(|error| error.to_string()),
            #[cfg(feature = "containers")]
            Self::Containers(containers) => containers.start_qdrant().await,
        }
    }
}
