//! Schemas by id, and ids by schema, from a registry that speaks Confluent's API.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apache_avro::Schema;
use serde::Deserialize;
use weir_contracts::{SchemaDef, Topic, TopicNames};

use crate::RegistryConfig;

const TIMEOUT: Duration = Duration::from_secs(5);

/// The registry did not answer, or not as needed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("schema registry at {url}: {reason}")]
pub struct RegistryError {
    /// Where.
    pub url: String,
    /// What is wrong and what to do.
    pub reason: String,
    /// Whether the registry answered that what was asked for does not exist. Anything else may heal.
    pub not_found: bool,
}

/// A client of the schema registry that remembers what it was told: ids never change their schema.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    url: String,
    names: TopicNames,
    credentials: Option<(String, Option<String>)>,
    client: reqwest::Client,
    ids: Mutex<HashMap<(Topic, &'static str), u32>>,
    schemas: Mutex<HashMap<u32, Arc<Schema>>>,
}

#[derive(Deserialize)]
struct IdAnswer {
    id: u32,
}

#[derive(Deserialize)]
struct SchemaAnswer {
    schema: String,
}

impl Registry {
    /// A client; nothing is asked yet. `prefix` is that of the topics: subjects are `<topic>-value`.
    ///
    /// # Errors
    /// When the HTTP client can't be made.
    pub fn new(config: &RegistryConfig, prefix: &str) -> Result<Self, RegistryError> {
        let url = config.url.trim_end_matches('/').to_owned();
        let client = reqwest::Client::builder().timeout(TIMEOUT).build().map_err(|error| RegistryError {
            url: url.clone(),
            reason: error.to_string(),
            not_found: false,
        })?;
        let credentials = config.username.clone().map(|user| (user, config.password.clone()));
        Ok(Self {
            inner: Arc::new(Inner {
                url,
                names: TopicNames::new(prefix),
                credentials,
                client,
                ids: Mutex::default(),
                schemas: Mutex::default(),
            }),
        })
    }

    /// Id under which the schema is registered for the topic's values. Never registers anything.
    ///
    /// # Errors
    /// When it is not registered, or the registry does not answer.
    pub async fn id_of(&self, topic: Topic, schema: &'static SchemaDef) -> Result<u32, RegistryError> {
        if let Some(id) = self.known_id(topic, schema) {
            return Ok(id);
        }
        let subject = format!("{}-value", self.inner.names.full(topic));
        let request = self
            .inner
            .client
            .post(format!("{}/subjects/{subject}", self.inner.url))
            .json(&serde_json::json!({ "schema": schema.json() }));
        let missing = || format!("schema {} is not registered under {subject}: run `weir schemas push`", schema.name());
        let answer: IdAnswer = self.ask(request, missing).await?;
        lock(&self.inner.ids).insert((topic, schema.name()), answer.id);
        Ok(answer.id)
    }

    /// The same, if it was asked for before.
    pub(crate) fn known_id(&self, topic: Topic, schema: &'static SchemaDef) -> Option<u32> {
        lock(&self.inner.ids).get(&(topic, schema.name())).copied()
    }

    /// The schema with this id, as its writer registered it.
    ///
    /// # Errors
    /// When there is none, or the registry does not answer.
    pub async fn schema(&self, id: u32) -> Result<Arc<Schema>, RegistryError> {
        if let Some(schema) = lock(&self.inner.schemas).get(&id) {
            return Ok(Arc::clone(schema));
        }
        let request = self.inner.client.get(format!("{}/schemas/ids/{id}", self.inner.url));
        let answer: SchemaAnswer = self.ask(request, || format!("there is no schema with id {id}")).await?;
        let schema = Schema::parse_str(&answer.schema).map_err(|error| RegistryError {
            url: self.inner.url.clone(),
            reason: format!("schema {id} is not valid Avro: {error}"),
            not_found: true,
        })?;
        let schema = Arc::new(schema);
        lock(&self.inner.schemas).insert(id, Arc::clone(&schema));
        Ok(schema)
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
        missing: impl FnOnce() -> String,
    ) -> Result<T, RegistryError> {
        let fail = |reason: String, not_found| RegistryError { url: self.inner.url.clone(), reason, not_found };
        let request = match &self.inner.credentials {
            Some((user, password)) => request.basic_auth(user, password.as_ref()),
            None => request,
        };
        let response = request.send().await.map_err(|error| fail(deepest(&error), false))?;
        let status = response.status();
        if status == reqwest::StatusCode::NOT_FOUND {
            return Err(fail(missing(), true));
        }
        if !status.is_success() {
            let body = response.text().await.unwrap_or_default();
            let body: String = body.chars().take(300).collect();
            return Err(fail(format!("answered {status}: {body}"), false));
        }
        response.json().await.map_err(|error| fail(format!("unexpected answer: {}", deepest(&error)), false))
    }
}

/// The innermost cause: "connection refused" says more than "error sending request".
fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
