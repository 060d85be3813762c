//! What is remembered of a document, and what that makes of a request for it.
//!
//! | what is known | upsert | delete |
//! | --- | --- | --- |
//! | nothing, or the last request failed, here or behind | accepted | accepted |
//! | stored with the same content and metadata | duplicate | accepted |
//! | stored with others | accepted | accepted |
//! | deleted | accepted | duplicate |
//! | a later request was decided | superseded | superseded |
//!
//! Each request has one outcome that counts: the last record with its id in `request-outcomes`. There is a second
//! record only if the first said `rejected` and somebody replayed the dead letter, which opens the request again. A
//! request that waits to be tried again has none yet.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use weir_contracts::{Document, DocumentRequest, OutcomeKind, RequestOutcome, Revision, Topic, document_key, header};
use weir_runner::{Mechanism, is_switched_off};
use weir_stage::{Delivery, Failure, Outcome, Output, StageError, State};

use crate::idempotency::{self, FirstUse};
use crate::metric;

/// Class of requests whose idempotency key belongs to another request.
const CONFLICT: &str = "conflict";

/// What is remembered of a document. JSON, so that a person can read the topic behind the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    /// Revision of the latest request that was decided: the fence that older ones can't pass.
    pub(crate) last: Revision,
    /// What the document is since then.
    pub(crate) standing: Standing,
}

/// What a document is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// It has this content and metadata.
    Stored {
        /// Hash of content, metadata and the extractor's version, in hex.
        hash: String,
        /// Revision that brought it.
        revision: Revision,
    },
    /// It is deleted. Remembered as long as the state is kept, so that no older request brings it back.
    Deleted {
        /// Revision that deleted it.
        revision: Revision,
    },
    /// The last request was rejected, or what it brought failed in a later stage: whatever comes next is no duplicate.
    Failed,
}

/// A request that is to be decided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case<'a> {
    pub(crate) delivery: &'a Delivery<DocumentRequest>,
    pub(crate) state: State<'a>,
    /// Fixed at first delivery.
    pub(crate) revision: Revision,
    /// How long idempotency keys are remembered, milliseconds.
    pub(crate) window: i64,
}

/// What can be said of a request before its content is looked at.
#[derive(Debug)]
pub(crate) enum Opened {
    /// Everything.
    Decided(Outcome),
    /// The content counts, and what is known of its document.
    Open(Option<Remembered>),
}

