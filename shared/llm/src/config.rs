//! Settings of the providers.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

/// Section `[llm]`: which models write answers. Without a provider answers are extractive.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LlmConfig {
    /// Names of the providers in the order they are tried; all of them, by name, when empty.
    pub chain: Vec<String>,
    /// The providers by name: `[llm.providers.<name>]`.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// How long each part of a call may take.
    pub timeouts: TimeoutConfig,
}

/// An endpoint that speaks OpenAI's chat completions.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProviderConfig {
    /// Base URL up to and without `/chat/completions`, for example `https://api.openai.com/v1`.
    pub base_url: String,
    /// Model to ask for.
    pub model: String,
    /// Sent as bearer token; never printed or logged.
    #[serde(skip_serializing)]
    pub api_key: Option<SecretString>,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Whether to ask for the usage at the end of a stream; some servers refuse to be asked.
    pub stream_usage: bool,
    /// Name of the request's field that limits the output: `max_tokens` or `max_completion_tokens`.
    pub max_tokens_field: String,
    /// What the model costs.
    pub price: PriceConfig,
}

impl Default for ProviderConfig {
    fn default() -> Self {
        Self {
            base_url: String::new(),
            model: String::new(),
            api_key: None,
            stream: true,
            stream_usage: true,
            max_tokens_field: "max_tokens".into(),
            price: PriceConfig::default(),
        }
    }
}

/// Prices of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PriceConfig {
    /// US dollars for a million input tokens.
    pub input_per_million: f64,
    /// US dollars for a million output tokens.
    pub output_per_million: f64,
}

/// Milliseconds each part of a call may take. They nest: connect < first token < total, between tokens < total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutConfig {
    /// To connect, TLS included.
    pub connect_ms: u64,
    /// From sending the request to the first piece of text.
    pub first_token_ms: u64,
    /// Between two pieces of text.
    pub between_tokens_ms: u64,
    /// The whole call.
    pub total_ms: u64,
}

impl Default for TimeoutConfig {
    fn default() -> Self {
        Self { connect_ms: 2_000, first_token_ms: 20_000, between_tokens_ms: 10_000, total_ms: 45_000 }
    }
}

impl TimeoutConfig {
    pub(crate) fn connect(&self) -> Duration {
        Duration::from_millis(self.connect_ms)
    }

    pub(crate) fn first_token(&self) -> Duration {
        Duration::from_millis(self.first_token_ms)
    }

    pub(crate) fn between_tokens(&self) -> Duration {
        Duration::from_millis(self.between_tokens_ms)
    }

    pub(crate) fn total(&self) -> Duration {
        Duration::from_millis(self.total_ms)
    }
}

/// Settings that can't work; the message names the setting and the cure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    /// The chain names a provider that is not there.
    #[error("llm.chain names {name:?}, but there is no [llm.providers.{name}]; there are: {known}")]
    UnknownProvider {
        /// The name.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A provider lacks what it needs.
    #[error("llm.providers.{provider}.{field} {problem}")]
    Provider {
        /// Which provider.
        provider: String,
        /// Which setting.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The timeouts do not nest.
    #[error("llm.timeouts.{inner} ({inner_ms} ms) must be above 0 and below llm.timeouts.{outer} ({outer_ms} ms)")]
    Timeouts {
        /// The shorter one.
        inner: &'static str,
        /// Its value.
        inner_ms: u64,
        /// The longer one.
        outer: &'static str,
        /// Its value.
        outer_ms: u64,
    },
}

impl LlmConfig {
    /// The providers in the order they are tried.
    ///
    /// # Errors
    /// When the chain names an unknown provider, a provider lacks a URL or a model, a price is negative, or the
    /// timeouts do not nest.
    pub fn ordered(&self) -> Result<Vec<(&str, &ProviderConfig)>, InvalidConfig> {
        self.check_timeouts()?;
        let names: Vec<&String> =
            if self.chain.is_empty() { self.providers.keys().collect() } else { self.chain.iter().collect() };
        names.into_iter().map(|name| self.provider(name)).collect()
    }

    fn provider<'a>(&'a self, name: &'a str) -> Result<(&'a str, &'a ProviderConfig), InvalidConfig> {
        let provider = self.providers.get(name).ok_or_else(|| InvalidConfig::UnknownProvider {
            name: name.to_owned(),
            known: self.providers.keys().cloned().collect::<Vec<_>>().join(", "),
        })?;
        let wrong = |field, problem: &str| InvalidConfig::Provider {
            provider: name.to_owned(),
            field,
            problem: problem.to_owned(),
        };
        if !provider.base_url.starts_with("http://") && !provider.base_url.starts_with("https://") {
            return Err(wrong("base_url", "must be an http:// or https:// URL up to and without /chat/completions"));
        }
        if provider.model.is_empty() {
            return Err(wrong("model", "is empty; name the model to ask for"));
        }
        let price = &provider.price;
        if !(price.input_per_million >= 0.0 && price.output_per_million >= 0.0) {
            return Err(wrong("price", "must not be negative"));
        }
        Ok((name, provider))
    }

    fn check_timeouts(&self) -> Result<(), InvalidConfig> {
        let t = &self.timeouts;
        for (inner, inner_ms, outer, outer_ms) in [
            ("connect_ms", t.connect_ms, "first_token_ms", t.first_token_ms),
            ("first_token_ms", t.first_token_ms, "total_ms", t.total_ms),
            ("between_tokens_ms", t.between_tokens_ms, "total_ms", t.total_ms),
        ] {
            if inner_ms == 0 || inner_ms >= outer_ms {
                return Err(InvalidConfig::Timeouts { inner, inner_ms, outer, outer_ms });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> LlmConfig {
        toml::from_str(text).unwrap()
    }

    const TWO: &str = r#"
        chain = ["second", "first"]
        [providers.first]
        base_url = "http://localhost/v1"
        model = "a"
        [providers.second]
        base_url = "http://localhost/v1"
        model = "b"
        api_key = "sk-secret"
    "#;

    #[test]
    fn the_chain_gives_the_order() {
        let config = parse(TWO);
        let names: Vec<_> = config.ordered().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["second", "first"]);
        assert!(LlmConfig::default().ordered().unwrap().is_empty());
    }

    #[test]
    fn a_key_is_neither_printed_nor_debugged() {
        let config = parse(TWO);
        assert!(!format!("{config:?}").contains("sk-secret"));
        assert!(!toml::to_string(&config).unwrap().contains("sk-secret"));
    }

    #[test]
    fn an_unknown_name_in_the_chain_is_refused() {
        let message = parse("chain = [\"x\"]").ordered().unwrap_err().to_string();
        assert!(message.contains("[llm.providers.x]"), "{message}");
    }

    #[test]
    fn timeouts_that_do_not_nest_are_refused() {
        let message = parse("timeouts.first_token_ms = 60000").ordered().unwrap_err().to_string();
        assert!(message.contains("first_token_ms") && message.contains("total_ms"), "{message}");
    }
}
