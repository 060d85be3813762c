//! What can be wrong with a configuration. Every message names the key and where its value came from.

use std::fmt;
use std::path::PathBuf;

/// A key whose value can't work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The key, for example `kafka.lanes`.
    pub key: String,
    /// What is wrong with the value and which values are good.
    pub reason: String,
}

impl Invalid {
    /// The value of `key` can't work because of `reason`.
    pub fn new(key: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self { key: key.into(), reason: reason.to_string() }
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// `--set` on the command line.
    CommandLine,
    /// Nobody set it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::CommandLine => f.write_str("--set"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML: {reason}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// An argument of `--set` is not `section.key=value`.
    #[error("--set {argument:?} is not of the form section.key=value, for example --set kafka.brokers=127.0.0.1:9092")]
    Argument {
        /// What was given.
        argument: String,
    },
    /// A variable looks like a setting but has one underscore where two belong.
    #[error("environment variable {variable} sets nothing: section and key are separated by two underscores ({meant})")]
    Underscores {
        /// What was given.
        variable: String,
        /// What was probably meant.
        meant: String,
    },
    /// No service has a section of this name.
    #[error("unknown section [{section}] ({origin}){}", Hint(.nearest))]
    UnknownSection {
        /// The section.
        section: String,
        /// Where it stands.
        origin: Origin,
        /// The valid name that looks most like it.
        nearest: Option<String>,
    },
    /// The section has no such key.
    #[error("unknown key {key} ({origin}){}; valid here: {}", Hint(.nearest), .valid.join(", "))]
    UnknownKey {
        /// The key with its section.
        key: String,
        /// Where it stands.
        origin: Origin,
        /// The valid key that looks most like it.
        nearest: Option<String>,
        /// All valid keys.
        valid: Vec<String>,
    },
    /// A value is not of the type or in the range that its key needs.
    #[error("{key} ({origin}): {reason}")]
    Value {
        /// The key with its section.
        key: String,
        /// Where the value stands.
        origin: Origin,
        /// What is wrong.
        reason: String,
    },
}

struct Hint<'a>(&'a Option<String>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, ": did you mean {name}?"),
            None => Ok(()),
        }
    }
}
