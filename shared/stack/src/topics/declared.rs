//! Reading `topics/*.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use weir_contracts::{Cleanup, Partitions};

/// A declaration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// Not valid TOML, or an unknown key or value.
    #[error("{file}: {reason}")]
    Invalid {
        /// Which file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A folder or file can't be read.
    #[error("can't read {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A topic as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicSpec {
    /// Name without the prefix.
    pub name: String,
    /// Schema of the values, a file of `schemas/` without `.avsc`; none for plain bytes.
    #[serde(default)]
    pub schema: Option<String>,
    /// How many partitions.
    pub partitions: Partitions,
    /// What Kafka removes.
    pub cleanup: Cleanup,
    /// Days after which records are removed; none: never by time.
    #[serde(default)]
    pub retention_days: Option<u32>,
    /// Days after which a compacted topic is compacted at the latest, so that what was replaced or removed does not stay
    /// longer; none: whenever the broker finds it worth while.
    #[serde(default)]
    pub max_compaction_lag_days: Option<u32>,
    /// Largest record, bytes; none: the broker's default, 1 MiB.
    #[serde(default)]
    pub max_message_bytes: Option<u32>,
}

impl TopicSpec {
    /// How many partitions where there are `lanes` lanes.
    #[must_use]
    pub fn partitions(&self, lanes: i32) -> i32 {
        match self.partitions {
            Partitions::Lanes | Partitions::Routers => lanes,
            Partitions::One => 1,
        }
    }

    /// Settings the topic must have.
    #[must_use]
    pub fn settings(&self, min_insync_replicas: i32) -> BTreeMap<String, String> {
        const DAY_MS: i64 = 86_400_000;
        let mut settings = BTreeMap::new();
        let mut set = |key: &str, value: String| settings.insert(key.to_owned(), value);
        match self.cleanup {
            Cleanup::Compact => set("cleanup.policy", "compact".into()),
            Cleanup::Delete => set("cleanup.policy", "delete".into()),
        };
        if self.cleanup == Cleanup::Delete {
            let retention = self.retention_days.map_or(-1, |days| i64::from(days) * DAY_MS);
            set("retention.ms", retention.to_string());
        }
        if let Some(days) = self.max_compaction_lag_days {
            set("max.compaction.lag.ms", (i64::from(days) * DAY_MS).to_string());
        }
        if let Some(bytes) = self.max_message_bytes {
            set("max.message.bytes", bytes.to_string());
        }
        set("min.insync.replicas", min_insync_replicas.to_string());
        settings
    }
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../../topics/", $name, ".toml")))),*]
    };
}

/// Compiled in, so that the program needs no checkout. A test holds the list to the folder.
const FILES: &[(&str, &str)] = files![
    "answer-state",
    "answer-tokens",
    "answer.again",
    "answers",
    "asks",
    "chunk.again",
    "chunks",
    "dlq.answer",
    "dlq.chunk",
    "dlq.embed",
    "dlq.eval",
    "dlq.extract",
    "dlq.index",
    "dlq.retry.1s",
    "dlq.retry.2s",
    "dlq.retry.4s",
    "dlq.retry.8s",
    "dlq.route-documents",
    "dlq.route-questions",
    "document-requests",
    "document-status",
    "documents",
    "embed.again",
    "embeddings",
    "eval.again",
    "evaluations",
    "extract-state",
    "extract.again",
    "index.again",
    "jobs",
    "lanes",
    "questions",
    "request-outcomes",
    "requests",
    "retry.1s",
    "retry.2s",
    "retry.4s",
    "retry.8s",
    "route-documents.again",
    "route-questions.again",
    "tenants",
    "usage",
];

/// Weir's own topics.
///
/// # Errors
/// When a declaration is not valid; a defect of the program.
pub fn declared() -> Result<Vec<TopicSpec>, TopicError> {
    FILES.iter().map(|(name, text)| parse(&format!("{name}.toml"), name, text)).collect()
}

/// The topics that the `*.toml` files of a folder declare, in the order of their names.
///
/// # Errors
/// When the folder can't be read or a declaration is not valid.
pub fn read_folder(folder: &Path) -> Result<Vec<TopicSpec>, TopicError> {
    let io = |source| TopicError::Io { path: folder.to_path_buf(), source };
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(io)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(io)?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).map_err(|source| TopicError::Io { path: path.clone(), source })?;
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            parse(&path.display().to_string(), &stem, &text)
        })
        .collect()
}

fn parse(file: &str, stem: &str, text: &str) -> Result<TopicSpec, TopicError> {
    let invalid = |reason: String| TopicError::Invalid { file: file.to_owned(), reason };
    let spec: TopicSpec = toml::from_str(text).map_err(|error| invalid(error.to_string()))?;
    if spec.name != stem {
        return Err(invalid(format!("declares topic {}: the file must be called {}.toml", spec.name, spec.name)));
    }
    if !spec.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-') {
        return Err(invalid(format!("topic {}: letters, digits, dots and hyphens only", spec.name)));
    }
    if spec.cleanup == Cleanup::Compact && spec.retention_days.is_some() {
        return Err(invalid("a compacted topic keeps the last record of each key: it has no retention_days".into()));
    }
    if spec.cleanup == Cleanup::Delete && spec.max_compaction_lag_days.is_some() {
        return Err(invalid("a topic that is not compacted has no max_compaction_lag_days".into()));
    }
    Ok(spec)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_program_knows_every_file_of_the_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../topics");
        assert_eq!(read_folder(&folder).unwrap(), declared().unwrap());
    }

    #[test]
    fn every_schema_that_is_named_exists() {
        let known: Vec<_> = weir_contracts::schemas().iter().map(|schema| schema.name()).collect();
        for spec in declared().unwrap() {
            assert!(spec.schema.iter().all(|schema| known.contains(&schema.as_str())), "{}", spec.name);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let text = "name = \"a\"\npartitions = \"one\"\ncleanup = \"compact\"\n";
        assert!(parse("a.toml", "a", text).is_ok());
        assert!(parse("b.toml", "b", text).unwrap_err().to_string().contains("a.toml"));
        let lag = parse("a.toml", "a", &format!("{text}max_compaction_lag_days = 7\n")).unwrap();
        assert_eq!(lag.settings(1)["max.compaction.lag.ms"], "604800000");
        let error = parse("a.toml", "a", &format!("{text}retention = 1\n")).unwrap_err().to_string();
        assert!(error.contains("retention"), "{error}");
    }
}
