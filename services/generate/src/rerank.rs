//! A second opinion on the order of passages: a model that reads question and passage together, behind HTTP. Optional; where it
//! does not answer in time, the order of the search stands.

use std::time::Duration;

use futures::future::BoxFuture;
use reqwest::{Client, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Passage;

/// Longest response, bytes.
const MAX_BYTES: usize = 1 << 20;

/// What a reranker speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RerankApi {
    /// `{model, query, documents, top_n}` to `{results: [{index, relevance_score}]}`, as Cohere, Jina and vLLM have it.
    #[default]
    Cohere,
    /// `{query, texts}` to `[{index, score}]`, as text-embeddings-inference has it.
    Tei,
}

/// Section `[rerank]`: a model that orders what a search has found. Without a URL there is none.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RerankConfig {
    /// Where it is asked, the whole URL, for example `http://localhost:8080/rerank`.
    pub url: Option<String>,
    /// What it speaks: `cohere` or `tei`.
    pub api: RerankApi,
    /// Model to ask for, where it has several.
    pub model: Option<String>,
    /// Sent as bearer token; never printed or logged.
    #[serde(skip_serializing)]
    pub api_key: Option<SecretString>,
    /// Passages that it is shown; the best of them, as many as the question wants, are used.
    pub candidates: usize,
    /// Milliseconds it has; then the order of the search stands.
    pub timeout_ms: u64,
}

impl Default for RerankConfig {
    fn default() -> Self {
        Self { url: None, api: RerankApi::Cohere, model: None, api_key: None, candidates: 20, timeout_ms: 300 }
    }
}

/// Settings that can't work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rerank.{key} {problem}")]
pub struct InvalidRerank {
    /// Which setting.
    pub key: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// Why there is no order.
#[derive(Debug, thiserror::Error)]
pub enum RerankError {
    /// It could not be asked, or did not answer in time.
    #[error("{0}")]
    Unreachable(String),
    /// It answered what is no order.
    #[error("the reranker's answer makes no sense: {0}")]
    Senseless(String),
}

/// Orders passages.
pub trait Rerank: Send + Sync + 'static {
    /// Places of the texts, from 0, best first; what is missing comes last. It ends in bounded time by itself.
    fn order<'a>(&'a self, question: &'a str, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<usize>, RerankError>>;

    /// Passages it wants to see.
    fn candidates(&self) -> usize;
}

/// The reranker of such a configuration.
#[derive(Debug)]
pub struct HttpReranker {
    config: RerankConfig,
    url: Url,
    client: Client,
}

impl HttpReranker {
    /// The reranker, if there is one.
    ///
    /// # Errors
    /// When a setting can't work.
    pub fn new(config: &RerankConfig) -> Result<Option<Self>, InvalidRerank> {
        let wrong = |key, problem: String| InvalidRerank { key, problem };
        let Some(url) = &config.url else { return Ok(None) };
        let url: Url = url.parse().map_err(|error| wrong("url", format!("is no URL: {error}")))?;
        if !["http", "https"].contains(&url.scheme()) {
            return Err(wrong("url", "must begin with http:// or https://".into()));
        }
        if config.candidates == 0 {
            return Err(wrong("candidates", "must be at least 1".into()));
        }
        if config.timeout_ms == 0 {
            return Err(wrong("timeout_ms", "must be at least 1".into()));
        }
        let client = Client::builder()
            .timeout(Duration::from_millis(config.timeout_ms))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| wrong("url", error.to_string()))?;
        Ok(Some(Self { config: config.clone(), url, client }))
    }

    async fn ask(&self, question: &str, texts: &[&str]) -> Result<Vec<usize>, RerankError> {
        let mut body = match self.config.api {
            RerankApi::Cohere => json!({ "query": question, "documents": texts, "top_n": texts.len() }),
            RerankApi::Tei => json!({ "query": question, "texts": texts, "truncate": true }),
        };
        if let (Some(model), Some(body)) = (&self.config.model, body.as_object_mut()) {
            body.insert("model".into(), Value::from(model.as_str()));
        }
        // Its address may hold a secret; what it says may hold what it was asked.
        let failed = |error: reqwest::Error| RerankError::Unreachable(error.without_url().to_string());
        let mut request = self.client.post(self.url.clone()).json(&body);
        if let Some(key) = &self.config.api_key {
            request = request.bearer_auth(key.expose_secret());
        }
        let mut response = request.send().await.and_then(reqwest::Response::error_for_status).map_err(failed)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_BYTES {
                return Err(RerankError::Senseless(format!("more than {MAX_BYTES} bytes")));
            }
        }
        order(&bytes, texts.len())
    }
}

