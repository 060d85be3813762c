//! Hedging over HTTP: who is overtaken is hung up on.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::time::Duration;

use weir_llm::testing::{Behaviour, FakeProvider, Fate};
use weir_llm::{Chain, ChatRequest, Discard, HedgingConfig, LlmConfig, Message, ProviderConfig};

/// Once the provider's last call has this fate.
async fn last_fate(provider: &FakeProvider, fate: Fate) {
    let waited = async {
        while provider.books().calls.last().map(|entry| entry.fate) != Some(fate) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(10), waited).await;
    found.unwrap_or_else(|_| panic!("{:#?}", provider.books().calls.last()));
}

#[tokio::test]
async fn a_provider_that_falls_silent_is_overtaken_and_hung_up_on() {
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let answer = || Behaviour::Answer("In 1912.".into());
    let (a, b) = (FakeProvider::start(answer()).await.unwrap(), FakeProvider::start(answer()).await.unwrap());
    let provider = |fake: &FakeProvider| ProviderConfig {
        base_url: fake.base_url(),
        model: "m".into(),
        ..ProviderConfig::default()
    };
    let config = LlmConfig {
        providers: BTreeMap::from([("a".to_owned(), provider(&a)), ("b".to_owned(), provider(&b))]),
        hedging: HedgingConfig { enabled: true, ..HedgingConfig::default() },
        ..LlmConfig::default()
    };
    let chain = Chain::new(&config).unwrap().unwrap();
    let request = ChatRequest { messages: vec![Message::user("when")], max_tokens: 64, ..ChatRequest::default() };
    for _ in 0..50 {
        assert_eq!(chain.ask(&request, 1, &mut Discard).await.calls.len(), 1);
    }
    a.set(Behaviour::Hang);
    let run = chain.ask(&request, 1, &mut Discard).await;
    let calls: Vec<_> = run.calls.iter().map(|call| (call.provider.as_str(), call.attempt, call.status)).collect();
    assert_eq!(calls, [("a", 1, "cancelled"), ("b", 2, "ok")]);
    assert_eq!(run.reply.unwrap().text, "In 1912.");
    last_fate(&a, Fate::HungUp).await;
    last_fate(&b, Fate::Finished).await;
}
