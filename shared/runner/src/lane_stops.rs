//! The lanes of a stage that are stopped until a person resumes them: a table in Kafka, topic `lanes`, so that a stop
//! outlives the process that made it and is obeyed by whoever owns the lane next.
//!
//! Tasks beside the loop follow the topic and write to it; the loop takes changes when it comes round. What it knows
//! of the table is therefore as old as the changes it has taken, and they come in the order of the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;
use weir_contracts::{Lane, LaneStop, Topic, lane_key, lane_of_key};
use weir_stage::Output;

use crate::backoff::Backoff;
use crate::{Entry, KafkaConfig, Publisher, ReadError, Registry, TopicReader};

/// How long a look at the topic waits for something new.
const WAIT: Duration = Duration::from_secs(1);
/// Bounds of the pauses between attempts at reading or writing the topic.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// Between two log lines while the table can't be read at the start.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What the topic says, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// The lane is stopped.
    Stopped(LaneStop),
    /// The lane's stop was taken back.
    Resumed(Lane),
}

enum News {
    Change(Change),
    /// The table is known up to the end it had when it was opened.
    Known,
    /// There is no such topic.
    Absent,
}

type Awaited = Arc<Mutex<BTreeMap<Lane, LaneStop>>>;

/// The loop's side of the table.
pub(crate) struct LaneStops {
    stage: &'static str,
    news: mpsc::Receiver<News>,
    announcements: UnboundedSender<LaneStop>,
    table: BTreeMap<Lane, LaneStop>,
    /// Own stops that have not been seen in the topic yet: what takes back an earlier one does not mean them.
    awaited: Awaited,
    durable: bool,
}

impl LaneStops {
    /// Begins to follow the topic, until `stop`.
    pub(crate) fn follow(
        stage: &'static str,
        kafka: &KafkaConfig,
        registry: &Registry,
        stop: &CancellationToken,
    ) -> Self {
        let (sender, news) = mpsc::channel();
        let (announcements, inbox) = unbounded_channel();
        let awaited = Awaited::default();
        let follower = Follower { stage, kafka: kafka.clone(), registry: registry.clone(), news: sender };
        let until = stop.clone();
        tokio::spawn(async move { until.run_until_cancelled(follower.run()).await });
        let announcer =
            Announcer { stage, kafka: kafka.clone(), registry: registry.clone(), awaited: Arc::clone(&awaited) };
        let until = stop.clone();
        tokio::spawn(async move { until.run_until_cancelled(announcer.run(inbox)).await });
        Self { stage, news, announcements, table: BTreeMap::new(), awaited, durable: true }
    }

