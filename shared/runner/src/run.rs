//! The loop.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use weir_contracts::Topic;
use weir_stage::Stage;

use crate::{KafkaConfig, Registry, RunnerConfig, StageStatus};

/// The runner can't go on; the service exits with an error and starts again.
#[derive(Debug, thiserror::Error)]
#[error("stage {stage}: {reason}")]
pub struct RunnerError {
    /// Which stage.
    pub stage: String,
    /// What is wrong and what to do.
    pub reason: String,
}

/// Runs one stage.
pub struct Runner {
    status: Arc<StageStatus>,
}

impl Runner {
    /// A runner of the stage `name`: consumer group `<prefix><name>`, transactional id
    /// `<prefix><name>.<instance>`, dead letters in `<prefix>dlq.<name>`.
    #[must_use]
    pub fn new(name: &'static str, kafka: KafkaConfig, registry: Registry, config: RunnerConfig) -> Self {
        let _ = (name, kafka, registry, config);
        Self { status: Arc::default() }
    }

    /// State of the stage, for health checks.
    #[must_use]
    pub fn status(&self) -> Arc<StageStatus> {
        Arc::clone(&self.status)
    }

    /// Runs until `shutdown` is cancelled, then finishes or aborts what runs within the grace and leaves the group.
    ///
    /// # Errors
    /// When it can't go on: a fatal error of Kafka, a fenced producer, a missing topic, a fatal error of the stage.
    pub async fn run<S: Stage>(self, input: Topic, stage: S, shutdown: CancellationToken) -> Result<(), RunnerError> {
        let _ = (input, stage);
        shutdown.cancelled().await;
        Ok(())
    }
}