impl Case<'_> {
    /// Looks at what is remembered: a repeat, a conflict and what comes too late need no work.
    pub(crate) fn open(&self) -> Result<Opened, StageError> {
        if let Some(outcome) = self.first_use()?.and_then(|first| self.used_again(&first)) {
            return Ok(Opened::Decided(outcome));
        }
        let known: Option<Remembered> = self.read(&self.document_state())?;
        match known {
            Some(known) if known.last > self.revision && !is_switched_off(Mechanism::RevisionFencing) => {
                Ok(Opened::Decided(self.superseded(known.last)?))
            }
            // This very request, which has its outcome already.
            Some(known) if known.last == self.revision && known.standing != Standing::Failed => {
                Ok(Opened::Decided(Outcome::skip("decided")))
            }
            known => Ok(Opened::Open(known)),
        }
    }

    /// The first use of the request's idempotency key, if it is still remembered.
    fn first_use(&self) -> Result<Option<FirstUse>, StageError> {
        let request = self.delivery.record();
        let Some(key) = idempotency::key_of(request) else { return Ok(None) };
        self.read(&idempotency::state_key(&request.tenant, key))
    }

    /// What becomes of a request whose key was used before; nothing when it was used by this very request, which has
    /// come back.
    fn used_again(&self, first: &FirstUse) -> Option<Outcome> {
        if first.request == self.revision {
            return None;
        }
        let request = self.delivery.record();
        if first.fingerprint == idempotency::fingerprint(request) {
            metric::count_document("", "repeat");
            let told = self.told(first.outcome, first.revision, first.reason.clone());
            return Some(Outcome::Skip { reason: "repeat", outputs: vec![told] });
        }
        metric::count_document("", CONFLICT);
        let reason = format!(
            "the idempotency key was used before (revision {}) with another document, content or metadata: use a new \
             key for a new request",
            first.request
        );
        Some(Outcome::reject(Failure::new(CONFLICT, reason)))
    }

    fn superseded(&self, newer: Revision) -> Result<Outcome, StageError> {
        metric::count_document("", "superseded");
        let request = self.delivery.record();
        tracing::info!(
            tenant = %request.tenant, document = %request.document, revision = %self.revision, %newer,
            lane = %self.delivery.at.lane, offset = self.delivery.at.offset, "request superseded"
        );
        let reason = format!("a newer request for the document (revision {newer}) was decided before this one");
        let told = self.finally(OutcomeKind::Superseded, None, Some(reason))?;
        Ok(Outcome::Skip { reason: "superseded", outputs: vec![told] })
    }

    /// The request changes its document.
    pub(crate) fn accept(&self, document: Document, warning: Option<String>) -> Result<Outcome, StageError> {
        let request = self.delivery.record();
        metric::count_document(&document.content_type, if document.deleted { "deleted" } else { "accepted" });
        let revision = self.revision;
        let standing = if document.deleted {
            Standing::Deleted { revision }
        } else {
            Standing::Stored { hash: document.content_hash.clone(), revision }
        };
        self.remember(standing)?;
        let key = document_key(&request.tenant, &request.document);
        let document = Output::new(Topic::DOCUMENTS, key, document)
            .with_header(header::TENANT, request.tenant.as_str())
            .with_header(header::REVISION, revision.ordinal().to_string());
        Ok(Outcome::emit(document).and(self.finally(OutcomeKind::Accepted, Some(revision), warning)?))
    }

    /// The document has this content and metadata already, since revision `since`.
    pub(crate) fn unchanged(&self, hash: String, since: Revision) -> Result<Outcome, StageError> {
        let reason = format!("the document has this content and metadata already, since revision {since}");
        self.duplicate(Standing::Stored { hash, revision: since }, since, reason)
    }

    /// The document is deleted already, since revision `since`.
    pub(crate) fn deleted_already(&self, since: Revision) -> Result<Outcome, StageError> {
        let reason = format!("the document is deleted already, since revision {since}");
        self.duplicate(Standing::Deleted { revision: since }, since, reason)
    }

    /// Nothing changes but the fence: what was asked for in between must not come back later.
    fn duplicate(&self, standing: Standing, since: Revision, reason: String) -> Result<Outcome, StageError> {
        metric::count_document("", "duplicate");
        self.remember(standing)?;
        let told = self.finally(OutcomeKind::Duplicate, Some(since), Some(reason))?;
        Ok(Outcome::Skip { reason: "duplicate", outputs: vec![told] })
    }

    /// The request can't be fulfilled. Its revision stays the fence, its content is forgotten: sent again, it is not a
    /// duplicate, and it may come back as a replay.
    pub(crate) fn reject(&self, class: &'static str, reason: String) -> Result<Outcome, StageError> {
        metric::count_document("", class);
        self.log(class, &reason, "document rejected");
        self.remember(Standing::Failed)?;
        self.remember_key(OutcomeKind::Rejected, None, Some(reason.clone()))?;
        Ok(Outcome::reject(Failure::new(class, reason)))
    }

    /// The request is tried again later. Nothing is decided, so nothing is remembered, also when this was the last try:
    /// its dead letter may be replayed as long as no newer request was decided, and its key is free.
    pub(crate) fn retry_later(&self, class: &'static str, reason: String) -> Outcome {
        metric::count_document("", "retry");
        self.log(class, &reason, "document is tried again later");
        Outcome::retry_later(Failure::new(class, reason))
    }

    /// What this very request made of its document failed behind the extractor: the same sent again is no duplicate.
    pub(crate) fn failed_behind(&self) -> Result<Outcome, StageError> {
        let known: Option<Remembered> = self.read(&self.document_state())?;
        if let Some(Remembered { last, standing }) = known
            && let Standing::Stored { revision, .. } | Standing::Deleted { revision } = standing
            && revision == self.revision
        {
            let remembered = encoded(&Remembered { last, standing: Standing::Failed })?;
            self.state.put(self.delivery, self.document_state(), remembered);
        }
        Ok(Outcome::skip("failed-behind"))
    }

    /// The document is this from now on, and older requests come too late.
    fn remember(&self, standing: Standing) -> Result<(), StageError> {
        let remembered = encoded(&Remembered { last: self.revision, standing })?;
        self.state.put(self.delivery, self.document_state(), remembered);
        Ok(())
    }

    /// Says what became of the request, and remembers it for repeats with its key.
    fn finally(
        &self,
        outcome: OutcomeKind,
        revision: Option<Revision>,
        reason: Option<String>,
    ) -> Result<Output, StageError> {
        self.remember_key(outcome, revision, reason.clone())?;
        Ok(self.told(outcome, revision, reason))
    }

    /// Remembers what became of the request for repeats with its key, if it has one.
    fn remember_key(
        &self,
        outcome: OutcomeKind,
        revision: Option<Revision>,
        reason: Option<String>,
    ) -> Result<(), StageError> {
        let request = self.delivery.record();
        if let Some(key) = idempotency::key_of(request) {
            let fingerprint = idempotency::fingerprint(request);
            let first = FirstUse { request: self.revision, fingerprint, outcome, revision, reason };
            let expires_at = self.delivery.timestamp.saturating_add(self.window);
            let key = idempotency::state_key(&request.tenant, key);
            self.state.put_until(self.delivery, key, encoded(&first)?, expires_at);
        }
        Ok(())
    }

    fn told(&self, outcome: OutcomeKind, revision: Option<Revision>, reason: Option<String>) -> Output {
        told(self.delivery, outcome, revision, reason)
    }

    fn document_state(&self) -> String {
        let request = self.delivery.record();
        format!("document/{}", document_key(&request.tenant, &request.document))
    }

    fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StageError> {
        let Some(bytes) = self.state.get(self.delivery, key)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            let lane = self.delivery.at.lane;
            StageError::Fatal(format!("the state of lane {lane} is from another version: {key:?}: {error}"))
        })
    }

    fn log(&self, class: &'static str, reason: &str, event: &'static str) {
        let request = self.delivery.record();
        tracing::info!(
            tenant = %request.tenant, document = %request.document, revision = %self.revision,
            lane = %self.delivery.at.lane, offset = self.delivery.at.offset, class, reason, "{event}"
        );
    }
}

