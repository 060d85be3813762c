//! What the provider can be told to do.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the provider does with a request. As JSON, `kind` is the variant's name in kebab case and `with` its content:
/// `{"kind": "answer", "with": "yes"}`, `{"kind": "drip", "with": {"text": "yes", "pause_ms": 50}}`, `{"kind": "hang"}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "with", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Behaviour {
    /// Answers this, word by word when asked to stream.
    Answer(String),
    /// Answers with the first sentence of the first passage of the prompt, cited.
    Quote,
    /// Answers this with a pause before every word.
    Drip {
        /// The answer.
        text: String,
        /// The pause.
        #[serde(rename = "pause_ms", with = "milliseconds")]
        pause: Duration,
    },
    /// Lets some time pass, then does something else.
    Late {
        /// The time.
        #[serde(rename = "latency_ms", with = "milliseconds")]
        latency: Duration,
        /// What it does then.
        then: Box<Behaviour>,
    },
    /// Answers with so many words, whatever limit of tokens it was given.
    Long {
        /// How many.
        words: usize,
    },
    /// Answers this, but reports no usage.
    WithoutUsage(String),
    /// Answers this, and reports so many times the tokens it took.
    WrongUsage {
        /// The answer.
        text: String,
        /// How many times.
        times: u64,
    },
    /// Answers this, and reports that so many of the tokens it was sent were in its cache.
    Cached {
        /// The answer.
        text: String,
        /// Tokens in its cache.
        tokens: u64,
    },
    /// Answers this and stops at its limit of tokens.
    Truncated(String),
    /// Resets the connection before the first byte of a response.
    Reset,
    /// Resets the connection after so many words.
    Cut {
        /// The answer.
        text: String,
        /// Words before the cut.
        words: usize,
    },
    /// Ends the stream in good order after so many words, but without a finish reason.
    EndEarly {
        /// The answer.
        text: String,
        /// Words before the end.
        words: usize,
    },
    /// Falls silent after so many words and keeps the connection open.
    Stall {
        /// The answer.
        text: String,
        /// Words before the silence.
        words: usize,
    },
    /// Never answers.
    Hang,
    /// Answers with this status.
    Status {
        /// HTTP status.
        status: u16,
        /// Header `Retry-After`.
        #[serde(default)]
        retry_after: Option<String>,
        /// `error.code` of the body.
        #[serde(default)]
        code: String,
    },
    /// Answers 200 with something that is no completion.
    Malformed,
    /// Refuses the content.
    Refuse,
}

impl Behaviour {
    /// A status without further words.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::Status { status, retry_after: None, code: String::new() }
    }

    /// A rate limit that lasts so many seconds.
    #[must_use]
    pub fn limited(seconds: u64) -> Self {
        Self::Status { status: 429, retry_after: Some(seconds.to_string()), code: "rate_limit_exceeded".into() }
    }

    /// The same after some time.
    #[must_use]
    pub fn after(self, latency: Duration) -> Self {
        Self::Late { latency, then: Box::new(self) }
    }
}

/// Durations as whole milliseconds.
mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_behaviour_can_be_written_as_json() {
        let text = || "yes".to_owned();
        for (json, behaviour) in [
            (r#"{"kind":"answer","with":"yes"}"#, Behaviour::Answer(text())),
            (r#"{"kind":"quote"}"#, Behaviour::Quote),
            (
                r#"{"kind":"drip","with":{"text":"yes","pause_ms":50}}"#,
                Behaviour::Drip { text: text(), pause: Duration::from_millis(50) },
            ),
            (
                r#"{"kind":"late","with":{"latency_ms":200,"then":{"kind":"refuse"}}}"#,
                Behaviour::Refuse.after(Duration::from_millis(200)),
            ),
            (r#"{"kind":"long","with":{"words":9}}"#, Behaviour::Long { words: 9 }),
            (
                r#"{"kind":"wrong-usage","with":{"text":"yes","times":3}}"#,
                Behaviour::WrongUsage { text: text(), times: 3 },
            ),
            (r#"{"kind":"reset"}"#, Behaviour::Reset),
            (r#"{"kind":"cut","with":{"text":"yes","words":1}}"#, Behaviour::Cut { text: text(), words: 1 }),
            (r#"{"kind":"hang"}"#, Behaviour::Hang),
            (r#"{"kind":"malformed"}"#, Behaviour::Malformed),
        ] {
            assert_eq!(serde_json::from_str::<Behaviour>(json).unwrap(), behaviour);
            assert_eq!(serde_json::to_string(&behaviour).unwrap(), json);
        }
        let status = r#"{"kind":"status","with":{"status":503}}"#;
        assert_eq!(serde_json::from_str::<Behaviour>(status).unwrap(), Behaviour::status(503));
        assert!(serde_json::from_str::<Behaviour>(r#"{"kind":"drop"}"#).is_err());
    }
}
