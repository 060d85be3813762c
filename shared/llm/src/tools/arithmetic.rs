//! Arithmetic: models are bad at it.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::{Tool, ToolError};
use crate::tool_call::ToolSpec;

/// Longest expression, bytes.
const MAX_BYTES: usize = 1_024;

/// Parentheses, signs and powers within each other, at most.
const MAX_DEPTH: usize = 64;

/// Results do not change; what is not asked for any more need not be remembered.
const REUSABLE: Duration = Duration::from_secs(3_600);

/// Integers up to here are exact; every digit of theirs is shown.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArithmeticError {
    /// It is none.
    #[error("{expected} is expected at byte {at} of the expression, but there is {found}")]
    Syntax {
        /// Where, in bytes from 0.
        at: usize,
        /// What could be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A function there is none of.
    #[error("there is no function {name}; there are abs, ceil, floor, max, min, round and sqrt")]
    UnknownFunction {
        /// Its name.
        name: String,
    },
    /// A function with a wrong number of arguments.
    #[error("{name} takes one argument, not {found}")]
    Arguments {
        /// Its name.
        name: &'static str,
        /// How many it was given.
        found: usize,
    },
    /// Too many bytes.
    #[error("the expression has more than {MAX_BYTES} bytes")]
    TooLong,
    /// Too much within each other.
    #[error("the expression is nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// `/ 0` or `% 0`.
    #[error("division by zero")]
    DivisionByZero,
    /// Beyond what a double can hold.
    #[error("the result is too large")]
    Overflow,
    /// A root of a negative number.
    #[error("the result is not a real number")]
    NotReal,
}

/// The value of an expression, in double precision: numbers, `+ - * / % ^`, parentheses, signs and the functions `abs`,
/// `ceil`, `floor`, `max`, `min`, `round` and `sqrt`. `^` binds tighter than a sign before it and groups to the right, `%`
/// has the sign of what is divided, `round` goes away from zero at a half.
///
/// # Errors
/// When it is no expression, is too long or too deep, or has no finite value.
pub fn evaluate(expression: &str) -> Result<f64, ArithmeticError> {
    if expression.len() > MAX_BYTES {
        return Err(ArithmeticError::TooLong);
    }
    let mut parser = Parser { text: expression, at: 0, depth: 0 };
    let value = parser.sum()?;
    if parser.peek().is_some() { Err(parser.expected("an operator or the end")) } else { Ok(value) }
}

/// The tool `arithmetic`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arithmetic;

impl Tool for Arithmetic {
    fn spec(&self) -> ToolSpec {
        let expression = "For example (3.5 + 2) * 4 ^ 2, or max(1, 2) % 3. Operators: + - * / % ^. Functions: abs, \
                          ceil, floor, max, min, round, sqrt.";
        ToolSpec {
            name: "arithmetic".into(),
            description: "Calculates the value of an arithmetic expression exactly to 15 digits.".into(),
            parameters: json!({
                "type": "object",
                "properties": { "expression": { "type": "string", "description": expression } },
                "required": ["expression"],
                "additionalProperties": false,
            }),
        }
    }

    fn call<'a>(&'a self, arguments: &'a Value) -> BoxFuture<'a, Result<String, ToolError>> {
        async {
            let expression = arguments.get("expression").and_then(Value::as_str);
            let expression =
                expression.ok_or_else(|| ToolError::invalid("the argument expression must be a string"))?;
            evaluate(expression).map(shown).map_err(|error| ToolError::invalid(error.to_string()))
        }
        .boxed()
    }

    fn reusable_for(&self) -> Option<Duration> {
        Some(REUSABLE)
    }
}

/// To 15 significant digits, as many as a double always keeps: 0.1 + 0.2 is 0.3.
fn shown(value: f64) -> String {
    let value = if value.fract() == 0.0 && value.abs() <= EXACT {
        value
    } else {
        format!("{value:.14e}").parse().unwrap_or(value)
    };
    match value.abs() {
        // Neither 0 nor -0 has a sign to speak of.
        0.0 => "0".into(),
        1e-6..1e16 => value.to_string(),
        _ => format!("{value:e}"),
    }
}

/// Goes through the text from left to right, and calculates as it goes.
struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

type Parsed = Result<f64, ArithmeticError>;

