//! Puts a runner together: consumer, producer, processor, loop.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_contracts::{RETRY_TIERS, Topic, again_topic, dead_letter_topic};
use weir_stage::{ConcurrentStage, Stage};

use crate::assignment::GroupContext;
use crate::client::{CALL_TIMEOUT, consumer_config};
use crate::commit::{Committer, Producing};
use crate::concurrent::{Alone, Concurrency, Mode, Together, Work};
use crate::engine::{Engine, Returning};
use crate::insist::Insist;
use crate::lane_stops::LaneStops;
use crate::ownership::Ownership;
use crate::process::{Batches, Processed, Processor, RawRecord};
use crate::reader::{partitions, topic_setting};
use crate::retry::RetryPolicy;
use crate::state::{Changelog, SharedStores, Stores, changelog_topic};
use crate::transaction::TransactionalProducer;
use crate::{KafkaConfig, Registry, RunnerConfig, StageStatus};

/// How often it is looked whether the loop turns.
const LOOK: Duration = Duration::from_secs(1);
/// A loop that stands still for less than this is only slow, and so is Kafka.
const LEAST_PATIENCE: Duration = Duration::from_secs(30);

/// The runner can't go on; the service exits with an error and starts again.
#[derive(Debug, thiserror::Error)]
#[error("stage {stage}: {reason}")]
pub struct RunnerError {
    /// Which stage.
    pub stage: String,
    /// What is wrong and what to do.
    pub reason: String,
}

/// What the loop shares with the processor and with whoever stops it.
struct Shared {
    mode: Mode,
    stores: Option<SharedStores>,
    stops: LaneStops,
    /// Whether records can be tried again later: the loop finds out, the processor asks.
    retries: Arc<AtomicBool>,
    shutdown: CancellationToken,
    ownership: Arc<Ownership>,
    batches: tokio::sync::mpsc::Sender<Vec<RawRecord>>,
    done: mpsc::Receiver<Processed>,
    /// How long the loop may wait for Kafka.
    patience: Duration,
}

/// Runs one stage.
pub struct Runner {
    name: &'static str,
    kafka: KafkaConfig,
    registry: Registry,
    config: RunnerConfig,
    status: Arc<StageStatus>,
    #[cfg(feature = "at-least-once")]
    at_least_once: bool,
}

impl Runner {
    /// A runner of the stage `name`: consumer group `<prefix><name>`, transactional id
    /// `<prefix><name>.<instance>`, dead letters in `<prefix>dlq.<name>`.
    #[must_use]
    pub fn new(name: &'static str, kafka: KafkaConfig, registry: Registry, config: RunnerConfig) -> Self {
        Self {
            name,
            kafka,
            registry,
            config,
            status: Arc::default(),
            #[cfg(feature = "at-least-once")]
            at_least_once: std::env::var_os("WEIR_TEST_AT_LEAST_ONCE").is_some(),
        }
    }

    /// Switches transactions off. For tests and benchmarks: records may be applied twice.
    #[cfg(feature = "at-least-once")]
    #[must_use]
    pub fn at_least_once(mut self) -> Self {
        self.at_least_once = true;
        self
    }

    /// State of the stage, for health checks.
    #[must_use]
    pub fn status(&self) -> Arc<StageStatus> {
        Arc::clone(&self.status)
    }

    /// Runs until `shutdown` is cancelled, then finishes or aborts what runs within the grace and leaves the group.
    ///
    /// # Errors
    /// When it can't go on: a fatal error of Kafka, a fenced producer, a missing topic, a fatal error of the stage.
    pub async fn run<S: Stage>(self, input: Topic, stage: S, shutdown: CancellationToken) -> Result<(), RunnerError> {
        self.run_stages(Mode::Batches, input, vec![Together(stage)], shutdown).await
    }

    /// The same for a stage whose records run side by side and complete in any order: a slow one holds up no other, and
    /// none that is done is done again, though the committed position waits for the slowest.
    ///
    /// # Errors
    /// As [`Runner::run`].
    pub async fn run_concurrent<S: ConcurrentStage>(
        self,
        input: Topic,
        stage: S,
        concurrency: Concurrency,
        shutdown: CancellationToken,
    ) -> Result<(), RunnerError> {
        let stage = Arc::new(stage);
        let stages = (0..concurrency.records.get()).map(|_| Alone(Arc::clone(&stage))).collect();
        self.run_stages(Mode::Each(concurrency), input, stages, shutdown).await
    }

