//! One call of one provider.

use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::future::BoxFuture;
use reqwest::header::{ACCEPT, HeaderName, HeaderValue};
use reqwest::{Client, Response};
use secrecy::ExposeSecret;
use tokio::time::Instant;

use crate::config::ProviderConfig;
use crate::error::{CallError, Step};
use crate::pricing::{TokenUsage, estimate_tokens_of};
use crate::sse::Events;
use crate::timeouts::{End, Limits, TimeoutConfig};
use crate::tool_call::{Calls, ToolCall, ToolSpec};
use crate::wire::{self, Message, Said, tool_to_wire};

/// An answer ends here even if the model goes on; it must fit a record.
const MAX_ANSWER_BYTES: usize = 256 << 10;

/// Bytes a token of a whole answer has on average, at most. Vocabularies in use have about four: only an answer that
/// ignores its limit of tokens has more, when its pieces hold many tokens each.
const MAX_BYTES_PER_TOKEN: usize = 32;

/// Most bytes read of a response that is not a stream.
const MAX_BODY_BYTES: usize = 4 << 20;

/// What to ask.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatRequest {
    /// The conversation.
    pub messages: Vec<Message>,
    /// What the model may call instead of answering; nothing when empty.
    pub tools: Vec<ToolSpec>,
    /// Most tokens the answer may have.
    pub max_tokens: u32,
    /// 0 for the likeliest answer; rises with variety.
    pub temperature: f32,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// Sent as `Idempotency-Key`, for providers that know it.
    pub idempotency_key: Option<String>,
    /// For whom; logged, never sent.
    pub tenant: Option<String>,
    /// Template of the prompt the messages were made of; logged, never sent.
    pub prompt_template: Option<String>,
    /// Its version; logged, never sent.
    pub prompt_version: Option<String>,
}

impl ChatRequest {
    /// Estimated tokens of the messages and the tools.
    #[must_use]
    pub fn estimated_tokens(&self) -> u64 {
        self.sizes().map(estimate_tokens_of).sum()
    }

    /// Bytes of the messages and the tools.
    pub(crate) fn bytes(&self) -> usize {
        self.sizes().sum()
    }

    fn sizes(&self) -> impl Iterator<Item = usize> {
        let tools = self.tools.iter().map(|tool| tool_to_wire(tool).to_string().len());
        self.messages.iter().map(Message::bytes).chain(tools)
    }
}

/// Why a model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// It was done.
    Stop,
    /// It reached the limit of tokens (or of bytes). What it had begun to call is not given out.
    Length,
    /// It waits for the results of its tool calls; there is at least one.
    ToolCalls,
}

/// A complete answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Its text: the pieces, in order.
    pub text: String,
    /// Why it ends.
    pub finish: Finish,
    /// What it calls, whole and in order; at most [`MAX_TOOL_CALLS`](crate::MAX_TOOL_CALLS).
    pub tool_calls: Vec<ToolCall>,
    /// Tokens.
    pub usage: TokenUsage,
    /// From sending the request to the first piece, of text or of a tool call.
    pub first_token: Duration,
}

/// Where the pieces of an answer go while it streams.
pub trait Deltas: Send {
    /// A piece of the answer of this attempt. Attempts count from 1; a new attempt starts the text again.
    fn delta(&mut self, attempt: i32, text: &str);

    /// A piece of a tool call of this attempt, so many bytes long. Its content comes with the whole answer: a call that
    /// breaks off must not be made.
    fn tool_call_piece(&mut self, attempt: i32, bytes: usize) {
        let _ = (attempt, bytes);
    }
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

/// What can be asked: a provider, or a script in its place.
pub(crate) trait Ask: std::fmt::Debug + Send + Sync {
    /// One call, over at `end`. Gives the pieces to `deltas` as they come.
    fn ask<'a>(
        &'a self,
        request: &'a ChatRequest,
        attempt: i32,
        end: End,
        deltas: &'a mut dyn Deltas,
    ) -> BoxFuture<'a, Result<Completion, Failed>>;
}

/// One provider.
#[derive(Debug)]
pub(crate) struct Provider {
    config: ProviderConfig,
    timeouts: TimeoutConfig,
    http: Client,
    url: String,
}

/// What has arrived so far, and how much more may.
#[derive(Debug)]
struct Heard {
    max_bytes: usize,
    max_pieces: usize,
    pieces: usize,
    text: String,
    calls: Calls,
    /// The reason it ends, in the provider's word.
    finish: Option<String>,
    usage: Option<TokenUsage>,
    first_token: Option<Duration>,
}

