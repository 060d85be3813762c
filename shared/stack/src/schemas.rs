//! Schemas in a Confluent-compatible registry: what is registered, what fits, and registering.

use std::fmt;
use std::time::Duration;

use futures::future::try_join_all;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use weir_contracts::{SchemaDef, TopicNames};

use crate::topics::TopicSpec;

const TIMEOUT: Duration = Duration::from_secs(20);
/// A consumer with the new schema reads what producers with the old one wrote.
const COMPATIBILITY: &str = "BACKWARD";
/// How often something is written again that the registry says is there.
const CONFLICTS: u32 = 20;
const BETWEEN_CONFLICTS: Duration = Duration::from_millis(500);

/// How to reach a registry.
#[derive(Clone, Default)]
pub struct RegistryAccess {
    /// Base URL of the Confluent API.
    pub url: String,
    /// User, when it asks for one.
    pub username: Option<String>,
    /// Password of that user.
    pub password: Option<String>,
}

impl fmt::Debug for RegistryAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryAccess")
            .field("url", &self.url)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// The registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// It does not answer, or not as a registry does.
    #[error("the schema registry at {url} {reason}")]
    Registry {
        /// Where.
        url: String,
        /// What happened and what to do.
        reason: String,
    },
    /// A new schema can't read what the registered one wrote.
    #[error("{subject}: the schema in this program can't read what producers with the registered one wrote: {reason}")]
    Incompatible {
        /// Which.
        subject: String,
        /// What the registry says.
        reason: String,
    },
    /// A topic names a schema there is none of.
    #[error("topic {topic} names schema {schema}, which does not exist")]
    Unknown {
        /// Which topic.
        topic: String,
        /// Which schema.
        schema: String,
    },
}

/// A schema under the name by which clients look for it: `<topic>-value`.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Name.
    pub name: String,
    /// The schema.
    pub schema: &'static SchemaDef,
}

/// The subjects of the topics that carry a schema.
///
/// # Errors
/// When a topic names a schema there is none of.
pub fn subjects(specs: &[TopicSpec], names: &TopicNames) -> Result<Vec<Subject>, SchemaError> {
    let with_schema = specs.iter().filter_map(|spec| Some((spec, spec.schema.as_deref()?)));
    with_schema
        .map(|(spec, wanted)| {
            let schema = weir_contracts::schemas().iter().find(|schema| schema.name() == wanted);
            let unknown = || SchemaError::Unknown { topic: spec.name.clone(), schema: wanted.to_owned() };
            let name = format!("{}-value", names.full_name(&spec.name));
            Ok(Subject { name, schema: schema.ok_or_else(unknown)? })
        })
        .collect()
}

/// How a schema stands to what is registered.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It is registered.
    Registered {
        /// Under this id.
        id: u32,
    },
    /// Another version is registered, and this one can follow it.
    Compatible,
    /// Nothing is registered yet.
    New,
    /// Another version is registered, and this one can't read what it wrote.
    Incompatible {
        /// What the registry says, or Avro.
        reason: String,
    },
}

/// What became of a subject.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Checked {
    /// Which.
    pub subject: String,
    /// How it stood.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// A registry, for writing to it. Services only read.
#[derive(Debug, Clone)]
pub struct SchemaRegistry {
    client: reqwest::Client,
    access: RegistryAccess,
}

#[derive(Deserialize)]
struct Id {
    id: u32,
}

#[derive(Deserialize)]
struct Latest {
    schema: String,
}

#[derive(Deserialize)]
struct Compatible {
    is_compatible: bool,
    #[serde(default)]
    messages: Vec<String>,
}

impl SchemaRegistry {
    /// A client; nothing is asked yet.
    ///
    /// # Errors
    /// When the client can't be made.
    pub fn new(access: RegistryAccess) -> Result<Self, SchemaError> {
        crate::probe::have_tls();
        let client = reqwest::Client::builder().timeout(TIMEOUT).build();
        let client = client.map_err(|error| SchemaError::Registry { url: access.url.clone(), reason: said(&error) })?;
        let access = RegistryAccess { url: access.url.trim_end_matches('/').to_owned(), ..access };
        Ok(Self { client, access })
    }

