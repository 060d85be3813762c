//! Settings and logging every Kafka client of Weir shares.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

use crate::KafkaConfig;

/// How long a call to Kafka may take before it counts as failed.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// librdkafka's settings for a client of this cluster.
pub(crate) fn client_config(kafka: &KafkaConfig) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &kafka.brokers)
        .set("client.id", "weir")
        // The default of 100 ms is paid after every CONCURRENT_TRANSACTIONS answer.
        .set("retry.backoff.ms", "10")
        .set("reconnect.backoff.max.ms", "2000")
        .set("topic.metadata.refresh.interval.ms", "30000")
        // Producers ask for topics that are not there to be created, unless told otherwise; `weir topics apply` does it.
        .set("allow.auto.create.topics", "false");
    for (name, value) in &kafka.properties {
        config.set(name, value);
    }
    config
}

/// Settings of a consumer, on top of [`client_config`].
pub(crate) fn consumer_config(kafka: &KafkaConfig) -> ClientConfig {
    let mut config = client_config(kafka);
    config
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        // After the prefetch queue was full, librdkafka sleeps this long before it fetches again; the default is 1 s.
        .set("fetch.queue.backoff.ms", "5")
        // How long the broker holds a request back while there is nothing to read; a record ends it at once, a lane that
        // is added waits for it. What is asked more often costs the broker more than the records, while little happens.
        .set("fetch.wait.max.ms", "250")
        .set("check.crcs", "true")
        .set("enable.partition.eof", "true");
    config
}

/// Sends librdkafka's own log lines to `tracing`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LogContext;

impl ClientContext for LogContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "client error");
    }
}

impl ConsumerContext for LogContext {}

/// One line of librdkafka's log. It reports every lost connection as an error, although it heals by itself: those
/// are warnings here.
pub(crate) fn log_line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(target: "librdkafka", facility, message);
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            tracing::warn!(target: "librdkafka", facility, message);
        }
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
            tracing::debug!(target: "librdkafka", facility, message);
        }
    }
}
