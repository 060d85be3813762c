//! Writes the record of a job: one at a time, in the transaction of what belongs to it.

use std::collections::HashMap;
use std::sync::Arc;

use rdkafka::message::Message;
use weir_contracts::{Job, Lane, Record, Topic, frame, unframe};
use weir_stage::{Headers, Output};

use super::JobsError;
use super::kind::JobFailure;
use crate::desk::{Desk, Transacted};
use crate::process::EncodedRecord;
use crate::{KafkaConfig, Registry, RunnerConfig, table};

/// Milliseconds after which the broker aborts what an owner left open; well below a reader's patience.
const TRANSACTION_TIMEOUT_MS: u64 = 10_000;

/// Kafka and the registry.
#[derive(Clone)]
pub(super) struct Clients {
    pub(super) kafka: KafkaConfig,
    pub(super) registry: Registry,
}

impl Clients {
    /// The job as it is now, all open transactions waited for; nothing when there is none.
    pub(super) async fn read(&self, id: &str) -> Result<Option<Job>, JobsError> {
        let fail = |reason| JobsError::Read { reason };
        let (kafka, topic, key) = (self.kafka.clone(), self.kafka.topics().full(Topic::JOBS), id.as_bytes().to_vec());
        let read = tokio::task::spawn_blocking(move || {
            let mut last = None;
            let of_job = |message: &rdkafka::message::BorrowedMessage<'_>| {
                if message.key() == Some(&key) {
                    last = message.payload().map(<[u8]>::to_vec);
                }
            };
            table::read(&kafka, &topic, of_job).map(|()| last)
        });
        let Some(value) = read.await.map_err(|error| fail(error.to_string()))?.map_err(fail)? else {
            return Ok(None);
        };
        let (schema, body) = unframe(&value).map_err(|error| fail(format!("job {id}: {error}")))?;
        let schema = self.registry.schema(schema).await.map_err(|error| fail(error.to_string()))?;
        Job::decode(Some(&schema), body).map(Some).map_err(|error| fail(format!("job {id}: {error}")))
    }
}

/// The desk at which one sits who writes the record of a job.
pub(super) struct JobDesk {
    clients: Clients,
    /// Away while it is at work on a thread of its own.
    desk: Option<Desk>,
    /// Partitions of the topics that were written to.
    lanes: HashMap<Topic, (Arc<str>, i32)>,
}

impl JobDesk {
    /// Ends whoever works on the job; what they had not committed never counts.
    pub(super) async fn of_owner(clients: &Clients, id: &str) -> Result<Self, JobsError> {
        Self::take_over(clients, id, "").await
    }

    /// Ends whoever is about to submit the same job. Not its owner: there is one only after it was submitted.
    pub(super) async fn of_submission(clients: &Clients, id: &str) -> Result<Self, JobsError> {
        Self::take_over(clients, id, ".submit").await
    }

    async fn take_over(clients: &Clients, id: &str, what: &str) -> Result<Self, JobsError> {
        let fail = |reason| JobsError::Kafka { id: id.to_owned(), reason };
        let kafka = clients.kafka.clone();
        let transactional_id = kafka.topics().full_name(&format!("job.{id}{what}"));
        let config = RunnerConfig { transaction_timeout_ms: TRANSACTION_TIMEOUT_MS, ..RunnerConfig::default() };
        let taken = tokio::task::spawn_blocking(move || Desk::take_over(&kafka, &config, transactional_id)).await;
        let desk = taken.map_err(|error| fail(error.to_string()))?.map_err(fail)?;
        Ok(Self { clients: clients.clone(), desk: Some(desk), lanes: HashMap::new() })
    }

    /// As [`Desk::renew`].
    pub(super) async fn renew(&mut self) -> Result<(), String> {
        self.at_work(Desk::renew).await?
    }

    /// As [`Desk::transact`].
    pub(super) async fn transact(&mut self, records: Vec<EncodedRecord>) -> Result<Transacted, String> {
        self.at_work(move |desk| desk.transact(&records)).await?
    }

    async fn at_work<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Desk) -> T + Send + 'static,
    ) -> Result<T, String> {
        let mut desk = self.desk.take().ok_or("the producer is gone")?;
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&mut desk);
            (desk, result)
        });
        let (desk, result) = done.await.map_err(|error| error.to_string())?;
        self.desk = Some(desk);
        Ok(result)
    }

    /// The record of a job.
    pub(super) async fn encode_job(&mut self, job: &Job) -> Result<EncodedRecord, JobFailure> {
        self.encode(Output::new(Topic::JOBS, job.id.as_bytes(), job.clone())).await
    }

    /// A record as it travels; without a lane its key decides (murmur2).
    pub(super) async fn encode(&mut self, output: Output) -> Result<EncodedRecord, JobFailure> {
        let (topic, lanes) = self.topic(output.topic).await?;
        let mut value = None;
        if let Some(record) = &output.record {
            let mut bytes = Vec::new();
            if let Some(schema) = record.schema() {
                let id = self.clients.registry.id_of(output.topic, schema).await;
                frame(id.map_err(|error| JobFailure::Unavailable(error.to_string()))?, &mut bytes);
            }
            record.encode(&mut bytes).map_err(|error| JobFailure::Failed(error.to_string()))?;
            value = Some(bytes);
        }
        let lane = output.lane.unwrap_or_else(|| Lane::of(output.key.as_deref().unwrap_or_default(), lanes));
        Ok(EncodedRecord { topic, lane, key: output.key, value, headers: Headers(output.headers.0) })
    }

    async fn topic(&mut self, topic: Topic) -> Result<(Arc<str>, i32), JobFailure> {
        if let Some((name, lanes)) = self.lanes.get(&topic) {
            return Ok((Arc::clone(name), *lanes));
        }
        let name: Arc<str> = self.clients.kafka.topics().full(topic).into();
        let (kafka, asked) = (self.clients.kafka.clone(), Arc::clone(&name));
        let lanes = tokio::task::spawn_blocking(move || table::lanes(&kafka, &asked)).await;
        let lanes = lanes.map_err(|error| error.to_string()).and_then(|lanes| lanes);
        let lanes = lanes.map_err(|reason| JobFailure::Unavailable(format!("{name}: {reason}")))?;
        let lanes = i32::try_from(lanes.len()).unwrap_or(i32::MAX);
        self.lanes.insert(topic, (Arc::clone(&name), lanes));
        Ok((name, lanes))
    }
}
