//! How the provider puts what it says.

use std::future::pending;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::{Value, json};

/// How a stream that breaks off ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Reset,
    Clean,
    Silence,
}

/// What there is to say beside the text.
pub(super) struct Say {
    stream: bool,
    pub(super) usage: bool,
    /// How many times the real usage is reported.
    pub(super) usage_times: u64,
    /// Tokens reported as cached.
    pub(super) cached: u64,
    pub(super) finish: &'static str,
    pub(super) pause: Duration,
    input_words: usize,
}

impl Say {
    pub(super) fn for_request(request: &Value) -> Self {
        let flag = |pointer: &str| request.pointer(pointer).and_then(Value::as_bool).unwrap_or(false);
        let stream = flag("/stream");
        let input_words = messages(request).map(|text| text.split_whitespace().count()).sum();
        Self {
            stream,
            usage: !stream || flag("/stream_options/include_usage"),
            usage_times: 1,
            cached: 0,
            finish: "stop",
            pause: Duration::ZERO,
            input_words,
        }
    }

    /// One token a word.
    fn usage(&self, output: usize) -> Value {
        let times = |words: usize| u64::try_from(words).unwrap_or(u64::MAX).saturating_mul(self.usage_times);
        let mut usage = json!({ "prompt_tokens": times(self.input_words), "completion_tokens": times(output) });
        if let (1.., Some(fields)) = (self.cached, usage.as_object_mut()) {
            fields.insert("prompt_tokens_details".into(), json!({ "cached_tokens": self.cached }));
        }
        usage
    }

    pub(super) fn text(self, text: String) -> Response {
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

    pub(super) fn broken(self, text: &str, count: usize, end: Ending) -> Response {
        let begun: Vec<_> = words(text).iter().take(count).map(|word| Ok(delta(word))).collect();
        let begun = stream::iter(begun);
        match end {
            Ending::Reset => event_stream(begun.chain(stream::once(async {
                // What was said leaves first.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
            }))),
            Ending::Clean => event_stream(begun),
            Ending::Silence => event_stream(begun.chain(stream::once(pending()))),
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
pub(super) fn quote(request: &Value) -> String {
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
