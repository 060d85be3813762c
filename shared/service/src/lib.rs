//! What every service shares: configuration, telemetry, health, shutdown.
//!
//! A service's `main.rs` reads: configuration -> build the stage -> run it.
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use weir_runner::{KafkaConfig, RegistryConfig, RunnerConfig};
//! use weir_service::{Common, HttpConfig, ServiceConfig, TelemetryConfig};
//!
//! #[derive(Debug, Clone, Default, Serialize, Deserialize)]
//! #[serde(deny_unknown_fields, default)]
//! struct Config {
//!     kafka: KafkaConfig,
//!     registry: RegistryConfig,
//!     runner: RunnerConfig,
//!     http: HttpConfig,
//!     telemetry: TelemetryConfig,
//! }
//!
//! impl ServiceConfig for Config {
//!     const NAME: &'static str = "example";
//!     const ABOUT: &'static str = "Does one thing.";
//!
//!     fn common(&self) -> Common<'_> {
//!         Common {
//!             kafka: &self.kafka,
//!             registry: &self.registry,
//!             runner: &self.runner,
//!             http: &self.http,
//!             telemetry: &self.telemetry,
//!         }
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     weir_service::main::<Config, _, _>(|_config, service| async move {
//!         service.shutdown().cancelled().await;
//!         Ok(())
//!     })
//! }
//! ```

mod command;
mod connections;
mod error;
mod health;
mod layers;
mod load;
mod log_format;
pub mod metric;
mod print;
mod process;
mod run;
mod sections;
mod shutdown;
mod traces;

use serde::Serialize;
use serde::de::DeserializeOwned;
use weir_contracts::MetricDef;
use weir_runner::{KafkaConfig, RegistryConfig, RunnerConfig};

pub use error::{ConfigError, Invalid};
pub use layers::Sources;
pub use load::load;
pub use print::render as render_config;
pub use run::{Service, main};
pub use sections::{HttpConfig, TelemetryConfig};

/// The configuration of a service: one struct with a section for each concern, `Default` giving the defaults.
pub trait ServiceConfig: DeserializeOwned + Serialize + Default + Send + 'static {
    /// Name of the service, for example `chunk`; the binary is `weir-<name>`.
    const NAME: &'static str;
    /// One line for `--help`.
    const ABOUT: &'static str;
    /// Port of the health server when `http.listen` names none; 0 picks a free one.
    const PORT: u16 = 0;
    /// Metrics of the service beside the runner's.
    const METRICS: &'static [MetricDef] = &[];

    /// The common sections.
    fn common(&self) -> Common<'_>;

    /// Checks the service's own sections; the common ones are checked already.
    ///
    /// # Errors
    /// The first key whose value can't work, and why.
    fn validate(&self) -> Result<(), Invalid> {
        Ok(())
    }
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
