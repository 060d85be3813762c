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

impl Counts {
    fn enter(&mut self, standing: &Standing) {
        let (count, sent) = self.place(standing);
        *count += 1;
        self.sent += usize::from(sent);
        self.chunks += chunks_of(standing);
    }

    fn leave(&mut self, standing: &Standing) {
        let (count, sent) = self.place(standing);
        *count = count.saturating_sub(1);
        self.sent = self.sent.saturating_sub(usize::from(sent));
        self.chunks -= chunks_of(standing);
    }

    /// What counts this standing, and whether it means that the request is in Kafka.
    fn place(&mut self, standing: &Standing) -> (&mut usize, bool) {
        match standing {
            Standing::Waiting => (&mut self.pending, false),
            Standing::Sent | Standing::Accepted { .. } | Standing::Duplicate { .. } => (&mut self.pending, true),
            Standing::Indexed { .. } => (&mut self.indexed, true),
            Standing::Deleted => (&mut self.deleted, true),
            Standing::Unchanged => (&mut self.unchanged, true),
            Standing::Superseded => (&mut self.superseded, true),
            Standing::Failed { step, .. } => (&mut self.failed, *step != NOT_SENT),
        }
    }
}

fn chunks_of(standing: &Standing) -> i64 {
    match standing {
        Standing::Indexed { chunks } => i64::from(*chunks),
        _ => 0,
    }
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
    counts: Counts,
    duplicates: usize,
}

impl Ledger {
    /// No requests yet.
    #[must_use]
    pub fn new(tenant: TenantId) -> Self {
        Self {
            tenant,
            entries: HashMap::new(),
            by_document: HashMap::new(),
            states: HashMap::new(),
            counts: Counts::default(),
            duplicates: 0,
        }
    }

    /// A request that will be sent.
    pub fn expect(&mut self, request: RequestId, document: DocumentId) {
        self.by_document.insert(document.clone(), request.clone());
        let entry = Entry { document, standing: Standing::Waiting };
        self.counts.enter(&entry.standing);
        self.counts.documents += 1;
        self.entries.insert(request, entry);
    }

    /// The request is in Kafka. Its outcome may have been faster.
    pub fn sent(&mut self, request: &RequestId) {
        if self.standing(request) == Some(&Standing::Waiting) {
            self.set(request, Standing::Sent);
        }
    }

    /// The request came to nothing at this step.
    pub fn failed(&mut self, request: &RequestId, step: &'static str, reason: String) {
        if self.standing(request).is_some_and(|standing| !standing.is_final()) {
            self.set(request, Standing::Failed { step, reason });
        }
    }

    fn standing(&self, request: &RequestId) -> Option<&Standing> {
        self.entries.get(request).map(|entry| &entry.standing)
    }

    fn set(&mut self, request: &RequestId, standing: Standing) {
        let Some(entry) = self.entries.get_mut(request) else { return };
        self.counts.leave(&entry.standing);
        self.counts.enter(&standing);
        let duplicate = |standing: &Standing| usize::from(matches!(standing, Standing::Duplicate { .. }));
        self.duplicates = (self.duplicates + duplicate(&standing)).saturating_sub(duplicate(&entry.standing));
        entry.standing = standing;
    }

    /// An outcome arrived, perhaps someone else's.
    pub fn outcome(&mut self, outcome: &RequestOutcome) {
        if outcome.tenant != self.tenant {
            return;
        }
        let Some(entry) = self.entries.get(&outcome.request_id) else { return };
        if entry.standing.is_final() {
            return;
        }
        let document = entry.document.clone();
        let reason = || outcome.reason.clone().unwrap_or_else(|| "no reason was given".into());
        let standing = match (outcome.outcome, outcome.revision) {
            (OutcomeKind::Accepted, Some(revision)) => Standing::Accepted { revision },
            // Its state will carry the request's id.
            (OutcomeKind::Accepted, None) => Standing::Sent,
            (OutcomeKind::Duplicate, revision) => Standing::Duplicate { revision },
            (OutcomeKind::Superseded, _) => Standing::Superseded,
            (OutcomeKind::Conflict, _) => Standing::Failed { step: "conflict", reason: reason() },
            (OutcomeKind::Rejected, _) => Standing::Failed { step: "rejected", reason: reason() },
        };
        self.set(&outcome.request_id, standing);
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
        let Some(standing) = self.standing(request) else { return };
        let settled = match standing {
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
        self.set(&request.clone(), settled);
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
        self.counts
    }

    /// Whether only duplicates are open: their state is older than this run and has to be looked up.
    #[must_use]
    pub fn waits_for_older_states(&self) -> bool {
        self.duplicates > 0 && self.duplicates == self.counts.pending
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
