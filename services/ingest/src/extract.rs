//! Turns requests into documents.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use futures::future::try_join_all;
use weir_contracts::{Action, Document, DocumentRequest, Record, Revision, Topic, header, length_prefixed_hash};
use weir_stage::{Batch, Delivery, Failure, Outcome, Output, Stage, StageError, State, failure_class};

use crate::config::Config;
use crate::fetch::{Claims, FetchError};
use crate::formats::{self, EXTRACTOR, Extracted, Hint, Limits, Refusal};
use crate::identity::{Case, Opened, Remembered, Standing, last_words};
use crate::metric;
use crate::pool::{Pool, PoolError, WorkerCommand};
use crate::waves::waves;

/// Room in a record for what the document's fields do not count.
const OVERHEAD: usize = 4 << 10;

/// Larger documents are not even looked at in this process: its threads have other things to do.
const IN_PROCESS: usize = 2 << 20;

/// Milliseconds in an hour.
const HOUR: i64 = 3_600_000;

/// Extracts the text of documents, and says of each request what became of it. What it remembers of documents and of
/// idempotency keys is the state of their lane.
pub struct Extract {
    requests: String,
    claims: Claims,
    pool: Pool,
    limits: Limits,
    max_record_bytes: usize,
    idempotency_window: i64,
}

/// What a request wants its document to be.
enum Wanted {
    /// A new revision, and a warning if a part of it could not be read.
    Change(Box<Document>, Option<String>),
    /// What it is already, since this revision.
    Same { hash: String, since: Revision },
}

/// Why a request yields no document.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("{1}")]
    Claim(&'static str, String),
    /// Later it may be there.
    #[error("{1}")]
    Later(&'static str, String),
}

impl Failed {
    fn class(&self) -> &'static str {
        match self {
            Self::Invalid(_) => failure_class::INVALID,
            Self::Refused(refusal) => refusal.class(),
            Self::Claim(class, _) | Self::Later(class, _) => class,
        }
    }
}

impl Extract {
    /// The stage with what it needs; processes to read documents start when they are needed.
    ///
    /// # Errors
    /// When the program does not know its own file.
    pub fn new(config: &Config) -> std::io::Result<Self> {
        Ok(Self::with_workers(config, WorkerCommand::own()?))
    }

    /// The same with another program to read documents.
    #[must_use]
    pub fn with_workers(config: &Config, command: WorkerCommand) -> Self {
        Self {
            requests: config.kafka.topics().full(Topic::REQUESTS),
            claims: Claims::new(&config.ingest),
            pool: Pool::new(config.ingest.workers(), command),
            limits: config.ingest.limits(),
            max_record_bytes: config.runner.max_record_bytes,
            idempotency_window: i64::from(config.ingest.idempotency_window_hours) * HOUR,
        }
    }

    async fn decide(&self, delivery: &Delivery<DocumentRequest>, state: State<'_>) -> Result<Outcome, StageError> {
        // Before anything can fail: whatever happens, the request has its revision.
        let revision = match self.revision(delivery) {
            Ok(revision) => revision,
            Err(failure) => return Ok(Outcome::reject(failure)),
        };
        let case = Case { delivery, state, revision, window: self.idempotency_window };
        if self.is_notice(delivery) {
            return case.failed_behind();
        }
        let known = match case.open()? {
            Opened::Decided(outcome) => return Ok(outcome),
            Opened::Open(known) => known,
        };
        if delivery.record().action == Action::Delete {
            return match known.map(|known| known.standing) {
                Some(Standing::Deleted { revision: since }) => case.deleted_already(since),
                _ => case.accept(new_document(delivery, revision), None),
            };
        }
        match self.wanted(delivery, revision, known.as_ref()).await? {
            Ok(Wanted::Change(document, warning)) => case.accept(*document, warning),
            Ok(Wanted::Same { hash, since }) => case.unchanged(hash, since),
            Err(Failed::Later(class, reason)) => Ok(case.retry_later(class, reason)),
            Err(failed) => case.reject(failed.class(), failed.to_string()),
        }
    }

