//! The sections that belong to this crate, and checks of all common sections.

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use weir_runner::{KafkaConfig, RegistryConfig, RunnerConfig};

use crate::{Common, Invalid};

/// The health server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Address of `/metrics`, `/healthz` and `/readyz`: `host:port`, or `host` alone for the service's own port.
    /// Empty: that port on 127.0.0.1. Port 0 picks a free one, printed in the log.
    pub listen: String,
}

impl HttpConfig {
    /// The address to listen on, as `host:port`.
    #[must_use]
    pub fn address(&self, default_port: u16) -> String {
        let listen = self.listen.trim();
        if listen.is_empty() {
            format!("127.0.0.1:{default_port}")
        } else if has_port(listen) {
            listen.to_owned()
        } else {
            format!("{listen}:{default_port}")
        }
    }
}

fn has_port(listen: &str) -> bool {
    listen.rsplit_once(':').is_some_and(|(host, port)| {
        let whole_host = !host.contains(':') || host.ends_with(']');
        whole_host && port.parse::<u16>().is_ok()
    })
}

/// Logs and traces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// `json`, `pretty`, or `auto`: pretty on a terminal, else JSON.
    pub log_format: String,
    /// Filter directives, for example `info,weir_runner=debug`.
    pub log: String,
    /// OTLP/HTTP endpoint of a trace collector, for example `http://127.0.0.1:4318`; none: no export.
    pub otlp_endpoint: Option<String>,
    /// Share of the traces that begin here which are exported, 0 to 1. Traces that began elsewhere follow the
    /// decision that was made there.
    pub sample_ratio: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { log_format: "auto".into(), log: "info".into(), otlp_endpoint: None, sample_ratio: 1.0 }
    }
}

/// Checks the sections that every service has.
pub fn validate(common: Common<'_>) -> Result<(), Invalid> {
    kafka(common.kafka)?;
    registry(common.registry)?;
    runner(common.runner)?;
    telemetry(common.telemetry)
}

fn kafka(config: &KafkaConfig) -> Result<(), Invalid> {
    for broker in config.brokers.split(',').map(str::trim) {
        if broker.is_empty() {
            return Err(Invalid::new("kafka.brokers", "must be host:port, or several separated by commas"));
        }
    }
    if config.lanes < 1 {
        return Err(Invalid::new("kafka.lanes", "must be at least 1"));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    if !config.prefix.chars().all(allowed) {
        return Err(Invalid::new("kafka.prefix", "may contain letters, digits, dots and hyphens only"));
    }
    Ok(())
}

fn registry(config: &RegistryConfig) -> Result<(), Invalid> {
    http_url("registry.url", &config.url)?;
    if config.username.is_some() != config.password.is_some() {
        return Err(Invalid::new("registry.username", "and registry.password go together: set both or neither"));
    }
    Ok(())
}

fn runner(config: &RunnerConfig) -> Result<(), Invalid> {
    let counts = [
        ("runner.max_batch_records", config.max_batch_records),
        ("runner.max_batch_bytes", config.max_batch_bytes),
        ("runner.lane_buffer_bytes", config.lane_buffer_bytes),
        ("runner.max_record_bytes", config.max_record_bytes),
    ];
    for (key, value) in counts {
        if value == 0 {
            return Err(Invalid::new(key, "must be at least 1"));
        }
    }
    let times = [
        ("runner.transaction_timeout_ms", config.transaction_timeout_ms),
        ("runner.session_timeout_ms", config.session_timeout_ms),
        ("runner.backoff_initial_ms", config.backoff_initial_ms),
        ("runner.backoff_max_ms", config.backoff_max_ms),
    ];
    for (key, value) in times {
        if value == 0 {
            return Err(Invalid::new(key, "must be at least 1 millisecond"));
        }
    }
    if config.backoff_max_ms < config.backoff_initial_ms {
        return Err(Invalid::new("runner.backoff_max_ms", "must not be less than runner.backoff_initial_ms"));
    }
    if !(0.0..=1.0).contains(&config.flood_ratio) {
        return Err(Invalid::new("runner.flood_ratio", "must lie between 0 and 1"));
    }
    Ok(())
}

fn telemetry(config: &TelemetryConfig) -> Result<(), Invalid> {
    if !["auto", "json", "pretty"].contains(&config.log_format.as_str()) {
        return Err(Invalid::new("telemetry.log_format", "must be auto, json or pretty"));
    }
    if let Err(error) = EnvFilter::try_new(&config.log) {
        return Err(Invalid::new("telemetry.log", format!("{error}; an example is info,weir_runner=debug")));
    }
    if let Some(endpoint) = &config.otlp_endpoint {
        http_url("telemetry.otlp_endpoint", endpoint)?;
    }
    if !(0.0..=1.0).contains(&config.sample_ratio) {
        return Err(Invalid::new("telemetry.sample_ratio", "must lie between 0 and 1"));
    }
    Ok(())
}

fn http_url(key: &str, url: &str) -> Result<(), Invalid> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    match rest {
        Some(host) if !host.is_empty() && !host.starts_with('/') => Ok(()),
        _ => Err(Invalid::new(key, "must be a URL that begins with http:// or https://")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listen_address_without_a_port_takes_the_services_own() {
        let address = |listen: &str| HttpConfig { listen: listen.into() }.address(9101);
        assert_eq!(address(""), "127.0.0.1:9101");
        assert_eq!(address("0.0.0.0"), "0.0.0.0:9101");
        assert_eq!(address("0.0.0.0:0"), "0.0.0.0:0");
        assert_eq!(address("[::]"), "[::]:9101");
        assert_eq!(address("[::]:80"), "[::]:80");
        assert_eq!(address("health.internal"), "health.internal:9101");
    }
}
