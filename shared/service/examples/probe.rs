//! The smallest service: waits until it is told to end. The tests of this crate run it as a process.

use std::process::ExitCode;

use opentelemetry::global;
use opentelemetry::trace::{Span, Tracer};
use serde::{Deserialize, Serialize};
use weir_runner::{KafkaConfig, RegistryConfig, RunnerConfig};
use weir_service::{Common, HttpConfig, Invalid, ServiceConfig, TelemetryConfig};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    kafka: KafkaConfig,
    registry: RegistryConfig,
    runner: RunnerConfig,
    http: HttpConfig,
    telemetry: TelemetryConfig,
    chunk: ProbeConfig,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ProbeConfig {
    /// What it does: wait, fail, or hang (ignore the request to end).
    mode: String,
    size: u16,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self { mode: "wait".into(), size: 10 }
    }
}

impl ServiceConfig for Config {
    const NAME: &'static str = "probe";
    const ABOUT: &'static str = "Waits until it is told to end.";

    fn common(&self) -> Common<'_> {
        Common {
            kafka: &self.kafka,
            registry: &self.registry,
            runner: &self.runner,
            http: &self.http,
            telemetry: &self.telemetry,
        }
    }

    fn validate(&self) -> Result<(), Invalid> {
        if self.chunk.size == 13 { Err(Invalid::new("chunk.size", "must not be 13")) } else { Ok(()) }
    }
}

fn main() -> ExitCode {
    weir_service::main::<Config, _, _>(|config, service| async move {
        match config.chunk.mode.as_str() {
            "fail" => Err(color_eyre::eyre::eyre!("asked to fail")),
            "hang" => std::future::pending().await,
            _ => {
                let work = tracing::info_span!("work", tenant = "acme", revision = 7);
                work.in_scope(|| tracing::info!(lane = 3, "at work"));
                drop(work);
                // As the runner does for each record.
                global::tracer("weir").start("record").end();
                service.shutdown().cancelled().await;
                Ok(())
            }
        }
    })
}
