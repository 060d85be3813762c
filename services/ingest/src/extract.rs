//! Turns requests into documents.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use futures::future::try_join_all;
use weir_contracts::{
    Action, Document, DocumentRequest, OutcomeKind, Record, RequestOutcome, Revision, Topic, document_key, header,
    length_prefixed_hash,
};
use weir_stage::{Batch, Delivery, Failure, Outcome, Output, Stage, StageError, failure_class};

use crate::config::Config;
use crate::fetch::{Claims, FetchError};
use crate::formats::{self, EXTRACTOR, Extracted, Hint, Limits, Refusal};
use crate::metric;
use crate::pool::{Pool, PoolError, WorkerCommand};

/// Room in a record for what the document's fields do not count.
const OVERHEAD: usize = 4 << 10;

/// Larger documents are not even looked at in this process: its threads have other things to do.
const IN_PROCESS: usize = 2 << 20;

/// Extracts the text of documents, and says of each request what became of it.
pub struct Extract {
    requests: String,
    claims: Claims,
    pool: Pool,
    limits: Limits,
    max_record_bytes: usize,
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
}

impl Failed {
    fn class(&self) -> &'static str {
        match self {
            Self::Invalid(_) => failure_class::INVALID,
            Self::Refused(refusal) => refusal.class(),
            Self::Claim(class, _) => class,
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
        }
    }

    async fn extract(&self, delivery: &Delivery<DocumentRequest>) -> Result<Outcome, StageError> {
        // Before anything can fail: whatever happens, the request has its revision.
        let revision = match self.revision(delivery) {
            Ok(revision) => revision,
            Err(failure) => return Ok(Outcome::reject(failure)),
        };
        let request = delivery.record();
        match self.document(delivery, revision).await? {
            Ok((document, warning)) => {
                let result = if document.deleted { "deleted" } else { "accepted" };
                count(&document.content_type, result);
                let key = document_key(&request.tenant, &request.document);
                let document = Output::new(Topic::DOCUMENTS, key, document)
                    .with_header(header::TENANT, request.tenant.as_str())
                    .with_header(header::REVISION, revision.ordinal().to_string());
                Ok(Outcome::emit(document).and(outcome(delivery, OutcomeKind::Accepted, Some(revision), warning)))
            }
            Err(failed) => {
                count("", failed.class());
                let reason = failed.to_string();
                tracing::info!(
                    tenant = %request.tenant, document = %request.document, %revision, lane = %delivery.at.lane,
                    offset = delivery.at.offset, class = failed.class(), reason, "document rejected"
                );
                let rejected = outcome(delivery, OutcomeKind::Rejected, None, Some(reason.clone()));
                Ok(Outcome::reject(Failure::new(failed.class(), reason)).and(rejected))
            }
        }
    }

    /// The offset in `requests` at first delivery. A record that returns lies elsewhere and brings its revision along;
    /// in `requests` itself that header counts for nothing, since producers may set it.
    fn revision(&self, delivery: &Delivery<DocumentRequest>) -> Result<Revision, Failure> {
        let invalid = |reason: String| Failure::new(failure_class::INVALID, reason);
        if *delivery.at.topic == *self.requests {
            return Revision::new(0, delivery.at.offset).map_err(|error| invalid(error.to_string()));
        }
        let ordinal = delivery.headers.text(header::REVISION).and_then(|text| text.parse().ok());
        let missing = || invalid(format!("a record that returns must carry its revision in {}", header::REVISION));
        ordinal.map(Revision::from_ordinal).ok_or_else(missing)
    }

    /// The document of a request, and a warning if a part of it could not be read.
    async fn document(
        &self,
        delivery: &Delivery<DocumentRequest>,
        revision: Revision,
    ) -> Result<Result<(Document, Option<String>), Failed>, StageError> {
        let request = delivery.record();
        let mut document = Document {
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
        };
        if document.deleted {
            return Ok(Ok((document, None)));
        }
        let hint = Hint { content_type: request.content_type.clone(), name: request.document.as_str().to_owned() };
        let extracted = match (&request.content, &request.content_uri) {
            (Some(content), None) => {
                document.content_hash = content_hash(content, request);
                self.text(content, &hint).await?
            }
            (None, Some(uri)) => {
                // The fetched bytes keep their place among the few that may be in memory until they are text.
                match self.claims.fetch(uri, self.limits.max_bytes).await {
                    Ok(fetched) => {
                        document.content_hash = content_hash(&fetched.bytes, request);
                        self.text(&fetched.bytes, &hint).await?
                    }
                    Err(FetchError::Unavailable(reason)) => {
                        return Err(StageError::unavailable("object-store", reason));
                    }
                    Err(FetchError::Refused(refusal)) => Err(refusal),
                    Err(FetchError::Claim { class, reason }) => return Ok(Err(Failed::Claim(class, reason))),
                }
            }
            (Some(_), Some(_)) => {
                return Ok(Err(Failed::Invalid("the request has both content and content_uri: send one".into())));
            }
            (None, None) => {
                let reason = "the request has neither content nor content_uri: send one, or ask for a deletion";
                return Ok(Err(Failed::Invalid(reason.into())));
            }
        };
        let extracted = match extracted {
            Ok(extracted) => extracted,
            Err(refusal) => return Ok(Err(refusal.into())),
        };
        document.content_type = extracted.format.media_type().to_owned();
        document.title = request.title.clone().filter(|title| !title.trim().is_empty()).or(extracted.title);
        document.text = extracted.text;
        document.blocks = extracted.blocks;
        Ok(self.fits(&document).map(|()| (document, extracted.warning)).map_err(Failed::from))
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

    async fn process(&mut self, batch: Batch<'_, DocumentRequest>) -> Result<Vec<Outcome>, StageError> {
        let this = &*self;
        let mut all = Vec::with_capacity(batch.len());
        for delivery in batch.iter() {
            all.push(this.extract(delivery));
        }
        // What runs at once is bounded where it costs something: by the pool and by the fetches.
        try_join_all(all).await
    }
}

/// Says of a request what became of it. The time is that of the request's record, so that the same delivery always
/// gives the same answer.
fn outcome(
    delivery: &Delivery<DocumentRequest>,
    kind: OutcomeKind,
    revision: Option<Revision>,
    reason: Option<String>,
) -> Output {
    let request = delivery.record();
    let record = RequestOutcome {
        request_id: request.request_id.clone(),
        tenant: request.tenant.clone(),
        document: request.document.clone(),
        outcome: kind,
        reason,
        revision,
        at: delivery.timestamp,
    };
    Output::new(Topic::REQUEST_OUTCOMES, request.request_id.as_str(), record)
        .with_header(header::TENANT, request.tenant.as_str())
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

fn count(media_type: &str, result: &'static str) {
    let format = match media_type {
        "" => "unknown",
        known => known_label(known),
    };
    metrics::counter!(metric::DOCUMENTS, "format" => format, "result" => result).increment(1);
}

fn known_label(media_type: &str) -> &'static str {
    use formats::Format::{Csv, Docx, Html, Json, JsonLines, Markdown, Pdf, Plain};
    [Plain, Markdown, Html, Pdf, Docx, Json, JsonLines, Csv]
        .into_iter()
        .find(|format| format.media_type() == media_type)
        .map_or("unknown", formats::Format::label)
}
