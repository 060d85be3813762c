//! Limits and prices as they are written on the command line.

use weir_contracts::Price;

/// What takes a limit or a price away.
const NONE: &str = "none";

/// What an option asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Setting<T> {
    /// This value.
    To(T),
    /// No value: unlimited.
    None,
}

impl<T: Copy> Setting<T> {
    /// The value, where there is one.
    #[must_use]
    pub fn value(self) -> Option<T> {
        match self {
            Self::To(value) => Some(value),
            Self::None => None,
        }
    }
}

/// The price of a model, or that it has none of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelPrice {
    /// Name of the model.
    pub model: String,
    /// Its price; none removes it.
    pub price: Option<Price>,
}

/// Parses a count, or `none`.
///
/// # Errors
/// When it is neither, or less than nothing.
pub fn count(text: &str) -> Result<Setting<i64>, String> {
    if text == NONE {
        return Ok(Setting::None);
    }
    match text.parse() {
        Ok(number) if number >= 0 => Ok(Setting::To(number)),
        Ok(_) => Err("a limit can't be negative; `none` takes it away".into()),
        Err(_) => Err("write a whole number, or `none`".into()),
    }
}

/// Parses an amount of dollars, or `none`.
///
/// # Errors
/// When it is neither, less than nothing, or not finite.
pub fn amount(text: &str) -> Result<Setting<f64>, String> {
    if text == NONE {
        return Ok(Setting::None);
    }
    dollars(text).map(Setting::To)
}

/// Parses a cosine from 0 to 1, or `none`.
///
/// # Errors
/// When it is neither.
pub fn cosine(text: &str) -> Result<Setting<f64>, String> {
    if text == NONE {
        return Ok(Setting::None);
    }
    let cosine = text.parse().ok().filter(|cosine| (0.0..=1.0).contains(cosine));
    cosine.map(Setting::To).ok_or_else(|| "write a number from 0 to 1, or `none`".into())
}

/// Parses `MODEL=INPUT/OUTPUT`, `MODEL=INPUT/OUTPUT/CACHED` or `MODEL=none`.
///
/// # Errors
/// When it is written otherwise, or a price is less than nothing or not finite.
pub fn price(text: &str) -> Result<ModelPrice, String> {
    let help = || format!("{text:?} is no price; write MODEL=INPUT/OUTPUT, MODEL=INPUT/OUTPUT/CACHED or MODEL=none");
    // Names of models may have slashes and equals signs, prices have none of the latter.
    let (model, price) = text.rsplit_once('=').ok_or_else(help)?;
    if model.trim().is_empty() {
        return Err(help());
    }
    let model = model.trim().to_owned();
    if price == NONE {
        return Ok(ModelPrice { model, price: None });
    }
    let mut parts = price.split('/');
    let (Some(input), Some(output), cached, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(help());
    };
    let price = Price {
        input_per_million: dollars(input)?,
        cached_input_per_million: cached.map(dollars).transpose()?,
        output_per_million: dollars(output)?,
    };
    Ok(ModelPrice { model, price: Some(price) })
}

fn dollars(text: &str) -> Result<f64, String> {
    let amount: f64 = text.trim().parse().map_err(|_| format!("{text:?} is no amount of US dollars"))?;
    if !amount.is_finite() {
        return Err(format!("{text:?} is not finite; write an amount of US dollars, or `none`"));
    }
    if amount < 0.0 {
        return Err(format!("{text} is negative; nobody is paid for asking"));
    }
    // Minus zero is zero.
    Ok(amount.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_numbers_that_make_sense_or_none() {
        assert_eq!(count("600"), Ok(Setting::To(600)));
        assert_eq!(count("0"), Ok(Setting::To(0)));
        assert_eq!(count("none"), Ok(Setting::None));
        for (text, why) in [("-1", "negative"), ("1.5", "whole number"), ("", "whole number"), ("None", "whole number")]
        {
            assert!(count(text).is_err_and(|error| error.contains(why)), "{text}");
        }
        assert_eq!(amount("2.5"), Ok(Setting::To(2.5)));
        assert_eq!(amount("none"), Ok(Setting::None));
        for (text, why) in [("-0.5", "negative"), ("NaN", "not finite"), ("inf", "not finite"), ("5$", "no amount")] {
            assert!(amount(text).is_err_and(|error| error.contains(why)), "{text}");
        }
    }

    #[test]
    fn a_price_has_two_or_three_parts_and_the_name_of_a_model_may_have_slashes() {
        let of = |input, output, cached| {
            Some(Price { input_per_million: input, cached_input_per_million: cached, output_per_million: output })
        };
        for (text, model, expected) in [
            ("gpt-4o-mini=0.15/0.60", "gpt-4o-mini", of(0.15, 0.6, None)),
            ("gpt-4o-mini=0.15/0.60/0.075", "gpt-4o-mini", of(0.15, 0.6, Some(0.075))),
            ("org/model:free=0/0", "org/model:free", of(0.0, 0.0, None)),
            ("gpt-4o-mini=none", "gpt-4o-mini", None),
        ] {
            assert_eq!(price(text), Ok(ModelPrice { model: model.into(), price: expected }), "{text}");
        }
        for (text, why) in [
            ("gpt-4o-mini", "MODEL=INPUT/OUTPUT"),
            ("=1/2", "MODEL=INPUT/OUTPUT"),
            ("m=1", "MODEL=INPUT/OUTPUT"),
            ("m=1/2/3/4", "MODEL=INPUT/OUTPUT"),
            ("m=1/-2", "negative"),
            ("m=NaN/2", "not finite"),
            ("m=1/two", "no amount"),
        ] {
            assert!(price(text).is_err_and(|error| error.contains(why)), "{text}: {:?}", price(text));
        }
    }
}
