//! The fake provider as a program: its command line, its control API, its end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use reqwest::{Client, RequestBuilder, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use weir_llm::testing::{Behaviour, Books, Fate};

const LIMIT: Duration = Duration::from_secs(20);

struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    base_url: String,
    http: Client,
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir-fake-provider"));
    command.args(arguments).kill_on_drop(true);
    command
}

async fn output(arguments: &[&str]) -> Output {
    tokio::time::timeout(LIMIT, program(arguments).output()).await.expect("it ends").unwrap()
}

impl Program {
    async fn start(arguments: &[&str]) -> Self {
        let mut child = program(&[&["--port", "0"], arguments].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = tokio::time::timeout(LIMIT, lines.next_line()).await.expect("it gets ready").unwrap().unwrap();
        let base_url = ready.strip_prefix("weir-fake-provider ready on ").expect("one line with its URL").to_owned();
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { child, lines, base_url, http: Client::builder().timeout(LIMIT).build().unwrap() }
    }

    fn control(&self, what: &str) -> RequestBuilder {
        self.http.post(self.base_url.replace("/v1", &format!("/control/{what}")))
    }

    async fn books(&self) -> Books {
        let url = self.base_url.replace("/v1", "/control/books");
        self.http.get(url).send().await.unwrap().json().await.unwrap()
    }

    fn ask(&self, stream: bool) -> RequestBuilder {
        let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "why so" }], "stream": stream });
        self.http.post(format!("{}/chat/completions", self.base_url)).header("Idempotency-Key", "k").json(&body)
    }

    async fn text(&self) -> String {
        let body: Value = self.ask(false).send().await.unwrap().json().await.unwrap();
        body["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }

    async fn end(mut self, signal: Signal) -> (ExitStatus, Option<String>) {
        let pid = Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        let status = tokio::time::timeout(LIMIT, self.child.wait()).await.expect("it ends").unwrap();
        (status, self.lines.next_line().await.unwrap())
    }
}

#[tokio::test]
async fn a_signal_ends_it_with_status_0_even_while_a_call_hangs() {
    for signal in [Signal::TERM, Signal::INT] {
        let program = Program::start(&["--behaviour", r#"{"kind": "hang"}"#]).await;
        let hanging = tokio::spawn(program.ask(true).send());
        let seen = async {
            while program.books().await.sums.calls == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(LIMIT, seen).await.expect("the call arrives");
        let (status, printed) = program.end(signal).await;
        assert_eq!((status.code(), printed), (Some(0), None), "one line is all it prints");
        assert!(hanging.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn it_does_as_the_control_api_says_and_shows_its_books() {
    let program = Program::start(&["--behaviour", r#"{"kind": "answer", "with": "first"}"#]).await;
    assert_eq!(program.text().await, "first");
    let script = json!([{ "kind": "status", "with": { "status": 429, "retry_after": "3" } }]);
    let answer = json!({ "kind": "answer", "with": "second one" });
    for (what, body) in [("script", &script), ("behaviour", &answer), ("down", &json!({ "down": true }))] {
        let response = program.control(what).json(body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::NO_CONTENT, "{what}");
    }
    assert_eq!(program.ask(true).send().await.unwrap().status(), 503);
    let models = format!("{}/models", program.base_url);
    assert_eq!(program.http.get(&models).send().await.unwrap().status(), 503);
    program.control("down").json(&json!({ "down": false })).send().await.unwrap();
    let limited = program.ask(true).send().await.unwrap();
    assert_eq!((limited.status().as_u16(), &limited.headers()["retry-after"]), (429, &"3".parse().unwrap()));
    assert_eq!(program.text().await, "second one");
    let models: Value = program.http.get(&models).send().await.unwrap().json().await.unwrap();
    assert_eq!(models["data"][0]["id"], "fake");

    let books = program.books().await;
    let found: Vec<_> = books.calls.iter().map(|entry| (entry.behaviour.as_str(), entry.charged)).collect();
    assert_eq!(found, [("answer", true), ("down", false), ("status", false), ("answer", true)]);
    assert!(books.calls.iter().all(|entry| entry.fate != Fate::Running));
    assert_eq!((books.sums.calls, books.sums.charged_calls), (4, 2));
    assert_eq!((books.sums.input_tokens, books.sums.output_tokens), (4, 3));
    assert_eq!(books.keys["k"], books.sums);
    program.control("reset").send().await.unwrap();
    assert_eq!(program.books().await, Books::default());
}

#[tokio::test]
async fn control_requests_that_cannot_be_read_say_why_and_change_nothing() {
    let program = Program::start(&["--behaviour", r#"{"kind": "answer", "with": "as before"}"#]).await;
    for (what, body, problem) in [
        ("behaviour", r#"{"kind": "drop"}"#, "unknown variant `drop`"),
        ("behaviour", r#"{"kind": "drip", "with": {"text": "yes"}}"#, "missing field `pause_ms`"),
        ("script", r#"[{"kind": "hang"}, {"kind": "drop"}]"#, "unknown variant `drop`"),
        ("script", r#"{"kind": "hang"}"#, "expected a sequence"),
        ("down", r#"{"up": true}"#, r#"expected {"down": true}"#),
    ] {
        let response = program.control(what).body(body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{body}");
        let told: Value = response.json().await.unwrap();
        let message = told["error"]["message"].as_str().unwrap();
        assert!(message.contains(problem), "{message}");
        if what != "down" {
            let missing: Vec<_> = Behaviour::KINDS.iter().filter(|kind| !message.contains(**kind)).collect();
            assert!(missing.is_empty(), "{message}");
        }
    }
    assert_eq!(program.text().await, "as before");
}

#[tokio::test]
async fn a_script_comes_from_a_file_and_keys_are_honoured_when_asked_for() {
    let file = std::env::temp_dir().join(format!("weir-fake-provider-{}.json", std::process::id()));
    std::fs::write(&file, r#"[{"kind": "answer", "with": "scripted"}]"#).unwrap();
    for (option, expected) in [(None, ["scripted", "I do not know. [1]"]), (Some("--idempotency"), ["scripted"; 2])] {
        let mut arguments = vec!["--script", file.to_str().unwrap()];
        arguments.extend(option);
        let program = Program::start(&arguments).await;
        assert_eq!([program.text().await, program.text().await], expected);
    }
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn a_command_line_that_cannot_work_says_why() {
    for (arguments, problem) in [
        (["--behaviour", r#"{"kind": "drop"}"#], "expected one of `answer`, `quote`, "),
        (["--script", "/nowhere/script.json"], "can't read /nowhere/script.json"),
        (["--host", "192.0.2.1"], "choose another port with --port"),
    ] {
        let output = output(&arguments).await;
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && told.contains(problem), "{told}");
    }
}

/// Every behaviour that the help shows in quotes.
#[tokio::test]
async fn the_examples_of_the_help_work() {
    let help = String::from_utf8(output(&["--help"]).await.stdout).unwrap();
    let mut examples = 0;
    for quoted in help.split('\'').skip(1).step_by(2) {
        let json: Value = serde_json::from_str(quoted).unwrap();
        let behaviours = match json {
            Value::Array(list) => list,
            one if one.get("kind").is_some() => vec![one],
            _ => continue,
        };
        for behaviour in behaviours {
            serde_json::from_value::<Behaviour>(behaviour).unwrap();
            examples += 1;
        }
    }
    assert!(examples >= 5, "{help}");
}
