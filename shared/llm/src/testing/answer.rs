//! An answer, and how OpenAI's chat completions put it.

use serde_json::{Map, Value, json};

use super::behaviour::ToolCall;

/// Letters in a piece of a tool call's arguments.
const ARGUMENT_PIECE: usize = 8;

/// What is said.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Text(String),
    Refusal(String),
    Tools(Vec<ToolCall>),
}

/// A whole answer. It can be given again, as a stream or not.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) content: Content,
    pub(super) finish: &'static str,
    /// Whether it reports its usage to who asks for it.
    pub(super) reports_usage: bool,
    pub(super) input_tokens: u64,
    pub(super) cached_tokens: u64,
    /// How many tokens a piece counts as.
    pub(super) piece_tokens: u64,
}

impl Answer {
    /// Its pieces, as `delta` of a stream's events.
    pub(super) fn deltas(&self) -> Vec<Value> {
        let mut deltas = match &self.content {
            Content::Text(text) => words(text).map(|word| json!({ "content": word })).collect(),
            Content::Refusal(text) => words(text).map(|word| json!({ "refusal": word })).collect(),
            Content::Tools(calls) => {
                calls.iter().enumerate().flat_map(|(index, call)| call.deltas(index)).collect::<Vec<_>>()
            }
        };
        if let Some(first) = deltas.first_mut().and_then(Value::as_object_mut) {
            first.insert("role".into(), "assistant".into());
        }
        deltas
    }

    /// An event of a stream that carries this piece.
    pub(super) fn event(&self, delta: &Value) -> String {
        self.chunk(json!([{ "index": 0, "delta": delta, "finish_reason": null }]), None)
    }

    /// The events after the last piece.
    pub(super) fn last_events(&self, usage: bool) -> Vec<String> {
        let mut events = vec![self.chunk(json!([{ "index": 0, "delta": {}, "finish_reason": self.finish }]), None)];
        if usage && self.reports_usage {
            events.push(self.chunk(json!([]), Some(self.usage())));
        }
        events.push("[DONE]".into());
        events
    }

    /// The response that is not a stream.
    pub(super) fn whole(&self) -> String {
        let mut message = json!({ "role": "assistant", "content": null });
        let (field, value) = match &self.content {
            Content::Text(text) => ("content", text.as_str().into()),
            Content::Refusal(text) => ("refusal", text.as_str().into()),
            Content::Tools(calls) => ("tool_calls", calls.iter().map(ToolCall::whole).collect()),
        };
        if let Some(fields) = message.as_object_mut() {
            fields.insert(field.into(), value);
        }
        let choices = json!([{ "index": 0, "message": message, "finish_reason": self.finish }]);
        self.object("chat.completion", choices, self.reports_usage.then(|| self.usage()))
    }

    fn chunk(&self, choices: Value, usage: Option<Value>) -> String {
        self.object("chat.completion.chunk", choices, usage)
    }

    fn object(&self, object: &str, choices: Value, usage: Option<Value>) -> String {
        let fields = [
            ("id", self.id.as_str().into()),
            ("object", object.into()),
            ("created", self.created.into()),
            ("model", self.model.as_str().into()),
            ("choices", choices),
        ];
        let usage = usage.map(|usage| ("usage", usage));
        let fields = fields.into_iter().chain(usage).map(|(name, value)| (name.to_owned(), value));
        Value::Object(fields.collect::<Map<_, _>>()).to_string()
    }

    fn usage(&self) -> Value {
        let pieces = u64::try_from(self.deltas().len()).unwrap_or(u64::MAX);
        let output_tokens = pieces.saturating_mul(self.piece_tokens);
        let mut usage = json!({
            "prompt_tokens": self.input_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": self.input_tokens.saturating_add(output_tokens),
        });
        if let (1.., Some(fields)) = (self.cached_tokens, usage.as_object_mut()) {
            fields.insert("prompt_tokens_details".into(), json!({ "cached_tokens": self.cached_tokens }));
        }
        usage
    }
}

impl ToolCall {
    fn arguments_text(&self) -> String {
        self.arguments.as_str().map_or_else(|| self.arguments.to_string(), str::to_owned)
    }

    fn whole(&self) -> Value {
        let function = json!({ "name": self.name, "arguments": self.arguments_text() });
        json!({ "id": self.id, "type": "function", "function": function })
    }

    /// Id and name come first, with no arguments yet; only the index says which call a later piece belongs to.
    fn deltas(&self, index: usize) -> Vec<Value> {
        let head = json!({
            "content": null,
            "tool_calls": [{
                "index": index,
                "id": self.id,
                "type": "function",
                "function": { "name": self.name, "arguments": "" },
            }],
        });
        let letters: Vec<char> = self.arguments_text().chars().collect();
        let arguments = letters.chunks(ARGUMENT_PIECE).map(|piece| {
            let function = json!({ "arguments": piece.iter().collect::<String>() });
            json!({ "tool_calls": [{ "index": index, "function": function }] })
        });
        std::iter::once(head).chain(arguments).collect()
    }
}

/// Words with the space after them, so that they concatenate to the text.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(' ')
}
