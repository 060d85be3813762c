//! URLs with gaps that a model fills: only in segments of the path and in values of the query, so that it can choose
//! neither the host nor what is asked there.

use std::collections::BTreeSet;

use reqwest::Url;
use serde_json::Value;

use super::ToolError;

/// Longest value that is put into a URL, bytes before encoding.
const MAX_VALUE_BYTES: usize = 2_048;

/// A URL with gaps, `https://host/path/{placeholder}?key={placeholder}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    /// Scheme, host and port, without what follows.
    origin: String,
    /// Each begins with a `/`.
    segments: Vec<Text>,
    /// `key=value` each, the key as it is.
    query: Vec<Text>,
    /// Names of the gaps.
    pub(super) placeholders: BTreeSet<String>,
}

/// Literal text and gaps by turns.
type Text = Vec<Part>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Gap(String),
}

impl Template {
    /// Reads a template; says what is wrong with it.
    pub(super) fn parse(template: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = template.split_once("://").ok_or("must begin with http:// or https://")?;
        if !matches!(scheme, "http" | "https") {
            return Err("must begin with http:// or https://");
        }
        if template.chars().any(|char| char == '\\' || char == '#' || char.is_whitespace() || char.is_control()) {
            return Err("must have neither a fragment, nor a backslash, nor a blank");
        }
        let (before_query, query) = rest.split_once('?').map_or((rest, None), |(before, query)| (before, Some(query)));
        let (authority, path) = before_query.split_once('/').unwrap_or((before_query, ""));
        if authority.is_empty() || authority.contains(['{', '}', '@']) {
            return Err("must name a host, with neither a placeholder nor credentials in it");
        }
        let segments: Vec<Text> = path.split('/').map(parts).collect::<Result<_, _>>()?;
        let query: Vec<Text> = query.map_or(Ok(Vec::new()), |query| query.split('&').map(pair).collect())?;
        let gaps = segments.iter().chain(&query).flatten().filter_map(|part| match part {
            Part::Gap(name) => Some(name.clone()),
            Part::Literal(_) => None,
        });
        let placeholders = gaps.collect();
        let template = Self { origin: format!("{scheme}://{authority}"), segments, query, placeholders };
        // Each of its parts has to come through unchanged, as a value in every gap will.
        template.url(|_| Some("x".to_owned())).ok_or("is no URL, or not written the way it is sent")?;
        Ok(template)
    }

    /// The URL with these values in its gaps.
    pub(super) fn fill(&self, arguments: &Value) -> Result<Url, ToolError> {
        let given = arguments.as_object().ok_or_else(|| ToolError::invalid("the arguments must be a JSON object"))?;
        if let Some(unknown) = given.keys().find(|name| !self.placeholders.contains(*name)) {
            return Err(ToolError::invalid(format!("there is no argument {unknown}")));
        }
        for name in &self.placeholders {
            check(name, given.get(name))?;
        }
        let value = |name: &str| given.get(name).and_then(written);
        for segment in &self.segments {
            let filled = written_out(segment, value).unwrap_or_default();
            let gaps = segment.iter().any(|part| matches!(part, Part::Gap(_)));
            // These would change which path it is, whoever takes them out.
            if gaps && (matches!(filled.as_str(), "" | "." | "..") || filled.contains(['/', '\\'])) {
                return Err(ToolError::invalid(
                    "a value in the path must be neither empty, nor . or .., nor have a / or \\",
                ));
            }
        }
        self.url(|name| value(name).map(|value| encoded(&value)))
            .ok_or_else(|| ToolError::invalid("the values make no valid URL"))
    }

    /// The URL, if it reads back as exactly what was put together.
    fn url(&self, value: impl Fn(&str) -> Option<String>) -> Option<Url> {
        let mut path = String::new();
        for segment in &self.segments {
            path.push('/');
            path.push_str(&written_out(segment, &value)?);
        }
        let query = self.query.iter().map(|pair| written_out(pair, &value)).collect::<Option<Vec<_>>>()?.join("&");
        let (mark, expected) = if query.is_empty() { ("", None) } else { ("?", Some(query.as_str())) };
        let url = Url::parse(&format!("{}{path}{mark}{query}", self.origin)).ok()?;
        (url.path() == path && url.query() == expected && url.host_str().is_some()).then_some(url)
    }
}

fn pair(pair: &str) -> Result<Text, &'static str> {
    if pair.split('=').next().is_some_and(|key| key.contains(['{', '}'])) {
        return Err("must have placeholders in the path and in values of the query only");
    }
    parts(pair)
}

fn parts(text: &str) -> Result<Text, &'static str> {
    let unmatched = "has a { or a } that does not belong to a placeholder";
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((literal, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or(unmatched)?;
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err("has a placeholder whose name is not of letters, digits and _");
        }
        if literal.contains('}') {
            return Err(unmatched);
        }
        parts.extend([Part::Literal(literal.to_owned()), Part::Gap(name.to_owned())]);
        rest = after;
    }
    if rest.contains('}') {
        return Err(unmatched);
    }
    parts.push(Part::Literal(rest.to_owned()));
    Ok(parts)
}

