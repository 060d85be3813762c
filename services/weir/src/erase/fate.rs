//! By when a copy is gone, as far as settings say. No IO.

use std::collections::BTreeMap;

use serde::Serialize;

/// Kafka's cleaner looks for work this often (log.cleaner.backoff.ms), milliseconds.
const CLEANER_MS: i64 = 15_000;

/// What becomes of the copies in one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Fate {
    /// There is none.
    Gone,
    /// Gone by then at the latest.
    By {
        /// Milliseconds since the Unix epoch, UTC.
        at: i64,
        /// The setting that says so.
        why: String,
    },
    /// It stays, and tells nothing of the content.
    Remains {
        /// What stays, and how long.
        why: String,
    },
    /// It is not Weir's to remove.
    Elsewhere {
        /// What to look at.
        why: String,
    },
    /// No setting gives a bound.
    Unbounded {
        /// Which setting is missing.
        why: String,
        /// What to do.
        cure: String,
    },
    /// It stays until somebody does something.
    Outstanding {
        /// What stays.
        why: String,
        /// What to do.
        cure: String,
    },
}

impl Fate {
    /// Whether nothing is left to do but to wait.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !matches!(self, Self::Unbounded { .. } | Self::Outstanding { .. })
    }

    /// The one of several that lasts longest.
    #[must_use]
    pub fn longest(fates: impl IntoIterator<Item = Self>) -> Self {
        let rank = |fate: &Self| match fate {
            Self::Gone => (0, 0),
            Self::Remains { .. } => (1, 0),
            Self::Elsewhere { .. } => (2, 0),
            Self::By { at, .. } => (3, *at),
            Self::Unbounded { .. } => (4, 0),
            Self::Outstanding { .. } => (5, 0),
        };
        fates.into_iter().max_by_key(rank).unwrap_or(Self::Gone)
    }
}

/// What a topic of the live cluster says of the records in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    topic: String,
    deletes: bool,
    compacts: bool,
    /// Negative: for ever.
    retention_ms: i64,
    segment_ms: i64,
    min_compaction_lag_ms: i64,
    max_compaction_lag_ms: i64,
    file_delete_delay_ms: i64,
    /// How often the broker looks for what is too old.
    check_interval_ms: i64,
}

impl Policy {
    /// Reads the settings of a topic.
    ///
    /// # Errors
    /// Names the setting that is missing or not a number.
    pub fn of(topic: &str, settings: &BTreeMap<String, String>, check_interval_ms: i64) -> Result<Self, String> {
        let text = |name: &str| settings.get(name).ok_or_else(|| format!("{topic} does not tell its {name}"));
        let number = |name: &str| -> Result<i64, String> {
            let value = text(name)?;
            value.parse().map_err(|_| format!("{topic}: {name} is {value}, no number"))
        };
        let cleanup = text("cleanup.policy")?;
        Ok(Self {
            topic: topic.to_owned(),
            deletes: cleanup.split(',').any(|policy| policy.trim() == "delete"),
            compacts: cleanup.split(',').any(|policy| policy.trim() == "compact"),
            retention_ms: number("retention.ms")?,
            segment_ms: number("segment.ms")?,
            min_compaction_lag_ms: number("min.compaction.lag.ms")?,
            max_compaction_lag_ms: number("max.compaction.lag.ms")?,
            file_delete_delay_ms: number("file.delete.delay.ms")?,
            check_interval_ms,
        })
    }

    /// What becomes of records of which the newest was written, or replaced by another of its key, at `at`.
    #[must_use]
    pub fn fate(&self, at: i64) -> Fate {
        let by_time = self.deletes.then(|| self.by_retention(at));
        let by_key = self.compacts.then(|| self.by_compaction(at));
        match (by_time, by_key) {
            (Some(Fate::By { at: time, why }), Some(Fate::By { at: key, .. })) if time <= key => {
                Fate::By { at: time, why }
            }
            (Some(bound @ Fate::By { .. }), Some(Fate::Unbounded { .. })) => bound,
            (_, Some(fate)) | (Some(fate), None) => fate,
            (None, None) => Fate::Unbounded {
                why: format!("{} has no cleanup.policy", self.topic),
                cure: "weir topics apply".into(),
            },
        }
    }

    /// A segment goes when its newest record is too old, and it takes new ones for as long as `segment.ms`.
    fn by_retention(&self, at: i64) -> Fate {
        if self.retention_ms < 0 {
            return self.unbounded("retention.ms", "retention.ms is -1: nothing is removed by time");
        }
        let wait = [self.segment_ms, self.retention_ms, self.check_interval_ms, self.file_delete_delay_ms];
        let why = format!(
            "retention.ms ({}) after the last record of its segment, which takes records for segment.ms ({})",
            span(self.retention_ms),
            span(self.segment_ms)
        );
        Fate::By { at: wait.iter().fold(at, |sum, ms| sum.saturating_add((*ms).max(0))), why }
    }

