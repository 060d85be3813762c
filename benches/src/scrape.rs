//! What running services say of themselves.

use std::io::{Read, Write};
use std::net::TcpStream;

use color_eyre::eyre::{Context as _, Result, eyre};

/// The metrics of a service, as they are now.
pub struct Metrics(String);

impl Metrics {
    /// Asks the service that listens here.
    pub fn of(port: u16) -> Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).wrap_err("the service's metrics")?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (_, body) = text.split_once("\r\n\r\n").ok_or_else(|| eyre!("not an answer of HTTP: {text:?}"))?;
        Ok(Self(body.to_owned()))
    }

    /// The sum of all series of this name whose labels contain `label`.
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let is_it = labels.is_empty() || labels.starts_with('{');
            if is_it && labels.contains(label) { value.parse::<f64>().ok() } else { None }
        };
        self.0.lines().filter_map(value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_told_apart_by_name_and_label() {
        let metrics = Metrics("# HELP a_sum x\na_sum{stage=\"x\"} 1.5\na_sum{stage=\"y\"} 2\na_sum_of 9\nb 4\n".into());
        assert!((metrics.sum("a_sum", "stage=\"x\"") - 1.5).abs() < 1e-9);
        assert!((metrics.sum("a_sum", "") - 3.5).abs() < 1e-9);
        assert!((metrics.sum("b", "") - 4.0).abs() < 1e-9);
    }
}
