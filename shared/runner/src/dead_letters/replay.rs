//! Carries out what was decided for dead letters: transactions of a few hundred each, once each, whatever happens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;
use std::ops::{Add, AddAssign};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;

use super::DeadLetterError;
use super::action::{Decision, Topics};
use super::letter::{DeadLetter, Place};
use super::table::{self, Wanted};
use crate::desk::{Desk, Transacted, fenced};
use crate::process::EncodedRecord;
use crate::{KafkaConfig, RunnerConfig};

/// Dead letters in a transaction, unless said otherwise.
const RECORDS: usize = 500;
/// Bytes of records in a transaction (one may exceed it): it must end long before it times out.
const BYTES: usize = 8 << 20;
/// Largest record of this producer, bytes. What a topic accepts, the broker knows.
const LARGEST: usize = 16 << 20;
/// Transactions that fail one after another before it is given up.
const FAILURES: u32 = 5;
const NAP: Duration = Duration::from_millis(50);

/// How fast a plan is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Dead letters in a transaction, at most.
    pub batch: usize,
    /// Dead letters a second, at most.
    pub rate: Option<NonZeroU32>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { batch: RECORDS, rate: None }
    }
}

/// What is to become of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The dead letter.
    pub letter: DeadLetter,
    /// What becomes of it.
    pub decision: Decision,
    /// Offset of what must be outstanding under its id for the decision to hold; nothing, if nothing must be.
    pub(super) expects: Option<i64>,
}

impl Step {
    pub(super) fn of(decision: Decision, letter: DeadLetter) -> Self {
        Self { expects: Some(letter.offset), decision, letter }
    }

    fn needs_value(&self) -> bool {
        self.decision.needs_value() && self.letter.value.is_none()
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Given back to their stage.
    pub replayed: usize,
    /// Removed.
    pub discarded: usize,
    /// Parked.
    pub parked: usize,
    /// Put back from outside.
    pub imported: usize,
    /// Left as they are, as decided.
    pub left: usize,
    /// Not as they were when the plan was made: somebody else has dealt with them.
    pub gone: usize,
    /// Stopped before everything was done.
    pub cancelled: bool,
}

impl Report {
    /// Dead letters that something was done with.
    #[must_use]
    pub fn done(&self) -> usize {
        self.replayed + self.discarded + self.parked + self.imported
    }

    fn count(&mut self, decision: &Decision) {
        match decision {
            Decision::Replay { .. } => self.replayed += 1,
            Decision::Discard => self.discarded += 1,
            Decision::Park { .. } => self.parked += 1,
            Decision::Replace | Decision::Restore => self.imported += 1,
            Decision::Leave { .. } => self.left += 1,
        }
    }
}

impl Add for Report {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            replayed: self.replayed + other.replayed,
            discarded: self.discarded + other.discarded,
            parked: self.parked + other.parked,
            imported: self.imported + other.imported,
            left: self.left + other.left,
            gone: self.gone + other.gone,
            cancelled: self.cancelled || other.cancelled,
        }
    }
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = [
            (self.replayed, "replayed"),
            (self.discarded, "discarded"),
            (self.parked, "parked"),
            (self.imported, "imported"),
            (self.left, "left as they are"),
            (self.gone, "dealt with by others"),
        ];
        let said: Vec<_> =
            said.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        f.write_str(if said.is_empty() { "nothing done" } else { "" })?;
        f.write_str(&said.join(", "))
    }
}

/// What is to become of some dead letters of a stage: exactly what happens when it is carried out, but for those that
/// are not as they were any more.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) kafka: KafkaConfig,
    pub(super) stage: Arc<str>,
    pub(super) steps: Vec<Step>,
}

impl Plan {
    /// Stage that rejected them.
    #[must_use]
    pub fn stage(&self) -> &str {
        &self.stage
    }

