//! The peers: `scripts/embed_peers.py` in its virtual environment, asked for one figure at a time.

use std::fs;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use color_eyre::eyre::{Result, ensure, eyre};
use serde_json::{Value, json};

use super::texts::Set;

/// See the module.
pub struct Peers {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
    /// Those there are on the processor.
    pub peers: Vec<Peer>,
    /// The one on the GPU, if there is a GPU.
    pub on_gpu: Option<Peer>,
    /// Version of each package.
    pub versions: Value,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    /// What it computes in: `f32`, `bf16`, `f16` or `int8`.
    pub precision: String,
}

impl Peers {
    /// Sets the environment up if it is not there, and starts the peers on these texts.
    pub fn start<'a>(model: &Path, sets: impl Iterator<Item = &'a Set>) -> Result<Self> {
        let set_up = Command::new("scripts/embed_peers.sh").stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        ensure!(set_up.status.success(), "scripts/embed_peers.sh failed, see above");
        let folder = tempfile::tempdir()?;
        let texts = folder.path().join("texts.jsonl");
        let lines = sets
            .flat_map(|set| set.texts.iter().map(|text| json!({ "set": set.name, "text": text }).to_string() + "\n"));
        fs::write(&texts, lines.collect::<String>())?;
        let mut process = Command::new(String::from_utf8(set_up.stdout)?.trim())
            .arg("scripts/embed_peers.py")
            .arg(model)
            .arg(&texts)
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.path().join("log"))?)
            .spawn()?;
        let (Some(requests), Some(answers)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(eyre!("the peers have no pipes"));
        };
        let answers = BufReader::new(answers);
        let (peers, versions) = (Vec::new(), Value::Null);
        let mut peers = Self { process, requests, answers, folder, peers, on_gpu: None, versions };
        let list = peers.ask(&json!({ "do": "list" }))?;
        let text = |peer: &Value, field: &str| peer.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let peer = |peer: &Value| Peer { name: text(peer, "name"), precision: text(peer, "precision") };
        peers.peers = list.get("peers").and_then(Value::as_array).into_iter().flatten().map(peer).collect();
        peers.on_gpu = list.get("on_gpu").filter(|found| !found.is_null()).map(peer);
        peers.versions = list.get("versions").cloned().unwrap_or_default();
        Ok(peers)
    }

    /// Lets a peer find its best batch size for a set; returns it, and what the peer computes in on this processor.
    pub fn tune(&mut self, peer: &Peer, set: &Set, threads: usize) -> Result<(u64, String)> {
        let answer = self.ask(&json!({ "do": "tune", "peer": peer.name, "set": set.name, "threads": threads }))?;
        let batch = answer.get("batch").and_then(Value::as_u64).unwrap_or_default();
        let computed_in = answer.get("computed_in").and_then(Value::as_str).unwrap_or_default();
        Ok((batch, computed_in.to_owned()))
    }

    /// Seconds a peer takes for a set.
    pub fn seconds(&mut self, peer: &Peer, set: &Set, threads: usize) -> Result<f64> {
        let answer = self.ask(&json!({ "do": "run", "peer": peer.name, "set": set.name, "threads": threads }))?;
        answer.get("seconds").and_then(Value::as_f64).ok_or_else(|| eyre!("{} gave no time: {answer}", peer.name))
    }

    /// How near the vectors that a peer computed last are to torch's in f32.
    pub fn accuracy(&mut self, peer: &Peer, set: &Set) -> Result<Value> {
        self.ask(&json!({ "do": "compare", "peer": peer.name, "set": set.name }))
    }

    /// The same of our vectors.
    pub fn accuracy_of(&mut self, vectors: &[Vec<f32>], set: &Set) -> Result<Value> {
        let file = self.folder.path().join("vectors");
        let bytes: Vec<u8> = vectors.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
        fs::write(&file, bytes)?;
        self.ask(&json!({ "do": "compare", "file": file, "set": set.name }))
    }

    fn ask(&mut self, request: &Value) -> Result<Value> {
        let mut answer = String::new();
        let asked = writeln!(self.requests, "{request}").and_then(|()| self.answers.read_line(&mut answer));
        if asked.is_err() || answer.is_empty() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            return Err(eyre!("the peers ended: {}", log.lines().last().unwrap_or_default()));
        }
        let answer: Value = serde_json::from_str(&answer)?;
        match answer.get("error") {
            Some(error) => Err(eyre!("{request}: {error}")),
            None => Ok(answer),
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