    /// Runs a processor for each of `stages`, which are the same one.
    async fn run_stages<W: Work>(
        self,
        mode: Mode,
        input: Topic,
        stages: Vec<W>,
        shutdown: CancellationToken,
    ) -> Result<(), RunnerError> {
        let name = self.name;
        let fail = |reason: String| RunnerError { stage: name.to_owned(), reason };
        let (batches, receiver) = tokio::sync::mpsc::channel(stages.len().max(1));
        let (done_sender, done) = mpsc::channel();
        let grace = Duration::from_millis(self.config.grace_ms);
        let patience = (grace + 3 * Duration::from_millis(self.config.transaction_timeout_ms)).max(LEAST_PATIENCE);
        let watched = Arc::clone(&self.status);
        let ownership = Arc::new(Ownership::new(Duration::from_millis(self.config.session_timeout_ms)));
        let stop = CancellationToken::new();
        let stores = W::STATEFUL.then(|| self.open_stores()).transpose().map_err(fail)?;
        let shared = stores.clone();
        let retries = Arc::new(AtomicBool::new(false));
        let processors: Vec<_> = stages
            .into_iter()
            .map(|stage| Processor {
                name,
                stores: stores.clone(),
                sequence: 0,
                retry: RetryPolicy::new(&self.config, &self.kafka.topics(), Arc::clone(&retries)),
                stage,
                registry: self.registry.clone(),
                config: self.config.clone(),
                names: self.kafka.topics(),
                ownership: Arc::clone(&ownership),
                status: Arc::clone(&self.status),
                shutdown: shutdown.clone(),
                stop: stop.clone(),
                topics: HashMap::new(),
                mode,
            })
            .collect();
        let stops = LaneStops::follow(name, &self.kafka, &self.registry, &stop);
        let (result_sender, result) = tokio::sync::oneshot::channel();
        let token = shutdown.clone();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let shared = Shared {
                    mode,
                    stores: shared,
                    stops,
                    retries,
                    shutdown: token,
                    ownership,
                    batches,
                    done,
                    patience,
                };
                let (outcome, engine) = match self.set_up(input, shared) {
                    Ok(mut engine) => (engine.run(), Some(engine)),
                    Err(reason) => (Err(reason), None),
                };
                // A failure is reported at once: leaving the group may take long when Kafka is the cause.
                if outcome.is_ok() {
                    drop(engine);
                }
                // The receiver is gone only when the service is.
                let _ = result_sender.send(outcome);
            })
            .map_err(|error| fail(format!("no thread: {error}")))?;
        let wake = thread.thread().clone();
        if let Some(stores) = &stores {
            stores.wakes(wake.clone());
        }
        let waker = wake.clone();
        let receiver = Arc::new(Batches::new(receiver));
        let mut processing = JoinSet::new();
        for processor in processors {
            processing.spawn(processor.run(Arc::clone(&receiver), done_sender.clone(), wake.clone()));
        }
        drop(done_sender);
        let overdue = async move {
            shutdown.cancelled().await;
            waker.unpark();
            tokio::time::sleep(grace + CALL_TIMEOUT).await;
        };
        let still = standstill(Arc::clone(&watched), patience);
        let outcome = tokio::select! {
            stood = still => Err(format!("the loop has stood still for {} s inside a call to Kafka's client", stood.as_secs())),
            outcome = result => outcome.unwrap_or_else(|_| Err("the loop panicked; see the log".into())),
            () = overdue => {
                tracing::warn!(stage = name, "Kafka does not answer: what was not committed will be done again");
                Ok(())
            }
        };
        stop.cancel();
        processing.abort_all();
        outcome.map_err(fail)
    }

    fn set_up(self, input: Topic, shared: Shared) -> Result<Engine, String> {
        let Shared { mode, stores, stops, retries, shutdown, ownership, batches, done, patience } = shared;
        let names = self.kafka.topics();
        let group = names.full_name(self.name);
        let input: Arc<str> = names.full(input).into();
        let mut settings = consumer_config(&self.kafka);
        settings
            .set("group.id", &group)
            .set("session.timeout.ms", self.config.session_timeout_ms.to_string())
            .set("heartbeat.interval.ms", (self.config.session_timeout_ms / 5).clamp(200, 3_000).to_string())
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("auto.offset.reset", "error")
            .set("queued.max.messages.kbytes", (self.config.lane_buffer_bytes / 1024).max(1024).to_string())
            .set("statistics.interval.ms", "1000");
        let connect = |settings: &ClientConfig| -> Result<Arc<BaseConsumer<GroupContext>>, String> {
            let consumer = settings.create_with_context(GroupContext::default());
            consumer.map(Arc::new).map_err(|error: KafkaError| error.to_string())
        };
        let mut membership = settings.clone();
        if self.config.static_membership {
            membership.set("group.instance.id", self.instance());
        }
        let consumer = connect(&membership)?;
        let dead_letters: Arc<str> = names.full_name(&dead_letter_topic(self.name)).into();
        let changelog: Option<Arc<str>> = stores.is_some().then(|| names.full_name(&changelog_topic(self.name)).into());
        let topics: Vec<_> = [&input, &dead_letters].into_iter().chain(&changelog).collect();
        self.wait_for_topics(&consumer, &topics, &shutdown)?;
        let again: Arc<str> = names.full_name(&again_topic(self.name)).into();
        let returning = match partitions(&consumer, &again) {
            Ok(_) => {
                // Little ever comes that way.
                settings.set("fetch.wait.max.ms", "500");
                Some(Returning { topic: again, consumer: connect(&settings)? })
            }
            Err(_) => {
                tracing::info!(stage = self.name, topic = %again, "no such topic: nothing returns to this stage");
                None
            }
        };
        let tiers = RETRY_TIERS.iter().all(|(tier, _)| partitions(&consumer, &names.full(*tier)).is_ok());
        retries.store(returning.is_some() && tiers, Ordering::Release);
        let state = match stores.zip(changelog.clone()) {
            Some((stores, topic)) => Some((stores, self.changelog(topic)?)),
            None => None,
        };
        let committer = Committer {
            stage: self.name,
            insist: Insist { stage: self.name, status: Arc::clone(&self.status), patience },
            producer: self.producing(&group, changelog.clone())?,
            changelog,
            group,
            dead_letters,
            instance: rand::random(),
            serial: 0,
            open: false,
        };
        let mut engine = Engine {
            stage: self.name,
            config: self.config,
            input: Arc::clone(&input),
            returning,
            consumer,
            committer,
            ownership,
            status: self.status,
            shutdown,
            batches,
            done,
            lanes: BTreeMap::new(),
            stops,
            resuming: BTreeSet::new(),
            mode,
            processing: 0,
            ready: Vec::new(),
            produced: 0,
            logged: BTreeMap::new(),
            abort_due: false,
            ready_batches: 0,
            last_commit: Instant::now(),
            waiting_since: None,
            next_lane: 0,
            tenants: HashMap::new(),
            state,
        };
        engine.committer.start_over()?;
        // A lane that is stopped must not be read before that is known.
        engine.stops.wait(&engine.shutdown);
        engine.consumer.subscribe(&[&input]).map_err(|error| error.to_string())?;
        Ok(engine)
    }

    /// Kafka may start after its services; a topic that does not exist is somebody's mistake.
    fn wait_for_topics(
        &self,
        consumer: &BaseConsumer<GroupContext>,
        topics: &[&Arc<str>],
        shutdown: &CancellationToken,
    ) -> Result<(), String> {
        for topic in topics {
            while let Err(reason) = partitions(consumer, topic) {
                if shutdown.is_cancelled() {
                    return Ok(());
                }
                if reason.starts_with("the topic") {
                    return Err(format!("{topic}: {reason}"));
                }
                tracing::warn!(stage = self.name, brokers = self.kafka.brokers, reason, "waiting for Kafka");
                std::thread::sleep(Duration::from_millis(500));
            }
        }
        Ok(())
    }

    fn instance(&self) -> String {
        match self.config.instance.as_str() {
            "" => host_name(),
            named => named.to_owned(),
        }
    }

    /// Each instance of each stage has a folder of its own: two of them may share a disk.
    fn open_stores(&self) -> Result<SharedStores, String> {
        let group = self.kafka.topics().full_name(self.name);
        let folder = self.config.state_dir.join(group).join(self.instance());
        Stores::open(&folder).map(Arc::new).map_err(|error| error.to_string())
    }

    fn changelog(&self, topic: Arc<str>) -> Result<Changelog, String> {
        let tombstones_stay = topic_setting(&self.kafka, &topic, "delete.retention.ms")?;
        let millis =
            tombstones_stay.parse().map_err(|_| format!("{topic}: delete.retention.ms is {tombstones_stay}"))?;
        Ok(Changelog {
            stage: self.name,
            topic,
            kafka: self.kafka.clone(),
            tombstones_stay: Duration::from_millis(millis),
        })
    }

    fn producing(&self, group: &str, changelog: Option<Arc<str>>) -> Result<Producing, String> {
        #[cfg(feature = "at-least-once")]
        if self.at_least_once {
            let producer = crate::transaction::PlainProducer::new(&self.kafka, &self.config, changelog)?;
            return Ok(Producing::AtLeastOnce(producer));
        }
        let id = format!("{group}.{}", self.instance());
        let producer = TransactionalProducer::new(&self.kafka, &self.config, id, changelog)?;
        Ok(Producing::Transactions(Box::new(producer)))
    }
}

