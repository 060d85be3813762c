//! How far a model may go that calls tools: turns, tokens, money, calls, and no running in circles. Pure bookkeeping, which
//! can be written down after each step and read back by whoever goes on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::tools::{ToolError, ToolErrorKind, truncate};
use crate::{Call, NanoUsd, TokenUsage, ToolCall, Usd};

/// Which identical call is one too many. A cycle of calls, however long, has come to its third round by then.
const ONE_TOO_MANY: u32 = 3;

/// Smallest cap of a result, bytes: an error and the marker of what is missing fit.
const LEAST_RESULT_BYTES: usize = 256;

/// Largest cap of a result, bytes.
const MOST_RESULT_BYTES: usize = 1 << 20;

/// Integers up to here are the same number whether written with a fraction or without.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// How far a model may go with one question.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// Turns of the model, at most, 1 to 64; the one that answers among them.
    pub max_turns: u32,
    /// Tool calls over all turns, at most, 0 to 256; those that are answered from memory count.
    pub max_tool_calls: u32,
    /// Tokens that the model may write in a turn, at least 1 and not above `max_total_tokens`: the `max_tokens` of each
    /// request.
    pub max_tokens_per_turn: u32,
    /// Tokens sent and received over all turns, at most.
    pub max_total_tokens: u64,
    /// US dollars over all turns, at most, above 0; no limit when absent.
    pub max_usd: Option<f64>,
    /// Bytes of a tool's result that a model is shown, 256 to 1048576; the rest is cut off.
    pub max_tool_result_bytes: usize,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            max_turns: 8,
            max_tool_calls: 16,
            max_tokens_per_turn: 1_024,
            max_total_tokens: 40_000,
            max_usd: None,
            max_tool_result_bytes: 8 << 10,
        }
    }
}

/// A setting out of its range; the message names it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} {problem}")]
pub struct InvalidAgent {
    /// Which setting of [`AgentConfig`].
    pub key: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl AgentConfig {
    /// Whether it can work.
    ///
    /// # Errors
    /// When a setting is out of its range.
    pub fn check(&self) -> Result<(), InvalidAgent> {
        let wrong = |key, problem| Err(InvalidAgent { key, problem });
        if !(1..=64).contains(&self.max_turns) {
            return wrong("max_turns", "must lie between 1 and 64");
        }
        if self.max_tool_calls > 256 {
            return wrong("max_tool_calls", "must lie between 0 and 256");
        }
        if self.max_tokens_per_turn == 0 || u64::from(self.max_tokens_per_turn) > self.max_total_tokens {
            return wrong("max_tokens_per_turn", "must be at least 1 and not above max_total_tokens");
        }
        if self.max_usd.is_some_and(|usd| !(usd > 0.0 && usd.is_finite())) {
            return wrong("max_usd", "must be above 0");
        }
        if !(LEAST_RESULT_BYTES..=MOST_RESULT_BYTES).contains(&self.max_tool_result_bytes) {
            return wrong("max_tool_result_bytes", "must lie between 256 and 1048576");
        }
        Ok(())
    }
}

/// Why a model may not go on, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Stop {
    /// `max_turns`.
    #[error("the model has had its {most} turns")]
    Turns {
        /// How many it may have.
        most: u32,
    },
    /// `max_total_tokens`.
    #[error("the next call may take {next} tokens, and {used} of {most} are used")]
    Tokens {
        /// What is charged so far.
        used: u64,
        /// What the next call takes at most.
        next: u64,
        /// What all may take.
        most: u64,
    },
    /// `max_usd`.
    #[error("the next call may cost {next}, and {used} of {most} are spent")]
    Cost {
        /// What is charged so far.
        used: NanoUsd,
        /// What the next call costs at most.
        next: NanoUsd,
        /// What all may cost.
        most: NanoUsd,
    },
    /// `max_tool_calls`.
    #[error("the model has called its {most} tools")]
    ToolCalls {
        /// How many calls there may be.
        most: u32,
    },
    /// It runs in circles.
    #[error("loop: the model calls {tool} with the same arguments again and again")]
    Loop {
        /// Name of the tool.
        tool: String,
    },
}

