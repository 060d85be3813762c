//! The objects of a bucket, one after another, in the order of their keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{ClientConfigKey, Error, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};
use weir_runner::JobFailure;

const CONNECT: &str = "5s";
const REQUEST: &str = "60s";

/// A bucket, and where in it documents lie.
#[derive(Clone)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    name: String,
    prefix: Path,
}

impl Bucket {
    /// The bucket of `s3://bucket/prefix`. `options` are those of `[ingest.s3]`; the environment's `AWS_*` count as well.
    ///
    /// # Errors
    /// When the URL or an option is not valid.
    pub fn open(url: &str, options: &BTreeMap<String, String>) -> Result<Self, String> {
        let (name, prefix) = parse(url)?;
        // Set one by one: options as a whole would replace those of the environment.
        let mut builder = AmazonS3Builder::from_env()
            .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), REQUEST)
            .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::ConnectTimeout), CONNECT)
            .with_retry(RetryConfig::default());
        for (option, value) in options {
            let key = option.to_lowercase().parse().map_err(|error: Error| format!("ingest.s3.{option}: {error}"))?;
            builder = builder.with_config(key, value);
        }
        let store = builder.with_bucket_name(&name).build().map_err(|error| error.to_string())?;
        Ok(Self { store: Arc::new(store), name, prefix })
    }

    #[cfg(test)]
    pub fn of(store: Arc<dyn ObjectStore>, name: &str, prefix: &str) -> Self {
        Self { store, name: name.to_owned(), prefix: Path::from(prefix) }
    }

    /// The objects after the one with this key.
    pub fn objects(&self, after: Option<&str>) -> BoxStream<'static, Result<ObjectMeta, Error>> {
        let prefix = Some(&self.prefix).filter(|prefix| !prefix.as_ref().is_empty());
        match after {
            Some(key) => self.store.list_with_offset(prefix, &Path::from(key)),
            None => self.store.list(prefix),
        }
    }

    /// The key below the prefix.
    pub fn relative<'a>(&self, key: &'a str) -> &'a str {
        key.strip_prefix(self.prefix.as_ref()).unwrap_or(key).trim_start_matches('/')
    }

    /// Where an object lies, as a claim check names it.
    pub fn url(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.name)
    }

    /// An object's bytes, or why it is passed over.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn read(&self, location: &Path) -> Result<Result<Vec<u8>, String>, JobFailure> {
        let bytes = async { self.store.get(location).await?.bytes().await };
        match bytes.await {
            Ok(bytes) => Ok(Ok(bytes.to_vec())),
            Err(error @ (Error::NotFound { .. } | Error::PermissionDenied { .. })) => {
                Ok(Err(format!("can't be read: {error}")))
            }
            Err(error) => Err(unavailable(&error)),
        }
    }
}

/// What a failed listing comes to: a bucket that is not there stays away, anything else may heal.
pub fn unavailable(error: &Error) -> JobFailure {
    let reason = format!("the bucket: {error}");
    match error {
        Error::NotFound { .. } | Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            JobFailure::Failed(reason)
        }
        _ => JobFailure::Unavailable(reason),
    }
}

/// Bucket and prefix of an URL.
///
/// # Errors
/// When it is none of a bucket.
pub fn parse(url: &str) -> Result<(String, Path), String> {
    let invalid = || format!("{url} must be s3://bucket/ or s3://bucket/prefix/");
    let rest = url.strip_prefix("s3://").ok_or_else(invalid)?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(invalid());
    }
    let prefix = Path::parse(prefix.trim_end_matches('/')).map_err(|error| format!("{}: {error}", invalid()))?;
    Ok((bucket.to_owned(), prefix))
}

/// The next objects, as many as are wanted or there are.
///
/// # Errors
/// When the store does not answer.
pub async fn take(
    objects: &mut BoxStream<'static, Result<ObjectMeta, Error>>,
    count: usize,
) -> Result<Vec<ObjectMeta>, JobFailure> {
    let mut found = Vec::new();
    while found.len() < count {
        match objects.next().await {
            Some(Ok(object)) => found.push(object),
            Some(Err(error)) => return Err(unavailable(&error)),
            None => break,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_bucket_is_named_with_or_without_a_prefix() {
        for (url, bucket, prefix) in [
            ("s3://docs", "docs", ""),
            ("s3://docs/", "docs", ""),
            ("s3://docs/a/b", "docs", "a/b"),
            ("s3://docs/a/b/", "docs", "a/b"),
        ] {
            let parsed = parse(url).unwrap();
            assert_eq!((parsed.0.as_str(), parsed.1.as_ref()), (bucket, prefix), "{url}");
        }
        assert!(parse("s3:///a").is_err() && parse("gs://a/b").is_err());
    }
}