impl Parser<'_> {
    fn sum(&mut self) -> Parsed {
        let mut value = self.product()?;
        while let Some(operator) = self.take(&['+', '-']) {
            let other = self.product()?;
            value = finite(if operator == '+' { value + other } else { value - other })?;
        }
        Ok(value)
    }

    fn product(&mut self) -> Parsed {
        let mut value = self.signed()?;
        while let Some(operator) = self.take(&['*', '/', '%']) {
            let other = self.signed()?;
            if operator != '*' && other == 0.0 {
                return Err(ArithmeticError::DivisionByZero);
            }
            value = finite(match operator {
                '*' => value * other,
                '/' => value / other,
                _ => value % other,
            })?;
        }
        Ok(value)
    }

    fn signed(&mut self) -> Parsed {
        match self.take(&['-', '+']) {
            Some('-') => self.deeper(Self::signed).map(|value| -value),
            Some(_) => self.deeper(Self::signed),
            None => self.power(),
        }
    }

    fn power(&mut self) -> Parsed {
        let base = self.operand()?;
        if self.take(&['^']).is_none() {
            return Ok(base);
        }
        let exponent = self.deeper(Self::signed)?;
        if base == 0.0 && exponent < 0.0 {
            return Err(ArithmeticError::DivisionByZero);
        }
        finite(base.powf(exponent))
    }

    fn operand(&mut self) -> Parsed {
        match self.peek() {
            Some('(') => {
                self.take(&['(']);
                let value = self.deeper(Self::sum)?;
                self.take(&[')']).map(|_| value).ok_or_else(|| self.expected("an operator or )"))
            }
            Some('0'..='9' | '.') => self.number(),
            Some(letter) if letter.is_ascii_alphabetic() => self.function(),
            _ => Err(self.expected("a number, a function or (")),
        }
    }

    fn number(&mut self) -> Parsed {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let after = |length: usize| rest.get(length..).unwrap_or_default();
        let mut length = digits(rest);
        if after(length).starts_with('.') {
            length += 1 + digits(after(length + 1));
        }
        if after(length).starts_with(['e', 'E']) {
            let sign = usize::from(after(length + 1).starts_with(['+', '-']));
            let exponent = digits(after(length + 1 + sign));
            length += if exponent > 0 { 1 + sign + exponent } else { 0 };
        }
        let value = rest.get(..length).and_then(|number| number.parse().ok());
        let value = value.ok_or_else(|| self.expected("a number"))?;
        self.at += length;
        finite(value)
    }

    fn function(&mut self) -> Parsed {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let length = rest.bytes().take_while(u8::is_ascii_alphanumeric).count();
        let name = rest.get(..length).unwrap_or_default().to_owned();
        self.at += length;
        let one: (&'static str, fn(f64) -> f64) = match name.as_str() {
            "abs" => ("abs", f64::abs),
            "ceil" => ("ceil", f64::ceil),
            "floor" => ("floor", f64::floor),
            "round" => ("round", f64::round),
            "sqrt" => ("sqrt", f64::sqrt),
            "max" => return Ok(self.arguments()?.into_iter().fold(f64::NEG_INFINITY, f64::max)),
            "min" => return Ok(self.arguments()?.into_iter().fold(f64::INFINITY, f64::min)),
            _ => return Err(ArithmeticError::UnknownFunction { name }),
        };
        match self.arguments()?.as_slice() {
            [value] => finite(one.1(*value)),
            several => Err(ArithmeticError::Arguments { name: one.0, found: several.len() }),
        }
    }

    /// One at least.
    fn arguments(&mut self) -> Result<Vec<f64>, ArithmeticError> {
        self.take(&['(']).ok_or_else(|| self.expected("("))?;
        let mut values = vec![self.deeper(Self::sum)?];
        while self.take(&[',']).is_some() {
            values.push(self.deeper(Self::sum)?);
        }
        self.take(&[')']).map(|_| values).ok_or_else(|| self.expected("an operator, a comma or )"))
    }

    fn deeper(&mut self, parse: fn(&mut Self) -> Parsed) -> Parsed {
        if self.depth >= MAX_DEPTH {
            return Err(ArithmeticError::TooDeep);
        }
        self.depth += 1;
        let value = parse(self)?;
        self.depth -= 1;
        Ok(value)
    }

    /// The next character that is not blank.
    fn peek(&mut self) -> Option<char> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        self.at += rest.len() - rest.trim_start().len();
        rest.trim_start().chars().next()
    }

    /// The next character, if it is one of these.
    fn take(&mut self, these: &[char]) -> Option<char> {
        let next = self.peek().filter(|next| these.contains(next))?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn expected(&mut self, expected: &'static str) -> ArithmeticError {
        let found = self.peek().map_or_else(|| "its end".to_owned(), |next| format!("{next:?}"));
        ArithmeticError::Syntax { at: self.at, expected, found }
    }
}

fn finite(value: f64) -> Parsed {
    match value {
        value if value.is_nan() => Err(ArithmeticError::NotReal),
        value if value.is_infinite() => Err(ArithmeticError::Overflow),
        value => Ok(value),
    }
}

#[cfg(test)]
#[path = "arithmetic_tests.rs"]
mod tests;
