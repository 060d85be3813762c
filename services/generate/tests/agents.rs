//! Models that call tools: within bounds, each step written down before the next.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod house;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use house::{House, Plan, answer, delivery, question, written};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use weir_contracts::{AnswerStatus, Question, Topic, Usage};
use weir_generate::AgentSection;
use weir_llm::AgentConfig;
use weir_llm::testing::{Behaviour, FakeProvider, ToolCall};
use weir_llm::tools::HttpToolConfig;
use weir_stage::{ConcurrentStage, Delivery, MemoryLane};

const BUILT: &str = "When was the mill at Ulm built?";

fn agent(text: &str) -> Delivery<Question> {
    delivery(Question { agent: true, ..question("q", text) })
}

fn calls(calls: &[(&str, &str, Value)]) -> Behaviour {
    let call = |(id, name, arguments): &(&str, &str, Value)| ToolCall {
        id: (*id).to_owned(),
        name: (*name).to_owned(),
        arguments: arguments.clone(),
    };
    Behaviour::CallTools { calls: calls.iter().map(call).collect() }
}

/// Bounds that leave room for the prompts of these tests, which are counted by their bytes.
fn bounds() -> AgentConfig {
    AgentConfig { max_total_tokens: 200_000, max_tokens_per_turn: 64, ..AgentConfig::default() }
}

async fn house(provider: &FakeProvider, bounds: AgentConfig) -> House {
    let agent = AgentSection { bounds, ..AgentSection::default() };
    Plan { providers: &[provider], agent, ..Plan::default() }.build().await
}

/// Contents of the messages of the last request by role.
fn said(provider: &FakeProvider, role: &str) -> Vec<String> {
    let body = provider.received().pop().unwrap().body;
    let messages = body["messages"].as_array().unwrap().iter().filter(|message| message["role"] == role);
    messages.map(|message| message["content"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn a_model_searches_reads_and_calculates_before_it_answers_and_cites_what_it_found() {
    let provider = FakeProvider::start(Behaviour::Answer("A ship was launched in Kiel [2].".into())).await.unwrap();
    provider.script([
        calls(&[
            ("c1", "search_documents", json!({ "query": "ship launched" })),
            ("c2", "arithmetic", json!({ "expression": "6*7" })),
        ]),
        calls(&[("c3", "get_document", json!({ "document": "ship.md" }))]),
    ]);
    let house = house(&provider, bounds()).await;
    let outcome = house.outcome(&agent(BUILT)).await;
    let answer = answer(&outcome);
    assert_eq!((answer.status, answer.attempts), (AnswerStatus::Complete, 3), "{answer:?}");
    assert_eq!(answer.citations[0].document.as_str(), "ship.md");
    assert_eq!(written::<Usage>(&outcome, Topic::USAGE).len(), 3);
    let results = said(&provider, "tool");
    assert_eq!(results.len(), 3);
    assert!(results[0].contains("<passage n=\"2\" document=\"ship.md\""), "{}", results[0]);
    assert!(results[1].contains("42"), "{}", results[1]);
    assert!(results[2].contains("A ship was launched"), "a passage keeps its number: {}", results[2]);
    let keys: std::collections::BTreeSet<_> =
        provider.received().into_iter().map(|received| received.idempotency_key.unwrap()).collect();
    assert_eq!(keys.len(), 3, "each turn has a key of its own");
}

#[tokio::test]
async fn a_tool_that_fails_is_told_to_the_model_and_the_answer_comes_all_the_same() {
    let provider = FakeProvider::start(Behaviour::Answer("In 1912 [1].".into())).await.unwrap();
    provider.script([calls(&[
        ("c1", "get_document", json!({ "document": "nowhere.md" })),
        ("c2", "arithmetic", json!({ "expression": "1/0" })),
        ("c3", "launch_rockets", json!({})),
        ("c4", "search_documents", json!({ "q": "?" })),
    ])]);
    let house = house(&provider, bounds()).await;
    assert_eq!(answer(&house.outcome(&agent(BUILT)).await).status, AnswerStatus::Complete);
    let results = said(&provider, "tool");
    assert!(results[0].contains("no such document") && results[3].contains("query"), "{results:?}");
    assert!(results.iter().all(|result| result.starts_with("error: ")), "{results:?}");
}

#[tokio::test]
async fn a_result_that_does_not_change_is_asked_for_once_in_its_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/rate?of={{currency}}", listener.local_addr().unwrap());
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4_096];
            let _ = stream.read(&mut request).await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let response =
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 4\r\nconnection: close\r\n\r\n1.25";
            stream.write_all(response.as_bytes()).await.unwrap();
        }
    });
    let tool = |reuse_s| HttpToolConfig {
        name: "rate".into(),
        description: "A rate.".into(),
        url: url.clone(),
        parameters: BTreeMap::from([("currency".into(), "Which.".into())]),
        allow_private: true,
        reuse_s,
        ..HttpToolConfig::default()
    };
    for (reuse_s, expected) in [(60, 2), (0, 5)] {
        let provider = FakeProvider::start(Behaviour::Answer("1.25.".into())).await.unwrap();
        let section = AgentSection { bounds: bounds(), http: vec![tool(reuse_s)], ..AgentSection::default() };
        let house = Plan { providers: &[&provider], agent: section, ..Plan::default() }.build().await;
        for (asked, currency) in ["EUR", "EUR", "SEK"].into_iter().enumerate() {
            provider.script([calls(&[("c", "rate", json!({ "currency": currency }))])]);
            drop(house.outcome(&agent(&format!("How much is {asked}?"))).await);
            assert_eq!(said(&provider, "tool"), ["1.25"]);
        }
        assert_eq!(served.load(Ordering::Relaxed), expected);
    }
}