    /// What is to become of each.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How many something is to be done with.
    #[must_use]
    pub fn work(&self) -> usize {
        self.steps.iter().filter(|step| !matches!(step.decision, Decision::Leave { .. })).count()
    }

    /// Takes out the first steps, so that a long plan can be carried out part by part.
    #[must_use]
    pub fn split_off_first(&mut self, count: usize) -> Self {
        let rest = self.steps.split_off(count.min(self.steps.len()));
        let first = std::mem::replace(&mut self.steps, rest);
        Self { kafka: self.kafka.clone(), stage: Arc::clone(&self.stage), steps: first }
    }

    /// Does it. `progress` is told after each transaction what was done so far; `cancel` ends it between two.
    ///
    /// # Errors
    /// When somebody else takes over, nothing can return to the stage, or Kafka does not take it. What was done before
    /// stays done.
    pub async fn carry_out(
        self,
        pace: Pace,
        progress: impl FnMut(Report) + Send + 'static,
        cancel: CancellationToken,
    ) -> Result<Report, DeadLetterError> {
        let stage = Arc::clone(&self.stage);
        match tokio::task::spawn_blocking(move || carry_out(self, pace, progress, &cancel)).await {
            Ok(done) => done,
            Err(error) => Err(DeadLetterError::Kafka { stage, reason: error.to_string(), done: Report::default() }),
        }
    }
}

fn carry_out(
    plan: Plan,
    pace: Pace,
    progress: impl FnMut(Report),
    cancel: &CancellationToken,
) -> Result<Report, DeadLetterError> {
    let Plan { kafka, stage, steps } = plan;
    let mut report = Report::default();
    let mut todo = BTreeMap::new();
    for step in steps {
        match step.decision {
            Decision::Leave { .. } => report.left += 1,
            _ => {
                todo.insert(step.letter.place(), step);
            }
        }
    }
    if todo.is_empty() {
        return Ok(report);
    }
    let topics = Topics::of(&kafka.topics(), &stage);
    way_back(&kafka, &stage, &topics, &todo)?;
    let desk = take_over(&kafka, &stage).map_err(|reason| failed(&stage, reason, report))?;
    let mut run = Run {
        kafka,
        stage,
        topics,
        desk,
        batch: pace.batch.max(1),
        pacer: Pacer { rate: pace.rate, start: Instant::now(), sent: 0 },
        todo,
        in_doubt: BTreeSet::new(),
        failures: 0,
        report,
        progress,
    };
    while !run.todo.is_empty() && !run.report.cancelled {
        run.round(cancel)?;
    }
    Ok(run.report)
}

/// Whether what is to return can.
fn way_back(
    kafka: &KafkaConfig,
    stage: &Arc<str>,
    topics: &Topics,
    todo: &BTreeMap<Place, Step>,
) -> Result<(), DeadLetterError> {
    let mut wanted = todo.values().filter_map(|step| match step.decision {
        Decision::Replay { lane, .. } => Some(lane),
        _ => None,
    });
    let Some(first) = wanted.next() else { return Ok(()) };
    let fail = |reason| DeadLetterError::NoWayBack { stage: Arc::clone(stage), reason };
    let again = &topics.again;
    let lanes = crate::table::lanes(kafka, again).map_err(|reason| fail(format!("{again}: {reason}")))?;
    match std::iter::once(first).chain(wanted).find(|lane| !lanes.contains(&lane.0)) {
        Some(lane) => Err(fail(format!("{again} has no lane {lane}: run `weir topics diff`"))),
        None => Ok(()),
    }
}

/// A plan that is being carried out.
struct Run<P> {
    kafka: KafkaConfig,
    stage: Arc<str>,
    topics: Topics,
    desk: Desk,
    batch: usize,
    pacer: Pacer,
    todo: BTreeMap<Place, Step>,
    /// Of the last transaction, when nobody knows whether it counts.
    in_doubt: BTreeSet<Place>,
    failures: u32,
    report: Report,
    progress: P,
}