    /// Whether the record is no request but the indexer's word that a revision failed.
    fn is_notice(&self, delivery: &Delivery<DocumentRequest>) -> bool {
        *delivery.at.topic != *self.requests && delivery.headers.get(header::FAILED).is_some()
    }

    /// Placed by the offset in `requests` at first delivery. A record that returns lies elsewhere and brings along where
    /// it lay, or its revision itself; in `requests`, headers count for nothing, since producers may set them. The
    /// runner notes the origin of whatever leaves `requests`, so a revision that a producer made up loses to it.
    fn revision(&self, delivery: &Delivery<DocumentRequest>) -> Result<Revision, Failure> {
        let invalid = |reason: String| Failure::new(failure_class::INVALID, reason);
        let number = |name| delivery.headers.text(name).and_then(|text| text.parse::<i64>().ok());
        let offset = if *delivery.at.topic == *self.requests {
            Some(delivery.at.offset)
        } else {
            let origin = delivery.headers.text(header::DLQ_TOPIC);
            number(header::DLQ_OFFSET).filter(|_| origin == Some(self.requests.as_str()))
        };
        match offset {
            Some(offset) => Revision::new(0, offset).map_err(|error| invalid(error.to_string())),
            None => number(header::REVISION).map(Revision::from_ordinal).ok_or_else(|| {
                invalid(format!("a record that returns must carry its revision in {}", header::REVISION))
            }),
        }
    }

    /// What the request makes of its document. What did not change is not extracted.
    async fn wanted(
        &self,
        delivery: &Delivery<DocumentRequest>,
        revision: Revision,
        known: Option<&Remembered>,
    ) -> Result<Result<Wanted, Failed>, StageError> {
        let request = delivery.record();
        // Fetched bytes keep their place among the few that may be in memory until they are text.
        let fetched;
        let content = match (&request.content, &request.content_uri) {
            (Some(content), None) => content.as_slice(),
            (None, Some(uri)) => match self.claims.fetch(uri, self.limits.max_bytes).await {
                Ok(found) => {
                    fetched = found;
                    fetched.bytes.as_slice()
                }
                Err(FetchError::Unavailable(reason)) => return Err(StageError::unavailable("object-store", reason)),
                Err(FetchError::Later { class, reason }) => return Ok(Err(Failed::Later(class, reason))),
                Err(FetchError::Refused(refusal)) => return Ok(Err(refusal.into())),
                Err(FetchError::Claim { class, reason }) => return Ok(Err(Failed::Claim(class, reason))),
            },
            (Some(_), Some(_)) => {
                return Ok(Err(Failed::Invalid("the request has both content and content_uri: send one".into())));
            }
            (None, None) => {
                let reason = "the request has neither content nor content_uri: send one, or ask for a deletion";
                return Ok(Err(Failed::Invalid(reason.into())));
            }
        };
        let hash = content_hash(content, request);
        if let Some(Standing::Stored { hash: stored, revision: since }) = known.map(|known| &known.standing)
            && *stored == hash
        {
            return Ok(Ok(Wanted::Same { hash, since: *since }));
        }
        let hint = Hint { content_type: request.content_type.clone(), name: request.document.as_str().to_owned() };
        let extracted = match self.text(content, &hint).await? {
            Ok(extracted) => extracted,
            Err(refusal) => return Ok(Err(refusal.into())),
        };
        let document = Document {
            content_hash: hash,
            content_type: extracted.format.media_type().to_owned(),
            title: request.title.clone().filter(|title| !title.trim().is_empty()).or(extracted.title),
            text: extracted.text,
            blocks: extracted.blocks,
            ..new_document(delivery, revision)
        };
        let warning = extracted.warning;
        Ok(self.fits(&document).map(|()| Wanted::Change(Box::new(document), warning)).map_err(Failed::from))
    }

