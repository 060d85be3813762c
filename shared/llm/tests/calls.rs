//! Calls against a provider that fails in every way it can.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use weir_llm::testing::{Behaviour, FakeProvider};
use weir_llm::{
    CallError, Chain, ChatRequest, Deltas, Discard, Exhausted, Finish, LlmConfig, Message, PriceConfig, ProviderConfig,
    RetryConfig, Run, Step, TimeoutConfig, TokenUsage, Usd,
};

const ANSWER: &str = "The mill was built in 1912 [1], of brick. ";

#[derive(Default)]
struct Heard(BTreeMap<i32, String>);

impl Deltas for Heard {
    fn delta(&mut self, attempt: i32, text: &str) {
        self.0.entry(attempt).or_default().push_str(text);
    }
}

fn quick() -> TimeoutConfig {
    TimeoutConfig {
        connect_ms: 100,
        first_token_ms: 300,
        between_tokens_ms: 200,
        inference_ms: 1_000,
        ..TimeoutConfig::default()
    }
}

/// As many retries as are asked for, at once.
fn retries(max: u32) -> RetryConfig {
    RetryConfig { max, base_ms: 1, max_backoff_ms: 1, ..RetryConfig::default() }
}

fn install_tls() {
    // Another test of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Without retries.
fn chain(providers: &[(&str, String, bool)]) -> Chain {
    chain_with(retries(0), providers)
}

fn chain_with(retries: RetryConfig, providers: &[(&str, String, bool)]) -> Chain {
    install_tls();
    let providers: BTreeMap<String, ProviderConfig> = providers
        .iter()
        .map(|(name, base_url, stream)| {
            let provider = ProviderConfig {
                base_url: base_url.clone(),
                model: format!("{name}-model"),
                api_key: Some("sk-test".to_owned().into()),
                stream: *stream,
                price: PriceConfig {
                    input_per_million: 1_000_000.0,
                    cached_input_per_million: Some(500_000.0),
                    output_per_million: 2_000_000.0,
                },
                ..ProviderConfig::default()
            };
            ((*name).to_owned(), provider)
        })
        .collect();
    let config = LlmConfig { providers, timeouts: quick(), retries, ..LlmConfig::default() };
    Chain::new(&config).unwrap().unwrap()
}

fn request() -> ChatRequest {
    ChatRequest {
        messages: vec![Message::system("be brief"), Message::user("when was the mill built")],
        max_tokens: 64,
        idempotency_key: Some("q-1".into()),
        tenant: Some("acme".into()),
        prompt_template: Some("answer".into()),
        prompt_version: Some("v1".into()),
        ..ChatRequest::default()
    }
}

async fn one(behaviour: Behaviour, stream: bool) -> (Run, Heard, FakeProvider) {
    let provider = FakeProvider::start(behaviour).await.unwrap();
    let mut heard = Heard::default();
    let run = chain(&[("only", provider.base_url(), stream)]).ask(&request(), 1, &mut heard).await;
    (run, heard, provider)
}

fn error(run: Run) -> CallError {
    run.reply.unwrap_err().error
}

#[tokio::test]
async fn the_pieces_concatenate_to_the_answer() {
    for stream in [true, false] {
        let (run, heard, provider) = one(Behaviour::Answer(ANSWER.into()), stream).await;
        let reply = run.reply.unwrap();
        assert_eq!(reply.text, ANSWER);
        assert_eq!(reply.finish, Finish::Stop);
        assert_eq!(heard.0[&1], ANSWER);
        assert_eq!((reply.call.usage.input, reply.call.usage.output), (7, 9));
        assert!(!reply.call.usage.estimated);
        assert_eq!(reply.call.cost, Usd(7.0 + 18.0));
        assert_eq!(run.calls, [reply.call]);
        let received = provider.received();
        assert_eq!(received[0].authorization.as_deref(), Some("Bearer sk-test"));
        assert_eq!(received[0].idempotency_key.as_deref(), Some("q-1"));
        assert_eq!(received[0].body["model"], "only-model");
        assert_eq!(received[0].body["max_tokens"], 64);
    }
}

#[tokio::test]
async fn usage_that_is_not_reported_is_estimated_and_says_so() {
    let (run, ..) = one(Behaviour::WithoutUsage(ANSWER.into()), true).await;
    let usage = run.reply.unwrap().call.usage;
    assert!(usage.estimated);
    assert!(usage.input > 0 && usage.output > 0);
}

#[tokio::test]
async fn a_stream_without_finish_reason_is_never_complete() {
    for behaviour in
        [Behaviour::Cut { text: ANSWER.into(), words: 3 }, Behaviour::EndEarly { text: ANSWER.into(), words: 3 }]
    {
        let (run, ..) = one(behaviour, true).await;
        let Exhausted { error, partial, .. } = run.reply.unwrap_err();
        assert_eq!(error, CallError::Broken { bytes: 13 });
        assert_eq!(partial.unwrap().text, "The mill was ");
        assert!(run.calls[0].usage.estimated && run.calls[0].usage.output > 0, "what was said may have cost");
    }
}

#[tokio::test]
async fn a_limit_of_tokens_is_told_apart_from_an_end() {
    let (run, ..) = one(Behaviour::Truncated(ANSWER.into()), true).await;
    assert_eq!(run.reply.unwrap().finish, Finish::Length);
}

#[tokio::test]
async fn an_answer_without_end_is_cut_where_a_record_holds_it() {
    // Odd lengths, so that the limit lies within a letter.
    let endless = format!("a{}", "é".repeat(200_000));
    let request = ChatRequest { max_tokens: u32::MAX, ..request() };
    for stream in [true, false] {
        let provider = FakeProvider::start(Behaviour::Answer(endless.clone())).await.unwrap();
        let mut heard = Heard::default();
        let run = chain(&[("only", provider.base_url(), stream)]).ask(&request, 1, &mut heard).await;
        let reply = run.reply.unwrap();
        assert_eq!((reply.finish, reply.text.len()), (Finish::Length, (256 << 10) - 1));
        assert_eq!(heard.0[&1], reply.text);
    }
}

async fn no_connection(provider: &FakeProvider) {
    let closed = async {
        while provider.connections() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), closed).await.expect("the connection is dropped");
}

