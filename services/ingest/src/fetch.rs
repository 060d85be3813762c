//! Claim checks: documents that lie elsewhere because they are too large for a record.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, Error, ObjectStore, ObjectStoreExt, RetryConfig};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::config::IngestConfig;
use crate::formats::Refusal;
use crate::metric;

/// Classes of failures of claim checks.
const NOT_ALLOWED: &str = "uri-not-allowed";
const NOT_FOUND: &str = "uri-not-found";
const DENIED: &str = "uri-denied";
const REFUSED: &str = "uri-refused";
const FAILING: &str = "uri-failing";

/// Why a document was not fetched.
#[derive(Debug)]
pub enum FetchError {
    /// Its store is not there at all; the document may be fine.
    Unavailable(String),
    /// Its store is there, but failed or took too long over this document; others may be fine.
    Later {
        /// Class of the failure.
        class: &'static str,
        /// What happened.
        reason: String,
    },
    /// The document itself is refused.
    Refused(Refusal),
    /// The claim leads nowhere.
    Claim {
        /// Class of the failure.
        class: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
}

/// A fetched document; it counts against the limit of fetches while it lives.
#[derive(Debug)]
pub struct Fetched<'a> {
    /// Its bytes.
    pub bytes: Vec<u8>,
    _permit: SemaphorePermit<'a>,
}

/// Fetches documents from allowed places.
#[derive(Debug)]
pub struct Claims {
    allowed: Vec<String>,
    s3: BTreeMap<String, String>,
    permits: Semaphore,
    buckets: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
}

/// Checks a URL under which documents may lie.
pub(crate) fn check_prefix(url: &str) -> Result<(), String> {
    let good = match url.split_once("://") {
        Some(("file", path)) => path.starts_with('/') && path.len() > 1,
        Some(("s3", rest)) => !rest.is_empty() && !rest.starts_with('/'),
        _ => false,
    };
    let plain = !url.contains("/../") && !url.ends_with("/..") && !url.contains(['?', '#', '%']);
    if good && plain {
        return Ok(());
    }
    Err(format!("{url:?} must be file:///folder/ or s3://bucket/prefix/, without .., ?, # and %"))
}

impl Claims {
    /// Claims under the configured URLs.
    #[must_use]
    pub fn new(config: &IngestConfig) -> Self {
        Self {
            allowed: config.allow_urls.clone(),
            s3: config.s3.clone(),
            permits: Semaphore::new(config.fetches.max(1)),
            buckets: Mutex::default(),
        }
    }

    /// Fetches a document of at most `max_bytes`.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch(&self, uri: &str, max_bytes: usize) -> Result<Fetched<'_>, FetchError> {
        let prefix = self.allowing(uri)?;
        let permit = self.permits.acquire().await.map_err(|closed| FetchError::Unavailable(closed.to_string()))?;
        let begun = Instant::now();
        let (store, path) = match uri.strip_prefix("file://") {
            Some(file) => local(file, prefix).await?,
            None => self.bucket(uri)?,
        };
        let bytes = download(store.as_ref(), &path, uri, max_bytes).await?;
        metrics::histogram!(metric::FETCH_SECONDS).record(begun.elapsed().as_secs_f64());
        Ok(Fetched { bytes, _permit: permit })
    }

    /// The allowed URL that covers this one.
    fn allowing(&self, uri: &str) -> Result<&str, FetchError> {
        let claim = |reason: String| FetchError::Claim { class: NOT_ALLOWED, reason };
        let shown: String = uri.chars().take(200).collect();
        if uri.split('/').any(|segment| segment == "..") || uri.contains(['?', '#', '%', '\\']) {
            return Err(claim(format!(
                "content_uri {shown:?} must name its place plainly, without .., ?, #, % and \\"
            )));
        }
        let covers = |prefix: &&String| {
            uri.strip_prefix(prefix.as_str())
                .is_some_and(|rest| prefix.ends_with('/') && !rest.is_empty() || rest.starts_with('/'))
        };
        if let Some(prefix) = self.allowed.iter().find(covers) {
            return Ok(prefix);
        }
        let allowed = match self.allowed.as_slice() {
            [] => "no URL is allowed".to_owned(),
            urls => format!("allowed are {}", urls.join(", ")),
        };
        Err(claim(format!("content_uri {shown:?} is not allowed: {allowed}; add its URL to ingest.allow_urls")))
    }

    /// The store of a bucket, and the place in it.
    fn bucket(&self, uri: &str) -> Result<(Arc<dyn ObjectStore>, Path), FetchError> {
        let rest = uri.strip_prefix("s3://").unwrap_or(uri);
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let invalid = |reason: String| FetchError::Claim { class: NOT_FOUND, reason };
        let path = Path::parse(key).map_err(|error| invalid(format!("content_uri names no object: {error}")))?;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = buckets.get(bucket) {
            return Ok((Arc::clone(store), path));
        }
        let store = self.open_bucket(bucket).map_err(|error| FetchError::Unavailable(error.to_string()))?;
        buckets.insert(bucket.to_owned(), Arc::clone(&store));
        Ok((store, path))
    }

    fn open_bucket(&self, bucket: &str) -> Result<Arc<dyn ObjectStore>, Error> {
        // The runner tries again, with longer pauses; here only what is over in a moment is bridged.
        let retry = RetryConfig {
            backoff: BackoffConfig { init_backoff: Duration::from_millis(100), ..BackoffConfig::default() },
            max_retries: 2,
            retry_timeout: Duration::from_secs(10),
        };
        // Set one by one: options as a whole would replace those of the environment.
        let mut builder = AmazonS3Builder::from_env()
            .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), "60s")
            .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::ConnectTimeout), "5s")
            .with_retry(retry);
        for (name, value) in &self.s3 {
            builder = builder.with_config(name.to_lowercase().parse()?, value);
        }
        Ok(Arc::new(builder.with_bucket_name(bucket).build()?))
    }
}

