//! What is logged of calls. Alone in its process: whoever logs first in one without a listener silences that event for a
//! listener of another thread.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use weir_llm::testing::{Behaviour, FakeProvider};
use weir_llm::{Chain, ChatRequest, Discard, LlmConfig, Message, ProviderConfig, RetryConfig};

/// Log events, a line each: `LEVEL field=value ...`.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// The lines with this text.
    fn with(&self, text: &str) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|line| line.contains(text)).cloned().collect()
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn every_call_is_one_event_that_says_for_whom_how_long_and_how_big_but_never_what() {
    let log = Log::default();
    let _logging = tracing::subscriber::set_default(log.clone());
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let provider = FakeProvider::start(Behaviour::Stall { text: "Somewhere of brick".into(), words: 2 }).await.unwrap();
    provider.script([Behaviour::status(503), Behaviour::Answer("Of brick".into())]);
    let only = ProviderConfig { base_url: provider.base_url(), model: "m".into(), ..ProviderConfig::default() };
    let config = LlmConfig {
        providers: BTreeMap::from([("only".to_owned(), only)]),
        retries: RetryConfig { base_ms: 1, max_backoff_ms: 1, ..RetryConfig::default() },
        ..LlmConfig::default()
    };
    let chain = Chain::new(&config).unwrap().unwrap();
    let request = || ChatRequest {
        messages: vec![Message::user("when was the mill built")],
        max_tokens: 64,
        deadline: Some(Instant::now() + Duration::from_millis(500)),
        tenant: Some("acme".into()),
        prompt_template: Some("answer".into()),
        prompt_version: Some("v1".into()),
        ..ChatRequest::default()
    };
    for _ in 0..2 {
        chain.ask(&request(), 1, &mut Discard).await;
    }
    let calls = log.with("model call");
    assert_eq!(calls.len(), 3, "{calls:?}");
    for (call, words) in calls.iter().zip([
        ["WARN", "status=\"server\"", "attempt=1 ", "heard_bytes=0"],
        ["INFO", "status=\"ok\"", "attempt=2 ", "heard_bytes=8"],
        ["WARN", "step=\"deadline\"", "remaining_ms=0 ", "heard_bytes=13"],
    ]) {
        for word in words.iter().chain(&[
            "tenant=\"acme\"",
            "prompt_template=\"answer\"",
            "prompt_version=\"v1\"",
            "elapsed_ms=",
            "request_bytes=23",
        ]) {
            assert!(call.contains(word), "{word} is not in {call}");
        }
    }
    assert_eq!(log.with("question not answered").len(), 1);

    provider.set_down(true);
    for _ in 0..10 {
        chain.ask(&request(), 1, &mut Discard).await;
    }
    let changes = log.with("breaker changed");
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert!(changes[0].starts_with("WARN") && changes[0].contains("to=\"open\""), "{changes:?}");
    for content in ["mill", "brick", "Somewhere"] {
        assert!(log.with(content).is_empty(), "{:?}", log.with(content));
    }
}
