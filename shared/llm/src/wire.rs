//! What travels to and from a provider.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::ChatRequest;
use crate::config::ProviderConfig;
use crate::error::CallError;

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
}

/// What one payload says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) finish: Option<String>,
    /// Tokens in and out.
    pub(crate) usage: Option<(u64, u64)>,
}

/// Reads a payload.
pub(crate) fn read(payload: &[u8]) -> Result<Said, CallError> {
    let payload: Payload =
        serde_json::from_slice(payload).map_err(|_| CallError::Malformed { reason: "not a chat completion" })?;
    if payload.error.is_some() {
        return Err(CallError::Server { status: 200 });
    }
    let usage = payload.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens));
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