#[tokio::test]
async fn an_answer_beyond_its_limit_of_tokens_is_cut_there_and_the_connection_dropped() {
    let drip = Behaviour::Drip { text: "word ".repeat(1_000), pause: Duration::from_millis(10) };
    for behaviour in [Behaviour::Long { words: 1_000, pause: Duration::ZERO }, drip] {
        let provider = FakeProvider::start(behaviour).await.unwrap();
        let chain = chain(&[("only", provider.base_url(), true)]);
        let mut heard = Heard::default();
        let began = Instant::now();
        let reply = chain.ask(&request(), 1, &mut heard).await.reply.unwrap();
        assert_eq!((reply.finish, reply.text.as_str()), (Finish::Length, "word ".repeat(64).as_str()));
        assert_eq!(heard.0[&1], reply.text);
        assert!(reply.call.usage.estimated && reply.call.usage.output >= 64);
        no_connection(&provider).await;
        assert!(began.elapsed() < Duration::from_secs(8), "the rest, ten seconds of it, was waited for");
    }
    // Pieces of many tokens each.
    let (run, ..) = one(Behaviour::Answer("é".repeat(10_000)), true).await;
    let reply = run.reply.unwrap();
    assert_eq!((reply.finish, reply.text.len()), (Finish::Length, 64 * 32));
}

#[tokio::test]
async fn usage_is_taken_as_reported_and_cached_input_has_its_price() {
    let (run, ..) = one(Behaviour::Cached { text: ANSWER.into(), tokens: 4 }, true).await;
    let call = run.reply.unwrap().call;
    assert_eq!(call.usage, TokenUsage { input: 7, cached: 4, output: 9, estimated: false });
    assert_eq!(call.cost, Usd(3.0 + 2.0 + 18.0));
    let (run, ..) = one(Behaviour::WrongUsage { text: ANSWER.into(), times: 3 }, false).await;
    let usage = run.reply.unwrap().call.usage;
    assert_eq!((usage.input, usage.output), (21, 27));
}

#[tokio::test]
async fn each_silence_has_its_own_limit() {
    let (run, ..) = one(Behaviour::Hang, true).await;
    assert!(matches!(error(run), CallError::Timeout { step: Step::FirstToken, .. }));
    let (run, ..) = one(Behaviour::Hang, false).await;
    assert!(matches!(error(run), CallError::Timeout { step: Step::Inference, .. }));
    let (run, ..) = one(Behaviour::Stall { text: ANSWER.into(), words: 2 }, true).await;
    assert!(matches!(error(run), CallError::Timeout { step: Step::BetweenTokens, .. }));
    let drip = Behaviour::Drip { text: "word ".repeat(100), pause: Duration::from_millis(50) };
    let (run, ..) = one(drip, true).await;
    assert!(matches!(error(run), CallError::Timeout { step: Step::Inference, .. }));
}