impl Stop {
    /// Its name in logs, metrics and records.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Turns { .. } => "turns",
            Self::Tokens { .. } => "tokens",
            Self::Cost { .. } => "cost",
            Self::ToolCalls { .. } => "tool-calls",
            Self::Loop { .. } => "loop",
        }
    }
}

/// What to do with a tool call that is within the bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum ToolStep {
    /// Make it, and tell what came of it.
    Run,
    /// This is what it returned before.
    Known(String),
}

/// Tokens and what they cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Charge {
    tokens: u64,
    cost: NanoUsd,
}

impl Charge {
    fn plus(self, other: Self) -> Self {
        Self { tokens: self.tokens.saturating_add(other.tokens), cost: self.cost.saturating_add(other.cost) }
    }
}

/// One call of a tool, made once or several times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    times: u32,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    /// It was let go, and nobody has told yet what came of it.
    Underway,
    /// It failed in a way that may pass.
    Failed,
    /// What a model is shown.
    Known(String),
}

/// Where a model stands with its bounds. Asked before each turn and each tool call, and told what came of them.
///
/// **Invariant:** what is charged, and what the calls under way take at most, is together never above `max_total_tokens`
/// and `max_usd`, as long as no call takes more than was said before it; a call whose end nobody told stays charged with
/// the most it can take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    config: AgentConfig,
    turns: u32,
    charged: Charge,
    /// What the calls of this turn take at most.
    reserved: Charge,
    tool_calls: u32,
    /// By what identifies a call.
    made: BTreeMap<String, Made>,
    /// What identifies the call of each id.
    ids: BTreeMap<String, String>,
}

impl Bounds {
    /// Nothing is used yet.
    ///
    /// # Errors
    /// When a setting is out of its range.
    pub fn new(config: AgentConfig) -> Result<Self, InvalidAgent> {
        config.check()?;
        let (charged, reserved) = (Charge::default(), Charge::default());
        let (made, ids) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { config, turns: 0, charged, reserved, tool_calls: 0, made, ids })
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &AgentConfig {
        &self.config
    }

    /// Turns that have not begun yet.
    #[must_use]
    pub fn turns_left(&self) -> u32 {
        self.config.max_turns.saturating_sub(self.turns)
    }

