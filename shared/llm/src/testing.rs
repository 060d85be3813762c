//! A provider on a local port that answers, or fails, as it is told: for tests, drills and demonstrations without a
//! model. It keeps books of its own, so that what a client believes to have spent can be held against them.
//!
//! # As a program
//!
//! ```text
//! cargo run -p weir-fake-provider -- --port 8089 --behaviour '{"kind": "quote"}'
//! ```
//!
//! prints one line once it listens, `weir-fake-provider ready on http://127.0.0.1:8089/v1`. Weir asks it when its
//! configuration says
//!
//! ```toml
//! [llm.providers.fake]
//! base_url = "http://127.0.0.1:8089/v1"
//! model = "fake"
//! ```
//!
//! | | |
//! |---|---|
//! | `POST /v1/chat/completions` | A completion, streamed or not. |
//! | `GET /v1/models` | One model, `fake`; any other name does as well. |
//! | `GET /control/books` | [`Books`] as JSON. |
//! | `POST /control/behaviour` | A [`Behaviour`], from now on. |
//! | `POST /control/script` | A list of behaviours, one for each next request. |
//! | `POST /control/down` | `{"down": true}`: 503 to everything until `{"down": false}`. |
//! | `POST /control/reset` | Forgets books, script and known keys; behaviour and outage stay. |
//!
//! A control request that succeeds is answered with 204, one that can't be read with 400 and what is wrong with it.
//!
//! ```text
//! curl localhost:8089/control/behaviour -d '{"kind": "mix", "with": {"seed": 7, "of": [
//!   [90, {"kind": "slow", "with": {"from_ms": 200, "to_ms": 900, "then": {"kind": "quote"}}}],
//!   [5, {"kind": "status", "with": {"status": 429, "retry_after": "2"}}],
//!   [5, {"kind": "cut", "with": {"text": "The mill was built in 1912", "words": 3}}]]}}'
//! curl localhost:8089/control/books
//! ```
//!
//! # Behaviours
//!
//! | Answers | |
//! |---|---|
//! | `answer` | This text. |
//! | `quote` | The first sentence of the prompt's first passage, cited. |
//! | `drip` | This text, with a pause before every word. |
//! | `long` | So many words, whatever the limit of tokens; with or without pauses. |
//! | `truncated` | This text, and says that it reached the limit of tokens. |
//! | `call-tools` | No text but calls of tools. |
//! | `refuse`, `decline` | Nothing, by its filter; its model's words why not. |
//! | **Usage** | |
//! | `cached` | This text; so many tokens of the input were in its cache. |
//! | `without-usage` | This text, and no word on what it took. |
//! | `wrong-usage` | This text; every token counts so many times. |
//! | `wrong-input-usage` | Another behaviour; the input counts as so many percent. |
//! | **Time and chance** | |
//! | `late` | Another behaviour after some time. |
//! | `slow` | Another behaviour after a time from a range, by seed and number of the request. |
//! | `mix` | One of several behaviours by weight, by seed and number of the request. |
//! | **Failures** | |
//! | `status` | This status, with or without `Retry-After` and an error code. |
//! | `hang` | Nothing, and keeps the connection open. |
//! | `reset` | Nothing, and resets the connection. |
//! | `cut` | So many words, then resets the connection. |
//! | `stall` | So many words, then nothing, and keeps the connection open. |
//! | `end-early` | So many words, then ends in good order without a finish reason. |
//! | `malformed` | 200 with something that is no completion. |
//!
//! # The books
//!
//! A word of a message is a token of input, a piece of an answer a token of output; a tool call is a piece for its name
//! and one for every eight letters of its arguments. Charged is what has at least one token of an answer, from then on:
//! input, and all output that was generated, also when the client hung up or the provider broke off. What failed with a
//! status, hung, was reset or abandoned before its first token, or was no completion at all is not charged.
//!
//! # Idempotency
//!
//! Without it every request is a call of its own. With it ([`FakeProvider::with_idempotency`], `--idempotency`) the
//! header `Idempotency-Key` alone decides, not what is asked:
//! - while the first request with a key runs, another one gets a 409 with the code `idempotency_in_progress`;
//! - once a whole answer was handed over, the same answer is given again at once, streamed or not, and not charged;
//! - where it failed, broke off or the client hung up, the next one runs anew and is charged again.
//!
//! Neither a 409 nor a repeat takes anything from the script.

