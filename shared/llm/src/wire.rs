//! What travels to and from a provider.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::ChatRequest;
use crate::config::ProviderConfig;
use crate::error::CallError;
use crate::pricing::TokenUsage;

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The instructions.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// Its name on the wire.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// Instructions to the model.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: Role::System, content: content.into() }
    }

    /// What is asked.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: Role::User, content: content.into() }
    }
}

pub(crate) fn body(config: &ProviderConfig, request: &ChatRequest) -> Value {
    let mut body = json!({
        "model": config.model,
        "messages": request.messages,
        "temperature": request.temperature,
        "stream": config.stream,
    });
    if let Some(fields) = body.as_object_mut() {
        fields.insert(config.max_tokens_field.clone(), request.max_tokens.into());
        if config.stream && config.stream_usage {
            fields.insert("stream_options".into(), json!({ "include_usage": true }));
        }
    }
    body
}

/// A whole answer, or a piece of one.
#[derive(Debug, Deserialize)]
pub(crate) struct Payload {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    /// Some servers report a failure inside a stream that began with 200.
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(alias = "delta")]
    message: Option<Content>,
    finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Content {
    content: Option<String>,
    refusal: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<PromptTokens>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct PromptTokens {
    cached_tokens: Option<u64>,
}

impl From<Usage> for TokenUsage {
    fn from(usage: Usage) -> Self {
        let cached = usage.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
        Self { input: usage.prompt_tokens, cached, output: usage.completion_tokens, estimated: false }
    }
}

/// What one payload says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) finish: Option<String>,
    pub(crate) usage: Option<TokenUsage>,
}

/// Reads a payload.
pub(crate) fn read(payload: &[u8]) -> Result<Said, CallError> {
    let payload: Payload =
        serde_json::from_slice(payload).map_err(|_| CallError::Malformed { reason: "not a chat completion" })?;
    if payload.error.is_some() {
        return Err(CallError::Server { status: 200 });
    }
    let usage = payload.usage.map(TokenUsage::from);
    let Some(choice) = payload.choices.into_iter().next() else {
        return Ok(Said { usage, ..Said::default() });
    };
    if choice.finish_reason.as_deref() == Some("content_filter") {
        return Err(CallError::Refused);
    }
    let (text, refusal) = choice.message.map_or((None, None), |message| (message.content, message.refusal));
    if refusal.is_some_and(|refusal| !refusal.is_empty()) {
        return Err(CallError::Refused);
    }
    Ok(Said { text: text.unwrap_or_default(), finish: choice.finish_reason, usage })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cached_tokens_are_read_where_a_provider_tells_them() {
        for (details, cached) in [
            ("", 0),
            (r#", "prompt_tokens_details": null"#, 0),
            (r#", "prompt_tokens_details": {"audio_tokens": 1}"#, 0),
            (r#", "prompt_tokens_details": {"cached_tokens": 7}"#, 7),
        ] {
            let payload =
                format!(r#"{{"choices": [], "usage": {{"prompt_tokens": 9, "completion_tokens": 2{details}}}}}"#);
            let usage = read(payload.as_bytes()).unwrap().usage.unwrap();
            assert_eq!(usage, TokenUsage { input: 9, cached, output: 2, estimated: false }, "{details}");
        }
    }
}
