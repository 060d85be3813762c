//! How many tokens a request can have at most, before any provider has counted them: what its reservation has to cover.

use serde::{Deserialize, Serialize};

use crate::money::whole;
use crate::tool_call::ToolSpec;
use crate::wire::tool_to_wire;
use crate::{ChatRequest, TokenUsage};

/// Tokens around a message: the marks where it begins and ends, and line breaks. Templates in use have up to five.
const TOKENS_PER_MESSAGE: f64 = 8.0;

/// Tokens of the conversation itself: its mark, the opened answer, and the date or the instructions that some templates
/// put before everything.
const TOKENS_PER_REQUEST: f64 = 32.0;

/// Tokens around a tool call, and around a tool that is offered: the JSON or the marks in which templates wrap them.
const TOKENS_PER_TOOL: f64 = 48.0;

/// Tokens of the instructions that a provider or a template adds once tools are offered. The most that is documented are
/// 530, for a model of Anthropic's; templates of open models have up to 250.
const TOKENS_FOR_TOOLS: f64 = 640.0;

/// Section `[llm.providers.<name>.estimate]`: the most tokens a request to the provider can have.
///
/// Tokenizers in use work on bytes or fall back on them, so none makes more tokens than there are bytes; the margin is for
/// those that rewrite some characters as several first. For text in English four bytes a token are usual: the bound is
/// then four times too high, and `tokens_per_byte` may be lowered for a tokenizer and languages that are known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EstimateConfig {
    /// Tokens for each byte of text, at most; above 0, to 4.
    pub tokens_per_byte: f64,
    /// What is added on top, as a share; 0 to 4.
    pub margin: f64,
    /// Tokens that a model may have written beyond `max_tokens` before a stream is cut that goes on: what is on its way.
    pub overrun_tokens: u32,
}

impl Default for EstimateConfig {
    fn default() -> Self {
        Self { tokens_per_byte: 1.0, margin: 0.25, overrun_tokens: 16 }
    }
}

impl EstimateConfig {
    /// The setting that is out of its range, and what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if !(self.tokens_per_byte > 0.0 && self.tokens_per_byte <= 4.0) {
            return Err(("estimate.tokens_per_byte", "must lie above 0 and not above 4"));
        }
        if !(0.0..=4.0).contains(&self.margin) {
            return Err(("estimate.margin", "must lie between 0 and 4"));
        }
        Ok(())
    }

    /// What a call uses at most: nothing from a cache, and an answer as long as it may be.
    #[must_use]
    pub fn upper_bound(&self, request: &ChatRequest) -> TokenUsage {
        TokenUsage {
            input: self.input_tokens(request),
            cached: 0,
            output: u64::from(request.max_tokens) + u64::from(self.overrun_tokens),
            estimated: true,
        }
    }

    fn input_tokens(&self, request: &ChatRequest) -> u64 {
        let messages = request.messages.iter().map(|message| message.role.name().len() + message.bytes());
        let bytes = messages.chain(request.tools.iter().map(offered)).sum::<usize>();
        let calls = request.messages.iter().map(|message| message.tool_calls.len()).sum::<usize>();
        let around = TOKENS_PER_REQUEST
            + TOKENS_PER_MESSAGE * request.messages.len() as f64
            + TOKENS_PER_TOOL * (calls + request.tools.len()) as f64
            + if request.tools.is_empty() { 0.0 } else { TOKENS_FOR_TOOLS };
        whole(((bytes as f64 * self.tokens_per_byte + around) * (1.0 + self.margin)).ceil())
    }
}

/// Bytes of a tool as templates print it, indented.
fn offered(tool: &ToolSpec) -> usize {
    let wire = tool_to_wire(tool);
    serde_json::to_string_pretty(&wire).unwrap_or_else(|_| wire.to_string()).len()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Message, ToolCall};

    fn input(config: EstimateConfig, messages: Vec<Message>) -> u64 {
        input_with(config, messages, Vec::new())
    }

    fn input_with(config: EstimateConfig, messages: Vec<Message>, tools: Vec<ToolSpec>) -> u64 {
        let request = ChatRequest { messages, tools, max_tokens: 300, ..ChatRequest::default() };
        let bound = config.upper_bound(&request);
        assert_eq!((bound.cached, bound.output, bound.estimated), (0, 300 + u64::from(config.overrun_tokens), true));
        bound.input
    }

    #[test]
    fn it_is_the_bytes_of_texts_and_roles_and_what_is_around_them_and_a_margin() {
        let messages = || vec![Message::system("x".repeat(90)), Message::user("水".repeat(100))];
        let around = 6 + 4 + 2 * 8 + 32;
        let exact = EstimateConfig { tokens_per_byte: 1.0, margin: 0.0, overrun_tokens: 0 };
        assert_eq!(input(exact, messages()), 90 + 300 + around);
        assert_eq!(input(EstimateConfig::default(), messages()), (90 + 300 + around) * 5 / 4);
        let english = EstimateConfig { tokens_per_byte: 0.5, ..exact };
        assert_eq!(input(english, messages()), 45 + 150 + 5 + 48);
        assert_eq!(input(exact, Vec::new()), 32);
    }

    #[test]
    fn tools_their_calls_and_their_results_count() {
        let exact = EstimateConfig { tokens_per_byte: 1.0, margin: 0.0, overrun_tokens: 0 };
        let call = ToolCall { id: "c".repeat(9), name: "add".into(), arguments: "x".repeat(50) };
        let messages = vec![Message::assistant("", vec![call]), Message::tool("c".repeat(9), "y".repeat(70))];
        assert_eq!(input(exact, messages), 9 + (9 + 3 + 50 + 48) + 4 + (9 + 70) + 2 * 8 + 32);
        let tool = |bytes: usize| ToolSpec {
            name: "add".into(),
            description: "d".repeat(bytes),
            parameters: serde_json::json!({ "type": "object" }),
        };
        let (one, longer, two) = (vec![tool(0)], vec![tool(100)], vec![tool(0), tool(0)]);
        let [one, longer, two] = [one, longer, two].map(|tools| input_with(exact, Vec::new(), tools));
        assert!(one > 32 + 640 + 48 + 60, "{one}");
        assert_eq!((longer, two), (one + 100, one + (one - 32 - 640)));
    }

    #[test]
    fn every_role_has_the_name_that_is_sent() {
        for role in [crate::Role::System, crate::Role::User, crate::Role::Assistant, crate::Role::Tool] {
            assert_eq!(serde_json::to_value(role).unwrap(), role.name());
        }
    }
}
