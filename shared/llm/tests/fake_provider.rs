//! The fake provider's books against what a client that knows nothing of Weir has received.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use weir_llm::testing::{Behaviour, Books, Entry, FakeProvider, Fate, Sums, ToolCall};

const ANSWER: &str = "The mill was built in 1912 [1], of brick. ";
/// Of the question, and of the answer.
const INPUT: u64 = 7;
const OUTPUT: u64 = 9;

fn client() -> reqwest::Client {
    // Another test of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // A connection for each request: a test sees when it is gone.
    reqwest::Client::builder().timeout(Duration::from_secs(20)).pool_max_idle_per_host(0).build().unwrap()
}

async fn ask(provider: &FakeProvider, key: Option<&str>, stream: bool) -> reqwest::Result<Response> {
    let body = json!({
        "model": "fake-1",
        "messages": [
            { "role": "system", "content": "be brief" },
            { "role": "user", "content": "when was the mill built" },
        ],
        "stream": stream,
        "stream_options": { "include_usage": true },
    });
    let mut post = client().post(format!("{}/chat/completions", provider.base_url())).json(&body);
    if let Some(key) = key {
        post = post.header("Idempotency-Key", key);
    }
    post.send().await
}

/// What a response says: of a stream, its events put together.
struct Heard {
    text: String,
    finish: Value,
    usage: Value,
    deltas: Vec<Value>,
}

async fn hear(response: Response, stream: bool) -> Heard {
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.text().await.unwrap();
    if !stream {
        let body: Value = serde_json::from_str(&body).unwrap();
        let choice = &body["choices"][0];
        let text = choice["message"]["content"].as_str().unwrap_or_default().to_owned();
        let (finish, usage) = (choice["finish_reason"].clone(), body["usage"].clone());
        return Heard { text, finish, usage, deltas: vec![choice["message"].clone()] };
    }
    let mut heard = Heard { text: String::new(), finish: Value::Null, usage: Value::Null, deltas: Vec::new() };
    let mut events: Vec<_> = body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(events.pop(), Some("[DONE]"));
    for event in events {
        let event: Value = serde_json::from_str(event).unwrap();
        if !event["usage"].is_null() {
            heard.usage = event["usage"].clone();
            continue;
        }
        let choice = &event["choices"][0];
        heard.text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        heard.finish = choice["finish_reason"].clone();
        heard.deltas.push(choice["delta"].clone());
    }
    heard
}

