//! Brings the stores of newly assigned lanes up to date from their changelog.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use weir_contracts::Lane;
use weir_stage::StateValue;

use super::codec::decode;
use super::store::{StoreError, Stores};
use crate::client::{CALL_TIMEOUT, consumer_config};
use crate::{KafkaConfig, metric};

/// Records applied to a store at once.
const STEP: usize = 2_000;
/// How long nothing may arrive before the attempt is given up.
const SILENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
const REPORT: Duration = Duration::from_secs(2);

/// The compacted topic behind the state of a stage.
#[derive(Debug, Clone)]
pub(crate) struct Changelog {
    pub(crate) stage: &'static str,
    pub(crate) topic: std::sync::Arc<str>,
    pub(crate) kafka: KafkaConfig,
    /// How long tombstones stay in the topic (`delete.retention.ms`).
    pub(crate) tombstones_stay: Duration,
}

/// Why a store could not be brought up to date.
#[derive(Debug)]
pub(crate) enum RestoreError {
    /// Kafka did not answer; try again.
    Kafka(String),
    /// Trying again does not help.
    Store(StoreError),
}

impl From<KafkaError> for RestoreError {
    fn from(error: KafkaError) -> Self {
        Self::Kafka(error.to_string())
    }
}

impl From<StoreError> for RestoreError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// A lane that is being restored.
struct Restoring {
    /// First offset that need not be read.
    end: i64,
    next: i64,
    waiting: Vec<(Vec<u8>, Option<StateValue>)>,
}

impl Changelog {
    /// Reads what the stores of these lanes do not have yet. The committed positions of their input must be known to be
    /// stable: then whatever a predecessor left behind is decided, and the changelog's high watermark covers it.
    ///
    /// The end is the **high** watermark, read uncommitted: the last stable offset may lie before it as long as a
    /// transaction of another lane's owner is open, and says nothing about what this lane's records decided.
    ///
    /// Calls `alive` again and again meanwhile: the loop stands still for as long as it takes.
    pub(crate) fn restore(
        &self,
        stores: &Stores,
        lanes: &[Lane],
        now: i64,
        alive: &dyn Fn(),
    ) -> Result<(), RestoreError> {
        let start = Instant::now();
        let ends = self.ends(lanes)?;
        let consumer = self.consumer("read_committed")?;
        let cluster = consumer.client().fetch_cluster_id(CALL_TIMEOUT);
        let cluster = cluster.ok_or_else(|| RestoreError::Kafka("the cluster does not say its id".into()))?;
        let mut assignment = TopicPartitionList::new();
        let mut open: HashMap<Lane, Restoring> = HashMap::new();
        for (lane, low, end) in ends {
            let next = self.begin(stores, &cluster, lane, (low, end), now)?;
            if next < end {
                assignment.add_partition_offset(&self.topic, lane.0, Offset::Offset(next))?;
                open.insert(lane, Restoring { end, next, waiting: Vec::new() });
            } else {
                stores.apply(lane, [], Some(next), None, now)?;
            }
        }
        let all: i64 = open.values().map(|lane| lane.end - lane.next).sum();
        let restored = match open.is_empty() {
            true => 0,
            false => {
                consumer.assign(&assignment)?;
                self.read(&consumer, stores, open, now, alive)?
            }
        };
        counter!(metric::STATE_RESTORED, "stage" => self.stage).increment(restored);
        histogram!(metric::STATE_RESTORE_SECONDS, "stage" => self.stage).record(start.elapsed().as_secs_f64());
        tracing::info!(
            stage = self.stage,
            lanes = lanes.len(),
            offsets = all,
            records = restored,
            seconds = start.elapsed().as_secs_f64(),
            "state restored"
        );
        Ok(())
    }

    /// Where reading begins; a store that can't be trusted is emptied first.
    fn begin(
        &self,
        stores: &Stores,
        cluster: &str,
        lane: Lane,
        (low, end): (i64, i64),
        now: i64,
    ) -> Result<i64, RestoreError> {
        let Some((next, touched)) = stores.position(lane)? else {
            stores.wipe(lane, cluster)?;
            return Ok(low);
        };
        let idle = Duration::from_millis(u64::try_from(now.saturating_sub(touched)).unwrap_or_default());
        let reason = if !stores.is_of(lane, cluster)? {
            "it was filled from another Kafka cluster"
        } else if next < low || next > end {
            "its position lies outside the changelog"
        } else if idle > self.tombstones_stay / 2 {
            // Compaction may have removed tombstones that it has not seen.
            "it was not used for more than half of delete.retention.ms"
        } else {
            return Ok(next);
        };
        tracing::info!(stage = self.stage, lane = lane.0, next, low, end, reason, "state is restored as a whole");
        stores.wipe(lane, cluster)?;
        Ok(low)
    }