    /// Waits until the table is known, or that there is none.
    pub(crate) fn wait(&mut self, shutdown: &CancellationToken) {
        let mut told = Instant::now();
        while !shutdown.is_cancelled() {
            match self.news.recv_timeout(Duration::from_millis(100)) {
                Ok(News::Change(change)) => self.apply(&change),
                Ok(News::Known) => return,
                Ok(News::Absent) => {
                    self.absent();
                    return;
                }
                Err(mpsc::RecvTimeoutError::Timeout) if told.elapsed() > TELL_EVERY => {
                    told = Instant::now();
                    tracing::warn!(stage = self.stage, "waiting for the table of stopped lanes");
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// What has changed since the last look.
    pub(crate) fn changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Ok(news) = self.news.try_recv() {
            match news {
                News::Change(change) => {
                    self.apply(&change);
                    changes.push(change);
                }
                News::Known => {}
                News::Absent => self.absent(),
            }
        }
        changes
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Stopped(stop) => {
                let mut awaited = lock(&self.awaited);
                if awaited.get(&stop.lane) == Some(stop) {
                    awaited.remove(&stop.lane);
                }
                self.table.insert(stop.lane, stop.clone());
            }
            Change::Resumed(lane) => _ = self.table.remove(lane),
        }
    }

    fn absent(&mut self) {
        self.durable = false;
        tracing::warn!(
            stage = self.stage,
            topic = %Topic::LANES,
            "no such topic: a lane that is stopped starts again with the service; run `weir topics apply`"
        );
    }

    /// Why a lane is to stand still, if it is.
    pub(crate) fn of(&self, lane: Lane) -> Option<LaneStop> {
        lock(&self.awaited).get(&lane).or_else(|| self.table.get(&lane)).cloned()
    }

    /// Whether stops are kept in Kafka.
    pub(crate) fn durable(&self) -> bool {
        self.durable
    }

    /// Writes a stop to the topic, in the background. A process that is killed before that floods once more.
    pub(crate) fn announce(&self, stop: LaneStop) {
        if self.durable {
            lock(&self.awaited).insert(stop.lane, stop.clone());
            // The task is gone only when the service ends.
            let _ = self.announcements.send(stop);
        }
    }
}

/// Reads the topic, again and again from its beginning when that fails.
struct Follower {
    stage: &'static str,
    kafka: KafkaConfig,
    registry: Registry,
    news: mpsc::Sender<News>,
}

impl Follower {
    async fn run(self) {
        let mut known = None;
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            match self.read(&mut known, &mut backoff).await {
                Ok(()) => return,
                // Only at the start: a topic that was there does not go away.
                Err(error) if error.reason.starts_with("the topic does not exist") && known.is_none() => {
                    let _ = self.news.send(News::Absent);
                    return;
                }
                // The stage waits for it.
                Err(error) if known.is_none() => {
                    tracing::warn!(stage = self.stage, %error, "reading the table of stopped lanes");
                }
                Err(error) => tracing::debug!(stage = self.stage, %error, "reading the table of stopped lanes"),
            }
            let pause = backoff.next(&mut rand::rng(), Some(FIRST_RETRY));
            tokio::time::sleep(pause).await;
        }
    }

    /// Follows the topic until the loop is gone.
    async fn read(&self, known: &mut Option<BTreeMap<Lane, LaneStop>>, backoff: &mut Backoff) -> Result<(), ReadError> {
        let registry = self.registry.clone();
        let mut reader: TopicReader<LaneStop> = TopicReader::follow(&self.kafka, registry, Topic::LANES).await?;
        let table = reader.read_table().await?;
        let table = table.into_iter().filter_map(|(key, stop)| Some((self.lane(&key)?, stop))).collect();
        for change in differences(&known.take().unwrap_or_default(), &table) {
            if self.news.send(News::Change(change)).is_err() {
                return Ok(());
            }
        }
        let known = known.insert(table);
        if self.news.send(News::Known).is_err() {
            return Ok(());
        }
        *backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            let Some(Entry { key, record }) = reader.next_entry(WAIT).await? else { continue };
            let Some(lane) = self.lane(&key) else { continue };
            let change = match record {
                Some(stop) => {
                    known.insert(lane, stop.clone());
                    Change::Stopped(stop)
                }
                None => {
                    known.remove(&lane);
                    Change::Resumed(lane)
                }
            };
            if self.news.send(News::Change(change)).is_err() {
                return Ok(());
            }
        }
    }

    /// The lane a key names, if it is one of this stage.
    fn lane(&self, key: &[u8]) -> Option<Lane> {
        lane_of_key(key).filter(|(stage, _)| *stage == self.stage).map(|(_, lane)| lane)
    }
}

/// What leads from one table to the other.
fn differences(before: &BTreeMap<Lane, LaneStop>, after: &BTreeMap<Lane, LaneStop>) -> Vec<Change> {
    let lanes: BTreeSet<Lane> = before.keys().chain(after.keys()).copied().collect();
    let change = |lane: Lane| match (before.get(&lane), after.get(&lane)) {
        (was, Some(stop)) if was != Some(stop) => Some(Change::Stopped(stop.clone())),
        (Some(_), None) => Some(Change::Resumed(lane)),
        _ => None,
    };
    lanes.into_iter().filter_map(change).collect()
}

/// Writes stops to the topic.
struct Announcer {
    stage: &'static str,
    kafka: KafkaConfig,
    registry: Registry,
    awaited: Awaited,
}

