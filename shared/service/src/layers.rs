//! The layers of a configuration: file, environment, command line, each over the one before.

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml::{Table, Value};

use crate::error::{ConfigError, Origin};

/// Begins every environment variable that sets a key.
const VARIABLE_PREFIX: &str = "WEIR_";

/// Keys that hold free-form names with dots in them: what follows is one name, not a path.
const MAPS: &[[&str; 2]] = &[["kafka", "properties"]];

/// Where a configuration is read from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// Arguments of `--set`.
    pub settings: Vec<String>,
}

/// The layers merged, with the origin of every value.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    pub(crate) table: Table,
    origins: BTreeMap<Vec<String>, Origin>,
    /// Text of values that came from where there are no types.
    texts: BTreeMap<Vec<String>, String>,
}

impl Layers {
    /// Reads and merges the sources. `sections` are the service's own, for finding slips in variables.
    pub(crate) fn read(sources: &Sources, sections: &[&str]) -> Result<Self, ConfigError> {
        let mut layers = Self::default();
        if let Some(path) = &sources.file {
            layers.add_file(path)?;
        }
        let mut variables: Vec<_> = sources.environment.iter().collect();
        variables.sort();
        for (name, value) in variables {
            layers.add_variable(name, value, sections)?;
        }
        for argument in &sources.settings {
            layers.add_setting(argument)?;
        }
        Ok(layers)
    }

    fn add_file(&mut self, path: &PathBuf) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let table: Table = text
            .parse()
            .map_err(|error: toml::de::Error| ConfigError::Syntax { path: path.clone(), reason: error.to_string() })?;
        self.note_origins(&table, &mut Vec::new(), path);
        self.table = table;
        Ok(())
    }

    fn note_origins(&mut self, table: &Table, path: &mut Vec<String>, file: &PathBuf) {
        for (key, value) in table {
            path.push(key.clone());
            self.origins.insert(path.clone(), Origin::File(file.clone()));
            if let Value::Table(inner) = value {
                self.note_origins(inner, path, file);
            }
            path.pop();
        }
    }

    fn add_variable(&mut self, name: &str, value: &str, sections: &[&str]) -> Result<(), ConfigError> {
        let Some(rest) = name.strip_prefix(VARIABLE_PREFIX) else { return Ok(()) };
        let Some((section, key)) = rest.split_once("__") else { return refuse_slip(name, rest, sections) };
        let (section, key) = (section.to_lowercase(), key.to_lowercase());
        let mut path = vec![section];
        path.extend(key.split("__").map(str::to_owned));
        if let Some(map) = map_of(&path) {
            // Kafka's properties have dots and no underscores; variables can't have dots.
            let name = path.split_off(map).join("_").replace('_', ".");
            path.push(name);
        }
        self.put(path, value, &Origin::Variable(name.to_owned()));
        Ok(())
    }

    fn add_setting(&mut self, argument: &str) -> Result<(), ConfigError> {
        let malformed = || ConfigError::Argument { argument: argument.to_owned() };
        let (key, value) = argument.split_once('=').ok_or_else(malformed)?;
        let mut path: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
        if path.len() < 2 || path.iter().any(String::is_empty) {
            return Err(malformed());
        }
        if let Some(map) = map_of(&path) {
            let name = path.split_off(map).join(".");
            path.push(name);
        }
        self.put(path, value, &Origin::CommandLine);
        Ok(())
    }

    fn put(&mut self, path: Vec<String>, text: &str, origin: &Origin) {
        if is_map(&path) {
            for (name, value) in entries(text) {
                let mut inner = path.clone();
                inner.push(name);
                self.put_value(&inner, value, origin);
            }
            return;
        }
        let value = if path.len() > 2 && is_map(path.get(..2).unwrap_or_default()) {
            Value::String(text.to_owned())
        } else {
            parse(text)
        };
        self.texts.insert(path.clone(), text.to_owned());
        self.put_value(&path, value, origin);
    }

    fn put_value(&mut self, path: &[String], value: Value, origin: &Origin) {
        insert(&mut self.table, path, value);
        self.origins.insert(path.to_vec(), origin.clone());
    }

    /// Where the value at `path`, or what contains it, came from.
    pub(crate) fn origin(&self, path: &[String]) -> Origin {
        (1..=path.len())
            .rev()
            .filter_map(|length| self.origins.get(path.get(..length)?))
            .next()
            .or_else(|| self.origins.iter().find(|(known, _)| known.starts_with(path)).map(|(_, origin)| origin))
            .cloned()
            .unwrap_or(Origin::Default)
    }

    /// Takes a value that came as text as a string after all. False when that was tried or there is no text.
    pub(crate) fn retry_as_text(&mut self, path: &[String]) -> bool {
        let Some(text) = self.texts.remove(path) else { return false };
        insert(&mut self.table, path, Value::String(text));
        true
    }
}

/// A variable such as `WEIR_KAFKA_BROKERS`, where `WEIR_KAFKA__BROKERS` was meant, would be silently ignored.
fn refuse_slip(variable: &str, rest: &str, sections: &[&str]) -> Result<(), ConfigError> {
    let lower = rest.to_lowercase();
    for section in sections {
        if let Some(key) = lower.strip_prefix(section).and_then(|key| key.strip_prefix('_')) {
            let meant = format!("{VARIABLE_PREFIX}{}__{}", section.to_uppercase(), key.to_uppercase());
            return Err(ConfigError::Underscores { variable: variable.to_owned(), meant });
        }
    }
    Ok(())
}

fn is_map(path: &[String]) -> bool {
    MAPS.iter().any(|map| map.as_slice() == path)
}

/// Length of the path to the map, when the path leads into one.
fn map_of(path: &[String]) -> Option<usize> {
    path.get(..2).filter(|start| path.len() > 2 && is_map(start)).map(<[String]>::len)
}

/// Entries of a map given as text: a TOML inline table, or `name=value,name=value`.
fn entries(text: &str) -> Vec<(String, Value)> {
    if let Value::Table(table) = parse(text) {
        return table.into_iter().collect();
    }
    text.split(',')
        .filter(|entry| !entry.trim().is_empty())
        .map(|entry| {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            (name.trim().to_owned(), Value::String(value.trim().to_owned()))
        })
        .collect()
}

/// A TOML value, or the text itself when it is none.
fn parse(text: &str) -> Value {
    let document: Option<Table> = format!("value = {text}").parse().ok();
    match document {
        Some(mut table) if table.len() == 1 => table.remove("value").unwrap_or_else(|| text.into()),
        _ => text.into(),
    }
}

fn insert(table: &mut Table, path: &[String], value: Value) {
    let Some((key, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        table.insert(key.clone(), value);
        return;
    }
    let inner = table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
    if !inner.is_table() {
        *inner = Value::Table(Table::new());
    }
    if let Value::Table(inner) = inner {
        insert(inner, rest, value);
    }
}
