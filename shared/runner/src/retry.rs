//! Records that are to be tried again later: which tier, when, and with what history.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::Rng;
use weir_contracts::{Lane, RETRY_TIERS, TopicNames, header, unix_millis};
use weir_stage::Failure;

use crate::RunnerConfig;
use crate::dead_letter::{cut, returned, set_origin};
use crate::process::{EncodedRecord, RawRecord};

/// What may be tried again, and how often.
#[derive(Debug)]
pub(crate) struct RetryPolicy {
    attempts: u32,
    by_class: BTreeMap<String, u32>,
    first_tier: usize,
    jitter: bool,
    tiers: Vec<(Arc<str>, u64)>,
    /// Whether the topics for it exist: known once Kafka was asked.
    possible: Arc<AtomicBool>,
}

/// How often a record was tried again already.
pub(crate) fn attempts(raw: &RawRecord) -> u32 {
    let counted = raw.headers.text(header::ATTEMPT).filter(|_| returned(&raw.at));
    counted.and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl RetryPolicy {
    pub(crate) fn new(config: &RunnerConfig, names: &TopicNames, possible: Arc<AtomicBool>) -> Self {
        Self {
            attempts: config.retry_attempts,
            by_class: config.retry_attempts_by_class.clone(),
            first_tier: config.retry_first_tier,
            jitter: config.retry_jitter,
            possible,
            tiers: RETRY_TIERS.iter().map(|(topic, delay)| (names.full(*topic).into(), *delay)).collect(),
        }
    }

    /// Whether records can be tried again later at all.
    pub(crate) fn is_possible(&self) -> bool {
        self.possible.load(Ordering::Acquire)
    }

    /// Whether a record that failed like this gets another try.
    pub(crate) fn allows(&self, failure: &Failure, attempts: u32) -> bool {
        self.is_possible() && attempts < self.by_class.get(failure.class).copied().unwrap_or(self.attempts)
    }

    /// The record that waits in a tier and comes back to `stage`. It is due after the tier's delay until
    /// [`RetryPolicy::spread`] says otherwise.
    pub(crate) fn record(&self, stage: &str, raw: &RawRecord, failure: &Failure, now: SystemTime) -> EncodedRecord {
        let attempts = attempts(raw);
        let tier = self.first_tier.saturating_add(attempts as usize).min(self.tiers.len().saturating_sub(1));
        let mut record = self.waiting(tier, stage, raw, failure, now);
        record.headers.set(header::ATTEMPT, attempts.saturating_add(1).to_string());
        record
    }

    /// The record that waits for about this long, at most the longest tier, and comes back to `stage`. It was not a try.
    pub(crate) fn postponed(
        &self,
        stage: &str,
        raw: &RawRecord,
        failure: &Failure,
        wait: Duration,
        now: SystemTime,
    ) -> EncodedRecord {
        let tier = self.tiers.iter().rposition(|(_, delay)| Duration::from_millis(*delay) <= wait).unwrap_or(0);
        self.waiting(tier, stage, raw, failure, now)
    }

    fn waiting(&self, tier: usize, stage: &str, raw: &RawRecord, failure: &Failure, now: SystemTime) -> EncodedRecord {
        let (topic, delay) = self.tiers.get(tier).cloned().unwrap_or_else(|| ("".into(), 0));
        let now = unix_millis(now);
        let mut headers = raw.headers.clone();
        set_origin(&mut headers, &raw.at);
        if headers.get(header::FIRST_FAILURE_AT).is_none() {
            headers.set(header::FIRST_FAILURE_AT, now.to_string());
        }
        headers.set(header::STAGE, stage);
        headers.set(header::ERROR_CLASS, failure.class);
        headers.set(header::DLQ_MESSAGE, cut(&failure.message));
        headers.set(header::NOT_BEFORE, now.saturating_add_unsigned(delay).to_string());
        EncodedRecord { topic, lane: raw.at.lane, key: raw.key.clone(), value: raw.value.clone(), headers }
    }

    /// Spreads the records of a batch that wait in the same lane and tier evenly from half to one and a half times its
    /// delay. Their times rise in the order they are written in, because a lane is read in order: a record that is due
    /// later would hold up those behind it.
    pub(crate) fn spread<'a>(
        &self,
        waiting: impl Iterator<Item = &'a mut EncodedRecord>,
        now: SystemTime,
        random: &mut impl Rng,
    ) {
        if !self.jitter {
            return;
        }
        let mut groups: BTreeMap<(Arc<str>, Lane), Vec<&mut EncodedRecord>> = BTreeMap::new();
        for record in waiting {
            groups.entry((Arc::clone(&record.topic), record.lane)).or_default().push(record);
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        for ((topic, _), records) in groups {
            let delay = self.tiers.iter().find(|(tier, _)| *tier == topic).map_or(0, |(_, delay)| *delay);
            let mut factors: Vec<f64> = records.iter().map(|_| 0.5 + random.random::<f64>()).collect();
            factors.sort_by(f64::total_cmp);
            for (record, factor) in records.into_iter().zip(factors) {
                let due = now + Duration::from_millis(delay).mul_f64(factor);
                record.headers.set(header::NOT_BEFORE, due.as_millis().to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use rand::SeedableRng;
    use weir_stage::{Coordinates, Headers};

    use super::*;
    use crate::ownership::Ownership;

    fn raw(attempt: u32) -> RawRecord {
        let mut headers = Headers::default();
        let topic = if attempt > 0 { "weir.extract.again" } else { "weir.requests" };
        if attempt > 0 {
            headers.set(header::ATTEMPT, attempt.to_string());
        }
        RawRecord {
            at: Coordinates { topic: topic.into(), lane: Lane(3), offset: 7 },
            epoch: Ownership::new(Duration::from_secs(1)).assign(Lane(3)),
            key: Some(b"k".to_vec()),
            value: Some(b"v".to_vec()),
            headers,
            timestamp: 0,
            not_before: None,
        }
    }

    fn policy(jitter: bool) -> RetryPolicy {
        let config = RunnerConfig {
            retry_jitter: jitter,
            retry_attempts_by_class: [("stubborn".to_owned(), 1)].into(),
            ..RunnerConfig::default()
        };
        RetryPolicy::new(&config, &TopicNames::new("weir."), Arc::new(AtomicBool::new(true)))
    }

    #[test]
    fn what_is_postponed_waits_in_the_longest_tier_that_is_not_too_long_and_has_not_been_tried() {
        let (policy, failure) = (policy(true), Failure::new("over-limit", "no"));
        for (millis, tier) in [(0, "1s"), (1_999, "1s"), (2_000, "2s"), (7_999, "4s"), (60_000, "8s")] {
            let record = policy.postponed("answer", &raw(0), &failure, Duration::from_millis(millis), UNIX_EPOCH);
            assert_eq!(record.topic.to_string(), format!("weir.retry.{tier}"));
            assert_eq!(record.headers.text(header::ATTEMPT), None);
        }
    }

    #[test]
    fn each_try_waits_in_the_next_tier_and_classes_have_their_own_number() {
        let (policy, failure) = (policy(true), Failure::new("told-so", "no"));
        let tiers: Vec<_> =
            (0..6).map(|n| policy.record("extract", &raw(n), &failure, UNIX_EPOCH).topic.to_string()).collect();
        assert_eq!(tiers, ["1s", "2s", "4s", "8s", "8s", "8s"].map(|tier| format!("weir.retry.{tier}")));
        assert!(policy.allows(&failure, 3) && !policy.allows(&failure, 4));
        let stubborn = Failure::new("stubborn", "no");
        assert!(policy.allows(&stubborn, 0) && !policy.allows(&stubborn, 1));
        let record = policy.record("extract", &raw(2), &failure, UNIX_EPOCH);
        assert_eq!(record.headers.text(header::ATTEMPT), Some("3"));
        assert_eq!(record.headers.text(header::DLQ_OFFSET), Some("7"));
        assert_eq!(record.headers.text(header::STAGE), Some("extract"));
    }

    /// The busiest tenth of a second of 1,000 failures at one instant, against an even spread over the second.
    fn busiest(policy: &RetryPolicy) -> usize {
        let failure = Failure::new("told-so", "no");
        let mut records: Vec<_> = (0..1_000).map(|_| policy.record("extract", &raw(0), &failure, UNIX_EPOCH)).collect();
        policy.spread(records.iter_mut(), UNIX_EPOCH, &mut rand::rngs::StdRng::seed_from_u64(1));
        let due: Vec<u64> =
            records.iter().map(|record| record.headers.text(header::NOT_BEFORE).unwrap().parse().unwrap()).collect();
        assert!(due.is_sorted(), "a record would hold up those behind it");
        let mut bins = [0usize; 40];
        for due in due {
            bins[usize::try_from(due / 100).unwrap()] += 1;
        }
        bins.into_iter().max().unwrap()
    }

    #[test]
    fn what_failed_together_does_not_return_together() {
        assert!(busiest(&policy(true)) < 200, "{}", busiest(&policy(true)));
        assert_eq!(busiest(&policy(false)), 1_000, "without jitter all return at once");
    }
}
