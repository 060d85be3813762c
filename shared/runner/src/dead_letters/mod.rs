//! Dead letters as a table of what is outstanding, and what an operator can do with them: replay, discard, park, take
//! them out of Kafka and bring them back. A library, for the command line and whoever else offers it.
//!
//! Whatever is done with the dead letters of a stage is done by a producer with one fixed transactional id for the
//! topic. Taking the id over fences any other operator; only then is the table read, up to its high watermark, so
//! everything another one has done is seen. A record goes back to its stage and its dead letter is removed in one
//! transaction. So each is replayed once, whoever is killed and however many replay at once.

mod action;
mod filter;
mod letter;
mod portable;
mod replay;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

pub use action::{Action, Decision};
pub use filter::Filter;
pub use letter::{DeadLetter, Parked};
pub use portable::{NotPortable, Portable, PortableBytes, PortableHeader};
pub use replay::{Pace, Plan, Report, Step};

use crate::KafkaConfig;
use letter::Place;
use table::Wanted;

/// Dead letters that wait to be taken by whoever reads them.
const AHEAD: usize = 16;

/// Something can't be done with dead letters. What was done before stays done, and says the report.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// They can't be read.
    #[error("can't read the dead letters of {stage}: {reason}")]
    Read {
        /// Stage that rejected them.
        stage: Arc<str>,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Somebody else replays, discards or parks dead letters of this stage.
    #[error(
        "another operator has taken over the dead letters of {stage}, or this one was held up for longer than a \
         transaction may last ({done} before that); what is left is outstanding: look at it, and do the same again"
    )]
    TakenOver {
        /// Stage that rejected them.
        stage: Arc<str>,
        /// What was done before.
        done: Report,
    },
    /// Records can't return to the stage.
    #[error("nothing can return to {stage}: {reason}")]
    NoWayBack {
        /// Stage that rejected them.
        stage: Arc<str>,
        /// What is wrong and what to do.
        reason: String,
    },
    /// What was to be imported is no dead letter of this stage.
    #[error(transparent)]
    NotPortable(#[from] NotPortable),
    /// Kafka does not take it.
    #[error("dead letters of {stage}: {reason} ({done} before that; the same again goes on where this ended)")]
    Kafka {
        /// Stage that rejected them.
        stage: Arc<str>,
        /// What is wrong and what to do.
        reason: String,
        /// What was done before.
        done: Report,
    },
}

/// The dead letters of one stage.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    kafka: KafkaConfig,
    stage: Arc<str>,
}

impl DeadLetters {
    /// Those that a stage has rejected.
    #[must_use]
    pub fn of(kafka: &KafkaConfig, stage: &str) -> Self {
        Self { kafka: kafka.clone(), stage: stage.into() }
    }

    /// Those that are outstanding and that the filter means, oldest first, without the rejected records.
    ///
    /// # Errors
    /// When Kafka can't be read.
    pub async fn list(&self, filter: Filter) -> Result<Vec<DeadLetter>, DeadLetterError> {
        let Self { kafka, stage } = self.clone();
        let read = move || {
            let wanted = Wanted { keep: &|letter| filter.matches(letter), hold: &|_| false };
            table::read(&kafka, &stage, &wanted)
        };
        let letters = self.blocking(read).await?;
        let mut letters: Vec<_> = letters.into_values().collect();
        letters.sort_by_key(order);
        Ok(letters)
    }

