//! What is decided for a dead letter, and the records that make it so.

use std::sync::Arc;
use std::time::SystemTime;

use weir_contracts::{Lane, TopicNames, again_topic, dead_letter_topic, header, unix_millis};
use weir_stage::Headers;

use super::letter::DeadLetter;
use crate::process::EncodedRecord;

/// What an operator wants done with dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Give them back to their stage.
    Replay {
        /// What came back this often is parked instead: it would only come back again.
        max_replays: u32,
        /// Parked ones too, however often they came back.
        parked: bool,
        /// From the beginning: steps that ended before are done, and paid for, once more. Else a stage that keeps a journal
        /// goes on at the step that failed.
        restart: bool,
    },
    /// Remove them for good.
    Discard,
    /// Keep them, but pass them over when many are replayed.
    Park {
        /// Why.
        reason: String,
    },
}

/// What becomes of one dead letter.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase", tag = "decision")]
pub enum Decision {
    /// It goes back to its stage.
    Replay {
        /// The lane in which it is produced.
        lane: Lane,
        /// From the beginning, whatever was done before.
        restart: bool,
    },
    /// It is removed.
    Discard,
    /// It is parked.
    Park {
        /// Why.
        reason: String,
    },
    /// It is replaced by what was imported under its id.
    Replace,
    /// It is imported though nothing is outstanding under its id.
    Restore,
    /// Nothing.
    Leave {
        /// Why not.
        reason: &'static str,
    },
}

impl Action {
    pub(crate) fn decide(&self, letter: &DeadLetter) -> Decision {
        let parked = letter.parked().is_some();
        match self {
            Self::Replay { parked: false, .. } if parked => Decision::Leave { reason: "it is parked" },
            Self::Replay { max_replays, .. } if !parked && letter.replays() >= *max_replays => {
                Decision::Park { reason: format!("replayed {} times, and rejected again", letter.replays()) }
            }
            Self::Replay { restart, .. } => Decision::Replay { lane: current_lane(letter), restart: *restart },
            Self::Discard => Decision::Discard,
            Self::Park { .. } if parked => Decision::Leave { reason: "it is parked already" },
            Self::Park { reason } => Decision::Park { reason: reason.clone() },
        }
    }
}

impl Decision {
    /// Whether the rejected record itself is produced again.
    pub(crate) fn needs_value(&self) -> bool {
        !matches!(self, Self::Discard | Self::Leave { .. })
    }
}

/// The lane that a dead letter's record belongs to today: the only place that says so. Tenants do not move, so it is
/// the one it was read from.
fn current_lane(letter: &DeadLetter) -> Lane {
    letter.lane
}

/// Full names of the topics of a stage.
pub(crate) struct Topics {
    pub(crate) dead_letters: Arc<str>,
    pub(crate) again: Arc<str>,
}

impl Topics {
    pub(crate) fn of(names: &TopicNames, stage: &str) -> Self {
        Self {
            dead_letters: names.full_name(&dead_letter_topic(stage)).into(),
            again: names.full_name(&again_topic(stage)).into(),
        }
    }

    /// The records that make a decision true, all in one transaction. `letter` has its value where that is needed.
    pub(crate) fn records(&self, letter: DeadLetter, decision: &Decision, now: SystemTime) -> Vec<EncodedRecord> {
        match decision {
            Decision::Replay { lane, restart } => {
                let tombstone = self.tombstone(&letter);
                vec![self.returning(letter, *lane, *restart), tombstone]
            }
            Decision::Discard => vec![self.tombstone(&letter)],
            Decision::Park { reason } => {
                let mut letter = letter;
                letter.headers.set(header::PARKED, reason.as_bytes());
                letter.headers.set(header::PARKED_AT, unix_millis(now).to_string());
                vec![self.as_it_is(letter)]
            }
            Decision::Replace | Decision::Restore => vec![self.as_it_is(letter)],
            Decision::Leave { .. } => Vec::new(),
        }
    }

    /// The rejected record as its stage gets it again: its own bytes, key and headers; its id, origin and revision, so
    /// that it is known when it fails again; attempts from the beginning.
    fn returning(&self, letter: DeadLetter, lane: Lane, restart: bool) -> EncodedRecord {
        const PAST: [&str; 7] = [
            header::ATTEMPT,
            header::RESTART,
            header::NOT_BEFORE,
            header::DEAD_LETTER_AT,
            header::DEAD_LETTER_KEY,
            header::PARKED,
            header::PARKED_AT,
        ];
        let key = letter.original_key().map(<[u8]>::to_vec);
        let replays = letter.replays().saturating_add(1);
        let mut headers = letter.headers;
        headers.0.retain(|(name, _)| !PAST.contains(&name.as_str()));
        headers.set(header::REPLAYS, replays.to_string());
        if restart {
            headers.set(header::RESTART, "true");
        }
        if headers.get(header::DEAD_LETTER).is_none() {
            headers.set(header::DEAD_LETTER, letter.key);
        }
        EncodedRecord { topic: Arc::clone(&self.again), lane, key, value: letter.value, headers }
    }

