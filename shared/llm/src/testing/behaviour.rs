//! What the provider can be told to do.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// What the provider does with a request. As JSON, `kind` is the variant's name in kebab case and `with` its content:
/// `{"kind": "answer", "with": "yes"}`, `{"kind": "drip", "with": {"text": "yes", "pause_ms": 50}}`, `{"kind": "hang"}`.
///
/// No answer keeps to the request's limit of tokens; [`Behaviour::Truncated`] looks as if it did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "with", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Behaviour {
    /// Answers this, word by word when asked to stream.
    Answer(String),
    /// Answers with the first sentence of the first passage of the prompt, cited.
    Quote,
    /// Answers this with a pause before every word; when not asked to stream, after all pauses.
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
    /// Lets a time from a range pass, each as likely as the other, then does something else. The seed and the number of
    /// the request decide which.
    Slow {
        /// The shortest time.
        #[serde(rename = "from_ms", with = "milliseconds")]
        from: Duration,
        /// The longest.
        #[serde(rename = "to_ms", with = "milliseconds")]
        to: Duration,
        /// What it does then.
        then: Box<Behaviour>,
        /// Another seed, other times.
        #[serde(default)]
        seed: u64,
    },
    /// Does one of these, each as often as its weight says. The seed and the number of the request decide which.
    Mix {
        /// Another seed, another order.
        #[serde(default)]
        seed: u64,
        /// Weights, not all of them 0, and what has them.
        #[serde(deserialize_with = "weighted")]
        of: Vec<(u32, Behaviour)>,
    },
    /// Counts the input with a tokenizer of its own: so many percent of the tokens, in what it reports and in what it
    /// charges; 120 are a fifth more. Does something else with them.
    WrongInputUsage {
        /// Percent.
        percent: u64,
        /// What it does then.
        then: Box<Behaviour>,
    },
    /// Answers with so many words, whatever limit of tokens it was given.
    Long {
        /// How many.
        words: usize,
        /// The pause before every word.
        #[serde(rename = "pause_ms", with = "milliseconds", default, skip_serializing_if = "Duration::is_zero")]
        pause: Duration,
    },
    /// Answers this, but reports no usage.
    WithoutUsage(String),
    /// Answers this, and reports and charges so many times the tokens it took.
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
    /// Calls tools instead of answering.
    CallTools {
        /// The calls.
        calls: Vec<ToolCall>,
    },
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
    /// Its filter refuses the content: finish reason `content_filter`, no text.
    Refuse,
    /// Its model declines with these words, in the field `refusal`.
    Decline(String),
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// What the result is to refer to.
    pub id: String,
    /// Name of the function.
    pub name: String,
    /// Its arguments. They travel as text: a string goes as it is, JSON or not, everything else as its JSON.
    pub arguments: Value,
}

/// JSON that is no behaviour.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct InvalidBehaviour {
    /// With the behaviours there are.
    problem: String,
}

impl From<serde_json::Error> for InvalidBehaviour {
    fn from(error: serde_json::Error) -> Self {
        let problem = error.to_string();
        // Who names an unknown one is told the others already.
        let known = if problem.contains("unknown variant") { String::new() } else { known() };
        Self { problem: problem + &known }
    }
}

fn known() -> String {
    format!("; behaviours are {}", Behaviour::KINDS.join(", "))
}

impl FromStr for Behaviour {
    type Err = InvalidBehaviour;

    fn from_str(json: &str) -> Result<Self, InvalidBehaviour> {
        Ok(serde_json::from_str(json)?)
    }
}

impl Behaviour {
    /// Every `kind` there is, in the order of the variants.
    pub const KINDS: &[&str] = &[
        "answer",
        "quote",
        "drip",
        "late",
        "slow",
        "mix",
        "wrong-input-usage",
        "long",
        "without-usage",
        "wrong-usage",
        "cached",
        "truncated",
        "call-tools",
        "reset",
        "cut",
        "end-early",
        "stall",
        "hang",
        "status",
        "malformed",
        "refuse",
        "decline",
    ];

    /// Reads a JSON list of behaviours.
    ///
    /// # Errors
    /// When it is none; the message says where and why, and which behaviours there are.
    pub fn list(json: &[u8]) -> Result<Vec<Self>, InvalidBehaviour> {
        Ok(serde_json::from_slice(json)?)
    }

