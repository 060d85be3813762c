//! What became of each request that was sent: outcomes and states arrive in any order, from two topics.

use std::collections::HashMap;

use serde::Serialize;
use weir_contracts::{
    DocumentId, DocumentState, DocumentStatus, OutcomeKind, RequestId, RequestOutcome, Revision, TenantId,
};

/// Where a request stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Standing {
    /// Not sent yet.
    Waiting,
    /// In Kafka; no outcome yet.
    Sent,
    /// Accepted; not searchable yet.
    Accepted {
        /// Revision it made.
        revision: Revision,
    },
    /// The content is what the document already had, at this revision, which was not seen searchable yet.
    Duplicate {
        /// The revision the document has.
        revision: Option<Revision>,
    },
    /// Searchable.
    Indexed {
        /// Chunks that can be found.
        chunks: i32,
    },
    /// Deleted.
    Deleted,
    /// The content is what the document already had, and it is searchable.
    Unchanged,
    /// A newer request for the document overtook it.
    Superseded,
    /// Turned away or failed.
    Failed {
        /// Which step said so.
        step: &'static str,
        /// Why.
        reason: String,
    },
}

impl Standing {
    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Waiting | Self::Sent | Self::Accepted { .. } | Self::Duplicate { .. })
    }
}

/// How many requests stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All.
    pub documents: usize,
    /// In Kafka, whatever became of them.
    pub sent: usize,
    /// Searchable by this run.
    pub indexed: usize,
    /// Deleted by this run.
    pub deleted: usize,
    /// Already there with the same content.
    pub unchanged: usize,
    /// Overtaken by a newer request.
    pub superseded: usize,
    /// Turned away or failed.
    pub failed: usize,
    /// Not decided yet.
    pub pending: usize,
    /// Chunks of the indexed documents.
    pub chunks: i64,
}

struct Entry {
    document: DocumentId,
    standing: Standing,
}

/// The requests of one run, all of one tenant, one for each document.
pub struct Ledger {
    tenant: TenantId,
    entries: HashMap<RequestId, Entry>,
    by_document: HashMap<DocumentId, RequestId>,
    /// States that arrived, also those before their request's outcome.
    states: HashMap<DocumentId, DocumentStatus>,
}

impl Ledger {
    /// No requests yet.
    #[must_use]
    pub fn new(tenant: TenantId) -> Self {
        Self { tenant, entries: HashMap::new(), by_document: HashMap::new(), states: HashMap::new() }
    }

    /// A request that will be sent.
    pub fn expect(&mut self, request: RequestId, document: DocumentId) {
        self.by_document.insert(document.clone(), request.clone());
        self.entries.insert(request, Entry { document, standing: Standing::Waiting });
    }

    /// The request is in Kafka. Its outcome may have been faster.
    pub fn sent(&mut self, request: &RequestId) {
        if let Some(entry) = self.entries.get_mut(request)
            && entry.standing == Standing::Waiting
        {
            entry.standing = Standing::Sent;
        }
    }

    /// The request came to nothing at this step.
    pub fn failed(&mut self, request: &RequestId, step: &'static str, reason: String) {
        if let Some(entry) = self.entries.get_mut(request)
            && !entry.standing.is_final()
        {
            entry.standing = Standing::Failed { step, reason };
        }
    }

    /// The document came to nothing at this step.
    pub fn document_failed(&mut self, tenant: &TenantId, document: &DocumentId, step: &'static str, reason: String) {
        if *tenant == self.tenant
            && let Some(request) = self.by_document.get(document).cloned()
        {
            self.failed(&request, step, reason);
        }
    }

