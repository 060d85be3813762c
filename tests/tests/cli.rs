//! The command line end to end: everything up, documents in, an answer out, and nothing left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use weir_stack::ProcessId;

const PATIENCE: Duration = Duration::from_secs(60);

/// The command line on a data folder of its own. Whatever happens, nothing of it outlives the test.
struct Weir {
    folder: tempfile::TempDir,
}

impl Weir {
    fn new() -> Self {
        Self::configured("")
    }

    /// With more in its configuration.
    fn configured(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // A model without weights: what is tested is the way, not the vectors.
        std::fs::write(folder.path().join("weir.toml"), format!("[model]\nname = \"test\"\n{more}")).unwrap();
        Self { folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--data").arg(self.data()).arg("--config").arg(self.folder.path().join("weir.toml"));
        // Settings of whoever runs the tests must not lead them elsewhere.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WEIR_")) {
            command.env_remove(name);
        }
        command.args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What it prints as JSON, and whether it succeeded.
    fn json(&self, arguments: &[&str]) -> (Value, bool) {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let output = self.run(&all);
        let text = String::from_utf8(output.stdout).unwrap();
        let value = serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("weir {arguments:?}: {error}\n{text}\n{}\n{}", String::from_utf8_lossy(&output.stderr), self.logs())
        });
        (value, output.status.success())
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn path(&self, path: &str) -> String {
        self.folder.path().join(path).to_str().unwrap().to_owned()
    }

