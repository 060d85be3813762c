//! What can go wrong with a call, classified here and nowhere else.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;

/// The part of a call that took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Connecting.
    Connect,
    /// Waiting for the first piece of text.
    FirstToken,
    /// Waiting for the next piece of text.
    BetweenTokens,
    /// The whole call.
    Inference,
    /// All calls of the question together.
    Ask,
    /// The caller's own deadline.
    Deadline,
}

impl Step {
    /// Its name in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::FirstToken => "first_token",
            Self::BetweenTokens => "between_tokens",
            Self::Inference => "inference",
            Self::Ask => "step",
            Self::Deadline => "deadline",
        }
    }
}

/// What can be done about a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// The same provider may succeed with the same call later.
    Retry,
    /// The provider won't, but another one may.
    Failover,
    /// Nothing: no provider would answer this, or no time is left.
    Stop,
}

/// Why a call gave no complete answer, or was not made. Messages never carry what was asked or answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It took too long.
    #[error("timed out ({}) after {} ms", step.name(), elapsed.as_millis())]
    Timeout {
        /// Which part.
        step: Step,
        /// Since the call began.
        elapsed: Duration,
    },
    /// The provider could not be reached, or the connection failed before the first byte of the answer.
    #[error("network: {reason}")]
    Network {
        /// What the connection said.
        reason: String,
    },
    /// 429.
    #[error("rate limited{}", retry_after.map_or_else(String::new, |d| format!(", to be tried again in {} s", d.as_secs())))]
    RateLimited {
        /// The provider's own wish.
        retry_after: Option<Duration>,
    },
    /// 408, 425 or 5xx: the provider's fault.
    #[error("the provider answered {status}")]
    Server {
        /// HTTP status.
        status: u16,
    },
    /// Any other status that is not a success: the caller's fault, the same again would fail again.
    #[error("the provider refused the request with {status}{}", code.as_ref().map_or_else(String::new, |c| format!(" ({c})")))]
    Client {
        /// HTTP status.
        status: u16,
        /// The provider's error code, if it gave one.
        code: Option<String>,
    },
    /// The model or its filter refused the content.
    #[error("the model refused to answer")]
    Refused,
    /// The answer ended without a finish reason: the connection broke, or the provider just stopped.
    #[error("the stream broke off after {bytes} bytes")]
    Broken {
        /// Length of what had arrived.
        bytes: usize,
    },
    /// A success that is not an answer.
    #[error("the provider's answer can't be understood: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The call was not made: the provider's breaker is open, or half-open with all its probes under way.
    #[error("not asked: it failed too often and is tried again in {} s at the earliest", retry_after.as_secs_f64().ceil())]
    BreakerOpen {
        /// Until the breaker lets a call through; zero while its probes are under way.
        retry_after: Duration,
    },
    /// The call was not made: whoever answers for it did not let it go.
    #[error("not asked: {reason}")]
    Withheld {
        /// Why.
        reason: String,
    },
    /// The call was not made: the provider asked for a pause that lasts beyond the time the question has.
    #[error("not asked: it wants no call for another {} s", retry_after.as_secs_f64().ceil())]
    Paused {
        /// What is left of the pause.
        retry_after: Duration,
    },
}

impl CallError {
    /// Its class; a label of metrics and the status of a usage record.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "timeout",
            Self::Network { .. } => "network",
            Self::RateLimited { .. } => "rate-limited",
            Self::Server { .. } => "server",
            Self::Client { .. } => "client",
            Self::Refused => "refused",
            Self::Broken { .. } => "broken-off",
            Self::Malformed { .. } => "malformed",
            Self::BreakerOpen { .. } => "breaker-open",
            Self::Paused { .. } => "paused",
            Self::Withheld { .. } => "withheld",
        }
    }

    /// What can be done about it.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::Timeout { step: Step::Ask | Step::Deadline, .. } | Self::Refused | Self::Withheld { .. } => {
                Recovery::Stop
            }
            Self::Timeout { .. }
            | Self::Network { .. }
            | Self::RateLimited { .. }
            | Self::Server { .. }
            | Self::Broken { .. }
            | Self::Malformed { .. } => Recovery::Retry,
            // The request itself is at fault, and would be with every provider.
            Self::Client { status: 400 | 413 | 422, .. } => Recovery::Stop,
            // The key, the address or the model of this provider.
            Self::Client { .. } | Self::BreakerOpen { .. } | Self::Paused { .. } => Recovery::Failover,
        }
    }

    /// Whether the same provider may succeed with the same call later.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        self.recovery() == Recovery::Retry
    }

    /// Whether it speaks against the provider's health. Neither what the caller did wrong, nor a limit the provider
    /// keeps on purpose, nor the caller's own want of time does.
    pub(crate) fn blames_provider(&self) -> bool {
        match self {
            Self::Timeout { step, .. } => !matches!(step, Step::Ask | Step::Deadline),
            Self::Network { .. } | Self::Server { .. } | Self::Broken { .. } | Self::Malformed { .. } => true,
            Self::RateLimited { .. }
            | Self::Client { .. }
            | Self::Refused
            | Self::BreakerOpen { .. }
            | Self::Paused { .. }
            | Self::Withheld { .. } => false,
        }
    }

    /// Whether a model may have worked on the call: it was turned away neither by the network nor by a status.
    pub(crate) fn may_have_cost(&self) -> bool {
        match self {
            Self::Timeout { step, .. } => *step != Step::Connect,
            Self::Refused | Self::Broken { .. } | Self::Malformed { .. } => true,
            Self::Network { .. }
            | Self::RateLimited { .. }
            | Self::Server { .. }
            | Self::Client { .. }
            | Self::BreakerOpen { .. }
            | Self::Paused { .. }
            | Self::Withheld { .. } => false,
        }
    }

    /// A status that is not a success.
    pub(crate) fn from_status(status: StatusCode, headers: &HeaderMap, body: &[u8], now: SystemTime) -> Self {
        let code = error_code(body);
        match status.as_u16() {
            429 => Self::RateLimited { retry_after: retry_after(headers, now) },
            status @ (408 | 425 | 500..) => Self::Server { status },
            _ if code.as_deref().is_some_and(is_refusal) => Self::Refused,
            status => Self::Client { status, code },
        }
    }

    /// A request that got no response.
    pub(crate) fn from_send(error: reqwest::Error, elapsed: Duration) -> Self {
        if error.is_timeout() {
            return Self::Timeout { step: Step::Connect, elapsed };
        }
        Self::Network { reason: causes(error) }
    }
}

