//! `weir stack` and `weir doctor` as a user meets them: the program, real processes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use weir_stack::{ProcessId, SaslSsl, Stack, StackConfig, StackState, User};

fn weir(data: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.args(args).arg("--data").arg(data);
    command
}

/// Kafka alone, so that a start takes seconds: the others are named, and nothing asks them.
fn stack(data: &Path, args: &[&str]) -> Command {
    let elsewhere = ["--registry", "http://127.0.0.1:9", "--qdrant", "http://127.0.0.1:9"];
    weir(data, &[&["stack"][..], args, &elsewhere].concat())
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn done(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    output
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(output)))
}

fn within(seconds: u64, what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {seconds} s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Ends the stack also when the test fails.
struct Down<'a>(&'a Path);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        let _ = stack(self.0, &["down"]).output();
    }
}

#[test]
fn up_twice_is_harmless_a_killed_supervisor_leaves_nothing_and_up_recovers() {
    let data = tempfile::tempdir().unwrap();
    let _down = Down(data.path());
    // Both at the same moment: one starts it, the other waits for it.
    let up = || stack(data.path(), &["up", "--free-ports", "--json"]);
    let at_once = std::thread::scope(|scope| [(); 2].map(|()| scope.spawn(|| json(&done(up())))).map(|up| up.join()));
    let [first, other] = at_once.map(Result::unwrap);
    assert_eq!(first["endpoints"], other["endpoints"]);
    assert!(first["already_running"] != other["already_running"], "{first} {other}");
    let second = json(&done(stack(data.path(), &["up", "--free-ports", "--json"])));
    assert_eq!(second["already_running"], true);
    assert_eq!(first["endpoints"], second["endpoints"]);

    let other = stack(data.path(), &["up", "--free-ports", "--brokers", "3"]).output().unwrap();
    assert!(!other.status.success() && said(&other).contains("weir stack down"), "{}", said(&other));

    let status = json(&done(stack(data.path(), &["status", "--json"])));
    assert_eq!(status["ready"], true);
    let state = StackState::read(data.path()).unwrap();
    let broker = state.services[0].process.unwrap();
    assert!(broker.alive());

    // A broker that dies is started again.
    broker.signal(Signal::KILL);
    let restarted = || {
        let state = StackState::read(data.path()).unwrap();
        state.services[0].restarts == 1 && state.services[0].phase == weir_stack::Phase::Ready
    };
    within(40, "the broker is started again", restarted);

    let state = StackState::read(data.path()).unwrap();
    let processes: Vec<ProcessId> = state.services.iter().filter_map(|service| service.process).collect();
    assert!(processes.iter().all(|process| process.alive()));
    state.supervisor.signal(Signal::KILL);
    within(5, "the services end with their supervisor", || processes.iter().all(|process| !process.alive()));
    let status = stack(data.path(), &["status", "--json"]).output().unwrap();
    assert_eq!(json(&status)["running"], false);

    let again = json(&done(stack(data.path(), &["up", "--free-ports", "--json"])));
    assert_eq!(again["already_running"], false);
    let logs = done(stack(data.path(), &["logs", "kafka-1", "-n", "5"]));
    assert_eq!(String::from_utf8_lossy(&logs.stdout).lines().count(), 5);
    let state = StackState::read(data.path()).unwrap();
    done(stack(data.path(), &["down"]));
    assert!(!state.supervisor.alive() && state.services.iter().all(|service| !service.process.unwrap().alive()));
    assert!(said(&done(stack(data.path(), &["down"]))).contains("No stack ran"));

    // One that is only being prepared is ended, too.
    let mut begun = up().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    within(20, "the supervisor says that it is there", || StackState::read(data.path()).is_some());
    let supervisor = StackState::read(data.path()).unwrap().supervisor;
    done(stack(data.path(), &["down"]));
    assert!(!supervisor.alive() && !begun.wait().unwrap().success());

    // What the supervisor finds wrong, whoever called `up` is told.
    std::fs::write(data.path().join("stack/cluster.json"), "{").unwrap();
    let broken = up().output().unwrap();
    assert_eq!(broken.status.code(), Some(1));
    assert!(
        said(&broken).contains("cluster.json") && said(&broken).contains("remove that folder"),
        "{}",
        said(&broken)
    );
    assert!(StackState::read(data.path()).is_none());
}

#[test]
fn a_taken_port_and_a_missing_or_old_java_each_say_what_to_do() {
    let data = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let output = stack(data.path(), &["up", "--kafka-port", &port]).output().unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains(&port) && text.contains(&format!("process {}", std::process::id())), "{text}");
    assert!(text.contains("--kafka-port"), "{text}");

    let java = |home: &Path| {
        let output = stack(data.path(), &["up", "--free-ports"]).env("JAVA_HOME", home).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        said(&output)
    };
    let text = java(&data.path().join("nowhere"));
    assert!(text.contains("Java was not found") && text.contains("openjdk-17"), "{text}");
    let old = data.path().join("old/bin");
    std::fs::create_dir_all(&old).unwrap();
    std::fs::write(old.join("java"), "#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n").unwrap();
    done({
        let mut chmod = Command::new("chmod");
        chmod.arg("+x").arg(old.join("java"));
        chmod
    });
    let text = java(&data.path().join("old"));
    assert!(text.contains("is Java 11"), "{text}");
}

