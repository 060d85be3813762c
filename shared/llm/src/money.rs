//! Exact money: sums of costs never drift, and what has to be rounded is rounded up.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{PriceConfig, TokenUsage, Usd};

/// Parts of a dollar.
const NANOS: u64 = 1_000_000_000;

/// Tokens that prices are for.
const MILLION: u128 = 1_000_000;

/// Billionths of a US dollar, 0 to about 18 billion dollars; sums beyond stay there. Serialised as the whole number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NanoUsd(pub u64);

impl NanoUsd {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// The nearest amount to so many US dollars, for limits: a limit that was written as 0.07 is exactly that. Nothing
    /// for what is no amount (negative, not a number).
    #[must_use]
    pub fn nearest(usd: Usd) -> Self {
        Self(whole((usd.0 * nanos()).round()))
    }

    /// In US dollars, as exact as they can be.
    #[must_use]
    pub fn usd(self) -> Usd {
        Usd(self.0 as f64 / nanos())
    }

    /// The sum.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// Rounded up: no cost is ever lost. Nothing for what is no amount (negative, not a number).
impl From<Usd> for NanoUsd {
    fn from(usd: Usd) -> Self {
        Self(whole((usd.0 * nanos()).ceil()))
    }
}

impl std::iter::Sum for NanoUsd {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Self::saturating_add)
    }
}

/// All digits that are not zero, cents always: `0.50 USD`, `12.000000001 USD`.
impl fmt::Display for NanoUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dollars, cents, rest) = (self.0 / NANOS, self.0 / (NANOS / 100) % 100, self.0 % (NANOS / 100));
        write!(f, "{dollars}.{cents:02}")?;
        if rest > 0 {
            write!(f, "{}", format!("{rest:07}").trim_end_matches('0'))?;
        }
        f.write_str(" USD")
    }
}

impl TokenUsage {
    /// What the tokens cost, exact and rounded up to the next billionth of a dollar: what a budget is charged.
    #[must_use]
    pub fn charge(&self, price: &PriceConfig) -> NanoUsd {
        let part = |tokens: u64, per_million: f64| u128::from(tokens) * u128::from(NanoUsd::from(Usd(per_million)).0);
        // A report can be wrong; more than everything was never cached.
        let cached = self.cached.min(self.input);
        let cost = part(self.input - cached, price.input_per_million)
            .saturating_add(part(cached, price.cached_input()))
            .saturating_add(part(self.output, price.output_per_million));
        NanoUsd(u64::try_from(cost.div_ceil(MILLION)).unwrap_or(u64::MAX))
    }
}

fn nanos() -> f64 {
    NANOS as f64
}

/// A number without a fraction as an integer; the nearest there is where it does not fit, 0 for no number.
#[must_use]
// A conversion of a float saturates, which is what is asked for here.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(crate) fn whole(number: f64) -> u64 {
    number as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_rounded_up_and_limits_to_the_nearest() {
        assert_eq!(NanoUsd::from(Usd(1e-10)), NanoUsd(1));
        assert_eq!(NanoUsd::from(Usd(0.25)), NanoUsd(250_000_000));
        assert_eq!(NanoUsd::nearest(Usd(0.07)), NanoUsd(70_000_000));
        assert_eq!(NanoUsd::nearest(Usd(1e-10)), NanoUsd::ZERO);
    }

    #[test]
    fn what_is_no_amount_is_nothing_and_too_much_is_the_most() {
        for (usd, nanos) in [(-1.0, 0), (f64::NAN, 0), (f64::NEG_INFINITY, 0), (f64::INFINITY, u64::MAX)] {
            assert_eq!(NanoUsd::from(Usd(usd)), NanoUsd(nanos), "{usd}");
            assert_eq!(NanoUsd::nearest(Usd(usd)), NanoUsd(nanos), "{usd}");
        }
        assert_eq!([NanoUsd(u64::MAX), NanoUsd(1)].into_iter().sum::<NanoUsd>(), NanoUsd(u64::MAX));
    }

    #[test]
    fn a_charge_is_never_below_the_cost_and_at_most_a_billionth_above() {
        let price =
            PriceConfig { input_per_million: 0.15, cached_input_per_million: Some(0.075), output_per_million: 0.6 };
        for (input, cached, output, nanos) in [
            (0, 0, 0, 0),
            (1, 0, 0, 150),
            (1, 1, 0, 75),
            (1_000, 0, 1, 150_600),
            (1_000_000, 400_000, 500_000, 420_000_000),
            (7, 9_000, 0, 525),
        ] {
            let usage = TokenUsage { input, cached, output, estimated: false };
            assert_eq!(usage.charge(&price), NanoUsd(nanos), "{usage:?}");
        }
        let cheap = PriceConfig { input_per_million: 0.000_1, ..PriceConfig::default() };
        let usage = TokenUsage { input: 11, ..TokenUsage::default() };
        assert_eq!(usage.charge(&cheap), NanoUsd(2), "1.1 rounded up");
        let dear = PriceConfig { input_per_million: f64::MAX, output_per_million: f64::MAX, ..cheap };
        let usage = TokenUsage { input: u64::MAX, cached: 0, output: u64::MAX, estimated: false };
        assert_eq!(usage.charge(&dear), NanoUsd(u64::MAX));
    }

    #[test]
    fn it_is_written_for_people() {
        for (nanos, text) in [
            (0, "0.00 USD"),
            (500_000_000, "0.50 USD"),
            (12_000_000_001, "12.000000001 USD"),
            (1_234_500_000, "1.2345 USD"),
        ] {
            assert_eq!(NanoUsd(nanos).to_string(), text);
        }
    }
}