    /// Its `kind`.
    #[must_use]
    pub fn kind(&self) -> String {
        let json = serde_json::to_value(self).unwrap_or_default();
        json.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned()
    }

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

/// Weights of which one at least is above 0: else there is nothing to choose.
fn weighted<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(u32, Behaviour)>, D::Error> {
    let of = Vec::<(u32, Behaviour)>::deserialize(deserializer)?;
    if of.iter().all(|(weight, _)| *weight == 0) {
        return Err(serde::de::Error::custom("a mix needs a behaviour with a weight above 0"));
    }
    Ok(of)
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
        let mut untried = Behaviour::KINDS.to_vec();
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
            (r#"{"kind":"long","with":{"words":9}}"#, Behaviour::Long { words: 9, pause: Duration::ZERO }),
            (
                r#"{"kind":"long","with":{"words":9,"pause_ms":5}}"#,
                Behaviour::Long { words: 9, pause: Duration::from_millis(5) },
            ),
            (
                r#"{"kind":"slow","with":{"from_ms":1,"to_ms":9,"then":{"kind":"quote"},"seed":7}}"#,
                Behaviour::Slow {
                    from: Duration::from_millis(1),
                    to: Duration::from_millis(9),
                    then: Box::new(Behaviour::Quote),
                    seed: 7,
                },
            ),
            (
                r#"{"kind":"mix","with":{"seed":7,"of":[[9,{"kind":"quote"}],[1,{"kind":"hang"}]]}}"#,
                Behaviour::Mix { seed: 7, of: vec![(9, Behaviour::Quote), (1, Behaviour::Hang)] },
            ),
            (
                r#"{"kind":"wrong-input-usage","with":{"percent":120,"then":{"kind":"quote"}}}"#,
                Behaviour::WrongInputUsage { percent: 120, then: Box::new(Behaviour::Quote) },
            ),
            (r#"{"kind":"without-usage","with":"yes"}"#, Behaviour::WithoutUsage(text())),
            (r#"{"kind":"cached","with":{"text":"yes","tokens":3}}"#, Behaviour::Cached { text: text(), tokens: 3 }),
            (r#"{"kind":"truncated","with":"yes"}"#, Behaviour::Truncated(text())),
            (
                r#"{"kind":"call-tools","with":{"calls":[{"id":"c1","name":"search","arguments":{"q":"mill"}}]}}"#,
                Behaviour::CallTools {
                    calls: vec![ToolCall {
                        id: "c1".into(),
                        name: "search".into(),
                        arguments: serde_json::json!({ "q": "mill" }),
                    }],
                },
            ),
            (
                r#"{"kind":"wrong-usage","with":{"text":"yes","times":3}}"#,
                Behaviour::WrongUsage { text: text(), times: 3 },
            ),
            (r#"{"kind":"reset"}"#, Behaviour::Reset),
            (r#"{"kind":"cut","with":{"text":"yes","words":1}}"#, Behaviour::Cut { text: text(), words: 1 }),
            (r#"{"kind":"end-early","with":{"text":"yes","words":1}}"#, Behaviour::EndEarly { text: text(), words: 1 }),
            (r#"{"kind":"stall","with":{"text":"yes","words":1}}"#, Behaviour::Stall { text: text(), words: 1 }),
            (r#"{"kind":"hang"}"#, Behaviour::Hang),
            (
                r#"{"kind":"status","with":{"status":429,"retry_after":"7","code":"rate_limit_exceeded"}}"#,
                Behaviour::limited(7),
            ),
            (r#"{"kind":"malformed"}"#, Behaviour::Malformed),
            (r#"{"kind":"refuse"}"#, Behaviour::Refuse),
            (r#"{"kind":"decline","with":"no"}"#, Behaviour::Decline("no".into())),
        ] {
            assert_eq!(json.parse::<Behaviour>().unwrap(), behaviour);
            assert_eq!(serde_json::to_string(&behaviour).unwrap(), json);
            untried.retain(|kind| *kind != behaviour.kind());
        }
        assert!(untried.is_empty(), "{untried:?}");
        let status = r#"{"kind":"status","with":{"status":503}}"#;
        assert_eq!(serde_json::from_str::<Behaviour>(status).unwrap(), Behaviour::status(503));
    }

    #[test]
    fn what_is_no_behaviour_is_told_what_is_wrong_and_which_there_are() {
        let told = |json: &str| json.parse::<Behaviour>().unwrap_err().to_string();
        let kinds: Vec<_> = Behaviour::KINDS.iter().map(|kind| format!("`{kind}`")).collect();
        assert!(told(r#"{"kind":"drop"}"#).contains(&format!("`drop`, expected one of {}", kinds.join(", "))));
        for (json, problem) in [
            (r#"{"kind":"drip","with":{"text":"yes"}}"#, "missing field `pause_ms`"),
            (r#"{"kind":"long","with":{"words":9,"pace":1}}"#, "unknown field `pace`"),
            (r#"{"kind":"mix","with":{"of":[[0,{"kind":"hang"}]]}}"#, "a weight above 0"),
            (r#"{"kind":"answer""#, "EOF"),
        ] {
            let told = told(json);
            assert!(told.contains(problem) && told.contains("behaviours are answer, quote, "), "{told}");
        }
        let told = Behaviour::list(br#"[{"kind":"quote"}, {"kind":"drop"}]"#).unwrap_err().to_string();
        assert!(told.contains("`drop`") && told.contains("column"), "{told}");
    }
}
