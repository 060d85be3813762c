//! Rights, by trying them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use weir_contracts::Topic;
use weir_runner::RunnerConfig;
use weir_stack::{Cluster, ClusterState, Complaints, CreateTopic, client_config};

use super::finding::Findings;
use crate::context::Context;

const TIMEOUT: Duration = Duration::from_secs(10);
/// A fetch that is not allowed is refused at once; one that is finds nothing at the end of a topic.
const FETCH: Duration = Duration::from_secs(2);

/// Tries creating (validated only), describing, reading, and a transaction that is aborted.
pub async fn check(
    context: &Context,
    runner: &RunnerConfig,
    cluster: &Cluster,
    state: &ClusterState,
    found: &mut Findings,
) {
    let name = context.kafka.topics().full_name("doctor-probe");
    let probe = CreateTopic { name, partitions: 1, replication: 1, settings: BTreeMap::new() };
    match cluster.may_create(probe).await {
        Ok(()) => found.ok("create", "topics can be created"),
        Err(error) => {
            let fix = format!(
                "only `weir topics apply` needs it: run that as an administrator, or {}",
                grant(context, "Create", "topic")
            );
            found.warn("create", error.to_string(), fix);
        }
    }
    let topic = context.kafka.topics().full(Topic::ANSWER_TOKENS);
    let target = state.topics.contains_key(&topic).then_some(topic);
    let trial = Trial::new(context, runner, target);
    // Both block: they talk to librdkafka.
    let (reading, writing) = (trial.clone(), trial);
    let read = tokio::task::spawn_blocking(move || reading.read()).await;
    let write = tokio::task::spawn_blocking(move || writing.transaction()).await;
    for (check, done, outcome) in [
        ("read", "offsets of groups and records can be read", read),
        ("transaction", "a transaction began, wrote and was aborted", write),
    ] {
        match outcome {
            Ok(Ok(true)) => found.ok(check, done),
            Ok(Ok(false)) => found.warn(check, "tried as far as possible without topics", "weir topics apply"),
            Ok(Err(Refusal { says, fix })) => found.fail(check, says, fix),
            Err(error) => found.fail(check, format!("the check broke off: {error}"), "run weir doctor again"),
        }
    }
}

/// The first error that polling brings within [`FETCH`].
fn poll_error(consumer: &BaseConsumer<Complaints>) -> Option<KafkaError> {
    let begin = Instant::now();
    while begin.elapsed() < FETCH {
        if let Some(Err(error)) = consumer.poll(Duration::from_millis(100)) {
            return Some(error);
        }
    }
    None
}

/// How to give the configured user a right on everything under the prefix.
pub fn grant(context: &Context, operation: &str, resource: &str) -> String {
    let user = context.kafka.properties.get("sasl.username").map_or("USER", String::as_str);
    format!(
        "kafka-acls --bootstrap-server {} --add --allow-principal User:{user} --operation {operation} --{resource} {} \
         --resource-pattern-type prefixed",
        context.kafka.brokers, context.kafka.prefix
    )
}

/// Why something was not possible.
struct Refusal {
    says: String,
    fix: String,
}

/// What the trials need, to be moved to another thread.
#[derive(Clone)]
struct Trial {
    client: ClientConfig,
    id: String,
    topic: Option<String>,
    timeout_ms: u64,
    grants: BTreeMap<&'static str, String>,
}

impl Trial {
    fn new(context: &Context, runner: &RunnerConfig, topic: Option<String>) -> Self {
        let grants = [
            ("group", grant(context, "Read", "group")),
            ("read", grant(context, "Read", "topic")),
            ("write", grant(context, "Write", "topic")),
            ("transaction", grant(context, "Write", "transactional-id")),
        ];
        Self {
            client: client_config(&context.kafka.brokers, &context.kafka.properties),
            id: context.kafka.topics().full_name("doctor"),
            topic,
            timeout_ms: runner.transaction_timeout_ms,
            grants: grants.into(),
        }
    }

