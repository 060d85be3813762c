//! A provider on a local port that answers, or fails, as a script says. For tests and demonstrations.

use std::collections::VecDeque;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::{Value, json};

/// What the provider does with a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Behaviour {
    /// Answers this, word by word when asked to stream.
    Answer(String),
    /// Answers with the first sentence of the first passage of the prompt, cited.
    Quote,
    /// Answers this with a pause before every word.
    Drip {
        /// The answer.
        text: String,
        /// The pause.
        pause: Duration,
    },
    /// Answers this, but reports no usage.
    WithoutUsage(String),
    /// Answers this and stops at its limit of tokens.
    Truncated(String),
    /// Resets the connection after so many words.
    Cut {
        /// The answer.
        text: String,
        /// Words before the cut.
        words: usize,
    },
    /// Ends the stream in good order after so many words, but without a finish reason.
    EndEarly {
        /// The answer.
        text: String,
        /// Words before the end.
        words: usize,
    },
    /// Falls silent after so many words and keeps the connection open.
    Stall {
        /// The answer.
        text: String,
        /// Words before the silence.
        words: usize,
    },
    /// Never answers.
    Hang,
    /// Answers with this status.
    Status {
        /// HTTP status.
        status: u16,
        /// Header `Retry-After`.
        retry_after: Option<String>,
        /// `error.code` of the body.
        code: String,
    },
    /// Answers 200 with something that is no completion.
    Malformed,
    /// Refuses the content.
    Refuse,
}

impl Behaviour {
    /// A status without further words.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::Status { status, retry_after: None, code: String::new() }
    }
}

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    /// The body.
    pub body: Value,
    /// `Authorization`.
    pub authorization: Option<String>,
    /// `Idempotency-Key`.
    pub idempotency_key: Option<String>,
}

#[derive(Debug)]
struct Script {
    next: VecDeque<Behaviour>,
    then: Behaviour,
    received: Vec<Received>,
}

/// A running provider; it ends when dropped.
#[derive(Debug)]
pub struct FakeProvider {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    server: tokio::task::JoinHandle<()>,
}

impl FakeProvider {
    /// Starts a provider on a free port of this machine that always does this.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(behaviour: Behaviour) -> std::io::Result<Self> {
        let script = Arc::new(Mutex::new(Script { next: VecDeque::new(), then: behaviour, received: Vec::new() }));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let app = Router::new().route("/v1/chat/completions", post(answer)).with_state(Arc::clone(&script));
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::warn!(%error, "fake provider ended");
            }
        });
        Ok(Self { address, script, server })
    }

    /// Base URL, as a provider's configuration wants it.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Does this from now on.
    pub fn set(&self, behaviour: Behaviour) {
        lock(&self.script).then = behaviour;
    }

    /// Does these first, one for each request.
    pub fn script(&self, behaviours: impl IntoIterator<Item = Behaviour>) {
        lock(&self.script).next.extend(behaviours);
    }

    /// Every request so far.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        lock(&self.script).received.clone()
    }

    /// How many requests came so far.
    #[must_use]
    pub fn calls(&self) -> usize {
        lock(&self.script).received.len()
    }
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn lock(script: &Mutex<Script>) -> MutexGuard<'_, Script> {
    script.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(State(script): State<Arc<Mutex<Script>>>, headers: HeaderMap, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let behaviour = {
        let mut script = lock(&script);
        script.received.push(Received {
            body: body.clone(),
            authorization: header("authorization"),
            idempotency_key: header("idempotency-key"),
        });
        script.next.pop_front().unwrap_or_else(|| script.then.clone())
    };
    respond(behaviour, &body).await
}

