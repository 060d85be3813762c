//! Servers for the tests of Qdrant's contract, and short ways to ask them.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use qdrant_client::qdrant::{
    Condition, CountPointsBuilder, CreateCollection, CreateCollectionBuilder, CreateFieldIndexCollectionBuilder,
    Distance, FieldType, Filter, GetPointsBuilder, Modifier, NamedVectors, PointStruct, Range,
    SparseVectorParamsBuilder, SparseVectorsConfigBuilder, UpsertPointsBuilder, Value, Vector, VectorParamsBuilder,
    VectorsConfigBuilder,
};
use qdrant_client::{Payload, Qdrant, QdrantError};
use serde_json::json;
use tempfile::TempDir;

/// A server under test.
pub struct Server {
    pub client: Qdrant,
    pub embedded: Option<Embedded>,
}

pub struct Embedded {
    child: Child,
    pub url: String,
}

impl Drop for Embedded {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let binary = test.parent().and_then(Path::parent).unwrap().join("qdrant-embedded");
    assert!(binary.exists(), "{} is not built: cargo build -p qdrant-embedded", binary.display());
    binary
}

impl Embedded {
    pub fn command(data: &Path) -> Command {
        let mut command = Command::new(binary());
        command.arg("--data").arg(data).args(["--listen", "127.0.0.1:0"]).env_remove("QDRANT_API_KEY");
        command
    }

    pub fn start(data: &Path, arguments: &[&str]) -> Self {
        let mut child = Self::command(data).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().filter(|address| address.contains(':'));
        let url = format!("http://{}", address.expect("the server says where it listens"));
        Self { child, url }
    }

    pub fn client(&self, key: Option<&str>) -> Qdrant {
        client(&self.url, key)
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it with SIGTERM; its exit code.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

pub fn client(url: &str, key: Option<&str>) -> Qdrant {
    Qdrant::from_url(url).api_key(key).timeout(Duration::from_secs(20)).skip_compatibility_check().build().unwrap()
}

/// Runs a case on every server there is, each with a collection of its own.
pub async fn on_every_server<F>(case: impl Fn(Qdrant, String) -> F)
where
    F: Future<Output = ()>,
{
    let data = TempDir::new().unwrap();
    let embedded = Embedded::start(data.path(), &[]);
    let mut servers = vec![Server { client: embedded.client(None), embedded: Some(embedded) }];
    if let Ok(url) = std::env::var("WEIR_TEST_QDRANT_URL") {
        let key = std::env::var("WEIR_TEST_QDRANT_API_KEY").ok();
        servers.push(Server { client: client(&url, key.as_deref()), embedded: None });
    }
    for server in servers {
        println!("on {}", if server.embedded.is_some() { "qdrant-embedded" } else { "a real Qdrant" });
        let name = fresh_name();
        case(server.client.clone(), name.clone()).await;
        let _ = server.client.delete_collection(&name).await;
    }
}

pub fn fresh_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("weir-contract-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn collection(name: &str) -> CreateCollection {
    let mut vectors = VectorsConfigBuilder::default();
    vectors.add_named_vector_params("dense", VectorParamsBuilder::new(3, Distance::Cosine));
    let mut sparse = SparseVectorsConfigBuilder::default();
    sparse.add_named_vector_params("text", SparseVectorParamsBuilder::default().modifier(Modifier::Idf));
    CreateCollectionBuilder::new(name)
        .vectors_config(vectors)
        .sparse_vectors_config(sparse)
        .metadata(HashMap::from([("weir.model".to_owned(), json!("test"))]))
        .build()
}

pub async fn create(client: &Qdrant, name: &str) {
    client.create_collection(collection(name)).await.unwrap();
    for (field, kind) in
        [("tenant", FieldType::Keyword), ("document", FieldType::Keyword), ("revision", FieldType::Integer)]
    {
        client.create_field_index(CreateFieldIndexCollectionBuilder::new(name, field, kind).wait(true)).await.unwrap();
    }
}

pub fn payload(json: serde_json::Value) -> Payload {
    Payload::try_from(json).unwrap()
}

pub fn point(id: u64, dense: [f32; 3], text: &[(u32, f32)], fields: serde_json::Value) -> PointStruct {
    let mut vectors = NamedVectors::default().add_vector("dense", Vector::new_dense(dense.to_vec()));
    if !text.is_empty() {
        let (indices, values): (Vec<_>, Vec<_>) = text.iter().copied().unzip();
        vectors = vectors.add_vector("text", Vector::new_sparse(indices, values));
    }
    PointStruct::new(id, vectors, payload(fields))
}

pub async fn upsert(client: &Qdrant, name: &str, points: Vec<PointStruct>) {
    client.upsert_points(UpsertPointsBuilder::new(name, points).wait(true)).await.unwrap();
}

pub async fn count(client: &Qdrant, name: &str, filter: Filter) -> u64 {
    let request = CountPointsBuilder::new(name).filter(filter).exact(true);
    client.count(request).await.unwrap().result.unwrap().count
}

pub async fn integer(client: &Qdrant, name: &str, id: u64, field: &str) -> Option<i64> {
    let request = GetPointsBuilder::new(name, vec![id.into()]).with_payload(true);
    let points = client.get_points(request).await.unwrap().result;
    points.first().and_then(|point| point.payload.get(field)).and_then(Value::as_integer)
}

pub fn number(id: Option<&qdrant_client::qdrant::PointId>) -> u64 {
    match id.and_then(|id| id.point_id_options.clone()) {
        Some(qdrant_client::qdrant::point_id::PointIdOptions::Num(number)) => number,
        other => panic!("not a numeric id: {other:?}"),
    }
}

pub async fn ranked(client: &Qdrant, query: impl Into<qdrant_client::qdrant::QueryPoints>) -> Vec<(u64, f32)> {
    let points = client.query(query).await.unwrap().result;
    points.iter().map(|point| (number(point.id.as_ref()), point.score)).collect()
}

pub fn code(error: &QdrantError) -> i32 {
    match error {
        QdrantError::ResponseError { status } => status.code().into(),
        other => panic!("not an answer of the server: {other}"),
    }
}

pub const INVALID_ARGUMENT: i32 = 3;
pub const NOT_FOUND: i32 = 5;
pub const PERMISSION_DENIED: i32 = 7;
pub const UNIMPLEMENTED: i32 = 12;
pub const UNAUTHENTICATED: i32 = 16;

pub fn below(field: &str, bound: f64) -> Condition {
    Condition::range(field, Range { lt: Some(bound), ..Range::default() })
}

pub fn close(left: f32, right: f32) -> bool {
    (left - right).abs() < 1e-4
}
