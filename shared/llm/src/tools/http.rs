//! A tool that asks an HTTP API of the operator's choice.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::address::is_public;
use super::lookup::{Checked, Lookup, System};
use super::template::Template;
use super::{Tool, ToolError};
use crate::tool_call::ToolSpec;

/// Longest time limit, milliseconds.
const LONGEST_TIMEOUT_MS: u64 = 60_000;

/// Most bytes that can be asked for.
const MOST_BYTES: usize = 4 << 20;

/// A GET that a model may send. Models choose the values in the gaps of the URL, nothing else.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpToolConfig {
    /// Its name: letters, digits, `_` and `-`, 1 to 64 of them.
    pub name: String,
    /// What it does and when it is of use, for the model.
    pub description: String,
    /// `https://host/path/{placeholder}?key={placeholder}`. Placeholders stand in segments of the path and in values of
    /// the query only.
    pub url: String,
    /// What each placeholder means, by its name, for the model. Each must be given.
    pub parameters: BTreeMap<String, String>,
    /// Headers to send, by name; never printed, logged, or told to a model.
    #[serde(skip_serializing)]
    pub headers: BTreeMap<String, SecretString>,
    /// Most milliseconds for all of it, 1 to 60000.
    pub timeout_ms: u64,
    /// Most bytes of a response that are read, 1 to 4194304; what comes after them is cut off.
    pub max_bytes: usize,
    /// Seconds for which a result is given again to calls of the same tenant with the same arguments; 0: every call is made.
    /// Only for what does not change meanwhile.
    pub reuse_s: u64,
    /// Whether the host may have an address that is not public. Only for hosts whose every path may be read by whoever
    /// asks questions.
    pub allow_private: bool,
}

impl Default for HttpToolConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            description: String::new(),
            url: String::new(),
            parameters: BTreeMap::new(),
            headers: BTreeMap::new(),
            timeout_ms: 5_000,
            max_bytes: 64 << 10,
            reuse_s: 0,
            allow_private: false,
        }
    }
}

/// A tool that can't work; the message names the setting and the cure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tool {tool:?}: {field} {problem}")]
pub struct InvalidTool {
    /// Its name.
    pub tool: String,
    /// Which setting.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// The tool of such a configuration.
///
/// **Invariant:** a connection goes only to an address that was checked for this very call: the host's name is looked up
/// once, all its addresses are checked, and the client has no way to look it up again, no proxy, and follows no redirect.
#[derive(Debug)]
pub struct HttpTool {
    config: HttpToolConfig,
    template: Template,
    headers: HeaderMap,
    lookup: Arc<dyn Lookup>,
}

impl HttpTool {
    /// The tool of this configuration.
    ///
    /// # Errors
    /// When a setting can't work.
    pub fn new(config: HttpToolConfig) -> Result<Self, InvalidTool> {
        Self::with_lookup(config, Arc::new(System))
    }

    fn with_lookup(config: HttpToolConfig, lookup: Arc<dyn Lookup>) -> Result<Self, InvalidTool> {
        let wrong =
            |field, problem: &str| InvalidTool { tool: config.name.clone(), field, problem: problem.to_owned() };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if !(1..=64).contains(&config.name.len()) || !config.name.bytes().all(plain) {
            return Err(wrong("name", "must be of 1 to 64 letters, digits, _ and -"));
        }
        if config.description.trim().is_empty() {
            return Err(wrong("description", "is empty; say what the tool does and when it is of use"));
        }
        let template = Template::parse(&config.url).map_err(|problem| wrong("url", problem))?;
        if !template.placeholders.iter().eq(config.parameters.keys()) {
            return Err(wrong("parameters", "must describe exactly the placeholders of the url"));
        }
        if !(1..=LONGEST_TIMEOUT_MS).contains(&config.timeout_ms) {
            return Err(wrong("timeout_ms", "must lie between 1 and 60000"));
        }
        if !(1..=MOST_BYTES).contains(&config.max_bytes) {
            return Err(wrong("max_bytes", "must lie between 1 and 4194304"));
        }
        let headers = headers(&config).map_err(|problem| wrong("headers", problem))?;
        Ok(Self { config, template, headers, lookup })
    }

    async fn get(&self, arguments: &Value) -> Result<String, ToolError> {
        let url = self.template.fill(arguments)?;
        let addresses = self.addresses(&url).await?;
        let client = Client::builder()
            .dns_resolver(Checked(addresses))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .timeout(self.timeout())
            .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|_| ToolError::failed("no request could be made"))?;
        let response = client.get(url).headers(self.headers.clone()).send().await.map_err(|error| failed(&error))?;
        check(&response)?;
        self.read(response).await
    }