impl Rerank for HttpReranker {
    fn order<'a>(&'a self, question: &'a str, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<usize>, RerankError>> {
        Box::pin(self.ask(question, texts))
    }

    fn candidates(&self) -> usize {
        self.config.candidates
    }
}

/// The places in a response, best first.
fn order(bytes: &[u8], texts: usize) -> Result<Vec<usize>, RerankError> {
    #[derive(Deserialize)]
    struct Scored {
        index: usize,
        #[serde(alias = "relevance_score")]
        score: f64,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Response {
        Bare(Vec<Scored>),
        Named { results: Vec<Scored> },
    }
    let senseless = |what: String| RerankError::Senseless(what);
    let response = serde_json::from_slice(bytes).map_err(|error| senseless(error.to_string()))?;
    let (Response::Bare(mut scored) | Response::Named { results: mut scored }) = response;
    if let Some(beyond) = scored.iter().find(|scored| scored.index >= texts) {
        return Err(senseless(format!("place {} of {texts}", beyond.index)));
    }
    scored.sort_by(|a, b| b.score.total_cmp(&a.score));
    Ok(scored.into_iter().map(|scored| scored.index).collect())
}

/// Passages in this order, each once; those that it leaves out come after, as they stood.
pub(crate) fn reordered(passages: Vec<Passage>, order: &[usize]) -> Vec<Passage> {
    let mut left: Vec<Option<Passage>> = passages.into_iter().map(Some).collect();
    let mut out: Vec<Passage> = order.iter().filter_map(|place| left.get_mut(*place).and_then(Option::take)).collect();
    out.extend(left.into_iter().flatten());
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request with this, and gives what it was asked.
    async fn server(status: &'static str, body: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/rerank", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = String::new();
            let mut buffer = vec![0; 65_536];
            while !asked.ends_with('}') {
                let read = stream.read(&mut buffer).await.unwrap();
                asked.push_str(std::str::from_utf8(buffer.get(..read).unwrap()).unwrap());
            }
            let response = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(response.as_bytes()).await.unwrap();
            asked
        });
        (url, asked)
    }

    fn reranker(url: String, api: RerankApi) -> HttpReranker {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = RerankConfig {
            url: Some(url),
            api,
            model: Some("m".into()),
            api_key: Some("secret".to_owned().into()),
            timeout_ms: 5_000,
            ..RerankConfig::default()
        };
        HttpReranker::new(&config).unwrap().unwrap()
    }

    #[tokio::test]
    async fn both_ways_to_ask_give_an_order() {
        let body = r#"{"results":[{"index":1,"relevance_score":0.2},{"index":2,"relevance_score":0.9}]}"#;
        let (url, asked) = server("200 OK", body).await;
        let order = reranker(url, RerankApi::Cohere).order("q", &["a", "b", "c"]).await.unwrap();
        assert_eq!(order, [2, 1]);
        let asked = asked.await.unwrap();
        for part in ["authorization: Bearer secret", r#""documents":["a","b","c"]"#, r#""model":"m""#] {
            assert!(asked.contains(part), "{asked}");
        }
        let (url, asked) = server("200 OK", r#"[{"index":0,"score":-3.5},{"index":1,"score":2.0}]"#).await;
        assert_eq!(reranker(url, RerankApi::Tei).order("q", &["a", "b"]).await.unwrap(), [1, 0]);
        assert!(asked.await.unwrap().contains(r#""texts":["a","b"]"#));
    }

    #[tokio::test]
    async fn an_error_names_neither_the_address_nor_the_key() {
        let (url, _) = server("500 Internal Server Error", "{}").await;
        let port = url.clone();
        let error = reranker(url, RerankApi::Cohere).order("q", &["a"]).await.unwrap_err().to_string();
        assert!(error.contains("500") && !error.contains("secret") && !error.contains(&port), "{error}");
        for body in ["{}", "no", r#"[{"index":3,"score":1.0}]"#] {
            let (url, _) = server("200 OK", body).await;
            let error = reranker(url, RerankApi::Cohere).order("q", &["a"]).await.unwrap_err();
            assert!(matches!(error, RerankError::Senseless(_)), "{error}");
        }
    }

    #[test]
    fn without_a_url_there_is_none_and_slips_are_refused() {
        assert!(HttpReranker::new(&RerankConfig::default()).unwrap().is_none());
        for (url, candidates, timeout_ms, key) in [
            ("rerank", 1, 1, "url"),
            ("file:///x", 1, 1, "url"),
            ("http://h", 0, 1, "candidates"),
            ("http://h", 1, 0, "timeout_ms"),
        ] {
            let config = RerankConfig { url: Some(url.into()), candidates, timeout_ms, ..RerankConfig::default() };
            assert_eq!(HttpReranker::new(&config).unwrap_err().key, key);
        }
    }
}
