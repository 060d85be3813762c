//! Tokens and what they cost.

use crate::PriceConfig;

/// US dollars.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
pub struct Usd(pub f64);

impl std::ops::AddAssign for Usd {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

/// Tokens of a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// Tokens sent.
    pub input: u64,
    /// Those among the tokens sent that the provider had in its cache.
    pub cached: u64,
    /// Tokens received.
    pub output: u64,
    /// Whether they were estimated, because the provider did not report them.
    pub estimated: bool,
}

impl PriceConfig {
    /// US dollars for a million cached input tokens.
    pub(crate) fn cached_input(&self) -> f64 {
        self.cached_input_per_million.unwrap_or(self.input_per_million)
    }
}

impl TokenUsage {
    /// What the tokens cost.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn cost(&self, price: &PriceConfig) -> Usd {
        let part = |tokens: u64, per_million: f64| tokens as f64 * per_million / 1e6;
        // A report can be wrong; more than everything was never cached.
        let cached = self.cached.min(self.input);
        Usd(part(self.input - cached, price.input_per_million)
            + part(cached, price.cached_input())
            + part(self.output, price.output_per_million))
    }
}

/// A rough count of tokens where the provider gives none: four bytes each, the average of English text with the
/// byte-pair vocabularies in use; other scripts take more bytes a character and so count higher, as they do there.
#[must_use]
pub fn estimate_tokens(text: &str) -> u64 {
    estimate_tokens_of(text.len())
}

/// The same for text of which only the length in bytes is known.
pub(crate) fn estimate_tokens_of(bytes: usize) -> u64 {
    u64::try_from(bytes.div_ceil(4)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(usage: TokenUsage, cached_input_per_million: Option<f64>) -> f64 {
        usage.cost(&PriceConfig { input_per_million: 0.2, cached_input_per_million, output_per_million: 0.6 }).0
    }

    #[test]
    fn cost_is_by_direction_and_cached_input_has_its_own_price() {
        let usage = TokenUsage { input: 1_000_000, cached: 400_000, output: 500_000, estimated: false };
        assert!((cost(usage, Some(0.05)) - (0.12 + 0.02 + 0.3)).abs() < 1e-12);
        assert!((cost(usage, None) - (0.2 + 0.3)).abs() < 1e-12, "the price of input unless said");
    }

    #[test]
    fn more_cached_than_sent_costs_what_was_sent() {
        let usage = TokenUsage { input: 1_000_000, cached: 9_000_000, output: 0, estimated: false };
        assert!((cost(usage, Some(0.05)) - 0.05).abs() < 1e-12);
    }
}
