//! Sends document requests and follows them until they are searchable, deleted or turned away.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde::Serialize;
use tokio::sync::mpsc;
use uuid::Uuid;
use weir_contracts::{
    Action, DocumentRequest, DocumentStatus, RequestId, RequestOutcome, TenantId, Topic, document_key, header,
};
use weir_runner::{Publisher, Registry, RunnerConfig};
use weir_stage::Output;

use crate::collect::{Found, Source, content_type_of};
use crate::context::Context;
use crate::dead_letters;
use crate::ledger::{Counts, Ledger, NOT_SENT};
use crate::progress::{Progress, now_millis};
use crate::tail::{self, Tail};

/// Documents in memory and on the way to Kafka at once.
const IN_FLIGHT: usize = 64;
/// What a record has beside the document's bytes and its metadata: ids, headers, framing.
const OVERHEAD_BYTES: usize = 8 << 10;
/// After this long without news, look whether documents are among the dead letters.
const LOOK_FOR_DEAD_LETTERS: Duration = Duration::from_secs(10);

/// What to do with files too large for a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LargeFiles {
    /// Don't send them.
    Refuse,
    /// Send a `file://` link (claim check).
    AsLinks,
}

/// How to send.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose documents these are.
    pub tenant: TenantId,
    /// Delete them instead.
    pub delete: bool,
    /// What to do with files too large for a record.
    pub large_files: LargeFiles,
    /// Media type of all, instead of a guess.
    pub content_type: Option<String>,
    /// Title of all.
    pub title: Option<String>,
    /// Metadata of all.
    pub metadata: BTreeMap<String, String>,
    /// Follow them to their end.
    pub wait: bool,
    /// Give up when nothing moves for so long.
    pub patience: Duration,
}

impl Options {
    /// To send a tenant's documents as they are, without following them.
    #[must_use]
    pub fn of(tenant: TenantId) -> Self {
        Self {
            tenant,
            delete: false,
            large_files: LargeFiles::Refuse,
            content_type: None,
            title: None,
            metadata: BTreeMap::new(),
            wait: false,
            patience: Duration::ZERO,
        }
    }
}

/// Why following ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Everything was decided, or was to be sent only.
    Settled,
    /// Nothing moved any more.
    Stalled,
    /// The user pressed Ctrl-C.
    Interrupted,
}

/// What came of it.
pub struct Report {
    /// Every request.
    pub ledger: Ledger,
    /// Why following ended.
    pub ending: Ending,
    /// From the first request to the end.
    pub elapsed: Duration,
}

/// Sends the documents and, if asked, follows them.
///
/// # Errors
/// When Kafka or the registry can't be reached.
pub async fn send(context: &Context, documents: Vec<Found>, options: &Options) -> color_eyre::Result<Report> {
    let registry = tail::registry(context)?;
    let mut news = if options.wait { Some(News::open(context, &registry).await?) } else { None };
    let publisher = Publisher::new(&context.kafka, registry.clone())?;
    let limit = context.section::<RunnerConfig>("runner")?.max_record_bytes;

    let started = Instant::now();
    let mut ledger = Ledger::new(options.tenant.clone());
    let requests: Vec<(RequestId, Found)> =
        documents.into_iter().map(|found| (RequestId::from_uuid(Uuid::now_v7()), found)).collect();
    for (request, found) in &requests {
        ledger.expect(request.clone(), found.id.clone());
    }
    let mut progress = Progress::new(requests.len(), if options.wait { "decided" } else { "sent" }, context.json);
    let mut acknowledged = publish_all(publisher, requests, options.clone(), limit);
    let mut sending = true;
    let mut moved = Instant::now();
    let mut looked = Instant::now();
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let mut tick = tokio::time::interval(Duration::from_millis(250));

    let ending = loop {
        let before = ledger.counts();
        tokio::select! {
            _ = &mut interrupt => break Ending::Interrupted,
            acknowledgement = acknowledged.recv(), if sending => match acknowledgement {
                Some((request, Ok(()))) => ledger.sent(&request),
                Some((request, Err(reason))) => ledger.failed(&request, NOT_SENT, reason),
                None => sending = false,
            },
            event = next_news(&mut news) => match event? {
                Event::Outcome(outcome) => ledger.outcome(&outcome),
                Event::Status(status) => ledger.status(&status),
            },
            _ = tick.tick() => {}
        }
        while let Some(event) = news.as_mut().and_then(News::ready) {
            match event? {
                Event::Outcome(outcome) => ledger.outcome(&outcome),
                Event::Status(status) => ledger.status(&status),
            }
        }
        let mut counts = ledger.counts();
        if options.wait && !sending && ledger.waits_for_older_states() && looked.elapsed() > Duration::from_secs(1) {
            for status in tail::read_all::<DocumentStatus>(context, &registry, Topic::DOCUMENT_STATUS).await? {
                ledger.status(&status.record);
            }
            looked = Instant::now();
            counts = ledger.counts();
        }
        if counts != before {
            moved = Instant::now();
        } else if moved.elapsed() > LOOK_FOR_DEAD_LETTERS && looked.elapsed() > LOOK_FOR_DEAD_LETTERS && options.wait {
            dead_letters::mark(context, &registry, &mut ledger).await?;
            looked = Instant::now();
        }
        let done = if options.wait { counts.documents - counts.pending } else { counts.sent };
        progress.set(done, detail(&counts, options));
        if !sending && (!options.wait || counts.pending == 0) {
            break Ending::Settled;
        }
        if moved.elapsed() > options.patience {
            break Ending::Stalled;
        }
    };
    progress.finish();
    Ok(Report { ledger, ending, elapsed: started.elapsed() })
}