    fn read(
        &self,
        consumer: &BaseConsumer,
        stores: &Stores,
        mut open: HashMap<Lane, Restoring>,
        now: i64,
        alive: &dyn Fn(),
    ) -> Result<u64, RestoreError> {
        let left = |open: &HashMap<Lane, Restoring>| open.values().map(|lane| lane.end - lane.next).sum::<i64>();
        let all = left(&open);
        let mut restored = 0u64;
        let mut heard = Instant::now();
        let mut reported = Instant::now();
        while !open.is_empty() {
            alive();
            let mut look = true;
            match consumer.poll(POLL) {
                Some(Ok(message)) => {
                    heard = Instant::now();
                    restored += 1;
                    look =
                        message.offset() + 1 >= open.get(&Lane(message.partition())).map_or(i64::MAX, |lane| lane.end);
                    let lane = Lane(message.partition());
                    let Some(restoring) = open.get_mut(&lane) else { continue };
                    restoring.next = message.offset() + 1;
                    if let Some(key) = message.key() {
                        restoring.waiting.push((key.to_vec(), message.payload().and_then(decode)));
                    }
                    if restoring.waiting.len() >= STEP {
                        flush(stores, lane, restoring, now)?;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) | None => {}
                Some(Err(error)) => {
                    tracing::debug!(stage = self.stage, %error, "restoring");
                    std::thread::sleep(POLL);
                }
            }
            // Markers and aborted records are passed over without a message: the position tells.
            if !look {
                continue;
            }
            let position = consumer.position()?;
            let mut done = Vec::new();
            for (lane, restoring) in &mut open {
                let at = position.find_partition(&self.topic, lane.0).and_then(|element| element.offset().to_raw());
                if let Some(at) = at.filter(|at| *at > restoring.next) {
                    restoring.next = at;
                    heard = Instant::now();
                }
                if restoring.next >= restoring.end {
                    done.push(*lane);
                }
            }
            for lane in done {
                if let Some(mut restoring) = open.remove(&lane) {
                    flush(stores, lane, &mut restoring, now)?;
                }
            }
            if heard.elapsed() > SILENCE {
                let left: Vec<_> = open.keys().map(|lane| lane.0).collect();
                return Err(RestoreError::Kafka(format!(
                    "lanes {left:?} of {} can't be read to their high watermarks: a transaction hangs on them",
                    self.topic
                )));
            }
            if reported.elapsed() > REPORT {
                reported = Instant::now();
                tracing::info!(stage = self.stage, records = restored, left = left(&open), of = all, "restoring state");
            }
        }
        Ok(restored)
    }

    /// (lane, first offset, high watermark).
    fn ends(&self, lanes: &[Lane]) -> Result<Vec<(Lane, i64, i64)>, RestoreError> {
        let consumer = self.consumer("read_uncommitted")?;
        let mut ends = Vec::with_capacity(lanes.len());
        for lane in lanes {
            let (low, high) = consumer.fetch_watermarks(&self.topic, lane.0, CALL_TIMEOUT)?;
            ends.push((*lane, low, high));
        }
        Ok(ends)
    }

    fn consumer(&self, isolation: &str) -> Result<BaseConsumer, RestoreError> {
        let mut settings = consumer_config(&self.kafka);
        settings
            .set("group.id", "weir-restore")
            .set("isolation.level", isolation)
            .set("auto.offset.reset", "error")
            .set("fetch.wait.max.ms", "20")
            .set("queued.max.messages.kbytes", "8192");
        Ok(settings.create()?)
    }
}

fn flush(stores: &Stores, lane: Lane, restoring: &mut Restoring, now: i64) -> Result<(), StoreError> {
    let writes = std::mem::take(&mut restoring.waiting);
    let writes = writes.iter().map(|(key, value)| (key.as_slice(), value.as_ref()));
    stores.apply(lane, writes, Some(restoring.next), None, now)
}
