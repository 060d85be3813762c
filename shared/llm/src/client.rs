//! One call of one provider.

use std::time::{Duration, SystemTime};

use futures::StreamExt;
use reqwest::header::{ACCEPT, HeaderName, HeaderValue};
use reqwest::{Client, Response};
use secrecy::ExposeSecret;
use tokio::time::{Instant, timeout_at};

use crate::config::{ProviderConfig, TimeoutConfig};
use crate::error::{CallError, Step};
use crate::pricing::{TokenUsage, estimate_tokens};
use crate::sse::Events;
use crate::wire::{self, Message, Said};

/// An answer ends here even if the model goes on; it must fit a record.
const MAX_ANSWER_BYTES: usize = 256 << 10;

/// Most bytes read of a response that is not a stream.
const MAX_BODY_BYTES: usize = 4 << 20;

/// What to ask.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// The conversation.
    pub messages: Vec<Message>,
    /// Most tokens the answer may have.
    pub max_tokens: u32,
    /// 0 for the likeliest answer; rises with variety.
    pub temperature: f32,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// Sent as `Idempotency-Key`, for providers that know it.
    pub idempotency_key: Option<String>,
}

impl ChatRequest {
    /// Estimated tokens of the messages.
    #[must_use]
    pub fn estimated_tokens(&self) -> u64 {
        self.messages.iter().map(|message| estimate_tokens(&message.content)).sum()
    }
}

/// Why a model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// It was done.
    Stop,
    /// It reached the limit of tokens (or of bytes).
    Length,
}

/// A complete answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Its text: the pieces, in order.
    pub text: String,
    /// Why it ends.
    pub finish: Finish,
    /// Tokens.
    pub usage: TokenUsage,
    /// From sending the request to the first piece of text.
    pub first_token: Duration,
}

/// Where the pieces of an answer go while it streams.
pub trait Deltas: Send {
    /// A piece of the answer of this attempt. Attempts count from 1; a new attempt starts the text again.
    fn delta(&mut self, attempt: i32, text: &str);
}

/// Pieces are not wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

impl Deltas for Discard {
    fn delta(&mut self, _: i32, _: &str) {}
}

/// A call that failed, with what had arrived and what it may have cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) error: CallError,
    pub(crate) partial: String,
    pub(crate) usage: TokenUsage,
}

/// One provider.
#[derive(Debug, Clone)]
pub(crate) struct Provider {
    pub(crate) name: String,
    pub(crate) config: ProviderConfig,
    timeouts: TimeoutConfig,
    http: Client,
    url: String,
}

/// What has arrived so far.
#[derive(Debug, Default)]
struct Heard {
    text: String,
    finish: Option<Finish>,
    usage: Option<TokenUsage>,
    first_token: Option<Duration>,
}

/// The limits of one call, as points in time.
struct Limits<'a> {
    began: Instant,
    timeouts: &'a TimeoutConfig,
    deadline: Option<Instant>,
}

impl Limits<'_> {
    /// The nearest of the step's own limit, the whole call's and the caller's deadline.
    fn nearest(&self, step: Step, own: Instant) -> (Instant, Step) {
        let total = (self.began + self.timeouts.total(), Step::Total);
        let deadline = self.deadline.map(|at| (at, Step::Deadline));
        [Some((own, step)), Some(total), deadline].into_iter().flatten().min_by_key(|(at, _)| *at).unwrap_or(total)
    }

    async fn within<T>(&self, step: Step, own: Instant, work: impl Future<Output = T>) -> Result<T, CallError> {
        let (at, step) = self.nearest(step, own);
        timeout_at(at, work).await.map_err(|_| CallError::Timeout { step, elapsed: self.began.elapsed() })
    }
}

impl Provider {
    pub(crate) fn new(name: &str, config: &ProviderConfig, timeouts: &TimeoutConfig) -> Result<Self, reqwest::Error> {
        let http = Client::builder()
            .connect_timeout(timeouts.connect())
            // A redirect would carry question and key to whoever is named there.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let url = format!("{}/chat/completions", config.base_url.trim_end_matches('/'));
        Ok(Self { name: name.to_owned(), config: config.clone(), timeouts: *timeouts, http, url })
    }

    /// Asks, giving the pieces to `deltas` as they come.
    pub(crate) async fn ask(
        &self,
        request: &ChatRequest,
        attempt: i32,
        deltas: &mut dyn Deltas,
    ) -> Result<Completion, Failed> {
        let mut heard = Heard::default();
        let limits = Limits { began: Instant::now(), timeouts: &self.timeouts, deadline: request.deadline };
        let result = self.exchange(request, attempt, &limits, &mut heard, deltas).await;
        let estimate =
            TokenUsage { input: request.estimated_tokens(), output: estimate_tokens(&heard.text), estimated: true };
        let usage = heard.usage.unwrap_or(estimate);
        match (result, heard.finish) {
            (Ok(()), Some(finish)) => Ok(Completion {
                text: heard.text,
                finish,
                usage,
                first_token: heard.first_token.unwrap_or_else(|| limits.began.elapsed()),
            }),
            (Ok(()), None) => {
                Err(Failed { error: CallError::Broken { bytes: heard.text.len() }, partial: heard.text, usage })
            }
            (Err(error), _) => {
                let usage = if error.may_have_cost() { usage } else { TokenUsage::default() };
                Err(Failed { error, partial: heard.text, usage })
            }
        }
    }