async fn respond(behaviour: Behaviour, request: &Value) -> Response {
    let mut say = Say::for_request(request);
    match behaviour {
        Behaviour::Answer(text) => say.text(text),
        Behaviour::Quote => say.text(quote(request)),
        Behaviour::Drip { text, pause } => {
            say.pause = pause;
            say.text(text)
        }
        Behaviour::WithoutUsage(text) => {
            say.usage = false;
            say.text(text)
        }
        Behaviour::Truncated(text) => {
            say.finish = "length";
            say.text(text)
        }
        Behaviour::Cut { text, words } => say.broken(&text, words, End::Reset),
        Behaviour::EndEarly { text, words } => say.broken(&text, words, End::Clean),
        Behaviour::Stall { text, words } => say.broken(&text, words, End::Silence),
        Behaviour::Hang => pending().await,
        Behaviour::Status { status, retry_after, code } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let body = json!({ "error": { "code": code, "message": "as the script says" } }).to_string();
            let mut response = (status, body).into_response();
            if let Some(value) = retry_after.and_then(|value| value.parse().ok()) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
            response
        }
        Behaviour::Malformed => (StatusCode::OK, "data: <html>\n\n").into_response(),
        Behaviour::Refuse => {
            say.finish = "content_filter";
            say.text(String::new())
        }
    }
}

/// How a stream that breaks off ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Reset,
    Clean,
    Silence,
}

struct Say {
    stream: bool,
    usage: bool,
    finish: &'static str,
    pause: Duration,
    input_words: usize,
}

impl Say {
    fn for_request(request: &Value) -> Self {
        let flag = |pointer: &str| request.pointer(pointer).and_then(Value::as_bool).unwrap_or(false);
        let stream = flag("/stream");
        let input_words = messages(request).map(|text| text.split_whitespace().count()).sum();
        Self {
            stream,
            usage: !stream || flag("/stream_options/include_usage"),
            finish: "stop",
            pause: Duration::ZERO,
            input_words,
        }
    }

    /// One token a word.
    fn usage(&self, output: usize) -> Value {
        json!({ "prompt_tokens": self.input_words, "completion_tokens": output })
    }

    fn text(self, text: String) -> Response {
        if !self.stream {
            let mut body = json!({
                "choices": [{ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": self.finish }],
            });
            if let (true, Some(fields)) = (self.usage, body.as_object_mut()) {
                fields.insert("usage".into(), self.usage(text.split_whitespace().count()));
            }
            return ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
        }
        let words = words(&text);
        let mut events: Vec<String> = words.iter().map(|word| delta(word)).collect();
        events.push(json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": self.finish }] }).to_string());
        if self.usage {
            events.push(json!({ "choices": [], "usage": self.usage(words.len()) }).to_string());
        }
        events.push("[DONE]".into());
        let pause = self.pause;
        event_stream(stream::iter(events).then(move |event| async move {
            tokio::time::sleep(pause).await;
            Ok(event)
        }))
    }

    fn broken(self, text: &str, count: usize, end: End) -> Response {
        let begun: Vec<_> = words(text).iter().take(count).map(|word| Ok(delta(word))).collect();
        let begun = stream::iter(begun);
        match end {
            End::Reset => event_stream(begun.chain(stream::once(async {
                // What was said leaves first.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
            }))),
            End::Clean => event_stream(begun),
            End::Silence => event_stream(begun.chain(stream::once(pending()))),
        }
    }
}

fn delta(word: &str) -> String {
    json!({ "choices": [{ "index": 0, "delta": { "content": word }, "finish_reason": null }] }).to_string()
}

fn event_stream(events: impl futures::Stream<Item = std::io::Result<String>> + Send + 'static) -> Response {
    let body: BoxStream<'static, std::io::Result<String>> =
        events.map(|event| event.map(|event| format!("data: {event}\n\n"))).boxed();
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(body)).into_response()
}

/// Words with the space after them, so that they concatenate to the text.
fn words(text: &str) -> Vec<String> {
    text.split_inclusive(' ').map(str::to_owned).collect()
}

fn messages(request: &Value) -> impl Iterator<Item = &str> {
    let messages = request.get("messages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    messages.iter().filter_map(|message| message.get("content").and_then(Value::as_str))
}

/// First sentence of the first passage between `<passage …>` and `</passage>`.
fn quote(request: &Value) -> String {
    let prompt: String = messages(request).collect::<Vec<_>>().join("\n");
    // The instructions may name the tag too: passages are numbered.
    let passage = prompt
        .split_once("<passage n=\"1\"")
        .and_then(|(_, rest)| rest.split_once('>'))
        .and_then(|(_, rest)| rest.split_once("</passage>"))
        .map_or("", |(passage, _)| passage.trim());
    let sentence = passage.split_inclusive(['.', '!', '?']).next().unwrap_or("I do not know.");
    format!("{} [1]", sentence.trim())
}