/// Codes of OpenAI and Azure for content their filters refuse.
fn is_refusal(code: &str) -> bool {
    matches!(code, "content_filter" | "content_policy_violation" | "ResponsibleAIPolicyViolation")
}

/// The innermost causes say what happened ("connection refused"); the URL is left out, it may carry a key.
fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text.chars().take(300).collect()
}

/// `{"error": {"code" | "type": "..."}}`, when it looks like a code and not like prose, which may quote the question.
fn error_code(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let error = body.get("error")?;
    let code = error.get("code").and_then(Value::as_str).or_else(|| error.get("type").and_then(Value::as_str))?;
    let plain = code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    plain.then(|| code.to_owned())
}

/// `Retry-After` in seconds or as a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn classified(status: u16, body: &str) -> CallError {
        let status = StatusCode::from_u16(status).unwrap();
        CallError::from_status(status, &HeaderMap::new(), body.as_bytes(), SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn statuses_fall_into_the_class_of_whose_fault_they_are() {
        for (status, class, recovery, blames) in [
            (400, "client", Recovery::Stop, false),
            (401, "client", Recovery::Failover, false),
            (403, "client", Recovery::Failover, false),
            (404, "client", Recovery::Failover, false),
            (413, "client", Recovery::Stop, false),
            (422, "client", Recovery::Stop, false),
            (302, "client", Recovery::Failover, false),
            (408, "server", Recovery::Retry, true),
            (429, "rate-limited", Recovery::Retry, false),
            (500, "server", Recovery::Retry, true),
            (503, "server", Recovery::Retry, true),
            (529, "server", Recovery::Retry, true),
        ] {
            let error = classified(status, "");
            let found = (error.class(), error.recovery(), error.blames_provider());
            assert_eq!(found, (class, recovery, blames), "{status}");
        }
    }

    #[test]
    fn only_the_providers_own_slowness_is_its_fault_and_worth_a_retry() {
        for step in [Step::Connect, Step::FirstToken, Step::BetweenTokens, Step::Inference, Step::Ask, Step::Deadline] {
            let error = CallError::Timeout { step, elapsed: Duration::ZERO };
            let own = !matches!(step, Step::Ask | Step::Deadline);
            assert_eq!((error.is_retriable(), error.blames_provider()), (own, own), "{step:?}");
        }
    }

    #[test]
    fn a_filtered_question_is_a_refusal_whatever_the_status() {
        assert_eq!(classified(400, r#"{"error":{"code":"content_filter"}}"#), CallError::Refused);
    }

    #[test]
    fn prose_in_an_error_never_reaches_a_message() {
        let error = classified(400, r#"{"error":{"code":"you asked: who is Ann?"}}"#);
        assert_eq!(error, CallError::Client { status: 400, code: None });
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:28:00 GMT").unwrap();
        for (value, expected) in [
            ("7", Some(Duration::from_secs(7))),
            ("Wed, 21 Oct 2015 07:28:30 GMT", Some(Duration::from_secs(30))),
            ("Wed, 21 Oct 2015 07:27:30 GMT", Some(Duration::ZERO)),
            ("soon", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            let error = CallError::from_status(StatusCode::TOO_MANY_REQUESTS, &headers, b"", now);
            assert_eq!(error, CallError::RateLimited { retry_after: expected }, "{value}");
        }
    }
}