    /// The same dead letters with the rejected records, one after another, so that memory is bounded. Those that are not
    /// outstanding any more are left out. Ends with the first error.
    #[must_use]
    pub fn read(&self, letters: Vec<DeadLetter>) -> mpsc::Receiver<Result<DeadLetter, DeadLetterError>> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let Self { kafka, stage } = self.clone();
        tokio::task::spawn_blocking(move || {
            let mut todo: BTreeMap<Place, i64> = letters.iter().map(|letter| (letter.place(), letter.offset)).collect();
            while !todo.is_empty() {
                let meant = |letter: &DeadLetter| todo.get(&letter.place()) == Some(&letter.offset);
                let found = match table::read(&kafka, &stage, &Wanted { keep: &meant, hold: &|_| true }) {
                    Ok(found) => found,
                    Err(reason) => {
                        // Nobody listens any more: then nobody wants to know.
                        let _ = sender.blocking_send(Err(DeadLetterError::Read { stage, reason }));
                        return;
                    }
                };
                todo.retain(|place, _| found.get(place).is_some_and(|letter| letter.value.is_none()));
                let mut whole: Vec<_> = found.into_values().filter(|letter| letter.value.is_some()).collect();
                whole.sort_by_key(order);
                for letter in whole {
                    if sender.blocking_send(Ok(letter)).is_err() {
                        return;
                    }
                }
            }
        });
        receiver
    }

    /// What would become of the dead letters that the filter means. Nothing happens until the plan is carried out.
    ///
    /// # Errors
    /// When Kafka can't be read.
    pub async fn plan(&self, filter: Filter, action: &Action) -> Result<Plan, DeadLetterError> {
        let letters = self.list(filter).await?;
        let steps = letters.into_iter().map(|letter| Step::of(action.decide(&letter), letter)).collect();
        Ok(self.plan_of(steps))
    }

    /// To replay one dead letter with these bytes instead of its own, parked or not, from the beginning: what was done with
    /// the other bytes counts for nothing. Its id and its headers stay.
    #[must_use]
    pub fn plan_edited(&self, letter: DeadLetter, value: Vec<u8>) -> Plan {
        let decision = Action::Replay { max_replays: u32::MAX, parked: true, restart: true }.decide(&letter);
        let edited = DeadLetter { size: value.len(), value: Some(value), ..letter };
        self.plan_of(vec![Step::of(decision, edited)])
    }

    /// To put back dead letters that were taken out. They replace what is outstanding under their ids; those that are
    /// not outstanding any more were dealt with meanwhile and are left alone, unless `restore`.
    ///
    /// # Errors
    /// When one of them is none of this stage, or Kafka can't be read.
    pub async fn plan_import(&self, portable: Vec<Portable>, restore: bool) -> Result<Plan, DeadLetterError> {
        let mut imported = BTreeMap::new();
        for one in portable {
            let letter = one.into_letter(&self.stage)?;
            imported.insert(letter.place(), letter);
        }
        let Self { kafka, stage } = self.clone();
        let topic = action::Topics::of(&kafka.topics(), &stage).dead_letters;
        let read = move || -> Result<_, String> {
            let lanes = crate::table::lanes(&kafka, &topic)?;
            let wanted = Wanted { keep: &|letter| imported.contains_key(&letter.place()), hold: &|_| false };
            let outstanding = table::read(&kafka, &stage, &wanted)?;
            Ok((imported, lanes, outstanding))
        };
        let (imported, lanes, outstanding) = self.blocking(read).await?;
        let step = |(place, letter): (Place, DeadLetter)| {
            if !lanes.contains(&letter.lane.0) {
                return Err(NotPortable { id: letter.id(), reason: "there is no such lane" });
            }
            let expects = outstanding.get(&place).map(|letter| letter.offset);
            let decision = match expects {
                Some(_) => Decision::Replace,
                None if restore => Decision::Restore,
                None => Decision::Leave { reason: "it is not outstanding any more" },
            };
            Ok(Step { letter, decision, expects })
        };
        let steps: Result<Vec<_>, NotPortable> = imported.into_iter().map(step).collect();
        Ok(self.plan_of(steps?))
    }

    fn plan_of(&self, steps: Vec<Step>) -> Plan {
        Plan { kafka: self.kafka.clone(), stage: Arc::clone(&self.stage), steps }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, DeadLetterError> {
        let fail = |reason| DeadLetterError::Read { stage: Arc::clone(&self.stage), reason };
        match tokio::task::spawn_blocking(read).await {
            Ok(read) => read.map_err(fail),
            Err(error) => Err(fail(error.to_string())),
        }
    }
}

/// Oldest first; within a lane in the order they were rejected in.
fn order(letter: &DeadLetter) -> (i64, weir_contracts::Lane, i64) {
    (letter.rejected_at(), letter.lane, letter.offset)
}
