//! From layers to a typed configuration.

use serde::de::{self, DeserializeOwned, Deserializer, Visitor};
use serde_path_to_error::Segment;
use toml::{Table, Value};

use crate::error::{ConfigError, Origin};
use crate::layers::{Layers, Sources};
use crate::{Invalid, ServiceConfig, sections};

/// Sections of all programs of Weir: one file may serve them all, so a program ignores those of the others.
const KNOWN_SECTIONS: &[&str] = &[
    "kafka",
    "registry",
    "runner",
    "http",
    "telemetry",
    "qdrant",
    "model",
    "llm",
    "ingest",
    "chunk",
    "embed",
    "index",
    "generate",
    "eval",
    "retry",
    "gateway",
    "stack",
    "cli",
];

/// A configuration, with what is needed to print it.
pub struct Loaded<C> {
    /// The typed configuration.
    pub config: C,
    pub(crate) layers: Layers,
}

/// Reads a configuration: defaults, then the file, the environment and the command line.
///
/// # Errors
/// When a source can't be read, names something that does not exist, or a value can't work.
pub fn load<C: ServiceConfig>(sources: &Sources) -> Result<Loaded<C>, ConfigError> {
    let own = field_names::<C>();
    let mut layers = Layers::read(sources, own)?;
    drop_sections_of_others(&mut layers, own)?;
    let defaults = Table::try_from(C::default()).map_err(|error| ConfigError::Value {
        key: "the defaults".into(),
        origin: Origin::Default,
        reason: error.to_string(),
    })?;
    let config: C = loop {
        // A service's own default of a common section holds for the keys that nobody sets.
        let mut table = defaults.clone();
        overlay(&mut table, &layers.table);
        match serde_path_to_error::deserialize(Value::Table(table)) {
            Ok(config) => break config,
            Err(error) => {
                let path = segments(error.path());
                if !layers.retry_as_text(&path) {
                    return Err(explain(&layers, path, error.inner().message()));
                }
            }
        }
    };
    let invalid = |Invalid { key, reason }| {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        ConfigError::Value { origin: layers.origin(&path), key, reason }
    };
    sections::validate(config.common()).map_err(invalid)?;
    config.validate().map_err(invalid)?;
    Ok(Loaded { config, layers })
}

fn drop_sections_of_others(layers: &mut Layers, own: &[&str]) -> Result<(), ConfigError> {
    let sections: Vec<String> = layers.table.keys().cloned().collect();
    for section in sections {
        if own.contains(&section.as_str()) {
            continue;
        }
        if KNOWN_SECTIONS.contains(&section.as_str()) {
            layers.table.remove(&section);
            continue;
        }
        let origin = layers.origin(std::slice::from_ref(&section));
        let nearest = nearest(&section, own.iter().chain(KNOWN_SECTIONS).copied());
        return Err(ConfigError::UnknownSection { section, origin, nearest });
    }
    Ok(())
}

fn overlay(below: &mut Table, above: &Table) {
    for (key, value) in above {
        match (below.get_mut(key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above),
            _ => {
                below.insert(key.clone(), value.clone());
            }
        }
    }
}

fn segments(path: &serde_path_to_error::Path) -> Vec<String> {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { variant } => Some(variant.clone()),
            Segment::Seq { .. } | Segment::Unknown => None,
        })
        .collect()
}

fn explain(layers: &Layers, mut path: Vec<String>, message: &str) -> ConfigError {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if let (true, Some((field, valid))) = (message.starts_with("unknown field"), quoted.split_first()) {
        if path.last().is_none_or(|last| last != field) {
            path.push((*field).to_owned());
        }
        return ConfigError::UnknownKey {
            origin: layers.origin(&path),
            nearest: nearest(field, valid.iter().copied()),
            valid: valid.iter().map(|name| (*name).to_owned()).collect(),
            key: path.join("."),
        };
    }
    let origin: Origin = layers.origin(&path);
    ConfigError::Value { key: path.join("."), origin, reason: message.to_owned() }
}

/// The name most like `wrong`, if any is alike at all.
fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    names
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .min()
        .filter(|(distance, name)| *distance * 2 <= name.len().max(wrong.len()))
        .map(|(_, name)| name.to_owned())
}

/// Names of a struct's fields, as serde knows them.
fn field_names<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // Ends in an error on purpose, after the fields were seen.
    let _ = T::deserialize(FieldNames(&mut names));
    names
}

struct FieldNames<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("only the names of the fields are wanted"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// The configuration as a table, with what serde does not write (secrets) put back as a mark.
pub(crate) fn effective<C: ServiceConfig>(loaded: &Loaded<C>) -> Result<Table, toml::ser::Error> {
    let mut table = Table::try_from(&loaded.config)?;
    put_back(&mut table, &loaded.layers.table);
    if let Some(Value::Table(http)) = table.get_mut("http") {
        http.insert("listen".into(), Value::String(loaded.config.common().http.address(C::PORT)));
    }
    Ok(table)
}

fn put_back(shown: &mut Table, given: &Table) {
    for (key, value) in given {
        match (shown.get_mut(key), value) {
            (Some(Value::Table(shown)), Value::Table(given)) => put_back(shown, given),
            (Some(_), _) => {}
            (None, _) => {
                shown.insert(key.clone(), Value::String(crate::print::REDACTED.into()));
            }
        }
    }
}