#[tokio::test]
async fn a_model_that_runs_in_circles_or_away_is_stopped_and_says_why() {
    let circling = calls(&[("c", "search_documents", json!({ "query": "mill" }))]);
    let provider = FakeProvider::start(circling).await.unwrap();
    let stopped = answer(&house(&provider, bounds()).await.outcome(&agent(BUILT)).await);
    assert_eq!(stopped.status, AnswerStatus::Incomplete);
    assert!(stopped.reason.as_deref().unwrap().contains("loop"), "{stopped:?}");
    assert!(stopped.text.contains("1912"), "what was found is given: {}", stopped.text);
    assert_eq!(provider.calls(), 3, "the second result was remembered, the third call is one too many");

    // Each call differs and each result is larger than the last.
    let provider = FakeProvider::start(Behaviour::Quote).await.unwrap();
    let growing =
        |n: usize| calls(&[("c", "search_documents", json!({ "query": format!("mill {}", "x ".repeat(n * 200)) }))]);
    provider.script((0..40).map(growing));
    let bounds = AgentConfig { max_total_tokens: 30_000, max_turns: 40, max_tool_calls: 40, ..bounds() };
    let stopped = answer(&house(&provider, bounds).await.outcome(&agent(BUILT)).await);
    assert_eq!(stopped.status, AnswerStatus::Incomplete);
    assert!(stopped.reason.as_deref().unwrap().contains("tokens"), "{stopped:?}");
    let sums = provider.books().sums;
    assert!(provider.calls() > 2 && sums.input_tokens + sums.output_tokens <= 30_000, "{sums:?}");
}

#[tokio::test]
async fn whoever_takes_an_agent_over_goes_on_at_the_step_where_it_was() {
    let provider = FakeProvider::start(Behaviour::Hang).await.unwrap();
    provider.script([calls(&[("c1", "search_documents", json!({ "query": "ship" }))])]);
    let lane = Arc::new(MemoryLane::default());
    let asked = agent(BUILT);
    let agent = || AgentSection { bounds: bounds(), ..AgentSection::default() };
    {
        let house =
            Plan { providers: &[&provider], agent: agent(), lane: Arc::clone(&lane), ..Plan::default() }.build().await;
        let work = house.stage.process(&asked, house.state());
        let second_turn = async {
            while provider.calls() < 2 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            _ = work => panic!("it was not lost"),
            () = second_turn => {}
        }
    }
    provider.set(Behaviour::Answer("In 1912 [1].".into()));
    let house =
        Plan { providers: &[&provider], agent: agent(), lane: Arc::clone(&lane), ..Plan::default() }.build().await;
    let outcome = house.outcome(&asked).await;
    let answer = answer(&outcome);
    assert_eq!((answer.status, provider.calls()), (AnswerStatus::Complete, 3), "the first turn was not made again");
    assert_eq!(said(&provider, "tool").len(), 1, "nor was the tool called again");
    let statuses: Vec<String> =
        written::<Usage>(&outcome, Topic::USAGE).into_iter().map(|usage| usage.status).collect();
    assert_eq!(statuses, ["ok", "unknown", "ok"]);
}