    /// An outcome arrived, perhaps someone else's.
    pub fn outcome(&mut self, outcome: &RequestOutcome) {
        if outcome.tenant != self.tenant {
            return;
        }
        let Some(entry) = self.entries.get_mut(&outcome.request_id) else { return };
        if entry.standing.is_final() {
            return;
        }
        let reason = || outcome.reason.clone().unwrap_or_else(|| "no reason was given".into());
        entry.standing = match (outcome.outcome, outcome.revision) {
            (OutcomeKind::Accepted, Some(revision)) => Standing::Accepted { revision },
            // Whose state comes with the request's id.
            (OutcomeKind::Accepted, None) => Standing::Sent,
            (OutcomeKind::Duplicate, revision) => Standing::Duplicate { revision },
            (OutcomeKind::Superseded, _) => Standing::Superseded,
            (OutcomeKind::Conflict, _) => Standing::Failed { step: "conflict", reason: reason() },
            (OutcomeKind::Rejected, _) => Standing::Failed { step: "rejected", reason: reason() },
        };
        let document = entry.document.clone();
        self.settle(&document);
    }

    /// A state arrived, perhaps of someone else's document.
    pub fn status(&mut self, status: &DocumentStatus) {
        if status.tenant != self.tenant || !self.by_document.contains_key(&status.document) {
            return;
        }
        let known = self.states.get(&status.document);
        if known.is_none_or(|known| known.revision <= status.revision) {
            self.states.insert(status.document.clone(), status.clone());
        }
        self.settle(&status.document);
    }

    fn settle(&mut self, document: &DocumentId) {
        let (Some(request), Some(status)) = (self.by_document.get(document), self.states.get(document)) else { return };
        let Some(entry) = self.entries.get_mut(request) else { return };
        entry.standing = match &entry.standing {
            Standing::Accepted { revision } if status.revision == *revision => reached(status),
            Standing::Accepted { revision } if status.revision > *revision => Standing::Superseded,
            Standing::Sent if status.request_id == *request => reached(status),
            Standing::Duplicate { revision } if revision.is_none_or(|revision| status.revision >= revision) => {
                match reached(status) {
                    Standing::Indexed { .. } | Standing::Deleted => Standing::Unchanged,
                    failed => failed,
                }
            }
            _ => return,
        };
    }

    /// Where each request stands, in the order of the documents' ids.
    #[must_use]
    pub fn standings(&self) -> Vec<(&DocumentId, &Standing)> {
        let mut all: Vec<_> = self.entries.values().map(|entry| (&entry.document, &entry.standing)).collect();
        all.sort_by(|a, b| a.0.cmp(b.0));
        all
    }

    /// How many requests stand where.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { documents: self.entries.len(), ..Counts::default() };
        for entry in self.entries.values() {
            let (count, sent) = match &entry.standing {
                Standing::Waiting => (&mut counts.pending, false),
                Standing::Sent | Standing::Accepted { .. } | Standing::Duplicate { .. } => (&mut counts.pending, true),
                Standing::Indexed { chunks } => {
                    counts.chunks += i64::from(*chunks);
                    (&mut counts.indexed, true)
                }
                Standing::Deleted => (&mut counts.deleted, true),
                Standing::Unchanged => (&mut counts.unchanged, true),
                Standing::Superseded => (&mut counts.superseded, true),
                Standing::Failed { step, .. } => (&mut counts.failed, *step != NOT_SENT),
            };
            *count += 1;
            counts.sent += usize::from(sent);
        }
        counts
    }

    /// Whether only duplicates are open: their state is older than this run and has to be looked up.
    #[must_use]
    pub fn waits_for_older_states(&self) -> bool {
        let mut open = self.entries.values().filter(|entry| !entry.standing.is_final()).peekable();
        open.peek().is_some() && open.all(|entry| matches!(entry.standing, Standing::Duplicate { .. }))
    }
}

/// The step of a request that never reached Kafka.
pub const NOT_SENT: &str = "not sent";

