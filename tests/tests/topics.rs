//! Topics come from `weir topics apply` alone, also on brokers that create them for whoever asks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use weir_contracts::{Lane, Raw, Topic};
use weir_runner::{KafkaConfig, Publisher, Registry, RegistryConfig};
use weir_stack::{Cluster, CreateTopic, Stack, StackConfig};
use weir_stage::Output;
use weir_testing::{BrokerProxy, Isolation, eventually};

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

/// Enough partitions that a broker is still making them when the first records come.
const MANY: i32 = 200;

fn watermarks(brokers: &str, topic: &str) -> Result<i64, rdkafka::error::KafkaError> {
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let timeout = Duration::from_secs(20);
    (0..MANY).map(|lane| consumer.fetch_watermarks(topic, lane, timeout).map(|(low, high)| high - low)).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_served_once_it_is_created() {
    let data = tempfile::tempdir().unwrap();
    let stack = Stack::start(StackConfig::for_test(data.path())).await.unwrap();
    let brokers = stack.kafka_brokers();
    let cluster = Cluster::connect(&brokers, &BTreeMap::new()).unwrap();
    let new = CreateTopic { name: "wide".into(), partitions: MANY, replication: 1, settings: BTreeMap::new() };
    cluster.create(&[new]).await.unwrap();
    let stored = tokio::task::spawn_blocking(move || watermarks(&brokers, "wide")).await.unwrap();
    assert_eq!(stored, Ok(0), "every partition answers at the first question");
    stack.stop().await;
}

/// Two requests in flight, of which the first is refused: see the runner's `Sender`.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_records_of_a_partition_are_stored_though_it_was_just_coming_to_be() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let proxy = BrokerProxy::start();
    let (broker, brokers) = proxy.broker();
    let topics = broker.topics("young", &[("young", 2)]);
    let kafka = KafkaConfig { brokers, prefix: topics.prefix.clone(), ..KafkaConfig::default() };
    let publisher = Publisher::new(&kafka, Registry::new(&RegistryConfig::default(), &kafka.prefix).unwrap()).unwrap();
    let publish = |value: &'static str, lane: i32| {
        let mut output = Output::new(Topic::custom("young"), value, Raw(value.into()));
        output.lane = Some(Lane(lane));
        let publisher = publisher.clone();
        tokio::spawn(async move { publisher.publish(output).await })
    };
    publish("connects", 1).await.unwrap().unwrap();
    proxy.refuse(&topics.full("young"), 0);
    let first = publish("first", 0);
    // The proxy has it then, and waits for the next one before it refuses.
    let held = || eventually("the first request arrives", Duration::from_secs(10), || !proxy.will_refuse());
    tokio::task::block_in_place(held);
    let second = publish("second", 0);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    let stored = tokio::task::spawn_blocking(move || topics.read("young", Isolation::Committed)).await.unwrap();
    let values: Vec<_> = stored.iter().map(|record| String::from_utf8_lossy(&record.value).into_owned()).collect();
    assert_eq!(values, ["first", "second", "connects"], "every acknowledged record is stored, in order");
}
