//! The HTTP tool against a server that keeps none of the rules.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::tools::ToolErrorKind;

/// A server that reads one request, sends this and stays silent then; and what it was asked.
struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(response: impl Into<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (response, asked) = (response.into(), Arc::new(Mutex::new(Vec::new())));
        let heard = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = vec![0; 16 << 10];
                let length = socket.read(&mut request).await.unwrap();
                heard.lock().unwrap().push(String::from_utf8_lossy(&request[..length]).into_owned());
                // Whoever has read enough hangs up.
                let _ = socket.write_all(&response).await;
                open.push(socket);
            }
        });
        Self { port, asked }
    }

    async fn saying(content_type: &str, body: &str) -> Self {
        let length = body.len();
        Self::start(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
        .await
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// A name service that gives each list of addresses once, the last one forever, and counts.
#[derive(Debug, Default)]
struct Names {
    answers: Mutex<Vec<Vec<SocketAddr>>>,
    asked: Mutex<Vec<String>>,
}

impl Names {
    fn new(answers: &[&[&str]]) -> Arc<Self> {
        let addresses = |answer: &&[&str]| answer.iter().map(|address| address.parse().unwrap()).collect();
        Arc::new(Self { answers: Mutex::new(answers.iter().map(addresses).collect()), asked: Mutex::default() })
    }
}

impl Lookup for Names {
    fn lookup(&self, host: String, _: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        self.asked.lock().unwrap().push(host);
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        async move { Ok(answer) }.boxed()
    }
}

fn config(url: String) -> HttpToolConfig {
    // Another test of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    HttpToolConfig {
        name: "weather".into(),
        description: "The weather of a city.".into(),
        url,
        parameters: BTreeMap::from([("city".to_owned(), "Its name.".to_owned())]),
        headers: BTreeMap::from([("x-api-key".to_owned(), "s3cret".to_owned().into())]),
        ..HttpToolConfig::default()
    }
}

fn local(server: &Server) -> HttpToolConfig {
    HttpToolConfig { allow_private: true, ..config(format!("http://127.0.0.1:{}/v1/{{city}}", server.port)) }
}

async fn call(tool: &HttpTool) -> Result<String, ToolError> {
    tool.call(&json!({ "city": "Bad Ems" })).await
}

async fn get(config: HttpToolConfig) -> Result<String, ToolError> {
    call(&HttpTool::new(config).unwrap()).await
}

#[tokio::test]
async fn text_and_json_are_given_out_and_the_headers_are_sent() {
    for content_type in ["application/json", "text/plain; charset=utf-8", "application/problem+json", "TEXT/html"] {
        let server = Server::saying(content_type, "{\"sun\": true}").await;
        assert_eq!(get(local(&server)).await.unwrap(), "{\"sun\": true}");
        let asked = server.asked();
        assert!(asked[0].starts_with("GET /v1/Bad%20Ems HTTP/1.1\r\n"), "{asked:?}");
        assert!(asked[0].contains("x-api-key: s3cret\r\n") && asked[0].contains("accept-encoding: identity\r\n"));
    }
}

#[tokio::test]
async fn other_content_is_not() {
    for content_type in ["image/png", "application/octet-stream", "application/jsonp", ""] {
        let server = Server::saying(content_type, "{}").await;
        let error = get(local(&server)).await.unwrap_err();
        assert_eq!(error, ToolError::failed("the response is neither text nor JSON"), "{content_type}");
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\nx";
    let server = Server::start(head).await;
    assert!(get(local(&server)).await.unwrap_err().message.contains("compressed"));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let target = Server::saying("text/plain", "secret").await;
    for status in [301, 302, 303, 307, 308] {
        let location = format!("http://127.0.0.1:{}/", target.port);
        let head = format!("HTTP/1.1 {status} Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
        let server = Server::start(head).await;
        let error = get(local(&server)).await.unwrap_err();
        assert!(error.message.contains(&format!("a redirect ({status})")), "{error}");
    }
    assert!(target.asked().is_empty());
}

#[tokio::test]
async fn a_status_that_is_no_success_is_an_error() {
    let server = Server::start("HTTP/1.1 404 Not Found\r\ncontent-type: text/plain\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(get(local(&server)).await, Err(ToolError::failed("the server answered with status 404")));
}

#[tokio::test]
async fn a_body_is_read_up_to_the_limit_and_no_further() {
    // It never ends: whoever read it all would wait for the time limit.
    let body = "é".repeat(50_000);
    let endless = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 900000000\r\n\r\n{body}");
    let server = Server::start(endless).await;
    let config = HttpToolConfig { max_bytes: 1_001, timeout_ms: 60_000, ..local(&server) };
    let text = get(config).await.unwrap();
    let (kept, marker) = text.rsplit_once('\n').unwrap();
    assert_eq!(kept, "é".repeat(500));
    assert_eq!(marker, "[the response is longer than 1001 bytes and was cut off here]");
}

#[tokio::test]
async fn whatever_takes_too_long_ends_in_time() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 10\r\n\r\nabc";
    for response in ["", "HTTP/1.1 200", head] {
        let server = Server::start(response).await;
        let error = get(HttpToolConfig { timeout_ms: 100, ..local(&server) }).await.unwrap_err();
        assert_eq!(error.kind, ToolErrorKind::TimedOut, "{error}");
    }
}

#[tokio::test]
async fn what_is_not_public_is_refused_before_any_connection() {
    let server = Server::saying("text/plain", "secret").await;
    let port = server.port;
    for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "127.1", "0.0.0.0"] {
        let error = get(config(format!("http://{host}:{port}/{{city}}"))).await.unwrap_err();
        assert_eq!(error.message, "the server may not be asked: it is not on the public internet", "{host}");
    }
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn one_address_that_is_not_public_speaks_against_the_name() {
    let server = Server::saying("text/plain", "secret").await;
    let loopback = format!("127.0.0.1:{}", server.port);
    for answer in [["8.8.8.8:80", loopback.as_str()], ["[2606:4700::1]:80", "169.254.169.254:80"]] {
        let names = Names::new(&[&answer]);
        let tool = HttpTool::with_lookup(config("http://api.test/{city}".into()), names).unwrap();
        assert!(call(&tool).await.unwrap_err().message.contains("not on the public internet"));
    }
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn the_connection_goes_to_the_address_that_was_checked_and_the_name_is_looked_up_once() {
    let (checked, other) = (Server::saying("text/plain", "checked").await, Server::saying("text/plain", "other").await);
    // The second lookup would lead to a port where the other server listens, if there were one.
    let [first, second] = [&checked, &other].map(|server| format!("127.0.0.1:{}", server.port));
    let names = Names::new(&[&[first.as_str()], &[second.as_str()]]);
    let url = format!("http://api.test:{}/{{city}}", checked.port);
    let lookup = Arc::clone(&names);
    let tool = HttpTool::with_lookup(HttpToolConfig { allow_private: true, ..config(url) }, lookup).unwrap();
    assert_eq!(call(&tool).await.unwrap(), "checked");
    assert_eq!(*names.asked.lock().unwrap(), ["api.test"]);
    let host = format!("host: api.test:{}", checked.port);
    assert!(checked.asked()[0].contains(&host) && other.asked().is_empty());
}

#[tokio::test]
async fn what_fails_is_said_without_addresses_and_secrets() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let unreachable = HttpToolConfig { allow_private: true, ..config(format!("http://localhost:{port}/{{city}}")) };
    let error = get(unreachable).await.unwrap_err();
    assert_eq!(error, ToolError::failed("the server could not be reached"));
    let nowhere = HttpTool::with_lookup(config("http://api.test/{city}".into()), Names::new(&[&[]])).unwrap();
    assert_eq!(call(&nowhere).await, Err(ToolError::failed("the server's name could not be found")));
    assert!(!format!("{:?}", HttpTool::new(config("https://api.test/{city}".into())).unwrap()).contains("s3cret"));
    assert!(!toml::to_string(&config("https://api.test/{city}".into())).unwrap().contains("s3cret"));
}

#[test]
fn settings_that_can_not_work_are_refused_with_their_name() {
    let good = || config("https://api.test/{city}".into());
    assert!(HttpTool::new(good()).is_ok());
    let header = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned().into())]);
    for (field, config) in [
        ("name", HttpToolConfig { name: "the weather".into(), ..good() }),
        ("name", HttpToolConfig { name: String::new(), ..good() }),
        ("description", HttpToolConfig { description: " ".into(), ..good() }),
        ("url", HttpToolConfig { url: "https://{city}/".into(), ..good() }),
        ("parameters", HttpToolConfig { parameters: BTreeMap::new(), ..good() }),
        ("parameters", HttpToolConfig { url: "https://api.test/{town}".into(), ..good() }),
        ("timeout_ms", HttpToolConfig { timeout_ms: 0, ..good() }),
        ("timeout_ms", HttpToolConfig { timeout_ms: 60_001, ..good() }),
        ("max_bytes", HttpToolConfig { max_bytes: 0, ..good() }),
        ("headers", HttpToolConfig { headers: header("Host", "internal"), ..good() }),
        ("headers", HttpToolConfig { headers: header("x y", "z"), ..good() }),
        ("headers", HttpToolConfig { headers: header("x", "a\r\nb"), ..good() }),
    ] {
        assert_eq!(HttpTool::new(config).unwrap_err().field, field);
    }
}

#[test]
fn a_model_is_told_of_every_placeholder_and_of_nothing_else() {
    let spec = HttpTool::new(config("https://api.test/{city}".into())).unwrap().spec();
    assert_eq!((spec.name.as_str(), spec.description.as_str()), ("weather", "The weather of a city."));
    let expected = json!({
        "type": "object",
        "properties": { "city": { "type": "string", "description": "Its name." } },
        "required": ["city"],
        "additionalProperties": false,
    });
    assert_eq!(spec.parameters, expected);
}