fn reached(status: &DocumentStatus) -> Standing {
    match status.state {
        DocumentState::Indexed => Standing::Indexed { chunks: status.chunks },
        DocumentState::Deleted => Standing::Deleted,
        DocumentState::Failed => Standing::Failed {
            step: "failed",
            reason: status.reason.clone().unwrap_or_else(|| "no reason was given".into()),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn tenant() -> TenantId {
        TenantId::parse("acme").unwrap()
    }

    fn request(n: u32) -> RequestId {
        RequestId::parse(format!("r{n}")).unwrap()
    }

    fn document(n: u32) -> DocumentId {
        DocumentId::parse(format!("d{n}")).unwrap()
    }

    fn ledger(requests: u32) -> Ledger {
        let mut ledger = Ledger::new(tenant());
        for n in 0..requests {
            ledger.expect(request(n), document(n));
            ledger.sent(&request(n));
        }
        ledger
    }

    fn outcome(n: u32, kind: OutcomeKind, revision: i64) -> RequestOutcome {
        RequestOutcome {
            request_id: request(n),
            tenant: tenant(),
            document: document(n),
            outcome: kind,
            reason: Some("because".into()),
            revision: Some(Revision::from_ordinal(revision)),
            at: 0,
        }
    }

    fn status(n: u32, state: DocumentState, revision: i64) -> DocumentStatus {
        DocumentStatus {
            tenant: tenant(),
            document: document(n),
            revision: Revision::from_ordinal(revision),
            request_id: request(n),
            state,
            chunks: 3,
            reason: None,
            requested_at: 0,
            at: 0,
        }
    }

    #[test]
    fn accepted_is_not_indexed() {
        let mut ledger = ledger(1);
        ledger.outcome(&outcome(0, OutcomeKind::Accepted, 7));
        assert_eq!(ledger.counts().pending, 1);
        ledger.status(&status(0, DocumentState::Indexed, 6));
        assert_eq!(ledger.counts().pending, 1, "an older revision is not this one");
        ledger.status(&status(0, DocumentState::Indexed, 7));
        let counts = ledger.counts();
        assert_eq!((counts.indexed, counts.pending, counts.chunks), (1, 0, 3));
    }

    #[test]
    fn a_state_that_overtakes_its_outcome_counts() {
        let mut ledger = ledger(1);
        let mut early = status(0, DocumentState::Indexed, 7);
        early.request_id = request(99);
        ledger.status(&early);
        assert_eq!(ledger.counts().pending, 1);
        ledger.outcome(&outcome(0, OutcomeKind::Accepted, 7));
        assert_eq!(ledger.counts().indexed, 1);
    }

    #[test]
    fn a_duplicate_is_done_when_the_revision_it_repeats_is_searchable() {
        let mut ledger = ledger(2);
        ledger.outcome(&outcome(0, OutcomeKind::Duplicate, 4));
        assert!(!ledger.waits_for_older_states(), "another request is still open");
        ledger.outcome(&outcome(1, OutcomeKind::Rejected, 0));
        assert!(ledger.waits_for_older_states());
        ledger.status(&status(0, DocumentState::Indexed, 4));
        assert_eq!(ledger.counts().unchanged, 1);
        assert_eq!(ledger.counts().failed, 1);
    }

    #[test]
    fn a_final_standing_stays() {
        let mut ledger = ledger(1);
        ledger.outcome(&outcome(0, OutcomeKind::Rejected, 0));
        ledger.outcome(&outcome(0, OutcomeKind::Accepted, 7));
        ledger.failed(&request(0), NOT_SENT, "late".into());
        assert_eq!(ledger.standings()[0].1, &Standing::Failed { step: "rejected", reason: "because".into() });
    }

    #[test]
    fn what_others_sent_is_not_counted() {
        let mut ledger = ledger(1);
        let mut foreign = outcome(0, OutcomeKind::Rejected, 1);
        foreign.tenant = TenantId::parse("other").unwrap();
        ledger.outcome(&foreign);
        ledger.outcome(&outcome(5, OutcomeKind::Rejected, 1));
        ledger.status(&status(5, DocumentState::Indexed, 1));
        assert_eq!(ledger.counts().pending, 1);
    }

    #[test]
    fn a_document_that_moved_on_was_superseded() {
        let mut ledger = ledger(1);
        ledger.outcome(&outcome(0, OutcomeKind::Accepted, 7));
        ledger.status(&status(0, DocumentState::Indexed, 9));
        assert_eq!(ledger.counts().superseded, 1);
    }
}
