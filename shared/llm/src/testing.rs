//! A provider on a local port that answers, or fails, as a script says. For tests and demonstrations.

mod behaviour;
mod connection;
mod say;

use std::collections::VecDeque;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::time::Instant;

pub use behaviour::Behaviour;
use connection::{Connections, Open, Reset};
use say::{Ending, Say};

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    /// When.
    pub at: Instant,
    /// The body.
    pub body: Value,
    /// `Authorization`.
    pub authorization: Option<String>,
    /// `Idempotency-Key`.
    pub idempotency_key: Option<String>,
}

#[derive(Debug)]
struct Script {
    down: bool,
    next: VecDeque<Behaviour>,
    then: Behaviour,
    received: Vec<Received>,
}

/// A running provider; it ends when dropped.
#[derive(Debug)]
pub struct FakeProvider {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    open: Open,
    server: tokio::task::JoinHandle<()>,
}

impl FakeProvider {
    /// Starts a provider on a free port of this machine that always does this.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(behaviour: Behaviour) -> std::io::Result<Self> {
        let script = Script { down: false, next: VecDeque::new(), then: behaviour, received: Vec::new() };
        let script = Arc::new(Mutex::new(script));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let app = Router::new()
            .route("/v1/chat/completions", post(answer))
            .with_state(Arc::clone(&script))
            .into_make_service_with_connect_info::<Reset>();
        let open = Open::default();
        let connections = Connections { listener, open: open.clone() };
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(connections, app).await {
                tracing::warn!(%error, "fake provider ended");
            }
        });
        Ok(Self { address, script, open, server })
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

    /// An outage: while it is down, every request gets a 503 and none is taken from the script.
    pub fn set_down(&self, down: bool) {
        lock(&self.script).down = down;
    }

    /// Every request so far, those of an outage included.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        lock(&self.script).received.clone()
    }

    /// How many requests came so far.
    #[must_use]
    pub fn calls(&self) -> usize {
        lock(&self.script).received.len()
    }

    /// How many requests came since then.
    #[must_use]
    pub fn calls_since(&self, instant: Instant) -> usize {
        lock(&self.script).received.iter().filter(|received| received.at >= instant).count()
    }

    /// How many connections are open, those that wait for a next request included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.open.count()
    }

    /// When each request came, in order.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Instant> {
        lock(&self.script).received.iter().map(|received| received.at).collect()
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

async fn answer(
    State(script): State<Arc<Mutex<Script>>>,
    ConnectInfo(reset): ConnectInfo<Reset>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut behaviour = {
        let mut script = lock(&script);
        script.received.push(Received {
            at: Instant::now(),
            body: body.clone(),
            authorization: header("authorization"),
            idempotency_key: header("idempotency-key"),
        });
        if script.down {
            Behaviour::status(503)
        } else {
            script.next.pop_front().unwrap_or_else(|| script.then.clone())
        }
    };
    while let Behaviour::Late { latency, then } = behaviour {
        tokio::time::sleep(latency).await;
        behaviour = *then;
    }
    respond(behaviour, &body, &reset).await
}

async fn respond(behaviour: Behaviour, request: &Value, reset: &Reset) -> Response {
    let mut say = Say::for_request(request);
    match behaviour {
        Behaviour::Answer(text) => say.text(text),
        Behaviour::Quote => say.text(say::quote(request)),
        Behaviour::Drip { text, pause } => {
            say.pause = pause;
            say.text(text)
        }
        Behaviour::Long { words } => say.text("word ".repeat(words)),
        Behaviour::WithoutUsage(text) => {
            say.usage = false;
            say.text(text)
        }
        Behaviour::WrongUsage { text, times } => {
            say.usage_times = times;
            say.text(text)
        }
        Behaviour::Cached { text, tokens } => {
            say.cached = tokens;
            say.text(text)
        }
        Behaviour::Truncated(text) => {
            say.finish = "length";
            say.text(text)
        }
        Behaviour::Cut { text, words } => say.broken(&text, words, Ending::Reset),
        Behaviour::EndEarly { text, words } => say.broken(&text, words, Ending::Clean),
        Behaviour::Stall { text, words } => say.broken(&text, words, Ending::Silence),
        // The outer loop has waited already.
        Behaviour::Hang | Behaviour::Late { .. } => pending().await,
        Behaviour::Reset => {
            reset.set();
            StatusCode::NO_CONTENT.into_response()
        }
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