    /// Tokens that are charged or reserved.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.charged.plus(self.reserved).tokens
    }

    /// What is charged or reserved.
    #[must_use]
    pub fn cost(&self) -> NanoUsd {
        self.charged.plus(self.reserved).cost
    }

    /// Whether the model may have another turn whose call takes at most these tokens and costs at most this much. What
    /// the turn before took stays charged as its most when nobody told.
    ///
    /// # Errors
    /// When it may not.
    pub fn before_turn(&mut self, most: &TokenUsage, cost: NanoUsd) -> Result<(), Stop> {
        self.charged = self.charged.plus(std::mem::take(&mut self.reserved));
        if self.turns >= self.config.max_turns {
            return Err(Stop::Turns { most: self.config.max_turns });
        }
        self.before_another_call(most, cost)?;
        self.turns += 1;
        Ok(())
    }

    /// Whether the turn may have another call, because one has failed or is too slow. The first one is let go by
    /// [`Bounds::before_turn`].
    ///
    /// # Errors
    /// When it may not.
    pub fn before_another_call(&mut self, most: &TokenUsage, cost: NanoUsd) -> Result<(), Stop> {
        let next = Charge { tokens: most.input.saturating_add(most.output), cost };
        let used = self.charged.plus(self.reserved);
        let together = used.plus(next);
        if together.tokens > self.config.max_total_tokens {
            return Err(Stop::Tokens { used: used.tokens, next: next.tokens, most: self.config.max_total_tokens });
        }
        if let Some(most) = self.config.max_usd.map(|usd| NanoUsd::nearest(Usd(usd)))
            && together.cost > most
        {
            return Err(Stop::Cost { used: used.cost, next: cost, most });
        }
        self.reserved = self.reserved.plus(next);
        Ok(())
    }

    /// What the turn took: all its calls, those that failed too.
    pub fn after_turn(&mut self, calls: &[Call]) {
        self.reserved = Charge::default();
        for Call { usage, cost, .. } in calls {
            let tokens = usage.input.saturating_add(usage.output);
            self.charged = self.charged.plus(Charge { tokens, cost: (*cost).into() });
        }
    }

    /// Whether a tool may be called, or what the call returned before: the same tool with the same arguments, however
    /// they are written. A call that was let go before, under the same id, and whose result nobody told, is let go
    /// again: its owner has changed meanwhile. An id that comes again with another call says nothing; some servers
    /// number the calls of each turn anew.
    ///
    /// # Errors
    /// When it may not.
    pub fn before_tool(&mut self, call: &ToolCall) -> Result<ToolStep, Stop> {
        let key = identity(call);
        let before = self.made.get(&key);
        let repeats = self.ids.get(&call.id) == Some(&key);
        if repeats && before.is_some_and(|made| made.state == State::Underway) {
            return Ok(ToolStep::Run);
        }
        let times = before.map_or(0, |made| made.times) + 1;
        if times >= ONE_TOO_MANY {
            return Err(Stop::Loop { tool: call.name.clone() });
        }
        if self.tool_calls >= self.config.max_tool_calls {
            return Err(Stop::ToolCalls { most: self.config.max_tool_calls });
        }
        self.tool_calls += 1;
        self.ids.insert(call.id.clone(), key.clone());
        let made = self.made.entry(key).or_insert(Made { times, state: State::Underway });
        made.times = times;
        if let State::Known(result) = &made.state {
            return Ok(ToolStep::Known(result.clone()));
        }
        made.state = State::Underway;
        Ok(ToolStep::Run)
    }

    /// What a tool call came to. Gives back what the model is to be shown: the result up to its cap, or the error. What
    /// failed in a way that may pass is not remembered, so that the model can try once more.
    pub fn after_tool(&mut self, call: &ToolCall, result: &Result<String, ToolError>) -> String {
        let (text, passing) = match result {
            Ok(text) => (text.clone(), false),
            Err(error) => (format!("error: {error}"), error.kind != ToolErrorKind::InvalidArguments),
        };
        let shown = truncate(&text, self.config.max_tool_result_bytes);
        let state = if passing { State::Failed } else { State::Known(shown.clone()) };
        if let Some(made) = self.made.get_mut(&identity(call)) {
            made.state = state;
        }
        shown
    }
}

/// The same for calls of the same tool with the same arguments, and short.
fn identity(call: &ToolCall) -> String {
    let arguments = call.arguments.trim();
    let arguments = if arguments.is_empty() { "{}" } else { arguments };
    let mut text = String::new();
    match serde_json::from_str(arguments) {
        Ok(value) => canonical(&value, &mut text),
        // What is no JSON is only like itself.
        Err(_) => text.push_str(arguments),
    }
    let mut hash = Sha256::new();
    hash.update(call.name.as_bytes());
    hash.update([0]);
    hash.update(text.as_bytes());
    hex::encode(hash.finalize())
}

/// JSON without blanks, the keys of objects in order, and one way to write each number.
fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<_, _> = fields.iter().collect();
            text.push('{');
            for (key, value) in sorted {
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                canonical(value, text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Array(values) => {
            text.push('[');
            for value in values {
                canonical(value, text);
                text.push(',');
            }
            text.push(']');
        }
        Value::Number(number) => match number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < EXACT) {
            // -0 is 0.
            Some(whole) => text.push_str(&(whole + 0.0).to_string()),
            None => text.push_str(&number.to_string()),
        },
        Value::String(_) | Value::Bool(_) | Value::Null => text.push_str(&value.to_string()),
    }
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