#[tokio::test]
async fn the_callers_deadline_cuts_the_call_and_the_chain() {
    let slow = FakeProvider::start(Behaviour::Hang).await.unwrap();
    let next = FakeProvider::start(Behaviour::Answer(ANSWER.into())).await.unwrap();
    let mut request = request();
    request.deadline = Some(Instant::now() + Duration::from_millis(100));
    let chain = chain(&[("a", slow.base_url(), true), ("b", next.base_url(), true)]);
    let run = chain.ask(&request, 1, &mut Discard).await;
    assert!(run.reply.unwrap_err().is_deadline());
    assert_eq!(next.calls(), 0);
    no_connection(&slow).await;
}

#[tokio::test]
async fn refusals_and_nonsense_are_classified() {
    for (behaviour, class) in [
        (Behaviour::Refuse, "refused"),
        (Behaviour::Malformed, "malformed"),
        (Behaviour::status(503), "server"),
        (Behaviour::status(401), "client"),
        (Behaviour::Status { status: 400, retry_after: None, code: "content_filter".into() }, "refused"),
    ] {
        let (run, ..) = one(behaviour.clone(), true).await;
        assert_eq!(run.calls[0].status, class, "{behaviour:?}");
    }
    let limited = Behaviour::Status { status: 429, retry_after: Some("7".into()), code: "slow_down".into() };
    let (run, ..) = one(limited, true).await;
    assert_eq!(error(run), CallError::RateLimited { retry_after: Some(Duration::from_secs(7)) });
}

#[tokio::test]
async fn a_dead_port_is_a_network_error_without_cost() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let run = chain(&[("only", url, true)]).ask(&request(), 1, &mut Discard).await;
    assert_eq!(run.calls[0].status, "network");
    assert_eq!(run.calls[0].cost, Usd(0.0));
}

#[tokio::test]
async fn a_name_that_does_not_exist_and_a_port_without_tls_are_network_errors() {
    let plain = FakeProvider::start(Behaviour::Answer(ANSWER.into())).await.unwrap();
    install_tls();
    for url in ["http://provider.invalid/v1".to_owned(), plain.base_url().replace("http://", "https://")] {
        let provider = ProviderConfig { base_url: url.clone(), model: "m".into(), ..ProviderConfig::default() };
        // A resolver may take its time to find nothing.
        let config = LlmConfig {
            providers: BTreeMap::from([("only".to_owned(), provider)]),
            timeouts: TimeoutConfig { connect_ms: 19_000, ..TimeoutConfig::default() },
            retries: retries(0),
            ..LlmConfig::default()
        };
        let run = Chain::new(&config).unwrap().unwrap().ask(&request(), 1, &mut Discard).await;
        assert_eq!((run.calls[0].status, run.calls[0].cost), ("network", Usd(0.0)), "{url}");
    }
    assert_eq!(plain.calls(), 0);
}

#[tokio::test]
async fn a_reset_before_the_first_byte_is_a_network_error_and_passes() {
    for stream in [true, false] {
        let provider = FakeProvider::start(Behaviour::Answer(ANSWER.into())).await.unwrap();
        provider.script([Behaviour::Reset]);
        let chain = chain_with(retries(4), &[("only", provider.base_url(), stream)]);
        let run = chain.ask(&request(), 1, &mut Discard).await;
        assert_eq!(run.calls.iter().map(|call| call.status).collect::<Vec<_>>(), ["network", "ok"]);
        assert_eq!(provider.calls(), 2);
    }
}

#[tokio::test]
async fn a_provider_that_comes_late_is_waited_for_within_its_limit() {
    let late = |ms| Behaviour::Answer(ANSWER.into()).after(Duration::from_millis(ms));
    let (run, ..) = one(late(100), true).await;
    assert!(run.reply.unwrap().first_token >= Duration::from_millis(100));
    let (run, ..) = one(late(900), true).await;
    assert!(matches!(error(run), CallError::Timeout { step: Step::FirstToken, .. }));
}

#[tokio::test]
async fn a_rate_limit_keeps_every_question_away_until_it_ends() {
    let provider = FakeProvider::start(Behaviour::Answer(ANSWER.into())).await.unwrap();
    provider.script([Behaviour::limited(1)]);
    let chain = chain_with(retries(4), &[("only", provider.base_url(), true)]);
    let first = chain.ask(&request(), 1, &mut Discard).await;
    let second = chain.ask(&request(), 1, &mut Discard).await;
    assert!(first.reply.is_ok() && second.reply.is_ok());
    let arrivals = provider.arrivals();
    // The wait is counted from the answer, an arrival before it.
    assert!(arrivals[1] - arrivals[0] >= Duration::from_secs(1));
    assert_eq!((arrivals.len(), provider.calls_since(arrivals[1])), (3, 2));
}

