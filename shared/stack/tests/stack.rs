//! The stack on real processes. Each start costs seconds, so each test proves several things.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use weir_stack::{Stack, StackConfig};

#[tokio::test]
async fn kafka_alone_starts_survives_kill_and_stops() {
    let data = tempfile::tempdir().unwrap();
    let stack = Stack::start(StackConfig::for_test(data.path())).await.unwrap();
    assert!(stack.kafka_brokers().starts_with("127.0.0.1:"));
    let first = stack.broker_process(0).unwrap();
    stack.kill_broker(0).unwrap();
    assert!(!first.alive());
    stack.restart_broker(0).await.unwrap();
    let second = stack.broker_process(0).unwrap();
    assert!(second.alive() && second != first);
    stack.stop().await;
    assert!(!second.alive());
}
