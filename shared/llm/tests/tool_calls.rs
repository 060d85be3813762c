//! Tool calls, from a provider to whoever asked the chain.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use weir_llm::testing::{self, Behaviour, FakeProvider};
use weir_llm::{
    CallError, Chain, ChatRequest, Deltas, Discard, Finish, LlmConfig, MAX_ARGUMENTS_BYTES, Message, ProviderConfig,
    RetryConfig, Run, ToolCall, ToolSpec,
};

/// What a caller sees of the calls before they are whole.
#[derive(Default)]
struct Seen {
    text: String,
    bytes: usize,
}

impl Deltas for Seen {
    fn delta(&mut self, _: i32, text: &str) {
        self.text.push_str(text);
    }

    fn tool_call_piece(&mut self, _: i32, bytes: usize) {
        self.bytes += bytes;
    }
}

fn chain(base_url: String, stream: bool) -> Chain {
    // Another test of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let only = ProviderConfig { base_url, model: "m".into(), stream, ..ProviderConfig::default() };
    let config = LlmConfig {
        providers: BTreeMap::from([("only".to_owned(), only)]),
        retries: RetryConfig { max: 0, ..RetryConfig::default() },
        ..LlmConfig::default()
    };
    Chain::new(&config).unwrap().unwrap()
}

fn request() -> ChatRequest {
    let add = ToolSpec {
        name: "add".into(),
        description: "Adds.".into(),
        parameters: json!({ "type": "object", "properties": { "x": { "type": "number" } } }),
    };
    ChatRequest {
        messages: vec![Message::user("one and one")],
        tools: vec![add],
        max_tokens: 1_000,
        ..ChatRequest::default()
    }
}

fn calling(calls: impl IntoIterator<Item = (&'static str, Value)>) -> Behaviour {
    let call = |(id, arguments): (&str, Value)| testing::ToolCall { id: id.into(), name: "add".into(), arguments };
    Behaviour::CallTools { calls: calls.into_iter().map(call).collect() }
}

async fn ask(behaviour: Behaviour, request: &ChatRequest, stream: bool) -> (Run, Seen, FakeProvider) {
    let provider = FakeProvider::start(behaviour).await.unwrap();
    let mut seen = Seen::default();
    let run = chain(provider.base_url(), stream).ask(request, 1, &mut seen).await;
    (run, seen, provider)
}

#[tokio::test]
async fn calls_are_given_out_whole_and_in_order_streamed_or_not() {
    for stream in [true, false] {
        let calls = [("c1", json!({ "note": "longer than one piece", "x": 1 })), ("c2", json!("{\"x\": "))];
        let (run, seen, provider) = ask(calling(calls), &request(), stream).await;
        let reply = run.reply.unwrap();
        let call =
            |id: &str, arguments: &str| ToolCall { id: id.into(), name: "add".into(), arguments: arguments.into() };
        let expected = [call("c1", r#"{"note":"longer than one piece","x":1}"#), call("c2", "{\"x\": ")];
        assert_eq!(reply.tool_calls, expected);
        assert_eq!((reply.finish, reply.text.as_str()), (Finish::ToolCalls, ""));
        let bytes: usize = expected.iter().map(|call| call.name.len() + call.arguments.len()).sum();
        assert_eq!((seen.bytes, seen.text.as_str()), (bytes, ""));
        let offered = &provider.received()[0].body["tools"][0];
        assert_eq!((&offered["type"], &offered["function"]["name"]), (&json!("function"), &json!("add")));
    }
}

#[tokio::test]
async fn a_conversation_goes_on_with_the_results() {
    let (run, _, provider) = ask(calling([("c1", json!({ "x": 1 }))]), &request(), true).await;
    let reply = run.reply.unwrap();
    let mut next = request();
    next.messages.push(Message::assistant(reply.text, reply.tool_calls));
    next.messages.push(Message::tool("c1", "2"));
    provider.set(Behaviour::Answer("Two.".into()));
    let run = chain(provider.base_url(), true).ask(&next, 1, &mut Discard).await;
    let reply = run.reply.unwrap();
    assert_eq!((reply.text.as_str(), reply.finish), ("Two.", Finish::Stop));
    assert!(reply.tool_calls.is_empty());
    let sent = &provider.received()[1].body["messages"];
    assert_eq!(sent[1]["tool_calls"][0]["function"], json!({ "name": "add", "arguments": "{\"x\":1}" }));
    assert_eq!(sent[2], json!({ "role": "tool", "tool_call_id": "c1", "content": "2" }));
}

#[tokio::test]
async fn too_many_calls_and_too_long_arguments_are_malformed() {
    for stream in [true, false] {
        let request = ChatRequest { max_tokens: u32::MAX, ..request() };
        let many = calling(vec![("c", json!({})); 17]);
        let long = calling([("c", json!("x".repeat(MAX_ARGUMENTS_BYTES + 1)))]);
        for behaviour in [many, long] {
            let (run, ..) = ask(behaviour, &request, stream).await;
            let error = run.reply.unwrap_err().error;
            assert!(matches!(error, CallError::Malformed { .. }), "{error}");
        }
        let most = calling(vec![("c", json!("x".repeat(MAX_ARGUMENTS_BYTES / 8))); 16]);
        let (run, ..) = ask(most, &request, stream).await;
        assert_eq!(run.reply.unwrap().tool_calls.len(), 16);
    }
}

#[tokio::test]
async fn who_writes_calls_beyond_the_limit_of_tokens_has_called_nothing() {
    let request = ChatRequest { max_tokens: 3, ..request() };
    let (run, ..) = ask(calling([("c", json!("x".repeat(100)))]), &request, true).await;
    let reply = run.reply.unwrap();
    assert_eq!((reply.finish, reply.tool_calls.len()), (Finish::Length, 0));
}

#[tokio::test]
async fn calls_that_break_off_are_not_given_out_and_count_what_they_may_have_cost() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = [0; 16 << 10];
        let _ = socket.read(&mut request).await.unwrap();
        let function = json!({ "name": "add", "arguments": "{\"x\": 1}" });
        let calls = json!([{ "index": 0, "id": "c1", "type": "function", "function": function }]);
        let event = json!({ "choices": [{ "index": 0, "delta": { "tool_calls": calls }, "finish_reason": null }] });
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        socket.write_all(format!("{head}data: {event}\n\ndata: [DONE]\n\n").as_bytes()).await.unwrap();
    });
    let run = chain(base_url, true).ask(&request(), 1, &mut Discard).await;
    let exhausted = run.reply.unwrap_err();
    assert_eq!((exhausted.error, exhausted.partial), (CallError::Broken { bytes: 0 }, None));
    let usage = run.calls[0].usage;
    assert!(usage.estimated && usage.input > 0 && usage.output > 0, "{usage:?}");
}