impl Provider {
    pub(crate) fn new(config: &ProviderConfig, timeouts: &TimeoutConfig) -> Result<Self, reqwest::Error> {
        let http = Client::builder()
            .connect_timeout(timeouts.connect())
            // A redirect would carry question and key to whoever is named there.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let url = format!("{}/chat/completions", config.base_url.trim_end_matches('/'));
        Ok(Self { config: config.clone(), timeouts: *timeouts, http, url })
    }

    async fn call(
        &self,
        request: &ChatRequest,
        attempt: i32,
        end: End,
        deltas: &mut dyn Deltas,
    ) -> Result<Completion, Failed> {
        let mut heard = Heard::room_for(request, self.config.stream);
        let limits = Limits { began: Instant::now(), timeouts: &self.timeouts, end };
        let result = self.exchange(request, attempt, &limits, &mut heard, deltas).await;
        let usage = heard.usage.unwrap_or_else(|| heard.estimate(request));
        let Heard { text, calls, finish, first_token, .. } = heard;
        let ended = result.and_then(|()| match finish {
            Some(reason) => calls.finish(&reason),
            None => Err(CallError::Broken { bytes: text.len() }),
        });
        match ended {
            Ok((finish, tool_calls)) => {
                let first_token = first_token.unwrap_or_else(|| limits.began.elapsed());
                Ok(Completion { text, finish, tool_calls, usage, first_token })
            }
            Err(error) => {
                let usage = if error.may_have_cost() { usage } else { TokenUsage::default() };
                Err(Failed { error, partial: text, usage })
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
            let whole = limits.within(Step::Inference, limits.inference(), read_all(body)).await??;
            let said = wire::read(&whole)?;
            heard.take(said, limits.began, attempt, deltas)?;
            return Ok(());
        }
        let mut events = Events::default();
        let mut last = limits.began;
        loop {
            let (step, own) = match heard.first_token {
                None => (Step::FirstToken, limits.first_token()),
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
                if !said.text.is_empty() || !said.tool_calls.is_empty() {
                    last = Instant::now();
                }
                if !heard.take(said, limits.began, attempt, deltas)? {
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
            (Step::FirstToken, limits.first_token())
        } else {
            (Step::Inference, limits.inference())
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

impl Ask for Provider {
    fn ask<'a>(
        &'a self,
        request: &'a ChatRequest,
        attempt: i32,
        end: End,
        deltas: &'a mut dyn Deltas,
    ) -> BoxFuture<'a, Result<Completion, Failed>> {
        Box::pin(self.call(request, attempt, end, deltas))
    }
}

impl Heard {
    /// A piece of a stream holds a token at least, so more pieces than tokens were allowed show a provider that ignores
    /// the limit. An answer that comes whole was paid for already.
    fn room_for(request: &ChatRequest, stream: bool) -> Self {
        let tokens = usize::try_from(request.max_tokens).unwrap_or(usize::MAX);
        let (max_bytes, max_pieces) = if stream {
            (MAX_ANSWER_BYTES.min(tokens.saturating_mul(MAX_BYTES_PER_TOKEN)), tokens)
        } else {
            (MAX_ANSWER_BYTES, usize::MAX)
        };
        Self {
            max_bytes,
            max_pieces,
            pieces: 0,
            text: String::new(),
            calls: Calls::default(),
            finish: None,
            usage: None,
            first_token: None,
        }
    }

    /// Whether there was room for all of it.
    fn take(&mut self, said: Said, began: Instant, attempt: i32, deltas: &mut dyn Deltas) -> Result<bool, CallError> {
        let left = if self.pieces < self.max_pieces { self.max_bytes.saturating_sub(self.text.len()) } else { 0 };
        let text = said.text.get(..said.text.floor_char_boundary(left)).unwrap_or_default();
        let mut whole = text.len() == said.text.len();
        if !text.is_empty() {
            self.first_token.get_or_insert_with(|| began.elapsed());
            deltas.delta(attempt, text);
            self.text.push_str(text);
            self.pieces += 1;
        }
        for piece in said.tool_calls {
            if self.pieces >= self.max_pieces {
                whole = false;
                break;
            }
            self.first_token.get_or_insert_with(|| began.elapsed());
            deltas.tool_call_piece(attempt, piece.bytes());
            self.calls.take(piece)?;
            self.pieces += 1;
        }
        if said.finish.is_some() {
            self.finish = said.finish;
        }
        if !whole {
            self.finish = Some("length".into());
        }
        if let Some(usage) = said.usage {
            self.usage = Some(usage);
        }
        Ok(whole)
    }

    /// What it may have cost, where the provider does not say.
    fn estimate(&self, request: &ChatRequest) -> TokenUsage {
        let pieces = u64::try_from(self.pieces).unwrap_or(u64::MAX);
        TokenUsage {
            input: request.estimated_tokens(),
            cached: 0,
            output: estimate_tokens_of(self.text.len() + self.calls.bytes()).max(pieces),
            estimated: true,
        }
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