/// What the bar says beside its length.
fn detail(counts: &Counts, options: &Options) -> String {
    let mut parts = vec![format!("{} sent", counts.sent)];
    if options.wait {
        let (count, what) = if options.delete { (counts.deleted, "deleted") } else { (counts.indexed, "indexed") };
        parts.push(format!("{count} {what}"));
    }
    for (count, what) in [(counts.unchanged, "unchanged"), (counts.failed, "turned away")] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    parts.join(", ")
}

enum Event {
    Outcome(RequestOutcome),
    Status(DocumentStatus),
}

/// The two topics that say what becomes of requests.
struct News {
    outcomes: Tail<RequestOutcome>,
    states: Tail<DocumentStatus>,
}

impl News {
    async fn open(context: &Context, registry: &Registry) -> color_eyre::Result<Self> {
        let (outcomes, states) = tokio::try_join!(
            Tail::from_now(context, registry, Topic::REQUEST_OUTCOMES),
            Tail::from_now(context, registry, Topic::DOCUMENT_STATUS),
        )?;
        Ok(Self { outcomes, states })
    }

    async fn next(&mut self) -> color_eyre::Result<Event> {
        tokio::select! {
            outcome = self.outcomes.next() => Ok(Event::Outcome(outcome?.record)),
            state = self.states.next() => Ok(Event::Status(state?.record)),
        }
    }

    /// What has already arrived, so that thousands of records don't cost a turn of the loop each.
    fn ready(&mut self) -> Option<color_eyre::Result<Event>> {
        if let Some(outcome) = self.outcomes.ready() {
            return Some(outcome.map(|delivery| Event::Outcome(delivery.record)));
        }
        self.states.ready().map(|state| state.map(|delivery| Event::Status(delivery.record)))
    }
}

async fn next_news(news: &mut Option<News>) -> color_eyre::Result<Event> {
    match news {
        Some(news) => news.next().await,
        None => std::future::pending().await,
    }
}

type Acknowledgement = (RequestId, Result<(), String>);

fn publish_all(
    publisher: Publisher,
    requests: Vec<(RequestId, Found)>,
    options: Options,
    limit: usize,
) -> mpsc::Receiver<Acknowledgement> {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    tokio::spawn(async move {
        let (publisher, options) = (&publisher, &options);
        let mut sends = futures::stream::iter(requests)
            .map(|(request, found)| async move {
                let sent = publish(publisher, request.clone(), found, options, limit).await;
                (request, sent)
            })
            .buffer_unordered(IN_FLIGHT);
        while let Some(acknowledgement) = sends.next().await {
            if sender.send(acknowledgement).await.is_err() {
                return;
            }
        }
    });
    receiver
}

async fn publish(
    publisher: &Publisher,
    request: RequestId,
    found: Found,
    options: &Options,
    limit: usize,
) -> Result<(), String> {
    let (output, _) = output(request, found, options, limit).await?;
    publisher.publish(output).await.map_err(|error| error.to_string())
}

/// The request for a document, and the bytes of the document in it.
///
/// # Errors
/// When the document can't be read, or is too large for a record of `limit` bytes and may not be a link.
pub async fn output(
    request: RequestId,
    found: Found,
    options: &Options,
    limit: usize,
) -> Result<(Output, usize), String> {
    let key = document_key(&options.tenant, &found.id);
    let record = make_request(request, found, options, limit).await?;
    let size = record.content.as_ref().map_or(0, Vec::len);
    let output = Output::new(Topic::DOCUMENT_REQUESTS, key, record)
        .with_header(header::TENANT, options.tenant.as_str())
        .with_header(header::TRACEPARENT, new_traceparent());
    Ok((output, size))
}

/// Bytes of a document that a record of `limit` bytes holds beside what is said of all.
#[must_use]
pub fn room(options: &Options, limit: usize) -> usize {
    limit.saturating_sub(extra(&options.metadata))
}

fn extra(metadata: &BTreeMap<String, String>) -> usize {
    metadata.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() + OVERHEAD_BYTES
}