    /// Every address of the host, if all of them may be asked. One that may not speaks against the name as a whole.
    async fn addresses(&self, url: &Url) -> Result<Vec<SocketAddr>, ToolError> {
        let unknown = || ToolError::failed("the server's name could not be found");
        let (host, port) = url.host_str().zip(url.port_or_known_default()).ok_or_else(unknown)?;
        // An IPv6 address stands in brackets.
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let addresses = match literal {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => self.lookup.lookup(host.to_owned(), port).await.map_err(|_| unknown())?,
        };
        if addresses.is_empty() {
            return Err(unknown());
        }
        if !self.config.allow_private && !addresses.iter().all(|address| is_public(address.ip())) {
            return Err(ToolError::failed("the server may not be asked: it is not on the public internet"));
        }
        Ok(addresses)
    }

    /// The body, up to the limit.
    async fn read(&self, response: Response) -> Result<String, ToolError> {
        let max = self.config.max_bytes;
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| failed(&error))?;
            let room = max.saturating_sub(body.len());
            if let Some(fits) = piece.get(..room).filter(|_| piece.len() > room) {
                body.extend_from_slice(fits);
                // The last character may have been cut in two.
                let whole = body.utf8_chunks().map(|chunk| chunk.valid()).collect::<Vec<_>>().join("\u{fffd}");
                return Ok(format!("{whole}\n[the response is longer than {max} bytes and was cut off here]"));
            }
            body.extend_from_slice(&piece);
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.config.timeout_ms)
    }
}

impl Tool for HttpTool {
    fn spec(&self) -> ToolSpec {
        let property = |meaning: &String| json!({ "type": "string", "description": meaning });
        let parameters = &self.config.parameters;
        let properties: Map<_, _> =
            parameters.iter().map(|(name, meaning)| (name.clone(), property(meaning))).collect();
        ToolSpec {
            name: self.config.name.clone(),
            description: self.config.description.clone(),
            parameters: json!({
                "type": "object",
                "properties": properties,
                "required": parameters.keys().collect::<Vec<_>>(),
                "additionalProperties": false,
            }),
        }
    }

    fn call<'a>(&'a self, arguments: &'a Value) -> BoxFuture<'a, Result<String, ToolError>> {
        async move {
            let got = tokio::time::timeout(self.timeout(), self.get(arguments)).await;
            got.unwrap_or_else(|_| Err(too_late()))
        }
        .boxed()
    }

    fn reusable_for(&self) -> Option<Duration> {
        (self.config.reuse_s > 0).then(|| Duration::from_secs(self.config.reuse_s))
    }
}

fn headers(config: &HttpToolConfig) -> Result<HeaderMap, &'static str> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/*;q=0.9"));
    // What is compressed could not be capped while it is read.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    for (name, value) in &config.headers {
        let name = HeaderName::try_from(name).map_err(|_| "has a name that is none of HTTP's")?;
        if ["host", "connection", "content-length", "transfer-encoding", "accept-encoding"].contains(&name.as_str()) {
            return Err("must leave Host, Connection, Content-Length, Transfer-Encoding and Accept-Encoding alone");
        }
        let value = HeaderValue::from_str(value.expose_secret());
        let mut value = value.map_err(|_| "has a value that no header can have")?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

fn check(response: &Response) -> Result<(), ToolError> {
    let status = response.status();
    if status.is_redirection() {
        return Err(ToolError::failed(format!(
            "the server answered with a redirect ({}), and redirects are not followed",
            status.as_u16()
        )));
    }
    if !status.is_success() {
        return Err(ToolError::failed(format!("the server answered with status {}", status.as_u16())));
    }
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let encoding = header(CONTENT_ENCODING).trim();
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
        return Err(ToolError::failed("the response is compressed, which it was not to be"));
    }
    let content_type = header(CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let json = content_type == "application/json"
        || (content_type.starts_with("application/") && content_type.ends_with("+json"));
    if json || content_type.starts_with("text/") {
        return Ok(());
    }
    Err(ToolError::failed("the response is neither text nor JSON"))
}

/// Without the causes: they may name addresses.
fn failed(error: &reqwest::Error) -> ToolError {
    if error.is_timeout() {
        too_late()
    } else if error.is_connect() {
        ToolError::failed("the server could not be reached")
    } else {
        ToolError::failed("the connection to the server broke off")
    }
}

fn too_late() -> ToolError {
    ToolError::timed_out("the server took too long to answer")
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
