//! The stack on real processes. Each start costs seconds, so each test proves several things.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use weir_stack::{Cluster, CreateTopic, SaslSsl, Stack, StackConfig, StackError, User};

fn connect(stack: &Stack) -> Cluster {
    Cluster::connect(&stack.internal_kafka_brokers(), &BTreeMap::new()).unwrap()
}

fn topic(name: &str, replication: i32) -> CreateTopic {
    CreateTopic { name: name.into(), partitions: 2, replication, settings: BTreeMap::new() }
}

#[tokio::test]
async fn a_killed_broker_comes_back_with_its_data_and_a_broken_folder_is_named() {
    let data = tempfile::tempdir().unwrap();
    let config = StackConfig::for_test(data.path());
    let stack = Stack::start(config.clone()).await.unwrap();
    connect(&stack).create(&[topic("kept", 1)]).await.unwrap();

    let locked = Stack::prepare(config.clone()).unwrap_err();
    assert!(matches!(locked, StackError::Locked { .. }), "{locked}");

    let first = stack.broker_process(0).unwrap();
    stack.kill_broker(0).unwrap();
    assert!(!first.alive());
    stack.restart_broker(0).await.unwrap();
    let second = stack.broker_process(0).unwrap();
    assert!(second.alive() && second != first);
    assert!(connect(&stack).metadata("kept").await.unwrap().topics.contains_key("kept"));
    stack.stop().await;
    assert!(!second.alive());

    let other = StackConfig { brokers: 3, ..config.clone() };
    let error = Stack::prepare(other).unwrap_err();
    assert!(matches!(error, StackError::OtherShape { .. }), "{error}");

    // Kafka itself finds this one, when it starts.
    let log = data.path().join("stack/kafka-1/__cluster_metadata-0/00000000000000000000.log");
    let whole = fs::read(&log).unwrap();
    fs::write(&log, vec![0x5a; whole.len()]).unwrap();
    let error = Stack::start(config.clone()).await.unwrap_err();
    assert!(matches!(error, StackError::CorruptData { .. }), "{error}");
    fs::write(&log, whole).unwrap();

    // This one is found before anything is started.
    let meta = data.path().join("stack/kafka-1/meta.properties");
    fs::write(&meta, "cluster.id=somebody-elses\n").unwrap();
    let error = Stack::start(config).await.unwrap_err();
    assert!(matches!(error, StackError::CorruptData { .. }), "{error}");
    assert!(error.to_string().contains("meta.properties"), "{error}");
}

#[tokio::test]
async fn three_brokers_serve_on_without_one() {
    let data = tempfile::tempdir().unwrap();
    let stack = Stack::start(StackConfig { brokers: 3, ..StackConfig::for_test(data.path()) }).await.unwrap();
    let cluster = connect(&stack);
    cluster.create(&[topic("before", 3)]).await.unwrap();
    let state = cluster.state("before").await.unwrap();
    assert_eq!(state.brokers.len(), 3);
    let settings = &state.topics["before"].settings;
    assert_eq!((state.topics["before"].replication, settings["min.insync.replicas"].value.as_str()), (3, "2"));

    stack.kill_broker(2).unwrap();
    let begin = Instant::now();
    while connect(&stack).create(&[topic("meanwhile", 2)]).await.is_err() {
        assert!(begin.elapsed() < Duration::from_secs(150), "two brokers of three don't create a topic");
    }
    stack.restart_broker(2).await.unwrap();
    assert_eq!(connect(&stack).metadata("").await.unwrap().brokers.len(), 3);
}

#[tokio::test]
async fn clients_log_in_over_tls_and_are_told_why_not() {
    let user = |name: &str, superuser| User { name: name.into(), password: format!("{name}-secret"), superuser };
    let data = tempfile::tempdir().unwrap();
    let security = SaslSsl { users: vec![user("admin", true), user("guest", false)], authorize: true };
    let config = StackConfig { security: Some(security), ..StackConfig::for_test(data.path()) };
    let stack = Stack::start(config).await.unwrap();

    let admin = Cluster::connect(&stack.kafka_brokers(), &stack.kafka_properties()).unwrap();
    admin.create(&[topic("guarded", 1)]).await.unwrap();
    assert!(admin.state("").await.unwrap().topics.contains_key("guarded"));

    let guest = stack.kafka_properties_of(&user("guest", false));
    let guest = Cluster::connect(&stack.kafka_brokers(), &guest).unwrap();
    assert!(guest.state("").await.unwrap().topics.is_empty(), "a guest sees nothing");
    let refused = guest.create(&[topic("mine", 1)]).await.unwrap_err();
    assert!(refused.to_string().to_lowercase().contains("authorization"), "{refused}");

    let mut wrong = stack.kafka_properties();
    wrong.insert("sasl.password".into(), "guessed".into());
    let wrong = Cluster::connect(&stack.kafka_brokers(), &wrong).unwrap();
    let refused = wrong.metadata("").await.unwrap_err();
    assert!(refused.to_string().to_lowercase().contains("authentication"), "{refused}");
}