#[tokio::test]
async fn an_outage_opens_the_breaker_and_then_nothing_arrives() {
    let provider = FakeProvider::start(Behaviour::Answer(ANSWER.into())).await.unwrap();
    let chain = chain(&[("only", provider.base_url(), true)]);
    assert!(chain.ask(&request(), 1, &mut Discard).await.reply.is_ok());
    provider.set_down(true);
    for _ in 0..20 {
        assert!(chain.ask(&request(), 1, &mut Discard).await.reply.is_err());
    }
    assert!(provider.calls() <= 11, "{}", provider.calls());
    provider.set_down(false);
    let run = chain.ask(&request(), 1, &mut Discard).await;
    assert!(run.calls.is_empty(), "it is open for a while, whatever the provider does");
    assert!(matches!(run.reply.unwrap_err().error, CallError::BreakerOpen { .. }));
}

#[tokio::test]
async fn the_next_provider_starts_a_new_attempt() {
    let first = FakeProvider::start(Behaviour::Cut { text: ANSWER.into(), words: 3 }).await.unwrap();
    let second = FakeProvider::start(Behaviour::Answer(ANSWER.into())).await.unwrap();
    let chain = chain(&[("a", first.base_url(), true), ("b", second.base_url(), true)]);
    let mut heard = Heard::default();
    let run = chain.ask(&request(), 1, &mut heard).await;
    let reply = run.reply.unwrap();
    assert_eq!((reply.call.provider.as_str(), reply.call.attempt), ("b", 2));
    assert_eq!(heard.0[&1], "The mill was ");
    assert_eq!(heard.0[&2], reply.text);
    assert_eq!(run.calls.iter().map(|call| call.status).collect::<Vec<_>>(), ["broken-off", "ok"]);
}

#[tokio::test]
async fn a_quote_comes_from_the_first_passage() {
    let provider = FakeProvider::start(Behaviour::Quote).await.unwrap();
    let mut request = request();
    request.messages = vec![Message::user("<passage n=\"1\" title=\"T\">\nOne. Two.\n</passage>\nQuestion: x")];
    let run = chain(&[("only", provider.base_url(), true)]).ask(&request, 1, &mut Discard).await;
    assert_eq!(run.reply.unwrap().text, "One. [1]");
}

#[tokio::test]
async fn the_providers_books_agree_with_what_the_chain_counted() {
    let answer = || Box::new(Behaviour::Answer(ANSWER.into()));
    let of = vec![
        (4, Behaviour::WrongInputUsage { percent: 120, then: answer() }),
        (2, Behaviour::Slow { from: Duration::ZERO, to: Duration::from_millis(20), then: answer(), seed: 2 }),
        (2, Behaviour::status(503)),
        (1, Behaviour::Reset),
        (1, Behaviour::Decline("No.".into())),
    ];
    install_tls();
    for stream in [true, false] {
        let provider = FakeProvider::start(Behaviour::Mix { seed: 1, of: of.clone() }).await.unwrap();
        let mut calls = Vec::new();
        for _ in 0..20 {
            let only = ProviderConfig {
                base_url: provider.base_url(),
                model: "m".into(),
                stream,
                ..ProviderConfig::default()
            };
            let config = LlmConfig {
                providers: BTreeMap::from([("only".to_owned(), only)]),
                retries: retries(0),
                ..LlmConfig::default()
            };
            // A chain each: what fails opens no breaker.
            let run = Chain::new(&config).unwrap().unwrap().ask(&request(), 1, &mut Discard).await;
            calls.extend(run.calls);
        }
        let answered: Vec<_> = calls.iter().filter(|call| call.status == "ok").map(|call| call.usage).collect();
        let books = provider.books();
        assert_eq!(books.sums.calls, u64::try_from(calls.len()).unwrap());
        let finished = books.calls.iter().filter(|entry| entry.behaviour == "answer");
        let charged: Vec<_> = finished
            .map(|entry| TokenUsage {
                input: entry.input_tokens,
                cached: entry.cached_tokens,
                output: entry.output_tokens,
                estimated: false,
            })
            .collect();
        assert_eq!(answered, charged);
        let refused = calls.iter().filter(|call| call.status == "refused");
        assert!(refused.clone().count() > 0 && refused.clone().all(|call| call.usage.input > 0));
        assert_eq!(books.sums.charged_calls, u64::try_from(answered.len() + refused.count()).unwrap());
    }
}
