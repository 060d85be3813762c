//! Sends the workload, evenly over its time.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use color_eyre::eyre::{WrapErr, bail};
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use crate::avro::Schemas;
use crate::stop::Stop;
use crate::store::Store;
use crate::workload::{Request, Wish};
use crate::world::{LANES, Run};

/// Brokers come back sooner.
const PATIENCE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(5);

/// How many requests were sent; clones are the same count.
#[derive(Debug, Clone, Default)]
pub struct Sent(Arc<AtomicUsize>);

impl Sent {
    /// So many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Deliveries {
    failed: AtomicU64,
}

impl ClientContext for Deliveries {
    // Lost connections are what this is about.
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Where a feed leads to.
pub struct Feed {
    producer: BaseProducer<Deliveries>,
    schemas: Schemas,
    topic: String,
    schema_id: u32,
    store: Store,
}

impl Feed {
    /// A producer for this run.
    ///
    /// # Errors
    /// When librdkafka does not take the settings.
    pub fn open(run: &Run) -> color_eyre::Result<Self> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &run.kafka.brokers)
            .set("enable.idempotence", "true")
            // A partition that is just coming to be may lose the first of several requests in flight.
            .set("max.in.flight.requests.per.connection", "1")
            .set("message.timeout.ms", PATIENCE.as_millis().to_string())
            .set("linger.ms", "5")
            .set("log_level", "0")
            .create_with_context(Deliveries::default())?;
        Ok(Self {
            producer,
            schemas: Schemas::parse()?,
            topic: run.kafka.full("document-requests"),
            schema_id: run.schema_id,
            store: run.store.clone(),
        })
    }

    /// Sends requests, evenly over `time`, and returns when Kafka has all of them. Requests for one document go into one
    /// partition, so that they stay in order.
    ///
    /// # Errors
    /// When Kafka does not take one, or somebody asks to end.
    pub fn send(&self, requests: &[Request], time: Duration, sent: &Sent, stop: &Stop) -> color_eyre::Result<()> {
        let begun = Instant::now();
        let each = time / u32::try_from(requests.len().max(1)).unwrap_or(u32::MAX);
        for (number, request) in (0u32..).zip(requests) {
            let due = begun + each * number;
            while Instant::now() < due {
                stop.check()?;
                self.producer.poll(POLL.min(due.saturating_duration_since(Instant::now())));
            }
            self.send_one(request, stop)?;
            sent.0.fetch_add(1, Ordering::Relaxed);
        }
        let begun = Instant::now();
        while self.producer.in_flight_count() > 0 {
            stop.check()?;
            self.producer.poll(POLL);
            if begun.elapsed() > PATIENCE {
                bail!("Kafka does not take the requests");
            }
        }
        match self.producer.context().failed.load(Ordering::Relaxed) {
            0 => Ok(()),
            failed => bail!("Kafka did not take {failed} requests: nothing can be said about them"),
        }
    }

    fn send_one(&self, request: &Request, stop: &Stop) -> color_eyre::Result<()> {
        if let Wish::Claim { name, text, there } = &request.wish {
            self.store.put(name, text, *there);
        }
        let subject = request.subject();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let value = self.schemas.write(request, self.schema_id, i64::try_from(now).unwrap_or(i64::MAX))?;
        let mut record = BaseRecord::to(&self.topic).partition(partition(&subject)).key(&subject).payload(&value);
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned)) => {
                    stop.check()?;
                    self.producer.poll(POLL);
                    record = returned;
                }
                Err((error, _)) => return Err(error).wrap_err_with(|| request.id.clone()),
            }
        }
        self.producer.poll(Duration::ZERO);
        Ok(())
    }
}

/// Not the lane that Weir puts it in: producers hash as they like.
fn partition(subject: &str) -> i32 {
    let mut hasher = DefaultHasher::new();
    subject.hash(&mut hasher);
    i32::try_from(hasher.finish() % u64::from(LANES.unsigned_abs())).unwrap_or_default()
}
