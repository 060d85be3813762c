//! Schemas by id, and ids by schema, from a registry that speaks Confluent's API.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apache_avro::Schema;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
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
    ids: Answers<(Topic, &'static str), u32>,
    schemas: Answers<u32, Arc<Schema>>,
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
                ids: Answers::default(),
                schemas: Answers::default(),
            }),
        })
    }

    /// Id under which the schema is registered for the topic's values. Never registers anything.
    ///
    /// # Errors
    /// When it is not registered, or the registry does not answer.
    pub async fn id_of(&self, topic: Topic, schema: &'static SchemaDef) -> Result<u32, RegistryError> {
        let registry = self.clone();
        let ask = || async move { registry.ask_for_id(topic, schema).await };
        self.inner.ids.get((topic, schema.name()), ask).await
    }

    /// The same, if it was asked for before.
    pub(crate) fn known_id(&self, topic: Topic, schema: &'static SchemaDef) -> Option<u32> {
        self.inner.ids.known(&(topic, schema.name()))
    }

    async fn ask_for_id(&self, topic: Topic, schema: &'static SchemaDef) -> Result<u32, RegistryError> {
        let subject = format!("{}-value", self.inner.names.full(topic));
        let request = self
            .inner
            .client
            .post(format!("{}/subjects/{subject}", self.inner.url))
            .json(&serde_json::json!({ "schema": schema.json() }));
        let missing = || format!("schema {} is not registered under {subject}: run `weir schemas push`", schema.name());
        Ok(self.ask::<IdAnswer>(request, missing).await?.id)
    }

    /// The schema with this id, as its writer registered it.
    ///
    /// # Errors
    /// When there is none, or the registry does not answer.
    pub async fn schema(&self, id: u32) -> Result<Arc<Schema>, RegistryError> {
        let registry = self.clone();
        self.inner.schemas.get(id, || async move { registry.ask_for_schema(id).await }).await
    }

    async fn ask_for_schema(&self, id: u32) -> Result<Arc<Schema>, RegistryError> {
        let request = self.inner.client.get(format!("{}/schemas/ids/{id}", self.inner.url));
        let answer: SchemaAnswer = self.ask(request, || format!("there is no schema with id {id}")).await?;
        let schema = Schema::parse_str(&answer.schema).map_err(|error| RegistryError {
            url: self.inner.url.clone(),
            reason: format!("schema {id} is not valid Avro: {error}"),
            not_found: true,
        })?;
        Ok(Arc::new(schema))
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

/// Answers by what was asked for. Those that are no error are kept, and who asks while an answer is on its way waits for
/// that one: a thousand records that are sent at once ask once.
struct Answers<K, V>(Mutex<HashMap<K, Answer<V>>>);

enum Answer<V> {
    /// Gone when nobody waits any more.
    Coming(WeakShared<Asking<V>>),
    Known(V),
}

type Asking<V> = BoxFuture<'static, Result<V, RegistryError>>;

impl<K, V> Default for Answers<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone + Send + 'static> Answers<K, V> {
    fn known(&self, key: &K) -> Option<V> {
        match lock(&self.0).get(key)? {
            Answer::Known(answer) => Some(answer.clone()),
            Answer::Coming(_) => None,
        }
    }

    async fn get<F>(&self, key: K, ask: impl FnOnce() -> F) -> Result<V, RegistryError>
    where
        F: Future<Output = Result<V, RegistryError>> + Send + 'static,
        K: Copy,
    {
        if let Some(known) = self.known(&key) {
            return Ok(known);
        }
        let answer = self.coming(key, || ask().boxed()).await?;
        lock(&self.0).insert(key, Answer::Known(answer.clone()));
        Ok(answer)
    }

    fn coming(&self, key: K, ask: impl FnOnce() -> Asking<V>) -> Shared<Asking<V>> {
        let mut answers = lock(&self.0);
        let coming = match answers.get(&key) {
            Some(Answer::Known(answer)) => return std::future::ready(Ok(answer.clone())).boxed().shared(),
            // One that has failed already is not waited for.
            Some(Answer::Coming(asking)) => asking.upgrade().filter(|asking| asking.peek().is_none()),
            None => None,
        };
        coming.unwrap_or_else(|| {
            let asking = ask().shared();
            if let Some(coming) = asking.downgrade() {
                answers.insert(key, Answer::Coming(coming));
            }
            asking
        })
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Asks for the same so many times at once; the first `failing` times there is no answer.
    async fn ask(answers: &Answers<u8, u32>, times: usize, asked: &Arc<AtomicUsize>, failing: usize) -> Vec<bool> {
        let one = || {
            let asked = Arc::clone(asked);
            answers.get(1, || async move {
                let before = asked.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                let failed = || RegistryError { url: String::new(), reason: String::new(), not_found: false };
                if before < failing { Err(failed()) } else { Ok(7) }
            })
        };
        let answers = futures::future::join_all((0..times).map(|_| one())).await;
        answers.into_iter().map(|answer| answer.is_ok_and(|id| id == 7)).collect()
    }

    #[tokio::test]
    async fn who_asks_while_an_answer_is_on_its_way_waits_for_that_one() {
        let (answers, asked) = (Answers::default(), Arc::default());
        assert_eq!(answers.known(&1), None);
        assert_eq!(ask(&answers, 100, &asked, 0).await, [true; 100]);
        assert_eq!(ask(&answers, 3, &asked, 0).await, [true; 3]);
        assert_eq!((asked.load(Ordering::SeqCst), answers.known(&1)), (1, Some(7)));
    }

    #[tokio::test]
    async fn a_failure_is_for_those_who_wait_and_is_not_kept() {
        let (answers, asked) = (Answers::default(), Arc::default());
        assert_eq!(ask(&answers, 100, &asked, 1).await, [false; 100]);
        assert_eq!(ask(&answers, 2, &asked, 1).await, [true; 2]);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_asked_again() {
        let (answers, asked) = (Answers::default(), Arc::default());
        let short = Duration::from_millis(5);
        tokio::time::timeout(short, ask(&answers, 2, &asked, 0)).await.unwrap_err();
        assert_eq!(ask(&answers, 2, &asked, 0).await, [true; 2]);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }
}