/// What goes into the next transaction.
#[derive(Default)]
struct Batch {
    places: Vec<Place>,
    records: Vec<EncodedRecord>,
    bytes: usize,
}

impl<P: FnMut(Report)> Run<P> {
    /// Reads the table and does what it can: what memory did not suffice for is done in the next round, and so is
    /// what comes after a transaction that failed.
    fn round(&mut self, cancel: &CancellationToken) -> Result<(), DeadLetterError> {
        let todo = &self.todo;
        let hold = |letter: &DeadLetter| {
            todo.get(&letter.place()).is_some_and(|step| step.needs_value() && step.expects == Some(letter.offset))
        };
        let wanted = Wanted { keep: &|letter| todo.contains_key(&letter.place()), hold: &hold };
        let mut found = table::read(&self.kafka, &self.stage, &wanted)
            .map_err(|reason| failed(&self.stage, reason, self.report))?;
        self.drop_what_changed(&found);
        let mut order: Vec<_> = self.todo.iter().map(|(place, step)| (super::order(&step.letter), place)).collect();
        order.sort();
        let order: Vec<Place> = order.into_iter().map(|(_, place)| place.clone()).collect();
        let mut batch = Batch::default();
        for place in order {
            if !self.add(&mut batch, place, &mut found) {
                continue;
            }
            let full = batch.places.len() >= self.pacer.at_once(self.batch) || batch.bytes >= BYTES;
            if full && !self.commit(&mut batch, cancel)? {
                return Ok(());
            }
        }
        if !batch.places.is_empty() {
            self.commit(&mut batch, cancel)?;
        }
        Ok(())
    }

    /// Forgets what is not as it was when it was decided. Of a transaction in doubt this shows that it counts: nobody
    /// else can have touched these since the id was taken over again.
    fn drop_what_changed(&mut self, found: &BTreeMap<Place, DeadLetter>) {
        let Self { todo, in_doubt, report, .. } = self;
        todo.retain(|place, step| {
            if found.get(place).map(|letter| letter.offset) == step.expects {
                return true;
            }
            match in_doubt.contains(place) {
                true => report.count(&step.decision),
                false => report.gone += 1,
            }
            false
        });
        in_doubt.clear();
        (self.progress)(self.report);
    }

    fn add(&self, batch: &mut Batch, place: Place, found: &mut BTreeMap<Place, DeadLetter>) -> bool {
        let Some(step) = self.todo.get(&place) else { return false };
        let letter = match step.needs_value() {
            true => found.remove(&place).filter(|letter| letter.value.is_some()),
            false => Some(step.letter.clone()),
        };
        let Some(letter) = letter else { return false };
        let records = self.topics.records(letter, &step.decision, SystemTime::now());
        batch.bytes += records.iter().map(|record| record.value.as_ref().map_or(0, Vec::len)).sum::<usize>();
        batch.records.extend(records);
        batch.places.push(place);
        true
    }

    /// Whether it was committed, and more may follow.
    fn commit(&mut self, batch: &mut Batch, cancel: &CancellationToken) -> Result<bool, DeadLetterError> {
        let Batch { places, records, .. } = std::mem::take(batch);
        if !self.pacer.wait(cancel) {
            self.report.cancelled = true;
            return Ok(false);
        }
        let reason = match self.desk.transact(&records).map_err(|reason| failed(&self.stage, reason, self.report))? {
            Transacted::Committed => {
                self.failures = 0;
                self.pacer.sent += places.len();
                for place in places {
                    if let Some(step) = self.todo.remove(&place) {
                        self.report.count(&step.decision);
                    }
                }
                (self.progress)(self.report);
                return Ok(true);
            }
            Transacted::Aborted(reason) => reason,
            Transacted::Unknown(reason) => {
                self.desk.renew().map_err(|reason| failed(&self.stage, reason, self.report))?;
                reason
            }
        };
        self.failures += 1;
        tracing::warn!(stage = %self.stage, reason, "transaction failed: reading what is still outstanding");
        if self.failures >= FAILURES {
            return Err(failed(&self.stage, reason, self.report));
        }
        self.in_doubt.extend(places);
        Ok(false)
    }
}

