//! The command line end to end: everything up, documents in, an answer out, and nothing left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
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
        let folder = tempfile::tempdir().unwrap();
        // A model without weights: what is tested is the way, not the vectors.
        std::fs::write(folder.path().join("weir.toml"), "[model]\nname = \"test\"\n").unwrap();
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
    let weir = Weir::new();
    let (up, started) = weir.json(&["up", "--free-ports"]);
    assert!(started, "{up}\n{}", weir.logs());
    assert_eq!(up["services"]["instances"].as_array().unwrap().len(), 6);
    let all = weir.processes();
    assert!(all.len() >= 11, "two supervisors, three servers, six services: {all:?}");

    documents_become_answers(&weir);
    what_was_rejected_is_said(&weir);
    a_document_can_be_deleted(&weir);
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
    assert_eq!(stages, ["route-documents", "extract", "chunk", "embed", "index", "route-questions", "answer", "eval"]);
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

fn up_twice_is_harmless(weir: &Weir) {
    let before = weir.processes();
    let (_, up) = weir.json(&["up", "--free-ports"]);
    assert!(up);
    assert_eq!(weir.processes(), before);
}

fn a_killed_service_comes_back(weir: &Weir) {
    let embed = weir.process("embed-1");
    embed.signal(Signal::KILL);
    eventually("embed runs again", || weir.process("embed-1") != embed);
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
    assert_eq!(services.len(), 6, "{services:?}");
    weir.process("services/state.json").signal(Signal::KILL);
    eventually("the services are gone", || services.iter().all(|(_, process)| !process.alive()));
    let (up, ready) = weir.json(&["up", "--free-ports"]);
    assert!(ready, "{up}\n{}", weir.logs());
    let (answered, _) = weir.json(&["ask", "Why do otters hold hands while they sleep?"]);
    assert_eq!(answered["answer"]["citations"][0]["document"], "otters.md", "{answered}");
}