    /// Names of all registered subjects.
    ///
    /// # Errors
    /// When the registry does not answer.
    pub async fn list(&self) -> Result<Vec<String>, SchemaError> {
        self.get("subjects").await
    }

    /// How each schema stands to what is registered.
    ///
    /// # Errors
    /// When the registry does not answer.
    pub async fn check(&self, subjects: &[Subject]) -> Result<Vec<Checked>, SchemaError> {
        try_join_all(subjects.iter().map(|subject| async {
            Ok(Checked { subject: subject.name.clone(), verdict: self.verdict(subject).await? })
        }))
        .await
    }

    /// Registers what is not registered yet, with BACKWARD compatibility set for each subject, and says how each
    /// stood before. One that does not fit refuses all.
    ///
    /// # Errors
    /// When one does not fit, or the registry does not answer.
    pub async fn push(&self, subjects: &[Subject]) -> Result<Vec<Checked>, SchemaError> {
        let checked = self.check(subjects).await?;
        for one in &checked {
            if let Verdict::Incompatible { reason } = &one.verdict {
                return Err(SchemaError::Incompatible { subject: one.subject.clone(), reason: reason.clone() });
            }
        }
        try_join_all(subjects.iter().zip(&checked).map(|(subject, one)| self.register(subject, &one.verdict))).await?;
        Ok(checked)
    }

    async fn register(&self, subject: &Subject, verdict: &Verdict) -> Result<(), SchemaError> {
        let name = &subject.name;
        if !matches!(verdict, Verdict::Registered { .. }) {
            let body = json!({ "schema": subject.schema.json(), "schemaType": "AVRO" });
            let _: Id = self.settle(Method::POST, &format!("subjects/{name}/versions"), body).await?;
        }
        // After the first version: some registries know no settings of a subject without one.
        let body = json!({ "compatibility": COMPATIBILITY });
        let _: Value = self.settle(Method::PUT, &format!("config/{name}"), body).await?;
        Ok(())
    }