    /// With a limit to the lag, a segment is closed by then, and cleaned as soon as it is.
    fn by_compaction(&self, at: i64) -> Fate {
        if self.max_compaction_lag_ms == i64::MAX {
            let why = "compacted, but max.compaction.lag.ms is not set: what was replaced stays until enough else was";
            return self.unbounded("max.compaction.lag.ms", why);
        }
        let lag = self.max_compaction_lag_ms.max(self.min_compaction_lag_ms);
        let why = format!(
            "max.compaction.lag.ms ({}), once its partition is written to after that: Kafka closes no segment before",
            span(lag)
        );
        let wait = [lag, CLEANER_MS, self.file_delete_delay_ms];
        Fate::By { at: wait.iter().fold(at, |sum, ms| sum.saturating_add((*ms).max(0))), why }
    }

    fn unbounded(&self, setting: &str, why: &str) -> Fate {
        let cure = format!(
            "kafka-configs --alter --entity-type topics --entity-name {} --add-config {setting}=MS (for Weir's own: \
             weir topics apply)",
            self.topic
        );
        Fate::Unbounded { why: why.to_owned(), cure }
    }
}

/// Milliseconds for people: `7 d`, `5 h`, `90 s`.
fn span(ms: i64) -> String {
    match ms / 1_000 {
        seconds if seconds >= 86_400 && seconds % 86_400 == 0 => format!("{} d", seconds / 86_400),
        seconds if seconds >= 3_600 && seconds % 3_600 == 0 => format!("{} h", seconds / 3_600),
        seconds => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const DAY: i64 = 86_400_000;

    fn policy(changes: &[(&str, &str)]) -> Policy {
        let mut settings: BTreeMap<String, String> = [
            ("cleanup.policy", "delete"),
            ("retention.ms", "259200000"),
            ("segment.ms", "604800000"),
            ("min.compaction.lag.ms", "0"),
            ("max.compaction.lag.ms", "9223372036854775807"),
            ("file.delete.delay.ms", "60000"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        settings.extend(changes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        Policy::of("weir.chunks", &settings, 300_000).unwrap()
    }

    fn at(fate: Fate) -> i64 {
        match fate {
            Fate::By { at, .. } => at,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_record_that_expires_may_wait_for_the_rest_of_its_segment() {
        assert_eq!(at(policy(&[]).fate(1_000)), 1_000 + 7 * DAY + 3 * DAY + 300_000 + 60_000);
    }

    #[test]
    fn a_topic_that_keeps_everything_has_no_bound_and_names_the_setting() {
        let Fate::Unbounded { cure, .. } = policy(&[("retention.ms", "-1")]).fate(0) else { panic!("a bound") };
        assert!(cure.contains("weir.chunks") && cure.contains("retention.ms="), "{cure}");
    }

    #[test]
    fn what_was_replaced_goes_within_the_longest_compaction_lag_if_there_is_one() {
        let compacted = [("cleanup.policy", "compact")];
        let Fate::Unbounded { cure, .. } = policy(&compacted).fate(0) else { panic!("a bound") };
        assert!(cure.contains("max.compaction.lag.ms="), "{cure}");
        let limited = policy(&[compacted[0], ("max.compaction.lag.ms", "604800000")]);
        assert_eq!(at(limited.fate(5)), 5 + 7 * DAY + CLEANER_MS + 60_000);
        let delayed = [compacted[0], ("max.compaction.lag.ms", "1"), ("min.compaction.lag.ms", "86400000")];
        assert_eq!(at(policy(&delayed).fate(5)), 5 + DAY + CLEANER_MS + 60_000);
    }

    #[test]
    fn of_two_policies_the_quicker_counts() {
        let both = ("cleanup.policy", "compact,delete");
        assert_eq!(at(policy(&[both]).fate(0)), at(policy(&[]).fate(0)));
        let quick = [both, ("max.compaction.lag.ms", "1000")];
        assert_eq!(at(policy(&quick).fate(0)), 1_000 + CLEANER_MS + 60_000);
        let for_ever = [both, ("retention.ms", "-1")];
        assert!(!policy(&for_ever).fate(0).is_settled());
    }

    #[test]
    fn a_bound_never_overflows() {
        assert_eq!(at(policy(&[("segment.ms", "9223372036854775807")]).fate(1)), i64::MAX);
    }

    #[test]
    fn what_is_outstanding_counts_most_and_then_what_lasts_longest() {
        let by = |at| Fate::By { at, why: String::new() };
        assert_eq!(Fate::longest([]), Fate::Gone);
        assert_eq!(Fate::longest([by(3), Fate::Gone, by(9), by(5)]), by(9));
        let unbounded = Fate::Unbounded { why: String::new(), cure: String::new() };
        let outstanding = Fate::Outstanding { why: String::new(), cure: String::new() };
        assert_eq!(Fate::longest([unbounded.clone(), by(i64::MAX)]), unbounded);
        assert_eq!(Fate::longest([outstanding.clone(), unbounded]), outstanding);
    }
}