fn failed(stage: &Arc<str>, reason: String, done: Report) -> DeadLetterError {
    let stage = Arc::clone(stage);
    match fenced(&reason) {
        true => DeadLetterError::TakenOver { stage, done },
        false => DeadLetterError::Kafka { stage, reason, done },
    }
}

/// There is one at a time who deals with the dead letters of a stage.
fn take_over(kafka: &KafkaConfig, stage: &str) -> Result<Desk, String> {
    let config = RunnerConfig { max_record_bytes: LARGEST, ..RunnerConfig::default() };
    let id = format!("{}.replay", Topics::of(&kafka.topics(), stage).dead_letters);
    Desk::take_over(kafka, &config, id)
}

/// Holds a rate.
struct Pacer {
    rate: Option<NonZeroU32>,
    start: Instant,
    sent: usize,
}

impl Pacer {
    /// Dead letters in the next transaction, at most: those of a second, so that a slow rate is even.
    fn at_once(&self, batch: usize) -> usize {
        let a_second = self.rate.map_or(usize::MAX, |rate| usize::try_from(rate.get()).unwrap_or(usize::MAX));
        batch.min(a_second)
    }

    /// Waits until more may be sent; says whether that is still wanted.
    fn wait(&self, cancel: &CancellationToken) -> bool {
        while !cancel.is_cancelled() {
            let Some(left) = self.due().checked_sub(self.start.elapsed()).filter(|left| !left.is_zero()) else {
                return true;
            };
            std::thread::sleep(left.min(NAP));
        }
        false
    }

    /// When the next may be sent, from the start: once what was sent has used up its time.
    fn due(&self) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let sent = u32::try_from(self.sent).unwrap_or(u32::MAX);
        Duration::from_secs_f64(f64::from(sent) / f64::from(rate.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_held_from_the_start_and_its_transactions_last_a_second() {
        let pacer = |rate, sent| Pacer { rate: NonZeroU32::new(rate), start: Instant::now(), sent };
        assert_eq!(pacer(0, 9_999).due(), Duration::ZERO, "no cap");
        assert_eq!(pacer(100, 0).due(), Duration::ZERO);
        assert_eq!(pacer(100, 250).due(), Duration::from_millis(2_500));
        assert_eq!((pacer(100, 0).at_once(500), pacer(100, 0).at_once(20), pacer(0, 0).at_once(500)), (100, 20, 500));
        let cancel = CancellationToken::new();
        cancel.cancel();
        assert!(!pacer(1, 1_000).wait(&cancel), "nobody waits for what was cancelled");
    }

    #[test]
    fn being_fenced_is_told_from_other_failures() {
        let stage: Arc<str> = "extract".into();
        let of = |reason: &str| failed(&stage, reason.into(), Report::default());
        for fenced in [
            "commit_transaction: Failed to end transaction: Local: This instance has been fenced by a newer instance",
            "produce: transactional producer fenced by newer producer instance",
            "Broker: There is a newer producer with the same transactionalId which fences the current one",
            "Broker: Producer attempted an operation with an old epoch",
        ] {
            assert!(matches!(of(fenced), DeadLetterError::TakenOver { .. }), "{fenced}");
        }
        assert!(matches!(of("commit_transaction: Broker: Not authorized"), DeadLetterError::Kafka { .. }));
    }

    #[test]
    fn a_report_says_what_was_done_and_nothing_else() {
        assert_eq!(Report::default().to_string(), "nothing done");
        let report = Report { replayed: 2, ..Report::default() } + Report { replayed: 1, gone: 4, ..Report::default() };
        assert_eq!(report.to_string(), "3 replayed, 4 dealt with by others");
    }
}
