//! What searches found lately, for when the vector store does not answer.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weir_contracts::length_prefixed_hash;

use crate::Passage;
use crate::retrieve::Wanted;

/// Searches that are remembered.
const REMEMBERED: usize = 2_000;

/// What was found, and when, by what was looked for.
type Results = HashMap<[u8; 32], (Instant, Vec<Passage>)>;

/// Results of searches, each for a limited time.
#[derive(Debug)]
pub(crate) struct Recall {
    kept: Duration,
    results: Mutex<Results>,
}

impl Recall {
    /// Remembers results for so long.
    pub(crate) fn new(kept: Duration) -> Self {
        Self { kept, results: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Results> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a search found.
    pub(crate) fn note(&self, wanted: &Wanted<'_>, passages: &[Passage], now: Instant) {
        let mut results = self.lock();
        if results.len() >= REMEMBERED {
            results.retain(|_, (at, _)| now.saturating_duration_since(*at) < self.kept);
        }
        if results.len() < REMEMBERED {
            results.insert(key(wanted), (now, passages.to_vec()));
        }
    }

    /// What the same search found, and how long ago.
    pub(crate) fn last(&self, wanted: &Wanted<'_>, now: Instant) -> Option<(Vec<Passage>, Duration)> {
        let results = self.lock();
        let (at, passages) = results.get(&key(wanted))?;
        let age = now.saturating_duration_since(*at);
        (age < self.kept).then(|| (passages.clone(), age))
    }
}

fn key(wanted: &Wanted<'_>) -> [u8; 32] {
    let filter: Vec<u8> = wanted
        .filter
        .iter()
        .flat_map(|(name, value)| length_prefixed_hash(&[name.as_bytes(), value.as_bytes()]))
        .collect();
    let parts: [&[u8]; 4] =
        [wanted.tenant.as_str().as_bytes(), wanted.question.as_bytes(), &filter, &wanted.limit.to_le_bytes()];
    length_prefixed_hash(&parts)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use weir_contracts::TenantId;

    use super::*;

    #[test]
    fn a_result_is_recalled_for_its_time_and_for_its_tenant_only() {
        let (filter, acme, other) =
            (BTreeMap::new(), TenantId::parse("acme").unwrap(), TenantId::parse("other").unwrap());
        let wanted = |tenant| Wanted { tenant, filter: &filter, question: "q", vector: &[], limit: 3 };
        let (recall, now) = (Recall::new(Duration::from_secs(60)), Instant::now());
        recall.note(&wanted(&acme), &[], now);
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(recall.last(&wanted(&acme), after(59)), Some((Vec::new(), Duration::from_secs(59))));
        assert_eq!(recall.last(&wanted(&acme), after(60)), None);
        assert_eq!(recall.last(&wanted(&other), now), None);
    }
}
