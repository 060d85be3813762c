//! The object store that claim checks lead to: as much of S3 as a download needs, and failing as the workload wants.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::workload::There;

/// The bucket.
pub const BUCKET: &str = "chaos";
/// Longest head of a request that is read.
const LONGEST_HEAD: usize = 16 << 10;
/// A client that says nothing is left after this long.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Object {
    text: String,
    there: There,
    since: Instant,
}

#[derive(Debug, Default)]
struct Inner {
    objects: Mutex<HashMap<String, Object>>,
    healed: AtomicBool,
    failed: AtomicU64,
}

/// The store; clones are the same one. It ends with the runtime it was started in.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
    address: String,
}

impl Store {
    /// Starts to listen on a free port.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", listener.local_addr()?);
        let inner = Arc::new(Inner::default());
        let shared = Arc::clone(&inner);
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let inner = Arc::clone(&shared);
                tokio::spawn(async move {
                    // A client that goes away is no business of the store.
                    let _ = tokio::time::timeout(PATIENCE, inner.serve(stream)).await;
                });
            }
        });
        Ok(Self { inner, address })
    }

    /// URL of its endpoint.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Puts something there, as of now.
    pub fn put(&self, name: &str, text: &str, there: There) {
        let object = Object { text: text.to_owned(), there, since: Instant::now() };
        self.inner.objects.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), object);
    }

    /// From now on nothing fails and nothing is missing.
    pub fn heal(&self) {
        self.inner.healed.store(true, Ordering::Release);
    }

    /// How often it failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.inner.failed.load(Ordering::Relaxed)
    }
}

impl Inner {
    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        let mut part = [0; 2048];
        while !head.windows(4).any(|four| four == b"\r\n\r\n") && head.len() < LONGEST_HEAD {
            let read = stream.read(&mut part).await?;
            if read == 0 {
                return Ok(());
            }
            head.extend_from_slice(part.get(..read).unwrap_or_default());
        }
        let head = String::from_utf8_lossy(&head);
        let path = head.split(' ').nth(1).unwrap_or_default();
        let name = path.strip_prefix('/').and_then(|path| path.strip_prefix(BUCKET)?.strip_prefix('/'));
        let (status, body) = self.answer(name.unwrap_or_default());
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"1\"\r\nLast-Modified: Tue, 01 Jul 2025 10:00:00 \
             GMT\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    }

    fn answer(&self, name: &str) -> (&'static str, String) {
        let healed = self.healed.load(Ordering::Acquire);
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(object) = objects.get(name) else { return ("404 Not Found", String::new()) };
        let fails = match object.there {
            _ if healed => None,
            There::Always => None,
            There::After(time) => (object.since.elapsed() < time).then_some("503 Slow Down"),
            There::FailingUntilHealed => Some("503 Slow Down"),
            There::MissingUntilHealed => Some("404 Not Found"),
        };
        match fails {
            Some(status) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                (status, String::new())
            }
            None => ("200 OK", object.text.clone()),
        }
    }
}
