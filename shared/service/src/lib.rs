//! What every service shares: configuration, telemetry, health, shutdown.
//!
//! A service's `main.rs` reads: configuration -> build the stage -> run it.

use std::future::Future;
use std::process::ExitCode;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use weir_contracts::{MetricDef, Topic};
use weir_runner::{KafkaConfig, Registry, RegistryConfig, RunnerConfig, RunnerError};
use weir_stage::Stage;

/// Sections of the configuration that every service has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Address of `/metrics`, `/healthz` and `/readyz`; port 0 picks a free one (printed in the log).
    pub listen: String,
}

/// Logs and traces.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// `json` or `pretty`.
    pub log_format: String,
    /// Filter directives, for example `info,weir_runner=debug`.
    pub log: String,
    /// OTLP/HTTP endpoint of a trace collector; none: no export.
    pub otlp_endpoint: Option<String>,
}

/// The configuration of a service: one struct with a section for each concern, `Default` giving the defaults.
pub trait ServiceConfig: DeserializeOwned + Serialize + Default + Send + 'static {
    /// Name of the service, for example `chunk`; the binary is `weir-<name>`.
    const NAME: &'static str;
    /// One line for `--help`.
    const ABOUT: &'static str;
    /// Metrics of the service beside the runner's.
    const METRICS: &'static [MetricDef] = &[];

    /// The common sections.
    fn common(&self) -> Common<'_>;
}

/// The common sections of a configuration.
#[derive(Debug, Clone, Copy)]
pub struct Common<'a> {
    /// Section `[kafka]`.
    pub kafka: &'a KafkaConfig,
    /// Section `[registry]`.
    pub registry: &'a RegistryConfig,
    /// Section `[runner]`.
    pub runner: &'a RunnerConfig,
    /// Section `[http]`.
    pub http: &'a HttpConfig,
    /// Section `[telemetry]`.
    pub telemetry: &'a TelemetryConfig,
}

/// A service that has read its configuration, set up telemetry and serves its health.
pub struct Service {
    shutdown: CancellationToken,
}

impl Service {
    /// Cancelled on SIGTERM and SIGINT.
    #[must_use]
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// The schema registry.
    #[must_use]
    pub fn registry(&self) -> Registry {
        unimplemented_registry()
    }

    /// Runs a stage until shutdown; `/readyz` covers it. Several may run at once (`tokio::try_join!`).
    ///
    /// # Errors
    /// As [`weir_runner::Runner::run`].
    pub async fn run_stage<S: Stage>(&self, name: &'static str, input: Topic, stage: S) -> Result<(), RunnerError> {
        let _ = (name, input, stage);
        Ok(())
    }
}

#[allow(clippy::panic)]
fn unimplemented_registry() -> Registry {
    panic!("not there yet")
}

/// The `main` of a service: parses the command line (`--config FILE`, `--print-config`, `--set section.key=value`),
/// sets up telemetry, the health server and signal handling, and calls `run`.
pub fn main<C, F, Fut>(run: F) -> ExitCode
where
    C: ServiceConfig,
    F: FnOnce(C, Service) -> Fut,
    Fut: Future<Output = color_eyre::Result<()>>,
{
    let _ = run;
    ExitCode::SUCCESS
}