    /// Writes. Apicurio with the data of before, when it has just been started, answers before it has read its journal to the
    /// end, and then says of what it did not know to be there that it is (409): it is asked again until it knows.
    async fn settle<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Value,
    ) -> Result<T, SchemaError> {
        let mut tries = 0;
        loop {
            let (status, answer) = self.ask(method.clone(), path, Some(body.clone())).await?;
            if status.is_success() {
                return self.parse(&answer);
            }
            if status != StatusCode::CONFLICT || tries == CONFLICTS {
                return Err(self.refused(status, &answer));
            }
            tries += 1;
            tokio::time::sleep(BETWEEN_CONFLICTS).await;
        }
    }

    async fn verdict(&self, subject: &Subject) -> Result<Verdict, SchemaError> {
        let name = &subject.name;
        let body = json!({ "schema": subject.schema.json(), "schemaType": "AVRO" });
        let (status, answer) = self.ask(Method::POST, &format!("subjects/{name}"), Some(body.clone())).await?;
        if status.is_success() {
            let Id { id } = self.parse(&answer)?;
            return Ok(Verdict::Registered { id });
        }
        if status != StatusCode::NOT_FOUND {
            return Err(self.refused(status, &answer));
        }
        let path = format!("compatibility/subjects/{name}/versions/latest?verbose=true");
        let (status, answer) = self.ask(Method::POST, &path, Some(body)).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(Verdict::New);
        }
        if !status.is_success() {
            return Err(self.refused(status, &answer));
        }
        let answer: Compatible = self.parse(&answer)?;
        if !answer.is_compatible {
            let reason = if answer.messages.is_empty() {
                "the registry does not say why".to_owned()
            } else {
                answer.messages.join("; ")
            };
            return Ok(Verdict::Incompatible { reason });
        }
        // Apicurio finds a schema compatible with a subject that does not exist.
        let (status, latest) = self.ask(Method::GET, &format!("subjects/{name}/versions/latest"), None).await?;
        if !status.is_success() {
            return Ok(Verdict::New);
        }
        // A registry holds new schemas to a subject's own rule, which nobody may have set yet.
        let Latest { schema } = self.parse(&latest)?;
        Ok(match subject.schema.reads(&schema) {
            Ok(()) => Verdict::Compatible,
            Err(reason) => Verdict::Incompatible { reason },
        })
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, SchemaError> {
        let (status, answer) = self.ask(Method::GET, path, None).await?;
        if status.is_success() { self.parse(&answer) } else { Err(self.refused(status, &answer)) }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<(StatusCode, String), SchemaError> {
        let mut request = self.client.request(method, format!("{}/{path}", self.access.url));
        if let Some(user) = &self.access.username {
            request = request.basic_auth(user, self.access.password.as_ref());
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.map_err(|error| self.fail(format!("does not answer: {}", said(&error))))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| self.fail(format!("broke off: {}", said(&error))))?;
        Ok((status, text))
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, answer: &str) -> Result<T, SchemaError> {
        serde_json::from_str(answer).map_err(|error| {
            let start: String = answer.chars().take(80).collect();
            self.fail(format!(
                "does not answer as Confluent's API does ({error}: {start:?}); Apicurio's ends in /apis/ccompat/v7"
            ))
        })
    }

    fn refused(&self, status: StatusCode, answer: &str) -> SchemaError {
        let message = serde_json::from_str::<Value>(answer).ok();
        let message = message.as_ref().and_then(|answer| answer.get("message")).and_then(Value::as_str);
        let hint = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => " (check --registry-user and --registry-password)",
            StatusCode::NOT_FOUND => " (is the base URL right? Apicurio's ends in /apis/ccompat/v7)",
            _ => "",
        };
        self.fail(format!("answers {status}: {}{hint}", message.unwrap_or("no reason given")))
    }

    fn fail(&self, reason: String) -> SchemaError {
        SchemaError::Registry { url: self.access.url.clone(), reason }
    }
}

/// The innermost cause: reqwest's own message only repeats the URL.
fn said(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn credentials_are_sent_and_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4_096];
                let length = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(request.get(..length).unwrap()).to_lowercase();
                // "me:secret" in base64.
                let known = request.contains("authorization: basic bwu6c2vjcmv0");
                let status = if known { "200 OK" } else { "401 Unauthorized" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n[]");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let ask = |username: Option<&str>| {
            let username = username.map(str::to_owned);
            let access = RegistryAccess { url: url.clone(), password: Some("secret".into()), username };
            async { SchemaRegistry::new(access).unwrap().list().await }
        };
        let refused = ask(None).await.unwrap_err().to_string();
        assert!(refused.contains("--registry-user"), "{refused}");
        assert_eq!(ask(Some("me")).await.unwrap(), Vec::<String>::new());
        server.await.unwrap();
    }

    #[tokio::test]
    async fn what_the_registry_only_finds_out_to_have_is_written_once_it_knows() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let script = [
            ("PUT", "409 Conflict", "{}"),
            ("PUT", "409 Conflict", "{}"),
            ("PUT", "200 OK", "{}"),
            ("PUT", "500 Internal Server Error", "{}"),
        ];
        let server = tokio::spawn(async move {
            for (method, status, body) in script {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4_096];
                let length = stream.read(&mut request).await.unwrap();
                assert!(request.get(..length).unwrap().starts_with(method.as_bytes()), "{method}");
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let access = RegistryAccess { url, password: None, username: None };
        let registry = SchemaRegistry::new(access).unwrap();
        let set = || registry.settle::<Value>(Method::PUT, "config/documents-value", json!({}));
        set().await.unwrap();
        assert!(set().await.unwrap_err().to_string().contains("500"));
        server.await.unwrap();
    }
}
