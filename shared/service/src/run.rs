//! From the command line to a running service, and back.

use std::future::Future;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use color_eyre::eyre::{self, Context as _};
use tokio_util::sync::CancellationToken;
use weir_contracts::Topic;
use weir_runner::{Concurrency, KafkaConfig, Registry, Runner, RunnerConfig, RunnerError, StageStatus};
use weir_stage::{ConcurrentStage, Stage};

use crate::command::{self, Action, Arguments};
use crate::load::Loaded;
use crate::{ServiceConfig, health, load, metric, print, shutdown, traces};

/// How long what is left of traces may take to leave at the end.
const TRACE_FLUSH: Duration = Duration::from_secs(3);

/// The stages of a service, as the health server shows them.
pub(crate) type Stages = Arc<Mutex<Vec<(&'static str, Arc<StageStatus>)>>>;

/// A service that has read its configuration, set up telemetry and serves its health.
pub struct Service {
    kafka: KafkaConfig,
    runner: RunnerConfig,
    registry: Registry,
    stages: Stages,
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
        self.registry.clone()
    }

    /// Runs a stage until shutdown; `/readyz` covers it. Several may run at once (`tokio::try_join!`).
    ///
    /// # Errors
    /// As [`weir_runner::Runner::run`].
    pub async fn run_stage<S: Stage>(&self, name: &'static str, input: Topic, stage: S) -> Result<(), RunnerError> {
        self.run_with(name, input, |runner, shutdown| runner.run(input, stage, shutdown)).await
    }

    /// The same for a stage whose records run side by side.
    ///
    /// # Errors
    /// As [`weir_runner::Runner::run`].
    pub async fn run_concurrent_stage<S: ConcurrentStage>(
        &self,
        name: &'static str,
        input: Topic,
        stage: S,
        concurrency: Concurrency,
    ) -> Result<(), RunnerError> {
        self.run_with(name, input, |runner, shutdown| runner.run_concurrent(input, stage, concurrency, shutdown)).await
    }

    async fn run_with<F: Future<Output = Result<(), RunnerError>>>(
        &self,
        name: &'static str,
        input: Topic,
        run: impl FnOnce(Runner, CancellationToken) -> F,
    ) -> Result<(), RunnerError> {
        let runner = Runner::new(name, self.kafka.clone(), self.registry.clone(), self.runner.clone());
        self.stages.lock().unwrap_or_else(PoisonError::into_inner).push((name, runner.status()));
        tracing::info!(stage = name, input = input.name(), "stage starts");
        let result = run(runner, self.shutdown.clone()).await;
        tracing::info!(stage = name, clean = result.is_ok(), "stage ended");
        result
    }
}

/// The `main` of a service: parses the command line (`--config FILE`, `--print-config`, `--set section.key=value`),
/// sets up telemetry, the health server and signal handling, and calls `run`.
pub fn main<C, F, Fut>(run: F) -> ExitCode
where
    C: ServiceConfig,
    F: FnOnce(C, Service) -> Fut,
    Fut: Future<Output = color_eyre::Result<()>>,
{
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let arguments = command::read(&command::command::<C>().get_matches(), environment);
    match begin(&arguments, run) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("weir-{}: {error:#}", C::NAME);
            ExitCode::FAILURE
        }
    }
}

/// An error is for the terminal; once there is a log, errors go there and the status says the rest.
fn begin<C, F, Fut>(arguments: &Arguments, run: F) -> color_eyre::Result<ExitCode>
where
    C: ServiceConfig,
    F: FnOnce(C, Service) -> Fut,
    Fut: Future<Output = color_eyre::Result<()>>,
{
    if arguments.action == Action::PrintMetrics {
        println!("{}", metric::as_json(C::NAME, C::METRICS)?);
        return Ok(ExitCode::SUCCESS);
    }
    let loaded = load::load::<C>(&arguments.sources).wrap_err("configuration")?;
    if arguments.action == Action::PrintConfig {
        print!("{}", print::render(&loaded).wrap_err("cannot print the configuration")?);
        return Ok(ExitCode::SUCCESS);
    }
    // Before anything makes a TLS connection. Fails only when one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name(C::NAME)
        .build()
        .wrap_err("cannot start the runtime")?;
    let tracer = {
        let _entered = runtime.enter();
        traces::install::<C>(loaded.config.common().telemetry)?
    };
    let result = runtime.block_on(serve(loaded, run));
    let status = match &result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the service cannot go on");
            ExitCode::FAILURE
        }
    };
    let _ = tracer.shutdown_with_timeout(TRACE_FLUSH);
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(status)
}

async fn serve<C, F, Fut>(loaded: Loaded<C>, run: F) -> color_eyre::Result<()>
where
    C: ServiceConfig,
    F: FnOnce(C, Service) -> Fut,
    Fut: Future<Output = color_eyre::Result<()>>,
{
    let config = loaded.config;
    let common = config.common();
    let shutdown = CancellationToken::new();
    shutdown::on_signals(shutdown.clone()).wrap_err("cannot listen for signals")?;

    let stages = Stages::default();
    let recorder = metric::install(C::NAME, C::METRICS).map_err(eyre::Report::msg)?;
    let server = health::Server { service: C::NAME, stages: Arc::clone(&stages), recorder };
    let address = health::serve(server, &common.http.address(C::PORT)).await?;
    tracing::info!(service = C::NAME, version = env!("CARGO_PKG_VERSION"), http = %address, "service starts");

    let service = Service {
        kafka: common.kafka.clone(),
        runner: common.runner.clone(),
        registry: Registry::new(common.registry, &common.kafka.prefix)?,
        stages,
        shutdown,
    };
    run(config, service).await?;
    tracing::info!(service = C::NAME, "service ended");
    Ok(())
}
