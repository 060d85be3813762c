//! Settings of the providers.

use std::collections::{BTreeMap, BTreeSet};

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::breaker::BreakerConfig;
use crate::estimate::EstimateConfig;
use crate::hedging::HedgingConfig;
use crate::retry::RetryConfig;
use crate::retry_budget::RetryBudgetConfig;
use crate::timeouts::TimeoutConfig;

/// Section `[llm]`: which models write answers. Without a provider answers are extractive.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LlmConfig {
    /// Names of the providers in the order they are tried; all of them, by name, when empty.
    pub chain: Vec<String>,
    /// The providers by name: `[llm.providers.<name>]`.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// How long each part of answering may take.
    pub timeouts: TimeoutConfig,
    /// How often a question is put again.
    pub retries: RetryConfig,
    /// How many retries a provider gets from all questions together.
    pub retry_budget: RetryBudgetConfig,
    /// When a model that fails is left alone, and for how long.
    pub breaker: BreakerConfig,
    /// When a second provider is asked beside one that is slow to begin.
    pub hedging: HedgingConfig,
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
    /// Whether the provider answers a repeat with the same `Idempotency-Key` with what it said before and does not charge it
    /// again. Then a call whose owner crashed before it heard the answer is not counted twice.
    pub honours_idempotency: bool,
    /// What the model costs.
    pub price: PriceConfig,
    /// How many tokens a request can have at most.
    pub estimate: EstimateConfig,
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
            honours_idempotency: false,
            price: PriceConfig::default(),
            estimate: EstimateConfig::default(),
        }
    }
}

/// Prices of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PriceConfig {
    /// US dollars for a million input tokens.
    pub input_per_million: f64,
    /// US dollars for a million input tokens that the provider had in its cache; the price of input unless said.
    pub cached_input_per_million: Option<f64>,
    /// US dollars for a million output tokens.
    pub output_per_million: f64,
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
    /// The chain names a provider twice.
    #[error("llm.chain names {name:?} twice; how often it is tried is a matter of llm.retries.max")]
    Repeated {
        /// The name.
        name: String,
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
    /// A value out of its range.
    #[error("llm.{key} {problem}")]
    Setting {
        /// Which setting, below `llm`.
        key: &'static str,
        /// What is wrong with it.
        problem: &'static str,
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

impl InvalidConfig {
    pub(crate) fn setting(key: &'static str, problem: &'static str) -> Self {
        Self::Setting { key, problem }
    }
}

impl LlmConfig {
    /// The providers in the order they are tried.
    ///
    /// # Errors
    /// When the chain names an unknown provider or one twice, a provider lacks a URL or a model, a price is negative,
    /// the timeouts do not nest, or a setting of retries, breakers, hedging or estimates is out of its range.
    pub fn ordered(&self) -> Result<Vec<(&str, &ProviderConfig)>, InvalidConfig> {
        self.timeouts.check()?;
        self.retries.check()?;
        self.retry_budget.check()?;
        self.breaker.check()?;
        self.hedging.check()?;
        let mut named = BTreeSet::new();
        if let Some(name) = self.chain.iter().find(|name| !named.insert(*name)) {
            return Err(InvalidConfig::Repeated { name: name.clone() });
        }
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
        if !(price.input_per_million >= 0.0 && price.cached_input() >= 0.0 && price.output_per_million >= 0.0) {
            return Err(wrong("price", "must not be negative"));
        }
        provider.estimate.check().map_err(|(field, problem)| wrong(field, problem))?;
        Ok((name, provider))
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
    fn a_name_twice_in_the_chain_is_refused() {
        let text = TWO.replace("[\"second\", \"first\"]", "[\"second\", \"second\"]");
        assert_eq!(parse(&text).ordered().unwrap_err(), InvalidConfig::Repeated { name: "second".into() });
    }

    #[test]
    fn timeouts_that_do_not_nest_are_refused_with_both_keys() {
        for (text, inner, outer) in [
            ("connect_ms = 20000", "connect_ms", "first_token_ms"),
            ("first_token_ms = 45000", "first_token_ms", "inference_ms"),
            ("between_tokens_ms = 50000", "between_tokens_ms", "inference_ms"),
            ("inference_ms = 60000", "inference_ms", "step_ms"),
            ("tool_ms = 70000", "tool_ms", "step_ms"),
            ("step_ms = 120000", "step_ms", "end_to_end_ms"),
            ("tool_ms = 0", "tool_ms", "step_ms"),
        ] {
            let message = parse(&format!("timeouts.{text}")).ordered().unwrap_err().to_string();
            let (inner, outer) = (format!("llm.timeouts.{inner} "), format!("llm.timeouts.{outer} "));
            assert!(message.contains(&inner) && message.contains(&outer), "{text}: {message}");
        }
    }

    #[test]
    fn a_providers_values_out_of_range_are_refused_with_their_key() {
        for (key, value) in [
            ("tokens_per_byte", "0.0"),
            ("tokens_per_byte", "4.5"),
            ("tokens_per_byte", "nan"),
            ("margin", "-0.1"),
            ("margin", "inf"),
        ] {
            let text = format!("{TWO}\nestimate.{key} = {value}");
            let message = parse(&text).ordered().unwrap_err().to_string();
            assert!(message.starts_with(&format!("llm.providers.second.estimate.{key} must")), "{message}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused_with_their_key() {
        for (key, value) in [
            ("retries.base_ms", "0"),
            ("retries.max_backoff_ms", "999"),
            ("retries.max_pause_ms", "0"),
            ("retry_budget.share", "1.5"),
            ("retry_budget.share", "nan"),
            ("retry_budget.per_second", "-1.0"),
            ("retry_budget.per_second", "inf"),
            ("retry_budget.window_s", "0"),
            ("breaker.failure_ratio", "0.0"),
            ("breaker.window_s", "3601"),
            ("breaker.burst_window_s", "61"),
            ("breaker.min_calls", "0"),
            ("breaker.burst_min_calls", "0"),
            ("breaker.consecutive_failures", "0"),
            ("breaker.open_ms", "0"),
            ("breaker.probes", "0"),
            ("breaker.slow_call_ms", "0"),
            ("hedging.quantile", "1.0"),
            ("hedging.quantile", "nan"),
            ("hedging.max_share", "1.1"),
        ] {
            let message = parse(&format!("{key} = {value}")).ordered().unwrap_err().to_string();
            assert!(message.starts_with(&format!("llm.{key} ")), "{message}");
        }
    }
}