/// The books, once this is so.
async fn books(provider: &FakeProvider, so: impl Fn(&Books) -> bool) -> Books {
    let waited = async {
        loop {
            let books = provider.books();
            if so(&books) {
                return books;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(10), waited).await;
    found.unwrap_or_else(|_| panic!("{:#?}", provider.books()))
}

async fn first_entry(provider: &FakeProvider, fate: Fate) -> Entry {
    books(provider, |books| books.calls[0].fate == fate).await.calls.remove(0)
}

fn tokens(entry: &Entry) -> (u64, u64, bool) {
    (entry.input_tokens, entry.output_tokens, entry.charged)
}

fn charged(calls: u64, charged_calls: u64) -> Sums {
    Sums {
        calls,
        charged_calls,
        input_tokens: charged_calls * INPUT,
        cached_tokens: 0,
        output_tokens: charged_calls * OUTPUT,
    }
}

fn answer() -> Behaviour {
    Behaviour::Answer(ANSWER.into())
}

#[tokio::test]
async fn a_finished_call_is_in_the_books_with_what_its_client_received() {
    for stream in [true, false] {
        let provider = FakeProvider::start(answer()).await.unwrap();
        let heard = hear(ask(&provider, Some("k"), stream).await.unwrap(), stream).await;
        assert_eq!((heard.text.as_str(), &heard.finish), (ANSWER, &json!("stop")));
        let books = provider.books();
        let entry = &books.calls[0];
        assert_eq!(heard.usage["prompt_tokens"], entry.input_tokens);
        assert_eq!(heard.usage["completion_tokens"], entry.output_tokens);
        assert_eq!(tokens(entry), (INPUT, OUTPUT, true));
        assert_eq!((entry.stream, entry.status, entry.fate), (stream, Some(200), Fate::Finished));
        assert_eq!((entry.model.as_str(), entry.behaviour.as_str()), ("fake-1", "answer"));
        assert_eq!(entry.idempotency_key.as_deref(), Some("k"));
        assert!(entry.unix_ms > 1_700_000_000_000 && entry.since_start_ms < 20_000);
        assert_eq!((books.sums, books.keys["k"]), (charged(1, 1), charged(1, 1)));
    }
}

#[tokio::test]
async fn who_hangs_up_in_mid_stream_is_charged_what_was_generated_and_no_more() {
    let drip = Behaviour::Drip { text: "word ".repeat(100_000), pause: Duration::from_millis(1) };
    for stream in [true, false] {
        let provider = FakeProvider::start(drip.clone()).await.unwrap();
        let heard = if stream {
            let mut response = ask(&provider, None, true).await.unwrap();
            let mut heard = String::new();
            while heard.matches("data: ").count() < 3 {
                heard.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
            }
            heard.matches("data: ").count()
        } else {
            tokio::select! {
                _ = ask(&provider, None, false) => panic!("it takes minutes"),
                _ = books(&provider, |books| books.sums.output_tokens >= 3) => 3,
            }
        };
        let entry = first_entry(&provider, Fate::HungUp).await;
        assert!(entry.charged && entry.input_tokens == INPUT);
        assert!((u64::try_from(heard).unwrap()..100_000).contains(&entry.output_tokens), "{entry:?}");
        assert_eq!(provider.books().sums.output_tokens, entry.output_tokens);
    }
}

#[tokio::test]
async fn who_hangs_up_before_the_first_token_is_not_charged() {
    for behaviour in
        [Behaviour::Hang, answer().after(Duration::from_secs(60)), Behaviour::Long { words: 1, pause: Duration::MAX }]
    {
        let provider = FakeProvider::start(behaviour).await.unwrap();
        tokio::select! {
            _ = async { hear(ask(&provider, None, true).await.unwrap(), true).await } => panic!("it takes minutes"),
            _ = books(&provider, |books| books.sums.calls == 1) => {},
        }
        let entry = first_entry(&provider, Fate::HungUp).await;
        assert_eq!(tokens(&entry), (INPUT, 0, false));
    }
}

#[tokio::test]
async fn a_stream_that_is_reset_is_charged_as_far_as_it_came() {
    let provider = FakeProvider::start(Behaviour::Cut { text: ANSWER.into(), words: 3 }).await.unwrap();
    let mut response = ask(&provider, None, true).await.unwrap();
    let mut heard = String::new();
    let error = loop {
        match response.chunk().await {
            Ok(bytes) => heard.push_str(std::str::from_utf8(&bytes.expect("no end in good order")).unwrap()),
            Err(error) => break error,
        }
    };
    assert!(format!("{error:?}").contains("ConnectionReset"), "{error:?}");
    assert_eq!(heard.matches("data: ").count(), 3);
    let entry = first_entry(&provider, Fate::BrokenOff).await;
    assert_eq!((tokens(&entry), entry.status), ((INPUT, 3, true), Some(200)));
}

#[tokio::test]
async fn an_answer_that_is_no_stream_breaks_off_in_its_middle() {
    let (text, words) = (ANSWER.to_owned(), 3);
    for behaviour in [Behaviour::Cut { text: text.clone(), words }, Behaviour::EndEarly { text, words }] {
        let provider = FakeProvider::start(behaviour).await.unwrap();
        let body = ask(&provider, None, false).await.unwrap().text().await;
        assert!(body.is_err() || serde_json::from_str::<Value>(&body.unwrap()).is_err());
        assert_eq!(tokens(&first_entry(&provider, Fate::BrokenOff).await), (INPUT, 3, true));
    }
}

#[tokio::test]
async fn nothing_is_charged_for_what_is_no_answer() {
    let provider = FakeProvider::start(answer()).await.unwrap();
    provider.script([
        Behaviour::limited(7),
        Behaviour::status(400),
        Behaviour::status(503),
        Behaviour::Malformed,
        Behaviour::Reset,
    ]);
    for expected in [Some(429), Some(400), Some(503), Some(200), None] {
        let response = ask(&provider, None, true).await;
        assert_eq!(response.as_ref().ok().map(|response| response.status().as_u16()), expected);
        if expected == Some(429) {
            assert_eq!(response.as_ref().unwrap().headers()["retry-after"], "7");
        }
        if let Ok(response) = response {
            response.bytes().await.unwrap();
        }
    }
    provider.set_down(true);
    assert_eq!(ask(&provider, None, true).await.unwrap().status(), 503);
    let books = provider.books();
    assert_eq!(books.sums, charged(6, 0));
    let found: Vec<_> = books.calls.iter().map(|entry| (entry.behaviour.as_str(), entry.status)).collect();
    assert_eq!(
        found,
        [
            ("status", Some(429)),
            ("status", Some(400)),
            ("status", Some(503)),
            ("malformed", Some(200)),
            ("reset", None),
            ("down", Some(503)),
        ]
    );
    assert_eq!(books.calls[4].fate, Fate::BrokenOff);
    provider.reset();
    assert_eq!((provider.books(), provider.calls()), (Books::default(), 0));
}

#[tokio::test]
async fn the_books_count_as_the_provider_reports() {
    let more_input =
        Behaviour::WrongInputUsage { percent: 120, then: Box::new(Behaviour::WithoutUsage(ANSWER.into())) };
    for (behaviour, reported, expected) in [
        (Behaviour::WrongUsage { text: ANSWER.into(), times: 3 }, true, (3 * INPUT, 0, 3 * OUTPUT)),
        (Behaviour::Cached { text: ANSWER.into(), tokens: 4 }, true, (INPUT, 4, OUTPUT)),
        // 120 % of 7, rounded up.
        (Behaviour::WrongInputUsage { percent: 120, then: Box::new(answer()) }, true, (9, 0, OUTPUT)),
        (more_input, false, (9, 0, OUTPUT)),
        (Behaviour::Refuse, true, (INPUT, 0, 0)),
    ] {
        for stream in [true, false] {
            let provider = FakeProvider::start(behaviour.clone()).await.unwrap();
            let heard = hear(ask(&provider, None, stream).await.unwrap(), stream).await;
            let Sums { charged_calls, input_tokens, cached_tokens, output_tokens, .. } = provider.books().sums;
            assert_eq!((input_tokens, cached_tokens, output_tokens), expected, "{behaviour:?}");
            assert_eq!(charged_calls, 1);
            if reported {
                assert_eq!(heard.usage["prompt_tokens"], input_tokens);
                assert_eq!(heard.usage["completion_tokens"], output_tokens);
            } else {
                assert_eq!(heard.usage, Value::Null);
            }
        }
    }
}

#[tokio::test]
async fn a_repeat_of_a_finished_key_gets_the_same_answer_without_charge() {
    for first in [true, false] {
        let provider = FakeProvider::start(Behaviour::Quote).await.unwrap().with_idempotency();
        provider.script([Behaviour::WrongUsage { text: ANSWER.into(), times: 2 }]);
        let once = hear(ask(&provider, Some("k"), first).await.unwrap(), first).await;
        for stream in [true, false] {
            let again = hear(ask(&provider, Some("k"), stream).await.unwrap(), stream).await;
            assert_eq!((&again.text, &again.usage), (&once.text, &once.usage));
        }
        let books = provider.books();
        let kinds: Vec<_> = books.calls.iter().map(|entry| (entry.behaviour.as_str(), entry.charged)).collect();
        assert_eq!(kinds, [("wrong-usage", true), ("repeat", false), ("repeat", false)]);
        let sums =
            Sums { calls: 3, charged_calls: 1, input_tokens: 2 * INPUT, cached_tokens: 0, output_tokens: 2 * OUTPUT };
        assert_eq!((books.sums, books.keys["k"]), (sums, sums));
        let other = hear(ask(&provider, Some("other"), true).await.unwrap(), true).await;
        assert_ne!(other.text, ANSWER, "another key is another call");
    }
}

#[tokio::test]
async fn without_idempotency_every_call_is_charged() {
    let provider = FakeProvider::start(answer()).await.unwrap();
    for stream in [true, false] {
        hear(ask(&provider, Some("k"), stream).await.unwrap(), stream).await;
    }
    assert_eq!(provider.books().keys["k"], charged(2, 2));
}

#[tokio::test]
async fn a_key_is_in_progress_until_its_client_hangs_up_and_then_runs_anew() {
    let provider = FakeProvider::start(answer()).await.unwrap().with_idempotency();
    provider.script([Behaviour::Stall { text: ANSWER.into(), words: 3 }]);
    let stalled = ask(&provider, Some("k"), true).await.unwrap();
    books(&provider, |books| books.sums.output_tokens == 3).await;
    let conflict = ask(&provider, Some("k"), true).await.unwrap();
    assert_eq!(conflict.status(), StatusCode::CONFLICT);
    let conflict: Value = conflict.json().await.unwrap();
    assert_eq!(conflict["error"]["code"], "idempotency_in_progress");
    drop(stalled);
    first_entry(&provider, Fate::HungUp).await;
    let heard = hear(ask(&provider, Some("k"), true).await.unwrap(), true).await;
    assert_eq!(heard.text, ANSWER);
    let books = provider.books();
    let found: Vec<_> = books.calls.iter().map(|entry| (entry.behaviour.as_str(), tokens(entry))).collect();
    assert_eq!(
        found,
        [("stall", (INPUT, 3, true)), ("in-progress", (INPUT, 0, false)), ("answer", (INPUT, OUTPUT, true)),]
    );
    assert_eq!((books.keys["k"].calls, books.keys["k"].charged_calls), (3, 2));
}

#[tokio::test]
async fn a_key_whose_first_call_failed_runs_anew() {
    let text = ANSWER.to_owned();
    for failure in [Behaviour::status(503), Behaviour::Reset, Behaviour::EndEarly { text, words: 1 }] {
        let provider = FakeProvider::start(answer()).await.unwrap().with_idempotency();
        provider.script([failure.clone()]);
        if let Ok(response) = ask(&provider, Some("k"), true).await {
            response.bytes().await.unwrap();
        }
        books(&provider, |books| books.calls[0].fate != Fate::Running).await;
        let heard = hear(ask(&provider, Some("k"), true).await.unwrap(), true).await;
        assert_eq!(heard.text, ANSWER, "{failure:?}");
    }
}

#[tokio::test]
async fn forgotten_calls_that_still_run_touch_neither_books_nor_keys_of_those_after() {
    let provider = FakeProvider::start(answer()).await.unwrap().with_idempotency();
    provider.script([Behaviour::Stall { text: ANSWER.into(), words: 3 }]);
    let stalled = ask(&provider, Some("k"), true).await.unwrap();
    books(&provider, |books| books.sums.output_tokens == 3).await;
    provider.reset();
    provider.script([Behaviour::Stall { text: ANSWER.into(), words: 1 }]);
    let second = ask(&provider, Some("k"), true).await.unwrap();
    books(&provider, |books| books.sums.output_tokens == 1).await;
    drop(stalled);
    let gone = async {
        while provider.connections() > 1 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the first connection is closed");
    assert_eq!(ask(&provider, Some("k"), true).await.unwrap().status(), StatusCode::CONFLICT);
    let entry = &provider.books().calls[0];
    assert_eq!((entry.fate, tokens(entry)), (Fate::Running, (INPUT, 1, true)));
    drop(second);
}

#[tokio::test]
async fn a_call_from_before_keys_were_honoured_ends_no_other_call_with_its_key() {
    let provider = FakeProvider::start(Behaviour::Stall { text: ANSWER.into(), words: 1 }).await.unwrap();
    let before = ask(&provider, Some("k"), true).await.unwrap();
    provider.set_idempotency(true);
    let running = ask(&provider, Some("k"), true).await.unwrap();
    drop(before);
    first_entry(&provider, Fate::HungUp).await;
    assert_eq!(ask(&provider, Some("k"), true).await.unwrap().status(), StatusCode::CONFLICT);
    drop(running);
}

fn tools() -> Behaviour {
    let call = |id: &str, name: &str, arguments| ToolCall { id: id.into(), name: name.into(), arguments };
    Behaviour::CallTools {
        calls: vec![
            call("call_1", "search", json!({ "query": "when was the mill built" })),
            // A model may write what is no JSON.
            call("call_2", "open", json!("{\"page\": ")),
        ],
    }
}

#[tokio::test]
async fn tool_calls_come_whole_with_their_finish_reason() {
    let provider = FakeProvider::start(tools()).await.unwrap();
    let heard = hear(ask(&provider, None, false).await.unwrap(), false).await;
    assert_eq!(heard.finish, "tool_calls");
    assert_eq!(
        heard.deltas[0],
        json!({
            "role": "assistant",
            "content": null,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": { "name": "search", "arguments": r#"{"query":"when was the mill built"}"# },
                },
                { "id": "call_2", "type": "function", "function": { "name": "open", "arguments": "{\"page\": " } },
            ],
        })
    );
    assert_eq!(heard.usage["completion_tokens"], provider.books().sums.output_tokens);
}

#[tokio::test]
async fn streamed_tool_calls_are_put_together_by_their_index() {
    let provider = FakeProvider::start(tools()).await.unwrap();
    let heard = hear(ask(&provider, None, true).await.unwrap(), true).await;
    assert_eq!(heard.finish, "tool_calls");
    let pieces: Vec<_> = heard.deltas.iter().filter_map(|delta| delta["tool_calls"].as_array()).flatten().collect();
    let mut arguments = [String::new(), String::new()];
    let mut heads = Vec::new();
    for piece in &pieces {
        let index = usize::try_from(piece["index"].as_u64().unwrap()).unwrap();
        arguments[index].push_str(piece["function"]["arguments"].as_str().unwrap());
        if piece.get("id").is_some() {
            heads.push((piece["id"].clone(), piece["type"].clone(), piece["function"]["name"].clone()));
        }
    }
    let head = |id: &str, name: &str| (json!(id), json!("function"), json!(name));
    assert_eq!(heads, [head("call_1", "search"), head("call_2", "open")]);
    assert_eq!(arguments, [r#"{"query":"when was the mill built"}"#, "{\"page\": "]);
    assert!(pieces.len() > 5, "arguments come in pieces");
    assert_eq!(heard.usage["completion_tokens"], pieces.len());
    assert_eq!(provider.books().sums.output_tokens, u64::try_from(pieces.len()).unwrap());
}

#[tokio::test]
async fn a_model_that_declines_says_so_in_the_field_for_it() {
    let provider = FakeProvider::start(Behaviour::Decline("Never.".into())).await.unwrap();
    let whole = hear(ask(&provider, None, false).await.unwrap(), false).await;
    assert_eq!(whole.deltas[0], json!({ "role": "assistant", "content": null, "refusal": "Never." }));
    let streamed = hear(ask(&provider, None, true).await.unwrap(), true).await;
    assert_eq!(streamed.deltas[0], json!({ "role": "assistant", "refusal": "Never." }));
}

#[tokio::test]
async fn a_mix_is_the_same_again_after_a_reset() {
    let mix = Behaviour::Mix { seed: 5, of: vec![(1, answer()), (1, Behaviour::status(503))] };
    let provider = FakeProvider::start(mix).await.unwrap();
    let mut rounds = Vec::new();
    for _ in 0..2 {
        for _ in 0..12 {
            ask(&provider, None, false).await.unwrap();
        }
        rounds.push(provider.books().calls.into_iter().map(|entry| entry.behaviour).collect::<Vec<_>>());
        provider.reset();
    }
    assert_eq!(rounds[0], rounds[1]);
    assert!(rounds[0].contains(&"answer".to_owned()) && rounds[0].contains(&"status".to_owned()));
}