mod answer;
mod behaviour;
mod books;
mod call;
mod chance;
mod chat;
mod connection;
mod control;
mod request;
mod state;
mod telling;

use std::net::{Ipv4Addr, SocketAddr};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::time::Instant;

pub use behaviour::{Behaviour, InvalidBehaviour, ToolCall};
pub use books::{Books, Entry, Fate, Sums};
use connection::{Connections, Open, Reset};
use state::Shared;

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

/// A running provider; it ends when dropped.
#[derive(Debug)]
pub struct FakeProvider {
    address: SocketAddr,
    shared: Shared,
    open: Open,
    server: tokio::task::JoinHandle<()>,
}

impl FakeProvider {
    /// Starts a provider on a free port of this machine that always does this.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(behaviour: Behaviour) -> std::io::Result<Self> {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into(), behaviour).await
    }

    /// The same on this address; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address can't be bound.
    pub async fn start_on(address: SocketAddr, behaviour: Behaviour) -> std::io::Result<Self> {
        let shared = Shared::new(behaviour);
        let listener = tokio::net::TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let app = Router::new()
            .route("/v1/chat/completions", post(chat::complete))
            .route("/v1/models", get(models))
            .merge(control::routes())
            .with_state(shared.clone())
            .into_make_service_with_connect_info::<Reset>();
        let open = Open::default();
        let connections = Connections { listener, open: open.clone() };
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(connections, app).await {
                tracing::warn!(%error, "fake provider ended");
            }
        });
        Ok(Self { address, shared, open, server })
    }

    /// Honours `Idempotency-Key`.
    #[must_use]
    pub fn with_idempotency(self) -> Self {
        self.set_idempotency(true);
        self
    }

    /// Base URL, as a provider's configuration wants it.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Does this from now on.
    pub fn set(&self, behaviour: Behaviour) {
        self.shared.lock().then = behaviour;
    }

    /// Does these first, one for each request.
    pub fn script(&self, behaviours: impl IntoIterator<Item = Behaviour>) {
        self.shared.lock().script.extend(behaviours);
    }

    /// An outage: while it is down, every request gets a 503 and none is taken from the script.
    pub fn set_down(&self, down: bool) {
        self.shared.lock().down = down;
    }

    /// Whether it honours `Idempotency-Key` from now on.
    pub fn set_idempotency(&self, idempotency: bool) {
        self.shared.lock().idempotency = idempotency;
    }

    /// Forgets books, script and known keys. Requests are numbered anew; calls under way are in no books any more.
    pub fn reset(&self) {
        self.shared.lock().forget();
    }

    /// What it has done so far, and would charge.
    #[must_use]
    pub fn books(&self) -> Books {
        self.shared.lock().books()
    }

    /// Every request so far, those of an outage included.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.shared.lock().received.clone()
    }

    /// How many requests came so far.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.shared.lock().received.len()
    }

    /// How many requests came since then.
    #[must_use]
    pub fn calls_since(&self, instant: Instant) -> usize {
        self.shared.lock().received.iter().filter(|received| received.at >= instant).count()
    }

    /// How many connections are open, those that wait for a next request included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.open.count()
    }

    /// When each request came, in order.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Instant> {
        self.shared.lock().received.iter().map(|received| received.at).collect()
    }
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn models(State(shared): State<Shared>) -> Result<Json<Value>, StatusCode> {
    if shared.lock().down {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    let model = json!({ "id": "fake", "object": "model", "created": 0, "owned_by": "weir" });
    Ok(Json(json!({ "object": "list", "data": [model] })))
}
