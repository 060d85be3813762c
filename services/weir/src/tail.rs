//! Follows a topic in the background, so that several topics can be waited for at once.

use std::time::{Duration, Instant};

use color_eyre::eyre::{WrapErr, eyre};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use weir_contracts::{Record, Topic};
use weir_runner::{ReadError, Registry, Start, TopicReader};
use weir_stage::Delivery;

use crate::context::Context;

const WAIT: Duration = Duration::from_millis(250);
const AHEAD: usize = 1_024;
/// Topics that were just created get their leaders within this time.
const SETTLING: Duration = Duration::from_secs(3);

/// The records of a topic from now on.
pub struct Tail<R> {
    records: mpsc::Receiver<Result<Delivery<R>, ReadError>>,
    task: JoinHandle<()>,
}

impl<R: Record> Tail<R> {
    /// Follows `topic` from its present ends: what is produced after this returns is seen.
    ///
    /// # Errors
    /// When the topic does not exist or Kafka does not answer.
    pub async fn from_now(context: &Context, registry: &Registry, topic: Topic) -> color_eyre::Result<Self> {
        let mut reader = open::<R>(context, registry, topic, Start::End).await?;
        let (sender, records) = mpsc::channel(AHEAD);
        let task = tokio::spawn(async move {
            while !sender.is_closed() {
                let next = match reader.next(WAIT).await {
                    Ok(None) => continue,
                    Ok(Some(delivery)) => Ok(delivery),
                    Err(error) => Err(error),
                };
                let failed = next.is_err();
                if sender.send(next).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Self { records, task })
    }

    /// The next record. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When the topic can't be read any more.
    pub async fn next(&mut self) -> color_eyre::Result<Delivery<R>> {
        let next = self.records.recv().await;
        next.ok_or_else(|| eyre!("the reader of a topic ended"))?.wrap_err("lost the connection to Kafka")
    }

    /// A record that has already arrived.
    pub fn ready(&mut self) -> Option<color_eyre::Result<Delivery<R>>> {
        let next = self.records.try_recv().ok()?;
        Some(next.wrap_err("lost the connection to Kafka"))
    }
}

impl<R> Drop for Tail<R> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Everything a topic holds at this moment.
///
/// # Errors
/// When the topic does not exist or Kafka does not answer.
pub async fn read_all<R: Record>(
    context: &Context,
    registry: &Registry,
    topic: Topic,
) -> color_eyre::Result<Vec<Delivery<R>>> {
    let mut reader = open::<R>(context, registry, topic, Start::Beginning).await?;
    Ok(reader.read_to_end().await?)
}

/// Opens a topic to be read from there on.
///
/// # Errors
/// When the topic does not exist or Kafka does not answer.
pub async fn open<R: Record>(
    context: &Context,
    registry: &Registry,
    topic: Topic,
    start: Start,
) -> Result<TopicReader<R>, ReadError> {
    settled(|| TopicReader::open(&context.kafka, registry.clone(), topic, start)).await
}

/// Asks again, for a short while, what failed at once: topics that were created or moved a moment ago have no leader
/// yet. What took long to fail, such as a broker that does not answer, is not asked again.
///
/// # Errors
/// The last one.
pub async fn settled<T, E, F: Future<Output = Result<T, E>>>(mut ask: impl FnMut() -> F) -> Result<T, E> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(50);
    loop {
        match ask().await {
            Err(_) if started.elapsed() < SETTLING => tokio::time::sleep(pause).await,
            other => return other,
        }
        pause *= 2;
    }
}

/// A client of the schema registry the context names.
///
/// # Errors
/// When its URL is not one.
pub fn registry(context: &Context) -> color_eyre::Result<Registry> {
    Ok(Registry::new(&context.registry, &context.kafka.prefix)?)
}
