//! Topics come from `weir topics apply` alone, also on brokers that create them for whoever asks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use weir_contracts::{Raw, Topic};
use weir_runner::{KafkaConfig, Publisher, Registry, RegistryConfig};
use weir_stack::{Cluster, Stack, StackConfig};
use weir_stage::Output;

#[tokio::test(flavor = "multi_thread")]
async fn who_produces_to_a_missing_topic_does_not_create_it() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let data = tempfile::tempdir().unwrap();
    let mut config = StackConfig::for_test(data.path());
    config.broker_properties.insert("auto.create.topics.enable".into(), "true".into());
    let stack = Stack::start(config).await.unwrap();
    let brokers = stack.kafka_brokers();
    let there = async |topic: &str| {
        let cluster = Cluster::connect(&brokers, &BTreeMap::new()).unwrap();
        cluster.metadata("").await.unwrap().topics.contains_key(topic)
    };

    // How long a topic that was just created may stay unknown.
    let properties = [("topic.metadata.propagation.max.ms".to_owned(), "1000".to_owned())];
    let kafka = KafkaConfig { brokers: brokers.clone(), properties: properties.into(), ..KafkaConfig::default() };
    let registry = Registry::new(&RegistryConfig::default(), &kafka.prefix).unwrap();
    let publisher = Publisher::new(&kafka, registry).unwrap();
    let output = Output::new(Topic::custom("missing"), "key", Raw(b"value".to_vec()));
    let error = publisher.publish(output).await.unwrap_err().to_string();
    assert!(error.contains("weir topics apply"), "{error}");
    assert!(!there(&kafka.topics().full_name("missing")).await);

    // The broker does create topics: for a client that says nothing.
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
    producer.send(BaseRecord::to("anybodys").key("key").payload("value")).map_err(|(error, _)| error).unwrap();
    tokio::task::spawn_blocking(move || producer.flush(Duration::from_secs(30)).unwrap()).await.unwrap();
    assert!(there("anybodys").await);
    stack.stop().await;
}
