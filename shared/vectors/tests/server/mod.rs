//! An embedded Qdrant for a test, and records to put into it.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use weir_contracts::{DocumentId, EmbeddedChunk, EmbeddingBatch, RequestId, Revision, TenantId};
use weir_vectors::{QdrantConfig, VectorStore};

/// A server that ends with the test.
pub struct Server {
    child: Child,
    data: TempDir,
    pub url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub fn start() -> Self {
        let data = TempDir::new().unwrap();
        let (child, url) = spawn(data.path());
        Self { child, data, url }
    }

    /// Kills it, and starts another one on the same data.
    pub fn restart(&mut self) {
        self.stop();
        (self.child, self.url) = spawn(self.data.path());
    }

    /// Kills it.
    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn config(&self) -> QdrantConfig {
        QdrantConfig { url: self.url.clone(), delete_grace_ms: 0, ..QdrantConfig::default() }
    }

    pub fn store(&self) -> VectorStore {
        VectorStore::connect(&self.config()).unwrap()
    }
}

fn spawn(data: &Path) -> (Child, String) {
    let test = std::env::current_exe().unwrap();
    let binary = test.parent().and_then(Path::parent).unwrap().join("qdrant-embedded");
    assert!(binary.exists(), "{} is not built: cargo build -p qdrant-embedded", binary.display());
    let mut child = Command::new(binary)
        .arg("--data")
        .arg(data)
        .args(["--listen", "127.0.0.1:0", "--log", "error"])
        .env_remove("QDRANT_API_KEY")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().rsplit(' ').next().filter(|address| address.contains(':'));
    let url = format!("http://{}", address.expect("the server says where it listens"));
    (child, url)
}

pub const MODEL: &str = "test@1/f32";

pub fn tenant(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

pub fn document(name: &str) -> DocumentId {
    DocumentId::parse(name).unwrap()
}

pub fn revision(number: i64) -> Revision {
    Revision::from_ordinal(number)
}

/// All of a revision of a document in one record; each chunk a text with its vector.
pub fn record(tenant_name: &str, document_name: &str, number: i64, chunks: &[(&str, [f32; 3])]) -> EmbeddingBatch {
    let chunks: Vec<_> =
        chunks.iter().zip(0..).map(|((text, vector), ordinal)| chunk(ordinal, text, *vector)).collect();
    EmbeddingBatch {
        tenant: tenant(tenant_name),
        document: document(document_name),
        revision: revision(number),
        request_id: RequestId::parse(format!("r{number}")).unwrap(),
        deleted: false,
        build: "build-1".into(),
        batch: 0,
        batches: 1,
        total_chunks: i32::try_from(chunks.len()).unwrap(),
        title: None,
        metadata: BTreeMap::new(),
        requested_at: 1_000,
        model: MODEL.into(),
        dimension: 3,
        failure: None,
        chunks,
    }
}

pub fn chunk(ordinal: i32, text: &str, vector: [f32; 3]) -> EmbeddedChunk {
    EmbeddedChunk {
        ordinal,
        text: text.to_owned(),
        heading_path: vec!["Part".into()],
        tokens: 3,
        start: i64::from(ordinal) * 100,
        end: i64::from(ordinal) * 100 + 100,
        vector: vector.iter().flat_map(|number| number.to_le_bytes()).collect(),
    }
}

/// The record that deletes a document.
pub fn deletion(tenant_name: &str, document_name: &str, number: i64) -> EmbeddingBatch {
    EmbeddingBatch { deleted: true, ..record(tenant_name, document_name, number, &[]) }
}

/// The same set of chunks in records of one chunk each.
pub fn split(record: &EmbeddingBatch) -> Vec<EmbeddingBatch> {
    let batches = i32::try_from(record.chunks.len()).unwrap();
    let part = |(chunk, batch): (&EmbeddedChunk, i32)| EmbeddingBatch {
        batch,
        batches,
        chunks: vec![chunk.clone()],
        ..record.clone()
    };
    record.chunks.iter().zip(0..).map(part).collect()
}