fn user(name: &str, superuser: bool) -> User {
    User { name: name.into(), password: format!("{name}-secret"), superuser }
}

/// Findings of Kafka: check, level, and what is said.
fn doctor(stack: &Stack, data: &Path, user: &User) -> Vec<(String, String, String)> {
    findings(&mut secured(stack, data, user, &["doctor", "--json"]), "kafka")
}

fn findings(doctor: &mut Command, area: &str) -> Vec<(String, String, String)> {
    let findings = json(&doctor.output().unwrap())["findings"].as_array().unwrap().clone();
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    findings
        .iter()
        .filter(|finding| finding["area"] == area)
        .map(|finding| {
            let more = format!("{} -> {}", text(finding, "says"), text(finding, "fix"));
            (text(finding, "check"), text(finding, "level"), more)
        })
        .collect()
}

fn secured(stack: &Stack, data: &Path, user: &User, args: &[&str]) -> Command {
    let mut command = weir(data, args);
    command.args(["--kafka", &stack.kafka_brokers(), "--registry", "http://127.0.0.1:9"]);
    command.args(["--qdrant", "http://127.0.0.1:9"]);
    for (key, value) in stack.kafka_properties_of(user) {
        command.arg("-X").arg(format!("{key}={value}"));
    }
    command
}

#[tokio::test]
async fn the_doctor_finds_over_sasl_ssl_what_is_wrong_and_what_to_do() {
    let data = tempfile::tempdir().unwrap();
    let (admin, guest) = (user("admin", true), user("guest", false));
    let security = SaslSsl { users: vec![admin.clone(), guest.clone()], authorize: true };
    let mut config = StackConfig { security: Some(security), ..StackConfig::for_test(data.path()) };
    config.broker_properties.insert("transaction.max.timeout.ms".into(), "5000".into());
    let stack = Stack::start(config).await.unwrap();
    let level = |found: &[(String, String, String)], check: &str| -> (String, String) {
        let one = found.iter().find(|(name, ..)| name == check);
        let (_, level, more) = one.unwrap_or_else(|| panic!("no {check} in {found:?}"));
        (level.clone(), more.clone())
    };

    // Before the topics are there.
    let found = doctor(&stack, data.path(), &admin);
    assert_eq!(level(&found, "brokers").0, "ok");
    assert_eq!(level(&found, "topics").0, "fail");
    assert!(level(&found, "topics").1.contains("weir topics apply"), "{found:?}");
    done(secured(&stack, data.path(), &admin, &["topics", "apply"]));
    done(secured(&stack, data.path(), &admin, &["topics", "diff"]));

    // The limit on transactions is below what the runner wants, in the settings and when it is tried.
    let found = doctor(&stack, data.path(), &admin);
    for check in ["topics", "create", "read", "sessions", "min.isr"] {
        assert_eq!(level(&found, check).0, "ok", "{check}: {found:?}");
    }
    for check in ["transactions", "transaction"] {
        assert_eq!(level(&found, check).0, "fail", "{check}: {found:?}");
        assert!(level(&found, check).1.contains("transaction_timeout_ms"), "{found:?}");
    }

    // A guest may log in and nothing else.
    let found = doctor(&stack, data.path(), &guest);
    assert_eq!(level(&found, "brokers").0, "ok");
    for check in ["read", "transaction"] {
        let (level, more) = level(&found, check);
        assert_eq!(level, "fail", "{check}: {found:?}");
        assert!(more.contains("kafka-acls") && more.contains("User:guest"), "{more}");
    }

    let stranger = User { password: "guessed".into(), ..admin };
    let found = doctor(&stack, data.path(), &stranger);
    let (level, more) = level(&found, "brokers");
    assert_eq!(level, "fail");
    assert!(more.to_lowercase().contains("authentication") && more.contains("sasl.password"), "{more}");
    stack.stop().await;
}

/// A Qdrant that asks for a key; ended with the test.
struct Qdrant(Child, String);

impl Qdrant {
    fn start(data: &Path, key: &str) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_weir")).with_file_name("qdrant-embedded");
        let mut command = Command::new(program);
        command.arg("--data").arg(data).args(["--listen", "127.0.0.1:0", "--api-key", key]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().to_owned();
        Self(child, format!("http://{address}"))
    }
}

impl Drop for Qdrant {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_doctor_says_when_qdrant_wants_another_key() {
    let data = tempfile::tempdir().unwrap();
    let qdrant = Qdrant::start(&data.path().join("qdrant"), "open-sesame");
    let doctor = &|key: &str| {
        let elsewhere = ["--kafka", "127.0.0.1:9", "--registry", "http://127.0.0.1:9", "--qdrant", &qdrant.1];
        let mut command = weir(data.path(), &[&["doctor", "--json", "--qdrant-api-key", key][..], &elsewhere].concat());
        findings(&mut command, "qdrant")
    };
    // At once: both wait for a Kafka that is not there.
    let found = std::thread::scope(|scope| {
        ["guessed", "open-sesame"].map(|key| scope.spawn(move || doctor(key))).map(|one| one.join())
    });
    let [found, known] = found.map(Result::unwrap);
    let (_, _, more) = found.iter().find(|(check, level, _)| check == "rights" && level == "fail").unwrap();
    assert!(more.contains("--qdrant-api-key"), "{more}");
    assert!(known.iter().all(|(_, level, _)| level == "ok"), "{known:?}");
}
