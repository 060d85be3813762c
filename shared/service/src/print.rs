//! `--print-config`: what is in force, where it came from, and no secrets.

use toml::{Table, Value};

use crate::ServiceConfig;
use crate::error::Origin;
use crate::layers::Layers;
use crate::load::{Loaded, effective};

pub(crate) const REDACTED: &str = "<redacted>";

/// Words that, as a part of a key's name, make its value a secret.
const SECRET_WORDS: &[&str] = &["password", "passwd", "secret", "token", "key", "credential", "credentials", "jaas"];

/// The configuration as TOML; each value that is not a default is followed by where it came from.
///
/// # Errors
/// When a value can't be written as TOML: a defect of the configuration's type.
pub fn render<C: ServiceConfig>(loaded: &Loaded<C>) -> Result<String, toml::ser::Error> {
    let mut out = String::new();
    for (section, value) in &effective(loaded)? {
        if let Value::Table(keys) = value {
            section_into(&mut out, section, keys, &loaded.layers);
        }
    }
    Ok(out)
}

fn section_into(out: &mut String, section: &str, keys: &Table, layers: &Layers) {
    if !out.is_empty() {
        out.push('\n');
    }
    out.push_str(&format!("[{section}]\n"));
    for (key, value) in keys {
        let mut value = value.clone();
        redact(key, &mut value);
        // A map is shown entry by entry, so that each shows its origin.
        let path = [section.to_owned(), key.clone()];
        match value {
            Value::Table(entries) if !entries.is_empty() => {
                for (name, value) in &entries {
                    let origin = layers.origin(&[section.to_owned(), key.clone(), name.clone()]);
                    line(out, &format!("{}.{}", quoted(key), quoted(name)), value, &origin);
                }
            }
            value => line(out, &quoted(key), &value, &layers.origin(&path)),
        }
    }
}

fn line(out: &mut String, key: &str, value: &Value, origin: &Origin) {
    match origin {
        Origin::Default => out.push_str(&format!("{key} = {value}\n")),
        origin => out.push_str(&format!("{key} = {value} # {origin}\n")),
    }
}

fn quoted(key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if bare { key.to_owned() } else { Value::String(key.to_owned()).to_string() }
}

fn redact(key: &str, value: &mut Value) {
    match value {
        Value::String(text) if is_secret(key) && !text.is_empty() => *text = REDACTED.into(),
        Value::String(text) => {
            if let Some(clean) = without_password(text) {
                *text = clean;
            }
        }
        Value::Table(table) => table.iter_mut().for_each(|(key, value)| redact(key, value)),
        Value::Array(values) => values.iter_mut().for_each(|value| redact(key, value)),
        _ => {}
    }
}

fn is_secret(key: &str) -> bool {
    key.to_lowercase().split(['.', '_', '-']).any(|word| SECRET_WORDS.contains(&word))
}

/// A URL with its password replaced, if it has one.
fn without_password(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let authority = rest.split('/').next()?;
    let (user, host) = authority.rsplit_once('@')?;
    let (name, _password) = user.split_once(':')?;
    let path = rest.strip_prefix(authority)?;
    Some(format!("{scheme}://{name}:{REDACTED}@{host}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_their_names() {
        for key in ["password", "sasl.password", "api_key", "ssl.key.pem", "client-secret", "token", "sasl.jaas.config"]
        {
            assert!(is_secret(key), "{key}");
        }
        for key in ["max_tokens", "tokens", "brokers", "sasl.username", "keyboard", "ssl.ca.location"] {
            assert!(!is_secret(key), "{key}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_replaced() {
        assert_eq!(without_password("https://u:p@ss@host:1/x").as_deref(), Some("https://u:<redacted>@host:1/x"));
        assert_eq!(without_password("https://host/x"), None);
    }
}