    /// The ends of the services' logs.
    fn logs(&self) -> String {
        let mut all = String::new();
        for entry in std::fs::read_dir(self.data().join("logs")).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let end: Vec<_> = text.lines().rev().take(8).collect();
            all +=
                &format!("-- {}\n{}\n", entry.path().display(), end.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        all
    }

    /// Every process that the state files name.
    fn processes(&self) -> Vec<(String, ProcessId)> {
        let mut found = Vec::new();
        for file in ["stack/state.json", "services/state.json"] {
            let Ok(text) = std::fs::read_to_string(self.data().join(file)) else { continue };
            let state: Value = serde_json::from_str(&text).unwrap();
            let mut add = |name: &Value, process: &Value| {
                if let Ok(process) = serde_json::from_value(process.clone()) {
                    found.push((name.as_str().unwrap_or(file).to_owned(), process));
                }
            };
            add(&Value::Null, &state["supervisor"]);
            for list in ["services", "instances"] {
                for one in state[list].as_array().into_iter().flatten() {
                    add(&one["name"], &one["process"]);
                }
            }
        }
        found
    }

    fn process(&self, name: &str) -> ProcessId {
        self.processes().into_iter().find(|(found, _)| found == name).unwrap_or_else(|| panic!("no process {name}")).1
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        let processes = self.processes();
        self.run(&["down"]);
        for (_, process) in processes {
            process.signal(Signal::KILL);
        }
    }
}

fn program() -> PathBuf {
    // target/<profile>/deps/cli-<hash>: the programs lie one folder up.
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("weir");
    assert!(program.is_file(), "{} is missing: build the programs first", program.display());
    program
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn from_up_to_down() {
    let collector = Collector::start();
    let weir = Weir::configured(&format!("[telemetry]\notlp_endpoint = \"{}\"\n", collector.url));
    let (up, started) = weir.json(&["up", "--free-ports"]);
    assert!(started, "{up}\n{}", weir.logs());
    assert_eq!(up["services"]["instances"].as_array().unwrap().len(), 7);
    let all = weir.processes();
    assert!(all.len() >= 12, "two supervisors, three servers, seven services: {all:?}");

    documents_become_answers(&weir);
    documents_come_from_standard_input(&weir);
    lag_is_watched(&weir);
    services_show_what_they_do(&up);
    one_trace_leads_from_a_request_to_its_end(&weir, &collector);
    what_was_rejected_is_said(&weir);
    a_document_can_be_deleted(&weir);
    what_is_left_of_deleted_documents_is_said(&weir);
    up_twice_is_harmless(&weir);
    a_killed_service_comes_back(&weir);
    a_killed_supervisor_leaves_no_services(&weir);

    let all = weir.processes();
    assert!(weir.run(&["down"]).status.success());
    let left: Vec<_> = all.into_iter().filter(|(_, process)| process.alive()).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(weir.run(&["down"]).status.success(), "down twice is harmless");
}

fn documents_become_answers(weir: &Weir) {
    weir.write("docs/otters.md", "# Otters\n\nOtters hold hands while they sleep, so that they do not drift apart.\n");
    weir.write("docs/birds/crows.txt", "Crows remember the faces of people for years.\n");
    let (sent, all_taken) = weir.json(&["ingest", &weir.path("docs"), "-m", "kind=animal"]);
    assert!(all_taken, "{sent}\n{}", weir.logs());
    assert_eq!(sent["counts"]["indexed"], 2, "{sent}");

    let (answered, _) = weir.json(&["ask", "Why do otters hold hands while they sleep?"]);
    let answer = &answered["answer"];
    assert_eq!(answer["status"], "extractive", "{answered}");
    assert_eq!(answer["citations"][0]["document"], "otters.md", "{answered}");
    let (nothing, _) = weir.json(&["ask", "--filter", "kind=plant", "Why do otters hold hands while they sleep?"]);
    assert_eq!(nothing["answer"]["citations"].as_array().unwrap().len(), 0, "the filter excludes all: {nothing}");
    let (other, _) = weir.json(&["ask", "--tenant", "stranger", "Why do otters hold hands while they sleep?"]);
    assert_eq!(other["answer"]["citations"].as_array().unwrap().len(), 0, "another tenant sees nothing: {other}");

    let (status, found) = weir.json(&["status", "birds/crows.txt"]);
    assert!(found, "{status}");
    assert_eq!(status["status"]["state"], "indexed", "{status}");
    let (status, ready) = weir.json(&["status"]);
    assert!(ready, "{status}");
    assert_eq!(status["documents"]["default"]["indexed"], 2, "{status}");
    assert!(!weir.run(&["status", "unknown.md"]).status.success());

    eventually("nothing waits", || {
        let (lag, _) = weir.json(&["lag"]);
        lag.as_array().unwrap().iter().all(|stage| stage["seconds"] == 0.0)
    });
    let (lag, _) = weir.json(&["lag"]);
    let stages: Vec<_> = lag.as_array().unwrap().iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
    let flow = ["route-documents", "extract", "chunk", "embed", "index", "route-questions", "answer", "eval"];
    let tiers = ["retry.1s", "retry.2s", "retry.4s", "retry.8s"];
    assert_eq!(stages, [flow.as_slice(), &tiers].concat());
}

fn documents_come_from_standard_input(weir: &Weir) {
    let mut command = weir.command(&["--json", "ingest", "--tenant", "lines", "--jsonl", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = b"{\"id\":\"a\",\"text\":\"One line.\"}\n{\"id\":\"b\",\"text\":\"Another line.\"}\n";
    child.stdin.take().unwrap().write_all(lines).unwrap();
    let output = child.wait_with_output().unwrap();
    let sent: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&sent["counts"]["indexed"], output.status.success()), (&Value::from(2), true), "{sent}");
}

fn lag_is_watched(weir: &Weir) {
    let mut command = weir.command(&["--json", "lag", "--watch", "--interval", "1"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let stages: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(stages.as_array().unwrap().len(), 12, "{stages}");
    }
    ProcessId::of(child.id().try_into().unwrap()).signal(Signal::INT);
    assert!(child.wait().unwrap().success());
}

/// What every stage shows; between the two parts of a line stand its labels.
const SHOWN_BY_STAGES: &[(&str, &str)] = &[
    ("weir_records_total{", "outcome=\"emitted\""),
    ("weir_batch_records_count{", "stage="),
    ("weir_process_seconds_count{", "stage="),
    ("weir_commit_seconds_count{", "stage="),
    ("weir_transactions_total{", "result=\"committed\""),
    ("weir_latency_seconds_count{", "tenant=\"default\""),
    ("weir_lanes{", "stage="),
];

/// The same of what is zero when nothing is wrong and nothing waits.
const SHOWN_AT_REST: &[&str] =
    &["weir_in_flight_records{", "weir_lag_records{", "weir_oldest_unread_seconds{", "weir_paused_lanes{"];

fn services_show_what_they_do(up: &Value) {
    let kafka = format!("peer=\"{}\"", up["stack"]["kafka"].as_str().unwrap());
    let qdrant = format!("peer=\"{}\"", up["stack"]["qdrant"].as_str().unwrap().trim_start_matches("http://"));
    for instance in up["services"]["instances"].as_array().unwrap() {
        let (service, url) = (instance["service"].as_str().unwrap(), instance["url"].as_str().unwrap());
        assert_eq!(get(url, "/healthz").0, 200);
        let (status, ready) = get(url, "/readyz");
        assert_eq!((status, ready.contains("\"ready\":true")), (200, true), "{ready}");
        let mut expected = SHOWN_BY_STAGES.to_vec();
        // Nothing failed for now.
        if service == "retry" {
            expected.retain(|(name, _)| *name == "weir_lanes{");
        }
        expected.push(("weir_process_connections{", kafka.as_str()));
        match service {
            "embed" => expected.push(("weir_embedded_tokens_total", "")),
            "index" => {
                expected.push(("weir_qdrant_request_seconds_count{", "result=\"ok\""));
                expected.push(("weir_process_connections{", qdrant.as_str()));
            }
            "generate" => {
                expected.push(("weir_retrieval_seconds_count{", "mode="));
                expected.push(("weir_generate_answer_seconds_count{", "status="));
            }
            _ => {}
        }
        eventually(&format!("{service} shows {expected:?}"), || {
            let (_, metrics) = get(url, "/metrics");
            assert!(!metrics.contains("\nweir_gpu_"), "without a GPU its metrics are absent: {metrics}");
            SHOWN_AT_REST.iter().all(|name| metrics.contains(&format!("\n{name}")))
                && expected.iter().all(|(name, label)| {
                    metrics.lines().any(|line| line.starts_with(name) && line.contains(label) && !line.ends_with(" 0"))
                })
        });
    }
}

fn one_trace_leads_from_a_request_to_its_end(weir: &Weir, collector: &Collector) {
    let (answered, _) = weir.json(&["ask", "Why do otters hold hands while they sleep?"]);
    let trace = answered["trace_id"].as_str().unwrap().to_owned();
    let question = BTreeSet::from(["route-questions", "answer", "eval"]);
    let document = BTreeSet::from(["route-documents", "extract", "chunk", "embed", "index"]);
    eventually("spans of a question and of a document, each in one trace", || {
        let traces = collector.traces(&question.union(&document).copied().collect::<Vec<_>>());
        traces.get(&trace) == Some(&question) && traces.values().any(|stages| *stages == document)
    });
}

/// Answer of a service's health server.
fn get(url: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Takes what OTLP exporters send over HTTP.
struct Collector {
    url: String,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&received);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let all = Arc::clone(&all);
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream);
                    while let Some(body) = request(&mut reader) {
                        all.lock().unwrap().extend(body);
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                        if reader.get_mut().write_all(answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { url, received }
    }

    /// The names, of these, of the spans of each trace. A span in protobuf begins with its ids: `0a 10` and the 16
    /// bytes of the trace's, `12 08` and its own; its name follows soon after, as `2a`, its length and its text.
    fn traces<'a>(&self, names: &[&'a str]) -> BTreeMap<String, BTreeSet<&'a str>> {
        let bytes = self.received.lock().unwrap();
        let mut found: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for (at, span) in bytes.windows(28).enumerate() {
            if !span.starts_with(&[0x0a, 0x10]) || span[18..20] != [0x12, 0x08] {
                continue;
            }
            let rest = &bytes[at + 28..bytes.len().min(at + 28 + 64)];
            for &name in names {
                let field = [&[0x2a, u8::try_from(name.len()).unwrap()][..], name.as_bytes()].concat();
                if rest.windows(field.len()).any(|window| window == field) {
                    found.entry(hex::encode(&span[2..18])).or_default().insert(name);
                }
            }
        }
        found
    }
}

