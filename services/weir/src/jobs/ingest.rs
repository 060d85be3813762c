//! Bulk ingest as a job: a folder or a bucket, in order, a few hundred documents between two checkpoints.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use color_eyre::eyre::bail;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::ObjectMeta;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use weir_contracts::{DocumentId, Job, RequestId, TenantId, length_prefixed_hash};
use weir_runner::{JobFailure, JobKind, JobStep, JobWork, RunnerConfig};
use weir_stage::Output;

use super::bucket::{self, Bucket};
use super::walk;
use crate::collect::{Found, Source, document_id};
use crate::context::Context;
use crate::send::{self, LargeFiles};

/// Documents between two checkpoints, at most, unless said otherwise.
pub const CHECKPOINT_EVERY: usize = 500;
/// Bytes of documents between two checkpoints (some may exceed it): a transaction must end long before it times out.
const BYTES: usize = 8 << 20;
/// Documents that are read at once.
const AT_ONCE: usize = 16;

/// What is to be sent, and as what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IngestSpec {
    /// A folder, by its whole path, or `s3://bucket/prefix/`.
    pub source: String,
    /// Put before every id.
    pub id_prefix: String,
    /// Also files and folders whose names begin with a dot.
    pub hidden: bool,
    /// What does not fit into a record is sent as a link.
    pub claim_check: bool,
    /// Media type of all.
    pub content_type: Option<String>,
    /// Title of all.
    pub title: Option<String>,
    /// Metadata of all.
    pub metadata: BTreeMap<String, String>,
    /// Documents between two checkpoints.
    pub checkpoint_every: usize,
}

impl IngestSpec {
    /// The source as any worker finds it.
    ///
    /// # Errors
    /// When it is neither a folder nor a bucket.
    pub fn source(named: &str) -> color_eyre::Result<String> {
        if named.contains("://") {
            bucket::parse(named).map_err(color_eyre::eyre::Report::msg)?;
            return Ok(named.to_owned());
        }
        if !Path::new(named).is_dir() {
            bail!("{named} is no folder: as a job a folder or s3://bucket/prefix/ is sent");
        }
        match std::fs::canonicalize(named)?.into_os_string().into_string() {
            Ok(path) => Ok(path),
            Err(path) => bail!("the path {} is not UTF-8", path.display()),
        }
    }
}

/// The kind `ingest`.
pub struct Ingest {
    /// Largest record, bytes.
    limit: usize,
    /// How to reach buckets.
    s3: BTreeMap<String, String>,
}

/// Of `[ingest]`, what reading buckets needs.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Section {
    s3: BTreeMap<String, String>,
}

impl Ingest {
    /// Name of the kind.
    pub const NAME: &'static str = "ingest";

    /// The kind, as it is configured here.
    ///
    /// # Errors
    /// When a section of the configuration is not valid.
    pub fn new(context: &Context) -> color_eyre::Result<Self> {
        let limit = context.section::<RunnerConfig>("runner")?.max_record_bytes;
        Ok(Self { limit, s3: context.section::<Section>("ingest")?.s3 })
    }
}

impl JobKind for Ingest {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn open<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Box<dyn JobWork>, JobFailure>> {
        async move {
            let spec: IngestSpec = serde_json::from_str(&job.spec).map_err(invalid)?;
            let checkpoint: Option<Checkpoint> =
                job.checkpoint.as_deref().map(serde_json::from_str).transpose().map_err(invalid)?;
            let tenant = job.tenant.clone().ok_or_else(|| JobFailure::Failed("the job names no tenant".into()))?;
            let after = checkpoint.as_ref().and_then(|checkpoint| checkpoint.last.clone());
            let places = if spec.source.starts_with("s3://") {
                let bucket = Bucket::open(&spec.source, &self.s3).map_err(JobFailure::Failed)?;
                Places::bucket(bucket, after.as_deref())
            } else {
                Places::folder(&spec, after)?
            };
            let checkpoint = match checkpoint {
                Some(checkpoint) => checkpoint,
                None => Checkpoint { total: count(&spec).await?, ..Checkpoint::default() },
            };
            Ok(Box::new(Work::new(job.id.clone(), tenant, spec, self.limit, places, checkpoint)) as Box<dyn JobWork>)
        }
        .boxed()
    }
}