    async fn exchange(
        &self,
        request: &ChatRequest,
        attempt: i32,
        limits: &Limits<'_>,
        heard: &mut Heard,
        deltas: &mut dyn Deltas,
    ) -> Result<(), CallError> {
        let response = self.send(request, limits).await?;
        let mut body = response.bytes_stream();
        if !self.config.stream {
            let whole = limits.within(Step::Total, limits.began + self.timeouts.total(), read_all(body)).await??;
            let said = wire::read(&whole)?;
            heard.take(said, limits.began, attempt, deltas);
            return Ok(());
        }
        let mut events = Events::default();
        let mut last = limits.began;
        loop {
            let (step, own) = match heard.first_token {
                None => (Step::FirstToken, limits.began + self.timeouts.first_token()),
                Some(_) => (Step::BetweenTokens, last + self.timeouts.between_tokens()),
            };
            let piece = match limits.within(step, own, body.next()).await {
                // Only the usage was missing.
                Err(_) if heard.finish.is_some() => return Ok(()),
                Err(timeout) => return Err(timeout),
                Ok(None | Some(Err(_))) => return Ok(()),
                Ok(Some(Ok(piece))) => piece,
            };
            let ready = events.push(&piece).map_err(|_| CallError::Malformed { reason: "an event of over 1 MiB" })?;
            for event in ready {
                if event.trim() == "[DONE]" {
                    return Ok(());
                }
                let said = wire::read(event.as_bytes())?;
                if !said.text.is_empty() {
                    last = Instant::now();
                }
                if !heard.take(said, limits.began, attempt, deltas) {
                    return Ok(());
                }
            }
        }
    }

    async fn send(&self, request: &ChatRequest, limits: &Limits<'_>) -> Result<Response, CallError> {
        let mut post = self.http.post(&self.url).json(&wire::body(&self.config, request));
        if self.config.stream {
            post = post.header(ACCEPT, "text/event-stream");
        }
        if let Some(key) = &self.config.api_key {
            post = post.bearer_auth(key.expose_secret());
        }
        if let Some(key) = request.idempotency_key.as_ref().and_then(|key| HeaderValue::from_str(key).ok()) {
            post = post.header(HeaderName::from_static("idempotency-key"), key);
        }
        let (step, own) = if self.config.stream {
            (Step::FirstToken, limits.began + self.timeouts.first_token())
        } else {
            (Step::Total, limits.began + self.timeouts.total())
        };
        let sent = limits.within(step, own, post.send()).await?;
        let response = sent.map_err(|error| CallError::from_send(error, limits.began.elapsed()))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, headers) = (response.status(), response.headers().clone());
        let body = limits.within(step, own, read_all(response.bytes_stream())).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        Err(CallError::from_status(status, &headers, &body, SystemTime::now()))
    }
}

impl Heard {
    /// Whether there was room for all of it.
    fn take(&mut self, said: Said, began: Instant, attempt: i32, deltas: &mut dyn Deltas) -> bool {
        let room = MAX_ANSWER_BYTES.saturating_sub(self.text.len());
        let text = said.text.get(..said.text.floor_char_boundary(room)).unwrap_or_default();
        let whole = text.len() == said.text.len();
        if !text.is_empty() {
            self.first_token.get_or_insert_with(|| began.elapsed());
            deltas.delta(attempt, text);
            self.text.push_str(text);
        }
        if let Some(reason) = said.finish {
            self.finish = Some(if reason == "length" { Finish::Length } else { Finish::Stop });
        }
        if !whole {
            self.finish = Some(Finish::Length);
        }
        if let Some((input, output)) = said.usage {
            self.usage = Some(TokenUsage { input, output, estimated: false });
        }
        whole
    }
}

async fn read_all<S>(mut body: S) -> Result<Vec<u8>, CallError>
where
    S: futures::Stream<Item = reqwest::Result<bytes::Bytes>> + Unpin,
{
    let mut whole = Vec::new();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|_| CallError::Broken { bytes: whole.len() })?;
        whole.extend_from_slice(&piece);
        if whole.len() > MAX_BODY_BYTES {
            return Err(CallError::Malformed { reason: "an answer of over 4 MiB" });
        }
    }
    Ok(whole)
}