/// The file system and the place in it. What the name leads to, links followed, must lie under the allowed folder.
async fn local(file: &str, prefix: &str) -> Result<(Arc<dyn ObjectStore>, Path), FetchError> {
    let root = PathBuf::from(prefix.strip_prefix("file://").unwrap_or(prefix));
    let unavailable = |error: std::io::Error| FetchError::Unavailable(format!("{}: {error}", root.display()));
    let root = tokio::fs::canonicalize(&root).await.map_err(unavailable)?;
    let found = match tokio::fs::canonicalize(FilePath::new(file)).await {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(not_found(file)),
        Err(error) => return Err(unavailable(error)),
    };
    if !found.starts_with(&root) {
        let reason = format!("content_uri leads through a link to a place outside {}", root.display());
        return Err(FetchError::Claim { class: NOT_ALLOWED, reason });
    }
    if !found.is_file() {
        return Err(not_found(file));
    }
    let path = Path::from_absolute_path(&found).map_err(|_| not_found(file))?;
    Ok((Arc::new(LocalFileSystem::new()), path))
}

fn not_found(uri: &str) -> FetchError {
    let shown: String = uri.chars().take(200).collect();
    FetchError::Claim { class: NOT_FOUND, reason: format!("there is no document at content_uri {shown:?}") }
}

/// Reads an object, and stops where it becomes too large.
async fn download(store: &dyn ObjectStore, path: &Path, uri: &str, max_bytes: usize) -> Result<Vec<u8>, FetchError> {
    let too_large =
        |bytes: usize| FetchError::Refused(Refusal::TooLarge { what: "the document".into(), bytes, limit: max_bytes });
    let found = store.get(path).await.map_err(|error| explain(error, uri))?;
    let size = usize::try_from(found.meta.size).unwrap_or(usize::MAX);
    if size > max_bytes {
        return Err(too_large(size));
    }
    let mut bytes = Vec::with_capacity(size);
    let mut stream = found.into_stream();
    while let Some(part) = stream.next().await {
        let part: Bytes = part.map_err(|error| explain(error, uri))?;
        if bytes.len() + part.len() > max_bytes {
            return Err(too_large(bytes.len() + part.len()));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

/// Whose fault it is: the claim's, that of the store for this document, or that of a store that is not there.
fn explain(error: Error, uri: &str) -> FetchError {
    let shown: String = uri.chars().take(200).collect();
    match error {
        Error::NotFound { .. } | Error::InvalidPath { .. } => not_found(uri),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            let reason =
                format!("the service may not read content_uri {shown:?}: grant it the right, or send the content");
            FetchError::Claim { class: DENIED, reason }
        }
        error => match Answer::of(&error) {
            Answer::Status(408 | 429 | 500..=599) | Answer::Broken => {
                let error: String = error.to_string().chars().take(300).collect();
                let reason = format!("the store of content_uri {shown:?} failed: {error}");
                FetchError::Later { class: FAILING, reason }
            }
            Answer::Status(status @ 400..=499) => {
                let reason = format!("the store of content_uri {shown:?} refused the request with status {status}");
                FetchError::Claim { class: REFUSED, reason }
            }
            Answer::Status(_) | Answer::None => FetchError::Unavailable(error.to_string()),
        },
    }
}

/// What a store said when it did not give a document.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// This HTTP status.
    Status(u16),
    /// Too little or too late: a timeout, a connection that broke.
    Broken,
    /// Nothing: nobody listens, or it is not a store one talks to.
    None,
}

impl Answer {
    fn of(error: &Error) -> Self {
        /// How object_store words a status; it does not export the type of that error.
        const STATUS: &str = "Server returned non-2xx status code: ";
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<HttpError>() {
                return if error.kind() == HttpErrorKind::Connect { Self::None } else { Self::Broken };
            }
            let status = error.to_string().strip_prefix(STATUS).and_then(|rest| rest.get(..3)?.parse().ok());
            if let Some(status) = status {
                return Self::Status(status);
            }
            cause = error.source();
        }
        Self::None
    }
}
