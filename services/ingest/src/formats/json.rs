//! JSON, whole or one value a line, as text a person could read.

use serde_json::{Map, Value};

use super::structure::{Structure, one_line};
use super::{Extracted, Limits, Refusal};

/// Names under which records keep what they are called, and what they say.
const TITLES: [&str; 5] = ["title", "name", "headline", "subject", "label"];

/// A string of this many characters is prose, not a property.
const PROSE: usize = 80;

/// Whether the first lines are a JSON object or array each, and there are at least two.
pub(crate) fn looks_like_lines(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty()).take(3);
    let (Some(first), Some(second)) = (lines.next(), lines.next()) else { return false };
    is_container(first) && is_container(second)
}

/// Whether the text is one JSON object or array, or begins as one and is said to be.
pub(crate) fn looks_like_value(text: &str, said: bool) -> bool {
    let begins = text.starts_with(['{', '[']);
    begins && (said || serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
}

/// Whether the first line alone is a whole value and there are more lines.
pub(crate) fn one_value_a_line(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.next().is_some_and(is_container) && lines.next().is_some()
}

fn is_container(line: &str) -> bool {
    line.trim_start().starts_with(['{', '[']) && serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok()
}

/// One JSON value; each element of an array is a record.
pub(crate) fn extract_value(text: &str, limits: &Limits) -> Result<Extracted, Refusal> {
    let value = parse(text, limits, "JSON document")?;
    let mut structure = Structure::default();
    let title = match &value {
        Value::Array(records) => {
            records.iter().for_each(|value| record(&mut structure, value, 2));
            None
        }
        Value::Object(fields) => {
            record(&mut structure, &value, 1);
            title_of(fields).map(|(_, title)| title.to_owned())
        }
        _ => {
            record(&mut structure, &value, 1);
            None
        }
    };
    Ok(structure.finish(title))
}

/// One JSON value a line, each a record.
pub(crate) fn extract_lines(text: &str, limits: &Limits) -> Result<Extracted, Refusal> {
    let mut structure = Structure::default();
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    for (number, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let value = parse(line, limits, &format!("JSON of line {}", number + 1))?;
        record(&mut structure, &value, 2);
    }
    Ok(structure.finish(None))
}

fn parse(text: &str, limits: &Limits, what: &str) -> Result<Value, Refusal> {
    serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|error| {
        if error.to_string().contains("recursion limit") {
            // serde_json's own limit, below any that could be configured usefully.
            return Refusal::TooDeep { what: what.to_owned(), limit: limits.max_nesting.min(128) };
        }
        Refusal::broken(what, format_args!("it is not valid at column {} of line {}", error.column(), error.line()))
    })
}

/// A record: its title, its prose as paragraphs, its properties as `name: value` lines.
fn record(structure: &mut Structure, value: &Value, level: i32) {
    let Value::Object(fields) = value else {
        let mut properties = String::new();
        flatten(&mut properties, structure, "", value);
        structure.paragraph(&properties);
        return;
    };
    let title = title_of(fields);
    if let Some((_, title)) = title {
        structure.heading(level, title);
    }
    let mut properties = String::new();
    for (name, value) in fields.iter().filter(|(name, _)| title.is_none_or(|(titled, _)| titled != name.as_str())) {
        flatten(&mut properties, structure, name, value);
    }
    structure.paragraph(&properties);
}

fn title_of(fields: &Map<String, Value>) -> Option<(&str, &str)> {
    TITLES.iter().find_map(|wanted| {
        let (name, value) = fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted))?;
        let title = value.as_str()?.trim();
        (!title.is_empty() && title.chars().count() <= 300).then_some((name.as_str(), title))
    })
}

/// Prose goes to the structure at once, properties gather in `properties`.
fn flatten(properties: &mut String, structure: &mut Structure, name: &str, value: &Value) {
    match value {
        Value::Null => {}
        Value::String(text) if text.chars().nth(PROSE).is_some() => structure.paragraph(text),
        Value::String(text) => line(properties, name, &one_line(text)),
        Value::Bool(_) | Value::Number(_) => line(properties, name, &value.to_string()),
        Value::Array(values) if values.iter().all(is_short) => {
            let all: Vec<String> = values.iter().map(scalar).filter(|text| !text.is_empty()).collect();
            line(properties, name, &all.join(", "));
        }
        Value::Array(values) => values.iter().for_each(|value| flatten(properties, structure, name, value)),
        Value::Object(fields) => {
            for (inner, value) in fields {
                let path = if name.is_empty() { inner.clone() } else { format!("{name}.{inner}") };
                flatten(properties, structure, &path, value);
            }
        }
    }
}

fn is_short(value: &Value) -> bool {
    match value {
        Value::String(text) => text.chars().nth(PROSE).is_none(),
        Value::Array(_) | Value::Object(_) => false,
        _ => true,
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => one_line(text),
        Value::Null => String::new(),
        value => value.to_string(),
    }
}

fn line(properties: &mut String, name: &str, value: &str) {
    if value.is_empty() {
        return;
    }
    if !name.is_empty() {
        properties.push_str(name);
        properties.push_str(": ");
    }
    properties.push_str(value);
    properties.push('\n');
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::formats::tests::limits;

    #[test]
    fn records_become_headings_prose_and_properties() {
        let prose = "It rises in the Alps and flows through six countries before it reaches the North Sea in the end.";
        let text = format!("{{\"id\":7,\"title\":\"Rhine\",\"text\":\"{prose}\",\"tags\":[\"river\",\"long\"]}}\n");
        let document = extract_lines(&text.repeat(2), &limits()).unwrap();
        let one = format!("Rhine\n\n{prose}\n\nid: 7\ntags: river, long");
        assert_eq!(document.text, format!("{one}\n\n{one}"));
    }

    #[test]
    fn a_broken_line_is_named() {
        let refusal = extract_lines("{\"a\":1}\n{\"a\":\n", &limits()).unwrap_err();
        assert!(refusal.to_string().contains("JSON of line 2"), "{refusal}");
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        assert_eq!(extract_value(&deep, &limits()).unwrap_err().class(), "nested-too-deep");
    }
}