/// How many files there are; nothing for a bucket, which would have to be listed whole.
async fn count(spec: &IngestSpec) -> Result<Option<u64>, JobFailure> {
    if spec.source.starts_with("s3://") {
        return Ok(None);
    }
    let files = walk::files(Path::new(&spec.source), spec.hidden, None);
    let count = tokio::task::spawn_blocking(move || files.count()).await.map_err(invalid)?;
    Ok(u64::try_from(count).ok())
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    /// Path below the folder, or key in the bucket, of the last document that was dealt with.
    last: Option<String>,
    done: u64,
    failures: u64,
    total: Option<u64>,
}

/// A document to be sent, not read yet.
struct Place {
    /// What a checkpoint calls it; nothing when its name can't be written down.
    position: Option<String>,
    what: Result<What, String>,
}

enum What {
    File { id: DocumentId, path: PathBuf },
    Object { id: DocumentId, object: ObjectMeta },
}

/// Where the documents lie.
enum Places {
    Folder { root: PathBuf, prefix: String, files: Option<Box<dyn Iterator<Item = walk::Entry> + Send>> },
    Bucket { bucket: Bucket, objects: BoxStream<'static, Result<ObjectMeta, object_store::Error>> },
}

impl Places {
    fn folder(spec: &IngestSpec, after: Option<String>) -> Result<Self, JobFailure> {
        let root = PathBuf::from(&spec.source);
        if !root.is_dir() {
            return Err(JobFailure::Failed(format!("{} is no folder that {} can see", spec.source, super::host())));
        }
        let files = walk::files(&root, spec.hidden, after.map(PathBuf::from));
        Ok(Self::Folder { root, prefix: spec.id_prefix.clone(), files: Some(Box::new(files)) })
    }

    fn bucket(bucket: Bucket, after: Option<&str>) -> Self {
        let objects = bucket.objects(after);
        Self::Bucket { bucket, objects }
    }

    /// The next places, fewer than wanted only at the end.
    async fn take(&mut self, wanted: usize, id_prefix: &str) -> Result<Vec<Place>, JobFailure> {
        match self {
            Self::Folder { root, prefix, files } => {
                let Some(mut walking) = files.take() else { return Ok(Vec::new()) };
                let walked = tokio::task::spawn_blocking(move || {
                    let next: Vec<walk::Entry> = walking.by_ref().take(wanted).collect();
                    (walking, next)
                });
                let (walking, next) = walked.await.map_err(invalid)?;
                *files = Some(walking);
                Ok(next.into_iter().map(|entry| file(root, prefix, entry)).collect())
            }
            Self::Bucket { bucket, objects } => {
                let next = bucket::take(objects, wanted).await?;
                Ok(next.into_iter().map(|object| Place::object(bucket, id_prefix, object)).collect())
            }
        }
    }
}

fn file(root: &Path, prefix: &str, entry: walk::Entry) -> Place {
    let relative = match entry {
        Ok(relative) => relative,
        Err(reason) => return Place { position: None, what: Err(reason) },
    };
    let id = document_id(&relative, prefix);
    let named = |reason| format!("{}: {reason}", relative.display());
    Place {
        position: relative.to_str().map(str::to_owned),
        what: id.map(|id| What::File { id, path: root.join(&relative) }).map_err(named),
    }
}

impl Place {
    fn object(bucket: &Bucket, prefix: &str, object: ObjectMeta) -> Self {
        let key = object.location.as_ref().to_owned();
        let id = DocumentId::parse(format!("{prefix}{}", bucket.relative(&key)));
        let what = id.map(|id| What::Object { id, object }).map_err(|error| format!("{key}: {error}"));
        Self { position: Some(key), what }
    }
}

struct Work {
    reading: Reading,
    every: usize,
    id_prefix: String,
    places: Places,
    /// Found and not yet sent.
    ahead: VecDeque<Place>,
    checkpoint: Checkpoint,
}

/// How a document becomes a request.
struct Reading {
    job: String,
    options: send::Options,
    limit: usize,
    bucket: Option<Bucket>,
}

impl Work {
    fn new(
        job: String,
        tenant: TenantId,
        spec: IngestSpec,
        limit: usize,
        places: Places,
        checkpoint: Checkpoint,
    ) -> Self {
        let options = send::Options {
            large_files: if spec.claim_check { LargeFiles::AsLinks } else { LargeFiles::Refuse },
            content_type: spec.content_type,
            title: spec.title,
            metadata: spec.metadata,
            ..send::Options::of(tenant)
        };
        let bucket = match &places {
            Places::Bucket { bucket, .. } => Some(bucket.clone()),
            Places::Folder { .. } => None,
        };
        let reading = Reading { job, options, limit, bucket };
        let every = spec.checkpoint_every.max(1);
        Self { reading, every, id_prefix: spec.id_prefix, places, ahead: VecDeque::new(), checkpoint }
    }