    fn tombstone(&self, letter: &DeadLetter) -> EncodedRecord {
        EncodedRecord {
            topic: Arc::clone(&self.dead_letters),
            lane: letter.lane,
            key: Some(letter.key.clone()),
            value: None,
            headers: Headers::default(),
        }
    }

    fn as_it_is(&self, letter: DeadLetter) -> EncodedRecord {
        EncodedRecord {
            topic: Arc::clone(&self.dead_letters),
            lane: letter.lane,
            key: Some(letter.key),
            value: letter.value,
            headers: letter.headers,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::super::letter::letter;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    const HISTORY: [(&str, &str); 10] = [
        (header::TENANT, "acme"),
        (header::REVISION, "17"),
        (header::ATTEMPT, "4"),
        (header::DEAD_LETTER, "4a6f"),
        (header::DEAD_LETTER_KEY, "acme/q1.pdf"),
        (header::DEAD_LETTER_AT, "500"),
        (header::DLQ_TOPIC, "weir.requests"),
        (header::DLQ_PARTITION, "3"),
        (header::DLQ_OFFSET, "41"),
        (header::REPLAYS, "1"),
    ];

    fn replay(max_replays: u32, parked: bool) -> Action {
        Action::Replay { max_replays, parked, restart: false }
    }

    #[test]
    fn a_replay_gives_the_record_back_with_its_past_and_removes_the_dead_letter() {
        let topics = Topics::of(&TopicNames::new("weir."), "extract");
        let letter = letter(&HISTORY);
        let records = topics.records(letter.clone(), &replay(3, false).decide(&letter), UNIX_EPOCH);
        let (again, tombstone) = (&records[0], &records[1]);
        assert_eq!((&*again.topic, again.lane), ("weir.extract.again", Lane(3)));
        assert_eq!(again.key.as_deref(), Some(&b"acme/q1.pdf"[..]), "its own key");
        assert_eq!(again.value.as_deref(), letter.value(), "its own bytes");
        for name in [header::ATTEMPT, header::DEAD_LETTER_KEY, header::DEAD_LETTER_AT] {
            assert_eq!(again.headers.get(name), None, "{name}");
        }
        for (name, value) in [
            (header::TENANT, "acme"),
            (header::REVISION, "17"),
            (header::DEAD_LETTER, "4a6f"),
            (header::DLQ_OFFSET, "41"),
            (header::REPLAYS, "2"),
        ] {
            assert_eq!(again.headers.text(name), Some(value), "{name}");
        }
        assert_eq!((&*tombstone.topic, tombstone.lane), ("weir.dlq.extract", Lane(3)));
        assert_eq!((tombstone.key.as_deref(), &tombstone.value), (Some(&b"4a6f"[..]), &None));
    }

    #[test]
    fn that_it_begins_anew_is_said_for_this_replay_only() {
        let topics = Topics::of(&TopicNames::new("weir."), "answer");
        let again = |restart, mut letter: DeadLetter| {
            let action = Action::Replay { max_replays: 9, parked: false, restart };
            letter.headers = topics.records(letter.clone(), &action.decide(&letter), UNIX_EPOCH)[0].headers.clone();
            letter
        };
        let restarted = again(true, letter(&HISTORY));
        assert_eq!(restarted.headers.text(header::RESTART), Some("true"));
        assert_eq!(again(false, restarted).headers.text(header::RESTART), None);
    }

    #[test]
    fn what_comes_back_again_and_again_is_parked_until_parked_ones_are_asked_for() {
        let topics = Topics::of(&TopicNames::new("weir."), "extract");
        let mut looping = letter(&HISTORY);
        looping.headers.set(header::REPLAYS, "3");
        let decision = replay(3, false).decide(&looping);
        assert!(matches!(&decision, Decision::Park { reason } if reason.contains('3')), "{decision:?}");
        assert!(matches!(replay(4, false).decide(&looping), Decision::Replay { .. }));
        let records = topics.records(looping.clone(), &decision, UNIX_EPOCH + Duration::from_millis(9));
        assert_eq!(records.len(), 1, "it stays");
        let parked = DeadLetter { headers: records[0].headers.clone(), ..looping };
        assert_eq!(records[0].key, Some(parked.key.clone()));
        assert_eq!(parked.parked().unwrap().at, 9);
        assert!(matches!(replay(9, false).decide(&parked), Decision::Leave { .. }));
        assert!(matches!(Action::Park { reason: "again".into() }.decide(&parked), Decision::Leave { .. }));
        let asked_for = replay(3, true).decide(&parked);
        assert!(matches!(asked_for, Decision::Replay { .. }));
        let again = topics.records(parked, &asked_for, UNIX_EPOCH);
        assert_eq!(again[0].headers.get(header::PARKED), None);
        assert_eq!(again[0].headers.text(header::REPLAYS), Some("4"));
    }
}
