//! Expressions with the values they have on paper, and any string at all.
#![allow(clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;

use super::*;

#[test]
fn expressions_have_the_value_they_have_on_paper() {
    for (expression, value) in [
        ("1 + 2 * 3", "7"),
        ("(1 + 2) * 3", "9"),
        ("10 - 4 - 3", "3"),
        ("2 ^ 3 ^ 2", "512"),
        ("-2 ^ 2", "-4"),
        ("2 ^ -1", "0.5"),
        ("2 * -3", "-6"),
        ("--3", "3"),
        ("7 % 3", "1"),
        ("-7 % 3", "-1"),
        ("0.1 + 0.2", "0.3"),
        ("1 / 3", "0.333333333333333"),
        (".5 + 1.", "1.5"),
        ("1.5e3 + 2E-1", "1500.2"),
        ("9007199254740991 - 0", "9007199254740991"),
        ("10 ^ 20", "1e20"),
        ("1 / 10 ^ 9", "1e-9"),
        ("0 * -1", "0"),
        ("min(3, 1, 2) + max(4)", "5"),
        ("abs(-2) + sqrt(16) + floor(1.9) + ceil(1.1) + round(2.5)", "12"),
        ("\t1+\n1 ", "2"),
    ] {
        assert_eq!(evaluate(expression).map(shown).as_deref(), Ok(value), "{expression}");
    }
}

#[test]
fn what_has_no_value_says_why() {
    for (expression, words) in [
        ("1 / 0", "division by zero"),
        ("1 % (2 - 2)", "division by zero"),
        ("0 ^ -1", "division by zero"),
        ("10 ^ 400", "too large"),
        ("1e999", "too large"),
        ("sqrt(-1)", "not a real number"),
        ("(-8) ^ 0.5", "not a real number"),
        ("", "a number, a function or ( is expected at byte 0 of the expression, but there is its end"),
        ("1 +", "expected at byte 3"),
        ("1 2", "an operator or the end is expected at byte 2 of the expression, but there is '2'"),
        ("(1", "expected at byte 2"),
        ("1 + é", "there is 'é'"),
        ("1e", "there is 'e'"),
        (".", "a number is expected"),
        ("sin(1)", "there is no function sin"),
        ("abs(1, 2)", "abs takes one argument, not 2"),
        ("abs 1", "( is expected"),
        ("max()", "a number, a function or ( is expected"),
    ] {
        let message = evaluate(expression).unwrap_err().to_string();
        assert!(message.contains(words), "{expression}: {message}");
    }
}

#[test]
fn length_and_depth_are_bounded() {
    let nested = |depth: usize| format!("{}1{}", "(".repeat(depth), ")".repeat(depth));
    assert_eq!(evaluate(&nested(MAX_DEPTH)), Ok(1.0));
    assert_eq!(evaluate(&nested(MAX_DEPTH + 1)), Err(ArithmeticError::TooDeep));
    for deep in ["-".repeat(1_000) + "1", "2^".repeat(500) + "1", "abs(".repeat(250) + "1"] {
        assert_eq!(evaluate(&deep), Err(ArithmeticError::TooDeep));
    }
    assert_eq!(evaluate(&" ".repeat(MAX_BYTES + 1)), Err(ArithmeticError::TooLong));
}

/// An expression with all its parentheses, and its value; none where a part of it has none.
fn with_value() -> impl Strategy<Value = (String, Option<f64>)> {
    let leaf = (0u32..1_000, 0u32..100).prop_map(|(whole, part)| {
        let text = format!("{whole}.{part:02}");
        let value = text.parse().unwrap();
        (text, Some(value))
    });
    leaf.prop_recursive(5, 32, 2, |inner| {
        (inner.clone(), inner, "[-+*/]").prop_map(|((left, a), (right, b), operator)| {
            let value = a.zip(b).map(|(a, b)| match operator.as_str() {
                "+" => a + b,
                "-" => a - b,
                "*" => a * b,
                _ => a / b,
            });
            (format!("({left} {operator} {right})"), value.filter(|value: &f64| value.is_finite()))
        })
    })
}

proptest! {
    #[test]
    fn no_string_makes_it_panic(text in "\\PC{0,80}", symbols in "[-+*/%^(),.e0-9 a-z\u{e9}]{0,200}") {
        for expression in [text, symbols] {
            if let Ok(value) = evaluate(&expression) {
                prop_assert!(value.is_finite());
                prop_assert!(shown(value).parse::<f64>().is_ok());
            }
        }
    }

    #[test]
    fn it_calculates_as_the_machine_does((expression, value) in with_value()) {
        prop_assert_eq!(evaluate(&expression).ok(), value);
    }
}