    /// The next places to deal with, at most `wanted`.
    async fn upcoming(&mut self, wanted: usize) -> Result<Vec<Place>, JobFailure> {
        if self.ahead.len() < wanted {
            let more = self.places.take(self.every.max(wanted), &self.id_prefix).await?;
            self.ahead.extend(more);
        }
        Ok(self.ahead.drain(..wanted.min(self.ahead.len())).collect())
    }

    async fn step(&mut self) -> Result<JobStep, JobFailure> {
        let (mut outputs, mut bytes, mut taken, mut message) = (Vec::new(), 0, 0, None);
        let mut named = true;
        let mut finished = false;
        // What can't be named can't be where the next step begins.
        while !finished && ((taken < self.every && bytes < BYTES) || !named) {
            let wanted = AT_ONCE.min(self.every.saturating_sub(taken)).max(1);
            let places = self.upcoming(wanted).await?;
            finished = places.len() < wanted;
            taken += places.len();
            let (positions, whats): (Vec<_>, Vec<_>) =
                places.into_iter().map(|place| (place.position, place.what)).unzip();
            named = positions.last().is_none_or(Option::is_some);
            if let Some(last) = positions.into_iter().flatten().next_back() {
                self.checkpoint.last = Some(last);
            }
            let reading = &self.reading;
            let requests: Vec<_> =
                futures::stream::iter(whats).map(|what| reading.request(what)).buffered(AT_ONCE).collect().await;
            for request in requests {
                match request? {
                    Ok((output, size)) => {
                        bytes += size;
                        self.checkpoint.done += 1;
                        outputs.push(output);
                    }
                    Err(reason) => {
                        tracing::warn!(job = reading.job, tenant = %reading.options.tenant, reason, "a document is passed over");
                        self.checkpoint.failures += 1;
                        message = Some(reason);
                    }
                }
            }
        }
        Ok(JobStep {
            outputs,
            checkpoint: serde_json::to_value(&self.checkpoint).map_err(invalid)?,
            done: self.checkpoint.done,
            total: self.checkpoint.total,
            failures: self.checkpoint.failures,
            message,
            finished,
        })
    }
}

impl Reading {
    /// Reads a document and makes its request, and says how large it is; otherwise why it is passed over.
    async fn request(&self, what: Result<What, String>) -> Result<Result<(Output, usize), String>, JobFailure> {
        let (id, source) = match what {
            Err(reason) => return Ok(Err(reason)),
            Ok(What::File { id, path }) => (id, Source::File(path)),
            Ok(What::Object { id, object }) => match self.object(&object).await? {
                Ok(source) => (id, source),
                Err(reason) => return Ok(Err(format!("{id}: {reason}"))),
            },
        };
        let name = length_prefixed_hash(&[self.job.as_bytes(), id.as_str().as_bytes()]);
        let request = RequestId::from_uuid(Uuid::new_v5(&Uuid::NAMESPACE_OID, &name));
        let shown = id.to_string();
        let found = Found { id, source, title: None, metadata: BTreeMap::new() };
        let output = send::output(request, found, &self.options, self.limit).await;
        Ok(output.map_err(|reason| format!("{shown}: {reason}")))
    }

    async fn object(&self, object: &ObjectMeta) -> Result<Result<Source, String>, JobFailure> {
        let Some(bucket) = &self.bucket else { return Ok(Err("lies in no bucket".into())) };
        let room = u64::try_from(send::room(&self.options, self.limit)).unwrap_or(u64::MAX);
        if object.size > room {
            return Ok(Ok(Source::Link { url: bucket.url(object.location.as_ref()), size: object.size }));
        }
        Ok(bucket.read(&object.location).await?.map(Source::Bytes))
    }
}

impl JobWork for Work {
    fn next(&mut self) -> BoxFuture<'_, Result<JobStep, JobFailure>> {
        self.step().boxed()
    }
}

fn invalid(error: impl std::fmt::Display) -> JobFailure {
    JobFailure::Failed(error.to_string())
}

#[cfg(test)]
#[path = "ingest_tests.rs"]
mod tests;