impl Announcer {
    async fn run(self, mut inbox: UnboundedReceiver<LaneStop>) {
        // Most stages never stop a lane: the client is made when the first one does.
        let mut publisher = None;
        while let Some(stop) = inbox.recv().await {
            let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
            // An attempt that seemed to fail may have reached the topic, and somebody may have resumed the lane since.
            while lock(&self.awaited).get(&stop.lane) == Some(&stop) {
                match self.publish(&mut publisher, &stop).await {
                    Ok(()) => break,
                    Err(reason) => tracing::warn!(
                        stage = self.stage,
                        lane = stop.lane.0,
                        reason,
                        "the stop of a lane could not be stored yet: a restart would start the lane again"
                    ),
                }
                let pause = backoff.next(&mut rand::rng(), Some(FIRST_RETRY));
                tokio::time::sleep(pause).await;
            }
        }
    }

    async fn publish(&self, publisher: &mut Option<Publisher>, stop: &LaneStop) -> Result<(), String> {
        let publisher = match publisher {
            Some(publisher) => publisher,
            None => {
                let made = Publisher::new(&self.kafka, self.registry.clone()).map_err(|error| error.to_string())?;
                publisher.insert(made)
            }
        };
        let output = Output::new(Topic::LANES, lane_key(self.stage, stop.lane), stop.clone());
        publisher.publish(output).await.map_err(|error| error.to_string())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_contracts::StopReason;

    fn stop(lane: i32, since: i64) -> LaneStop {
        LaneStop {
            stage: "relay".into(),
            lane: Lane(lane),
            reason: StopReason::Flood,
            message: "5 records were rejected one after another".into(),
            class: None,
            offset: 7,
            since,
        }
    }

    fn stops() -> (LaneStops, mpsc::Sender<News>) {
        let (sender, news) = mpsc::channel();
        let (announcements, _) = unbounded_channel();
        let awaited = Awaited::default();
        (LaneStops { stage: "relay", news, announcements, table: BTreeMap::new(), awaited, durable: true }, sender)
    }

    #[test]
    fn a_table_read_anew_says_only_what_has_changed() {
        let table = |stops: &[LaneStop]| stops.iter().map(|stop| (stop.lane, stop.clone())).collect();
        let before: BTreeMap<_, _> = table(&[stop(0, 1), stop(1, 1), stop(2, 1)]);
        let after: BTreeMap<_, _> = table(&[stop(0, 1), stop(2, 2), stop(3, 1)]);
        let changes = [Change::Resumed(Lane(1)), Change::Stopped(stop(2, 2)), Change::Stopped(stop(3, 1))];
        assert_eq!(differences(&before, &after), changes);
        assert!(differences(&after, &after).is_empty());
    }

    #[test]
    fn a_stop_counts_before_the_topic_has_it_and_until_it_is_taken_back() {
        let (mut stops, topic) = stops();
        stops.announce(stop(0, 2));
        // What takes back an earlier one comes late.
        topic.send(News::Change(Change::Stopped(stop(0, 1)))).unwrap();
        topic.send(News::Change(Change::Resumed(Lane(0)))).unwrap();
        assert_eq!(stops.changes().len(), 2);
        assert_eq!(stops.of(Lane(0)), Some(stop(0, 2)));
        topic.send(News::Change(Change::Stopped(stop(0, 2)))).unwrap();
        stops.changes();
        assert_eq!(stops.of(Lane(0)), Some(stop(0, 2)));
        topic.send(News::Change(Change::Resumed(Lane(0)))).unwrap();
        stops.changes();
        assert_eq!(stops.of(Lane(0)), None);
    }

    #[test]
    fn without_the_topic_a_stop_is_not_waited_for() {
        let (mut stops, topic) = stops();
        topic.send(News::Absent).unwrap();
        stops.wait(&CancellationToken::new());
        stops.announce(stop(0, 1));
        assert!(!stops.durable() && stops.of(Lane(0)).is_none());
    }
}
