//! Watches how far each stage has committed while things break, and how long it takes to get on afterwards.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::kafka::{Isolation, Kafka, STAGES};
use crate::stop::Stop;

/// How long one question may take; while a broker is away some are not answered.
const ANSWER: Duration = Duration::from_millis(1_500);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(60);

/// How long a stage took to commit beyond where it stood, once what had been broken was back.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Recovery {
    /// Number of the fault.
    pub fault: usize,
    /// The stage.
    pub stage: &'static str,
    /// Seconds; none when it never got on, or had nothing to get on with.
    pub seconds: Option<f64>,
}

#[derive(Debug)]
struct Awaited {
    fault: usize,
    stage: &'static str,
    before: i64,
    since: Instant,
}

#[derive(Debug, Default)]
struct Inner {
    /// Sums of committed positions, and when they were asked for.
    seen: BTreeMap<&'static str, (i64, Instant)>,
    awaited: Vec<Awaited>,
    recovered: Vec<Recovery>,
}

/// A running watch; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<Mutex<Inner>>);

impl Watch {
    /// Begins to watch, in threads of its own (one for each stage, so that a question that is not answered holds up no
    /// other), until `stop`.
    ///
    /// # Errors
    /// When Kafka does not take the settings of a client.
    pub fn begin(kafka: &Kafka, lanes: i32, stop: &Stop) -> color_eyre::Result<(Self, Vec<JoinHandle<()>>)> {
        let watch = Self::default();
        let mut threads = Vec::new();
        for stage in STAGES {
            let consumer = kafka.consumer(&kafka.full(stage.name), Isolation::Everything)?;
            let mut list = TopicPartitionList::new();
            for topic in std::iter::once(stage.input).chain(stage.again) {
                for lane in 0..lanes {
                    list.add_partition(&kafka.full(topic), lane);
                }
            }
            let (watch, stop) = (watch.clone(), stop.clone());
            threads.push(std::thread::spawn(move || {
                while !stop.is_set() {
                    watch.look(stage.name, &consumer, &list);
                    std::thread::sleep(PAUSE);
                }
            }));
        }
        Ok((watch, threads))
    }

    fn look(&self, stage: &'static str, consumer: &BaseConsumer, list: &TopicPartitionList) {
        let asked = Instant::now();
        let Ok(found) = consumer.committed_offsets(list.clone(), ANSWER) else { return };
        let offsets = found.elements().into_iter().filter_map(|at| at.offset().to_raw());
        let sum = offsets.filter(|offset| *offset > 0).sum();
        let mut inner = self.inner();
        let Inner { seen, awaited, recovered } = &mut *inner;
        seen.insert(stage, (sum, asked));
        awaited.retain(|waiting| {
            let done = waiting.stage == stage && sum > waiting.before && asked > waiting.since;
            if done {
                let seconds = Some(waiting.since.elapsed().as_secs_f64());
                recovered.push(Recovery { fault: waiting.fault, stage, seconds });
            }
            !done
        });
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sum of the committed positions of a stage, as far as is known.
    #[must_use]
    pub fn committed(&self, stage: &str) -> i64 {
        self.inner().seen.get(stage).map_or(0, |(sum, _)| *sum)
    }

    /// The same of several stages, asked for after this call, unless Kafka takes longer than `limit`.
    pub async fn committed_now(&self, stages: &[&'static str], limit: Duration) -> BTreeMap<&'static str, i64> {
        let called = Instant::now();
        loop {
            {
                let inner = self.inner();
                let fresh = |stage: &&str| inner.seen.get(*stage).is_some_and(|(_, asked)| *asked > called);
                if stages.iter().all(fresh) || called.elapsed() > limit {
                    let sum = |stage: &&'static str| (*stage, inner.seen.get(*stage).map_or(0, |(sum, _)| *sum));
                    return stages.iter().map(sum).collect();
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Measures from now until the stages have committed beyond these positions.
    pub fn measure(&self, fault: usize, before: &BTreeMap<&'static str, i64>) {
        let since = Instant::now();
        let awaited = before.iter().map(|(stage, before)| Awaited { fault, stage, before: *before, since });
        self.inner().awaited.extend(awaited);
    }

    /// Whether a stage is still to get on after a fault.
    #[must_use]
    pub fn is_awaited(&self, fault: usize, stages: &[&'static str]) -> bool {
        self.inner().awaited.iter().any(|waiting| waiting.fault == fault && stages.contains(&waiting.stage))
    }

    /// Every measurement, by fault; those that are still awaited have no time.
    #[must_use]
    pub fn recoveries(&self) -> Vec<Recovery> {
        let inner = self.inner();
        let open =
            inner.awaited.iter().map(|waiting| Recovery { fault: waiting.fault, stage: waiting.stage, seconds: None });
        let mut all: Vec<Recovery> = inner.recovered.iter().copied().chain(open).collect();
        all.sort_by_key(|recovery| (recovery.fault, recovery.stage));
        all
    }
}