fn written_out(text: &Text, value: impl Fn(&str) -> Option<String>) -> Option<String> {
    text.iter()
        .map(|part| match part {
            Part::Literal(literal) => Some(literal.clone()),
            Part::Gap(name) => value(name),
        })
        .collect()
}

fn check(name: &str, value: Option<&Value>) -> Result<(), ToolError> {
    let value = value.ok_or_else(|| ToolError::invalid(format!("the argument {name} is missing")))?;
    let text = written(value)
        .ok_or_else(|| ToolError::invalid(format!("the argument {name} must be a string, a number or a boolean")))?;
    if text.len() > MAX_VALUE_BYTES {
        return Err(ToolError::invalid(format!("the argument {name} has more than {MAX_VALUE_BYTES} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(ToolError::invalid(format!("the argument {name} has a control character")));
    }
    Ok(())
}

/// A value as text, where it is one that a URL can hold.
fn written(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(bool) => Some(bool.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Everything but unreserved characters (RFC 3986, 2.3) as percent and two digits.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const TEMPLATE: &str = "https://api.test:8443/v1/{city}/days-{n}?units={units}&lang=en";

    fn fill(arguments: &Value) -> Result<String, String> {
        let url = Template::parse(TEMPLATE).unwrap().fill(arguments);
        url.map(String::from).map_err(|error| error.to_string())
    }

    #[test]
    fn values_are_encoded_and_stay_in_their_gap() {
        let filled = fill(&json!({ "city": "São Paulo?#&=%2F;@", "n": 3, "units": "a&b=c/../d?e#f" })).unwrap();
        assert_eq!(
            filled,
            "https://api.test:8443/v1/S%C3%A3o%20Paulo%3F%23%26%3D%252F%3B%40/days-3\
             ?units=a%26b%3Dc%2F..%2Fd%3Fe%23f&lang=en"
        );
    }

    #[test]
    fn what_would_leave_its_segment_is_refused() {
        for city in ["", ".", "..", "../admin", "a/b", "..\\admin", "a\nb", "\u{0}"] {
            let message = fill(&json!({ "city": city, "n": 1, "units": "m" })).unwrap_err();
            assert!(message.contains("value in the path") || message.contains("control character"), "{message}");
        }
    }

    #[test]
    fn wrong_arguments_are_named() {
        for (arguments, words) in [
            (json!({ "city": "x", "n": 1 }), "units is missing"),
            (json!({ "city": "x", "n": 1, "units": "m", "host": "evil" }), "no argument host"),
            (json!({ "city": ["x"], "n": 1, "units": "m" }), "city must be a string"),
            (json!({ "city": null, "n": 1, "units": "m" }), "city must be a string"),
            (json!({ "city": "x".repeat(2_049), "n": 1, "units": "m" }), "city has more than 2048 bytes"),
            (json!([]), "must be a JSON object"),
        ] {
            let message = fill(&arguments).unwrap_err();
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn placeholders_elsewhere_than_in_path_and_values_are_refused() {
        for template in [
            "ftp://api.test/",
            "{scheme}://api.test/",
            "api.test/{x}",
            "https://{host}/",
            "https://api.{domain}/x",
            "https://api.test:{port}/x",
            "https://user:{pass}@api.test/",
            "https://user@api.test/",
            "https:///x",
            "https://api.test/?{key}=1",
            "https://api.test/?a=1&{key}",
            "https://api.test/#{x}",
            "https://api.test\\{x}",
            "https://api.test/{x",
            "https://api.test/x}",
            "https://api.test/}{x}",
            "https://api.test/{a b}",
            "https://api.test/{}",
            "https://api.test/a/../{x}",
            "https://api.test/ü/{x}",
        ] {
            assert!(Template::parse(template).is_err(), "{template}");
        }
        for template in ["http://api.test", "https://[2606:4700::1111]/{x}", "https://api.test/a/?b"] {
            assert!(Template::parse(template).is_ok(), "{template}");
        }
    }

    proptest! {
        #[test]
        fn no_value_changes_host_path_or_key(city in "\\PC{0,20}", units in "\\PC{0,20}") {
            let template = Template::parse(TEMPLATE).unwrap();
            if let Ok(url) = template.fill(&json!({ "city": city, "n": 1, "units": units })) {
                prop_assert_eq!((url.scheme(), url.host_str(), url.port()), ("https", Some("api.test"), Some(8443)));
                let segments: Vec<&str> = url.path_segments().unwrap().collect();
                prop_assert_eq!((segments.len(), segments[0], segments[2]), (3, "v1", "days-1"));
                let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
                prop_assert_eq!(pairs, [("units".to_owned(), units), ("lang".to_owned(), "en".to_owned())]);
                prop_assert!(url.fragment().is_none());
            }
        }
    }
}
