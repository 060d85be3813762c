//! What travels to and from a provider.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::ChatRequest;
use crate::config::ProviderConfig;
use crate::error::CallError;
use crate::pricing::TokenUsage;
use crate::tool_call::{Piece, ToolCall, ToolSpec};

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
    /// A tool that the model called.
    Tool,
}

impl Role {
    /// Its name on the wire.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said; of a tool, its result.
    pub content: String,
    /// What the model calls; only an assistant's message has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The id of the call whose result this is; a tool's message has one, no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// Instructions to the model.
    pub fn system(content: impl Into<String>) -> Self {
        Self::of(Role::System, content.into())
    }

    /// What is asked.
    pub fn user(content: impl Into<String>) -> Self {
        Self::of(Role::User, content.into())
    }

    /// What the model said, and called.
    pub fn assistant(content: impl Into<String>, tool_calls: Vec<ToolCall>) -> Self {
        Self { tool_calls, ..Self::of(Role::Assistant, content.into()) }
    }

    /// What the call with this id came to.
    pub fn tool(call_id: impl Into<String>, result: impl Into<String>) -> Self {
        Self { tool_call_id: Some(call_id.into()), ..Self::of(Role::Tool, result.into()) }
    }

    /// Whether it is text of the model.
    #[must_use]
    pub fn is_said_by_model(&self) -> bool {
        self.role == Role::Assistant && !self.content.trim().is_empty()
    }

    fn of(role: Role, content: String) -> Self {
        Self { role, content, tool_calls: Vec::new(), tool_call_id: None }
    }

    /// Bytes of all that is sent for a model to read.
    pub(crate) fn bytes(&self) -> usize {
        let id = self.tool_call_id.as_ref().map_or(0, String::len);
        self.content.len() + id + self.tool_calls.iter().map(ToolCall::bytes).sum::<usize>()
    }

    fn to_wire(&self) -> Value {
        let mut message = json!({ "role": self.role.name(), "content": self.content });
        if let Some(fields) = message.as_object_mut() {
            if let Some(id) = &self.tool_call_id {
                fields.insert("tool_call_id".into(), id.as_str().into());
            }
            if !self.tool_calls.is_empty() {
                // No text is not the same as an empty one: some servers refuse that.
                if self.content.is_empty() {
                    fields.insert("content".into(), Value::Null);
                }
                fields.insert("tool_calls".into(), self.tool_calls.iter().map(call_to_wire).collect());
            }
        }
        message
    }
}

fn call_to_wire(call: &ToolCall) -> Value {
    let function = json!({ "name": call.name, "arguments": call.arguments });
    json!({ "id": call.id, "type": "function", "function": function })
}

/// A tool as it is offered to a model.
pub(crate) fn tool_to_wire(tool: &ToolSpec) -> Value {
    let function = json!({ "name": tool.name, "description": tool.description, "parameters": tool.parameters });
    json!({ "type": "function", "function": function })
}

pub(crate) fn body(config: &ProviderConfig, request: &ChatRequest) -> Value {
    let mut body = json!({
        "model": config.model,
        "messages": request.messages.iter().map(Message::to_wire).collect::<Vec<_>>(),
        "temperature": request.temperature,
        "stream": config.stream,
    });
    if let Some(fields) = body.as_object_mut() {
        fields.insert(config.max_tokens_field.clone(), request.max_tokens.into());
        if !request.tools.is_empty() {
            fields.insert("tools".into(), request.tools.iter().map(tool_to_wire).collect());
        }
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
    /// Of an answer that comes whole.
    message: Option<Content>,
    /// Of a stream.
    delta: Option<Content>,
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Content {
    content: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<Piece>>,
}

impl Content {
    /// Each of a whole answer's tool calls is one piece.
    fn whole(mut self) -> Self {
        for (at, piece) in self.tool_calls.iter_mut().flatten().enumerate() {
            piece.index = Some(at);
        }
        self
    }
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
    pub(crate) tool_calls: Vec<Piece>,
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
    let Content { content, refusal, tool_calls } =
        choice.message.map(Content::whole).or(choice.delta).unwrap_or_default();
    if refusal.is_some_and(|refusal| !refusal.is_empty()) {
        return Err(CallError::Refused);
    }
    let (text, tool_calls) = (content.unwrap_or_default(), tool_calls.unwrap_or_default());
    Ok(Said { text, tool_calls, finish: choice.finish_reason, usage })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_tools_are_sent_as_chat_completions_have_them() {
        let call = ToolCall { id: "c1".into(), name: "add".into(), arguments: "{\"x\":1}".into() };
        let parameters = json!({ "type": "object", "properties": {} });
        let spec = ToolSpec { name: "add".into(), description: "Adds.".into(), parameters: parameters.clone() };
        let mut request = ChatRequest {
            messages: vec![
                Message::user("one and one"),
                Message::assistant("", vec![call.clone()]),
                Message::tool("c1", "2"),
                Message::assistant("Two.", Vec::new()),
            ],
            tools: vec![spec],
            ..ChatRequest::default()
        };
        let function = json!({ "name": "add", "arguments": "{\"x\":1}" });
        let sent = body(&ProviderConfig::default(), &request);
        assert_eq!(
            sent["messages"],
            json!([
                { "role": "user", "content": "one and one" },
                {
                    "role": "assistant",
                    "content": null,
                    "tool_calls": [{ "id": "c1", "type": "function", "function": function }],
                },
                { "role": "tool", "content": "2", "tool_call_id": "c1" },
                { "role": "assistant", "content": "Two." },
            ])
        );
        let function = json!({ "name": "add", "description": "Adds.", "parameters": parameters });
        assert_eq!(sent["tools"], json!([{ "type": "function", "function": function }]));
        request.tools.clear();
        assert_eq!(body(&ProviderConfig::default(), &request).get("tools"), None);
        let kept = serde_json::to_string(&request.messages).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Message>>(&kept).unwrap(), request.messages);
    }

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