/// Ends when the loop has stood still for `limit`, which no call to Kafka should take: each has a timeout. Then the service
/// exits, and whoever starts it again gets a client that works. Time in which this process as a whole stood still
/// (frozen, or its machine suspended) does not count.
async fn standstill(status: Arc<StageStatus>, limit: Duration) -> Duration {
    let mut counted = Duration::ZERO;
    while counted <= limit {
        let begun = Instant::now();
        tokio::time::sleep(LOOK).await;
        counted = still_for(counted, status.stands_still_for(), begun.elapsed());
    }
    counted
}

/// How long the loop stood still by now: `before` until this look, which took `look`, and last turned `turned` ago.
fn still_for(before: Duration, turned: Duration, look: Duration) -> Duration {
    if turned < look { Duration::ZERO } else { before + look.min(2 * LOOK) }
}

fn host_name() -> String {
    std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/etc/hostname").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "0".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_loop_stands_still_while_it_does_not_turn_and_a_frozen_process_does_not_count() {
        assert_eq!(still_for(9 * SECOND, 10 * SECOND, SECOND), 10 * SECOND);
        assert_eq!(still_for(9 * SECOND, SECOND / 2, SECOND), Duration::ZERO, "it turned");
        assert_eq!(still_for(SECOND, 31 * SECOND, 30 * SECOND), 3 * SECOND, "nothing ran for 28 seconds");
    }
}