async fn make_request(
    request: RequestId,
    found: Found,
    options: &Options,
    limit: usize,
) -> Result<DocumentRequest, String> {
    let mut metadata = found.metadata;
    metadata.extend(options.metadata.clone());
    let (content, content_uri) = if options.delete {
        (None, None)
    } else {
        content_of(&found.source, limit.saturating_sub(extra(&metadata)), options.large_files).await?
    };
    let hint = options.content_type.clone().or_else(|| content_type_of(found.id.as_str()).map(str::to_owned));
    Ok(DocumentRequest {
        request_id: request,
        tenant: options.tenant.clone(),
        document: found.id,
        action: if options.delete { Action::Delete } else { Action::Upsert },
        content,
        content_uri,
        content_type: hint.filter(|_| !options.delete),
        title: found.title.or_else(|| options.title.clone()),
        metadata,
        idempotency_key: None,
        created_at: now_millis(),
    })
}

/// The bytes, or a link to them when there are more than `room`.
async fn content_of(
    source: &Source,
    room: usize,
    large: LargeFiles,
) -> Result<(Option<Vec<u8>>, Option<String>), String> {
    let path = match source {
        Source::Bytes(bytes) if bytes.len() <= room => return Ok((Some(bytes.clone()), None)),
        Source::Bytes(bytes) => {
            return Err(format!(
                "has {} bytes, but a record holds {room}; put it in a file and send that",
                bytes.len()
            ));
        }
        Source::Link { url, size } => return linked(url.clone(), *size, room, large),
        Source::File(path) => path,
    };
    let size = tokio::fs::metadata(path).await.map_err(|error| format!("can't be read: {error}"))?.len();
    if usize::try_from(size).is_ok_and(|size| size <= room) {
        let bytes = tokio::fs::read(path).await.map_err(|error| format!("can't be read: {error}"))?;
        if bytes.len() <= room {
            return Ok((Some(bytes), None));
        }
    }
    match large {
        LargeFiles::AsLinks => linked(file_url(path)?, size, room, large),
        LargeFiles::Refuse => linked(String::new(), size, room, large),
    }
}

fn linked(url: String, size: u64, room: usize, large: LargeFiles) -> Result<(Option<Vec<u8>>, Option<String>), String> {
    match large {
        LargeFiles::AsLinks => Ok((None, Some(url))),
        LargeFiles::Refuse => Err(format!(
            "has {size} bytes, but a record holds {room}; with --claim-check a link is sent instead, which the ingest \
             service must be able and allowed to read (ingest.allow_urls)"
        )),
    }
}

fn file_url(path: &Path) -> Result<String, String> {
    let path = path.canonicalize().map_err(|error| format!("can't be read: {error}"))?;
    let url = reqwest::Url::from_file_path(&path).map_err(|()| format!("{} has no URL", path.display()))?;
    Ok(url.into())
}

/// A W3C trace context that begins here, sampled.
#[must_use]
pub fn new_traceparent() -> String {
    let span = Uuid::new_v4().as_u64_pair().0;
    format!("00-{}-{span:016x}-01", Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(large_files: LargeFiles) -> Options {
        Options {
            tenant: TenantId::parse("acme").unwrap(),
            delete: false,
            large_files,
            content_type: None,
            title: None,
            metadata: BTreeMap::from([("team".into(), "legal".into())]),
            wait: false,
            patience: Duration::from_secs(1),
        }
    }

    fn found(path: &Path) -> Found {
        let id = weir_contracts::DocumentId::parse("big.pdf").unwrap();
        Found { id, source: Source::File(path.to_owned()), title: None, metadata: BTreeMap::new() }
    }

    #[tokio::test]
    async fn a_file_too_large_for_a_record_is_a_link_only_when_that_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big one.pdf");
        std::fs::write(&path, vec![b'x'; 100_000]).unwrap();
        let id = || RequestId::parse("r").unwrap();
        let refused = make_request(id(), found(&path), &options(LargeFiles::Refuse), 50_000).await.unwrap_err();
        assert!(refused.contains("--claim-check"), "{refused}");
        let linked = make_request(id(), found(&path), &options(LargeFiles::AsLinks), 50_000).await.unwrap();
        let uri = linked.content_uri.unwrap();
        assert!(uri.starts_with("file:///") && uri.ends_with("big%20one.pdf"), "{uri}");
        assert!(linked.content.is_none());
        let inline = make_request(id(), found(&path), &options(LargeFiles::AsLinks), 1 << 20).await.unwrap();
        assert_eq!(inline.content.unwrap().len(), 100_000);
        assert_eq!(inline.content_type.as_deref(), Some("application/pdf"));
        assert_eq!(inline.metadata.get("team").unwrap(), "legal");
    }

    #[test]
    fn a_traceparent_has_the_form_of_the_w3c() {
        let value = new_traceparent();
        let parts: Vec<_> = value.split('-').map(str::len).collect();
        assert_eq!(parts, [2, 32, 16, 2]);
    }
}