    /// Reads a group's offsets and a topic's end. False: there was no topic to try.
    fn read(mut self) -> Result<bool, Refusal> {
        self.client.set("group.id", &self.id).set("enable.auto.commit", "false");
        let complaints = Complaints::default();
        let consumer: BaseConsumer<Complaints> = self
            .client
            .create_with_context(complaints.clone())
            .map_err(|error| self.refuse("make a consumer", &error, &complaints, "group"))?;
        let topic = self.topic.clone().unwrap_or_else(|| self.id.clone());
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition(&topic, 0);
        if let Err(error) = consumer.committed_offsets(partitions.clone(), TIMEOUT / 2) {
            // It only says that it waited; what it waited for comes by polling.
            let telling = poll_error(&consumer);
            return Err(self.refuse(
                "read the offsets of a group",
                telling.as_ref().unwrap_or(&error),
                &complaints,
                "group",
            ));
        }
        if self.topic.is_none() {
            return Ok(false);
        }
        let at_end =
            partitions.set_partition_offset(&topic, 0, Offset::End).and_then(|()| consumer.assign(&partitions));
        at_end.map_err(|error| self.refuse("read", &error, &complaints, "read"))?;
        if let Some(error) = poll_error(&consumer) {
            return Err(self.refuse(&format!("read {topic}"), &error, &complaints, "read"));
        }
        Ok(true)
    }

    /// Begins a transaction, writes, and aborts. False: there was no topic to write to.
    fn transaction(mut self) -> Result<bool, Refusal> {
        let timeout = self.timeout_ms.to_string();
        self.client.set("transactional.id", &self.id).set("transaction.timeout.ms", &timeout);
        let complaints = Complaints::default();
        let producer: BaseProducer<Complaints> = self
            .client
            .create_with_context(complaints.clone())
            .map_err(|error| self.refuse("make a producer", &error, &complaints, "transaction"))?;
        producer
            .init_transactions(TIMEOUT)
            .map_err(|error| self.refuse("use transactions", &error, &complaints, "transaction"))?;
        let Some(topic) = self.topic.clone() else { return Ok(false) };
        let failed = |error: KafkaError, complaints: &Complaints| {
            self.refuse(&format!("write to {topic} in a transaction"), &error, complaints, "write")
        };
        producer.begin_transaction().map_err(|error| failed(error, &complaints))?;
        let record = BaseRecord::<str, [u8]>::to(&topic).key("doctor").payload(b"");
        producer.send(record).map_err(|(error, _)| failed(error, &complaints))?;
        // A record that is refused is a complaint; the flush itself succeeds.
        let flushed = producer.flush(TIMEOUT);
        let complaint = complaints.last();
        let aborted = producer.abort_transaction(TIMEOUT);
        if let Some(says) = complaint {
            let says = format!("can't write to {topic} in a transaction: {says}");
            return Err(Refusal { says, fix: self.fix("write") });
        }
        flushed.and(aborted).map_err(|error| failed(error, &complaints))?;
        Ok(true)
    }

    fn refuse(&self, action: &str, error: &KafkaError, complaints: &Complaints, right: &str) -> Refusal {
        let code = match error {
            KafkaError::Transaction(error) => Some(error.code()),
            other => other.rdkafka_error_code(),
        };
        let denied = matches!(
            code,
            Some(
                RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::GroupAuthorizationFailed
                    | RDKafkaErrorCode::ClusterAuthorizationFailed
                    | RDKafkaErrorCode::TransactionalIdAuthorizationFailed
            )
        );
        let reason = code.map_or_else(|| error.to_string(), |code| code.to_string());
        let more = complaints.last().filter(|more| !denied && !reason.contains(more.as_str()));
        let more = more.map(|more| format!(" ({more})")).unwrap_or_default();
        let fix = if denied {
            self.fix(right)
        } else if code == Some(RDKafkaErrorCode::InvalidTransactionTimeout) {
            "lower runner.transaction_timeout_ms, or raise transaction.max.timeout.ms on the brokers".into()
        } else {
            "see what the brokers' logs say; the transaction log may lack in-sync replicas".into()
        };
        Refusal { says: format!("can't {action}: {reason}{more}"), fix }
    }

    fn fix(&self, right: &str) -> String {
        self.grants.get(right).cloned().unwrap_or_default()
    }
}
