//! What was found out lately, each thing for a limited time: results of searches, for when the vector store does not answer,
//! and results of tools that do not change.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weir_contracts::length_prefixed_hash;

use crate::retrieve::Wanted;

/// Things that are remembered.
const REMEMBERED: usize = 2_000;

/// By what something is remembered.
pub(crate) type Key = [u8; 32];

/// Things that are remembered, each for its time.
#[derive(Debug)]
pub(crate) struct Recall<T>(Mutex<HashMap<Key, Kept<T>>>);

#[derive(Debug)]
struct Kept<T> {
    value: T,
    since: Instant,
    length: Duration,
}

impl<T> Kept<T> {
    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    fn is_valid(&self, now: Instant) -> bool {
        self.age(now) < self.length
    }
}

impl<T> Default for Recall<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Recall<T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Kept<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers something for so long.
    pub(crate) fn note(&self, key: Key, value: T, length: Duration, now: Instant) {
        let mut all = self.lock();
        if all.len() >= REMEMBERED {
            all.retain(|_, kept| kept.is_valid(now));
        }
        if all.len() < REMEMBERED || all.contains_key(&key) {
            all.insert(key, Kept { value, since: now, length });
        }
    }

    /// What was noted, and how long ago.
    pub(crate) fn last(&self, key: &Key, now: Instant) -> Option<(T, Duration)> {
        let all = self.lock();
        let kept = all.get(key).filter(|kept| kept.is_valid(now))?;
        Some((kept.value.clone(), kept.age(now)))
    }
}

/// By what the result of a search is remembered.
pub(crate) fn search_key(wanted: &Wanted<'_>) -> Key {
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
        let key = |tenant| search_key(&Wanted { tenant, filter: &filter, question: "q", vector: &[], limit: 3 });
        let (recall, now) = (Recall::default(), Instant::now());
        recall.note(key(&acme), "found", Duration::from_secs(60), now);
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(recall.last(&key(&acme), after(59)), Some(("found", Duration::from_secs(59))));
        assert_eq!(recall.last(&key(&acme), after(60)), None);
        assert_eq!(recall.last(&key(&other), now), None);
    }

    #[test]
    fn what_is_over_makes_room_and_nothing_else_goes() {
        let (recall, now) = (Recall::default(), Instant::now());
        let key = |n: usize| length_prefixed_hash(&[&n.to_le_bytes()]);
        for n in 0..REMEMBERED + 10 {
            recall.note(key(n), n, Duration::from_secs(60), now);
        }
        assert!(recall.last(&key(0), now).is_some() && recall.last(&key(REMEMBERED), now).is_none());
        let later = now + Duration::from_secs(61);
        recall.note(key(REMEMBERED), 1, Duration::from_secs(60), later);
        assert!(recall.last(&key(REMEMBERED), later).is_some());
    }
}
