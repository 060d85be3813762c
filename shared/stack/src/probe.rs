//! Real requests that prove a service works; an open port proves nothing.

use std::time::Duration;

use qdrant_client::Qdrant;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(2);

/// How to ask a service whether it works.
#[derive(Debug, Clone)]
pub enum Probe {
    /// Metadata from this very broker that lists it: it has registered with the controller and takes requests.
    Broker {
        /// Number of the broker.
        id: i32,
        /// librdkafka properties that lead to it.
        client: Vec<(String, String)>,
    },
    /// The list of subjects.
    Registry {
        /// Base URL of its Confluent API.
        url: String,
    },
    /// Health, and the list of collections.
    Qdrant {
        /// URL of its gRPC.
        url: String,
    },
}

impl Probe {
    /// Asks once.
    ///
    /// # Errors
    /// What was wrong.
    pub async fn ask(&self) -> Result<(), String> {
        match self {
            Self::Broker { id, client } => {
                let (id, client) = (*id, client.clone());
                tokio::task::spawn_blocking(move || ask_broker(id, client)).await.map_err(|error| error.to_string())?
            }
            Self::Registry { url } => ask_registry(url).await,
            Self::Qdrant { url } => ask_qdrant(url).await,
        }
    }
}

/// Programs install a provider of TLS first thing; a test that starts a stack may not have.
pub(crate) fn have_tls() {
    // Fails only when one is installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client that says nothing: until a broker answers, its complaints are expected.
struct Silent;

impl ClientContext for Silent {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ConsumerContext for Silent {}

fn ask_broker(id: i32, client: Vec<(String, String)>) -> Result<(), String> {
    let mut config: ClientConfig = client.into_iter().collect();
    config.set("reconnect.backoff.ms", "20").set("reconnect.backoff.max.ms", "100");
    let consumer: BaseConsumer<Silent> = config.create_with_context(Silent).map_err(|error| error.to_string())?;
    let metadata = consumer.client().fetch_metadata(None, ATTEMPT).map_err(|error| error.to_string())?;
    if metadata.brokers().iter().any(|broker| broker.id() == id) {
        Ok(())
    } else {
        Err(format!("broker {id} has not registered with the controller yet"))
    }
}

async fn ask_registry(url: &str) -> Result<(), String> {
    have_tls();
    let client = reqwest::Client::builder().timeout(ATTEMPT).no_proxy().build().map_err(|error| error.to_string())?;
    let answer = client.get(format!("{url}/subjects")).send().await.map_err(|error| error.to_string())?;
    let status = answer.status();
    if !status.is_success() {
        return Err(format!("GET {url}/subjects answered {status}"));
    }
    answer.json::<Vec<String>>().await.map(drop).map_err(|error| error.to_string())
}

async fn ask_qdrant(url: &str) -> Result<(), String> {
    let client = Qdrant::from_url(url).timeout(ATTEMPT).connect_timeout(ATTEMPT).skip_compatibility_check().build();
    let client = client.map_err(|error| error.to_string())?;
    client.health_check().await.map_err(|error| error.to_string())?;
    client.list_collections().await.map(drop).map_err(|error| error.to_string())
}
