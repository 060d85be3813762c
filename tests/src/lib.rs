//! End-to-end tests on real Kafka.
