//! `/v1/chat/completions`: a request is entered into the books, and gets what its turn is.

use std::future::pending;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::answer::{Answer, Content};
use super::behaviour::Behaviour;
use super::books::Fate;
use super::call::Call;
use super::chance::Turn;
use super::connection::Reset;
use super::request::Request;
use super::state::{Shared, Task};
use super::telling::{Ending, Manner, refuse, tell};

/// What an answer is, beside what every answer has.
struct Said {
    content: Content,
    finish: &'static str,
    reports_usage: bool,
    /// How many times the tokens are counted.
    times: u64,
    cached_tokens: u64,
    manner: Manner,
}

pub(super) async fn complete(
    State(shared): State<Shared>,
    ConnectInfo(reset): ConnectInfo<Reset>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request = Request::read(&headers, &body);
    let (number, task) = shared.lock().admit(&request);
    let call = Call::new(shared, number, &task);
    match task {
        Task::Act(turn) => act(turn, &request, call, reset).await,
        Task::Repeat(answer) => tell(answer, Manner::default(), &request, call, reset).await,
        Task::InProgress => {
            error(call, StatusCode::CONFLICT, "idempotency_in_progress", "the first request with this key still runs")
        }
    }
}

async fn act(turn: Turn, request: &Request, mut call: Call, reset: Reset) -> Response {
    if !turn.wait.is_zero() {
        tokio::time::sleep(turn.wait).await;
    }
    let said = match turn.act {
        Behaviour::Answer(text) => Said::text(text),
        Behaviour::Quote => Said::text(request.quote()),
        Behaviour::Drip { text, pause } => Said { manner: Manner { pause, breaks: None }, ..Said::text(text) },
        Behaviour::Long { words, pause } => {
            Said { manner: Manner { pause, breaks: None }, ..Said::text("word ".repeat(words)) }
        }
        Behaviour::WithoutUsage(text) => Said { reports_usage: false, ..Said::text(text) },
        Behaviour::WrongUsage { text, times } => Said { times, ..Said::text(text) },
        Behaviour::Cached { text, tokens } => Said { cached_tokens: tokens, ..Said::text(text) },
        Behaviour::Truncated(text) => Said { finish: "length", ..Said::text(text) },
        Behaviour::CallTools { calls } => Said { finish: "tool_calls", ..Said::new(Content::Tools(calls)) },
        Behaviour::Refuse => Said { finish: "content_filter", ..Said::text(String::new()) },
        Behaviour::Decline(text) => Said::new(Content::Refusal(text)),
        Behaviour::Cut { text, words } => Said::broken(text, words, Ending::Reset),
        Behaviour::EndEarly { text, words } => Said::broken(text, words, Ending::Clean),
        Behaviour::Stall { text, words } => Said::broken(text, words, Ending::Silence),
        Behaviour::Malformed => return refuse(call, StatusCode::OK, "text/event-stream", "data: <html>\n\n".into()),
        Behaviour::Status { status, retry_after, code } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = error(call, status, &code, "as the script says");
            if let Some(value) = retry_after.and_then(|value| value.parse().ok()) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
            return response;
        }
        Behaviour::Reset => {
            call.end(Fate::BrokenOff, None);
            reset.set();
            return StatusCode::NO_CONTENT.into_response();
        }
        // A turn has gone through those that lead to another one.
        Behaviour::Hang
        | Behaviour::Late { .. }
        | Behaviour::Slow { .. }
        | Behaviour::Mix { .. }
        | Behaviour::WrongInputUsage { .. } => return pending().await,
    };
    let manner = said.manner;
    tell(said.answer(request, &call), manner, request, call, reset).await
}

fn error(call: Call, status: StatusCode, code: &str, message: &str) -> Response {
    refuse(call, status, "application/json", json!({ "error": { "code": code, "message": message } }).to_string())
}

impl Said {
    fn new(content: Content) -> Self {
        Self { content, finish: "stop", reports_usage: true, times: 1, cached_tokens: 0, manner: Manner::default() }
    }

    fn text(text: String) -> Self {
        Self::new(Content::Text(text))
    }

    fn broken(text: String, words: usize, ending: Ending) -> Self {
        Self { manner: Manner { breaks: Some((words, ending)), ..Manner::default() }, ..Self::text(text) }
    }

    fn answer(self, request: &Request, call: &Call) -> Answer {
        let entry = call.entry();
        let (input_tokens, unix_ms) = entry.map_or((0, 0), |entry| (entry.input_tokens, entry.unix_ms));
        Answer {
            id: format!("chatcmpl-{}", call.number()),
            created: unix_ms / 1_000,
            model: request.model.clone(),
            content: self.content,
            finish: self.finish,
            reports_usage: self.reports_usage,
            input_tokens: input_tokens.saturating_mul(self.times),
            cached_tokens: self.cached_tokens,
            piece_tokens: self.times,
        }
    }
}