    /// Extracts in this process what is harmless, in another one what is not.
    async fn text(&self, bytes: &[u8], hint: &Hint) -> Result<Result<Extracted, Refusal>, StageError> {
        metrics::counter!(metric::BYTES).increment(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        let begun = Instant::now();
        let here = catch_unwind(AssertUnwindSafe(|| {
            if bytes.len() > IN_PROCESS {
                return Ok(None);
            }
            let looked = formats::look(bytes, hint, &self.limits)?;
            Ok(if looked.is_harmless() { Some(formats::extract(looked, &self.limits)?) } else { None })
        }));
        let answer = match here {
            Ok(Ok(Some(extracted))) => Ok(extracted),
            Ok(Err(refusal)) => Err(refusal),
            Ok(Ok(None)) | Err(_) => {
                let answer = self.pool.extract(bytes, hint, &self.limits).await;
                answer.map_err(|error: PoolError| StageError::unavailable("extract-worker", error))?
            }
        };
        if let Ok(extracted) = &answer {
            metrics::histogram!(metric::EXTRACT_SECONDS, "format" => extracted.format.label())
                .record(begun.elapsed().as_secs_f64());
        }
        Ok(answer)
    }

    /// A record that Kafka would not take is refused here, where its sender can be told.
    fn fits(&self, document: &Document) -> Result<(), Refusal> {
        let strings = document.metadata.iter().map(|(name, value)| name.len() + value.len() + 8).sum::<usize>();
        let title = document.title.as_ref().map_or(0, String::len);
        let estimate = document.text.len() + title + document.blocks.len() * 16 + strings + OVERHEAD;
        if estimate <= self.max_record_bytes {
            return Ok(());
        }
        let mut record = Vec::new();
        let encoded = document.encode(&mut record).map(|()| record.len() + OVERHEAD / 4);
        match encoded {
            Ok(bytes) if bytes <= self.max_record_bytes => Ok(()),
            _ => Err(Refusal::TooLarge {
                what: "the text of the document".into(),
                bytes: estimate - OVERHEAD,
                limit: self.max_record_bytes.saturating_sub(OVERHEAD),
            }),
        }
    }
}

impl Stage for Extract {
    type Input = DocumentRequest;

    const STATEFUL: bool = true;

    async fn process(&mut self, batch: Batch<'_, DocumentRequest>) -> Result<Vec<Outcome>, StageError> {
        let this = &*self;
        let state = batch.state();
        let mut decided = Vec::with_capacity(batch.len());
        for wave in waves(batch.iter()) {
            let mut all = Vec::with_capacity(wave.len());
            for (place, delivery) in wave {
                all.push(async move { this.decide(delivery, state).await.map(|outcome| (place, outcome)) });
            }
            // What runs at once is bounded where it costs something: by the pool and by the fetches.
            decided.extend(try_join_all(all).await?);
        }
        decided.sort_unstable_by_key(|(place, _)| *place);
        Ok(decided.into_iter().map(|(_, outcome)| outcome).collect())
    }

    async fn last_words(
        &mut self,
        delivery: &Delivery<DocumentRequest>,
        failure: &Failure,
    ) -> Result<Vec<Output>, StageError> {
        Ok(if self.is_notice(delivery) { Vec::new() } else { vec![last_words(delivery, failure)] })
    }
}

/// The document of a request before its content is known; for a deletion, all of it.
fn new_document(delivery: &Delivery<DocumentRequest>, revision: Revision) -> Document {
    let request = delivery.record();
    Document {
        tenant: request.tenant.clone(),
        document: request.document.clone(),
        revision,
        request_id: request.request_id.clone(),
        deleted: request.action == Action::Delete,
        title: None,
        text: String::new(),
        blocks: Vec::new(),
        content_hash: String::new(),
        content_type: String::new(),
        extractor: EXTRACTOR.to_owned(),
        metadata: request.metadata.clone(),
        requested_at: if request.created_at > 0 { request.created_at } else { delivery.timestamp },
    }
}

/// Everything that decides what the document becomes.
fn content_hash(bytes: &[u8], request: &DocumentRequest) -> String {
    let mut parts: Vec<&[u8]> = vec![
        bytes,
        EXTRACTOR.as_bytes(),
        request.content_type.as_deref().unwrap_or_default().as_bytes(),
        request.title.as_deref().unwrap_or_default().as_bytes(),
    ];
    for (name, value) in &request.metadata {
        parts.push(name.as_bytes());
        parts.push(value.as_bytes());
    }
    hex::encode(length_prefixed_hash(&parts))
}
