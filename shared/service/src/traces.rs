//! Logs and traces: one subscriber, one W3C propagator, export over OTLP/HTTP where configured.

use std::fmt;
use std::future::Future;
use std::io::IsTerminal;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use color_eyre::eyre::{self, Context as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};
use tokio::runtime::Handle;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt as log};

use crate::log_format::JsonLines;
use crate::{ServiceConfig, TelemetryConfig};

/// Where collectors take traces over HTTP.
const TRACES_PATH: &str = "/v1/traces";

/// Installs the subscriber for logs and spans. Must be called inside the runtime. Keep the provider, and shut it
/// down at the end: it holds spans that were not exported yet.
pub(crate) fn install<C: ServiceConfig>(config: &TelemetryConfig) -> eyre::Result<SdkTracerProvider> {
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let name = format!("weir-{}", C::NAME);
    let provider = provider(&name, config)?;
    if config.otlp_endpoint.is_some() {
        // The runner's spans, one for each record, come from here; nobody pays for them when they go nowhere.
        opentelemetry::global::set_tracer_provider(provider.clone());
    }
    let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer(name)).with_location(false);
    let filter = EnvFilter::try_new(&config.log).wrap_err("telemetry.log")?;
    let pretty = match config.log_format.as_str() {
        "pretty" => true,
        "json" => false,
        _ => std::io::stderr().is_terminal(),
    };
    let logs = if pretty {
        log::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).boxed()
    } else {
        let lines = JsonLines { service: C::NAME };
        log::layer().with_writer(std::io::stderr).fmt_fields(log::format::JsonFields::new()).event_format(lines).boxed()
    };
    tracing_subscriber::registry().with(filter).with(spans).with(logs).try_init().wrap_err("cannot set up logs")?;
    std::panic::set_hook(Box::new(|panic| {
        // Where, but not what: the message of a panic may quote a user's text.
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(location, thread = std::thread::current().name().unwrap_or_default(), "panic");
    }));
    Ok(provider)
}

fn provider(name: &str, config: &TelemetryConfig) -> eyre::Result<SdkTracerProvider> {
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio)));
    let resource = Resource::builder().with_service_name(name.to_owned()).build();
    let builder = SdkTracerProvider::builder().with_sampler(sampler).with_resource(resource);
    let Some(endpoint) = &config.otlp_endpoint else { return Ok(builder.build()) };
    let endpoint = endpoint.trim_end_matches('/');
    let endpoint = endpoint.strip_suffix(TRACES_PATH).unwrap_or(endpoint);
    let exporter = OtlpExporter::builder()
        .with_http()
        .with_endpoint(format!("{endpoint}{TRACES_PATH}"))
        .with_timeout(Duration::from_secs(5))
        .build()
        .wrap_err("telemetry.otlp_endpoint")?;
    weir_runner::traces_are_exported();
    Ok(builder.with_batch_exporter(InRuntime { inner: exporter, runtime: Handle::current() }).build())
}

/// An exporter whose requests find the runtime: the SDK exports from a thread of its own, outside of it.
struct InRuntime {
    inner: OtlpExporter,
    runtime: Handle,
}

impl fmt::Debug for InRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl SpanExporter for InRuntime {
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        Entered { future: Box::pin(self.inner.export(batch)), runtime: self.runtime.clone() }
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// A future that is polled inside a runtime, wherever it is polled.
struct Entered<F> {
    future: Pin<Box<F>>,
    runtime: Handle,
}

impl<F: Future> Future for Entered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let runtime = self.runtime.clone();
        let _entered = runtime.enter();
        self.future.as_mut().poll(context)
    }
}
