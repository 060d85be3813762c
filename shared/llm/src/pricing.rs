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
    /// Tokens received.
    pub output: u64,
    /// Whether they were estimated, because the provider did not report them.
    pub estimated: bool,
}

impl TokenUsage {
    /// What the tokens cost.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn cost(&self, price: &PriceConfig) -> Usd {
        let part = |tokens: u64, per_million: f64| tokens as f64 * per_million / 1e6;
        Usd(part(self.input, price.input_per_million) + part(self.output, price.output_per_million))
    }
}

/// A rough count of tokens where the provider gives none: four bytes each, the average of English text with the
/// byte-pair vocabularies in use; other scripts take more bytes a character and so count higher, as they do there.
#[must_use]
pub fn estimate_tokens(text: &str) -> u64 {
    u64::try_from(text.len().div_ceil(4)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_by_direction() {
        let usage = TokenUsage { input: 1_000_000, output: 500_000, estimated: false };
        let price = PriceConfig { input_per_million: 0.15, output_per_million: 0.6 };
        assert!((usage.cost(&price).0 - 0.45).abs() < 1e-12);
    }
}