fn encoded(value: &impl Serialize) -> Result<Vec<u8>, StageError> {
    serde_json::to_vec(value).map_err(|error| StageError::Fatal(format!("state can't be written: {error}")))
}

/// Says of a request that became a dead letter what became of it, whoever rejected it. The runner asks for it once, so a
/// panic, an output that is too large and a last try are told as well. Nothing is remembered of those: nothing was
/// decided, so the dead letter may be replayed as long as no newer request was decided.
pub(crate) fn last_words(delivery: &Delivery<DocumentRequest>, failure: &Failure) -> Output {
    let outcome = if failure.class == CONFLICT { OutcomeKind::Conflict } else { OutcomeKind::Rejected };
    told(delivery, outcome, None, Some(failure.message.clone()))
}

/// Says of a request what became of it. The time is that of the request's record, so that the same delivery always
/// gives the same answer.
fn told(
    delivery: &Delivery<DocumentRequest>,
    outcome: OutcomeKind,
    revision: Option<Revision>,
    reason: Option<String>,
) -> Output {
    let request = delivery.record();
    let record = RequestOutcome {
        request_id: request.request_id.clone(),
        tenant: request.tenant.clone(),
        document: request.document.clone(),
        outcome,
        reason,
        revision,
        at: delivery.timestamp,
    };
    Output::new(Topic::REQUEST_OUTCOMES, request.request_id.as_str(), record)
        .with_header(header::TENANT, request.tenant.as_str())
}
