//! Runs Kafka, the schema registry and the embedded Qdrant server as supervised child processes.