/// The body of the next request on a connection.
fn request(reader: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim().to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(body)
}

#[test]
fn errors_say_what_to_do() {
    let weir = Weir::new();
    let error = |arguments: &[&str]| {
        let output = weir.run(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    // A prefix of its own: whatever Kafka runs on this machine, it has no such topics.
    let nothing_runs = error(&["--prefix", "nowhere.", "lag"]);
    assert!(nothing_runs.contains("`weir up` starts everything"), "{nothing_runs}");
    let json: Value = serde_json::from_str(&error(&["--json", "--prefix", "nowhere.", "dlq", "list"])).unwrap();
    assert!(json["error"].as_str().unwrap().contains("weir up"), "{json}");
    assert!(!json["causes"].as_array().unwrap().is_empty(), "{json}");
    let mistakes: [(&[&str], &str); 6] = [
        (&["ingest", "no/such/folder"], "no such file or folder"),
        (&["ingest", "-"], "--id"),
        (&["dlq", "list", "--stage", "nope"], "stages are route-documents, extract"),
        (&["ask", "--deadline=-1", "Why?"], "give seconds"),
        (&["lag", "-X", "nonsense"], "KEY=VALUE"),
        (&["lag", "--tenant", "Not Valid"], "--tenant"),
    ];
    for (arguments, said) in mistakes {
        let text = error(arguments);
        assert!(text.contains(said), "{arguments:?}: {text}");
    }
}

#[test]
fn shells_get_their_completions() {
    let weir = Weir::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = weir.run(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        let script = String::from_utf8(output.stdout).unwrap();
        for word in ["ingest", "dlq", "tenant"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
    }
}

fn what_was_rejected_is_said(weir: &Weir) {
    let binary: Vec<u8> = (0..4_096u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    weir.write("more/noise.bin", binary);
    weir.write("more/note.txt", "A note.");
    let (sent, all_taken) = weir.json(&["ingest", &weir.path("more")]);
    assert!(!all_taken, "a rejection must show in the exit code: {sent}");
    assert_eq!(sent["counts"]["indexed"], 1, "{sent}");
    assert_eq!(sent["failed"][0]["document"], "noise.bin", "{sent}");
    assert!(!sent["failed"][0]["reason"].as_str().unwrap().is_empty(), "{sent}");

    let (letters, _) = weir.json(&["dlq", "list"]);
    let letter = &letters.as_array().unwrap()[0];
    assert_eq!(letter["stage"], "extract", "{letters}");
    assert_eq!(letter["tenant"], "default", "{letters}");
    let id = letter["id"].as_str().unwrap();
    let (shown, found) = weir.json(&["dlq", "show", &id[..8]]);
    assert!(found, "{shown}");
    assert_eq!(shown["payload"]["value"]["document"], "noise.bin", "{shown}");
    assert!(!weir.run(&["dlq", "show", "zzzz"]).status.success());
}

fn a_document_can_be_deleted(weir: &Weir) {
    let (sent, deleted) = weir.json(&["ingest", "--delete", "note.txt"]);
    assert!(deleted, "{sent}\n{}", weir.logs());
    assert_eq!(sent["counts"]["deleted"], 1, "{sent}");
    let (status, _) = weir.json(&["status", "note.txt"]);
    assert_eq!(status["status"]["state"], "deleted", "{status}");
}

fn what_is_left_of_deleted_documents_is_said(weir: &Weir) {
    let fate = |report: &Value, place: &str| {
        let places = report["places"].as_array().unwrap();
        places.iter().find(|one| one["place"] == place).unwrap_or_else(|| panic!("{place}: {report}")).clone()
    };
    // Deleted before: nothing is asked for once more, and every copy that is left has its bound.
    let (report, settled) = weir.json(&["erase", "--document", "note.txt"]);
    assert!(settled, "{report}");
    assert_eq!((&report["sent"], &report["deleted"]), (&Value::from(0), &Value::from(1)), "{report}");
    assert_eq!(fate(&report, "deletion")["state"], "gone", "{report}");
    let texts = fate(&report, "documents");
    assert_eq!(texts["state"], "by", "the broker does not compact so soon: {report}");
    assert!(texts["why"].as_str().unwrap().contains("max.compaction.lag.ms (7 d)"), "{report}");
    let chunks = fate(&report, "chunks");
    let (day, bound) = (86_400_000, chunks["at"].as_i64().unwrap() - texts["at"].as_i64().unwrap());
    assert!((bound - 3 * day).abs() < day, "3 days after a segment of 7: {report}");
    assert_eq!(report["gone_by"].as_i64().unwrap() / day, fate(&report, "requests")["at"].as_i64().unwrap() / day);
    eventually("its points are gone", || {
        let (report, _) = weir.json(&["erase", "--dry-run", "--document", "note.txt"]);
        fate(&report, "Qdrant: points")["state"] == "gone"
    });

    // A whole tenant, only if somebody says so.
    let tenant = ["erase", "--tenant", "lines"];
    let refused = weir.run(&tenant);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("--yes"), "{refused:?}");
    let (report, settled) = weir.json(&[&tenant[..], &["--dry-run"]].concat());
    assert!(!settled, "two documents are not deleted: {report}");
    assert_eq!(report["pending"], serde_json::json!(["a", "b"]), "{report}");
    let (report, settled) = weir.json(&[&tenant[..], &["--yes", "--wait"]].concat());
    assert!(settled, "{report}\n{}", weir.logs());
    assert_eq!((&report["sent"], &report["deleted"]), (&Value::from(2), &Value::from(2)), "{report}");

    // What was rejected waits for somebody.
    let (report, settled) = weir.json(&["erase", "--dry-run", "--document", "noise.bin"]);
    assert!(!settled, "{report}");
    let letters = fate(&report, "dlq.*: outstanding");
    assert_eq!(letters["state"], "outstanding", "{report}");
    assert!(letters["cure"].as_str().unwrap().contains("weir dlq discard"), "{report}");
}

fn up_twice_is_harmless(weir: &Weir) {
    let before = weir.processes();
    let (_, up) = weir.json(&["up", "--free-ports"]);
    assert!(up);
    assert_eq!(weir.processes(), before);
}

fn a_killed_service_comes_back(weir: &Weir) {
    let embed = weir.process("embed-1");
    embed.signal(Signal::KILL);
    // While it is started again it has no process.
    eventually("embed runs again", || {
        weir.processes().iter().any(|(name, process)| name == "embed-1" && *process != embed)
    });
    let (_, ready) = weir.json(&["up", "--free-ports"]);
    assert!(ready);
    let (status, _) = weir.json(&["status"]);
    let instances = status["services"]["instances"].as_array().unwrap();
    let restarts: Vec<_> = instances.iter().filter(|one| one["restarts"] == 1).map(|one| &one["name"]).collect();
    assert_eq!(restarts, ["embed-1"], "{status}");
}

fn a_killed_supervisor_leaves_no_services(weir: &Weir) {
    let services: Vec<_> = weir.processes().into_iter().filter(|(name, _)| name.ends_with("-1")).collect();
    let services: Vec<_> = services.into_iter().filter(|(name, _)| !name.starts_with("kafka")).collect();
    assert_eq!(services.len(), 7, "{services:?}");
    weir.process("services/state.json").signal(Signal::KILL);
    eventually("the services are gone", || services.iter().all(|(_, process)| !process.alive()));
    let (up, ready) = weir.json(&["up", "--free-ports"]);
    assert!(ready, "{up}\n{}", weir.logs());
    let (answered, _) = weir.json(&["ask", "Why do otters hold hands while they sleep?"]);
    assert_eq!(answered["answer"]["citations"][0]["document"], "otters.md", "{answered}");
}
