//! End-to-end tests on real Kafka.

pub mod files_job;
pub mod program;
