//! A request of a completion, as far as the provider looks at it.

use axum::http::HeaderMap;
use serde_json::Value;

/// A request.
pub(super) struct Request {
    pub(super) body: Value,
    pub(super) model: String,
    pub(super) stream: bool,
    /// Whether it wants to know the usage at the end of a stream.
    pub(super) stream_usage: bool,
    /// Words of the messages; each counts as a token.
    pub(super) input_words: u64,
    pub(super) authorization: Option<String>,
    pub(super) idempotency_key: Option<String>,
}

impl Request {
    pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let flag = |pointer: &str| body.pointer(pointer).and_then(Value::as_bool).unwrap_or(false);
        let words = messages(&body).map(|text| text.split_whitespace().count()).sum::<usize>();
        Self {
            model: body.get("model").and_then(Value::as_str).unwrap_or_default().to_owned(),
            stream: flag("/stream"),
            stream_usage: flag("/stream_options/include_usage"),
            input_words: u64::try_from(words).unwrap_or(u64::MAX),
            authorization: header("authorization"),
            idempotency_key: header("idempotency-key"),
            body,
        }
    }

    /// First sentence of the first passage between `<passage …>` and `</passage>`.
    pub(super) fn quote(&self) -> String {
        let prompt: String = messages(&self.body).collect::<Vec<_>>().join("\n");
        // The instructions may name the tag too: passages are numbered.
        let passage = prompt
            .split_once("<passage n=\"1\"")
            .and_then(|(_, rest)| rest.split_once('>'))
            .and_then(|(_, rest)| rest.split_once("</passage>"))
            .map_or("", |(passage, _)| passage.trim());
        let sentence = passage.split_inclusive(['.', '!', '?']).next().unwrap_or("I do not know.");
        format!("{} [1]", sentence.trim())
    }
}

fn messages(body: &Value) -> impl Iterator<Item = &str> {
    let messages = body.get("messages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    messages.iter().filter_map(|message| message.get("content").and_then(Value::as_str))
}
