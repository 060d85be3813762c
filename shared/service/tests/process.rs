//! A service as a process: signals, exit status, health, logs, traces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

fn probe() -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    let mut command = Command::new(path.join("examples/probe"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WEIR_")) {
        command.env_remove(name);
    }
    command.args(["--set", "http.listen=127.0.0.1:0", "--set", "telemetry.log_format=json"]);
    command
}

/// A running probe; killed when dropped.
struct Running {
    child: Child,
    lines: Receiver<Value>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("examples/probe, which cargo test builds");
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
                if send.send(value).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    fn line(&self, message: &str) -> Value {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no line {message:?}"));
            if line["message"] == message {
                return line;
            }
        }
    }

    fn address(&self) -> String {
        self.line("service starts")["http"].as_str().unwrap().to_owned()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn status(&mut self) -> i32 {
        self.child.wait().unwrap().code().expect("an exit status, not a signal")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn a_service_ends_cleanly_on_sigterm_and_sigint() {
    for signal in ["-TERM", "-INT"] {
        let mut running = Running::start(&mut probe());
        running.address();
        running.signal(signal);
        assert_eq!(running.status(), 0);
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut running = Running::start(probe().args(["--set", "chunk.mode=hang"]));
    running.address();
    running.signal("-INT");
    running.line("shuts down; a second signal ends at once");
    running.signal("-INT");
    assert_eq!(running.status(), 130);
}

#[test]
fn a_failure_is_logged_and_exits_with_1() {
    let mut running = Running::start(probe().args(["--set", "chunk.mode=fail"]));
    assert_eq!(running.line("the service cannot go on")["error"], "asked to fail");
    assert_eq!(running.status(), 1);
}

#[test]
fn a_taken_port_is_said_clearly() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut running = Running::start(probe().args(["--set", &format!("http.listen={address}")]));
    let error = running.line("the service cannot go on")["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with(&format!("http.listen: {address} is taken")), "{error}");
    assert_eq!(running.status(), 1);
}

#[test]
fn a_wrong_configuration_is_one_sentence_on_the_terminal() {
    let output = probe().args(["--set", "chunk.size=13"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "weir-probe: configuration: chunk.size (--set): must not be 13\n"
    );
}

#[test]
fn health_is_served() {
    let running = Running::start(&mut probe());
    let address = running.address();
    let (status, body) = get(&address, "/healthz");
    assert_eq!(status, 200);
    assert!(body.contains("probe"), "{body}");
    let (status, body) = get(&address, "/readyz");
    assert_eq!(status, 503, "no stage runs, so it is alive but not ready");
    assert!(body.contains(r#""ready":false"#), "{body}");
    let (status, metrics) = get(&address, "/metrics");
    assert_eq!(status, 200);
    for name in ["weir_service_info", "weir_process_resident_bytes", "weir_process_open_files"] {
        assert!(metrics.contains(&format!("\n{name}")), "{name} in {metrics}");
    }
    assert!(!metrics.contains("weir_process_connections{"), "who asks is not a connection it opened: {metrics}");
    assert!(metrics.contains("# HELP weir_process_threads Threads of the process."), "{metrics}");
}

#[test]
fn logs_are_events_with_the_fields_of_their_spans_and_the_trace() {
    let running = Running::start(&mut probe());
    let line = running.line("at work");
    assert_eq!(line["tenant"], "acme");
    assert_eq!(line["revision"], 7);
    assert_eq!(line["lane"], 3);
    assert_eq!(line["span"], "work");
    assert_eq!(line["service"], "probe");
    assert_eq!(line["level"], "info");
    assert_eq!(line["trace_id"].as_str().map(str::len), Some(32));
}

#[test]
fn spans_reach_a_collector_before_the_process_ends() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let (send, requests) = channel();
    std::thread::spawn(move || {
        let (mut stream, _) = collector.accept().unwrap();
        let mut bytes = vec![0; 65_536];
        let mut seen = Vec::new();
        // The body is small; head and body may come apart.
        while !["weir-probe", "work", "record"].iter().all(|part| String::from_utf8_lossy(&seen).contains(part)) {
            let count = stream.read(&mut bytes).unwrap();
            assert!(count > 0, "connection closed early");
            seen.extend_from_slice(&bytes[..count]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        send.send(String::from_utf8_lossy(&seen).into_owned()).unwrap();
    });
    let mut running = Running::start(probe().args(["--set", &format!("telemetry.otlp_endpoint={endpoint}")]));
    running.line("at work");
    running.signal("-TERM");
    assert_eq!(running.status(), 0);
    let request = requests.recv_timeout(PATIENCE).expect("an export");
    assert!(request.starts_with("POST /v1/traces "), "{request}");
}

#[test]
fn metrics_can_be_listed_without_starting() {
    let output = probe().arg("--print-metrics").output().unwrap();
    let listed: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(listed.iter().any(|metric| metric["name"] == "weir_service_info" && metric["kind"] == "gauge"));
}

#[test]
fn help_shows_examples() {
    let output = probe().arg("--help").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("Waits until it is told to end.") && text.contains("weir-probe --config weir.toml"),
        "{text}"
    );
    assert!(!text.contains("print-metrics"), "{text}");
}
