//! How busy and how full the GPU is, while a model runs on it. Without a GPU the metrics are absent.

use std::process::{Command, Stdio};
use std::time::Duration;

use tracing::info;

use crate::metric;

/// Seconds between two samples.
const INTERVAL: Duration = Duration::from_secs(10);

/// What the driver's own tool says of a device.
#[derive(Debug, PartialEq)]
struct Sample {
    /// Share of the last interval in which a kernel ran, 0 to 1.
    utilization: f64,
    used_bytes: f64,
    total_bytes: f64,
}

/// Samples the device the model runs on for as long as the process lives, on a thread of its own.
pub(crate) fn watch() {
    let spawned = std::thread::Builder::new().name("gpu-metrics".into()).spawn(|| {
        loop {
            match sample() {
                Ok(sample) => {
                    metrics::gauge!(metric::GPU_UTILIZATION).set(sample.utilization);
                    metrics::gauge!(metric::GPU_MEMORY_USED).set(sample.used_bytes);
                    metrics::gauge!(metric::GPU_MEMORY).set(sample.total_bytes);
                }
                Err(reason) => {
                    info!(reason, "nvidia-smi does not tell how busy the GPU is; its metrics are absent");
                    return;
                }
            }
            std::thread::sleep(INTERVAL);
        }
    });
    if let Err(error) = spawned {
        info!(%error, "no thread to watch the GPU; its metrics are absent");
    }
}

fn sample() -> Result<Sample, String> {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    let device = visible.split(',').next().map(str::trim).filter(|device| !device.is_empty()).unwrap_or("0");
    let output = Command::new("nvidia-smi")
        .args(["--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits", "--id"])
        .arg(device)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    parse(&said).ok_or_else(|| format!("it says {:?}", said.trim()))
}

/// Per cent, then used and total mebibytes.
fn parse(line: &str) -> Option<Sample> {
    const MEBIBYTE: f64 = 1_048_576.0;
    let mut fields = line.lines().next()?.split(',').map(|field| field.trim().parse::<f64>());
    let (utilization, used, total) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
    Some(Sample { utilization: utilization / 100.0, used_bytes: used * MEBIBYTE, total_bytes: total * MEBIBYTE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_nvidia_smi_becomes_shares_and_bytes() {
        let expected = Sample { utilization: 0.87, used_bytes: 2_097_152.0, total_bytes: 4_194_304.0 };
        assert_eq!(parse("87, 2, 4\n"), Some(expected));
        assert_eq!(parse("[N/A], 2, 4\n"), None);
        assert_eq!(parse(""), None);
    }
}
