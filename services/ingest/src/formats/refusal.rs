//! Why a document is not taken.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a document is not taken, in words for the person who sent it. Never quotes the document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// There is no text in it.
    #[error("the document contains no text: {why}")]
    Empty {
        /// What was found instead, and what to do.
        why: String,
    },
    /// It can't be opened without a password.
    #[error("the {what} is protected by a password: remove the protection and send it again")]
    Encrypted {
        /// What it is.
        what: String,
    },
    /// It is not text at all.
    #[error("the content is {what}, not a text document; text, Markdown, HTML, PDF, DOCX, CSV and JSON can be read")]
    Binary {
        /// What it is, as far as that is known.
        what: String,
    },
    /// It is a document, but of a kind that can't be read.
    #[error("the content is {what}, which can't be read: {cure}")]
    Unsupported {
        /// What it is.
        what: String,
        /// What to do.
        cure: String,
    },
    /// It is damaged.
    #[error("the {what} is damaged: {why}")]
    Broken {
        /// What it is.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// It has too many bytes.
    #[error("{what} has {}, more than the {} allowed", Bytes(*bytes), Bytes(*limit))]
    TooLarge {
        /// What is too large.
        what: String,
        /// How large it is, or how much of it was seen.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A small file that unfolds to a large one.
    #[error("the {what} unfolds to more than {}, as files made to do harm do", Bytes(*limit))]
    Expands {
        /// What it is.
        what: String,
        /// Where it was stopped.
        limit: usize,
    },
    /// Elements inside elements without end.
    #[error("elements of the {what} lie inside one another more than {limit} deep")]
    TooDeep {
        /// What it is.
        what: String,
        /// The limit.
        limit: usize,
    },
    /// It has too many pages.
    #[error("the document has {pages} pages, more than the {limit} allowed: send it in parts")]
    TooManyPages {
        /// How many there are.
        pages: usize,
        /// The limit.
        limit: usize,
    },
    /// Reading it takes too long.
    #[error("reading the document took more than {seconds} seconds of processor time")]
    Timeout {
        /// The limit.
        seconds: u64,
    },
    /// Reading it ended the process that read it.
    #[error("reading the document ended the parser ({how}): it is damaged or made to do harm, or needs more than {}", Bytes(*memory))]
    Crashed {
        /// How it ended.
        how: String,
        /// Memory the parser may use.
        memory: usize,
    },
}

impl Refusal {
    /// The class of the failure, for dead letters and metrics.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::Empty { .. } => "empty",
            Self::Encrypted { .. } => "encrypted",
            Self::Binary { .. } => "binary",
            Self::Unsupported { .. } => "unsupported-format",
            Self::Broken { .. } => "broken",
            Self::TooLarge { .. } => weir_stage::failure_class::TOO_LARGE,
            Self::Expands { .. } => "expands-too-much",
            Self::TooDeep { .. } => "nested-too-deep",
            Self::TooManyPages { .. } => "too-many-pages",
            Self::Timeout { .. } => "timeout",
            Self::Crashed { .. } => "parser-crash",
        }
    }

    /// Damage, in a few words of the library that met it.
    pub(crate) fn broken(what: &str, why: impl fmt::Display) -> Self {
        let mut why = why.to_string();
        if let Some((at, _)) = why.char_indices().nth(200) {
            why.truncate(at);
        }
        Self::Broken { what: what.to_owned(), why: why.replace('\n', " ") }
    }
}

/// A number of bytes as a person would say it.
struct Bytes(usize);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = u64::try_from(self.0).unwrap_or(u64::MAX);
        let tenths = |unit: u64| (bytes / unit, bytes % unit * 10 / unit);
        match bytes {
            0..1024 => write!(f, "{bytes} bytes"),
            1024..1_048_576 => write!(f, "{}.{} KiB", tenths(1024).0, tenths(1024).1),
            _ => write!(f, "{}.{} MiB", tenths(1 << 20).0, tenths(1 << 20).1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_a_person_says_them() {
        let refusal = Refusal::TooLarge { what: "the document".into(), bytes: 3 << 19, limit: 1 << 20 };
        assert_eq!(refusal.to_string(), "the document has 1.5 MiB, more than the 1.0 MiB allowed");
    }
}
